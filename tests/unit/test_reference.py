"""The reference itself: its fp8 against published constants, PyTorch's decoder and a second, different encoder."""

from __future__ import annotations

import numpy
import pytest
import torch

from multikv import reference
from tests.support.parameters import FP8_FORMATS

CONSTANTS = [  # format, code, value
    ("e4m3fn", 0x00, 0.0),
    ("e4m3fn", 0x01, 2.0**-9),
    ("e4m3fn", 0x08, 2.0**-6),
    ("e4m3fn", 0x38, 1.0),
    ("e4m3fn", 0x7E, 448.0),
    ("e4m3fn", 0xFE, -448.0),
    ("e5m2", 0x01, 2.0**-16),
    ("e5m2", 0x04, 2.0**-14),
    ("e5m2", 0x3C, 1.0),
    ("e5m2", 0x7B, 57344.0),
    ("e5m2", 0x7C, float("inf")),
    ("e4m3fnuz", 0x01, 2.0**-10),
    ("e4m3fnuz", 0x40, 1.0),
    ("e4m3fnuz", 0x7F, 240.0),
    ("e5m2fnuz", 0x01, 2.0**-17),
    ("e5m2fnuz", 0x40, 1.0),
    ("e5m2fnuz", 0x7F, 57344.0),
]
LARGEST = {"e4m3fn": 448.0, "e5m2": 57344.0, "e4m3fnuz": 240.0, "e5m2fnuz": 57344.0}


def encode_by_rounding(x: torch.Tensor, format: str) -> torch.Tensor:
    """Arithmetic instead of a search: round to a multiple of the last place, and read the fields off the result."""
    layout = reference.FP8_FORMATS[format]
    smallest_normal = 2.0 ** (1 - layout.bias)

    def exponent_of(magnitude: numpy.ndarray) -> numpy.ndarray:
        return numpy.frexp(numpy.maximum(magnitude, smallest_normal))[1] - 1

    nan, negative = x.isnan().numpy(), x.signbit().numpy()
    magnitude = numpy.minimum(x.nan_to_num(nan=0).double().abs().numpy(), LARGEST[format])
    last_place = numpy.ldexp(1.0, exponent_of(magnitude) - layout.mantissa_bits)
    rounded = numpy.rint(magnitude / last_place) * last_place  # ties to even
    exponent = exponent_of(rounded)
    steps = numpy.ldexp(rounded, layout.mantissa_bits - exponent).astype(numpy.int64)  # with the implicit bit, if any
    codes = ((exponent - exponent_of(numpy.zeros(1))) << layout.mantissa_bits) + steps
    if format.endswith("fnuz"):
        negative &= codes != 0
    codes[negative] |= 0x80
    codes[nan] = 0x80 if format.endswith("fnuz") else 0x7F
    return torch.from_numpy(codes.astype(numpy.uint8))


def assert_encodes_alike(x: torch.Tensor, format: str) -> None:
    got, wanted = reference.encode_fp8(x, format), encode_by_rounding(x, format)
    different = got != wanted
    assert not different.any(), list(
        zip(x[different].tolist(), got[different].tolist(), wanted[different].tolist(), strict=True)
    )[:5]


def every_16_bit_pattern(dtype: torch.dtype) -> torch.Tensor:
    return torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype).float()


def around_boundaries(format: str) -> torch.Tensor:
    """All values and all midpoints between neighbours, in float32, with the floats just below and above."""
    values = reference.decode_fp8(torch.arange(0x80, dtype=torch.uint8), format)
    values = values[values.isfinite()].double()
    points = torch.cat([values, (values[1:] + values[:-1]) / 2, values[-1:] * torch.tensor([1.01, 1.0625, 1.125, 2])])
    bits = points.float().view(torch.int32)[:, None] + torch.tensor([-2, -1, 0, 1, 2], dtype=torch.int32)
    near = bits.clamp(min=0).view(torch.float32).flatten()
    return torch.cat([near, -near])


@pytest.mark.parametrize("format, code, value", CONSTANTS)
def test_decode_constants(format, code, value):
    assert reference.decode_fp8(torch.tensor([code], dtype=torch.uint8), format).item() == value


@pytest.mark.parametrize("format", FP8_FORMATS)
def test_decode_is_pytorchs(format):
    codes = torch.arange(256).to(torch.uint8)
    theirs = codes.view(reference.FP8_FORMATS[format].dtype).float()
    assert torch.equal(
        reference.decode_fp8(codes, format).nan_to_num(nan=1e9, posinf=2e9, neginf=-2e9),
        theirs.nan_to_num(nan=1e9, posinf=2e9, neginf=-2e9),
    )


