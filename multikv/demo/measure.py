"""Checks and times one case on this host, and describes the host."""

from __future__ import annotations

import dataclasses
import platform as host
from typing import Any

import torch

import multikv
from multikv import platforms, reference

from . import cases, timing


@dataclasses.dataclass
class Result:
    """The outcome of one case. Times are of one call with the large sizes, or None if `ok` is False."""

    op: str
    case: str
    ok: bool = False  # whether the outputs agree with those of multikv.reference, and nothing raised an exception
    error: str | None = None
    time_us: float | None = None
    gb_per_s: float | None = None
    share_of_copy: float | None = None  # time of a copy of as many bytes / time_us


def run(case: cases.Case, device: torch.device) -> Result:
    """Checks and times one case. An exception becomes part of the result, so that the other cases still run."""
    result = Result(case.op, case.name)
    try:
        result.ok = _is_right(case, device)
        if result.ok:
            _time(case, device, result)
        else:
            result.error = "results differ from multikv.reference"
    except Exception as error:
        result.ok = False
        result.error = f"{type(error).__name__}: {error}".strip()
    return result


def _is_right(case: cases.Case, device: torch.device) -> bool:
    small = case.make(device, **case.small)
    expected = small.copy("cpu")
    expected.bind(reference)()
    small.bind()()
    timing.wait(device)  # the op may write to host memory
    return small.agrees_with(expected)


def _time(case: cases.Case, device: torch.device, result: Result) -> None:
    workloads = [case.make(device, **case.large)]
    num_bytes = workloads[0].num_bytes
    workloads += [case.make(device, **case.large) for _ in range(cases.rotation(num_bytes, device) - 1)]
    calls: list[timing.Call] = [workload.bind() for workload in workloads]
    contenders = [calls, cases.copy_calls(workloads[0], device)]
    seconds, copy_seconds = timing.device_times(contenders, device, workloads[0].graph, timing.QUICK)
    result.time_us = seconds * 1e6
    result.gb_per_s = num_bytes / seconds * 1e-9
    result.share_of_copy = copy_seconds / seconds


def describe(device: torch.device) -> dict[str, Any]:
    """Returns the versions, libraries, device and settings of this run."""
    return {
        "multikv": multikv.__version__,
        "torch": torch.__version__,
        "python": host.python_version(),
        "platform": platforms.platform(),
        "report": platforms.report().splitlines(),
        "libraries": [
            {
                "name": library.name,
                "path": str(library.path),
                "loaded": library.loaded,
                "reason": library.reason,
                "architectures": library.architectures,
            }
            for library in platforms.libraries()
        ],
        "cpu_isa": platforms.cpu_isa(),
        "cpu_isas": list(platforms.cpu_isas()),
        "device": str(device),
        "device_name": cases.device_name(device),
        "threads": torch.get_num_threads(),
        "copy": cases.copy_description(device),
    }
