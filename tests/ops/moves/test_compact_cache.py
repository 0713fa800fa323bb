"""compact_cache against its reference."""

from __future__ import annotations

import pytest
import torch

from tests.support.calls.moves import ORDERS, compact_arguments
from tests.support.comparison import check
from tests.support.parameters import INDEX_DTYPES, short

OP = "compact_cache"


@pytest.mark.parametrize("keep_dim", [1, 2, 3])
@pytest.mark.parametrize("order", ORDERS)
def test_orders_and_kinds_of_keep(device, order, keep_dim):
    check(OP, compact_arguments(device, order=order, keep_dim=keep_dim))


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("index_dtype", INDEX_DTYPES, ids=short)
def test_groups_of_planes(device, index_dtype, groups):
    check(OP, compact_arguments(device, keep_dim=3, groups=groups, index_dtype=index_dtype))


@pytest.mark.parametrize("block_size", [1, 3, 16])
def test_block_sizes(device, block_size):
    check(OP, compact_arguments(device, block_size=block_size, blocks=60))


@pytest.mark.parametrize("first, spare", [(0, 3), (5, 0), (2, 1)])
def test_elements_of_no_sequence(device, first, spare):
    check(OP, compact_arguments(device, first=first, spare=spare))


def test_starts(device):
    """The tokens before a start stay."""
    for keep_dim in (1, 2, 3):
        check(OP, compact_arguments(device, starts=(3, 0, 0, 16), kept=(6, 5, 0, 13), keep_dim=keep_dim))


def test_nothing_moves(device):
    call = compact_arguments(device, lengths=(17, 5), kept=(17, 5))
    before = [x.clone() for x in call["caches"]]
    check(OP, call)
    for x, y in zip(call["caches"], before, strict=True):
        assert torch.equal(x.view(torch.uint8), y.view(torch.uint8))


@pytest.mark.parametrize(
    "head_size, dtype", [(1, torch.uint8), (5, torch.uint8), (128, torch.bfloat16), (20_000, torch.float32)]
)
def test_head_sizes(device, head_size, dtype):
    check(OP, compact_arguments(device, head_sizes=(head_size,) * 2, dtypes=(dtype,), groups=1, keep_dim=3))


def test_unaligned_starts_and_padding(device):
    for offset in (1, 4):
        options = {"offset": offset, "padding": (0, 0, 1, 3)}
        check(OP, compact_arguments(device, head_sizes=(16,) * 2, dtypes=(torch.uint8,), cache_options=options))


@pytest.mark.parametrize("head_size", [1, 64, 128])
def test_long_sequences(device, head_size):
    """Many chunks of a thread block, whose reads reach over what earlier ones have written."""
    options = {"lengths": (5000, 3000), "kept": (4000, 100), "blocks": 520, "block_size": 16, "heads": 2}
    for keep_dim in (1, 3):
        sizes = {"head_sizes": (head_size,) * 2, "dtypes": (torch.bfloat16,)}
        check(OP, compact_arguments(device, keep_dim=keep_dim, **sizes, **options))


def test_one_token_is_dropped(device):
    """Every later token moves by one slot."""
    call = compact_arguments(device, lengths=(3000,), kept=(2999,), blocks=190, block_size=16)
    call["keep"].copy_(torch.cat([torch.arange(1), torch.arange(2, 3000)]))
    check(OP, call)


@pytest.mark.parametrize("sequences", [1, 300])
def test_number_of_sequences(device, sequences):
    options = {"lengths": (7,) * sequences, "kept": (3,) * sequences, "blocks": 2 * sequences + 1}
    check(OP, compact_arguments(device, **options))


def test_number_of_planes(device):
    check(OP, compact_arguments(device, head_sizes=(8,) * 300, dtypes=(torch.bfloat16,), keep_dim=3))
