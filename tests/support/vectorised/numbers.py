"""fp8 codes and numbers, and what the other modules of the twin share."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from multikv import reference

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_LARGEST = torch.finfo(torch.float32).max
E4M3_DIVISOR = {"e4m3fn": 448.0, "e4m3fnuz": 224.0}


def bits(x: Tensor) -> Tensor:
    if x.is_complex():
        x = torch.view_as_real(x)
    return x.view(_INTEGERS[x.element_size()])


def format_of(kv_cache_dtype: str, cache_dtype: torch.dtype, e4m3_of_bytes: str) -> str | None:
    return reference.fp8_format(kv_cache_dtype, cache_dtype, e4m3_of_bytes)


@functools.cache
def values_of(format: str) -> Tensor:
    """The float32 that each of the 256 codes stands for."""
    return reference.decode_fp8(torch.arange(256, dtype=torch.uint8), format)


@functools.cache
def _thresholds(format: str) -> Tensor:
    """Threshold i is the largest float32 that rounds to a code of at most i.

    It is the number halfway between the values of the codes i and i + 1 if code i is even, which takes ties, and
    otherwise the float32 before that number.
    """
    values = values_of(format)[:0x80]
    values = values[values.isfinite()]
    halfway = (values[:-1] + values[1:]) / 2  # exact: it has one more significant bit than an fp8 number
    below = torch.nextafter(halfway, torch.zeros(()))
    return torch.where(torch.arange(len(halfway)) % 2 == 0, halfway, below)


def encode_fp8(x: Tensor, format: str) -> Tensor:
    """float32 -> uint8 codes, rounded to the nearest even and saturated."""
    layout = reference.FP8_FORMATS[format]
    x = x.cpu().float().contiguous()
    code = torch.searchsorted(_thresholds(format), x.abs(), out_int32=True).to(torch.uint8)
    negative = x.signbit() if layout.has_negative_zero else x.signbit() & (code != 0)
    return torch.where(x.isnan(), layout.nan, code | (negative.to(torch.uint8) << 7)).to(torch.uint8)


def decode_fp8(codes: Tensor, format: str) -> Tensor:
    return values_of(format)[codes.cpu().int()]


def quantise(x: Tensor, scale: Tensor, format: str) -> Tensor:
    return encode_fp8(x.cpu().float() / scale.cpu().float(), format)


def dequantise(codes: Tensor, scale: Tensor, format: str) -> Tensor:
    return decode_fp8(codes, format) * scale.cpu().float()


def tile_amax(tiles: Tensor) -> Tensor:
    return tiles.float().abs().nan_to_num(nan=0.0, posinf=_LARGEST).amax(-1)


def power_of_two_up(scale: Tensor) -> Tensor:
    mantissa, exponent = torch.frexp(scale)
    power = torch.ldexp(torch.ones_like(scale), torch.where(mantissa == 0.5, exponent - 1, exponent))
    return torch.empty(scale.shape).copy_(power)  # with strides that no empty dimension has made 0


def put(target: Tensor, at: tuple[Tensor | slice, ...], entries: Tensor) -> None:
    at = tuple(x.to(target.device) if isinstance(x, Tensor) else x for x in at)
    bits(target)[at] = entries.to(target.device)


def values_and_scales(kv_cache: Tensor, head_size: int) -> tuple[Tensor, Tensor]:
    num_blocks, block_size, entry_bytes = kv_cache.shape
    blocks = bits(kv_cache).view(num_blocks, block_size * entry_bytes)
    values, scales = blocks[:, : block_size * head_size], blocks[:, block_size * head_size :]
    return values.unflatten(1, (block_size, head_size)), scales.unflatten(1, (block_size, entry_bytes - head_size))
