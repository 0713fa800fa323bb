"""Good calls of the ops that write keys and values."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tests.support.arguments import Arguments
from tests.support.calls.call import Call
from tests.support.tensors import cache_dtype, distinct_slots, embed, randomise

Pair = tuple[Tensor, Tensor]


def _pair(shape: Sequence[int], sizes: Sequence[int], *at: object, **options: object) -> Pair:
    key, value = (embed((*shape, size), *at, **options) for size in sizes)
    return key, value


def _interleaved(n: int, b: int, h: int, d: Sequence[int], *at: object) -> Pair:
    """K and V of a block in one tensor; with unequal head sizes, of a head."""
    if d[0] == d[1]:
        return embed((n, 2, b, h, d[0]), *at).unbind(1)
    return embed((n, b, h, sum(d)), *at).split(d, -1)


# name -> (blocks, block_size, heads, (key's head size, value's), dtype, device) -> key_cache, value_cache
CACHE_LAYOUTS: dict[str, Callable[..., Pair]] = {
    "NHD": lambda n, b, h, *at: _pair((n, b, h), *at),
    "HND": lambda n, b, h, *at: _pair((n, b, h), *at, order=(0, 2, 1, 3)),
    "interleaved": _interleaved,
    "HND_side_by_side": lambda n, b, h, d, *at: embed((n, b, h, sum(d)), *at, order=(0, 2, 1, 3)).split(d, -1),
    "padded": lambda n, b, h, *at: _pair((n, b, h), *at, padding=(0, 1, 1, 5)),
    "unaligned": lambda n, b, h, *at: _pair((n, b, h), *at, offset=1),
    "heads_outermost": lambda n, b, h, *at: _pair((n, b, h), *at, order=(2, 1, 0, 3)),
}


def _projection(t: int, h: int, d: Sequence[int], *at: object) -> Pair:
    """Slices of what one projection gives: 3 * h query heads, then keys, then values."""
    _, key, value = embed((t, 3 * h * d[0] + h * d[0] + h * d[1]), *at).split([3 * h * d[0], h * d[0], h * d[1]], -1)
    return key.unflatten(1, (h, d[0])), value.unflatten(1, (h, d[1]))


# name -> (tokens, heads, (key's head size, value's), dtype, device) -> key, value
INPUT_LAYOUTS: dict[str, Callable[..., Pair]] = {
    "dense": lambda t, h, *at: _pair((t, h), *at),
    "projection": _projection,
    "padded": lambda t, h, *at: _pair((t, h), *at, padding=(0, 1, 3)),
    "unaligned": lambda t, h, *at: _pair((t, h), *at, offset=1),
    "heads_first": lambda t, h, *at: _pair((t, h), *at, order=(1, 0, 2)),
    "one_head_for_all": lambda t, h, *at: tuple(x.expand(t, h, -1) for x in _pair((t, 1), *at)),
}


def flash_arguments(
    device: torch.device | str = "cpu",
    *,
    dtype: torch.dtype = torch.bfloat16,
    format: str = "auto",
    float8: bool = False,
    tokens: int = 7,
    heads: int = 2,
    head_size: int = 64,
    value_head_size: int | None = None,
    blocks: int | None = None,
    block_size: int = 16,
    cache: str = "NHD",
    inputs: str = "dense",
    index_dtype: torch.dtype = torch.int64,
    surplus_rows: int = 0,
    per_head: bool = False,
    share_of_padding: float = 0,
) -> Arguments:
    """A good call; every token that has a slot has its own, and some slots have none."""
    blocks = -(-tokens // block_size) + 2 if blocks is None else blocks
    sizes = (head_size, head_size if value_head_size is None else value_head_size)
    key, value = INPUT_LAYOUTS[inputs](tokens + surplus_rows, heads, sizes, dtype, device)
    if inputs != "one_head_for_all":  # which cannot be written, and whose random bytes serve as well
        randomise(key), randomise(value)
    key_cache, value_cache = CACHE_LAYOUTS[cache](
        blocks, block_size, heads, sizes, cache_dtype(format, dtype, float8=float8), device
    )
    slots = distinct_slots(tokens, blocks * block_size, index_dtype)
    slots[torch.rand(len(slots)) < share_of_padding] = -1
    scales = (torch.rand(2, heads) + 0.25 if per_head else torch.tensor([[0.37], [1.9]])).to(device)
    return {
        "key": key,
        "value": value,
        "key_cache": key_cache,
        "value_cache": value_cache,
        "slot_mapping": slots.to(device),
        "kv_cache_dtype": format,
        "k_scale": scales[0],
        "v_scale": scales[1],
    }


# The caches of reshape_and_cache: [blocks, heads, D/x, block_size, x], and [blocks, heads, D, block_size] or
# [blocks, heads, block_size/x, D, x]. name -> options of embed for each.
PACKED_LAYOUTS: dict[str, tuple[dict[str, object], dict[str, object], dict[str, object]]] = {
    "dense": ({}, {}, {}),
    "padded": ({"padding": (0, 1, 1, 2, 5)}, {"padding": (1, 0, 1, 3)}, {"padding": (0, 1, 1, 2, 5)}),
    "unaligned": ({"offset": 1}, {"offset": 3}, {"offset": 5}),
    "blocks_innermost": ({"order": (1, 2, 3, 0, 4)}, {"order": (2, 1, 0, 3)}, {"order": (3, 1, 2, 0, 4)}),
    "slots_outermost": ({"order": (3, 0, 1, 2, 4)}, {"order": (1, 0, 2, 3)}, {"order": (2, 0, 1, 3, 4)}),
}


def slots_in_runs(tokens: int, blocks: int, block_size: int, dtype: torch.dtype = torch.int64) -> Tensor:
    """As prefill gives them, consecutive within a block; every tenth token is anywhere else. All distinct."""
    slots = (torch.randperm(blocks)[:, None] * block_size + torch.arange(block_size)).flatten()
    start = int(torch.randint(len(slots) - tokens + 1, ()))
    slots = slots[start : start + tokens]
    moved = torch.randperm(tokens)[: tokens // 10]
    slots[moved.sort().values] = slots[moved]
    return slots.to(dtype)


def packed_arguments(
    device: torch.device | str = "cpu",
    *,
    dtype: torch.dtype = torch.bfloat16,
    format: str = "auto",
    float8: bool = False,
    tokens: int = 20,  # GPUs write up to 16 in another way
    heads: int = 2,
    head_size: int = 64,
    blocks: int | None = None,
    block_size: int = 16,
    x: int | None = None,
    value_x: int | None = None,
    cache: str = "dense",
    runs: bool = False,
    **options: object,
) -> Arguments:
    """A good call of reshape_and_cache; with `value_x`, interleaved_v. Other options are those of flash_arguments."""
    blocks = -(-tokens // block_size) + 2 if blocks is None else blocks
    stored = cache_dtype(format, dtype, float8=float8)
    x = 16 // stored.itemsize if x is None else x
    shapes = {"tokens": tokens, "heads": heads, "head_size": head_size, "blocks": blocks, "block_size": block_size}
    call = flash_arguments(device, dtype=dtype, format=format, **shapes, **options)
    key_options, value_options, interleaved_options = PACKED_LAYOUTS[cache]
    call["key_cache"] = embed((blocks, heads, head_size // x, block_size, x), stored, device, **key_options)
    if value_x is None:
        call["value_cache"] = embed((blocks, heads, head_size, block_size), stored, device, **value_options)
    else:
        shape = (blocks, heads, block_size // value_x, head_size, value_x)
        call["value_cache"] = embed(shape, stored, device, **interleaved_options)
    if runs:
        call["slot_mapping"].copy_(slots_in_runs(tokens, blocks, block_size))
    return call | {"interleaved_v": value_x is not None}


FLASH, PACKED = "reshape_and_cache_flash", "reshape_and_cache"
OTHERS, LARGER = {"share_of_padding": 0.2}, {"tokens": 1000, "heads": 8}
PACKED_FP8 = {"format": "fp8", "per_head": True, "inputs": "projection"}

CALLS = {
    "flash": Call(FLASH, flash_arguments, {"tokens": 300}, OTHERS, larger=LARGER),
    "flash-fp8": Call(
        FLASH,
        flash_arguments,
        {"format": "fp8", "per_head": True, "cache": "HND"},
        OTHERS,
        larger=LARGER,
        uses_all=True,
    ),
    # A uint8 cache: opcheck cannot compare float8 tensors.
    "flash-e5m2": Call(
        FLASH, flash_arguments, {"format": "fp8_e5m2", "inputs": "projection", "value_head_size": 32}, larger=LARGER
    ),
    "flash-no_tokens": Call(FLASH, flash_arguments, {"tokens": 0}),
    "packed": Call(PACKED, packed_arguments, {"tokens": 300, "runs": True}, larger=LARGER),
    "packed-fp8": Call(PACKED, packed_arguments, PACKED_FP8, OTHERS, larger=LARGER, uses_all=True),
    "packed-interleaved": Call(
        PACKED, packed_arguments, {"format": "fp8_e5m2", "value_x": 4}, OTHERS, larger=LARGER | {"runs": True}
    ),
    "packed-few": Call(PACKED, packed_arguments, {"tokens": 3, "value_x": 4}, OTHERS, larger=LARGER),
    "packed-no_tokens": Call(PACKED, packed_arguments, {"tokens": 0}),
}
