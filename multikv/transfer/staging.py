"""The pipeline: chunks are packed and unpacked while others are on their way.

A chunk travels as a packet, which holds its checksums too:

    | a checksum for each token | padding | packed tokens |

On GPUs everything is queued in the caller's stream and in nccl's, and the host waits once, at the end. With gloo three
threads of each process work at the same time. On the sender the caller's thread packs a chunk, a second one hashes the
chunk before it and hands it to gloo, and gloo's own thread sends. On the receiver the caller's thread unpacks a chunk,
a second one hashes the same chunk, and gloo's own thread receives the next ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor

from ..offload import empty_pinned
from ..ops import checksum_blocks, pack_layers, unpack_layers
from ..pool import Sequence
from ..pool.paged import PagedCache
from .channel import Channel, Pending
from .plan import Chunk, Chunks

_NUM_PACKETS = 3
_CHECKSUM_BYTES, _ALIGNMENT = 8, 128
_P = ParamSpec("_P")
_T = TypeVar("_T")


class _SameThread(Executor):
    """Runs a function at once, in the caller's thread. On a GPU this queues work in the thread's current stream."""

    def submit(self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
        """Returns what the function returns, in a Future."""
        future: Future[_T] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


class Packet(NamedTuple):
    """A chunk as it travels: views of one memory."""

    content: Tensor  # all bytes
    checksums: Tensor  # [tokens, 1]
    rows: Tensor  # [tokens, planes, heads, head_size]


def packet_bytes(num_tokens: int, token_bytes: int) -> int:
    """Returns the size of the packet of a chunk."""
    return _rows_begin(num_tokens) + num_tokens * token_bytes


def packet_memory(cache: PagedCache, device: torch.device, num_bytes: int) -> Tensor:
    """Returns memory for packets on a device. It is pinned if a GPU reads or writes it on the host."""
    if device.type == "cpu" and cache.device.type != "cpu":
        return empty_pinned((num_bytes,), torch.uint8)
    return torch.empty(num_bytes, dtype=torch.uint8, device=device)


class Staging:
    """Packs and unpacks some heads of chunks, and hashes packets."""

    def __init__(
        self, cache: PagedCache, sequences: list[Sequence], heads: range, device: torch.device, longest: int
    ) -> None:
        """Counts heads from the first of the cache. Packets are on `device`, and have up to `longest` tokens."""
        self._cache, self._sequences, self._heads, self._device = cache, sequences, heads, device
        plane = cache.planes[0]
        self._inner = len(cache.planes), len(heads), plane.size(3)
        self._token_bytes = math.prod(self._inner) * plane.element_size()
        self._longest, self._numbers = longest, torch.arange(longest, device=device)
        self._num_wrong = torch.zeros((), dtype=torch.int64, device=device)

    @property
    def num_wrong(self) -> int:
        """The number of tokens whose checksums differ. On a GPU this waits for the stream."""
        return int(self._num_wrong)

    def memory(self) -> list[Tensor]:
        """Returns memory for as many packets as are in flight."""
        size = -(-packet_bytes(self._longest, self._token_bytes) // _ALIGNMENT) * _ALIGNMENT
        memory = packet_memory(self._cache, self._device, _NUM_PACKETS * size)
        return [memory[i * size : (i + 1) * size] for i in range(_NUM_PACKETS)]

    def packet(self, memory: Tensor, chunk: Chunk) -> Packet:
        """Returns the packet of a chunk in a memory."""
        n = chunk.num_tokens
        content = memory[: packet_bytes(n, self._token_bytes)]
        rows = content[_rows_begin(n) :].view(self._cache.planes[0].dtype).view(n, *self._inner)
        return Packet(content, content[: n * _CHECKSUM_BYTES].view(torch.int64).view(n, 1), rows)

    def pack(self, chunk: Chunk, packet: Packet) -> None:
        """Copies the tokens of a chunk to its packet."""
        rows = packet.rows
        pack_layers(self._cache.planes, self._blocks(chunk), rows[None], len(rows), self._heads.start)
        self._settle()

    def unpack(self, chunk: Chunk, packet: Packet) -> None:
        """Copies the tokens of a chunk from its packet."""
        rows = packet.rows
        unpack_layers(rows[None], self._cache.planes, self._blocks(chunk), len(rows), self._heads.start)
        self._settle()

    def sign(self, packet: Packet) -> None:
        """Writes the checksums of a packet."""
        self._hash(packet, packet.checksums)

    def compare(self, packet: Packet) -> None:
        """Counts the tokens of a packet that have not the checksums that it says."""
        checksums = torch.empty_like(packet.checksums)
        self._hash(packet, checksums)
        self._num_wrong += (checksums != packet.checksums).sum()

    def _hash(self, packet: Packet, checksums: Tensor) -> None:
        """Hashes the bytes of each token."""
        n = len(packet.rows)
        checksum_blocks([packet.rows.view(n, 1, -1)], self._numbers[:n], checksums)

    def _blocks(self, chunk: Chunk) -> Tensor:
        size = self._cache.block_size
        blocks = self._sequences[chunk.sequence].blocks[chunk.begin // size : -(-chunk.end // size)]
        return torch.frombuffer(blocks, dtype=torch.int32)

    def _settle(self) -> None:
        """Waits until a GPU has written or read a packet in host memory."""
        if self._device.type == "cpu" and self._cache.device.type != "cpu":
            torch.cuda.current_stream(self._cache.device).synchronize()


class Outgoing:
    """Sends chunks.

    | memory 0: chunk 0, 3, ... | memory 1: chunk 1, 4, ... | memory 2: chunk 2, 5, ... |
    """

    def __init__(self, staging: Staging, channel: Channel, chunks: list[Chunk]) -> None:
        """Sends nothing yet."""
        self._staging, self._channel, self._chunks = staging, channel, chunks
        self._memory = staging.memory()
        self._packets: list[Packet] = []  # of the chunks that are packed
        self._signed: list[Future[None]] = []  # those packets have their checksums
        self._pending: list[Future[Pending]] = []  # the chunks that are sent
        self._second_thread = _second_thread(channel)

    def __enter__(self) -> Outgoing:
        """Returns the object."""
        return self

    def __exit__(self, *error: object) -> None:
        """Ends the second thread."""
        self._second_thread.shutdown()

    def pack(self) -> None:
        """Packs the next chunk, and computes its checksums."""
        i = len(self._packets)
        if i >= _NUM_PACKETS:
            self._pending[i - _NUM_PACKETS].result().wait()
        packet = self._staging.packet(self._memory[i % _NUM_PACKETS], self._chunks[i])
        self._staging.pack(self._chunks[i], packet)
        self._signed.append(self._second_thread.submit(self._staging.sign, packet))
        self._packets.append(packet)

    def start(self) -> None:
        """Starts to send the first chunk that is packed and not sent yet."""
        packet, signed = self._packets[len(self._pending)], self._signed[len(self._pending)]

        def start() -> Pending:
            signed.result()
            return self._channel.start_sending(packet.content)

        # With gloo the second thread does this, because gloo fills the socket in the thread that calls it.
        self._pending.append(self._second_thread.submit(start))

    def start_early(self) -> None:
        """Sends the first chunk, and packs the second one, which goes as soon as the receiver has answered."""
        self.pack()
        self.start()
        if len(self._chunks) > 1:
            self.pack()

    def finish(self) -> None:
        """Sends all chunks that are not sent yet."""
        while len(self._pending) < len(self._chunks):
            if len(self._packets) == len(self._pending):
                self.pack()
            self.start()
        self.wait()

    def wait(self) -> None:
        """Waits for what was sent."""
        for sent in self._pending[-_NUM_PACKETS:]:
            sent.result().wait()


def receive_chunks(staging: Staging, channel: Channel, chunks: Chunks, early: Pending | None) -> None:
    """Receives, unpacks and hashes all chunks. `early` receives the packet of the first if chunks.early is given."""
    order, memory = list(chunks), staging.memory()
    pending: list[tuple[Packet, Pending]] = []

    def start() -> None:
        i = len(pending)
        if i == 0 and early is not None:
            pending.append((staging.packet(early.tensor, order[0]), early))
        else:
            packet = staging.packet(memory[i % _NUM_PACKETS], order[i])
            pending.append((packet, channel.start_receiving(packet.content)))

    while len(pending) < min(_NUM_PACKETS, len(order)):
        start()
    with _second_thread(channel) as thread:
        for i, chunk in enumerate(order):
            packet = pending[i][0]
            pending[i][1].wait()
            compared = thread.submit(staging.compare, packet)
            staging.unpack(chunk, packet)
            compared.result()
            if len(pending) < len(order):
                start()


def _second_thread(channel: Channel) -> Executor:
    return ThreadPoolExecutor(1) if channel.device.type == "cpu" else _SameThread()


def _rows_begin(num_tokens: int) -> int:
    return -(-num_tokens * _CHECKSUM_BYTES // _ALIGNMENT) * _ALIGNMENT
