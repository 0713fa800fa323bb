"""Tiles: neighbouring values that are stored as e4m3 codes and the one scale that they were divided by."""

from __future__ import annotations

import torch
from torch import Tensor

# The largest magnitude of a tile becomes this or less. (240 is the largest e4m3fnuz.)
E4M3_DIVISOR = {"e4m3fn": 448.0, "e4m3fnuz": 224.0}

# An entry of the format fp8_ds_mla: NOPE e4m3 values, a float32 scale for each TILE of them, 64 16-bit values.
NOPE, TILE, ROPE_BYTES = 512, 128, 128


def tile_amax(tiles: Tensor) -> Tensor:
    """The largest magnitude of the last dimension, float32. NaN counts as 0, infinity as the largest finite float32."""
    return tiles.float().abs().nan_to_num(nan=0.0, posinf=torch.finfo(torch.float32).max).amax(-1)


def power_of_two_up(scale: Tensor) -> Tensor:
    """The least power of two that is not below a positive, normal float32."""
    bits = scale.view(torch.int32)
    return ((bits + 0x7FFFFF) & 0x7F800000).view(torch.float32)
