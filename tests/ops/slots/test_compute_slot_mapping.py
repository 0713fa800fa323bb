"""compute_slot_mapping against the reference."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import multikv
from tests.support.calls.slots import slots_arguments
from tests.support.comparison import check, run
from tests.support.parameters import INDEX_DTYPES, short

OP = "compute_slot_mapping"


@pytest.mark.parametrize("slot_dtype", INDEX_DTYPES, ids=short)
@pytest.mark.parametrize("table_dtype", INDEX_DTYPES, ids=short)
@pytest.mark.parametrize("index_dtype", INDEX_DTYPES, ids=short)
def test_index_dtypes(device, index_dtype, table_dtype, slot_dtype):
    check(
        OP,
        slots_arguments(
            device,
            index_dtype=index_dtype,
            table_dtype=table_dtype,
            slot_dtype=slot_dtype,
            table_rows=(1, 0, 3, 5, 2),
            share_of_negatives=0.1,
        ),
    )


@pytest.mark.parametrize("block_sizes", [(1,), (16,), (7, 100), (1, 2, 4, 1024)], ids=short)
@pytest.mark.parametrize("shuffled", [False, True], ids=["ascending", "shuffled"])
def test_block_sizes(device, block_sizes, shuffled):
    check(OP, slots_arguments(device, block_sizes=block_sizes, shuffled=shuffled))


# A launch on a GPU takes 40 groups.
@pytest.mark.parametrize("groups", [1, 2, 3, 39, 40, 41, 100])
def test_groups(device, groups):
    check(OP, slots_arguments(device, lengths=(3, 20), block_sizes=[8 * (1 + g % 5) for g in range(groups)]))


@pytest.mark.parametrize("world, interleave", [(1, 4), (2, 1), (3, 4), (4, 16), (8, 2)])
def test_context_parallelism(device, world, interleave):
    for rank in range(world):
        ranks = {"cp_world": world, "cp_rank": rank, "cp_interleave": interleave}
        for shuffled in (False, True):
            check(OP, slots_arguments(device, block_sizes=(16, 48), shuffled=shuffled, **ranks))


def test_ranks_share_the_positions(device):
    """Each position has a slot on exactly one rank, and the ranks together use each slot of a block once per rank."""
    block_size, world, interleave = 8, 4, 2
    table = torch.tensor([[3, 5, 0]], dtype=torch.int32, device=device)
    positions = torch.arange(3 * block_size * world, device=device)
    slots = []
    for rank in range(world):
        out = torch.empty(len(positions), dtype=torch.int64, device=device)
        bounds = torch.tensor([0, len(positions)], device=device)
        multikv.compute_slot_mapping([table], bounds, positions, [out], [block_size], None, world, rank, interleave)
        slots.append(out.cpu())
    stacked = torch.stack(slots)
    assert ((stacked >= 0).sum(0) == 1).all()
    expected = (torch.tensor([[3], [5], [0]]) * block_size + torch.arange(block_size)).flatten()
    for of_rank in stacked:
        assert torch.equal(of_rank[of_rank >= 0], expected)


@pytest.mark.parametrize("sequences", [1, 2, 30, 31, 32, 33, 200, 1100, 5000])
def test_many_sequences(device, sequences):
    lengths = torch.randint(4, (sequences,)).tolist()
    rows = torch.randperm(sequences + 3)[:sequences].tolist()
    check(OP, slots_arguments(device, lengths=lengths, block_sizes=(16,), table_rows=rows, rows=sequences + 3))


@pytest.mark.parametrize("sequences", [1, 2, 31, 33, 200, 3000])
@pytest.mark.parametrize("length", [1, 2, 40])
def test_sequences_of_equal_length(device, sequences, length):
    """All or nearly all: a GPU guesses the sequence of a token as if all were equally long."""
    for first_token, padding in ((0, 0), (0, 1), (1, 0)):
        lengths = [length] * min(sequences, 6000 // length)
        check(OP, slots_arguments(device, lengths=lengths, first_token=first_token, padding=padding))
        lengths[len(lengths) // 2] += 1
        check(OP, slots_arguments(device, lengths=lengths, first_token=first_token, padding=padding))


@pytest.mark.parametrize("empty", [33, 64, 100])
def test_many_empty_sequences(device, empty):
    check(OP, slots_arguments(device, lengths=(3, *[0] * empty, 50, *[0] * empty), table_rows=None))


@pytest.mark.parametrize("options", [{"padding": (5, 3)}, {"order": (0, 1), "offset": 1}])
def test_strides(device, options):
    call = slots_arguments(device, table_options=options)
    call["slot_mappings"] = [x[1:] for x in call["slot_mappings"]]
    check(OP, call)


def test_tokens_of_no_sequence(device):
    call = slots_arguments(device, lengths=(3,), first_token=40, padding=100)
    check(OP, call)
    assert call["slot_mappings"][0].ge(0).sum() == 3


def test_dummy_sequences_have_no_slots(device):
    """Neither are their positions looked at."""
    call = slots_arguments(device, lengths=(3, 4, 5), table_rows=(-1, 0, -(2**31)), first_token=0)
    call["positions"][:3] = 2**31 - 1
    check(OP, call)
    assert call["slot_mappings"][1].ge(0).sum() == 4


def test_nothing_is_looked_at_for_other_ranks(device):
    """Their positions may lie past the table, and so may negative ones."""
    call = slots_arguments(device, lengths=(8,), starts=(0,), block_sizes=(4,), cp_world=2, cp_rank=1)
    call["positions"][2:10] = torch.tensor([0, 2**30, 1, 3, -(2**31), 5, 7, 2**31 - 2], device=device)
    check(OP, call)
    assert call["slot_mappings"][0][2:10].ge(0).tolist() == [False, False, True, True, False, True, True, False]


def test_the_largest_slots(device):
    """The last slot that fits int32, and int64, in blocks of odd sizes."""
    for dtype, most in ((torch.int32, 2**31 - 1), (torch.int64, 2**63 - 1)):
        for block_size in (1, 7, 64):
            block, offset = divmod(most, block_size)
            table = torch.tensor([[block]], device=device)
            slots = torch.empty(1, dtype=dtype, device=device)
            bounds, position = torch.tensor([0, 1], device=device), torch.tensor([offset], device=device)
            run(OP, {"t": [table], "b": bounds, "p": position, "s": [slots], "sizes": [block_size]})
            assert slots.item() == most


def test_huge_numbers(device):
    """A column that stands for more positions than there are: every position is in column 0."""
    position = torch.tensor([2**63 - 1, 2**62], device=device)
    table, bounds = torch.zeros(1, 1, dtype=torch.int64, device=device), torch.tensor([0, 2], device=device)
    slots = torch.empty(2, dtype=torch.int64, device=device)
    world = 2**61
    multikv.compute_slot_mapping([table], bounds, position, [slots], [8], None, world, 2**61 - 1, 1)
    assert slots.tolist() == [3, -1]


@st.composite
def calls(draw):
    lengths = draw(st.lists(st.integers(0, 50), max_size=40))
    world = draw(st.sampled_from([1, 1, 2, 3, 8]))
    interleave = draw(st.sampled_from([1, 2, 4]))
    return {
        "lengths": lengths,
        "block_sizes": draw(st.lists(st.sampled_from([4, 8, 12, 16, 64]), min_size=1, max_size=4)),
        "table_rows": draw(
            st.none() | st.lists(st.integers(-2, 50), min_size=len(lengths), max_size=len(lengths), unique=True)
        ),
        "first_token": draw(st.sampled_from([0, 0, 5, 40])),
        "padding": draw(st.sampled_from([0, 3, 70])),
        "cp_world": world,
        "cp_rank": draw(st.integers(0, world - 1)),
        "cp_interleave": interleave,
        "share_of_negatives": draw(st.sampled_from([0.0, 0.2])),
        "shuffled": draw(st.booleans()),
        "table_dtype": draw(st.sampled_from(INDEX_DTYPES)),
        "slot_dtype": draw(st.sampled_from(INDEX_DTYPES)),
        "index_dtype": draw(st.sampled_from(INDEX_DTYPES)),
    }


@given(options=calls())
def test_any_call(device, options):
    check(OP, slots_arguments(device, **options))
