"""concat_and_cache_mla against its reference. All memory is compared, so that a stray byte anywhere is found."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from multikv import reference
from multikv.reference.formats import bits
from tests.support import strategies
from tests.support.calls.mla import CACHE_LAYOUTS, DS_MLA, INPUT_LAYOUTS, MLA_FORMATS, mla_arguments, slots_used_twice
from tests.support.comparison import check, run
from tests.support.devices import e4m3_of_bytes, last_level_cache_bytes
from tests.support.parameters import FLOATS, FORMATS, FP8_NAMES, INDEX_DTYPES, short
from tests.support.tensors import embed, randomise, storage_bytes

OP = "concat_and_cache_mla"
HALVES = (torch.float16, torch.bfloat16)

FORMATS_AND_DTYPES = [
    pytest.param(format, dtype, id=f"{format}-{short(dtype)}")
    for format in MLA_FORMATS
    for dtype in (HALVES if format == DS_MLA else FLOATS)
]


def check_mla(device, changes=None, **options):
    call = mla_arguments(device, **options) | (changes or {})
    check(OP, call, e4m3_of_bytes=e4m3_of_bytes(device))


@pytest.mark.parametrize("cache", CACHE_LAYOUTS)
@pytest.mark.parametrize("format, dtype", FORMATS_AND_DTYPES)
def test_cache_layouts(device, format, dtype, cache):
    check_mla(device, format=format, dtype=dtype, cache=cache)


@pytest.mark.parametrize("inputs", INPUT_LAYOUTS)
@pytest.mark.parametrize("format, dtype", FORMATS_AND_DTYPES)
def test_input_layouts(device, format, dtype, inputs):
    for cache in ("dense", "padded_slots"):
        check_mla(device, format=format, dtype=dtype, inputs=inputs, cache=cache)


@pytest.mark.parametrize("dtype", FLOATS, ids=short)
@pytest.mark.parametrize("format", FORMATS)
def test_sizes(device, format, dtype):
    for sizes in ((1, 0), (0, 1), (1, 1), (17, 0), (17, 3), (64, 64), (100, 28), (256, 32), (511, 65), (1024, 128)):
        check_mla(device, format=format, dtype=dtype, latent_size=sizes[0], rope_size=sizes[1], tokens=3)


@pytest.mark.parametrize("format", ["auto", "fp8_e5m2"])
def test_large_entries(device, format):
    for sizes in ((5000, 64), (64, 5000), (16_384, 4099)):
        check_mla(device, format=format, latent_size=sizes[0], rope_size=sizes[1], tokens=3)


def test_entries_of_nothing(device):
    check_mla(device, latent_size=0, rope_size=0)


@pytest.mark.parametrize("format", MLA_FORMATS)
@pytest.mark.parametrize("dtype", HALVES, ids=short)
@pytest.mark.parametrize("any_bits", [False, True], ids=["numbers", "any_bits"])
def test_values(device, format, dtype, any_bits):
    check_mla(device, format=format, dtype=dtype, tokens=120, any_bits=any_bits)


@pytest.mark.parametrize("block_size", [1, 5, 16, 64])
@pytest.mark.parametrize("tokens", [0, 1, 2, 7, 65])
def test_tokens_and_block_sizes(device, tokens, block_size):
    for format in ("auto", "fp8_e4m3fn", DS_MLA):
        for cache in ("dense", "padded_blocks"):
            check_mla(device, format=format, tokens=tokens, block_size=block_size, cache=cache)


@pytest.mark.parametrize("inputs", ["dense", "unaligned"])
@pytest.mark.parametrize("format", ["auto", "fp8_e4m3fn", DS_MLA])
def test_many_tokens(any_device, format, inputs):
    """A thread of a GPU moves several vectors: there are over 16 thread blocks for each multiprocessor."""
    check_mla(any_device, format=format, inputs=inputs, tokens=12000, share_of_padding=0.1)


@pytest.mark.parametrize("name", ["auto", "float32", "float16", "bfloat16"])
def test_float_names(device, name):
    for dtype in FLOATS:
        if name in ("auto", short(dtype)):
            check_mla(device, {"scale": torch.full((1,), math.nan, device=device)}, dtype=dtype, format=name)


@pytest.mark.parametrize("name, stored", FP8_NAMES, ids=short)
def test_fp8_names(device, name, stored):
    check_mla(device, format=name, stored=stored, tokens=20)


@pytest.mark.parametrize("skip_scale", [False, True])
@pytest.mark.parametrize("format", FORMATS)
def test_scales(device, format, skip_scale):
    for dtype in FLOATS:
        for i, scale in enumerate((1.0, 0.37, 1e-3, 500.0, -2.5, 1e-40, 3e38, 0.0, math.inf, math.nan)):
            changes = {"scale": torch.full((1,) * (i % 2), scale, device=device)}
            check_mla(device, changes, format=format, dtype=dtype, skip_scale=skip_scale, latent_size=100)


@pytest.mark.parametrize("index_dtype", INDEX_DTYPES, ids=short)
@pytest.mark.parametrize("format", MLA_FORMATS)
def test_negative_slots_are_padding(device, format, index_dtype):
    call = mla_arguments(device, tokens=33, format=format, index_dtype=index_dtype)
    call["slot_mapping"][::3] = -1
    call["slot_mapping"][1::6] = torch.iinfo(index_dtype).min
    check(OP, call, e4m3_of_bytes=e4m3_of_bytes(device))


def test_only_padding_writes_nothing(device):
    for format in ("auto", DS_MLA):
        call = mla_arguments(device, tokens=33, format=format)
        call["slot_mapping"].fill_(-1)
        before = storage_bytes(call["kv_cache"]).clone()
        run(OP, call)
        assert torch.equal(storage_bytes(call["kv_cache"]), before)


@pytest.mark.parametrize("tokens", [0, 1, 7, 100])
def test_surplus_rows_are_not_read(device, tokens):
    for format in ("auto", DS_MLA):
        for surplus in (1, 50):
            check_mla(device, format=format, tokens=tokens, surplus_rows=surplus)
    call = mla_arguments(device, tokens=tokens, surplus_rows=9)
    check(OP, call | {"k_pe": call["k_pe"][: tokens + 2]})  # each may have a surplus of its own


def test_slot_mapping_inside_another_tensor(device):
    call = mla_arguments(device, tokens=9)
    slots = torch.full((20,), 10**12, device=device)  # neighbours that must not be read
    slots[5:14] = call["slot_mapping"]
    check(OP, call | {"slot_mapping": slots[5:14]})


def test_first_and_last_slot(device):
    for format in MLA_FORMATS:
        slots = torch.tensor([14, 0], device=device)
        check_mla(device, {"slot_mapping": slots}, tokens=2, blocks=5, block_size=3, format=format)


def test_all_slots(device):
    for format in MLA_FORMATS:
        check_mla(device, tokens=48, blocks=3, format=format)


def test_no_blocks(device):
    check_mla(device, {"slot_mapping": torch.tensor([-1, -1], device=device)}, tokens=2, blocks=0)


def test_one_row_for_all_tokens(device):
    for format in MLA_FORMATS:
        call = mla_arguments(device, format=format)
        for name in ("kv_c", "k_pe"):
            call[name] = call[name][:1].expand(7, -1)
        check(OP, call, e4m3_of_bytes=e4m3_of_bytes(device))


def test_duplicate_slots_of_equal_tokens(device):
    for format in MLA_FORMATS:
        call = mla_arguments(device, tokens=64, format=format, inputs="padded")
        for name in ("kv_c", "k_pe"):
            call[name][32:] = call[name][:32].clone()
        call["slot_mapping"][32:] = call["slot_mapping"][:32].clone()
        check(OP, call, e4m3_of_bytes=e4m3_of_bytes(device))


def test_last_of_tokens_with_one_slot_wins(device):
    if device.type == "cuda":
        pytest.skip("any of them does")
    for _ in range(3):
        call = mla_arguments(device, tokens=16_000, latent_size=64, rope_size=8, blocks=10)
        check(OP, call | {"slot_mapping": slots_used_twice(16_000, 160)})


@pytest.mark.parametrize("format", ["auto", "fp8_e5m2", DS_MLA])
def test_bad_slots(device, format):
    """A CPU refuses the call and writes nothing, and a GPU skips the token."""
    for bad in (7 * 16, 7 * 16 + 1, 2**31 - 1, 2**62):
        call = mla_arguments(device, tokens=20, blocks=7, format=format)
        call["slot_mapping"][13] = bad
        if device.type == "cuda":
            check(OP, call, bad_indices="skip", e4m3_of_bytes=e4m3_of_bytes(device))
        else:
            before = storage_bytes(call["kv_cache"]).clone()
            with pytest.raises(IndexError, match=r"slot_mapping\[13\]"):
                run(OP, call)
            assert torch.equal(storage_bytes(call["kv_cache"]), before)


@pytest.mark.parametrize(
    "format, sizes, cache",
    [
        ("auto", (512, 64), "dense"),
        ("auto", (4997, 3), "unaligned"),
        ("fp8_e5m2", (512, 64), "dense"),
        ("fp8_e5m2", (512, 64), "padded_slots"),
        ("fp8_e5m2", (4997, 3), "dense"),
        (DS_MLA, (512, 64), "dense"),
        (DS_MLA, (512, 64), "padded_slots"),
        (DS_MLA, (512, 64), "unaligned"),
    ],
    ids=short,
)
def test_more_than_the_cpu_cache_holds(device, format, sizes, cache):
    """Nearly all tokens are padding, and the inputs of neighbouring tokens overlap: each starts one element later."""
    options = {"latent_size": sizes[0], "rope_size": sizes[1], "format": format, "cache": cache}
    call = mla_arguments(device, tokens=200, **options)
    tokens = last_level_cache_bytes() // sum(sizes) + 1000
    slots = torch.full((tokens,), -1, device=device)
    slots[500:600] = call["slot_mapping"][:100]
    slots[torch.randperm(tokens - 600, device=device)[:100] + 600] = call["slot_mapping"][100:]
    for name, size in zip(("kv_c", "k_pe"), sizes, strict=True):
        values = randomise(torch.empty(tokens + size, dtype=torch.bfloat16, device=device))
        call[name] = values.as_strided((tokens, size), (1, 1))
    check(OP, call | {"slot_mapping": slots}, e4m3_of_bytes=e4m3_of_bytes(device))


# -- fp8_ds_mla --------------------------------------------------------------------------------------------------------

DS_MLA_DTYPES = (
    torch.uint8,
    torch.float8_e4m3fn,
    torch.float8_e4m3fnuz,
    torch.bfloat16,
    torch.float16,
    torch.int16,
    torch.float32,
    torch.int32,
)


@pytest.mark.parametrize("rope_size", [64, 0])
@pytest.mark.parametrize("dtype", HALVES, ids=short)
@pytest.mark.parametrize("stored", DS_MLA_DTYPES, ids=short)
def test_ds_mla_cache_dtypes(device, stored, dtype, rope_size):
    for cache in ("dense", "padded_slots", "padded_blocks"):
        options = {"format": DS_MLA, "stored": stored, "rope_size": rope_size, "cache": cache}
        check_mla(device, dtype=dtype, tokens=20, **options)


@pytest.mark.parametrize("format", ["e4m3fn", "e4m3fnuz"])
@pytest.mark.parametrize("dtype", HALVES, ids=short)
def test_ds_mla_scales_around_powers_of_two(device, dtype, format):
    """Quotients amax / M at all powers of two and next to them, subnormal ones too: M is 7/4 times one."""
    mantissa_bits = {torch.float16: 10, torch.bfloat16: 7}[dtype]
    bits = torch.arange(2**15)
    mantissas, at = bits % 2**mantissa_bits, 3 << (mantissa_bits - 2)
    near = (mantissas == 0) | (mantissas == 2**mantissa_bits - 1) | ((mantissas - at).abs() <= 1)
    amax = bits[near].to(torch.int16).view(dtype)
    amax = amax[amax.isfinite()].float()
    amax = amax[: len(amax) // 4 * 4].view(-1, 4, 1)
    stored = reference.FP8_FORMATS[format].dtype
    call = mla_arguments(device, tokens=len(amax), dtype=dtype, format=DS_MLA, stored=stored, rope_size=0)
    tiles = (torch.rand(len(amax), 4, 128) * 2 - 1) * amax
    tiles.scatter_(2, torch.randint(128, amax.shape), torch.where(torch.rand(amax.shape) < 0.5, amax, -amax))
    call["kv_c"].copy_(tiles.flatten(1))
    check(OP, call)


def test_ds_mla_does_not_use_the_scale(device):
    for scale in (torch.full((1,), math.nan, device=device), torch.empty(0), torch.zeros(2, 3, dtype=torch.int8)):
        check_mla(device, {"scale": scale}, format=DS_MLA)


# -- any call ----------------------------------------------------------------------------------------------------------


@st.composite
def calls(draw):
    """Any sizes, memory orders, paddings, offsets, formats and slots; what is random in it comes from one seed."""
    format = draw(st.sampled_from(MLA_FORMATS))
    dtype = draw(st.sampled_from(HALVES if format == DS_MLA else FLOATS))
    sizes = st.integers(0, 40) | st.sampled_from([64, 100, 128, 512])
    options = {
        "format": format,
        "dtype": dtype,
        "float8": draw(st.booleans()),
        "latent_size": 512 if format == DS_MLA else draw(sizes),
        "rope_size": draw(st.sampled_from([64, 0])) if format == DS_MLA else draw(sizes),
        "tokens": draw(st.integers(0, 40)),
        "blocks": draw(st.integers(1, 9)),
        "block_size": draw(st.integers(1, 20)),
        "index_dtype": draw(st.sampled_from(INDEX_DTYPES)),
        "share_of_padding": draw(st.sampled_from([0.0, 0.2, 0.9])),
        "surplus_rows": draw(st.integers(0, 2)),
        "any_bits": draw(st.booleans()),
        "skip_scale": draw(st.booleans()),
    }
    return options, [draw(strategies.rows()) for _ in range(2)], draw(strategies.blocks())


@given(drawn=calls(), seed=st.integers(0, 2**32))
def test_any_call(device, drawn, seed):
    options, rows, cache = drawn
    torch.manual_seed(seed)
    call = mla_arguments(device, **options)
    for name, row_options in zip(("kv_c", "k_pe"), rows, strict=True):
        x = call[name]
        call[name] = embed(x.shape, x.dtype, device, **row_options)
        bits(call[name]).copy_(bits(x))
    call["kv_cache"] = embed(call["kv_cache"].shape, call["kv_cache"].dtype, device, **cache)
    call["scale"].copy_(torch.exp2(torch.rand(1) * 12 - 6))
    check(OP, call, e4m3_of_bytes=e4m3_of_bytes(device))
