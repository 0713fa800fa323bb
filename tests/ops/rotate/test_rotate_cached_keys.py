"""rotate_cached_keys against the reference."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from multikv import platforms
from tests.support.arguments import copy_of
from tests.support.calls.rotate import CACHE_LAYOUTS, rotate_arguments
from tests.support.comparison import assert_same_bytes, check, run
from tests.support.devices import e4m3_of_bytes
from tests.support.parameters import FLOATS, FORMATS, FP8_FORMATS, FP8_NAMES, INDEX_DTYPES, short
from tests.support.tensors import randomise

OP = "rotate_cached_keys"


@pytest.mark.parametrize("is_neox", [True, False], ids=["neox", "gptj"])
@pytest.mark.parametrize("table_dtype", FLOATS, ids=short)
@pytest.mark.parametrize("dtype", FLOATS, ids=short)
def test_dtypes(device, dtype, table_dtype, is_neox):
    check(OP, rotate_arguments(device, dtype=dtype, table_dtype=table_dtype, is_neox=is_neox, share_of_padding=0.2))


@pytest.mark.parametrize("is_neox", [True, False], ids=["neox", "gptj"])
@pytest.mark.parametrize("per_head", [False, True], ids=["one_scale", "scale_per_head"])
@pytest.mark.parametrize("name, dtype", FP8_NAMES, ids=short)
def test_fp8(device, name, dtype, per_head, is_neox):
    call = rotate_arguments(device, format=name, is_neox=is_neox, per_head=per_head)
    call["key_cache"] = call["key_cache"].view(dtype)
    check(OP, call, e4m3_of_bytes=e4m3_of_bytes(device))


@pytest.mark.parametrize("layout", CACHE_LAYOUTS)
@pytest.mark.parametrize("format", ["auto", "fp8_e4m3fn"])
def test_layouts(device, format, layout):
    for is_neox in (True, False):
        check(OP, rotate_arguments(device, format=format, layout=layout, is_neox=is_neox))


@pytest.mark.parametrize("x", [1, 4, 8, 16, 64])
@pytest.mark.parametrize("format", ["auto", "fp8_e4m3fn"])
def test_packed_caches(device, format, x):
    for rotary_offset, rotary_size in ((0, 64), (16, 32), (3, 50)):
        part = {"rotary_offset": rotary_offset, "rotary_size": rotary_size}
        for is_neox in (True, False):
            check(OP, rotate_arguments(device, format=format, x=x, is_neox=is_neox, **part))


@pytest.mark.parametrize("x", [None, 8])
@pytest.mark.parametrize("tokens", [1, 40])
def test_many_heads_of_few_pairs(device, tokens, x):
    check(OP, rotate_arguments(device, tokens=tokens, heads=130, head_size=16, rotary_size=8, x=x))


@pytest.mark.parametrize("is_neox", [True, False], ids=["neox", "gptj"])
@pytest.mark.parametrize("format", ["auto", "fp8_e5m2"])
@pytest.mark.parametrize("head_size, offset, size", [(2, 0, 2), (7, 1, 6), (128, 64, 64), (96, 8, 22), (576, 0, 512)])
def test_parts_of_heads(device, head_size, offset, size, format, is_neox):
    part = {"head_size": head_size, "rotary_offset": offset, "rotary_size": size}
    check(OP, rotate_arguments(device, format=format, is_neox=is_neox, **part))


@pytest.mark.parametrize("tokens, heads", [(1, 1), (1, 70), (33, 5), (300, 8)])
@pytest.mark.parametrize("index_dtype", INDEX_DTYPES, ids=short)
def test_sizes(device, tokens, heads, index_dtype):
    check(OP, rotate_arguments(device, tokens=tokens, heads=heads, index_dtype=index_dtype, head_size=128))


@pytest.mark.parametrize("options", [{"padding": (0, 6)}, {"offset": 1}, {"padding": (0, 16)}])
@pytest.mark.parametrize("table_dtype", FLOATS, ids=short)
def test_strides_of_the_table(device, table_dtype, options):
    check(OP, rotate_arguments(device, table_dtype=table_dtype, table_options=options))


@pytest.mark.parametrize("format", FORMATS)
def test_special_numbers(device, format):
    """NaNs, infinities, subnormals, and squares that are zero or overflow."""
    for dtype in FLOATS if format == "auto" else (torch.bfloat16,):
        for is_neox in (True, False):
            call = rotate_arguments(device, format=format, dtype=dtype, is_neox=is_neox, tokens=30, extreme=True)
            check(OP, call, nan_outputs=("key_cache",) if format == "auto" else ())


@pytest.mark.parametrize("power", [-140, -80, -30, 30, 60])
def test_numbers_of_any_size(device, power):
    """Keys and tables whose quotients are subnormal, or large: a GPU divides them in another way."""
    for key_power, table_power in ((power, 0), (0, power / 4), (power, -power / 8)):
        call = rotate_arguments(device, dtype=torch.float32, tokens=30)
        call["key_cache"].mul_(2.0**key_power)
        call["cos_sin_cache"].mul_(2.0**table_power)
        check(OP, call, nan_outputs=("key_cache",))


@pytest.mark.parametrize("scale", [0.0, -1.5, 1e-42, 1e-20, 3e38, float("inf"), float("nan")])
@pytest.mark.parametrize("format", FP8_FORMATS)
def test_any_scale(device, format, scale):
    call = rotate_arguments(device, format=f"fp8_{format}")
    call["k_scale"].fill_(scale)
    check(OP, call)


@pytest.mark.parametrize("format", FORMATS)
def test_a_token_that_stays_keeps_its_bytes(device, format):
    call = rotate_arguments(device, format=format, dtype=torch.float32, tokens=40, extreme=True)
    call["new_positions"].copy_(call["old_positions"])
    before = copy_of(call)
    run(OP, call)
    assert_same_bytes(call, before)


def test_there_and_back(device):
    """Of float32, up to rounding: there is no drift in magnitude with a table that contains a factor."""
    call = rotate_arguments(device, dtype=torch.float32, tokens=40)
    before = call["key_cache"].clone()
    run(OP, call)
    moved = call["key_cache"].clone()
    assert not torch.allclose(moved, before, rtol=0.1)
    call["old_positions"], call["new_positions"] = call["new_positions"], call["old_positions"]
    run(OP, call)
    largest = before.abs().amax(-1, keepdim=True)
    assert ((call["key_cache"] - before).abs() <= 1e-5 * largest).all()


def test_instruction_sets_write_the_same_bytes():
    for format in FORMATS:
        for dtype in FLOATS:
            for head_size, x in ((128, None), (34, None), (128, 8)):
                call = rotate_arguments(
                    format=format, dtype=dtype, head_size=head_size, x=x, tokens=40, extreme=format != "auto"
                )
                results = []
                for isa in platforms.cpu_isas():
                    before = platforms.cpu_isa()
                    platforms.set_cpu_isa(isa)
                    results.append(copy_of(call))
                    run(OP, results[-1])
                    platforms.set_cpu_isa(before)
                for result in results[1:]:
                    assert_same_bytes(result, results[0])


def test_gpu_writes_what_the_cpu_writes_of_many_numbers(gpu):
    """Enough divisions to meet quotients near the middle between two floats."""
    for dtype in FLOATS:
        call = rotate_arguments(dtype=dtype, tokens=2000, heads=8, head_size=128, num_positions=500)
        for extreme in (False, True):
            if extreme:
                randomise(call["key_cache"])
            on_gpu = copy_of(call, gpu)
            run(OP, on_gpu)
            run(OP, call)
            assert_same_bytes(on_gpu, call, ("key_cache",))


@st.composite
def calls(draw):
    x = draw(st.sampled_from([None, None, 1, 2, 4, 8]))
    head_size = draw(st.integers(1, 40)) * (x or 1)
    rotary_size = 2 * draw(st.integers(0, head_size // 2))
    return {
        "format": draw(st.sampled_from(FORMATS)),
        "dtype": draw(st.sampled_from(FLOATS)),
        "table_dtype": draw(st.sampled_from(FLOATS)),
        "is_neox": draw(st.booleans()),
        "tokens": draw(st.integers(0, 20)),
        "heads": draw(st.integers(1, 9)),
        "head_size": head_size,
        "rotary_size": rotary_size,
        "rotary_offset": draw(st.integers(0, head_size - rotary_size)),
        "block_size": draw(st.integers(1, 20)),
        "layout": draw(st.sampled_from(list(CACHE_LAYOUTS))),
        "x": x,
        "per_head": draw(st.booleans()),
        "index_dtype": draw(st.sampled_from(INDEX_DTYPES)),
        "share_of_padding": draw(st.sampled_from([0.0, 0.3])),
    }


@given(options=calls())
def test_any_call(device, options):
    check(OP, rotate_arguments(device, **options), nan_outputs=("key_cache",) if options["format"] == "auto" else ())
