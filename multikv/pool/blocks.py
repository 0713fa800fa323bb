"""The blocks of one memory: who uses them, what they are called, and which is evicted next."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Iterable
from typing import TypeAlias

Evicted: TypeAlias = tuple[int, bytes]  # a block that was given to a new user, and the name that its content had


class BlockPool:
    """Counts the references of blocks, and finds blocks by the name of their content.

    A block is in one of three states:

        unused    no reference, no name        taken first
        cached    no reference, but a name     found by its name, or evicted: the one released first goes first
        in use    at least one reference       gets a name when it is full and written

    Two blocks never have the same name. If another block has the name already, a block gets none.
    """

    def __init__(self, num_blocks: int) -> None:
        """Makes a pool of unused blocks."""
        self.num_blocks = num_blocks
        self.references = [0] * num_blocks
        self.num_evicted = 0
        self._names: list[bytes | None] = [None] * num_blocks
        self._by_name: dict[bytes, int] = {}
        self._unused = list(range(num_blocks - 1, -1, -1))
        self._cached: OrderedDict[int, None] = OrderedDict()

    @property
    def num_free(self) -> int:
        """The number of blocks that take() can give."""
        return len(self._unused) + len(self._cached)

    @property
    def num_cached(self) -> int:
        """The number of blocks that no sequence uses, but whose content can still be found."""
        return len(self._cached)

    def find(self, name: bytes) -> int | None:
        """Returns the block with this name."""
        return self._by_name.get(name)

    def find_all(self, names: Iterable[bytes]) -> list[int]:
        """Returns the blocks of the names up to the first that is missing."""
        found = list(map(self._by_name.get, names))
        end = found.index(None) if None in found else len(found)
        return [block for block in found[:end] if block is not None]

    def name_of(self, block: int) -> bytes | None:
        """Returns the name of a block, or None."""
        return self._names[block]

    def take(self, count: int) -> tuple[list[int], list[Evicted]]:
        """Returns `count` blocks with one reference each, and what was evicted for them. count is at most num_free."""
        kept = max(len(self._unused) - count, 0)
        blocks = self._unused[kept:][::-1]
        del self._unused[kept:]
        evicted = self._evict(count - len(blocks))
        blocks += [block for block, _ in evicted]
        for block in blocks:
            self.references[block] = 1
        return blocks, evicted

    def _evict(self, count: int) -> list[Evicted]:
        """Removes the cached blocks that were released first."""
        cached, names, by_name = self._cached, self._names, self._by_name
        evicted = []
        for block in list(itertools.islice(cached, count)):
            name = names[block]
            assert name is not None
            del cached[block], by_name[name]
            names[block] = None
            evicted.append((block, name))
        self.num_evicted += len(evicted)
        return evicted

    def share(self, blocks: Iterable[int]) -> None:
        """Adds a reference to each block, all of which are in use or cached."""
        references = self.references
        for block in blocks:
            if references[block] == 0:
                del self._cached[block]
            references[block] += 1

    def release(self, blocks: Iterable[int]) -> None:
        """Removes one reference from each of these blocks: all blocks of a sequence, or its last ones.

        Blocks are released from the last to the first, so that later blocks are evicted first: a cached block is only
        found if all blocks before it are found.
        """
        references, names = self.references, self._names
        for block in reversed(tuple(blocks)):
            references[block] -= 1
            if references[block] == 0:
                if names[block] is None:
                    self._unused.append(block)
                else:
                    self._cached[block] = None

    def give_name(self, block: int, name: bytes) -> None:
        """Names a block in use, unless another block has this name or the block has one already."""
        self.give_names((block,), (name,))

    def give_names(self, blocks: Iterable[int], names: Iterable[bytes]) -> None:
        """Names several blocks, as give_name does."""
        own, by_name = self._names, self._by_name
        for block, name in zip(blocks, names, strict=True):
            if own[block] is None and by_name.setdefault(name, block) == block:
                own[block] = name

    def forget_name(self, block: int) -> None:
        """Removes the name of a block, because its content is about to change."""
        name = self._names[block]
        if name is not None:
            del self._by_name[name]
            self._names[block] = None
