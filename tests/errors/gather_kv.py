"""Bad calls of gather_kv_cache."""

from __future__ import annotations

import torch

from tests.errors.bad_call import (
    EXPANDED,
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
from tests.support.calls.gather_kv import kv_arguments


def kv(what: str, changes: dict[str, object], message: str, **options: object) -> Bad:
    return Bad("gather_kv_cache", kv_arguments, what, changes, message, options)


def packed(what: str, changes: dict[str, object], message: str, **options: object) -> Bad:
    return kv(f"packed_{what}", changes, message, packed=True, **options)


FP8 = {"format": "fp8"}
STARTS = {"starts": (1, 0, 2, 3)}
TENSORS = ("key_cache", "value_cache", "key", "value", "block_table", "cu_seq_lens")

# Good calls by default: caches [9, 16, 2, 64], key and value [57, 2, 64], bfloat16; 4 sequences of at most 4 blocks.
BAD_ARGUMENTS = [
    *(kv(f"{name}_none", {name: None}, NONE.format(name)) for name in TENSORS),
    *(kv(f"{name}_stride", {name: every_second}, STRIDE.format(name)) for name in TENSORS),
    *(kv(f"{name}_expanded", {name: expanded(0)}, EXPANDED.format(name, 0)) for name in ("key", "value")),
    kv(
        "key_cache_rank",
        {"key_cache": lambda x: x[0]},
        "key_cache: expected 4 dimensions, or 5 (packed), got shape [16, 2, 64]",
    ),
    kv(
        "value_cache_rank",
        {"value_cache": lambda x: x[None]},
        "value_cache: expected 4 dimensions like key_cache, got shape [1, 9, 16, 2, 64]",
    ),
    kv("key_rank", {"key": lambda x: x.flatten(1)}, "key: expected 3 dimensions, got shape [57, 128]"),
    kv("value_rank", {"value": lambda x: x.flatten(1)}, "value: expected 3 dimensions, got shape [57, 128]"),
    kv("key_dtype", {"key": to("float64")}, "key: expected dtype float32, float16 or bfloat16, got float64"),
    kv("value_dtype", {"value": to("float16")}, "value: expected dtype bfloat16 like key, got float16"),
    kv(
        "value_heads",
        {"value": lambda x: x[:, :1]},
        "value: expected size 2 (heads of key) in dimension 1, got shape [57, 1, 64]",
    ),
    kv(
        "key_cache_heads",
        {"key_cache": lambda x: x[:, :, :1]},
        "key_cache: expected size 2 (heads of key) in dimension 2, got shape [9, 16, 1, 64]",
    ),
    kv(
        "key_cache_head_size",
        {"key_cache": lambda x: x[..., :60]},
        "key_cache: expected size 64 (head size of key) in dimension 3, got shape [9, 16, 2, 60]",
    ),
    kv(
        "value_cache_heads",
        {"value_cache": lambda x: x[:, :, :1]},
        "value_cache: expected size 2 (heads of key) in dimension 2, got shape [9, 16, 1, 64]",
    ),
    kv(
        "value_cache_head_size",
        {"value_cache": lambda x: x[..., :60]},
        "value_cache: expected size 64 (head size of value) in dimension 3, got shape [9, 16, 2, 60]",
    ),
    kv(
        "value_cache_blocks",
        {"value_cache": lambda x: x[:8]},
        "value_cache: expected size 9 (blocks of key_cache) in dimension 0, got shape [8, 16, 2, 64]",
    ),
    kv(
        "value_cache_block_size",
        {"value_cache": lambda x: x[:, :8]},
        "value_cache: expected size 16 (block size of key_cache) in dimension 1, got shape [9, 8, 2, 64]",
    ),
    kv(
        "empty_blocks",
        {"key_cache": lambda x: x[:, :0], "value_cache": lambda x: x[:, :0]},
        "key_cache: expected a block size of at least 1, got shape [9, 0, 2, 64]",
    ),
    kv("cache_dtype", {"key_cache": to("float16")}, "key_cache: expected dtype bfloat16 like key, got float16"),
    kv(
        "value_cache_dtype",
        {"value_cache": to("float16")},
        "value_cache: expected dtype bfloat16 like key_cache, got float16",
    ),
    kv(
        "fp8_cache_dtype",
        {"key_cache": lambda x: x.view(torch.float8_e4m3fn)},
        "key_cache: expected dtype uint8 or float8_e5m2, got float8_e4m3fn",
        format="fp8_e5m2",
    ),
    kv("format", {"kv_cache_dtype": "nvfp4"}, f"kv_cache_dtype: expected one of {FORMAT_NAMES}, got 'nvfp4'"),
    kv(
        "format_of_another_float",
        {"kv_cache_dtype": "float32"},
        "kv_cache_dtype: expected auto or bfloat16, the dtype of key, got float32",
    ),
    kv("num_tokens", {"num_tokens": -2}, "num_tokens: expected at least 0, or -1 (all rows of key), got -2"),
    kv("key_rows", {"num_tokens": 58}, "key: expected at least 58 rows (num_tokens), got shape [57, 2, 64]"),
    kv(
        "value_rows",
        {"value": lambda x: x[:56], "num_tokens": 57},
        "value: expected at least 57 rows (num_tokens), got shape [56, 2, 64]",
    ),
    kv(
        "value_rows_of_key",
        {"value": lambda x: x[:56]},
        "value: expected at least 57 rows (rows of key), got shape [56, 2, 64]",
    ),
    kv("table_rank", {"block_table": lambda x: x[0]}, "block_table: expected 2 dimensions, got shape [4]"),
    kv("table_dtype", {"block_table": to("float32")}, "block_table: expected dtype int32 or int64, got float32"),
    kv("bounds_dtype", {"cu_seq_lens": to("int8")}, "cu_seq_lens: expected dtype int32 or int64, got int8"),
    kv(
        "bounds_size",
        {"cu_seq_lens": lambda x: x[:4]},
        "cu_seq_lens: expected size 5 (batch_size + 1) in dimension 0, got shape [4]",
    ),
    kv(
        "starts_size",
        {"seq_starts": lambda x: x[:3]},
        "seq_starts: expected size 4 (batch_size) in dimension 0, got shape [3]",
        **STARTS,
    ),
    *(
        kv(f"{name}_none", {name: None}, f"{name}: expected a tensor for an fp8 format, got None", **FP8)
        for name in ("k_scale", "v_scale")
    ),
    kv("scale_dtype", {"k_scale": to("float16")}, "k_scale: expected dtype float32, got float16", **FP8),
    kv(
        "scale_size",
        {"v_scale": lambda x: x.expand(3)},
        "v_scale: expected 1 element or 2 (one per head), got shape [3]",
        **FP8,
    ),
    kv(
        "scale_sizes",
        {"k_scale": lambda x: x.repeat(2)},
        "v_scale: expected 2 elements like k_scale, got shape [1]",
        **FP8,
    ),
    *(
        kv(
            f"{name}_of_{format}",
            {name: torch.ones(1)},
            f"{name}: expected None (the format {format} has no global scale), got a tensor",
            format=format,
        )
        for name in ("k_global_scale", "v_global_scale")
        for format in ("auto", "fp8")
    ),
]

# Good packed calls by default: key_cache [9, 2, 8, 16, 8], value_cache [9, 2, 64, 16].
BAD_ARGUMENTS += [
    packed(
        "value_cache_rank",
        {"value_cache": lambda x: x[0]},
        "value_cache: expected 4 or 5 dimensions, got shape [2, 64, 16]",
    ),
    packed(
        "value_head_size",
        {"value": lambda x: x[..., :32]},
        "value: expected size 64 (head size of key) in dimension 2, got shape [57, 2, 32]",
    ),
    packed(
        "key_cache_heads",
        {"key_cache": lambda x: x[:, :1]},
        "key_cache: expected size 2 (heads of key) in dimension 1, got shape [9, 1, 8, 16, 8]",
    ),
    packed(
        "key_cache_vectors",
        {"key_cache": lambda x: x[:, :, :7]},
        "key_cache: expected size 8 (head size of key / size of dimension 4) in dimension 2, "
        "got shape [9, 2, 7, 16, 8]",
    ),
    packed(
        "value_cache_block_size",
        {"value_cache": lambda x: x[..., :8]},
        "value_cache: expected size 16 (block size of key_cache) in dimension 3, got shape [9, 2, 64, 8]",
    ),
    packed(
        "value_cache_head_size",
        {"value_cache": lambda x: x[:, :, :60]},
        "value_cache: expected size 64 (head size of key) in dimension 2, got shape [9, 2, 60, 16]",
    ),
    packed(
        "interleaved_vectors",
        {"value_cache": lambda x: x[..., :3]},
        "value_cache: expected a size in dimension 4 that divides 16 (block size of key_cache), "
        "got shape [9, 2, 4, 64, 3]",
        value_x=4,
    ),
    packed("key_cache_stride", {"key_cache": every_second}, STRIDE.format("key_cache")),
    packed("value_cache_stride", {"value_cache": every_second}, STRIDE.format("value_cache")),
]

# A tensor on the CPU in a call on a GPU.
WRONG_DEVICES = [
    kv(f"{name}_on_cpu", {name: on_cpu}, ON_CPU.format(name, "key_cache"), **FP8, **STARTS)
    for name in (*TENSORS[1:], "k_scale", "v_scale", "seq_starts")
]

BAD_INDICES = [
    kv(
        "block_past_the_end",
        {"block_table": with_value((3, 1), 9)},
        "block_table[3, 1]: expected a block from 0 to 8, got 9",
    ),
    kv(
        "block_negative",
        {"block_table": with_value((0, 0), -1)},
        "block_table[0, 0]: expected a block from 0 to 8, got -1",
        **FP8,
    ),
    packed(
        "block_int64",
        {"block_table": with_value((2, 0), 2**40)},
        f"block_table[2, 0]: expected a block from 0 to 8, got {2**40}",
        index_dtype=torch.int64,
    ),
]

# Bounds of a good call: 0, 5, 5, 21, 54; the outputs have 57 rows.
BAD_BOUNDS = [
    kv(
        "bound_decreasing",
        {"cu_seq_lens": with_value(2, 4)},
        "cu_seq_lens[2]: expected a bound of at least 5 (bounds must not decrease), got 4",
    ),
    packed(
        "bound_negative", {"cu_seq_lens": with_value(0, -1)}, "cu_seq_lens[0]: expected a bound of at least 0, got -1"
    ),
    kv(
        "start_negative",
        {"seq_starts": with_value(2, -1)},
        "seq_starts[2]: expected a position of at least 0, got -1",
        **STARTS,
    ),
]
