"""What offload and restore share: sequences change from the blocks of one memory to those of another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from .blocks import BlockPool, Evicted
from .errors import OutOfBlocks
from .sequence import Sequence

# What identifies the content of a block: its name if it is full and written, else its number.
Content = bytes | int


class Move:
    """The blocks that sequences need in `target` in place of those in `source`. Making it changes nothing.

    A content that target has already is shared, and not copied. The blocks behind the written tokens are given up.
    """

    def __init__(self, call: str, sequences: list[Sequence], source: BlockPool, target: BlockPool, block_size: int):
        """Makes the plan, or raises OutOfBlocks if target has too few free blocks."""
        self._sequences, self._source, self._target, self._block_size = sequences, source, target, block_size
        self._found: dict[Content, int] = {}  # content -> block of target
        self._missing: dict[Content, int] = {}  # content -> block of source
        for sequence in sequences:
            for content, block in self._contents(sequence):
                there = target.find(content) if isinstance(content, bytes) else None
                if there is None:
                    self._missing[content] = block
                else:
                    self._found[content] = there
        idle = sum(target.references[block] == 0 for block in self._found.values())
        if len(self._missing) > target.num_free - idle:
            tier = "host" if call == "offload" else "device"
            raise OutOfBlocks(call, len(self._missing), target.num_free - idle, target.num_blocks, tier)

    def take(self) -> tuple[list[tuple[int, int]], list[Evicted]]:
        """Takes the blocks of target. Returns the pairs (source, target) to copy, and what target evicted."""
        self._target.share(self._found.values())
        taken, evicted = self._target.take(len(self._missing))
        pairs = list(zip(self._missing.values(), taken, strict=True))
        self._found.update(zip(self._missing, taken, strict=True))
        return pairs, evicted

    def finish(self) -> None:
        """Gives the sequences their new blocks, and releases the old ones. The copies are done, or on their way."""
        for content in self._missing:
            if isinstance(content, bytes):
                self._target.give_name(self._found[content], content)
        for sequence in self._sequences:
            blocks = [self._found[content] for content, _ in self._contents(sequence)]
            self._target.share(blocks)
            self._source.release(sequence.blocks)
            sequence._replace(blocks, self._block_size)
            sequence._pool = self._target
        self._target.release(self._found.values())

    def _contents(self, sequence: Sequence) -> Iterator[tuple[Content, int]]:
        """The blocks of the written tokens, and what identifies their contents."""
        num_full = sequence.num_written // self._block_size
        num_blocks = -(-sequence.num_written // self._block_size)
        names: Iterable[Content] = sequence._names[:num_full]
        yield from zip([*names, *sequence.blocks[num_full:num_blocks]], sequence.blocks[:num_blocks], strict=True)
