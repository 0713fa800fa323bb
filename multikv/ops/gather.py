"""The entries of sequences, from a paged cache to consecutive rows."""

import torch
from torch import Tensor

_cp_gather_cache = torch.ops.multikv.cp_gather_cache.default
_gather_and_maybe_dequant_cache = torch.ops.multikv.gather_and_maybe_dequant_cache.default
_cp_gather_and_upconvert_fp8_kv_cache = torch.ops.multikv.cp_gather_and_upconvert_fp8_kv_cache.default


def cp_gather_cache(
    src_cache: Tensor,
    dst: Tensor,
    block_table: Tensor,
    cu_seq_lens: Tensor,
    batch_size: int,
    seq_starts: Tensor | None = None,
) -> None:
    """Copies the cache entries of sequences, found through their block tables, into consecutive rows.

    `dst[i] = src_cache[block_table[s, p // block_size], p % block_size]` for row i, which is position p of sequence s
    (see the text of `multikv.ops`).

    Args:
        src_cache: [num_blocks, block_size, *entry], any dtype; entries are copied as bytes. Any strides, the innermost
            being 1 (after merging neighbours, an entry may have up to 8 strided dimensions).
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


def gather_and_maybe_dequant_cache(
    src_cache: Tensor,
    dst: Tensor,
    block_table: Tensor,
    cu_seq_lens: Tensor,
    token_to_seq: Tensor,
    num_tokens: int,
    kv_cache_dtype: str,
    scale: Tensor,
    seq_starts: Tensor | None = None,
) -> None:
    """As cp_gather_cache, and from an fp8 cache back to floats.

    `dst[i] = dequantise(src_cache[block_table[s, p // block_size], p % block_size], scale)` for each row i below
    num_tokens, which is position p of sequence s (see the text of `multikv.ops`). Float formats are copied bit for bit.

    Args:
        src_cache: [num_blocks, block_size, entry_size], dtype of dst, or for fp8 formats uint8 or the matching
            torch.float8 type. Any strides, the innermost being 1.
        dst: [>= num_tokens, entry_size], float32, float16 or bfloat16, written. Rows outside
            [cu_seq_lens[0], min(cu_seq_lens[-1], num_tokens)) and rows whose block lies past the table's width are left
            as they were.
        block_table: [batch_size, blocks_per_sequence], int32 or int64. Entries that no row needs are not looked at.
        cu_seq_lens: [batch_size + 1], int32 or int64, not decreasing, not negative; may pass num_tokens.
        token_to_seq: [>= num_tokens], int32 or int64. A hint that is not needed, and not trusted: cu_seq_lens decides.
        num_tokens: how many rows to write at most; may be more than cu_seq_lens[-1], so that nobody need know that.
        kv_cache_dtype: "auto", a float dtype or an fp8 format: see the text of `multikv.ops`.
        scale: float32, one element, on the op's device, where it is read. Not looked at for float formats.
        seq_starts: [batch_size], int32 or int64: the first position of each sequence to copy, at any offset of a block;
            None: 0.

    Raises:
        RuntimeError: an argument of a wrong rank, size, dtype, device, stride or format.
        IndexError: a bound, start or needed block id out of range (on a GPU only when indices are checked; rows with
            such an index are left as they were).
    """
    _gather_and_maybe_dequant_cache(
        src_cache, dst, block_table, cu_seq_lens, token_to_seq, num_tokens, kv_cache_dtype, scale, seq_starts
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
    """As cp_gather_cache, from entries of the format fp8_ds_mla (see the text of `multikv.ops`) to bfloat16.

    The 512 codes are multiplied with the scales of their tiles in float32 and rounded to bfloat16, the 64 elements of
    16 bits copied as they are. Sequence s owns the rows from workspace_starts[s] to where the next one starts, the last
    one up to the end of dst.

    With the three host arguments the table's blocks are logical ones, and row `r = block * block_size + offset` of them
    lies elsewhere: in src_cache, at slot `d = device_row_ids[r]`, if d >= 0; else in row `host_row_ids[r]` of
    host_cache; if both are negative, nowhere, and the output row is left as it was.

    Args:
        src_cache: [num_blocks, block_size, 656], uint8 or a float8 e4m3 type; uint8 holds the device's *e4m3*. Any
            strides, the innermost being 1.
        dst: [num_rows, 576], bfloat16, written. Rows before workspace_starts[0] and rows whose block lies past the
            table's width are left as they were.
        block_table: [batch_size, blocks_per_sequence], int32 or int64. Entries that no row needs are not looked at.
        workspace_starts: [batch_size], int32 or int64, not decreasing, not negative, at most num_rows. May have one
            element more, which is not looked at.
        batch_size: number of sequences.
        seq_starts: [batch_size], int32 or int64: the first position of each sequence to copy; None: 0.
        host_cache: [num_host_rows, 656], uint8, on the CPU: pinned memory, unless the op runs on the CPU. All three
            host arguments are given, or none.
        host_row_ids: [num_logical_blocks * block_size], int32 or int64. Looked at where device_row_ids is negative.
        device_row_ids: as host_row_ids, with as many elements.

    Raises:
        RuntimeError: an argument of a wrong rank, size, dtype, device or stride; host_cache is not pinned.
        IndexError: a bound, start, needed block id or needed row id out of range (on a GPU only when indices are
            checked; rows with such an index are left as they were).
    """
    _cp_gather_and_upconvert_fp8_kv_cache(
        src_cache,
        dst,
        block_table,
        workspace_starts,
        batch_size,
        seq_starts,
        host_cache,
        host_row_ids,
        device_row_ids,
    )
