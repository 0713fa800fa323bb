"""indexer_k_quant_and_cache against its reference. All memory is compared, so that a stray byte anywhere is found."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from multikv import reference
from tests.support import strategies
from tests.support.arguments import copy_of
from tests.support.calls.gather import padded_blocks
from tests.support.calls.indexer import indexer_write_arguments
from tests.support.comparison import check, run
from tests.support.devices import e4m3_of_bytes, last_level_cache_bytes
from tests.support.parameters import FLOATS, INDEX_DTYPES, short
from tests.support.tensors import storage_bytes

OP = "indexer_k_quant_and_cache"

FORMATS = ("auto", "ue8m0", "fp8_e4m3fnuz")
NAMES = ("auto", "float32", "fp32", "fp8", "fp8_e4m3", "fp8_e4m3fn", "fp8_e4m3fnuz", "ue8m0")
# D, q
SIZES = [
    *((1, 1), (12, 1), (12, 2), (12, 3), (12, 4), (12, 12), (64, 1), (64, 8), (64, 16), (64, 64)),
    *((96, 4), (96, 32), (96, 96), (100, 50), (128, 2), (128, 8), (128, 16), (128, 32), (128, 64), (128, 128)),
    *((256, 64), (256, 128), (256, 256), (512, 1), (512, 64), (512, 128), (512, 512), (640, 128), (999, 333)),
]


def compare(call):
    check(OP, call, e4m3_of_bytes=e4m3_of_bytes(call["k"].device))


@pytest.mark.parametrize("dtype", FLOATS, ids=short)
@pytest.mark.parametrize("format", NAMES)
def test_formats_and_dtypes(device, format, dtype):
    compare(indexer_write_arguments(device, format=format, dtype=dtype))
    compare(indexer_write_arguments(device, format=format, dtype=dtype, quant_block_size=32))


@pytest.mark.parametrize("dtype", FLOATS, ids=short)
@pytest.mark.parametrize("format", [*FORMATS, "mxfp8"])
def test_many_tiles(device, format, dtype):
    compare(indexer_write_arguments(device, format=format, dtype=dtype, tokens=400, blocks=30))


@pytest.mark.parametrize("sizes", SIZES, ids=short)
@pytest.mark.parametrize("format", FORMATS)
def test_sizes(device, format, sizes):
    for dtype in FLOATS:
        options = {"head_size": sizes[0], "quant_block_size": sizes[1], "format": format, "dtype": dtype}
        compare(indexer_write_arguments(device, tokens=20, **options))


def tiles_of(amax):
    """For each number a row of 128 elements, of which it is the largest magnitude."""
    k = (torch.rand(len(amax), 128) * 2 - 1) * 0.99 * amax.float()[:, None]
    k[torch.arange(len(amax)), torch.randint(128, (len(amax),))] = amax.float() * (torch.randint(2, amax.shape) * 2 - 1)
    return k.to(amax.dtype)


@pytest.mark.parametrize("dtype", FLOATS, ids=short)
@pytest.mark.parametrize("format", ["auto", "ue8m0", "mxfp8"])
@pytest.mark.parametrize("divisor", [1, 224, 448])
def test_largest_values_at_and_next_to_a_power_of_two(device, divisor, format, dtype):
    info = torch.finfo(dtype)
    amax = torch.exp2(torch.arange(-126.0, 120)) * divisor
    amax = amax[(amax >= info.smallest_normal) & (amax < info.max / 2)].to(dtype)
    integers = torch.int32 if dtype == torch.float32 else torch.int16
    amax = (amax.view(integers)[:, None] + torch.tensor([-2, -1, 0, 1, 2], dtype=integers)).view(dtype).flatten()
    tokens = len(amax)
    call = indexer_write_arguments(device, format=format, dtype=dtype, tokens=tokens, blocks=-(-tokens // 16))
    call["k"].copy_(tiles_of(amax))
    compare(call)


@pytest.mark.parametrize("dtype", FLOATS, ids=short)
@pytest.mark.parametrize("format", FORMATS)
def test_largest_values_around_the_least_scale(device, format, dtype):
    amax = (1e-4 * torch.linspace(0.9, 1.1, 200)).to(dtype)
    call = indexer_write_arguments(device, format=format, dtype=dtype, tokens=200, blocks=13)
    call["k"].copy_(tiles_of(amax))
    compare(call)


@pytest.mark.parametrize("dtype", FLOATS, ids=short)
@pytest.mark.parametrize("format", FORMATS)
def test_quotients_next_to_a_tie(device, format, dtype):
    """The quotients lie where an error in the last place gives another code."""
    name = "e4m3fnuz" if format == "fp8_e4m3fnuz" else e4m3_of_bytes(device)
    divisor = {"e4m3fn": 448.0, "e4m3fnuz": 224.0}[name]
    values = reference.decode_fp8(torch.arange(0x77), name)
    ties = (values[1:] + values[:-1]) / 2
    ties = ties[ties < divisor]
    amax = (torch.rand(60, 1) * 3 + 0.5).to(dtype)
    scale = amax.float() / torch.tensor(divisor)
    if format == "ue8m0":
        scale = torch.exp2(torch.ceil(torch.log2(scale)))
    near = (ties * scale).to(dtype)
    integers = torch.int32 if dtype == torch.float32 else torch.int16
    near = (near.view(integers) + torch.randint(-1, 2, near.shape, dtype=integers)).view(dtype)
    k = torch.cat([amax, torch.minimum(near, amax)], 1)
    k = torch.where(torch.rand(k.shape) < 0.5, k, -k)
    options = {"head_size": k.shape[1], "quant_block_size": k.shape[1], "format": format, "dtype": dtype}
    call = indexer_write_arguments(device, tokens=60, blocks=4, **options)
    call["k"].copy_(k)
    compare(call)


SPECIAL_TILES = {
    "zeros": [0.0],
    "minus_zeros": [-0.0],
    "nans": [float("nan")],
    "nan_among_small": [float("nan"), 1e-6, -3e-5],
    "nan_first": [float("nan"), 3.0, -7.0],
    "nan_last": [3.0, -7.0, float("nan")],
    "infinity": [float("inf")],
    "minus_infinity": [1.0, -float("inf")],
    "both_infinities": [float("inf"), -float("inf"), 2.0],
    "infinity_and_nan": [float("nan"), float("inf"), 0.5],
    "largest": [3.4e38, 1e30, -1e38],
    "subnormal": [1e-40, -1e-45],
}


@pytest.mark.parametrize("dtype", FLOATS, ids=short)
@pytest.mark.parametrize("tile", SPECIAL_TILES)
def test_special_tiles(device, tile, dtype):
    """Tiles with special values lie between plain tiles, so that a leak from tile to tile shows."""
    values = torch.tensor(SPECIAL_TILES[tile])
    for format in FORMATS:
        for q in (4, 128):
            call = indexer_write_arguments(device, dtype=dtype, format=format, quant_block_size=q, tokens=9)
            k = torch.randn(9, 128 // q, q)
            k[::2, ::2] = values.repeat(q)[:q]
            call["k"].copy_(k.flatten(1))
            compare(call)


def test_every_place_of_a_tile_counts(device):
    for q in (1, 3, 8, 16, 48, 64, 96, 128):
        head_size = 2 * q
        call = indexer_write_arguments(device, tokens=head_size, head_size=head_size, quant_block_size=q, blocks=16)
        call["k"].copy_(torch.full((head_size, head_size), 0.25) + torch.eye(head_size) * 1000)
        compare(call)


@pytest.mark.parametrize("sizes", [(128, 128), (96, 32), (5000, 2500)], ids=short)
def test_more_tokens_than_the_cpu_cache_holds(device, sizes):
    """Nearly all tokens are padding, and the inputs of neighbouring tokens overlap: each starts one element later."""
    head_size, q = sizes
    tokens = last_level_cache_bytes() // head_size + 1000
    call = indexer_write_arguments(device, head_size=head_size, quant_block_size=q)
    slots = torch.full((tokens,), -1)
    slots[torch.randperm(tokens)[:300]] = torch.randperm(480)[:300]
    slots[100:120] = torch.arange(480, 500)  # neighbours in memory
    shape = (32, 16, call["kv_cache"].shape[2])
    cache = padded_blocks(shape, torch.uint8, device, block_padding=3)
    values = torch.randn(tokens + head_size, dtype=torch.bfloat16, device=device)
    k = values.as_strided((tokens, head_size), (1, 1))
    compare(call | {"k": k, "kv_cache": cache, "slot_mapping": slots.to(device)})


@pytest.mark.parametrize("block_size", [1, 3, 5, 16, 64])
@pytest.mark.parametrize("tokens", [0, 1, 2, 33, 150])
def test_tokens_and_block_sizes(device, tokens, block_size):
    for head_size, q in ((128, 128), (96, 32), (1, 1)):
        options = {"head_size": head_size, "quant_block_size": q, "blocks": tokens // block_size + 2}
        compare(indexer_write_arguments(device, tokens=tokens, block_size=block_size, **options))


@pytest.mark.parametrize("block_padding", [0, 1, 2, 4, 7, 16, 100])
@pytest.mark.parametrize("offset", [0, 1, 2, 8])
def test_padded_blocks_and_unaligned_starts(device, offset, block_padding):
    for format in ("auto", "mxfp8"):
        for block_size in (5, 16):
            options = {"cache_options": {"block_padding": block_padding, "offset": offset}, "block_size": block_size}
            compare(indexer_write_arguments(device, format=format, blocks=9, **options))


@pytest.mark.parametrize("dtype", FLOATS, ids=short)
@pytest.mark.parametrize("offset", [0, 1, 4])
@pytest.mark.parametrize("padding", [0, 1, 8])
def test_rows_of_k(device, padding, offset, dtype):
    for head_size, q in ((128, 128), (96, 32)):
        options = {"head_size": head_size, "quant_block_size": q, "dtype": dtype}
        compare(indexer_write_arguments(device, **options, k_options={"padding": (0, padding), "offset": offset}))


def test_one_row_for_all_tokens(device):
    call = indexer_write_arguments(device)
    compare(call | {"k": call["k"][4:5].expand(37, 128)})


@pytest.mark.parametrize("surplus_rows", [1, 30])
def test_surplus_rows_are_not_written(device, surplus_rows):
    compare(indexer_write_arguments(device, surplus_rows=surplus_rows))


@pytest.mark.parametrize("index_dtype", INDEX_DTYPES, ids=short)
@pytest.mark.parametrize("format", [*FORMATS, "mxfp8"])
def test_negative_slots_are_padding(device, format, index_dtype):
    call = indexer_write_arguments(device, format=format, index_dtype=index_dtype)
    call["slot_mapping"][::3] = -1
    call["slot_mapping"][1::6] = torch.iinfo(index_dtype).min
    compare(call)


def test_only_padding_writes_nothing(device):
    call = indexer_write_arguments(device)
    call["slot_mapping"].fill_(-1)
    before = storage_bytes(call["kv_cache"]).clone()
    compare(call)
    assert torch.equal(storage_bytes(call["kv_cache"]), before)


def test_last_slot(device):
    call = indexer_write_arguments(device, tokens=1)
    call["slot_mapping"].fill_(3 * 16 - 1)
    compare(call)


def test_last_token_wins(device_type):
    if device_type != "cpu":
        pytest.skip("on a GPU either may win")
    call = indexer_write_arguments(tokens=300, blocks=30)
    call["slot_mapping"] = torch.randint(0, 40, (300,))
    compare(call)


@pytest.mark.parametrize("slot", [48, 49, 2**31 - 1, 2**40])
def test_slots_past_the_end_are_skipped_on_a_gpu(gpu, check_indices, slot):
    check_indices(False)
    call = indexer_write_arguments(gpu)
    call["slot_mapping"][::5] = slot
    check(OP, call, bad_indices="skip")


@pytest.mark.parametrize("slot", [48, 2**40])
def test_slots_past_the_end_raise(device, check_indices, slot):
    check_indices(True)
    call = indexer_write_arguments(device)
    call["slot_mapping"][36] = slot
    before = copy_of(call)["kv_cache"]
    with pytest.raises(IndexError, match=rf"^{OP}: slot_mapping\[36\]: .* got {slot}$"):
        run(OP, call)
    assert torch.equal(storage_bytes(call["kv_cache"]).cpu(), storage_bytes(before))


def test_slots_of_a_view(device):
    call = indexer_write_arguments(device)
    slots = torch.full((50,), 10**6, dtype=torch.int64, device=device)
    slots[7:44] = call["slot_mapping"]
    compare(call | {"slot_mapping": slots[7:44]})


@st.composite
def calls(draw):
    head_size = draw(st.integers(1, 24) | st.sampled_from([32, 64, 96, 100, 128, 192, 256]))
    tokens = draw(st.integers(0, 30))
    block_size = draw(st.integers(1, 20))
    return {
        "dtype": draw(st.sampled_from(FLOATS)),
        "format": draw(st.sampled_from(NAMES)),
        "head_size": head_size,
        "quant_block_size": draw(st.sampled_from([q for q in range(1, head_size + 1) if head_size % q == 0])),
        "tokens": tokens,
        "block_size": block_size,
        "blocks": -(-tokens // block_size) + draw(st.integers(0, 3)),
        "index_dtype": draw(st.sampled_from(INDEX_DTYPES)),
        "surplus_rows": draw(st.integers(0, 3)),
        "k_options": draw(strategies.rows()),
        "cache_options": {"block_padding": draw(st.integers(0, 20)), "offset": draw(st.integers(0, 8))},
    }


@given(settings=calls(), padding=st.floats(0, 1), seed=st.integers(0, 2**32))
def test_any_call(device, settings, padding, seed):
    torch.manual_seed(seed)
    call = indexer_write_arguments(device, **settings)
    call["slot_mapping"][torch.rand(settings["tokens"]) < padding] = -1
    compare(call)
