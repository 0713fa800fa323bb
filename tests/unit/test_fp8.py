"""fp8 by the ops, bit for bit, wherever a mistake could hide: every 16-bit float, rounding boundary and code."""

from __future__ import annotations

import pytest
import torch

from multikv import reference
from tests.support.arguments import copy_of
from tests.support.calls.convert import convert_arguments
from tests.support.calls.reshape_and_cache import flash_arguments
from tests.support.comparison import assert_same_bytes, check, run
from tests.support.parameters import FLOATS, FP8_FORMATS, short
from tests.support.tensors import random_bytes

OP, CONVERT = "reshape_and_cache_flash", "convert_fp8"
HEADS, HEAD_SIZE = 8, 128

SCALES = (
    [1.0, 2.0, 0.5, 2.0**-20, 2.0**20, 0.1, 3.0, 1.7, 0.0123, 448.0]
    # extreme: subnormal, near the ends of float32, none of which the division may treat in a way of its own
    + [1e-45, 1e-40, 1.17549435e-38, 1e-38, 1e38, 3.4028235e38, -1.0, -0.3, 0.0, -0.0]
    + [float("inf"), -float("inf"), float("nan")]
)


def quantising_call(key, format, k_scale, v_scale, device, **options):
    """A call that quantises `key` [tokens, heads, head_size], and the same rows as value."""
    tokens, heads, head_size = key.shape
    call = flash_arguments(
        device, dtype=key.dtype, format=f"fp8_{format}", tokens=tokens, heads=heads, head_size=head_size, **options
    )
    call["key"], call["value"] = key.to(device), key.flip(0).to(device)
    return call | {"k_scale": k_scale.to(device), "v_scale": v_scale.to(device)}


@pytest.mark.parametrize("scale", SCALES, ids=str)
@pytest.mark.parametrize("format", FP8_FORMATS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_every_16_bit_float(device, dtype, format, scale):
    key = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype).reshape(-1, HEADS, HEAD_SIZE)
    check(OP, quantising_call(key, format, torch.tensor(scale), torch.tensor([0.75]), device))


