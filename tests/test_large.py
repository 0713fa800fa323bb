"""Sizes past 2^31, and past the last-level cache of a CPU, beyond which its kernels store differently.

Of such tensors only what is used gets memory: a large torch.empty has none until it is written.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import reference
from helpers import FORMATS, check, distinct_slots, flash_arguments, random_bytes, randomise, run

FLASH = "reshape_and_cache_flash"
LIMIT = 2**31


def last_level_cache_bytes() -> int:
    try:
        kilobytes = Path("/sys/devices/system/cpu/cpu0/cache/index3/size").read_text().strip().removesuffix("K")
    except OSError:
        kilobytes = "0"
    return max(int(kilobytes), 32 << 10) << 10


def assert_equal_bits(a: torch.Tensor, b: torch.Tensor) -> None:
    a, b = (x.cpu().contiguous().view(torch.uint8) for x in (a, b))
    assert torch.equal(a, b), f"{(a != b).sum()} of {a.numel()} bytes differ"


@pytest.mark.parametrize("format, dtype", [("fp8_e4m3fn", torch.uint8), ("auto", torch.bfloat16)], ids=["fp8", "auto"])
@pytest.mark.parametrize("layout", ["NHD", "HND"])
def test_cache_past_the_limit(device, layout, format, dtype):
    heads, size, block_size = 8, 128, 16
    block_elements = 2 * block_size * heads * size  # K and V
    blocks = LIMIT // block_elements + 100

    def make(device):
        if layout == "NHD":
            return torch.empty(blocks, 2, block_size, heads, size, dtype=dtype, device=device)
        return torch.empty(blocks, 2, heads, block_size, size, dtype=dtype, device=device).transpose(2, 3)

    cache, expected = make(device), make("cpu")
    boundaries = [LIMIT // 4, LIMIT // 2, LIMIT]  # elements; the first two in bytes of wider types
    slots = [boundary // block_elements * block_size + d for boundary in boundaries for d in (-2, 0, 17)]
    slots = torch.tensor([0, *slots, blocks * block_size - 1])
    near = torch.cat([slots, slots[:-1] + 1, slots[1:] - 1])
    for x in (cache, expected):
        x[near // block_size, :, near % block_size] = 90
    call = flash_arguments(device, tokens=len(slots), heads=heads, head_size=size, format=format)
    call["slot_mapping"] = slots.to(device)
    call["key_cache"], call["value_cache"] = cache.unbind(1)
    run(FLASH, call)
    call["key_cache"], call["value_cache"] = expected.unbind(1)
    reference.reshape_and_cache_flash(**call)
    assert_equal_bits(
        cache[near // block_size, :, near % block_size], expected[near // block_size, :, near % block_size]
    )


@pytest.mark.parametrize("format", ["auto", "fp8_e5m2"])
def test_inputs_past_the_limit(device, format):
    tokens, heads, size = 4, 2, 64
    stride = LIMIT // (tokens - 1) + 64
    call = flash_arguments(device, tokens=tokens, heads=heads, head_size=size, format=format)
    memory = torch.empty(stride * (tokens - 1) + 2 * heads * size, dtype=torch.bfloat16, device=device)
    far = {
        "key": memory.as_strided((tokens, heads, size), (stride, size, 1)),
        "value": memory.as_strided((tokens, heads, size), (stride, size, 1), heads * size),
    }
    for name, x in far.items():
        x.copy_(call[name])
    expected = {name: x.cpu().clone() if isinstance(x, torch.Tensor) else x for name, x in call.items()}
    reference.reshape_and_cache_flash(**expected)
    run(FLASH, call | far)
    for name in ("key_cache", "value_cache"):
        assert_equal_bits(call[name], expected[name])


# -- more than the CPU's last-level cache holds ------------------------------------------------------------------------


@pytest.mark.parametrize("head_size", [128, 20, 33])
@pytest.mark.parametrize("format", FORMATS)
def test_more_tokens_than_the_cpu_cache_holds(device, format, head_size):
    """Nearly all of them padding, and each token's input starts one element after the one before."""
    heads = 16
    tokens = last_level_cache_bytes() // (2 * heads * head_size) + 1000
    call = flash_arguments(device, tokens=300, heads=heads, head_size=head_size, format=format)
    slots = torch.full((tokens,), -1, device=device)
    slots[torch.randperm(tokens, device=device)[:300]] = call["slot_mapping"]
    values = randomise(torch.empty(tokens + heads * head_size, dtype=torch.bfloat16, device=device))
    windows = values.as_strided((tokens, heads, head_size), (1, head_size, 1))
    check(FLASH, call | {"key": windows, "value": windows, "slot_mapping": slots})


# -- all of it used, where there is room -------------------------------------------------------------------------------


def test_writing_more_than_the_limit(gpu):
    heads, size, block_size = 8, 128, 16
    tokens = LIMIT // (heads * size) + 1000
    blocks = tokens // block_size + 1
    key = torch.randint(-(2**15), 2**15, (tokens, heads, size), dtype=torch.int16, device=gpu).view(torch.bfloat16)
    value = key.flip(1)[..., :8].contiguous()
    slots = distinct_slots(tokens, blocks * block_size).to(gpu)
    caches = [torch.empty(blocks, block_size, heads, x.shape[2], dtype=x.dtype, device=gpu) for x in (key, value)]
    one = torch.ones(1, device=gpu)
    torch.ops.multikv.reshape_and_cache_flash(key, value, *caches, slots, "auto", one, one)
    for source, cache in zip((key, value), caches):
        for some in torch.arange(tokens, device=gpu).split(2**19):
            assert torch.equal(cache.flatten(0, 1)[slots[some]].view(torch.int16), source[some].view(torch.int16))
