"""cp_gather_cache against its reference. All memory is compared, so that a stray byte anywhere is found."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.support.calls.gather import gather_arguments
from tests.support.comparison import check, run
from tests.support.parameters import INDEX_DTYPES, short
from tests.support.tensors import embed

OP = "cp_gather_cache"

DTYPES = (
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.float8_e4m3fnuz,
    torch.complex64,
    torch.complex128,
)


@pytest.mark.parametrize("entry", [(), (1,), (3,), (64,), (576,), (2, 64), (8, 128), (2, 3, 5)], ids=short)
@pytest.mark.parametrize("dtype", DTYPES, ids=short)
def test_dtypes_and_entries(device, dtype, entry):
    check(OP, gather_arguments(device, dtype=dtype, entry=entry))


@pytest.mark.parametrize("entry_bytes", [*range(1, 36), 63, 64, 65, 127, 320, 511, 656, 1024, 1152, 4097, 40_000])
def test_entry_bytes(device, entry_bytes):
    check(OP, gather_arguments(device, dtype=torch.uint8, entry=(entry_bytes,)))


@pytest.mark.parametrize("offset", [1, 2, 3, 4, 8])
def test_unaligned_starts(device, offset):
    for entry in ((16,), (64,), (576,)):
        for ends in ({"src_options": {"offset": offset}}, {"dst_options": {"offset": offset}}):
            check(OP, gather_arguments(device, dtype=torch.uint8, entry=entry, **ends))


@pytest.mark.parametrize("block_size", [1, 3, 16, 64, 128])
@pytest.mark.parametrize(
    "lengths", [(1,), (0,), (0, 0, 0), (257,), (7, 0, 1, 33, 0), (0, 0, 40), (40, 0, 0), (16, 16), (2,) * 40], ids=short
)
def test_lengths_and_block_sizes(device, lengths, block_size):
    check(OP, gather_arguments(device, lengths=lengths, block_size=block_size))


@pytest.mark.parametrize("index_dtype", INDEX_DTYPES, ids=short)
@pytest.mark.parametrize("starts", [(0, 0, 0), (16, 32, 0), (5, 15, 17), (1, 100, 31)], ids=short)
def test_sequences_that_start_later(device, starts, index_dtype):
    for lengths in ((20, 1, 33), (0, 50, 16)):
        check(OP, gather_arguments(device, lengths=lengths, starts=starts, index_dtype=index_dtype))


def test_each_index_has_its_own_width(device):
    for odd_one in ("block_table", "cu_seq_lens", "seq_starts"):
        call = gather_arguments(device, lengths=(20, 7), starts=(3, 0), index_dtype=torch.int64)
        call[odd_one] = call[odd_one].int()
        check(OP, call)


def test_many_tiny_sequences(device):
    lengths = torch.randint(0, 4, (1000,)).tolist()
    starts = torch.randint(0, 50, (1000,)).tolist()
    check(OP, gather_arguments(device, lengths=lengths, block_size=4, spare_columns=0))
    check(OP, gather_arguments(device, lengths=lengths, starts=starts, block_size=4))


def test_many_empty_sequences_around_a_long_one(device):
    check(OP, gather_arguments(device, lengths=[0] * 300 + [1000] + [0] * 300, entry=(8,)))


def test_long_sequences(device):
    check(OP, gather_arguments(device, lengths=(3000, 1, 1500), blocks=300, entry=(4, 128)))


def test_batch_of_none(device):
    call = gather_arguments(device, lengths=())
    assert call["block_table"].shape[0] == 0
    check(OP, call)
    check(OP, call | {"block_table": torch.empty(0, 0, dtype=torch.int32, device=device)})


def test_output_of_no_rows(device):
    check(OP, gather_arguments(device, lengths=(0, 0), surplus_rows=0))


@pytest.mark.parametrize("entry", [(0,), (2, 0), (0, 8)], ids=short)
def test_empty_entries(device, entry):
    check(OP, gather_arguments(device, entry=entry))


def test_rows_outside_the_bounds_are_left(device):
    check(OP, gather_arguments(device, first_row=5, surplus_rows=100))


@pytest.mark.parametrize("columns", [0, 1, 2, 3])
def test_rows_past_the_tables_width_are_left(device, columns):
    for starts in (None, (0, 60, 7, 200)):
        call = gather_arguments(device, lengths=(50, 3, 40, 10), starts=starts)
        call["block_table"] = call["block_table"][:, :columns].contiguous()
        check(OP, call)


def test_start_far_past_the_table(device):
    call = gather_arguments(device, lengths=(5, 6), starts=(0, 3), index_dtype=torch.int64)
    call["seq_starts"][1] = torch.iinfo(torch.int64).max
    check(OP, call)


def test_padded_table_rows(device):
    call = gather_arguments(device, lengths=(50, 3, 40))
    wide = torch.full((3, 30), -5, dtype=torch.int32, device=device)
    columns = call["block_table"].shape[1]
    wide[:, 7 : 7 + columns] = call["block_table"]
    call["block_table"] = wide[:, 7 : 7 + columns]
    check(OP, call)


def test_one_table_row_for_all(device):
    call = gather_arguments(device, lengths=(20, 20, 7))
    call["block_table"] = call["block_table"][:1].expand(3, -1)
    check(OP, call)


def test_blocks_shared_between_sequences(device):
    check(OP, gather_arguments(device, lengths=(40, 40, 40), blocks=1))


# Memory order, padding: of the cache [N, B, h, d] and of the output [total, h, d].
CACHES = {
    "NHD": {},
    "HND": {"order": (0, 2, 1, 3)},
    "padded_entries": {"padding": (0, 0, 1, 0)},
    "padded_heads": {"padding": (0, 0, 0, 3)},
    "padded_blocks": {"padding": (0, 5, 0, 0)},
    "heads_outermost": {"order": (2, 0, 1, 3)},
    "slots_outermost": {"order": (1, 0, 2, 3)},
}
OUTPUTS = {
    "dense": {},
    "padded_rows": {"padding": (0, 1, 0)},
    "padded_heads": {"padding": (0, 0, 3)},
    "heads_first": {"order": (1, 0, 2)},
}


PADDINGS = tuple(itertools.product((0, 1), repeat=3))  # of an entry's three dimensions
ORDERS = tuple(itertools.permutations(range(3)))


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("cache", CACHES)
def test_layouts(device, cache, output):
    for dtype in (torch.bfloat16, torch.uint8):
        for entry in ((3, 16), (1, 5), (4, 1)):
            ends = {"src_options": CACHES[cache], "dst_options": OUTPUTS[output]}
            check(OP, gather_arguments(device, dtype=dtype, entry=entry, **ends))


@pytest.mark.parametrize("cache", PADDINGS, ids=short)
def test_entries_padded_anywhere(device, cache):
    """Dimensions that follow each other in the cache need not do so in the output, nor the other way round."""
    for output in PADDINGS:
        ends = {"src_options": {"padding": (0, 0, *cache)}, "dst_options": {"padding": (0, *output)}}
        check(OP, gather_arguments(device, dtype=torch.uint8, entry=(2, 3, 4), lengths=(5, 30), **ends))


@pytest.mark.parametrize("order", ORDERS, ids=short)
def test_entries_in_any_order(device, order):
    for output in ORDERS:
        ends = {
            "src_options": {"order": (0, 1, *(2 + d for d in order), 5)},
            "dst_options": {"order": (0, *(1 + d for d in output), 4)},
        }
        check(OP, gather_arguments(device, entry=(2, 3, 4, 8), lengths=(5, 30), **ends))


def test_keys_of_an_interleaved_cache(device):
    call = gather_arguments(device, entry=(2, 64))
    both = embed((9, 2, 16, 2, 64), torch.bfloat16, device)
    for half in both.unbind(1):
        check(OP, call | {"src_cache": half})


def test_part_of_every_entry(device):
    call = gather_arguments(device, entry=(64,))
    check(OP, call | {"src_cache": embed((9, 16, 576), torch.bfloat16, device)[..., 512:]})


def test_one_slot_for_all(device):
    call = gather_arguments(device, entry=(2, 64))
    check(OP, call | {"src_cache": embed((9, 1, 2, 64), torch.bfloat16, device).expand(9, 16, 2, 64)})


def test_four_strided_dimensions(device):
    every_second = {"padding": (0, 0, *[1] * 5)}
    call = gather_arguments(device, entry=(2, 3, 2, 3, 4), src_options=every_second, dst_options={"padding": [1] * 6})
    check(OP, call)


@st.composite
def calls(draw):
    """Any entries, memory orders, paddings, offsets, lengths and starts."""
    rank = draw(st.integers(0, 3))
    entry = [draw(st.integers(1, 9)) for _ in range(rank)]
    if entry and draw(st.booleans()):
        entry[-1] = draw(st.sampled_from([16, 32, 64, 100, 128]))
    lengths = draw(st.lists(st.integers(0, 60), max_size=8))
    starts = draw(st.none() | st.lists(st.integers(0, 60), min_size=len(lengths), max_size=len(lengths)))

    def options(dims):
        *outer, last = range(dims)
        padding = draw(st.none() | st.lists(st.integers(0, 3), min_size=dims, max_size=dims))
        return {"order": (*draw(st.permutations(outer)), last), "padding": padding, "offset": draw(st.integers(0, 8))}

    return {
        "dtype": draw(st.sampled_from(DTYPES)),
        "entry": entry,
        "lengths": lengths,
        "starts": starts,
        "blocks": draw(st.integers(1, 9)),
        "block_size": draw(st.integers(1, 20)),
        "spare_columns": draw(st.integers(-2, 2)),
        "surplus_rows": draw(st.integers(0, 3)),
        "first_row": draw(st.sampled_from([0, 0, 4])),
        "index_dtype": draw(st.sampled_from(INDEX_DTYPES)),
        "src_options": options(rank + 2),
        "dst_options": options(rank + 1),
    }


@given(settings=calls(), seed=st.integers(0, 2**32))
def test_any_call(device, settings, seed):
    torch.manual_seed(seed)
    check(OP, gather_arguments(device, **settings))


def test_blocks_of_more_slots_than_64_bits_count(device):
    """No memory is that large, but a cache may be expanded."""
    cache = torch.arange(4.0, device=device).expand(1, 2**60, 4)
    table, bounds = torch.zeros(1, 8, dtype=torch.int64, device=device), torch.tensor([0, 2], device=device)
    rows = torch.zeros(3, 4, device=device)
    run(
        OP,
        {
            "src_cache": cache,
            "dst": rows,
            "table": table,
            "bounds": bounds,
            "batch_size": 1,
            "seq_starts": torch.tensor([2**62 - 1], device=device),
        },
    )
    assert rows.tolist() == [[0, 1, 2, 3], [0, 1, 2, 3], [0, 0, 0, 0]]
