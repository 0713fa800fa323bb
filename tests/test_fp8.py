"""Quantisation by the op, bit for bit, wherever a mistake could hide: every 16-bit float, every rounding boundary."""

from __future__ import annotations

import pytest
import torch

import reference
from calls.reshape_and_cache import flash_arguments
from helpers import FP8_FORMATS, assert_same_bytes, check, copy_of, random_bytes, run

OP = "reshape_and_cache_flash"
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
    """Lengths that no vector divides: the leftover elements go by the same arithmetic."""
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
