"""Bad calls of compute_slot_mapping."""

from __future__ import annotations

from collections.abc import Callable

import torch

from tests.errors.bad_call import (
    FIRST_ON_CPU,
    NONE,
    ON_CPU,
    STRIDE,
    Bad,
    every_second,
    on_cpu,
    to,
    with_value,
)
from tests.support.calls.slots import slots_arguments


def slots(what: str, changes: dict[str, object], message: str, **options: object) -> Bad:
    defaults = {"starts": (0, 7, 99, 30, 15), "table_rows": (4, 2, 1, 0, 3)}
    return Bad("compute_slot_mapping", slots_arguments, what, changes, message, defaults | options)


def item(i: int, change: Callable[[torch.Tensor], object]) -> Callable[[list[torch.Tensor]], list[object]]:
    """Changes one item of a list."""
    return lambda items: [change(x) if k == i else x for k, x in enumerate(items)]


ARGUMENTS = {  # name -> how the name of the tensor reads in a message
    "cu_query_lens": "cu_query_lens",
    "positions": "positions",
    "table_rows": "table_rows",
}

# Good calls by default: 2 groups of block sizes 16 and 64, block_tables [5, 8] and [5, 3], cu_query_lens [6],
# positions [56], slot_mappings [52], table_rows [5].
BAD_ARGUMENTS = [
    *(slots(f"{name}_none", {name: None}, NONE.format(name)) for name in ("cu_query_lens", "positions")),
    *(slots(f"{name}_stride", {name: every_second}, STRIDE.format(name)) for name in ARGUMENTS),
    *(
        slots(f"{name}_dtype", {name: to("int16")}, f"{name}: expected dtype int32 or int64, got int16")
        for name in ARGUMENTS
    ),
    *(
        slots(f"{name}_rank", {name: lambda x: x[None]}, f"{name}: expected 1 dimension, got shape [1, {size}]")
        for name, size in (("cu_query_lens", 6), ("positions", 56), ("table_rows", 5))
    ),
    slots(
        "cu_query_lens_size",
        {"cu_query_lens": lambda x: x[:0]},
        "cu_query_lens: expected at least 1 element, got shape [0]",
    ),
    slots(
        "table_rows_size",
        {"table_rows": lambda x: x[:4]},
        "table_rows: expected size 5 (sequences of cu_query_lens) in dimension 0, got shape [4]",
    ),
    slots(
        "positions_size",
        {"positions": lambda x: x[:51]},
        "positions: expected at least 52 rows (size of slot_mappings), got shape [51]",
    ),
    slots(
        "slot_mappings_length",
        {"slot_mappings": lambda x: x[:1]},
        "slot_mappings: expected 2 tensors, one for each of block_tables, got 1",
    ),
    slots(
        "block_sizes_length",
        {"block_sizes": [16, 64, 16]},
        "block_sizes: expected 2 numbers, one for each of block_tables, got 3",
    ),
    slots(
        "table_rank",
        {"block_tables": item(0, lambda x: x[0])},
        "block_tables[0]: expected 2 dimensions, got shape [8]",
    ),
    slots("table_stride", {"block_tables": item(1, every_second)}, STRIDE.format("block_tables[1]")),
    slots(
        "table_rows_differ",
        {"block_tables": item(1, lambda x: x[:4])},
        "block_tables[1]: expected size 5 (rows of block_tables[0]) in dimension 0, got shape [4, 3]",
    ),
    slots(
        "table_dtype",
        {"block_tables": item(0, to("uint8"))},
        "block_tables[0]: expected dtype int32 or int64, got uint8",
    ),
    slots(
        "table_dtypes_differ",
        {"block_tables": item(1, to("int64"))},
        "block_tables[1]: expected dtype int32 like block_tables[0], got int64",
    ),
    slots(
        "slots_rank",
        {"slot_mappings": item(1, lambda x: x[None])},
        "slot_mappings[1]: expected 1 dimension, got shape [1, 52]",
    ),
    slots("slots_stride", {"slot_mappings": item(0, every_second)}, STRIDE.format("slot_mappings[0]")),
    slots(
        "slots_expanded",
        {"slot_mappings": item(1, lambda x: x[:1].expand(52))},
        STRIDE.format("slot_mappings[1]").replace("stride 2", "stride 0"),
    ),
    slots(
        "slots_dtype",
        {"slot_mappings": item(0, to("float32"))},
        "slot_mappings[0]: expected dtype int32 or int64, got float32",
    ),
    slots(
        "slots_dtypes_differ",
        {"slot_mappings": item(1, to("int32"))},
        "slot_mappings[1]: expected dtype int64 like slot_mappings[0], got int32",
    ),
    slots(
        "slots_sizes_differ",
        {"slot_mappings": item(1, lambda x: x[:51])},
        "slot_mappings[1]: expected size 52 (size of slot_mappings[0]) in dimension 0, got shape [51]",
    ),
    slots("block_size", {"block_sizes": [16, 0]}, "block_sizes[1]: expected at least 1, got 0"),
    slots("world", {"cp_world": 0}, "cp_world: expected at least 1, got 0"),
    slots("interleave", {"cp_interleave": 0}, "cp_interleave: expected at least 1, got 0"),
    slots("rank", {"cp_rank": 1}, "cp_rank: expected a rank from 0 to 0 (cp_world is 1), got 1"),
    slots(
        "negative_rank",
        {"cp_rank": -1, "cp_world": 4},
        "cp_rank: expected a rank from 0 to 3 (cp_world is 4), got -1",
    ),
    slots(
        "indivisible",
        {"cp_interleave": 32},
        "block_sizes[0]: expected a multiple of 32 (cp_interleave), got 16",
    ),
]

