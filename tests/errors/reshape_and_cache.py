"""Bad calls of reshape_and_cache_flash."""

from __future__ import annotations

import torch

from tests.errors.bad_call import (
    FIRST_ON_CPU,
    FORMAT_NAMES,
    NONE,
    ON_CPU,
    STRIDE,
    Bad,
    every_second,
    on_cpu,
    to,
    with_value,
)
from tests.support.calls.reshape_and_cache import flash_arguments


def flash(what: str, changes: dict[str, object], message: str, **options: object) -> Bad:
    return Bad("reshape_and_cache_flash", flash_arguments, what, changes, message, options)


# Good calls by default: key [7, 2, 64], caches [3, 16, 2, 64], bfloat16.
BAD_ARGUMENTS = [
    *(
        flash(f"{name}_stride", {name: every_second}, STRIDE.format(name))
        for name in ("key", "value", "key_cache", "value_cache", "slot_mapping")
    ),
    *(
        flash(f"key_{dtype}", {"key": to(dtype)}, f"key: expected dtype float32, float16 or bfloat16, got {dtype}")
        for dtype in ("float64", "uint8", "float8_e4m3fn")
    ),
    *(
        flash(
            f"slots_{dtype}", {"slot_mapping": to(dtype)}, f"slot_mapping: expected dtype int32 or int64, got {dtype}"
        )
        for dtype in ("float32", "int16", "uint8")
    ),
    *(
        flash(
            f"format_{name or 'empty'}",
            {"kv_cache_dtype": name},
            f"kv_cache_dtype: expected one of {FORMAT_NAMES}, got '{name}'",
        )
        for name in ("int4", "fp8_e4m3f", "fp8_e4m3fnu", "Auto", "")
    ),
    flash("key_rank", {"key": lambda x: x[0]}, "key: expected 3 dimensions, got shape [2, 64]"),
    flash(
        "key_rows",
        {"key": lambda x: x[:6]},
        "key: expected at least 7 rows (slots in slot_mapping), got shape [6, 2, 64]",
    ),
    flash("value_rank", {"value": lambda x: x[None]}, "value: expected 3 dimensions, got shape [1, 7, 2, 64]"),
    flash("value_dtype", {"value": lambda x: x.half()}, "value: expected dtype bfloat16 like key, got float16"),
    flash(
        "value_rows",
        {"value": lambda x: x[:0]},
        "value: expected at least 7 rows (slots in slot_mapping), got shape [0, 2, 64]",
    ),
    flash(
        "value_heads",
        {"value": lambda x: x[:, :1]},
        "value: expected size 2 (heads of key) in dimension 1, got shape [7, 1, 64]",
    ),
    flash("key_cache_rank", {"key_cache": lambda x: x[0]}, "key_cache: expected 4 dimensions, got shape [16, 2, 64]"),
    flash(
        "key_cache_heads",
        {"key_cache": lambda x: x[:, :, :1]},
        "key_cache: expected size 2 (heads of key) in dimension 2, got shape [3, 16, 1, 64]",
    ),
    flash(
        "key_cache_head_size",
        {"key_cache": lambda x: x[..., :63]},
        "key_cache: expected size 64 (head size of key) in dimension 3, got shape [3, 16, 2, 63]",
    ),
    flash(
        "key_cache_expanded_blocks",
        {"key_cache": lambda x: x[:1].expand(3, -1, -1, -1)},
        "key_cache: expected a writable tensor without overlapping elements, got stride 0 in dimension 0",
    ),
    flash(
        "value_cache_expanded_heads",
        {"value_cache": lambda x: x[:, :, :1].expand(-1, -1, 2, -1)},
        "value_cache: expected a writable tensor without overlapping elements, got stride 0 in dimension 2",
    ),
    flash(
        "value_cache_head_size",
        {"value_cache": lambda x: x[..., :32]},
        "value_cache: expected size 64 (head size of value) in dimension 3, got shape [3, 16, 2, 32]",
    ),
    flash(
        "value_cache_blocks",
        {"value_cache": lambda x: x[:2]},
        "value_cache: expected size 3 (blocks of key_cache) in dimension 0, got shape [2, 16, 2, 64]",
    ),
    flash(
        "value_cache_block_size",
        {"value_cache": lambda x: x[:, :8]},
        "value_cache: expected size 16 (block size of key_cache) in dimension 1, got shape [3, 8, 2, 64]",
    ),
    flash(
        "empty_blocks",
        {"key_cache": lambda x: x[:, :0], "value_cache": lambda x: x[:, :0]},
        "key_cache: expected a block size of at least 1, got shape [3, 0, 2, 64]",
    ),
    flash(
        "key_cache_dtype",
        {"key_cache": lambda x: x.half()},
        "key_cache: expected dtype bfloat16 like the input, got float16",
    ),
    flash(
        "value_cache_dtype",
        {"value_cache": lambda x: x.half()},
        "value_cache: expected dtype bfloat16 like key_cache, got float16",
    ),
    flash("slots_rank", {"slot_mapping": lambda x: x[None]}, "slot_mapping: expected 1 dimension, got shape [1, 7]"),
    flash(
        "slots_expanded",
        {"slot_mapping": lambda x: x[:1].expand(7)},
        "slot_mapping: expected stride 1 in the innermost dimension, got stride 0",
    ),
    flash(
        "format_of_another_float",
        {"kv_cache_dtype": "float16"},
        "kv_cache_dtype: expected auto or bfloat16, the dtype of the input, got float16",
    ),
    flash(
        "float_cache_for_fp8",
        {"kv_cache_dtype": "fp8"},
        "key_cache: expected dtype uint8, float8_e4m3fn or float8_e4m3fnuz, got bfloat16",
    ),
    flash(
        "e5m2_cache_for_fp8",
        {"key_cache": lambda x: x.view(torch.float8_e5m2), "kv_cache_dtype": "fp8_e4m3"},
        "key_cache: expected dtype uint8, float8_e4m3fn or float8_e4m3fnuz, got float8_e5m2",
        format="fp8",
    ),
    flash(
        "fnuz_cache_for_fn",
        {"key_cache": lambda x: x.view(torch.float8_e4m3fnuz)},
        "key_cache: expected dtype uint8 or float8_e4m3fn, got float8_e4m3fnuz",
        format="fp8_e4m3fn",
    ),
    flash(
        "int8_cache",
        {"key_cache": lambda x: x.view(torch.int8)},
        "key_cache: expected dtype uint8 or float8_e5m2, got int8",
        format="fp8_e5m2",
    ),
    flash(
        "caches_of_two_dtypes",
        {"value_cache": lambda x: x.view(torch.float8_e4m3fn)},
        "value_cache: expected dtype uint8 like key_cache, got float8_e4m3fn",
        format="fp8_e4m3fn",
    ),
    flash(
        "k_scale_dtype", {"k_scale": lambda x: x.double()}, "k_scale: expected dtype float32, got float64", format="fp8"
    ),
    flash(
        "k_scale_size",
        {"k_scale": lambda x: x.expand(3).contiguous()},
        "k_scale: expected 1 element or 2 (one per head), got shape [3]",
        format="fp8",
    ),
    flash(
        "k_scale_rank",
        {"k_scale": lambda x: x.expand(2, 1)},
        "k_scale: expected 1 element or 2 (one per head), got shape [2, 1]",
        format="fp8",
    ),
    flash(
        "v_scale_empty",
        {"v_scale": lambda x: x[:0]},
        "v_scale: expected 1 element or 2 (one per head), got shape [0]",
        format="fp8",
    ),
    flash(
        "v_scale_stride",
        {"v_scale": every_second},
        "v_scale: expected stride 1 in the innermost dimension, got stride 2",
        format="fp8",
        per_head=True,
    ),
    flash(
        "scales_of_two_sizes",
        {"v_scale": lambda x: x.expand(2).contiguous()},
        "v_scale: expected 1 element like k_scale, got shape [2]",
        format="fp8",
    ),
]

