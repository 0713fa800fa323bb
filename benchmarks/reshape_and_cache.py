"""Cases that write keys and values into a paged cache."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks import numbers
from benchmarks.case import Baseline, Case
from benchmarks.sizes import MANY_TOKENS, QUICK_TOKENS, SHAPES_TOKENS, TOKENS, dtype_name
from multikv.demo import cases as workloads
from multikv.demo.cases import Workload

FORMATS = ("bfloat16", "fp8_e4m3")
COMPILED_TOKENS = (1, 16384, 131072)  # of the layout NHD, which most models use
MODELS = {  # (KV heads, head size); tp8: of one of 8 GPUs
    "llama-3-8b-or-70b": (8, 128),
    "llama-3-8b-or-70b-tp8": (1, 128),
    "qwen3-30b-a3b": (4, 128),
    "gemma-2-9b": (8, 256),
    "phi-3-mini": (32, 96),
}
HEAD_SIZES = (64, 80, 96, 112, 128, 192, 256)


def cases(device: torch.device) -> Iterator[Case]:
    for num_tokens in MANY_TOKENS:
        for kv_cache_dtype in FORMATS:
            yield _flash("NHD", kv_cache_dtype, num_tokens, compiled=num_tokens in COMPILED_TOKENS)
    for num_tokens in TOKENS:
        for kv_cache_dtype in FORMATS:
            yield _flash("HND", kv_cache_dtype, num_tokens, compiled=num_tokens == max(TOKENS))
    for num_tokens in QUICK_TOKENS:
        yield _flash("NHD", "fp8_e5m2", num_tokens)
    for interleaved_v in (False, True):
        for kv_cache_dtype in FORMATS:
            for num_tokens in TOKENS:
                yield _packed(interleaved_v, kv_cache_dtype, num_tokens)

    shapes = MODELS | {f"head-size-{size}": (8, size) for size in HEAD_SIZES}
    for prefix, (num_heads, head_size) in shapes.items():
        for kv_cache_dtype in FORMATS:
            name = f"shapes/{prefix}/{dtype_name(kv_cache_dtype)}"
            yield _flash("NHD", kv_cache_dtype, SHAPES_TOKENS, name, num_heads=num_heads, head_size=head_size)
            if prefix not in MODELS:
                yield _packed(False, kv_cache_dtype, SHAPES_TOKENS, name, num_heads=num_heads, head_size=head_size)


def _flash(
    layout: str, kv_cache_dtype: str, num_tokens: int, name: str = "", compiled: bool = False, **sizes: int
) -> Case:
    name = name or f"{layout}/{dtype_name(kv_cache_dtype)}/T={num_tokens}"
    return _case(
        workloads.reshape_and_cache_flash,
        name,
        compiled,
        num_tokens=num_tokens,
        kv_cache_dtype=kv_cache_dtype,
        layout=layout,
        **sizes,
    )


def _packed(interleaved_v: bool, kv_cache_dtype: str, num_tokens: int, name: str = "", **sizes: int) -> Case:
    name = name or f"{'interleaved' if interleaved_v else 'packed'}/{dtype_name(kv_cache_dtype)}/T={num_tokens}"
    return _case(
        workloads.reshape_and_cache,
        name,
        num_tokens=num_tokens,
        kv_cache_dtype=kv_cache_dtype,
        interleaved_v=interleaved_v,
        **sizes,
    )


def _case(make: Callable[..., Workload], name: str, compiled: bool = False, **sizes: Any) -> Case:
    baselines = [Baseline("index_put_", _put, _puts)]
    if compiled:
        baselines.append(Baseline("torch.compile", _put, _puts, compiled=True))
    return Case.of(make, name, _expect, tuple(baselines), quick=sizes["num_tokens"] in QUICK_TOKENS, **sizes)


# The arguments of one index_put_: the source, a view of the cache whose first dimensions are indexed, the indices, and
# the scale.
_Put = tuple[Tensor, Tensor, tuple[Tensor, ...], Tensor]


def _puts(w: Workload) -> tuple[_Put, _Put]:
    key, value, key_cache, value_cache, slots, _, k_scale, v_scale, *options = w.arguments
    if w.op == "reshape_and_cache_flash":
        where: tuple[Tensor, ...] = (slots // key_cache.size(1), slots % key_cache.size(1))
        if key_cache.is_contiguous():
            where, key_cache, value_cache = (slots,), key_cache.flatten(0, 1), value_cache.flatten(0, 1)
        return (key, key_cache, where, k_scale), (value, value_cache, where, v_scale)
    block, offset = slots // key_cache.size(3), slots % key_cache.size(3)
    key_put = key.unflatten(2, (-1, key_cache.size(4))), key_cache.permute(0, 3, 1, 2, 4), (block, offset), k_scale
    if options == [True]:
        x = value_cache.size(4)
        return key_put, (value, value_cache.permute(0, 2, 4, 1, 3), (block, offset // x, offset % x), v_scale)
    return key_put, (value, value_cache.permute(0, 3, 1, 2), (block, offset), v_scale)


def _put(*puts: _Put, encode: Callable[[Tensor, torch.dtype], Tensor] = numbers.cast) -> None:
    for source, cache, where, scale in puts:
        if cache.dtype == source.dtype:
            cache.index_put_(where, source)
        else:  # index_put_ does not support float8, so uint8 is written. bfloat16 / float32 [1] is float32.
            cache.view(torch.uint8).index_put_(where, encode(source / scale, cache.dtype))


def _expect(w: Workload) -> None:
    _put(*_puts(w), encode=numbers.encode)
