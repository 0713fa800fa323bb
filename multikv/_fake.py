"""Fake kernels: what torch.compile and opcheck run in place of an op while they trace.

No op returns anything and what each writes stands in its schema, so one does for all. Arguments are checked where the
op really runs, with the same text on every device. One meta tensor among real ones ends here too: that one must not
pass in silence.
"""

import itertools
from collections.abc import Callable

import torch

from .platforms import op_names


def _writing_its_arguments(name: str) -> Callable[..., None]:
    def fake(*args: object, **kwargs: object) -> None:
        lists = [x if isinstance(x, (list, tuple)) else [x] for x in (*args, *kwargs.values())]
        types = {x.device.type for x in itertools.chain(*lists) if isinstance(x, torch.Tensor)}
        if "meta" in types and len(types) > 1:
            raise RuntimeError(f"{name}: expected all tensors on one device, got {', '.join(sorted(types))}")

    return fake


for _name in op_names():
    torch.library.register_fake(f"multikv::{_name}", _writing_its_arguments(_name))
