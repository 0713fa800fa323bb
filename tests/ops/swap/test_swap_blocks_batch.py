"""swap_blocks_batch: addresses of all kinds of memory, and addresses of none."""

from __future__ import annotations

import pytest
import torch

import multikv
from multikv import platforms
from tests.support.arguments import copy_of
from tests.support.calls.swap import batch_arguments
from tests.support.comparison import assert_same_bytes, check, run
from tests.support.processes import run_program
from tests.support.tensors import random_bytes

OP = "swap_blocks_batch"


def numbers(*values):
    return torch.tensor(values, dtype=torch.int64)


@pytest.mark.parametrize("seed", range(3))
def test_any_copies(device, seed):
    """Copies have any size and order, and some are neighbours."""
    torch.manual_seed(seed)
    for count, longest in ((1, 5), (40, 3), (500, 700), (30, 200_000)):
        sizes = torch.randint(0, longest + 1, (count,)).tolist()
        starts, copies = torch.tensor([0, *sizes]).cumsum(0).tolist(), []
        for i in torch.randperm(count).tolist():
            source = starts[i] if seed == 0 else int(torch.randint(0, starts[-1] - sizes[i] + 1, ()))
            copies.append((source, starts[i], sizes[i]))
        check(OP, batch_arguments(device, copies=copies, src_bytes=starts[-1], dst_bytes=starts[-1] + 1))


def test_any_order(device):
    call = batch_arguments(device)
    check(OP, call | {"is_src_access_order_any": True})


def place(name, size, device):
    x = random_bytes(size)
    return x.to(device) if name == "device" else x.pin_memory() if name == "pinned" else x


