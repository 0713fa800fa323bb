"""Memory stays flat over many calls, those that fail included.

The calls run in a process of their own: in one that has freed memory before, what is lost would hide in it.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from functools import partial

import pytest
import torch

from tests.support import calls
from tests.support.arguments import Arguments
from tests.support.calls.gather import gather_arguments
from tests.support.calls.reshape_and_cache import flash_arguments
from tests.support.comparison import run

# A lost string is about 46 bytes, a lost handle of a tensor 32.
MOST_BYTES_A_CALL = 8


def tiny_flash(**changes: object) -> Arguments:
    return flash_arguments(tokens=1, heads=1, head_size=1, format="fp8_e4m3fn") | changes


def tiny_gather(starts: tuple[int, ...] | None = (0,), **changes: object) -> Arguments:
    return gather_arguments(entry=(1,), lengths=(1,), starts=starts) | changes


def with_none(call: calls.Call) -> Arguments:
    """The second argument that must be given is None; the handles of those around it have to be given back."""
    schema = getattr(torch.ops.multikv, call.op).default._schema
    required = [argument.name for argument in schema.arguments if not isinstance(argument.type, torch.OptionalType)]
    return call.arguments() | {required[1]: None}


# name -> op, a call, how many times
Table = dict[str, tuple[str, Callable[[], Arguments], int]]
CALLS: Table = {
    "string": ("reshape_and_cache_flash", tiny_flash, 300_000),
    "option": ("cp_gather_cache", tiny_gather, 100_000),
    "no_option": ("cp_gather_cache", lambda: tiny_gather(starts=None), 100_000),
    **{op: (op, call.arguments, 8_000) for op, call in calls.ONE_OF_EACH.items()},
}
FAILING_CALLS: Table = {
    "bad_format": ("reshape_and_cache_flash", lambda: tiny_flash(kv_cache_dtype="a format as yet unheard of"), 15_000),
    "bad_dtype": ("reshape_and_cache_flash", lambda: tiny_flash(value=torch.ones(1, 1, 1)), 15_000),
    "bad_slot": ("reshape_and_cache_flash", lambda: tiny_flash(slot_mapping=torch.tensor([10**9])), 15_000),
    "bad_start": ("cp_gather_cache", lambda: tiny_gather(seq_starts=torch.tensor([-1])), 15_000),
    "bad_size": ("cp_gather_cache", lambda: tiny_gather(batch_size=2), 15_000),
    **{f"{op}-none": (op, partial(with_none, call), 8_000) for op, call in calls.ONE_OF_EACH.items()},
}


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def growth(name: str) -> int:
    """Bytes by which this process grows while it makes all the calls of that name."""
    op, make, times = (CALLS | FAILING_CALLS)[name]
    function, arguments = getattr(torch.ops.multikv, op).default, tuple(make().values())

    def repeat(times: int) -> None:
        for _ in range(times):
            try:
                function(*arguments)
            except (RuntimeError, IndexError):
                assert name in FAILING_CALLS

    repeat(times // 20)
    before = resident_bytes()
    repeat(times)
    return resident_bytes() - before


@pytest.fixture(scope="module")
def process():
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        yield pool


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs /proc/self/statm")
@pytest.mark.parametrize("name", [*CALLS, *FAILING_CALLS])
def test_memory_stays_flat(process, name):
    assert process.apply(growth, (name,)) < (CALLS | FAILING_CALLS)[name][2] * MOST_BYTES_A_CALL


@pytest.mark.parametrize("name", FAILING_CALLS)
def test_failing_calls_do_fail(name):
    op, make, _ = FAILING_CALLS[name]
    with pytest.raises((RuntimeError, IndexError, TypeError)):
        run(op, make())
