"""Cases of multi-head latent attention (MLA): rotary embedding fused with the write into the cache."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks import numbers
from benchmarks.case import Baseline, Case
from benchmarks.mla import FLOAT_AND_FP8, MODELS, Encode, put
from benchmarks.sizes import SHAPES_TOKENS, TOKENS, dtype_name, writes
from multikv.demo import cases as workloads
from multikv.demo.cases import Workload

TOKENS_BY_HEADS = {16: TOKENS, 128: (1, 256, 16384)}  # query heads of DeepSeek-V3 on 8 GPUs and on one


def cases(device: torch.device) -> Iterator[Case]:
    for num_heads, tokens in TOKENS_BY_HEADS.items():
        for dtype, name, num_tokens, quick in writes(FLOAT_AND_FP8, tokens):
            yield _case(
                f"{num_heads}-heads/{name}", quick, num_tokens=num_tokens, num_heads=num_heads, kv_cache_dtype=dtype
            )
    yield _case(
        f"16-heads/fp8_ds_mla/T={max(TOKENS)}", num_tokens=max(TOKENS), num_heads=16, kv_cache_dtype="fp8_ds_mla"
    )
    yield _case(f"16-heads-neox/bf16/T={max(TOKENS)}", num_tokens=max(TOKENS), num_heads=16, is_neox=True)
    for model, (latent_size, rope_size, num_heads) in MODELS.items():
        for dtype in FLOAT_AND_FP8:
            name = f"shapes/{model}/{dtype_name(dtype)}"
            sizes = {"num_tokens": SHAPES_TOKENS, "latent_size": latent_size, "rope_size": rope_size}
            yield _case(name, kv_cache_dtype=dtype, num_heads=num_heads, **sizes)


def _case(name: str, quick: bool = False, **sizes: Any) -> Case:
    return Case.of(
        workloads.concat_and_cache_mla_rope_fused,
        name,
        _expect,
        (Baseline("eager", _rotate_and_put, _arguments),),
        quick,
        **sizes,
    )


def _arguments(w: Workload) -> tuple[Any, ...]:
    positions, q_pe, k_pe, kv_c, cos_sin_cache, is_neox, slots, kv_cache, kv_cache_dtype, scale = w.arguments
    return (positions, q_pe, k_pe, cos_sin_cache, is_neox, kv_c, kv_cache.flatten(0, 1), slots, kv_cache_dtype, scale)


def _rotate_and_put(
    positions: Tensor,
    q_pe: Tensor,
    k_pe: Tensor,
    cos_sin_cache: Tensor,
    is_neox: bool,
    kv_c: Tensor,
    entries: Tensor,
    slots: Tensor,
    kv_cache_dtype: str,
    scale: Tensor,
    encode: Encode = numbers.cast,
) -> None:
    cos, sin = cos_sin_cache[positions, None].chunk(2, -1)
    for x in (q_pe, k_pe[:, None]):
        first, second = x.chunk(2, -1) if is_neox else (x[..., 0::2], x[..., 1::2])
        rotated = first * cos - second * sin, second * cos + first * sin
        first.copy_(rotated[0])
        second.copy_(rotated[1])
    put(kv_c, k_pe, entries, slots, kv_cache_dtype, scale, encode)


def _expect(w: Workload) -> None:
    """Writes the expected bytes with eager PyTorch, whose rounding the op repeats."""
    _rotate_and_put(*_arguments(w), encode=numbers.encode)
