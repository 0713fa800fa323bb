"""Workloads of swaps, which copy blocks between the memories of a device and the host."""

import torch

from . import values
from .case import Case
from .workload import Workload

__all__ = ["swap_blocks", "swap_blocks_layers"]


def swap_blocks(device: torch.device, direction: str, block_bytes: int, num_blocks: int) -> Workload:
    """Copies num_blocks - values.SPARE_BLOCKS blocks, in random order.

    The direction is "d2h", "h2d", "d2d" or "h2h", where d is the device and h is the host. Host memory is pinned if the
    device is a GPU.
    """
    devices = {"d": device, "h": torch.device("cpu")}
    route = devices[direction[0]], devices[direction[-1]]
    src, dst = (values.moved(values.bits((num_blocks, block_bytes), torch.uint8, device), to) for to in route)
    mapping = torch.stack([torch.randperm(num_blocks)[: -values.SPARE_BLOCKS] for _ in route], 1)
    return Workload(
        "swap_blocks",
        (src, dst, block_bytes, mapping),
        written=(1,),
        num_bytes=2 * len(mapping) * block_bytes,
        route=route,
    )


def swap_blocks_layers(
    device: torch.device, direction: str, block_bytes: int, num_blocks: int, num_layers: int = 32
) -> Workload:
    """Copies the blocks of every layer. Each layer has its own memory."""
    one = swap_blocks(device, direction, block_bytes, num_blocks)
    layers = [one, *(swap_blocks(device, direction, block_bytes, num_blocks) for _ in range(num_layers - 1))]
    lists = [[layer.arguments[i] for layer in layers] for i in range(2)]
    return Workload(
        "swap_blocks_layers",
        (*lists, *one.arguments[2:]),
        written=(1,),
        num_bytes=num_layers * one.num_bytes,
        route=one.route,
    )


CASES = [
    Case.of_blocks(swap_blocks, "to the host, 256", 256, direction="d2h"),
    Case.of_blocks(swap_blocks, "from the host, 256", 256, direction="h2d"),
    Case.of_blocks(swap_blocks_layers, "to the host, 8 x 64", 64, direction="d2h", num_layers=8),
]
