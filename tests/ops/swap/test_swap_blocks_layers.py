"""swap_blocks_layers against its reference."""

from __future__ import annotations

import pytest
import torch

from tests.support.calls.swap import PAIRS, directions, layers_arguments, random_pairs
from tests.support.comparison import check
from tests.support.tensors import embed

OP = "swap_blocks_layers"


def check_all_directions(device, **options):
    for places in directions(device):
        check(OP, layers_arguments(device, **places, **options))


@pytest.mark.parametrize("name", PAIRS)
def test_pairs(device, name):
    check_all_directions(device, pairs=PAIRS[name])


@pytest.mark.parametrize("layers", [1, 2, 70])
def test_number_of_layers(device, layers):
    """70 layers need several launches where the parameters of a kernel are limited to 4 KB."""
    check_all_directions(device, layers=layers, block_shape=(10, 8))


def test_more_layers_than_one_launch_takes(gpu):
    """1,100 layers need several launches on every GPU, and the last launch has fewer layers."""
    check(OP, layers_arguments(gpu, layers=1100, block_shape=(8,), pairs=PAIRS["two_runs"]))


@pytest.mark.parametrize("offset", [1, 2, 8])
def test_unaligned_starts(device, offset):
    """Each layer starts at another offset."""
    check_all_directions(device, dtype=torch.uint8, block_shape=(1001,), offset=offset)


def test_layers_of_one_tensor(device):
    for options in ({}, {"block_shape": (3,)}, {"layers": 2, "dtype": torch.uint8}):
        check_all_directions(device, in_one_tensor=True, pairs=PAIRS["runs_in_disorder"], **options)


def test_many_pairs(device):
    """The kernel is launched several times."""
    for pairs in (random_pairs(9000, 10_000, 9_500), [(i, i) for i in range(9000)]):
        options = {"pairs": pairs, "src_blocks": 10_000, "dst_blocks": 9_500, "block_shape": (8,), "layers": 2}
        places = directions(device)[0]
        check(OP, layers_arguments(device, **places, **options))


def test_tensors_of_different_sizes(device):
    """Layers may differ in size, as long as all blocks lie within each."""
    call = layers_arguments(device, pairs=PAIRS["two_runs"])
    call["src"][1] = embed((4, 9, 16, 33), torch.bfloat16, device)
    call["dst"][2] = embed((5000,), torch.float32, device)
    check(OP, call)


def test_one_source_for_all_layers(device):
    """Two layers may read one tensor."""
    call = layers_arguments(device, pairs=PAIRS["two_runs"])
    call["src"] = [call["src"][0]] * 3
    check(OP, call)
    call["src"] = [call["src"][0], call["src"][0][1:], call["dst"][1]]
    check(OP, call | {"block_mapping": torch.tensor([(5, 0), (6, 1)])})


def test_within_the_layers(device):
    """Each layer copies within one tensor."""
    call = layers_arguments(device, src_blocks=12, dst_blocks=12)
    for pairs in ([(5, 0), (6, 1)], [(0, 11), (11, 3)][:1], [(0, 8), (7, 1), (2, 4), (2, 3)]):
        check(OP, call | {"dst": call["src"], "block_mapping": torch.tensor(pairs)})


def test_from_one_layer_to_the_next(device):
    """src[i + 1] is dst[i], and no block that is read is written."""
    tensors = layers_arguments(device, layers=4, src_blocks=12)["src"]
    mapping = torch.tensor([(0, 6), (5, 7), (2, 11)])
    check(OP, {"src": tensors[:3], "dst": tensors[1:], "block_size_in_bytes": 1056, "block_mapping": mapping})
