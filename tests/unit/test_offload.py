"""Memory for blocks that leave a GPU, and the choice of what copies them."""

from __future__ import annotations

import gc

import numpy
import pytest
import torch

import multikv
from multikv import offload, platforms
from multikv.offload.calibration import first_that_is_enough
from tests.support.processes import import_error, output_of

SHAPES = [
    (3, 4),
    (7,),
    5,
    (0, 3),
    (),
    [3, 4],
    torch.Size((3, 4)),
    (numpy.int64(3), numpy.uint8(4)),
    (torch.tensor(3), 4),
    numpy.array([3, 4]),
    torch.tensor([3, 4]),
    numpy.int32(5),
    numpy.array(5),
    torch.tensor(5),
    range(2, 4),
]


@pytest.mark.parametrize("shape", SHAPES, ids=repr)
def test_empty_pinned(shape):
    for dtype in (torch.bfloat16, torch.uint8, torch.int64):
        x = multikv.empty_pinned(shape, dtype)
        sizes = (shape,) if numpy.ndim(shape) == 0 else shape
        assert x.shape == torch.Size([int(size) for size in sizes]) and x.dtype == dtype and x.device.type == "cpu"
        assert x.is_contiguous()
        x.fill_(1)
        assert x.sum() == x.numel()


@pytest.mark.parametrize("shape", [2.5, (3, 2.5), "3", None, torch.tensor(2.5), (3, None)], ids=repr)
def test_what_is_no_shape(shape):
    with pytest.raises(TypeError) as caught:
        multikv.empty_pinned(shape)
    expected = "empty_pinned: shape: expected an integer or a sequence of integers, got "
    assert str(caught.value) == expected + repr(shape)


@pytest.mark.parametrize("shape", [-1, (-1,), (3, -2), (0, -1)], ids=str)
def test_a_negative_size(shape):
    with pytest.raises(ValueError) as caught:
        multikv.empty_pinned(shape)
    sizes = [shape] if isinstance(shape, int) else list(shape)
    assert str(caught.value) == f"empty_pinned: shape: expected sizes of at least 0, got {sizes}"


def test_more_bytes_than_have_a_number():
    with pytest.raises(ValueError) as caught:
        multikv.empty_pinned((2**31, 2**31), torch.int32)
    assert str(caught.value) == f"empty_pinned: shape: expected at most {2**63 - 1} bytes, got {2**64}"


def test_empty_pinned_is_pinned_as_long_as_it_is_used(gpu):
    x = multikv.empty_pinned((4, 1 << 20))
    assert x.is_pinned() and x.data_ptr() % 4096 == 0
    view = x[2:].view(torch.int32)
    view.random_()
    expected = view.clone()
    del x
    gc.collect()
    assert view.is_pinned() and torch.equal(view, expected)
    assert torch.equal(view.to(gpu, non_blocking=True).cpu(), expected)


def test_empty_pinned_takes_no_more_than_it_says_and_gives_it_back(gpu):
    def free():
        with open("/proc/meminfo") as file:
            return {line.split(":")[0]: int(line.split()[1]) >> 10 for line in file}["MemAvailable"]

    taken, kept = [], []
    for _ in range(3):  # other processes take and give memory too
        before = free()
        x = multikv.empty_pinned((1 << 30) + 1)  # torch would take 2 GiB
        taken.append(before - free())
        del x
        gc.collect()
        kept.append(before - free())
    assert min(taken) < 1500
    assert min(kept) < 500


def test_too_much_memory_is_an_error(gpu):
    with pytest.raises(RuntimeError, match=r"^empty_pinned: \d+ bytes: "):
        multikv.empty_pinned(1 << 50)


def test_calibration(gpu, swap_strategy):
    swap_strategy("copy_engine")
    costs = multikv.calibrate_swaps()
    assert platforms.swap_strategy() == "copy_engine"
    assert costs == offload.swap_costs(gpu) == offload.swap_costs()
    for cost in costs.values():
        assert cost.copy_gb_per_s > 1 and cost.kernel_gb_per_s > 1 and cost.kernel_threads >= 256
        assert 4096 < cost.in_batches <= cost.one_by_one


@pytest.mark.parametrize(
    "times, chosen",
    [
        ([(4.0, 8.0), (2.03, 4.0), (2.01, 4.0), (2.0, 4.0)], 1),  # within 2% of the best
        ([(2.0, 8.0), (2.01, 4.05), (2.0, 4.0)], 1),  # in both columns
        ([(2.0, 4.4), (2.3, 4.0), (2.0, 4.8)], 0),  # no row is: the nearest
    ],
)
def test_fewest_threads(times, chosen):
    assert first_that_is_enough(times) == chosen


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_nothing_to_calibrate():
    for function in (multikv.calibrate_swaps, offload.swap_costs):
        expected = f"^{function.__name__}: no multikv library serves a GPU on this host\ncpu: loaded"
        with pytest.raises(RuntimeError, match=expected):
            function()


def test_calibration_of_a_cpu(gpu):
    with pytest.raises(ValueError, match="^calibrate_swaps: device: expected a GPU, got cpu$"):
        multikv.calibrate_swaps("cpu")


def test_strategy(swap_strategy):
    for name in ("kernel", "copy_engine", "auto"):
        swap_strategy(name)
        assert platforms.swap_strategy() == name
    with pytest.raises(ValueError) as caught:
        platforms.set_swap_strategy("magic")
    assert str(caught.value) == "swap strategy: expected one of auto, copy_engine, kernel, got 'magic'"
    assert platforms.swap_strategy() == "auto"


def test_strategy_from_the_environment():
    script = "from multikv import platforms; print(platforms.swap_strategy())"
    assert output_of(script, MULTIKV_SWAP="kernel") == "kernel"


def test_bad_strategy_in_the_environment():
    expected = "MULTIKV_SWAP: expected one of auto, copy_engine, kernel, got 'fast'"
    assert import_error(MULTIKV_SWAP="fast") == expected
