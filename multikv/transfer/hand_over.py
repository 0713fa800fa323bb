"""The two sides of a hand-over.

sender                                           receiver
offer: geometry, sizes                 ->
first early chunk, with nccl           ->
manifest: sequences, tokens            ->
other early chunks                     ->
                                       <-        answer: its geometry, the heads that it wants, what it has already
last early chunk                       ->
go, if no receiver of several refused  ->
other chunks of packed tokens          ->        unpacks all to blocks that no sequence uses yet
checksums of all tokens                ->        compares them
                                       <-        done, and then names the blocks, so that `new` can find them

Early chunks are the end of a sequence. They are on their way while the receiver looks for a prefix that it has, takes
blocks and answers. A receiver that cannot use them receives them all the same, because nccl cannot take back what it
sends. Between two ranks, nccl runs sends and receives one by one, in the order in which both ranks have queued them. If
there are several early chunks, both ranks queue the answer before the last early chunk. The last early chunk is
therefore in flight while the sender reads the answer.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator

import torch.distributed as dist

from ..pool import OutOfBlocks, Sequence
from ..pool.arguments import as_integer, as_list, check_type
from ..pool.paged import PagedCache
from .channel import Channel
from .errors import TransferError
from .plan import Geometry, alignment, assign_heads
from .sender import Sender
from .source import Source

__all__ = ["receive", "send"]

_CHUNK_BYTES, _CHUNK_BYTES_OF_GPU = 4 << 20, 160 << 20


def send(
    cache: PagedCache,
    sequences: Iterable[Sequence],
    dst: int | Iterable[int],
    group: dist.ProcessGroup | None = None,
    first_head: int = 0,
    chunk_bytes: int | None = None,
    timeout: float | None = None,
) -> None:
    """Sends sequences to the caches of other ranks, each of which calls `receive`.

    The blocks are packed into staging memory chunk by chunk, while earlier chunks are sent. The sequences stay in this
    cache, and may be extended or freed by another thread meanwhile. Tokens that are pending here are pending there.

    Args:
        cache: this rank's PagedKVCache or PagedMLACache.
        sequences: sequences of the cache, on the device.
        dst: the global rank of the receiver, or those of several, each of which gets the heads that it holds.
        group: a process group: nccl for caches on GPUs, gloo for any (a GPU's blocks then go through pinned memory).
            None: the default group.
        first_head: under tensor parallelism, the number of this cache's first head among those of the model.
        chunk_bytes: the size of a chunk, of which three are in flight. None: 4 MiB, and 160 MiB on a GPU. With nccl and
            one receiver, up to three chunks are sent before the receiver has said which prefix it has.
        timeout: the most seconds to wait for a peer in one step. None: the timeout of the group.

    Raises:
        TransferError: the caches do not fit each other, or a peer refused, died, or did not answer in time. The cache
            is as before.
        ValueError: a sequence was freed, is of another cache, is offloaded, or is listed twice; or dst is empty.

    Example:
        >>> if rank == 0:  # prefill
        ...     sequence = cache.new(prompt)
        ...     run(model, cache, [sequence])
        ...     multikv.transfer.send(cache, [sequence], dst=1)
        ... else:  # decode
        ...     (sequence,) = multikv.transfer.receive(cache, src=0)
    """
    check_type("send", "cache", cache, PagedCache)
    if chunk_bytes is None:
        chunk_bytes = _CHUNK_BYTES_OF_GPU if cache.device.type == "cuda" else _CHUNK_BYTES
    with _held(cache, as_list("send", "sequences", sequences, Sequence)) as mine:
        channels = [Channel("send", rank, group, cache.device, timeout) for rank in _ranks("send", "dst", dst)]
        numbers = as_integer("send", "first_head", first_head), as_integer("send", "chunk_bytes", chunk_bytes)
        sender = Sender(cache, mine, *numbers, channels)
        try:
            sender.start()
            for channel, answer in zip(channels, sender.answers(), strict=True):
                sender.send(channel, answer)
            for channel in channels:
                channel.receive()
                channel.flush()
        finally:
            sender.drain()


def receive(
    cache: PagedCache,
    src: int | Iterable[int],
    group: dist.ProcessGroup | None = None,
    first_head: int = 0,
    timeout: float | None = None,
) -> list[Sequence]:
    """Receives sequences that other ranks send with `send`.

    Block size, layout and number of heads may differ from those of the sender. A prefix that this cache holds already
    is shared, and not sent. The hashes of all tokens that are sent are compared with the sender's (`checksum_blocks`)
    before the blocks can be used or found.

    Args:
        cache: this rank's cache. Its class, layers, format and scales are those of the senders' caches.
        src: the global rank of the sender, or those of several, which together hold the heads of this cache. A head
            that several hold comes from the lowest of their ranks.
        group: as for `send`.
        first_head: as for `send`.
        timeout: as for `send`.

    Returns:
        New sequences, in the order of the sender's. Free them as those that `new` returns.

    Raises:
        OutOfBlocks: there are too few free blocks. The senders raise TransferError.
        TransferError: the caches do not fit each other, the checksums differ, or a peer failed or did not answer in
            time.

    After either error the cache has the sequences that it had before. Cached blocks that no sequence uses may have been
    evicted.

    Example:
        >>> sequences = multikv.transfer.receive(cache, src=[0, 1], first_head=4)  # two ranks of four heads each
    """
    check_type("receive", "cache", cache, PagedCache)
    mine = Geometry.of(cache, as_integer("receive", "first_head", first_head))
    channels = [Channel("receive", rank, group, cache.device, timeout) for rank in _ranks("receive", "src", src)]
    with contextlib.ExitStack() as stack:
        sources = [Source(cache, mine, channel) for channel in channels]
        for source in sources:
            stack.callback(source.drain)
        first = sources[0].manifest
        written = list(first.written)
        try:
            _agree(mine, sources)
            unit = math.lcm(*(alignment(mine, source.offer.geometry) for source in sources))
            sequences = cache._adopt("receive", first.drafts(), written, unit)
        except (TransferError, OutOfBlocks) as error:
            _refuse(sources, str(error))
            raise
        try:
            starts = [sequence.num_written for sequence in sequences]
            for source in sources:
                source.answer(starts)
            for source in sources:
                source.receive(sequences)
            # On a GPU the host has time for these two steps while chunks are on their way.
            done = [source.channel.parts({"done": True}) for source in sources]
            cache._foresee_names(sequences, written)
            _check(sources)
            for source, parts in zip(sources, done, strict=True):
                source.channel.send_parts(parts)
            cache._finish_adoption(sequences, written)
            for source in sources:
                source.channel.flush()
        except BaseException:
            for sequence in sequences:
                cache.free(sequence)
            raise
    return sequences


def _refuse(sources: list[Source], reason: str) -> None:
    for source in sources:
        source.reply({"error": reason})
    for source in sources:
        source.channel.flush()


def _check(sources: list[Source]) -> None:
    """Raises a TransferError if checksums differ, and tells all senders."""
    for source in sources:
        if fault := source.fault():
            _refuse(sources, fault)
            raise TransferError(f"receive: rank {source.channel.peer}: {fault}")


def _agree(mine: Geometry, sources: list[Source]) -> None:
    """Chooses the heads that each source sends, or raises a TransferError."""
    first, *others = sources
    for source in others:
        if source.manifest != first.manifest:
            ranks = f"{first.channel.peer} and {source.channel.peer}"
            raise TransferError(f"receive: ranks {ranks} send different sequences")
    try:
        heads = assign_heads(mine, {source.channel.peer: source.offer.geometry for source in sources})
    except TransferError as error:
        raise TransferError(f"receive: {error}") from None
    for source in sources:
        rank = source.channel.peer
        if difference := mine.difference(source.offer.geometry, heads[rank]):
            raise TransferError(f"receive: the cache of rank {rank} does not fit: {difference}")
        source.heads = heads[rank]


def _ranks(call: str, argument: str, ranks: int | Iterable[int]) -> list[int]:
    """Returns ranks in the order in which both sides serve them."""
    if not isinstance(ranks, (str, bytes, Iterable)):
        return [as_integer(call, argument, ranks)]
    chosen = sorted({as_integer(call, argument, rank) for rank in ranks})
    if not chosen:
        raise ValueError(f"{call}: {argument}: expected at least one rank")
    return chosen


@contextlib.contextmanager
def _held(cache: PagedCache, sequences: list[Sequence]) -> Iterator[list[Sequence]]:
    """Yields forks of sequences, so that their blocks are neither written nor evicted while they are sent."""
    with cache._lock:
        cache._check("send", sequences, cache._pool)
        forks = [cache.fork(sequence) for sequence in sequences]
        for fork in forks:
            cache._wait_ready(fork)
    try:
        yield forks
    finally:
        for fork in forks:
            cache.free(fork)
