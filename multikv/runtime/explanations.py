"""Errors of PyTorch's dispatcher about arguments, in the words of multikv: "op: argument: expected X, got Y".

The dispatcher rejects an argument of a wrong Python type, and a tensor for whose layout no kernel is registered, before
any kernel of multikv runs. Its message fills several lines and speaks of PyTorch's internals.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.compiler import is_dynamo_compiling

from .process import PROCESS

_KINDS = {
    "Tensor": "a tensor",
    "List[Tensor]": "a list of tensors",
    "List[int]": "a list of integers",
    "str": "a string",
    "int": "a 64-bit integer",
    "float": "a number",
    "bool": "True or False",
}

# OpOverload.__call__ and parameters *args and **kwargs would cost 0.3 us a call. So the function has the parameters of
# the op and calls what OpOverload.__call__ calls, except under Dynamo, which can trace only the OpOverload.
_CALLER = """
def {name}({parameters}):
    try:
        return overload({parameters}) if is_dynamo_compiling() else call({parameters})
    except RuntimeError as error:
        explanation = explain(error, {name!r}, dict({named}))
        if explanation is None:
            raise
        raise explanation from None
"""


def explaining(overload: OpOverload[..., None]) -> Callable[..., None]:
    """Returns a function that calls an op with all its arguments, and explains errors of the dispatcher."""
    schema = overload._schema
    name = schema.name.removeprefix("multikv::")
    names = [argument.name for argument in schema.arguments]
    source = _CALLER.format(name=name, parameters=", ".join(names), named=", ".join(f"{name}={name}" for name in names))
    namespace: dict[str, object] = {}
    known = {"overload": overload, "call": overload._op, "explain": explain, "is_dynamo_compiling": is_dynamo_compiling}
    exec(source, known, namespace)
    return typing.cast("Callable[..., None]", namespace[name])


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
