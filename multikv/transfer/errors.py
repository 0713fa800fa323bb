"""What a hand-over raises when it fails."""

from __future__ import annotations

__all__ = ["TransferError"]


class TransferError(RuntimeError):
    """A hand-over failed. The cache of the rank that raises this error has the sequences that it had before.

    If a sender has several receivers, those that have finished before the error keep the new sequences.

    The message names the peer and the reason: caches that do not fit each other, a peer that refused, died or did not
    answer in time, or blocks whose checksums differ.
    """
