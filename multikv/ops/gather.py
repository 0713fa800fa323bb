"""Gathers: the entries of sequences, copied from a paged cache to consecutive rows."""

import torch
from torch import Tensor

from ..runtime.explanations import explaining

__all__ = [
    "cp_gather_and_upconvert_fp8_kv_cache",
    "cp_gather_cache",
    "gather_and_maybe_dequant_cache",
    "gather_kv_cache",
]

_cp_gather_cache = explaining(torch.ops.multikv.cp_gather_cache.default)
_gather_and_maybe_dequant_cache = explaining(torch.ops.multikv.gather_and_maybe_dequant_cache.default)
_gather_kv_cache = explaining(torch.ops.multikv.gather_kv_cache.default)
_cp_gather_and_upconvert_fp8_kv_cache = explaining(torch.ops.multikv.cp_gather_and_upconvert_fp8_kv_cache.default)


def cp_gather_cache(
    src_cache: Tensor,
    dst: Tensor,
    block_table: Tensor,
    cu_seq_lens: Tensor,
    batch_size: int,
    seq_starts: Tensor | None = None,
) -> None:
    """Copies the entries of sequences into consecutive rows, byte for byte.

    `dst[i] = src_cache[block_table[s, p // block_size], p % block_size]` for every row i, where i holds position p of
    sequence s (see `multikv.ops`, Sequences).

    Args:
        src_cache: [num_blocks, block_size, *entry], any dtype. Any strides except that the innermost is 1. The
            op first merges dimensions of the entry that permute() and flatten() could merge without a copy, in the same
            way for src_cache and dst. At most 8 dimensions may then remain besides the one of stride 1.
        dst: [num_rows, *entry], the dtype of src_cache, written. Rows outside [cu_seq_lens[0], cu_seq_lens[-1]), and
            rows whose block lies past the width of block_table, keep their content.
        block_table: [batch_size, blocks_per_sequence], int32 or int64. Entries that no row needs are not checked.
        cu_seq_lens: [batch_size + 1], int32 or int64: the first row of each sequence, and the end of the last one. Not
            decreasing, not negative, at most num_rows.
        batch_size: number of sequences; -1: block_table.size(0). A graph of torch.compile that passes -1 serves all
            numbers of sequences.
        seq_starts: [batch_size], int32 or int64: the first position to copy of each sequence. None: 0.

    Raises:
        RuntimeError: an argument has a wrong rank, size, dtype, device or stride.
        IndexError: a bound, a start or a needed block id is out of range (on a GPU only if indices are checked; rows
            with such an index keep their content).

    Example:
        >>> cache = torch.randn(64, 16, 576, dtype=torch.bfloat16)
        >>> block_table = torch.tensor([[3, 7], [5, 0]], dtype=torch.int32)
        >>> rows = torch.empty(20 + 10, 576, dtype=torch.bfloat16)  # sequences of 20 and of 10 tokens
        >>> multikv.cp_gather_cache(cache, rows, block_table, torch.tensor([0, 20, 30]), 2)
    """
    _cp_gather_cache(src_cache, dst, block_table, cu_seq_lens, batch_size, seq_starts)


