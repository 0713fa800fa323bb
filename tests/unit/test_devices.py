"""What the summary of a run says of kernels that went untested."""

from __future__ import annotations

import pytest
import torch

from multikv import platforms
from tests.support import devices

ISAS = platforms.libraries()[0].architectures


def lines(monkeypatch, *, names, isas, gpu=False, hip=None):
    monkeypatch.setattr(devices, "device_names", lambda: list(names))
    monkeypatch.setattr(platforms, "cpu_isas", lambda: tuple(isas))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.version, "hip", hip)
    return devices.untested()


def test_this_cpu_and_no_gpu(monkeypatch):
    assert ISAS == ["baseline", "avx2", "avx512"]
    assert lines(monkeypatch, names=["cpu-baseline"], isas=["baseline"]) == [
        "this CPU lacks avx2: the avx2 kernels went untested",
        "this CPU lacks avx512: the avx512 kernels went untested",
        "no NVIDIA GPU: the CUDA kernels went untested",
        "no AMD GPU: the HIP kernels went untested",
    ]


def test_devices_that_were_left_out(monkeypatch):
    assert lines(monkeypatch, names=["cuda"], isas=ISAS, gpu=True) == [
        *(f"cpu is not in MULTIKV_TEST_DEVICES: the {isa} kernels went untested" for isa in ISAS),
        "no AMD GPU: the HIP kernels went untested",
    ]
    left_out = lines(monkeypatch, names=[f"cpu-{isa}" for isa in ISAS], isas=ISAS, gpu=True)
    assert left_out[0] == "cuda is not in MULTIKV_TEST_DEVICES: the CUDA kernels went untested"


@pytest.mark.parametrize("hip, other", [(None, "no AMD GPU: the HIP"), ("6.2", "no NVIDIA GPU: the CUDA")])
def test_a_gpu(monkeypatch, hip, other):
    names = [*(f"cpu-{isa}" for isa in ISAS), "cuda"]
    assert lines(monkeypatch, names=names, isas=ISAS, gpu=True, hip=hip) == [f"{other} kernels went untested"]
