"""Good calls of the ops that write keys and values."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from helpers import Arguments, cache_dtype, distinct_slots, embed, randomise

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
) -> Arguments:
    """A good call; every token has a slot of its own, and some slots none."""
    blocks = -(-tokens // block_size) + 2 if blocks is None else blocks
    sizes = (head_size, head_size if value_head_size is None else value_head_size)
    key, value = INPUT_LAYOUTS[inputs](tokens + surplus_rows, heads, sizes, dtype, device)
    if inputs != "one_head_for_all":  # which cannot be written, and whose random bytes serve as well
        randomise(key), randomise(value)
    key_cache, value_cache = CACHE_LAYOUTS[cache](
        blocks, block_size, heads, sizes, cache_dtype(format, dtype, float8=float8), device
    )
    scales = (torch.rand(2, heads) + 0.25 if per_head else torch.tensor([[0.37], [1.9]])).to(device)
    return {
        "key": key,
        "value": value,
        "key_cache": key_cache,
        "value_cache": value_cache,
        "slot_mapping": distinct_slots(tokens, blocks * block_size, index_dtype).to(device),
        "kv_cache_dtype": format,
        "k_scale": scales[0],
        "v_scale": scales[1],
    }