def gather_and_maybe_dequant_cache(
    src_cache: Tensor,
    dst: Tensor,
    block_table: Tensor,
    cu_seq_lens: Tensor,
    token_to_seq: Tensor | None,
    num_tokens: int,
    kv_cache_dtype: str,
    scale: Tensor | None,
    seq_starts: Tensor | None = None,
) -> None:
    """Copies the entries of sequences into consecutive rows, and dequantises them if the cache is fp8.

    `dst[i] = dequantise(src_cache[block_table[s, p // block_size], p % block_size], scale)` for every row i below
    num_tokens, where i holds position p of sequence s (see `multikv.ops`, Sequences). Float formats are copied bit for
    bit.

    Args:
        src_cache: [num_blocks, block_size, entry_size] or [num_blocks, block_size, num_heads, head_size], the dtype of
            dst, or for fp8 formats uint8 or the matching torch.float8 type. Any strides except that the innermost is 1,
            so that the memory may have the layout NHD or HND (as a permuted view); the cache is never copied.
        dst: [>= num_tokens, entry_size]; for a cache with heads [>= num_tokens, num_heads, head_size] or
            [>= num_tokens, num_heads * head_size]. float32, float16 or bfloat16, written. Rows outside
            [cu_seq_lens[0], min(cu_seq_lens[-1], num_tokens)), and rows whose block lies past the width of block_table,
            keep their content.
        block_table: [batch_size, blocks_per_sequence], int32 or int64. Entries that no row needs are not checked.
        cu_seq_lens: [batch_size + 1], int32 or int64: the first row of each sequence, and the end of the last one. Not
            decreasing, not negative. May exceed num_tokens.
        token_to_seq: [>= num_tokens], int32 or int64, or None. Accepted for compatibility with vLLM and not read:
            cu_seq_lens determines the sequences.
        num_tokens: the largest number of rows to write; -1: dst.size(0). It may exceed cu_seq_lens[-1], so that the
            host need not read cu_seq_lens from the device. A graph of torch.compile that passes -1 serves all sizes.
        kv_cache_dtype: "auto", a float dtype or an fp8 format; see `multikv.ops`.
        scale: float32, one element, or for a cache with heads also one per head, on the device of the op. May be None
            for float formats, which do not read it.
        seq_starts: [batch_size], int32 or int64: the first position to copy of each sequence, which need not be the
            first of a block. None: 0.

    Raises:
        RuntimeError: an argument has a wrong rank, size, dtype, device, stride or format.
        IndexError: a bound, a start or a needed block id is out of range (on a GPU only if indices are checked; rows
            with such an index keep their content).

    Example:
        >>> cache = torch.zeros(64, 16, 576, dtype=torch.float8_e4m3fn)
        >>> block_table, bounds = torch.tensor([[3, 7], [5, 0]], dtype=torch.int32), torch.tensor([0, 20, 30])
        >>> rows, scale = torch.empty(30, 576, dtype=torch.bfloat16), torch.tensor([0.02])
        >>> multikv.gather_and_maybe_dequant_cache(cache, rows, block_table, bounds, None, -1, "fp8_e4m3", scale)
    """
    _gather_and_maybe_dequant_cache(
        src_cache, dst, block_table, cu_seq_lens, token_to_seq, num_tokens, kv_cache_dtype, scale, seq_starts
    )


def gather_kv_cache(
    key_cache: Tensor,
    value_cache: Tensor,
    key: Tensor,
    value: Tensor,
    block_table: Tensor,
    cu_seq_lens: Tensor,
    kv_cache_dtype: str,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    seq_starts: Tensor | None = None,
    num_tokens: int = -1,
    k_global_scale: Tensor | None = None,
    v_global_scale: Tensor | None = None,
) -> None:
    """Copies the keys and values of sequences into consecutive rows, and dequantises them if the caches are fp8.

    `key[i, h, :] = dequantise(key_cache[block_table[s, p // block_size], p % block_size, h, :], k_scale[h])`, and the
    same for value, for every row i below num_tokens, where i holds position p of sequence s (see `multikv.ops`,
    Sequences). Float formats are copied bit for bit. The caches are those of reshape_and_cache_flash, or packed ones of
    reshape_and_cache.

    Args:
        key_cache: [num_blocks, block_size, num_heads, head_size], or packed [num_blocks, num_heads, head_size / x,
            block_size, x]. Any strides except that the innermost is 1; the cache is never copied. The dtype of key, or
            for fp8 formats uint8 or the matching torch.float8 type.
        value_cache: [num_blocks, block_size, num_heads, value_head_size]; with a packed key_cache [num_blocks,
            num_heads, head_size, block_size], or interleaved [num_blocks, num_heads, block_size / x, head_size, x],
            whose x may differ from that of key_cache. The dtype of key_cache. Its strides may differ from those of
            key_cache.
        key: [>= num_tokens, num_heads, head_size], float32, float16 or bfloat16, written. Any strides except that the
            innermost is 1. Rows outside [cu_seq_lens[0], min(cu_seq_lens[-1], num_tokens)), and rows whose block lies
            past the width of block_table, keep their content, here and in value.
        value: [>= num_tokens, num_heads, value_head_size], the dtype of key, written. value_head_size may differ from
            head_size unless the caches are packed. Its strides may differ from those of key.
        block_table: [batch_size, blocks_per_sequence], int32 or int64. Entries that no row needs are not checked.
        cu_seq_lens: [batch_size + 1], int32 or int64: the first row of each sequence, and the end of the last one. Not
            decreasing, not negative. May exceed num_tokens.
        kv_cache_dtype: "auto", a float dtype or an fp8 format; see `multikv.ops`.
        k_scale: float32, one element or one per head, on the device of the op. May be None for float formats, which do
            not read it.
        v_scale: like k_scale, with as many elements.
        seq_starts: [batch_size], int32 or int64: the first position to copy of each sequence, which need not be the
            first of a block. None: 0.
        num_tokens: the largest number of rows to write; -1: key.size(0). It may exceed cu_seq_lens[-1], so that the
            host need not read cu_seq_lens from the device.
        k_global_scale: None. No format of kv_cache_dtype has a global scale yet; a tensor raises RuntimeError.
        v_global_scale: None, as k_global_scale.

    Raises:
        RuntimeError: an argument has a wrong rank, size, dtype, device, stride or format, or a scale is missing.
        IndexError: a bound, a start or a needed block id is out of range (on a GPU only if indices are checked; rows
            with such an index keep their content).

    Example:
        >>> key_cache, value_cache = torch.zeros(2, 64, 16, 8, 128, dtype=torch.uint8)  # 64 blocks of 16 slots, fp8
        >>> block_table, bounds = torch.tensor([[3, 7], [5, 0]], dtype=torch.int32), torch.tensor([0, 20, 30])
        >>> key, value = torch.empty(2, 30, 8, 128, dtype=torch.bfloat16)  # sequences of 20 and of 10 tokens
        >>> scale = torch.tensor([0.02])
        >>> multikv.gather_kv_cache(key_cache, value_cache, key, value, block_table, bounds, "fp8_e4m3", scale, scale)
    """
    _gather_kv_cache(
        key_cache,
        value_cache,
        key,
        value,
        block_table,
        cu_seq_lens,
        kv_cache_dtype,
        k_scale,
        v_scale,
        seq_starts,
        num_tokens,
        k_global_scale,
        v_global_scale,
    )


