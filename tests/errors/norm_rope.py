"""Bad calls of qk_norm_rope_cache, rms_norm and rotary_embedding."""

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
from tests.support.calls.norm_rope import fused_arguments, norm_arguments, rotary_arguments


def fused(what: str, changes: dict[str, object], message: str, **options: object) -> Bad:
    return Bad("qk_norm_rope_cache", fused_arguments, what, changes, message, options)


def norm(what: str, changes: dict[str, object], message: str, **options: object) -> Bad:
    return Bad("rms_norm", norm_arguments, what, changes, message, options)


def rotary(what: str, changes: dict[str, object], message: str, **options: object) -> Bad:
    return Bad("rotary_embedding", rotary_arguments, what, changes, message, options)


FP8 = {"format": "fp8_e4m3fn"}
PER_TOKEN = "None (only formats with a scale per token and head need it)"
REQUIRED = ("qkv", "q_out", "key_cache", "value_cache", "slot_mapping", "positions")
WRITTEN = ("q_out", "k_out", "key_cache", "value_cache")

# Good calls by default: qkv bfloat16 [7, 512], q_out [7, 4, 64], k_out None or [7, 2, 64], caches [3, 16, 2, 64],
# slot_mapping and positions [7], cos_sin_cache [20, 64].
FUSED = [
    *(fused(f"{name}_none", {name: None}, NONE.format(name)) for name in REQUIRED),
    *(
        fused(f"{name}_stride", {name: every_second}, STRIDE.format(name), k_out=True, norm="head")
        for name in (*REQUIRED, "k_out", "cos_sin_cache", "q_weight", "k_weight")
    ),
    *(fused(f"{name}_expanded", {name: expanded(0)}, EXPANDED.format(name, 0), k_out=True) for name in WRITTEN),
    fused("qkv_rank", {"qkv": lambda x: x[0]}, "qkv: expected 2 dimensions, got shape [512]"),
    fused("qkv_dtype", {"qkv": to("float64")}, "qkv: expected dtype float32, float16 or bfloat16, got float64"),
    fused(
        "qkv_rows",
        {"qkv": lambda x: x[:6]},
        "qkv: expected at least 7 rows (slots in slot_mapping), got shape [6, 512]",
    ),
    fused(
        "qkv_columns",
        {"qkv": lambda x: x[:, :511]},
        "qkv: expected at least 512 ((num_heads + 2 * num_kv_heads) * head_size) in dimension 1, got shape [7, 511]",
    ),
    fused(
        "many_heads",
        {"num_heads": 2**62},
        f"qkv: expected at least {2**63 - 1} ((num_heads + 2 * num_kv_heads) * head_size) in dimension 1, "
        "got shape [7, 512]",
    ),
    fused("num_heads", {"num_heads": -1}, "num_heads: expected at least 0, got -1"),
    fused("num_kv_heads", {"num_kv_heads": 0}, "num_kv_heads: expected at least 1, got 0"),
    fused("head_size", {"head_size": 0}, "head_size: expected at least 1, got 0"),
    fused("q_out_rank", {"q_out": lambda x: x[0]}, "q_out: expected 3 dimensions, got shape [4, 64]"),
    fused(
        "q_out_dtype",
        {"q_out": to("float32")},
        "q_out: expected dtype bfloat16 like qkv, or a float8 dtype, got float32",
    ),
    fused(
        "q_out_rows",
        {"q_out": lambda x: x[:6]},
        "q_out: expected at least 7 rows (slots in slot_mapping), got shape [6, 4, 64]",
    ),
    fused(
        "q_out_heads",
        {"q_out": lambda x: x[:, :3]},
        "q_out: expected size 4 (num_heads) in dimension 1, got shape [7, 3, 64]",
    ),
    fused(
        "q_out_size",
        {"q_out": lambda x: x[..., :32]},
        "q_out: expected size 64 (head_size) in dimension 2, got shape [7, 4, 32]",
    ),
    fused(
        "no_q_scale",
        {"q_out": to("float8_e4m3fn")},
        "q_scale: expected a tensor (q_out is float8_e4m3fn), got None",
    ),
    fused(
        "q_scale_size",
        {"q_scale": lambda x: x.repeat(4)},
        "q_scale: expected 1 element, got shape [4]",
        q_dtype=torch.float8_e4m3fn,
    ),
    fused("k_out_dtype", {"k_out": to("float32")}, "k_out: expected dtype bfloat16 like qkv, got float32", k_out=True),
    fused(
        "k_out_heads",
        {"k_out": lambda x: x[:, :1]},
        "k_out: expected size 2 (num_kv_heads) in dimension 1, got shape [7, 1, 64]",
        k_out=True,
    ),
    fused(
        "key_cache_rank",
        {"key_cache": lambda x: x[0]},
        "key_cache: expected 4 dimensions, or 5 (packed), got shape [16, 2, 64]",
    ),
    fused(
        "value_cache_rank",
        {"value_cache": lambda x: x[0]},
        "value_cache: expected 4 dimensions like key_cache, got shape [16, 2, 64]",
    ),
    fused(
        "packed_value_cache_rank",
        {"value_cache": lambda x: x[0]},
        "value_cache: expected 4 or 5 dimensions, got shape [2, 64, 16]",
        x=8,
    ),
    fused(
        "key_cache_heads",
        {"key_cache": lambda x: x[:, :, :1]},
        "key_cache: expected size 2 (num_kv_heads) in dimension 2, got shape [3, 16, 1, 64]",
    ),
    fused(
        "value_cache_size",
        {"value_cache": lambda x: x[..., :32]},
        "value_cache: expected size 64 (head_size) in dimension 3, got shape [3, 16, 2, 32]",
    ),
    fused(
        "packed_key_cache_heads",
        {"key_cache": lambda x: x[:, :1]},
        "key_cache: expected size 2 (num_kv_heads) in dimension 1, got shape [3, 1, 8, 16, 8]",
        x=8,
    ),
    fused(
        "value_cache_blocks",
        {"value_cache": lambda x: x[:2]},
        "value_cache: expected size 3 (blocks of key_cache) in dimension 0, got shape [2, 16, 2, 64]",
    ),
    fused(
        "value_cache_block_size",
        {"value_cache": lambda x: x[:, :8]},
        "value_cache: expected size 16 (block size of key_cache) in dimension 1, got shape [3, 8, 2, 64]",
    ),
    fused(
        "format", {"kv_cache_dtype": "fp8_ds_mla"}, f"kv_cache_dtype: expected one of {FORMAT_NAMES}, got 'fp8_ds_mla'"
    ),
    fused(
        "format_of_another_float",
        {"kv_cache_dtype": "float16"},
        "kv_cache_dtype: expected auto or bfloat16, the dtype of qkv, got float16",
    ),
    *(
        fused(f"no_{name}", {name: None}, f"{name}: expected a tensor (kv_cache_dtype is fp8_e4m3fn), got None", **FP8)
        for name in ("k_scale", "v_scale")
    ),
    fused(
        "scale_size",
        {"k_scale": lambda x: x.repeat(3)},
        "k_scale: expected 1 element or 2 (one per head), got shape [3]",
        **FP8,
    ),
    fused(
        "scales_of_unequal_sizes",
        {"v_scale": lambda x: x.repeat(2)},
        "v_scale: expected 1 element like k_scale, got shape [2]",
        **FP8,
    ),
    *(
        fused(name, {name: lambda _: torch.ones(1)}, f"{name}: expected {PER_TOKEN}, got a tensor")
        for name in ("k_scales", "v_scales")
    ),
    fused("positions_rank", {"positions": lambda x: x[None]}, "positions: expected 1 dimension, got shape [1, 7]"),
    fused(
        "positions_rows",
        {"positions": lambda x: x[:6]},
        "positions: expected at least 7 rows (slots in slot_mapping), got shape [6]",
    ),
    fused(
        "positions_of_mrope_rank",
        {"positions": lambda x: x[0]},
        "positions: expected 2 dimensions, got shape [7]",
        section=(16, 8, 8),
    ),
    fused(
        "positions_of_mrope_rows",
        {"positions": lambda x: x[:2]},
        "positions: expected size 3 (numbers in mrope_section) in dimension 0, got shape [2, 7]",
        section=(16, 8, 8),
    ),
    fused(
        "section_length",
        {"mrope_section": [16, 16]},
        "mrope_section: expected 3 numbers, got 2 numbers",
        section=(16, 8, 8),
    ),
    fused(
        "section_sum",
        {"mrope_section": [16, 8, 7]},
        "mrope_section: expected a sum of 32 (half the size of cos_sin_cache), got [16, 8, 7]",
        section=(16, 8, 8),
    ),
    fused(
        "negative_section",
        {"mrope_section": [40, -8, 0]},
        "mrope_section: expected at least 0, got -8",
        section=(16, 8, 8),
    ),
    fused(
        "table_dtype",
        {"cos_sin_cache": to("float16")},
        "cos_sin_cache: expected dtype bfloat16 like qkv, or float32, got float16",
    ),
    fused(
        "odd_table",
        {"cos_sin_cache": lambda x: x[:, :63]},
        "cos_sin_cache: expected an even size in dimension 1, got shape [20, 63]",
    ),
    fused(
        "wide_table",
        {"cos_sin_cache": lambda x: torch.cat([x, x], 1)},
        "cos_sin_cache: expected at most 64 (head_size) in dimension 1, got shape [20, 128]",
    ),
    fused("negative_offset", {"rotary_offset": -1}, "rotary_offset: expected at least 0, got -1"),
    fused(
        "large_offset",
        {"rotary_offset": 33},
        "rotary_offset: expected at most 32 (head_size minus size of cos_sin_cache), got 33",
        rotary_size=32,
    ),
    fused("weight_without_norm", {"eps": -1.0}, "eps: expected at least 0 (q_weight is given), got -1", norm="head"),
    fused(
        "weight_size",
        {"k_weight": lambda x: x[:63]},
        "k_weight: expected size 64 (head_size) in dimension 0, got shape [63]",
        norm="head",
    ),
    fused(
        "weight_size_of_all_heads",
        {"q_weight": lambda x: x[:64]},
        "q_weight: expected size 256 (num_heads * head_size) in dimension 0, got shape [64]",
        norm="all_heads",
    ),
    fused(
        "weight_dtype",
        {"q_weight": to("float16")},
        "q_weight: expected dtype bfloat16 like qkv, or float32, got float16",
        norm="head",
    ),
    fused(
        "norm_order",
        {"norm_order": "before_rope"},
        "norm_order: expected one of head, after_rope, all_heads, got 'before_rope'",
    ),
]

