"""Keys of the sparse attention's indexer into its cache."""

import torch

from . import values
from .workload import Workload


def indexer_k_quant_and_cache(device: torch.device, num_tokens: int, kv_cache_dtype: str = "fp8_e4m3fn",
                              head_size: int = 128, block_size: int = 64) -> Workload:
    """One scale for each key. A cache of bytes does not say which e4m3 it holds, so kv_cache_dtype had better."""
    k = values.normal((num_tokens, head_size), device)
    num_blocks, slots = values.slots(num_tokens, block_size, device)
    kv_cache = values.bits((num_blocks, block_size, head_size + 4), torch.uint8, device)
    return Workload("indexer_k_quant_and_cache", (k, kv_cache, slots, head_size, kv_cache_dtype), written=(1,),
                    num_bytes=num_tokens * (2 * head_size + head_size + 4))
