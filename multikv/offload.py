"""Memory of the host for blocks that leave a GPU, and what this host's link does with them. See docs/swap.md."""

import contextlib
import ctypes
import dataclasses
import functools
import math
import statistics
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from . import platforms
from .ops import swap_blocks

_DIRECTIONS = ("to_host", "from_host")  # within a device a kernel copies all
_NEVER = 2**63 - 1
_SCRATCH_BYTES = 1 << 30  # more than a host's last-level cache holds
_CACHED_BYTES = 64 << 20  # and less: of either, a host may take more in flight to be kept busy
_ROUNDS = 4  # the first to warm up
_PART_BYTES = _SCRATCH_BYTES // _ROUNDS  # a round each, so that it evicts the others
_SMALL_BYTES = 32 << 10  # blocks by which the kernel's rate is measured
_RUN_BYTES = 256 << 10  # runs by which the cost of each is measured
_KERNEL_THREADS = (256, 512, 640, 768, 1024, 1536, 2048, 3072, 4096, 8192, 32768)
_ENOUGH = 0.98  # of the best rate, by as few threads as reach it


@dataclasses.dataclass(frozen=True)
class SwapCosts:
    """What one direction costs on one device, and what follows from it.

    The copy engines copy a run of neighbouring blocks if it has at least `in_batches` bytes, or `one_by_one` where they
    cannot be given many runs at a time (in a CUDA graph; on ROCm); smaller ones are a kernel's, of `kernel_threads`
    threads in all.
    """

    in_batches: int
    one_by_one: int
    kernel_threads: int
    # As measured; None: not yet, and the sizes above are those of an H200.
    copy_gb_per_s: float | None = None  # of one large copy
    kernel_gb_per_s: float | None = None
    in_batches_us: float | None = None  # what each run costs more than its bytes, on the host and on the device
    one_by_one_us: float | None = None


_measured: dict[int, dict[str, SwapCosts]] = {}
_asked: set[int] = set()  # GPUs that empty_pinned has had measured, or tried to


def empty_pinned(shape: Sequence[int] | int, dtype: torch.dtype = torch.uint8) -> Tensor:
    """A tensor on the CPU, not initialised, in memory that GPUs read and write where it is: for pools of blocks.

    It is registered with the driver once, here, which takes a second for every few gigabytes; make a pool once, and
    keep it. Exactly so much is taken: torch's pin_memory=True rounds up to a power of two. It is given back when
    the tensor and all views of it are gone. On a host without a GPU it is ordinary memory.

    The first call in a process also measures the current GPU's link, which takes a second or two, and a gigabyte of
    either memory meanwhile: see calibrate_swaps. Where there is no room for that, swaps go on as on an H200.

    Args:
        shape: sizes, or one size.
        dtype: any.

    Raises:
        RuntimeError: no such memory is to be had.
    """
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    if platforms.gpu_library() is None or not torch.cuda.is_available():
        return torch.empty(shape, dtype=dtype)
    count = math.prod(shape)
    if count == 0:
        return torch.empty(shape, dtype=dtype)
    device = torch.cuda.current_device()
    if device not in _measured and device not in _asked and not torch.cuda.is_current_stream_capturing():
        _asked.add(device)
        with contextlib.suppress(torch.OutOfMemoryError):
            calibrate_swaps()
    return _pinned("empty_pinned", count * dtype.itemsize).view(dtype).view(shape)


def _pinned(function: str, num_bytes: int) -> Tensor:
    torch.cuda.init()
    library, address, error = platforms.gpu_library(), ctypes.c_void_p(), ctypes.create_string_buffer(256)
    library.multikv_allocate_host(ctypes.byref(address), ctypes.c_int64(num_bytes), error, 256)
    if error.value:
        raise torch.OutOfMemoryError(f"{function}: {num_bytes} bytes: {error.value.decode()}")

    class Buffer(ctypes.c_uint8 * num_bytes):  # which the tensor keeps
        def __del__(self, free=library.multikv_free_host, at=address.value) -> None:
            free(ctypes.c_void_p(at))

    return torch.frombuffer(Buffer.from_address(address.value), dtype=torch.uint8)


def calibrate_swaps(device: torch.device | str | int | None = None) -> dict[str, SwapCosts]:
    """Measures what swaps cost on a device, and lets `auto` choose by it from now on.

    empty_pinned does it for the current GPU when it is first called. It takes a second or two, needs 1 GiB of pinned
    memory and of the device (which PyTorch keeps for its next tensors), and waits for the device: for a program's
    start, and not while a CUDA graph is captured. Without it, what an H200 measured is taken. Within a device there is
    nothing to choose.

    Args:
        device: a GPU; None: the current one.

    Returns:
        What swap_costs then returns: "to_host" and "from_host".

    Raises:
        RuntimeError: no such GPU, or no such memory is to be had. What was known before holds.
    """
    device = _gpu("calibrate_swaps", device)
    strategy = platforms.swap_strategy()
    before = {name: _current(device, name) for name in _DIRECTIONS}
    try:
        with torch.cuda.device(device):
            host = _pinned("calibrate_swaps", _SCRATCH_BYTES)
            scratch = torch.empty(_SCRATCH_BYTES, dtype=torch.uint8, device=device)
            stream = torch.cuda.Stream(device)
            stream.wait_stream(torch.cuda.current_stream(device))  # which may still use the memory
            scratch.record_stream(stream)
            with torch.cuda.stream(stream):
                to_host = _measure(device, "to_host", scratch, host)
                from_host = _measure(device, "from_host", host, scratch)
            torch.cuda.synchronize(device)
        _measured[device.index] = {"to_host": to_host, "from_host": from_host}
    finally:
        for name, costs in _measured.get(device.index, before).items():
            _set(device, name, costs)
        platforms.set_swap_strategy(strategy)
    return swap_costs(device)


