"""Costs of swaps on a device, and the run sizes by which `auto` chooses between a kernel and the copy engines."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from .. import platforms
from ..runtime.c_api import GpuLibrary, SwapCrossover

# The index of a name is its number in csrc/c_api.h. The direction "within the device", number 2, is left out:
# `auto` always uses a kernel there, so it needs no costs.
DIRECTIONS = ("to_host", "from_host")


@dataclass(frozen=True)
class SwapCosts:
    """What swaps in one direction cost on one device, and what the strategy `auto` makes of these costs.

    A run is a sequence of blocks that are neighbours in both tensors. The copy engines copy runs of at least
    `in_batches` bytes if runs are submitted in batches, and runs of at least `one_by_one` bytes if each run is
    submitted alone (in a CUDA graph, on ROCm, and with an NVIDIA driver that takes no batches). A kernel of
    `kernel_threads` threads copies all smaller runs.

    Until the device is calibrated, these three fields have default values, and all other fields are None.
    """

    in_batches: int  # bytes
    one_by_one: int  # bytes
    kernel_threads: int
    copy_gb_per_s: float | None = None  # rate of a large copy by a copy engine, in 1e9 bytes per second
    kernel_gb_per_s: float | None = None  # rate of the kernel, in 1e9 bytes per second
    in_batches_us: float | None = None  # fixed time of a run, host and device together, in microseconds
    one_by_one_us: float | None = None  # the same for a run that is submitted alone

    @property
    def crossover(self) -> SwapCrossover:
        """The fields that the library uses."""
        return SwapCrossover(self.in_batches, self.one_by_one, self.kernel_threads)


@dataclass
class Calibrations:
    """The calibrations of this process."""

    measured: dict[int, dict[str, SwapCosts]] = field(default_factory=dict)  # by index of the device and by direction
    attempted: set[int] = field(default_factory=set)  # indices of devices that empty_pinned has tried to calibrate


CALIBRATIONS = Calibrations()


def swap_costs(device: torch.device | str | int | None = None) -> dict[str, SwapCosts]:
    """Returns the costs of swaps on a device: run sizes by which `auto` chooses, and measured rates and times.

    Args:
        device: a GPU; None: the current one.

    Returns:
        The costs by direction, "to_host" and "from_host".

    Raises:
        RuntimeError: no library serves a GPU on this host.
        ValueError: the device is not a GPU.

    Example:
        >>> multikv.offload.swap_costs()["to_host"].kernel_threads  # of a device that is not calibrated
        1024
    """
    library, device = gpu("swap_costs", device)
    return CALIBRATIONS.measured.get(device.index) or read_costs(library, device)


def gpu(function: str, device: torch.device | str | int | None) -> tuple[GpuLibrary, torch.device]:
    """Returns the GPU library and a device with an index.

    Args:
        function: name of the function to which an error refers.
        device: a GPU; None: the current one.

    Raises:
        RuntimeError: no library serves a GPU on this host.
        ValueError: the device is not a GPU.
    """
    library = platforms.gpu_library()
    if library is None or not torch.cuda.is_available():
        raise RuntimeError(f"{function}: no multikv library serves a GPU on this host\n{platforms.report()}")
    device = torch.device("cuda" if device is None else device)
    if device.type != "cuda":
        raise ValueError(f"{function}: device: expected a GPU, got {device}")
    return library, torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)


def read_costs(library: GpuLibrary, device: torch.device) -> dict[str, SwapCosts]:
    """Returns the crossovers that the library uses for a device, by direction. The measured fields are None."""
    return {name: SwapCosts(*library.swap_crossover(device.index, i)) for i, name in enumerate(DIRECTIONS)}


def write_costs(library: GpuLibrary, device: torch.device, costs: dict[str, SwapCosts]) -> None:
    """Gives the library the crossovers of a device, for the directions in `costs`."""
    for name, cost in costs.items():
        library.set_swap_crossover(device.index, DIRECTIONS.index(name), cost.crossover)
