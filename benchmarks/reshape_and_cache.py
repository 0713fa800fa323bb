"""Cases of the ops that write keys and values into a paged cache."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks.case import Baseline, Case
from multikv import reference
from multikv._cases import CACHE_DTYPES, Workload, reshape_and_cache_flash

NUM_TOKENS = (1, 8, 64, 256, 2048, 16384, 131072)
QUICK_TOKENS = (1, 256, 16384)
COMPILED_TOKENS = (1, 16384, 131072)
NUM_HEADS, HEAD_SIZE, BLOCK_SIZE = 8, 128, 16
DTYPE_NAMES = {"bfloat16": "bf16", "fp8_e4m3": "fp8_e4m3", "fp8_e5m2": "fp8_e5m2"}


def cases() -> Iterator[Case]:
    for layout in ("NHD", "HND"):
        for kv_cache_dtype, dtype_name in DTYPE_NAMES.items():
            for num_tokens in NUM_TOKENS:
                yield _case(layout, kv_cache_dtype, dtype_name, num_tokens)


def _case(layout: str, kv_cache_dtype: str, dtype_name: str, num_tokens: int) -> Case:
    function = _put_bf16 if kv_cache_dtype == "bfloat16" else _put_fp8
    baselines = [Baseline("index_put_", function, _arguments)]
    if num_tokens in COMPILED_TOKENS:
        baselines.append(Baseline("torch.compile", function, _arguments, compiled=True))
    return Case(
        op="reshape_and_cache_flash",
        name=f"{layout}/{dtype_name}/T={num_tokens}",
        make=functools.partial(reshape_and_cache_flash, num_tokens=num_tokens, kv_cache_dtype=kv_cache_dtype,
                               layout=layout, num_heads=NUM_HEADS, head_size=HEAD_SIZE, block_size=BLOCK_SIZE),
        expect=_expect,
        baselines=tuple(baselines),
        num_bytes=2 * num_tokens * NUM_HEADS * HEAD_SIZE * (2 + CACHE_DTYPES[kv_cache_dtype].itemsize),
        quick=num_tokens in QUICK_TOKENS,
    )


def _arguments(w: Workload) -> tuple[Any, ...]:
    """Where each cache lets it, a view whose first dimension is the slot; otherwise block and offset of each slot."""
    key, value, key_cache, value_cache, slots, _, k_scale, v_scale = w.arguments
    if key_cache.is_contiguous():
        where = (slots,)
        key_cache, value_cache = key_cache.flatten(0, 1), value_cache.flatten(0, 1)
    else:
        where = (slots // key_cache.size(1), slots % key_cache.size(1))
    return key, value, key_cache, value_cache, where, k_scale, v_scale


def _put_bf16(key: torch.Tensor, value: torch.Tensor, key_cache: torch.Tensor, value_cache: torch.Tensor,
              where: tuple[torch.Tensor, ...], k_scale: torch.Tensor, v_scale: torch.Tensor) -> None:
    key_cache.index_put_(where, key)
    value_cache.index_put_(where, value)


def _put_fp8(key: torch.Tensor, value: torch.Tensor, key_cache: torch.Tensor, value_cache: torch.Tensor,
             where: tuple[torch.Tensor, ...], k_scale: torch.Tensor, v_scale: torch.Tensor) -> None:
    # bfloat16 / float32 [1] is float32; index_put_ does not know float8, so bytes are put
    for source, cache, scale in ((key, key_cache, k_scale), (value, value_cache, v_scale)):
        cache.view(torch.uint8).index_put_(where, (source / scale).to(cache.dtype).view(torch.uint8))


def _expect(w: Workload) -> None:
    key, value, key_cache, value_cache, slots, kv_cache_dtype, k_scale, v_scale = w.arguments
    encode = _bits if kv_cache_dtype == "bfloat16" else _encoder(key_cache.dtype)
    block, offset = slots // key_cache.size(1), slots % key_cache.size(1)
    for source, cache, scale in ((key, key_cache, k_scale), (value, value_cache, v_scale)):
        codes = encode(source, scale)
        cache.view(codes.dtype)[block, offset] = codes


def _bits(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return x.view(torch.int16)


def _encoder(dtype: torch.dtype) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Looks every bfloat16 up in a table that the reference made: exact, and fast enough for large sizes."""
    format_name = str(dtype).removeprefix("torch.float8_")
    all_bf16 = torch.arange(1 << 16).to(torch.int32).bitwise_left_shift(16).view(torch.float32)

    def encode(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        table = reference.encode_fp8(all_bf16 / scale.cpu(), format_name)
        return table.to(x.device)[x.view(torch.int16).to(torch.int32) & 0xFFFF]

    return encode
