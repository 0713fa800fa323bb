"""Loads the CPU library, and the GPU library that serves this host."""

from __future__ import annotations

from collections.abc import Callable

import torch

from . import command, detection, libraries
from .c_api import ABI_VERSION, CpuLibrary, GpuLibrary
from .libraries import Library
from .process import PROCESS
from .settings import GPU_PLATFORMS, Settings


def load() -> None:
    """Loads the libraries once; later calls do nothing. `import multikv` calls it.

    Raises:
        ImportError: an environment variable has an unknown value, the CPU library or the one that MULTIKV_PLATFORM
            names cannot be loaded, a library that was opened belongs to another version or build, or another copy of
            multikv is loaded in this process. `python -m multikv` raises SystemExit instead.
    """
    if PROCESS.libraries:
        return
    try:
        _load(Settings.from_environment())
    except ImportError as error:
        PROCESS.clear()
        if command.is_running():
            raise SystemExit(str(error)) from None
        raise


def _load(settings: Settings) -> None:
    for name in ("cpu", *GPU_PLATFORMS):
        PROCESS.libraries[name] = libraries.describe(name)
    cpu = PROCESS.cpu_library = _open_cpu_library(PROCESS.libraries["cpu"])
    names = torch._C._dispatch_get_all_op_names()  # takes milliseconds, so it is called once
    PROCESS.op_names = sorted(name.removeprefix("multikv::") for name in names if name.startswith("multikv::"))
    if settings.cpu_isa is not None:
        try:
            PROCESS.set_cpu_isa(settings.cpu_isa)
        except ValueError as error:
            raise ImportError(f"MULTIKV_CPU_ISA: {error}") from None
    for name in GPU_PLATFORMS:
        _consider(PROCESS.libraries[name], settings.platform, cpu.build_id())
    if PROCESS.gpu is None:
        _refuse_gpu_tensors()
    else:  # swap_blocks_batch takes addresses; only the GPU library can ask the driver which device has an address
        cpu.set_gpu_swap_batch(PROCESS.gpu.swap_batch_address())
    PROCESS.set_check_indices(settings.check_indices)
    PROCESS.set_swap_strategy(settings.swap_strategy)


def _open_cpu_library(library: Library) -> CpuLibrary:
    if other := libraries.other_cpu_library(library.path):
        raise ImportError(
            f"multikv: cannot import {library.path.parents[1]}: this process has already loaded another copy, "
            f"{other.parents[1]}; install multikv once, or import one copy only"
        )
    libraries.open_library(library)
    if library.handle is None:
        raise ImportError(f"multikv: {library.path.name} cannot be loaded: {library.reason}{_advice(library)}")
    try:
        cpu = CpuLibrary(library.handle)
    except AttributeError as error:
        raise ImportError(_other_version(library, str(error))) from None
    if cpu.abi_version() != ABI_VERSION:
        raise ImportError(_other_version(library, f"ABI version {cpu.abi_version()}, expected {ABI_VERSION}"))
    return cpu


def _advice(library: Library) -> str:
    """Says what to do about a source tree without libraries; empty if the library exists or this is no source tree."""
    root = library.path.parents[2]
    installed = None if library.path.exists() else libraries.built_package_behind(library.path.parents[1])
    if installed is None:
        is_unbuilt_clone = not library.path.exists() and (root / "CMakeLists.txt").exists()
        return f"; `make demo` in {root} builds and installs it" if is_unbuilt_clone else ""
    return (
        f"; the source tree {root} shadows the installed package {installed}: "
        "start Python in another directory, or build the source tree"
    )


def _other_version(library: Library, detail: str) -> str:
    return f"multikv: {library.path.name} was built for another version of multikv ({detail}): reinstall multikv"


def _consider(library: Library, platform: str, build_id: str) -> None:
    """Opens a GPU library and sets `library.reason`.

    The library is opened if `platform` names it, or if `platform` is "auto" and the library serves this host.
    """
    if platform == library.name:
        library.reason = detection.build_refusal(library, build_id) if library.path.exists() else "not built"
        if not library.reason:
            library.reason = f"MULTIKV_PLATFORM={platform}"
            _open_gpu_library(library, build_id)
        if not library.loaded:
            message = f"MULTIKV_PLATFORM={platform}: {library.path.name} cannot be loaded: {library.reason}"
            raise ImportError(message)
    elif platform != "auto":
        library.reason = f"MULTIKV_PLATFORM={platform}"
    else:
        serves, library.reason = detection.judge(library, build_id)
        if serves:
            _open_gpu_library(library, build_id)


def _open_gpu_library(library: Library, build_id: str) -> None:
    """Opens a GPU library whose manifest agrees with the CPU library.

    Raises:
        ImportError: the file is not the one that the manifest describes. The import fails, because the file
            is already loaded and a library cannot be unloaded.
    """
    libraries.open_library(library)
    if library.handle is None:
        return
    try:
        gpu = GpuLibrary(library.handle)
    except AttributeError as error:
        raise ImportError(_other_version(library, str(error))) from None
    if gpu.build_id() != build_id:
        raise ImportError(
            f"multikv: {library.path.name} is not the file that multikv_{library.name}.json describes "
            f"(build {gpu.build_id()}, expected {build_id}): reinstall multikv"
        )
    PROCESS.gpu = gpu


def _refuse_gpu_tensors() -> None:
    """Registers GPU kernels that raise, so that a call with GPU tensors says why no library serves them."""
    reasons = "; ".join(f"{name}: {PROCESS.libraries[name].reason}" for name in GPU_PLATFORMS)

    def refusing(name: str) -> Callable[..., None]:
        def refuse(*args: object, **kwargs: object) -> None:
            raise RuntimeError(f"{name}: no multikv library serves GPU tensors on this host ({reasons})")

        return refuse

    library = torch.library.Library("multikv", "IMPL", "CUDA")
    for name in PROCESS.op_names:
        library.impl(name, refusing(name))
    PROCESS.registrations.append(library)
