"""Bad calls of the ops that copy blocks between memories."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.errors.bad_call import NONE, STRIDE, Bad, every_second, on_gpu, to, with_value
from tests.support.arguments import Arguments
from tests.support.calls.swap import batch_arguments, layers_arguments, swap_arguments
from tests.support.tensors import random_bytes


def swap(what: str, changes: dict[str, object], message: str, **options: object) -> Bad:
    return Bad("swap_blocks", swap_arguments, what, changes, message, options)


def shifted_arguments(device: torch.device | str = "cpu") -> Arguments:
    memory = random_bytes(64 * 17, device)
    arguments = {"src": memory[: 64 * 16], "dst": memory[32 : 32 + 64 * 16]}
    return arguments | {"block_size_in_bytes": 64, "block_mapping": pairs((11, 12), (14, 2), (4, 5))}


def swap_shifted(what: str, changes: dict[str, object], message: str) -> Bad:
    return Bad("swap_blocks", shifted_arguments, f"shifted_{what}", changes, message, {})


def layers(what: str, changes: dict[str, object], message: str, **options: object) -> Bad:
    return Bad("swap_blocks_layers", layers_arguments, what, changes, message, options)


def batch(what: str, changes: dict[str, object], message: str) -> Bad:
    return Bad("swap_blocks_batch", batch_arguments, what, changes, message, {})


def second(change: object) -> object:
    """The same change to the second of a list."""
    return lambda x: [x[0], change(x[1]) if callable(change) else change, *x[2:]]


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
        "block_mapping: expected distinct destination blocks, got duplicate destination block 2 (pairs 1 and 3)",
    ),
    swap(
        "pair_twice",
        {"block_mapping": pairs((0, 3)).expand(2, 2)},
        "block_mapping: expected distinct destination blocks, got duplicate destination block 3 (pairs 0 and 1)",
    ),
    swap(
        "reads_what_it_writes",
        {"block_mapping": pairs((0, 15), (3, 10), (10, 11))},
        "block_mapping: expected source blocks that do not overlap destination blocks, "
        "got block 10 of src (pair 2) overlapping block 10 of dst (pair 1)",
        same_tensor=True,
    ),
    swap(
        "block_to_itself",
        {"block_mapping": pairs((4, 4))},
        "block_mapping: expected source blocks that do not overlap destination blocks, "
        "got block 4 of src (pair 0) overlapping block 4 of dst (pair 0)",
        same_tensor=True,
    ),
]

# Good calls by default: src and dst of 16 blocks of 64 bytes in one memory, dst from the middle of src's block 0 on.
BAD_ARGUMENTS += [
    swap_shifted(
        "pair",
        {"block_mapping": pairs((1, 0))},
        "block_mapping: expected source blocks that do not overlap destination blocks, "
        "got block 1 of src (pair 0) overlapping block 0 of dst (pair 0)",
    ),
    swap_shifted(
        "two_pairs",
        {"block_mapping": pairs((0, 12), (5, 8), (13, 3))},
        "block_mapping: expected source blocks that do not overlap destination blocks, "
        "got block 13 of src (pair 2) overlapping block 12 of dst (pair 0)",
    ),
]

# Good calls by default: three layers of the tensors above.
BAD_ARGUMENTS += [
    layers("mapping_none", {"block_mapping": None}, NONE.format("block_mapping")),
    layers("one_too_few", {"dst": lambda x: x[:2]}, "dst: expected 3 tensors, one for each of src, got 2"),
    layers("none_of_dst", {"dst": []}, "dst: expected 3 tensors, one for each of src, got 0"),
    *(
        layers(
            f"{name}_transposed",
            {name: second(lambda x: x.transpose(1, 2))},
            f"{name}[1]: expected a contiguous tensor, got shape [{blocks}, 33, 16] and strides [528, 1, 33]",
        )
        for name, blocks in (("src", 9), ("dst", 7))
    ),
    layers("block_size", {"block_size_in_bytes": 0}, "block_size_in_bytes: expected at least 1, got 0"),
    layers("mapping_rank", {"block_mapping": lambda x: x[0]}, "block_mapping: expected 2 dimensions, got shape [2]"),
    layers("mapping_dtype", {"block_mapping": to("int32")}, "block_mapping: expected dtype int64, got int32"),
    layers("mapping_stride", {"block_mapping": every_second}, STRIDE.format("block_mapping")),
    layers(
        "dst_twice",
        {"block_mapping": pairs((0, 3), (1, 2), (2, 4), (0, 2))},
        "block_mapping: expected distinct destination blocks, got duplicate destination block 2 (pairs 1 and 3)",
    ),
    layers(
        "written_by_two_layers",
        {"dst": lambda x: [x[0], x[1], x[0]], "block_mapping": pairs((0, 3), (5, 2))},
        "dst: expected destination blocks that do not overlap, got block 2 of dst[0] overlapping block 2 of dst[2]",
    ),
    layers(
        "parts_written_by_two_layers",
        {"dst": lambda x: [x[0], x[1], x[1].view(-1)[528:].view(6, 16, 33)], "block_mapping": pairs((0, 3), (5, 2))},
        "dst: expected destination blocks that do not overlap, got block 3 of dst[1] overlapping block 2 of dst[2]",
    ),
]


def reading_the_next_layer(what: str, mapping: Tensor, message: str) -> Bad:
    """The first layer reads from where the second writes to."""
    return Bad("swap_blocks_layers", _reading_the_next_layer, what, {"block_mapping": mapping}, message, {})


def _reading_the_next_layer(device: torch.device | str = "cpu") -> Arguments:
    call = layers_arguments(device, pairs=[(4, 0), (5, 1), (6, 2)])
    call["src"][0] = call["dst"][1]
    return call


BAD_ARGUMENTS += [
    reading_the_next_layer(
        "read_and_written_by_layers",
        pairs((1, 0), (2, 5), (3, 1)),
        "block_mapping: expected source blocks that do not overlap destination blocks, "
        "got block 1 of src[0] (pair 0) overlapping block 1 of dst[1] (pair 2)",
    ),
]

# Good calls by default: five copies, one of them of 0 bytes.
BAD_ARGUMENTS += [
    *(batch(f"{name}_none", {name: None}, NONE.format(name)) for name in ("src_ptrs", "dst_ptrs", "sizes")),
    *(
        batch(f"{name}_rank", {name: lambda x: x[None]}, f"{name}: expected 1 dimension, got shape [1, 5]")
        for name in ("src_ptrs", "dst_ptrs", "sizes")
    ),
    batch("sizes_dtype", {"sizes": to("int32")}, "sizes: expected dtype int64, got int32"),
    batch("ptrs_stride", {"src_ptrs": every_second}, STRIDE.format("src_ptrs")),
    *(
        batch(
            f"{name}_too_few",
            {name: lambda x: x[:4]},
            f"{name}: expected size 5 (size of src_ptrs) in dimension 0, got shape [4]",
        )
        for name in ("dst_ptrs", "sizes")
    ),
    batch("size_negative", {"sizes": with_value(2, -7)}, "sizes[2]: expected a number of bytes of at least 0, got -7"),
    batch(
        "sizes_overflow",
        {"sizes": torch.tensor([0, 2**62, 5, 2**62, 1])},
        f"sizes[3]: expected a sum of sizes of at most {2**63 - 1} bytes, got {2**62} after {2**62 + 5} bytes",
    ),
    *(
        batch(f"{name}_null", {name: with_value(1, 0)}, f"{name}[1]: expected a non-null address, got 0")
        for name in ("src_ptrs", "dst_ptrs")
    ),
]

# A tensor on the wrong one of two devices; two GPUs: tests/gpu/test_swap.py.
WRONG_DEVICES = [
    layers("src_on_cpu", {"src": second(lambda x: x.cpu())}, "src[1]: expected device {device} like src[0], got cpu"),
    layers("dst_on_cpu", {"dst": second(lambda x: x.cpu())}, "dst[1]: expected device {device} like dst[0], got cpu"),
    layers("mapping_of_layers_on_gpu", {"block_mapping": on_gpu}, "block_mapping: expected a CPU tensor, got {device}"),
    swap("mapping_on_gpu", {"block_mapping": on_gpu}, "block_mapping: expected a CPU tensor, got {device}"),
    swap(
        "only_mapping_on_gpu",
        {"block_mapping": on_gpu},
        "block_mapping: expected a CPU tensor, got {device}",
        src="pinned",
        dst="pageable",
    ),
]

# On every device, whether or not it checks indices.
BAD_PAIRS = [
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
        f"block_mapping[0, 0]: expected no block of src (there are 0 of {2**63 - 1} bytes), got 0",
    ),
    layers(
        "of_a_layer_past_the_end",
        {"src": second(lambda x: x[:5]), "block_mapping": pairs((4, 0), (5, 1))},
        "block_mapping[1, 0]: expected a block of src[1] from 0 to 4, got 5",
    ),
    layers(
        "of_all_layers_past_the_end",
        {"block_mapping": pairs((8, 6), (0, 7))},
        "block_mapping[1, 1]: expected a block of dst[0] from 0 to 6, got 7",
    ),
]
