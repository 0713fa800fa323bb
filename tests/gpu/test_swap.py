"""Swaps where a GPU takes part: what copies, in which order, from which memory: the traps of docs/swap.md."""

from __future__ import annotations

import dataclasses
import threading

import pytest
import torch

import multikv
from multikv import platforms, reference
from multikv.offload import costs
from tests.support.arguments import copy_of, overwrite
from tests.support.calls.swap import layers_arguments, random_pairs, swap_arguments
from tests.support.comparison import assert_same_bytes, check, run
from tests.support.tensors import random_bytes

STRATEGIES = ("auto", "copy_engine", "kernel")
ROUTES = [
    ("device", "pinned"),
    ("pinned", "device"),
    ("device", "device"),
    ("device", "pageable"),
    ("pageable", "device"),
]
SIXTY_FOUR = {"src_blocks": 64, "dst_blocks": 64, "block_shape": (8192,)}
QUEUED = [route for route in ROUTES if "pageable" not in route]
OPS = {"swap_blocks": swap_arguments, "swap_blocks_layers": layers_arguments}


@pytest.fixture(params=STRATEGIES)
def strategy(request, gpu, swap_strategy):
    swap_strategy(request.param)
    return request.param


@pytest.fixture(params=["default_stream", "side_stream"])
def stream(request, gpu):
    """The driver refuses batches of copies on the default stream, and takes them on other streams."""
    if request.param == "default_stream":
        yield torch.cuda.default_stream()
    else:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            yield side
        torch.cuda.synchronize()


