"""qk_norm_rope_cache against the reference, and against the separate calls."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import multikv
from multikv import platforms
from tests.support.arguments import copy_of
from tests.support.calls.norm_rope import FUSED_OUTPUTS, OUTPUT_LAYOUTS, fused_arguments
from tests.support.calls.reshape_and_cache import CACHE_LAYOUTS, PACKED_LAYOUTS
from tests.support.comparison import assert_same_bytes, check, run
from tests.support.devices import e4m3_of_bytes
from tests.support.parameters import FLOATS, FORMATS, FP8_NAMES, INDEX_DTYPES, short
from tests.support.tensors import storage_bytes

OP = "qk_norm_rope_cache"
NORMS = (None, "head", "after_rope", "all_heads")
DTYPES = [  # of the elements, and of the table
    *(pytest.param(dtype, dtype, id=short(dtype)) for dtype in FLOATS),
    *(pytest.param(dtype, torch.float32, id=f"{short(dtype)}-float32") for dtype in FLOATS[1:]),
]
STYLES = pytest.mark.parametrize("is_neox", [True, False], ids=["neox", "gptj"])
FLOAT8S = (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz)


def check_fused(device, **options):
    nan_outputs = FUSED_OUTPUTS if options.get("format", "auto") == "auto" else FUSED_OUTPUTS[:2]
    nan_outputs = nan_outputs if options.get("q_dtype") is None else nan_outputs[1:]
    check(OP, fused_arguments(device, **options), nan_outputs=nan_outputs, e4m3_of_bytes=e4m3_of_bytes(device))


@STYLES
@pytest.mark.parametrize("dtype, table_dtype", DTYPES)
@pytest.mark.parametrize("norm", NORMS)
def test_norms_and_dtypes(device, norm, dtype, table_dtype, is_neox):
    options = {"dtype": dtype, "table_dtype": table_dtype, "is_neox": is_neox, "norm": norm, "k_out": True}
    check_fused(device, share_of_padding=0.2, tokens=20, **options)
    check_fused(device, head_size=128, weight_dtype=torch.float32, weight_bias=1.0, extreme=True, **options)


@pytest.mark.parametrize("per_head", [False, True], ids=["one_scale", "scale_per_head"])
@pytest.mark.parametrize("name, dtype", FP8_NAMES, ids=short)
def test_fp8_caches(device, name, dtype, per_head):
    call = fused_arguments(device, format=name, per_head=per_head, norm="head", tokens=20)
    call |= {cache: call[cache].view(dtype) for cache in ("key_cache", "value_cache")}
    check(OP, call, nan_outputs=("q_out",), e4m3_of_bytes=e4m3_of_bytes(device))


@pytest.mark.parametrize("dtype", FLOATS, ids=short)
@pytest.mark.parametrize("q_dtype", FLOAT8S, ids=short)
def test_fp8_queries(device, q_dtype, dtype):
    for outputs in OUTPUT_LAYOUTS:
        check_fused(device, dtype=dtype, q_dtype=q_dtype, outputs=outputs, norm="head", extreme=True, format="fp8")


@STYLES
@pytest.mark.parametrize("norm", [None, "head", "all_heads"])
@pytest.mark.parametrize("wild", [0.0, -0.0, 2.0**-25, 2.0**25, 2.0**112, 2.0**-130, float("inf"), float("nan")])
def test_wild_elements(device, wild, norm, is_neox):
    """One such element keeps a head, or all heads, from the faster rounding of CPUs (bfloat16_vectors.h)."""
    options = {"head_size": 128, "rotary_size": 64, "is_neox": is_neox, "norm": norm, "k_out": True, "tokens": 20}
    call = fused_arguments(device, dtype=torch.bfloat16, **options)
    for column in (3, 127):  # rotated, and not rotated
        call["qkv"][column::7, column::256] = wild
    call["qkv"][2, :128] = wild
    check(OP, call, nan_outputs=FUSED_OUTPUTS)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("cache", CACHE_LAYOUTS)
def test_caches(device, cache, format):
    check_fused(device, cache=cache, format=format, tokens=20, kv_heads=3)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("cache", PACKED_LAYOUTS)
def test_packed_caches(device, cache, format):
    for x, value_x in ((8, None), (16, 4), (4, 8), (64, 16)):
        check_fused(device, cache=cache, format=format, tokens=20, x=x, value_x=value_x, per_head=True)
    check_fused(device, cache=cache, format=format, tokens=20, x=4, head_size=12, rotary_size=8, dtype=torch.float32)
    check_fused(device, cache=cache, format=format, tokens=70, x=16, norm="head", share_of_padding=0.1)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("outputs", OUTPUT_LAYOUTS)
def test_outputs_and_inputs(device, outputs, norm):
    for offset, columns, padding in ((0, 0, 0), (1, 3, 5), (0, 8, 0), (8, 0, 16)):
        options = {"offset": offset, "columns": columns, "column_padding": padding}
        check_fused(device, outputs=outputs, norm=norm, k_out=True, **options)


@STYLES
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    "head_size, offset, size",
    [(64, 0, 32), (64, 16, 32), (64, 8, 16), (128, 64, 64), (96, 0, 96), (80, 16, 32), (256, 0, 64), (24, 8, 16)]
    + [(64, 3, 18), (1, 0, 0), (2, 0, 2), (7, 1, 6), (33, 2, 30), (66, 0, 66), (320, 32, 272), (600, 0, 600)],
)
def test_parts_of_heads(device, head_size, offset, size, norm, is_neox):
    part = {"head_size": head_size, "rotary_offset": offset, "rotary_size": size}
    check_fused(device, norm=norm, is_neox=is_neox, heads=3, k_out=True, **part)


@STYLES
@pytest.mark.parametrize("norm", NORMS[1:])
@pytest.mark.parametrize("offset", [0, 4, 8, 16])
def test_order_of_sums(device, offset, norm, is_neox):
    """In float32 no rounding hides that squares were added in another order."""
    part = {"head_size": 64, "rotary_offset": offset, "rotary_size": 32, "is_neox": is_neox}
    check_fused(device, dtype=torch.float32, norm=norm, heads=16, tokens=20, **part)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("heads, kv_heads", [(0, 1), (1, 1), (5, 3), (8, 1), (65, 2), (3, 70)])
def test_numbers_of_heads(device, heads, kv_heads, norm):
    check_fused(device, heads=heads, kv_heads=kv_heads, norm=norm, tokens=5, k_out=True)


@pytest.mark.parametrize("norm", NORMS[1:])
def test_without_rope(device, norm):
    for head_size in (64, 100):
        check_fused(device, rope=False, norm=norm, head_size=head_size)
    check_fused(device, rope=False)


@pytest.mark.parametrize("norm", NORMS[1:])
def test_without_weights(device, norm):
    check_fused(device, norm=norm, weights=False, weight_bias=1.0)
    call = fused_arguments(device, norm=norm, eps=0.0)
    call["q_weight"] = None
    check(OP, call, nan_outputs=FUSED_OUTPUTS)


@STYLES
@pytest.mark.parametrize("interleaved", [False, True], ids=["contiguous", "interleaved"])
@pytest.mark.parametrize("section", [(16, 8, 8), (11, 11, 10), (0, 0, 32), (32, 0, 0), (5, 20, 7)], ids=short)
def test_mrope(device, section, interleaved, is_neox):
    for dtype, table_dtype in ((torch.bfloat16, torch.bfloat16), (torch.float16, torch.float32)):
        options = {"dtype": dtype, "table_dtype": table_dtype, "is_neox": is_neox, "norm": "head"}
        check_fused(device, section=section, interleaved=interleaved, surplus_rows=3, **options)
    options = {"head_size": 600, "rotary_size": 580, "section": (100, 90, 100), "interleaved": interleaved}
    check_fused(device, is_neox=is_neox, **options)


@pytest.mark.parametrize("norm", NORMS)
def test_in_place(device, norm):
    for head_size, size in ((64, 64), (128, 32), (33, 30)):
        call = fused_arguments(device, norm=norm, in_place=True, head_size=head_size, rotary_size=size)
        check(OP, call, nan_outputs=("qkv", *FUSED_OUTPUTS))


@pytest.mark.parametrize("index_dtype", INDEX_DTYPES, ids=short)
@pytest.mark.parametrize("position_dtype", INDEX_DTYPES, ids=short)
def test_tokens(device, index_dtype, position_dtype):
    for tokens, surplus in ((0, 0), (0, 3), (1, 2), (33, 1), (200, 0)):
        options = {"index_dtype": index_dtype, "position_dtype": position_dtype, "share_of_padding": 0.3}
        check_fused(device, tokens=tokens, surplus_rows=surplus, norm="head", k_out=True, **options)


@pytest.mark.parametrize("options", [{"padding": (0, 6)}, {"offset": 1}, {"padding": (0, 16)}])
def test_strides_of_the_table(device, options):
    for table_dtype in (torch.bfloat16, torch.float32):
        check_fused(device, table_dtype=table_dtype, table_options=options)


@pytest.mark.parametrize("argument", ["positions", "slot_mapping"])
def test_bad_indices(device, argument):
    """A CPU refuses the call, and writes nothing. A GPU writes nothing of a token with a bad position."""
    limit = {"positions": 20, "slot_mapping": 7 * 16}[argument]
    for section in (None, (16, 8, 8)):
        for bad in (limit, 2**62, *([-1] if argument == "positions" else [])):
            call = fused_arguments(device, tokens=20, blocks=7, k_out=True, norm="head", section=section)
            at = (2, 13) if argument == "positions" and section else (13,)
            call[argument][at] = bad
            call["slot_mapping"][5] = -1
            if device.type == "cuda":
                check(OP, call, bad_indices="skip", nan_outputs=FUSED_OUTPUTS)
                continue
            before = {name: storage_bytes(call[name]).clone() for name in FUSED_OUTPUTS}
            with pytest.raises(IndexError, match=rf"{argument}\[{', '.join(map(str, at))}\]"):
                run(OP, call)
            assert all(torch.equal(storage_bytes(call[name]), x) for name, x in before.items())


@pytest.mark.parametrize("tokens", [3, 700])
@pytest.mark.parametrize("x", [None, 8])
@pytest.mark.parametrize("format", ["auto", "fp8_e4m3fn"])
@pytest.mark.parametrize("norm", [None, "head", "after_rope"])
def test_equals_the_separate_calls(device, norm, format, x, tokens):
    """rms_norm, then rotary_embedding (or the reverse), then reshape_and_cache_flash or reshape_and_cache."""
    call = fused_arguments(device, tokens=tokens, norm=norm, format=format, x=x, rotary_size=32, weight_bias=1.0)
    parts = call["qkv"].split([4 * 64, 2 * 64, 2 * 64], 1)
    q, k, v = (part.unflatten(1, (-1, 64)).clone() for part in parts)
    expected = {name: call[name].clone() for name in ("key_cache", "value_cache")}

    def norms():
        for heads, weight in ((q, call["q_weight"]), (k, call["k_weight"])):
            multikv.rms_norm(heads, heads, weight, call["eps"], 1.0)

    if norm == "head":
        norms()
    multikv.rotary_embedding(call["positions"], q, k, 64, call["cos_sin_cache"], True)
    if norm == "after_rope":
        norms()
    write = multikv.reshape_and_cache if x else multikv.reshape_and_cache_flash
    scales = call["k_scale"], call["v_scale"]
    write(k, v, expected["key_cache"], expected["value_cache"], call["slot_mapping"], format, *scales)
    run(OP, call)
    for ours, theirs in ((call["q_out"], q), *((call[name], expected[name]) for name in expected)):
        assert torch.equal(ours.contiguous().view(torch.uint8), theirs.contiguous().view(torch.uint8))


def test_last_of_tokens_with_one_slot_wins(device):
    call = fused_arguments(device, tokens=3000, blocks=10, head_size=16)
    call["slot_mapping"].copy_(torch.randint(160, (3000,)))
    if device.type == "cuda":  # any token may win, so they are equal
        call["positions"].fill_(3)
        call["qkv"].copy_(call["qkv"][:1].clone().expand(3000, -1))
    check(OP, call)


@pytest.mark.parametrize("norm", ["head", "all_heads"])
def test_more_than_the_cpu_cache_holds(device, norm):
    """The outputs are written with streaming stores. A row of qkv is at several tokens, to save memory."""
    for outputs, format in (("dense", "auto"), ("padded", "fp8_e4m3fn")):
        call = fused_arguments(device, tokens=400, heads=32, kv_heads=8, norm=norm, format=format, outputs=outputs)
        check(OP, call, nan_outputs=FUSED_OUTPUTS[:2] if format != "auto" else FUSED_OUTPUTS)


def test_instruction_sets_write_the_same_bytes():
    for format, q_dtype in (("auto", None), ("fp8", torch.float8_e4m3fn)):
        for norm in NORMS:
            for head_size in (128, 34):
                call = fused_arguments(format=format, q_dtype=q_dtype, norm=norm, head_size=head_size, tokens=40)
                results = []
                before = platforms.cpu_isa()
                for isa in platforms.cpu_isas():
                    platforms.set_cpu_isa(isa)
                    results.append(copy_of(call))
                    run(OP, results[-1])
                platforms.set_cpu_isa(before)
                for result in results[1:]:
                    assert_same_bytes(result, results[0], FUSED_OUTPUTS if format == "auto" else ())


def test_gpu_writes_what_the_cpu_writes_of_many_numbers(gpu):
    """Enough roots and divisions to meet results near the middle between two floats."""
    for norm in NORMS:
        for dtype in FLOATS:
            for head_size in (64, 128, 256):
                options = {"norm": norm, "dtype": dtype, "head_size": head_size, "weight_dtype": torch.float32}
                call = fused_arguments(tokens=2000, num_positions=500, **options)
                on_gpu = copy_of(call, gpu)
                run(OP, on_gpu)
                run(OP, call)
                assert_same_bytes(on_gpu, call, FUSED_OUTPUTS)


@pytest.mark.parametrize("format", ["auto", "fp8_e4m3fn"])
@pytest.mark.parametrize("norm", ["head", "after_rope"])
def test_gpu_writes_what_the_cpu_writes_of_many_tokens(gpu, norm, format):
    """Each group of lanes has several tokens. The last group has fewer, because the number of tokens is odd."""
    sizes = {"tokens": 2001, "heads": 32, "kv_heads": 8, "head_size": 128}
    call = fused_arguments(norm=norm, format=format, num_positions=500, share_of_padding=0.1, **sizes)
    on_gpu = copy_of(call, gpu)
    run(OP, on_gpu)
    run(OP, call)
    assert_same_bytes(on_gpu, call, FUSED_OUTPUTS if format == "auto" else FUSED_OUTPUTS[:2])


@st.composite
def calls(draw):
    x = draw(st.sampled_from([None, None, 1, 2, 4, 8]))
    head_size = draw(st.integers(1, 20) | st.sampled_from([32, 64])) * (x or 1)
    rotary_size = 2 * draw(st.integers(0, head_size // 2))
    dtype = draw(st.sampled_from(FLOATS))
    value_x = draw(st.sampled_from([None, 1, 2])) if x else None
    return {
        "format": draw(st.sampled_from(FORMATS)),
        "dtype": dtype,
        "table_dtype": draw(st.sampled_from([dtype, torch.float32])),
        "weight_dtype": draw(st.sampled_from([dtype, torch.float32])),
        "q_dtype": draw(st.sampled_from([None, None, *FLOAT8S])),
        "norm": draw(st.sampled_from(NORMS)),
        "weights": draw(st.booleans()),
        "weight_bias": draw(st.sampled_from([0.0, 1.0])),
        "eps": draw(st.sampled_from([0.0, 1e-6, 1e-5])),
        "rope": draw(st.booleans()),
        "is_neox": draw(st.booleans()),
        "tokens": draw(st.integers(0, 20)),
        "heads": draw(st.integers(0, 9)),
        "kv_heads": draw(st.integers(1, 5)),
        "head_size": head_size,
        "rotary_size": rotary_size,
        "rotary_offset": draw(st.integers(0, head_size - rotary_size)),
        "block_size": draw(st.integers(1, 10)) * (value_x or 1),
        "cache": draw(st.sampled_from(list(PACKED_LAYOUTS if x else CACHE_LAYOUTS))),
        "x": x,
        "value_x": value_x,
        "outputs": draw(st.sampled_from(list(OUTPUT_LAYOUTS))),
        "k_out": draw(st.booleans()),
        "columns": draw(st.integers(0, 9)),
        "offset": draw(st.integers(0, 8)),
        "per_head": draw(st.booleans()),
        "index_dtype": draw(st.sampled_from(INDEX_DTYPES)),
        "share_of_padding": draw(st.sampled_from([0.0, 0.3])),
        "extreme": draw(st.booleans()),
    }


@settings(max_examples=40)
@given(options=calls(), seed=st.integers(0, 2**32))
def test_any_call(device, options, seed):
    torch.manual_seed(seed)
    check_fused(device, **options)
