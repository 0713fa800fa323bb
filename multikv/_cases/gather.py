"""Sequences out of the cache: latent (MLA) entries, and those of the indexer."""

import torch
from torch import Tensor

from . import values
from .workload import Workload

_CODES, _SCALES, _ROPE = 512, 4, 64  # in an entry of the format fp8_ds_mla: e4m3 codes, float32 scales, bfloat16


def cp_gather_cache(device: torch.device, batch_size: int, length: int, dtype: torch.dtype = torch.bfloat16,
                    entry: tuple[int, ...] = (576,), block_size: int = 64) -> Workload:
    """batch_size sequences of one length."""
    num_blocks, block_table, cu_seq_lens = values.sequences(batch_size, length, block_size, device)
    src_cache = values.bits((num_blocks, block_size, *entry), dtype, device)
    dst = values.bits((batch_size * length, *entry), dtype, device)
    return Workload("cp_gather_cache", (src_cache, dst, block_table, cu_seq_lens, batch_size), written=(1,),
                    num_bytes=2 * dst.numel() * dst.element_size())


def gather_and_maybe_dequant_cache(device: torch.device, batch_size: int, length: int,
                                   kv_cache_dtype: str = "bfloat16", entry_size: int = 576,
                                   block_size: int = 64) -> Workload:
    """To bfloat16, from a cache without NaN if that is fp8."""
    num_blocks, block_table, cu_seq_lens = values.sequences(batch_size, length, block_size, device)
    dtype = values.CACHE_DTYPES[kv_cache_dtype]
    make = values.bits if kv_cache_dtype == "bfloat16" else values.finite_fp8
    src_cache = make((num_blocks, block_size, entry_size), dtype, device)
    dst = values.bits((batch_size * length, entry_size), torch.bfloat16, device)
    token_to_seq = torch.arange(batch_size, dtype=torch.int32, device=device).repeat_interleave(length)
    arguments = (src_cache, dst, block_table, cu_seq_lens, token_to_seq, len(dst), kv_cache_dtype,
                 values.scales(device, 0.037))
    return Workload("gather_and_maybe_dequant_cache", arguments, written=(1,),
                    num_bytes=dst.numel() * (src_cache.element_size() + dst.element_size()))


def cp_gather_and_upconvert_fp8_kv_cache(device: torch.device, batch_size: int, length: int, host_share: float = 0.0,
                                         block_size: int = 64) -> Workload:
    """With a host_share, so many of the rows lie on the host (pinned, if the op runs elsewhere), the others on the
    device in no order; without, all are in the blocks that the table names."""
    num_blocks, block_table, starts = values.sequences(batch_size, length, block_size, device)
    dst = values.bits((batch_size * length, _CODES + _ROPE), torch.bfloat16, device)
    arguments = (_ds_mla_entries((num_blocks, block_size), device), dst, block_table, starts[:-1], batch_size)
    if host_share:
        num_rows = num_blocks * block_size
        num_host_rows = max(1, round(num_rows * host_share))
        host_cache = values.moved(_ds_mla_entries((num_host_rows,), device), torch.device("cpu"))
        host_row_ids, device_row_ids = torch.full((2, num_rows), -1, dtype=torch.int32, device=device)
        shuffled = torch.randperm(num_rows, device=device)
        on_host, on_device = shuffled[:num_host_rows], shuffled[num_host_rows:]
        host_row_ids[on_host] = torch.arange(num_host_rows, dtype=torch.int32, device=device)
        device_row_ids[on_device] = torch.randperm(len(on_device), dtype=torch.int32, device=device)
        arguments = (*arguments, None, host_cache.view(torch.uint8), host_row_ids, device_row_ids)
    return Workload("cp_gather_and_upconvert_fp8_kv_cache", arguments, written=(1,),
                    num_bytes=len(dst) * (_CODES + 4 * _SCALES + 2 * _ROPE + 2 * dst.size(1)))


def cp_gather_indexer_k_quant_cache(device: torch.device, batch_size: int, length: int, head_size: int = 128,
                                    block_size: int = 64) -> Workload:
    """One scale for each key."""
    num_blocks, block_table, cu_seq_lens = values.sequences(batch_size, length, block_size, device)
    kv_cache = values.bits((num_blocks, block_size, head_size + 4), torch.uint8, device)
    dst_k, dst_scale = (values.bits((batch_size * length, size), torch.uint8, device) for size in (head_size, 4))
    return Workload("cp_gather_indexer_k_quant_cache", (kv_cache, dst_k, dst_scale, block_table, cu_seq_lens),
                    written=(1, 2), num_bytes=2 * len(dst_k) * (head_size + 4))


def _ds_mla_entries(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Finite codes, scales that are powers of two up to 1, and any bits for the rotary part."""
    codes = values.finite_fp8((*shape, _CODES), torch.float8_e4m3fn, device).view(torch.uint8)
    scales = torch.randint(-8, 1, (*shape, _SCALES), device=device).float().exp2()
    rope = values.bits((*shape, _ROPE), torch.bfloat16, device)
    return torch.cat([codes, scales.view(torch.uint8), rope.view(torch.uint8)], -1).view(torch.float8_e4m3fn)
