"""Bad calls of the ops that copy, zero and hash blocks of the caches of all layers."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.errors.bad_call import EXPANDED, NONE, ON_CPU, STRIDE, Bad, every_second, expanded, on_cpu, to, with_value
from tests.support.calls.blocks import CHECKSUM, COPY, ZERO, checksum_arguments, copy_arguments, zero_arguments

MAKERS = {COPY: copy_arguments, ZERO: zero_arguments, CHECKSUM: checksum_arguments}
LISTS = {COPY: "block_mapping", ZERO: "block_ids", CHECKSUM: "block_ids"}
TOKENS = {ZERO: "first_token", CHECKSUM: "num_tokens"}

# Options for calls in which the blocks of the caches may differ in size.
WHOLE = {COPY: {}, ZERO: {"first_token": None}, CHECKSUM: {"num_tokens": None}}


def bad(op: str, what: str, changes: dict[str, object], message: str, **options: object) -> Bad:
    return Bad(op, MAKERS[op], what, changes, message, options)


def second(change: object) -> object:
    """The same change to the second of a list."""
    return lambda x: [x[0], change(x[1]) if callable(change) else change, *x[2:]]


def pairs(*values: tuple[int, int]) -> object:
    """A mapping where the good one is."""
    return lambda x: torch.tensor(values, dtype=x.dtype, device=x.device)


def checkered(x: Tensor) -> Tensor:
    """A cache with nine dimensions of a block that cannot be merged, besides the innermost."""
    whole = torch.zeros(13, 4, *[3] * 9, dtype=torch.uint8, device=x.device)
    return whole[(slice(None), slice(None, None, 2), *[slice(2)] * 9)]


def of_elements(dtype: torch.dtype) -> object:
    return lambda x: torch.zeros(x.shape, dtype=dtype, device=x.device)


def without_blocks(x: list[Tensor]) -> list[Tensor]:
    return [cache[:0] for cache in x]


# Good calls by default: 3 caches [13, 4, 2, 8], bfloat16; block_mapping [8, 2], or block_ids and tokens [7].
BAD_ARGUMENTS = [
    *(
        case
        for op in MAKERS
        for case in (
            bad(op, "no_caches", {"caches": []}, "caches: expected at least 1 tensor, got an empty list"),
            bad(
                op,
                "cache_rank",
                {"caches": second(lambda x: x[:, 0, 0, 0])},
                "caches[1]: expected at least 2 dimensions, got shape [13]",
            ),
            bad(
                op,
                "other_number_of_blocks",
                {"caches": second(lambda x: x[:12])},
                "caches[1]: expected size 13 (number of blocks of caches[0]) in dimension 0, got shape [12, 4, 2, 8]",
            ),
            bad(op, "cache_stride", {"caches": second(lambda x: x[..., ::2])}, STRIDE.format("caches[1]")),
            bad(
                op,
                "nine_strided_dimensions",
                {"caches": second(checkered)},
                "caches[1]: expected blocks of at most 8 strided dimensions, "
                "got shape [13, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2]",
                **WHOLE[op],
            ),
            bad(op, "list_none", {LISTS[op]: None}, NONE.format(LISTS[op])),
            bad(op, "list_dtype", {LISTS[op]: to("int16")}, f"{LISTS[op]}: expected dtype int32 or int64, got int16"),
            bad(op, "list_stride", {LISTS[op]: every_second}, STRIDE.format(LISTS[op])),
        )
    ),
    *(
        bad(op, "cache_expanded", {"caches": second(expanded(1))}, EXPANDED.format("caches[1]", 1))
        for op in (COPY, ZERO)
    ),
    bad(COPY, "mapping_rank", {"block_mapping": lambda x: x[0]}, "block_mapping: expected 2 dimensions, got shape [2]"),
    bad(
        COPY,
        "mapping_columns",
        {"block_mapping": lambda x: x.repeat(1, 2)[:, :3]},
        "block_mapping: expected size 2 (a source and a destination block) in dimension 1, got shape [8, 3]",
    ),
    bad(COPY, "num_tokens_negative", {"num_tokens": -2}, "num_tokens: expected at least -1, got -2"),
    bad(COPY, "num_tokens_many", {"num_tokens": 5}, "num_tokens: expected at most 4 (block size of caches), got 5"),
    bad(
        COPY,
        "other_block_size",
        {"caches": second(lambda x: x[:, :3])},
        "caches[1]: expected size 4 (block size of caches[0]) in dimension 1, got shape [13, 3, 2, 8]",
        num_tokens=4,
    ),
    *(
        case
        for op, tokens in TOKENS.items()
        for case in (
            bad(
                op,
                "other_block_size",
                {"caches": second(lambda x: x[:, :3])},
                "caches[1]: expected size 4 (block size of caches[0]) in dimension 1, got shape [13, 3, 2, 8]",
            ),
            bad(op, "list_rank", {"block_ids": lambda x: x[None]}, "block_ids: expected 1 dimension, got shape [1, 7]"),
            bad(op, "tokens_rank", {tokens: lambda x: x[None]}, f"{tokens}: expected 1 dimension, got shape [1, 7]"),
            bad(op, "tokens_dtype", {tokens: to("float32")}, f"{tokens}: expected dtype int32 or int64, got float32"),
            bad(op, "tokens_stride", {tokens: every_second}, STRIDE.format(tokens)),
            bad(
                op,
                "tokens_few",
                {tokens: lambda x: x[:6]},
                f"{tokens}: expected size 7 (elements of block_ids) in dimension 0, got shape [6]",
            ),
        )
    ),
    bad(CHECKSUM, "out_none", {"out": None}, NONE.format("out")),
    bad(CHECKSUM, "out_rank", {"out": lambda x: x[0]}, "out: expected 2 dimensions, got shape [3]"),
    bad(CHECKSUM, "out_dtype", {"out": of_elements(torch.float64)}, "out: expected dtype int64, got float64"),
    bad(
        CHECKSUM,
        "out_rows",
        {"out": lambda x: x[:6]},
        "out: expected size 7 (elements of block_ids) in dimension 0, got shape [6, 3]",
    ),
    bad(
        CHECKSUM,
        "out_columns",
        {"out": lambda x: x[:, :2]},
        "out: expected size 3 (number of caches) in dimension 1, got shape [7, 2]",
    ),
    bad(CHECKSUM, "out_stride", {"out": every_second}, STRIDE.format("out")),
    bad(CHECKSUM, "out_expanded", {"out": expanded(0)}, EXPANDED.format("out", 0)),
    # The checks of a mapping in the memory of the host.
    bad(
        COPY,
        "written_twice",
        {"block_mapping": pairs((0, 3), (-1, 3), (1, 2), (3, 3), (4, 2))},
        "block_mapping: expected distinct destination blocks, got duplicate destination block 2 (pairs 2 and 4)",
        lists="cpu",
    ),
    bad(
        COPY,
        "pair_twice",
        {"block_mapping": pairs((0, 3), (0, 3))},
        "block_mapping: expected distinct destination blocks, got duplicate destination block 3 (pairs 0 and 1)",
        lists="cpu",
    ),
    bad(
        COPY,
        "read_and_written",
        {"block_mapping": pairs((7, 7), (7, -1), (0, 7), (1, 2), (7, 5))},
        "block_mapping: expected source blocks that are not destination blocks, "
        "got block 7, which pair 4 reads and pair 2 writes",
        lists="cpu",
    ),
]

WRONG_DEVICES = [
    *(
        case
        for op in MAKERS
        for case in (
            bad(
                op,
                "first_cache_on_cpu",
                {"caches": lambda x: [x[0].cpu(), *x[1:]]},
                "caches: expected a CUDA tensor (caches[1] is on {device}), got cpu",
            ),
            bad(op, "second_cache_on_cpu", {"caches": second(on_cpu)}, ON_CPU.format("caches[1]", "caches")),
            bad(
                op,
                "caches_on_cpu",
                {"caches": lambda x: [cache.cpu() for cache in x]},
                f"caches: expected a CUDA tensor ({LISTS[op]} is on {{device}}), got cpu",
            ),
        )
    ),
    *(
        case
        for op, tokens in TOKENS.items()
        for case in (
            bad(
                op,
                "tokens_on_cpu",
                {tokens: on_cpu},
                f"{tokens}: expected a CUDA tensor like block_ids, got cpu",
            ),
            bad(
                op,
                "list_on_cpu",
                {"block_ids": on_cpu},
                f"{tokens}: expected a CPU tensor like block_ids, got {{device}}",
            ),
        )
    ),
    bad(CHECKSUM, "out_on_cpu", {"out": on_cpu}, ON_CPU.format("out", "caches")),
]

_INDICES = [
    (
        COPY,
        "source",
        {"block_mapping": pairs((1, -1), (13, 2), (3, 4))},
        "block_mapping[1, 0]: expected a block below 13, got 13",
    ),
    (
        COPY,
        "destination",
        {"block_mapping": pairs((-1, 99), (3, 2), (5, 2**31 - 1))},
        "block_mapping[2, 1]: expected a block below 13, got 2147483647",
    ),
    (COPY, "to_itself", {"block_mapping": pairs((13, 13))}, "block_mapping[0, 0]: expected a block below 13, got 13"),
    (
        COPY,
        "no_blocks",
        {"caches": without_blocks, "block_mapping": pairs((-1, 0), (0, -1), (1, 0))},
        "block_mapping[2, 0]: expected a block below 0, got 1",
    ),
    *(
        case
        for op in TOKENS
        for case in (
            (op, "block", {"block_ids": with_value(3, 13)}, "block_ids[3]: expected a block below 13, got 13"),
            (op, "token_negative", {TOKENS[op]: with_value(2, -1)}, f"{TOKENS[op]}[2]: expected at least 0, got -1"),
        )
    ),
    (
        CHECKSUM,
        "token_many",
        {"num_tokens": with_value(4, 5)},
        "num_tokens[4]: expected at most 4 (block size of caches), got 5",
    ),
]
_TOKENS = {ZERO: {"first_token": [0, 1, 2, 3, 4, 0, 1]}, CHECKSUM: {"num_tokens": [0, 1, 2, 3, 4, 0, 1]}, COPY: {}}
BAD_INDICES = [bad(*case, **_TOKENS[case[0]]) for case in _INDICES]
# Lists in the memory of the host are checked on every device.
BAD_PAIRS = [
    bad(op, f"{what}_of_host_list", changes, message, **_TOKENS[op], lists="cpu")
    for op, what, changes, message in _INDICES
]
