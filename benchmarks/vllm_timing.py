"""How `benchmarks.vllm_engine` compares the times of vLLM's own kernels and multikv's.

Two engines in two processes differ by more than their kernels do. So one engine changes between the kernels while it
generates, and the calls of its function `step` are timed. Four steps in a row have the same kernels, and only the last
two of them count: the engine launches a step before it waits for the step before, and a change disturbs what follows.

    step            0 1 2 3 4 5 6 7
    generation 0    . . v v . . m m     v: a step with vLLM's own kernels counts
    generation 1    v v . . m m . .     m: a step with multikv's counts
    generation 2    . . m m . . v v     .: nothing counts, the kernels are those of the next step
    generation 3    m m . . v v . .

After four generations, which are one round, each step has counted once with either kernels. The steps do the same work
in every generation. Whatever disturbs a step makes it slower, so the typical time of a step is the lower quartile over
all rounds, and the sum over the steps is the typical time of a generation.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

KERNELS = ("vllm", "multikv")
GENERATIONS_OF_A_ROUND = 4
_DRAWS = 1000


class Turns:
    """Calls a function with vLLM's kernels and with multikv's in turns, and notes the seconds of calls that count."""

    def __init__(self, call: Callable[..., Any], use_kernels: Callable[[str], None]) -> None:
        """Remembers what to call. `use_kernels` changes to the kernels that it gets the name of."""
        self._call, self._use_kernels = call, use_kernels
        self._rounds: list[dict[str, dict[int, float]]] = []  # for each round and kernels: call number, seconds

    def begin(self, generation: int) -> None:
        """Begins a generation."""
        if generation % GENERATIONS_OF_A_ROUND == 0:
            self._rounds.append({kernels: {} for kernels in KERNELS})
        self._begin = self._position = 2 * (generation % GENERATIONS_OF_A_ROUND)
        self._use_kernels(self._kernels())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the function."""
        kernels = self._kernels()
        self._use_kernels(kernels)
        begun = time.perf_counter()
        result = self._call(*args, **kwargs)
        seconds = time.perf_counter() - begun
        if self._position % 4 >= 2:
            self._rounds[-1][kernels][self._position - self._begin] = seconds
        self._position += 1
        return result

    def _kernels(self) -> str:
        return KERNELS[self._position // 4 % 2]

    def summary(self) -> dict[str, Any]:
        """Returns the typical times of a generation, their ratio, and the interval that has 95% of the draws.

        The interval is that of a bootstrap: rounds are drawn with replacement. `median` is the ratio for which the
        typical time of a step is the median over all rounds.
        """
        import torch  # noqa: PLC0415

        numbers = [set(calls) for of_round in self._rounds for calls in of_round.values()]
        steps = sorted(set.intersection(*numbers))  # those that every generation has
        theirs, mine = (
            torch.tensor([[of_round[kernels][i] for i in steps] for of_round in self._rounds], dtype=torch.float64)
            for kernels in KERNELS
        )
        draws = torch.randint(len(mine), (_DRAWS, len(mine)), generator=torch.Generator().manual_seed(0))
        ratios = torch.stack([_typical(mine[draw]) / _typical(theirs[draw]) for draw in draws])
        low, high = ratios.quantile(torch.tensor([0.025, 0.975]).double()).tolist()
        return {
            "rounds": len(mine),
            "steps": sorted({len(steps), len(set.union(*numbers))}),
            "vllm_ms": round(1e3 * float(_typical(theirs)), 3),
            "multikv_ms": round(1e3 * float(_typical(mine)), 3),
            "multikv_relative": round(float(_typical(mine) / _typical(theirs)), 4),
            "interval": [round(low, 4), round(high, 4)],
            "median": round(float(_typical(mine, 0.5) / _typical(theirs, 0.5)), 4),
        }


def _typical(times: Any, quantile: float = 0.25) -> Any:
    return times.quantile(quantile, dim=0).sum()


def pin_threads() -> None:
    """Keeps this thread on one core of the process, and all others on the next three."""
    cores = sorted(os.sched_getaffinity(0))
    first, others = cores[:1], cores[1:4]
    if others:
        for thread in Path("/proc/self/task").iterdir():
            number = int(thread.name)
            os.sched_setaffinity(number, first if number == os.getpid() else others)
