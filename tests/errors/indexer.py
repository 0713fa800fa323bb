"""Bad calls of the ops of the sparse attention's indexer."""

from __future__ import annotations

import torch

from tests.errors.bad_call import EXPANDED, NONE, ON_CPU, STRIDE, Bad, every_second, expanded, on_cpu, to, with_value
from tests.support.calls.indexer import indexer_gather_arguments, indexer_write_arguments


def write(what: str, changes: dict[str, object], message: str, **options: object) -> Bad:
    return Bad("indexer_k_quant_and_cache", indexer_write_arguments, what, changes, message, options)


def gather(what: str, changes: dict[str, object], message: str, **options: object) -> Bad:
    return Bad("cp_gather_indexer_k_quant_cache", indexer_gather_arguments, what, changes, message, options)


WRITE_TENSORS = ("k", "kv_cache", "slot_mapping")
GATHER_TENSORS = ("kv_cache", "dst_k", "dst_scale", "block_table", "cu_seq_lens")
FORMAT_NAMES = "auto, float32, fp32, fp8, fp8_e4m3, fp8_e4m3fn, fp8_e4m3fnuz, ue8m0, mxfp8"


def not_contiguous(shape: str, strides: str) -> str:
    got = f"got shape {shape} and strides {strides}"
    return f"kv_cache: expected contiguous blocks (dimensions 1 and 2), {got}"


def overlapping(strides: str) -> str:
    return (
        "kv_cache: expected a writable tensor without overlapping elements, "
        f"got shape [3, 16, 132] and strides {strides}"
    )


# Good calls by default: k [37, 128], kv_cache [3, 16, 132], quant_block_size 128, ue8m0.
BAD_ARGUMENTS = [
    *(write(f"{name}_none", {name: None}, NONE.format(name)) for name in WRITE_TENSORS),
    *(write(f"{name}_stride", {name: every_second}, STRIDE.format(name)) for name in ("k", "slot_mapping")),
    write("k_rank", {"k": lambda x: x[:, None]}, "k: expected 2 dimensions, got shape [37, 1, 128]"),
    write("k_dtype", {"k": to("float8_e4m3fn")}, "k: expected dtype float32, float16 or bfloat16, got float8_e4m3fn"),
    write(
        "k_rows", {"k": lambda x: x[:36]}, "k: expected at least 37 rows (slots in slot_mapping), got shape [36, 128]"
    ),
    write("cache_rank", {"kv_cache": lambda x: x.flatten(1)}, "kv_cache: expected 3 dimensions, got shape [3, 2112]"),
    *(
        write(f"cache_{dtype}", {"kv_cache": to(dtype)}, f"kv_cache: expected dtype uint8, got {dtype}")
        for dtype in ("float8_e4m3fn", "int8", "float32")
    ),
    write("cache_stride", {"kv_cache": every_second}, not_contiguous("[3, 16, 132]", "[4224, 264, 2]")),
    write("cache_padded_slots", {"kv_cache": lambda x: x[..., :100]}, not_contiguous("[3, 16, 100]", "[2112, 132, 1]")),
    write("cache_one_slot", {"kv_cache": expanded(1)}, not_contiguous("[3, 16, 132]", "[2112, 0, 1]")),
    write("cache_expanded", {"kv_cache": expanded(0)}, overlapping("[0, 132, 1]")),
    write(
        "cache_overlapping_blocks",
        {"kv_cache": lambda x: x.as_strided(x.shape, (2111, 132, 1))},
        overlapping("[2111, 132, 1]"),
    ),
    write(
        "empty_blocks",
        {"kv_cache": lambda x: x[:, :0]},
        "kv_cache: expected a block size of at least 1, got shape [3, 0, 132]",
    ),
    write(
        "cache_without_scales",
        {"kv_cache": lambda x: x.new_empty(3, 16, 128)},
        "kv_cache: expected size 132 (128 codes and 1 scale of 4 bytes) in dimension 2, got shape [3, 16, 128]",
    ),
    write(
        "cache_smaller_than_k",
        {"kv_cache": lambda x: x.new_empty(3, 16, 4)},
        "kv_cache: expected size 132 (128 codes and 1 scale of 4 bytes) in dimension 2, got shape [3, 16, 4]",
    ),
    write(
        "cache_of_other_tiles",
        {"quant_block_size": 32},
        "kv_cache: expected size 144 (128 codes and 4 scales of 4 bytes) in dimension 2, got shape [3, 16, 132]",
    ),
    *(
        write(
            f"tile_{size}",
            {"quant_block_size": size},
            f"quant_block_size: expected a divisor of 128 (head size of k), got {size}",
        )
        for size in (3, 256, 2**62)
    ),
    *(
        write(f"tile_{size}", {"quant_block_size": size}, f"quant_block_size: expected at least 1, got {size}")
        for size in (0, -128)
    ),
    write("slots_rank", {"slot_mapping": lambda x: x[None]}, "slot_mapping: expected 1 dimension, got shape [1, 37]"),
    write("slots_dtype", {"slot_mapping": to("float64")}, "slot_mapping: expected dtype int32 or int64, got float64"),
    *(
        write(
            f"format_{name}", {"kv_cache_dtype": name}, f"kv_cache_dtype: expected one of {FORMAT_NAMES}, got '{name}'"
        )
        for name in ("float16", "fp8_e5m2", "fp8_ds_mla", "UE8M0", "")
    ),
    write(
        "mxfp8_tile",
        {"kv_cache_dtype": "mxfp8"},
        "quant_block_size: expected 128 with head size 128 (mxfp8), got 32 with head size 128",
        quant_block_size=32,
    ),
    write(
        "mxfp8_head_size",
        {"kv_cache_dtype": "mxfp8"},
        "quant_block_size: expected 128 with head size 128 (mxfp8), got 128 with head size 256",
        head_size=256,
    ),
]

