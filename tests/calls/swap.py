"""Good calls of swap_blocks."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from calls.call import Call
from calls.gather import pinned
from helpers import Arguments, embed


def _somewhere(place: str, device: torch.device | str, shape: tuple[int, ...], dtype: torch.dtype, **at: int) -> Tensor:
    x = embed(shape, dtype, device if place == "device" else "cpu", **at)
    return pinned(x) if place == "pinned" and torch.device(device).type != "cpu" else x


def random_pairs(count: int, src_blocks: int, dst_blocks: int) -> list[tuple[int, int]]:
    """A block may be copied to several places, and no two to one."""
    return list(zip(torch.randint(src_blocks, (count,)).tolist(), torch.randperm(dst_blocks)[:count].tolist()))


def swap_arguments(
    device: torch.device | str = "cpu",
    *,
    src: str = "device",
    dst: str = "device",
    pairs: Iterable[tuple[int, int]] | None = None,
    src_blocks: int = 9,
    dst_blocks: int = 7,
    block_shape: tuple[int, ...] = (16, 33),
    dtype: torch.dtype = torch.bfloat16,
    same_tensor: bool = False,
    offset: int = 0,
) -> Arguments:
    """A good call; with `same_tensor`, within one, of src_blocks + dst_blocks blocks, that copies to the last ones."""
    pairs = random_pairs(5, src_blocks, dst_blocks) if pairs is None else list(pairs)
    at = {"dtype": dtype, "offset": offset}
    if same_tensor:
        source = target = _somewhere(src, device, (src_blocks + dst_blocks, *block_shape), **at)
        pairs = [(s, src_blocks + d) for s, d in pairs]
    else:
        source = _somewhere(src, device, (src_blocks, *block_shape), **at)
        target = _somewhere(dst, device, (dst_blocks, *block_shape), **at)
    return {
        "src": source,
        "dst": target,
        "block_size_in_bytes": source[0].numel() * dtype.itemsize,
        "block_mapping": torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2),
    }


SWAP = "swap_blocks"
PAIRS = [(3, 1), (4, 2), (5, 3), (0, 6), (3, 0), (8, 5)]  # the same in all calls: a graph keeps them
LARGER = {"block_shape": (64, 1000)}

CALLS = {
    "swap": Call(SWAP, swap_arguments, {"pairs": PAIRS}, larger=LARGER),
    "swap-same_tensor": Call(SWAP, swap_arguments, {"same_tensor": True, "pairs": PAIRS}, larger=LARGER),
    "swap-nothing": Call(SWAP, swap_arguments, {"pairs": ()}),
}
# In calls on a CPU, all places are the same.
GPU_CALLS = {
    f"swap-{src}_to_{dst}": Call(SWAP, swap_arguments, {"src": src, "dst": dst, "pairs": PAIRS}, larger=LARGER)
    for src, dst in [("device", "pinned"), ("pinned", "device"), ("device", "pageable"), ("pageable", "device")]
}
