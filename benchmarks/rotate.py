"""Cases that move cached keys to other positions."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks import numbers
from benchmarks.case import Baseline, Case
from benchmarks.sizes import writes
from multikv.demo import cases as workloads
from multikv.demo.cases import CACHE_DTYPES, Workload

KINDS: dict[str, dict[str, Any]] = {
    "": {},
    "gptj-": {"is_neox": False},
    "packed-": {"packed": True},
    "bfloat16-table-": {"table_dtype": torch.bfloat16},
}


def cases(device: torch.device) -> Iterator[Case]:
    for kind, options in KINDS.items():
        for kv_cache_dtype, name, num_tokens, quick in writes(("bfloat16", "fp8_e4m3")):
            yield Case.of(
                workloads.rotate_cached_keys,
                kind + name,
                _expect,
                (Baseline("index_put_", _rotate, _arguments),),
                quick and not kind,
                num_tokens=num_tokens,
                kv_cache_dtype=kv_cache_dtype,
                **options,
            )


def _arguments(w: Workload) -> tuple[Any, ...]:
    """The baseline gets the cache as [blocks, block_size, heads, ..], and the rows of the table as float32."""
    key_cache, slots, old, new, table, is_neox, kv_cache_dtype, scale = w.arguments
    table = table.float()
    if key_cache.dim() == 5:
        key_cache = key_cache.permute(0, 3, 1, 2, 4)
    where = (slots // key_cache.size(1), slots % key_cache.size(1))
    return key_cache, where, table[old][:, None], table[new][:, None], is_neox, kv_cache_dtype, scale


def _split(x: Tensor, is_neox: bool) -> tuple[Tensor, Tensor]:
    first, second = x.chunk(2, -1) if is_neox else (x[..., 0::2], x[..., 1::2])
    return first, second


def _rotate(
    key_cache: Tensor,
    where: tuple[Tensor, Tensor],
    old: Tensor,
    new: Tensor,
    is_neox: bool,
    kv_cache_dtype: str,
    scale: Tensor | None,
    exact: bool = False,
) -> None:
    entries = key_cache[where]
    keys = entries.flatten(2)
    if scale is None:
        x, y = _split(keys.float(), is_neox)
    else:
        decode = numbers.decode if exact else numbers.uncast
        x, y = _split(decode(keys.view(torch.uint8), CACHE_DTYPES[kv_cache_dtype]) * scale, is_neox)
    cos, sin = old.chunk(2, -1)
    square = cos * cos + sin * sin
    x, y = (x * cos + y * sin) / square, (y * cos - x * sin) / square
    cos, sin = new.chunk(2, -1)
    x, y = x * cos - y * sin, y * cos + x * sin
    moved = torch.cat([x, y], -1) if is_neox else torch.stack([x, y], -1).flatten(-2)
    if scale is not None:
        encode = numbers.encode if exact else numbers.cast
        moved = encode(moved / scale, CACHE_DTYPES[kv_cache_dtype]).view(key_cache.dtype)
    key_cache.view(torch.uint8 if scale is not None else key_cache.dtype).index_put_(
        where, moved.to(key_cache.dtype).view(torch.uint8 if scale is not None else key_cache.dtype).view(entries.shape)
    )


def _expect(w: Workload) -> None:
    _rotate(*_arguments(w), exact=True)