# Good calls by default: kv_cache [9, 16, 132], dst_k [57, 128], dst_scale [57, 4], uint8; block_table [4, 4].
BAD_ARGUMENTS += [
    *(gather(f"{name}_none", {name: None}, NONE.format(name)) for name in GATHER_TENSORS),
    *(gather(f"{name}_stride", {name: every_second}, STRIDE.format(name)) for name in GATHER_TENSORS[1:]),
    gather("dst_k_expanded", {"dst_k": expanded(0)}, EXPANDED.format("dst_k", 0)),
    gather("dst_scale_expanded", {"dst_scale": expanded(0)}, EXPANDED.format("dst_scale", 0)),
    gather("cache_rank", {"kv_cache": lambda x: x[0]}, "kv_cache: expected 3 dimensions, got shape [16, 132]"),
    gather("cache_dtype", {"kv_cache": lambda x: x.view(torch.int8)}, "kv_cache: expected dtype uint8, got int8"),
    gather("cache_stride", {"kv_cache": every_second}, not_contiguous("[9, 16, 132]", "[4224, 264, 2]")),
    gather(
        "empty_blocks",
        {"kv_cache": lambda x: x[:, :0]},
        "kv_cache: expected a block size of at least 1, got shape [9, 0, 132]",
    ),
    gather("dst_k_rank", {"dst_k": lambda x: x[0]}, "dst_k: expected 2 dimensions, got shape [128]"),
    *(
        gather(
            f"dst_k_{dtype}",
            {"dst_k": to(dtype)},
            f"dst_k: expected dtype uint8, float8_e4m3fn or float8_e4m3fnuz, got {dtype}",
        )
        for dtype in ("bfloat16", "int8", "float8_e5m2")
    ),
    gather(
        "dst_k_size",
        {"dst_k": lambda x: x[:, :64]},
        "kv_cache: expected size 68 (bytes per row of both outputs) in dimension 2, got shape [9, 16, 132]",
    ),
    gather("dst_scale_rank", {"dst_scale": lambda x: x[0]}, "dst_scale: expected 2 dimensions, got shape [4]"),
    gather("dst_scale_dtype", {"dst_scale": to("int32")}, "dst_scale: expected dtype uint8 or float32, got int32"),
    gather(
        "dst_scale_rows",
        {"dst_scale": lambda x: x[:56]},
        "dst_scale: expected size 57 (rows of dst_k) in dimension 0, got shape [56, 4]",
    ),
    *(
        gather(
            f"dst_scale_of_{size}_bytes",
            {"dst_scale": lambda x, size=size: x.new_empty(57, size)},
            "dst_scale: expected 4-byte scales, their number a divisor of 128 (bytes per row of dst_k), "
            f"got shape [57, {size}] of uint8",
        )
        for size in (0, 3, 12)
    ),
    gather(
        "dst_scale_of_other_tiles",
        {"dst_scale": lambda x: x.new_empty(57, 4, dtype=torch.float32)},
        "kv_cache: expected size 144 (bytes per row of both outputs) in dimension 2, got shape [9, 16, 132]",
    ),
    gather("table_rank", {"block_table": lambda x: x[0]}, "block_table: expected 2 dimensions, got shape [4]"),
    gather("table_dtype", {"block_table": to("int8")}, "block_table: expected dtype int32 or int64, got int8"),
    gather("bounds_rank", {"cu_seq_lens": lambda x: x[None]}, "cu_seq_lens: expected 1 dimension, got shape [1, 5]"),
    gather("bounds_dtype", {"cu_seq_lens": to("int16")}, "cu_seq_lens: expected dtype int32 or int64, got int16"),
    gather(
        "bounds_size",
        {"cu_seq_lens": lambda x: x.repeat(2)[:6]},
        "cu_seq_lens: expected size 5 (batch_size + 1) in dimension 0, got shape [6]",
    ),
]

