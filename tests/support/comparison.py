"""The comparison of an op with its oracle, byte for byte."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

import multikv
from multikv import reference
from multikv.reference.formats import bits
from tests.support import vectorised
from tests.support.arguments import ADDRESSES, Arguments, copy_of, tensors_of
from tests.support.tensors import storage_bytes

# What makes a call large: so many tokens or rows, or so many bytes.
LARGE_LENGTH, LARGE_BYTES = 256, 1 << 20


def assert_same_bytes(actual: Arguments, expected: Arguments, nan_outputs: Sequence[str] = ()) -> None:
    """Compares the memory of every tensor with all that surrounds it; inputs are thereby seen to be unchanged.

    `nan_outputs` names tensors of floats in which one NaN is as good as another; what surrounds them is still compared
    byte for byte.
    """
    ours, theirs = tensors_of(actual), tensors_of(expected)
    for device in {x.device for x in ours.values() if x.is_cuda}:
        torch.cuda.synchronize(device)  # nothing below waits for the end of a copy to pinned memory
    for name, x in ours.items():
        got, wanted = _memory(name, x), _memory(name, theirs[name])
        for output in nan_outputs:  # tensors may share memory
            if shares_memory(ours.get(output), x):
                got = _with_nans_of(wanted, got, ours[output])
        if not torch.equal(got, wanted):
            where = (got != wanted).nonzero().flatten()
            first = where[0].item()
            raise AssertionError(
                f"{name}: {len(where)} of {len(got)} bytes differ, the first at byte {first} (tensor starts at "
                f"{x.storage_offset() * x.element_size()}): got {got[first]:#04x}, expected {wanted[first]:#04x}"
            )


def shares_memory(x: Tensor | None, other: Tensor) -> bool:
    return x is not None and x.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def _memory(name: str, x: Tensor) -> Tensor:
    if name not in ADDRESSES:
        return storage_bytes(x).cpu()
    x = copy_of({name: x})[name]
    x -= storage_bytes(x).data_ptr()
    return storage_bytes(x)


def _with_nans_of(wanted: Tensor, got: Tensor, x: Tensor) -> Tensor:
    """The bytes `got`, with the NaNs among the elements of x replaced by those that `wanted` has there."""
    got = got.clone()
    ours, theirs = (
        torch.empty(0, dtype=x.dtype).set_(bytes.untyped_storage(), x.storage_offset(), x.shape, x.stride())
        for bytes in (got, wanted)
    )
    bits(ours).copy_(torch.where(ours.isnan() & theirs.isnan(), bits(theirs), bits(ours)))
    return got


def oracle_of(arguments: Arguments) -> ModuleType:
    """The reference, or its vectorised twin where the Python loops of the reference would take long."""
    tensors = tensors_of(arguments).values()
    is_large = any(x.dim() and len(x) > LARGE_LENGTH for x in tensors)
    return vectorised if is_large or sum(x.nbytes for x in tensors) > LARGE_BYTES else reference


def run(op: str, arguments: Arguments) -> None:
    assert getattr(multikv, op)(*arguments.values()) is None


def check(
    op: str,
    arguments: Arguments,
    *,
    nan_outputs: Sequence[str] = (),
    **oracle_options: object,
) -> None:
    """Runs the op, and its oracle on a copy, and compares all memory."""
    expected = copy_of(arguments)
    getattr(oracle_of(arguments), op)(**expected, **oracle_options)
    run(op, arguments)
    assert_same_bytes(arguments, expected, nan_outputs)
