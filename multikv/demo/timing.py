"""Times for `python -m multikv` and the benchmarks: medians, in seconds per call."""

import functools
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

Call = Callable[[], object]

_SAMPLES = 20
_FEW_SAMPLES = 9
_COLD_SAMPLES = 41
_WARM_UPS = 4  # calls that load code and make first allocations
_SAMPLE_S = 2e-3  # approximate time of one sample, so that clock resolution and launch gaps do not matter
_LONG_S = 100e-6  # a call that takes this long on a GPU hides the launch of the next call
_HOST_BURST = 50  # maximum calls of a burst: more could fill the launch queue, and a launch into a full queue blocks
_HOST_BURST_S = 5e-3  # longest time of a burst: a call that launches hundreds of kernels would fill the queue sooner
_HOST_S = 1.0  # approximate device time of all bursts: calls that take long on the device have fewer samples
_QUEUED_S = 1.0  # approximate time of all samples of _queued_time, within the limits on their number
_CYCLES_PER_S = 2e9  # a typical clock rate of a GPU; _queued_time doubles the cycles, which allows for faster clocks


class Effort(NamedTuple):
    """How many samples are taken on a CPU."""

    seconds: float  # least time of all samples together, so that a short disturbance does not matter
    samples: int  # least number of samples of each contender


THOROUGH = Effort(0.4, _FEW_SAMPLES)
QUICK = Effort(0.06, 3)


def device_times(
    contenders: Sequence[Sequence[Call]], device: torch.device, graph: bool = True, effort: Effort = THOROUGH
) -> list[float]:
    """Returns, for each contender, the time of one of its calls on the device.

    On a CPU the contenders take turns, so that other work of the machine slows all of them equally. Then their ratios
    are reliable even if their times vary.

    Args:
        contenders: for each contender, calls that differ only in their tensors (see `cases.rotation`).
        device: a GPU or the CPU.
        graph: how calls on a GPU are timed. True: short calls are timed as a CUDA graph of many of them, which has no
            launch gaps, and long calls one after the other. False: all calls are queued while the device is kept busy.
        effort: how many samples are taken on a CPU.
    """
    if device.type == "cuda":
        return [_cuda_time(calls, graph) for calls in contenders]
    return _cpu_times(contenders, effort)


def cold_times(contenders: Sequence[Sequence[Call]], device: torch.device) -> list[float]:
    """Returns, for each contender, the time from one of its calls until the device has done the call's work.

    The device is idle when a call begins, so the time includes the submission. The contenders take turns.

    Args:
        contenders: for each contender, calls that differ only in their tensors (see `cases.rotation`).
        device: a GPU or the CPU.
    """
    samples: list[list[float]] = [[] for _ in contenders]
    for i in range(_COLD_SAMPLES + _WARM_UPS):
        for calls, times in zip(contenders, samples, strict=True):
            wait(device)
            start = time.perf_counter()
            calls[i % len(calls)]()
            wait(device)
            times.append(time.perf_counter() - start)
    return [statistics.median(times[_WARM_UPS:]) for times in samples]


def host_time(call: Call, device: torch.device, device_s: float = 0.0) -> float:
    """Returns the time until an eager call returns: on a GPU the time of its launch, on a CPU the time of the op.

    Calls are made in bursts, between which the host waits for the device. A call that takes the host long has
    shorter bursts, and a call that takes the device long has fewer bursts. The first burst is a warm-up.

    Args:
        call: the call.
        device: a GPU or the CPU.
        device_s: seconds that the call takes on the device, if known.
    """
    if device.type != "cuda":
        return _cpu_times([[call]])[0]
    torch.cuda.synchronize()
    burst = max(1, min(_HOST_BURST, round(_HOST_BURST_S / _wall_time([call], 2))))
    count = max(_FEW_SAMPLES // 2, min(_SAMPLES, round(_HOST_S / (burst * max(device_s, 1e-9)))))
    samples = []
    for _ in range(count):
        torch.cuda.synchronize()
        samples.append(_wall_time([call], burst))
    torch.cuda.synchronize()
    return statistics.median(samples[1:])


def wait(device: torch.device) -> None:
    """Waits until all work that was launched on the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _wall_time(calls: Sequence[Call], passes: int) -> float:
    start = time.perf_counter()
    for _ in range(passes):
        for call in calls:
            call()
    return (time.perf_counter() - start) / (passes * len(calls))


def _cpu_times(contenders: Sequence[Sequence[Call]], effort: Effort = THOROUGH) -> list[float]:
    for calls in contenders:
        _wall_time(calls, 1)  # page faults and lazy initialisation
    passes = [_passes(calls, _wall_time(calls, 1)) for calls in contenders]
    samples: list[list[float]] = [[] for _ in contenders]
    end = time.perf_counter() + effort.seconds
    while time.perf_counter() < end or len(samples[0]) < effort.samples:
        for calls, count, times in zip(contenders, passes, samples, strict=True):
            if count > 1:
                _wall_time(calls, 1)  # the other contender may have evicted this one's data from the caches
            times.append(_wall_time(calls, count))
    return [statistics.median(times) for times in samples]


def _cuda_time(calls: Sequence[Call], graph: bool) -> float:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for call in calls:
            call()
        side.synchronize()
        start = time.perf_counter()
        for call in calls:
            call()
        side.synchronize()
        seconds = (time.perf_counter() - start) / len(calls)
    torch.cuda.current_stream().wait_stream(side)

    passes = _passes(calls, seconds)
    if not graph:
        passes = min(passes, max(1, _HOST_BURST // len(calls)))
        return _queued_time(functools.partial(_wall_time, calls, passes)) / (passes * len(calls))
    run: Call = functools.partial(_wall_time, calls, passes)
    if seconds < _LONG_S:
        # A CUDA graph of many calls leaves out the host's time between them. Long calls need no graph, and a large copy
        # is slower as a node of a graph than as a call.
        cuda_graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(cuda_graph):
            run()
        run = cuda_graph.replay
    # All runs are queued at once, with an event after each, so that the device does not wait for the host.
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(_SAMPLES + 1)]
    run()
    for mark in marks[:-1]:
        mark.record()
        run()
    marks[-1].record()
    torch.cuda.synchronize()
    milliseconds: float = statistics.median(a.elapsed_time(b) for a, b in itertools.pairwise(marks))
    return milliseconds * 1e-3 / (passes * len(calls))


def _queued_time(run: Call) -> float:
    """Returns the time of a run on a device that is kept busy until the whole run has been launched."""
    start = time.perf_counter()
    run()
    launch_s = time.perf_counter() - start
    torch.cuda.synchronize()
    count = round(_QUEUED_S / (time.perf_counter() - start))
    samples: list[float] = []
    for _ in range(min(_SAMPLES, max(_FEW_SAMPLES, count))):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(round(2 * launch_s * _CYCLES_PER_S))
        begin.record()
        run()
        end.record()
        torch.cuda.synchronize()
        samples.append(begin.elapsed_time(end) * 1e-3)
    return statistics.median(samples)


def _passes(calls: Sequence[Call], estimate_s: float) -> int:
    """Returns how many passes over all calls fill one sample."""
    return max(1, round(_SAMPLE_S / (estimate_s * len(calls))))
