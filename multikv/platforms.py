"""Which platform this host is, which libraries serve it, and why the others do not.

The only place that reads `torch.version` and the environment:

- `MULTIKV_PLATFORM` = auto (default), cpu, cuda or rocm: load this GPU library, or none, whatever is detected; it is an
  ImportError if that one cannot be loaded.
- `MULTIKV_CPU_ISA` = baseline, avx2 or avx512: the instruction set of the CPU kernels; default: the best the CPU has.
- `MULTIKV_SWAP` = auto (default), copy_engine or kernel: what copies blocks between the memories of GPU and host.
- `MULTIKV_CHECK_INDICES` = 1: GPU ops check their indices too, at the price of a synchronisation.
"""

import ctypes
import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import torch

from . import _hosts

_LIBRARY_DIR = Path(__file__).parent / "lib"
_GPU_PLATFORMS = ("cuda", "rocm")
_SWAP_STRATEGIES = ("auto", "copy_engine", "kernel")


@dataclass
class Library:
    """A backend's library: what it was built for, and whether it serves this host."""

    name: str  # cpu, cuda or rocm
    path: Path
    loaded: bool = False
    reason: str = ""  # why it is loaded or not, in one line
    toolkit: str = ""  # version of the compiler that built it
    torch: str = ""  # version of torch it was built with
    architectures: list[str] = field(default_factory=list)
    handle: ctypes.CDLL | None = None


_libraries: dict[str, Library] = {}
_swap_strategy = "auto"
_registrations: list[torch.library.Library] = []  # kernels that Python registers live as long as these


def libraries() -> list[Library]:
    """Every library that multikv can have, loaded or not: cpu, cuda, rocm."""
    return list(_libraries.values())


def platform() -> str:
    """"cuda" or "rocm" where that library is loaded, else "cpu"."""
    return next((name for name in _GPU_PLATFORMS if _libraries[name].loaded), "cpu")


def report() -> str:
    """One line per library: loaded or not, and why."""
    return "\n".join(
        f"{lib.name}: {'loaded' if lib.loaded else 'not loaded'}: {_cpu_reason() if lib.name == 'cpu' else lib.reason}"
        for lib in libraries()
    )


def op_names() -> list[str]:
    """Names of all ops, from the one schema file."""
    names = torch._C._dispatch_get_all_op_names()
    return sorted(name.removeprefix("multikv::") for name in names if name.startswith("multikv::"))


def cpu_isa() -> str:
    """The instruction set that the CPU kernels use now."""
    return _cpu().multikv_cpu_isa().decode()


def cpu_isas() -> tuple[str, ...]:
    """The instruction sets that this CPU can run, the plainest first."""
    return tuple(_cpu().multikv_cpu_isas().decode().split(","))


def set_cpu_isa(name: str) -> None:
    """Makes the CPU kernels use `name`, one of cpu_isas(), for the whole process.

    Raises:
        RuntimeError: no such instruction set, or this CPU lacks it.
    """
    if not _cpu().multikv_set_cpu_isa(name.encode()):
        raise RuntimeError(f"CPU instruction set: expected one of {', '.join(cpu_isas())}, got '{name}'")


def set_check_indices(enabled: bool) -> None:
    """Whether GPU ops check their indices and raise IndexError, as CPU ops always do; each call then synchronises."""
    for name in _GPU_PLATFORMS:
        if _libraries[name].handle is not None:
            _libraries[name].handle.multikv_set_check_indices(int(enabled))


