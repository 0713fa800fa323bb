"""Cases that norm and rotate queries and keys, alone, and in one pass with the write into a paged cache."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks import numbers
from benchmarks.case import Baseline, Case
from benchmarks.sizes import QUICK_TOKENS, dtype_name
from multikv.demo import cases as workloads
from multikv.demo.cases import Workload

FUSED_TOKENS = (1, 32, 256, 2048, 16384)
MODELS: dict[str, dict[str, Any]] = {
    "llama-8b": {},
    "qwen3-30b": {"num_kv_heads": 4, "norm": "head"},
    "llama-70b-tp8": {"num_heads": 8, "num_kv_heads": 1},
}
# Other kinds of calls, at the largest number of tokens only.
KINDS: dict[str, dict[str, Any]] = {
    "gptj": {"is_neox": False},
    "float32-table": {"table_dtype": torch.float32},
    "half-rotated": {"rotary_size": 64},
    "packed": {"packed": True},
    "after-rope": {"norm": "after_rope"},
    "all-heads": {"norm": "all_heads"},
}
ROWS = ((1, 4096), (256, 4096), (16384, 4096), (131072, 128))


def cases(device: torch.device) -> Iterator[Case]:
    for model, sizes in MODELS.items():
        for kv_cache_dtype in ("bfloat16", "fp8_e4m3"):
            for num_tokens in FUSED_TOKENS:
                name = f"{model}/{dtype_name(kv_cache_dtype)}/T={num_tokens}"
                quick = model == "llama-8b" and num_tokens in QUICK_TOKENS
                yield _fused(name, quick, num_tokens=num_tokens, kv_cache_dtype=kv_cache_dtype, **sizes)
    for kind, options in KINDS.items():
        yield _fused(f"{kind}/bf16/T={FUSED_TOKENS[-1]}", num_tokens=FUSED_TOKENS[-1], **options)
    for num_rows, size in ROWS:
        baselines = (Baseline("eager", _norm, _norm_arguments), Baseline("compile", _norm, _norm_arguments, True))
        yield Case.of(
            workloads.rms_norm,
            f"{num_rows}x{size}",
            _expect_norm,
            baselines,
            size == 128,
            num_rows=num_rows,
            size=size,
        )
    for num_tokens in FUSED_TOKENS:
        baselines = (Baseline("eager", _rotate_both, _rotary_arguments),)
        name, quick = f"32+8-heads/T={num_tokens}", num_tokens in QUICK_TOKENS
        yield Case.of(workloads.rotary_embedding, name, _expect_rotary, baselines, quick, num_tokens=num_tokens)


def _fused(name: str, quick: bool = False, **sizes: Any) -> Case:
    baselines = (Baseline("eager", _process, _fused_arguments), Baseline("compile", _process, _fused_arguments, True))
    return Case.of(workloads.qk_norm_rope_cache, name, _expect_fused, baselines, quick, **sizes)


# -- rms_norm ----------------------------------------------------------------------------------------------------------


def _norm_arguments(w: Workload) -> tuple[Any, ...]:
    return w.arguments


def _norm(out: Tensor, input: Tensor, weight: Tensor, eps: float) -> None:
    out.copy_(torch.nn.functional.rms_norm(input, input.shape[-1:], weight, eps))


def _exact_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Returns the norm of rows of 2^k elements with the order of additions and the rounding of the op."""
    sums = x.float() * x.float()
    while sums.shape[-1] > 1:
        sums = sums[..., 0::2] + sums[..., 1::2]
    mean = sums / x.shape[-1]  # a power of two, so that a multiplication by the reciprocal is exact, too
    root = (mean + torch.tensor(eps, device=x.device)).double().sqrt().float()
    return (x.float() * (torch.ones_like(root) / root) * weight.float()).to(x.dtype)


def _expect_norm(w: Workload) -> None:
    out, input, weight, eps = w.arguments
    out.copy_(_exact_norm(input, weight, eps))


