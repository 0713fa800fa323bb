"""Bad calls of reshape_and_cache."""

from __future__ import annotations

import torch

from tests.errors.bad_call import (
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
from tests.support.calls.reshape_and_cache import packed_arguments


def packed(what: str, changes: dict[str, object], message: str, **options: object) -> Bad:
    return Bad("reshape_and_cache", packed_arguments, what, changes, message, {"tokens": 7} | options)


TENSORS = ("key", "value", "key_cache", "value_cache", "slot_mapping", "k_scale", "v_scale")

# Good calls by default: key [7, 2, 64], key_cache [3, 2, 8, 16, 8], value_cache [3, 2, 64, 16], bfloat16.
BAD_ARGUMENTS = [
    *(packed(f"{name}_none", {name: None}, NONE.format(name), format="fp8") for name in TENSORS),
    *(
        packed(f"{name}_stride", {name: every_second}, STRIDE.format(name))
        for name in ("key", "value", "key_cache", "value_cache", "slot_mapping")
    ),
    packed("key_rank", {"key": lambda x: x[0]}, "key: expected 3 dimensions, got shape [2, 64]"),
    packed("key_dtype", {"key": to("float64")}, "key: expected dtype float32, float16 or bfloat16, got float64"),
    packed(
        "key_rows",
        {"key": lambda x: x[:6]},
        "key: expected at least 7 rows (slots in slot_mapping), got shape [6, 2, 64]",
    ),
    packed("value_rank", {"value": lambda x: x[0]}, "value: expected 3 dimensions, got shape [2, 64]"),
    packed("value_dtype", {"value": to("float32")}, "value: expected dtype bfloat16 like key, got float32"),
    packed(
        "value_rows",
        {"value": lambda x: x[:6]},
        "value: expected at least 7 rows (slots in slot_mapping), got shape [6, 2, 64]",
    ),
    packed(
        "value_heads",
        {"value": lambda x: x[:, :1]},
        "value: expected size 2 (heads of key) in dimension 1, got shape [7, 1, 64]",
    ),
    packed(
        "value_head_size",
        {"value": lambda x: x[..., :32]},
        "value: expected size 64 (head size of key) in dimension 2, got shape [7, 2, 32]",
    ),
    packed(
        "key_cache_rank", {"key_cache": lambda x: x[0]}, "key_cache: expected 5 dimensions, got shape [2, 8, 16, 8]"
    ),
    packed(
        "key_cache_heads",
        {"key_cache": lambda x: x[:, :1]},
        "key_cache: expected size 2 (heads of key) in dimension 1, got shape [3, 1, 8, 16, 8]",
    ),
    packed(
        "key_cache_x",
        {"key_cache": lambda x: x[..., :5]},
        "key_cache: expected a size in dimension 4 that divides 64 (head size of key), got shape [3, 2, 8, 16, 5]",
    ),
    packed(
        "key_cache_x_zero",
        {"key_cache": lambda x: x[..., :0]},
        "key_cache: expected a size in dimension 4 that divides 64 (head size of key), got shape [3, 2, 8, 16, 0]",
    ),
    packed(
        "key_cache_vectors",
        {"key_cache": lambda x: x[:, :, :7]},
        "key_cache: expected size 8 (head size of key / size of dimension 4) in dimension 2, "
        "got shape [3, 2, 7, 16, 8]",
    ),
    packed(
        "key_cache_expanded",
        {"key_cache": expanded(3)},
        "key_cache: expected a writable tensor without overlapping elements, got stride 0 in dimension 3",
    ),
    packed(
        "value_cache_rank",
        {"value_cache": lambda x: x[None]},
        "value_cache: expected 4 dimensions, got shape [1, 3, 2, 64, 16]",
    ),
    packed(
        "value_cache_layout", {"interleaved_v": True}, "value_cache: expected 5 dimensions, got shape [3, 2, 64, 16]"
    ),
    packed(
        "value_cache_interleaved",
        {"interleaved_v": False},
        "value_cache: expected 4 dimensions, got shape [3, 2, 4, 64, 4]",
        value_x=4,
    ),
    packed(
        "value_cache_blocks",
        {"value_cache": lambda x: x[:2]},
        "value_cache: expected size 3 (blocks of key_cache) in dimension 0, got shape [2, 2, 64, 16]",
    ),
    packed(
        "value_cache_heads",
        {"value_cache": lambda x: x[:, :1]},
        "value_cache: expected size 2 (heads of key) in dimension 1, got shape [3, 1, 64, 16]",
    ),
    packed(
        "value_cache_head_size",
        {"value_cache": lambda x: x[:, :, :32]},
        "value_cache: expected size 64 (head size of key) in dimension 2, got shape [3, 2, 32, 16]",
    ),
    packed(
        "value_cache_block_size",
        {"value_cache": lambda x: x[..., :8]},
        "value_cache: expected size 16 (block size of key_cache) in dimension 3, got shape [3, 2, 64, 8]",
    ),
    packed(
        "value_cache_x",
        {"value_cache": lambda x: x[..., :3]},
        "value_cache: expected a size in dimension 4 that divides 16 (block size of key_cache), "
        "got shape [3, 2, 4, 64, 3]",
        value_x=4,
    ),
    packed(
        "value_cache_vectors",
        {"value_cache": lambda x: x[:, :, :3]},
        "value_cache: expected size 4 (block size of key_cache / size of dimension 4) in dimension 2, "
        "got shape [3, 2, 3, 64, 4]",
        value_x=4,
    ),
    packed(
        "value_cache_interleaved_head_size",
        {"value_cache": lambda x: x[:, :, :, :32]},
        "value_cache: expected size 64 (head size of key) in dimension 3, got shape [3, 2, 4, 32, 4]",
        value_x=4,
    ),
    packed(
        "value_cache_expanded",
        {"value_cache": expanded(0)},
        "value_cache: expected a writable tensor without overlapping elements, got stride 0 in dimension 0",
    ),
    *(
        packed(
            f"empty_blocks_{'interleaved' if value_x else 'plain'}",
            {"key_cache": lambda x: x[:, :, :, :0], "value_cache": lambda x: x[..., :0]},
            "key_cache: expected a block size of at least 1, got shape [3, 2, 8, 0, 8]",
            value_x=value_x,
        )
        for value_x in (None, 4)
    ),
    packed("slots_rank", {"slot_mapping": lambda x: x[0]}, "slot_mapping: expected 1 dimension, got shape []"),
    packed("slots_dtype", {"slot_mapping": to("int8")}, "slot_mapping: expected dtype int32 or int64, got int8"),
    packed(
        "format", {"kv_cache_dtype": "fp8_ds_mla"}, f"kv_cache_dtype: expected one of {FORMAT_NAMES}, got 'fp8_ds_mla'"
    ),
    packed(
        "key_cache_dtype",
        {"key_cache": to("float16")},
        "key_cache: expected dtype bfloat16 like the input, got float16",
    ),
    packed(
        "value_cache_dtype",
        {"value_cache": to("float16")},
        "value_cache: expected dtype bfloat16 like key_cache, got float16",
    ),
    packed("k_scale_dtype", {"k_scale": to("float16")}, "k_scale: expected dtype float32, got float16", format="fp8"),
    packed(
        "v_scale_size",
        {"v_scale": lambda x: x.expand(3).contiguous()},
        "v_scale: expected 1 element or 2 (one per head), got shape [3]",
        format="fp8",
    ),
    packed(
        "scales_of_two_sizes",
        {"k_scale": lambda x: x.expand(2).contiguous()},
        "v_scale: expected 2 elements like k_scale, got shape [1]",
        format="fp8",
    ),
]

# A tensor on the CPU in a call on a GPU.
WRONG_DEVICES = [
    packed(f"{name}_on_cpu", {name: on_cpu}, ON_CPU.format(name, "key"), format="fp8") for name in TENSORS[1:]
]

BAD_INDICES = [
    packed("slot", {"slot_mapping": with_value(3, 48)}, "slot_mapping[3]: expected a slot below 48, got 48"),
    packed(
        "slot_interleaved",
        {"slot_mapping": with_value(0, 2**31 - 1)},
        f"slot_mapping[0]: expected a slot below 48, got {2**31 - 1}",
        value_x=8,
        index_dtype=torch.int32,
    ),
]
