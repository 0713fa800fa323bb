"""Bad calls of gather_and_maybe_dequant_cache and cp_gather_and_upconvert_fp8_kv_cache."""

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
    on_gpu,
    to,
    with_value,
)
from tests.support.calls.gather import dequant_arguments, upconvert_arguments


def dequant(what: str, changes: dict[str, object], message: str, **options: object) -> Bad:
    return Bad("gather_and_maybe_dequant_cache", dequant_arguments, what, changes, message, options)


def upconvert(what: str, changes: dict[str, object], message: str, **options: object) -> Bad:
    return Bad("cp_gather_and_upconvert_fp8_kv_cache", upconvert_arguments, what, changes, message, options)


def with_host(what: str, changes: dict[str, object], message: str, **options: object) -> Bad:
    """Every row that is needed is on the device or the host."""
    return upconvert(f"host_{what}", changes, message, host_rows=50, **options)


DEQUANT_TENSORS = ("src_cache", "dst", "block_table", "cu_seq_lens", "token_to_seq", "scale")
UPCONVERT_TENSORS = ("src_cache", "dst", "block_table", "workspace_starts")
HOST_TENSORS = ("host_cache", "host_row_ids", "device_row_ids")
STARTS = {"starts": (1, 0, 2, 3)}
TENSORS = ((dequant, DEQUANT_TENSORS), (upconvert, UPCONVERT_TENSORS))

# Of both: tensors that are None, not dense inside, expanded; tables and starts. 4 sequences of at most 4 blocks.
BAD_ARGUMENTS = [
    *(
        make(f"{name}_none", {name: None}, NONE.format(name))
        for make, names in TENSORS
        for name in names
        if name != "token_to_seq"  # which is optional
    ),
    *(
        make(f"{name}_stride", {name: every_second}, STRIDE.format(name))
        for make, names in TENSORS
        for name in names
        if name != "scale"  # which has one element
    ),
    *(make("dst_expanded", {"dst": expanded(0)}, EXPANDED.format("dst", 0)) for make, _ in TENSORS),
    *(
        make("dst_rank", {"dst": lambda x: x[None]}, "dst: expected 2 dimensions, got shape [1, 57, 576]")
        for make, _ in TENSORS
    ),
    *(
        make("table_rank", {"block_table": lambda x: x[0]}, "block_table: expected 2 dimensions, got shape [4]")
        for make, _ in TENSORS
    ),
    *(
        make("table_dtype", {"block_table": to("float32")}, "block_table: expected dtype int32 or int64, got float32")
        for make, _ in TENSORS
    ),
    *(
        make(
            "empty_blocks",
            {"src_cache": lambda x: x[:, :0]},
            f"src_cache: expected a block size of at least 1, got shape [9, 0, {entry}]",
        )
        for make, entry in ((dequant, 576), (upconvert, 656))
    ),
    *(
        make("starts_stride", {"seq_starts": every_second}, STRIDE.format("seq_starts"), **STARTS)
        for make, _ in TENSORS
    ),
    *(
        make(
            "starts_dtype",
            {"seq_starts": to("int16")},
            "seq_starts: expected dtype int32 or int64, got int16",
            **STARTS,
        )
        for make, _ in TENSORS
    ),
    *(
        make(
            "starts_size",
            {"seq_starts": lambda x: x[:3]},
            "seq_starts: expected size 4 (batch_size) in dimension 0, got shape [3]",
            **STARTS,
        )
        for make, _ in TENSORS
    ),
]

