"""What a result is worthless without: the machine, the versions and the settings it was measured with."""

import dataclasses
import datetime
import hashlib
import platform as host
import subprocess
from pathlib import Path
from typing import Any

import torch

import multikv
from multikv import offload, platforms
from multikv.demo import cases as workloads
from multikv.demo import timing


def describe(device: torch.device) -> dict[str, Any]:
    about: dict[str, Any] = {
        "date_utc": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "multikv": getattr(multikv, "__version__", "unknown"),
        "git_revision": _output("git", "describe", "--always", "--dirty"),
        "csrc_sha256": _sources(),
        "torch": torch.__version__,
        "python": host.python_version(),
        "platform": platforms.platform(),
        "platform_report": platforms.report().splitlines(),
        "device": device.type,
        "cpu": workloads.device_name(torch.device("cpu")),
        "cpu_isa": platforms.cpu_isa(),
        "torch_threads": torch.get_num_threads(),
        "last_level_cache_bytes": workloads.last_level_cache_bytes(device),
        "copy": workloads.copy_description(device),
    }
    if device.type == "cuda":
        about |= {
            "gpu": workloads.device_name(device),
            "cuda": torch.version.cuda,
            "hip": torch.version.hip,
            "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
            # The yardstick of host_us: an op of PyTorch that does next to nothing.
            "neg_host_us": timing.host_time(torch.zeros(1, device=device).neg_, device) * 1e6,
            "swap_costs": _swap_costs(device),
        }
    return about


def _swap_costs(device: torch.device) -> dict[str, Any] | None:
    try:
        return {name: dataclasses.asdict(costs) for name, costs in offload.calibrate_swaps(device).items()}
    except RuntimeError:  # no memory for that, or a GPU that is not served, which the cases will say
        return None


def _sources() -> str:
    """What was measured, also where it was copied without its history: `csrc`, file by file in order of their names."""
    root = Path(__file__).parents[1] / "csrc"
    digest = hashlib.sha256()
    for path in sorted(file for file in root.rglob("*") if file.is_file()):
        digest.update(f"{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def _output(*command: str) -> str | None:
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True, cwd=Path(__file__).parent)
    except (OSError, subprocess.SubprocessError):
        return None
    return next(iter(run.stdout.splitlines()), None)  # several GPUs: all have one driver
