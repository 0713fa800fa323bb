"""What a sender offers: its first message."""

from __future__ import annotations

import array
from dataclasses import dataclass, field

from ..pool import Sequence
from .channel import OFFER_BYTES, Channel, Message
from .errors import TransferError
from .plan import Chunk, Geometry

_VERSION = 3


@dataclass
class Offer:
    """The sequences of a sender."""

    geometry: Geometry
    chunk_bytes: int
    num_receivers: int
    early: Chunk | None  # is sent without an answer
    lengths: list[int]
    written: list[int]
    roots: list[str]
    tokens: array.array[int] = field(default_factory=lambda: array.array("q"))

    @classmethod
    def of(
        cls, sequences: list[Sequence], geometry: Geometry, chunk_bytes: int, num_receivers: int, early: Chunk | None
    ) -> Offer:
        """Describes sequences."""
        tokens = array.array("q")
        for sequence in sequences:
            tokens.extend(sequence.tokens)
        lengths = [len(sequence) for sequence in sequences]
        written = [sequence.num_written for sequence in sequences]
        roots = [sequence._root.hex() for sequence in sequences]
        return cls(geometry, chunk_bytes, num_receivers, early, lengths, written, roots, tokens)

    def send(self, channel: Channel) -> None:
        """Sends the offer."""
        content = dict(vars(self))
        numbers = content.pop("tokens")
        content |= {"version": _VERSION, "geometry": self.geometry.to_json()}
        channel.send(Message(content, numbers), OFFER_BYTES)

    @classmethod
    def receive(cls, channel: Channel) -> Offer:
        """Receives an offer, or raises a TransferError."""
        content, tokens = channel.receive(OFFER_BYTES)
        version = content.pop("version", None)
        if version != _VERSION:
            raise TransferError(f"receive: rank {channel.peer} speaks version {version}, not {_VERSION}")
        content["geometry"] = Geometry.from_json(content["geometry"])
        content["early"] = Chunk(*content["early"]) if content["early"] else None
        return cls(**content, tokens=tokens)

    def drafts(self) -> list[Sequence]:
        """Returns the sequences without blocks."""
        drafts, begin = [], 0
        for length, root in zip(self.lengths, self.roots, strict=True):
            drafts.append(Sequence(self.tokens[begin : begin + length], bytes.fromhex(root), None))
            begin += length
        return drafts

    def has_sequences_of(self, other: Offer) -> bool:
        """Returns whether another sender has the same sequences."""
        names = ("lengths", "written", "roots", "tokens")
        return all(getattr(self, name) == getattr(other, name) for name in names)
