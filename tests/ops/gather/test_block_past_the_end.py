"""An id one past the end is no block and no row: a CPU refuses the call, a GPU leaves the output's rows.

Behind every cache lies one more block, so that a read of it is seen and touches no foreign memory.
"""

from __future__ import annotations

import pytest
import torch

from tests.support.arguments import copy_of, tensors_of
from tests.support.calls import CALLS
from tests.support.comparison import assert_same_bytes, check, run
from tests.support.tensors import pinned

CACHES = ("src_cache", "kv_cache", "host_cache", "device_row_ids", "host_row_ids")
# One sequence goes another way on a GPU.
LENGTHS = {"one_sequence": (40,), "sequences": (20, 0, 33)}
# Calls of each op that reads sequences, with what each element of the cache may be.
GATHERS = ("gather", "dequant", "dequant-auto", "upconvert", "indexer_gather")


def with_more_behind(x):
    """The same tensor in memory that goes on with a copy of its first block or row."""
    longer = torch.cat([x, x[:1]])
    return (pinned(longer) if x.is_pinned() else longer)[:-1]


def make(name, device, lengths, **options):
    call = CALLS[name].arguments(device, lengths=lengths, starts=None, **options) if name != "indexer_gather" else None
    call = call or CALLS[name].arguments(device, lengths=lengths)
    return call | {cache: with_more_behind(call[cache]) for cache in CACHES if call.get(cache) is not None}


def refuse_or_skip(op, call, check_indices):
    check_indices(False)
    if any(x.is_cuda for x in tensors_of(call).values()):
        check(op, call, bad_indices="skip")
        return
    before = copy_of(call)
    with pytest.raises(IndexError):
        run(op, call)
    assert_same_bytes(call, before)


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("name", GATHERS)
def test_block_past_the_end(device, check_indices, name, lengths):
    for row, column in ((0, 0), (0, 1), (-1, 2)):
        call = make(name, device, LENGTHS[lengths])
        cache = call["kv_cache" if name == "indexer_gather" else "src_cache"]
        call["block_table"][row, column] = len(cache)
        refuse_or_skip(CALLS[name].op, call, check_indices)


@pytest.mark.parametrize("what", ["block", "device_row", "host_row"])
@pytest.mark.parametrize("lengths", LENGTHS)
def test_rows_of_two_caches_past_the_end(device, check_indices, lengths, what):
    """One past the end is a logical block, a row of the cache on the device, or a row of the cache on the host."""
    call = make("upconvert-host", device, LENGTHS[lengths], host_rows=50)
    num_blocks, block_size = call["src_cache"].shape[:2]
    if what == "block":
        call["block_table"][0, 0] = len(call["device_row_ids"]) // block_size
    row = int(call["block_table"][0, 1]) * block_size + 3
    if what == "device_row":
        call["device_row_ids"][row] = num_blocks * block_size
    if what == "host_row":
        call["device_row_ids"][row], call["host_row_ids"][row] = -1, len(call["host_cache"])
    refuse_or_skip("cp_gather_and_upconvert_fp8_kv_cache", call, check_indices)
