"""Arguments of a wrong kind, which PyTorch's dispatcher rejects before any kernel runs. Every op explains them."""

from __future__ import annotations

import warnings

import numpy
import pytest
import torch

import multikv
from tests.support.arguments import copy_of, tensors_of
from tests.support.calls import ONE_OF_EACH
from tests.support.comparison import assert_same_bytes

NOT_TENSORS = [
    ([1, 2], "a list"),
    ((1, 2), "a tuple"),
    (numpy.zeros(3), "a NumPy array"),
    (0.5, "a float"),
    (3, "an int"),
    ("auto", "a str"),
    (torch.float16, "torch.float16 (a torch.dtype)"),
]
NOT_NUMBERS = [("1", "a str"), ([1], "a list"), (None, "None")]
BAD = {  # kind in the schema -> what is expected, and other objects with the words for them
    "Tensor": ("a tensor", NOT_TENSORS),
    "Optional[Tensor]": ("a tensor", NOT_TENSORS),
    "List[Tensor]": ("a list of tensors", [(numpy.zeros(3), "a NumPy array"), (None, "None"), (0.5, "a float")]),
    "List[int]": ("a list of integers", [(None, "None"), ("16", "a str"), ([0.5], "a list")]),
    "Optional[List[int]]": ("a list of integers", [("16", "a str"), ([0.5], "a list")]),
    "str": ("a string", [(torch.float16, "torch.float16 (a torch.dtype)"), (1, "an int"), (None, "None")]),
    "int": ("a 64-bit integer", [(1.5, "a float"), (2**64, str(2**64)), *NOT_NUMBERS]),
    "Optional[int]": ("a 64-bit integer", [(1.5, "a float"), (2**64, str(2**64)), *NOT_NUMBERS[:-1]]),
    "float": ("a number", NOT_NUMBERS),
    "bool": ("True or False", [("yes", "a str"), ([True], "a list")]),
}


def fails(call, op, wrong, expected):
    before = copy_of(call, None)
    with pytest.raises(Exception) as caught:
        getattr(multikv, op)(**call | wrong)
    assert (type(caught.value), str(caught.value)) == expected
    assert caught.value.__context__ is None or caught.value.__suppress_context__  # else the traceback shows both
    assert_same_bytes(call, before)


@pytest.mark.parametrize("op", ONE_OF_EACH)
def test_wrong_kind(any_device, op):
    call = ONE_OF_EACH[op].arguments(any_device)
    for argument in getattr(torch.ops.multikv, op).default._schema.arguments:
        expected, others = BAD[str(argument.type)]
        for other, got in others:
            text = f"{op}: {argument.name}: expected {expected}, got {got}"
            fails(call, op, {argument.name: other}, (TypeError, text))


def test_wrong_item_of_a_list(any_device):
    call = ONE_OF_EACH["swap_blocks_layers"].arguments(any_device)
    text = "swap_blocks_layers: src[1]: expected a tensor, got a list"
    fails(call, "swap_blocks_layers", {"src": [call["src"][0], [1]]}, (TypeError, text))


def test_no_tensors():
    with pytest.raises(RuntimeError, match=r"^swap_blocks_layers: expected at least one tensor, got none$"):
        torch.ops.multikv.swap_blocks_layers([], [], 1, None)


def not_dense(x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Tensors that are not plain memory with strides, and the words for them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch calls some of them experimental
        values = torch.ones(4, 4, device=x.device)
        found = {
            "layout sparse_coo": values.to_sparse(),
            "layout sparse_csr": values.to_sparse_csr(),
            "a nested tensor": torch.nested.nested_tensor([values, values]),
        }
        if not x.is_cuda:
            found["layout _mkldnn"] = values.to_mkldnn()
            quantised = torch.quantize_per_tensor(values, 0.1, 0, torch.quint8)
            found["a quantised tensor of dtype quint8"] = quantised
    return found


@pytest.mark.parametrize("op", ONE_OF_EACH)
def test_tensors_that_are_not_dense(any_device, op):
    call = ONE_OF_EACH[op].arguments(any_device)
    for name in [name for name, x in call.items() if isinstance(x, torch.Tensor)]:
        for got, tensor in not_dense(call[name]).items():
            text = f"{op}: {name}: expected a dense tensor (strided layout), got {got}"
            fails(call, op, {name: tensor}, (RuntimeError, text))
            if not tensor.is_nested:  # in torch.ops.multikv, PyTorch itself refuses nested tensors
                with pytest.raises(RuntimeError) as caught:
                    getattr(torch.ops.multikv, op)(**call | {name: tensor})
                assert str(caught.value) == text


@pytest.mark.parametrize("dtype", [torch.complex32, torch.complex64, torch.complex128], ids=str)
def test_complex_tensors(any_device, dtype):
    call = ONE_OF_EACH["reshape_and_cache_flash"].arguments(any_device)
    name = str(dtype).removeprefix("torch.")
    text = f"reshape_and_cache_flash: key: expected dtype float32, float16 or bfloat16, got {name}"
    key = torch.zeros(call["key"].shape, dtype=dtype, device=any_device)
    fails(call, "reshape_and_cache_flash", {"key": key}, (RuntimeError, text))


@pytest.mark.parametrize("op", ONE_OF_EACH)
def test_missing_arguments(op):
    with pytest.raises(TypeError, match=rf"^{op}\(\) missing"):
        getattr(multikv, op)(*list(tensors_of(ONE_OF_EACH[op].arguments()).values())[:1])
