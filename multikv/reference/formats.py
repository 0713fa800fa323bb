"""fp8 codes and their values, and other helpers of the reference functions."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from ..formats import FP8_FORMATS, ElementChoice, Family, Fp8Format, find

__all__ = ["FP8_FORMATS", "Fp8Format", "decode_fp8", "dequantise", "encode_fp8", "fp8_format", "quantise"]


def _value_of(code: int, format: Fp8Format) -> float:
    sign = -1.0 if code & 0x80 else 1.0
    exponent = (code & 0x7F) >> format.mantissa_bits
    fraction = (code & ((1 << format.mantissa_bits) - 1)) / (1 << format.mantissa_bits)
    if code in format.nans:
        return float("nan")
    if code in format.infinities:
        return sign * float("inf")
    if exponent == 0:
        return sign * fraction * 2.0 ** (1 - format.bias)
    return sign * (1 + fraction) * 2.0 ** (exponent - format.bias)


@cache
def _fp8_table(format: str) -> Tensor:
    return torch.tensor([_value_of(code, FP8_FORMATS[format]) for code in range(256)], dtype=torch.float64)


def decode_fp8(codes: Tensor, format: str) -> Tensor:
    """Returns the values of uint8 codes of a format as float32, on the CPU. Float32 represents every fp8 value exactly.

    Example:
        >>> reference.decode_fp8(torch.tensor([0x38, 0x7F], dtype=torch.uint8), "e4m3fn")
        tensor([1., nan])
    """
    return _fp8_table(format)[codes.cpu().long()].float()


def encode_fp8(x: Tensor, format: str) -> Tensor:
    """Returns the uint8 code of the value nearest to each float32, on the CPU.

    Ties go to the even code. Magnitudes above the largest finite value, infinities included, saturate to this value.
    NaN becomes the code `nan` of the format.

    Example:
        >>> reference.encode_fp8(torch.tensor([1.0, 1e9]), "e4m3fn")
        tensor([ 56, 126], dtype=torch.uint8)
    """
    layout = FP8_FORMATS[format]
    values = _fp8_table(format)[:0x80]
    values = values[values.isfinite()]  # increasing, and value i has code i
    x = x.float().cpu()
    magnitude = x.double().abs().clamp(max=values[-1].item()).contiguous()
    above = torch.searchsorted(values, magnitude).clamp(max=len(values) - 1)
    below = (above - 1).clamp(min=0)
    to_above, to_below = values[above] - magnitude, magnitude - values[below]
    code = torch.where((to_above < to_below) | ((to_above == to_below) & (above % 2 == 0)), above, below)
    negative = x.signbit() if layout.has_negative_zero else x.signbit() & (code != 0)
    code = torch.where(negative, code | 0x80, code)
    return torch.where(x.isnan(), layout.nan, code).to(torch.uint8)


def quantise(x: Tensor, scale: Tensor, format: str) -> Tensor:
    """Returns encode_fp8(float32(x) / scale), where the division is one IEEE division in float32.

    Example:
        >>> reference.quantise(torch.tensor([0.5]), torch.tensor(0.5), "e4m3fn")
        tensor([56], dtype=torch.uint8)
    """
    return encode_fp8(x.cpu().float() / scale.cpu().float(), format)


def dequantise(codes: Tensor, scale: Tensor, format: str) -> Tensor:
    """Returns decode_fp8(codes) * scale, in float32.

    Example:
        >>> reference.dequantise(torch.tensor([56], dtype=torch.uint8), torch.tensor(0.5), "e4m3fn")
        tensor([0.5000])
    """
    return decode_fp8(codes, format) * scale.cpu().float()


def e4m3_format(cache_dtype: torch.dtype, e4m3_of_bytes: str) -> str:
    """Returns the e4m3 format that a cache of a torch.float8 dtype, or of uint8, holds."""
    if cache_dtype == torch.uint8:
        return e4m3_of_bytes
    return {FP8_FORMATS[name].dtype: name for name in ("e4m3fn", "e4m3fnuz")}[cache_dtype]


def fp8_format(
    kv_cache_dtype: str, cache_dtype: torch.dtype, e4m3_of_bytes: str = "e4m3fn", family: Family = Family.MLA
) -> str | None:
    """Returns the fp8 format of a cache, or None for a cache of floats.

    Args:
        kv_cache_dtype: a name that the ops of the family accept.
        cache_dtype: dtype of the cache. If the name leaves the e4m3 format open ("fp8", "fp8_e4m3"), the dtype of a
            float8 cache determines it.
        e4m3_of_bytes: the format of a uint8 cache if the name leaves it open.
        family: the family of the op. Family.MLA also serves ops of Family.CACHE, because it has all names of CACHE.

    Raises:
        ValueError: the ops of the family do not accept the name.

    Example:
        >>> reference.fp8_format("fp8", torch.uint8)
        'e4m3fn'
    """
    row = find(kv_cache_dtype, family)
    if row.choice is ElementChoice.E4M3:
        return e4m3_format(cache_dtype, e4m3_of_bytes)
    return row.codec.element.name if row.codec.is_fp8 else None


def bits(x: Tensor) -> Tensor:
    """Returns a view of the same memory as integers, so that copies preserve every bit."""
    if x.is_complex():
        x = torch.view_as_real(x)
    return x.view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])


def tokens_and_slots(slot_mapping: Tensor, num_slots: int, bad_indices: str) -> tuple[list[int], list[int]]:
    """Returns the tokens whose slot is in the cache, and their slots. The package's docstring explains bad_indices."""
    slots = slot_mapping.tolist()
    for token, slot in enumerate(slots):
        if slot >= num_slots and bad_indices == "raise":
            raise bad_index("slot_mapping", token, slot)
    tokens = [token for token, slot in enumerate(slots) if 0 <= slot < num_slots]
    return tokens, [slots[token] for token in tokens]


def bad_index(argument: str, subscript: object, index: object) -> IndexError:
    """Returns the error for an index that is out of range, `argument[subscript]`."""
    return IndexError(f"{argument}[{subscript}] is {index}")
