"""Decides whether a GPU library serves this host, and says why."""

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
    """Decides whether a GPU library serves this host.

    The library serves the host if torch is built for the same platform, the file exists, its manifest agrees with the
    CPU library, the NVIDIA driver is not too old for it, and it has code for a GPU of this host. If there is an NVIDIA
    GPU but NVML cannot identify it, the driver and the code are not checked.

    Args:
        library: as `libraries.describe` returns it.
        build_id: build id of the CPU library, which the manifest must repeat.
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
    """Returns why a GPU library cannot be used with the CPU library of this build id; empty if it can."""
    if not library.architectures:
        return f"its manifest, multikv_{library.name}.json, is missing"
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
        return Verdict(True, f"compiled for {built}; NVML is missing or fails, so the GPUs of this host are unknown")
    if not capabilities:
        return _no("no NVIDIA GPU")
    if driver is not None and driver[0] < int(library.toolkit.split(".")[0]):
        return _no(f"the driver supports CUDA {driver[0]}.{driver[1]}, the library was built with {library.toolkit}")
    found = ", ".join(sorted({f"sm_{major}{minor}" for major, minor in capabilities}))
    if not any(has_code_for(library.architectures, capability) for capability in capabilities):
        return _no(f"no code for this host's {found}: compiled for {built}")
    return Verdict(True, f"{found} found, compiled for {built} with CUDA {library.toolkit}")


def has_code_for(architectures: list[str], capability: tuple[int, int]) -> bool:
    """Returns whether code for one of the architectures runs on a GPU of this compute capability.

    Machine code runs on GPUs of the same major version and the same or a later minor version. The driver compiles PTX
    (suffix "+PTX") for GPUs of the same or any later version. Code for an architecture with the suffix "a" (90a) runs
    on GPUs of exactly that version, and code for one with the suffix "f" (100f) on GPUs of the same major version and
    the same or a later minor version; both rules hold for machine code and for PTX. Source: CUDA C++ Programming Guide,
    "Binary Compatibility" and "PTX Compatibility".
    """
    for architecture in architectures:
        name = architecture.removesuffix("+PTX")
        major, minor = divmod(int(name.rstrip("af")), 10)
        is_later_minor = major == capability[0] and minor <= capability[1]
        is_any_later = architecture.endswith("+PTX") and (major, minor) <= capability
        if name.endswith("a"):
            runs = (major, minor) == capability
        elif name.endswith("f"):
            runs = is_later_minor
        else:
            runs = is_later_minor or is_any_later
        if runs:
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
