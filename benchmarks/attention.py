"""Cases that attend over a paged cache. The names are those of models, and "batch x length"."""

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.case import Baseline, Case
from benchmarks.sizes import dtype_name
from multikv.demo import cases as workloads
from multikv.demo.cases import Workload

FORMATS = ("bfloat16", "fp8_e4m3")
SIZES = ((1, 1024), (1, 8192), (1, 131_072), (16, 1024), (16, 4096), (64, 2048), (256, 1024))
SIZES_OF_OTHERS = ((1, 8192), (16, 4096), (64, 2048))
QUICK_SIZES = ((1, 8192), (16, 1024))
MODELS = {  # (query heads, KV heads, head size)
    "llama-8b": (32, 8, 128),
    "llama-70b-tp8": (8, 1, 128),
    "qwen3-30b": (32, 4, 128),
    "mha": (32, 32, 128),
    "64-8x64": (64, 8, 64),
    "16-8x256": (16, 8, 256),
}
MERGED_TOKENS = (1, 256, 16384)


def cases(device: torch.device) -> Iterator[Case]:
    for model, heads in MODELS.items():
        for kv_cache_dtype in FORMATS:
            for batch_size, length in SIZES if model == "llama-8b" else SIZES_OF_OTHERS:
                yield _decode(model, heads, kv_cache_dtype, batch_size, length)
    for query_len, batch_size, length in ((4, 16, 4096), (512, 1, 512), (2048, 4, 2048), (8192, 1, 8192)):
        yield _decode("llama-8b", MODELS["llama-8b"], "bfloat16", batch_size, length, query_len)
    for kv_cache_dtype in FORMATS:
        for make in (workloads.paged_attention_v1, workloads.paged_attention_v2):
            name = f"llama-8b/{dtype_name(kv_cache_dtype)}/16x1024"
            sizes = {"batch_size": 16, "length": 1024, "kv_cache_dtype": kv_cache_dtype}
            yield Case.of(make, name, _expect, quick=True, **sizes)
    for num_tokens in MERGED_TOKENS:
        merge = workloads.merge_attn_states
        yield Case.of(merge, f"bf16/T={num_tokens}", _expect_merged, quick=num_tokens > 1, num_tokens=num_tokens)


def _decode(
    model: str, heads: tuple[int, int, int], kv_cache_dtype: str, batch_size: int, length: int, query_len: int = 1
) -> Case:
    name = f"{model}/{dtype_name(kv_cache_dtype)}/{batch_size}x{length}"
    num_query_heads, num_kv_heads, head_size = heads
    return Case.of(
        workloads.paged_attention,
        name if query_len == 1 else f"{name}/q={query_len}",
        _expect,
        (Baseline("index_select, SDPA", _attend, _sources),),
        quick=model == "llama-8b" and (batch_size, length) in QUICK_SIZES,
        batch_size=batch_size,
        length=length,
        kv_cache_dtype=kv_cache_dtype,
        query_len=query_len,
        num_query_heads=num_query_heads,
        num_kv_heads=num_kv_heads,
        head_size=head_size,
    )


def _sources(w: Workload) -> tuple[Any, ...]:
    """Returns query, caches, table, scales and output. All sequences of a workload have the same length."""
    query, key_cache, value_cache, out, _, table, lengths, *_, k_scale, v_scale, _ = w.arguments
    return query, key_cache, value_cache, out, table.long(), int(lengths[0]), w.arguments[10], k_scale, v_scale


def _attend(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    out: Tensor,
    table: Tensor,
    length: int,
    scale: float,
    k_scale: Tensor,
    v_scale: Tensor,
) -> None:
    batch_size = len(table)
    query_len, dtype = len(query) // batch_size, query.dtype

    def gathered(cache: Tensor, cache_scale: Tensor) -> Tensor:
        is_fp8 = cache.dtype != dtype
        rows = (cache.view(torch.uint8) if is_fp8 else cache).index_select(0, table.flatten())
        if is_fp8:
            rows = (rows.view(cache.dtype).float() * cache_scale).to(dtype)
        return rows.view(batch_size, -1, *rows.shape[2:])[:, :length].transpose(1, 2)

    keys, values = gathered(key_cache, k_scale), gathered(value_cache, v_scale)
    queries = query.view(batch_size, query_len, *query.shape[1:]).transpose(1, 2)
    mask = torch.ones(query_len, length, dtype=torch.bool, device=query.device).tril(length - query_len)
    attend = functools.partial(torch.nn.functional.scaled_dot_product_attention, scale=scale, enable_gqa=True)
    result = attend(queries, keys, values, attn_mask=None if query_len == 1 else mask)
    out.copy_(result.transpose(1, 2).flatten(0, 1))


def _expect(w: Workload) -> None:
    """Computes in float32 on the device."""
    if w.op == "paged_attention":
        query, key_cache, value_cache, out, table, length, scale, k_scale, v_scale = _sources(w)
    else:
        out, *_, query, key_cache, value_cache, _, scale, table, lengths, _, _, _, _, k_scale, v_scale = w.arguments[
            :-5
        ]
        length, table = int(lengths[0]), table.long()
        key_cache = key_cache.permute(0, 3, 1, 2, 4).flatten(3)
        value_cache = value_cache.permute(0, 3, 1, 2)
    is_fp8 = key_cache.dtype != query.dtype
    scales = (k_scale, v_scale) if is_fp8 else (1.0, 1.0)
    result = torch.empty(out.shape, device=out.device)
    for s, blocks in enumerate(table):  # one sequence at a time, because float32 keys are large
        rows = slice(s * len(query) // len(table), (s + 1) * len(query) // len(table))
        keys, values = (
            cache.view(torch.uint8)[blocks].view(cache.dtype).float() * cache_scale if is_fp8 else cache[blocks].float()
            for cache, cache_scale in zip((key_cache, value_cache), scales, strict=True)
        )
        one = torch.ones(1, device=out.device)
        table_of_one = torch.arange(len(blocks), device=out.device)[None]
        _attend(query[rows].float(), keys, values, result[rows], table_of_one, length, scale, one, one)
    out.copy_(result)


def _expect_merged(w: Workload) -> None:
    output, output_lse, prefix, prefix_lse, suffix, suffix_lse = w.arguments
    lse = torch.logaddexp(prefix_lse, suffix_lse)
    a, b = ((side - lse).exp().t()[..., None] for side in (prefix_lse, suffix_lse))
    output.copy_(prefix * a + suffix * b)
    output_lse.copy_(lse)
