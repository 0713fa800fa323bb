"""What a hand-over raises when it fails."""

from __future__ import annotations

__all__ = ["TransferError"]


class TransferError(RuntimeError):
    """A hand-over failed. The caches of both sides are as they were before it.

    The message names the peer and the reason: caches that do not fit each other, a peer that refused, died or did not
    answer in time, or blocks whose checksums differ.
    """
