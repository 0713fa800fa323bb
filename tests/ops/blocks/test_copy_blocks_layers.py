"""copy_blocks_layers against its reference."""

from __future__ import annotations

import pytest
import torch

from tests.support.calls.blocks import COPY, ORDERS, copy_arguments, make_caches, random_pairs
from tests.support.comparison import check
from tests.support.parameters import INDEX_DTYPES, short
from tests.support.tensors import embed

LISTS = ("device", "cpu")


@pytest.mark.parametrize("num_tokens", [-1, 0, 1, 3, 4])
@pytest.mark.parametrize("order", ORDERS)
def test_orders_in_memory(device, order, num_tokens):
    for options in ({}, {"padding": (1, 1, 0, 8)}, {"padding": (0, 0, 3, 1), "offset": 1}):
        check(COPY, copy_arguments(device, cache=order, num_tokens=num_tokens, **options))


@pytest.mark.parametrize("entry", [(), (1,), (7,), (576,), (3, 5, 2)], ids=short)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float8_e5m2, torch.bfloat16, torch.float64], ids=short)
def test_entries(device, dtype, entry):
    for offset in (0, 1, 4):
        for num_tokens in (-1, 2):
            check(COPY, copy_arguments(device, dtype=dtype, entry=entry, offset=offset, num_tokens=num_tokens))


@pytest.mark.parametrize("num_tokens", [-1, 2])
@pytest.mark.parametrize("lists", LISTS)
@pytest.mark.parametrize("index_dtype", INDEX_DTYPES, ids=short)
def test_planes_of_different_kinds(device, index_dtype, lists, num_tokens):
    check(COPY, copy_arguments(device, cache="mixed", index_dtype=index_dtype, lists=lists, num_tokens=num_tokens))


def test_planes_of_different_block_sizes(device):
    """Dimension 1 need not be that of the tokens if whole blocks are copied."""
    call = copy_arguments(device)
    call["caches"][1] = embed((13, 2, 16, 4, 8), torch.bfloat16, device)
    call["caches"].append(embed((13, 0, 3), torch.bfloat16, device))
    check(COPY, call)


@pytest.mark.parametrize("lists", LISTS)
@pytest.mark.parametrize("layers", [1, 128, 300])
def test_number_of_planes(device, layers, lists):
    """300 planes need several launches where the parameters of a kernel are limited to 4 KB."""
    check(COPY, copy_arguments(device, layers=layers, entry=(3,), lists=lists))


def test_more_planes_than_one_launch_takes(gpu):
    check(COPY, copy_arguments(gpu, layers=2500, entry=(3,)))


@pytest.mark.parametrize("lists", LISTS)
def test_many_pairs(device, lists):
    """From a list in the memory of the host, the kernel is launched several times."""
    options = {"layers": 2, "blocks": 10_000, "block_size": 2, "entry": (5,)}
    check(COPY, copy_arguments(device, pairs=random_pairs(4900, 10_000), lists=lists, **options))


def test_large_blocks(device):
    """A block has many pieces, the last of which is incomplete."""
    for cache in ("NHD", "HND"):
        check(COPY, copy_arguments(device, cache=cache, block_size=64, entry=(8, 104), num_tokens=61))


def test_k_and_v_in_one_tensor(device):
    """The planes are views of one tensor, and a block of K lies between blocks of V."""
    pool = embed((13, 2, 4, 2, 8), torch.bfloat16, device)
    check(COPY, copy_arguments(device) | {"caches": list(pool.unbind(1))})


def test_layers_of_one_tensor(device):
    pool = embed((13, 5, 4, 2, 8), torch.bfloat16, device, order=(1, 0, 2, 3, 4))
    check(COPY, copy_arguments(device) | {"caches": list(pool.unbind(1))})


def test_chains_of_reads(device):
    """A block may be read by many pairs, and by one that copies it to itself, but not be written."""
    caches = make_caches(device)
    pairs = [(5, 5), (5, 1), (5, 0), (7, 12), (12, -1), (5, 2)]
    for lists in LISTS:
        check(COPY, copy_arguments(device, pairs=pairs, lists=lists) | {"caches": caches})


def test_gpu_copies_other_blocks_of_a_chain(gpu):
    """If a mapping on a GPU reads a block that it writes, only that block's content is undefined."""
    call = copy_arguments(gpu, pairs=[(1, 2), (2, 3), (5, 6), (7, 8), (9, 8)])
    before = [cache.clone() for cache in call["caches"]]
    torch.ops.multikv.copy_blocks_layers(*call.values())
    for cache, old in zip(call["caches"], before, strict=True):
        for block in (0, 1, 4, 5, 7, 9, 10, 11, 12):
            assert torch.equal(cache[block].view(torch.int16), old[block].view(torch.int16))
        assert torch.equal(cache[6].view(torch.int16), old[5].view(torch.int16))
