"""Messages and tensors between two ranks of a process group."""

from __future__ import annotations

import array
import datetime
import json
import struct
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from .errors import TransferError

# The size of the parcel that a message is sent in, which both sides know. What does not fit in comes after.
OFFER_BYTES, ANSWER_BYTES = 64 << 10, 1 << 10
_SIZES = struct.Struct("<qq")  # the bytes of the JSON text and of the numbers, at the beginning of a parcel


class Message(NamedTuple):
    """What JSON can hold, and 64-bit integers."""

    content: dict[str, Any]
    numbers: array.array[int] = array.array("q")

    def to_bytes(self) -> bytes:
        """Returns what from_bytes reads."""
        text, numbers = json.dumps(self.content).encode(), self.numbers.tobytes()
        return b"".join((_SIZES.pack(len(text), len(numbers)), text, numbers))

    @classmethod
    def from_bytes(cls, parcel: bytearray) -> Message:
        """Reads a message, which other bytes may follow."""
        text, numbers = _SIZES.unpack_from(parcel)
        middle = _SIZES.size + text
        return cls(json.loads(parcel[_SIZES.size : middle]), array.array("q", parcel[middle : middle + numbers]))

    @staticmethod
    def num_bytes(parcel: bytearray) -> int:
        """Returns the size of a message that begins with these bytes."""
        text, numbers = _SIZES.unpack_from(parcel)
        return _SIZES.size + int(text) + int(numbers)


class Pending:
    """A tensor that is being sent or received.

    If the tensor is on a GPU, wait() orders the current stream after the transfer. The host waits only if the channel
    has a timeout.
    """

    def __init__(self, channel: Channel, work: dist.Work | None, tensor: Tensor) -> None:
        """Keeps the tensor alive until it has arrived."""
        self._channel, self._work, self.tensor = channel, work, tensor

    def wait(self) -> Tensor:
        """Waits, and returns the tensor."""
        with self._channel.explained():
            if self._work is not None:
                if self._channel.timeout is None:
                    self._work.wait()
                else:
                    self._work.wait(self._channel.timeout)
                self._work = None  # gloo's work would wait for a second tensor
        return self.tensor


class Explained:
    """Turns errors of the process group into a TransferError that names the peer."""

    def __init__(self, call: str, peer: int) -> None:
        """Begins an action of `call` with `peer`."""
        self._call, self._peer = call, peer

    def __enter__(self) -> None:
        """Does nothing."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Raises a TransferError for an error of torch.distributed."""
        if isinstance(error, (RuntimeError, ValueError)) and not isinstance(error, TransferError):
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise TransferError(f"{self._call}: rank {self._peer} died or did not answer in time: {reason}") from error


class Channel:
    """The way to one peer.

    Chunks are on `device`: that of the cache for nccl, else the host. Messages are on the host if the group has a
    backend for it, because a message that goes through a GPU waits for the chunks before it.
    """

    def __init__(
        self, call: str, peer: int, group: dist.ProcessGroup | None, device: torch.device, timeout: float | None
    ) -> None:
        """Names the peer by its global rank. `device` is that of the cache.

        timeout is in seconds, None: that of the group.
        """
        self.call, self.peer, self._group = call, peer, group
        self.timeout = None if timeout is None else datetime.timedelta(seconds=timeout)
        backends = str(dist.get_backend_config(group))
        host = torch.device("cpu")
        self.device = device if device.type == "cuda" and "cuda:nccl" in backends else host
        self._device_of_messages = host if "cpu:" in backends else self.device
        self._sent: list[Pending] = []  # messages that may be on their way

    def explained(self) -> Explained:
        """Explains errors of the body of a `with` statement."""
        return Explained(self.call, self.peer)

    def start_sending(self, chunk: Tensor) -> Pending:
        """Sends a chunk, which must not change before wait()."""
        return self._start_sending(chunk)

    def start_receiving(self, chunk: Tensor) -> Pending:
        """Receives a chunk."""
        return self._start_receiving(chunk)

    def send(self, message: Message, parcel_bytes: int = ANSWER_BYTES) -> None:
        """Begins to send a message."""
        self.send_parts(self.parts(message, parcel_bytes))

    def parts(self, message: Message, parcel_bytes: int = ANSWER_BYTES) -> list[Tensor]:
        """Returns what send_parts sends."""
        content = torch.frombuffer(bytearray(message.to_bytes().ljust(parcel_bytes, b"\0")), dtype=torch.uint8)
        content = content.to(self._device_of_messages)
        return [part for part in (content[:parcel_bytes], content[parcel_bytes:]) if len(part)]

    def send_parts(self, parts: list[Tensor]) -> None:
        """Begins to send a message that was prepared."""
        self._sent += map(self._start_sending, parts)

    def flush(self) -> None:
        """Waits until all messages are sent."""
        while self._sent:
            self._sent.pop().wait()

    def receive(self, parcel_bytes: int = ANSWER_BYTES) -> Message:
        """Receives a message. Raises a TransferError if it says that the peer has failed."""
        parcel = self._receive_bytes(parcel_bytes)
        parcel += self._receive_bytes(max(Message.num_bytes(parcel) - parcel_bytes, 0))
        message = Message.from_bytes(parcel)
        if "error" in message.content:
            raise TransferError(f"{self.call}: rank {self.peer} refused: {message.content['error']}")
        return message

    def _receive_bytes(self, count: int) -> bytearray:
        content = bytearray(count)
        if content:
            memory = torch.frombuffer(content, dtype=torch.uint8)
            received = torch.empty_like(memory, device=self._device_of_messages)
            memory.copy_(self._start_receiving(received).wait())
        return content

    def _start_sending(self, tensor: Tensor) -> Pending:
        with self.explained():
            return Pending(self, dist.isend(tensor, self.peer, self._group), tensor)

    def _start_receiving(self, tensor: Tensor) -> Pending:
        with self.explained():
            return Pending(self, dist.irecv(tensor, self.peer, self._group), tensor)
