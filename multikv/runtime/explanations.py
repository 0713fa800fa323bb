"""Errors of PyTorch's dispatcher about arguments, in the words of multikv: "op: argument: expected X, got Y".

The dispatcher rejects an argument of a wrong Python type, and a tensor for whose layout no kernel is registered, before
any kernel of multikv runs. Its message fills several lines and speaks of PyTorch's internals.
"""

from __future__ import annotations

import functools
import inspect
import re
import typing
from collections.abc import Callable, Iterator
from types import FunctionType

import torch
from torch import Tensor

from .process import PROCESS

Function = typing.TypeVar("Function", bound=FunctionType)

_KINDS = {
    "Tensor": "a tensor",
    "List[Tensor]": "a list of tensors",
    "List[int]": "a list of integers",
    "str": "a string",
    "int": "a 64-bit integer",
    "float": "a number",
    "bool": "True or False",
}

# A plain wrapper would take *args and **kwargs, which costs 0.2 us a call. This one has the parameters of the function.
_WRAPPER = """
def {name}({parameters}):
    try:
        return function({arguments})
    except RuntimeError as error:
        explanation = explain(error, {name!r}, dict({named}))
        if explanation is None:
            raise
        raise explanation from None
"""


def explaining(function: Function) -> Function:
    """Returns a function that does the same, and explains errors of the dispatcher.

    If `function` calls an op, it has the name of this op.
    """
    parameters = inspect.signature(function).parameters.values()
    names = [p.name for p in parameters]
    source = _WRAPPER.format(
        name=function.__name__,
        parameters=", ".join(p.name if p.default is p.empty else f"{p.name}=None" for p in parameters),
        arguments=", ".join(names),
        named=", ".join(f"{name}={name}" for name in names),
    )
    namespace: dict[str, object] = {}
    exec(source, {"function": function, "explain": explain}, namespace)
    wrapper = typing.cast(Function, namespace[function.__name__])
    functools.update_wrapper(wrapper, function)
    typing.cast(FunctionType, wrapper).__defaults__ = function.__defaults__
    return wrapper


def explain(error: RuntimeError, op: str, arguments: dict[str, object]) -> Exception | None:
    """Returns the exception to raise for an error of the dispatcher, or None for an error of the op itself."""
    found = re.match(rf"multikv::{op}\(\) Expected a value of type '(.*)' for argument '(\w+)'", str(error))
    if found:
        kind, name = re.sub(r"^Optional\[(.*)\]$", r"\1", found[1]), found[2]
        value = arguments[name]
        if kind == "List[Tensor]" and isinstance(value, (list, tuple)):
            index = next(i for i, item in enumerate(value) if not isinstance(item, Tensor))
            kind, name, value = "Tensor", f"{name}[{index}]", value[index]
        return TypeError(f"{op}: {name}: expected {_KINDS.get(kind, kind)}, got {_described(value, kind)}")
    return _refusal(op, arguments) if isinstance(error, NotImplementedError) else None


def register_refusals() -> None:
    """Registers kernels that raise for all tensors that no other kernel of multikv is registered for."""
    library = torch.library.Library("multikv", "IMPL", "CompositeExplicitAutograd")
    for name in PROCESS.op_names:
        library.impl(name, _refusing(name))
    PROCESS.registrations.append(library)


def _refusing(op: str) -> Callable[..., None]:
    names = [argument.name for argument in getattr(torch.ops.multikv, op).default._schema.arguments]

    def refuse(*args: object, **kwargs: object) -> None:
        raise _refusal(op, dict(zip(names, args, strict=False)) | kwargs)

    return refuse


def _refusal(op: str, arguments: dict[str, object]) -> RuntimeError:
    """Returns the error for a call whose tensors no library of multikv serves."""
    for name, tensor in _tensors(arguments):
        if tensor.layout != torch.strided or tensor.is_nested or tensor.is_quantized:
            got = "a nested tensor" if tensor.is_nested else f"layout {str(tensor.layout).removeprefix('torch.')}"
            if tensor.is_quantized:
                got = f"a quantised tensor of dtype {str(tensor.dtype).removeprefix('torch.')}"
            return RuntimeError(f"{op}: {name}: expected a dense tensor (strided layout), got {got}")
    for name, tensor in _tensors(arguments):
        if tensor.device.type not in ("cpu", "cuda"):
            return RuntimeError(f"{op}: {name}: expected a CPU or CUDA tensor, got {tensor.device}")
    return RuntimeError(f"{op}: expected at least one tensor, got none")


def _tensors(arguments: dict[str, object]) -> Iterator[tuple[str, Tensor]]:
    for name, value in arguments.items():
        if isinstance(value, Tensor):
            yield name, value
        elif isinstance(value, (list, tuple)):
            yield from ((f"{name}[{i}]", item) for i, item in enumerate(value) if isinstance(item, Tensor))


def _described(value: object, expected_kind: str) -> str:
    if value is None or (type(value) is int and expected_kind == "int"):  # the integer is too large
        return str(value)
    if isinstance(value, torch.dtype):
        return f"{value} (a torch.dtype)"
    if isinstance(value, Tensor):
        return "a tensor"
    name = {"ndarray": "NumPy array"}.get(type(value).__name__, type(value).__name__)
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
