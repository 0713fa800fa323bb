"""The comparison that all other tests rest on."""

from __future__ import annotations

import pytest
import torch

from tests.support.arguments import copy_of
from tests.support.comparison import assert_same_bytes
from tests.support.tensors import embed

NANS = torch.tensor([0x7FC0, 0x7F81, -1], dtype=torch.int16).view(torch.bfloat16)


def two_calls():
    x = embed((4, 3), torch.bfloat16, padding=(0, 2), offset=1)
    x.copy_(torch.arange(12).reshape(4, 3))
    x[1, 2] = NANS[0]
    call = {"x": x, "n": 3}
    return call, copy_of(call)


def test_any_other_byte_is_seen():
    call, other = two_calls()
    assert_same_bytes(call, other)
    for at in (-1, 13, 15):  # before the tensor, in its padding, in an element
        call, other = two_calls()
        bytes = other["x"].untyped_storage()
        bytes[2 * (other["x"].storage_offset() + at)] ^= 1
        for nan_outputs in ((), ("x",)):
            with pytest.raises(AssertionError, match="x: 1 of "):
                assert_same_bytes(call, other, nan_outputs)


@pytest.mark.parametrize("nan", [1, 2])
def test_a_nan_is_as_good_as_another_only_where_that_is_said(nan):
    call, other = two_calls()
    other["x"][1, 2] = NANS[nan]
    assert_same_bytes(call, other, ("x",))
    for nan_outputs in ((), ("y",)):
        with pytest.raises(AssertionError):
            assert_same_bytes(call, other, nan_outputs)


def test_a_nan_is_no_number():
    for value in (3, float("inf")):
        call, other = two_calls()
        other["x"][1, 2] = value
        for pair in ((call, other), (other, call)):
            with pytest.raises(AssertionError):
                assert_same_bytes(*pair, ("x",))


def test_a_nan_around_the_tensor_is_not_free():
    call, other = two_calls()
    for which, nan in ((call, NANS[0]), (other, NANS[1])):
        x = which["x"]
        x.as_strided((1,), (1,), x.storage_offset() + 3).copy_(nan)  # padding
    with pytest.raises(AssertionError):
        assert_same_bytes(call, other, ("x",))
