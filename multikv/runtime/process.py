"""The state of this process: the libraries that are loaded, and settings. (`offload.costs` holds the calibrations.)"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from .c_api import CpuLibrary, GpuLibrary
from .libraries import Library
from .settings import GPU_PLATFORMS, SWAP_STRATEGIES


@dataclass
class Process:
    """The libraries of this process, and settings of all its threads. `loading.load` fills in the fields."""

    libraries: dict[str, Library] = field(default_factory=dict)  # cpu, cuda and rocm, loaded or not
    cpu_library: CpuLibrary | None = None
    gpu: GpuLibrary | None = None
    swap_strategy: str = "auto"
    op_names: list[str] = field(default_factory=list)  # names of the ops that the CPU library has registered
    registrations: list[torch.library.Library] = field(default_factory=list)  # keep Python kernels registered

    def clear(self) -> None:
        """Forgets the libraries, so that the next call of `loading.load` loads them again."""
        self.libraries.clear()
        self.cpu_library = self.gpu = None

    @property
    def cpu(self) -> CpuLibrary:
        """The CPU library."""
        if self.cpu_library is None:
            raise RuntimeError("multikv: the CPU library is not loaded; `import multikv` loads it")
        return self.cpu_library

    def platform(self) -> str:
        """Name of the GPU library that is loaded, else "cpu"."""
        return next((name for name in GPU_PLATFORMS if name in self.libraries and self.libraries[name].loaded), "cpu")

    def set_cpu_isa(self, name: str) -> None:
        """Selects the instruction set of the CPU kernels."""
        if name not in self.cpu.isas() or not self.cpu.set_isa(name):
            raise ValueError(f"CPU instruction set: expected one of {', '.join(self.cpu.isas())}, got '{name}'")

    def set_check_indices(self, enabled: bool) -> None:
        """Turns the index checks of GPU ops on or off."""
        if not isinstance(enabled, bool):
            raise TypeError(f"set_check_indices: enabled: expected a bool, got {enabled!r}")
        if self.gpu is not None:
            self.gpu.set_check_indices(enabled)

    def set_swap_strategy(self, name: str) -> None:
        """Selects what copies the blocks of swaps."""
        if name not in SWAP_STRATEGIES:
            raise ValueError(f"swap strategy: expected one of {', '.join(SWAP_STRATEGIES)}, got '{name}'")
        if self.gpu is not None:
            self.gpu.set_swap_strategy(SWAP_STRATEGIES.index(name))
        self.swap_strategy = name


PROCESS = Process()