def mixed_pairs(blocks):
    """Pairs of single blocks and of runs of up to a third of all blocks."""
    sizes, pairs, at = [1, blocks // 3, 1, 1, blocks // 4, 2, 1, 5], [], 0
    starts = [blocks - sum(sizes[: i + 1]) for i in range(len(sizes))]
    for size, start in zip(sizes, starts, strict=True):
        pairs += [(start + k, at + k) for k in range(size)]
        at += size
    return [pairs[i] for i in torch.randperm(len(pairs)).tolist()]


@pytest.mark.parametrize("route", [("device", "pinned"), ("pinned", "device")], ids="_to_".join)
@pytest.mark.parametrize("size", [3 * 512 - 1, 3 * 512, 3 * 512 + 1])
def test_runs_at_the_crossover(gpu, stream, route, size):
    """Runs of 1 to 4 blocks of 512 bytes lie on both sides of the crossover; without those of 4, fewer do."""
    name = "to_host" if route[0] == "device" else "from_host"
    library, device = costs.gpu("swap_costs", gpu)
    before = costs.read_costs(library, device)
    changed = dataclasses.replace(before[name], in_batches=size, one_by_one=size)
    costs.write_costs(library, device, {name: changed})
    try:
        runs = [1, 3, 2, 1, 4, 3, 2]
        for lengths in (runs, [n for n in runs if n != 4]):
            starts = [20 * i for i in range(len(lengths))]
            pairs = [(start + k, 2 * start + k) for start, n in zip(starts, lengths, strict=True) for k in range(n)]
            options = {"src_blocks": 140, "dst_blocks": 280, "block_shape": (512,), "dtype": torch.uint8}
            for op, make in OPS.items():
                check(op, make(gpu, src=route[0], dst=route[1], pairs=pairs, **options))
    finally:
        costs.write_costs(library, device, before)


@pytest.mark.parametrize("route", ROUTES, ids="_to_".join)
def test_strategies(gpu, strategy, stream, route):
    """Blocks have many sizes and alignments, and calls mix runs for a copy engine with blocks for the kernel."""
    src, dst = route
    shapes = ((4096,), torch.uint8), ((16, 33), torch.bfloat16), ((1001,), torch.uint8), ((3,), torch.uint8)
    for block_shape, dtype in shapes:
        options = {"src": src, "dst": dst, "block_shape": block_shape, "dtype": dtype}
        options |= {"src_blocks": 300, "dst_blocks": 300}
        for op, make in OPS.items():
            check(op, make(gpu, **options, pairs=mixed_pairs(300)))
            check(op, make(gpu, **options, pairs=random_pairs(280, 300, 300), offset=16))
    check("swap_blocks", swap_arguments(gpu, src=src, dst=dst, block_shape=(1 << 19,), pairs=[(4, 1), (0, 3), (5, 2)]))


@pytest.mark.parametrize("route", QUEUED, ids="_to_".join)
def test_takes_its_turn(gpu, strategy, stream, route):
    """The copy comes after earlier work of the stream, which may write the blocks, and before later work.

    The mapping may be changed or freed as soon as the call returns.
    """
    for op, make in OPS.items():
        call = make(gpu, src=route[0], dst=route[1], **SIXTY_FOUR, pairs=mixed_pairs(64))
        run(op, call)  # whatever is done the first time
        torch.cuda.synchronize()
        late = copy_of(call, None)
        for x in late["src"] if op == "swap_blocks_layers" else [late["src"]]:
            x.random_(-99, 99)
        expected = copy_of(late)
        getattr(reference, op)(**expected)
        torch.cuda.synchronize()
        torch.cuda._sleep(300_000_000)
        if route[0] == "device":
            overwrite(call, late)
        else:
            call["src"] = late["src"]
        run(op, call)
        call["block_mapping"].fill_(-(10**12))
        del call["block_mapping"], expected["block_mapping"]
        assert not stream.query()
        stream.synchronize()
        assert_same_bytes({"dst": call["dst"]}, {"dst": expected["dst"]})


@pytest.mark.parametrize("route", QUEUED, ids="_to_".join)
def test_graphs(gpu, strategy, route):
    """A graph holds all copies (it would lose a batch of them), and nothing is copied while the graph is made."""
    for op, make in OPS.items():
        call = make(gpu, src=route[0], dst=route[1], **SIXTY_FOUR, pairs=mixed_pairs(64))
        untouched = copy_of({"dst": call["dst"]})
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run(op, call)
        assert_same_bytes({"dst": call["dst"]}, untouched)
        call["block_mapping"] = call["block_mapping"].clone()
        for _ in range(2):
            for x in call["src"] if op == "swap_blocks_layers" else [call["src"]]:
                x.random_(-99, 99)
            expected = copy_of(call)
            getattr(reference, op)(**expected)
            graph.replay()
            assert_same_bytes(call, expected)


def test_registered_memory(gpu, strategy):
    """Another library has registered the memory by cudaHostRegister, in one piece or in neighbouring ones."""
    runtime, page = torch.cuda.cudart(), 1 << 20
    for pieces in ([8], [3, 5], [1] * 8):
        host = torch.empty(9 * page, dtype=torch.uint8)
        begin = -host.data_ptr() % 4096
        addresses = [host.data_ptr() + begin + sum(pieces[:i]) * page for i in range(len(pieces))]
        for address, count in zip(addresses, pieces, strict=True):
            assert int(runtime.cudaHostRegister(address, count * page, 0)) == 0
        blocks = host[begin : begin + 8 * page].view(-1, 4096)
        device = random_bytes(blocks.numel(), gpu).view(-1, 4096)
        mapping = torch.stack([torch.randperm(len(blocks)) for _ in range(2)], 1)
        multikv.swap_blocks(device, blocks, 4096, mapping)
        back = torch.zeros_like(device)
        multikv.swap_blocks(blocks, back, 4096, mapping.flip(1))
        torch.cuda.synchronize()
        assert torch.equal(back, device)
        for address in addresses:
            assert int(runtime.cudaHostUnregister(address)) == 0


def test_memory_that_is_registered_in_part(gpu, strategy):
    """No kernel may touch memory that is not registered; what the runtime refuses is raised."""
    host = torch.empty(9 << 20, dtype=torch.uint8)
    begin = host.data_ptr() + -host.data_ptr() % 4096
    device = random_bytes(8 << 20, gpu)
    blocks = host[begin - host.data_ptr() :][: 8 << 20]
    assert int(torch.cuda.cudart().cudaHostRegister(begin, 2 << 20, 0)) == 0
    try:
        order = torch.tensor([7, 0, 3, 1])
        multikv.swap_blocks(device, blocks, 1 << 20, torch.stack([order, order], 1))
        torch.cuda.synchronize()
        for i in order.tolist():
            assert torch.equal(blocks[i << 20 : (i + 1) << 20], device[i << 20 : (i + 1) << 20].cpu())
        with pytest.raises(RuntimeError, match="^swap_blocks: CUDA error: invalid argument$"):
            multikv.swap_blocks(device, blocks, 8 << 20, torch.tensor([[0, 0]]))  # one copy, over the end of it
    finally:
        torch.cuda.cudart().cudaHostUnregister(begin)
    run("swap_blocks", swap_arguments(gpu, dst="pinned"))


def test_threads(gpu, strategy):
    """Threads share nothing that a call keeps for the next one."""
    calls = [
        swap_arguments(gpu, src=src, dst=dst, src_blocks=500, dst_blocks=500, pairs=random_pairs(400, 500, 500))
        for src, dst in QUEUED * 2
    ]
    expected = [copy_of(call) for call in calls]
    for call in expected:
        reference.swap_blocks(**call)
    torch.cuda.synchronize()

    def work(call):
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(20):
                run("swap_blocks", call)

    threads = [threading.Thread(target=work, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for call, other in zip(calls, expected, strict=True):
        assert_same_bytes(call, other)


# -- two GPUs ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def two_gpus(gpu):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    return torch.device("cuda", 0), torch.device("cuda", 1)


def to_device(x, device):
    return [y.to(device) for y in x] if isinstance(x, list) else x.to(device)


@pytest.mark.parametrize("current", [0, 1])
def test_between_two_gpus(two_gpus, strategy, current):
    for source, target in (two_gpus, two_gpus[::-1]):
        for op, make in OPS.items():
            with torch.cuda.device(current):
                call = make(source, src_blocks=300, dst_blocks=300, block_shape=(4096,), pairs=mixed_pairs(300))
                call["dst"] = to_device(call["dst"], target)
                check(op, call)
                assert torch.cuda.current_device() == current


@pytest.mark.parametrize("streams", ["default", "side"])
def test_between_two_gpus_in_order(two_gpus, strategy, streams):
    """The copy comes after the earlier work of both streams, and before the later work of the second."""
    for source, target in (two_gpus, two_gpus[::-1]):
        src, dst = (torch.zeros(1 << 20, dtype=torch.uint8, device=device) for device in (source, target))
        new, seen = random_bytes(1 << 20, source), torch.zeros_like(dst)
        mapping = torch.stack([torch.randperm(64) for _ in range(2)], 1)
        expected = torch.zeros(64, 1 << 14, dtype=torch.uint8)
        expected[mapping[:, 1]] = new.cpu().view(64, -1)[mapping[:, 0]]
        both = [torch.cuda.Stream(d) if streams == "side" else torch.cuda.default_stream(d) for d in (source, target)]
        for device in two_gpus:
            torch.cuda.synchronize(device)
        with torch.cuda.stream(both[0]), torch.cuda.stream(both[1]):
            with torch.cuda.device(target):
                torch.cuda._sleep(200_000_000)
                dst.fill_(7)  # which the copy must not come before
            with torch.cuda.device(source):
                torch.cuda._sleep(100_000_000)
                src.copy_(new)
                multikv.swap_blocks(src, dst, 1 << 14, mapping)
            with torch.cuda.device(target):
                seen.copy_(dst)
        for device in two_gpus:
            torch.cuda.synchronize(device)
        assert torch.equal(seen.cpu().view(64, -1), expected)


def test_layers_on_two_gpus(two_gpus):
    call = layers_arguments(two_gpus[0])
    call["src"][2] = call["src"][2].to(two_gpus[1])
    with pytest.raises(RuntimeError) as caught:
        run("swap_blocks_layers", call)
    assert str(caught.value) == "swap_blocks_layers: src[2]: expected device cuda:0 like src[0], got cuda:1"


def test_strategy_is_kept(gpu, strategy):
    assert platforms.swap_strategy() == strategy
