"""A sender, as the receiver of a hand-over sees it."""

from __future__ import annotations

import contextlib
import itertools
from typing import Any

from torch import Tensor

from ..pool import Sequence
from ..pool.paged import PagedCache
from .channel import Channel
from .errors import TransferError
from .offer import Manifest, Offer
from .plan import Geometry, alignment
from .staging import Incoming, Staging


class Source:
    """A sender, as the receiver sees it."""

    def __init__(self, cache: PagedCache, mine: Geometry, channel: Channel) -> None:
        """Receives the offer, and begins to receive the early chunks."""
        self._cache, self._mine, self.channel = cache, mine, channel
        self.heads = range(0)  # those that the source sends
        self._num_wrong: Tensor | None = None  # tokens whose checksums differ
        offer = self.offer = Offer.receive(channel)
        self._num_useless = len(offer.early)  # the early chunks, from the first on, that the receiver cannot use
        self._incoming = self._make(offer.geometry.heads)
        self._early = iter(offer.early)
        self._expect_early(1)
        manifest = Manifest.expect(channel, offer)
        self._expect_early(offer.num_before_answer - 1)
        self.manifest = Manifest.receive(manifest, offer.num_sequences)

    def reply(self, message: dict[str, Any]) -> None:
        """Sends the answer.

        If there are several early chunks, the receive of the last one is queued between the parcel and the rest of the
        answer. The sender queues its side in the same order.
        """
        first, *others = self.channel.parts(message)
        self.channel.send_parts([first])
        self._expect_early(1)
        self.channel.send_parts(others)

    def answer(self, starts: list[int]) -> None:
        """Says what the receiver has, and wants."""
        offer, theirs = self.offer, self.offer.geometry
        unit = alignment(theirs, self._mine)
        if self.heads == theirs.heads:
            self._num_useless = max(
                (i for i, x in enumerate(offer.early, 1) if x.begin % unit or x.begin < starts[x.sequence]), default=0
            )
        self._chunks = offer.chunks(self._mine, self.heads, starts, [*self.manifest.written], self._num_useless)
        answer = {"geometry": vars(self._mine), "starts": starts, "useless": self._num_useless}
        self.reply(answer | {"heads": [self.heads.start, self.heads.stop]})

    def receive(self, sequences: list[Sequence]) -> None:
        """Receives the chunks. On a GPU this queues the work."""
        if self.offer.num_receivers > 1:
            self.channel.receive()
        useless = self.offer.early[: self._num_useless]
        if self.heads != self.offer.geometry.heads:
            self._incoming.wait()
            self._incoming, useless = self._make(self.heads), []
        if self.heads and self._chunks.num_tokens:
            checksums = self._incoming.unpack(sequences, useless, self._chunks).wait()
            self._num_wrong = (checksums != self._incoming.staging.checksums).sum()

    def fault(self) -> str | None:
        """Waits for the chunks, and says what is wrong with them, if anything."""
        num_wrong = 0 if self._num_wrong is None else int(self._num_wrong)
        return f"the checksums of {num_wrong} of {self._chunks.num_tokens} tokens differ" if num_wrong else None

    def drain(self) -> None:
        """Waits for the early chunks, so that their memory is not written after it is freed."""
        with contextlib.suppress(TransferError):
            self._incoming.wait()

    def _make(self, heads: range) -> Incoming:
        token_bytes, num_tokens = self.offer.geometry.bytes_of(heads), self.offer.num_tokens
        staging = Staging(self._cache, self._mine.local(heads), self.channel.device, token_bytes, num_tokens)
        return Incoming(staging, self.channel)

    def _expect_early(self, count: int) -> None:
        for chunk in itertools.islice(self._early, count):
            self._incoming.expect(chunk, self.offer.early[-1].num_tokens)
