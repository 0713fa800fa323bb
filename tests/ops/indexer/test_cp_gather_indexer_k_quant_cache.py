"""cp_gather_indexer_k_quant_cache against its reference. All memory is compared, so that any stray byte is found."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.support import strategies
from tests.support.calls.indexer import indexer_gather_arguments, indexer_write_arguments
from tests.support.comparison import check, run
from tests.support.devices import last_level_cache_bytes
from tests.support.parameters import INDEX_DTYPES, short

OP = "cp_gather_indexer_k_quant_cache"

SCALE_DTYPES = (torch.uint8, torch.float32)
# D, q
SIZES = [
    *((1, 1), (7, 1), (12, 1), (12, 2), (12, 3), (12, 4), (12, 12), (64, 1), (64, 8), (64, 16), (64, 64), (96, 4)),
    *((96, 32), (96, 96), (100, 50), (128, 1), (128, 16), (128, 32), (128, 64), (128, 128), (256, 64), (256, 128)),
    *((256, 256), (512, 1), (512, 128), (512, 512), (640, 128), (999, 333)),
]


@pytest.mark.parametrize("sizes", SIZES, ids=short)
@pytest.mark.parametrize("scale_dtype", SCALE_DTYPES, ids=short)
def test_sizes(device, scale_dtype, sizes):
    for block_size in (16, 5):
        options = {"head_size": sizes[0], "quant_block_size": sizes[1], "block_size": block_size}
        check(OP, indexer_gather_arguments(device, scale_dtype=scale_dtype, **options))


@pytest.mark.parametrize("scale_dtype", SCALE_DTYPES, ids=short)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float8_e4m3fn, torch.float8_e4m3fnuz], ids=short)
def test_dtypes(device, dtype, scale_dtype):
    check(OP, indexer_gather_arguments(device, dtype=dtype, scale_dtype=scale_dtype))


@pytest.mark.parametrize("block_size", [1, 5, 16, 64])
@pytest.mark.parametrize(
    "lengths", [(1,), (0,), (0, 0, 0), (257,), (7, 0, 1, 33, 0), (0, 0, 40), (40, 0, 0), (16, 16), (2,) * 40], ids=short
)
def test_lengths_and_block_sizes(device, lengths, block_size):
    for surplus_rows in (0, 3):
        options = {"lengths": lengths, "block_size": block_size, "surplus_rows": surplus_rows}
        check(OP, indexer_gather_arguments(device, **options))


@pytest.mark.parametrize("block_padding", [0, 1, 2, 4, 7, 16, 100])
@pytest.mark.parametrize("offset", [0, 1, 2, 8])
def test_padded_blocks_and_unaligned_starts(device, offset, block_padding):
    for scale_dtype in SCALE_DTYPES:
        for block_size in (5, 16):
            cache = {"block_padding": block_padding, "offset": offset}
            options = {"block_size": block_size, "scale_dtype": scale_dtype}
            check(OP, indexer_gather_arguments(device, cache_options=cache, **options))


@pytest.mark.parametrize("padding", [0, 1, 3, 16])
@pytest.mark.parametrize("offset", [0, 1, 2, 3, 4, 8])
def test_rows_of_the_outputs(device, offset, padding):
    for output in ("dst_k_options", "dst_scale_options"):
        for scale_dtype in SCALE_DTYPES:
            for sizes in ({}, {"head_size": 96, "quant_block_size": 8}):
                options = {output: {"padding": (0, padding), "offset": offset}}
                check(OP, indexer_gather_arguments(device, scale_dtype=scale_dtype, **sizes, **options))


def test_outputs_side_by_side(device):
    call = indexer_gather_arguments(device)
    both = torch.randint(256, (57, 200), dtype=torch.uint8, device=device)
    check(OP, call | {"dst_k": both[:, 3:131], "dst_scale": both[:, 150:154]})


def test_each_index_has_its_own_width(device):
    for index_dtype, other in (INDEX_DTYPES, INDEX_DTYPES[::-1]):
        check(OP, indexer_gather_arguments(device, index_dtype=index_dtype))
        for odd_one in ("block_table", "cu_seq_lens"):
            call = indexer_gather_arguments(device, index_dtype=index_dtype)
            call[odd_one] = call[odd_one].to(other)
            check(OP, call)


@pytest.mark.parametrize("sequences", [1, 2, 33, 1000, 5000])
def test_many_tiny_sequences(device, sequences):
    lengths = torch.randint(0, 4, (sequences,)).tolist()
    check(OP, indexer_gather_arguments(device, lengths=lengths, block_size=2))


def test_many_empty_sequences_around_a_long_one(device):
    check(OP, indexer_gather_arguments(device, lengths=[0] * 300 + [1000] + [0] * 300))


def test_long_sequences(device):
    check(OP, indexer_gather_arguments(device, lengths=(3000, 1, 1500), blocks=64))


@pytest.mark.parametrize("padding", [0, 3])
def test_more_rows_than_the_cpu_cache_holds(device, padding):
    """Nearly all rows of the output belong to no sequence."""
    surplus_rows = last_level_cache_bytes() // 128 + 1000
    check(OP, indexer_gather_arguments(device, surplus_rows=surplus_rows, dst_k_options={"padding": (0, padding)}))


def test_rows_outside_the_bounds_are_left(device):
    check(OP, indexer_gather_arguments(device, first_row=5, surplus_rows=100))


@pytest.mark.parametrize("columns", [0, 1, 2, 3])
def test_rows_past_the_tables_width_are_left(device, columns):
    call = indexer_gather_arguments(device, lengths=(50, 3, 40, 10))
    call["block_table"] = call["block_table"][:, :columns].contiguous()
    check(OP, call)


def test_padded_table_rows(device):
    call = indexer_gather_arguments(device, lengths=(50, 3, 40))
    wide = torch.full((3, 30), -5, dtype=torch.int32, device=device)
    columns = call["block_table"].shape[1]
    wide[:, 7 : 7 + columns] = call["block_table"]
    check(OP, call | {"block_table": wide[:, 7 : 7 + columns]})


def test_one_table_row_for_all(device):
    call = indexer_gather_arguments(device, lengths=(20, 20, 7))
    check(OP, call | {"block_table": call["block_table"][:1].expand(3, -1)})


def test_batch_of_none(device):
    check(OP, indexer_gather_arguments(device, lengths=()))


def test_output_of_no_rows(device):
    check(OP, indexer_gather_arguments(device, lengths=(0, 0), surplus_rows=0))


@pytest.mark.parametrize("q", [32, 128])
def test_reads_what_the_other_op_writes(device, q):
    written = indexer_write_arguments(device, tokens=48, quant_block_size=q, format="fp8_e4m3fn")
    written["slot_mapping"].copy_(torch.arange(48))
    written["k"].copy_(torch.arange(1.0, 49)[:, None].expand(48, 128))
    run("indexer_k_quant_and_cache", written)
    values = torch.zeros(20, 128, dtype=torch.float8_e4m3fn, device=device)
    scales = torch.zeros(20, 128 // q, device=device)
    table, bounds = torch.tensor([[2, 0]], device=device), torch.tensor([0, 20], device=device)
    run(OP, {"kv_cache": written["kv_cache"], "k": values, "scale": scales, "table": table, "bounds": bounds})
    expected = torch.tensor([*range(33, 49), 1, 2, 3, 4.0])
    assert torch.equal(scales.cpu(), (expected / torch.tensor([448.0]))[:, None].expand(-1, 128 // q))
    assert (values.float() == 448).all()


@st.composite
def calls(draw):
    head_size = draw(st.integers(1, 24) | st.sampled_from([32, 64, 96, 100, 128, 192, 256]))
    settings = draw(strategies.sequences())
    del settings["starts"]
    return {
        **settings,
        "scale_dtype": draw(st.sampled_from(SCALE_DTYPES)),
        "head_size": head_size,
        "quant_block_size": draw(st.sampled_from([q for q in range(1, head_size + 1) if head_size % q == 0])),
        "surplus_rows": draw(st.integers(0, 3)),
        "dst_k_options": draw(strategies.rows()),
        "dst_scale_options": draw(strategies.rows()),
        "cache_options": {"block_padding": draw(st.integers(0, 20)), "offset": draw(st.integers(0, 8))},
    }


@given(settings=calls(), seed=st.integers(0, 2**32))
def test_any_call(device, settings, seed):
    torch.manual_seed(seed)
    check(OP, indexer_gather_arguments(device, **settings))
