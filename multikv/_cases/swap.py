"""Blocks between the memories of device and host."""

import torch

from . import values
from .workload import Workload


def swap_blocks(device: torch.device, direction: str, block_bytes: int, num_blocks: int) -> Workload:
    """All but a few of num_blocks; d2h, h2d, d2d or h2h: from device or host to either.

    The host's memory is pinned if the device is another one.
    """
    places = {"d": device, "h": torch.device("cpu")}
    route = places[direction[0]], places[direction[-1]]
    src, dst = (values.moved(values.bits((num_blocks, block_bytes), torch.uint8, device), place) for place in route)
    mapping = torch.stack([torch.randperm(num_blocks)[:-values.SPARE_BLOCKS] for _ in route], 1)
    return Workload("swap_blocks", (src, dst, block_bytes, mapping), written=(1,),
                    num_bytes=2 * len(mapping) * block_bytes, route=route)


def swap_blocks_layers(device: torch.device, direction: str, block_bytes: int, num_blocks: int,
                       num_layers: int = 32) -> Workload:
    """The same in every layer, of which each has memory of its own."""
    one = swap_blocks(device, direction, block_bytes, num_blocks)
    layers = [one, *(swap_blocks(device, direction, block_bytes, num_blocks) for _ in range(num_layers - 1))]
    lists = [[layer.arguments[i] for layer in layers] for i in range(2)]
    return Workload("swap_blocks_layers", (*lists, *one.arguments[2:]), written=(1,),
                    num_bytes=num_layers * one.num_bytes, route=one.route)
