"""What a benchmark case is: one op at one size, what it must write, and the other ways to do the same."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import torch

from multikv.demo.cases import Workload


@dataclasses.dataclass(frozen=True)
class Baseline:
    """The same job in PyTorch. Indices are ready in the form that suits it: only the movement is timed."""

    name: str
    function: Callable[..., None]
    prepare: Callable[[Workload], tuple[Any, ...]]  # the function's arguments; outputs are those of the workload
    compiled: bool = False  # through torch.compile


@dataclasses.dataclass(frozen=True)
class Case:
    name: str
    make: Callable[[torch.device], Workload]  # fresh random inputs at every call
    expect: Callable[[Workload], None]  # writes what the op must write, whole tensors at once, without the op
    baselines: tuple[Baseline, ...] = ()
    quick: bool = False  # part of --quick

    @classmethod
    def of(
        cls,
        make: Callable[..., Workload],
        name: str,
        expect: Callable[[Workload], None],
        baselines: tuple[Baseline, ...] = (),
        quick: bool = False,
        **sizes: Any,
    ) -> "Case":
        """With the arguments of `make`, one of multikv.demo.cases."""
        return cls(name, functools.partial(make, **sizes), expect, baselines, quick)

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
        """Part of --shapes, and not of other runs."""
        return self.name.startswith("shapes/")
