"""What only a GPU has: streams, graphs, several devices, and memory that an op must not allocate."""

from __future__ import annotations

import pytest
import torch

from multikv import reference
from tests.support.arguments import copy_of, overwrite
from tests.support.calls import CALLS, GPU_CALLS, ONE_OF_EACH
from tests.support.calls.reshape_and_cache import flash_arguments
from tests.support.comparison import assert_same_bytes, check, run

# Of those that have something to do.
NAMES = [name for name in [*CALLS, *GPU_CALLS] if not name.endswith(("no_tokens", "no_sequences", "nothing"))]
# A copy from or to memory that is not pinned is done when the call returns, and cannot be part of a graph.
WAITING = [name for name in NAMES if "pageable" in name]


@pytest.fixture(params=NAMES)
def call(request, gpu):
    return (CALLS | GPU_CALLS)[request.param]


@pytest.fixture(params=[name for name in NAMES if name not in WAITING])
def queued_call(request, gpu):
    return (CALLS | GPU_CALLS)[request.param]


def expected_of(op, arguments):
    expected = copy_of(arguments)
    getattr(reference, op)(**expected)
    return expected


@pytest.mark.parametrize("checked", [False, True], ids=["unchecked", "checked"])
def test_graph_replays_with_new_contents(queued_call, gpu, check_indices, checked):
    op, arguments = queued_call.op, queued_call.arguments(gpu)
    check_indices(checked)
    run(op, arguments)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run(op, arguments)
    for _ in range(3):
        queued_call.vary(arguments)
        expected = expected_of(op, arguments)
        graph.replay()
        assert_same_bytes(arguments, expected, queued_call.nan_outputs)


def test_current_stream(call, gpu):
    """The inputs arrive late, on a side stream: work on another stream would read the old contents."""
    arguments = call.arguments(gpu)
    late = copy_of(arguments, None)
    call.vary(late)
    expected = expected_of(call.op, late)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        overwrite(arguments, late)
        run(call.op, arguments)
    assert_same_bytes(arguments, expected, call.nan_outputs)


@pytest.mark.parametrize("op", ONE_OF_EACH)
def test_not_on_the_default_stream(gpu, op):
    """While the default stream is busy, another stream does all the work of the call, on inputs that arrive late."""
    call = ONE_OF_EACH[op]
    arguments = call.arguments(gpu)
    run(op, copy_of(arguments, None))  # whatever is done the first time
    late = copy_of(arguments, None)
    call.vary(late)
    expected = expected_of(op, late)
    seen = copy_of(arguments, None)  # now, because an allocation may wait for the default stream
    side, default = torch.cuda.Stream(), torch.cuda.default_stream()
    torch.cuda.synchronize()
    torch.cuda._sleep(1_000_000_000)
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)
        overwrite(arguments, late)
        run(op, arguments)
        overwrite(seen, arguments)
    side.synchronize()
    assert not default.query()
    torch.cuda.synchronize()
    assert_same_bytes(seen, expected, call.nan_outputs)


def test_no_allocation(call, gpu):
    arguments = call.arguments(gpu)
    run(call.op, arguments)
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    run(call.op, arguments)
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before


def test_no_synchronisation(queued_call, gpu):
    arguments = queued_call.arguments(gpu)
    run(queued_call.op, arguments)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.cuda._sleep(1_000_000_000)
        run(queued_call.op, arguments)
        assert not torch.cuda.current_stream().query()  # the call has returned, and the work before it is not done
    finally:
        torch.cuda.set_sync_debug_mode("default")
        torch.cuda.synchronize()


def test_device_that_is_not_current(call, gpu):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    other = torch.device("cuda", (gpu.index + 1) % torch.cuda.device_count())
    check(call.op, call.arguments(other), nan_outputs=call.nan_outputs)
    assert torch.cuda.current_device() == gpu.index


def test_tensors_on_two_devices(gpu):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    call = flash_arguments(torch.device("cuda", 0))
    call["value"] = call["value"].to("cuda:1")
    with pytest.raises(RuntimeError) as caught:
        run("reshape_and_cache_flash", call)
    assert str(caught.value) == "reshape_and_cache_flash: value: expected device cuda:0 like key, got cuda:1"
