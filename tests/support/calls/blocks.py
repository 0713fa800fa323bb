"""Good calls of the ops that copy, zero and hash blocks of the caches of all layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tests.support.arguments import Arguments
from tests.support.calls.call import Call
from tests.support.tensors import embed

# Dimensions [block, token, head, element] from outermost to innermost in memory.
ORDERS = {"NHD": (0, 1, 2, 3), "HND": (0, 2, 1, 3), "blocks_inside": (1, 0, 2, 3)}


def make_caches(
    device: torch.device | str = "cpu",
    *,
    layers: int = 3,
    blocks: int = 13,
    block_size: int = 4,
    entry: Sequence[int] = (2, 8),
    dtype: torch.dtype = torch.bfloat16,
    cache: str = "NHD",
    padding: Sequence[int] | None = None,
    offset: int = 0,
) -> list[Tensor]:
    """The caches of some layers; `mixed`: of different dtypes, strides, ranks and entries."""
    if cache == "mixed":
        tokens = (blocks, block_size)
        return [
            embed((*tokens, 2, 8), torch.bfloat16, device),
            embed((*tokens, 3, 5), torch.uint8, device, order=ORDERS["HND"], padding=(0, 1, 0, 3), offset=1),
            embed(tokens, torch.float32, device, padding=(2, 0)),
            embed((*tokens, 2, 8), torch.bfloat16, device),
            embed((*tokens, 3, 2, 1), torch.complex128, device, order=(0, 3, 1, 2, 4)),
            embed((*tokens, 656), torch.uint8, device),
        ]
    shape = (blocks, block_size, *entry)
    order = ORDERS[cache] if len(shape) == 4 else None
    return [embed(shape, dtype, device, order=order, padding=padding, offset=offset) for _ in range(layers)]


def random_pairs(count: int, blocks: int) -> list[tuple[int, int]]:
    """Sources and destinations are disjoint, and a source may be copied to several destinations."""
    order = torch.randperm(blocks)
    written = order[:count]
    read = order[count:][torch.randint(blocks - count, (count,))]
    return list(zip(read.tolist(), written.tolist(), strict=True))


def _list(values: object, device: torch.device | str, dtype: torch.dtype, place: str) -> Tensor:
    return torch.tensor(values, dtype=dtype, device=device if place == "device" else "cpu")


def copy_arguments(
    device: torch.device | str = "cpu",
    *,
    pairs: Sequence[tuple[int, int]] | None = None,
    num_pairs: int = 5,
    num_tokens: int = -1,
    index_dtype: torch.dtype = torch.int64,
    lists: str = "device",
    **options: object,
) -> Arguments:
    """A good call; some of its pairs are padding, or copy a block to itself."""
    caches = make_caches(device, **options)
    if pairs is None:
        pairs = [*random_pairs(num_pairs, len(caches[0])), (-1, 3), (2, -7), (4, 4)]
    mapping = _list(list(pairs), device, index_dtype, lists).reshape(-1, 2)
    return {"caches": caches, "block_mapping": mapping, "num_tokens": num_tokens}


def _blocks_and_tokens(
    device: torch.device | str,
    block_ids: Sequence[int] | None,
    tokens: Sequence[int] | str | None,
    num_blocks: int,
    block_size: int,
    index_dtype: torch.dtype,
    lists: str,
) -> tuple[Tensor, Tensor | None]:
    """Lists of blocks, some of them padding, and of numbers of tokens, if these are not None."""
    if block_ids is None:
        block_ids = [*torch.randperm(num_blocks)[: num_blocks // 2].tolist(), -1]
    blocks = _list(list(block_ids), device, index_dtype, lists)
    if tokens is None:
        return blocks, None
    if tokens == "any":
        tokens = torch.randint(block_size + 1, (len(blocks),)).tolist()
        tokens[:2] = [0, block_size]
    return blocks, _list(list(tokens)[: len(blocks)], device, index_dtype, lists)


def zero_arguments(
    device: torch.device | str = "cpu",
    *,
    block_ids: Sequence[int] | None = None,
    first_token: Sequence[int] | str | None = "any",
    index_dtype: torch.dtype = torch.int64,
    lists: str = "device",
    **options: object,
) -> Arguments:
    """A good call. If first_token is "any", the first blocks start at token 0 and past the end."""
    caches = make_caches(device, **options)
    num_blocks, block_size = caches[0].shape[:2]
    blocks, tokens = _blocks_and_tokens(device, block_ids, first_token, num_blocks, block_size, index_dtype, lists)
    return {"caches": caches, "block_ids": blocks, "first_token": tokens}


def checksum_arguments(
    device: torch.device | str = "cpu",
    *,
    block_ids: Sequence[int] | None = None,
    num_tokens: Sequence[int] | str | None = "any",
    index_dtype: torch.dtype = torch.int64,
    lists: str = "device",
    **options: object,
) -> Arguments:
    """A good call; out is a part of a larger tensor."""
    caches = make_caches(device, **options)
    num_blocks, block_size = caches[0].shape[:2]
    blocks, tokens = _blocks_and_tokens(device, block_ids, num_tokens, num_blocks, block_size, index_dtype, lists)
    out = embed((len(blocks), len(caches)), torch.int64, device, padding=(0, 2))
    return {"caches": caches, "block_ids": blocks, "out": out, "num_tokens": tokens}


COPY, ZERO, CHECKSUM = "copy_blocks_layers", "zero_blocks", "checksum_blocks"
LARGER = {"blocks": 50, "block_size": 16, "entry": (8, 65)}
MIXED, HND = {"cache": "mixed"}, {"cache": "HND"}
# The same lists in all calls, because a graph keeps those that are in the memory of the host.
PAIRS = [(3, 1), (3, 2), (5, 7), (-1, 4), (9, 0)]
HOST_BLOCKS = {"block_ids": [3, 0, -1, 12, 3], "lists": "cpu"}

CALLS = {
    "copy_blocks": Call(COPY, copy_arguments, {}, larger=LARGER | {"num_pairs": 15}, uses_all=True),
    "copy_blocks-HND-tokens": Call(
        COPY, copy_arguments, HND | {"num_tokens": 3, "index_dtype": torch.int32}, larger=LARGER
    ),
    "copy_blocks-mixed": Call(COPY, copy_arguments, MIXED),
    "copy_blocks-nothing": Call(COPY, copy_arguments, {"pairs": ()}),
    "zero_blocks": Call(ZERO, zero_arguments, {}, larger=LARGER, uses_all=True),
    "zero_blocks-HND-whole": Call(
        ZERO, zero_arguments, HND | {"first_token": None, "index_dtype": torch.int32}, larger=LARGER
    ),
    "zero_blocks-mixed": Call(ZERO, zero_arguments, MIXED),
    "checksum_blocks": Call(CHECKSUM, checksum_arguments, {}, larger=LARGER, uses_all=True),
    "checksum_blocks-HND-whole": Call(
        CHECKSUM, checksum_arguments, HND | {"num_tokens": None, "index_dtype": torch.int32}, larger=LARGER
    ),
    "checksum_blocks-mixed": Call(CHECKSUM, checksum_arguments, MIXED),
}
# Lists in the memory of the host for caches on a GPU.
GPU_CALLS = {
    "copy_blocks-host_list": Call(COPY, copy_arguments, {"pairs": PAIRS, "lists": "cpu"}),
    "zero_blocks-host_list": Call(ZERO, zero_arguments, HOST_BLOCKS | {"first_token": [1, 0, 9, 4, 2]}),
    "checksum_blocks-host_list": Call(CHECKSUM, checksum_arguments, HOST_BLOCKS | {"num_tokens": [1, 0, 9, 4, 2]}),
}
