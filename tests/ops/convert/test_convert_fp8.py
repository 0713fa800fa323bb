"""convert_fp8 against its reference. All memory is compared, so that a stray byte anywhere is found."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.support.calls.convert import convert_arguments
from tests.support.comparison import check, run
from tests.support.devices import e4m3_of_bytes
from tests.support.parameters import FLOATS, FORMATS, short
from tests.support.tensors import embed, random_bytes, storage_bytes

OP = "convert_fp8"
BOTH_WAYS = pytest.mark.parametrize("to_fp8", [True, False], ids=["to_fp8", "from_fp8"])
EACH_FORMAT = pytest.mark.parametrize("format", FORMATS[1:])
EACH_DTYPE = pytest.mark.parametrize("dtype", FLOATS, ids=short)


def compare(call, **options):
    check(OP, call, nan_outputs=("dst_cache",) if call["dst_cache"].dtype in FLOATS else (), **options)


@BOTH_WAYS
@EACH_DTYPE
@EACH_FORMAT
def test_formats_and_dtypes(device, format, dtype, to_fp8):
    for float8 in (False, True):
        check(OP, convert_arguments(device, format=format, dtype=dtype, float8=float8, to_fp8=to_fp8))


@BOTH_WAYS
@EACH_DTYPE
@EACH_FORMAT
@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 63, 64, 65, 127, 129, 1000, 4099])
def test_sizes_and_starts(device, count, format, dtype, to_fp8):
    """The tensors are one-dimensional slices that begin and end at any element."""
    for starts in ((0, 0), (1, 0), (0, 1), (3, 5), (8, 4)):
        places = {f"{end}_options": {"offset": start} for end, start in zip(("src", "dst"), starts, strict=True)}
        check(OP, convert_arguments(device, format=format, dtype=dtype, to_fp8=to_fp8, shape=(count,), **places))


# name -> shape, options of embed for one side, for the other
LAYOUTS = {
    "scalar": ((), {}, {}),
    "one_element": ((1, 1, 1), {}, {"padding": (1, 1, 1)}),
    "dense": ((4, 6, 5), {}, {}),
    "dense_5d": ((3, 2, 4, 3, 8), {}, {}),
    "padded_rows": ((4, 6, 33), {"padding": (0, 0, 3)}, {}),
    "padded_blocks": ((4, 6, 32), {}, {"padding": (0, 5, 0)}),
    "padded_alike": ((4, 6, 32), {"padding": (0, 2, 16)}, {"padding": (0, 2, 16)}),
    "padded_otherwise": ((4, 6, 32), {"padding": (0, 1, 16)}, {"padding": (0, 2, 5)}),
    "permuted_alike": ((4, 6, 5, 40), {"order": (0, 2, 1, 3)}, {"order": (0, 2, 1, 3)}),
    "permuted": ((4, 6, 5, 40), {"order": (0, 2, 1, 3)}, {}),
    "permuted_other": ((4, 6, 5, 40), {}, {"order": (2, 1, 0, 3), "offset": 1}),
    "permuted_padded": ((4, 6, 5, 7), {"order": (1, 2, 0, 3), "padding": (1, 0, 2, 1)}, {"order": (0, 2, 1, 3)}),
    "many_dimensions": ((2, 3, 2, 2, 3, 2, 4), {"order": (2, 0, 1, 3, 4, 5, 6)}, {"padding": (0, 0, 1, 0, 1, 0, 3)}),
    "many_dense_dimensions": ((2, 3, 2, 2, 3, 2), {"order": (5, 2, 4, 0, 1, 3)}, {"order": (5, 2, 4, 0, 1, 3)}),
    "innermost_elsewhere": ((4, 6, 5, 7), {"order": (0, 3, 1, 2)}, {}),
    "innermost_elsewhere_alike": ((4, 6, 5, 7), {"order": (0, 3, 1, 2)}, {"order": (0, 3, 1, 2)}),
    "transposed": ((40, 70), {"order": (1, 0)}, {"padding": (0, 3)}),
    "every_innermost_apart": ((3, 4, 5, 6), {"order": (3, 2, 1, 0), "padding": (1, 1, 1, 1)}, {"order": (2, 3, 0, 1)}),
    "long_rows": ((3, 5000), {"padding": (0, 1)}, {"padding": (0, 8)}),
    "columns": ((5000, 1), {"padding": (0, 2)}, {"padding": (0, 1)}),
    "nothing": ((3, 0, 4), {}, {}),
    "no_rows": ((0, 5), {}, {"padding": (0, 3)}),
}


@BOTH_WAYS
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(device, layout, to_fp8):
    shape, *options = LAYOUTS[layout]
    for dtype in FLOATS:
        for src, dst in (options, options[::-1]):
            places = {"src_options": src, "dst_options": dst}
            check(OP, convert_arguments(device, shape=shape, dtype=dtype, to_fp8=to_fp8, format="fp8_e5m2", **places))


@BOTH_WAYS
def test_one_block_of_a_cache_of_two(device, to_fp8):
    """The call converts K of a tensor that holds K and V, and leaves every element of V."""
    call = convert_arguments(device, shape=(4, 2, 16, 8), to_fp8=to_fp8)
    for name in ("dst_cache", "src_cache"):
        call[name] = call[name][:, 1]
    check(OP, call)


@BOTH_WAYS
def test_source_that_repeats(device, to_fp8):
    call = convert_arguments(device, shape=(4, 1, 24), to_fp8=to_fp8)
    call["src_cache"] = call["src_cache"].expand(4, 5, 24)
    call["dst_cache"] = embed((4, 5, 24), call["dst_cache"].dtype, device, padding=(0, 0, 2))
    check(OP, call)


def test_scale_may_be_an_integer(device):
    check(OP, convert_arguments(device, scale=3))


@pytest.mark.parametrize(
    "name, dtype",
    [
        ("fp8", torch.uint8),
        ("fp8", torch.float8_e4m3fn),
        ("fp8", torch.float8_e4m3fnuz),
        ("fp8_e4m3", torch.uint8),
        ("fp8_e4m3", torch.float8_e4m3fn),
        ("fp8_e4m3", torch.float8_e4m3fnuz),
        ("fp8_e4m3fn", torch.float8_e4m3fn),
        ("fp8_e5m2", torch.float8_e5m2),
        ("fp8_e4m3fnuz", torch.float8_e4m3fnuz),
        ("fp8_e5m2fnuz", torch.float8_e5m2fnuz),
    ],
    ids=short,
)
@BOTH_WAYS
def test_names(device, name, dtype, to_fp8):
    call = convert_arguments(device, format=name, to_fp8=to_fp8, nans=True)
    side = "dst_cache" if to_fp8 else "src_cache"
    call[side] = call[side].view(dtype)
    compare(call, e4m3_of_bytes=e4m3_of_bytes(device))


@BOTH_WAYS
@EACH_FORMAT
def test_many_elements(device, format, to_fp8):
    for dtype in FLOATS:
        check(OP, convert_arguments(device, format=format, dtype=dtype, to_fp8=to_fp8, shape=(3, 50_001)))


@EACH_FORMAT
@EACH_DTYPE
def test_there_and_back(device, dtype, format):
    """Every code that is a number comes back, from any of the float dtypes."""
    call = convert_arguments(device, format=format, dtype=dtype, to_fp8=False, shape=(256,), scale=1.0)
    codes, floats = call["src_cache"], call["dst_cache"]
    codes.copy_(torch.arange(256))
    run(OP, call)
    again = torch.empty_like(codes)
    run(OP, call | {"dst_cache": again, "src_cache": floats})
    numbers = floats.isfinite()
    assert numbers.sum() == {"fp8_e4m3fn": 254, "fp8_e5m2": 248}.get(format, 255)
    assert torch.equal(again[numbers], codes[numbers])


def test_in_one_storage(device):
    """The two sides may lie beside each other."""
    storage = random_bytes(3000, device)
    codes, floats = storage[:900], storage[900:2700].view(torch.float16)
    check(OP, {"dst_cache": codes, "src_cache": floats, "scale": 2.5, "kv_cache_dtype": "fp8_e5m2"})


@st.composite
def calls(draw):
    """Any shape, and any memory order, padding and start on either side; what is random comes from one seed."""
    rank = draw(st.integers(1, 4))
    shape = tuple(draw(st.lists(st.sampled_from([1, 2, 3, 4, 5, 8]), min_size=rank - 1, max_size=rank - 1)))
    shape += (draw(st.sampled_from([0, 1, 2, 3, 7, 8, 16, 24, 33, 64, 100])),)

    def place():
        padding = draw(st.none() | st.lists(st.integers(0, 3), min_size=rank, max_size=rank))
        return {"order": draw(st.permutations(range(rank))), "padding": padding, "offset": draw(st.integers(0, 8))}

    options = {
        "shape": shape,
        "to_fp8": draw(st.booleans()),
        "dtype": draw(st.sampled_from(FLOATS)),
        "format": draw(st.sampled_from(FORMATS[1:])),
        "float8": draw(st.booleans()),
        "nans": draw(st.booleans()),
        "scale": draw(st.floats(2.0**-20, 2.0**20) | st.floats()),
        "src_options": place(),
        "dst_options": place(),
    }
    numbers, seed = draw(st.booleans()), draw(st.integers(0, 2**32))

    def build(device):
        torch.manual_seed(seed)
        call = convert_arguments(device, **options)
        if not numbers and options["to_fp8"]:
            bytes = storage_bytes(call["src_cache"])
            bytes.copy_(random_bytes(len(bytes)))
        return call

    return build


@given(build=calls())
def test_any_call(device, build):
    compare(build(device))
