"""Finds the GPUs of this host without calls of CUDA or HIP.

After such a call, the children that a process forks cannot use a GPU, and importing multikv must not cause that.
"""

import ctypes
from pathlib import Path


def nvidia_driver_cuda_version() -> tuple[int, int] | None:
    """Returns the newest CUDA version that the NVIDIA driver supports, as (major, minor); None without a driver."""
    version = ctypes.c_int()
    nvml = _nvml()
    if nvml is None or nvml.nvmlSystemGetCudaDriverVersion(ctypes.byref(version)) != 0:
        return None
    return version.value // 1000, version.value % 1000 // 10


def nvidia_compute_capabilities() -> list[tuple[int, int]] | None:
    """Returns (major, minor) of every NVIDIA GPU; None if NVML, the management library, is missing or fails."""
    nvml = _nvml()
    count = ctypes.c_uint()
    if nvml is None or nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0:
        return None
    capabilities = []
    for index in range(count.value):
        device, major, minor = ctypes.c_void_p(), ctypes.c_int(), ctypes.c_int()
        if nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(device)) == 0:
            nvml.nvmlDeviceGetCudaComputeCapability(device, ctypes.byref(major), ctypes.byref(minor))
            capabilities.append((major.value, minor.value))
    return capabilities


def has_nvidia_device() -> bool:
    """Returns whether there is a device file of a discrete GPU, of a system on chip, or of a GPU under WSL."""
    return any(Path(f"/dev/{name}").exists() for name in ("nvidiactl", "nvhost-gpu", "nvgpu", "dxg"))


def _nvml() -> ctypes.CDLL | None:
    """Returns NVML, NVIDIA's management library, initialised; None if it is missing or fails."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    return nvml if nvml.nvmlInit_v2() == 0 else None


def amd_architectures(topology: Path = Path("/sys/class/kfd/kfd/topology/nodes")) -> list[str]:
    """Returns the name of every AMD GPU, such as gfx90a.

    Args:
        topology: directory in which the kernel driver describes GPUs and CPUs. gfx_target_version 90010 means gfx90a.
    """
    names = []
    for properties in sorted(topology.glob("*/properties")):
        try:
            fields = dict(line.split(maxsplit=1) for line in properties.read_text().splitlines() if " " in line)
            version = int(fields.get("gfx_target_version", 0))
        except (OSError, ValueError):
            continue
        if version:  # 0: a CPU node
            names.append(f"gfx{version // 10000}{version // 100 % 100:x}{version % 100:x}")
    return names
