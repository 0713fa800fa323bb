"""The pipeline: chunks are packed and unpacked while others are on their way.

With gloo three threads of each process work at the same time. On the sender the caller's thread packs a chunk, a second
one hashes the chunk before it and hands it to gloo, and gloo's own thread sends. On the receiver the caller's thread
unpacks a chunk, a second one hashes the same chunk, and gloo's own thread receives the next ones.
"""

from __future__ import annotations

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


class Staging:
    """Buffers that hold some heads of a chunk of tokens of all planes, and the checksums of all tokens.

    | buffer 0: chunk 0, 3, ... | buffer 1: chunk 1, 4, ... | buffer 2: chunk 2, 5, ... |
    """

    def __init__(
        self, cache: PagedCache, sequences: list[Sequence], heads: range, chunks: Chunks, device: torch.device
    ):
        """Makes buffers on a device; heads are counted from the first of the cache."""
        self._cache, self._sequences, self._heads, self._chunks = cache, sequences, heads, chunks
        plane = cache.planes[0]
        self._inner = len(cache.planes), len(heads), plane.size(3)
        shape, dtype = (_NUM_BUFFERS, chunks.size, *self._inner), plane.dtype
        self._is_on_host = device.type == "cpu" and cache.device.type != "cpu"
        self._buffers = (
            empty_pinned(shape, dtype) if self._is_on_host else torch.empty(shape, dtype=dtype, device=device)
        )
        self.checksums = torch.empty(chunks.num_tokens, 1, dtype=torch.int64, device=device)
        self._num_hashed = 0
        self._second_thread = ThreadPoolExecutor(1) if device.type == "cpu" else _SameThread()

    def send(self, channel: Channel) -> None:
        """Packs and sends all chunks."""
        pending: list[Future[Pending]] = []

        def hash_and_start(rows: Tensor) -> Pending:
            self._hash(rows)
            return channel.start_sending(_bytes(rows))  # gloo fills the socket in the thread that calls it

        with self._second_thread as thread:
            for i, chunk in enumerate(self._chunks):
                if i >= _NUM_BUFFERS:
                    pending[i - _NUM_BUFFERS].result().wait()
                rows = self._rows(i, chunk)
                pack_layers(self._cache.planes, self._blocks(chunk), rows[None], len(rows), self._heads.start)
                self._settle()
                pending.append(thread.submit(hash_and_start, rows))
            for sent in pending[-_NUM_BUFFERS:]:
                sent.result().wait()

    def receive(self, channel: Channel) -> None:
        """Receives and unpacks all chunks."""
        chunks = list(self._chunks)

        def start(i: int) -> Pending:
            return channel.start_receiving(_bytes(self._rows(i, chunks[i])))

        pending = [start(i) for i in range(min(_NUM_BUFFERS, len(chunks)))]
        with self._second_thread as thread:
            for i, chunk in enumerate(chunks):
                pending[i].wait()
                rows = self._rows(i, chunk)
                hashed = thread.submit(self._hash, rows)
                unpack_layers(rows[None], self._cache.planes, self._blocks(chunk), len(rows), self._heads.start)
                self._settle()
                hashed.result()
                if i + _NUM_BUFFERS < len(chunks):
                    pending.append(start(i + _NUM_BUFFERS))

    def _rows(self, i: int, chunk: Chunk) -> Tensor:
        return self._buffers[i % _NUM_BUFFERS, : chunk.end - chunk.begin]

    def _blocks(self, chunk: Chunk) -> Tensor:
        size = self._cache.block_size
        blocks = self._sequences[chunk.sequence].blocks[chunk.begin // size : -(-chunk.end // size)]
        return torch.frombuffer(blocks, dtype=torch.int32)

    def _hash(self, rows: Tensor) -> None:
        """Hashes the bytes of each token."""
        begin, self._num_hashed = self._num_hashed, self._num_hashed + len(rows)
        tokens = torch.arange(len(rows), device=rows.device)
        checksum_blocks([rows.view(len(rows), 1, -1)], tokens, self.checksums[begin : self._num_hashed])

    def _settle(self) -> None:
        """Waits until a GPU has written or read a buffer in host memory."""
        if self._is_on_host:
            torch.cuda.current_stream(self._cache.device).synchronize()


def _bytes(rows: Tensor) -> Tensor:
    return rows.view(-1).view(torch.uint8)
