"""Arguments of public methods: errors name the method, the argument, what is expected, and what came."""

from __future__ import annotations

import array
import operator
import reprlib
from collections.abc import Iterable
from typing import TypeVar

_T = TypeVar("_T")
_REPR = reprlib.Repr()
_REPR.maxother = 100
shortened = _REPR.repr


def as_list(call: str, argument: str, values: Iterable[_T], kind: type[_T]) -> list[_T]:
    """Returns a list of objects of a class, or raises TypeError."""
    try:
        chosen = list(values)
    except TypeError:
        raise TypeError(
            f"{call}: {argument}: expected an iterable of {kind.__name__}, got {shortened(values)}"
        ) from None
    if set(map(type, chosen)) - {kind}:
        for i, value in enumerate(chosen):
            check_type(call, f"{argument}[{i}]", value, kind)
    return chosen


def check_type(call: str, argument: str, value: object, kind: type) -> None:
    """Raises TypeError if a value is not an object of a class."""
    if not isinstance(value, kind):
        raise TypeError(f"{call}: {argument}: expected a {kind.__name__}, got {shortened(value)}")


def as_integer(call: str, argument: str, value: object) -> int:
    """Returns an integer of Python, or raises TypeError."""
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{call}: {argument}: expected an integer, got {shortened(value)}") from None


def as_tokens(call: str, tokens: Iterable[int]) -> array.array[int]:
    """Returns tokens as integers of 64 bits, or raises TypeError or ValueError."""
    try:
        if isinstance(tokens, (str, bytes, bytearray, memoryview)):  # array.array would read their memory
            raise TypeError
        return array.array("q", tokens)
    except TypeError:
        raise TypeError(f"{call}: tokens: expected integers, got {shortened(tokens)}") from None
    except OverflowError:
        raise ValueError(f"{call}: tokens: expected integers of 64 bits, got {shortened(tokens)}") from None
