"""cp_gather_and_upconvert_fp8_kv_cache against its reference, all memory compared."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from multikv import reference
from tests.support import strategies
from tests.support.arguments import copy_of
from tests.support.calls.gather import fill_ds_mla, padded_blocks, upconvert_arguments
from tests.support.comparison import assert_same_bytes, check, run
from tests.support.devices import e4m3_of_bytes, last_level_cache_bytes
from tests.support.parameters import INDEX_DTYPES, short
from tests.support.tensors import random_bytes

OP = "cp_gather_and_upconvert_fp8_kv_cache"

TYPES = (torch.uint8, torch.float8_e4m3fn, torch.float8_e4m3fnuz)


def compare(call, *, nans=False, **options):
    """With NaNs among the inputs any NaN equals another; without them there are none, and all bytes count."""
    format = e4m3_of_bytes(call["dst"].device)
    check(OP, call, nan_outputs=("dst",) if nans else (), e4m3_of_bytes=format, **options)


@pytest.mark.parametrize("dtype", TYPES, ids=short)
def test_types(device, dtype):
    compare(upconvert_arguments(device, dtype=dtype))
    compare(upconvert_arguments(device, dtype=dtype, nans=True), nans=True)
    compare(upconvert_arguments(device, dtype=dtype, nans=True, host_rows=40), nans=True)


@pytest.mark.parametrize("dtype", TYPES, ids=short)
def test_every_code_with_scales_of_all_bits(device, dtype):
    call = upconvert_arguments(device, dtype=dtype, lengths=(9 * 64,), block_size=64)
    codes = torch.arange(9 * 64 * 512).reshape(9, 64, 512)
    source = call["src_cache"].view(torch.uint8)
    source[..., :512] = codes + codes // 128  # each code in every place of a tile
    source[..., 512:528] = random_bytes(9 * 64 * 16, device).view(9, 64, 16)
    compare(call, nans=True)


@pytest.mark.parametrize("tile", range(4))
def test_each_tile_has_a_scale_of_its_own(device, tile):
    call = upconvert_arguments(device, lengths=(16,), surplus_rows=0)
    call["src_cache"][..., :512] = 0x38 if e4m3_of_bytes(device) == "e4m3fn" else 0x40  # 1
    scales = torch.ones(9, 16, 4)
    scales[..., tile] = 3.5
    call["src_cache"][..., 512:528] = scales.view(torch.uint8).to(device)
    run(OP, call)
    means = call["dst"][:, :512].float().unflatten(1, (4, 128)).mean(-1)
    assert means.tolist() == [[3.5 if i == tile else 1.0 for i in range(4)]] * 16


def test_flushed_subnormals(device):
    """PyTorch can be told to take subnormal float32 for zero; the bytes stay those of IEEE arithmetic."""
    call = upconvert_arguments(device)
    scales = torch.tensor([1e-38, 1e-40, 1e-36, 2.0]).view(torch.uint8).to(device)
    call["src_cache"][..., 512:528] = scales
    expected = copy_of(call)
    reference.cp_gather_and_upconvert_fp8_kv_cache(**expected, e4m3_of_bytes=e4m3_of_bytes(device))
    torch.set_flush_denormal(True)
    try:
        run(OP, call)
    finally:
        torch.set_flush_denormal(False)
    assert_same_bytes(call, expected)


@pytest.mark.parametrize("offset", [1, 2, 3, 4, 8, 16])
def test_unaligned_starts(device, offset):
    for end in ("src_options", "dst_options", "host_options"):
        compare(upconvert_arguments(device, host_rows=50, **{end: {"offset": offset}}))
    compare(upconvert_arguments(device, src_options={"offset": offset}))


CACHES = {
    "padded_entries": {"padding": (0, 0, 1)},
    "entries_of_1024": {"padding": (0, 0, 368)},
    "padded_slots": {"padding": (0, 3, 0)},
    "slots_outermost": {"order": (1, 0, 2)},
    "slots_outermost_padded": {"order": (1, 0, 2), "padding": (1, 0, 5)},
}


@pytest.mark.parametrize("padding", [0, 1, 64])
@pytest.mark.parametrize("cache", CACHES)
def test_layouts(device, cache, padding):
    ends = {"src_options": CACHES[cache], "dst_options": {"padding": (0, padding)}}
    compare(upconvert_arguments(device, **ends))
    compare(upconvert_arguments(device, host_rows=40, host_options={"padding": (0, 3 * padding)}, **ends))


@pytest.mark.parametrize("block_padding", [1, 7, 16, 100])
def test_padded_blocks(device, block_padding):
    source = fill_ds_mla(padded_blocks((9, 16, 656), torch.uint8, device, block_padding=block_padding), nans=False)
    compare(upconvert_arguments(device) | {"src_cache": source})
    compare(upconvert_arguments(device, host_rows=40) | {"src_cache": source[2:5]})


@pytest.mark.parametrize("block_size", [1, 5, 16, 64])
@pytest.mark.parametrize(
    "lengths", [(1,), (0,), (0, 0, 0), (100,), (7, 0, 1, 33, 0), (0, 0, 40), (40, 0, 0), (2,) * 40], ids=short
)
def test_lengths_and_block_sizes(device, lengths, block_size):
    for surplus_rows in (0, 3):
        options = {"lengths": lengths, "block_size": block_size, "surplus_rows": surplus_rows}
        compare(upconvert_arguments(device, **options))


@pytest.mark.parametrize("index_dtype", INDEX_DTYPES, ids=short)
@pytest.mark.parametrize("starts", [(0, 0, 0), (16, 32, 0), (5, 15, 17), (1, 100, 31)], ids=short)
def test_sequences_that_start_later(device, starts, index_dtype):
    for lengths in ((20, 1, 33), (0, 50, 16)):
        for host_rows in (None, 30):
            options = {"starts": starts, "index_dtype": index_dtype, "host_rows": host_rows}
            compare(upconvert_arguments(device, lengths=lengths, **options))


def test_each_index_has_its_own_width(device):
    indices = ("block_table", "workspace_starts", "seq_starts", "host_row_ids", "device_row_ids")
    for odd_one in indices:
        for index_dtype, other in (INDEX_DTYPES, INDEX_DTYPES[::-1]):
            options = {"lengths": (20, 7), "starts": (3, 0), "host_rows": 40, "index_dtype": index_dtype}
            call = upconvert_arguments(device, **options)
            call[odd_one] = call[odd_one].to(other)
            compare(call)


@pytest.mark.parametrize("sequences", [1, 2, 33, 1000])
def test_many_tiny_sequences(device, sequences):
    lengths = torch.randint(0, 3, (sequences,)).tolist()
    starts = torch.randint(0, 30, (sequences,)).tolist()
    compare(upconvert_arguments(device, lengths=lengths, starts=starts, block_size=4))


def test_thousands_of_sequences(device):
    lengths = torch.zeros(5000, dtype=torch.int64)
    lengths[torch.randperm(5000)[:300]] = 2
    compare(upconvert_arguments(device, lengths=lengths.tolist(), block_size=4))
    compare(upconvert_arguments(device, lengths=lengths.tolist(), block_size=4, host_rows=5))


def test_many_empty_sequences_around_a_long_one(device):
    compare(upconvert_arguments(device, lengths=[0] * 300 + [200] + [0] * 300, surplus_rows=0))


@pytest.mark.parametrize("offset", [0, 3])
def test_more_rows_than_the_cpu_cache_holds(device, offset):
    """Nearly all rows belong to the part of a sequence that lies past the block table."""
    lengths = (5, 0, 16, last_level_cache_bytes() // 1152 + 1000)
    call = upconvert_arguments(device, lengths=lengths, starts=(1, 0, 17, 3), dst_options={"offset": offset})
    call["block_table"] = call["block_table"][:, :4].contiguous()
    compare(call)


@pytest.mark.parametrize("last_bound", [False, True])
def test_the_last_sequence_ends_with_the_output(device, last_bound):
    for lengths in ((40,), (5, 0, 33), (5, 33, 0)):
        for host_rows in (None, 20):
            options = {"last_bound": last_bound, "surplus_rows": 20, "host_rows": host_rows}
            compare(upconvert_arguments(device, lengths=lengths, **options))


def test_rows_before_the_first_sequence_are_left(device):
    for host_rows in (None, 20):
        compare(upconvert_arguments(device, first_row=5, host_rows=host_rows))


@pytest.mark.parametrize("columns", [0, 1, 2, 3])
def test_rows_past_the_tables_width_are_left(device, columns):
    for starts in (None, (0, 60, 7, 200)):
        for host_rows in (None, 20):
            call = upconvert_arguments(device, lengths=(50, 3, 40, 10), starts=starts, host_rows=host_rows)
            call["block_table"] = call["block_table"][:, :columns].contiguous()
            compare(call)


def test_start_far_past_the_table(device):
    call = upconvert_arguments(device, lengths=(5, 6), starts=(0, 3), index_dtype=torch.int64)
    call["seq_starts"][1] = torch.iinfo(torch.int64).max
    compare(call)


def test_padded_table_rows(device):
    call = upconvert_arguments(device, lengths=(50, 3, 40))
    wide = torch.full((3, 30), -5, dtype=torch.int32, device=device)
    columns = call["block_table"].shape[1]
    wide[:, 7 : 7 + columns] = call["block_table"]
    compare(call | {"block_table": wide[:, 7 : 7 + columns]})


def test_one_table_row_for_all(device):
    call = upconvert_arguments(device, lengths=(20, 20, 7), surplus_rows=0)
    compare(call | {"block_table": call["block_table"][:1].expand(3, -1)})


# -- rows on the host ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block_size", [1, 5, 16, 64])
@pytest.mark.parametrize("host_rows, device_blocks", [(1, 1), (1000, 1), (1, 9), (50, 20)])
def test_host_rows(device, host_rows, device_blocks, block_size):
    """The device has fewer blocks than there are logical ones, or more."""
    options = {"host_rows": host_rows, "device_blocks": device_blocks, "block_size": block_size}
    compare(upconvert_arguments(device, **options))


def test_all_rows_on_one_side(device):
    for share in ({"host_rows": 0}, {"host_rows": 30, "device_blocks": 0}, {"host_rows": 0, "device_blocks": 0}):
        compare(upconvert_arguments(device, **share))


def test_the_device_comes_first(device):
    call = upconvert_arguments(device, lengths=(20,), host_rows=40)
    call["host_row_ids"].copy_(torch.randint(40, call["host_row_ids"].shape))
    call["device_row_ids"].copy_(torch.arange(len(call["device_row_ids"])) % 48)
    compare(call)


def test_rows_that_are_nowhere_are_left(device):
    call = upconvert_arguments(device, lengths=(40,), host_rows=40)
    for name in ("host_row_ids", "device_row_ids"):
        call[name].copy_(-torch.randint(1, 2**31, call[name].shape))
    before = copy_of(call)["dst"]
    compare(call)
    assert torch.equal(call["dst"].cpu().view(torch.int16), before.view(torch.int16))


def test_host_rows_of_logical_blocks_past_the_devices(device):
    """A block id is checked against the logical blocks, of which the row ids tell."""
    call = upconvert_arguments(device, lengths=(32,), blocks=50, host_rows=40, device_blocks=1, surplus_rows=0)
    call["block_table"][0, :2] = torch.tensor([49, 48])
    call["device_row_ids"].fill_(-1)
    call["host_row_ids"].copy_(torch.arange(len(call["host_row_ids"])) % 40)
    compare(call)


def test_row_ids_that_are_bad_are_skipped_on_a_gpu(gpu, check_indices):
    check_indices(False)
    call = upconvert_arguments(gpu, lengths=(64,), host_rows=40)
    call["device_row_ids"].copy_(torch.tensor([47, 48, 2**31 - 1, -1, -1, -1])[torch.randint(6, (9 * 16,))])
    call["host_row_ids"].copy_(torch.tensor([39, 40, 2**31 - 1, -1])[torch.randint(4, (9 * 16,))])
    compare(call, bad_indices="skip")


@pytest.mark.parametrize(
    "name, row, device_id, host_id",
    [
        ("device_row_ids", 20, 48, 0),
        ("device_row_ids", 20, 2**40, 0),
        ("host_row_ids", 35, -1, 40),
        ("host_row_ids", 35, -(2**40), 2**40),
    ],
)
def test_row_ids_that_are_bad_raise(device, check_indices, name, row, device_id, host_id):
    check_indices(True)
    call = upconvert_arguments(device, lengths=(64,), host_rows=40, index_dtype=torch.int64, surplus_rows=0)
    call["block_table"][0, :4] = torch.arange(4)
    call["device_row_ids"].zero_(), call["host_row_ids"].fill_(10**6)  # of which no row is needed
    call["device_row_ids"][row], call["host_row_ids"][row] = device_id, host_id
    before = copy_of(call)["dst"]
    with pytest.raises(IndexError, match=rf"^{OP}: {name}\[{row}\]: .* got {max(device_id, host_id)}$"):
        run(OP, call)
    assert torch.equal(call["dst"].cpu().view(torch.int16), before.view(torch.int16))


def test_batch_of_none(device):
    for host_rows in (None, 20):
        for last_bound in (False, True):
            compare(upconvert_arguments(device, lengths=(), host_rows=host_rows, last_bound=last_bound))


def test_output_of_no_rows(device):
    compare(upconvert_arguments(device, lengths=(0, 0), surplus_rows=0))


@st.composite
def calls(draw):
    return {
        **draw(strategies.sequences()),
        "dtype": draw(st.sampled_from(TYPES)),
        "host_rows": draw(st.none() | st.integers(0, 100)),
        "device_blocks": draw(st.integers(0, 9)),
        "last_bound": draw(st.booleans()),
        "surplus_rows": draw(st.integers(0, 3)),
        "src_options": draw(strategies.blocks()),
        "dst_options": draw(strategies.rows()),
        "host_options": draw(strategies.rows()),
    }


@given(settings=calls(), seed=st.integers(0, 2**32))
def test_any_call(device, settings, seed):
    torch.manual_seed(seed)
    compare(upconvert_arguments(device, **settings))
