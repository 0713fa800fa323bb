"""Cases of multi-head latent attention (MLA), which cache latent vectors and rotary keys, or join queries."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks import numbers
from benchmarks.case import Baseline, Case
from benchmarks.sizes import SHAPES_TOKENS, dtype_name, writes
from multikv.demo import cases as workloads
from multikv.demo.cases import Workload
from multikv.reference.tiles import NOPE, TILE, power_of_two_up, tile_amax

FLOAT_AND_FP8 = ("bfloat16", "fp8_e4m3")
FORMATS = (*FLOAT_AND_FP8, "fp8_ds_mla")
GROUPED_TOKENS = (1, 256, 16384)
QUERY_TOKENS = (1, 256, 4096, 16384)
MODELS = {"deepseek-v3": (512, 64, 128), "minicpm3": (256, 32, 40)}  # latent size, rotary size, query heads


def cases(device: torch.device) -> Iterator[Case]:
    for dtype, name, num_tokens, quick in writes(FORMATS):
        yield _write(name, quick, num_tokens=num_tokens, kv_cache_dtype=dtype)
    for dtype, name, num_tokens, quick in writes(FLOAT_AND_FP8, GROUPED_TOKENS):
        yield Case.of(
            workloads.concat_and_cache_mla_grouped,
            f"4-layers/{name}",
            _expect_grouped,
            (Baseline("index_put_", _put_layers, _layers),),
            quick,
            num_tokens=num_tokens,
            num_layers=4,
            kv_cache_dtype=dtype,
        )
    for num_tokens in QUERY_TOKENS:
        yield Case.of(
            workloads.concat_mla_q,
            f"128-heads/T={num_tokens}",
            _expect_queries,
            (Baseline("cat", _cat, lambda w: w.arguments),),
            quick=num_tokens in (1, 4096),
            num_tokens=num_tokens,
        )
    for model, (latent_size, rope_size, _) in MODELS.items():
        for dtype in FLOAT_AND_FP8:
            name = f"shapes/{model}/{dtype_name(dtype)}"
            sizes = {"num_tokens": SHAPES_TOKENS, "latent_size": latent_size, "rope_size": rope_size}
            yield _write(name, kv_cache_dtype=dtype, **sizes)


def _write(name: str, quick: bool = False, **sizes: Any) -> Case:
    return Case.of(
        workloads.concat_and_cache_mla, name, _expect, (Baseline("index_put_", put, _arguments),), quick, **sizes
    )


Encode = Callable[[Tensor, torch.dtype], Tensor]


def _arguments(w: Workload) -> tuple[Any, ...]:
    kv_c, k_pe, kv_cache, slots, kv_cache_dtype, scale = w.arguments
    return kv_c, k_pe, kv_cache.flatten(0, 1), slots, kv_cache_dtype, scale


def put(
    kv_c: Tensor,
    k_pe: Tensor,
    entries: Tensor,
    slots: Tensor,
    kv_cache_dtype: str,
    scale: Tensor,
    encode: Encode = numbers.cast,
) -> None:
    """Writes latent vectors and rotary keys separately, which moves fewer bytes than torch.cat and one write."""
    if kv_cache_dtype == "fp8_ds_mla":
        parts = _ds_mla_parts(kv_c, k_pe, encode)
    elif entries.dtype == kv_c.dtype:
        parts = [kv_c, k_pe]
    else:
        parts = [encode(x / scale, entries.dtype) for x in (kv_c, k_pe)]
    columns = entries.view(parts[0].dtype).split([part.size(1) for part in parts], 1)
    for column, part in zip(columns, parts, strict=True):
        column.index_put_((slots,), part)


def _ds_mla_parts(kv_c: Tensor, k_pe: Tensor, encode: Encode) -> list[Tensor]:
    tiles = kv_c.unflatten(1, (NOPE // TILE, TILE))
    scales = power_of_two_up(numbers.over_largest(tile_amax(tiles)).clamp(min=1e-4))
    codes = encode(tiles / scales[..., None], numbers.E4M3).flatten(1)
    return [codes, scales.view(torch.uint8), k_pe.view(torch.uint8)]


def _expect(w: Workload) -> None:
    put(*_arguments(w), encode=numbers.encode)


def _layers(w: Workload) -> tuple[Any, ...]:
    kv_c, k_pe, _, slots, _, _, _, scales, kv_cache_dtype, _ = w.arguments
    return tuple(
        (kv_c[i], k_pe[i], cache.flatten(0, 1), slots[i], kv_cache_dtype, scales[i : i + 1])
        for i, cache in enumerate(w.by_address[2])
    )


def _put_layers(*layers: tuple[Any, ...], encode: Encode = numbers.cast) -> None:
    for layer in layers:
        put(*layer, encode=encode)


def _expect_grouped(w: Workload) -> None:
    _put_layers(*_layers(w), encode=numbers.encode)


def _cat(ql_nope: Tensor, q_pe: Tensor, q_out: Tensor) -> None:
    torch.cat([ql_nope, q_pe], -1, out=q_out)


def _expect_queries(w: Workload) -> None:
    ql_nope, q_pe, q_out = (x.view(torch.int16) for x in w.arguments)
    q_out[..., : ql_nope.size(2)] = ql_nope
    q_out[..., ql_nope.size(2) :] = q_pe
