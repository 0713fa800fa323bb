"""Workloads of gathers: entries of sequences are copied from a paged cache to rows."""

from typing import Any

import torch
from torch import Tensor

from multikv.formats import DS_MLA_ENTRY

from . import values
from .case import Case
from .workload import Workload

__all__ = [
    "cp_gather_and_upconvert_fp8_kv_cache",
    "cp_gather_cache",
    "gather_and_maybe_dequant_cache",
    "gather_kv_cache",
]


def cp_gather_cache(
    device: torch.device,
    batch_size: int,
    length: int,
    dtype: torch.dtype = torch.bfloat16,
    entry: tuple[int, ...] = (576,),
    block_size: int = 64,
) -> Workload:
    """Gathers batch_size sequences, all of the same length."""
    num_blocks, block_table, cu_seq_lens = values.sequences(batch_size, length, block_size, device)
    src_cache = values.bits((num_blocks, block_size, *entry), dtype, device)
    dst = values.bits((batch_size * length, *entry), dtype, device)
    return Workload(
        "cp_gather_cache",
        (src_cache, dst, block_table, cu_seq_lens, batch_size),
        written=(1,),
        num_bytes=2 * dst.numel() * dst.element_size(),
    )


def gather_and_maybe_dequant_cache(
    device: torch.device,
    batch_size: int,
    length: int,
    kv_cache_dtype: str = "bfloat16",
    entry_size: int = 576,
    block_size: int = 64,
) -> Workload:
    """Gathers to bfloat16. The codes of an fp8 cache are finite."""
    num_blocks, block_table, cu_seq_lens = values.sequences(batch_size, length, block_size, device)
    dtype = values.CACHE_DTYPES[kv_cache_dtype]
    make = values.bits if kv_cache_dtype == "bfloat16" else values.finite_fp8
    src_cache = make((num_blocks, block_size, entry_size), dtype, device)
    dst = values.bits((batch_size * length, entry_size), torch.bfloat16, device)
    token_to_seq = torch.arange(batch_size, dtype=torch.int32, device=device).repeat_interleave(length)
    scale = values.scales(device, 0.037)
    return Workload(
        "gather_and_maybe_dequant_cache",
        (src_cache, dst, block_table, cu_seq_lens, token_to_seq, len(dst), kv_cache_dtype, scale),
        written=(1,),
        num_bytes=dst.numel() * (src_cache.element_size() + dst.element_size()),
    )


def gather_kv_cache(
    device: torch.device,
    batch_size: int,
    length: int,
    kv_cache_dtype: str = "bfloat16",
    layout: str = "NHD",
    num_heads: int = 8,
    head_size: int = 128,
    block_size: int = 16,
) -> Workload:
    """Gathers to bfloat16. The layout is NHD, HND or packed. The codes of fp8 caches are finite."""
    num_blocks, block_table, cu_seq_lens = values.sequences(batch_size, length, block_size, device)
    dtype = values.CACHE_DTYPES[kv_cache_dtype]
    make = values.bits if kv_cache_dtype == "bfloat16" else values.finite_fp8
    key_cache, value_cache = (make((num_blocks, block_size, num_heads, head_size), dtype, device) for _ in range(2))
    if layout == "HND":
        key_cache, value_cache = (
            cache.view(num_blocks, num_heads, block_size, head_size).transpose(1, 2)
            for cache in (key_cache, value_cache)
        )
    elif layout == "packed":
        x = 16 // dtype.itemsize
        key_cache = key_cache.view(num_blocks, num_heads, head_size // x, block_size, x)
        value_cache = value_cache.view(num_blocks, num_heads, head_size, block_size)
    shape = (batch_size * length, num_heads, head_size)
    key, value = (values.bits(shape, torch.bfloat16, device) for _ in range(2))
    k_scale, v_scale = values.scales(device, 0.037), values.scales(device, 0.053)
    return Workload(
        "gather_kv_cache",
        (key_cache, value_cache, key, value, block_table, cu_seq_lens, kv_cache_dtype, k_scale, v_scale),
        written=(2, 3),
        num_bytes=2 * key.numel() * (dtype.itemsize + key.element_size()),
    )


def cp_gather_and_upconvert_fp8_kv_cache(
    device: torch.device, batch_size: int, length: int, host_share: float = 0.0, block_size: int = 64
) -> Workload:
    """Gathers fp8_ds_mla entries.

    If host_share is 0, all entries are in the blocks that block_table names. If not, this share of the entries is on
    the host, in pinned memory if the op runs on a GPU, and the other entries are on the device in random order.
    """
    num_blocks, block_table, starts = values.sequences(batch_size, length, block_size, device)
    entry = DS_MLA_ENTRY
    dst = values.bits((batch_size * length, entry.latent_size + entry.rope_size), torch.bfloat16, device)
    arguments: tuple[Any, ...] = (
        _ds_mla_entries((num_blocks, block_size), device),
        dst,
        block_table,
        starts[:-1],
        batch_size,
    )
    if host_share:
        arguments = (*arguments, None, *_host_rows(num_blocks * block_size, host_share, device))
    return Workload(
        "cp_gather_and_upconvert_fp8_kv_cache",
        arguments,
        written=(1,),
        num_bytes=len(dst) * (entry.num_bytes + 2 * dst.size(1)),
    )


def _host_rows(num_slots: int, host_share: float, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Returns host_cache, host_row_ids and device_row_ids, with each logical slot on the host or the device."""
    num_host_rows = max(1, round(num_slots * host_share))
    host_cache = values.moved(_ds_mla_entries((num_host_rows,), device), torch.device("cpu"))
    host_row_ids, device_row_ids = torch.full((2, num_slots), -1, dtype=torch.int32, device=device)
    shuffled = torch.randperm(num_slots, device=device)
    on_host, on_device = shuffled[:num_host_rows], shuffled[num_host_rows:]
    host_row_ids[on_host] = torch.arange(num_host_rows, dtype=torch.int32, device=device)
    device_row_ids[on_device] = torch.randperm(len(on_device), dtype=torch.int32, device=device)
    return host_cache.view(torch.uint8), host_row_ids, device_row_ids


def _ds_mla_entries(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Returns entries with finite codes, scales that are powers of two up to 1, and random bits as rotary key."""
    entry = DS_MLA_ENTRY
    codes = values.finite_fp8((*shape, entry.latent_size), torch.float8_e4m3fn, device).view(torch.uint8)
    num_scales = entry.latent_size // entry.tile_size
    scales = torch.randint(-8, 1, (*shape, num_scales), device=device).float().exp2()
    rope = values.bits((*shape, entry.rope_size), torch.bfloat16, device)
    return torch.cat([codes, scales.view(torch.uint8), rope.view(torch.uint8)], -1).view(torch.float8_e4m3fn)


CASES = [
    Case.of_sequences(cp_gather_cache, "bfloat16"),
    Case.of_sequences(gather_and_maybe_dequant_cache, "bfloat16"),
    Case.of_sequences(gather_and_maybe_dequant_cache, "fp8_e4m3", kv_cache_dtype="fp8_e4m3"),
    Case.of_sequences(gather_kv_cache, "NHD bfloat16"),
    Case.of_sequences(gather_kv_cache, "HND fp8_e4m3", layout="HND", kv_cache_dtype="fp8_e4m3"),
    Case.of_sequences(gather_kv_cache, "packed bfloat16", layout="packed"),
    Case.of_sequences(cp_gather_and_upconvert_fp8_kv_cache, "fp8_ds_mla"),
    Case.of_sequences(cp_gather_and_upconvert_fp8_kv_cache, "1/64 on the host", host_share=1 / 64),
]