@pytest.mark.parametrize("format", FP8_FORMATS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=short)
def test_every_16_bit_float_by_convert_fp8(device, dtype, format):
    floats = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    for scale in SCALES[::3]:
        # As a whole, and in rows of an odd length: each float then stands at another place of a vector.
        for shape in ((2**16,), (2**16 // 33, 33)):
            call = convert_arguments(device, format=f"fp8_{format}", dtype=dtype, shape=shape, scale=scale)
            call["src_cache"].copy_(floats[: call["src_cache"].numel()].view(shape))
            check(CONVERT, call)


@pytest.mark.parametrize("format", FP8_FORMATS)
def test_every_bfloat16_but_nan(device, format):
    """Many numbers at once may be divided in another way, in which a NaN is a case of its own."""
    floats = (
        torch.arange(-(2**15), 2**15)
        .to(torch.int16)
        .view(torch.bfloat16)
        .nan_to_num(nan=1.0, posinf=torch.inf, neginf=-torch.inf)
    )
    for scale in [*SCALES, *TIES, *ENDS[:1], *(0.01 * 2 ** (i / 37) for i in range(37))]:
        call = convert_arguments(device, format=f"fp8_{format}", dtype=torch.bfloat16, shape=(2**16,), scale=scale)
        call["src_cache"].copy_(floats)
        check(CONVERT, call)


# Beside SCALES: what is no float32 (becoming 0, infinite, another number), and products that are a tie between two
# numbers of 16 bits, or next to one, and the largest of them, or next to it.
DOUBLES = [1 / 3, 1e-60, 1e60, 1 + 2.0**-30, -1e-50]
TIES = [1 + 2.0**-8, 1 + 2.0**-8 + 2.0**-23, 1 + 3 * 2.0**-8, 1 + 2.0**-11, 1 + 2.0**-11 - 2.0**-24, 1 + 3 * 2.0**-11]
ENDS = [2.0**-33 / 3, 2.0**-140 / 3, 65504 / 448, 65520 / 448, 65519.99 / 57344, 3.39e38 / 57344, 3.4e38 / 240]


@pytest.mark.parametrize("scale", SCALES + DOUBLES + TIES + ENDS, ids=str)
@pytest.mark.parametrize("format", FP8_FORMATS)
def test_every_code(device, format, scale):
    for dtype in FLOATS:
        for shape in ((256,), (65, 255)):  # the second: every code at every place of a vector
            options = {"dtype": dtype, "scale": scale, "shape": shape, "nans": True}
            call = convert_arguments(device, format=f"fp8_{format}", to_fp8=False, **options)
            codes = call["src_cache"]
            codes.copy_((torch.arange(codes.numel()) % 256).view(shape))
            check(CONVERT, call, nan_outputs=("dst_cache",))


@pytest.mark.parametrize("format", FP8_FORMATS)
def test_scale_of_convert_fp8_is_rounded_to_float32_first(device, format):
    """A quotient by the double would lie on the other side of a tie."""
    for scale in DOUBLES:
        key = nearby(boundaries(format)[:, None] * torch.tensor([scale])).flatten().nan_to_num(nan=1.0)
        shape = (len(key),)
        call = convert_arguments(device, format=f"fp8_{format}", dtype=torch.float32, shape=shape, scale=scale)
        call["src_cache"].copy_(key)
        check(CONVERT, call)


def boundaries(format: str) -> torch.Tensor:
    """Every value and every midpoint between neighbours, with sign."""
    values = reference.decode_fp8(torch.arange(0x80, dtype=torch.uint8), format)
    values = values[values.isfinite()].double()
    points = torch.cat(
        [values, (values[1:] + values[:-1]) / 2, values[-1:] * torch.tensor([1.0625, 1.125, 1.5])]
    ).float()
    return torch.cat([points, -points])


def nearby(x: torch.Tensor) -> torch.Tensor:
    """Each float32 with its neighbours on both sides, as the last dimension."""
    steps = torch.tensor([-3, -2, -1, 0, 1, 2, 3], dtype=torch.int32)
    return (x.view(torch.int32)[..., None] + steps * (x != 0)[..., None]).to(torch.int32).view(torch.float32)


@pytest.mark.parametrize("format", FP8_FORMATS)
def test_float32_around_boundaries(device, format):
    # One head per scale: ones that are exact, ones that are not, and those that move quotients to the ends of float32.
    chosen = [1.0, 2.0**-6, 2.0**40, 2.0**-110, 1 - 2.0**-24, 2 - 2.0**-23, 1 + 2.0**-23, 1.5]
    scales = torch.cat(
        [torch.tensor(chosen), torch.exp2(torch.rand(40) * 24 - 12), torch.exp2(torch.rand(16) * 200 - 100)]
    )
    heads = len(scales)
    points = nearby(boundaries(format)[:, None] * scales)  # [point, head, neighbour]
    key = points.permute(0, 2, 1).reshape(-1, heads)
    key = key[: len(key) // 16 * 16].unflatten(0, (-1, 16)).transpose(1, 2).contiguous()
    for order in (scales, scales.flip(0)):
        check(OP, quantising_call(key, format, order, scales, device))


@pytest.mark.parametrize("format", FP8_FORMATS)
def test_float32_of_any_bits(device, format):
    key = random_bytes(64 * HEADS * HEAD_SIZE * 4).view(torch.float32).reshape(64, HEADS, HEAD_SIZE)
    ends = torch.tensor(
        [0.0, -0.0, 1e-45, -1e-45, 1.17549435e-38, 3.4028235e38, float("inf"), -float("inf"), float("nan")]
    )
    key[:9, 0, 0] = ends
    for k_scale, v_scale in zip(SCALES[::2], SCALES[1::2] + SCALES[:1], strict=True):
        check(OP, quantising_call(key, format, torch.tensor(k_scale), torch.tensor(v_scale), device))


@pytest.mark.parametrize("format", FP8_FORMATS)
def test_signed_nans(device, format):
    for dtype, bits in ((torch.float32, torch.int32), (torch.float16, torch.int16), (torch.bfloat16, torch.int16)):
        info = torch.iinfo(bits)
        patterns = torch.tensor([info.max, -1, info.max - 1, -2], dtype=bits).view(dtype)  # quiet and signalling
        assert patterns.isnan().all()
        key = patterns.repeat(2, 3, 16)
        check(OP, quantising_call(key, format, torch.tensor(1.0), torch.tensor(0.5), device))


@pytest.mark.parametrize("format", FP8_FORMATS)
def test_each_head_by_its_own_scale(device, format):
    key = torch.randn(5, 40, 24).half()
    k_scale, v_scale = torch.exp2(torch.rand(2, 40) * 16 - 8)
    for cache in ("NHD", "HND", "interleaved"):
        check(OP, quantising_call(key, format, k_scale, v_scale, device, cache=cache))


@pytest.mark.parametrize("head_size", [1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 33, 63, 65])
def test_ends_of_vectors(device, head_size):
    """Lengths are no multiple of a vector, and the remaining elements are computed the same way."""
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for format in FP8_FORMATS:
            key = nearby(boundaries(format) * 0.3).flatten()[: 4 * 3 * head_size].reshape(4, 3, head_size).to(dtype)
            check(OP, quantising_call(key, format, torch.tensor(0.3), torch.tensor(0.7), device))


def test_flushed_subnormals(device):
    """PyTorch can be told to take subnormal float32 for zero; the bytes stay those of IEEE arithmetic."""
    key = torch.tensor([1e-40, -1e-39, 3e-39, 1e-38, 1.0, 1e-45] * 4).reshape(1, 2, 12)
    call = quantising_call(key, "e4m3fn", torch.tensor(1e-40), torch.tensor(1e-38), device)
    expected = copy_of(call)
    reference.reshape_and_cache_flash(**expected)
    torch.set_flush_denormal(True)
    try:
        run(OP, call)
    finally:
        torch.set_flush_denormal(False)
    assert_same_bytes(call, expected)


@pytest.mark.parametrize("scale", [1e-37, 1e-40])
def test_flushed_subnormals_of_convert_fp8(device, scale):
    """Numbers and scales are subnormal, in both directions."""
    codes = torch.arange(0x70, dtype=torch.uint8)
    calls = [
        convert_arguments(device, to_fp8=False, dtype=dtype, shape=codes.shape, scale=scale)
        for dtype in (torch.float32, torch.bfloat16)
    ]
    for call in calls:
        call["src_cache"].copy_(codes)
    calls.append(convert_arguments(device, dtype=torch.float32, shape=(4,), scale=scale))
    calls[-1]["src_cache"].copy_(torch.tensor([1e-40, -3e-39, 1e-38, 1e-45]))
    expected = [copy_of(call) for call in calls]
    for call in expected:
        reference.convert_fp8(**call)
    torch.set_flush_denormal(True)
    try:
        for call in calls:
            run(CONVERT, call)
    finally:
        torch.set_flush_denormal(False)
    for call, wanted in zip(calls, expected, strict=True):
        assert_same_bytes(call, wanted)
