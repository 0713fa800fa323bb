"""A case of the demo: an op with small inputs, which are checked, and large inputs, which are timed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .values import SPARE_BLOCKS
from .workload import Workload


@dataclass(frozen=True)
class Case:
    """A case. The op is checked with the inputs `make(device, **small)`, and timed with `make(device, **large)`."""

    name: str
    make: Callable[..., Workload]  # has the name of the op
    small: dict[str, Any]
    large: dict[str, Any]

    @property
    def op(self) -> str:
        """Name of the op."""
        return self.make.__name__

    @classmethod
    def of_tokens(cls, make: Callable[..., Workload], name: str, num_tokens: int = 4096, **options: Any) -> Case:
        """Makes a case of an op that takes num_tokens tokens."""
        small, large = {"num_tokens": 37}, {"num_tokens": num_tokens}
        return cls(f"{name}, {num_tokens:,} tokens", make, small | options, large | options)

    @classmethod
    def of_sequences(cls, make: Callable[..., Workload], name: str, **options: Any) -> Case:
        """Makes a case of an op that reads sequences."""
        small, large = {"batch_size": 3, "length": 100}, {"batch_size": 16, "length": 1024}
        return cls(f"{name}, 16 x 1,024 tokens", make, small | options, large | options)

    @classmethod
    def of_blocks(cls, make: Callable[..., Workload], name: str, num_blocks: int, **options: Any) -> Case:
        """Makes a case of an op that copies num_blocks blocks of 32 KiB between tensors that have a few blocks more."""
        small = {"num_blocks": 5 + SPARE_BLOCKS, "block_bytes": 4096}
        large = {"num_blocks": num_blocks + SPARE_BLOCKS, "block_bytes": 32768}
        return cls(f"{name} x 32 KiB", make, small | options, large | options)