def cp_gather_and_upconvert_fp8_kv_cache(
    src_cache: Tensor,
    dst: Tensor,
    block_table: Tensor,
    workspace_starts: Tensor,
    batch_size: int,
    seq_starts: Tensor | None = None,
    host_cache: Tensor | None = None,
    host_row_ids: Tensor | None = None,
    device_row_ids: Tensor | None = None,
) -> None:
    """Copies fp8_ds_mla entries of sequences into consecutive rows, and converts them to bfloat16.

    The 512 codes of an entry are multiplied by the scales of their tiles in float32 and rounded to bfloat16. The
    rotary key of the entry is copied bit for bit. `multikv.ops` has the layout of the entry. Sequence s owns the rows
    from workspace_starts[s] to workspace_starts[s + 1]; the last sequence owns all rows to the end of dst.

    If the three host arguments are given, block_table holds blocks of a logical cache, whose entries are partly on the
    device and partly on the host. The entry of the logical slot `r = block * block_size + offset` is

    - in slot `device_row_ids[r]` of src_cache, if that is not negative;
    - else in row `host_row_ids[r]` of host_cache, if that is not negative;
    - else nowhere, and the output row keeps its content.

    Args:
        src_cache: [num_blocks, block_size, 656], uint8 or a float8 e4m3 type. The codes of a uint8 cache are the
            device's native e4m3. Any strides except that the innermost is 1.
        dst: [num_rows, 576], bfloat16, written. Rows before workspace_starts[0], and rows whose block lies past the
            width of block_table, keep their content.
        block_table: [batch_size, blocks_per_sequence], int32 or int64. Entries that no row needs are not checked.
        workspace_starts: [batch_size] or [batch_size + 1], int32 or int64, not decreasing, not negative, at most
            num_rows. The element at batch_size, if there is one, is not read.
        batch_size: number of sequences; -1: block_table.size(0). A graph of torch.compile that passes -1 serves all
            numbers of sequences.
        seq_starts: [batch_size], int32 or int64: the first position to copy of each sequence. None: 0.
        host_cache: [num_host_rows, 656], uint8, on the CPU. It must be pinned if the op runs on a GPU. Any stride of
            rows; the innermost stride is 1. Either all three host arguments are given or none.
        host_row_ids: [num_logical_blocks * block_size], int32 or int64: rows of host_cache. Read where device_row_ids
            is negative.
        device_row_ids: the shape of host_row_ids, int32 or int64: slots of src_cache.

    Raises:
        RuntimeError: an argument has a wrong rank, size, dtype, device or stride, or host_cache is not pinned.
        IndexError: a bound, a start, a needed block id or a needed row id is out of range (on a GPU only if indices are
            checked; rows with such an index keep their content).

    Example:
        >>> cache = torch.zeros(64, 16, 656, dtype=torch.uint8)
        >>> block_table = torch.tensor([[3, 7], [5, 0]], dtype=torch.int32)
        >>> rows = torch.empty(20 + 10, 576, dtype=torch.bfloat16)  # sequences of 20 and of 10 tokens
        >>> multikv.cp_gather_and_upconvert_fp8_kv_cache(cache, rows, block_table, torch.tensor([0, 20]), 2)
    """
    _cp_gather_and_upconvert_fp8_kv_cache(
        src_cache, dst, block_table, workspace_starts, batch_size, seq_starts, host_cache, host_row_ids, device_row_ids
    )
