"""zero_blocks against its reference."""

from __future__ import annotations

import pytest
import torch

from tests.support.calls.blocks import ORDERS, ZERO, zero_arguments
from tests.support.comparison import check
from tests.support.parameters import INDEX_DTYPES, short
from tests.support.tensors import embed

LISTS = ("device", "cpu")


@pytest.mark.parametrize("first_token", [None, "any"])
@pytest.mark.parametrize("order", ORDERS)
def test_orders_in_memory(device, order, first_token):
    for options in ({}, {"padding": (1, 1, 0, 8)}, {"padding": (0, 0, 3, 1), "offset": 1}):
        check(ZERO, zero_arguments(device, cache=order, first_token=first_token, **options))


@pytest.mark.parametrize("entry", [(), (1,), (7,), (576,), (3, 5, 2)], ids=short)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float8_e5m2, torch.bfloat16, torch.float64], ids=short)
def test_entries(device, dtype, entry):
    for offset in (0, 1, 4):
        for first_token in (None, "any"):
            check(ZERO, zero_arguments(device, dtype=dtype, entry=entry, offset=offset, first_token=first_token))


@pytest.mark.parametrize("first_token", [None, "any"])
@pytest.mark.parametrize("lists", LISTS)
@pytest.mark.parametrize("index_dtype", INDEX_DTYPES, ids=short)
def test_planes_of_different_kinds(device, index_dtype, lists, first_token):
    check(ZERO, zero_arguments(device, cache="mixed", index_dtype=index_dtype, lists=lists, first_token=first_token))


def test_lists_of_different_dtypes(device):
    call = zero_arguments(device)
    check(ZERO, call | {"first_token": call["first_token"].int()})


def test_planes_of_different_block_sizes(device):
    call = zero_arguments(device, first_token=None)
    call["caches"][1] = embed((13, 2, 16, 4, 8), torch.bfloat16, device)
    call["caches"].append(embed((13, 0, 3), torch.bfloat16, device))
    check(ZERO, call)


def test_any_first_token(device):
    """A first token past the end zeroes nothing, however large it is, and that of padding is not looked at."""
    first_token = [4, 5, 2**40, 2**63 - 1, 3, -5]
    for lists in LISTS:
        check(ZERO, zero_arguments(device, block_ids=[0, 1, 2, 3, 4, -1], first_token=first_token, lists=lists))


def test_a_block_twice(device):
    for lists in LISTS:
        check(ZERO, zero_arguments(device, block_ids=[3, 5, 3], first_token=[2, 0, 3], lists=lists))


@pytest.mark.parametrize("lists", LISTS)
@pytest.mark.parametrize("layers", [1, 128, 300])
def test_number_of_planes(device, layers, lists):
    check(ZERO, zero_arguments(device, layers=layers, entry=(3,), lists=lists))


@pytest.mark.parametrize("lists", LISTS)
def test_many_blocks(device, lists):
    check(ZERO, zero_arguments(device, layers=2, blocks=10_000, block_size=2, entry=(5,), lists=lists))


def test_large_blocks(device):
    for cache in ("NHD", "HND"):
        check(ZERO, zero_arguments(device, cache=cache, block_size=64, entry=(8, 104)))
