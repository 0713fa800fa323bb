"""Multi-head latent attention (MLA): caches latent vectors and rotary keys, and concatenates the parts of queries."""

import torch
from torch import Tensor

from ..runtime.explanations import explaining

__all__ = ["concat_and_cache_mla", "concat_and_cache_mla_grouped", "concat_mla_q"]

_concat_and_cache_mla = explaining(torch.ops.multikv.concat_and_cache_mla.default)
_concat_and_cache_mla_grouped = explaining(torch.ops.multikv.concat_and_cache_mla_grouped.default)
_concat_mla_q = explaining(torch.ops.multikv.concat_mla_q.default)


def concat_and_cache_mla(
    kv_c: Tensor,
    k_pe: Tensor,
    kv_cache: Tensor,
    slot_mapping: Tensor,
    kv_cache_dtype: str,
    scale: Tensor | None,
    skip_scale: bool = False,
) -> None:
    """Writes each token's latent vector, followed by its rotary key, into its slot of a paged cache.

    `kv_cache[slot // block_size, slot % block_size] = quantise(concat(kv_c[t], k_pe[t]), scale)` with
    `slot = slot_mapping[t]`. Float formats are copied bit for bit.

    With kv_cache_dtype "fp8_ds_mla" the entry has 656 bytes (`multikv.ops` has the layout). kv_c is quantised in tiles,
    each with its own scale. k_pe is copied; if rope_size is 0, zeros are stored in its place.

    Args:
        kv_c: [>= num_tokens, latent_size], float32, float16 or bfloat16. fp8_ds_mla: latent_size is 512 and the dtype
            has 16 bits.
        k_pe: [>= num_tokens, rope_size], the dtype of kv_c. rope_size may be 0. fp8_ds_mla: rope_size is 64 or 0.
        kv_cache: [num_blocks, block_size, latent_size + rope_size], written. Any strides except that the innermost is
            1. The dtype of kv_c, or for fp8 formats uint8 or the matching torch.float8 type. fp8_ds_mla: uint8, a
            float8 e4m3 type, or any dtype of 2 or 4 bytes, with a last dimension of 656 bytes.
        slot_mapping: [num_tokens], int32 or int64; see `multikv.ops`, Slots.
        kv_cache_dtype: "auto", a float dtype, an fp8 format or "fp8_ds_mla"; see `multikv.ops`.
        scale: float32, one element, on the device of the op. May be None for float formats, for fp8_ds_mla and with
            skip_scale, which do not read it.
        skip_scale: whether the scale is 1.

    Raises:
        RuntimeError: an argument has a wrong rank, size, dtype, device, stride or format.
        IndexError: a slot is past the end of the cache (on a GPU only if indices are checked).

    Example:
        >>> kv_c, k_pe = torch.randn(100, 512, dtype=torch.bfloat16), torch.randn(100, 64, dtype=torch.bfloat16)
        >>> cache, slots = torch.zeros(64, 16, 576, dtype=torch.float8_e4m3fn), torch.randperm(64 * 16)[:100]
        >>> multikv.concat_and_cache_mla(kv_c, k_pe, cache, slots, "fp8_e4m3", torch.tensor([0.02]))
    """
    _concat_and_cache_mla(kv_c, k_pe, kv_cache, slot_mapping, kv_cache_dtype, scale, skip_scale)


