"""Tiles: neighbouring elements that are divided by one scale and stored as e4m3 codes."""

from __future__ import annotations

import torch
from torch import Tensor

from ..formats import DS_MLA_ENTRY

# The largest magnitude of a tile becomes at most this. The largest e4m3fnuz is 240; vLLM divides by 224 all the same.
E4M3_DIVISOR = {"e4m3fn": 448.0, "e4m3fnuz": 224.0}

# The entry of the format fp8_ds_mla: NOPE e4m3 codes, a float32 scale for each TILE of them, ROPE_BYTES of rotary key.
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
