"""Values of the packed layout: a thread block transposes them in shared memory, 128 dimensions at a time."""

from __future__ import annotations

import pytest
import torch

import multikv
from tests.support import vectorised
from tests.support.tensors import distinct_slots

TOKENS, HEADS, HEAD_SIZE, BLOCK_SIZE = 2048, 32, 1024, 16


def scattered(blocks):
    return distinct_slots(TOKENS, blocks * BLOCK_SIZE)


def some_runs(blocks):
    """Each 64 tokens hold one run of 16, which is written in wide pieces; the others are written one by one."""
    slots = torch.randperm(blocks * BLOCK_SIZE // 4)[:TOKENS] + blocks * BLOCK_SIZE // 2
    runs = torch.randperm(blocks // 2)[: TOKENS // 64, None] * BLOCK_SIZE + torch.arange(BLOCK_SIZE)
    slots.view(-1, 64)[:, 16:32] = runs
    return slots


def runs_and_padding(blocks):
    """Each 64 tokens hold one run of 16 and padding: most threads have nothing to write."""
    slots = some_runs(blocks)
    slots.view(-1, 64)[:, :16] = -1
    slots.view(-1, 64)[:, 32:] = -1
    return slots


def one_token(blocks):
    """Of each 64 tokens one is written."""
    slots = scattered(blocks)
    slots.view(-1, 64)[:, 1:] = -1
    return slots


@pytest.mark.parametrize("make_slots", [scattered, some_runs, runs_and_padding, one_token], ids=lambda f: f.__name__)
@pytest.mark.parametrize(
    "dtype, format", [(torch.bfloat16, "auto"), (torch.float32, "auto"), (torch.bfloat16, "fp8_e4m3fn")]
)
def test_dimensions_after_the_first_128(gpu, dtype, format, make_slots):
    """Threads that are done must not overwrite, with the next dimensions, what others have still to read.

    The inputs of all tokens overlap and stay in the caches of the GPU, so that the next dimensions arrive soon; each
    thread block has seven chances, the GPU has some thousand blocks a call, and there are several calls.
    """
    blocks = TOKENS // BLOCK_SIZE * 4
    step = 16 // dtype.itemsize
    memory = torch.randn(TOKENS * step + HEADS * HEAD_SIZE).to(dtype)
    codes = memory if format == "auto" else vectorised.encode_fp8(memory, "e4m3fn")
    inputs, stored = (x.to(gpu).as_strided((TOKENS, HEADS, HEAD_SIZE), (step, HEAD_SIZE, 1)) for x in (memory, codes))
    x = 16 // stored.element_size()
    caches = (
        torch.zeros(blocks, HEADS, HEAD_SIZE // x, BLOCK_SIZE, x, dtype=stored.dtype, device=gpu),
        torch.zeros(blocks, HEADS, HEAD_SIZE, BLOCK_SIZE, dtype=stored.dtype, device=gpu),
    )
    slots, one = make_slots(blocks).to(gpu), torch.ones(1, device=gpu)
    entries, used = stored[slots >= 0], slots[slots >= 0]
    expected = [torch.zeros_like(cache) for cache in caches]
    for cache, values in zip(expected, (entries.unflatten(2, (-1, x)), entries), strict=True):
        cache[used // BLOCK_SIZE, :, :, used % BLOCK_SIZE] = values
    for _ in range(10):
        for cache in caches:
            cache.zero_()
        multikv.reshape_and_cache(inputs, inputs, *caches, slots, format, one, one)
        for cache, wanted in zip(caches, expected, strict=True):
            assert torch.equal(cache, wanted)
