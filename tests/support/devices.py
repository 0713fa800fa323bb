"""Which devices the tests run on, and what of this host's kernels they cannot reach."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from multikv import platforms
from tests.support import emulation


def _names(wanted: str) -> list[str]:
    return [name.strip() for name in wanted.split(",") if name.strip()]


def serves_gpu() -> bool:
    """ROCm tensors are on PyTorch's device "cuda" too."""
    return platforms.platform() in ("cuda", "rocm")


def device_names() -> list[str]:
    """The values of the `device` fixture: each instruction set of this CPU, and the GPU. See MULTIKV_TEST_DEVICES."""
    default = "cpu,cuda" if torch.cuda.is_available() else "cpu"
    wanted, names = _names(os.environ.get("MULTIKV_TEST_DEVICES") or default), []
    if len(wanted) == 1 and wanted[0] in emulation.WAVE_SIZES:
        return wanted
    for name in wanted:
        if name == "cpu":
            names += [f"cpu-{isa}" for isa in platforms.cpu_isas()]
        elif name == "cuda":
            names.append("cuda")
        else:
            raise ValueError(f"MULTIKV_TEST_DEVICES: expected cpu or cuda, or wave32 or wave64 alone, got {name!r}")
    if not names:
        raise ValueError("MULTIKV_TEST_DEVICES: expected at least one of cpu and cuda")
    if "cuda" in names and not torch.cuda.is_available():
        raise ValueError("MULTIKV_TEST_DEVICES names cuda, but PyTorch sees no GPU")
    if "cuda" in names and not serves_gpu():
        raise ValueError(f"cannot test on cuda: no library serves it\n{platforms.report()}")
    return names


def is_emulated() -> bool:
    """Whether this process gives all CPU tensors to the emulated GPU."""
    return device_names()[0] in emulation.WAVE_SIZES


def untested() -> list[str]:
    """A line for each group of kernels that a run on these devices does not reach."""
    names, lines = device_names(), []
    if is_emulated():
        count = emulation.launches()
        return [f"{names[0]}: emulated HIP kernels, in {count} launches; no other kernels were tested"]
    for isa in platforms.libraries()[0].architectures:
        if f"cpu-{isa}" not in names:
            lacking = isa not in platforms.cpu_isas()
            reason = f"this CPU lacks {isa}" if lacking else "cpu is not in MULTIKV_TEST_DEVICES"
            lines.append(f"{reason}: the {isa} kernels went untested")
    tested = None if "cuda" not in names else "HIP" if torch.version.hip else "CUDA"
    for kernels, vendor in (("CUDA", "NVIDIA"), ("HIP", "AMD")):
        if kernels != tested:
            left_out = tested is None and torch.cuda.is_available()
            reason = "cuda is not in MULTIKV_TEST_DEVICES" if left_out else f"no {vendor} GPU"
            lines.append(f"{reason}: the {kernels} kernels went untested")
    return lines


def e4m3_of_bytes(device: torch.device) -> str:
    """The format that a uint8 cache has under the name fp8: fnuz on gfx940-gfx942."""
    if device.type == "cuda" and torch.version.hip:
        architecture = torch.cuda.get_device_properties(device).gcnArchName.split(":")[0]
        if architecture in ("gfx940", "gfx941", "gfx942"):
            return "e4m3fnuz"
    return "e4m3fn"


def last_level_cache_bytes() -> int:
    """Size of the CPU's last-level cache, at least 32 MiB. An op that writes more than that stores past the cache."""
    try:
        kilobytes = Path("/sys/devices/system/cpu/cpu0/cache/index3/size").read_text().strip().removesuffix("K")
    except OSError:
        kilobytes = "0"
    return max(int(kilobytes), 32 << 10) << 10
