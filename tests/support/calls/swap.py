"""Good calls of the ops that copy blocks between memories."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from tests.support.arguments import Arguments
from tests.support.calls.call import Call
from tests.support.tensors import embed, pinned


def _somewhere(place: str, device: torch.device | str, shape: tuple[int, ...], dtype: torch.dtype, **at: int) -> Tensor:
    x = embed(shape, dtype, device if place == "device" else "cpu", **at)
    return pinned(x) if place == "pinned" and torch.device(device).type != "cpu" else x


def random_pairs(count: int, src_blocks: int, dst_blocks: int) -> list[tuple[int, int]]:
    """A block may be copied to several places, and no two to one."""
    return list(
        zip(torch.randint(src_blocks, (count,)).tolist(), torch.randperm(dst_blocks)[:count].tolist(), strict=True)
    )


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


def layers_arguments(
    device: torch.device | str = "cpu",
    *,
    layers: int = 3,
    in_one_tensor: bool = False,
    offset: int = 0,
    **options: object,
) -> Arguments:
    """Every layer in memory of its own, or, `in_one_tensor`, all of them side by side, as views."""
    options["pairs"] = list(options.get("pairs", random_pairs(5, 9, 7)))
    if in_one_tensor:
        calls = _split(swap_arguments(device, offset=offset, **_scaled(options, layers)), layers)
    else:
        calls = [swap_arguments(device, offset=offset + i, **options) for i in range(layers)]
    same = swap_arguments("cpu", **{name: x for name, x in options.items() if name not in ("src", "dst")})
    lists = {name: [call[name] for call in calls] for name in ("src", "dst")}
    return lists | {name: same[name] for name in ("block_size_in_bytes", "block_mapping")}


def _scaled(options: Arguments, layers: int) -> Arguments:
    blocks = {"src_blocks": options.get("src_blocks", 9), "dst_blocks": options.get("dst_blocks", 7)}
    return options | {name: count * layers for name, count in blocks.items()}


def _split(call: Arguments, layers: int) -> list[Arguments]:
    chunks = zip(*(call[name].chunk(layers) for name in ("src", "dst")), strict=True)
    return [{"src": src, "dst": dst} for src, dst in chunks]


def batch_arguments(
    device: torch.device | str = "cpu",
    *,
    copies: Iterable[tuple[int, int, int]] = ((0, 3, 100), (150, 400, 50), (200, 450, 7), (90, 103, 1), (5, 6, 0)),
    src_bytes: int = 300,
    dst_bytes: int = 500,
    scale: int = 1,
) -> Arguments:
    """Copies (from, to, size) in bytes; the memory in which they are, of the host, begins with the addresses."""
    copies = [tuple(scale * number for number in copy) for copy in copies]
    tensors = {}
    for name, side, size in (("src_ptrs", 0, src_bytes * scale), ("dst_ptrs", 1, dst_bytes * scale)):
        count = len(copies)
        memory = embed((count + size // 8 + 1,), torch.int64)
        start = memory[count:].data_ptr()
        memory[:count] = torch.tensor([start + copy[side] for copy in copies], dtype=torch.int64)
        tensors[name] = memory[:count]
    return tensors | {
        "sizes": torch.tensor([copy[2] for copy in copies], dtype=torch.int64),
        "is_src_access_order_any": False,
    }


def directions(device):
    """Where src and dst may be. On a CPU everything is in one place."""
    places = ("device",) if device.type == "cpu" else ("device", "pinned", "pageable")
    return [{"src": src, "dst": dst} for src in places for dst in places]


# Pairs of blocks; src has 9 and dst has 7.
PAIRS = {
    "one": [(4, 2)],
    "first_and_last": [(0, 0), (8, 6)],
    "last_and_first": [(8, 0), (0, 6)],
    "one_run": [(2, 1), (3, 2), (4, 3), (5, 4)],
    "all_of_dst": [(i + 2, i) for i in range(7)],
    "two_runs": [(0, 3), (1, 4), (6, 0), (7, 1), (8, 2)],
    "descending_run": [(5, 4), (4, 3), (3, 2), (2, 1)],
    "run_against_the_other": [(2, 4), (3, 3), (4, 2), (5, 1)],
    "consecutive_only_in_src": [(2, 0), (3, 2), (4, 4), (5, 6)],
    "consecutive_only_in_dst": [(0, 2), (2, 3), (4, 4), (6, 5)],
    "run_with_a_hole": [(1, 1), (2, 2), (4, 4), (5, 5)],
    "runs_in_disorder": [(3, 5), (1, 0), (2, 4), (2, 1), (4, 6), (3, 2)],
    "one_block_to_all": [(3, i) for i in range(7)],
    "one_block_to_neighbours": [(3, 2), (3, 3), (4, 4), (4, 5)],
    "nothing": [],
}

SWAP, LAYERS, BATCH = "swap_blocks", "swap_blocks_layers", "swap_blocks_batch"
SAME_PAIRS = [(3, 1), (4, 2), (5, 3), (0, 6), (3, 0), (8, 5)]  # the same in all calls: a graph keeps them
LARGER = {"block_shape": (64, 1000)}

CALLS = {
    "swap": Call(SWAP, swap_arguments, {"pairs": SAME_PAIRS}, larger=LARGER, uses_all=True),
    "swap-same_tensor": Call(SWAP, swap_arguments, {"same_tensor": True, "pairs": SAME_PAIRS}, larger=LARGER),
    "swap-nothing": Call(SWAP, swap_arguments, {"pairs": ()}),
    "swap_layers": Call(LAYERS, layers_arguments, {"pairs": SAME_PAIRS}, larger=LARGER, uses_all=True),
    "swap_layers-one_tensor": Call(
        LAYERS, layers_arguments, {"pairs": SAME_PAIRS, "in_one_tensor": True}, larger=LARGER
    ),
    "swap_layers-none-nothing": Call(LAYERS, layers_arguments, {"layers": 0, "pairs": SAME_PAIRS}),
    # Of addresses of the host, whatever the device.
    "swap_batch-pageable": Call(BATCH, batch_arguments, {}, larger={"scale": 3000}, uses_all=True),
    "swap_batch-nothing": Call(BATCH, batch_arguments, {"copies": ()}),
}
# In calls on a CPU, all places are the same.
_ROUTES = [("device", "pinned"), ("pinned", "device"), ("device", "pageable"), ("pageable", "device")]
GPU_CALLS = {
    f"{name}-{src}_to_{dst}": Call(op, make, {"src": src, "dst": dst, "pairs": SAME_PAIRS}, larger=LARGER)
    for name, op, make in (("swap", SWAP, swap_arguments), ("swap_layers", LAYERS, layers_arguments))
    for src, dst in _ROUTES
}