# Good calls by default: out, input bfloat16 [7, 3, 64], weight [64].
NORM = [
    *(norm(f"{name}_none", {name: None}, NONE.format(name)) for name in ("out", "input")),
    *(norm(f"{name}_stride", {name: every_second}, STRIDE.format(name)) for name in ("out", "input", "weight")),
    norm("out_expanded", {"out": expanded(1)}, EXPANDED.format("out", 1)),
    norm("input_dtype", {"input": to("float64")}, "input: expected dtype float32, float16 or bfloat16, got float64"),
    norm("input_rank", {"input": lambda x: x[0, 0, 0]}, "input: expected from 1 to 9 dimensions, got shape []"),
    norm("out_rank", {"out": lambda x: x[0]}, "out: expected 3 dimensions, got shape [3, 64]"),
    norm("out_dtype", {"out": to("float32")}, "out: expected dtype bfloat16 like input, got float32"),
    norm(
        "out_size",
        {"out": lambda x: x[:, :2]},
        "out: expected size 3 (size of input) in dimension 1, got shape [7, 2, 64]",
    ),
    norm(
        "weight_size",
        {"weight": lambda x: x[:63]},
        "weight: expected size 64 (size of input) in dimension 0, got shape [63]",
    ),
    norm(
        "weight_dtype",
        {"weight": to("float16")},
        "weight: expected dtype float32 like input, got float16",
        dtype=torch.float32,
    ),
    norm("eps", {"eps": -1e-6}, "eps: expected at least 0, got -1e-06"),
    norm("eps_nan", {"eps": float("nan")}, "eps: expected at least 0, got nan"),
]

