"""Cases of gathers, which copy the entries of sequences from a paged cache to rows."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks import numbers
from benchmarks.case import Baseline, Case
from benchmarks.sizes import BATCHES, QUICK_BATCHES, dtype_name
from multikv.demo import cases as workloads
from multikv.demo.cases import Workload
from multikv.reference.tiles import NOPE, ROPE_BYTES, TILE

COPIED = {"bf16": torch.bfloat16, "fp8": torch.uint8}
CONVERTED = ("bfloat16", "fp8_e4m3")
HOST_SHARE = 1 / 64
SHAPES = {"llama-3-8b": ((8, 128), 16), "llama-3-70b-tp8": ((1, 128), 16)}  # entry of a key cache, block size


def cases(device: torch.device) -> Iterator[Case]:
    rows, blocks = Baseline("index_select rows", _select, _rows), Baseline("index_select blocks", _select, _blocks)
    for name, dtype in COPIED.items():
        yield from batches(workloads.cp_gather_cache, f"{name}/", _expect_copy, rows, blocks, dtype=dtype)
    for dtype in CONVERTED:
        baselines = (rows, blocks) if dtype == "bfloat16" else (Baseline("index_select, mul", _scale_rows, _scaled),)
        yield from batches(
            workloads.gather_and_maybe_dequant_cache,
            f"{dtype_name(dtype)}/",
            _expect_scaled,
            *baselines,
            kv_cache_dtype=dtype,
        )
    yield from _kv_cases()
    upconvert = Baseline("index_select, mul", _upconvert, _entries)
    yield from batches(workloads.cp_gather_and_upconvert_fp8_kv_cache, "", _expect_upconverted, upconvert)
    for case in batches(
        workloads.cp_gather_and_upconvert_fp8_kv_cache, "host-1-in-64/", _expect_upconverted, host_share=HOST_SHARE
    ):
        if case.quick:
            yield case
    for model, (entry, block_size) in SHAPES.items():
        yield Case.of(
            workloads.cp_gather_cache,
            f"shapes/{model}/bf16",
            _expect_copy,
            (rows, blocks),
            batch_size=32,
            length=512,
            entry=entry,
            block_size=block_size,
        )


KV_LAYOUTS = ("NHD", "HND", "packed")


def _kv_cases() -> Iterator[Case]:
    for layout in KV_LAYOUTS:
        for dtype in CONVERTED:
            baselines = (Baseline("index_select rows", _select_kv, _kv_rows),)
            yield from batches(
                workloads.gather_kv_cache,
                f"{layout}/{dtype_name(dtype)}/",
                _expect_kv,
                *(baselines if layout == "NHD" and dtype == "bfloat16" else ()),
                layout=layout,
                kv_cache_dtype=dtype,
            )


def batches(
    make: Callable[..., Workload], prefix: str, expect: Callable[[Workload], None], *baselines: Baseline, **options: Any
) -> Iterator[Case]:
    """Yields a case for each batch of BATCHES."""
    for batch in BATCHES:
        batch_size, length = batch
        yield Case.of(
            make,
            f"{prefix}{batch_size}x{length}",
            expect,
            baselines,
            batch in QUICK_BATCHES,
            batch_size=batch_size,
            length=length,
            **options,
        )


def row_slots(block_table: Tensor, block_size: int, num_rows: int) -> Tensor:
    """Returns the slot that each output row is read from."""
    position = torch.arange(num_rows // block_table.size(0), device=block_table.device)
    return (block_table.long()[:, position // block_size] * block_size + position % block_size).flatten()


def _rows(w: Workload) -> tuple[Any, ...]:
    src_cache, dst, block_table, *_ = w.arguments
    return dst, src_cache.flatten(0, 1), row_slots(block_table, src_cache.size(1), dst.size(0))


def _blocks(w: Workload) -> tuple[Any, ...]:
    """Returns the arguments of a copy of whole blocks, which is right because all sequences fill their last block."""
    src_cache, dst, block_table, *_ = w.arguments
    return dst.view(-1, *src_cache.shape[1:]), src_cache, block_table.flatten().long()


def _select(dst: Tensor, src: Tensor, index: Tensor) -> None:
    torch.index_select(src, 0, index, out=dst)


def _expect_copy(w: Workload) -> None:
    dst, src, index = _rows(w)
    dst.view(torch.uint8)[:] = src.view(torch.uint8)[index]


def _scaled(w: Workload) -> tuple[Any, ...]:
    dst, src, index = _rows(w)
    return dst, src.view(torch.uint8), index, src.dtype, w.arguments[7]


def _scale_rows(
    dst: Tensor,
    src: Tensor,
    index: Tensor,
    dtype: torch.dtype,
    scale: Tensor,
    decode: Callable[[Tensor, torch.dtype], Tensor] = numbers.uncast,
) -> None:
    dst.copy_(decode(src.index_select(0, index), dtype) * scale)


def _expect_scaled(w: Workload) -> None:
    if w.arguments[0].dtype == w.arguments[1].dtype:
        _expect_copy(w)
    else:
        _scale_rows(*_scaled(w), decode=numbers.decode)


def _kv_rows(w: Workload) -> tuple[Any, ...]:
    """Returns keys and values, rows of the caches [slots, num_heads, head_size], and the slot of each output row."""
    key_cache, value_cache, key, value, block_table, *_ = w.arguments
    if key_cache.dim() == 5:  # packed
        key_cache = key_cache.permute(0, 3, 1, 2, 4).flatten(3)
        value_cache = value_cache.permute(0, 3, 1, 2)
    index = row_slots(block_table, key_cache.size(1), key.size(0))
    return key, value, key_cache.flatten(0, 1), value_cache.flatten(0, 1), index


def _select_kv(key: Tensor, value: Tensor, keys: Tensor, values: Tensor, index: Tensor) -> None:
    torch.index_select(keys, 0, index, out=key)
    torch.index_select(values, 0, index, out=value)


def _expect_kv(w: Workload) -> None:
    key, value, keys, values, index = _kv_rows(w)
    for dst, src, scale in ((key, keys, w.arguments[7]), (value, values, w.arguments[8])):
        if dst.dtype == src.dtype:
            dst.view(torch.int16)[:] = src.view(torch.int16)[index]
        else:
            _scale_rows(dst, src.view(torch.uint8), index, src.dtype, scale, decode=numbers.decode)


def _entries(w: Workload) -> tuple[Any, ...]:
    dst, src, index = _rows(w)
    return dst, src.view(torch.uint8), index


def _upconvert(
    dst: Tensor, src: Tensor, index: Tensor, decode: Callable[[Tensor, torch.dtype], Tensor] = numbers.uncast
) -> None:
    codes, scales, rope = src.index_select(0, index).split([NOPE, NOPE // TILE * 4, ROPE_BYTES], 1)
    tiles = decode(codes.unflatten(1, (-1, TILE)), numbers.E4M3) * scales.view(torch.float32)[..., None]
    dst[:, :NOPE] = tiles.flatten(1)
    dst.view(torch.int16)[:, NOPE:] = rope.view(torch.int16)


def _expect_upconverted(w: Workload) -> None:
    dst, src, index = _entries(w)
    if len(w.arguments) > 5:
        host_cache, host_row_ids, device_row_ids = w.arguments[6:]
        on_host = device_row_ids < 0
        logical = src.index_select(0, device_row_ids.clamp(min=0))
        logical[on_host] = host_cache.to(src.device)[host_row_ids[on_host].long()]
        src = logical
    _upconvert(dst, src, index, decode=numbers.decode)
