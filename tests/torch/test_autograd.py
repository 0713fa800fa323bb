"""The ops and autograd: an op bumps the versions of what it writes, and writes nothing whose gradient is recorded."""

from __future__ import annotations

import itertools

import pytest
import torch

import multikv
from multikv import reference
from tests.support.arguments import Arguments, copy_of, tensors_of, written_by
from tests.support.calls import ONE_OF_EACH
from tests.support.calls.reshape_and_cache import flash_arguments
from tests.support.comparison import assert_same_bytes

ROUTES = {"package": multikv, "torch.ops": torch.ops.multikv}
FLASH_IN_PLACE = {"tokens": 3, "dtype": torch.float32, "format": "auto"}


@pytest.fixture(params=ROUTES)
def route(request):
    """What has the ops as attributes: a user calls them as functions of the package, or as PyTorch's ops."""
    return ROUTES[request.param]


def written_tensors(op: str, call: Arguments) -> dict[str, torch.Tensor]:
    """The tensors of a call that the op writes, those of lists as name[i]."""
    return tensors_of({name: call[name] for name in written_by(op)})


@pytest.mark.parametrize("grad", [torch.enable_grad, torch.no_grad], ids=lambda mode: mode.__name__)
@pytest.mark.parametrize("op", ONE_OF_EACH)
def test_versions(any_device, route, op, grad):
    call = copy_of(ONE_OF_EACH[op].arguments(any_device), None)
    before = {name: x._version for name, x in tensors_of(call).items()}
    with grad():
        getattr(route, op)(*call.values())
    written = written_tensors(op, call)
    for name, x in tensors_of(call).items():
        assert (x._version > before[name]) == (name in written), name


def test_call_without_tokens_bumps_versions_too(any_device, route):
    """As index_put_ does: whether a call bumps a version depends on its arguments, not on their values."""
    call = flash_arguments(any_device, tokens=0)
    before = call["key_cache"]._version
    route.reshape_and_cache_flash(*call.values())
    assert call["key_cache"]._version > before


def test_backward_pass_that_needs_what_was_overwritten(any_device, route):
    call = flash_arguments(any_device, **FLASH_IN_PLACE)
    weight = torch.ones((), device=any_device, requires_grad=True)
    result = (call["key_cache"] * weight).sum()
    route.reshape_and_cache_flash(*call.values())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        result.backward()


@pytest.mark.parametrize("op", ONE_OF_EACH)
def test_written_tensor_that_requires_grad(any_device, route, op):
    call = ONE_OF_EACH[op].arguments(any_device)
    for name, x in written_tensors(op, call).items():
        if not x.is_floating_point():
            continue
        for recorded in (x.detach().requires_grad_(), x.detach().requires_grad_().clone()):
            argument, _, index = name.removesuffix("]").partition("[")
            items = [recorded if str(i) == index else item for i, item in enumerate(call[argument])]
            wrong = call | {argument: items if index else recorded}
            with pytest.raises(RuntimeError) as caught:
                getattr(route, op)(*wrong.values())
            assert str(caught.value) == (
                f"{op}: {name}: expected a tensor that does not require grad (the op writes it in place: use detach() "
                "or torch.no_grad()), got one that requires grad"
            )


def test_leaf_may_be_written_without_grad_mode_or_detached(any_device, route):
    call = flash_arguments(any_device, **FLASH_IN_PLACE)
    cache = call["key_cache"].requires_grad_()
    for changes, grad in itertools.product(({}, {"key_cache": cache.detach()}), (torch.no_grad, torch.enable_grad)):
        if changes or grad is torch.no_grad:
            before = cache._version
            with grad():
                route.reshape_and_cache_flash(*(call | changes).values())
            assert cache._version > before


def test_input_that_requires_grad_is_detached(any_device, route):
    call = flash_arguments(any_device, **FLASH_IN_PLACE)
    call["key"].requires_grad_()
    route.reshape_and_cache_flash(*call.values())
    assert not call["key_cache"].requires_grad


def test_inference_tensor_outside_of_inference_mode(any_device, route):
    """It has no version to bump. PyTorch's in-place ops refuse it, multikv's ops write it."""
    with torch.inference_mode():
        call = flash_arguments(any_device, **FLASH_IN_PLACE)
    expected = copy_of(call)
    reference.reshape_and_cache_flash(**expected)
    route.reshape_and_cache_flash(*call.values())
    assert_same_bytes(call, expected)
