"""What a benchmark case is: one op at one size, what it must write, and the other ways to do the same."""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from multikv._cases import Workload


@dataclasses.dataclass(frozen=True)
class Baseline:
    """The same job in PyTorch. Indices are ready in the form that suits it: only the movement is timed."""

    name: str
    function: Callable[..., None]
    prepare: Callable[[Workload], tuple[Any, ...]]  # the function's arguments; outputs are those of the workload
    compiled: bool = False  # through torch.compile


@dataclasses.dataclass(frozen=True)
class Case:
    op: str
    name: str
    make: Callable[[torch.device], Workload]  # fresh random inputs at every call
    expect: Callable[[Workload], None]  # writes what the op must write, slowly, without the op
    baselines: tuple[Baseline, ...]
    num_bytes: int
    quick: bool  # part of --quick

    @property
    def full_name(self) -> str:
        return f"{self.op}/{self.name}"
