"""rms_norm against the reference."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.support.calls.norm_rope import norm_arguments
from tests.support.comparison import check, run
from tests.support.parameters import FLOATS, short

OP = "rms_norm"


def check_norm(device, nan_outputs=("out",), **options):
    check(OP, norm_arguments(device, **options), nan_outputs=nan_outputs)


@pytest.mark.parametrize("weight_dtype", ["same", "float32", "none"])
@pytest.mark.parametrize("dtype", FLOATS, ids=short)
def test_dtypes(device, dtype, weight_dtype):
    options = {"weight_dtype": torch.float32 if weight_dtype == "float32" else dtype, "weights": weight_dtype != "none"}
    for weight_bias in (0.0, 1.0, -0.3):
        check_norm(device, dtype=dtype, weight_bias=weight_bias, **options)
    check_norm(device, dtype=dtype, extreme=True, shape=(40, 64), **options)


@pytest.mark.parametrize("dtype", FLOATS, ids=short)
@pytest.mark.parametrize(
    "size", [1, 2, 3, 7, 8, 9, 64, 96, 100, 127, 128, 129, 255, 256, 257, 576, 1000, 1024, 2048, 4095, 4096, 4097, 9000]
)
def test_sizes(device, size, dtype):
    check_norm(device, shape=(5, size), dtype=dtype)


def test_very_long_rows(device):
    """Many pieces, whose sums form a tree with missing branches."""
    for size in (4096 * 5 + 8, 4096 * 8):
        check_norm(device, shape=(6, size), dtype=torch.float32)


@pytest.mark.parametrize("out_options", [{}, {"padding": (0, 64)}, {"offset": 8}], ids=str)
@pytest.mark.parametrize("shape", [(300, 4096), (9001, 128), (5, 250_000)], ids=short)
def test_more_than_the_cpu_cache_holds(device, shape, out_options):
    """The output is written with streaming stores."""
    check_norm(device, shape=shape, out_options=out_options)


@pytest.mark.parametrize("shape", [(64,), (1, 64), (3, 4, 5, 2, 64), (2,) * 8 + (16,), (0, 64), (4, 0)], ids=short)
def test_ranks(device, shape):
    check_norm(device, shape=shape)


@pytest.mark.parametrize("out_options", [{}, {"padding": (0, 2, 3)}, {"order": (1, 0, 2)}, {"offset": 1}], ids=str)
@pytest.mark.parametrize(
    "input_options", [{}, {"padding": (1, 0, 8)}, {"order": (1, 0, 2)}, {"offset": 8}, {"offset": 3}], ids=str
)
def test_strides(device, input_options, out_options):
    for size in (64, 600):
        check_norm(device, shape=(5, 3, size), input_options=input_options, out_options=out_options)


@pytest.mark.parametrize("shape", [(9, 64), (3, 5000), (7, 3, 33)], ids=short)
@pytest.mark.parametrize("dtype", FLOATS, ids=short)
def test_in_place(device, dtype, shape):
    check_norm(device, ("out", "input"), dtype=dtype, shape=shape, in_place=True)


@pytest.mark.parametrize("eps", [0.0, 1e-45, 1e-12, 1.0, 3e38, float("inf")])
@pytest.mark.parametrize("power", [-100, -60, 0, 40, 80])
def test_numbers_of_any_size(device, power, eps):
    """Squares that are subnormal, zero, or infinite."""
    call = norm_arguments(device, dtype=torch.float32, shape=(20, 96), eps=eps)
    call["input"].mul_(2.0**power)
    call["input"][3] = 0
    check(OP, call, nan_outputs=("out",))


def test_is_the_norm(device):
    x = torch.randn(20, 96, device=device)
    out = torch.empty_like(x)
    run(OP, {"out": out, "input": x, "weight": None, "eps": 1e-6})
    assert torch.allclose(out, torch.nn.functional.rms_norm(x, (96,), eps=1e-6), rtol=1e-6)


@st.composite
def calls(draw):
    shape = (*draw(st.lists(st.integers(0, 5), max_size=3)), draw(st.integers(1, 700)))
    order = (*draw(st.permutations(range(len(shape) - 1))), len(shape) - 1)
    padding = [draw(st.integers(0, 9)) for _ in shape]
    return {
        "shape": shape,
        "dtype": draw(st.sampled_from(FLOATS)),
        "weights": draw(st.booleans()),
        "weight_bias": draw(st.sampled_from([0.0, 1.0])),
        "input_options": {"order": order, "offset": draw(st.integers(0, 8))},
        "out_options": {"padding": padding, "offset": draw(st.integers(0, 8))},
        "extreme": draw(st.booleans()),
    }


@given(options=calls(), seed=st.integers(0, 2**32))
def test_any_call(device, options, seed):
    torch.manual_seed(seed)
    check_norm(device, **options)
