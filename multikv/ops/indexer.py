"""Keys of the sparse attention's indexer, into their cache and out of it.

A block of the cache holds first the e4m3 codes of all its slots, `block_size * head_size` bytes, and then the scales of
all its slots, 4 bytes for every quant_block_size codes.
"""

import torch
from torch import Tensor

_indexer_k_quant_and_cache = torch.ops.multikv.indexer_k_quant_and_cache.default
_cp_gather_indexer_k_quant_cache = torch.ops.multikv.cp_gather_indexer_k_quant_cache.default


def indexer_k_quant_and_cache(
    k: Tensor,
    kv_cache: Tensor,
    slot_mapping: Tensor,
    quant_block_size: int,
    kv_cache_dtype: str,
) -> None:
    """Writes each token's key as e4m3, with a scale per tile of quant_block_size elements, into its slot.

    `scale = max(amax(tile), 1e-4) / M` with M = 448 (e4m3fnuz: 224), and the codes are `quantise(tile, scale)`. In amax
    a NaN does not count, and an infinity counts as the largest finite float32.

    Args:
        k: [>= num_tokens, head_size], float32, float16 or bfloat16.
        kv_cache: [num_blocks, block_size, head_size + 4 * head_size / quant_block_size], uint8, written. Blocks are
            dense in memory; there may be padding between them.
        slot_mapping: [num_tokens], int64 or int32.
        quant_block_size: elements of a tile; divides head_size.
        kv_cache_dtype: "auto", "float32", "fp32", "fp8" or "fp8_e4m3": scales are float32, codes the device's *e4m3*.
            "fp8_e4m3fn", "fp8_e4m3fnuz": codes of that format. "ue8m0": scales are rounded up to a power of two.
            "mxfp8": these, stored as four equal exponent bytes (only if head_size and quant_block_size are 128).

    Raises:
        RuntimeError: an argument of a wrong rank, size, dtype, device, stride or format.
        IndexError: a slot past the end of the cache (on a GPU only when indices are checked).
    """
    _indexer_k_quant_and_cache(k, kv_cache, slot_mapping, quant_block_size, kv_cache_dtype)


def cp_gather_indexer_k_quant_cache(
    kv_cache: Tensor,
    dst_k: Tensor,
    dst_scale: Tensor,
    block_table: Tensor,
    cu_seq_lens: Tensor,
) -> None:
    """Copies the codes and the scales of sequences into consecutive rows, byte for byte.

    Which block and offset a row comes from: see the text of `multikv.ops`; sequences start at position 0.

    Args:
        kv_cache: [num_blocks, block_size, head_size + 4 * num_scales], uint8, as indexer_k_quant_and_cache writes it.
            Blocks are dense in memory; there may be padding between them.
        dst_k: [num_rows, head_size], uint8 or a float8 e4m3 type, written. Rows of no sequence, and rows whose block
            lies past the table's width, are left as they were, here and in dst_scale.
        dst_scale: [num_rows, 4 * num_scales] uint8 or [num_rows, num_scales] float32, written; num_scales divides
            head_size.
        block_table: [batch_size, blocks_per_sequence], int32 or int64. Entries that no row needs are not looked at.
        cu_seq_lens: [batch_size + 1], int32 or int64, not decreasing, not negative, at most num_rows.

    Raises:
        RuntimeError: an argument of a wrong rank, size, dtype, device or stride.
        IndexError: a bound or needed block id out of range (on a GPU only when indices are checked; rows with such an
            index are left as they were).
    """
    _cp_gather_indexer_k_quant_cache(kv_cache, dst_k, dst_scale, block_table, cu_seq_lens)
