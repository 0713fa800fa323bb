"""Cases that compute slots from block tables."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.case import Baseline, Case
from multikv.demo import cases as workloads
from multikv.demo.cases import Workload

# (number of sequences, tokens per sequence)
BATCHES = ((1, 1), (256, 1), (8192, 1), (1, 8192), (32, 256), (256, 512))
QUICK_BATCHES = ((8192, 1), (1, 8192))
GROUPS = (1, 4)


def cases(device: torch.device) -> Iterator[Case]:
    baselines = tuple(Baseline(f"index{name}", _index, _arguments, name != "") for name in ("", ", compiled"))
    for num_groups in GROUPS:
        for batch in BATCHES:
            batch_size, length = batch
            yield Case.of(
                workloads.compute_slot_mapping,
                f"{num_groups}-groups/{batch_size}x{length}",
                _expect,
                baselines,
                batch in QUICK_BATCHES,
                batch_size=batch_size,
                length=length,
                num_groups=num_groups,
            )


def _arguments(w: Workload) -> tuple[Any, ...]:
    """The baseline gets the sequence of each token, which the op finds."""
    tables, bounds, positions, slots, block_sizes = w.arguments
    num_sequences = len(bounds) - 1
    sequences = torch.arange(num_sequences, device=bounds.device).repeat_interleave(len(positions) // num_sequences)
    return tables, sequences, positions, slots, block_sizes


def _index(
    tables: list[Tensor], sequences: Tensor, positions: Tensor, slots: list[Tensor], block_sizes: list[int]
) -> None:
    for table, out, block_size in zip(tables, slots, block_sizes, strict=True):
        out.copy_(table[sequences, positions // block_size] * block_size + positions % block_size)


def _expect(w: Workload) -> None:
    _index(*_arguments(w))
