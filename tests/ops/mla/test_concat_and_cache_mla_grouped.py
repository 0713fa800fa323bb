"""concat_and_cache_mla_grouped against its reference, and against the calls that it stands for.

All memory is compared, so that a stray byte anywhere is found; the caches lie in the memory of kv_cache_ptrs.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.support.arguments import copy_of
from tests.support.calls.mla import GROUPED_INPUT_LAYOUTS, grouped_arguments, slots_used_twice
from tests.support.comparison import assert_same_bytes, check, run
from tests.support.devices import e4m3_of_bytes, last_level_cache_bytes
from tests.support.parameters import FLOATS, FORMATS, INDEX_DTYPES, short
from tests.support.tensors import random_bytes, storage_bytes

OP, SINGLE = "concat_and_cache_mla_grouped", "concat_and_cache_mla"


def check_grouped(device, **options):
    check(OP, grouped_arguments(device, **options), e4m3_of_bytes=e4m3_of_bytes(device))


def layer_call(call, layer):
    """The call of concat_and_cache_mla that does what `call` does for a layer."""
    memory, address = storage_bytes(call["kv_cache_ptrs"]), call["kv_cache_ptrs"][layer].item()
    stored = call["kv_c"].dtype if call["kv_cache_dtype"] == "auto" else torch.uint8
    entry = call["kv_c"].shape[2] + call["k_pe"].shape[2]
    whole = memory[address - memory.data_ptr() :]
    whole = whole[: len(whole) // 8 * 8].view(stored)
    cache = whole.as_strided(
        (call["num_blocks"], call["block_size"], entry), (call["block_stride"], call["entry_stride"], 1)
    )
    return {
        "kv_c": call["kv_c"][layer],
        "k_pe": call["k_pe"][layer],
        "kv_cache": cache,
        "slot_mapping": call["slot_mapping"][layer],
        "kv_cache_dtype": call["kv_cache_dtype"],
        "scale": torch.empty(0) if call["kv_scales"] is None else call["kv_scales"][layer],
    }


@pytest.mark.parametrize("padded", [False, True], ids=["dense", "padded"])
@pytest.mark.parametrize("dtype", FLOATS, ids=short)
@pytest.mark.parametrize("format", FORMATS)
def test_same_bytes_as_a_call_for_each_layer(device, format, dtype, padded):
    padding = {"slot_padding": 3, "block_padding": 8} if padded else {}
    call = grouped_arguments(device, format=format, dtype=dtype, layers=4, share_of_padding=0.2, **padding)
    expected = copy_of(call, device)
    for layer in range(4):
        run(SINGLE, layer_call(expected, layer))
    run(OP, call)
    assert_same_bytes(call, expected)


@pytest.mark.parametrize("dtype", FLOATS, ids=short)
@pytest.mark.parametrize("format", FORMATS)
def test_formats_and_dtypes(device, format, dtype):
    for bounded in (False, True):
        check_grouped(device, format=format, dtype=dtype, bounded=bounded)


@pytest.mark.parametrize("name", ["float32", "float16", "bfloat16", "fp8", "fp8_e4m3"])
def test_format_names(device, name):
    for dtype in FLOATS:
        if name.startswith("fp8") or name == short(dtype):
            call = grouped_arguments(device, format="fp8" if name.startswith("fp8") else "auto", dtype=dtype)
            check(OP, call | {"kv_cache_dtype": name}, e4m3_of_bytes=e4m3_of_bytes(device))


@pytest.mark.parametrize("inputs", GROUPED_INPUT_LAYOUTS)
@pytest.mark.parametrize("format", FORMATS)
def test_input_layouts(device, format, inputs):
    for one_input in (False, True):
        for dtype in FLOATS:
            check_grouped(device, format=format, dtype=dtype, inputs=inputs, one_input=one_input)


@pytest.mark.parametrize("block_padding", [0, 1, 16])
@pytest.mark.parametrize("slot_padding", [0, 1, 16])
@pytest.mark.parametrize("layer_padding", [0, 1, 7])
def test_cache_strides(device, layer_padding, slot_padding, block_padding):
    """The padding between layers gives their caches different alignments."""
    for format in ("auto", "fp8_e4m3fn"):
        paddings = {"layer_padding": layer_padding, "slot_padding": slot_padding, "block_padding": block_padding}
        check_grouped(device, format=format, **paddings)


def test_cache_orders(device):
    """Blocks may lie nearer to each other than the slots of a block. The stride of a single block or slot is free."""
    entry = 576
    for changes, options in (
        ({"block_stride": entry, "entry_stride": 3 * entry}, {"blocks": 3}),
        ({"block_stride": 0}, {"blocks": 1}),
        ({"entry_stride": 0}, {"block_size": 1, "blocks": 10}),
    ):
        for format in ("auto", "fp8_e4m3fn"):
            call = grouped_arguments(device, format=format, **options) | changes
            check(OP, call)


@pytest.mark.parametrize("sizes", [(1, 0), (0, 1), (17, 0), (17, 3), (256, 32), (511, 65), (5000, 64)], ids=short)
@pytest.mark.parametrize("format", ["auto", "fp8_e5m2"])
def test_sizes(device, format, sizes):
    for dtype in FLOATS:
        check_grouped(device, format=format, dtype=dtype, latent_size=sizes[0], rope_size=sizes[1], tokens=3)


@pytest.mark.parametrize("layers", [0, 1, 2, 61])
@pytest.mark.parametrize("tokens", [0, 1, 2, 40])
def test_layers_and_tokens(device, tokens, layers):
    for format in ("auto", "fp8_e4m3fn"):
        for one_slot_mapping in (False, True):
            options = {"format": format, "one_slot_mapping": one_slot_mapping, "latent_size": 64, "rope_size": 16}
            check_grouped(device, layers=layers, tokens=tokens, **options)


@pytest.mark.parametrize("layer_padding", [8, 3])
@pytest.mark.parametrize("inputs", ["dense", "unaligned"])
@pytest.mark.parametrize("format", ["auto", "fp8_e4m3fn"])
def test_many_tokens(any_device, format, inputs, layer_padding):
    """A thread of a GPU moves several vectors: there are over 16 thread blocks for each multiprocessor."""
    sizes = {"tokens": 6000, "blocks": 400, "layer_padding": layer_padding, "share_of_padding": 0.1}
    check(OP, grouped_arguments(any_device, format=format, inputs=inputs, **sizes))


@pytest.mark.parametrize("block_size", [1, 5, 16, 64])
def test_block_sizes(device, block_size):
    for bounded in (False, True):
        check_grouped(device, block_size=block_size, blocks=8, bounded=bounded)


@pytest.mark.parametrize("index_dtype", INDEX_DTYPES, ids=short)
@pytest.mark.parametrize("one_slot_mapping", [False, True])
def test_negative_slots_are_padding(device, index_dtype, one_slot_mapping):
    for format in ("auto", "fp8_e4m3fn"):
        for bounded in (False, True):
            options = {"index_dtype": index_dtype, "one_slot_mapping": one_slot_mapping, "bounded": bounded}
            check_grouped(device, format=format, tokens=33, share_of_padding=0.4, **options)


def test_slots_of_layers_inside_another_tensor(device):
    call = grouped_arguments(device)
    wide = torch.full((3, 30), 10**12, device=device)  # neighbours that must not be read
    wide[:, 5:12] = call["slot_mapping"]
    check(OP, call | {"slot_mapping": wide[:, 5:12]})


def test_surplus_rows_are_not_read(device):
    for inputs in GROUPED_INPUT_LAYOUTS:
        check_grouped(device, inputs=inputs, surplus_rows=5)


def test_layers_in_any_order(device):
    call = grouped_arguments(device, layers=5)
    call["kv_cache_ptrs"].copy_(call["kv_cache_ptrs"].flip(0).clone())
    check(OP, call)


def test_each_layer_has_its_scale(device):
    call = grouped_arguments(device, format="fp8_e4m3fn", layers=6)
    call["kv_scales"].copy_(torch.tensor([1.0, -0.3, 1e-40, 3e38, 0.0, float("nan")]))
    check(OP, call)


def test_last_of_tokens_with_one_slot_wins(device):
    if device.type == "cuda":
        pytest.skip("any of them does")
    for one_slot_mapping in (False, True):
        call = grouped_arguments(device, tokens=6000, latent_size=64, one_slot_mapping=one_slot_mapping)
        slots = [slots_used_twice(6000, 48) for _ in range(1 if one_slot_mapping else 3)]
        check(OP, call | {"slot_mapping": torch.stack(slots).expand(3, -1)})


@pytest.mark.parametrize("one_slot_mapping", [False, True])
@pytest.mark.parametrize("bad", [48, 49, 2**31 - 1, 2**62])
def test_bad_slots(device, bad, one_slot_mapping):
    """With num_blocks, a CPU refuses the call and writes nothing, and a GPU skips the token."""
    call = grouped_arguments(device, tokens=20, one_slot_mapping=one_slot_mapping)
    layer = 0 if one_slot_mapping else 2
    call["slot_mapping"][layer, 13] = bad
    if device.type == "cuda":
        check(OP, call, bad_indices="skip")
    else:
        before = storage_bytes(call["kv_cache_ptrs"]).clone()
        with pytest.raises(IndexError, match=r"slot_mapping\["):
            run(OP, call)
        assert torch.equal(storage_bytes(call["kv_cache_ptrs"]), before)


def test_no_blocks(device):
    call = grouped_arguments(device, blocks=0)
    check(OP, call)


@pytest.mark.parametrize("format", ["auto", "fp8_e4m3fn"])
def test_more_than_the_cpu_cache_holds(device, format):
    """Nearly all tokens are padding, and the inputs of neighbouring tokens overlap: each starts one element later."""
    call = grouped_arguments(device, tokens=200, blocks=20, format=format, slot_padding=1)
    tokens = last_level_cache_bytes() // (3 * 576) + 1000
    slots = torch.full((3, tokens), -1, device=device)
    slots[:, 500:700] = call["slot_mapping"]
    for name, size in (("kv_c", 512), ("k_pe", 64)):
        values = random_bytes(2 * (tokens + size + 3), device).view(torch.bfloat16)
        call[name] = values.as_strided((3, tokens, size), (1, 1, 1))
    check(OP, call | {"slot_mapping": slots}, e4m3_of_bytes=e4m3_of_bytes(device))


@st.composite
def calls(draw):
    sizes = st.integers(0, 40) | st.sampled_from([64, 100, 512])
    return {
        "format": draw(st.sampled_from(FORMATS)),
        "dtype": draw(st.sampled_from(FLOATS)),
        "layers": draw(st.integers(0, 5)),
        "tokens": draw(st.integers(0, 20)),
        "latent_size": draw(sizes),
        "rope_size": draw(sizes),
        "blocks": draw(st.integers(1, 9)),
        "block_size": draw(st.integers(1, 20)),
        "slot_padding": draw(st.integers(0, 3)),
        "block_padding": draw(st.integers(0, 3)),
        "layer_padding": draw(st.integers(0, 8)),
        "inputs": draw(st.sampled_from(list(GROUPED_INPUT_LAYOUTS))),
        "one_input": draw(st.booleans()),
        "one_slot_mapping": draw(st.booleans()),
        "index_dtype": draw(st.sampled_from(INDEX_DTYPES)),
        "share_of_padding": draw(st.sampled_from([0.0, 0.2, 0.9])),
        "surplus_rows": draw(st.integers(0, 2)),
        "bounded": draw(st.booleans()),
    }


@given(settings=calls(), seed=st.integers(0, 2**32))
def test_any_call(device, settings, seed):
    torch.manual_seed(seed)
    check_grouped(device, **settings)
