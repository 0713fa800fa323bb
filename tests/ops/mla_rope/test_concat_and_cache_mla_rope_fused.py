"""concat_and_cache_mla_rope_fused against its reference. All memory is compared, so that any stray byte is found."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from multikv.reference.formats import bits
from tests.support import strategies
from tests.support.arguments import Arguments, copy_of
from tests.support.calls.mla import (
    CACHE_LAYOUTS,
    DS_MLA,
    INPUT_LAYOUTS,
    MLA_FORMATS,
    QUERY_LAYOUTS,
    ROPE_OUTPUTS,
    make_slots,
    rope_arguments,
    rope_values,
    slots_used_twice,
)
from tests.support.comparison import check, run
from tests.support.devices import e4m3_of_bytes, last_level_cache_bytes
from tests.support.parameters import FLOATS, INDEX_DTYPES, short
from tests.support.tensors import embed, storage_bytes

OP = "concat_and_cache_mla_rope_fused"
HALVES = (torch.float16, torch.bfloat16)
DTYPES = [  # of queries and keys, of the table
    *(pytest.param(dtype, dtype, id=short(dtype)) for dtype in FLOATS),
    *(pytest.param(dtype, torch.float32, id=f"{short(dtype)}-float32") for dtype in HALVES),
]
STYLES = pytest.mark.parametrize("is_neox", [True, False], ids=["neox", "neighbours"])


def check_rope(device, changes: Arguments | None = None, nan_outputs=(), **options):
    call = rope_arguments(device, **options) | (changes or {})
    check(OP, call, nan_outputs=nan_outputs, e4m3_of_bytes=e4m3_of_bytes(device))


@STYLES
@pytest.mark.parametrize("dtype, table_dtype", DTYPES)
@pytest.mark.parametrize("format", MLA_FORMATS)
def test_formats_and_dtypes(device, format, dtype, table_dtype, is_neox):
    if format == DS_MLA and dtype == torch.float32:
        pytest.skip("has 16-bit elements")
    latent_size = 512 if format == DS_MLA else 40
    for k_pe_dims in (2, 3):
        options = {"dtype": dtype, "table_dtype": table_dtype, "is_neox": is_neox, "k_pe_dims": k_pe_dims}
        check_rope(device, format=format, latent_size=latent_size, tokens=20, **options)


@STYLES
@pytest.mark.parametrize("dtype, table_dtype", DTYPES)
@pytest.mark.parametrize("rope_size", [0, 2, 4, 6, 18, 64, 66, 128, 256, 258, 1000])
def test_rope_sizes(device, rope_size, dtype, table_dtype, is_neox):
    options = {"dtype": dtype, "table_dtype": table_dtype, "is_neox": is_neox}
    for format in ("auto", "fp8_e4m3fn"):
        check_rope(device, rope_size=rope_size, latent_size=17, tokens=4, format=format, **options)


@STYLES
@pytest.mark.parametrize("dtype, table_dtype", DTYPES)
def test_many_values(device, dtype, table_dtype, is_neox):
    """There are enough elements to meet every way of rounding."""
    options = {"dtype": dtype, "table_dtype": table_dtype, "is_neox": is_neox}
    check_rope(device, tokens=200, heads=16, latent_size=8, num_positions=1000, **options)


@STYLES
@pytest.mark.parametrize("dtype, table_dtype", DTYPES)
def test_extreme_values(device, dtype, table_dtype, is_neox):
    """Queries, keys and table hold infinities, NaNs and subnormals, and some products overflow."""
    options = {"dtype": dtype, "table_dtype": table_dtype, "is_neox": is_neox, "extreme": True}
    for format in ("auto", "fp8_e4m3fn", "fp8_e5m2fnuz"):
        nan_outputs = ROPE_OUTPUTS if format == "auto" else ROPE_OUTPUTS[:2]
        check_rope(device, nan_outputs=nan_outputs, tokens=100, latent_size=8, format=format, **options)


@pytest.mark.parametrize("dtype", HALVES, ids=short)
def test_extreme_values_in_ds_mla(device, dtype):
    # A cache of 16-bit elements, so that it is seen which of them are NaNs.
    check_rope(device, nan_outputs=ROPE_OUTPUTS, dtype=dtype, stored=dtype, format=DS_MLA, tokens=100, extreme=True)


@STYLES
@pytest.mark.parametrize("queries", QUERY_LAYOUTS)
@pytest.mark.parametrize("inputs", INPUT_LAYOUTS)
def test_input_layouts(device, inputs, queries, is_neox):
    for dtype in FLOATS:
        for k_pe_dims in (2, 3):
            options = {"inputs": inputs, "queries": queries, "k_pe_dims": k_pe_dims, "is_neox": is_neox}
            check_rope(device, dtype=dtype, latent_size=40, **options)


@pytest.mark.parametrize("cache", CACHE_LAYOUTS)
@pytest.mark.parametrize("format", ["auto", "fp8_e4m3fn", DS_MLA])
def test_cache_layouts(device, format, cache):
    check_rope(device, format=format, cache=cache, tokens=40)


@STYLES
@pytest.mark.parametrize("heads", [0, 1, 2, 3, 16, 40, 128])
def test_heads(device, heads, is_neox):
    for tokens in (1, 5):
        check_rope(device, heads=heads, tokens=tokens, is_neox=is_neox)
    check_rope(device, heads=heads, rope_size=6, latent_size=5, is_neox=is_neox, queries="after_nope")


@pytest.mark.parametrize("latent_size", [0, 1, 17, 100, 512, 5000])
@pytest.mark.parametrize("format", ["auto", "fp8_e5m2"])
def test_latent_sizes(device, format, latent_size):
    check_rope(device, latent_size=latent_size, format=format)


@pytest.mark.parametrize("block_size", [1, 5, 16, 64])
@pytest.mark.parametrize("tokens", [0, 1, 2, 65, 700])
def test_tokens_and_block_sizes(device, tokens, block_size):
    check_rope(device, tokens=tokens, block_size=block_size, latent_size=64)


@pytest.mark.parametrize("position_dtype", INDEX_DTYPES, ids=short)
@pytest.mark.parametrize("index_dtype", INDEX_DTYPES, ids=short)
def test_index_dtypes(device, index_dtype, position_dtype):
    options = {"index_dtype": index_dtype, "position_dtype": position_dtype, "share_of_padding": 0.3}
    check_rope(device, tokens=33, surplus_rows=5, **options)


@STYLES
@pytest.mark.parametrize("format", MLA_FORMATS)
def test_tokens_with_negative_slots_are_rotated(device, format, is_neox):
    call = rope_arguments(device, tokens=33, format=format, is_neox=is_neox)
    call["slot_mapping"][::3] = -1
    call["slot_mapping"][1::6] = torch.iinfo(torch.int64).min
    before = copy_of(call)
    check(OP, call, e4m3_of_bytes=e4m3_of_bytes(device))
    for name in ("q_pe", "k_pe"):
        assert all((call[name][t].cpu() != before[name][t]).any() for t in range(33))


@pytest.mark.parametrize("tokens", [0, 1, 7, 100])
def test_surplus_rows_are_left(device, tokens):
    for surplus in (1, 50):
        for k_pe_dims in (2, 3):
            check_rope(device, tokens=tokens, surplus_rows=surplus, k_pe_dims=k_pe_dims)
    call = rope_arguments(device, tokens=tokens, surplus_rows=9)
    for surplus, name in enumerate(("positions", "q_pe", "k_pe", "kv_c")):  # each may have a surplus of its own
        call[name] = call[name][: tokens + surplus]
    check(OP, call)


def test_all_tokens_at_one_position(device):
    for position in (0, 19):
        call = rope_arguments(device, num_positions=20)
        call["positions"].fill_(position)
        check(OP, call)


@pytest.mark.parametrize("dtype, table_dtype", DTYPES)
def test_table_layouts(device, dtype, table_dtype):
    for table_options in ({"padding": (0, 3)}, {"offset": 1}, {"padding": (0, 64), "offset": 2}):
        for is_neox in (True, False):
            options = {"dtype": dtype, "table_dtype": table_dtype, "is_neox": is_neox, "latent_size": 64}
            check_rope(device, table_options=table_options, **options)


def test_one_table_row_for_all_positions(device):
    call = rope_arguments(device)
    check(OP, call | {"cos_sin_cache": call["cos_sin_cache"][:1].expand(20, 64)})


def test_queries_and_key_in_one_tensor(device):
    """The inputs are slices of the output of one projection: queries, the latent, and the rotary key."""
    for is_neox in (True, False):
        call = rope_arguments(device, is_neox=is_neox)
        both = embed((7, 3 * 192 + 576), torch.bfloat16, device)
        q, kv_c, k_pe = both.split([3 * 192, 512, 64], -1)
        both.copy_(torch.randn(both.shape))
        check(OP, call | {"q_pe": q.unflatten(1, (3, 192))[..., 128:], "k_pe": k_pe, "kv_c": kv_c})


def test_latent_is_copied_bit_by_bit(device):
    for dtype in FLOATS:
        call = rope_arguments(device, dtype=dtype)
        bits(call["kv_c"]).random_(-(2**15), 2**15)
        check(OP, call)


@pytest.mark.parametrize("float8", [torch.float8_e4m3fn, torch.float8_e4m3fnuz], ids=short)
def test_float8_caches(device, float8):
    for format in ("fp8", DS_MLA):
        check_rope(device, format=format, stored=float8)


@pytest.mark.parametrize("argument", ["positions", "slot_mapping"])
def test_bad_indices(device, argument):
    """A CPU refuses the call, and writes nothing. A GPU does not cache the token, nor rotate it at a bad position."""
    limit = {"positions": 20, "slot_mapping": 7 * 16}[argument]
    bad_ones = [limit, limit + 1, 2**31 - 1, 2**62, *([-1, -(2**62)] if argument == "positions" else [])]
    for bad in bad_ones:
        call = rope_arguments(device, tokens=20, blocks=7, num_positions=20)
        call[argument][13] = bad
        call["slot_mapping"][5] = -1
        if device.type == "cuda":
            check(OP, call, bad_indices="skip")
            continue
        before = {name: storage_bytes(call[name]).clone() for name in ROPE_OUTPUTS}
        with pytest.raises(IndexError, match=rf"{argument}\[13\]"):
            run(OP, call)
        assert all(torch.equal(storage_bytes(call[name]), x) for name, x in before.items())


def test_padding_with_bad_positions(gpu):
    call = rope_arguments(gpu, tokens=20, num_positions=20)
    call["slot_mapping"][::2] = -1
    call["positions"][::3] = 20
    check(OP, call, bad_indices="skip")


def test_last_of_tokens_with_one_slot_wins(device):
    """On a CPU the last token wins with any number of threads; on a GPU any token may, so equal tokens are written."""
    for _ in range(3):
        call = rope_arguments(device, tokens=16_000, heads=1, latent_size=64, rope_size=8, blocks=10)
        call["slot_mapping"].copy_(slots_used_twice(16_000, 160))
        if device.type == "cuda":
            for name in ("positions", "k_pe", "kv_c"):
                call[name][1:] = call[name][:1].clone()
        check(OP, call)


@pytest.mark.parametrize(
    "format, latent_size, cache",
    [("auto", 4032, "dense"), ("fp8_e4m3fn", 4029, "padded_slots"), (DS_MLA, 512, "dense")],
    ids=short,
)
def test_more_than_the_cpu_cache_holds(device, format, latent_size, cache):
    """Nearly all tokens are padding, and the latents of neighbouring tokens overlap: each starts one element later."""
    tokens = last_level_cache_bytes() // (latent_size + 64) + 1000
    call = rope_arguments(device, latent_size=latent_size, blocks=30, format=format, cache=cache)
    slots = torch.full((tokens,), -1)
    slots[500:800] = make_slots(300, 30 * 16, torch.int64, 0.0)
    latents = torch.randn(tokens + latent_size).bfloat16().to(device)
    call |= {
        "positions": torch.randint(20, (tokens,), device=device),
        "q_pe": rope_values((tokens, 1, 64), torch.bfloat16).to(device),
        "k_pe": rope_values((tokens, 64), torch.bfloat16).to(device),
        "kv_c": latents.as_strided((tokens, latent_size), (1, 1)),
        "slot_mapping": slots.to(device),
    }
    check(OP, call, e4m3_of_bytes=e4m3_of_bytes(device))


@st.composite
def calls(draw):
    """Any sizes, memory orders, paddings, offsets, formats and slots; what is random in it comes from one seed."""
    format = draw(st.sampled_from(MLA_FORMATS))
    dtype = draw(st.sampled_from(HALVES if format == DS_MLA else FLOATS))
    options = {
        "format": format,
        "dtype": dtype,
        "table_dtype": draw(st.sampled_from([dtype, torch.float32])),
        "is_neox": draw(st.booleans()),
        "heads": draw(st.integers(1, 9)),
        "latent_size": 512 if format == DS_MLA else draw(st.integers(0, 40) | st.sampled_from([64, 512])),
        "rope_size": 64 if format == DS_MLA else 2 * draw(st.integers(1, 40) | st.sampled_from([64, 200])),
        "k_pe_dims": draw(st.sampled_from([2, 3])),
        "num_positions": draw(st.integers(1, 9)),
        "tokens": draw(st.integers(0, 20)),
        "blocks": draw(st.integers(1, 9)),
        "block_size": draw(st.integers(1, 20)),
        "index_dtype": draw(st.sampled_from(INDEX_DTYPES)),
        "position_dtype": draw(st.sampled_from(INDEX_DTYPES)),
        "share_of_padding": draw(st.sampled_from([0.0, 0.2, 0.9])),
        "surplus_rows": draw(st.integers(0, 2)),
        "queries": draw(st.sampled_from(list(QUERY_LAYOUTS))),
        "inputs": draw(st.sampled_from(list(INPUT_LAYOUTS))),
        "table_options": draw(strategies.rows()),
        "extreme": draw(st.booleans()),
    }
    if options["inputs"] == "projection":  # kv_c has NaNs of k_pe in its memory, and is compared byte for byte
        options["extreme"] = False
    return options, draw(strategies.blocks())


@given(drawn=calls(), seed=st.integers(0, 2**32))
def test_any_call(device, drawn, seed):
    options, cache = drawn
    torch.manual_seed(seed)
    if options["format"] == DS_MLA:
        options["stored"] = options["dtype"]
    call = rope_arguments(device, **options)
    call["kv_cache"] = embed(call["kv_cache"].shape, call["kv_cache"].dtype, device, **cache)
    is_float = call["kv_cache"].dtype == options["dtype"]
    nan_outputs = ROPE_OUTPUTS if is_float else ROPE_OUTPUTS[:2]
    check(OP, call, nan_outputs=nan_outputs, e4m3_of_bytes=e4m3_of_bytes(device))
