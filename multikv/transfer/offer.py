"""What a sender says at first: an offer of a known size, and a manifest of its sequences."""

from __future__ import annotations

import array
import itertools
from dataclasses import dataclass

from ..pool import Sequence
from .channel import Channel, Pending, bytes_of
from .errors import TransferError
from .plan import Chunk, Chunks, Geometry, alignment

_VERSION = 4
_NUMBER_BYTES = 8
_ROOT_NUMBERS = 4  # the root of a sequence has 32 bytes


@dataclass
class Offer:
    """How a sender sends, and how much."""

    geometry: Geometry
    chunk_bytes: int
    num_receivers: int
    early: list[Chunk]  # the sender queues them before it reads the answer
    num_sequences: int
    num_tokens: int  # of the manifest

    @property
    def num_before_answer(self) -> int:
        """How many early chunks are queued before the answer: all but the last, and at least one."""
        return max(len(self.early) - 1, 1)

    def chunks(self, receiver: Geometry, heads: range, starts: list[int], ends: list[int], num_useless: int) -> Chunks:
        """Plans the chunks of some heads, without the first num_useless early ones; both sides get the same."""
        unit, early = alignment(self.geometry, receiver), self.early[num_useless:]
        return Chunks.of(starts, ends, unit, self.geometry.bytes_of(heads), self.chunk_bytes, early)

    def send(self, channel: Channel) -> None:
        """Begins to send the offer."""
        channel.send(vars(self) | {"version": _VERSION, "geometry": vars(self.geometry)})

    @classmethod
    def receive(cls, channel: Channel) -> Offer:
        """Receives an offer, or raises a TransferError."""
        content = channel.receive()
        version = content.pop("version", None)
        if version != _VERSION:
            raise TransferError(f"receive: rank {channel.peer} speaks version {version}, not {_VERSION}")
        content["geometry"] = Geometry(**content["geometry"])
        content["early"] = [Chunk(*chunk) for chunk in content["early"]]
        return cls(**content)


@dataclass
class Manifest:
    """The sequences of a sender."""

    lengths: array.array[int]
    written: array.array[int]
    roots: array.array[int]  # of each sequence _ROOT_NUMBERS
    tokens: array.array[int]

    @classmethod
    def of(cls, sequences: list[Sequence]) -> Manifest:
        """Describes sequences."""
        manifest = cls(*(array.array("q") for _ in range(4)))
        for sequence in sequences:
            manifest.lengths.append(len(sequence))
            manifest.written.append(sequence.num_written)
            manifest.roots.frombytes(sequence._root)
            manifest.tokens.extend(sequence.tokens)
        return manifest

    def send(self, channel: Channel) -> None:
        """Begins to send the manifest."""
        channel.send_bytes(bytearray(self.lengths + self.written + self.roots + self.tokens))

    @staticmethod
    def expect(channel: Channel, offer: Offer) -> Pending:
        """Begins to receive a manifest."""
        return channel.expect(((2 + _ROOT_NUMBERS) * offer.num_sequences + offer.num_tokens) * _NUMBER_BYTES)

    @classmethod
    def receive(cls, pending: Pending, num_sequences: int) -> Manifest:
        """Waits for a manifest."""
        numbers = array.array("q", bytes(bytes_of(pending)))
        cuts = 0, num_sequences, 2 * num_sequences, (2 + _ROOT_NUMBERS) * num_sequences, len(numbers)
        return cls(*(numbers[begin:end] for begin, end in itertools.pairwise(cuts)))

    def drafts(self) -> list[Sequence]:
        """Returns the sequences without blocks."""
        drafts, begin = [], 0
        for i, length in enumerate(self.lengths):
            root = self.roots[i * _ROOT_NUMBERS : (i + 1) * _ROOT_NUMBERS].tobytes()
            drafts.append(Sequence(self.tokens[begin : begin + length], root, None))
            begin += length
        return drafts
