"""Bad calls of compact_cache."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.errors.bad_call import (
    EXPANDED,
    FIRST_ON_CPU,
    NONE,
    ON_CPU,
    STRIDE,
    Bad,
    every_second,
    expanded,
    to,
    with_value,
)
from tests.errors.moves import item, longer, on_cpu_list, pageable
from tests.support.calls.moves import compact_arguments


def compact(what: str, changes: dict[str, object], message: str, **options: object) -> Bad:
    return Bad("compact_cache", compact_arguments, what, changes, message, {"starts": (0, 0, 0, 0)} | options)


# Good calls by default: 4 planes [23, 4, 3, ...] of heads of 8, 8, 8, 1; block_table [4, 9]; keep [24].
BAD_ARGUMENTS = [
    compact("caches_empty", {"caches": []}, "caches: expected at least 1 tensor, got an empty list"),
    *(compact(f"{name}_none", {name: None}, NONE.format(name)) for name in ("block_table", "keep", "keep_offsets")),
    compact("cache_rank", {"caches": item(0, lambda x: x[0])}, "caches[0]: expected 4 dimensions, got shape [4, 3, 8]"),
    compact(
        "cache_blocks",
        {"caches": item(2, lambda x: x[:5])},
        "caches[2]: expected size 23 (number of blocks of caches[0]) in dimension 0, got shape [5, 4, 3, 8]",
    ),
    compact(
        "cache_block_size",
        {"caches": item(2, lambda x: x[:, :3])},
        "caches[2]: expected size 4 (block size of caches[0]) in dimension 1, got shape [23, 3, 3, 8]",
    ),
    compact(
        "cache_heads",
        {"caches": item(3, lambda x: x[:, :, :2])},
        "caches[3]: expected size 3 (heads of caches[0]) in dimension 2, got shape [23, 4, 2, 1]",
    ),
    compact("cache_stride", {"caches": item(1, every_second)}, STRIDE.format("caches[1]")),
    compact("cache_expanded", {"caches": item(2, expanded(0))}, EXPANDED.format("caches[2]", 0)),
    compact(
        "block_size_0",
        {"caches": lambda x: [plane[:, :0] for plane in x]},
        "caches[0]: expected a block size of at least 1, got shape [23, 0, 3, 8]",
    ),
    compact("table_rank", {"block_table": lambda x: x[0]}, "block_table: expected 2 dimensions, got shape [9]"),
    compact("table_dtype", {"block_table": to("int16")}, "block_table: expected dtype int32 or int64, got int16"),
    compact("table_stride", {"block_table": every_second}, STRIDE.format("block_table")),
    compact("keep_0d", {"keep": lambda x: x[0]}, "keep: expected 1 to 3 dimensions, got shape []"),
    compact(
        "keep_4d",
        {"keep": lambda x: x[None, None, None]},
        "keep: expected 1 to 3 dimensions, got shape [1, 1, 1, 24]",
    ),
    compact(
        "keep_heads",
        {"keep": lambda x: x[:2]},
        "keep: expected size 3 (heads of caches) in dimension 0, got shape [2, 24]",
        keep_dim=2,
    ),
    compact(
        "keep_groups",
        {"keep": longer(0)},
        "keep: expected a divisor of 4 (planes of caches) in dimension 0, got shape [3, 3, 24]",
        keep_dim=3,
    ),
    compact(
        "keep_no_groups",
        {"keep": lambda x: x[:0]},
        "keep: expected a divisor of 4 (planes of caches) in dimension 0, got shape [0, 3, 24]",
        keep_dim=3,
    ),
    compact("keep_dtype", {"keep": to("float32")}, "keep: expected dtype int32 or int64, got float32"),
    compact("keep_stride", {"keep": every_second}, STRIDE.format("keep")),
    compact(
        "offsets_rank", {"keep_offsets": lambda x: x[None]}, "keep_offsets: expected 1 dimension, got shape [1, 5]"
    ),
    compact("offsets_dtype", {"keep_offsets": to("int8")}, "keep_offsets: expected dtype int32 or int64, got int8"),
    compact(
        "too_few_offsets",
        {"keep_offsets": lambda x: x[:4]},
        "keep_offsets: expected size 5 (rows of block_table + 1) in dimension 0, got shape [4]",
    ),
    compact("starts_rank", {"dst_start": lambda x: x[None]}, "dst_start: expected 1 dimension, got shape [1, 4]"),
    compact("starts_dtype", {"dst_start": to("float64")}, "dst_start: expected dtype int32 or int64, got float64"),
    compact(
        "too_few_starts",
        {"dst_start": lambda x: x[:3]},
        "dst_start: expected size 4 (rows of block_table) in dimension 0, got shape [3]",
    ),
]


WRONG_DEVICES = [
    compact("caches_on_cpu", {"caches": on_cpu_list}, FIRST_ON_CPU.format("caches", "block_table")),
    *(
        compact(f"{name}_on_cpu", {name: pageable}, ON_CPU.format(name, "caches"))
        for name in ("block_table", "keep", "keep_offsets", "dst_start")
    ),
]


def row(x: Tensor, first: int, *values: int) -> Tensor:
    """Other elements of keep from `first` on, in all heads and groups."""
    x = x.clone()
    x[..., first : first + len(values)] = torch.tensor(values, device=x.device)
    return x


BAD_INDICES = [
    compact(
        "start_negative", {"dst_start": with_value(1, -1)}, "dst_start[1]: expected a position of at least 0, got -1"
    ),
    compact(
        "position_negative",
        {"keep": with_value(0, -3)},
        "keep[0]: expected a position of at least 0 (its destination), got -3",
    ),
    compact(
        "below_its_destination",
        {"keep": lambda x: row(x, 0, 0, 1, 1)},
        "keep[2]: expected a position of at least 2 (its destination), got 1",
    ),
    compact(
        "not_increasing",
        {"keep": lambda x: row(x, 0, 4, 9, 9, 10)},
        "keep[2]: expected a position above 9 (positions must increase), got 9",
    ),
    compact(
        "not_increasing_in_a_head",
        {"keep": with_value((1, 13), 0)},
        "keep[1, 13]: expected a position of at least 2 (its destination), got 0",
        keep_dim=2,
    ),
    compact(
        "past_the_table",
        {"keep": with_value(23, 36)},
        "keep[23]: expected a position below 36 (width of block_table), got 36",
    ),
    compact(
        "far_past_the_table",
        {"keep": with_value((1, 2, 23), 2**62)},
        f"keep[1, 2, 23]: expected a position below 36 (width of block_table), got {2**62}",
        keep_dim=3,
    ),
    compact(
        "block_past_the_end",
        {"block_table": with_value((3, 0), 23)},
        "block_table[3, 0]: expected a block from 0 to 22, got 23",
    ),
    compact(
        "block_negative",
        {"block_table": with_value((1, 1), -1)},
        "block_table[1, 1]: expected a block from 0 to 22, got -1",
    ),
]

BAD_BOUNDS = [
    compact(
        "offset_negative",
        {"keep_offsets": with_value(0, -1)},
        "keep_offsets[0]: expected a bound of at least 0, got -1",
    ),
    compact(
        "offset_decreasing",
        {"keep_offsets": with_value(2, 5)},
        "keep_offsets[2]: expected a bound of at least 6 (bounds must not decrease), got 5",
    ),
    compact(
        "offset_past_the_end",
        {"keep_offsets": with_value(4, 25)},
        "keep_offsets[4]: expected a bound of at most 24 (elements of keep), got 25",
    ),
]
