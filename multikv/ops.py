"""The ops, typed and documented. Each is one call of `torch.ops.multikv.<name>`, where every argument is checked.

Common to all: ops return None and write only the arguments that their text says they write; they allocate nothing on
the device and do not synchronise, so they can be captured in CUDA graphs and compiled with fullgraph=True. They run on
the current stream of their tensors' device. A bad argument is a RuntimeError, a bad index on CPU an IndexError, both
raised before anything is written; on a GPU a token with a bad index is skipped (MULTIKV_CHECK_INDICES=1: checked, and
raised, as on CPU).

Words: a cache is `num_blocks` blocks of `block_size` slots; `slot = block * block_size + offset`.
"""

import torch
from torch import Tensor

_ops = torch.ops.multikv
_reshape_and_cache_flash = _ops.reshape_and_cache_flash.default
_cp_gather_cache = _ops.cp_gather_cache.default


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
        key: [>= num_tokens, num_heads, head_size], float32, float16 or bfloat16. Rows past num_tokens are neither read
            nor written.
        value: [>= num_tokens, num_heads, value_head_size], dtype of key. Its head size may differ from key's.
        key_cache: [num_blocks, block_size, num_heads, head_size], written. Any strides (NHD, HND as a permuted view, K
            and V interleaved in one tensor, padded rows), the innermost being 1. dtype: key's, or for fp8 formats uint8
            or the matching torch.float8 type.
        value_cache: [num_blocks, block_size, num_heads, value_head_size], written; strides of its own.
        slot_mapping: [num_tokens], int64 or int32. A negative slot is padding: its token is skipped. Of two
            tokens with one slot either may win (on CPU: the last).
        kv_cache_dtype: "auto" (the cache has key's dtype), "float32", "float16", "bfloat16" (as auto, and checked),
            "fp8" or "fp8_e4m3" (the e4m3 that the cache's dtype says; for uint8 the one that the device's attention
            reads: e4m3fn, except e4m3fnuz on gfx940 to gfx942), "fp8_e5m2", "fp8_e4m3fn", "fp8_e4m3fnuz",
            "fp8_e5m2fnuz".
        k_scale: float32, one element or one per head, on the op's device, where it is read. Not looked at for float
            formats.
        v_scale: as k_scale, with as many elements.

    fp8: float32 division by the scale, rounding to nearest even, saturation to the largest finite value (also of
    infinities); NaN becomes 0x7f (fnuz: 0x80). Formats: OCP 8-bit Floating Point Specification 1.0 (e4m3fn, e5m2);
    Noune et al. 2022, "8-bit Numerical Formats for Deep Neural Networks" (fnuz).

    Raises:
        RuntimeError: an argument of a wrong rank, size, dtype, device, stride or format.
        IndexError: a slot past the end of the cache (on a GPU only when indices are checked).
    """
    _reshape_and_cache_flash(key, value, key_cache, value_cache, slot_mapping, kv_cache_dtype, k_scale, v_scale)


def cp_gather_cache(
    src_cache: Tensor,
    dst: Tensor,
    block_table: Tensor,
    cu_seq_lens: Tensor,
    batch_size: int,
    seq_starts: Tensor | None = None,
) -> None:
    """Copies the cache entries of sequences, found through their block tables, into consecutive rows.

    Output row i belongs to the sequence s with `cu_seq_lens[s] <= i < cu_seq_lens[s + 1]`; its position there is
    `p = i - cu_seq_lens[s] + seq_starts[s]`, and `dst[i] = src_cache[block_table[s, p // block_size], p % block_size]`.

    Args:
        src_cache: [num_blocks, block_size, *entry], any dtype; entries are copied as bytes. Any strides, the innermost
            being 1 (after merging neighbours, an entry may have up to 4 strided dimensions).
        dst: [num_rows, *entry], dtype of src_cache, written. Rows outside [cu_seq_lens[0], cu_seq_lens[-1]) and rows
            whose block lies past the table's width are left as they were.
        block_table: [batch_size, blocks_per_sequence], int32 or int64. Entries that no row needs are not looked at.
        cu_seq_lens: [batch_size + 1], int32 or int64, not decreasing, not negative, at most num_rows.
        batch_size: number of sequences.
        seq_starts: [batch_size], int32 or int64: the first position of each sequence to copy; None: 0.

    Raises:
        RuntimeError: an argument of a wrong rank, size, dtype, device or stride.
        IndexError: a bound, start or needed block id out of range (on a GPU only when indices are checked; rows with
            such an index are left as they were).
    """
    _cp_gather_cache(src_cache, dst, block_table, cu_seq_lens, batch_size, seq_starts)
