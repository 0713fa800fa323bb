"""Fake kernels, which torch.compile and opcheck run in place of an op while they trace.

Ops return nothing, and the schema says which arguments an op writes, so one fake kernel serves all ops. The fake kernel
does not check arguments, because the op does so when it runs, with the same message on every device. A call that mixes
meta tensors with other tensors runs only the fake kernel, so the fake kernel itself rejects such a call.
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
