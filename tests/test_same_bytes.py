"""The same bytes whoever computes them: every instruction set, any number of threads, CPU and GPU."""

from __future__ import annotations

import os

import pytest
import torch

from calls.gather import gather_arguments
from calls.reshape_and_cache import flash_arguments
from helpers import FLOATS, FORMATS, assert_same_bytes, copy_of, random_bytes, run, short
from multikv import platforms

FLASH, GATHER = "reshape_and_cache_flash", "cp_gather_cache"
THREADS = max(2, os.cpu_count() or 1)


def outcome(op, call, *, isa=None, threads=1):
    """The call's tensors as the op leaves them when it runs so."""
    call = copy_of(call)
    before = platforms.cpu_isa(), torch.get_num_threads()
    platforms.set_cpu_isa(isa or before[0])
    torch.set_num_threads(threads)
    try:
        run(op, call)
    finally:
        platforms.set_cpu_isa(before[0])
        torch.set_num_threads(before[1])
    return call


def any_bits(call):
    """Inputs of all bit patterns, NaNs of all kinds among them."""
    for name in ("key", "value"):
        call[name] = (
            random_bytes(call[name].numel() * call[name].element_size()).view(call[name].dtype).view_as(call[name])
        )
    return call


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("dtype", FLOATS, ids=short)
def test_instruction_sets_of_flash(dtype, format):
    for head_size in (128, 7):
        for cache in ("NHD", "HND"):
            call = any_bits(
                flash_arguments(dtype=dtype, format=format, tokens=40, heads=3, head_size=head_size, cache=cache)
            )
            expected = outcome(FLASH, call, isa="baseline")
            for isa in platforms.cpu_isas():
                assert_same_bytes(outcome(FLASH, call, isa=isa), expected)


@pytest.mark.parametrize("entry", [(1,), (5,), (64,), (100,), (4, 33)], ids=short)
def test_instruction_sets_of_gather(entry):
    call = gather_arguments(dtype=torch.uint8, entry=entry, starts=(3, 0, 17, 2))
    expected = outcome(GATHER, call, isa="baseline")
    for isa in platforms.cpu_isas():
        assert_same_bytes(outcome(GATHER, call, isa=isa), expected)


@pytest.mark.parametrize("isa", platforms.cpu_isas())
@pytest.mark.parametrize("format", FORMATS)
def test_threads_of_flash(isa, format):
    call = any_bits(flash_arguments(format=format, tokens=4000, heads=8, head_size=128))
    expected = outcome(FLASH, call, isa=isa, threads=1)
    for threads in (2, 3, THREADS):
        assert_same_bytes(outcome(FLASH, call, isa=isa, threads=threads), expected)


@pytest.mark.parametrize("isa", platforms.cpu_isas())
def test_threads_of_gather(isa):
    lengths = [1000, 0, 3, 2000, 1, 500]
    call = gather_arguments(lengths=lengths, starts=[5, 9, 100, 0, 31, 16], blocks=64, entry=(8, 128), first_row=7)
    expected = outcome(GATHER, call, isa=isa, threads=1)
    for threads in (2, 3, THREADS):
        assert_same_bytes(outcome(GATHER, call, isa=isa, threads=threads), expected)


# In the last case the slots are so many that a bit for each would cost more than looking at those in use.
@pytest.mark.parametrize("tokens, num_slots", [(4096, 16), (4096, 1600), (4096, 160_000), (600, 2_600_000)])
def test_the_last_of_duplicates_wins_whole(tokens, num_slots):
    """On a CPU, with however many threads: all heads of key and value are those of one token, the last."""
    heads, head_size, block_size = 8, 8, 16
    used = torch.randperm(num_slots)[: tokens // 2]
    slots = used[torch.randint(len(used), (tokens,))]
    slots[::100] = -1
    token_numbers = torch.arange(tokens).float()[:, None, None].repeat(1, heads, head_size)
    caches = torch.empty(2, num_slots // block_size, block_size, heads, head_size)  # mostly without memory of its own
    call = {
        "key": token_numbers,
        "value": token_numbers + 0.5,
        "key_cache": caches[0],
        "value_cache": caches[1],
        "slot_mapping": slots,
        "kv_cache_dtype": "auto",
        "k_scale": torch.ones(1),
        "v_scale": torch.ones(1),
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        run(FLASH, call)
    finally:
        torch.set_num_threads(threads)
    last = {slot: token for token, slot in enumerate(slots.tolist()) if slot >= 0}
    for slot, token in last.items():
        key, value = caches[:, slot // block_size, slot % block_size]
        assert (key == token).all() and (value == token + 0.5).all()


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("dtype", FLOATS, ids=short)
def test_gpu_writes_what_the_cpu_writes_flash(gpu, dtype, format):
    for head_size in (128, 7):
        for cache in ("NHD", "HND", "interleaved"):
            call = any_bits(
                flash_arguments(dtype=dtype, format=format, tokens=999, heads=8, head_size=head_size, cache=cache)
            )
            on_gpu = copy_of(call, gpu)
            run(FLASH, on_gpu)
            assert_same_bytes(on_gpu, outcome(FLASH, call))


def test_gpu_writes_what_the_cpu_writes_gather(gpu):
    for dtype, entry in ((torch.uint8, (656,)), (torch.bfloat16, (576,)), (torch.uint8, (7,)), (torch.float32, (4, 9))):
        call = gather_arguments(dtype=dtype, entry=entry, lengths=[100, 0, 700, 3], starts=[1, 2, 3, 4], blocks=64)
        on_gpu = copy_of(call, gpu)
        run(GATHER, on_gpu)
        assert_same_bytes(on_gpu, outcome(GATHER, call))
