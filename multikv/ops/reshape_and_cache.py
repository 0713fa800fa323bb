"""Writes keys and values into a paged cache."""

import torch
from torch import Tensor

from ..runtime.explanations import explaining

__all__ = ["reshape_and_cache", "reshape_and_cache_flash"]

_reshape_and_cache_flash = explaining(torch.ops.multikv.reshape_and_cache_flash.default)
_reshape_and_cache = explaining(torch.ops.multikv.reshape_and_cache.default)


def reshape_and_cache_flash(
    key: Tensor,
    value: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slot_mapping: Tensor,
    kv_cache_dtype: str,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
) -> None:
    """Writes each token's key and value into its slot of a paged cache, in the layout of FlashAttention.

    `key_cache[slot // block_size, slot % block_size, h, :] = quantise(key[t, h, :], k_scale[h])` with
    `slot = slot_mapping[t]`, and the same for value. Float formats are copied bit for bit.

    Args:
        key: [>= num_tokens, num_heads, head_size], float32, float16 or bfloat16.
        value: [>= num_tokens, num_heads, value_head_size], the dtype of key. value_head_size may differ from head_size.
        key_cache: [num_blocks, block_size, num_heads, head_size], written. Any strides except that the innermost is 1,
            so that the memory may have the layout NHD or HND (as a permuted view), K and V may be views of one tensor,
            and entries may be padded. The dtype of key, or for fp8 formats uint8 or the matching torch.float8 type.
        value_cache: [num_blocks, block_size, num_heads, value_head_size], the dtype of key_cache, written. Its strides
            may differ from those of key_cache.
        slot_mapping: [num_tokens], int32 or int64; see `multikv.ops`, Slots.
        kv_cache_dtype: "auto", a float dtype or an fp8 format; see `multikv.ops`.
        k_scale: float32, one element or one per head, on the device of the op. May be None for float formats, which do
            not read it.
        v_scale: like k_scale, with as many elements.

    Raises:
        RuntimeError: an argument has a wrong rank, size, dtype, device, stride or format.
        IndexError: a slot is past the end of the cache (on a GPU only if indices are checked).

    Example:
        >>> key, value = torch.randn(2, 100, 8, 128, dtype=torch.bfloat16)  # 100 tokens, 8 heads of 128
        >>> key_cache, value_cache = torch.zeros(2, 64, 16, 8, 128, dtype=torch.uint8)  # 64 blocks of 16 slots
        >>> slots, scale = torch.randperm(64 * 16)[:100], torch.tensor([0.02])
        >>> multikv.reshape_and_cache_flash(key, value, key_cache, value_cache, slots, "fp8_e4m3", scale, scale)
    """
    _reshape_and_cache_flash(key, value, key_cache, value_cache, slot_mapping, kv_cache_dtype, k_scale, v_scale)


def reshape_and_cache(
    key: Tensor,
    value: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slot_mapping: Tensor,
    kv_cache_dtype: str,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
    interleaved_v: bool = False,
) -> None:
    """Writes each token's key and value into its slot of a paged cache, in the layout of the first PagedAttention.

    With `block, offset = divmod(slot_mapping[t], block_size)`:

    - `key_cache[block, h, d // x, offset, d % x] = quantise(key[t, h, d], k_scale[h])`
    - `value_cache[block, h, d, offset] = quantise(value[t, h, d], v_scale[h])`, or with interleaved_v
      `value_cache[block, h, offset // x, d, offset % x] = quantise(value[t, h, d], v_scale[h])`

    Float formats are copied bit for bit. Source of the layouts: vLLM's `reshape_and_cache`.

    Args:
        key: [>= num_tokens, num_heads, head_size], float32, float16 or bfloat16.
        value: [>= num_tokens, num_heads, head_size], the dtype of key.
        key_cache: [num_blocks, num_heads, head_size / x, block_size, x], written. x divides head_size; usually a vector
            of x elements has 16 bytes. Any strides except that the innermost is 1. The dtype of key, or for fp8 formats
            uint8 or the matching torch.float8 type.
        value_cache: [num_blocks, num_heads, head_size, block_size], or with interleaved_v
            [num_blocks, num_heads, block_size / x, head_size, x], whose x may differ from that of key_cache. The dtype
            of key_cache, written. Any strides except that the innermost is 1.
        slot_mapping: [num_tokens], int32 or int64; see `multikv.ops`, Slots.
        kv_cache_dtype: "auto", a float dtype or an fp8 format; see `multikv.ops`.
        k_scale: float32, one element or one per head, on the device of the op. May be None for float formats, which do
            not read it.
        v_scale: like k_scale, with as many elements.
        interleaved_v: whether value_cache has five dimensions (see value_cache).

    Raises:
        RuntimeError: an argument has a wrong rank, size, dtype, device, stride or format.
        IndexError: a slot is past the end of the cache (on a GPU only if indices are checked).

    Example:
        >>> key, value = torch.randn(2, 100, 8, 128, dtype=torch.bfloat16)  # 100 tokens, 8 heads of 128
        >>> key_cache = torch.zeros(64, 8, 128 // 8, 16, 8, dtype=torch.bfloat16)  # 64 blocks of 16 slots
        >>> value_cache = torch.zeros(64, 8, 128, 16, dtype=torch.bfloat16)
        >>> slots, scale = torch.randperm(64 * 16)[:100], torch.ones(1)
        >>> multikv.reshape_and_cache(key, value, key_cache, value_cache, slots, "auto", scale, scale)
    """
    _reshape_and_cache(
        key, value, key_cache, value_cache, slot_mapping, kv_cache_dtype, k_scale, v_scale, interleaved_v
    )