def set_swap_strategy(name: str) -> None:
    """What copies the blocks of swaps on a GPU, for the whole process: "auto", "copy_engine" or "kernel".

    auto chooses for each run of neighbouring blocks, by its size; see docs/swap.md. Memory that a kernel cannot see,
    which is that of the host where it is not pinned, and that of another GPU, always goes by the copy engines. On a
    host without a GPU it is checked, and does nothing.

    Raises:
        RuntimeError: another name.
    """
    if name not in _SWAP_STRATEGIES:
        raise RuntimeError(f"swap strategy: expected one of {', '.join(_SWAP_STRATEGIES)}, got '{name}'")
    for library in _libraries.values():
        if library.name in _GPU_PLATFORMS and library.handle is not None:
            library.handle.multikv_set_swap_strategy(_SWAP_STRATEGIES.index(name))
    global _swap_strategy
    _swap_strategy = name


def swap_strategy() -> str:
    """What set_swap_strategy, or else MULTIKV_SWAP, has set."""
    return _swap_strategy


def gpu_library() -> ctypes.CDLL | None:
    """The library that serves GPU tensors here, if one does."""
    return next((_libraries[name].handle for name in _GPU_PLATFORMS if _libraries[name].loaded), None)


def load() -> None:
    """Loads the CPU library and the GPU library that serves this host. `import multikv` calls it, once."""
    if _libraries:
        return
    try:
        _load()
    except ImportError:
        _libraries.clear()  # another import fails likewise, instead of finding half of it done
        raise


def _load() -> None:
    wanted = os.environ.get("MULTIKV_PLATFORM", "auto")
    if wanted not in ("auto", "cpu", *_GPU_PLATFORMS):
        raise ImportError(f"MULTIKV_PLATFORM: expected one of auto, cpu, cuda, rocm, got '{wanted}'")
    check_indices = os.environ.get("MULTIKV_CHECK_INDICES", "0")
    if check_indices not in ("0", "1"):
        raise ImportError(f"MULTIKV_CHECK_INDICES: expected 0 or 1, got '{check_indices}'")
    strategy = os.environ.get("MULTIKV_SWAP", "auto")
    if strategy not in _SWAP_STRATEGIES:
        raise ImportError(f"MULTIKV_SWAP: expected one of {', '.join(_SWAP_STRATEGIES)}, got '{strategy}'")
    for name in ("cpu", *_GPU_PLATFORMS):
        _libraries[name] = _describe(name)
    cpu = _libraries["cpu"]
    _open(cpu)
    if not cpu.loaded:
        raise ImportError(f"multikv: {cpu.path.name} cannot be loaded: {cpu.reason}")
    cpu.handle.multikv_cpu_isa.restype = ctypes.c_char_p
    cpu.handle.multikv_cpu_isas.restype = ctypes.c_char_p
    if isa := os.environ.get("MULTIKV_CPU_ISA"):
        try:
            set_cpu_isa(isa)
        except RuntimeError as error:
            raise ImportError(f"MULTIKV_CPU_ISA: {error}") from None

    for name in _GPU_PLATFORMS:
        library = _libraries[name]
        if wanted == name:
            library.reason = f"MULTIKV_PLATFORM={wanted}"
            _open(library)
            if not library.loaded:
                raise ImportError(f"MULTIKV_PLATFORM={wanted}: {library.path.name} cannot be loaded: {library.reason}")
        elif wanted != "auto":
            library.reason = f"MULTIKV_PLATFORM={wanted}"
        elif refusal := _refusal(library):
            library.reason = refusal
        else:
            _open(library)
    if platform() == "cpu":
        _refuse_gpu_tensors()
    set_check_indices(check_indices == "1")
    set_swap_strategy(strategy)
    if gpu := gpu_library():  # addresses are the CPU library's to copy, and it asks this one
        cpu.handle.multikv_set_batch_of_gpu(ctypes.cast(gpu.multikv_batch_of_gpu, ctypes.c_void_p))


def _describe(name: str) -> Library:
    manifest = _LIBRARY_DIR / f"multikv_{name}.json"
    library = Library(name, _LIBRARY_DIR / f"libmultikv_{name}.so")
    if manifest.exists():
        built = json.loads(manifest.read_text())
        library.toolkit, library.torch, library.architectures = built["toolkit"], built["torch"], built["architectures"]
    return library


