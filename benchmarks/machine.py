"""Describes the machine, the versions and the settings of a measurement."""

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
from multikv.demo import cases, timing


def describe(device: torch.device) -> dict[str, Any]:
    about: dict[str, Any] = {
        "date_utc": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "multikv": multikv.__version__,
        "git_revision": _output("git", "describe", "--always", "--dirty"),
        "csrc_sha256": _sources(),
        "torch": torch.__version__,
        "python": host.python_version(),
        "platform": platforms.platform(),
        "platform_report": platforms.report().splitlines(),
        "device": device.type,
        "cpu": cases.device_name(torch.device("cpu")),
        "cpu_isa": platforms.cpu_isa(),
        "torch_threads": torch.get_num_threads(),
        "last_level_cache_bytes": cases.last_level_cache_bytes(device),
        "copy": cases.copy_description(device),
    }
    if device.type == "cuda":
        about |= {
            "gpu": cases.device_name(device),
            "cuda": torch.version.cuda,
            "hip": torch.version.hip,
            "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
            # The host time of a PyTorch op on one element, to compare host_us with.
            "neg_host_us": timing.host_time(torch.zeros(1, device=device).neg_, device) * 1e6,
            "swap_costs": _swap_costs(device),
        }
    return about


def _swap_costs(device: torch.device) -> dict[str, Any] | None:
    try:
        return {name: dataclasses.asdict(costs) for name, costs in offload.calibrate_swaps(device).items()}
    except RuntimeError:  # not enough memory, or no library serves the GPU, which every case will report
        return None


def _sources() -> str:
    """Returns a digest of the files of `csrc`, which identifies the code even in a copy without its git history."""
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
    return next(iter(run.stdout.splitlines()), None)  # nvidia-smi prints the same driver version for each GPU
