"""Bad calls of the ops that move tokens."""

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
from tests.support.calls.moves import move_arguments, pack_arguments, unpack_arguments


def pack(what: str, changes: dict[str, object], message: str, **options: object) -> Bad:
    return Bad("pack_layers", pack_arguments, what, changes, message, options)


def unpack(what: str, changes: dict[str, object], message: str, **options: object) -> Bad:
    return Bad("unpack_layers", unpack_arguments, what, changes, message, options)


def both(what: str, changes: dict[str, object], message: str, **options: object) -> list[Bad]:
    return [pack(what, changes, message, **options), unpack(what, changes, message, **options)]


def move(what: str, changes: dict[str, object], message: str, **options: object) -> Bad:
    return Bad("move_tokens", move_arguments, what, changes, message, options)


def item(index: int, change: object) -> object:
    """The same change to one item of a list."""

    def changed(x: list[Tensor]) -> list[Tensor]:
        new = change(x[index]) if callable(change) else change
        return [*x[:index], new, *x[index + 1 :]]

    return changed


def numbers(*values: object) -> object:
    return lambda x: torch.tensor(values, dtype=x.dtype, device=x.device)


def longer(dim: int) -> object:
    """One more element in a dimension."""
    return lambda x: torch.cat([x, x.narrow(dim, 0, 1)], dim)


# Good calls by default: 4 planes [9, 4, 3, 8], bfloat16; block_ids [5]; staging [6, 4, 4, 3, 8].
BAD_ARGUMENTS = [
    *both("caches_empty", {"caches": []}, "caches: expected at least 1 tensor, got an empty list"),
    *both("ids_none", {"block_ids": None}, NONE.format("block_ids")),
    *both("staging_none", {"staging": None}, NONE.format("staging")),
    *both("cache_rank", {"caches": item(0, lambda x: x[0])}, "caches[0]: expected 4 dimensions, got shape [4, 3, 8]"),
    *both(
        "cache_blocks",
        {"caches": item(2, lambda x: x[:5])},
        "caches[2]: expected size 9 (number of blocks of caches[0]) in dimension 0, got shape [5, 4, 3, 8]",
    ),
    *both(
        "cache_block_size",
        {"caches": item(2, lambda x: x[:, :3])},
        "caches[2]: expected size 4 (block size of caches[0]) in dimension 1, got shape [9, 3, 3, 8]",
    ),
    *both(
        "cache_heads",
        {"caches": item(1, lambda x: x[:, :, :2])},
        "caches[1]: expected size 3 (entry size of caches[0]) in dimension 2, got shape [9, 4, 2, 8]",
    ),
    *both(
        "cache_dtype",
        {"caches": item(3, lambda x: x.float())},
        "caches[3]: expected elements of 2 bytes like caches[0], got float32",
    ),
    *both("cache_stride", {"caches": item(1, every_second)}, STRIDE.format("caches[1]")),
    *both(
        "block_size_0",
        {"caches": lambda x: [plane[:, :0] for plane in x]},
        "caches[0]: expected a block size of at least 1, got shape [9, 0, 3, 8]",
    ),
    *both("ids_rank", {"block_ids": lambda x: x[None]}, "block_ids: expected 1 dimension, got shape [1, 5]"),
    *both("ids_dtype", {"block_ids": to("int16")}, "block_ids: expected dtype int32 or int64, got int16"),
    *both("ids_stride", {"block_ids": every_second}, STRIDE.format("block_ids")),
    *both("staging_rank", {"staging": lambda x: x[0]}, "staging: expected 5 dimensions, got shape [4, 4, 3, 8]"),
    *both(
        "staging_dtype",
        {"staging": lambda x: x.float()},
        "staging: expected elements of 2 bytes like caches[0], got float32",
    ),
    *both(
        "staging_planes",
        {"staging": lambda x: x[:, :, :3]},
        "staging: expected size 4 (planes of caches) in dimension 2, got shape [6, 4, 3, 3, 8]",
    ),
    *both(
        "staging_head_size",
        {"staging": lambda x: x[..., :7]},
        "staging: expected size 8 (head size of caches) in dimension 4, got shape [6, 4, 4, 3, 7]",
    ),
    *both("staging_stride", {"staging": every_second}, STRIDE.format("staging")),
    *both(
        "no_heads",
        {"staging": lambda x: x[:, :, :, :0]},
        "staging: expected at least 1 (heads) in dimension 3, got shape [6, 4, 4, 0, 8]",
    ),
    *both(
        "too_many_heads",
        {"staging": longer(3)},
        "staging: expected at most 3 (heads of caches) in dimension 3, got shape [6, 4, 4, 4, 8]",
    ),
    *both("head_start_negative", {"head_start": -1}, "head_start: expected at least 0, got -1"),
    *both(
        "head_start_too_large",
        {"head_start": 2},
        "head_start: expected at most 1 (heads of caches - heads of staging), got 2",
        staged_heads=2,
    ),
    *both("num_tokens_negative", {"num_tokens": -2}, "num_tokens: expected at least -1, got -2"),
    *both(
        "num_tokens_too_large",
        {"num_tokens": 21},
        "num_tokens: expected at most 20 (elements of block_ids * block size), got 21",
    ),
    *both(
        "staging_too_small",
        {"staging": lambda x: x[:4]},
        "staging: expected space for 20 tokens in dimensions 0 and 1, got shape [4, 4, 4, 3, 8]",
    ),
    *both(
        "staging_too_small_for_num_tokens",
        {"staging": lambda x: x[:4], "num_tokens": 17},
        "staging: expected space for 17 tokens in dimensions 0 and 1, got shape [4, 4, 4, 3, 8]",
    ),
    *(
        pack(f"staging_expanded_{dim}", {"staging": expanded(dim)}, EXPANDED.format("staging", dim))
        for dim in (0, 1, 2, 3)
    ),
    unpack("cache_expanded", {"caches": item(2, expanded(1))}, EXPANDED.format("caches[2]", 1)),
]

