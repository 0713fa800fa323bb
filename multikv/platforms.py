"""Which libraries serve this host, why the others do not, and the settings of this process.

`import multikv` loads the CPU library and the GPU library that matches the GPUs of this host. It reads these
environment variables, of which an empty one counts as unset:

- `MULTIKV_PLATFORM` selects the GPU library. `auto` (default): the one that matches the GPUs of this host. `cpu`: none.
  `cuda` or `rocm`: the library of that name, without looking at the GPUs; `import multikv` raises ImportError if the
  library cannot be loaded.
- `MULTIKV_CPU_ISA` = `baseline`, `avx2` or `avx512` selects the instruction set of the CPU kernels. Default: the last
  of these that this CPU supports.
- `MULTIKV_SWAP` = `auto` (default), `copy_engine` or `kernel` selects what copies blocks; see set_swap_strategy.
- `MULTIKV_CHECK_INDICES` = `1` makes GPU ops check their indices; see set_check_indices. Default: `0`.
- `MULTIKV_VLLM` and `MULTIKV_VLLM_ATTENTION`: see multikv.integrations.vllm.

Example:
    >>> from multikv import platforms
    >>> platforms.platform()
    'cuda'
    >>> print(platforms.report())
    cpu: loaded: avx512 (this CPU supports baseline, avx2, avx512)
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
    """Returns the libraries of all backends, loaded or not, in the order cpu, cuda, rocm.

    Example:
        >>> [library.name for library in platforms.libraries() if library.loaded]
        ['cpu', 'cuda']
    """
    return list(PROCESS.libraries.values())


def platform() -> str:
    """Returns "cuda" or "rocm" if that library is loaded, else "cpu".

    Example:
        >>> device = "cpu" if platforms.platform() == "cpu" else "cuda"  # torch names AMD GPUs cuda, too
    """
    return PROCESS.platform()


def report() -> str:
    """Returns one line per library, which says whether the library is loaded, and why.

    Example:
        >>> print(platforms.report())  # the docstring of `multikv.platforms` shows the output
    """
    reasons = {library.name: library.reason for library in libraries()}
    reasons["cpu"] = f"{cpu_isa()} (this CPU supports {', '.join(cpu_isas())})"
    return "\n".join(
        f"{library.name}: {'loaded' if library.loaded else 'not loaded'}: {reasons[library.name]}"
        for library in libraries()
    )


def op_names() -> list[str]:
    """Returns the names of all ops, sorted.

    Example:
        >>> "swap_blocks" in platforms.op_names()
        True
    """
    return list(PROCESS.op_names)


def cpu_isa() -> str:
    """Returns the instruction set that the CPU kernels use now: "baseline", "avx2" or "avx512".

    Example:
        >>> platforms.cpu_isa()
        'avx512'
    """
    return PROCESS.cpu.isa()


def cpu_isas() -> tuple[str, ...]:
    """Returns the instruction sets that this CPU supports, in the order "baseline", "avx2", "avx512".

    Example:
        >>> platforms.cpu_isas()
        ('baseline', 'avx2', 'avx512')
    """
    return PROCESS.cpu.isas()


def set_cpu_isa(name: str) -> None:
    """Selects the instruction set of the CPU kernels, for the whole process.

    The kernels of all instruction sets write the same bytes.

    Args:
        name: one of cpu_isas().

    Raises:
        ValueError: the name is unknown, or this CPU lacks the instruction set.

    Example:
        >>> platforms.set_cpu_isa("avx2")
    """
    PROCESS.set_cpu_isa(name)


def set_check_indices(enabled: bool) -> None:
    """Turns the index checks of GPU ops on or off, for the whole process. CPU ops always check their indices.

    A call that checks its indices synchronises the host with the GPU, and raises IndexError for a bad index. A call on
    a stream that is being captured into a CUDA graph does not check its indices. Without a GPU library, this function
    has no effect.

    Args:
        enabled: True: GPU ops check their indices. False, the default of a process: they skip tokens with bad indices.

    Raises:
        TypeError: enabled is not a bool.

    Example:
        >>> platforms.set_check_indices(True)
    """
    PROCESS.set_check_indices(enabled)


def set_swap_strategy(name: str) -> None:
    """Selects what copies the blocks of swaps on a GPU, for the whole process. See docs/swap.md.

    Whatever the strategy, the copy engines copy pageable host memory and memory of another GPU, because a kernel cannot
    access such memory. Without a GPU library, the name is checked and has no further effect.

    Args:
        name: "copy_engine", "kernel", or "auto", which chooses for each run of neighbouring blocks by its size.

    Raises:
        ValueError: the name is unknown.

    Example:
        >>> platforms.set_swap_strategy("kernel")
    """
    PROCESS.set_swap_strategy(name)


def swap_strategy() -> str:
    """Returns the strategy that set_swap_strategy or MULTIKV_SWAP has set; "auto" by default.

    Example:
        >>> platforms.swap_strategy()
        'auto'
    """
    return PROCESS.swap_strategy


def gpu_library() -> GpuLibrary | None:
    """Returns the C functions of the GPU library that is loaded, or None.

    Example:
        >>> has_gpu = platforms.gpu_library() is not None
    """
    return PROCESS.gpu
