"""A case of the benchmarks: an op at one size, the bytes that it must write, and baselines that do the same job."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import torch

from multikv.demo.cases import Workload


@dataclasses.dataclass(frozen=True)
class Baseline:
    """The job of an op in PyTorch. Indices are converted to the form that it needs before the time is taken."""

    name: str
    function: Callable[..., None]
    # Returns the arguments with which `function` writes the outputs of the workload.
    prepare: Callable[[Workload], tuple[Any, ...]]
    compiled: bool = False  # whether torch.compile compiles the function


@dataclasses.dataclass(frozen=True)
class Case:
    name: str
    make: Callable[[torch.device], Workload]  # fresh random inputs at every call
    expect: Callable[[Workload], None]  # writes what the op must write, without the op
    baselines: tuple[Baseline, ...] = ()
    quick: bool = False  # part of --quick
    # Whether single calls are timed, from the call until the device, which was idle before, has done its work.
    cold: bool = False

    @classmethod
    def of(
        cls,
        make: Callable[..., Workload],
        name: str,
        expect: Callable[[Workload], None],
        baselines: tuple[Baseline, ...] = (),
        quick: bool = False,
        cold: bool = False,
        **sizes: Any,
    ) -> "Case":
        """Makes a case from a function of multikv.demo.cases and its arguments."""
        return cls(name, functools.partial(make, **sizes), expect, baselines, quick, cold)

    @functools.cached_property
    def _plan(self) -> Workload:
        return self.make(torch.device("meta"))

    @property
    def op(self) -> str:
        return self._plan.op

    @property
    def num_bytes(self) -> int:
        return self._plan.num_bytes

    @property
    def full_name(self) -> str:
        return f"{self.op}/{self.name}"

    @property
    def of_model(self) -> bool:
        """Whether the case is part of --shapes and of no other run."""
        return self.name.startswith("shapes/")
