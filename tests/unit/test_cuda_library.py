"""The CUDA library in a process that has no GPU: addresses of the host, and the settings of swaps."""

from __future__ import annotations

from ast import literal_eval

import pytest

from multikv import platforms
from tests.support.processes import output_of

LIBRARY = next(library for library in platforms.libraries() if library.name == "cuda")

pytestmark = pytest.mark.skipif(not LIBRARY.path.exists(), reason="the CUDA library is not built")


def test_addresses_of_the_host_without_a_gpu():
    """The CPU's kernel copies, although a GPU library is loaded, and no call of the CUDA runtime fails before."""
    code = """
import multikv, torch
a, b = torch.arange(100), torch.zeros(100, dtype=torch.int64)
multikv.swap_blocks_batch(*(torch.tensor([n]) for n in (a.data_ptr(), b.data_ptr(), 800)))
print(multikv.platforms.platform(), torch.equal(a, b))
"""
    assert output_of(code, MULTIKV_PLATFORM="cuda", CUDA_VISIBLE_DEVICES="") == "cuda True"


SETTINGS = """
from multikv import platforms
from multikv.runtime.c_api import SwapCrossover
library = platforms.gpu_library()
before = [library.swap_crossover(device, direction) for device in range(2) for direction in range(3)]
def attempt(function, *arguments):
    try:
        print(function(*arguments))
    except ValueError as error:
        print(error)
for direction in (-1, 3, 2**31 - 1):
    attempt(library.set_swap_crossover, 0, direction, SwapCrossover(1, 2, 3))
    attempt(library.swap_crossover, 0, direction)
attempt(library.set_swap_crossover, -1, 0, SwapCrossover(1, 2, 3))
attempt(library.set_swap_strategy, 3)
print(before == [library.swap_crossover(device, direction) for device in range(2) for direction in range(3)])
library.set_swap_crossover(1, 2, SwapCrossover(1, 2, 3))
print(*library.swap_crossover(1, 2), library.swap_crossover(0, 2) == before[2])
"""


def test_swaps_that_are_not_calibrated():
    """A program that pins its memory itself never calibrates: the copy engines get large runs on every host."""
    code = """
from multikv import platforms
print([tuple(platforms.gpu_library().swap_crossover(7, direction)) for direction in range(3)])
"""
    to_host, from_host, within = literal_eval(output_of(code, MULTIKV_PLATFORM="cuda"))
    for in_batches, one_by_one, threads in (to_host, from_host):
        assert in_batches <= 256 << 10 and one_by_one <= 2 << 20
        assert 1024 <= threads <= 4096
    assert within == (2**63 - 1, 2**63 - 1, 0)


def test_settings_that_do_not_exist():
    lines = output_of(SETTINGS, MULTIKV_PLATFORM="cuda").splitlines()
    setter, getter = (f"multikv_{verb}_swap_crossover: " for verb in ("set", "get"))
    expected = "direction: expected 0, 1 or 2"
    assert lines[:6] == [setter + expected, getter + expected] * 3
    assert lines[6] == setter + "device: expected at least 0"
    assert lines[7] == "multikv_set_swap_strategy: strategy: expected 0, 1 or 2"
    assert lines[8:] == ["True", "1 2 3 True"]
