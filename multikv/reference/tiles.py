"""Tiles: neighbouring elements that share a scale and are stored as e4m3 codes."""

from __future__ import annotations

import torch
from torch import Tensor

from ..formats import DS_MLA_ENTRY

# The scale of a tile is its largest magnitude divided by this number. 448 is the largest e4m3fn value. The largest
# e4m3fnuz value is 240, but vLLM, whose caches these are, divides by 224.
E4M3_DIVISOR = {"e4m3fn": 448.0, "e4m3fnuz": 224.0}

# An entry of fp8_ds_mla consists of NOPE e4m3 codes, a float32 scale for every TILE codes, and ROPE_BYTES bytes of
# rotary key.
NOPE, TILE, ROPE_BYTES = DS_MLA_ENTRY.latent_size, DS_MLA_ENTRY.tile_size, DS_MLA_ENTRY.part_bytes[2]


def tile_amax(tiles: Tensor) -> Tensor:
    """Returns the largest magnitude along the last dimension, in float32.

    NaN counts as 0, and an infinity as the largest finite float32.
    """
    return tiles.float().abs().nan_to_num(nan=0.0, posinf=torch.finfo(torch.float32).max).amax(-1)


def power_of_two_up(scale: Tensor) -> Tensor:
    """Returns the smallest power of two that is at least as large as a positive, normal float32."""
    bits = scale.view(torch.int32)
    return ((bits + 0x7FFFFF) & 0x7F800000).view(torch.float32)