# Good calls by default: positions [7], query bfloat16 [7, 4, 64], key [7, 2, 64], cos_sin_cache [20, 64].
ROTARY = [
    *(rotary(f"{name}_none", {name: None}, NONE.format(name)) for name in ("positions", "query", "cos_sin_cache")),
    *(
        rotary(f"{name}_stride", {name: every_second}, STRIDE.format(name))
        for name in ("positions", "query", "key", "cos_sin_cache")
    ),
    *(rotary(f"{name}_expanded", {name: expanded(0)}, EXPANDED.format(name, 0)) for name in ("query", "key")),
    rotary("query_rank", {"query": lambda x: x[0, 0]}, "query: expected 2 or 3 dimensions, got shape [64]"),
    rotary(
        "query_rows",
        {"query": lambda x: x[:6]},
        "query: expected size 7 (size of positions) in dimension 0, got shape [6, 4, 64]",
    ),
    rotary(
        "query_size",
        {"query": lambda x: x[..., :32]},
        "query: expected size 64 (head_size) in dimension 2, got shape [7, 4, 32]",
    ),
    rotary(
        "flat_query_size",
        {"query": lambda x: x[:, :250]},
        "query: expected a multiple of 64 (head_size) in dimension 1, got shape [7, 250]",
        flat=True,
    ),
    rotary("key_dtype", {"key": to("float16")}, "key: expected dtype bfloat16 like query, got float16"),
    rotary("head_size", {"head_size": 0}, "head_size: expected at least 1, got 0"),
    rotary("positions_dtype", {"positions": to("int8")}, "positions: expected dtype int32 or int64, got int8"),
    rotary(
        "table_dtype",
        {"cos_sin_cache": to("float16")},
        "cos_sin_cache: expected dtype bfloat16 like query, or float32, got float16",
    ),
    rotary(
        "wide_table",
        {"cos_sin_cache": lambda x: torch.cat([x, x], 1)},
        "cos_sin_cache: expected at most 64 (head_size) in dimension 1, got shape [20, 128]",
    ),
]

