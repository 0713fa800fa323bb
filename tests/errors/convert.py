"""Bad calls of convert_fp8."""

from __future__ import annotations

import torch

from tests.errors.bad_call import EXPANDED, FIRST_ON_CPU, NONE, ON_CPU, Bad, expanded, on_cpu, to
from tests.support.calls.convert import convert_arguments


def convert(what: str, changes: dict[str, object], message: str, **options: object) -> Bad:
    return Bad("convert_fp8", convert_arguments, what, changes, message, options)


FORMAT_NAMES = "fp8, fp8_e4m3, fp8_e5m2, fp8_e4m3fn, fp8_e4m3fnuz, fp8_e5m2fnuz"


def scattered(x: torch.Tensor) -> torch.Tensor:
    """[2] * 10, of which no two dimensions follow each other in memory."""
    return x.new_zeros((3,) * 10)[(slice(2),) * 10]


# Good calls by default: dst_cache uint8 and src_cache bfloat16 [5, 3, 40], fp8_e4m3fn.
BAD_ARGUMENTS = [
    *(convert(f"{name}_none", {name: None}, NONE.format(name)) for name in ("dst_cache", "src_cache")),
    convert("ranks", {"src_cache": lambda x: x[0]}, "src_cache: expected 3 dimensions, got shape [3, 40]"),
    convert(
        "sizes",
        {"src_cache": lambda x: x[:, :2]},
        "src_cache: expected size 3 (size of dst_cache) in dimension 1, got shape [5, 2, 40]",
    ),
    convert("dst_expanded", {"dst_cache": expanded(1)}, EXPANDED.format("dst_cache", 1)),
    *(
        convert(
            f"format_{name or 'empty'}",
            {"kv_cache_dtype": name},
            f"kv_cache_dtype: expected one of {FORMAT_NAMES}, got '{name}'",
        )
        for name in ("auto", "bfloat16", "fp8_ds_mla", "int8", "")
    ),
    convert(
        "two_floats",
        {"dst_cache": to("float32")},
        "src_cache: expected dtype uint8 or float8_e4m3fn, got bfloat16",
    ),
    convert(
        "two_fp8",
        {"src_cache": to("uint8")},
        "src_cache: expected dtype float32, float16 or bfloat16, got uint8",
    ),
    convert(
        "dst_int64",
        {"dst_cache": to("int64")},
        "dst_cache: expected dtype uint8, float8_e4m3fn or float8_e4m3fnuz, got int64",
        format="fp8",
    ),
    convert(
        "src_float64",
        {"src_cache": to("float64")},
        "src_cache: expected dtype float32, float16 or bfloat16, got float64",
    ),
    convert(
        "dst_of_another_fp8",
        {"dst_cache": lambda x: x.view(torch.float8_e5m2)},
        "dst_cache: expected dtype uint8 or float8_e4m3fn, got float8_e5m2",
    ),
    convert(
        "src_of_another_fp8",
        {"src_cache": lambda x: x.view(torch.float8_e4m3fnuz)},
        "src_cache: expected dtype uint8 or float8_e5m2fnuz, got float8_e4m3fnuz",
        to_fp8=False,
        format="fp8_e5m2fnuz",
    ),
    convert(
        "scattered",
        {"dst_cache": scattered, "src_cache": scattered},
        "src_cache: expected at most 8 strided dimensions, got shape [2, 2, 2, 2, 2, 2, 2, 2, 2, 2]",
    ),
]

WRONG_DEVICES = [
    convert("dst_on_cpu", {"dst_cache": on_cpu}, FIRST_ON_CPU.format("dst_cache", "src_cache")),
    convert("src_on_cpu", {"src_cache": on_cpu}, ON_CPU.format("src_cache", "dst_cache")),
]
