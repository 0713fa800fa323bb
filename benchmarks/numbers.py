"""Converts tensors to and from fp8: without PyTorch's casts for the expected bytes, with them for the baselines."""

import functools

import torch
from torch import Tensor

from multikv import reference

E4M3 = torch.float8_e4m3fn


def encode(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns the uint8 codes nearest to float32 values. Ties go to the even code; infinities saturate."""
    codes = torch.bucketize(x.abs(), _thresholds(dtype).to(x.device), out_int32=True).to(torch.uint8)
    return torch.where(x.isnan(), 0x7F, codes | x.signbit().to(torch.uint8) << 7)


def decode(codes: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns the float32 values of uint8 codes."""
    return _numbers(dtype).to(codes.device)[codes.to(torch.int32)]


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Does what `encode` does, with PyTorch's cast, for the baselines."""
    return x.to(dtype).view(torch.uint8)


def uncast(codes: Tensor, dtype: torch.dtype) -> Tensor:
    """Does what `decode` does, with PyTorch's cast, for the baselines."""
    return codes.view(dtype).to(torch.float32)


def over_largest(amax: Tensor) -> Tensor:
    """Returns amax / 448, where 448 is the largest e4m3fn value.

    The divisor is a tensor, because on a GPU PyTorch multiplies by the reciprocal of a Python number.
    """
    return amax / torch.full((1,), 448.0, device=amax.device)


@functools.cache
def _numbers(dtype: torch.dtype) -> Tensor:
    return reference.decode_fp8(torch.arange(256), str(dtype).removeprefix("torch.float8_"))


@functools.cache
def _thresholds(dtype: torch.dtype) -> Tensor:
    """Returns the largest magnitude that rounds to each code but the last; a tie rounds to the even code."""
    finite = _numbers(dtype)[:0x80]
    finite = finite[finite.isfinite()]
    halfway = (finite[:-1] + finite[1:]) / 2
    halfway[1::2] = halfway[1::2].nextafter(torch.zeros(()))
    return halfway
