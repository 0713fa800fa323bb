"""Latents and rotary keys of multi-head latent attention into the cache, and its queries."""

import torch
from torch import Tensor

from . import values
from .workload import Workload

_NUM_POSITIONS = 4096
_DS_MLA_BYTES = 656


def concat_and_cache_mla(device: torch.device, num_tokens: int, kv_cache_dtype: str = "bfloat16",
                         latent_size: int = 512, rope_size: int = 64, block_size: int = 64) -> Workload:
    kv_c, k_pe = (values.normal((num_tokens, size), device) for size in (latent_size, rope_size))
    slots, kv_cache = _cache(num_tokens, kv_cache_dtype, latent_size + rope_size, block_size, device)
    return Workload("concat_and_cache_mla",
                    (kv_c, k_pe, kv_cache, slots, kv_cache_dtype, values.scales(device, 0.037)),
                    written=(2,), num_bytes=_nbytes(kv_c, k_pe) + num_tokens * _nbytes(kv_cache[0, 0]))


def concat_and_cache_mla_rope_fused(device: torch.device, num_tokens: int, num_heads: int,
                                    kv_cache_dtype: str = "bfloat16", is_neox: bool = False, latent_size: int = 512,
                                    rope_size: int = 64, block_size: int = 64) -> Workload:
    """Consecutive positions from a random one on. Each run rotates what the one before left."""
    kv_c, k_pe = (values.normal((num_tokens, size), device) for size in (latent_size, rope_size))
    q_pe = values.normal((num_tokens, num_heads, rope_size), device)
    first = torch.randint(1, _NUM_POSITIONS, (1,), device=device)
    positions = (first + torch.arange(num_tokens, device=device)) % _NUM_POSITIONS
    slots, kv_cache = _cache(num_tokens, kv_cache_dtype, latent_size + rope_size, block_size, device)
    arguments = (positions, q_pe, k_pe, kv_c, _cos_sin(rope_size, device), is_neox, slots, kv_cache, kv_cache_dtype,
                 values.scales(device, 0.037))
    return Workload("concat_and_cache_mla_rope_fused", arguments, written=(1, 2, 7),
                    num_bytes=_nbytes(kv_c) + 2 * _nbytes(k_pe, q_pe) + num_tokens * _nbytes(kv_cache[0, 0]))


def concat_and_cache_mla_grouped(device: torch.device, num_tokens: int, num_layers: int = 4,
                                 kv_cache_dtype: str = "bfloat16", latent_size: int = 512, rope_size: int = 64,
                                 block_size: int = 64) -> Workload:
    """The slots are those of all layers, each of which has a cache of its own."""
    kv_c, k_pe = (values.normal((num_layers, num_tokens, size), device) for size in (latent_size, rope_size))
    cache_dtype, entry_size = values.CACHE_DTYPES[kv_cache_dtype], latent_size + rope_size
    num_blocks, slots = values.slots(num_tokens, block_size, device)
    caches = tuple(values.bits((num_blocks, block_size, entry_size), cache_dtype, device) for _ in range(num_layers))
    # Behind an address there are bytes without a dtype: the name must say which e4m3 they are.
    name = "fp8_e4m3fn" if kv_cache_dtype == "fp8_e4m3" else kv_cache_dtype
    scales = values.scales(device, *(0.037 * (1 + layer) for layer in range(num_layers)))
    arguments = (kv_c, k_pe, values.addresses(caches), slots.expand(num_layers, -1), block_size,
                 block_size * entry_size, entry_size, scales, name, num_blocks)
    return Workload("concat_and_cache_mla_grouped", arguments, written=(), by_address={2: caches},
                    num_bytes=_nbytes(kv_c, k_pe) + num_layers * num_tokens * _nbytes(caches[0][0, 0]))


def concat_mla_q(device: torch.device, num_tokens: int, num_heads: int = 128, latent_size: int = 512,
                 rope_size: int = 64) -> Workload:
    shape = (num_tokens, num_heads)
    ql_nope, q_pe, q_out = (values.bits((*shape, size), torch.bfloat16, device)
                            for size in (latent_size, rope_size, latent_size + rope_size))
    return Workload("concat_mla_q", (ql_nope, q_pe, q_out), written=(2,), num_bytes=2 * _nbytes(q_out))


def _cache(num_tokens: int, kv_cache_dtype: str, entry_size: int, block_size: int,
           device: torch.device) -> tuple[Tensor, Tensor]:
    num_blocks, slots = values.slots(num_tokens, block_size, device)
    size = _DS_MLA_BYTES if kv_cache_dtype == "fp8_ds_mla" else entry_size
    return slots, values.bits((num_blocks, block_size, size), values.CACHE_DTYPES[kv_cache_dtype], device)


def _cos_sin(rope_size: int, device: torch.device) -> Tensor:
    """As models have it: cosines, then sines, of position * 10000^(-2i / rope_size)."""
    frequencies = 1e4 ** -(torch.arange(0, rope_size, 2, device=device) / rope_size)
    angles = torch.arange(_NUM_POSITIONS, device=device)[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], 1).to(torch.bfloat16)


def _nbytes(*tensors: Tensor) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
