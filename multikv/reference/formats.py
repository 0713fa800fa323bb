"""fp8 codes and numbers, and what else the ops share."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor


class Fp8Format(NamedTuple):
    """A code is a sign bit, an exponent field and `mantissa_bits` of mantissa."""

    mantissa_bits: int
    bias: int
    nan: int  # the code that NaN is stored as
    nans: frozenset[int]
    infinities: frozenset[int]
    dtype: torch.dtype

    @property
    def has_negative_zero(self) -> bool:
        return 0x80 not in self.nans


# e4m3fn, e5m2: "FP8 Formats for Deep Learning" (Micikevicius et al. 2022), OCP 8-bit floating point specification.
# fnuz: "8-bit Numerical Formats for Deep Neural Networks" (Noune et al. 2022).
FP8_FORMATS = {
    "e4m3fn": Fp8Format(3, 7, 0x7F, frozenset({0x7F, 0xFF}), frozenset(), torch.float8_e4m3fn),
    "e5m2": Fp8Format(
        2, 15, 0x7F, frozenset({0x7D, 0x7E, 0x7F, 0xFD, 0xFE, 0xFF}), frozenset({0x7C, 0xFC}), torch.float8_e5m2
    ),
    "e4m3fnuz": Fp8Format(3, 8, 0x80, frozenset({0x80}), frozenset(), torch.float8_e4m3fnuz),
    "e5m2fnuz": Fp8Format(2, 16, 0x80, frozenset({0x80}), frozenset(), torch.float8_e5m2fnuz),
}


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
    """uint8 codes -> float32, on the CPU. Exact: every fp8 value is a float32."""
    return _fp8_table(format)[codes.cpu().long()].float()


def encode_fp8(x: Tensor, format: str) -> Tensor:
    """float32 -> the uint8 code of the nearest value, on the CPU; ties to the even code. Saturates, infinities too."""
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
    """encode(float32(x) / scale): one IEEE division, whatever the scale."""
    return encode_fp8(x.cpu().float() / scale.cpu().float(), format)


def dequantise(codes: Tensor, scale: Tensor, format: str) -> Tensor:
    """decode(code) * scale, in float32."""
    return decode_fp8(codes, format) * scale.cpu().float()


def fp8_format(kv_cache_dtype: str, cache_dtype: torch.dtype, e4m3_of_bytes: str = "e4m3fn") -> str | None:
    """The fp8 format that a cache has, or None for one that stores floats as they come.

    `fp8` and `fp8_e4m3` take a float8 cache as what it is; `e4m3_of_bytes` is what a uint8 cache means to the device.
    """
    if kv_cache_dtype in ("auto", "float32", "float16", "bfloat16"):
        return None
    if kv_cache_dtype in ("fp8", "fp8_e4m3"):
        if cache_dtype == torch.uint8:
            return e4m3_of_bytes
        return {FP8_FORMATS[name].dtype: name for name in ("e4m3fn", "e4m3fnuz")}[cache_dtype]
    return kv_cache_dtype.removeprefix("fp8_")


def bits(x: Tensor) -> Tensor:
    """The same memory as integers, so that a copy is a copy of bits."""
    if x.is_complex():
        x = torch.view_as_real(x)
    return x.view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])


def tokens_and_slots(slot_mapping: Tensor, num_slots: int, bad_indices: str) -> tuple[list[int], list[int]]:
    """The tokens that have a slot, and the slot of each."""
    slots = slot_mapping.tolist()
    for token, slot in enumerate(slots):
        if slot >= num_slots and bad_indices == "raise":
            raise bad_index("slot_mapping", token, slot)
    tokens = [token for token, slot in enumerate(slots) if 0 <= slot < num_slots]
    return tokens, [slots[token] for token in tokens]


def bad_index(argument: str, position: object, value: int) -> IndexError:
    return IndexError(f"{argument}[{position}] is {value}")
