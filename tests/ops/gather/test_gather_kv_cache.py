"""gather_kv_cache against its reference. All memory is compared, so that any stray byte is found."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import multikv
from tests.support import strategies
from tests.support.arguments import copy_of
from tests.support.calls.gather_kv import OUTPUT_LAYOUTS, OUTPUTS, kv_arguments
from tests.support.calls.reshape_and_cache import CACHE_LAYOUTS, PACKED_LAYOUTS, flash_arguments, packed_arguments
from tests.support.comparison import check
from tests.support.devices import e4m3_of_bytes, last_level_cache_bytes
from tests.support.parameters import FLOATS, FORMATS, FP8_NAMES, INDEX_DTYPES, short
from tests.support.tensors import embed

OP = "gather_kv_cache"
PACKED = {"flash": {}, "packed": {"packed": True}, "interleaved": {"packed": True, "value_x": 4}}
SCALES = (1.0, 1.7e-7, 1e-40, 3e38, -2.5, 0.0, float("inf"), float("nan"))


@pytest.mark.parametrize("layout", PACKED)
@pytest.mark.parametrize("dtype", FLOATS, ids=short)
@pytest.mark.parametrize("format", FORMATS)
def test_formats_and_dtypes(device, format, dtype, layout):
    for float8 in (False, True):
        check(OP, kv_arguments(device, format=format, dtype=dtype, float8=float8, per_head=float8, **PACKED[layout]))


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("layout", PACKED)
def test_scales(device, layout, scale):
    for format in FORMATS[1:]:
        call = kv_arguments(device, format=format, nans=True, head_size=48, **PACKED[layout])
        call["k_scale"].fill_(scale)
        check(OP, call, nan_outputs=OUTPUTS)


@pytest.mark.parametrize("outputs", OUTPUT_LAYOUTS)
@pytest.mark.parametrize("cache", CACHE_LAYOUTS)
@pytest.mark.parametrize("format", ["auto", "fp8_e4m3fn"])
def test_layouts(device, format, cache, outputs):
    for head_size, value_head_size in ((64, 64), (128, 24), (7, 7)):
        options = {"head_size": head_size, "value_head_size": value_head_size, "cache": cache, "outputs": outputs}
        check(OP, kv_arguments(device, format=format, per_head=head_size == 64, **options))


@pytest.mark.parametrize("outputs", OUTPUT_LAYOUTS)
@pytest.mark.parametrize("cache", PACKED_LAYOUTS)
@pytest.mark.parametrize("format", ["auto", "fp8_e4m3fn"])
def test_packed_layouts(device, format, cache, outputs):
    for value_x in (None, 2, 8):
        check(OP, kv_arguments(device, format=format, packed=True, cache=cache, outputs=outputs, value_x=value_x))


@pytest.mark.parametrize("head_size, x", [(1, 1), (20, 4), (33, 11), (96, 1), (128, 16), (256, 256), (640, 8)])
@pytest.mark.parametrize("block_size", [1, 5, 16, 40])
def test_packed_sizes(device, block_size, head_size, x):
    for dtype in (torch.float32, torch.bfloat16):
        for format in ("auto", "fp8_e5m2"):
            options = {"head_size": head_size, "x": x, "block_size": block_size, "lengths": (5, 0, 23)}
            check(OP, kv_arguments(device, format=format, dtype=dtype, packed=True, **options))


@pytest.mark.parametrize("heads", [1, 3, 16])
@pytest.mark.parametrize("sizes", [(1, 1), (64, 8), (0, 16), (16, 0), (129, 64), (1000, 576)], ids=short)
def test_heads_and_sizes(device, sizes, heads):
    for format in ("auto", "fp8_e4m3fn"):
        options = {"heads": heads, "head_size": sizes[0], "value_head_size": sizes[1], "lengths": (5, 0, 20)}
        check(OP, kv_arguments(device, format=format, **options))


@pytest.mark.parametrize("offset", [1, 2, 4, 8])
def test_unaligned_starts(device, offset):
    for layout in PACKED.values():
        for format in ("auto", "fp8_e4m3fn"):
            call = kv_arguments(device, format=format, lengths=(5, 0, 12), blocks=3, **layout)
            for name in ("key_cache", "value_cache", "key", "value"):
                shifted = embed(call[name].shape, call[name].dtype, device, offset=offset)
                shifted.copy_(call[name])
                check(OP, copy_of(call, device) | {name: shifted})


@pytest.mark.parametrize("layout", PACKED)
@pytest.mark.parametrize("index_dtype", INDEX_DTYPES, ids=short)
@pytest.mark.parametrize("starts", [(0, 0, 0), (16, 32, 0), (5, 15, 17), (1, 100, 31)], ids=short)
def test_sequences_that_start_later(device, starts, index_dtype, layout):
    for lengths in ((20, 1, 33), (0, 50, 16)):
        options = {"lengths": lengths, "starts": starts, "index_dtype": index_dtype}
        check(OP, kv_arguments(device, **options, **PACKED[layout]))


@pytest.mark.parametrize("layout", PACKED)
@pytest.mark.parametrize("lengths", [(1,), (0,), (257,), (7, 0, 1, 33, 0), (2,) * 40, (1000, 3, 2000)], ids=short)
def test_lengths(device, lengths, layout):
    for format in ("auto", "fp8_e4m3fn"):
        check(OP, kv_arguments(device, format=format, lengths=lengths, blocks=64, **PACKED[layout]))


@pytest.mark.parametrize("layout", PACKED)
@pytest.mark.parametrize("sequences", [33, 1000, 5000])
def test_many_tiny_sequences(device, sequences, layout):
    lengths = torch.randint(0, 4, (sequences,)).tolist()
    options = {"heads": 1, "head_size": 8, "lengths": lengths, "block_size": 4}
    check(OP, kv_arguments(device, **options, **PACKED[layout]))


@pytest.mark.parametrize("layout", PACKED)
@pytest.mark.parametrize("extra_tokens", [-54, -40, -1, 0, 100])
def test_num_tokens_above_and_below_what_the_sequences_have(device, extra_tokens, layout):
    """A larger num_tokens is an upper bound. A smaller one truncates: bad later bounds and blocks are no error."""
    for starts in (None, (1, 0, 17, 3)):
        options = {"extra_tokens": extra_tokens, "starts": starts, "any_size": False}
        check(OP, kv_arguments(device, **options, **PACKED[layout]))


@pytest.mark.parametrize("layout", PACKED)
@pytest.mark.parametrize("columns", [0, 1, 3])
def test_rows_past_the_tables_width_are_left(device, columns, layout):
    call = kv_arguments(device, lengths=(50, 3, 40, 10), starts=(0, 60, 7, 200), **PACKED[layout])
    call["block_table"] = call["block_table"][:, :columns].contiguous()
    check(OP, call)


def test_more_rows_in_value_than_in_key(device):
    call = kv_arguments(device)
    check(OP, call | {"value": embed((70, 2, 64), torch.bfloat16, device)})


@pytest.mark.parametrize("name", ["auto", "float32", "float16", "bfloat16"])
def test_float_names(device, name):
    for dtype in FLOATS:
        if name in ("auto", short(dtype)):
            check(OP, kv_arguments(device, format=name, dtype=dtype, scales=False))


@pytest.mark.parametrize("name, dtype", FP8_NAMES, ids=short)
def test_fp8_names(device, name, dtype):
    call = kv_arguments(device, format=name)
    caches = {cache: embed((9, 16, 2, 64), dtype, device) for cache in ("key_cache", "value_cache")}
    check(OP, call | caches, nan_outputs=OUTPUTS, e4m3_of_bytes=e4m3_of_bytes(device))


@pytest.mark.parametrize("make", [flash_arguments, packed_arguments])
def test_reads_what_was_written(any_device, make):
    """Tokens in the slots of one sequence come back bit for bit."""
    call = make(any_device, tokens=40, blocks=3)
    blocks = torch.tensor([2, 0, 1], device=any_device)
    slots = (blocks[:, None] * 16 + torch.arange(16, device=any_device)).flatten()[:40]
    getattr(multikv, "reshape_and_cache_flash" if make is flash_arguments else "reshape_and_cache")(
        **call | {"slot_mapping": slots}
    )
    key, value = torch.empty_like(call["key"]), torch.empty_like(call["value"])
    bounds = torch.tensor([0, 40], device=any_device)
    multikv.gather_kv_cache(call["key_cache"], call["value_cache"], key, value, blocks[None], bounds, "auto")
    assert torch.equal(key.view(torch.int16), call["key"].view(torch.int16))
    assert torch.equal(value.view(torch.int16), call["value"].view(torch.int16))


@pytest.mark.parametrize("format, layout", [("auto", "flash"), ("fp8_e4m3fn", "packed"), ("auto", "interleaved")])
def test_more_rows_than_the_cpu_cache_holds(device, format, layout):
    """Nearly all rows of the output belong to no sequence."""
    extra_tokens = last_level_cache_bytes() // (2 * 2 * 256) + 1000
    check(OP, kv_arguments(device, format=format, head_size=128, extra_tokens=extra_tokens, **PACKED[layout]))


def test_nothing_to_do(device):
    for options in ({"lengths": ()}, {"lengths": (0, 0), "surplus_rows": 0}, {"heads": 0}, {"head_size": 0}):
        call = kv_arguments(device, **options)
        before = copy_of(call)["key"]
        check(OP, call)
        assert torch.equal(call["key"].cpu().view(torch.int16), before.view(torch.int16))


@st.composite
def calls(draw):
    layout = draw(st.sampled_from(list(PACKED)))
    sizes = {"head_size": 4 * draw(st.integers(1, 40)), "x": 4} if layout != "flash" else {}
    if not sizes:
        sizes = {"head_size": draw(st.integers(1, 130)), "value_head_size": draw(st.integers(1, 130))}
    options = draw(strategies.sequences())
    if layout == "interleaved":
        options["block_size"] = 4 * draw(st.integers(1, 5))
    return {
        **options,
        **PACKED[layout],
        **sizes,
        "format": draw(st.sampled_from(FORMATS)),
        "dtype": draw(st.sampled_from(FLOATS)),
        "heads": draw(st.integers(1, 5)),
        "per_head": draw(st.booleans()),
        "cache": draw(st.sampled_from(list(CACHE_LAYOUTS if layout == "flash" else PACKED_LAYOUTS))),
        "outputs": draw(st.sampled_from(OUTPUT_LAYOUTS if layout == "flash" else ["dense", "padded"])),
        "surplus_rows": draw(st.integers(0, 3)),
    }


@given(settings=calls(), scale=st.floats(width=32), seed=st.integers(0, 2**32))
def test_any_call(device, settings, scale, seed):
    torch.manual_seed(seed)
    call = kv_arguments(device, **settings)
    call["v_scale"].fill_(scale)
    check(OP, call, nan_outputs=OUTPUTS)
