"""More than the last-level cache of a CPU holds: beyond that its kernels store past the caches.

Of large tensors only what is used gets memory: a large torch.empty has none until it is written.
"""

from __future__ import annotations

import pytest
import torch

from multikv import reference
from tests.support.arguments import copy_of
from tests.support.calls.convert import convert_arguments
from tests.support.calls.reshape_and_cache import flash_arguments, packed_arguments
from tests.support.comparison import check, run
from tests.support.devices import last_level_cache_bytes
from tests.support.parameters import FORMATS, short
from tests.support.tensors import distinct_slots, random_bytes, randomise

FLASH, PACKED, GATHER = "reshape_and_cache_flash", "reshape_and_cache", "cp_gather_cache"


def assert_equal_bits(a: torch.Tensor, b: torch.Tensor) -> None:
    a, b = (x.cpu().contiguous().view(torch.uint8) for x in (a, b))
    assert torch.equal(a, b), f"{(a != b).sum()} of {a.numel()} bytes differ"


@pytest.mark.parametrize("head_size, x", [(128, 8), (20, 4), (33, 11)])
@pytest.mark.parametrize("format", FORMATS)
def test_more_tokens_than_the_cpu_cache_holds(device, format, head_size, x):
    """Nearly all tokens are padding, and the inputs of neighbouring tokens overlap: each starts one element later."""
    heads = 16
    tokens = last_level_cache_bytes() // (2 * heads * head_size) + 1000
    slots = torch.full((tokens,), -1, device=device)
    used = torch.randperm(tokens - 8, device=device)[:300]
    used[:8] = used[0] + torch.arange(8, device=device)
    slots[used] = distinct_slots(300, 320).sort().values.to(device)
    values = randomise(torch.empty(tokens + heads * head_size, dtype=torch.bfloat16, device=device))
    windows = values.as_strided((tokens, heads, head_size), (1, head_size, 1))
    sizes = {"tokens": 300, "heads": heads, "head_size": head_size, "format": format, "blocks": 20}
    inputs = {"key": windows, "value": windows, "slot_mapping": slots}
    check(FLASH, flash_arguments(device, **sizes) | inputs)
    for value_x in (None, 4):
        check(PACKED, packed_arguments(device, x=x, value_x=value_x, **sizes) | inputs)


@pytest.mark.parametrize("to_fp8", [True, False], ids=["to_fp8", "from_fp8"])
@pytest.mark.parametrize(
    "format, dtype",
    [("fp8_e4m3fn", torch.bfloat16), ("fp8_e5m2", torch.float32), ("fp8_e4m3fnuz", torch.float16)],
    ids=short,
)
def test_converting_more_than_the_cpu_cache_holds(device, format, dtype, to_fp8):
    """One row is repeated, so that one result is expected; dst starts at an odd element, with and without gaps."""
    columns = 100_003
    row = convert_arguments("cpu", to_fp8=to_fp8, dtype=dtype, format=format, shape=(columns,))
    once = copy_of(row)
    reference.convert_fp8(**once)
    once = once["dst_cache"].view(torch.uint8)
    rows = last_level_cache_bytes() // len(once) + 10
    src = row["src_cache"].to(device).expand(rows, columns)
    for gap in (0, 5):
        dst = torch.zeros(1 + rows * (columns + gap), dtype=row["dst_cache"].dtype, device=device)
        whole = dst[1:].view(rows, columns + gap)
        run("convert_fp8", row | {"src_cache": src, "dst_cache": whole[:, :columns]})
        whole = whole.view(torch.uint8)
        assert (whole[:, : len(once)] == once.to(device)).all()
        assert not whole[:, len(once) :].any() and dst[0] == 0


def test_swapping_more_than_the_cpu_cache_holds(device):
    block_bytes = last_level_cache_bytes() // 4 + 1
    src = random_bytes(2**20, device).repeat(6 * block_bytes // 2**20 + 1)
    dst = torch.zeros_like(src)
    pairs = torch.tensor([(1, 0), (2, 1), (3, 2), (5, 4), (0, 5)])
    run("swap_blocks", {"src": src, "dst": dst, "block_size_in_bytes": block_bytes, "block_mapping": pairs})
    source, target = (x[: 6 * block_bytes].view(6, block_bytes) for x in (src, dst))
    for s, d in pairs.tolist():
        assert torch.equal(target[d], source[s])
    assert not target[3].any() and not dst[6 * block_bytes :].any()


@pytest.mark.parametrize("entry", [656, 1152, 512, 100, 33, 7])
@pytest.mark.parametrize("padding", [0, 3])
def test_more_rows_than_the_cpu_cache_holds(device, entry, padding):
    """Only the first few hundred rows are written."""
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