def _open(library: Library) -> None:
    """Loads a library, which registers its kernels; `reason` says why if that fails."""
    if not library.path.exists():
        library.reason = "not built"
        return
    try:
        torch.ops.load_library(str(library.path))
        library.handle = ctypes.CDLL(str(library.path))
    except OSError as error:
        library.reason = str(error)
        return
    library.loaded = True


def _refusal(library: Library) -> str:
    """Why a GPU library does not serve this host; empty if it does, and then `library.reason` says what it found."""
    torch_has = {"cuda": torch.version.cuda, "rocm": torch.version.hip}[library.name]
    if torch_has is None:
        return f"torch {torch.__version__} is not built for {library.name}"
    if not library.path.exists():
        return "not built"
    if not library.architectures:
        return f"multikv_{library.name}.json is missing beside it"
    return _cuda_refusal(library) if library.name == "cuda" else _rocm_refusal(library)


def _cuda_refusal(library: Library) -> str:
    driver = _hosts.nvidia_driver_cuda_version()
    capabilities = _hosts.nvidia_compute_capabilities()
    if capabilities is None:  # a host whose management library is missing may still compute
        if not _hosts.has_nvidia_device():
            return "no NVIDIA GPU or driver"
        library.reason = f"compiled for {', '.join(library.architectures)}; NVML cannot tell this host's GPUs"
        return ""
    if not capabilities:
        return "no NVIDIA GPU"
    if driver is not None and driver[0] < int(library.toolkit.split(".")[0]):
        return f"the driver supports CUDA {driver[0]}.{driver[1]}, the library was built with {library.toolkit}"
    found = ", ".join(sorted({f"sm_{major}{minor}" for major, minor in capabilities}))
    built = ", ".join(library.architectures)
    if not any(_has_code_for(library.architectures, capability) for capability in capabilities):
        return f"no code for this host's {found}: compiled for {built}"
    library.reason = f"{found} found, compiled for {built} with CUDA {library.toolkit}"
    return ""


def _has_code_for(architectures: list[str], capability: tuple[int, int]) -> bool:
    """Machine code runs on its own generation from its minor version on, PTX on everything from its version on.

    Code for 90a, say, runs on 9.0 alone.
    """
    for architecture in architectures:
        is_specific = architecture.endswith("a")
        number = int("".join(c for c in architecture.removesuffix("+PTX") if c.isdigit()))
        major, minor = divmod(number, 10)
        if (major, minor) == capability or (major == capability[0] and minor < capability[1] and not is_specific):
            return True
        if architecture.endswith("+PTX") and (major, minor) <= capability:
            return True
    return False


def _rocm_refusal(library: Library) -> str:
    found = _hosts.amd_architectures()
    built = ", ".join(library.architectures)
    if not found:
        return "no AMD GPU"
    if not set(found) & set(library.architectures):
        return f"no code for this host's {', '.join(sorted(set(found)))}: compiled for {built}"
    library.reason = f"{', '.join(sorted(set(found)))} found, compiled for {built} with HIP {library.toolkit}"
    return ""


def _refuse_gpu_tensors() -> None:
    """Ops called with GPU tensors say why no library serves them, instead of "no kernel"."""
    reasons = "; ".join(f"{name}: {_libraries[name].reason}" for name in _GPU_PLATFORMS)

    def refusing(name: str):
        def refuse(*args: object, **kwargs: object) -> None:
            raise RuntimeError(f"{name}: no multikv library serves GPU tensors on this host ({reasons})")

        return refuse

    library = torch.library.Library("multikv", "IMPL", "CUDA")
    for name in op_names():
        library.impl(name, refusing(name))
    _registrations.append(library)


def _cpu() -> ctypes.CDLL:
    return _libraries["cpu"].handle


def _cpu_reason() -> str:
    return f"{cpu_isa()}, of {', '.join(cpu_isas())} that this CPU can run"
