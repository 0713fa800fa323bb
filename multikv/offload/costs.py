"""What swaps cost on a device, and the sizes by which they choose between a kernel and the copy engines."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from .. import platforms
from ..runtime.c_api import GpuLibrary, SwapCrossover

DIRECTIONS = ("to_host", "from_host")  # the numbers of csrc/c_api.h. Within a device a kernel copies everything.


@dataclass(frozen=True)
class SwapCosts:
    """What swaps in one direction cost on one device, and how the strategy `auto` chooses because of it.

    The copy engines copy a run of neighbouring blocks of at least `in_batches` bytes where runs are submitted in
    batches, and of at least `one_by_one` bytes where they are not (in a CUDA graph, and on ROCm). A kernel of
    `kernel_threads` threads copies all smaller runs.

    The other fields are None until the device is calibrated; the sizes are then those of an H200.
    """

    in_batches: int
    one_by_one: int
    kernel_threads: int
    copy_gb_per_s: float | None = None  # of a large copy by a copy engine
    kernel_gb_per_s: float | None = None  # of the kernel
    in_batches_us: float | None = None  # cost of a run besides its bytes, on host and device together
    one_by_one_us: float | None = None

    @property
    def crossover(self) -> SwapCrossover:
        """What the library needs to know."""
        return SwapCrossover(self.in_batches, self.one_by_one, self.kernel_threads)


@dataclass
class Calibrations:
    """What was measured in this process, by device index."""

    measured: dict[int, dict[str, SwapCosts]] = field(default_factory=dict)  # by device and direction
    attempted: set[int] = field(default_factory=set)  # devices that empty_pinned has calibrated, or tried to


CALIBRATIONS = Calibrations()


def swap_costs(device: torch.device | str | int | None = None) -> dict[str, SwapCosts]:
    """Returns the sizes by which swaps choose on a device, and the measured costs behind them.

    Args:
        device: a GPU; None: the current one.

    Returns:
        Costs of the directions "to_host" and "from_host".

    Raises:
        RuntimeError: there is no such GPU.

    Example:
        >>> multikv.offload.swap_costs()["to_host"].kernel_threads  # of an H200 that is not calibrated
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
        RuntimeError: no library serves a GPU on this host, or the device is not a GPU.
    """
    library = platforms.gpu_library()
    if library is None or not torch.cuda.is_available():
        raise RuntimeError(f"{function}: no GPU is served on this host\n{platforms.report()}")
    device = torch.device("cuda" if device is None else device)
    if device.type != "cuda":
        raise RuntimeError(f"{function}: device: expected a GPU, got {device}")
    return library, torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)


def read_costs(library: GpuLibrary, device: torch.device) -> dict[str, SwapCosts]:
    """Returns the sizes that the library uses for a device, by direction."""
    return {name: SwapCosts(*library.swap_crossover(device.index, i)) for i, name in enumerate(DIRECTIONS)}


def write_costs(library: GpuLibrary, device: torch.device, costs: dict[str, SwapCosts]) -> None:
    """Makes the library use the sizes of some directions for a device."""
    for name, cost in costs.items():
        library.set_swap_crossover(device.index, DIRECTIONS.index(name), cost.crossover)
