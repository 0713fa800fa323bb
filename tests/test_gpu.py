"""What only a GPU has: streams, graphs, several devices, and memory that an op must not allocate."""

from __future__ import annotations

import pytest
import torch

import reference
from calls.gather import gather_arguments
from calls.reshape_and_cache import flash_arguments
from helpers import assert_same_bytes, check, copy_of, distinct_slots, randomise, run, storage_bytes

FLASH, GATHER = "reshape_and_cache_flash", "cp_gather_cache"

CALLS = {
    "flash": (FLASH, flash_arguments, {"tokens": 300, "heads": 8}),
    "flash-fp8": (FLASH, flash_arguments, {"tokens": 300, "heads": 8, "format": "fp8", "per_head": True}),
    "gather": (GATHER, gather_arguments, {"lengths": (300, 1, 77), "starts": (5, 0, 30)}),
}


@pytest.fixture(params=CALLS)
def op_and_call(request, gpu):
    op, make, options = CALLS[request.param]
    return op, make(gpu, **options)


def expected_of(op, call):
    expected = copy_of(call)
    getattr(reference, op)(**expected)
    return expected


def vary(call):
    """New contents for the tensors of a call, in place."""
    if "slot_mapping" in call:
        randomise(call["key"]), randomise(call["value"])
        slots = distinct_slots(len(call["slot_mapping"]), call["key_cache"].shape[0] * call["key_cache"].shape[1])
        slots[torch.rand(len(slots)) < 0.2] = -1
        call["slot_mapping"].copy_(slots)
    else:
        call["block_table"].copy_(torch.randint(call["src_cache"].shape[0], call["block_table"].shape))
        call["cu_seq_lens"].copy_(torch.tensor([0, 10, 170, 300]))


@pytest.mark.parametrize("checked", [False, True], ids=["unchecked", "checked"])
def test_graph_replays_with_new_contents(op_and_call, check_indices, checked):
    op, call = op_and_call
    check_indices(checked)
    run(op, call)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run(op, call)
    for _ in range(3):
        vary(call)
        expected = expected_of(op, call)
        graph.replay()
        torch.cuda.synchronize()
        assert_same_bytes(call, expected)


def test_current_stream(op_and_call, gpu):
    """Inputs that arrive late, on a stream of their own: work on another stream would read what was there before."""
    op, call = op_and_call
    late = copy_of(call, gpu)
    vary(late)
    expected = expected_of(op, late)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        for name, x in call.items():
            if isinstance(x, torch.Tensor):
                storage_bytes(x).copy_(storage_bytes(late[name]))
        run(op, call)
    stream.synchronize()
    assert_same_bytes(call, expected)


def test_no_allocation(op_and_call):
    op, call = op_and_call
    run(op, call)
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    run(op, call)
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before


def test_no_synchronisation(op_and_call):
    op, call = op_and_call
    run(op, call)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.cuda._sleep(1_000_000_000)
        run(op, call)
        assert not torch.cuda.current_stream().query()  # the call has returned, and the work before it is not done
    finally:
        torch.cuda.set_sync_debug_mode("default")
        torch.cuda.synchronize()


@pytest.mark.parametrize("name", CALLS)
def test_device_that_is_not_current(gpu, name):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    op, make, options = CALLS[name]
    other = torch.device("cuda", (gpu.index + 1) % torch.cuda.device_count())
    check(op, make(other, **options))
    assert torch.cuda.current_device() == gpu.index


def test_tensors_on_two_devices(gpu):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    call = flash_arguments(torch.device("cuda", 0))
    call["value"] = call["value"].to("cuda:1")
    with pytest.raises(RuntimeError) as caught:
        run(FLASH, call)
    assert str(caught.value) == f"{FLASH}: value: expected device cuda:0 like key, got cuda:1"
