"""Bad calls of concat_and_cache_mla_rope_fused. What it shares with concat_and_cache_mla: mla.py."""

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
from tests.support.calls.mla import rope_arguments


def rope(what: str, changes: dict[str, object], message: str, **options: object) -> Bad:
    return Bad("concat_and_cache_mla_rope_fused", rope_arguments, what, changes, message, options)


TENSORS = ("kv_c", "k_pe", "kv_cache", "slot_mapping", "kv_cache_scale", "positions", "q_pe", "cos_sin_cache")

# Good calls by default: positions [7], q_pe [7, 3, 64], k_pe [7, 64], kv_c [7, 512], cos_sin_cache [20, 64].
BAD_ARGUMENTS = [
    *(rope(f"{name}_none", {name: None}, NONE.format(name), format="fp8") for name in TENSORS),
    *(
        rope(f"{name}_stride", {name: every_second}, STRIDE.format(name))
        for name in TENSORS
        if name != "kv_cache_scale"  # which has one element
    ),
    rope("kv_cache_expanded", {"kv_cache": expanded(1)}, EXPANDED.format("kv_cache", 1)),
    rope("q_pe_expanded", {"q_pe": expanded(1)}, EXPANDED.format("q_pe", 1)),
    rope("k_pe_expanded", {"k_pe": expanded(0)}, EXPANDED.format("k_pe", 0)),
    rope("positions_rank", {"positions": lambda x: x[0]}, "positions: expected 1 dimension, got shape []"),
    rope("positions_dtype", {"positions": to("int16")}, "positions: expected dtype int32 or int64, got int16"),
    rope(
        "positions_rows",
        {"positions": lambda x: x[:6]},
        "positions: expected at least 7 rows (slots in slot_mapping), got shape [6]",
    ),
    rope("q_pe_rank", {"q_pe": lambda x: x[:, 0]}, "q_pe: expected 3 dimensions, got shape [7, 64]"),
    rope("q_pe_dtype", {"q_pe": to("float32")}, "q_pe: expected dtype bfloat16 like kv_c, got float32"),
    rope(
        "q_pe_rows",
        {"q_pe": lambda x: x[:6]},
        "q_pe: expected at least 7 rows (slots in slot_mapping), got shape [6, 3, 64]",
    ),
    rope(
        "q_pe_size",
        {"q_pe": lambda x: x[..., :32]},
        "q_pe: expected size 64 (size of k_pe) in dimension 2, got shape [7, 3, 32]",
    ),
    rope("k_pe_rank", {"k_pe": lambda x: x[0]}, "k_pe: expected 2 dimensions, or 3 with 1 head, got shape [64]"),
    rope(
        "k_pe_heads",
        {"k_pe": lambda x: x[:, None].repeat(1, 2, 1)},
        "k_pe: expected 2 dimensions, or 3 with 1 head, got shape [7, 2, 64]",
    ),
    rope("k_pe_dtype", {"k_pe": to("float16")}, "k_pe: expected dtype bfloat16 like kv_c, got float16"),
    rope(
        "k_pe_rows",
        {"k_pe": lambda x: x[:6]},
        "k_pe: expected at least 7 rows (slots in slot_mapping), got shape [6, 1, 64]",
        k_pe_dims=3,
    ),
    rope(
        "k_pe_odd",
        {"k_pe": lambda x: x[:, :63], "kv_cache": lambda x: x[..., :575]},
        "k_pe: expected an even size in the innermost dimension, got shape [7, 63]",
    ),
    rope("kv_c_rank", {"kv_c": lambda x: x[:, None]}, "kv_c: expected 2 dimensions, got shape [7, 1, 512]"),
    rope("kv_c_dtype", {"kv_c": to("float64")}, "kv_c: expected dtype float32, float16 or bfloat16, got float64"),
    rope(
        "kv_c_rows",
        {"kv_c": lambda x: x[:6]},
        "kv_c: expected at least 7 rows (slots in slot_mapping), got shape [6, 512]",
    ),
    rope("table_rank", {"cos_sin_cache": lambda x: x[0]}, "cos_sin_cache: expected 2 dimensions, got shape [64]"),
    rope(
        "table_dtype",
        {"cos_sin_cache": to("float16")},
        "cos_sin_cache: expected dtype bfloat16 like q_pe, or float32, got float16",
    ),
    rope(
        "table_of_16_bits",
        {"cos_sin_cache": to("bfloat16")},
        "cos_sin_cache: expected dtype float32 like q_pe, got bfloat16",
        dtype=torch.float32,
    ),
    rope(
        "table_size",
        {"cos_sin_cache": lambda x: x[:, :32]},
        "cos_sin_cache: expected size 64 (size of k_pe) in dimension 1, got shape [20, 32]",
    ),
    rope("kv_cache_rank", {"kv_cache": lambda x: x[0]}, "kv_cache: expected 3 dimensions, got shape [16, 576]"),
    rope("slots_dtype", {"slot_mapping": to("int8")}, "slot_mapping: expected dtype int32 or int64, got int8"),
    rope("slots_rank", {"slot_mapping": lambda x: x[None]}, "slot_mapping: expected 1 dimension, got shape [1, 7]"),
    rope(
        "format",
        {"kv_cache_dtype": "mxfp8"},
        f"kv_cache_dtype: expected one of {FORMAT_NAMES}, fp8_ds_mla, got 'mxfp8'",
    ),
    rope(
        "scale_dtype",
        {"kv_cache_scale": to("int32")},
        "kv_cache_scale: expected dtype float32, got int32",
        format="fp8",
    ),
    rope(
        "scale_size",
        {"kv_cache_scale": lambda x: x.expand(2)},
        "kv_cache_scale: expected 1 element, got shape [2]",
        format="fp8",
    ),
]

# A tensor on the CPU in a call on a GPU.
WRONG_DEVICES = [
    rope("kv_c_on_cpu", {"kv_c": on_cpu}, FIRST_ON_CPU.format("kv_c", "positions")),
    *(rope(f"{name}_on_cpu", {name: on_cpu}, ON_CPU.format(name, "kv_c"), format="fp8") for name in TENSORS[1:]),
]

BAD_INDICES = [
    rope("slot", {"slot_mapping": with_value(3, 48)}, "slot_mapping[3]: expected a slot below 48, got 48"),
    rope(
        "slot_int32",
        {"slot_mapping": with_value(6, 2**31 - 1)},
        f"slot_mapping[6]: expected a slot below 48, got {2**31 - 1}",
        index_dtype=torch.int32,
        is_neox=True,
    ),
    rope(
        "position_negative", {"positions": with_value(2, -1)}, "positions[2]: expected a position from 0 to 19, got -1"
    ),
    rope(
        "position_without_table",
        {"cos_sin_cache": lambda x: x[:0], "positions": with_value(0, 5)},
        "positions[0]: expected no position (there are 0), got 5",
    ),
    rope(
        "position_past_the_end",
        {"positions": with_value(0, 20)},
        "positions[0]: expected a position from 0 to 19, got 20",
    ),
    rope(
        "position_of_padding",
        {"positions": with_value(6, 2**40), "slot_mapping": with_value(6, -1)},
        f"positions[6]: expected a position from 0 to 19, got {2**40}",
    ),
    rope(
        "position_int32",
        {"positions": with_value(5, -(2**31))},
        f"positions[5]: expected a position from 0 to 19, got {-(2**31)}",
        position_dtype=torch.int32,
        format="fp8_ds_mla",
    ),
]