def concat_and_cache_mla_grouped(
    kv_c: Tensor,
    k_pe: Tensor,
    kv_cache_ptrs: Tensor,
    slot_mapping: Tensor,
    block_size: int,
    block_stride: int,
    entry_stride: int,
    kv_scales: Tensor | None = None,
    kv_cache_dtype: str = "auto",
    num_blocks: int = -1,
) -> None:
    """Does what concat_and_cache_mla does for all layers in one launch, with caches given by address.

    *Unsafe*: the memory at the addresses cannot be checked. The caller guarantees that this memory is on the device of
    the op, is aligned to the elements of the cache, is large enough, and overlaps neither other caches nor the inputs.
    The schema marks kv_cache_ptrs as written, in place of this memory, which a schema cannot name.

    Args:
        kv_c: [num_layers, >= num_tokens, latent_size], float32, float16 or bfloat16.
        k_pe: [num_layers, >= num_tokens, rope_size], the dtype of kv_c. rope_size may be 0.
        kv_cache_ptrs: [num_layers], int64, on the device of the op: the address of each layer's cache, an array
            [num_blocks, block_size, latent_size + rope_size] of kv_c's dtype or of fp8 codes. The arrays are written,
            kv_cache_ptrs itself is not.
        slot_mapping: [num_layers, num_tokens], int32 or int64; see `multikv.ops`, Slots. If all layers use the same
            slots, pass `slots.expand(num_layers, -1)`.
        block_size: slots of a block, at least 1.
        block_stride: distance from a block of a cache to the next, in elements of the cache. Either of block_stride and
            entry_stride may be the larger one, but entries must not overlap.
        entry_stride: distance from a slot of a block to the next, in elements of the cache.
        kv_scales: [num_layers], float32, on the device of the op. Required for fp8 formats, not read for others.
        kv_cache_dtype: "auto", a float dtype or an fp8 format; see `multikv.ops`. "fp8" and "fp8_e4m3" mean the native
            e4m3 of the device, as for a uint8 cache.
        num_blocks: number of blocks of each cache. -1: unknown; the caller then guarantees that all slots exist.

    Raises:
        RuntimeError: an argument has a wrong rank, size, dtype, device, stride or format.
        IndexError: a slot is past the end of the cache and num_blocks is given (on a GPU only if indices are checked).

    Example:
        >>> kv_c = torch.randn(4, 100, 512, dtype=torch.bfloat16)  # 4 layers, 100 tokens
        >>> k_pe = torch.randn(4, 100, 64, dtype=torch.bfloat16)
        >>> caches = [torch.zeros(64, 16, 576, dtype=torch.bfloat16) for _ in range(4)]
        >>> addresses = torch.tensor([cache.data_ptr() for cache in caches])
        >>> slots = torch.randperm(64 * 16)[:100].expand(4, -1)
        >>> multikv.concat_and_cache_mla_grouped(kv_c, k_pe, addresses, slots, 16, 16 * 576, 576, num_blocks=64)
    """
    _concat_and_cache_mla_grouped(
        kv_c,
        k_pe,
        kv_cache_ptrs,
        slot_mapping,
        block_size,
        block_stride,
        entry_stride,
        kv_scales,
        kv_cache_dtype,
        num_blocks,
    )


def concat_mla_q(ql_nope: Tensor, q_pe: Tensor, q_out: Tensor) -> None:
    """Concatenates the two parts of MLA's queries: `q_out[t, h] = concat(ql_nope[t, h], q_pe[t, h])`, bit for bit.

    Args:
        ql_nope: [num_tokens, num_heads, nope_size], any dtype. Any strides except that the innermost is 1.
        q_pe: [num_tokens, num_heads, rope_size], the dtype of ql_nope. Strides as for ql_nope.
        q_out: [num_tokens, >= num_heads, nope_size + rope_size], the dtype of ql_nope, written. Strides as for ql_nope.
            Heads past num_heads keep their content.

    Raises:
        RuntimeError: an argument has a wrong rank, size, dtype, device or stride.

    Example:
        >>> ql_nope = torch.randn(100, 128, 512, dtype=torch.bfloat16)  # 100 tokens, 128 heads
        >>> q_pe = torch.randn(100, 128, 64, dtype=torch.bfloat16)
        >>> q = torch.empty(100, 128, 576, dtype=torch.bfloat16)
        >>> multikv.concat_mla_q(ql_nope, q_pe, q)
    """
    _concat_mla_q(ql_nope, q_pe, q_out)
