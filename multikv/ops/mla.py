"""Multi-head latent attention (MLA): latents and rotary keys into a paged cache, and queries side by side."""

import torch
from torch import Tensor

_concat_and_cache_mla = torch.ops.multikv.concat_and_cache_mla.default
_concat_and_cache_mla_rope_fused = torch.ops.multikv.concat_and_cache_mla_rope_fused.default
_concat_and_cache_mla_grouped = torch.ops.multikv.concat_and_cache_mla_grouped.default
_concat_mla_q = torch.ops.multikv.concat_mla_q.default


def concat_and_cache_mla(
    kv_c: Tensor,
    k_pe: Tensor,
    kv_cache: Tensor,
    slot_mapping: Tensor,
    kv_cache_dtype: str,
    scale: Tensor,
    skip_scale: bool = False,
) -> None:
    """Writes each token's latent vector and rotary key, side by side, into its slot of a paged cache.

    `kv_cache[slot // block_size, slot % block_size] = quantise(concat(kv_c[t], k_pe[t]), scale)` with
    `slot = slot_mapping[t]`. Float formats are copied bit for bit.

    kv_cache_dtype "fp8_ds_mla": kv_c is quantised in tiles that have scales of their own, and k_pe copied, or zeros if
    rope_size is 0, into entries of 656 bytes (see the text of `multikv.ops`).

    Args:
        kv_c: [>= num_tokens, latent_size], float32, float16 or bfloat16. fp8_ds_mla: latent_size 512, 16 bits.
        k_pe: [>= num_tokens, rope_size], dtype of kv_c; rope_size may be 0. fp8_ds_mla: 64 or 0.
        kv_cache: [num_blocks, block_size, latent_size + rope_size], written. Any strides, the innermost being 1. dtype:
            kv_c's, or for fp8 formats uint8 or the matching torch.float8 type. fp8_ds_mla: 656 bytes in the last
            dimension, as uint8 or a float8 e4m3 type, or in any elements of 2 or 4 bytes.
        slot_mapping: [num_tokens], int64 or int32.
        kv_cache_dtype: "auto", a float dtype, an fp8 format or "fp8_ds_mla".
        scale: float32, one element, on the op's device, where it is read. Not looked at for float formats and
            fp8_ds_mla, and with skip_scale.
        skip_scale: the scale is 1.

    Raises:
        RuntimeError: an argument of a wrong rank, size, dtype, device, stride or format.
        IndexError: a slot past the end of the cache (on a GPU only when indices are checked).
    """
    _concat_and_cache_mla(kv_c, k_pe, kv_cache, slot_mapping, kv_cache_dtype, scale, skip_scale)


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
    kv_cache_scale: Tensor,
) -> None:
    """Rotates the rotary parts of queries and key in place, and then does as concat_and_cache_mla.

    A pair (x, y) becomes `(x * cos - y * sin, y * cos + x * sin)` with the token's row of cos_sin_cache. Rounding is
    that of eager PyTorch: each product and the sum to the dtype of q_pe, or, with a float32 table, to float32 and then
    once to the dtype of q_pe.

    A token with a negative slot is rotated and not cached; so is, on a GPU, one with a slot past the end. One with a
    position outside the table is, on a GPU, neither rotated nor cached.

    Args:
        positions: [>= num_tokens], int64 or int32: a row of cos_sin_cache each.
        q_pe: [>= num_tokens, num_heads, rope_size], float32, float16 or bfloat16, rotated in place. Any strides, the
            innermost being 1.
        k_pe: [>= num_tokens, rope_size] or [>= num_tokens, 1, rope_size], dtype of q_pe, rotated in place. rope_size is
            even.
        kv_c: [>= num_tokens, latent_size], dtype of q_pe.
        cos_sin_cache: [num_positions, rope_size], rope_size / 2 cosines and then as many sines; dtype of q_pe, or
            float32.
        is_neox: pairs are the elements i and i + rope_size / 2; else 2i and 2i + 1.
        slot_mapping: [num_tokens], int64 or int32.
        kv_cache: as for concat_and_cache_mla, written.
        kv_cache_dtype: "auto", a float dtype, an fp8 format or "fp8_ds_mla".
        kv_cache_scale: float32, one element, on the op's device, where it is read. Not looked at for float formats and
            fp8_ds_mla.

    Raises:
        RuntimeError: an argument of a wrong rank, size, dtype, device, stride or format.
        IndexError: a slot past the end of the cache, or a position outside cos_sin_cache (on a GPU only when indices
            are checked).
    """
    _concat_and_cache_mla_rope_fused(
        positions,
        q_pe,
        k_pe,
        kv_c,
        cos_sin_cache,
        is_neox,
        slot_mapping,
        kv_cache,
        kv_cache_dtype,
        kv_cache_scale,
    )


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
    """concat_and_cache_mla of all layers in one launch, with the same bytes. Caches are named by their addresses.

    Nothing can be checked of the memory at those addresses: that it is there, on this device, aligned to the cache's
    elements and large enough is the caller's word. kv_cache_ptrs stands for it in the schema, as written.

    Args:
        kv_c: [num_layers, >= num_tokens, latent_size], float32, float16 or bfloat16.
        k_pe: [num_layers, >= num_tokens, rope_size], dtype of kv_c; rope_size may be 0.
        kv_cache_ptrs: [num_layers], int64, on the op's device: the address of each layer's cache, an array
            [num_blocks, block_size, latent_size + rope_size] of kv_c's dtype, or of fp8 codes. The arrays are written,
            kv_cache_ptrs is not.
        slot_mapping: [num_layers, num_tokens], int64 or int32; one row for all if expanded (layer stride 0).
        block_size: slots of a block, at least 1.
        block_stride: from a block of a cache to the next, in elements of the cache.
        entry_stride: from a slot of a block to the next, in elements of the cache.
        kv_scales: [num_layers], float32, on the op's device. Needed for fp8 formats, not looked at for others.
        kv_cache_dtype: "auto", a float dtype or an fp8 format. "fp8" and "fp8_e4m3" mean what they do for uint8.
        num_blocks: of each cache. -1: unknown; then the caller vouches for the slots.

    Raises:
        RuntimeError: an argument of a wrong rank, size, dtype, device, stride or format.
        IndexError: with num_blocks, a slot past the end of the cache (on a GPU only when indices are checked).
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
    """Puts the two parts of MLA's queries side by side: `q_out[t, h] = concat(ql_nope[t, h], q_pe[t, h])`, bit for bit.

    Args:
        ql_nope: [num_tokens, num_heads, nope_size], any dtype. Any strides, the innermost being 1.
        q_pe: [num_tokens, num_heads, rope_size], dtype of ql_nope; strides likewise.
        q_out: [num_tokens, >= num_heads, nope_size + rope_size], dtype of ql_nope, written; strides likewise. Heads
            past num_heads are left as they were.

    Raises:
        RuntimeError: an argument of a wrong rank, size, dtype, device or stride.
    """
    _concat_mla_q(ql_nope, q_pe, q_out)
