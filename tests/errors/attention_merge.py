"""Bad calls of merge_attn_states."""

from __future__ import annotations

import torch

from tests.errors.bad_call import (
    EXPANDED,
    FIRST_ON_CPU,
    NONE,
    ON_CPU,
    STRIDE,
    Bad,
    every_second,
    expanded,
    on_cpu,
    to,
)
from tests.support.calls.attention import merge_arguments


def merge(what: str, changes: dict[str, object], message: str, **options: object) -> Bad:
    return Bad("merge_attn_states", merge_arguments, what, changes, message, {"exact": True} | options)


FP8 = {"output": torch.float8_e4m3fn}
REQUIRED = ("output", "prefix_output", "prefix_lse", "suffix_output", "suffix_lse")

# Good calls by default: outputs [9, 3, 40], bfloat16, lse [3, 9].
BAD_ARGUMENTS = [
    *(merge(f"{name}_none", {name: None}, NONE.format(name)) for name in REQUIRED),
    *(
        merge(f"{name}_stride", {name: every_second}, STRIDE.format(name))
        for name in ("output", "prefix_output", "suffix_output")
    ),
    *(
        merge(f"{name}_rank", {name: lambda x: x[0]}, f"{name}: expected 3 dimensions, got shape [3, 40]")
        for name in ("output", "prefix_output", "suffix_output")
    ),
    *(
        merge(f"{name}_rank", {name: lambda x: x[0]}, f"{name}: expected 2 dimensions, got shape [9]")
        for name in ("output_lse", "prefix_lse", "suffix_lse")
    ),
    *(
        merge(f"{name}_dtype", {name: to("float16")}, f"{name}: expected dtype float32, got float16")
        for name in ("output_lse", "prefix_lse", "suffix_lse")
    ),
    *(
        merge(
            f"{name}_heads",
            {name: lambda x: x[:2]},
            f"{name}: expected size 3 (heads of output) in dimension 0, got shape [2, 9]",
        )
        for name in ("output_lse", "prefix_lse", "suffix_lse")
    ),
    *(
        merge(
            f"{name}_tokens",
            {name: lambda x: x[:, :8]},
            f"{name}: expected at least 9 (tokens of output) in dimension 1, got shape [3, 8]",
        )
        for name in ("output_lse", "prefix_lse", "suffix_lse")
    ),
    *(
        merge(
            f"{name}_rows",
            {name: lambda x: x[:8]},
            f"{name}: expected at least 9 rows (tokens of output), got shape [8, 3, 40]",
        )
        for name in ("prefix_output", "suffix_output")
    ),
    *(
        merge(
            f"{name}_heads",
            {name: lambda x: x[:, :2]},
            f"{name}: expected size 3 (heads of output) in dimension 1, got shape [9, 2, 40]",
        )
        for name in ("prefix_output", "suffix_output")
    ),
    *(
        merge(
            f"{name}_head_size",
            {name: lambda x: x[:, :, :39]},
            f"{name}: expected size 40 (head size of output) in dimension 2, got shape [9, 3, 39]",
        )
        for name in ("prefix_output", "suffix_output")
    ),
    merge(
        "prefix_dtype",
        {"prefix_output": to("float64")},
        "prefix_output: expected dtype float32, float16 or bfloat16, got float64",
    ),
    merge(
        "suffix_dtype",
        {"suffix_output": to("float16")},
        "suffix_output: expected dtype bfloat16 like prefix_output, got float16",
    ),
    merge(
        "output_dtype",
        {"output": to("float16")},
        "output: expected dtype bfloat16 like prefix_output, got float16",
    ),
    merge(
        "output_dtype_with_scale",
        {"output": to("bfloat16")},
        "output: expected a float8 dtype with output_scale, got bfloat16",
        **FP8,
    ),
    merge("scale_dtype", {"output_scale": to("float64")}, "output_scale: expected dtype float32, got float64", **FP8),
    merge(
        "scale_count", {"output_scale": lambda x: x.repeat(2)}, "output_scale: expected 1 element, got shape [2]", **FP8
    ),
    merge("output_expanded", {"output": expanded(0)}, EXPANDED.format("output", 0)),
    merge("output_lse_expanded", {"output_lse": expanded(0)}, EXPANDED.format("output_lse", 0)),
    merge(
        "tokens_with_context",
        {"prefill_tokens_with_context": -1},
        "prefill_tokens_with_context: expected at least 0, got -1",
    ),
]

WRONG_DEVICES = [
    merge("output_on_cpu", {"output": on_cpu}, FIRST_ON_CPU.format("output", "output_lse")),
    *(merge(f"{name}_on_cpu", {name: on_cpu}, ON_CPU.format(name, "output")) for name in ("output_lse", *REQUIRED[1:])),
    merge("scale_on_cpu", {"output_scale": on_cpu}, ON_CPU.format("output_scale", "output"), **FP8),
]