def swap_costs(device: torch.device | str | int | None = None) -> dict[str, SwapCosts]:
    """By what sizes `auto` chooses on a device, and what was measured for it."""
    device = _gpu("swap_costs", device)
    return _measured.get(device.index) or {name: _current(device, name) for name in _DIRECTIONS}


def _gpu(function: str, device: torch.device | str | int | None) -> torch.device:
    if platforms.gpu_library() is None or not torch.cuda.is_available():
        raise RuntimeError(f"{function}: no GPU is served on this host\n{platforms.report()}")
    device = torch.device("cuda" if device is None else device)
    if device.type != "cuda":
        raise RuntimeError(f"{function}: device: expected a GPU, got {device}")
    return torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)


def _current(device: torch.device, name: str) -> SwapCosts:
    sizes, threads = [ctypes.c_int64(), ctypes.c_int64()], ctypes.c_int()
    platforms.gpu_library().multikv_get_swap_crossover(
        device.index, _DIRECTIONS.index(name), *map(ctypes.byref, sizes), ctypes.byref(threads))
    return SwapCosts(*(size.value for size in sizes), threads.value)


def _set(device: torch.device, name: str, costs: SwapCosts) -> None:
    platforms.gpu_library().multikv_set_swap_crossover(
        device.index, _DIRECTIONS.index(name), ctypes.c_int64(costs.in_batches), ctypes.c_int64(costs.one_by_one),
        costs.kernel_threads)


def _measure(device: torch.device, name: str, src: Tensor, dst: Tensor) -> SwapCosts:
    """A run pays for a copy engine when what it saves of the device's time is more than what it costs besides."""
    platforms.set_swap_strategy("kernel")
    cached_src, cached_dst = src[:_CACHED_BYTES], dst[:_CACHED_BYTES]
    times = []
    for threads in _KERNEL_THREADS:
        _set(device, name, SwapCosts(_NEVER, _NEVER, threads))
        times.append((_time(src, dst, _SMALL_BYTES)[0], _time(cached_src, cached_dst, _SMALL_BYTES, parts=1)[0]))
    chosen = _first_that_is_enough(times)
    kernel_threads, kernel_s = _KERNEL_THREADS[chosen], times[chosen][0]
    platforms.set_swap_strategy("copy_engine")
    copy_s, copy_host_s = _time(src, dst, _PART_BYTES)
    saved_s_per_byte = (kernel_s - copy_s) / _PART_BYTES
    count = _PART_BYTES // _RUN_BYTES
    costs, sizes = [], []
    for in_batches in (True, False):
        device_s, host_s = _time(src, dst, _RUN_BYTES, in_batches=in_batches)
        costs.append(max(host_s - copy_host_s, 0) / count + max(device_s - copy_s, 0) / count)
        sizes.append(round(costs[-1] / saved_s_per_byte) if saved_s_per_byte > 1e-16 else _NEVER)
    return SwapCosts(*sizes, kernel_threads, _PART_BYTES / copy_s * 1e-9, _PART_BYTES / kernel_s * 1e-9,
                     *(cost * 1e6 for cost in costs))


def _first_that_is_enough(times: Sequence[Sequence[float]]) -> int:
    """The first row with _ENOUGH of the best rate in each column; if there is none, the one that comes nearest."""
    best = [min(column) for column in zip(*times, strict=True)]
    slower = [max(a / b for a, b in zip(row, best, strict=True)) for row in times]
    enough = max(1 / _ENOUGH, min(slower))
    return next(i for i, ratio in enumerate(slower) if ratio <= enough)


def _time(src: Tensor, dst: Tensor, block_bytes: int, parts: int = _ROUNDS,
          in_batches: bool = True) -> tuple[float, float]:
    """Seconds on the device and on the host to swap the blocks of one part, in random order; parts take turns."""
    random, count = torch.Generator().manual_seed(0), src.numel() // parts // block_bytes
    device_s, host_s = [], []
    for i in range(_ROUNDS):
        mapping = torch.stack([torch.randperm(count, generator=random) for _ in range(2)], 1) + i % parts * count
        run = functools.partial(swap_blocks, src, dst, block_bytes, mapping)
        if not in_batches and platforms.platform() == "cuda":  # as in a graph; ROCm has no batches anyway
            graph = torch.cuda.CUDAGraph()
            graph.capture_begin(capture_error_mode="thread_local")  # others may go on
            run()
            graph.capture_end()
            run = graph.replay
            run()  # the first time takes longer
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        torch.cuda._sleep(1_000_000)
        begin.record()
        start = time.perf_counter()
        run()
        host_s.append(time.perf_counter() - start)
        end.record()
        end.synchronize()
        device_s.append(begin.elapsed_time(end) * 1e-3)
    return statistics.median(device_s[1:]), statistics.median(host_s[1:])
