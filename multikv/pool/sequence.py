"""Sequences: tokens, and the blocks that hold their keys and values."""

from __future__ import annotations

import array
import typing
from collections.abc import Iterable

from .arguments import as_tokens
from .blocks import BlockPool

if typing.TYPE_CHECKING:
    import torch

__all__ = ["Sequence"]


class Sequence:
    """The tokens of one conversation, and where a cache holds them. A cache makes sequences by `new` and `fork`.

    All attributes are for reading. `append` and the methods of the cache change them.

    Attributes:
        tokens: array of 64-bit integers, all tokens in order.
        num_written: the number of tokens, from the first on, that the cache holds in all layers. The others are
            *pending*: the next `extend` makes slots for them.
        num_cached_tokens: the number of tokens that `new` found in the cache, a multiple of the block size.
        blocks: array of integers: block `blocks[i]` holds the block_size positions from `i * block_size` on.
        is_offloaded: whether the blocks are in the host tier.

    Example:
        >>> cache = multikv.PagedKVCache(num_layers=1, num_kv_heads=8, head_size=64, num_blocks=64)
        >>> sequence = cache.new([1, 2, 3])
        >>> sequence.append(4)
        >>> len(sequence), sequence.num_pending, sequence.tokens
        (4, 4, array('q', [1, 2, 3, 4]))
    """

    __slots__ = (
        "_capacity",
        "_names",
        "_pool",
        "_ready",
        "_root",
        "_shares_tail",
        "blocks",
        "is_offloaded",
        "num_cached_tokens",
        "num_written",
        "tokens",
    )

    def __init__(self, tokens: array.array[int], root: bytes, pool: BlockPool | None) -> None:
        """Makes a sequence without blocks."""
        self.tokens = tokens
        self.blocks: array.array[int] = array.array("i")
        self.num_written = 0
        self.num_cached_tokens = 0
        self.is_offloaded = False
        self._capacity = 0  # the number of slots of `blocks`
        self._root = root
        self._names: list[bytes] = []  # of full blocks of tokens, as far as they are known; written or not
        self._pool: BlockPool | None = pool  # where the blocks are; None: the sequence was freed
        # True: the block of the next slot may have a name, or may be in use by another sequence.
        self._shares_tail = False
        self._ready: torch.cuda.Event | None = None  # when the blocks have come from the host

    def __len__(self) -> int:
        """Returns the number of tokens."""
        return len(self.tokens)

    def __repr__(self) -> str:
        """Describes the sequence in one line."""
        state = "freed" if self._pool is None else "offloaded" if self.is_offloaded else "on the device"
        return f"<Sequence: {len(self)} tokens, {self.num_written} written, {len(self.blocks)} blocks, {state}>"

    @property
    def num_pending(self) -> int:
        """The number of tokens that were not written yet."""
        return len(self.tokens) - self.num_written

    def append(self, *tokens: int) -> None:
        """Appends tokens, such as those that the model has chosen."""
        try:
            if len(tokens) == 1:
                self.tokens.append(tokens[0])
                return
        except (TypeError, OverflowError):
            pass  # as_tokens says what is wrong
        self.tokens.extend(as_tokens("append", tokens))

    def _hold(self, blocks: Iterable[int], block_size: int) -> None:
        """Appends blocks."""
        self.blocks.extend(blocks)
        self._capacity = len(self.blocks) * block_size

    def _replace(self, blocks: Iterable[int], block_size: int) -> None:
        """Replaces all blocks."""
        self.blocks = array.array("i", blocks)
        self._capacity = len(self.blocks) * block_size
