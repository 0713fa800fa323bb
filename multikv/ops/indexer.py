"""Keys of the indexer of DeepSeek's sparse attention, written into their cache and read back.

A block of the cache holds the codes of all its slots and then the scales of all its slots, one for every
quant_block_size codes:

    byte  0                        block_size * head_size           block_size * (head_size + 4 * num_scales)
          | e4m3 codes of slot 0, 1, ...   | scales of slot 0, 1, ... |
          | head_size bytes each           | 4 * num_scales bytes each |

Source of the layout: vLLM's `indexer_k_quant_and_cache`.
"""

import torch
from torch import Tensor

from ..runtime.explanations import explaining

__all__ = ["cp_gather_indexer_k_quant_cache", "indexer_k_quant_and_cache"]

_indexer_k_quant_and_cache = explaining(torch.ops.multikv.indexer_k_quant_and_cache.default)
_cp_gather_indexer_k_quant_cache = explaining(torch.ops.multikv.cp_gather_indexer_k_quant_cache.default)


def indexer_k_quant_and_cache(
    k: Tensor,
    kv_cache: Tensor,
    slot_mapping: Tensor,
    quant_block_size: int,
    kv_cache_dtype: str,
) -> None:
    """Quantises each token's key to e4m3 in tiles of quant_block_size elements, and writes codes and scales.

    `scale = max(amax(tile), 1e-4) / M` with M = 448 (e4m3fnuz: 224), and the codes are `quantise(tile, scale)`. amax is
    the largest magnitude of the tile; NaN is ignored and an infinity counts as the largest finite float32.

    Args:
        k: [>= num_tokens, head_size], float32, float16 or bfloat16.
        kv_cache: [num_blocks, block_size, head_size + 4 * head_size / quant_block_size], uint8, written. Each block
            (dimensions 1 and 2) is contiguous. The block stride is free, but blocks must not overlap.
        slot_mapping: [num_tokens], int32 or int64; see `multikv.ops`, Slots.
        quant_block_size: elements of a tile; divides head_size.
        kv_cache_dtype: the format of codes and scales. The codes are in the native e4m3 of the device (see
            `multikv.ops`) unless the name says otherwise.

            - "auto", "float32", "fp32", "fp8" and "fp8_e4m3": float32 scales.
            - "fp8_e4m3fn" and "fp8_e4m3fnuz": codes in the format of that name, float32 scales.
            - "ue8m0": float32 scales, rounded up to a power of two.
            - "mxfp8": scales rounded up to a power of two, of which the exponent byte is stored four times. head_size
              and quant_block_size are 128.

    Raises:
        RuntimeError: an argument has a wrong rank, size, dtype, device, stride or format.
        IndexError: a slot is past the end of the cache (on a GPU only if indices are checked).

    Example:
        >>> k, slots = torch.randn(100, 128, dtype=torch.bfloat16), torch.randperm(64 * 16)[:100]
        >>> cache = torch.zeros(64, 16, 128 + 4, dtype=torch.uint8)
        >>> multikv.indexer_k_quant_and_cache(k, cache, slots, 128, "ue8m0")
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

    Rows are found as described in `multikv.ops`, Sequences, with all sequences starting at position 0.

    Args:
        kv_cache: [num_blocks, block_size, head_size + 4 * num_scales], uint8, as indexer_k_quant_and_cache writes it.
            Each block (dimensions 1 and 2) is contiguous. The block stride is free.
        dst_k: [num_rows, head_size], uint8 or a float8 e4m3 type, written. Rows of no sequence, and rows whose block
            lies past the width of block_table, keep their content, here and in dst_scale.
        dst_scale: [num_rows, 4 * num_scales] uint8 or [num_rows, num_scales] float32, written. num_scales divides
            head_size.
        block_table: [batch_size, blocks_per_sequence], int32 or int64. Entries that no row needs are not checked.
        cu_seq_lens: [batch_size + 1], int32 or int64, not decreasing, not negative, at most num_rows.

    Raises:
        RuntimeError: an argument has a wrong rank, size, dtype, device or stride.
        IndexError: a bound or a needed block id is out of range (on a GPU only if indices are checked; rows with such
            an index keep their content).

    Example:
        >>> cache = torch.zeros(64, 16, 128 + 4, dtype=torch.uint8)
        >>> codes, scales = torch.empty(30, 128, dtype=torch.float8_e4m3fn), torch.empty(30, 1)
        >>> block_table = torch.tensor([[3, 7], [5, 0]], dtype=torch.int32)
        >>> multikv.cp_gather_indexer_k_quant_cache(cache, codes, scales, block_table, torch.tensor([0, 20, 30]))
    """
    _cp_gather_indexer_k_quant_cache(kv_cache, dst_k, dst_scale, block_table, cu_seq_lens)
