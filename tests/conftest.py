"""Which devices the tests run on, and how random they are.

MULTIKV_TEST_DEVICES is a comma-separated list of `cpu` (once per instruction set of this host) and `cuda` (also what
ROCm's devices are called); by default `cpu`, and `cuda` where there is one. A device that is named and missing fails
the run: a test that is skipped everywhere finds nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import hypothesis
import pytest
import torch

import helpers
from multikv import platforms

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


def pytest_configure(config: pytest.Config) -> None:
    try:
        helpers.device_names()
    except ValueError as error:
        raise pytest.UsageError(str(error)) from None


def pytest_report_header() -> list[str]:
    return [f"multikv devices: {', '.join(helpers.device_names())}", *platforms.report().splitlines()]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "device" in metafunc.fixturenames:
        metafunc.parametrize("device", helpers.device_names(), indirect=True)
    if "device_type" in metafunc.fixturenames:
        types = dict.fromkeys(name.partition("-")[0] for name in helpers.device_names())
        metafunc.parametrize("device_type", types)


@pytest.fixture
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """The device of the test's tensors; for a CPU, its kernels are those of the instruction set in the test's id."""
    kind, _, isa = request.param.partition("-")
    if kind == "cuda":
        yield torch.device("cuda", torch.cuda.current_device())
        return
    before = platforms.cpu_isa()
    platforms.set_cpu_isa(isa)
    yield torch.device("cpu")
    platforms.set_cpu_isa(before)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


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
    if "cuda" not in helpers.device_names():
        pytest.skip("needs a GPU")
    return torch.device("cuda", torch.cuda.current_device())
