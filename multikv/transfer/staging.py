"""The pipeline: chunks are packed and unpacked while others are on their way.

On GPUs everything is queued in the caller's stream and in nccl's, and the host waits once, at the end. With gloo three
threads of each process work at the same time. On the sender the caller's thread packs a chunk. A second thread hashes
the chunk before it, hands it to gloo, and thereby writes what fits into the socket. gloo's own thread sends the rest.
On the receiver the caller's thread unpacks a chunk, a second one hashes the same chunk, and gloo's own thread receives
the next ones.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

from ..offload import empty_pinned
from ..ops import checksum_blocks, pack_layers, unpack_layers
from ..pool import Sequence
from ..pool.paged import PagedCache
from .channel import Channel, Pending
from .plan import Chunk, Chunks

_NUM_BUFFERS = 3
_P = ParamSpec("_P")
_T = TypeVar("_T")


class _SameThread(Executor):
    """Runs a function at once, in the caller's thread. On a GPU this queues work in the thread's current stream."""

    def submit(self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
        """Returns what the function returns, in a Future."""
        future: Future[_T] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


def staging_memory(cache: PagedCache, device: torch.device, num_bytes: int) -> Tensor:
    """Returns memory on a device. It is pinned if a GPU reads or writes it on the host."""
    if device.type == "cpu" and cache.device.type != "cpu":
        return empty_pinned((num_bytes,), torch.uint8)
    return torch.empty(num_bytes, dtype=torch.uint8, device=device)


class Staging:
    """Packs, unpacks and hashes chunks, each of which is the rows [1, tokens, planes, heads, head_size] of a buffer.

    Attributes:
        checksums: [tokens], of those that were hashed, in the order of the chunks.
    """

    def __init__(
        self, cache: PagedCache, sequences: list[Sequence], heads: range, device: torch.device, num_tokens: int
    ) -> None:
        """Makes room for num_tokens checksums. Heads are counted from the first of the cache."""
        self._cache, self._sequences, self._heads, self._device = cache, sequences, heads, device
        plane = cache.planes[0]
        self._dtype = plane.dtype
        self._inner = len(cache.planes), len(heads), plane.size(3)
        self._token_bytes = math.prod(self._inner) * plane.element_size()
        self._is_on_host = device.type == "cpu" and cache.device.type != "cpu"
        self._checksums = torch.empty(num_tokens, 1, dtype=torch.int64, device=device)
        self._num_hashed = 0

    @property
    def checksums(self) -> Tensor:
        """Those that are known."""
        return self._checksums[: self._num_hashed, 0]

    def buffers(self, count: int, num_tokens: int) -> list[Tensor]:
        """Returns buffers of bytes."""
        size = num_tokens * self._token_bytes
        memory = staging_memory(self._cache, self._device, count * size)
        return [memory[i * size : (i + 1) * size] for i in range(count)]

    def rows(self, buffer: Tensor, chunk: Chunk) -> Tensor:
        """Returns the rows of a chunk in a buffer."""
        content = buffer[: chunk.num_tokens * self._token_bytes]
        return content.view(self._dtype).view(1, chunk.num_tokens, *self._inner)

    def pack(self, chunk: Chunk, rows: Tensor) -> None:
        """Copies the tokens of a chunk to its rows."""
        pack_layers(self._cache.planes, self._blocks(chunk), rows, chunk.num_tokens, self._heads.start)
        self._settle()

    def unpack(self, chunk: Chunk, rows: Tensor) -> None:
        """Copies the tokens of a chunk from its rows."""
        unpack_layers(rows, self._cache.planes, self._blocks(chunk), chunk.num_tokens, self._heads.start)
        self._settle()

    def hash(self, rows: Tensor) -> None:
        """Appends the checksums of the bytes of each token."""
        n, begin = rows.size(1), self._num_hashed
        self._num_hashed = begin + n
        numbers = _numbers(self._device, 1 << (n - 1).bit_length())[:n]
        checksum_blocks([rows.view(n, 1, -1)], numbers, self._checksums[begin : begin + n])

    def _blocks(self, chunk: Chunk) -> Tensor:
        size = self._cache.block_size
        blocks = self._sequences[chunk.sequence].blocks[chunk.begin // size : -(-chunk.end // size)]
        return torch.frombuffer(blocks, dtype=torch.int32)

    def _settle(self) -> None:
        """Waits until a GPU has written or read a buffer in host memory."""
        if self._is_on_host:
            torch.cuda.current_stream(self._cache.device).synchronize()


class Outgoing:
    """Sends chunks, and at last their checksums.

    | buffer 0: chunk 0, 3, ... | buffer 1: chunk 1, 4, ... | buffer 2: chunk 2, 5, ... |
    """

    def __init__(self, staging: Staging, channel: Channel) -> None:
        """Sends nothing yet."""
        self._staging, self._channel = staging, channel
        self._early: Pending | None = None
        self._buffers: list[Tensor] = []
        self._ahead: Tensor | None = None  # the rows of a chunk that is packed and not sent
        self._guess: Chunks | None = None  # for which buffers were made

    def start_early(self, chunk: Chunk) -> None:
        """Sends a chunk before all others."""
        (buffer,) = self._staging.buffers(1, chunk.num_tokens)
        rows = self._staging.rows(buffer, chunk)
        self._staging.pack(chunk, rows)
        self._early = self._channel.start_sending(_bytes(rows))
        self._staging.hash(rows)

    def pack_ahead(self, chunks: Chunks) -> None:
        """Packs the chunk after the early one, if these are the chunks to send."""
        order = list(chunks)[1:]
        if order:
            self._guess, self._buffers = chunks, self._staging.buffers(_NUM_BUFFERS, chunks.size)
            rows = self._staging.rows(self._buffers[0], order[0])
            self._staging.pack(order[0], rows)
            self._ahead = rows

    def send(self, chunks: Chunks) -> None:
        """Sends the chunks that have not been sent, and the checksums of all."""
        order = list(chunks)[1 if chunks.early else 0 :]
        if self._guess != chunks:
            self._buffers, self._ahead = self._staging.buffers(_NUM_BUFFERS, chunks.size), None
        pending: list[Future[Pending]] = []

        def start_and_hash(rows: Tensor) -> Pending:
            sent = self._channel.start_sending(_bytes(rows))
            self._staging.hash(rows)
            return sent

        with _second_thread(self._channel) as thread:
            for i, chunk in enumerate(order):
                if i >= _NUM_BUFFERS:
                    pending[i - _NUM_BUFFERS].result().wait()
                if i == 0 and self._ahead is not None:
                    rows = self._ahead
                else:
                    rows = self._staging.rows(self._buffers[i % _NUM_BUFFERS], chunk)
                    self._staging.pack(chunk, rows)
                pending.append(thread.submit(start_and_hash, rows))
            for sent in pending[-_NUM_BUFFERS:]:
                sent.result().wait()
        if chunks.num_tokens:
            self._channel.start_sending(self._staging.checksums).wait()

    def wait(self) -> None:
        """Waits for the early chunk."""
        if self._early is not None:
            self._early.wait()


def receive_chunks(staging: Staging, channel: Channel, chunks: Chunks, early: Pending | None) -> Pending:
    """Receives, unpacks and hashes all chunks. Returns the sender's checksums, which may still be on their way.

    `early` receives the first chunk, if chunks.early is given.
    """
    order, buffers = list(chunks), staging.buffers(_NUM_BUFFERS, chunks.size)
    wanted = staging.checksums.new_empty(chunks.num_tokens)
    rows: list[Tensor] = []
    pending: list[Pending] = []

    def start() -> None:
        i = len(pending)
        if i == len(order):
            pending.append(channel.start_receiving(wanted))
        elif i == 0 and early is not None:
            rows.append(staging.rows(early.tensor, order[0]))
            pending.append(early)
        else:
            rows.append(staging.rows(buffers[i % _NUM_BUFFERS], order[i]))
            pending.append(channel.start_receiving(_bytes(rows[i])))

    while len(pending) < min(_NUM_BUFFERS, len(order) + 1):
        start()
    with _second_thread(channel) as thread:
        for i, chunk in enumerate(order):
            pending[i].wait()
            hashed = thread.submit(staging.hash, rows[i])
            staging.unpack(chunk, rows[i])
            hashed.result()
            if len(pending) <= len(order):
                start()
    return pending[-1]


def _second_thread(channel: Channel) -> Executor:
    return ThreadPoolExecutor(1) if channel.device.type == "cpu" else _SameThread()


def _bytes(rows: Tensor) -> Tensor:
    return rows.view(-1).view(torch.uint8)


@functools.lru_cache(maxsize=8)
def _numbers(device: torch.device, count: int) -> Tensor:
    """Returns 0, 1, 2, ..."""
    return torch.arange(count, device=device)
