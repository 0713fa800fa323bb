"""A call that the tests which are the same for all ops run."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from helpers import Arguments, overwrite


class Call(NamedTuple):
    op: str
    make: Callable[..., Arguments]
    options: dict[str, object]
    others: dict[str, object] = {}  # options on top, for other contents in tensors of the same shapes
    nan_outputs: tuple[str, ...] = ()  # in which one NaN is as good as another
    larger: dict[str, object] = {}  # options on top, for tensors that are worth several threads

    def arguments(self, device: torch.device | str = "cpu", **changes: object) -> Arguments:
        return self.make(device, **self.options | changes)

    def vary(self, arguments: Arguments) -> None:
        """Other contents for the tensors of a call, in place."""
        tensors = {name: x for name, x in arguments.items() if isinstance(x, Tensor)}
        device = max((x.device for x in tensors.values()), key=lambda device: device.type != "cpu")
        others = self.arguments(device, **self.others)
        overwrite(tensors, others)