BAD_ARGUMENTS = FUSED + NORM + ROTARY

WRONG_DEVICES = [
    fused("qkv_device", {"qkv": on_cpu}, FIRST_ON_CPU.format("qkv", "q_out")),
    *(
        fused(f"{name}_device", {name: on_cpu}, ON_CPU.format(name, "qkv"), k_out=True, norm="head", **FP8)
        for name in (*REQUIRED[1:], "k_out", "cos_sin_cache", "k_scale", "v_scale", "q_weight", "k_weight")
    ),
    norm("input_device", {"input": on_cpu}, FIRST_ON_CPU.format("input", "out")),
    *(norm(f"{name}_device", {name: on_cpu}, ON_CPU.format(name, "input")) for name in ("out", "weight")),
    rotary("query_device", {"query": on_cpu}, FIRST_ON_CPU.format("query", "positions")),
    *(
        rotary(f"{name}_device", {name: on_cpu}, ON_CPU.format(name, "query"))
        for name in ("positions", "key", "cos_sin_cache")
    ),
]

POSITION = "expected a position from 0 to 19, got"
BAD_INDICES = [
    fused("slot", {"slot_mapping": with_value(3, 48)}, "slot_mapping[3]: expected a slot below 48, got 48"),
    fused("position", {"positions": with_value(2, 20)}, f"positions[2]: {POSITION} 20"),
    fused("negative_position", {"positions": with_value(6, -1)}, f"positions[6]: {POSITION} -1", norm="head"),
    *(
        fused(
            f"position_of_row_{row}",
            {"positions": with_value((row, 4), 99)},
            f"positions[{row}, 4]: {POSITION} 99",
            section=(16, 8, 8),
        )
        for row in range(3)
    ),
    rotary("position", {"positions": with_value(5, 20)}, f"positions[5]: {POSITION} 20"),
    rotary("negative_position", {"positions": with_value(0, -3)}, f"positions[0]: {POSITION} -3"),
]
