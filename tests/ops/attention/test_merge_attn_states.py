"""merge_attn_states against float64 arithmetic, and against attention over all keys at once."""

from __future__ import annotations

import pytest
import torch

import multikv
from multikv import reference
from tests.support.arguments import copy_of
from tests.support.attention import assert_within, attend, bounds_of, exact_rows, weight_dtype_of
from tests.support.calls.attention import attention_arguments, merge_arguments
from tests.support.comparison import assert_same_bytes
from tests.support.parameters import FLOATS, FP8_FORMATS, short

INFINITY = float("inf")


def merged(call):
    call = copy_of(call, None)
    multikv.merge_attn_states(**call)
    return call


def check_merge(call):
    """Weights have errors of 2^-20, relative to the larger side; the output is rounded once."""
    ours, expected = merged(call), copy_of(call)
    reference.merge_attn_states(**expected)
    count = len(call["output"])
    wide = copy_of(call) | {name: call[name].cpu().double() for name in ("prefix_output", "suffix_output")}
    wide["output"] = torch.empty(call["output"].shape, dtype=torch.float64)
    wide["output_lse"] = torch.empty(call["output_lse"].shape)
    reference.merge_attn_states(**wide)
    sides = torch.maximum(wide["prefix_output"][:count].abs(), wide["suffix_output"][:count].abs())
    sides = sides.nan_to_num(0, 0, 0)
    rounding = torch.finfo(call["output"].dtype).eps
    bound = rounding * wide["output"].abs() + 2.0**-20 * sides + torch.finfo(call["output"].dtype).smallest_normal
    assert_within(ours["output"], wide["output"], bound, "output")
    lse = wide["output_lse"].double()
    assert_within(ours["output_lse"][:, :count], lse[:, :count], 2.0**-21 * (1 + lse[:, :count].abs()), "output_lse")
    restored = copy_of(ours, None)
    restored["output"].copy_(call["output"])
    restored["output_lse"][:, :count] = call["output_lse"][:, :count]
    assert_same_bytes(restored, call)
    return ours


@pytest.mark.parametrize("dtype", FLOATS, ids=short)
@pytest.mark.parametrize("head_size", [1, 40, 128, 300])
def test_merge(device, dtype, head_size):
    check_merge(merge_arguments(device, dtype=dtype, head_size=head_size, surplus=2))


def test_many_tokens(device):
    check_merge(merge_arguments(device, tokens=500, heads=8, head_size=128))


@pytest.mark.parametrize("dtype", FLOATS, ids=short)
def test_empty_sides_are_ignored_and_the_other_copied(device, dtype):
    call = merge_arguments(device, dtype=dtype)
    call["prefix_lse"][:, 0], call["prefix_lse"][:, 1] = INFINITY, -INFINITY
    call["prefix_output"][:2] = float("nan")
    call["suffix_lse"][:, 2], call["suffix_lse"][:, 3] = INFINITY, -INFINITY
    call["suffix_output"][2:4] = INFINITY
    for lse, value in (("prefix_lse", INFINITY), ("suffix_lse", -INFINITY)):
        call[lse][:, 4] = value
    ours = merged(call)
    assert torch.equal(ours["output"][:2], call["suffix_output"][:2])
    assert torch.equal(ours["output_lse"][:, :2], call["suffix_lse"][:, :2])
    assert torch.equal(ours["output"][2:4], call["prefix_output"][2:4])
    assert torch.equal(ours["output_lse"][:, 2:4], call["prefix_lse"][:, 2:4])
    assert not ours["output"][4].any() and (ours["output_lse"][:, 4] == -INFINITY).all()


def test_nan_lse(device):
    call = merge_arguments(device)
    call["prefix_lse"][1, 2] = call["suffix_lse"][0, 3] = float("nan")
    ours = merged(call)
    is_nan = ours["output_lse"].isnan()
    assert is_nan[1, 2] and is_nan[0, 3] and is_nan.sum() == 2
    assert ours["output"][2, 1].isnan().all() and ours["output"][3, 0].isnan().all()
    assert ours["output"].isnan().sum() == 2 * 40


@pytest.mark.parametrize("count", [0, 4, 9, 100])
def test_rows_without_context_are_copied_from_the_suffix(device, count):
    call = merge_arguments(device, prefill_tokens=count)
    call["suffix_lse"][:, 6] = INFINITY
    ours, everything = merged(call), merged(call | {"prefill_tokens_with_context": None})
    assert torch.equal(ours["output"][:count], everything["output"][:count])
    assert torch.equal(ours["output"][count:], call["suffix_output"][count:9])
    assert torch.equal(ours["output_lse"][:, count:], call["suffix_lse"][:, count:9])


@pytest.mark.parametrize("side", ["prefix_output", "suffix_output"])
def test_in_place(device, side):
    call = merge_arguments(device)
    expected = merged(call)
    call["output"] = call[side]
    multikv.merge_attn_states(**call)
    assert torch.equal(call["output"], expected["output"])


@pytest.mark.parametrize("format", FP8_FORMATS)
def test_quantised_output(device, format):
    """The codes are those of the merged numbers, or neighbours where float32 arithmetic differs in its last bits."""
    dtype = reference.FP8_FORMATS[format].dtype
    call = merge_arguments(device, dtype=torch.float32, output=dtype, tokens=60)
    call["prefix_lse"][:, 5] = INFINITY
    floats = merged(call | {"output": torch.empty(60, 3, 40, device=device), "output_scale": None})["output"]
    codes = reference.quantise(floats, call["output_scale"], format)
    assert torch.equal(merged(call)["output"].view(torch.uint8).cpu(), codes)


def test_halves_of_the_keys(device):
    """Attention over the first keys, merged with attention over the others, as two ranks of context parallelism do."""
    n, split = 300, 130
    call = attention_arguments(device, lengths=(n,), query_lens=(5,), causal=False, block_size=1, dtype=torch.float32)
    whole = list(exact_rows(call))
    parts = []
    for begin, end in ((0, split), (split, n)):
        table = call["block_table"][:, begin:end].contiguous()
        length = torch.tensor([end - begin], dtype=torch.int32, device=device)
        parts.append(attend(call | {"block_table": table, "seq_lens": length}))
    a, b = parts
    ours = merged(
        {
            "output": torch.empty_like(a["out"]),
            "output_lse": torch.empty_like(a["lse"]),
            "prefix_output": a["out"],
            "prefix_lse": a["lse"],
            "suffix_output": b["out"],
            "suffix_lse": b["lse"],
        }
    )
    for result in whole:
        out_bound, lse_bound = bounds_of(result, call, weight_dtype_of(call))
        assert_within(ours["output"][result.row], result.out, 3 * out_bound, "output")
        assert_within(ours["output_lse"][:, result.row], result.lse, 3 * lse_bound, "output_lse")
