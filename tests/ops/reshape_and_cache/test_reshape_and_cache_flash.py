"""reshape_and_cache_flash against its reference. All memory is compared, so that a stray byte anywhere is found."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.support.calls.reshape_and_cache import CACHE_LAYOUTS, INPUT_LAYOUTS, flash_arguments
from tests.support.comparison import check
from tests.support.devices import e4m3_of_bytes
from tests.support.parameters import FLOATS, FORMATS, FP8_NAMES, INDEX_DTYPES, short
from tests.support.tensors import cache_dtype, distinct_slots, embed, randomise, storage_bytes

OP = "reshape_and_cache_flash"


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("dtype", FLOATS, ids=short)
@pytest.mark.parametrize("cache", CACHE_LAYOUTS)
def test_cache_layouts(device, cache, dtype, format):
    for per_head in (False, True):
        check(OP, flash_arguments(device, cache=cache, dtype=dtype, format=format, heads=3, per_head=per_head))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("dtype", FLOATS, ids=short)
@pytest.mark.parametrize("inputs", INPUT_LAYOUTS)
def test_input_layouts(device, inputs, dtype, format):
    for cache in ("NHD", "HND"):
        check(OP, flash_arguments(device, inputs=inputs, cache=cache, dtype=dtype, format=format, heads=4))


@pytest.mark.parametrize("head_size", [1, 3, 16, 64, 80, 96, 112, 128, 192, 256])
@pytest.mark.parametrize("dtype", FLOATS, ids=short)
@pytest.mark.parametrize("format", FORMATS)
def test_head_sizes(device, format, dtype, head_size):
    for cache in ("NHD", "HND"):
        check(OP, flash_arguments(device, cache=cache, dtype=dtype, format=format, head_size=head_size, tokens=5))


@pytest.mark.parametrize("heads", [1, 2, 3, 8, 40])
@pytest.mark.parametrize("cache", CACHE_LAYOUTS)
def test_heads(device, cache, heads):
    for format in FORMATS:
        for per_head in (False, True):
            call = flash_arguments(device, cache=cache, heads=heads, head_size=80, format=format, per_head=per_head)
            check(OP, call)


@pytest.mark.parametrize("block_size", [1, 3, 16, 64, 128])
@pytest.mark.parametrize("tokens", [0, 1, 2, 7, 33, 257])
def test_tokens_and_block_sizes(device, tokens, block_size):
    for format, cache in (("auto", "NHD"), ("fp8_e4m3fn", "HND")):
        check(OP, flash_arguments(device, tokens=tokens, block_size=block_size, format=format, cache=cache))


@pytest.mark.parametrize("inputs", ["dense", "unaligned"])
@pytest.mark.parametrize("format", FORMATS)
def test_many_tokens(any_device, format, inputs):
    """A thread of a GPU moves several vectors: there are over 16 thread blocks for each multiprocessor."""
    sizes = {"tokens": 3000, "heads": 8, "head_size": 128, "share_of_padding": 0.1}
    check(OP, flash_arguments(any_device, format=format, inputs=inputs, **sizes))


@pytest.mark.parametrize("value_head_size", [1, 3, 64, 128])
@pytest.mark.parametrize("cache", CACHE_LAYOUTS)
def test_value_has_its_own_head_size(device, cache, value_head_size):
    for format in FORMATS:
        for inputs in ("dense", "projection"):
            sizes = {"head_size": 192, "value_head_size": value_head_size}
            check(OP, flash_arguments(device, cache=cache, inputs=inputs, format=format, **sizes))


@pytest.mark.parametrize("sizes", [(0, 64), (64, 0), (0, 0)], ids=short)
def test_empty_heads(device, sizes):
    check(OP, flash_arguments(device, head_size=sizes[0], value_head_size=sizes[1]))


def test_value_has_its_own_strides(device):
    call = flash_arguments(device, heads=3, format="fp8_e4m3fn")
    call["value"] = randomise(embed((7, 3, 64), torch.bfloat16, device, order=(1, 0, 2), padding=(2, 0, 1)))
    call["value_cache"] = embed(
        call["value_cache"].shape, torch.uint8, device, order=(2, 0, 1, 3), padding=(0, 1, 1, 7)
    )
    check(OP, call)


@pytest.mark.parametrize("name", ["auto", "float32", "float16", "bfloat16"])
def test_float_names(device, name):
    for dtype in FLOATS:
        if name in ("auto", short(dtype)):
            check(OP, flash_arguments(device, dtype=dtype, format=name))


@pytest.mark.parametrize("name, dtype", FP8_NAMES, ids=short)
def test_fp8_names(device, name, dtype):
    call = flash_arguments(device, format=name)
    for cache in ("key_cache", "value_cache"):
        call[cache] = embed(call[cache].shape, dtype, device)
    check(OP, call, e4m3_of_bytes=e4m3_of_bytes(device))


@pytest.mark.parametrize("index_dtype", INDEX_DTYPES, ids=short)
@pytest.mark.parametrize("format", FORMATS)
def test_negative_slots_are_padding(device, format, index_dtype):
    call = flash_arguments(device, tokens=33, format=format, index_dtype=index_dtype)
    call["slot_mapping"][::3] = -1
    call["slot_mapping"][1::6] = torch.iinfo(index_dtype).min
    check(OP, call)


def test_only_padding_writes_nothing(device):
    call = flash_arguments(device, tokens=33)
    call["slot_mapping"].fill_(-1)
    before = storage_bytes(call["key_cache"]).clone()
    check(OP, call)
    assert torch.equal(storage_bytes(call["key_cache"]), before)


@pytest.mark.parametrize("tokens", [0, 1, 7, 100])
def test_surplus_rows_are_not_read(device, tokens):
    for surplus in (1, 50):
        check(OP, flash_arguments(device, tokens=tokens, surplus_rows=surplus))
    call = flash_arguments(device, tokens=tokens, surplus_rows=9)
    call["value"] = call["value"][: tokens + 2]  # key and value may have different surplus
    check(OP, call)


def test_slot_mapping_inside_another_tensor(device):
    call = flash_arguments(device, tokens=9)
    slots = torch.full((20,), 10**12, device=device)  # neighbours that must not be read
    slots[5:14] = call["slot_mapping"]
    call["slot_mapping"] = slots[5:14]
    check(OP, call)


def test_first_and_last_slot(device):
    for format in FORMATS:
        call = flash_arguments(device, tokens=2, blocks=5, block_size=3, format=format)
        call["slot_mapping"].copy_(torch.tensor([14, 0]))
        check(OP, call)


def test_all_slots(device):
    check(OP, flash_arguments(device, tokens=48, blocks=3, format="fp8_e5m2"))


@pytest.mark.parametrize("format", FORMATS)
def test_duplicate_slots_of_equal_tokens(device, format):
    call = flash_arguments(device, tokens=64, format=format, inputs="padded")
    for name in ("key", "value"):
        call[name][32:] = call[name][:32]
    call["slot_mapping"][32:] = call["slot_mapping"][:32].clone()
    check(OP, call)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), "heads"], ids=str)
def test_scale_shapes(device, shape):
    call = flash_arguments(device, format="fp8_e4m3fn", heads=3)
    shape = (3,) if shape == "heads" else shape
    call["k_scale"] = torch.rand(shape, device=device) + 0.25
    call["v_scale"] = torch.rand(shape, device=device) + 0.25
    check(OP, call)


def test_scales_of_equal_size_may_differ_in_shape(device):
    call = flash_arguments(device, format="fp8_e4m3fn", heads=1)
    call["k_scale"], call["v_scale"] = torch.tensor(0.5, device=device), torch.tensor([3.0], device=device)
    check(OP, call)


def test_scales_are_not_looked_at_for_floats(device):
    call = flash_arguments(device)
    call["k_scale"] = torch.zeros(5, 5, dtype=torch.int16)
    call["v_scale"] = torch.empty(0)
    check(OP, call)


def test_no_blocks(device):
    call = flash_arguments(device, tokens=2, blocks=0)
    call["slot_mapping"] = torch.tensor([-1, -1], device=device)
    check(OP, call)


@st.composite
def calls(draw):
    """Any shapes, memory orders, paddings, offsets, formats and slots; what is random in it comes from one seed."""
    tokens, heads = draw(st.integers(0, 40)), draw(st.integers(1, 9))
    sizes = [draw(st.sampled_from([1, 2, 3, 5, 8, 16, 17, 32, 40, 64, 72, 128])) for _ in range(2)]
    blocks, block_size = draw(st.integers(1, 9)), draw(st.integers(1, 20))
    dtype, format = draw(st.sampled_from(FLOATS)), draw(st.sampled_from(FORMATS))
    stored = cache_dtype(format, dtype, float8=draw(st.booleans()))

    def anywhere(shape, dtype):
        *outer, last = range(len(shape))
        paddings = st.lists(st.integers(0, 3), min_size=len(shape), max_size=len(shape))
        options = {
            "order": (*draw(st.permutations(outer)), last),
            "padding": draw(st.none() | paddings),
            "offset": draw(st.integers(0, 8)),
        }
        return lambda device: embed(shape, dtype, device, **options)

    tensors = {
        "key": anywhere((tokens + draw(st.integers(0, 2)), heads, sizes[0]), dtype),
        "value": anywhere((tokens + draw(st.integers(0, 2)), heads, sizes[1]), dtype),
        "key_cache": anywhere((blocks, block_size, heads, sizes[0]), stored),
        "value_cache": anywhere((blocks, block_size, heads, sizes[1]), stored),
    }
    index_dtype = draw(st.sampled_from(INDEX_DTYPES))
    share_of_padding = draw(st.sampled_from([0.0, 0.2, 0.9]))
    scale_shape = draw(st.sampled_from([(), (1,), (heads,)]))
    numbers, seed = draw(st.booleans()), draw(st.integers(0, 2**32))

    def build(device):
        torch.manual_seed(seed)
        call = {name: make(device) for name, make in tensors.items()}
        if numbers:  # or else random bits, as embed left them
            randomise(call["key"]), randomise(call["value"])
        slots = torch.full((tokens,), -1, dtype=index_dtype)
        used = distinct_slots(tokens, blocks * block_size, index_dtype)
        slots[torch.randperm(tokens)[: len(used)]] = used
        slots[torch.rand(tokens) < share_of_padding] = -7
        k_scale, v_scale = torch.exp2(torch.rand(2, *scale_shape) * 12 - 6).to(device)
        call |= {"slot_mapping": slots.to(device), "kv_cache_dtype": format, "k_scale": k_scale, "v_scale": v_scale}
        return call

    return build


@given(build=calls())
def test_any_call(device, build):
    check(OP, build(device))