# Good calls by default: src_cache [9, 16, 576] uint8, dst [57, 576] bfloat16, num_tokens 54.
BAD_ARGUMENTS += [
    dequant("cache_rank", {"src_cache": lambda x: x[0]}, "src_cache: expected 3 or 4 dimensions, got shape [16, 576]"),
    dequant("dst_dtype", {"dst": to("float64")}, "dst: expected dtype float32, float16 or bfloat16, got float64"),
    dequant("dst_rows", {"dst": lambda x: x[:53]}, "dst: expected at least 54 rows (num_tokens), got shape [53, 576]"),
    dequant(
        "dst_size",
        {"dst": lambda x: x[:, :512]},
        "dst: expected size 576 (entry size of src_cache) in dimension 1, got shape [57, 512]",
    ),
    dequant("num_tokens", {"num_tokens": -2}, "num_tokens: expected at least 0, or -1 (all rows of dst), got -2"),
    dequant(
        "num_tokens_past_the_output",
        {"num_tokens": 2**63 - 1},
        f"dst: expected at least {2**63 - 1} rows (num_tokens), got shape [57, 576]",
    ),
    dequant("bounds_rank", {"cu_seq_lens": lambda x: x[0]}, "cu_seq_lens: expected 1 dimension, got shape []"),
    dequant("bounds_dtype", {"cu_seq_lens": to("uint8")}, "cu_seq_lens: expected dtype int32 or int64, got uint8"),
    dequant(
        "bounds_size",
        {"cu_seq_lens": lambda x: x[:4]},
        "cu_seq_lens: expected size 5 (batch_size + 1) in dimension 0, got shape [4]",
    ),
    dequant(
        "owners_rank", {"token_to_seq": lambda x: x[None]}, "token_to_seq: expected 1 dimension, got shape [1, 57]"
    ),
    dequant("owners_dtype", {"token_to_seq": to("int8")}, "token_to_seq: expected dtype int32 or int64, got int8"),
    dequant(
        "owners_size",
        {"token_to_seq": lambda x: x[:53]},
        "token_to_seq: expected at least 54 rows (num_tokens), got shape [53]",
    ),
    dequant(
        "format", {"kv_cache_dtype": "fp8_ds_mla"}, f"kv_cache_dtype: expected one of {FORMAT_NAMES}, got 'fp8_ds_mla'"
    ),
    dequant(
        "format_of_another_float",
        {"kv_cache_dtype": "float32"},
        "kv_cache_dtype: expected auto or bfloat16, the dtype of dst, got float32",
        format="auto",
    ),
    dequant(
        "cache_dtype",
        {"src_cache": to("float16")},
        "src_cache: expected dtype bfloat16 like dst, got float16",
        format="auto",
    ),
    dequant(
        "fp8_cache_dtype",
        {"src_cache": lambda x: x.view(torch.float8_e4m3fn)},
        "src_cache: expected dtype uint8 or float8_e5m2, got float8_e4m3fn",
        format="fp8_e5m2",
    ),
    dequant("scale_dtype", {"scale": to("bfloat16")}, "scale: expected dtype float32, got bfloat16"),
    dequant("scale_size", {"scale": lambda x: x.expand(9)}, "scale: expected 1 element, got shape [9]"),
]

# With heads: src_cache [9, 16, 4, 32] uint8, dst [57, 4, 32].
BAD_ARGUMENTS += [
    dequant(f"heads_{what}", changes, message, entry=(4, 32))
    for what, changes, message in (
        ("dst_rank", {"dst": lambda x: x[None]}, "dst: expected 2 or 3 dimensions, got shape [1, 57, 4, 32]"),
        (
            "dst_heads",
            {"dst": lambda x: x[:, :3]},
            "dst: expected size 4 (heads of src_cache) in dimension 1, got shape [57, 3, 32]",
        ),
        (
            "dst_head_size",
            {"dst": lambda x: x[..., :31]},
            "dst: expected size 32 (head size of src_cache) in dimension 2, got shape [57, 4, 31]",
        ),
        (
            "flat_dst_size",
            {"dst": lambda x: x.flatten(1)[:, :127]},
            "dst: expected size 128 (heads * head size of src_cache) in dimension 1, got shape [57, 127]",
        ),
        ("dst_expanded", {"dst": expanded(1)}, EXPANDED.format("dst", 1)),
        ("cache_stride", {"src_cache": every_second}, STRIDE.format("src_cache")),
        (
            "scale_size",
            {"scale": lambda x: x.expand(3)},
            "scale: expected 1 element or 4 (one per head), got shape [3]",
        ),
        ("scale_none", {"scale": None}, NONE.format("scale")),
    )
]

