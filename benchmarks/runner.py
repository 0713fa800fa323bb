"""Checks and times the contenders of a case (multikv, PyTorch, torch.compile) on the same tensors."""

import dataclasses
import functools
import gc
from collections.abc import Callable, Iterator

import torch

from benchmarks.case import Baseline, Case
from multikv.demo import timing
from multikv.demo.cases import Workload, copy_calls, rotation, same_bytes


@dataclasses.dataclass
class Result:
    """One contender in one case. Times are medians. share_of_copy = copy_us / device_us."""

    op: str
    case: str
    contender: str
    num_bytes: int
    bit_equal: bool | None = None
    device_us: float | None = None
    copy_us: float | None = None  # measured with this contender
    host_us: float | None = None  # time until an eager call on a GPU returns; None on a CPU
    gb_per_s: float | None = None
    share_of_copy: float | None = None
    error: str | None = None

    @property
    def failed(self) -> bool:
        """Whether the bytes of multikv are wrong or were not compared. Wrong bytes of a baseline are no failure."""
        return self.contender == "multikv" and not self.bit_equal


def run(case: Case, device: torch.device, compiled: bool) -> Iterator[Result]:
    """Yields the results of all contenders as they are measured."""
    workloads = [case.make(device) for _ in range(rotation(case.num_bytes, device))]
    expected = workloads[0].copy()
    case.expect(expected)
    copies = copy_calls(workloads[0], device)
    contenders: dict[str, Callable[[Workload], Callable[[], None]]] = {"multikv": Workload.bind}
    for baseline in case.baselines:
        if compiled or not baseline.compiled:
            contenders[baseline.name] = _binder(baseline)
    for name, bind in contenders.items():
        result = Result(case.op, case.name, name, case.num_bytes)
        try:
            _measure(result, bind, workloads, expected, copies, device)
        except Exception as error:  # the other contenders are still measured
            result.error = f"{type(error).__name__}: {error}"[:2000]
        yield result
    del workloads, expected, copies
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _measure(
    result: Result,
    bind: Callable[[Workload], Callable[[], None]],
    workloads: list[Workload],
    expected: Workload,
    copies: list[timing.Call],
    device: torch.device,
) -> None:
    trial = workloads[0].copy()
    bind(trial)()
    timing.wait(device)  # the op may write to host memory
    result.bit_equal = _equal(trial, expected, workloads[0])
    if result.failed:
        result.error = "the bytes written are not those of the reference"
        return
    del trial
    calls = [bind(workload) for workload in workloads]
    seconds, copy_seconds = timing.device_times([calls, copies], device, graph=workloads[0].graph)
    result.device_us = seconds * 1e6
    result.copy_us = copy_seconds * 1e6
    if device.type == "cuda":
        result.host_us = timing.host_time(calls[0], device, seconds) * 1e6
    result.gb_per_s = result.num_bytes / seconds * 1e-9
    result.share_of_copy = copy_seconds / seconds


def _equal(trial: Workload, expected: Workload, before: Workload) -> bool:
    """Returns whether the written tensors are as expected, and no other has changed."""
    return trial.agrees_with(expected) and same_bytes(trial.inputs(), before.inputs())


def _binder(baseline: Baseline) -> Callable[[Workload], Callable[[], None]]:
    if baseline.compiled:
        torch.compiler.reset()  # else torch.compile would count every case as a recompilation
        function = torch.compile(baseline.function, dynamic=False)
    else:
        function = baseline.function
    return lambda workload: functools.partial(function, *baseline.prepare(workload))
