"""Workloads of multi-head latent attention (MLA): rotary embedding fused with the write into the cache."""

import torch
from torch import Tensor

from . import values
from .case import Case
from .mla import slots_and_cache
from .workload import Workload

__all__ = ["concat_and_cache_mla_rope_fused"]

_NUM_POSITIONS = 4096


def concat_and_cache_mla_rope_fused(
    device: torch.device,
    num_tokens: int,
    num_heads: int,
    kv_cache_dtype: str = "bfloat16",
    is_neox: bool = False,
    latent_size: int = 512,
    rope_size: int = 64,
    block_size: int = 64,
) -> Workload:
    """Rotates and caches tokens at consecutive positions. Every call rotates q_pe and k_pe further."""
    kv_c, k_pe = (values.normal((num_tokens, size), device) for size in (latent_size, rope_size))
    q_pe = values.normal((num_tokens, num_heads, rope_size), device)
    first = torch.randint(1, _NUM_POSITIONS, (1,), device=device)
    positions = (first + torch.arange(num_tokens, device=device)) % _NUM_POSITIONS
    slots, kv_cache = slots_and_cache(num_tokens, kv_cache_dtype, latent_size + rope_size, block_size, device)
    table, scale = cos_sin(rope_size, device), values.scales(device, 0.037)
    num_bytes = (
        values.num_bytes(kv_c) + 2 * values.num_bytes(k_pe, q_pe) + num_tokens * values.num_bytes(kv_cache[0, 0])
    )
    return Workload(
        "concat_and_cache_mla_rope_fused",
        (positions, q_pe, k_pe, kv_c, table, is_neox, slots, kv_cache, kv_cache_dtype, scale),
        written=(1, 2, 7),
        num_bytes=num_bytes,
    )


def cos_sin(rope_size: int, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Returns a model's table: cosines, then sines, of position * 10000^(-2i / rope_size)."""
    frequencies = 1e4 ** -(torch.arange(0, rope_size, 2, device=device) / rope_size)
    angles = torch.arange(_NUM_POSITIONS, device=device)[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], 1).to(dtype)


CASES = [
    Case.of_tokens(concat_and_cache_mla_rope_fused, f"16 heads, {dtype}", kv_cache_dtype=dtype, num_heads=16)
    for dtype in ("bfloat16", "fp8_e4m3")
]
