"""Measures what swaps cost on a device, for the choice of the strategy `auto`."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import platforms
from ..ops import swap_blocks
from ..runtime.c_api import GpuLibrary
from .costs import CALIBRATIONS, DIRECTIONS, SwapCosts, gpu, read_costs, swap_costs, write_costs
from .memory import allocate_pinned

_NEVER = 2**63 - 1  # a size that no run reaches, so that the kernel copies all runs
_ROUNDS = 4  # the first is a warm-up
_SCRATCH_BYTES = 1 << 30  # larger than a host's last-level cache
_PART_BYTES = _SCRATCH_BYTES // _ROUNDS  # each round uses another part, which is not in a cache
_CACHED_BYTES = 64 << 20  # fits a host's last-level cache
_SMALL_BYTES = 32 << 10  # size of the blocks by which the kernel's rate is measured
_RUN_BYTES = 256 << 10  # size of the runs by which the cost of a run is measured
_KERNEL_THREADS = (256, 512, 640, 768, 1024, 1536, 2048, 3072, 4096, 8192, 32768)
# On all hosts that were measured, runs of this size that are submitted in batches are copied at the rate of a single
# copy of all their bytes: the device copies earlier runs while the host submits later ones.
_MOST_IN_BATCHES = 256 << 10
_ENOUGH = 0.98  # the chosen number of threads reaches this share of the best rate


@dataclass(frozen=True)
class _Link:
    """One direction between a device and its host, with memory to copy."""

    library: GpuLibrary
    device: torch.device
    direction: str
    src: Tensor
    dst: Tensor


def calibrate_swaps(device: torch.device | str | int | None = None) -> dict[str, SwapCosts]:
    """Measures what swaps cost on a device. From then on, the strategy `auto` uses the measured costs.

    The first call of empty_pinned calibrates the current GPU, so most programs need not call this function. Without
    calibration, costs are used that suit all hosts that were measured. Copies within a device need no calibration: a
    kernel makes them all.

    Call this function at the start of a program, while no other thread swaps and no CUDA graph is captured. It sets the
    swap strategy of the process while it measures, waits for the device, takes one or two seconds, and needs 1 GiB of
    pinned memory and 1 GiB of device memory, which PyTorch's allocator keeps afterwards.

    Args:
        device: a GPU; None: the current one.

    Returns:
        Costs of the directions "to_host" and "from_host", as swap_costs returns them.

    Raises:
        RuntimeError: no library serves a GPU on this host, or there is not enough memory. The previous costs remain in
            use.
        ValueError: the device is not a GPU.

    Example:
        >>> costs = multikv.calibrate_swaps("cuda:0")
        >>> print(costs["from_host"].copy_gb_per_s, costs["from_host"].in_batches)
    """
    library, device = gpu("calibrate_swaps", device)
    strategy, before = platforms.swap_strategy(), read_costs(library, device)
    try:
        with torch.cuda.device(device):
            CALIBRATIONS.measured[device.index] = _measure_device(library, device)
    finally:
        write_costs(library, device, CALIBRATIONS.measured.get(device.index, before))
        platforms.set_swap_strategy(strategy)
    return swap_costs(device)


def _measure_device(library: GpuLibrary, device: torch.device) -> dict[str, SwapCosts]:
    """Measures both directions on a new stream."""
    host = allocate_pinned(library, "calibrate_swaps", _SCRATCH_BYTES)
    scratch = torch.empty(_SCRATCH_BYTES, dtype=torch.uint8, device=device)
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))  # earlier work may still use the memory of scratch
    scratch.record_stream(stream)
    with torch.cuda.stream(stream):
        costs = {
            name: _measure(_Link(library, device, name, *pair))
            for name, pair in zip(DIRECTIONS, ((scratch, host), (host, scratch)), strict=True)
        }
    torch.cuda.synchronize(device)
    return costs


def _measure(link: _Link) -> SwapCosts:
    """Measures one direction.

    A copy engine moves a byte in less device time than the kernel, but each run costs it a fixed time of the host and
    the device. The crossover is the run size at which both cost the same: the fixed time / the time saved per byte.
    """
    kernel_threads, kernel_s = _measure_kernel(link)
    platforms.set_swap_strategy("copy_engine")
    copy_s, copy_host_s = _time(link.src, link.dst, _PART_BYTES)
    saved_s_per_byte = (kernel_s - copy_s) / _PART_BYTES
    count = _PART_BYTES // _RUN_BYTES
    costs_s, sizes = [], []
    for in_batches in (True, False):
        device_s, host_s = _time(link.src, link.dst, _RUN_BYTES, in_batches=in_batches)
        cost_s = max(host_s - copy_host_s, 0) / count + max(device_s - copy_s, 0) / count
        costs_s.append(cost_s)
        sizes.append(round(cost_s / saved_s_per_byte) if saved_s_per_byte > 1e-16 else _NEVER)
    return SwapCosts(
        in_batches=sizes[0] if sizes[0] == _NEVER else min(sizes[0], _MOST_IN_BATCHES),
        one_by_one=sizes[1],
        kernel_threads=kernel_threads,
        copy_gb_per_s=_PART_BYTES / copy_s * 1e-9,
        kernel_gb_per_s=_PART_BYTES / kernel_s * 1e-9,
        in_batches_us=costs_s[0] * 1e6,
        one_by_one_us=costs_s[1] * 1e6,
    )


def _measure_kernel(link: _Link) -> tuple[int, float]:
    """Returns the smallest number of threads with which the kernel is fast, and its seconds for one part of src.

    The rate is measured on host memory that is in the last-level cache and on host memory that is not, because either
    may need more bytes in flight.
    """
    platforms.set_swap_strategy("kernel")
    cached_src, cached_dst = link.src[:_CACHED_BYTES], link.dst[:_CACHED_BYTES]
    times = []
    for threads in _KERNEL_THREADS:
        write_costs(link.library, link.device, {link.direction: SwapCosts(_NEVER, _NEVER, threads)})
        uncached_s = _time(link.src, link.dst, _SMALL_BYTES)[0]
        times.append((uncached_s, _time(cached_src, cached_dst, _SMALL_BYTES, parts=1)[0]))
    chosen = first_that_is_enough(times)
    return _KERNEL_THREADS[chosen], times[chosen][0]


def first_that_is_enough(times: Sequence[Sequence[float]]) -> int:
    """Returns the index of the first row of times in which every column reaches 98% of the column's best rate.

    If there is no such row, the share is lowered from 98% until there is one.
    """
    best = [min(column) for column in zip(*times, strict=True)]
    slower = [max(a / b for a, b in zip(row, best, strict=True)) for row in times]
    enough = max(1 / _ENOUGH, min(slower))
    return next(i for i, ratio in enumerate(slower) if ratio <= enough)


def _time(
    src: Tensor, dst: Tensor, block_bytes: int, parts: int = _ROUNDS, in_batches: bool = True
) -> tuple[float, float]:
    """Times swaps, and returns the median seconds that one swap takes on the device and on the host.

    src and dst are divided into `parts` parts, which the rounds use in turn. Each round copies all blocks of one part
    of src to the same part of dst, in random order.
    """
    random, count = torch.Generator().manual_seed(0), src.numel() // parts // block_bytes
    device_s, host_s = [], []
    for i in range(_ROUNDS):
        mapping = torch.stack([torch.randperm(count, generator=random) for _ in range(2)], 1) + i % parts * count
        run: Callable[[], None] = functools.partial(swap_blocks, src, dst, block_bytes, mapping)
        if not in_batches and platforms.platform() == "cuda":  # a graph submits runs one by one; ROCm always does
            run = _captured(run)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        torch.cuda._sleep(1_000_000)  # keeps the device busy until all copies are submitted
        begin.record()
        start = time.perf_counter()
        run()
        host_s.append(time.perf_counter() - start)
        end.record()
        end.synchronize()
        device_s.append(begin.elapsed_time(end) * 1e-3)
    return _median(device_s[1:]), _median(host_s[1:])


def _captured(run: Callable[[], None]) -> Callable[[], None]:
    """Captures a call in a CUDA graph, and returns a function that replays the graph.

    The first replay takes longer, so it is made here.
    """
    graph = torch.cuda.CUDAGraph()
    graph.capture_begin(capture_error_mode="thread_local")  # other threads may use the GPU meanwhile
    run()
    graph.capture_end()
    graph.replay()
    return graph.replay


def _median(values: list[float]) -> float:
    """Returns the median of an odd number of values. The module statistics would slow the import down."""
    return sorted(values)[len(values) // 2]
