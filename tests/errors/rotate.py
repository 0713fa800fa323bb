"""Bad calls of rotate_cached_keys."""

from __future__ import annotations

import torch

from tests.errors.bad_call import (
    EXPANDED,
    FIRST_ON_CPU,
    FORMAT_NAMES,
    NONE,
    ON_CPU,
    STRIDE,
    Bad,
    every_second,
    expanded,
    on_cpu,
    to,
    with_value,
)
from tests.support.calls.rotate import rotate_arguments


def rotate(what: str, changes: dict[str, object], message: str, **options: object) -> Bad:
    return Bad("rotate_cached_keys", rotate_arguments, what, changes, message, options)


INDICES = ("slots", "old_positions", "new_positions")
FP8 = {"format": "fp8_e4m3fn"}

# Good calls by default: key_cache bfloat16 [3, 16, 3, 64], indices [9], cos_sin_cache float32 [20, 64].
BAD_ARGUMENTS = [
    *(rotate(f"{name}_none", {name: None}, NONE.format(name)) for name in ("key_cache", *INDICES, "cos_sin_cache")),
    *(
        rotate(f"{name}_stride", {name: every_second}, STRIDE.format(name))
        for name in ("key_cache", *INDICES, "cos_sin_cache")
    ),
    rotate("key_cache_expanded", {"key_cache": expanded(2)}, EXPANDED.format("key_cache", 2)),
    rotate(
        "key_cache_rank",
        {"key_cache": lambda x: x[0]},
        "key_cache: expected 4 dimensions, or 5 (packed), got shape [16, 3, 64]",
    ),
    rotate(
        "key_cache_dtype",
        {"key_cache": to("float64")},
        "key_cache: expected dtype float32, float16 or bfloat16, got float64",
    ),
    rotate(
        "block_size",
        {"key_cache": lambda x: x[:, :0]},
        "key_cache: expected a block size of at least 1, got shape [3, 0, 3, 64]",
    ),
    rotate(
        "packed_block_size",
        {"key_cache": lambda x: x[:, :, :, :0]},
        "key_cache: expected a block size of at least 1, got shape [3, 3, 8, 0, 8]",
        x=8,
    ),
    *(
        rotate(f"{name}_rank", {name: lambda x: x[0]}, f"{name}: expected 1 dimension, got shape []")
        for name in INDICES
    ),
    *(
        rotate(f"{name}_dtype", {name: to("int16")}, f"{name}: expected dtype int32 or int64, got int16")
        for name in INDICES
    ),
    *(
        rotate(
            f"{name}_size",
            {name: lambda x: x[:8]},
            f"{name}: expected size 9 (size of slots) in dimension 0, got shape [8]",
        )
        for name in INDICES[1:]
    ),
    rotate("table_rank", {"cos_sin_cache": lambda x: x[0]}, "cos_sin_cache: expected 2 dimensions, got shape [64]"),
    rotate(
        "table_dtype",
        {"cos_sin_cache": to("float64")},
        "cos_sin_cache: expected dtype float32, float16 or bfloat16, got float64",
    ),
    rotate(
        "odd_table",
        {"cos_sin_cache": lambda x: x[:, :63]},
        "cos_sin_cache: expected an even size in dimension 1, got shape [20, 63]",
    ),
    rotate(
        "wide_table",
        {"cos_sin_cache": lambda x: torch.cat([x, x], 1)},
        "cos_sin_cache: expected at most 64 (head size of key_cache) in dimension 1, got shape [20, 128]",
    ),
    rotate("negative_offset", {"rotary_offset": -1}, "rotary_offset: expected at least 0, got -1"),
    rotate(
        "large_offset",
        {"rotary_offset": 33},
        "rotary_offset: expected at most 32 (head size of key_cache minus size of cos_sin_cache), got 33",
        rotary_size=32,
    ),
    rotate(
        "large_offset_of_a_packed_cache",
        {"rotary_offset": 2**62},
        f"rotary_offset: expected at most 0 (head size of key_cache minus size of cos_sin_cache), got {2**62}",
        x=8,
    ),
    *(
        rotate(
            f"format_{name or 'empty'}",
            {"kv_cache_dtype": name},
            f"kv_cache_dtype: expected one of {FORMAT_NAMES}, got '{name}'",
        )
        for name in ("fp8_ds_mla", "int8", "")
    ),
    rotate(
        "format_of_another_float",
        {"kv_cache_dtype": "float16"},
        "kv_cache_dtype: expected auto or bfloat16, the dtype of key_cache, got float16",
    ),
    rotate(
        "fp8_of_floats",
        {"kv_cache_dtype": "fp8_e4m3fn", "k_scale": lambda _: torch.ones(1)},
        "key_cache: expected dtype uint8 or float8_e4m3fn, got bfloat16",
    ),
    rotate(
        "floats_of_bytes",
        {"kv_cache_dtype": "auto"},
        "key_cache: expected dtype float32, float16 or bfloat16, got uint8",
        **FP8,
    ),
    rotate("no_scale", {"k_scale": None}, "k_scale: expected a tensor (kv_cache_dtype is fp8_e4m3fn), got None", **FP8),
    rotate("scale_dtype", {"k_scale": to("float16")}, "k_scale: expected dtype float32, got float16", **FP8),
    rotate(
        "scale_size",
        {"k_scale": lambda x: x.repeat(2)},
        "k_scale: expected 1 element or 3 (one per head), got shape [2]",
        **FP8,
    ),
    rotate("scale_stride", {"k_scale": every_second}, STRIDE.format("k_scale"), per_head=True, **FP8),
    rotate(
        "scales_of_another_format",
        {"k_scales": lambda _: torch.ones(3, 16, 3)},
        "k_scales: expected None (only formats with a scale per token and head need it), got a tensor",
    ),
]

WRONG_DEVICES = [
    rotate("key_cache_device", {"key_cache": on_cpu}, FIRST_ON_CPU.format("key_cache", "slots")),
    *(rotate(f"{name}_device", {name: on_cpu}, ON_CPU.format(name, "key_cache")) for name in INDICES),
    rotate("table_device", {"cos_sin_cache": on_cpu}, ON_CPU.format("cos_sin_cache", "key_cache")),
    rotate("scale_device", {"k_scale": on_cpu}, ON_CPU.format("k_scale", "key_cache"), **FP8),
]

BAD_INDICES = [
    rotate("slot_past_the_end", {"slots": with_value(4, 48)}, "slots[4]: expected a slot below 48, got 48"),
    rotate("far_slot", {"slots": with_value(8, 2**40)}, f"slots[8]: expected a slot below 48, got {2**40}"),
    *(
        rotate(
            f"{name}_{position}",
            {name: with_value(5, position)},
            f"{name}[5]: expected a position from 0 to 19, got {position}",
        )
        for name in INDICES[1:]
        for position in (-1, 20)
    ),
    rotate(
        "both_positions_past_the_end",
        {name: with_value(3, 20) for name in INDICES[1:]},
        "old_positions[3]: expected a position from 0 to 19, got 20",
    ),
    rotate(
        "no_positions",
        {"cos_sin_cache": lambda x: x[:0], "old_positions": with_value(0, 7)},
        "old_positions[0]: expected no position (there are 0), got 7",
        tokens=1,
    ),
]
