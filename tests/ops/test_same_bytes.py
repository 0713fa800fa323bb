"""The same bytes whoever computes them: every instruction set, any number of threads, CPU and GPU."""

from __future__ import annotations

import os

import pytest
import torch

from multikv import platforms, reference
from tests.support.arguments import copy_of
from tests.support.calls import CALLS
from tests.support.calls.gather import gather_arguments
from tests.support.calls.reshape_and_cache import flash_arguments, packed_arguments
from tests.support.comparison import assert_same_bytes, run
from tests.support.devices import last_level_cache_bytes
from tests.support.parameters import FLOATS, FORMATS, short
from tests.support.tensors import random_bytes, storage_bytes

FLASH, PACKED, GATHER = "reshape_and_cache_flash", "reshape_and_cache", "cp_gather_cache"
WRITERS = {FLASH: flash_arguments, PACKED: packed_arguments}
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


def any_bits(op, call):
    """Fills the floats that are only read with all bit patterns, NaNs among them. Scales and cosines stay."""
    for argument in getattr(torch.ops.multikv, op).default._schema.arguments:
        x = call[argument.name]
        is_matrix = isinstance(x, torch.Tensor) and x.dtype in FLOATS and x.dim() > 1
        if is_matrix and not argument.alias_info and argument.name != "cos_sin_cache":
            bytes = storage_bytes(x)
            bytes.copy_(random_bytes(len(bytes)))
    return call


@pytest.mark.parametrize("name", CALLS)
def test_instruction_sets(name):
    call = CALLS[name]
    arguments = any_bits(call.op, call.arguments())
    expected = outcome(call.op, arguments, isa="baseline")
    for isa in platforms.cpu_isas():
        assert_same_bytes(outcome(call.op, arguments, isa=isa), expected, call.nan_outputs)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("dtype", FLOATS, ids=short)
@pytest.mark.parametrize("op", WRITERS)
def test_instruction_sets_of_writers(op, dtype, format):
    for head_size, layout in ((128, {}), (7, {}), (128, {"cache": "HND"} if op == FLASH else {"value_x": 4})):
        sizes = {"tokens": 40, "heads": 3, "head_size": head_size}
        layout = layout | ({"x": head_size} if op == PACKED and head_size == 7 else {})
        call = any_bits(op, WRITERS[op](dtype=dtype, format=format, **sizes, **layout))
        expected = outcome(op, call, isa="baseline")
        for isa in platforms.cpu_isas():
            assert_same_bytes(outcome(op, call, isa=isa), expected)


@pytest.mark.parametrize("entry", [(1,), (5,), (64,), (100,), (4, 33)], ids=short)
def test_instruction_sets_of_gather(entry):
    call = gather_arguments(dtype=torch.uint8, entry=entry, starts=(3, 0, 17, 2))
    expected = outcome(GATHER, call, isa="baseline")
    for isa in platforms.cpu_isas():
        assert_same_bytes(outcome(GATHER, call, isa=isa), expected)


@pytest.mark.parametrize("isa", platforms.cpu_isas())
@pytest.mark.parametrize("name", [name for name in CALLS if CALLS[name].larger])
def test_threads(name, isa):
    call = CALLS[name]
    arguments = any_bits(call.op, call.arguments(**call.larger))
    expected = outcome(call.op, arguments, isa=isa, threads=1)
    for threads in (2, 3, THREADS):
        assert_same_bytes(outcome(call.op, arguments, isa=isa, threads=threads), expected, call.nan_outputs)


