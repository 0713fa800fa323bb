"""reshape_and_cache against its reference. All memory is compared, so that a stray byte anywhere is found."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.support.calls.reshape_and_cache import INPUT_LAYOUTS, PACKED_LAYOUTS, packed_arguments, slots_in_runs
from tests.support.comparison import check
from tests.support.devices import e4m3_of_bytes
from tests.support.parameters import FLOATS, FORMATS, FP8_NAMES, INDEX_DTYPES, short
from tests.support.tensors import embed, randomise, storage_bytes

OP = "reshape_and_cache"
# None: the value cache is [blocks, heads, D, block_size]; else [blocks, heads, block_size / x, D, x].
VALUE_XS = (None, 8)
# Each format, and each dtype of the input, and both sizes of what is copied.
PAIRS = [
    ("auto", torch.float32),
    ("auto", torch.bfloat16),
    ("fp8_e4m3fn", torch.bfloat16),
    ("fp8_e5m2", torch.float32),
    ("fp8_e4m3fnuz", torch.float16),
    ("fp8_e5m2fnuz", torch.bfloat16),
]
each_pair = pytest.mark.parametrize("format, dtype", PAIRS, ids=short)


@pytest.mark.parametrize("value_x", VALUE_XS)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("dtype", FLOATS, ids=short)
@pytest.mark.parametrize("cache", PACKED_LAYOUTS)
def test_cache_layouts(device, cache, dtype, format, value_x):
    for per_head in (False, True):
        options = {"cache": cache, "dtype": dtype, "format": format, "value_x": value_x, "per_head": per_head}
        check(OP, packed_arguments(device, heads=3, **options))


@each_pair
@pytest.mark.parametrize("inputs", INPUT_LAYOUTS)
def test_input_layouts(device, inputs, format, dtype):
    for value_x in VALUE_XS:
        for runs in (False, True):
            options = {"dtype": dtype, "format": format, "value_x": value_x, "runs": runs}
            check(OP, packed_arguments(device, inputs=inputs, tokens=20, heads=4, **options))


@each_pair
@pytest.mark.parametrize("x", [1, 2, 3, 4, 5, 8, 16, 32])
def test_any_x(device, x, format, dtype):
    for count in (1, 3, 8):
        for value_x in VALUE_XS:
            options = {"dtype": dtype, "format": format, "value_x": value_x, "runs": count == 3}
            check(OP, packed_arguments(device, x=x, head_size=x * count, tokens=20, **options))


@each_pair
@pytest.mark.parametrize("block_size, value_x", [(1, 1), (5, 1), (5, 5), (16, 1), (16, 2), (16, 16), (12, 3), (64, 32)])
def test_any_x_of_values(device, block_size, value_x, format, dtype):
    for runs in (False, True):
        options = {"dtype": dtype, "format": format, "runs": runs}
        check(OP, packed_arguments(device, block_size=block_size, value_x=value_x, tokens=40, **options))


@each_pair
@pytest.mark.parametrize("head_size", [1, 3, 16, 64, 80, 96, 112, 120, 128, 192, 256, 576])
def test_head_sizes(device, head_size, format, dtype):
    x = 16 // (1 if format != "auto" else dtype.itemsize)
    for runs in (False, True):
        options = {"dtype": dtype, "format": format, "x": x if head_size % x == 0 else 1, "runs": runs}
        check(OP, packed_arguments(device, head_size=head_size, tokens=20, **options))


@each_pair
@pytest.mark.parametrize("head_size", [136, 144, 200, 520])
def test_head_sizes_with_long_runs(device, head_size, format, dtype):
    """Rows hold many slots, and the number of rows is no multiple of a vector."""
    for block_size in (32, 64):
        options = {"dtype": dtype, "format": format, "x": 8, "block_size": block_size, "runs": True}
        check(OP, packed_arguments(device, head_size=head_size, tokens=100, **options))


@pytest.mark.parametrize("heads, head_size", [(40, 128), (64, 128), (7, 600), (1, 6000), (513, 8), (600, 16)])
@pytest.mark.parametrize("format", ["auto", "fp8_e4m3fn"])
def test_many_vectors_of_a_token(device, format, heads, head_size):
    """The product heads * head_size / x goes from a little to much more than 512."""
    for value_x in VALUE_XS:
        for runs in (False, True):
            options = {"heads": heads, "head_size": head_size, "x": 8, "value_x": value_x, "runs": runs}
            for tokens in (5, 20):
                check(OP, packed_arguments(device, tokens=tokens, format=format, per_head=True, **options))


@pytest.mark.parametrize("block_size", [1, 3, 5, 8, 16, 32, 128])
@pytest.mark.parametrize("tokens", [0, 1, 2, 7, 33, 257])
def test_tokens_and_block_sizes(device, tokens, block_size):
    for format, runs in (("auto", False), ("fp8_e4m3fn", True)):
        for value_x in (None, 1 if block_size % 8 else 8):
            options = {"tokens": tokens, "block_size": block_size, "format": format, "runs": runs}
            check(OP, packed_arguments(device, head_size=32, value_x=value_x, **options))


@pytest.mark.parametrize("format", FORMATS)
def test_many_tokens(any_device, format):
    for value_x in VALUE_XS:
        check(OP, packed_arguments(any_device, tokens=500, heads=8, format=format, value_x=value_x, runs=True))


@pytest.mark.parametrize("first", [0, 5])
@pytest.mark.parametrize("format", FORMATS)
def test_many_tokens_of_many_heads(any_device, format, first):
    """There are enough tokens and heads for the larger tiles of a GPU; runs begin with a block or within one."""
    call = packed_arguments(any_device, tokens=200, heads=100, head_size=16, blocks=13, format=format)
    check(OP, slots_of(any_device, call, [*range(first, first + 200)]))


def slots_of(device, call, slots):
    return call | {"slot_mapping": torch.tensor(slots, dtype=call["slot_mapping"].dtype, device=device)}


# Blocks 0 to 3, of 16 slots.
SLOTS = {
    "whole_blocks": [*range(16, 32), *range(48, 64), *range(16)],
    "through_a_boundary": [*range(5, 40)],
    "descending": [*range(39, 4, -1)],
    "every_second": [*range(1, 64, 2)],
    "with_gaps_of_padding": [3, 4, -1, 5, 6, -1, -1, 7, 8, 9, 10, -2, 12, 13, 14, 15, 16, -1],
    "padding_within_a_count": [3, 4, 5, -1, 7, 8, 9, 10, 11, 12, -5, 14, 15, 16, 17, -9, 19],
    "upwards_from_padding": [-3, -2, -1, 0, 1, 2, 3, -1, 0 + 16, 17],
    "two_sequences_in_turn": [x for pair in zip(range(16, 27), range(48, 59), strict=True) for x in pair],
    "to_the_end_and_from_the_start": [60, 61, 62, 63, 0, 1, 2, 3],
    "one_at_each_end": [0, 20, 21, 22, 23, 24, 25, 26, 27, 63],
}


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", SLOTS)
def test_runs_of_slots(device, name, format):
    """Neighbouring slots of a block may be written together; what is only nearly that must not be."""
    for index_dtype in INDEX_DTYPES:
        for value_x in VALUE_XS:
            options = {"format": format, "value_x": value_x, "blocks": 4, "index_dtype": index_dtype}
            for slots in (SLOTS[name], SLOTS[name] + [-1] * 16):  # few tokens go another way on a GPU
                check(OP, slots_of(device, packed_arguments(device, tokens=len(slots), **options), slots))


@pytest.mark.parametrize("heads", [2, 80])
@pytest.mark.parametrize("other", ["elsewhere", "padding"])
@pytest.mark.parametrize("format, dtype", PAIRS[:3], ids=short)
def test_one_token_of_a_run_is_no_neighbour(any_device, format, dtype, other, heads):
    """16 runs of 16 tokens, in each of which another token goes elsewhere; in the last run, the last one.

    A GPU takes 16 tokens at a time, and of many heads 64.
    """
    slots = torch.arange(256).view(16, 16)
    if other == "elsewhere":
        slots.diagonal().add_(256)
    else:
        slots.diagonal().fill_(-1)
    call = packed_arguments(any_device, tokens=256, heads=heads, head_size=16, blocks=32, format=format, dtype=dtype)
    check(OP, slots_of(any_device, call, slots.flatten().tolist()))


@pytest.mark.parametrize("index_dtype", INDEX_DTYPES, ids=short)
@pytest.mark.parametrize("format", FORMATS)
def test_negative_slots_are_padding(device, format, index_dtype):
    for runs in (False, True):
        call = packed_arguments(device, tokens=33, format=format, index_dtype=index_dtype, runs=runs)
        call["slot_mapping"][::3] = -1
        call["slot_mapping"][1::6] = torch.iinfo(index_dtype).min
        check(OP, call)


def test_only_padding_writes_nothing(device):
    call = packed_arguments(device, tokens=33)
    call["slot_mapping"].fill_(-1)
    before = [storage_bytes(call[name]).clone() for name in ("key_cache", "value_cache")]
    check(OP, call)
    for name, bytes in zip(("key_cache", "value_cache"), before, strict=True):
        assert torch.equal(storage_bytes(call[name]), bytes)


@pytest.mark.parametrize("tokens", [0, 1, 7, 100])
def test_surplus_rows_are_not_read(device, tokens):
    for surplus in (1, 50):
        check(OP, packed_arguments(device, tokens=tokens, surplus_rows=surplus, runs=True))
    call = packed_arguments(device, tokens=tokens, surplus_rows=9)
    call["value"] = call["value"][: tokens + 2]  # key and value may have different surplus
    check(OP, call)


def test_slot_mapping_inside_another_tensor(device):
    call = packed_arguments(device, tokens=9)
    slots = torch.full((20,), 10**12, device=device)  # neighbours that must not be read
    slots[5:14] = call["slot_mapping"]
    call["slot_mapping"] = slots[5:14]
    check(OP, call)


def test_all_slots(device):
    for format in FORMATS:
        for runs in (False, True):
            check(OP, packed_arguments(device, tokens=48, blocks=3, format=format, runs=runs))


@pytest.mark.parametrize("format", FORMATS)
def test_duplicate_slots_of_equal_tokens(device, format):
    call = packed_arguments(device, tokens=64, format=format, inputs="padded")
    for name in ("key", "value"):
        call[name][32:] = call[name][:32]
    call["slot_mapping"][32:] = call["slot_mapping"][:32].clone()
    check(OP, call)


@pytest.mark.parametrize("name, dtype", FP8_NAMES, ids=short)
def test_fp8_names(device, name, dtype):
    call = packed_arguments(device, format=name)
    for cache in ("key_cache", "value_cache"):
        call[cache] = embed(call[cache].shape, dtype, device)
    check(OP, call, e4m3_of_bytes=e4m3_of_bytes(device))


@pytest.mark.parametrize("name", ["auto", "float32", "float16", "bfloat16"])
def test_float_names(device, name):
    for dtype in FLOATS:
        if name in ("auto", short(dtype)):
            check(OP, packed_arguments(device, dtype=dtype, format=name))


@pytest.mark.parametrize("shape", [(), (1,), "heads"], ids=str)
def test_scale_shapes(device, shape):
    call = packed_arguments(device, format="fp8_e4m3fn", heads=3, tokens=20, runs=True)
    for name in ("k_scale", "v_scale"):
        call[name] = torch.rand((3,) if shape == "heads" else shape, device=device) + 0.25
    check(OP, call)


def test_scales_are_not_looked_at_for_floats(device):
    call = packed_arguments(device)
    call["k_scale"] = torch.zeros(5, 5, dtype=torch.int16)
    call["v_scale"] = torch.empty(0)
    check(OP, call)


@each_pair
def test_value_has_its_own_strides(device, format, dtype):
    for runs in (False, True):
        call = packed_arguments(device, tokens=20, heads=3, dtype=dtype, format=format, runs=runs)
        call["value"] = randomise(embed((20, 3, 64), dtype, device, order=(1, 0, 2), padding=(2, 0, 1)))
        check(OP, call)


@pytest.mark.parametrize("format", ["auto", "fp8_e4m3fn"])
def test_vectors_longer_than_any_buffer(device, format):
    for x in (200, 257, 3000):
        for value_x in VALUE_XS:
            check(OP, packed_arguments(device, head_size=2 * x, x=x, value_x=value_x, format=format, runs=True))


def test_empty_heads(device):
    for value_x in VALUE_XS:
        check(OP, packed_arguments(device, head_size=0, value_x=value_x))
        check(OP, packed_arguments(device, heads=0, value_x=value_x))


def test_strides_of_single_elements_say_nothing(device):
    for value_x in (None, 1):
        call = packed_arguments(device, block_size=1, x=1, value_x=value_x)
        for name in ("key_cache", "value_cache"):
            x = call[name]
            strides = [77 if size == 1 else stride for size, stride in zip(x.shape, x.stride(), strict=True)]
            call[name] = x.as_strided(x.shape, strides)
        check(OP, call)


def test_no_blocks(device):
    check(OP, slots_of(device, packed_arguments(device, tokens=2, blocks=0), [-1, -1]))


@st.composite
def calls(draw):
    """Any shapes, memory orders, paddings, offsets, formats and slots; what is random in it comes from one seed."""
    tokens, blocks, block_size = draw(st.integers(0, 40)), draw(st.integers(1, 9)), draw(st.integers(1, 20))
    x, value_x = draw(st.sampled_from([1, 2, 3, 4, 8, 16])), draw(st.none() | st.integers(1, 9))
    shapes = {
        "tokens": tokens,
        "heads": draw(st.integers(1, 9)),
        "head_size": x * draw(st.integers(1, 9)),
        "x": x,
        "blocks": blocks,
        "block_size": block_size if value_x is None else block_size * value_x,
        "value_x": value_x,
        "surplus_rows": draw(st.integers(0, 2)),
    }
    options = {
        "dtype": draw(st.sampled_from(FLOATS)),
        "format": draw(st.sampled_from(FORMATS)),
        "float8": draw(st.booleans()),
        "inputs": draw(st.sampled_from(list(INPUT_LAYOUTS))),
        "index_dtype": draw(st.sampled_from(INDEX_DTYPES)),
        "per_head": draw(st.booleans()),
    }

    def anywhere(rank):
        order = draw(st.permutations(range(rank - 1)))
        padding = draw(st.none() | st.lists(st.integers(0, 3), min_size=rank, max_size=rank))
        return {"order": (*order, rank - 1), "padding": padding, "offset": draw(st.integers(0, 8))}

    places = {"key_cache": anywhere(5), "value_cache": anywhere(4 if value_x is None else 5)}
    runs, share_of_padding = draw(st.booleans()), draw(st.sampled_from([0.0, 0.1, 0.9]))
    numbers, seed = draw(st.booleans()), draw(st.integers(0, 2**32))

    def build(device):
        torch.manual_seed(seed)
        num_slots = blocks * shapes["block_size"]
        rows = {"tokens": 0, "surplus_rows": tokens + shapes["surplus_rows"]}
        call = packed_arguments(device, **shapes | rows, **options)
        if not numbers and options["inputs"] != "one_head_for_all":
            for name in ("key", "value"):
                call[name].copy_(embed(call[name].shape, call[name].dtype, device))
        for name, place in places.items():
            call[name] = embed(call[name].shape, call[name].dtype, device, **place)
        slots = torch.full((tokens,), -7, dtype=options["index_dtype"])
        some = min(tokens, num_slots)
        used = slots_in_runs(some, blocks, shapes["block_size"]) if runs else torch.randperm(num_slots)[:some]
        slots[:some] = used
        slots[torch.rand(tokens) < share_of_padding] = -1
        return call | {"slot_mapping": slots.to(device)}

    return build


@given(build=calls())
def test_any_call(device, build):
    check(OP, build(device))
