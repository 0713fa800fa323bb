"""A bad call: what is wrong with a good one, and the text that says so. The calls: bad_<family>.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from tests.support.arguments import Arguments


class Bad(NamedTuple):
    op: str
    make: Callable[..., Arguments]  # a good call
    what: str
    changes: dict[str, object]  # argument -> another, or a function that spoils the good one
    message: str  # after "op: "; {device} is that of the call
    options: dict[str, object]  # for make

    def __str__(self) -> str:
        return f"{self.op}-{self.what}"

    def good_call(self, device: torch.device) -> Arguments:
        return self.make(device, **self.options)

    def call(self, device: torch.device) -> Arguments:
        good = self.good_call(device)
        changes = self.changes.items()
        return good | {name: change(good[name]) if callable(change) else change for name, change in changes}

    def text(self, device: torch.device) -> str:
        return f"{self.op}: {self.message.format(device=device)}"


STRIDE = "{}: expected stride 1 in the innermost dimension, got stride 2"
NONE = "{}: expected a tensor, got None"
EXPANDED = "{}: expected a writable tensor without overlapping elements, got stride 0 in dimension {}"
# Both texts are for a tensor on the CPU in a call on a GPU. FIRST_ON_CPU is for the tensor that the op checks first: it
# names the first argument on the GPU. ON_CPU is for the other tensors. Bad.text() fills in {device}.
FIRST_ON_CPU = "{}: expected a CUDA tensor ({} is on {{device}}), got cpu"
ON_CPU = "{}: expected device {{device}} like {}, got cpu"
FORMAT_NAMES = "auto, float16, bfloat16, float32, fp8, fp8_e4m3, fp8_e5m2, fp8_e4m3fn, fp8_e4m3fnuz, fp8_e5m2fnuz"


def every_second(x: torch.Tensor) -> torch.Tensor:
    """The same values, two elements apart in the innermost dimension."""
    return x.repeat_interleave(2, -1)[..., ::2]


def expanded(dim: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """All elements of a dimension in one place."""
    return lambda x: x.narrow(dim, 0, 1).expand(x.shape)


def with_value(position: object, value: int) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        x[position] = value
        return x

    return change


def to(dtype: str) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: x.to(getattr(torch, dtype))


def on_cpu(x: torch.Tensor) -> torch.Tensor:
    return x.cpu()


def on_gpu(x: torch.Tensor) -> torch.Tensor:
    return x.cuda()
