"""pack_layers and unpack_layers against their reference."""

from __future__ import annotations

import pytest
import torch

from tests.support.calls.moves import ORDERS, STAGING_ORDERS, make_planes, staged_arguments
from tests.support.comparison import check
from tests.support.parameters import INDEX_DTYPES, short

OPS = ("pack_layers", "unpack_layers")
PLACES = {"device": ("device", "device"), "pinned": ("pinned", "device"), "cpu_ids": ("pinned", "cpu")}


def check_places(device, op, **options):
    """On a GPU also with staging in pinned memory, and with ids on the CPU."""
    for place, ids_place in PLACES.values() if device.type == "cuda" else [("device", "device")]:
        call = staged_arguments(device, unpack=op == "unpack_layers", place=place, ids_place=ids_place, **options)
        check(op, call)


@pytest.mark.parametrize("staging", STAGING_ORDERS)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("op", OPS)
def test_layouts(device, op, order, staging):
    for heads in ({}, {"head_start": 1, "staged_heads": 1}):
        check_places(device, op, order=order, staging=staging, **heads)


# block_size, C, and the numbers of tokens: a part of a block, of a row of staging, and one more than a unit.
@pytest.mark.parametrize("block_size, chunk", [(1, 1), (4, 16), (16, 4), (6, 4), (5, 3), (16, 16)])
@pytest.mark.parametrize("op", OPS)
def test_block_sizes(device, op, block_size, chunk):
    for num_tokens in (-1, 1, block_size, 2 * block_size + 1, 4 * block_size - 1):
        options = {"block_size": block_size, "chunk": chunk, "num_tokens": num_tokens, "ids": (3, 8, 0, -5, 2)}
        check_places(device, op, **options)
        check_places(device, op, order="HND", staging="token_last", **options)


@pytest.mark.parametrize(
    "head_size, dtype", [(1, torch.uint8), (7, torch.uint8), (3, torch.bfloat16), (576, torch.bfloat16)]
)
@pytest.mark.parametrize("op", OPS)
def test_head_sizes(device, op, head_size, dtype):
    for order in ORDERS:
        check_places(device, op, head_size=head_size, dtypes=(dtype,), order=order, index_dtype=torch.int32)


@pytest.mark.parametrize("op", OPS)
def test_unaligned_starts_and_padding(device, op):
    for offset in (1, 2, 4):
        check_places(
            device,
            op,
            dtypes=(torch.uint8,),
            head_size=16,
            cache_options={"offset": offset, "padding": (0, 0, 1, 3)},
            staging_options={"offset": 3 * offset, "padding": (1, 0, 0, 2, 5)},
        )


@pytest.mark.parametrize("op", OPS)
def test_planes_of_several_strides_and_dtypes(device, op):
    """Bytes are copied whatever the dtype, and planes need not have the same strides."""
    call = staged_arguments(device, unpack=op == "unpack_layers", planes=5)
    shape = call["caches"][0].shape
    call["caches"][1:3] = make_planes(device, [shape] * 2, dtypes=(torch.int16, torch.float16), order="HND")
    call["caches"][4] = make_planes(device, [shape], padding=(0, 0, 0, 8), offset=3)[0]
    check(op, call)


@pytest.mark.parametrize("op", OPS)
def test_k_and_v_in_one_tensor(device, op):
    both = make_planes(device, [(9, 8, 3, 8)])[0].unflatten(1, (2, 4))
    check(op, staged_arguments(device, unpack=op == "unpack_layers", planes=2) | {"caches": list(both.unbind(1))})


@pytest.mark.parametrize("planes", [1, 250, 700])
@pytest.mark.parametrize("op", OPS)
def test_number_of_planes(device, op, planes):
    """250 planes with ids on the CPU, and 700 planes, need several launches where parameters are limited to 4 KB."""
    check_places(device, op, planes=planes, head_size=4, heads=1)


@pytest.mark.parametrize("op", OPS)
def test_many_blocks(device, op):
    """Several launches for ids on the CPU; several chunks for each plane."""
    ids = torch.randperm(6000)[:5000].tolist()
    ids[17] = -1
    check_places(
        device, op, planes=2, blocks=6000, ids=ids, head_size=4, heads=2, block_size=2, chunk=3, num_tokens=9999
    )


@pytest.mark.parametrize("op", OPS)
def test_large_blocks(device, op):
    """A block has more bytes than a thread block of a GPU copies."""
    for order in ("NHD", "HND"):
        options = {"heads": 8, "head_size": 128, "order": order, "ids": (1, 3), "planes": 2, "blocks": 4}
        check_places(device, op, block_size=64, chunk=64, **options)
        check_places(device, op, block_size=16, chunk=64, staging="heads_outside", **options)


@pytest.mark.parametrize("index_dtype", INDEX_DTYPES, ids=short)
def test_a_block_may_be_packed_twice(device, index_dtype):
    check("pack_layers", staged_arguments(device, ids=(3, 3, 0, 3), index_dtype=index_dtype))


def test_the_last_of_duplicates_wins(device):
    if device.type == "cuda":
        pytest.skip("a GPU keeps parts of both")
    check("unpack_layers", staged_arguments(device, unpack=True, ids=(3, 0, 3, 3)))
    call = staged_arguments(device, unpack=True, ids=[i % 50 for i in range(400)], blocks=60, heads=8, head_size=128)
    check("unpack_layers", call)