@pytest.mark.parametrize("format", FP8_FORMATS)
def test_codes_round_trip(format):
    codes = torch.arange(256).to(torch.uint8)
    values = reference.decode_fp8(codes, format)
    again = reference.encode_fp8(values, format)
    finite = values.isfinite()
    assert torch.equal(again[finite], codes[finite])
    assert finite.sum() == {"e4m3fn": 254, "e5m2": 248}.get(format, 255)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("format", FP8_FORMATS)
def test_encode_every_16_bit_float(format, dtype):
    x = every_16_bit_pattern(dtype)
    assert_encodes_alike(x, format)
    # All finite codes are reached, and NaN, so that what tests with these inputs misses nothing.
    finite = reference.decode_fp8(torch.arange(256), format).isfinite().sum()
    assert len(reference.encode_fp8(x, format).unique()) == finite + 1


@pytest.mark.parametrize("format", FP8_FORMATS)
def test_encode_around_boundaries(format):
    assert_encodes_alike(around_boundaries(format), format)


@pytest.mark.parametrize("format", FP8_FORMATS)
def test_ties_go_to_even_codes(format):
    codes = torch.arange(0x7B, dtype=torch.uint8)  # with the next one, finite in every format
    values = reference.decode_fp8(torch.arange(0x7C, dtype=torch.uint8), format).double()
    ties = ((values[:-1] + values[1:]) / 2).float()
    assert torch.equal(reference.encode_fp8(ties, format), codes + codes % 2)


@pytest.mark.parametrize("format", FP8_FORMATS)
def test_saturation_and_nan(format):
    largest = LARGEST[format]
    x = torch.tensor([largest * 1.0001, largest * 2, 3.4e38, float("inf")])
    for sign in (1, -1):
        assert reference.decode_fp8(reference.encode_fp8(sign * x, format), format).tolist() == [sign * largest] * 4
    nans = torch.tensor([0x7FC00000, 0x7F800001, -1, -0x400000], dtype=torch.int32).view(torch.float32)
    assert nans.isnan().all()
    assert reference.encode_fp8(nans, format).tolist() == [0x80 if format.endswith("fnuz") else 0x7F] * 4


@pytest.mark.parametrize("format", FP8_FORMATS)
def test_zeros(format):
    x = torch.tensor([0.0, -0.0, 1e-45, -1e-45, 1e-9, -1e-9])
    minus = 0 if format.endswith("fnuz") else 0x80
    assert reference.encode_fp8(x, format).tolist() == [0, minus] * 3


def test_quantise_divides():
    # Quotients next to a tie, on whose other side the product with the reciprocal lies.
    x, scale = torch.tensor([0.00439453125, 0.02490234375]), torch.tensor([0.3, 1.7])
    quotient = torch.from_numpy(x.numpy() / scale.numpy())
    codes = reference.quantise(x, scale, "e4m3fn")
    assert torch.equal(codes, reference.encode_fp8(quotient, "e4m3fn"))
    assert (codes != reference.encode_fp8(x * (1 / scale), "e4m3fn")).all()


def test_reshape_and_cache_flash_by_hand():
    key = torch.tensor([[[1.0, 2.0]], [[3.0, -1000.0]], [[5.0, 6.0]]])
    cache = torch.zeros(2, 2, 1, 2, dtype=torch.uint8)
    values = torch.zeros(2, 2, 1, 2, dtype=torch.uint8)
    slots = torch.tensor([3, 0, -1])
    one, two = torch.tensor(1.0), torch.tensor([2.0])
    reference.reshape_and_cache_flash(key, key, cache, values, slots, "fp8", one, two)
    assert reference.decode_fp8(cache, "e4m3fn").tolist() == [[[[3, -448]], [[0, 0]]], [[[0, 0]], [[1, 2]]]]
    assert reference.decode_fp8(values, "e4m3fn").tolist() == [[[[1.5, -448]], [[0, 0]]], [[[0, 0]], [[0.5, 1]]]]


