"""Good calls of gather_kv_cache."""

from __future__ import annotations

import torch
from torch import Tensor

from multikv import reference
from tests.support.arguments import Arguments
from tests.support.calls.call import Call
from tests.support.calls.gather import LARGER, LARGER_STARTS, NANS, WIDE, make_sequences, without_nans
from tests.support.calls.reshape_and_cache import CACHE_LAYOUTS, INPUT_LAYOUTS, PACKED_LAYOUTS
from tests.support.tensors import cache_dtype, embed

OP = "gather_kv_cache"
OUTPUT_LAYOUTS = [name for name in INPUT_LAYOUTS if name != "one_head_for_all"]


def packed_caches(
    shape: tuple[int, int, int, int],
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    *,
    x: int | None = None,
    value_x: int | None = None,
    cache: str = "dense",
) -> tuple[Tensor, Tensor]:
    """Caches of the packed layout. The shape is (blocks, block_size, heads, head_size); with `value_x`, interleaved."""
    blocks, block_size, heads, head_size = shape
    x = 16 // dtype.itemsize if x is None else x
    key_options, value_options, interleaved_options = PACKED_LAYOUTS[cache]
    key_cache = embed((blocks, heads, head_size // x, block_size, x), dtype, device, **key_options)
    if value_x is None:
        return key_cache, embed((blocks, heads, head_size, block_size), dtype, device, **value_options)
    value_shape = (blocks, heads, block_size // value_x, head_size, value_x)
    return key_cache, embed(value_shape, dtype, device, **interleaved_options)


def kv_arguments(
    device: torch.device | str = "cpu",
    *,
    dtype: torch.dtype = torch.bfloat16,
    format: str = "auto",
    float8: bool = False,
    heads: int = 2,
    head_size: int = 64,
    value_head_size: int | None = None,
    blocks: int = 9,
    block_size: int = 16,
    cache: str | None = None,
    packed: bool = False,
    x: int | None = None,
    value_x: int | None = None,
    outputs: str = "dense",
    per_head: bool = False,
    scales: bool = True,
    nans: bool = False,
    extra_tokens: int = 0,
    surplus_rows: int = 3,
    any_size: bool = True,
    **options: object,
) -> Arguments:
    """num_tokens is -1, or `extra_tokens` more than the sequences have. `options` are those of make_sequences."""
    lengths = list(options.pop("lengths", (5, 0, 16, 33)))
    num_tokens = max(0, options.get("first_row", 0) + sum(lengths) + extra_tokens)
    at = {"blocks": blocks, "block_size": block_size}
    s = make_sequences(device, lengths=lengths, rows_wanted=None if any_size else num_tokens, **at, **options)
    stored = cache_dtype(format, dtype, float8=float8)
    sizes = (head_size, head_size if value_head_size is None else value_head_size)
    if packed:
        shape = (blocks, block_size, heads, head_size)
        key_cache, value_cache = packed_caches(shape, stored, device, x=x, value_x=value_x, cache=cache or "dense")
    else:
        key_cache, value_cache = CACHE_LAYOUTS[cache or "NHD"](blocks, block_size, heads, sizes, stored, device)
    fp8_format = reference.fp8_format(format, torch.uint8)
    if fp8_format is not None and not nans:
        without_nans(key_cache, fp8_format), without_nans(value_cache, fp8_format)
    key, value = INPUT_LAYOUTS[outputs](num_tokens + surplus_rows, heads, sizes, dtype, device)
    k_scale, v_scale = (torch.rand(2, heads) + 0.25 if per_head else torch.tensor([[0.37], [1.9]])).to(device)
    return {
        "key_cache": key_cache,
        "value_cache": value_cache,
        "key": key,
        "value": value,
        "block_table": s.block_table,
        "cu_seq_lens": s.bounds,
        "kv_cache_dtype": format,
        "k_scale": k_scale if scales else None,
        "v_scale": v_scale if scales else None,
        "seq_starts": s.seq_starts,
        "num_tokens": -1 if any_size else num_tokens,
        "k_global_scale": None,
        "v_global_scale": None,
    }


FP8 = {"format": "fp8", "per_head": True}
OUTPUTS = ("key", "value")

CALLS = {
    "kv": Call(OP, kv_arguments, {"scales": False}, **LARGER),
    "kv-fp8": Call(OP, kv_arguments, FP8 | WIDE | {"cache": "HND"}, **LARGER_STARTS, uses_all=True),
    "kv-e5m2": Call(OP, kv_arguments, {"format": "fp8_e5m2", "value_head_size": 24, "any_size": False}, **LARGER),
    "kv-nans": Call(OP, kv_arguments, NANS | {"format": "fp8_e5m2"}, nan_outputs=OUTPUTS, **LARGER),
    "kv-packed": Call(OP, kv_arguments, {"packed": True}, **LARGER),
    "kv-packed-fp8": Call(OP, kv_arguments, FP8 | {"packed": True, "value_x": 4}, **LARGER),
    "kv-no_sequences": Call(OP, kv_arguments, {"lengths": ()}),
}
