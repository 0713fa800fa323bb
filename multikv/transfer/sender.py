"""The side of a hand-over that sends."""

from __future__ import annotations

import contextlib
import itertools
from typing import Any

from ..pool import Sequence
from ..pool.paged import PagedCache
from .channel import Channel, Pending
from .errors import TransferError
from .offer import Manifest, Offer
from .plan import Geometry, early_chunks, num_tokens
from .staging import Outgoing, Staging


class Sender:
    """What a sender does with its receivers."""

    def __init__(
        self, cache: PagedCache, sequences: list[Sequence], first_head: int, chunk_bytes: int, channels: list[Channel]
    ) -> None:
        """Sends nothing yet."""
        self._cache, self._sequences, self._channels = cache, sequences, channels
        self._written = [sequence.num_written for sequence in sequences]
        self._outgoing: Outgoing | None = None  # that of the early chunks
        self._started: list[Outgoing] = []  # all
        self._parcel: Pending | None = None  # of the answer, if it is expected already
        geometry, early = Geometry.of(cache, first_head), []
        if len(channels) == 1 and _starts_early(channels[0]):
            early = early_chunks(self._written, cache.block_size, geometry.bytes_of(geometry.heads), chunk_bytes)
        sizes = len(sequences), sum(map(len, sequences))
        self._offer = Offer(geometry, chunk_bytes, len(channels), early, *sizes)

    def start(self) -> None:
        """Sends all that comes before the answers."""
        for channel in self._channels:
            self._offer.send(channel)
        self._send_early(0, 1)
        manifest = Manifest.of(self._sequences)
        for channel in self._channels:
            manifest.send(channel)
        place = self._offer.num_before_answer
        self._send_early(1, place)
        if self._offer.early[place:]:
            self._parcel = self._channels[0].expect()
            self._send_early(place, place + 1)

    def _send_early(self, begin: int, end: int) -> None:
        early = self._offer.early
        for chunk in early[begin:end]:
            if self._outgoing is None:
                self._outgoing = self._make(self._channels[0], self._offer.geometry.heads)
            self._outgoing.send(chunk, early[-1].num_tokens).result()  # before the next message

    def answers(self) -> list[dict[str, Any]]:
        """Returns what the receivers answer. If one of several refuses, the others are told so."""
        answers: list[dict[str, Any] | TransferError] = []
        for channel in self._channels:
            try:
                answers.append(channel.receive(self._parcel))
            except TransferError as error:
                answers.append(error)
        failures = [answer for answer in answers if isinstance(answer, TransferError)]
        for channel, answer in zip(self._channels, answers, strict=True):
            if not isinstance(answer, TransferError) and len(self._channels) > 1:
                channel.send({"error": str(failures[0])} if failures else {"go": True})
        if failures:
            for channel in self._channels:
                channel.flush()
            raise failures[0]
        return [answer for answer in answers if not isinstance(answer, TransferError)]

    def send(self, channel: Channel, answer: dict[str, Any]) -> None:
        """Sends what a receiver wants."""
        heads, theirs = range(*answer["heads"]), Geometry(**answer["geometry"])
        if not heads:
            return
        spans = answer["starts"], self._written
        chunks = self._offer.chunks(theirs, heads, *spans, answer["useless"])
        outgoing, num_useless = self._outgoing, num_tokens(self._offer.early[: answer["useless"]])
        if outgoing is None or heads != self._offer.geometry.heads:
            outgoing, num_useless = self._make(channel, heads), 0
        for chunk in itertools.islice(chunks, len(chunks.early), None):
            outgoing.send(chunk, chunks.size)
        outgoing.finish(num_useless)

    def drain(self) -> None:
        """Waits for all chunks, so that their memory is not reused while it is read."""
        for outgoing in self._started:
            with contextlib.suppress(TransferError):
                outgoing.wait()

    def _make(self, channel: Channel, heads: range) -> Outgoing:
        geometry, most = self._offer.geometry, sum(self._written) + num_tokens(self._offer.early)
        staging = Staging(self._cache, geometry.local(heads), channel.device, geometry.bytes_of(heads), most)
        self._started.append(Outgoing(staging, self._sequences, channel))
        return self._started[-1]


def _starts_early(channel: Channel) -> bool:
    """Returns whether to send chunks before the answer, which pays if they take less time than messages."""
    return channel.device.type == "cuda"