# Good calls by default: planes src [9, 4, ...] and dst [6, 6, ...] of tokens [3, 8], [3, 8], [5], [2, 3, 4]; 7 pairs.
BAD_ARGUMENTS += [
    move("src_empty", {"src": []}, "src: expected at least 1 tensor, got an empty list"),
    *(move(f"{name}_none", {name: None}, NONE.format(name)) for name in ("src_slots", "dst_slots")),
    move("one_too_few", {"dst": lambda x: x[:3]}, "dst: expected 4 tensors, one for each of src, got 3"),
    move(
        "src_rank", {"src": item(1, lambda x: x[0, :, 0, 0])}, "src[1]: expected at least 2 dimensions, got shape [4]"
    ),
    move(
        "src_blocks",
        {"src": item(1, lambda x: x[:5])},
        "src[1]: expected size 9 (number of blocks of src[0]) in dimension 0, got shape [5, 4, 3, 8]",
    ),
    move(
        "dst_block_size",
        {"dst": item(2, lambda x: x[:, :5])},
        "dst[2]: expected size 6 (block size of dst[0]) in dimension 1, got shape [6, 5, 5]",
    ),
    move("src_stride", {"src": item(1, every_second)}, STRIDE.format("src[1]")),
    move("dst_stride", {"dst": item(2, every_second)}, STRIDE.format("dst[2]")),
    move("dst_expanded", {"dst": item(3, expanded(3))}, EXPANDED.format("dst[3]", 3)),
    move(
        "dst_rank",
        {"dst": item(1, lambda x: x[:, :, 0])},
        "dst[1]: expected 4 dimensions like src[1], got shape [6, 6, 8]",
    ),
    move(
        "dst_token",
        {"dst": item(3, lambda x: x[:, :, :, :2])},
        "dst[3]: expected size 3 (token size of src[3]) in dimension 3, got shape [6, 6, 2, 2, 4]",
    ),
    move(
        "dst_dtype", {"dst": item(2, lambda x: x.short())}, "dst[2]: expected elements of 1 byte like src[2], got int16"
    ),
    move(
        "block_size_0",
        {"src": lambda x: [plane[:, :0] for plane in x]},
        "src[0]: expected a block size of at least 1, got shape [9, 0, 3, 8]",
    ),
    *(
        move(f"{name}_rank", {name: lambda x: x[None]}, f"{name}: expected 1 dimension, got shape [1, 7]")
        for name in ("src_slots", "dst_slots")
    ),
    move("slots_dtype", {"dst_slots": to("float32")}, "dst_slots: expected dtype int32 or int64, got float32"),
    move("slots_stride", {"src_slots": every_second}, STRIDE.format("src_slots")),
    move(
        "too_few_slots",
        {"dst_slots": lambda x: x[:6]},
        "dst_slots: expected size 7 (elements of src_slots) in dimension 0, got shape [6]",
    ),
    move(
        "too_many_with_overlap",
        {name: lambda x: torch.full_like(x[:1], -1).expand(4097).clone() for name in ("src_slots", "dst_slots")},
        "src_slots: expected at most 4096 elements with overlap, got shape [4097]",
        overlap=True,
    ),
    move(
        "too_many_dimensions",
        {
            "src": lambda x: [x[0].new_zeros((9, 4, *(3,) * 10, 2))[(slice(None), slice(None), *(slice(2),) * 10)]],
            "dst": lambda x: [x[0].new_zeros((6, 6, *(2,) * 11))],
        },
        "src[0]: expected tokens of at most 8 strided dimensions, got shape [9, 4, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2]",
    ),
]


