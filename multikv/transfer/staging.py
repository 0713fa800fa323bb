"""The pipeline: chunks are packed and unpacked while others are on their way.

On GPUs everything is queued in the caller's stream and in nccl's, and the host waits once, at the end. With gloo three
threads of each process work at the same time. On the sender, a second thread starts to send a chunk, and then hashes
the chunk. The start writes as many bytes to the socket as the socket takes, and gloo's own thread sends the others.
Meanwhile the caller's thread packs the next chunk. On the receiver, the caller's thread unpacks a chunk, a second
thread hashes the same chunk, and gloo's own thread receives the next chunks.
"""

from __future__ import annotations

import functools
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

NUM_BUFFERS = 3
_P = ParamSpec("_P")
_T = TypeVar("_T")


class _SameThread(Executor):
    """Runs a function at once, in the caller's thread. On a GPU this queues work in the thread's current stream."""

    def submit(self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
        """Returns what the function returns, in a Future."""
        future: Future[_T] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


def _staging_memory(cache: PagedCache, device: torch.device, num_bytes: int) -> Tensor:
    """Returns memory on a device. It is pinned if a GPU reads or writes it on the host."""
    if device.type == "cpu" and cache.device.type != "cpu":
        return empty_pinned((num_bytes,), torch.uint8)
    return torch.empty(num_bytes, dtype=torch.uint8, device=device)


class Staging:
    """Packs, unpacks and hashes chunks, each of which is the rows [1, tokens, planes, heads, head_size] of a buffer.

    | buffer 0: chunk 0, 3, ... | buffer 1: chunk 1, 4, ... | buffer 2: chunk 2, 5, ... |

    Attributes:
        checksums: [tokens], of those that were hashed, in the order of the chunks.
    """

    def __init__(
        self, cache: PagedCache, heads: range, device: torch.device, token_bytes: int, num_tokens: int
    ) -> None:
        """Makes room for num_tokens checksums. Heads are counted from the first of the cache."""
        self._cache, self._heads, self._device = cache, heads, device
        self._token_bytes = token_bytes
        self._is_on_host = device.type == "cpu" and cache.device.type != "cpu"
        self._buffers: list[Tensor | None] = [None] * NUM_BUFFERS
        self._checksums = torch.empty(num_tokens, 1, dtype=torch.int64, device=device)
        self._num_hashed = 0

    @property
    def checksums(self) -> Tensor:
        """Those that are known."""
        return self._checksums[: self._num_hashed, 0]

    def buffer(self, i: int, chunk: Chunk, size: int) -> Tensor:
        """Returns the bytes of chunk number i. A new buffer has room for `size` tokens or more."""
        num_bytes, buffer = chunk.num_tokens * self._token_bytes, self._buffers[i % NUM_BUFFERS]
        if buffer is None or len(buffer) < num_bytes:
            room = max(num_bytes, size * self._token_bytes)
            buffer = self._buffers[i % NUM_BUFFERS] = _staging_memory(self._cache, self._device, room)
        return buffer[:num_bytes]

    def rows(self, content: Tensor, chunk: Chunk) -> Tensor:
        """Returns the rows whose bytes are given."""
        plane = self._cache.planes[0]
        sizes = 1, chunk.num_tokens, len(self._cache.planes), len(self._heads), plane.size(3)
        return content.view(plane.dtype).view(sizes)

    def pack(self, sequences: list[Sequence], chunk: Chunk, rows: Tensor) -> None:
        """Copies the tokens of a chunk to its rows."""
        pack_layers(self._cache.planes, self._blocks(sequences, chunk), rows, chunk.num_tokens, self._heads.start)
        self._settle()

    def unpack(self, sequences: list[Sequence], chunk: Chunk, rows: Tensor) -> None:
        """Copies the tokens of a chunk from its rows."""
        unpack_layers(rows, self._cache.planes, self._blocks(sequences, chunk), chunk.num_tokens, self._heads.start)
        self._settle()

    def hash(self, rows: Tensor) -> None:
        """Appends the checksums of the bytes of each token."""
        n, begin = rows.size(1), self._num_hashed
        self._num_hashed = begin + n
        numbers = _numbers(self._device, 1 << (n - 1).bit_length())
        checksum_blocks([rows.view(n, 1, -1)], numbers[:n], self._checksums[begin : begin + n])

    def _blocks(self, sequences: list[Sequence], chunk: Chunk) -> Tensor:
        size = self._cache.block_size
        blocks = sequences[chunk.sequence].blocks[chunk.begin // size : -(-chunk.end // size)]
        return torch.frombuffer(blocks, dtype=torch.int32)

    def _settle(self) -> None:
        """Waits until a GPU has written or read a buffer in host memory."""
        if self._is_on_host:
            torch.cuda.current_stream(self._cache.device).synchronize()


class Outgoing:
    """Packs, hashes and sends chunks, and at last their checksums."""

    def __init__(self, staging: Staging, sequences: list[Sequence], channel: Channel) -> None:
        """Sends nothing yet."""
        self._staging, self._sequences, self._channel = staging, sequences, channel
        self._thread = _second_thread(channel)
        self._sent: list[Future[Pending]] = []

    def send(self, chunk: Chunk, size: int) -> Future[Pending]:
        """Packs a chunk, once the buffer is free, and begins to send it.

        The future is done when the chunk is hashed and its send has started. Any send that starts after the future is
        done arrives after the chunk.
        """
        i = len(self._sent)
        if i >= NUM_BUFFERS:
            self._sent[i - NUM_BUFFERS].result().wait()
        content = self._staging.buffer(i, chunk, size)
        rows = self._staging.rows(content, chunk)
        self._staging.pack(self._sequences, chunk, rows)
        self._sent.append(self._thread.submit(self._start_and_hash, content, rows))
        return self._sent[-1]

    def finish(self, num_useless: int) -> None:
        """Sends the checksums, but for those of the first num_useless tokens, and waits for all that was sent."""
        self.wait()
        checksums = self._staging.checksums[num_useless:]
        if len(checksums):
            self._channel.start_sending(checksums).wait()

    def wait(self) -> None:
        """Waits for the chunks, after which no other is sent."""
        for sent in self._sent[-NUM_BUFFERS:]:
            sent.result().wait()
        self._thread.shutdown()

    def _start_and_hash(self, content: Tensor, rows: Tensor) -> Pending:
        sent = self._channel.start_sending(content)
        self._staging.hash(rows)
        return sent


class Incoming:
    """Receives, unpacks and hashes chunks."""

    def __init__(self, staging: Staging, channel: Channel) -> None:
        """Receives nothing yet."""
        self.staging, self._channel = staging, channel
        self._received: list[Pending] = []

    def expect(self, chunk: Chunk, size: int) -> None:
        """Begins to receive a chunk, whose buffer must be free."""
        content = self.staging.buffer(len(self._received), chunk, size)
        self._received.append(self._channel.start_receiving(content))

    def unpack(self, sequences: list[Sequence], useless: list[Chunk], chunks: Chunks) -> Pending:
        """Receives the chunks that are not expected yet, and copies chunks to the blocks.

        The useless chunks come first, and are not copied.

        Returns the sender's checksums, which may still be on their way.
        """
        order, received = useless + list(chunks), self._received
        checksums = self.staging.checksums.new_empty(chunks.num_tokens)

        def start() -> None:
            if len(received) < len(order):
                self.expect(order[len(received)], chunks.size)
            elif len(received) == len(order):
                received.append(self._channel.start_receiving(checksums))

        while len(received) < min(NUM_BUFFERS, len(order) + 1):
            start()
        with _second_thread(self._channel) as thread:
            for i, chunk in enumerate(order):
                content = received[i].wait()
                if i >= len(useless):
                    rows = self.staging.rows(content, chunk)
                    hashed = thread.submit(self.staging.hash, rows)
                    self.staging.unpack(sequences, chunk, rows)
                    hashed.result()
                start()
        return received[-1]

    def wait(self) -> None:
        """Waits for what is expected, so that no memory is written after it is freed."""
        for content in self._received:
            content.wait()


def _second_thread(channel: Channel) -> Executor:
    return ThreadPoolExecutor(1) if channel.device.type == "cpu" else _SameThread()


@functools.lru_cache(maxsize=8)
def _numbers(device: torch.device, count: int) -> Tensor:
    """Returns 0, 1, 2, ..."""
    return torch.arange(count, device=device)
