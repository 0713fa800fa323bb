"""Which GPUs this host has, found without touching CUDA or HIP: a process that forks later must still be able to."""

import ctypes
from pathlib import Path


def nvidia_driver_cuda_version() -> tuple[int, int] | None:
    """The newest CUDA that the NVIDIA driver supports, as (major, minor); None without a driver."""
    version = ctypes.c_int()
    nvml = _nvml()
    if nvml is None or nvml.nvmlSystemGetCudaDriverVersion(ctypes.byref(version)) != 0:
        return None
    return version.value // 1000, version.value % 1000 // 10


def nvidia_compute_capabilities() -> list[tuple[int, int]] | None:
    """(major, minor) of every NVIDIA GPU; None where NVML cannot tell."""
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
    """Whether a driver shows a GPU: a discrete one, one of a system on chip, or one of a Windows host."""
    return any(Path(f"/dev/{name}").exists() for name in ("nvidiactl", "nvhost-gpu", "nvgpu", "dxg"))


def _nvml() -> ctypes.CDLL | None:
    """NVIDIA's management library, initialised; None without it."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    return nvml if nvml.nvmlInit_v2() == 0 else None


def amd_architectures(topology: Path = Path("/sys/class/kfd/kfd/topology/nodes")) -> list[str]:
    """Names such as gfx90a of every AMD GPU, from the kernel driver's topology (gfx_target_version, e.g. 90010)."""
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