TENSORS = ("key", "value", "key_cache", "value_cache", "slot_mapping", "k_scale", "v_scale")
BAD_ARGUMENTS += [flash(f"{name}_none", {name: None}, NONE.format(name), format="fp8") for name in TENSORS]

# A tensor on the CPU in a call on a GPU.
WRONG_DEVICES = [
    flash("key_on_cpu", {"key": on_cpu}, FIRST_ON_CPU.format("key", "value")),
    *(flash(f"{name}_on_cpu", {name: on_cpu}, ON_CPU.format(name, "key"), format="fp8") for name in TENSORS[1:]),
]

BAD_INDICES = [
    flash(
        "slot_past_the_end", {"slot_mapping": with_value(3, 48)}, "slot_mapping[3]: expected a slot below 48, got 48"
    ),
    flash(
        "slot_of_the_first_token",
        {"slot_mapping": with_value(0, 1000)},
        "slot_mapping[0]: expected a slot below 48, got 1000",
    ),
    flash(
        "slot_of_the_last_token",
        {"slot_mapping": with_value(6, 2**40)},
        f"slot_mapping[6]: expected a slot below 48, got {2**40}",
    ),
    flash(
        "slot_int32",
        {"slot_mapping": with_value(6, 2**31 - 1)},
        f"slot_mapping[6]: expected a slot below 48, got {2**31 - 1}",
        index_dtype=torch.int32,
    ),
    flash(
        "slot_fp8",
        {"slot_mapping": with_value(5, 48)},
        "slot_mapping[5]: expected a slot below 48, got 48",
        format="fp8",
    ),
    flash(
        "slot_beside_padding",
        {"slot_mapping": with_value(slice(2, 4), 50)},
        "slot_mapping[2]: expected a slot below 48, got 50",
    ),
]
