"""checksum_blocks against its reference, and against published values."""

from __future__ import annotations

import pytest
import torch

import multikv
from tests.support.calls.blocks import CHECKSUM, ORDERS, checksum_arguments
from tests.support.comparison import check
from tests.support.parameters import INDEX_DTYPES, short
from tests.support.tensors import embed, random_bytes

LISTS = ("device", "cpu")


@pytest.mark.parametrize(
    "message, expected",
    [
        ([], 0),
        ([0] * 8, 0x2756F015088477D6),
        (range(16), 0x2C897A057B282716),
        (range(20), 0x48226C623F52DC26),
    ],
    ids=["nothing", "zeros", "16_bytes", "20_bytes"],
)
def test_known_values(device, message, expected):
    cache = torch.tensor([list(message)], dtype=torch.uint8, device=device)
    out = torch.full((1, 1), 7, dtype=torch.int64, device=device)
    multikv.checksum_blocks([cache], torch.tensor([0], device=device), out)
    assert out.item() == expected


@pytest.mark.parametrize("num_tokens", [None, "any"])
@pytest.mark.parametrize("order", ORDERS)
def test_orders_in_memory(device, order, num_tokens):
    for options in ({}, {"padding": (1, 1, 0, 8)}, {"padding": (0, 0, 3, 1), "offset": 1}):
        check(CHECKSUM, checksum_arguments(device, cache=order, num_tokens=num_tokens, **options))


@pytest.mark.parametrize("entry", [(), (1,), (7,), (576,), (3, 5, 2), (3, 0)], ids=short)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float8_e5m2, torch.bfloat16, torch.float64], ids=short)
def test_entries(device, dtype, entry):
    for offset in (0, 1, 4):
        for num_tokens in (None, "any"):
            call = checksum_arguments(device, dtype=dtype, entry=entry, offset=offset, num_tokens=num_tokens)
            check(CHECKSUM, call)


@pytest.mark.parametrize("num_tokens", [None, "any"])
@pytest.mark.parametrize("lists", LISTS)
@pytest.mark.parametrize("index_dtype", INDEX_DTYPES, ids=short)
def test_planes_of_different_kinds(device, index_dtype, lists, num_tokens):
    options = {"index_dtype": index_dtype, "lists": lists, "num_tokens": num_tokens}
    check(CHECKSUM, checksum_arguments(device, cache="mixed", **options))


def test_planes_of_different_block_sizes(device):
    call = checksum_arguments(device, num_tokens=None)
    call["caches"][1] = embed((13, 2, 16, 4, 8), torch.bfloat16, device)
    call["caches"][2] = embed((13, 0, 3), torch.bfloat16, device)
    check(CHECKSUM, call)


def test_every_length(device):
    """Messages of 0 to 700 bytes: words, vectors and rounds of vectors that are incomplete."""
    options = {"block_ids": [i % 13 for i in range(701)], "num_tokens": range(701), "block_size": 700, "entry": ()}
    for offset in (0, 3):
        check(CHECKSUM, checksum_arguments(device, dtype=torch.uint8, layers=1, offset=offset, **options))


def test_any_strides_give_the_same_hash(device):
    content = random_bytes(13 * 4 * 6 * 16, device).view(13, 4, 6, 16)
    caches = [embed(content.shape, torch.uint8, device, order=order) for order in ORDERS.values()]
    caches += [embed(content.shape, torch.uint8, device, padding=(0, 1, 2, 3), offset=offset) for offset in (0, 5)]
    for cache in caches:
        cache.copy_(content)
    out = torch.empty(13, len(caches), dtype=torch.int64, device=device)
    multikv.checksum_blocks(caches, torch.arange(13, device=device), out)
    assert (out == out[:, :1]).all()
    assert len(set(out[:, 0].tolist())) == 13


def test_an_expanded_cache(device):
    """Caches are only read, so elements may share memory."""
    call = checksum_arguments(device)
    call["caches"][1] = call["caches"][1][:, :1].expand(-1, 4, -1, -1)
    check(CHECKSUM, call)


def test_out_of_any_stride(device):
    call = checksum_arguments(device, layers=1)
    call["out"] = embed((7, 1), torch.int64, device, order=(1, 0), padding=(2, 3))
    check(CHECKSUM, call)


@pytest.mark.parametrize("lists", LISTS)
@pytest.mark.parametrize("layers", [1, 128, 300])
def test_number_of_planes(device, layers, lists):
    check(CHECKSUM, checksum_arguments(device, layers=layers, entry=(3,), lists=lists))


@pytest.mark.parametrize("lists", LISTS)
def test_many_blocks(device, lists):
    check(CHECKSUM, checksum_arguments(device, layers=2, blocks=10_000, block_size=2, entry=(5,), lists=lists))


def test_large_blocks(device):
    for cache in ("NHD", "HND"):
        check(CHECKSUM, checksum_arguments(device, cache=cache, block_size=64, entry=(8, 104)))
