"""rotary_embedding against the reference."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.support.calls.norm_rope import OUTPUT_LAYOUTS, ROTARY_OUTPUTS, rotary_arguments
from tests.support.comparison import check, run
from tests.support.parameters import FLOATS, INDEX_DTYPES, short
from tests.support.tensors import storage_bytes

OP = "rotary_embedding"


def check_rotary(device, **options):
    check(OP, rotary_arguments(device, **options), nan_outputs=ROTARY_OUTPUTS)


@pytest.mark.parametrize("is_neox", [True, False], ids=["neox", "gptj"])
@pytest.mark.parametrize("table", ["same", "float32"])
@pytest.mark.parametrize("dtype", FLOATS, ids=short)
def test_dtypes(device, dtype, table, is_neox):
    options = {"dtype": dtype, "table_dtype": dtype if table == "same" else torch.float32, "is_neox": is_neox}
    for flat in (False, True):
        check_rotary(device, flat=flat, **options)
    check_rotary(device, tokens=30, extreme=True, **options)


@pytest.mark.parametrize("is_neox", [True, False], ids=["neox", "gptj"])
@pytest.mark.parametrize(
    "head_size, size", [(64, 32), (128, 128), (128, 64), (80, 32), (6, 4), (3, 0), (33, 30), (576, 64)]
)
def test_parts_of_heads(device, head_size, size, is_neox):
    for layout in OUTPUT_LAYOUTS:
        check_rotary(device, head_size=head_size, rotary_size=size, is_neox=is_neox, layout=layout)
    check_rotary(device, head_size=head_size, rotary_size=size, is_neox=is_neox, flat=True, layout="padded")


@pytest.mark.parametrize("heads, kv_heads", [(1, None), (8, 1), (0, 2), (3, 0), (70, 7)])
@pytest.mark.parametrize("tokens", [0, 1, 300])
def test_sizes(device, tokens, heads, kv_heads):
    check_rotary(device, tokens=tokens, heads=heads, kv_heads=kv_heads)


@pytest.mark.parametrize("position_dtype", INDEX_DTYPES, ids=short)
def test_bad_positions(device, position_dtype):
    for bad in (20, -1, 2**31 - 1):
        call = rotary_arguments(device, position_dtype=position_dtype)
        call["positions"][4] = bad
        if device.type == "cuda":
            check(OP, call, bad_indices="skip")
            continue
        before = [storage_bytes(call[name]).clone() for name in ROTARY_OUTPUTS]
        with pytest.raises(IndexError, match=r"positions\[4\]"):
            run(OP, call)
        assert all(torch.equal(storage_bytes(call[name]), x) for name, x in zip(ROTARY_OUTPUTS, before, strict=True))


@st.composite
def calls(draw):
    head_size = draw(st.integers(1, 40) | st.sampled_from([64, 128]))
    dtype = draw(st.sampled_from(FLOATS))
    return {
        "dtype": dtype,
        "table_dtype": draw(st.sampled_from([dtype, torch.float32])),
        "is_neox": draw(st.booleans()),
        "tokens": draw(st.integers(0, 20)),
        "heads": draw(st.integers(0, 9)),
        "kv_heads": draw(st.sampled_from([None, 1, 3])),
        "head_size": head_size,
        "rotary_size": 2 * draw(st.integers(0, head_size // 2)),
        "layout": draw(st.sampled_from(list(OUTPUT_LAYOUTS))),
        "table_options": {"padding": (0, draw(st.integers(0, 9))), "offset": draw(st.integers(0, 8))},
    }


@given(options=calls(), seed=st.integers(0, 2**32))
def test_any_call(device, options, seed):
    torch.manual_seed(seed)
    check_rotary(device, **options)
