"""Keys and values into a paged cache."""

import torch
from torch import Tensor

_reshape_and_cache_flash = torch.ops.multikv.reshape_and_cache_flash.default
_reshape_and_cache = torch.ops.multikv.reshape_and_cache.default


def reshape_and_cache_flash(
    key: Tensor,
    value: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slot_mapping: Tensor,
    kv_cache_dtype: str,
    k_scale: Tensor,
    v_scale: Tensor,
) -> None:
    """Writes each token's key and value into its slot of a paged cache.

    `key_cache[slot // block_size, slot % block_size, h, :] = quantise(key[t, h, :], k_scale[h])` with
    `slot = slot_mapping[t]`, and the same for value. Float formats are copied bit for bit.

    Args:
        key: [>= num_tokens, num_heads, head_size], float32, float16 or bfloat16.
        value: [>= num_tokens, num_heads, value_head_size], dtype of key. Its head size may differ from key's.
        key_cache: [num_blocks, block_size, num_heads, head_size], written. Any strides (NHD, HND as a permuted view, K
            and V interleaved in one tensor, padded rows), the innermost being 1. dtype: key's, or for fp8 formats uint8
            or the matching torch.float8 type.
        value_cache: [num_blocks, block_size, num_heads, value_head_size], dtype of key_cache, written; strides of its
            own.
        slot_mapping: [num_tokens], int64 or int32.
        kv_cache_dtype: "auto", a float dtype or an fp8 format: see the text of `multikv.ops`.
        k_scale: float32, one element or one per head, on the op's device, where it is read. Not looked at for float
            formats.
        v_scale: as k_scale, with as many elements.

    Raises:
        RuntimeError: an argument of a wrong rank, size, dtype, device, stride or format.
        IndexError: a slot past the end of the cache (on a GPU only when indices are checked).
    """
    _reshape_and_cache_flash(key, value, key_cache, value_cache, slot_mapping, kv_cache_dtype, k_scale, v_scale)


def reshape_and_cache(
    key: Tensor,
    value: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slot_mapping: Tensor,
    kv_cache_dtype: str,
    k_scale: Tensor,
    v_scale: Tensor,
    interleaved_v: bool = False,
) -> None:
    """Writes each token's key and value into its slot of a cache in the packed layout of the first PagedAttention.

    With `block, offset = divmod(slot_mapping[t], block_size)`:
    `key_cache[block, h, d // x, offset, d % x] = quantise(key[t, h, d], k_scale[h])` and
    `value_cache[block, h, d, offset] = quantise(value[t, h, d], v_scale[h])`; with interleaved_v
    `value_cache[block, h, offset // x, d, offset % x]`. Float formats are copied bit for bit.

    Args:
        key: [>= num_tokens, num_heads, head_size], float32, float16 or bfloat16.
        value: [>= num_tokens, num_heads, head_size], dtype of key.
        key_cache: [num_blocks, num_heads, head_size / x, block_size, x], written. x is usually 16 bytes, and divides
            head_size. Any strides, the innermost being 1. dtype: key's, or for fp8 formats uint8 or the matching
            torch.float8 type.
        value_cache: [num_blocks, num_heads, head_size, block_size], dtype of key_cache, written; strides of its own,
            the innermost being 1. With interleaved_v [num_blocks, num_heads, block_size / x, head_size, x], whose x
            need not be key_cache's.
        slot_mapping: [num_tokens], int64 or int32.
        kv_cache_dtype: "auto", a float dtype or an fp8 format: see the text of `multikv.ops`.
        k_scale: float32, one element or one per head, on the op's device, where it is read. Not looked at for float
            formats.
        v_scale: as k_scale, with as many elements.
        interleaved_v: the layout of value_cache.

    Raises:
        RuntimeError: an argument of a wrong rank, size, dtype, device, stride or format.
        IndexError: a slot past the end of the cache (on a GPU only when indices are checked).
    """
    _reshape_and_cache(
        key, value, key_cache, value_cache, slot_mapping, kv_cache_dtype, k_scale, v_scale, interleaved_v
    )
