"""Workloads of the indexer of sparse attention, whose keys are written into a cache and gathered."""

import torch

from . import values
from .case import Case
from .workload import Workload

__all__ = ["cp_gather_indexer_k_quant_cache", "indexer_k_quant_and_cache"]


def indexer_k_quant_and_cache(
    device: torch.device,
    num_tokens: int,
    kv_cache_dtype: str = "fp8_e4m3fn",
    head_size: int = 128,
    block_size: int = 64,
) -> Workload:
    """Writes keys with one scale each. A uint8 cache does not identify its fp8 format, so kv_cache_dtype names it."""
    k = values.normal((num_tokens, head_size), device)
    num_blocks, slots = values.slots(num_tokens, block_size, device)
    kv_cache = values.bits((num_blocks, block_size, head_size + 4), torch.uint8, device)
    return Workload(
        "indexer_k_quant_and_cache",
        (k, kv_cache, slots, head_size, kv_cache_dtype),
        written=(1,),
        num_bytes=num_tokens * (2 * head_size + head_size + 4),
    )


def cp_gather_indexer_k_quant_cache(
    device: torch.device, batch_size: int, length: int, head_size: int = 128, block_size: int = 64
) -> Workload:
    """Gathers keys with one scale each."""
    num_blocks, block_table, cu_seq_lens = values.sequences(batch_size, length, block_size, device)
    kv_cache = values.bits((num_blocks, block_size, head_size + 4), torch.uint8, device)
    dst_k, dst_scale = (values.bits((batch_size * length, size), torch.uint8, device) for size in (head_size, 4))
    return Workload(
        "cp_gather_indexer_k_quant_cache",
        (kv_cache, dst_k, dst_scale, block_table, cu_seq_lens),
        written=(1, 2),
        num_bytes=2 * len(dst_k) * (head_size + 4),
    )


CASES = [
    Case.of_tokens(indexer_k_quant_and_cache, "fp8_e4m3"),
    Case.of_sequences(cp_gather_indexer_k_quant_cache, "fp8_e4m3"),
]