def on_cpu_list(x: list[Tensor]) -> list[Tensor]:
    return [plane.cpu() for plane in x]


def pageable(x: Tensor) -> Tensor:
    return x.cpu()


WRONG_DEVICES = [
    pack("caches_on_cpu", {"caches": on_cpu_list}, FIRST_ON_CPU.format("caches", "block_ids")),
    unpack("caches_on_cpu", {"caches": on_cpu_list}, FIRST_ON_CPU.format("caches", "staging")),
    *both("cache_on_cpu", {"caches": item(1, pageable)}, ON_CPU.format("caches[1]", "caches")),
    *both("pageable_staging", {"staging": pageable}, "staging: expected pinned memory, got pageable memory"),
    move(
        "all_planes_on_cpu",
        {"src": on_cpu_list, "dst": on_cpu_list},
        FIRST_ON_CPU.format("src", "src_slots"),
    ),
    *(
        move(f"pageable_{name}", {name: on_cpu_list}, f"{name}[0]: expected pinned memory, got pageable memory")
        for name in ("src", "dst")
    ),
    move("one_of_src_on_cpu", {"src": item(2, pageable)}, ON_CPU.format("src[2]", "src")),
    move("one_of_dst_on_cpu", {"dst": item(2, pageable)}, ON_CPU.format("dst[2]", "src")),
    move(
        "one_of_dst_on_gpu",
        {"dst": item(2, lambda x: x.cuda())},
        "dst[2]: expected a CPU tensor like dst[0], got {device}",
        dst="pinned",
    ),
    move(
        "one_list_of_slots_on_cpu",
        {"dst_slots": pageable},
        "dst_slots: expected a CUDA tensor like src_slots, got cpu",
    ),
]


BAD_INDICES = [
    *both("id_past_the_end", {"block_ids": with_value(3, 9)}, "block_ids[3]: expected a block below 9, got 9"),
    *both(
        "id_far_past_the_end",
        {"block_ids": with_value(1, 2**62)},
        f"block_ids[1]: expected a block below 9, got {2**62}",
    ),
    *both(
        "id_of_the_last_token",
        {"block_ids": with_value(4, 100)},
        "block_ids[4]: expected a block below 9, got 100",
        num_tokens=17,
    ),
    move("src_past_the_end", {"src_slots": with_value(2, 36)}, "src_slots[2]: expected a slot below 36, got 36"),
    move("dst_past_the_end", {"dst_slots": with_value(5, 36)}, "dst_slots[5]: expected a slot below 36, got 36"),
    move(
        "both_past_the_end",
        {"src_slots": with_value(0, 99), "dst_slots": with_value(0, 99)},
        "src_slots[0]: expected a slot below 36, got 99",
    ),
    move(
        "slot_of_64_bits",
        {"src_slots": with_value(6, 2**63 - 1)},
        f"src_slots[6]: expected a slot below 36, got {2**63 - 1}",
    ),
    move(
        "past_the_end_with_overlap",
        {"dst_slots": with_value(1, 40)},
        "dst_slots[1]: expected a slot below 36, got 40",
        overlap=True,
    ),
]
