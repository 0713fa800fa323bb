"""Fake kernels: what torch.compile and opcheck run in place of an op while they trace.

No op returns anything, and the schema says which arguments each op writes, so one fake kernel serves all ops. It does
not check arguments: the op does that when it runs, with the same message on every device. The exception is a call that
mixes meta tensors with others, for which PyTorch runs the fake kernel only; it raises an error here.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch

from .process import PROCESS


def register() -> None:
    """Registers a fake kernel for every op."""
    for name in PROCESS.op_names:
        torch.library.register_fake(f"multikv::{name}", _fake(name))


def _fake(name: str) -> Callable[..., None]:
    def fake(*args: object, **kwargs: object) -> None:
        lists = [x if isinstance(x, (list, tuple)) else [x] for x in (*args, *kwargs.values())]
        types = {x.device.type for x in itertools.chain(*lists) if isinstance(x, torch.Tensor)}
        if "meta" in types and len(types) > 1:
            raise RuntimeError(f"{name}: expected all tensors on one device, got {', '.join(sorted(types))}")

    return fake
