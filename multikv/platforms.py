"""Which platform this host is, which libraries serve it, and why the others do not.

`import multikv` loads the CPU library and the GPU library that serves this host. Environment variables change that:

- `MULTIKV_PLATFORM` = auto (default), cpu, cuda or rocm: load this GPU library, or none, whatever is detected. An
  ImportError is raised if the named library cannot be loaded.
- `MULTIKV_CPU_ISA` = baseline, avx2 or avx512: the instruction set of the CPU kernels; default: the best of this CPU.
- `MULTIKV_SWAP` = auto (default), copy_engine or kernel: what copies blocks between the memories of GPU and host.
- `MULTIKV_CHECK_INDICES` = 1: GPU ops check their indices too, at the price of a synchronisation.

Example:
    >>> from multikv import platforms
    >>> platforms.platform()
    'cuda'
    >>> print(platforms.report())
    cpu: loaded: avx512, of baseline, avx2, avx512 that this CPU can run
    cuda: loaded: sm_90 found, compiled for 80, 90, 100, 120+PTX with CUDA 13.0.88
    rocm: not loaded: torch 2.11.0+cu130 is not built for rocm
"""

from __future__ import annotations

from .runtime.c_api import GpuLibrary
from .runtime.libraries import Library
from .runtime.process import PROCESS

__all__ = [
    "Library",
    "cpu_isa",
    "cpu_isas",
    "gpu_library",
    "libraries",
    "op_names",
    "platform",
    "report",
    "set_check_indices",
    "set_cpu_isa",
    "set_swap_strategy",
    "swap_strategy",
]


def libraries() -> list[Library]:
    """Returns every library that multikv can have, loaded or not, in the order cpu, cuda, rocm."""
    return list(PROCESS.libraries.values())


def platform() -> str:
    """Returns "cuda" or "rocm" where that library is loaded, else "cpu"."""
    return PROCESS.platform()


def report() -> str:
    """Returns one line per library: whether it is loaded, and why."""
    reasons = {library.name: library.reason for library in libraries()}
    reasons["cpu"] = f"{cpu_isa()}, of {', '.join(cpu_isas())} that this CPU can run"
    return "\n".join(
        f"{library.name}: {'loaded' if library.loaded else 'not loaded'}: {reasons[library.name]}"
        for library in libraries()
    )


def op_names() -> list[str]:
    """Returns the names of all ops, sorted."""
    return list(PROCESS.op_names)


def cpu_isa() -> str:
    """Returns the instruction set that the CPU kernels use now: "baseline", "avx2" or "avx512"."""
    return PROCESS.cpu.isa()


def cpu_isas() -> tuple[str, ...]:
    """Returns the instruction sets that this CPU can run, the plainest first."""
    return PROCESS.cpu.isas()


def set_cpu_isa(name: str) -> None:
    """Makes the CPU kernels of the whole process use an instruction set.

    Every instruction set writes the same bytes.

    Args:
        name: one of cpu_isas().

    Raises:
        RuntimeError: the name is unknown, or this CPU lacks the instruction set.

    Example:
        >>> platforms.set_cpu_isa("avx2")
    """
    PROCESS.set_cpu_isa(name)


def set_check_indices(enabled: bool) -> None:
    """Makes GPU ops check their indices and raise IndexError, as CPU ops always do, or stop doing so.

    A call that checks its indices synchronises with the GPU. While a CUDA graph is captured nothing is checked. On a
    host without a GPU this does nothing.
    """
    PROCESS.set_check_indices(enabled)


def set_swap_strategy(name: str) -> None:
    """Selects what copies the blocks of swaps on a GPU, for the whole process.

    Memory that a kernel cannot access, which is pageable host memory and the memory of another GPU, is always copied
    by the copy engines. On a host without a GPU the name is checked and has no effect. See docs/swap.md.

    Args:
        name: "copy_engine", "kernel", or "auto", which chooses by the size of each run of neighbouring blocks.

    Raises:
        RuntimeError: the name is unknown.
    """
    PROCESS.set_swap_strategy(name)


def swap_strategy() -> str:
    """Returns the strategy that set_swap_strategy or MULTIKV_SWAP has set; "auto" by default."""
    return PROCESS.swap_strategy


def gpu_library() -> GpuLibrary | None:
    """Returns the C functions of the library that serves GPU tensors on this host; None if there is none."""
    return PROCESS.gpu
