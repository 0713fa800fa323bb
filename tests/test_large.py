"""Sizes past 2^31, and past the last-level cache of a CPU, beyond which its kernels store differently.

Of such tensors only what is used gets memory: a large torch.empty has none until it is written.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import reference
from calls.reshape_and_cache import flash_arguments
from helpers import FORMATS, check, distinct_slots, random_bytes, randomise, run

FLASH, GATHER = "reshape_and_cache_flash", "cp_gather_cache"
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


def test_gather_from_past_the_limit(device):
    entry, block_size = 656, 64
    blocks = LIMIT // (entry * block_size) + 100
    cache = torch.empty(blocks, block_size, entry, dtype=torch.uint8, device=device)
    used = torch.tensor(
        [0, *(limit // (entry * block_size) + d for limit in (LIMIT // 2, LIMIT) for d in (0, 1)), blocks - 1]
    )
    cache[used] = random_bytes(len(used) * block_size * entry, device).view(-1, block_size, entry)
    output = torch.zeros(len(used) * block_size, entry, dtype=torch.uint8, device=device)
    bounds = torch.tensor([0, len(output)], device=device)
    run(GATHER, {"src": cache, "dst": output, "table": used[None].to(device), "bounds": bounds, "batch_size": 1})
    assert_equal_bits(output, cache[used].flatten(0, 1))


def test_gather_to_past_the_limit(device):
    """Three sequences: the middle one lies past its table, and leaves its rows, nearly all, without memory."""
    entry, block_size, columns = 656, 16, 3
    middle, rows = LIMIT // entry, LIMIT // entry + 5000
    cache = random_bytes(9 * block_size * entry, device).view(9, block_size, entry)
    output = torch.empty(rows, entry, dtype=torch.uint8, device=device)
    table = torch.randint(9, (3, columns), device=device)
    bounds = torch.tensor([middle - 20, middle + 20, rows - 30, rows], device=device)
    starts = torch.tensor([3, columns * block_size, 5], device=device)
    windows = [slice(0, 10), slice(middle - 30, middle + 30), slice(rows - 50, rows)]
    for window in windows:
        output[window] = 90
    expected = [output[window].clone() for window in windows]
    entries = cache[table.long()].flatten(1, 2)
    expected[1][10:-10] = entries[0, 3 : 3 + 40]
    expected[2][20:] = entries[2, 5 : 5 + 30]
    run(GATHER, {"s": cache, "d": output, "t": table, "b": bounds, "batch_size": 3, "starts": starts})
    for window, wanted in zip(windows, expected):
        assert_equal_bits(output[window], wanted)


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


@pytest.mark.parametrize("entry", [656, 1152, 512, 100, 33, 7])
@pytest.mark.parametrize("padding", [0, 3])
def test_more_rows_than_the_cpu_cache_holds(device, entry, padding):
    """Of which the first few hundred are written."""
    rows = last_level_cache_bytes() // entry + 1000
    cache = random_bytes(30 * 16 * entry, device).view(30, 16, entry)
    output = torch.empty(rows, entry + padding, dtype=torch.uint8, device=device)
    output[:400] = 90
    table = torch.randperm(30, device=device)[None]
    bounds = torch.tensor([3, 303], device=device)
    expected = output[:400].cpu().clone()
    expected[3:303, :entry] = cache[table[0]].flatten(0, 1)[5:305].cpu()
    starts = torch.tensor([5], device=device)
    run(GATHER, {"s": cache, "d": output[:, :entry], "t": table, "b": bounds, "batch_size": 1, "starts": starts})
    assert_equal_bits(output[:400], expected)


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


def test_more_heads_than_a_grid_has_blocks(gpu):
    heads, size = 70_000, 2048
    key = torch.randint(-(2**15), 2**15, (1, heads, size), dtype=torch.int16, device=gpu).view(torch.bfloat16)
    value, one, slot = key[..., :8].contiguous(), torch.ones(1, device=gpu), torch.tensor([1], device=gpu)
    caches = [torch.zeros(1, 2, heads, x.shape[2], dtype=x.dtype, device=gpu) for x in (key, value)]
    torch.ops.multikv.reshape_and_cache_flash(key, value, *caches, slot, "auto", one, one)
    rows = torch.zeros(heads, 2, size, dtype=key.dtype, device=gpu).transpose(0, 1)  # heads apart: a row each
    table, bounds = torch.zeros(1, 1, dtype=torch.int32, device=gpu), torch.tensor([0, 2], device=gpu)
    torch.ops.multikv.cp_gather_cache(caches[0], rows, table, bounds, 1)
    for written, source in zip((*caches, rows[None]), (key, value, key)):
        assert not written[0, 0].any()
        assert torch.equal(written[0, 1].view(torch.int16), source[0].view(torch.int16))


def test_gathering_more_than_the_limit(gpu):
    entry, block_size, blocks = 656, 64, 1000
    rows = LIMIT // entry + 100_000
    cache = torch.randint(256, (blocks, block_size, entry), dtype=torch.uint8, device=gpu)
    output = torch.empty(rows, entry, dtype=torch.uint8, device=gpu)
    lengths = [rows // 2, 1, rows - rows // 2 - 1]
    columns = rows // block_size + 1
    table = torch.randint(blocks, (3, columns), dtype=torch.int32, device=gpu)
    bounds = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], device=gpu)
    torch.ops.multikv.cp_gather_cache(cache, output, table, bounds, 3)
    for sequence, length in enumerate(lengths):
        for positions in torch.arange(length, device=gpu).split(2**20):
            wanted = cache[table[sequence, positions // block_size].long(), positions % block_size]
            assert torch.equal(output[bounds[sequence] + positions], wanted)