# A tensor on the CPU in a call on a GPU.
WRONG_DEVICES = [
    *(write(f"{name}_on_cpu", {name: on_cpu}, ON_CPU.format(name, "k")) for name in WRITE_TENSORS[1:]),
    *(gather(f"{name}_on_cpu", {name: on_cpu}, ON_CPU.format(name, "kv_cache")) for name in GATHER_TENSORS[1:]),
]

BAD_INDICES = [
    write("slot", {"slot_mapping": with_value(36, 48)}, "slot_mapping[36]: expected a slot below 48, got 48"),
    write(
        "slot_int32",
        {"slot_mapping": with_value(slice(5, 9), 2**31 - 1)},
        f"slot_mapping[5]: expected a slot below 48, got {2**31 - 1}",
        index_dtype=torch.int32,
        format="mxfp8",
    ),
    gather(
        "block_past_the_end",
        {"block_table": with_value((3, 1), 9)},
        "block_table[3, 1]: expected a block from 0 to 8, got 9",
    ),
    gather(
        "block_negative",
        {"block_table": with_value((0, 0), -1)},
        "block_table[0, 0]: expected a block from 0 to 8, got -1",
        index_dtype=torch.int64,
    ),
]

# Bounds of a good call: 0, 5, 5, 21, 54; the outputs have 57 rows.
BAD_BOUNDS = [
    gather(
        "bound_decreasing",
        {"cu_seq_lens": with_value(4, 20)},
        "cu_seq_lens[4]: expected a bound of at least 21 (bounds must not decrease), got 20",
    ),
    gather(
        "bound_past_the_output",
        {"cu_seq_lens": with_value(4, 2**31 - 1)},
        f"cu_seq_lens[4]: expected a bound of at most 57 (rows of the output), got {2**31 - 1}",
    ),
    gather(
        "bound_negative",
        {"cu_seq_lens": with_value(0, -1)},
        "cu_seq_lens[0]: expected a bound of at least 0, got -1",
    ),
]
