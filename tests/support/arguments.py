"""The arguments of a call: copies of them, with all the memory around each tensor."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.support.tensors import storage_bytes

# The arguments of a call by name, in the order of the schema.
Arguments = dict[str, object]

# The arguments that hold addresses, each of them in the memory that the argument itself lies in.
ADDRESSES = ("kv_cache_ptrs", "src_ptrs", "dst_ptrs")


def tensors_of(arguments: Arguments) -> dict[str, Tensor]:
    """All tensors of a call, those of lists as name[i]."""
    lists = {name: list(x) for name, x in arguments.items() if isinstance(x, (list, tuple))}
    listed = {f"{name}[{i}]": x for name, items in lists.items() for i, x in enumerate(items)}
    return {name: x for name, x in (arguments | listed).items() if isinstance(x, Tensor)}


def written_by(op: str) -> list[str]:
    """The names of the arguments that an op writes, by its schema."""
    schema = getattr(torch.ops.multikv, op).default._schema
    return [argument.name for argument in schema.arguments if argument.alias_info and argument.alias_info.is_write]


def move_addresses(name: str, copied: Tensor, original: Tensor) -> None:
    """Makes the addresses in a copy those of the copy's memory."""
    if name in ADDRESSES:
        copied += storage_bytes(copied).data_ptr() - storage_bytes(original).data_ptr()


def overwrite(arguments: Arguments, others: Arguments) -> None:
    """Gives the memory of every tensor the contents of the other's, which is as large."""
    theirs = tensors_of(others)
    for name, x in tensors_of(arguments).items():
        storage_bytes(x).copy_(storage_bytes(theirs[name]))
        move_addresses(name, x, theirs[name])


def copy_of(arguments: Arguments, device: torch.device | str | None = "cpu") -> Arguments:
    """The same tensors on a device: same strides, same surroundings, and tensors that shared memory share it again.

    Without a device, each tensor stays on its own, in pinned memory if it is there.
    """
    storages: dict[int, torch.UntypedStorage] = {}

    def copy(name: str, x: object) -> object:
        if isinstance(x, (list, tuple)):
            return [copy(name, item) for item in x]
        if not isinstance(x, Tensor):
            return x
        bytes, target = storage_bytes(x), x.device if device is None else device
        if bytes.data_ptr() not in storages:
            copied = bytes.to(target, copy=True)
            if device is None and x.is_pinned():
                copied = copied.pin_memory()
            storages[bytes.data_ptr()] = copied.untyped_storage()
        empty = torch.empty(0, dtype=x.dtype, device=target)
        result = empty.set_(storages[bytes.data_ptr()], x.storage_offset(), x.shape, x.stride())
        move_addresses(name, result, x)
        return result

    return {name: copy(name, x) for name, x in arguments.items()}
