"""What a cache raises when it is full."""

from __future__ import annotations

__all__ = ["OutOfBlocks"]


class OutOfBlocks(RuntimeError):  # noqa: N818 - the name says what happened
    """A call needs more blocks than are free. It has changed no sequence, so it can be made again when blocks are free.

    Attributes:
        wanted: the number of blocks that the call needs.
        free: the number of blocks that are free, or whose cached content no sequence uses.

    Example:
        >>> cache = multikv.PagedKVCache(1, 8, 64, num_blocks=4)
        >>> try:
        ...     batch = cache.extend([cache.new(range(100))])
        ... except multikv.OutOfBlocks as error:
        ...     print(error.wanted, error.free, error, sep=" | ")
        7 | 4 | extend: 7 blocks wanted, 4 of 4 device blocks are free; free, truncate or offload sequences
    """

    def __init__(self, call: str, wanted: int, free: int, total: int, tier: str) -> None:
        """Describes the call that failed; `tier` is "device" or "host"."""
        advice = "free, truncate or offload sequences" if tier == "device" else "free or restore sequences"
        super().__init__(f"{call}: {wanted} blocks wanted, {free} of {total} {tier} blocks are free; {advice}")
        self.wanted, self.free = wanted, free
