"""move_tokens against its reference."""

from __future__ import annotations

import pytest
import torch

from tests.support.calls.moves import OVERLAPPING, move_arguments, random_pairs
from tests.support.comparison import check
from tests.support.parameters import INDEX_DTYPES, short
from tests.support.tensors import embed

OP = "move_tokens"
PLACES = ({}, {"slots_place": "cpu"}, {"dst": "pinned"}, {"src": "pinned"}, {"src": "pinned", "slots_place": "cpu"})


def check_places(device, **options):
    for place in PLACES if device.type == "cuda" else ({},):
        check(OP, move_arguments(device, **place, **options))


def check_one_pool(device, **options):
    for place in ({}, {"slots_place": "cpu"}) if device.type == "cuda" else ({},):
        check(OP, move_arguments(device, same=True, overlap=True, **place, **options))


@pytest.mark.parametrize("index_dtype", INDEX_DTYPES, ids=short)
def test_tokens_of_many_shapes(device, index_dtype):
    check_places(device, index_dtype=index_dtype)


@pytest.mark.parametrize("block_sizes", [(1, 1), (1, 16), (16, 1), (7, 16)])
def test_block_sizes(device, block_sizes):
    pairs = random_pairs(40, 20 * block_sizes[0], 45 * block_sizes[1])
    check_places(device, block_sizes=block_sizes, src_blocks=20, dst_blocks=45, pairs=pairs)


def test_a_pool_without_blocks(device):
    """Slots of a flat pool [slots, heads, head_size]."""
    call = move_arguments(device, pairs=random_pairs(30, 50, 40), tokens=((3, 8),) * 2)
    call["src"] = [embed((50, 3, 8), torch.bfloat16, device).unsqueeze(1) for _ in range(2)]
    call["dst"] = [embed((40, 3, 8), torch.bfloat16, device).unsqueeze(1) for _ in range(2)]
    check(OP, call)


@pytest.mark.parametrize(
    "shape, dtype", [((1,), torch.uint8), ((33,), torch.uint8), ((8, 128), torch.bfloat16), ((20_000,), torch.float32)]
)
def test_sizes_of_tokens(device, shape, dtype):
    check_places(device, tokens=(shape,) * 2, dtypes=(dtype,))
    check_one_pool(device, pairs=OVERLAPPING, tokens=(shape,) * 2, dtypes=(dtype,))


@pytest.mark.parametrize("offset", [1, 2, 8])
def test_unaligned_starts(device, offset):
    options = {"offset": offset}
    check_places(device, tokens=((4, 16),), dtypes=(torch.uint8,), src_options=options, dst_options={"offset": 3})


# Dimensions [blocks, block_size, 2, 3, 4] from the outermost to the innermost, in src and in dst.
@pytest.mark.parametrize("src", [(0, 1, 2, 3, 4), (0, 2, 1, 3, 4), (3, 0, 2, 1, 4)])
@pytest.mark.parametrize("dst", [(0, 1, 2, 3, 4), (2, 3, 0, 1, 4), (0, 3, 1, 2, 4)])
def test_strides(device, src, dst):
    options = {"tokens": ((2, 3, 4),) * 2, "dtypes": (torch.bfloat16,)}
    check_places(device, src_options={"order": src}, dst_options={"order": dst}, **options)


def test_tokens_of_many_dimensions(device):
    order = (0, 1, 6, 2, 4, 3, 5)
    options = {"tokens": ((2, 3, 2, 2, 5),), "dtypes": (torch.int16,)}
    call = move_arguments(device, src_options={"order": (0, 1, 4, 5, 3, 2, 6)}, **options)
    check(OP, call)
    call = move_arguments(device, tokens=((2, 3, 2, 2, 1),), dst_options={"order": order})
    check(OP, call)


def test_many_tokens(device):
    """Several launches for slots on the CPU."""
    pairs = random_pairs(7000, 9000, 8000)
    check_places(
        device, pairs=pairs, src_blocks=2250, dst_blocks=1334, tokens=((6,), (2, 40)), dtypes=(torch.bfloat16,)
    )


