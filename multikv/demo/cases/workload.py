"""Calls of ops with concrete arguments, and copies whose times they are compared with."""

import ctypes
import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import multikv

from . import values

__all__ = [
    "Workload",
    "copy_calls",
    "copy_description",
    "device_name",
    "last_level_cache_bytes",
    "rotation",
    "same_bytes",
]


@dataclasses.dataclass(frozen=True)
class Workload:
    """One op with concrete arguments."""

    op: str
    arguments: tuple[Any, ...]
    written: tuple[int, ...]  # which arguments the op writes, counted from 0
    # Bytes that the op must move: each input byte read once, each output byte written once. Arguments that are indices,
    # scales, weights or rotary tables are not counted, except the positions and slots of compute_slot_mapping.
    num_bytes: int
    # Tensors that the op writes through addresses. The key is the number of the argument that holds the addresses.
    by_address: dict[int, tuple[Tensor, ...]] = dataclasses.field(default_factory=dict)
    # Which arguments have no defined content after the call.
    scratch: tuple[int, ...] = ()
    # The largest difference that an element of an output may have from what is expected, relative to the largest
    # element of this output; 0: the bytes are the same.
    tolerance: float = 0.0
    # Devices that the bytes come from and go to; None: the device of the op for both.
    route: tuple[torch.device, torch.device] | None = None

    @property
    def graph(self) -> bool:
        """Whether the op may be timed in a CUDA graph.

        A workload with a route may not: a swap submits its copies differently in a graph.
        """
        return self.route is None

    def bind(self, namespace: Any = multikv) -> Callable[[], None]:
        """Returns the call of the op in multikv, or in another module with the same functions."""
        return functools.partial(getattr(namespace, self.op), *self.arguments)

    def copy(self, device: torch.device | str | None = None) -> "Workload":
        """Returns a workload with the same values in other memory.

        Strides are kept unless they leave gaps or give several elements the same address.
        """
        arguments = [_copied(a, device) for a in self.arguments]
        by_address = {i: tuple(_copied(a, device) for a in tensors) for i, tensors in self.by_address.items()}
        for i, tensors in by_address.items():
            arguments[i] = values.addresses(tensors)
        return dataclasses.replace(self, arguments=tuple(arguments), by_address=by_address)

    def outputs(self) -> list[Tensor]:
        """Returns the tensors that the op writes."""
        arguments = [t for i in self.written for t in _tensors(self.arguments[i])]
        return [*arguments, *(t for ts in self.by_address.values() for t in ts)]

    def inputs(self) -> list[Tensor]:
        """Returns the tensors that the op must not change."""
        others = {*self.written, *self.scratch, *self.by_address}
        return [t for i, a in enumerate(self.arguments) if i not in others for t in _tensors(a)]

    def agrees_with(self, expected: "Workload") -> bool:
        """Returns whether the outputs are those of `expected`, within the tolerance."""
        pairs = list(zip(self.outputs(), expected.outputs(), strict=True))
        if self.tolerance == 0:
            return same_bytes(*zip(*pairs, strict=True))
        floats = [(ours.double().cpu(), theirs.double().cpu()) for ours, theirs in pairs]
        return all((a - b).abs().max() <= self.tolerance * b.abs().max() for a, b in floats)


def same_bytes(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> bool:
    """Returns whether the tensors hold the same bytes; a NaN equals itself."""
    return all(
        a.shape == b.shape and torch.equal(values.as_bits(a), values.as_bits(b.to(a.device)))
        for a, b in zip(ours, theirs, strict=True)
    )


def copy_calls(workload: Workload, device: torch.device) -> list[Callable[[], object]]:
    """Returns plain copies, between the devices of the workload, that read num_bytes / 2 bytes and write them.

    Each copy has its own memory, and there are as many copies as `rotation` returns for the workload.
    """
    size = max(workload.num_bytes // 2, 1)
    source, destination = workload.route or (device, device)
    pinned = device.type == "cuda" and destination.type == "cpu"
    pairs = []
    for _ in range(rotation(workload.num_bytes, device)):
        src = values.moved(values.bits((size,), torch.uint8, device), source)
        pairs.append((src, torch.empty_like(src, device=destination, pin_memory=pinned)))
    if device.type == "cpu" and torch.get_num_threads() == 1:
        return [functools.partial(_memmove, dst, src) for src, dst in pairs]
    return [functools.partial(dst.copy_, src, non_blocking=True) for src, dst in pairs]


def copy_description(device: torch.device) -> str:
    """Describes, in one line for a report, the copies that copy_calls makes on a device."""
    if device.type == "cuda":
        return "torch copy_ within the device; for an op from or to the host, torch copy_ between the same memories"
    threads = torch.get_num_threads()
    return "memmove, 1 thread" if threads == 1 else f"torch copy_, {threads} threads"


def rotation(num_bytes: int, device: torch.device) -> int:
    """Returns how many sets of inputs are used in turn while a call that moves num_bytes is timed.

    If num_bytes is less than an eighth of the last-level cache, 4 sets are used. They stay in the cache, which imitates
    a model: there, the inputs of an op are in the cache because the previous layer has just written them. If num_bytes
    is larger, all sets together have at least three times the size of the cache, so that the inputs of a call are not
    in the cache.
    """
    cache = last_level_cache_bytes(device)
    return 4 if num_bytes < cache // 8 else max(2, -(-3 * cache // num_bytes))


@functools.cache
def last_level_cache_bytes(device: torch.device) -> int:
    """Returns the size of the GPU's L2 or of the CPU's largest cache; 64 MiB where the system does not say."""
    if device.type == "cuda":
        return int(getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0)) or 64 << 20
    units = {"K": 1 << 10, "M": 1 << 20}
    texts = [path.read_text().strip() for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    return max((int(text[:-1]) * units[text[-1]] for text in texts if text[-1:] in units), default=64 << 20)


def device_name(device: torch.device) -> str:
    """Returns the model name of the GPU or the CPU."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "CPU")


def _tensors(argument: Any) -> list[Tensor]:
    return [a for a in (argument if isinstance(argument, list) else [argument]) if isinstance(a, Tensor)]


def _copied(argument: Any, device: torch.device | str | None) -> Any:
    if isinstance(argument, list):
        return [_copied(a, device) for a in argument]
    if not isinstance(argument, Tensor):
        return argument
    if device is None and argument.is_pinned():
        return torch.empty_like(argument, pin_memory=True).copy_(argument)
    return argument.to(device or argument.device, copy=True)


def _memmove(dst: Tensor, src: Tensor) -> None:
    ctypes.memmove(dst.data_ptr(), src.data_ptr(), dst.numel())
