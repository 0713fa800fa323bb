"""Cases of the indexer of sparse attention, whose keys are written into a cache and gathered."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks import numbers
from benchmarks.case import Baseline, Case
from benchmarks.gather import batches, row_slots
from benchmarks.sizes import writes
from multikv.demo import cases as workloads
from multikv.demo.cases import Workload
from multikv.reference.indexer import codes_and_scales
from multikv.reference.tiles import power_of_two_up, tile_amax


def cases(device: torch.device) -> Iterator[Case]:
    for scale_format, name, num_tokens, quick in writes(("fp8_e4m3fn", "ue8m0")):
        yield Case.of(
            workloads.indexer_k_quant_and_cache,
            name,
            _expect,
            (Baseline("index_put_", _put, _arguments),),
            quick,
            num_tokens=num_tokens,
            kv_cache_dtype=scale_format,
        )
    yield from batches(
        workloads.cp_gather_indexer_k_quant_cache, "", _expect_gathered, Baseline("index", _index, _gathered_parts)
    )


def _arguments(w: Workload) -> tuple[Any, ...]:
    k, kv_cache, slots, _, kv_cache_dtype = w.arguments
    where = (slots // kv_cache.size(1), slots % kv_cache.size(1))
    return k, *codes_and_scales(kv_cache, k.size(1)), where, kv_cache_dtype


def _put(
    k: Tensor,
    codes: Tensor,
    scales: Tensor,
    where: tuple[Tensor, Tensor],
    kv_cache_dtype: str,
    encode: Callable[[Tensor, torch.dtype], Tensor] = numbers.cast,
) -> None:
    """Writes keys that consist of one tile each."""
    scale = numbers.over_largest(tile_amax(k).clamp(min=1e-4))[:, None]
    if kv_cache_dtype == "ue8m0":
        scale = power_of_two_up(scale)
    codes.index_put_(where, encode(k / scale, numbers.E4M3))
    scales.index_put_(where, scale.view(torch.uint8))


def _expect(w: Workload) -> None:
    _put(*_arguments(w), encode=numbers.encode)


def _gathered_parts(w: Workload) -> tuple[Any, ...]:
    kv_cache, dst_k, dst_scale, block_table, _ = w.arguments
    slots = row_slots(block_table, kv_cache.size(1), dst_k.size(0))
    codes, scales = codes_and_scales(kv_cache, dst_k.size(1))
    where = slots // kv_cache.size(1), slots % kv_cache.size(1)
    return (dst_k, codes, where), (dst_scale, scales, where)


def _index(*parts: tuple[Tensor, Tensor, tuple[Tensor, Tensor]]) -> None:
    for dst, src, where in parts:
        dst.copy_(src[where])


def _expect_gathered(w: Workload) -> None:
    _index(*_gathered_parts(w))
