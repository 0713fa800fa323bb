"""Good calls of the ops that move cached keys."""

from __future__ import annotations

import torch

from multikv import reference
from tests.support.arguments import Arguments
from tests.support.calls.call import Call
from tests.support.calls.gather import without_nans
from tests.support.calls.mla import make_cos_sin_cache, rope_values
from tests.support.tensors import cache_dtype, distinct_slots, embed, randomise

# Options of embed for [blocks, block_size, heads, head_size].
CACHE_LAYOUTS: dict[str, dict[str, object]] = {
    "NHD": {},
    "HND": {"order": (0, 2, 1, 3)},
    "padded": {"padding": (0, 1, 2, 3)},
    "aligned": {"padding": (0, 2, 1, 16)},
    "unaligned": {"offset": 1},
    "heads_outermost": {"order": (2, 1, 0, 3)},
}


def rotate_arguments(
    device: torch.device | str = "cpu",
    *,
    format: str = "auto",
    float8: bool = False,
    dtype: torch.dtype = torch.bfloat16,
    table_dtype: torch.dtype = torch.float32,
    is_neox: bool = True,
    tokens: int = 9,
    heads: int = 3,
    head_size: int = 64,
    rotary_size: int | None = None,
    rotary_offset: int = 0,
    blocks: int | None = None,
    block_size: int = 16,
    layout: str = "NHD",
    x: int | None = None,
    per_head: bool = False,
    num_positions: int = 20,
    index_dtype: torch.dtype = torch.int64,
    table_options: dict[str, object] | None = None,
    share_of_padding: float = 0.0,
    extreme: bool = False,
) -> Arguments:
    """A good call; with `x`, of a packed cache. Only an `extreme` one yields NaNs in float caches."""
    blocks = -(-tokens // block_size) + 2 if blocks is None else blocks
    rotary_size = head_size - rotary_offset if rotary_size is None else rotary_size
    stored = cache_dtype(format, dtype, float8=float8)
    if x is None:
        cache = embed((blocks, block_size, heads, head_size), stored, device, **CACHE_LAYOUTS[layout])
    else:
        cache = embed((blocks, heads, head_size // x, block_size, x), stored, device)
    table = embed((num_positions, rotary_size), table_dtype, device, **(table_options or {}))
    fp8_format = reference.fp8_format(format, torch.uint8)
    if fp8_format is None:
        randomise(cache) if extreme else cache.copy_(rope_values(cache.shape, dtype))
    elif not extreme:
        without_nans(cache, fp8_format)
    if extreme:
        randomise(table)
    else:  # with a factor, as YaRN's tables have
        factors = torch.tensor([1.0, 1.0, 1.3, 0.5])[torch.randint(4, (num_positions, 1))]
        table.copy_(make_cos_sin_cache(num_positions, rotary_size, torch.float32) * factors)
    slots = distinct_slots(tokens, blocks * block_size, index_dtype)
    positions = torch.randint(num_positions, (2, tokens), dtype=index_dtype)
    padding = torch.rand(tokens) < share_of_padding
    slots[padding], positions[:, padding] = -3, 1_000_000
    return {
        "key_cache": cache,
        "slots": slots.to(device),
        "old_positions": positions[0].to(device),
        "new_positions": positions[1].to(device),
        "cos_sin_cache": table,
        "is_neox": is_neox,
        "kv_cache_dtype": format,
        "k_scale": None if fp8_format is None else (torch.rand(heads if per_head else 1) + 0.25).to(device),
        "rotary_offset": rotary_offset,
        "k_scales": None,
    }


ROTATE = "rotate_cached_keys"
PADDED = {"share_of_padding": 0.3}
LARGER = {"tokens": 1000}

CALLS = {
    "rotate": Call(ROTATE, rotate_arguments, {}, PADDED, larger=LARGER),
    "rotate-gptj": Call(ROTATE, rotate_arguments, {"is_neox": False, "layout": "HND"}, PADDED, larger=LARGER),
    "rotate-fp8": Call(
        ROTATE, rotate_arguments, {"format": "fp8", "per_head": True}, PADDED, larger=LARGER, uses_all=True
    ),
    "rotate-packed": Call(ROTATE, rotate_arguments, {"x": 8, "rotary_offset": 24}, PADDED, larger=LARGER),
    "rotate-nans": Call(
        ROTATE, rotate_arguments, {"extreme": True, "dtype": torch.float32}, PADDED, ("key_cache",), LARGER
    ),
    "rotate-no_tokens": Call(ROTATE, rotate_arguments, {"tokens": 0}),
}
