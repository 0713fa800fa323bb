"""Workloads of multi-head latent attention (MLA): caching latent vectors and rotary keys, and concatenating queries."""

import torch
from torch import Tensor

from multikv.formats import DS_MLA_ENTRY

from . import values
from .case import Case
from .workload import Workload

__all__ = ["concat_and_cache_mla", "concat_and_cache_mla_grouped", "concat_mla_q"]


def concat_and_cache_mla(
    device: torch.device,
    num_tokens: int,
    kv_cache_dtype: str = "bfloat16",
    latent_size: int = 512,
    rope_size: int = 64,
    block_size: int = 64,
) -> Workload:
    """Writes bfloat16 latent vectors and rotary keys."""
    kv_c, k_pe = (values.normal((num_tokens, size), device) for size in (latent_size, rope_size))
    slots, kv_cache = slots_and_cache(num_tokens, kv_cache_dtype, latent_size + rope_size, block_size, device)
    return Workload(
        "concat_and_cache_mla",
        (kv_c, k_pe, kv_cache, slots, kv_cache_dtype, values.scales(device, 0.037)),
        written=(2,),
        num_bytes=values.num_bytes(kv_c, k_pe) + num_tokens * values.num_bytes(kv_cache[0, 0]),
    )


def concat_and_cache_mla_grouped(
    device: torch.device,
    num_tokens: int,
    num_layers: int = 4,
    kv_cache_dtype: str = "bfloat16",
    latent_size: int = 512,
    rope_size: int = 64,
    block_size: int = 64,
) -> Workload:
    """Writes the tokens of all layers, with the same slots in the cache of each layer."""
    kv_c, k_pe = (values.normal((num_layers, num_tokens, size), device) for size in (latent_size, rope_size))
    cache_dtype, entry_size = values.CACHE_DTYPES[kv_cache_dtype], latent_size + rope_size
    num_blocks, slots = values.slots(num_tokens, block_size, device)
    caches = tuple(values.bits((num_blocks, block_size, entry_size), cache_dtype, device) for _ in range(num_layers))
    # An address has no dtype, so kv_cache_dtype has to name the e4m3 format of the cache.
    name = "fp8_e4m3fn" if kv_cache_dtype == "fp8_e4m3" else kv_cache_dtype
    scales = values.scales(device, *(0.037 * (1 + layer) for layer in range(num_layers)))
    arguments = (
        kv_c,
        k_pe,
        values.addresses(caches),
        slots.expand(num_layers, -1),
        block_size,
        block_size * entry_size,
        entry_size,
        scales,
        name,
        num_blocks,
    )
    return Workload(
        "concat_and_cache_mla_grouped",
        arguments,
        written=(),
        by_address={2: caches},
        num_bytes=values.num_bytes(kv_c, k_pe) + num_layers * num_tokens * values.num_bytes(caches[0][0, 0]),
    )


def concat_mla_q(
    device: torch.device, num_tokens: int, num_heads: int = 128, latent_size: int = 512, rope_size: int = 64
) -> Workload:
    """Concatenates the two parts of bfloat16 queries."""
    sizes = (latent_size, rope_size, latent_size + rope_size)
    ql_nope, q_pe, q_out = (values.bits((num_tokens, num_heads, size), torch.bfloat16, device) for size in sizes)
    return Workload("concat_mla_q", (ql_nope, q_pe, q_out), written=(2,), num_bytes=2 * values.num_bytes(q_out))


def slots_and_cache(
    num_tokens: int, kv_cache_dtype: str, entry_size: int, block_size: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Returns slots for the tokens, and a cache of random bits that contains these slots."""
    num_blocks, slots = values.slots(num_tokens, block_size, device)
    size = DS_MLA_ENTRY.num_bytes if kv_cache_dtype == "fp8_ds_mla" else entry_size
    return slots, values.bits((num_blocks, block_size, size), values.CACHE_DTYPES[kv_cache_dtype], device)


CASES = [
    *(
        Case.of_tokens(concat_and_cache_mla, dtype, kv_cache_dtype=dtype)
        for dtype in ("bfloat16", "fp8_e4m3", "fp8_ds_mla")
    ),
    Case.of_tokens(concat_and_cache_mla_grouped, "4 layers, fp8_e4m3", 1024, kv_cache_dtype="fp8_e4m3"),
    Case.of_tokens(concat_mla_q, "128 heads", 128),
]
