"""Workloads of slots: computed from the block tables of sequences."""

import torch

from . import values
from .case import Case
from .workload import Workload

__all__ = ["compute_slot_mapping"]


def compute_slot_mapping(
    device: torch.device, batch_size: int, length: int, num_groups: int = 1, block_size: int = 16, context: int = 1000
) -> Workload:
    """Computes the slots of the last `length` tokens of each sequence, which follow on `context` earlier tokens."""
    tables = [values.sequences(batch_size, context + length, block_size, device)[1] for _ in range(num_groups)]
    bounds = torch.arange(batch_size + 1, dtype=torch.int32, device=device) * length
    positions = (torch.arange(length, device=device) + context).repeat(batch_size)
    slots = [values.bits((batch_size * length,), torch.int64, device) for _ in range(num_groups)]
    return Workload(
        "compute_slot_mapping",
        (tables, bounds, positions, slots, [block_size] * num_groups),
        written=(3,),
        num_bytes=values.num_bytes(positions, *slots),
    )


CASES = [
    Case.of_sequences(compute_slot_mapping, "1 group"),
    Case.of_sequences(compute_slot_mapping, "4 groups", num_groups=4),
]