def test_reshape_and_cache_by_hand():
    key = torch.arange(1.0, 9).reshape(2, 1, 4)  # token 0: 1 to 4; token 1: 5 to 8
    slots, one, two = torch.tensor([3, 0]), torch.tensor(1.0), torch.tensor([2.0])
    keys = torch.zeros(1, 1, 2, 4, 2, dtype=torch.uint8)  # x = 2, 4 slots
    values = torch.zeros(1, 1, 4, 4, dtype=torch.uint8)
    interleaved = torch.zeros(1, 1, 2, 4, 2, dtype=torch.uint8)
    reference.reshape_and_cache(key, key, keys, values, slots, "fp8_e5m2", one, two)
    assert reference.decode_fp8(keys[0, 0], "e5m2").tolist() == [
        [[5, 6], [0, 0], [0, 0], [1, 2]],
        [[7, 8], [0, 0], [0, 0], [3, 4]],
    ]
    by_element = [[2.5, 0, 0, 0.5], [3, 0, 0, 1], [3.5, 0, 0, 1.5], [4, 0, 0, 2]]
    assert reference.decode_fp8(values[0, 0], "e5m2").tolist() == by_element
    reference.reshape_and_cache(key, key, keys, interleaved, slots, "fp8_e5m2", one, two, True)
    assert reference.decode_fp8(interleaved[0, 0], "e5m2").tolist() == [
        [row[:2] for row in by_element],
        [row[2:] for row in by_element],
    ]


def test_convert_fp8_by_hand():
    x, codes = torch.tensor([[1.0, -1000.0], [0.5, 3.0]], dtype=torch.float16), torch.zeros(2, 2, dtype=torch.uint8)
    reference.convert_fp8(codes, x, 0.5, "fp8_e4m3fn")
    assert reference.decode_fp8(codes, "e4m3fn").tolist() == [[2, -448], [1, 6]]
    back = torch.zeros(2, 2, dtype=torch.bfloat16)
    reference.convert_fp8(back, codes, 0.25, "fp8_e4m3fn")
    assert back.tolist() == [[0.5, -112], [0.25, 1.5]]


def test_convert_fp8_rounds_where_it_is_said_to():
    one, seven = 0x38, 0x4E  # e4m3fn
    codes, third = torch.tensor([one, seven], dtype=torch.uint8), 1 / 3
    product = torch.zeros(2, dtype=torch.float32)
    reference.convert_fp8(product, codes, third, "fp8_e4m3fn")
    rounded = numpy.float32(third)  # of a Python float
    assert product.tolist() == [rounded, numpy.float32(7) * rounded]
    # Past the tie 1 + 2**-8 between two bfloat16 in float64, on it in float32.
    half, scale = torch.zeros(1, dtype=torch.bfloat16), 1 + 2.0**-8 + 2.0**-40
    reference.convert_fp8(half, codes[:1], scale, "fp8_e4m3fn")
    assert half.item() == 1


def test_swap_blocks_by_hand():
    source, target = torch.arange(8, dtype=torch.int16), torch.full((4,), -1, dtype=torch.int16)
    reference.swap_blocks(source, target, 4, torch.tensor([[3, 0]]))
    assert target.tolist() == [6, 7, -1, -1]
    reference.swap_blocks(source, source, 2, torch.tensor([[7, 0], [6, 1]]))
    assert source.tolist() == [7, 6, 2, 3, 4, 5, 6, 7]
    with pytest.raises(IndexError, match=r"block_mapping\[\(1, 1\)\] is 1"):
        reference.swap_blocks(source, target[:3], 4, torch.tensor([[0, 0], [0, 1]]))
    assert target.tolist() == [6, 7, -1, -1]


def test_cp_gather_cache_by_hand():
    cache = torch.arange(8).reshape(4, 2, 1)  # block b holds 2b and 2b + 1
    output = torch.full((6, 1), -1)
    table = torch.tensor([[3, 1, 9], [0, 9, 9]])
    reference.cp_gather_cache(cache, output, table, torch.tensor([1, 4, 5]), 2, torch.tensor([0, 1]))
    assert output.flatten().tolist() == [-1, 6, 7, 2, 1, -1]


def test_bad_indices():
    cache = torch.zeros(1, 2, 1, 1)
    x, one = torch.ones(2, 1, 1), torch.tensor(1.0)
    with pytest.raises(IndexError, match=r"slot_mapping\[1\]"):
        reference.reshape_and_cache_flash(x, x, cache, cache, torch.tensor([0, 2]), "auto", one, one)
    assert not cache.any()
    reference.reshape_and_cache_flash(x, x, cache, cache, torch.tensor([0, 2]), "auto", one, one, bad_indices="skip")
    assert cache.flatten().tolist() == [1, 0]
    output = torch.zeros(2, 1, 1)
    with pytest.raises(IndexError, match=r"block_table\[\(0, 0\)\]"):
        reference.cp_gather_cache(cache, output, torch.tensor([[1]]), torch.tensor([0, 2]), 1)
