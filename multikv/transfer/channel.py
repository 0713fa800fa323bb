"""Messages and tensors between two ranks of a process group."""

from __future__ import annotations

import datetime
import json
import struct
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .errors import TransferError

_PARCEL_BYTES = 2 << 10  # a message is sent in a parcel of this size, which both sides know; the rest of it comes after
_SIZE = struct.Struct("<q")  # the bytes of the JSON text, at the beginning of a parcel


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


def bytes_of(pending: Pending) -> bytearray:
    """Waits for a tensor, and returns its content."""
    received = pending.wait()
    content = bytearray(len(received))
    if content:
        torch.frombuffer(content, dtype=torch.uint8).copy_(received)
    return content


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

    def send(self, message: dict[str, Any]) -> None:
        """Begins to send a message, which is what JSON can hold."""
        self.send_parts(self.parts(message))

    def parts(self, message: dict[str, Any]) -> list[Tensor]:
        """Returns what send_parts sends: a parcel, and the rest of the message if there is one."""
        text = json.dumps(message).encode()
        content = bytearray((_SIZE.pack(len(text)) + text).ljust(_PARCEL_BYTES, b"\0"))
        return [self._sendable(part) for part in (content[:_PARCEL_BYTES], content[_PARCEL_BYTES:]) if part]

    def send_parts(self, parts: list[Tensor]) -> None:
        """Begins to send a message that was prepared."""
        self._sent += map(self._start_sending, parts)

    def send_bytes(self, content: bytearray) -> None:
        """Begins to send bytes whose number the peer knows."""
        if content:
            self.send_parts([self._sendable(content)])

    def flush(self) -> None:
        """Waits until all messages are sent."""
        while self._sent:
            self._sent.pop().wait()

    def expect(self, num_bytes: int = _PARCEL_BYTES) -> Pending:
        """Begins to receive the parcel of a message, or other bytes whose number is known."""
        memory = torch.empty(num_bytes, dtype=torch.uint8, device=self._device_of_messages)
        return self._start_receiving(memory) if num_bytes else Pending(self, None, memory)

    def receive(self, parcel: Pending | None = None) -> dict[str, Any]:
        """Returns the next message, or the one whose parcel is expected. Raises a TransferError if the peer failed."""
        content = bytes_of(parcel or self.expect())
        (size,) = _SIZE.unpack_from(content)
        missing = _SIZE.size + size - len(content)
        if missing > 0:
            content += bytes_of(self.expect(missing))
        message: dict[str, Any] = json.loads(content[_SIZE.size : _SIZE.size + size])
        if "error" in message:
            raise TransferError(f"{self.call}: rank {self.peer} refused: {message['error']}")
        return message

    def _sendable(self, content: bytearray) -> Tensor:
        # Memory that is not pinned is copied before the call returns, also if it does not wait for the GPU.
        return torch.frombuffer(content, dtype=torch.uint8).to(self._device_of_messages, non_blocking=True)

    def _start_sending(self, tensor: Tensor) -> Pending:
        with self.explained():
            return Pending(self, dist.isend(tensor, self.peer, self._group), tensor)

    def _start_receiving(self, tensor: Tensor) -> Pending:
        with self.explained():
            return Pending(self, dist.irecv(tensor, self.peer, self._group), tensor)