# -- rotary_embedding --------------------------------------------------------------------------------------------------


def _rotary_arguments(w: Workload) -> tuple[Any, ...]:
    positions, query, key, _, table, is_neox = w.arguments
    return (query, key, table[positions], is_neox)


def _rotate(x: Tensor, angles: Tensor, is_neox: bool) -> Tensor:
    """Returns x [tokens, heads, head_size] with its first elements rotated by angles [tokens, rotary_size]."""
    cos, sin = angles[:, None].chunk(2, -1)
    part = x[..., : angles.shape[1]]
    first, second = part.chunk(2, -1) if is_neox else (part[..., 0::2], part[..., 1::2])
    rotated = first * cos - second * sin, second * cos + first * sin
    whole = torch.cat(rotated, -1) if is_neox else torch.stack(rotated, -1).flatten(-2)
    return torch.cat([whole.to(x.dtype), x[..., angles.shape[1] :]], -1)


def _rotate_both(query: Tensor, key: Tensor, angles: Tensor, is_neox: bool) -> None:
    for x in (query, key):
        x.copy_(_rotate(x, angles, is_neox))


def _expect_rotary(w: Workload) -> None:
    _rotate_both(*_rotary_arguments(w))


# -- qk_norm_rope_cache ------------------------------------------------------------------------------------------------


def _fused_arguments(w: Workload) -> tuple[Any, ...]:
    """The baseline gets q, k, v, q_out, both caches as [blocks, block_size, heads, head_size], and where slots lie."""
    qkv, q_out, _, key_cache, value_cache, slots, positions, table, num_heads, num_kv_heads, head_size = w.arguments[
        :11
    ]
    is_neox, _, k_scale, v_scale, _, q_weight, k_weight, eps, _, order = w.arguments[11:]
    parts = qkv.unflatten(1, (-1, head_size)).split([num_heads, num_kv_heads, num_kv_heads], 1)
    if key_cache.dim() == 5:
        key_cache, value_cache = key_cache.permute(0, 3, 1, 2, 4), value_cache.permute(0, 3, 1, 2)
    where = (slots // key_cache.shape[1], slots % key_cache.shape[1])
    scales = (k_scale, v_scale)
    norms = (q_weight, k_weight, eps, order)
    return (*parts, q_out, key_cache, value_cache, where, positions, table, is_neox, scales, norms)


def _process(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_out: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    where: tuple[Tensor, Tensor],
    positions: Tensor,
    table: Tensor,
    is_neox: bool,
    scales: tuple[Tensor, Tensor],
    norms: tuple[Tensor | None, Tensor | None, float, str],
    exact: bool = False,
) -> None:
    q_weight, k_weight, eps, order = norms

    def norm(x: Tensor, weight: Tensor | None) -> Tensor:
        if weight is None:
            return x
        rows = x.flatten(1) if order == "all_heads" else x
        if exact:
            return _exact_norm(rows, weight, eps).view(x.shape)
        return torch.nn.functional.rms_norm(rows, rows.shape[-1:], weight, eps).view(x.shape)

    def result(x: Tensor, weight: Tensor | None) -> Tensor:
        if order == "after_rope":
            return norm(_rotate(x, table[positions], is_neox), weight)
        return _rotate(norm(x, weight), table[positions], is_neox)

    q_out.copy_(result(q, q_weight))
    for cache, x, scale in ((key_cache, result(k, k_weight), scales[0]), (value_cache, v, scales[1])):
        if cache.dtype == x.dtype:
            cache[where] = x.view(len(x), *cache.shape[2:])
        else:
            codes = (numbers.encode if exact else numbers.cast)(x.float() / scale, cache.dtype)
            cache.view(torch.uint8)[where] = codes.view(len(x), *cache.shape[2:])


def _expect_fused(w: Workload) -> None:
    _process(*_fused_arguments(w), exact=True)
