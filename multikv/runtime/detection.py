"""Why a GPU library does not serve this host, or what it was found to serve."""

from __future__ import annotations

from typing import NamedTuple

import torch

from . import hosts
from .c_api import ABI_VERSION
from .libraries import Library


class Verdict(NamedTuple):
    """Whether a library serves this host, and why, in one line."""

    serves: bool
    reason: str


def _no(reason: str) -> Verdict:
    return Verdict(False, reason)


def judge(library: Library, build_id: str) -> Verdict:
    """Judges a GPU library by torch, by its file and manifest, and by the GPUs of this host.

    Args:
        library: as `libraries.describe` returns it.
        build_id: of the CPU library, with which it must agree.
    """
    torch_has = {"cuda": torch.version.cuda, "rocm": torch.version.hip}[library.name]
    if torch_has is None:
        return _no(f"torch {torch.__version__} is not built for {library.name}")
    if not library.path.exists():
        return _no("not built")
    if refusal := build_refusal(library, build_id):
        return _no(refusal)
    return judge_cuda(library) if library.name == "cuda" else judge_rocm(library)


def build_refusal(library: Library, build_id: str) -> str:
    """Says why a library may not be used beside a CPU library of this build; empty if it may."""
    if not library.architectures:
        return f"multikv_{library.name}.json is missing beside it"
    if library.abi_version != ABI_VERSION:
        found = "no ABI version" if library.abi_version is None else f"ABI version {library.abi_version}"
        return f"built with {found}, expected {ABI_VERSION}: reinstall multikv"
    if library.build_id != build_id:
        return (
            f"built from other sources than libmultikv_cpu.so "
            f"(build {library.build_id or 'unknown'}, expected {build_id}): reinstall multikv"
        )
    return ""


def judge_cuda(library: Library) -> Verdict:
    """Compares what the library was compiled for with the NVIDIA GPUs and the driver of this host."""
    driver = hosts.nvidia_driver_cuda_version()
    capabilities = hosts.nvidia_compute_capabilities()
    built = ", ".join(library.architectures)
    if capabilities is None:  # CUDA may work without NVML, the management library
        if not hosts.has_nvidia_device():
            return _no("no NVIDIA GPU or driver")
        return Verdict(True, f"compiled for {built}; NVML cannot tell this host's GPUs")
    if not capabilities:
        return _no("no NVIDIA GPU")
    if driver is not None and driver[0] < int(library.toolkit.split(".")[0]):
        return _no(f"the driver supports CUDA {driver[0]}.{driver[1]}, the library was built with {library.toolkit}")
    found = ", ".join(sorted({f"sm_{major}{minor}" for major, minor in capabilities}))
    if not any(has_code_for(library.architectures, capability) for capability in capabilities):
        return _no(f"no code for this host's {found}: compiled for {built}")
    return Verdict(True, f"{found} found, compiled for {built} with CUDA {library.toolkit}")


def has_code_for(architectures: list[str], capability: tuple[int, int]) -> bool:
    """Whether code for one of the architectures runs on a GPU of this compute capability.

    Machine code runs on GPUs of the same major version with at least its minor version; code for an architecture with
    the suffix "a" (90a) runs on exactly that version. PTX (suffix "+PTX") is compiled by the driver for its own version
    and every later one. Source: CUDA C++ Programming Guide, "Binary Compatibility" and "PTX Compatibility".
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


def judge_rocm(library: Library) -> Verdict:
    """Compares what the library was compiled for with the AMD GPUs of this host."""
    found = sorted(set(hosts.amd_architectures()))
    built = ", ".join(library.architectures)
    if not found:
        return _no("no AMD GPU")
    if not set(found) & set(library.architectures):
        return _no(f"no code for this host's {', '.join(found)}: compiled for {built}")
    return Verdict(True, f"{', '.join(found)} found, compiled for {built} with HIP {library.toolkit}")
