"""What two sides must agree on: the shapes of their caches, the heads that go from one to the other, and the chunks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch

from ..pool.paged import PagedCache
from .errors import TransferError

_MANY_CHUNKS = 3


@dataclass(frozen=True)
class Geometry:
    """The shape and format of the share of a model's cache that one rank holds."""

    num_planes: int
    head_size: int
    element_bytes: int
    format: str
    block_size: int
    first_head: int
    num_heads: int
    scales: list[list[float]]  # of k and v (MLA: one list), one number for each head; empty without scales

    @classmethod
    def of(cls, cache: PagedCache, first_head: int) -> Geometry:
        """Describes a cache, whose first head is head `first_head` of the model."""
        plane = cache.planes[0]
        format = cache.kv_cache_dtype if plane.dtype == torch.uint8 else str(plane.dtype).removeprefix("torch.")
        has_scales = plane.dtype.itemsize == 1 and plane.dtype != torch.uint8
        scales = [x.expand(plane.size(2)).tolist() for x in cache.scales] if has_scales else []
        sizes = len(cache.planes), plane.size(3), plane.element_size()
        return cls(*sizes, format, cache.block_size, first_head, plane.size(2), scales)

    def bytes_of(self, heads: range) -> int:
        """Returns the bytes of a token in some heads of all planes."""
        return self.num_planes * len(heads) * self.head_size * self.element_bytes

    @property
    def heads(self) -> range:
        """The heads of the model that this rank holds."""
        return range(self.first_head, self.first_head + self.num_heads)

    def local(self, heads: range) -> range:
        """Counts heads of the model from the first of this rank."""
        return range(heads.start - self.first_head, heads.stop - self.first_head)

    def difference(self, other: Geometry, heads: range) -> str | None:
        """Says why heads of another cache cannot be copied to this one, or returns None."""
        for name in ("num_planes", "head_size", "element_bytes", "format"):
            if getattr(self, name) != getattr(other, name):
                return f"{name}: expected {getattr(self, name)}, got {getattr(other, name)}"
        for mine, theirs in zip(self.scales, other.scales, strict=True):
            for head in heads:
                a, b = mine[head - self.first_head], theirs[head - other.first_head]
                if a != b:
                    return f"scale of head {head}: expected {a}, got {b}"
        return None


def assign_heads(mine: Geometry, sources: dict[int, Geometry]) -> dict[int, range]:
    """Returns the heads that each source sends. A head that several sources hold comes from the first of them."""
    missing = set(mine.heads)
    chosen: dict[int, range] = {}
    for rank, source in sources.items():
        taken = sorted(missing.intersection(source.heads))
        chosen[rank] = range(taken[0], taken[-1] + 1) if taken else range(0)
        if len(taken) != len(chosen[rank]):
            raise TransferError(f"rank {rank}: expected neighbouring heads, got {taken}")
        missing.difference_update(taken)
    if missing:
        raise TransferError(f"no source holds the heads {sorted(missing)}")
    return chosen


class Chunk(NamedTuple):
    """Positions begin to end of a sequence, which are packed and sent together."""

    sequence: int
    begin: int
    end: int

    @property
    def num_tokens(self) -> int:
        """The number of positions."""
        return self.end - self.begin


@dataclass(frozen=True)
class Chunks:
    """The chunks of a hand-over. Each chunk begins at the start of a block on both sides."""

    starts: list[int]  # of each sequence, the first position that is sent
    ends: list[int]
    unit: int  # chunks begin at multiples of this number of tokens
    size: int  # the most tokens of a chunk that is not early
    early: list[Chunk]  # the end of a sequence, which is sent before the receiver has answered

    @classmethod
    def of(
        cls,
        starts: list[int],
        ends: list[int],
        unit: int,
        token_bytes: int,
        chunk_bytes: int,
        early: list[Chunk] | None = None,
    ) -> Chunks:
        """Plans chunks of about chunk_bytes; both sides get the same."""
        longest = max((end - start for start, end in zip(starts, ends, strict=True)), default=0)
        size = min(_tokens_of(chunk_bytes, token_bytes, unit), -(-longest // unit) * unit)
        return cls(starts, ends, unit, size, early or [])

    @property
    def num_tokens(self) -> int:
        """The tokens of all chunks."""
        return sum(self.ends) - sum(self.starts)

    def __iter__(self) -> Iterator[Chunk]:
        """Yields the chunks in the order in which they are sent.

        If there are more than _MANY_CHUNKS chunks, the last one is split into about three quarters and one quarter, so
        that little is left to unpack when the last bytes arrive. An early chunk is not split.
        """
        chunks = self.early[:]
        for i, (start, end) in enumerate(zip(self.starts, self.ends, strict=True)):
            stop = self.early[0].begin if self.early and self.early[0].sequence == i else end
            chunks += [Chunk(i, begin, min(begin + self.size, stop)) for begin in range(start, stop, max(self.size, 1))]
        if len(chunks) > max(len(self.early), _MANY_CHUNKS):
            i, begin, end = chunks.pop()
            middle = begin + 3 * (end - begin) // 4 // self.unit * self.unit
            chunks += [Chunk(i, begin, middle)] * (begin < middle) + [Chunk(i, middle, end)]
        return iter(chunks)


def num_tokens(chunks: Iterable[Chunk]) -> int:
    """Returns the tokens of chunks."""
    return sum(chunk.num_tokens for chunk in chunks)


def early_chunks(written: list[int], unit: int, token_bytes: int, chunk_bytes: int) -> list[Chunk]:
    """Returns what a sender sends before it knows what the receiver has: the end of the longest sequence.

    The first chunk has a quarter of the usual size, so that little has to be packed before bytes flow. At most two more
    follow, and all together they have at most three quarters of the tokens.
    """
    longest = max(written, default=0)
    size = _tokens_of(chunk_bytes, token_bytes, unit)
    first = max(size // 4 // unit, 1) * unit
    begin = -(-max(longest - sum(written) * 3 // 4, longest - first - 2 * size, 0) // unit) * unit
    cuts = [begin, *range(begin + first, longest, size), longest]
    return [Chunk(written.index(longest), *cut) for cut in itertools.pairwise(cuts) if begin < longest]


def _tokens_of(chunk_bytes: int, token_bytes: int, unit: int) -> int:
    """Returns the tokens of a chunk, at least one unit."""
    return max(chunk_bytes // max(token_bytes, 1) // unit, 1) * unit


def alignment(one: Geometry, other: Geometry) -> int:
    """Returns the smallest number of tokens that fills whole blocks on both sides."""
    return math.lcm(one.block_size, other.block_size)
