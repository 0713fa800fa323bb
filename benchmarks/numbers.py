"""fp8 for the bytes that are expected: whole tensors at once, on their device, and no cast of PyTorch's in it."""

import functools

import torch
from torch import Tensor

from multikv import reference

E4M3 = torch.float8_e4m3fn


def encode(x: Tensor, dtype: torch.dtype) -> Tensor:
    """float32 -> the codes of the nearest numbers, as uint8; a tie goes to the even code, infinity to the last one."""
    codes = torch.bucketize(x.abs(), _thresholds(dtype).to(x.device), out_int32=True).to(torch.uint8)
    return torch.where(x.isnan(), 0x7F, codes | x.signbit().to(torch.uint8) << 7)


def decode(codes: Tensor, dtype: torch.dtype) -> Tensor:
    """Codes, as uint8 -> float32."""
    return _numbers(dtype).to(codes.device)[codes.to(torch.int32)]


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """`encode` as PyTorch's users have it."""
    return x.to(dtype).view(torch.uint8)


def uncast(codes: Tensor, dtype: torch.dtype) -> Tensor:
    """`decode` as PyTorch's users have it."""
    return codes.view(dtype).to(torch.float32)


def over_largest(amax: Tensor) -> Tensor:
    """amax / 448, e4m3's largest. By a tensor, because a GPU multiplies with the reciprocal of a Python number."""
    return amax / torch.full((1,), 448.0, device=amax.device)


@functools.cache
def _numbers(dtype: torch.dtype) -> Tensor:
    return reference.decode_fp8(torch.arange(256), str(dtype).removeprefix("torch.float8_"))


@functools.cache
def _thresholds(dtype: torch.dtype) -> Tensor:
    """The largest magnitude that belongs to each code but the last. A number halfway belongs to the even one."""
    finite = _numbers(dtype)[:0x80]
    finite = finite[finite.isfinite()]
    halfway = (finite[:-1] + finite[1:]) / 2
    halfway[1::2] = halfway[1::2].nextafter(torch.zeros(()))
    return halfway
