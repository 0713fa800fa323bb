"""Cases of the op that writes the indexer's keys."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks import numbers
from benchmarks.case import Baseline, Case
from benchmarks.sizes import writes
from multikv.demo import cases as workloads
from multikv.demo.cases import Workload
from multikv.reference.indexer import values_and_scales
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


def _arguments(w: Workload) -> tuple[Any, ...]:
    k, kv_cache, slots, _, kv_cache_dtype = w.arguments
    where = (slots // kv_cache.size(1), slots % kv_cache.size(1))
    return k, *values_and_scales(kv_cache, k.size(1)), where, kv_cache_dtype


def _put(
    k: Tensor,
    values: Tensor,
    scales: Tensor,
    where: tuple[Tensor, Tensor],
    kv_cache_dtype: str,
    encode: Callable[[Tensor, torch.dtype], Tensor] = numbers.cast,
) -> None:
    """One tile is one key."""
    scale = numbers.over_largest(tile_amax(k).clamp(min=1e-4))[:, None]
    if kv_cache_dtype == "ue8m0":
        scale = power_of_two_up(scale)
    values.index_put_(where, encode(k / scale, numbers.E4M3))
    scales.index_put_(where, scale.view(torch.uint8))


def _expect(w: Workload) -> None:
    _put(*_arguments(w), encode=numbers.encode)