# Good calls by default: src_cache [9, 16, 656] uint8, dst [57, 576]; with host rows src_cache [3, 16, 656], host_cache
# [50, 656], row ids [144].
BAD_ARGUMENTS += [
    upconvert("cache_rank", {"src_cache": lambda x: x[0]}, "src_cache: expected 3 dimensions, got shape [16, 656]"),
    *(
        upconvert(
            f"cache_{dtype}",
            {"src_cache": to(dtype)},
            f"src_cache: expected dtype uint8, float8_e4m3fn or float8_e4m3fnuz, got {dtype}",
        )
        for dtype in ("bfloat16", "float8_e5m2", "int8")
    ),
    upconvert(
        "cache_entry",
        {"src_cache": lambda x: x[..., :640]},
        "src_cache: expected size 656 (bytes of an fp8_ds_mla entry) in dimension 2, got shape [9, 16, 640]",
    ),
    upconvert("dst_dtype", {"dst": to("float16")}, "dst: expected dtype bfloat16, got float16"),
    upconvert(
        "dst_size",
        {"dst": lambda x: x[:, :512]},
        "dst: expected size 576 (elements of an fp8_ds_mla entry) in dimension 1, got shape [57, 512]",
    ),
    upconvert("batch_size", {"batch_size": 5}, "batch_size: expected 4 (rows of block_table), or -1, got 5"),
    upconvert(
        "bounds_rank",
        {"workspace_starts": lambda x: x[None]},
        "workspace_starts: expected 1 dimension, got shape [1, 4]",
    ),
    upconvert(
        "bounds_dtype",
        {"workspace_starts": to("float64")},
        "workspace_starts: expected dtype int32 or int64, got float64",
    ),
    *(
        upconvert(
            f"bounds_{size}",
            {"workspace_starts": lambda x, size=size: x.repeat(2)[:size]},
            f"workspace_starts: expected 4 elements (batch_size), or one more, got shape [{size}]",
        )
        for size in (0, 3, 6)
    ),
    *(
        with_host(
            f"{name}_none",
            {name: None},
            f"{name}: expected a tensor (host_cache, host_row_ids and device_row_ids are given together), got None",
        )
        for name in HOST_TENSORS
    ),
    *(with_host(f"{name}_stride", {name: every_second}, STRIDE.format(name)) for name in HOST_TENSORS),
    with_host("cache_rank", {"host_cache": lambda x: x[0]}, "host_cache: expected 2 dimensions, got shape [656]"),
    with_host(
        "cache_dtype", {"host_cache": lambda x: x.view(torch.int8)}, "host_cache: expected dtype uint8, got int8"
    ),
    with_host(
        "cache_entry",
        {"host_cache": lambda x: x[:, 1:]},
        "host_cache: expected size 656 (bytes of an fp8_ds_mla entry) in dimension 1, got shape [50, 655]",
    ),
    *(
        with_host(f"{name}_rank", {name: lambda x: x[None]}, f"{name}: expected 1 dimension, got shape [1, 144]")
        for name in HOST_TENSORS[1:]
    ),
    *(
        with_host(f"{name}_dtype", {name: to("float32")}, f"{name}: expected dtype int32 or int64, got float32")
        for name in HOST_TENSORS[1:]
    ),
    with_host(
        "ids_of_two_sizes",
        {"device_row_ids": lambda x: x[:128]},
        "device_row_ids: expected size 144 (elements of host_row_ids) in dimension 0, got shape [128]",
    ),
    with_host(
        "ids_of_part_of_a_block",
        {"device_row_ids": lambda x: x[:143], "host_row_ids": lambda x: x[:143]},
        "host_row_ids: expected a multiple of 16 elements (block size of src_cache), got shape [143]",
    ),
]

