"""A call that the tests which are the same for all ops run."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from tests.support.arguments import Arguments, overwrite, tensors_of


class Call(NamedTuple):
    op: str
    make: Callable[..., Arguments]
    options: dict[str, object]
    others: dict[str, object] = {}  # options on top, for other contents in tensors of the same shapes
    nan_outputs: tuple[str, ...] = ()  # in which one NaN is as good as another
    larger: dict[str, object] = {}  # options on top, for tensors that are worth several threads
    uses_all: bool = False  # every tensor that the op takes is given, and read or written; one such call of each op

    def arguments(self, device: torch.device | str = "cpu", **changes: object) -> Arguments:
        return self.make(device, **self.options | changes)

    def vary(self, arguments: Arguments) -> None:
        """Other contents for the tensors of a call, in place."""
        devices = [x.device for x in tensors_of(arguments).values()]
        device = max(devices, key=lambda device: device.type != "cpu")
        overwrite(arguments, self.arguments(device, **self.others))
