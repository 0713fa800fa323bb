"""Which devices the tests run on, which markers they carry, and how random they are.

MULTIKV_TEST_DEVICES is a comma-separated list of `cpu` (once per instruction set of this host) and `cuda` (also what
ROCm's devices are called); by default `cpu`, and `cuda` where there is one. A device that is named and missing fails
the run: a test that is skipped everywhere finds nothing. `wave64` or `wave32` alone is the emulated AMD GPU of
tests/support/emulation.py.

The folders slow/, gpu/ and hip/ give their tests the marker of that name; a test that asks for the fixture `gpu`, or
that runs on the device `cuda`, has the marker gpu.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
import torch

from multikv import platforms
from tests.support import devices, emulation

hypothesis.settings.register_profile(
    "multikv",
    deadline=None,
    database=None,
    max_examples=40,
    print_blob=True,
    # The fixtures that tests use hold for all examples alike.
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture, hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("multikv")

FOLDERS_OF_MARKERS = ("slow", "gpu", "hip")


def pytest_configure(config: pytest.Config) -> None:
    try:
        names = devices.device_names()
        if devices.is_emulated():
            emulation.load(names[0])
    except ValueError as error:
        raise pytest.UsageError(str(error)) from None


def pytest_report_header() -> list[str]:
    return [f"multikv devices: {', '.join(devices.device_names())}", *platforms.report().splitlines()]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if lines := devices.untested():
        terminalreporter.section("untested kernels")
        for line in lines:
            terminalreporter.line(line)


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        folders = item.path.relative_to(Path(__file__).parent).parts[:-1]
        for marker in FOLDERS_OF_MARKERS:
            if marker in folders or (marker == "gpu" and "gpu" in getattr(item, "fixturenames", ())):
                item.add_marker(marker)
        if devices.is_emulated():
            emulation.mark(item)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    names = devices.device_names()
    if "device" in metafunc.fixturenames:
        metafunc.parametrize("device", [_marked(name) for name in names], indirect=True)
    if "device_type" in metafunc.fixturenames:
        metafunc.parametrize("device_type", [_marked(x) for x in dict.fromkeys(n.partition("-")[0] for n in names)])


def _marked(device: str) -> object:
    return pytest.param(device, marks=pytest.mark.gpu) if device == "cuda" else device


@pytest.fixture
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """The device of the test's tensors; for a CPU, its kernels are those of the instruction set in the test's id."""
    kind, _, isa = request.param.partition("-")
    if kind == "cuda":
        yield torch.device("cuda", torch.cuda.current_device())
        return
    if kind in emulation.WAVE_SIZES:
        yield torch.device("cpu")
        return
    before = platforms.cpu_isa()
    platforms.set_cpu_isa(isa)
    yield torch.device("cpu")
    platforms.set_cpu_isa(before)


@pytest.fixture(autouse=True)
def seed() -> None:
    """Seeds as torch.manual_seed does, which formats a stack trace for each kind of device that the host lacks."""
    torch.default_generator.manual_seed(0)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(0)


@pytest.fixture
def check_indices() -> Iterator[Callable[[bool], None]]:
    """Turns the index checks of a GPU on and off; a CPU always checks."""
    yield platforms.set_check_indices
    platforms.set_check_indices(os.environ.get("MULTIKV_CHECK_INDICES") == "1")


@pytest.fixture
def swap_strategy() -> Iterator[Callable[[str], None]]:
    """Sets what copies the blocks of swaps on a GPU."""
    before = platforms.swap_strategy()
    yield platforms.set_swap_strategy
    platforms.set_swap_strategy(before)


@pytest.fixture
def any_device(device_type: str) -> torch.device:
    """CPU and GPU once each, for what does not depend on the instruction set."""
    return torch.device("cuda", torch.cuda.current_device()) if device_type == "cuda" else torch.device("cpu")


@pytest.fixture
def gpu() -> torch.device:
    """For what only a GPU has: streams, graphs, a memory of its own."""
    if "cuda" not in devices.device_names():
        pytest.skip("needs a GPU")
    return torch.device("cuda", torch.cuda.current_device())
