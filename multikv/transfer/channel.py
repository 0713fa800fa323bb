"""Messages and tensors between two ranks of a process group."""

from __future__ import annotations

import array
import datetime
import json
import struct
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .errors import TransferError

Message = dict[str, Any]
# A message is sent as a parcel of this size, which begins with the message's length; what does not fit in comes after.
_PARCEL_BYTES, _LENGTH = 4096, struct.Struct("<q")


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
    """The way to one peer. All tensors are on `device`: that of the cache for nccl, else the host."""

    def __init__(
        self, call: str, peer: int, group: dist.ProcessGroup | None, device: torch.device, timeout: float | None
    ) -> None:
        """Names the peer by its global rank; timeout is in seconds, None: that of the group."""
        self.call, self.peer, self._group, self.device = call, peer, group, device
        self.timeout = None if timeout is None else datetime.timedelta(seconds=timeout)

    def explained(self) -> Explained:
        """Explains errors of the body of a `with` statement."""
        return Explained(self.call, self.peer)

    def start_sending(self, tensor: Tensor) -> Pending:
        """Sends a tensor, which must not change before wait()."""
        with self.explained():
            return Pending(self, dist.isend(tensor, self.peer, self._group), tensor)

    def start_receiving(self, tensor: Tensor) -> Pending:
        """Receives into a tensor."""
        with self.explained():
            return Pending(self, dist.irecv(tensor, self.peer, self._group), tensor)

    def send_numbers(self, numbers: array.array[int]) -> None:
        """Sends 64-bit integers, whose number the peer knows."""
        self._send_bytes(bytearray(numbers.tobytes()))

    def receive_numbers(self, count: int) -> array.array[int]:
        """Receives 64-bit integers."""
        return array.array("q", bytes(self._receive_bytes(8 * count)))

    def send(self, message: Message) -> None:
        """Sends a message that JSON can hold."""
        content = json.dumps(message).encode()
        parcel = bytearray(_LENGTH.pack(len(content)) + content).ljust(_PARCEL_BYTES, b"\0")
        self._send_bytes(parcel[:_PARCEL_BYTES])
        self._send_bytes(parcel[_PARCEL_BYTES:])

    def receive(self) -> Message:
        """Receives a message. Raises a TransferError if it says that the peer has failed."""
        parcel = self._receive_bytes(_PARCEL_BYTES)
        end = _LENGTH.size + _LENGTH.unpack_from(parcel)[0]
        parcel += self._receive_bytes(max(end - _PARCEL_BYTES, 0))
        message: Message = json.loads(parcel[_LENGTH.size : end])
        if "error" in message:
            raise TransferError(f"{self.call}: rank {self.peer} refused: {message['error']}")
        return message

    def _send_bytes(self, content: bytearray) -> None:
        if content:
            self.start_sending(torch.frombuffer(content, dtype=torch.uint8).to(self.device)).wait()

    def _receive_bytes(self, count: int) -> bytearray:
        content = bytearray(count)
        if content:
            received = self.start_receiving(torch.empty(count, dtype=torch.uint8, device=self.device)).wait()
            torch.frombuffer(content, dtype=torch.uint8).copy_(received)
        return content


def carrier(group: dist.ProcessGroup | None, device: torch.device) -> torch.device:
    """Returns the device whose tensors a group sends: the GPU for nccl, else the host."""
    is_direct = device.type == "cuda" and "cuda:nccl" in str(dist.get_backend_config(group))
    return device if is_direct else torch.device("cpu")
