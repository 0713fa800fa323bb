"""Workloads that attend over a paged cache."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import multikv

from . import values
from .case import Case
from .workload import Workload

__all__ = ["merge_attn_states", "paged_attention", "paged_attention_v1", "paged_attention_v2"]

_TOLERANCE = 2.0**-7  # results are rounded to bfloat16, and sums have another order than those of the reference


def _filled(shape: tuple[int, ...], kv_cache_dtype: str, device: torch.device) -> Tensor:
    dtype = values.CACHE_DTYPES[kv_cache_dtype]
    return values.normal(shape, device) if dtype == torch.bfloat16 else values.finite_fp8(shape, dtype, device)


def paged_attention(
    device: torch.device,
    batch_size: int,
    length: int,
    kv_cache_dtype: str = "bfloat16",
    query_len: int = 1,
    layout: str = "NHD",
    num_query_heads: int = 32,
    num_kv_heads: int = 8,
    head_size: int = 128,
    block_size: int = 16,
) -> Workload:
    """Attends over sequences of `length` keys; the last `query_len` positions of each are the queries'."""
    num_blocks, block_table, bounds = values.sequences(batch_size, length, block_size, device)
    inner = (num_kv_heads, block_size) if layout == "HND" else (block_size, num_kv_heads)
    caches = [_filled((num_blocks, *inner, head_size), kv_cache_dtype, device) for _ in "kv"]
    if layout == "HND":
        caches = [cache.transpose(1, 2) for cache in caches]
    num_tokens = batch_size * query_len
    query = values.normal((num_tokens, num_query_heads, head_size), device)
    workspace_bytes = multikv.paged_attention_workspace_bytes(num_tokens, num_query_heads, head_size, length)
    arguments = (
        query,
        *caches,
        torch.zeros_like(query),
        None,
        block_table,
        torch.full((batch_size,), length, dtype=torch.int32, device=device),
        None if query_len == 1 else bounds // length * query_len,
        query_len,
        length,
        head_size**-0.5,
        kv_cache_dtype,
        values.scales(device, 0.037),
        values.scales(device, 0.051),
        torch.empty(workspace_bytes if device.type != "cpu" else 0, dtype=torch.uint8, device=device),
    )
    return Workload(
        "paged_attention",
        arguments,
        written=(3,),
        scratch=(14,),
        num_bytes=2 * batch_size * length * num_kv_heads * head_size * caches[0].element_size()
        + 2 * values.num_bytes(query),
        tolerance=_TOLERANCE,
    )


def _packed(
    device: torch.device, batch_size: int, length: int, kv_cache_dtype: str, block_size: int = 16
) -> tuple[Tensor, tuple[Any, ...], int]:
    """Returns the query, the arguments of v1 and v2 after it, and the number of bytes that the op moves."""
    num_query_heads, num_kv_heads, head_size = 32, 8, 128
    num_blocks, block_table, _ = values.sequences(batch_size, length, block_size, device)
    x = 16 // values.CACHE_DTYPES[kv_cache_dtype].itemsize
    key_cache = _filled((num_blocks, num_kv_heads, head_size // x, block_size, x), kv_cache_dtype, device)
    value_cache = _filled((num_blocks, num_kv_heads, head_size, block_size), kv_cache_dtype, device)
    query = values.normal((batch_size, num_query_heads, head_size), device)
    lengths = torch.full((batch_size,), length, dtype=torch.int32, device=device)
    k_scale, v_scale = (values.scales(device, scale) for scale in (0.037, 0.051))
    others = (
        *(key_cache, value_cache, num_kv_heads, head_size**-0.5, block_table, lengths, block_size, length),
        *(None, kv_cache_dtype, k_scale, v_scale, 0, 0, 0, 64, 0),
    )
    num_bytes = 2 * batch_size * length * num_kv_heads * head_size * key_cache.element_size()
    return query, others, num_bytes + 2 * values.num_bytes(query)


def paged_attention_v1(
    device: torch.device, batch_size: int, length: int, kv_cache_dtype: str = "bfloat16"
) -> Workload:
    """Attends over packed caches, with one query token a sequence."""
    query, others, num_bytes = _packed(device, batch_size, length, kv_cache_dtype)
    arguments = (torch.zeros_like(query), query, *others)
    return Workload("paged_attention_v1", arguments, written=(0,), num_bytes=num_bytes, tolerance=_TOLERANCE)


def paged_attention_v2(
    device: torch.device, batch_size: int, length: int, kv_cache_dtype: str = "bfloat16"
) -> Workload:
    """Does what paged_attention_v1 does, with the buffers that vLLM allocates for partitions of 512 tokens."""
    query, others, num_bytes = _packed(device, batch_size, length, kv_cache_dtype)
    partitions = (*query.shape[:2], -(-length // 512))
    sums, maxima = (torch.empty(partitions, dtype=torch.float32, device=device) for _ in range(2))
    tmp_out = torch.empty(*partitions, query.shape[2], dtype=query.dtype, device=device)
    arguments = (torch.zeros_like(query), sums, maxima, tmp_out, query, *others)
    return Workload(
        "paged_attention_v2", arguments, written=(0,), scratch=(1, 2, 3), num_bytes=num_bytes, tolerance=_TOLERANCE
    )


def merge_attn_states(device: torch.device, num_tokens: int, num_heads: int = 32, head_size: int = 128) -> Workload:
    """Merges two results of attention of bfloat16."""
    prefix, suffix = (values.normal((num_tokens, num_heads, head_size), device) for _ in range(2))
    prefix_lse, suffix_lse = (torch.randn(num_heads, num_tokens, device=device) for _ in range(2))
    output, output_lse = torch.zeros_like(prefix), torch.zeros_like(prefix_lse)
    return Workload(
        "merge_attn_states",
        (output, output_lse, prefix, prefix_lse, suffix, suffix_lse),
        written=(0, 1),
        num_bytes=3 * values.num_bytes(prefix, prefix_lse),
        tolerance=_TOLERANCE,
    )


CASES = [
    Case.of_sequences(paged_attention, "32/8 heads, bfloat16"),
    Case.of_sequences(paged_attention, "32/8 heads, HND fp8_e4m3", kv_cache_dtype="fp8_e4m3", layout="HND"),
    Case(
        "32/8 heads, bfloat16, prefill of 4 x 128 tokens",
        paged_attention,
        {"batch_size": 2, "length": 50, "query_len": 5},
        {"batch_size": 4, "length": 128, "query_len": 128},
    ),
    Case.of_sequences(paged_attention_v1, "32/8 heads, bfloat16"),
    Case.of_sequences(paged_attention_v2, "32/8 heads, fp8_e4m3", kv_cache_dtype="fp8_e4m3"),
    Case.of_tokens(merge_attn_states, "32 heads, bfloat16"),
]