@pytest.mark.parametrize("planes", [1, 250])
def test_number_of_planes(device, planes):
    check_places(device, tokens=((3, 8),) * planes, dtypes=(torch.bfloat16,))
    check_one_pool(device, pairs=OVERLAPPING, tokens=((3, 8),) * planes, dtypes=(torch.bfloat16,))


# -- overlap -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 33, 1000, 4096])
@pytest.mark.parametrize("kind", ["cycle", "rotation", "swaps", "random", "shift"])
def test_all_is_read_before_anything_is_written(device, kind, count):
    """On a GPU, a cycle of 4096 slots that are on the CPU needs several launches."""
    slots = torch.randperm(4200)[:count]
    sources = {
        "cycle": slots.roll(1),
        "rotation": slots.roll(count // 3),
        "swaps": slots.view(-1, 2).flip(1).flatten() if count % 2 == 0 else slots,
        "random": slots[torch.randint(count, (count,))],
        "shift": slots + 5,
    }[kind]
    pairs = torch.stack([sources, slots], 1).tolist()
    options = {"tokens": ((2, 9), (5,)), "dtypes": (torch.float16, torch.uint8)}
    check_one_pool(device, pairs=pairs, src_blocks=1052, **options)


@pytest.mark.parametrize("place", ["device", "cpu"])
def test_overlap_between_pools(device, place):
    check(OP, move_arguments(device, overlap=True, slots_place=place))


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (2, 0, 1, 3)])
def test_many_pairs_between_pools(device, order):
    """On a GPU, pairs on the CPU need several launches. In the first order, src and dst interleave in memory."""
    pool = embed((1100, 4, 4, 6), torch.bfloat16, device, order=order)
    src_slots, dst_slots = torch.tensor(random_pairs(4096, 4400, 4400)).t().contiguous()
    planes = {"src": [pool[:, :, :2]], "dst": [pool[:, :, 2:]]}
    check(OP, planes | {"src_slots": src_slots, "dst_slots": dst_slots, "overlap": True})


@pytest.mark.parametrize("count", [28, 4000])
@pytest.mark.parametrize("place", ["device", "cpu"])
def test_pools_that_share_memory(device, count, place):
    """Slot i of dst is slot i + 1 of src."""
    memory = [embed((count + 2, 2, 8), torch.bfloat16, device) for _ in range(2)]
    slots = torch.arange(count, device=device if place == "device" else "cpu")
    planes = {"src": [x[:-1].unsqueeze(1) for x in memory], "dst": [x[1:].unsqueeze(1) for x in memory]}
    check(OP, planes | {"src_slots": slots, "dst_slots": slots, "overlap": True})


@pytest.mark.parametrize("place", ["device", "cpu"])
@pytest.mark.parametrize("kind", ["cycle", "random"])
def test_one_pool_with_two_block_sizes(device, place, kind):
    count, slots = 3000, torch.randperm(4200)[:3000]
    sources = slots.roll(1) if kind == "cycle" else slots[torch.randint(count, (count,))]
    memory = [embed((4200, heads, 8), torch.bfloat16, device) for heads in (3, 3, 2)]
    call = {"src": [x.unsqueeze(1) for x in memory], "dst": [x.unflatten(0, (-1, 7)) for x in memory]}
    at = device if place == "device" else "cpu"
    check(OP, call | {"src_slots": sources.to(at), "dst_slots": slots.to(at), "overlap": True})


def test_the_last_of_duplicates_wins(device):
    if device.type == "cuda":
        pytest.skip("a GPU keeps parts of both")
    pairs = [(i % 36, (i * 7) % 20) for i in range(300)]
    check(OP, move_arguments(device, pairs=pairs, tokens=((8, 128),) * 4, dtypes=(torch.bfloat16,)))
    check(OP, move_arguments(device, pairs=[(i % 20, j % 20) for i, j in pairs], same=True, overlap=True))
