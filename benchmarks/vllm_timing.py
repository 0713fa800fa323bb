"""What `benchmarks.vllm_engine` makes of the times of steps.

A host that launches kernels of a few us each makes whole runs of the same work differ by a factor of two. But the
steps of an engine are the same in every generation and in both modes. So each step has a typical time, the lower
quartile over all generations, because whatever disturbs a step makes it slower, and the sum over the steps is the
typical time of a generation. The interval is that of a bootstrap: rounds, in each of which both modes had their turn,
are drawn with replacement.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_DRAWS = 1000

Generations = list[list[float]]  # the seconds of each step of each generation


class StepTimer:
    """Calls a function, and notes how long each call takes."""

    def __init__(self, step: Callable[..., Any]) -> None:
        """Notes nothing yet."""
        self._step = step
        self.seconds: list[float] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the function."""
        begun = time.perf_counter()
        result = self._step(*args, **kwargs)
        self.seconds.append(time.perf_counter() - begun)
        return result


def pin_threads() -> None:
    """Keeps this thread on one core of the process, and all others on the next three, so that modes use the same."""
    cores = sorted(os.sched_getaffinity(0))
    first, others = cores[:1], cores[1:4]
    if others:
        for thread in Path("/proc/self/task").iterdir():
            number = int(thread.name)
            os.sched_setaffinity(number, first if number == os.getpid() else others)


def typical_ms(rounds: list[Generations]) -> float:
    """Returns the sum over the steps of the lower quartile over all generations."""
    return float(_typical(_tensor(rounds)))


def relative_time(rounds: list[Generations], of_vllm: list[Generations]) -> dict[str, Any]:
    """Returns the typical time of a generation relative to vLLM's, and the interval that has 95% of the draws."""
    import torch  # noqa: PLC0415

    count = min(len(rounds), len(of_vllm))
    mine, theirs = _tensor(rounds[:count]), _tensor(of_vllm[:count])
    draws = torch.randint(count, (_DRAWS, count), generator=torch.Generator().manual_seed(0))
    ratios = torch.stack([_typical(mine[draw]) / _typical(theirs[draw]) for draw in draws])
    low, high = ratios.quantile(torch.tensor([0.025, 0.975], dtype=ratios.dtype)).tolist()
    fastest, median = (float(_typical(mine, q) / _typical(theirs, q)) for q in (0, 0.5))
    return {
        "typical": round(float(_typical(mine) / _typical(theirs)), 4),
        "interval": [round(low, 4), round(high, 4)],
        "fastest_steps": round(fastest, 4),
        "median_steps": round(median, 4),
    }


def _tensor(rounds: list[Generations]) -> Any:
    """Returns [rounds, generations, steps]. If the numbers of steps differ, a generation counts as one step."""
    import torch  # noqa: PLC0415

    if len({len(steps) for generations in rounds for steps in generations}) > 1:
        rounds = [[[sum(steps)] for steps in generations] for generations in rounds]
    return torch.tensor(rounds, dtype=torch.float64)


def _typical(times: Any, quantile: float = 0.25) -> Any:
    return times.flatten(0, 1).quantile(quantile, dim=0).sum() * 1e3
