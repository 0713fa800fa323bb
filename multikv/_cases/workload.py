"""One call of an op, and the copy to compare it with."""

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


@dataclasses.dataclass(frozen=True)
class Workload:
    """One op with concrete arguments."""

    op: str
    arguments: tuple[Any, ...]
    written: tuple[int, ...]  # positions of the arguments that the op writes
    # Each input byte read once and each output byte written once; indices, scales and rotary tables left out.
    num_bytes: int
    # Tensors that the op writes by their addresses: the argument at this position holds these.
    by_address: dict[int, tuple[Tensor, ...]] = dataclasses.field(default_factory=dict)
    # Where the bytes come from and go to, if not from the op's device to itself.
    route: tuple[torch.device, torch.device] | None = None

    @property
    def graph(self) -> bool:
        """Whether a CUDA graph of it does what the call does; memory of the host may need more than kernels."""
        return self.route is None

    def bind(self, namespace: Any = multikv) -> Callable[[], None]:
        """The call, ready to be made: of multikv, or of another module with the same functions."""
        return functools.partial(getattr(namespace, self.op), *self.arguments)

    def copy(self, device: torch.device | str | None = None) -> "Workload":
        """The same values in other memory, with the strides that they had if there were no gaps."""
        arguments = [_copied(a, device) for a in self.arguments]
        by_address = {i: tuple(_copied(a, device) for a in tensors) for i, tensors in self.by_address.items()}
        for i, tensors in by_address.items():
            arguments[i] = values.addresses(tensors)
        return dataclasses.replace(self, arguments=tuple(arguments), by_address=by_address)

    def outputs(self) -> list[Tensor]:
        return [*(t for i in self.written for t in _tensors(self.arguments[i])),
                *(t for ts in self.by_address.values() for t in ts)]

    def inputs(self) -> list[Tensor]:
        """The tensors that the op must not change."""
        others = {*self.written, *self.by_address}
        return [t for i, a in enumerate(self.arguments) if i not in others for t in _tensors(a)]


def same_bytes(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> bool:
    """Whether the tensors hold the same bytes, whatever numbers these mean (a NaN equals itself)."""
    return all(a.shape == b.shape and torch.equal(values.as_bits(a), values.as_bits(b.to(a.device)))
               for a, b in zip(ours, theirs, strict=True))


def copy_calls(workload: Workload, device: torch.device) -> list[Callable[[], object]]:
    """Plain copies that move as much the same way: half of its bytes read and as many written, rotated likewise."""
    size = max(workload.num_bytes // 2, 1)
    places = workload.route or (device, device)
    pairs = [[values.moved(values.bits((size,), torch.uint8, device), place) for place in places]
             for _ in range(rotation(workload.num_bytes, device))]
    if device.type == "cpu" and torch.get_num_threads() == 1:
        return [functools.partial(_memmove, dst, src) for src, dst in pairs]
    return [functools.partial(dst.copy_, src, non_blocking=True) for src, dst in pairs]


def copy_description(device: torch.device) -> str:
    """What `copy_calls` are on this device."""
    if device.type == "cuda":
        return "torch copy_ within the device; for swaps the way that they go"
    threads = torch.get_num_threads()
    return "memmove, 1 thread" if threads == 1 else f"torch copy_, {threads} threads"


def rotation(num_bytes: int, device: torch.device) -> int:
    """How many input sets to rotate for a call that moves num_bytes.

    A small case stays within the last-level cache, as it would just after the layer before it; from an eighth of the
    cache upwards the sets together are three times its size, so that it serves nothing.
    """
    cache = last_level_cache_bytes(device)
    return 4 if num_bytes < cache // 8 else max(2, -(-3 * cache // num_bytes))


@functools.cache
def last_level_cache_bytes(device: torch.device) -> int:
    """Size of the GPU's L2 or of the CPU's largest cache; 64 MiB where the system does not say."""
    if device.type == "cuda":
        return getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0) or 64 << 20
    units = {"K": 1 << 10, "M": 1 << 20}
    texts = [path.read_text().strip() for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    return max((int(text[:-1]) * units[text[-1]] for text in texts if text[-1:] in units), default=64 << 20)


def device_name(device: torch.device) -> str:
    """The GPU's or the CPU's name for itself."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
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
