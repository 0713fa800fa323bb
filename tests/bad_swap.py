"""Bad calls of swap_blocks."""

from __future__ import annotations

import torch
from torch import Tensor

from bad_calls import NONE, STRIDE, Bad, every_second, on_gpu, to
from calls.swap import swap_arguments
from helpers import Arguments, random_bytes


def swap(what: str, changes: dict[str, object], message: str, **options: object) -> Bad:
    return Bad("swap_blocks", swap_arguments, what, changes, message, options)


def shifted_arguments(device: torch.device | str = "cpu") -> Arguments:
    memory = random_bytes(64 * 17, device)
    arguments = {"src": memory[: 64 * 16], "dst": memory[32 : 32 + 64 * 16]}
    return arguments | {"block_size_in_bytes": 64, "block_mapping": pairs((11, 12), (14, 2), (4, 5))}


def swap_shifted(what: str, changes: dict[str, object], message: str) -> Bad:
    return Bad("swap_blocks", shifted_arguments, f"shifted_{what}", changes, message, {})


def pairs(*values: tuple[int, int]) -> Tensor:
    return torch.tensor(values)


# Good calls by default: src [9, 16, 33], dst [7, 16, 33], bfloat16; blocks of 1056 bytes; block_mapping [5, 2].
BAD_ARGUMENTS = [
    *(swap(f"{name}_none", {name: None}, NONE.format(name)) for name in ("src", "dst", "block_mapping")),
    *(
        swap(
            f"{name}_transposed",
            {name: lambda x: x.transpose(1, 2)},
            f"{name}: expected a contiguous tensor, got shape [{blocks}, 33, 16] and strides [528, 1, 33]",
        )
        for name, blocks in (("src", 9), ("dst", 7))
    ),
    swap(
        "dst_padded",
        {"dst": lambda x: x[..., :32]},
        "dst: expected a contiguous tensor, got shape [7, 16, 32] and strides [528, 33, 1]",
    ),
    swap(
        "dst_expanded",
        {"dst": lambda x: x[:1].expand(7, -1, -1)},
        "dst: expected a contiguous tensor, got shape [7, 16, 33] and strides [0, 33, 1]",
    ),
    *(
        swap(
            f"block_size_{size}", {"block_size_in_bytes": size}, f"block_size_in_bytes: expected at least 1, got {size}"
        )
        for size in (0, -1, -(2**63))
    ),
    swap("mapping_rank", {"block_mapping": lambda x: x[0]}, "block_mapping: expected 2 dimensions, got shape [2]"),
    swap("mapping_dtype", {"block_mapping": to("int32")}, "block_mapping: expected dtype int64, got int32"),
    swap(
        "mapping_columns",
        {"block_mapping": lambda x: x.repeat(1, 2)[:, :3]},
        "block_mapping: expected size 2 (a block of src and one of dst) in dimension 1, got shape [5, 3]",
    ),
    swap("mapping_stride", {"block_mapping": every_second}, STRIDE.format("block_mapping")),
    swap(
        "dst_twice",
        {"block_mapping": pairs((0, 3), (1, 2), (2, 4), (0, 2), (0, 1))},
        "block_mapping: expected blocks of dst that differ, got block 2 in pairs 1 and 3",
    ),
    swap(
        "pair_twice",
        {"block_mapping": pairs((0, 3)).expand(2, 2)},
        "block_mapping: expected blocks of dst that differ, got block 3 in pairs 0 and 1",
    ),
    swap(
        "reads_what_it_writes",
        {"block_mapping": pairs((0, 15), (3, 10), (10, 11))},
        "block_mapping: expected pairs that read nothing that is written, "
        "got pair 2, whose block 10 of src overlaps block 10 of dst, that of pair 1",
        same_tensor=True,
    ),
    swap(
        "block_to_itself",
        {"block_mapping": pairs((4, 4))},
        "block_mapping: expected pairs that read nothing that is written, "
        "got pair 0, whose block 4 of src overlaps block 4 of dst, that of pair 0",
        same_tensor=True,
    ),
]

# Good calls by default: src and dst of 16 blocks of 64 bytes in one memory, dst from the middle of src's block 0 on.
BAD_ARGUMENTS += [
    swap_shifted(
        "pair",
        {"block_mapping": pairs((1, 0))},
        "block_mapping: expected pairs that read nothing that is written, "
        "got pair 0, whose block 1 of src overlaps block 0 of dst, that of pair 0",
    ),
    swap_shifted(
        "two_pairs",
        {"block_mapping": pairs((0, 12), (5, 8), (13, 3))},
        "block_mapping: expected pairs that read nothing that is written, "
        "got pair 2, whose block 13 of src overlaps block 12 of dst, that of pair 0",
    ),
]

# A tensor on the wrong one of two devices; two GPUs: test_errors.py.
WRONG_DEVICES = [
    swap("mapping_on_gpu", {"block_mapping": on_gpu}, "block_mapping: expected device cpu, got {device}"),
    swap(
        "only_mapping_on_gpu",
        {"block_mapping": on_gpu},
        "block_mapping: expected device cpu, got {device}",
        src="pinned",
        dst="pageable",
    ),
]

# On every device, whether or not it checks indices.
BAD_BLOCKS = [
    swap(
        "src_past_the_end",
        {"block_mapping": pairs((0, 0), (9, 1))},
        "block_mapping[1, 0]: expected a block of src from 0 to 8, got 9",
    ),
    swap(
        "src_negative",
        {"block_mapping": pairs((-1, 0))},
        "block_mapping[0, 0]: expected a block of src from 0 to 8, got -1",
    ),
    swap(
        "dst_past_the_end",
        {"block_mapping": pairs((8, 7))},
        "block_mapping[0, 1]: expected a block of dst from 0 to 6, got 7",
    ),
    swap(
        "dst_negative",
        {"block_mapping": pairs((1, 2), (2, 3), (3, -(2**63)))},
        f"block_mapping[2, 1]: expected a block of dst from 0 to 6, got {-(2**63)}",
    ),
    swap(
        "offset_that_overflows",  # and would be 0
        {"block_mapping": pairs((2**59, 0))},
        f"block_mapping[0, 0]: expected a block of src from 0 to 8, got {2**59}",
    ),
    swap(
        "part_of_a_block",  # src has 9504 bytes, dst 7392
        {"block_mapping": pairs((8, 0), (0, 7)), "block_size_in_bytes": 1050},
        "block_mapping[1, 1]: expected a block of dst from 0 to 6, got 7",
    ),
    swap(
        "block_larger_than_all",
        {"block_size_in_bytes": 2**63 - 1, "block_mapping": pairs((0, 0))},
        "block_mapping[0, 0]: expected a block of src from 0 to -1, got 0",
    ),
]
