"""gather_and_maybe_dequant_cache against its reference. All memory is compared, so that any stray byte is found."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from multikv import reference
from tests.support import strategies
from tests.support.arguments import copy_of
from tests.support.calls.gather import dequant_arguments, padded_blocks
from tests.support.comparison import assert_same_bytes, check, run
from tests.support.devices import e4m3_of_bytes, last_level_cache_bytes
from tests.support.parameters import FLOATS, FORMATS, FP8_NAMES, INDEX_DTYPES, short
from tests.support.tensors import embed

OP = "gather_and_maybe_dequant_cache"

# Normal and not; products that are subnormal, too large, negative, NaN.
SCALES = (0.37, 1.0, 1.7e-7, 1e-40, 3e38, -2.5, 0.0, float("inf"), float("nan"))


@pytest.mark.parametrize("dtype", FLOATS, ids=short)
@pytest.mark.parametrize("format", FORMATS)
def test_formats_and_dtypes(device, format, dtype):
    for float8 in (False, True):
        check(OP, dequant_arguments(device, format=format, dtype=dtype, float8=float8))


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("dtype", FLOATS, ids=short)
@pytest.mark.parametrize("format", FORMATS[1:])
def test_every_code(device, format, dtype, scale):
    for entry in (256, 7):
        call = dequant_arguments(device, format=format, dtype=dtype, entry=entry, lengths=(9 * 16,), nans=True)
        call["src_cache"].view(torch.uint8).copy_(torch.arange(9 * 16 * entry).reshape(9, 16, entry) % 256)
        call["block_table"][0, :9] = torch.randperm(9)
        call["scale"].fill_(scale)
        check(OP, call, nan_outputs=("dst",))


@pytest.mark.parametrize("scale", [1e-38, 1e-40])
def test_flushed_subnormals(device, scale):
    """PyTorch can be told to take subnormal float32 for zero; the bytes stay those of IEEE arithmetic."""
    calls = [dequant_arguments(device, dtype=dtype, entry=entry) for dtype in FLOATS for entry in (64, 7)]
    for call in calls:
        call["scale"].fill_(scale)
    expected = [copy_of(call) for call in calls]
    for call in expected:
        reference.gather_and_maybe_dequant_cache(**call)
    torch.set_flush_denormal(True)
    try:
        for call in calls:
            run(OP, call)
    finally:
        torch.set_flush_denormal(False)
    for call, wanted in zip(calls, expected, strict=True):
        assert_same_bytes(call, wanted)


@pytest.mark.parametrize("entry", [1, 2, 7, 15, 16, 17, 31, 64, 100, 320, 512, 576, 656, 1000, 4097])
@pytest.mark.parametrize("format", ["auto", "fp8_e4m3fn", "fp8_e5m2"])
def test_entries(device, format, entry):
    for dtype in FLOATS:
        check(OP, dequant_arguments(device, format=format, dtype=dtype, entry=entry, lengths=(5, 0, 20)))


@pytest.mark.parametrize("offset", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("format", ["auto", "fp8_e4m3fn"])
def test_unaligned_starts(device, format, offset):
    for entry in (16, 64, 576):
        for end in ("src_options", "dst_options"):
            check(OP, dequant_arguments(device, format=format, entry=entry, **{end: {"offset": offset}}))


CACHES = {
    "padded_entries": {"padding": (0, 0, 1)},
    "padded_slots": {"padding": (0, 3, 0)},
    "padded_both": {"padding": (0, 1, 16)},
    "slots_outermost": {"order": (1, 0, 2)},
    "slots_outermost_padded": {"order": (1, 0, 2), "padding": (1, 0, 5)},
}


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("format", ["auto", "fp8_e4m3fn"])
def test_layouts(device, format, cache):
    for entry in (7, 64, 576):
        for padding in (0, 1, 64):
            ends = {"src_options": CACHES[cache], "dst_options": {"padding": (0, padding)}}
            check(OP, dequant_arguments(device, format=format, entry=entry, **ends))


HEADS = {
    "NHD": {},
    "HND": {"order": (0, 2, 1, 3)},
    "padded": {"padding": (0, 1, 2, 3)},
    "heads_outermost": {"order": (2, 0, 1, 3)},
    "unaligned": {"offset": 1},
}


@pytest.mark.parametrize("cache", HEADS)
@pytest.mark.parametrize("format", ["auto", "fp8_e4m3fn"])
def test_caches_with_heads(device, format, cache):
    dsts = (
        {"flat_dst": True},
        {"flat_dst": True, "dst_options": {"padding": (0, 5)}},
        {"dst_options": {"padding": (0, 1, 8)}},
        {"dst_options": {"order": (1, 0, 2)}},
        {},
    )
    for entry in ((4, 32), (1, 64), (3, 7), (2, 1)):
        for dst in dsts:
            per_head = dst == {} or "dst_options" in dst
            options = {"entry": entry, "per_head": per_head, "src_options": HEADS[cache], **dst}
            check(OP, dequant_arguments(device, format=format, **options))


def test_a_view_of_heads_is_not_copied(any_device):
    """The cache is too large for a copy: its blocks are views of few bytes."""
    call = dequant_arguments(any_device, format="auto", entry=(4, 32), src_options={"order": (0, 2, 1, 3)})
    call["src_cache"] = call["src_cache"][:1].expand(1 << 40, 16, 4, 32)
    call["block_table"].random_(0, 2**31 - 1)
    expected = copy_of(call)
    expected["src_cache"], expected["block_table"] = expected["src_cache"][:1], expected["block_table"] * 0
    reference.gather_and_maybe_dequant_cache(**expected)
    run(OP, call)
    assert torch.equal(call["dst"].cpu().view(torch.int16), expected["dst"].view(torch.int16))


@pytest.mark.parametrize("block_padding", [1, 7, 16, 100])
@pytest.mark.parametrize("format", ["auto", "fp8_e4m3fn"])
def test_padded_blocks(device, format, block_padding):
    for entry in (7, 64, 576):
        call = dequant_arguments(device, format=format, entry=entry)
        source = call["src_cache"]
        call["src_cache"] = padded_blocks(source.shape, source.dtype, device, block_padding=block_padding)
        call["src_cache"].copy_(source)
        check(OP, call)


def test_part_of_every_entry(device):
    wide = torch.randint(0, 0x7F, (9, 16, 656), dtype=torch.uint8, device=device)
    call = dequant_arguments(device, entry=512)
    check(OP, call | {"src_cache": wide[..., 128:640]})
    call = dequant_arguments(device, entry=64)
    check(OP, call | {"src_cache": wide[..., 3:67]})


def test_one_slot_for_all(device):
    call = dequant_arguments(device, entry=64)
    check(OP, call | {"src_cache": call["src_cache"][:, :1].expand(9, 16, 64)})


@pytest.mark.parametrize("block_size", [1, 5, 16, 64])
@pytest.mark.parametrize(
    "lengths", [(1,), (0,), (0, 0, 0), (257,), (7, 0, 1, 33, 0), (0, 0, 40), (40, 0, 0), (16, 16), (2,) * 40], ids=short
)
def test_lengths_and_block_sizes(device, lengths, block_size):
    for format in ("auto", "fp8_e4m3fn"):
        check(OP, dequant_arguments(device, format=format, entry=64, lengths=lengths, block_size=block_size))


@pytest.mark.parametrize("index_dtype", INDEX_DTYPES, ids=short)
@pytest.mark.parametrize("starts", [(0, 0, 0), (16, 32, 0), (5, 15, 17), (1, 100, 31)], ids=short)
@pytest.mark.parametrize("format", ["auto", "fp8_e4m3fn"])
def test_sequences_that_start_later(device, format, starts, index_dtype):
    for lengths in ((20, 1, 33), (0, 50, 16)):
        options = {"lengths": lengths, "starts": starts, "index_dtype": index_dtype}
        check(OP, dequant_arguments(device, format=format, entry=64, **options))


def test_each_index_has_its_own_width(device):
    for odd_one in ("block_table", "cu_seq_lens", "token_to_seq", "seq_starts"):
        for index_dtype, other in (INDEX_DTYPES, INDEX_DTYPES[::-1]):
            call = dequant_arguments(device, entry=64, lengths=(20, 7), starts=(3, 0), index_dtype=index_dtype)
            call[odd_one] = call[odd_one].to(other)
            check(OP, call)


@pytest.mark.parametrize("sequences", [1, 2, 33, 1000, 5000])
@pytest.mark.parametrize("format", ["auto", "fp8_e4m3fn"])
def test_many_tiny_sequences(device, format, sequences):
    lengths = torch.randint(0, 4, (sequences,)).tolist()
    starts = torch.randint(0, 50, (sequences,)).tolist()
    for extra_tokens in (0, -sequences // 2):
        options = {"lengths": lengths, "block_size": 4, "extra_tokens": extra_tokens, "starts": starts}
        check(OP, dequant_arguments(device, format=format, entry=8, **options))


def test_many_empty_sequences_around_a_long_one(device):
    check(OP, dequant_arguments(device, lengths=[0] * 300 + [1000] + [0] * 300, entry=8))


@pytest.mark.parametrize("format", ["auto", "fp8_e4m3fn"])
def test_long_sequences(device, format):
    check(OP, dequant_arguments(device, format=format, lengths=(3000, 1, 1500), blocks=64))


@pytest.mark.parametrize("format, entry", [("auto", 576), ("fp8_e4m3fn", 576), ("fp8_e4m3fn", 333)])
def test_more_rows_than_the_cpu_cache_holds(device, format, entry):
    """Nearly all rows of the output belong to no sequence."""
    extra_tokens = last_level_cache_bytes() // (2 * entry) + 1000
    check(OP, dequant_arguments(device, format=format, entry=entry, extra_tokens=extra_tokens, starts=(1, 0, 17, 3)))


# Sequences of 54 tokens.
@pytest.mark.parametrize("extra_tokens", [-54, -53, -40, -33, -1, 0, 1, 100])
@pytest.mark.parametrize("surplus_rows", [0, 3])
@pytest.mark.parametrize("format", ["auto", "fp8_e4m3fn"])
def test_num_tokens_above_and_below_what_the_sequences_have(device, format, surplus_rows, extra_tokens):
    """A larger num_tokens is an upper bound. A smaller one truncates: bad later bounds and blocks are no error."""
    for starts in (None, (1, 0, 17, 3)):
        options = {"extra_tokens": extra_tokens, "surplus_rows": surplus_rows, "starts": starts}
        check(OP, dequant_arguments(device, format=format, entry=64, **options))


@pytest.mark.parametrize("format", ["auto", "fp8_e4m3fn"])
def test_rows_before_the_first_sequence_are_left(device, format):
    for extra_tokens in (-56, 0, 5):
        check(OP, dequant_arguments(device, format=format, entry=64, first_row=5, extra_tokens=extra_tokens))


@pytest.mark.parametrize("columns", [0, 1, 2, 3])
@pytest.mark.parametrize("format", ["auto", "fp8_e4m3fn"])
def test_rows_past_the_tables_width_are_left(device, format, columns):
    for starts in (None, (0, 60, 7, 200)):
        call = dequant_arguments(device, format=format, entry=64, lengths=(50, 3, 40, 10), starts=starts)
        call["block_table"] = call["block_table"][:, :columns].contiguous()
        check(OP, call)


def test_start_far_past_the_table(device):
    call = dequant_arguments(device, entry=64, lengths=(5, 6), starts=(0, 3), index_dtype=torch.int64)
    call["seq_starts"][1] = torch.iinfo(torch.int64).max
    check(OP, call)


def test_token_to_seq_is_no_more_than_a_hint(device):
    options = {"entry": 64, "lengths": (5, 0, 16, 0, 33), "extra_tokens": 4, "starts": (1, 0, 17, 3, 4)}
    call = dequant_arguments(device, **options, right_sequences=True)
    right = call["token_to_seq"].clone()
    check(OP, call)
    for hint in (right.roll(1), right.roll(-1), right.flip(0), right * 0, right - right + 4, right.clamp(0) + 1):
        check(OP, call | {"token_to_seq": hint})


@pytest.mark.parametrize("name", ["auto", "float32", "float16", "bfloat16"])
def test_float_names(device, name):
    for dtype in FLOATS:
        if name in ("auto", short(dtype)):
            call = dequant_arguments(device, format=name, dtype=dtype)
            call["scale"].fill_(float("nan"))  # which is not looked at
            check(OP, call)


@pytest.mark.parametrize("name, dtype", FP8_NAMES, ids=short)
def test_fp8_names(device, name, dtype):
    call = dequant_arguments(device, format=name) | {"src_cache": embed((9, 16, 576), dtype, device)}
    check(OP, call, nan_outputs=("dst",), e4m3_of_bytes=e4m3_of_bytes(device))


@pytest.mark.parametrize("format", ["auto", "fp8_e4m3fn"])
def test_sizes_of_the_tensors(device, format):
    for lengths in ((5, 0, 16, 33), (1,), ()):
        check(OP, dequant_arguments(device, format=format, entry=64, lengths=lengths, any_size=True))


def test_no_scale_for_float_formats(device):
    check(OP, dequant_arguments(device, format="auto", no_scale=True))


def test_scale_without_dimensions(device):
    check(OP, dequant_arguments(device) | {"scale": torch.tensor(3.3, device=device)})


def test_padded_table_rows(device):
    call = dequant_arguments(device, entry=64, lengths=(50, 3, 40))
    wide = torch.full((3, 30), -5, dtype=torch.int32, device=device)
    columns = call["block_table"].shape[1]
    wide[:, 7 : 7 + columns] = call["block_table"]
    check(OP, call | {"block_table": wide[:, 7 : 7 + columns]})


def test_one_table_row_for_all(device):
    call = dequant_arguments(device, entry=64, lengths=(20, 20, 7))
    check(OP, call | {"block_table": call["block_table"][:1].expand(3, -1)})


def test_nothing_to_do(device):
    for options in (
        {"lengths": ()},
        {"lengths": (), "extra_tokens": 5},
        {"lengths": (0, 0), "surplus_rows": 0},
        {"lengths": (3, 4), "extra_tokens": -7},
    ):
        call = dequant_arguments(device, entry=64, **options)
        before = copy_of(call)["dst"]
        check(OP, call)
        assert torch.equal(call["dst"].cpu().view(torch.int16), before.view(torch.int16))


@st.composite
def calls(draw):
    return {
        **draw(strategies.sequences()),
        "format": draw(st.sampled_from(FORMATS)),
        "float8": draw(st.booleans()),
        "dtype": draw(st.sampled_from(FLOATS)),
        "entry": draw(st.integers(1, 40) | st.sampled_from([64, 100, 320, 576, 656])),
        "extra_tokens": draw(st.sampled_from([0, 0, -1, -20, 7])),
        "surplus_rows": draw(st.integers(0, 3)),
        "right_sequences": draw(st.booleans()),
        "src_options": draw(strategies.blocks()),
        "dst_options": draw(strategies.rows()),
    }


@given(settings=calls(), scale=st.floats(width=32), seed=st.integers(0, 2**32))
def test_any_call(device, settings, scale, seed):
    torch.manual_seed(seed)
    call = dequant_arguments(device, **settings)
    call["scale"].fill_(scale)
    check(OP, call, nan_outputs=("dst",))
