"""Block tables of a batch: which blocks hold the tokens of which sequence."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

RELEASED = -1  # the entry of a block table whose block was given back


class BlockTables:
    """The block tables of a batch whose sequences have equally many tokens.

    After `select`, several sequences may list the same block. `extend` replaces a shared block before tokens are
    written to it.
    """

    def __init__(self, block_size: int, window: int | None):
        """Begins without any sequence and without any block."""
        self.block_size, self.window = block_size, window
        self.rows: list[list[int]] = []
        self.uses: list[int] = []  # how many rows list each block
        self.free: list[int] = []
        self.num_released = 0  # leading entries of each row whose block was given back
        self.keeps_past = False

    @property
    def num_blocks(self) -> int:
        """The number of blocks of every cache of these tables."""
        return len(self.uses)

    def reserve(self, num_blocks: int) -> None:
        """Adds free blocks until there are num_blocks blocks."""
        self.free += range(num_blocks - 1, self.num_blocks - 1, -1)
        self.uses += [0] * (num_blocks - self.num_blocks)

    def extend(self, start: int, end: int) -> list[tuple[int, int]]:
        """Makes room for the positions from start to end - 1.

        Returns the pairs (source, target) of blocks that must be copied before these positions are written.
        """
        if not self.keeps_past:
            self.release_past(start)
        first, width = start // self.block_size, -(-end // self.block_size)
        shared = [(row, i) for row in self.rows for i in range(first, len(row)) if self.uses[row[i]] > 1]
        # One of the rows that list a shared block keeps it.
        num_copies = len(shared) - len({row[i] for row, i in shared})
        num_needed = num_copies + sum(width - len(row) for row in self.rows)
        if num_needed > len(self.free):
            self.reserve(max(self.num_blocks + num_needed - len(self.free), self.num_blocks * 3 // 2))
        copies = []
        for row, i in shared:
            if self.uses[row[i]] > 1:
                self.uses[row[i]] -= 1
                copies.append((row[i], self._take()))
                row[i] = copies[-1][1]
        for row in self.rows:
            row += [self._take() for _ in range(width - len(row))]
        return copies

    def select(self, indices: Sequence[int]) -> None:
        """Replaces the sequences: the new sequence i has the tokens of the old sequence indices[i].

        The two share blocks.
        """
        before, self.rows = self.rows, [list(self.rows[i]) for i in indices]
        for row in self.rows:
            for block in row[self.num_released :]:
                self.uses[block] += 1
        for row in before:
            self._drop(row[self.num_released :])

    def crop(self, length: int) -> None:
        """Forgets the tokens from position length on."""
        width = -(-length // self.block_size)
        if self._first_needed(length) < min(self.num_released, width):
            raise RuntimeError(
                f"MultikvCache: crop: expected a length whose window of {self.window} tokens is still in the cache, "
                f"got {length}: call activate_past_recording() before the tokens are written"
            )
        for row in self.rows:
            self._drop(row[max(width, self.num_released) :])
            del row[width:]
        self.num_released = min(self.num_released, width)
        self.release_past(length)

    def release_past(self, length: int) -> None:
        """Gives back the blocks that no token at position `length` or later sees."""
        first = self._first_needed(length)
        for row in self.rows:
            self._drop(row[self.num_released : first])
            row[self.num_released : first] = [RELEASED] * (first - self.num_released)
        self.num_released = max(self.num_released, first)

    def _first_needed(self, length: int) -> int:
        """Returns the table entry of the oldest key that the token at position length sees."""
        if self.window is None:
            return 0
        return max(length - self.window + 1, 0) // self.block_size

    def _take(self) -> int:
        block = self.free.pop()
        self.uses[block] = 1
        return block

    def _drop(self, blocks: Sequence[int]) -> None:
        for block in blocks:
            self.uses[block] -= 1
            if not self.uses[block]:
                self.free.append(block)


@dataclasses.dataclass
class Step:
    """What the layers of a device need to write and to read the tokens of one forward pass.

    Every sequence has `count` new tokens, the first at position `start`.
    """

    start: int
    count: int
    block_size: int
    table: Tensor  # [batch_size, width], int32
    slots: Tensor  # [batch_size * count], int64

    def __post_init__(self) -> None:
        """Computes the bounds. Tables without padding are computed when they are asked for."""
        self._unpadded: dict[tuple[int, ...], tuple[Tensor, Tensor, int]] = {}
        self.bounds = self.count * torch.arange(len(self.table) + 1, dtype=torch.int32, device=self.table.device)

    @property
    def end(self) -> int:
        """The number of tokens of each sequence, with the new ones."""
        return self.start + self.count

    def unpadded(self, starts: tuple[int, ...]) -> tuple[Tensor, Tensor, int]:
        """Returns block tables, lengths and the block size of the sequences without their first starts[s] tokens.

        A block table of paged attention starts at the first slot of a block. The new tables list smaller blocks, whose
        size divides every start: a cache of blocks of 16 slots is also one of blocks of 4.
        """
        if starts not in self._unpadded:
            self._unpadded[starts] = self._compute_unpadded(starts)
        return self._unpadded[starts]

    def _compute_unpadded(self, starts: tuple[int, ...]) -> tuple[Tensor, Tensor, int]:
        device, size = self.table.device, self.block_size
        while any(start % size for start in starts):
            size //= 2
        first = torch.tensor(starts, device=device)
        lengths = (self.end - first).to(torch.int32)
        if size == self.block_size and not any(starts):
            return self.table, lengths, size
        positions = first[:, None] + size * torch.arange(-(-self.end // size), device=device)
        entries = (positions // self.block_size).clamp(max=self.table.size(1) - 1)
        blocks = self.table.gather(1, entries) * (self.block_size // size)
        return (blocks + positions % self.block_size // size).to(torch.int32), lengths, size


def make_step(tables: BlockTables, start: int, count: int, device: torch.device) -> Step:
    """Returns the step that writes `count` tokens to each sequence; `tables` has room for them."""
    table = torch.tensor(tables.rows, dtype=torch.int32, device=device)
    positions = torch.arange(start, start + count, device=device)
    blocks = table[:, positions // tables.block_size].long()
    slots = blocks * tables.block_size + positions % tables.block_size
    return Step(start, count, tables.block_size, table, slots.flatten())