@pytest.mark.parametrize("strategy", ["auto", "copy_engine", "kernel"])
@pytest.mark.parametrize("dst", ["device", "pinned", "pageable"])
@pytest.mark.parametrize("src", ["device", "pinned", "pageable"])
def test_memory_of_all_kinds(gpu, src, dst, strategy, swap_strategy):
    swap_strategy(strategy)
    size = 4 << 20
    for block, offset in ((4096, 0), (1000, 8), (77, 1), (1 << 20, 0)):
        count = min(300, size // block - 1)
        source, target = place(src, size, gpu), place(dst, size, gpu)
        order = torch.randperm(size // block - 1)[:count]
        sizes = torch.full((count,), block)
        sizes[::7] = block // 2  # of two sizes
        expected = target.cpu().clone()
        for i, (s, n) in enumerate(zip(order.tolist(), sizes.tolist(), strict=True)):
            begin, end = offset + s * block, offset + i * block
            expected[end : end + n] = source[begin : begin + n].cpu()
        before = source.data_ptr() + offset, target.data_ptr() + offset
        torch.cuda.synchronize()
        run(OP, {"src": before[0] + order * block, "dst": before[1] + torch.arange(count) * block, "sizes": sizes})
        torch.cuda.synchronize()
        assert torch.equal(target.cpu(), expected)


@pytest.mark.parametrize("strategy", ["auto", "copy_engine", "kernel"])
def test_directions_and_sizes_in_one_call(gpu, strategy, swap_strategy):
    """The kernel has a launch for each direction and size, in whatever order the copies come."""
    swap_strategy(strategy)
    count, block = 90, 1024
    sources = {name: place(name, count * block, gpu) for name in ("device", "pinned")}
    targets = {name: place(name, count * block, gpu) for name in ("device", "pinned")}
    expected = {name: x.cpu().clone() for name, x in targets.items()}
    routes = [("device", "pinned"), ("pinned", "device"), ("device", "device")]
    copies = []
    for i in torch.randperm(count).tolist():
        (src, dst), size = routes[i % 3], (block, 512, 77)[i // 3 % 3]
        begin, end = i * block, (count - 1 - i) * block
        expected[dst][end : end + size] = sources[src][begin : begin + size].cpu()
        copies.append((sources[src].data_ptr() + begin, targets[dst].data_ptr() + end, size))
    torch.cuda.synchronize()
    multikv.swap_blocks_batch(*(numbers(*column) for column in zip(*copies, strict=True)))
    torch.cuda.synchronize()
    for name, x in targets.items():
        assert torch.equal(x.cpu(), expected[name])


def test_takes_its_turn_in_the_stream(gpu):
    """The call does not wait for the copies, and its arguments may be freed as soon as it returns."""
    source, target = (torch.zeros(1 << 20, dtype=torch.uint8, device=gpu) for _ in range(2))
    host = random_bytes(1 << 20).pin_memory()
    order = torch.randperm(256) * 4096
    torch.cuda.synchronize()
    torch.cuda._sleep(500_000_000)
    arguments = [host.data_ptr() + order, source.data_ptr() + order, torch.full((256,), 4096)]
    multikv.swap_blocks_batch(*arguments)
    for x in arguments:
        x.fill_(0)
    multikv.swap_blocks_batch(source.data_ptr() + order, target.data_ptr() + order, torch.full((256,), 4096))
    assert not torch.cuda.current_stream().query()
    torch.cuda.synchronize()
    assert torch.equal(target.cpu(), host)


def test_in_a_graph(gpu, swap_strategy):
    for strategy in ("copy_engine", "kernel"):  # a batch of copies would be lost in it
        swap_strategy(strategy)
        source, target = random_bytes(1 << 20).pin_memory(), torch.zeros(1 << 20, dtype=torch.uint8, device=gpu)
        order = torch.randperm(64) * 16384
        arguments = source.data_ptr() + order, target.data_ptr() + order, torch.full((64,), 16384)
        multikv.swap_blocks_batch(*arguments)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            multikv.swap_blocks_batch(*arguments)
        source.copy_(random_bytes(1 << 20))
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(target.cpu(), source)


def test_nothing_moves_if_one_address_is_bad(gpu):
    source, target = random_bytes(64, gpu), torch.zeros(64, dtype=torch.uint8, device=gpu)
    addresses = numbers(source.data_ptr(), 16), numbers(target.data_ptr(), target.data_ptr() + 32)
    message = r"^swap_blocks_batch: src_ptrs: expected mapped addresses, got 0x10 \(32 bytes from 0x10 on"
    with pytest.raises(RuntimeError, match=message):
        multikv.swap_blocks_batch(*addresses, numbers(32, 32))
    assert not target.any()
    multikv.swap_blocks_batch(addresses[0][:1], addresses[1][:1], numbers(32))
    assert torch.equal(target[:32], source[:32])


# Each in a process of its own: what is wrong here may cost the process its device, and then the next call must say so.
BAD_ADDRESSES = """
import sys, torch, multikv
def numbers(x): return torch.tensor([x])
a = torch.arange(1024, dtype=torch.uint8, device="cuda")
b = torch.zeros_like(a)
def copy(src, dst, size=1024):
    multikv.swap_blocks_batch(numbers(src), numbers(dst), numbers(size))
    torch.cuda.synchronize()
if sys.argv[1] == "freed":
    x = torch.empty(64 << 20, dtype=torch.uint8, device="cuda")
    address = x.data_ptr()
    del x
    torch.cuda.empty_cache()
elif sys.argv[1] == "unregistered":
    x = multikv.empty_pinned(64 << 20)
    address = x.data_ptr()
    del x
elif sys.argv[1] == "never":
    address = 0x123456789000
errors = []
for src, dst in ((address, b.data_ptr()), (a.data_ptr(), address)):
    try:
        copy(src, dst)
    except RuntimeError as error:
        errors.append(str(error))
print(*errors, sep="\\n")
copy(a.data_ptr(), b.data_ptr())
print("works after it:", torch.equal(a, b))
"""


@pytest.mark.parametrize("what", ["freed", "unregistered", "never"])
def test_bad_addresses_are_raised(gpu, what):
    run = run_program("-c", BAD_ADDRESSES, what)
    lines = run.stdout.splitlines()
    assert len(lines) == 3, run.stdout + run.stderr
    assert all(line.startswith("swap_blocks_batch: ") for line in lines[:2]), run.stdout
    assert lines[2] == "works after it: True"


LOST = """
import torch, multikv
x = torch.zeros(64, dtype=torch.uint8, device="cuda")
try:
    x[torch.tensor([10**9], device="cuda")]  # an assertion on the device
    torch.cuda.synchronize()
except Exception:
    pass
for call in (lambda: multikv.swap_blocks(x, x, 16, torch.tensor([[0, 1]])),
             lambda: multikv.swap_blocks_batch(*(torch.tensor([n]) for n in (x.data_ptr(), x.data_ptr() + 16, 16)))):
    try:
        call()
    except RuntimeError as error:
        print(error)
"""


@pytest.mark.skipif(platforms.platform() == "rocm", reason="asserts on the device, which HIP may not report")
def test_a_lost_context_is_said_to_be_lost(gpu):
    run = run_program("-c", LOST)
    lines = run.stdout.splitlines()
    assert len(lines) == 2, run.stdout + run.stderr
    for op, line in zip(("swap_blocks", "swap_blocks_batch"), lines, strict=True):
        assert line.startswith(f"{op}: CUDA error: ")
        assert line.endswith(" (the device's context is lost: no call will work in this process)")


def test_a_process_without_a_context_gets_none(gpu):
    """With addresses of the host alone the CPU's kernel copies, and no GPU context is made."""
    script = """
import torch, multikv
a, b = torch.arange(100), torch.zeros(100, dtype=torch.int64)
multikv.swap_blocks_batch(*(torch.tensor([n]) for n in (a.data_ptr(), b.data_ptr(), 800)))
print(torch.equal(a, b), torch.cuda.is_initialized())
"""
    run = run_program("-c", script)
    assert run.stdout.split() == ["True", "False"], run.stdout + run.stderr


def test_a_context_that_is_made_after_the_first_call(gpu):
    """The first call finds no driver in the process, and later calls look again."""
    script = """
import torch, multikv
def copy(a, b):
    multikv.swap_blocks_batch(*(torch.tensor([n]) for n in (a.data_ptr(), b.data_ptr(), a.nbytes)))
for device in ("cpu", "cuda"):
    a, b = torch.arange(100, device=device), torch.zeros(100, dtype=torch.int64, device=device)
    copy(a, b)
    print(torch.equal(a, b))
host = torch.zeros(100, dtype=torch.int64).pin_memory()
copy(a, host)
torch.cuda.synchronize()
print(torch.equal(a.cpu(), host))
"""
    run = run_program("-c", script)
    assert run.stdout.split() == ["True"] * 3, run.stdout + run.stderr


def test_copies_are_what_the_reference_copies(device):
    call = batch_arguments(device)
    expected = copy_of(call)
    run(OP, call)
    with pytest.raises(AssertionError):
        assert_same_bytes(call, expected)