# In the last case the slots are so many that a bit for each would cost more than looking at those in use.
@pytest.mark.parametrize("tokens, num_slots", [(4096, 16), (4096, 1600), (4096, 160_000), (600, 2_600_000)])
@pytest.mark.parametrize("op", WRITERS)
def test_the_last_of_duplicates_wins_whole(op, tokens, num_slots):
    """On a CPU, with however many threads: all heads of key and value are those of one token, the last."""
    heads, head_size, block_size = 8, 8, 16
    used = torch.randperm(num_slots)[: tokens // 2]
    slots = used[torch.randint(len(used), (tokens,))]
    slots[::100] = -1
    token_numbers = torch.arange(tokens).float()[:, None, None].repeat(1, heads, head_size)
    blocks = num_slots // block_size
    shape = (blocks, block_size, heads, head_size) if op == FLASH else (blocks, heads, head_size, block_size)
    caches = torch.empty(2, *shape)  # mostly without memory of its own
    call = {
        "key": token_numbers,
        "value": token_numbers + 0.5,
        "key_cache": caches[0] if op == FLASH else caches[0].view(blocks, heads, head_size // 4, block_size, 4),
        "value_cache": caches[1],
        "slot_mapping": slots,
        "kv_cache_dtype": "auto",
        "k_scale": torch.ones(1),
        "v_scale": torch.ones(1),
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        run(op, call)
    finally:
        torch.set_num_threads(threads)
    last = {slot: token for token, slot in enumerate(slots.tolist()) if slot >= 0}
    for slot, token in last.items():
        block, offset = divmod(slot, block_size)
        at = (block, offset) if op == FLASH else (block, ..., offset)
        key_at = at if op == FLASH else (block, slice(None), slice(None), offset)
        assert (call["key_cache"][key_at] == token).all() and (call["value_cache"][at] == token + 0.5).all()


@pytest.mark.parametrize("format", ["auto", "fp8_e4m3fn"])
@pytest.mark.parametrize("op", WRITERS)
def test_the_last_of_duplicates_wins_past_the_cpu_cache(op, format):
    """Nearly all tokens are padding; the others go to one block, in runs and singly, again and again."""
    heads, head_size, block_size = 4, 64, 64
    tokens = last_level_cache_bytes() // (2 * heads * head_size) + 1000
    span, some = torch.arange(block_size), torch.randint(block_size, (20,))
    used = torch.cat([span, some, span[5:30], some[:3], span[:16], span[40:], some[3:6], torch.tensor([20])])
    slots = torch.full((tokens,), -1)
    slots[100 : 100 + len(used)] = used
    values = torch.randn(tokens + heads * head_size).bfloat16()
    windows = values.as_strided((tokens, heads, head_size), (1, head_size, 1))
    sizes = {"tokens": 0, "heads": heads, "head_size": head_size, "blocks": 1, "block_size": block_size}
    call = WRITERS[op](format=format, **sizes) | {"key": windows, "value": windows, "slot_mapping": slots}
    expected = copy_of(call)
    getattr(reference, op)(**expected)
    for isa in platforms.cpu_isas():
        assert_same_bytes(outcome(op, call, isa=isa, threads=THREADS), expected)


@pytest.mark.parametrize("name", CALLS)
def test_gpu_writes_what_the_cpu_writes(gpu, name):
    call = CALLS[name]
    # Sums of attention are equal on all devices only for the numbers that the calls of the table have.
    is_attention = call.op.startswith(("paged_attention", "merge"))
    for options in ({}, call.larger):
        on_gpu = call.arguments(gpu, **options)
        on_gpu = on_gpu if is_attention else any_bits(call.op, on_gpu)
        on_cpu = copy_of(on_gpu)
        run(call.op, on_gpu)
        assert_same_bytes(on_gpu, outcome(call.op, on_cpu), call.nan_outputs)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("dtype", FLOATS, ids=short)
@pytest.mark.parametrize("op", WRITERS)
def test_gpu_writes_what_the_cpu_writes_in_every_format(gpu, op, dtype, format):
    for head_size, cache in ((128, "NHD"), (128, "HND"), (7, "NHD"), (7, "interleaved")):
        layout = {"cache": cache} if op == FLASH else {"x": 1 if head_size == 7 else 8, "runs": cache == "HND"}
        sizes = {"tokens": 999, "heads": 8, "head_size": head_size}
        call = any_bits(op, WRITERS[op](dtype=dtype, format=format, **sizes, **layout))
        on_gpu = copy_of(call, gpu)
        run(op, on_gpu)
        assert_same_bytes(on_gpu, outcome(op, call))


def test_gpu_writes_what_the_cpu_writes_of_any_entry(gpu):
    for dtype, entry in ((torch.uint8, (656,)), (torch.bfloat16, (576,)), (torch.uint8, (7,)), (torch.float32, (4, 9))):
        call = gather_arguments(dtype=dtype, entry=entry, lengths=[100, 0, 700, 3], starts=[1, 2, 3, 4], blocks=64)
        on_gpu = copy_of(call, gpu)
        run(GATHER, on_gpu)
        assert_same_bytes(on_gpu, outcome(GATHER, call))
