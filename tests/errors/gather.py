"""Bad calls of cp_gather_cache."""

from __future__ import annotations

import torch

from tests.errors.bad_call import STRIDE, Bad, every_second, on_cpu, with_value
from tests.support.calls.gather import gather_arguments


def gather(what: str, changes: dict[str, object], message: str, **options: object) -> Bad:
    return Bad("cp_gather_cache", gather_arguments, what, changes, message, options)


# Good calls by default: src_cache [9, 16, 2, 64], dst [57, 2, 64], bfloat16; 4 sequences of at most 4 blocks.
BAD_ARGUMENTS = [
    *(
        gather(f"{name}_stride", {name: every_second}, STRIDE.format(name))
        for name in ("src_cache", "dst", "cu_seq_lens")
    ),
    gather(
        "cache_rank", {"src_cache": lambda x: x[0, 0, 0]}, "src_cache: expected at least 2 dimensions, got shape [64]"
    ),
    gather("dst_rank", {"dst": lambda x: x[0]}, "dst: expected 3 dimensions, got shape [2, 64]"),
    gather("dst_dtype", {"dst": lambda x: x.half()}, "dst: expected dtype bfloat16 like src_cache, got float16"),
    gather(
        "dst_dtype_complex",
        {"dst": lambda x: x.to(torch.complex64)},
        "dst: expected dtype bfloat16 like src_cache, got complex64",
    ),
    gather(
        "dst_heads",
        {"dst": lambda x: x[:, :1]},
        "dst: expected size 2 (entry size of src_cache) in dimension 1, got shape [57, 1, 64]",
    ),
    gather(
        "dst_head_size",
        {"dst": lambda x: x[..., :60]},
        "dst: expected size 64 (entry size of src_cache) in dimension 2, got shape [57, 2, 60]",
    ),
    gather(
        "dst_expanded",
        {"dst": lambda x: x[:1].expand(57, 2, 64)},
        "dst: expected a writable tensor without overlapping elements, got stride 0 in dimension 0",
    ),
    gather(
        "empty_blocks",
        {"src_cache": lambda x: x[:, :0]},
        "src_cache: expected a block size of at least 1, got shape [9, 0, 2, 64]",
    ),
    gather(
        "scattered_entries",
        {"src_cache": lambda x: torch.nn.functional.pad(x, (0, 1) * 10)[(..., *[slice(2)] * 10)]},
        "src_cache: expected entries of at most 8 strided dimensions, got shape [9, 16, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2]",
        entry=(2,) * 10,
    ),
    gather("table_rank", {"block_table": lambda x: x[0]}, "block_table: expected 2 dimensions, got shape [4]"),
    gather("table_dtype", {"block_table": lambda x: x.bool()}, "block_table: expected dtype int32 or int64, got bool"),
    gather(
        "table_stride",
        {"block_table": lambda x: x.t().contiguous().t()},
        "block_table: expected stride 1 in the innermost dimension, got stride 4",
    ),
    gather("bounds_rank", {"cu_seq_lens": lambda x: x[None]}, "cu_seq_lens: expected 1 dimension, got shape [1, 5]"),
    gather("bounds_dtype", {"cu_seq_lens": lambda x: x.char()}, "cu_seq_lens: expected dtype int32 or int64, got int8"),
    gather(
        "bounds_size",
        {"cu_seq_lens": lambda x: x[:4]},
        "cu_seq_lens: expected size 5 (batch_size + 1) in dimension 0, got shape [4]",
    ),
    gather("batch_size", {"batch_size": 3}, "batch_size: expected 4 (rows of block_table), or -1, got 3"),
    gather("batch_size_negative", {"batch_size": -2}, "batch_size: expected 4 (rows of block_table), or -1, got -2"),
    gather(
        "starts_rank",
        {"seq_starts": lambda x: x[:, None]},
        "seq_starts: expected 1 dimension, got shape [4, 1]",
        starts=(0,) * 4,
    ),
    gather(
        "starts_dtype",
        {"seq_starts": lambda x: x.double()},
        "seq_starts: expected dtype int32 or int64, got float64",
        starts=(0,) * 4,
    ),
    gather(
        "starts_size",
        {"seq_starts": lambda x: x.repeat(2)[:5]},
        "seq_starts: expected size 4 (batch_size) in dimension 0, got shape [5]",
        starts=(0,) * 4,
    ),
]

# A tensor on the CPU in a call on a GPU.
WRONG_DEVICES = [
    gather(
        f"{name}_on_cpu",
        {name: on_cpu},
        f"{name}: expected device {{device}} like src_cache, got cpu",
        starts=(1, 0, 2, 3),
    )
    for name in ("dst", "block_table", "cu_seq_lens", "seq_starts")
]

BAD_INDICES = [
    gather(
        "block_past_the_end",
        {"block_table": with_value((3, 1), 9)},
        "block_table[3, 1]: expected a block from 0 to 8, got 9",
    ),
    gather(
        "block_negative",
        {"block_table": with_value((0, 0), -1)},
        "block_table[0, 0]: expected a block from 0 to 8, got -1",
    ),
    gather(
        "block_of_an_empty_cache",
        {"src_cache": lambda x: x[:0], "block_table": with_value((0, 0), 3)},
        "block_table[0, 0]: expected no block (there are 0), got 3",
    ),
    gather(
        "block_int64",
        {"block_table": with_value((2, 0), 2**40)},
        f"block_table[2, 0]: expected a block from 0 to 8, got {2**40}",
        index_dtype=torch.int64,
    ),
    gather(
        "block_of_a_later_start",
        {"block_table": with_value((1, 2), 10**6)},
        "block_table[1, 2]: expected a block from 0 to 8, got 1000000",
        lengths=(3, 2),
        starts=(0, 40),
    ),
]

BAD_ARGUMENTS += [
    gather(f"{name}_none", {name: None}, f"{name}: expected a tensor, got None")
    for name in ("src_cache", "dst", "block_table", "cu_seq_lens")
]

# Bounds of a good call: 0, 5, 5, 21, 54; the output has 57 rows.
BAD_BOUNDS = [
    gather(
        "bound_decreasing",
        {"cu_seq_lens": with_value(2, 4)},
        "cu_seq_lens[2]: expected a bound of at least 5 (bounds must not decrease), got 4",
    ),
    gather(
        "bound_past_the_output",
        {"cu_seq_lens": with_value(4, 58)},
        "cu_seq_lens[4]: expected a bound of at most 57 (rows of the output), got 58",
    ),
    gather(
        "bound_huge",
        {"cu_seq_lens": with_value(1, 2**31 - 1)},
        f"cu_seq_lens[1]: expected a bound of at most 57 (rows of the output), got {2**31 - 1}",
    ),
    gather(
        "bound_negative",
        {"cu_seq_lens": with_value(0, -1)},
        "cu_seq_lens[0]: expected a bound of at least 0, got -1",
    ),
    gather(
        "start_negative",
        {"seq_starts": with_value(2, -1)},
        "seq_starts[2]: expected a position of at least 0, got -1",
        starts=(1, 0, 2, 3),
    ),
]
