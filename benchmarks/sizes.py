"""Sizes that the families share: numbers of tokens and batches of sequences."""

from collections.abc import Iterator

TOKENS = (1, 256, 16384, 131072)
MANY_TOKENS = (1, 8, 64, 256, 2048, 16384, 131072)
QUICK_TOKENS = (1, 16384, 131072)
SHAPES_TOKENS = 16384

BATCHES = ((1, 128), (1, 4096), (256, 128), (1, 131072), (256, 512))  # (number of sequences, tokens per sequence)
QUICK_BATCHES = ((1, 128), (256, 128), (256, 512))


def dtype_name(kv_cache_dtype: str) -> str:
    return "bf16" if kv_cache_dtype == "bfloat16" else kv_cache_dtype


def writes(kv_cache_dtypes: tuple[str, ...], tokens: tuple[int, ...] = TOKENS) -> Iterator[tuple[str, str, int, bool]]:
    """Yields (format, "format/T=tokens", tokens, whether the case is part of --quick)."""
    for kv_cache_dtype in kv_cache_dtypes:
        for num_tokens in tokens:
            yield kv_cache_dtype, f"{dtype_name(kv_cache_dtype)}/T={num_tokens}", num_tokens, num_tokens in QUICK_TOKENS