# A tensor on the CPU in a call on a GPU, or the other way round.
WRONG_DEVICES = [
    *(
        dequant(f"{name}_on_cpu", {name: on_cpu}, ON_CPU.format(name, "src_cache"), **STARTS)
        for name in (*DEQUANT_TENSORS[1:], "seq_starts")
    ),
    *(
        with_host(f"{name}_on_cpu", {name: on_cpu}, ON_CPU.format(name, "src_cache"), **STARTS)
        for name in (*UPCONVERT_TENSORS[1:], "seq_starts", *HOST_TENSORS[1:])
    ),
    with_host("cache_on_gpu", {"host_cache": on_gpu}, "host_cache: expected a CPU tensor, got {device}"),
    with_host("cache_pageable", {"host_cache": torch.clone}, "host_cache: expected pinned memory, got pageable memory"),
]

BAD_INDICES = [
    dequant(
        "block_past_the_end",
        {"block_table": with_value((3, 1), 9)},
        "block_table[3, 1]: expected a block from 0 to 8, got 9",
    ),
    dequant(
        "block_negative",
        {"block_table": with_value((2, 0), -1)},
        "block_table[2, 0]: expected a block from 0 to 8, got -1",
        format="auto",
    ),
    dequant(
        "block_of_the_last_row",
        {"block_table": with_value((3, 1), 10**6)},
        "block_table[3, 1]: expected a block from 0 to 8, got 1000000",
        extra_tokens=-16,  # the last sequence has 17 rows left
    ),
    upconvert(
        "block_of_the_last_sequence",  # which has 36 rows
        {"block_table": with_value((3, 2), 9)},
        "block_table[3, 2]: expected a block from 0 to 8, got 9",
    ),
    upconvert(
        "block_int64",
        {"block_table": with_value((0, 0), -(2**40))},
        f"block_table[0, 0]: expected a block from 0 to 8, got {-(2**40)}",
        index_dtype=torch.int64,
    ),
    with_host(
        "logical_block",
        {"block_table": with_value((0, 0), 9)},
        "block_table[0, 0]: expected a block from 0 to 8, got 9",
    ),
    with_host(
        "device_row",
        {"block_table": with_value((2, 0), 4), "device_row_ids": with_value(64, 48)},
        "device_row_ids[64]: expected a row below 48, got 48",
        lengths=(5, 0, 1),
        surplus_rows=0,
    ),
    with_host(
        "host_row",
        {
            "block_table": with_value((0, 0), 2),
            "device_row_ids": with_value(32, -1),
            "host_row_ids": with_value(32, 50),
        },
        "host_row_ids[32]: expected a row below 50, got 50",
        lengths=(1,),
        surplus_rows=0,
        index_dtype=torch.int64,
    ),
]

# Bounds of good calls: 0, 5, 5, 21, 54; the outputs have 57 rows.
BAD_BOUNDS = [
    dequant(
        "bound_decreasing",
        {"cu_seq_lens": with_value(2, 4)},
        "cu_seq_lens[2]: expected a bound of at least 5 (bounds must not decrease), got 4",
    ),
    dequant(
        "bound_negative", {"cu_seq_lens": with_value(0, -1)}, "cu_seq_lens[0]: expected a bound of at least 0, got -1"
    ),
    dequant(
        "bound_huge",
        {"cu_seq_lens": with_value(3, 2**62)},
        f"cu_seq_lens[4]: expected a bound of at least {2**62} (bounds must not decrease), got 54",
        index_dtype=torch.int64,
    ),
    upconvert(
        "bound_decreasing",
        {"workspace_starts": with_value(2, 4)},
        "workspace_starts[2]: expected a bound of at least 5 (bounds must not decrease), got 4",
    ),
    upconvert(
        "bound_past_the_output",
        {"workspace_starts": with_value(3, 58)},
        "workspace_starts[3]: expected a bound of at most 57 (rows of the output), got 58",
    ),
    upconvert(
        "bound_negative",
        {"workspace_starts": with_value(0, -(2**31))},
        f"workspace_starts[0]: expected a bound of at least 0, got {-(2**31)}",
        last_bound=True,
    ),
    *(
        make(
            "start_negative",
            {"seq_starts": with_value(2, -1)},
            "seq_starts[2]: expected a position of at least 0, got -1",
            **STARTS,
        )
        for make, _ in TENSORS
    ),
]