WRONG_DEVICES = [
    slots("cu_query_lens_device", {"cu_query_lens": on_cpu}, FIRST_ON_CPU.format("cu_query_lens", "block_tables[0]")),
    slots("positions_device", {"positions": on_cpu}, ON_CPU.format("positions", "cu_query_lens")),
    slots("table_rows_device", {"table_rows": on_cpu}, ON_CPU.format("table_rows", "cu_query_lens")),
    slots("table_device", {"block_tables": item(1, on_cpu)}, ON_CPU.format("block_tables[1]", "cu_query_lens")),
    slots("slots_device", {"slot_mappings": item(0, on_cpu)}, ON_CPU.format("slot_mappings[0]", "cu_query_lens")),
]

# Sequence 3 has the tokens 8 .. 47, the positions 30 .. 69 and row 0.
BAD_INDICES = [
    slots(
        "row_past_the_end",
        {"table_rows": with_value(3, 5)},
        "table_rows[3]: expected a row from 0 to 4, got 5",
    ),
    slots(
        "too_many_sequences",
        {"table_rows": None, "block_tables": lambda tables: [x[:3] for x in tables]},
        "cu_query_lens[3]: expected tokens only in sequences below 3 (rows of block_tables), got 3",
        table_rows=None,
    ),
    slots(
        "no_rows",
        {"block_tables": lambda tables: [x[:0] for x in tables]},
        "table_rows[0]: expected no row (there are 0 in block_tables), got 4",
    ),
    slots(
        "position_past_the_table",
        {"positions": with_value(20, 128)},
        "positions[20]: expected a position in the 8 columns of block_tables[0], got 128",
    ),
    slots(
        "position_past_the_second_table",
        {"positions": with_value(20, 192), "block_tables": item(0, lambda x: x.new_zeros(5, 100))},
        "positions[20]: expected a position in the 3 columns of block_tables[1], got 192",
    ),
    slots(
        "position_past_the_table_of_a_rank",
        {"positions": with_value(20, 1000 * 64)},
        "positions[20]: expected a position in the 5 columns of block_tables[0], got 64000",
        cp_world=2,
        block_sizes=(16,),
    ),
    slots(
        "slot_past_int32",
        {"block_tables": item(0, with_value((0, 2), 2**27))},
        "block_tables[0][0, 2]: expected a block whose slots fit int32, got 134217728",
        slot_dtype=torch.int32,
    ),
    slots(
        "slot_past_int64",
        {"block_tables": item(0, with_value((0, 2), 2**60))},
        "block_tables[0][0, 2]: expected a block whose slots fit int64, got 1152921504606846976",
        table_dtype=torch.int64,
    ),
]

BAD_BOUNDS = [
    slots(
        "negative_bound",
        {"cu_query_lens": with_value(0, -1)},
        "cu_query_lens[0]: expected a bound of at least 0, got -1",
    ),
    slots(
        "decreasing_bounds",
        {"cu_query_lens": with_value(2, 1)},
        "cu_query_lens[2]: expected a bound of at least 7 (bounds must not decrease), got 1",
    ),
    slots(
        "bound_past_the_end",
        {"cu_query_lens": with_value(5, 53)},
        "cu_query_lens[5]: expected a bound of at most 52 (size of slot_mappings), got 53",
    ),
]
