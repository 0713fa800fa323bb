"""Multi-head latent attention (MLA): rotary embedding of queries and key, fused with the write into a paged cache."""

import torch
from torch import Tensor

from ..runtime.explanations import explaining

__all__ = ["concat_and_cache_mla_rope_fused"]

_concat_and_cache_mla_rope_fused = explaining(torch.ops.multikv.concat_and_cache_mla_rope_fused.default)


def concat_and_cache_mla_rope_fused(
    positions: Tensor,
    q_pe: Tensor,
    k_pe: Tensor,
    kv_c: Tensor,
    cos_sin_cache: Tensor,
    is_neox: bool,
    slot_mapping: Tensor,
    kv_cache: Tensor,
    kv_cache_dtype: str,
    kv_cache_scale: Tensor | None,
) -> None:
    """Applies rotary embedding to q_pe and k_pe in place, then caches kv_c and k_pe as concat_and_cache_mla does.

    A pair (x, y) becomes `(x * cos - y * sin, y * cos + x * sin)` with the cosine and sine of the token's position. The
    rounding is that of eager PyTorch. If cos_sin_cache has the dtype of q_pe, each product and each sum is rounded to
    this dtype. If it is float32, products and sums are float32, and the result is rounded once to the dtype of q_pe.

    A token with a negative slot is rotated but not cached. On a GPU, a token with a slot past the end is also rotated
    but not cached, and a token with a position outside cos_sin_cache is neither rotated nor cached.

    Args:
        positions: [>= num_tokens], int32 or int64: the position of each token, which is its row of cos_sin_cache.
        q_pe: [>= num_tokens, num_heads, rope_size], float32, float16 or bfloat16, rotated in place. Any strides except
            that the innermost is 1.
        k_pe: [>= num_tokens, rope_size] or [>= num_tokens, 1, rope_size], the dtype of q_pe, rotated in place.
            rope_size is even. Strides as for q_pe.
        kv_c: [>= num_tokens, latent_size], the dtype of q_pe. Strides as for q_pe.
        cos_sin_cache: [num_positions, rope_size], the dtype of q_pe or float32. A row holds the rope_size / 2 cosines
            of a position, and then its rope_size / 2 sines. Strides as for q_pe.
        is_neox: which elements form a pair. True: i and i + rope_size / 2 (GPT-NeoX). False: 2i and 2i + 1 (GPT-J).
        slot_mapping: [num_tokens], int32 or int64; see `multikv.ops`, Slots.
        kv_cache: [num_blocks, block_size, latent_size + rope_size], written. Dtypes and strides as for
            concat_and_cache_mla.
        kv_cache_dtype: "auto", a float dtype, an fp8 format or "fp8_ds_mla"; see `multikv.ops`.
        kv_cache_scale: float32, one element, on the device of the op. May be None for float formats and fp8_ds_mla,
            which do not read it.

    Raises:
        RuntimeError: an argument has a wrong rank, size, dtype, device, stride or format.
        IndexError: a slot is past the end of the cache, or a position is outside cos_sin_cache (on a GPU only if
            indices are checked).

    Example:
        >>> kv_c, k_pe = torch.randn(100, 512, dtype=torch.bfloat16), torch.randn(100, 64, dtype=torch.bfloat16)
        >>> q_pe, positions = torch.randn(100, 16, 64, dtype=torch.bfloat16), torch.arange(100)
        >>> angles = torch.arange(4096)[:, None] * 1e4 ** -(torch.arange(0, 64, 2) / 64)
        >>> table = torch.cat([angles.cos(), angles.sin()], 1)
        >>> cache, slots = torch.zeros(64, 16, 576, dtype=torch.bfloat16), torch.randperm(64 * 16)[:100]
        >>> multikv.concat_and_cache_mla_rope_fused(
        ...     positions, q_pe, k_pe, kv_c, table, False, slots, cache, "auto", torch.ones(1)
        ... )
    """
    _concat_and_cache_mla_rope_fused(
        positions, q_pe, k_pe, kv_c, cos_sin_cache, is_neox, slot_mapping, kv_cache, kv_cache_dtype, kv_cache_scale
    )
