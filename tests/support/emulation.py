"""The HIP kernels on an emulated AMD GPU: tests/hip/emulation.

With MULTIKV_TEST_DEVICES=wave64 (or wave32), all ops on CPU tensors run the HIP backend's kernels, lane by lane, in
waves of 64 (or 32) lanes. The whole process is given to that: the kernels take the place of the CPU's.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import pytest
import torch

import multikv  # noqa: F401  # the CPU library registers its kernels first

# Tests of what only a CPU's kernels do: the last of duplicate slots wins, and the host's rounding modes are kept.
CPU_ONLY = ("one_slot_wins", "duplicates_wins", "flushed_subnormals")
# Tests of large calls, which for a GPU are as small ones.
LARGE = ("cpu_cache_holds", "test_many_tokens")
# Tests that give many sizes and layouts to kernels which other tests launch, too. Without them, the tests take half the
# time and launch the same kernels.
REPETITIVE = (
    *("test_cache_layouts", "test_dtypes_and_entries", "test_padded_blocks_and_unaligned_starts"),
    *("test_sizes_and_starts", "test_head_sizes", "test_rope_sizes", "test_heads", "test_parts_of_heads", "test_any_x"),
    *("test_tokens_and_block_sizes", "test_lengths_and_block_sizes", "test_sequences_of_equal_length"),
    *("test_runs_of_slots", "test_many_vectors_of_a_token", "test_many_tiny_sequences", "test_every_code"),
    *("test_chunks_of_a_prefill", "test_slots_that_no_row_sees"),
)

WAVE_SIZES = {"wave64": 64, "wave32": 32}
ROOT = Path(__file__).resolve().parents[2]


def path() -> Path:
    """The library: MULTIKV_EMULATION, else what `cmake --build build/cmake --target hip_emulation` has built."""
    default = ROOT / "build" / "cmake" / "emulation" / "libhip_emulation.so"
    return Path(os.environ.get("MULTIKV_EMULATION") or default)


def load(name: str) -> None:
    """Replaces the kernels of CPU tensors. MULTIKV_EMULATION_SEED chooses the order in which lanes run."""
    if not path().exists():
        raise ValueError(f"MULTIKV_TEST_DEVICES={name}: {path()} is not built")
    torch.ops.load_library(str(path()))
    seed = int(os.environ.get("MULTIKV_EMULATION_SEED") or 1)
    ctypes.CDLL(str(path())).multikv_emulate(WAVE_SIZES[name], ctypes.c_uint64(seed))


def launches() -> int:
    """The number of kernels that this process has launched."""
    return int(ctypes.CDLL(str(path())).multikv_emulated_launches())


def mark(item: pytest.Item) -> None:
    """Gives a test of the emulated kernels its markers.

    They are hip, selected unless it is repetitive, for large calls slow as well, and skip for what only a CPU promises.
    """
    name = getattr(item, "originalname", item.name)
    if not {"device", "any_device"} & set(getattr(item, "fixturenames", ())):
        return
    item.add_marker("hip")
    if name not in REPETITIVE:
        item.add_marker("selected")
    if name.endswith(LARGE):
        item.add_marker("slow")
    if name.endswith(CPU_ONLY):
        item.add_marker(pytest.mark.skip(reason="a promise of the CPU's kernels"))
