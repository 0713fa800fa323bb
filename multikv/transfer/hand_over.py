"""The two sides of a hand-over.

sender                                           receiver
offer: geometry, sequences, tokens     ->
early chunk, with nccl                 ->
<-        answer: its geometry, the heads that it wants, what it has already
no receiver has refused, if several    ->
chunks of packed tokens                ->        unpacks them to blocks that no sequence uses yet
checksums of all tokens                ->        compares them
<-        done, and then names the blocks, so that `new` can find them

The early chunk is the end of a sequence. It is on its way while the receiver looks for a prefix that it has, takes
blocks and answers. A receiver that cannot use it receives it all the same, because nccl cannot take back what it sends.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch.distributed as dist

from ..pool import OutOfBlocks, Sequence
from ..pool.arguments import as_integer, as_list, check_type
from ..pool.paged import PagedCache
from .channel import Channel, Message, Pending
from .errors import TransferError
from .offer import Offer
from .plan import Chunks, Geometry, alignment, assign_heads, early_chunk
from .staging import Outgoing, Staging, receive_chunks, staging_memory

__all__ = ["receive", "send"]

_CHUNK_BYTES, _CHUNK_BYTES_OF_GPU = 4 << 20, 128 << 20


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
        chunk_bytes: the size of a chunk, of which three are in flight. None: 4 MiB, and 128 MiB on a GPU. With nccl and
            one receiver, an early chunk is sent before the receiver has said which prefix it has.
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
        sender = _Sender(cache, mine, *numbers, channels)
        sender.offer()
        for channel, answer in zip(channels, _answers(channels), strict=True):
            sender.send(channel, answer)
        for channel in channels:
            channel.receive()
            channel.flush()


class _Sender:
    """What a sender does with its receivers."""

    def __init__(
        self, cache: PagedCache, sequences: list[Sequence], first_head: int, chunk_bytes: int, channels: list[Channel]
    ) -> None:
        """Sends nothing yet."""
        self._cache, self._sequences, self._channels = cache, sequences, channels
        self._first_head, self._chunk_bytes = first_head, chunk_bytes
        self._written = [sequence.num_written for sequence in sequences]
        self._outgoing: Outgoing | None = None  # that of the early chunk

    def offer(self) -> None:
        """Says what there is, and sends the early chunk."""
        cache, channels, early = self._cache, self._channels, None
        geometry = self._geometry = Geometry.of(cache, self._first_head)
        if len(channels) == 1 and _starts_early(channels[0]):
            early = early_chunk(self._written, cache.block_size, geometry.token_bytes, self._chunk_bytes)
        self._offer = Offer.of(self._sequences, geometry, self._chunk_bytes, len(channels), early)
        for channel in channels:
            self._offer.send(channel)
        if early is not None:
            self._outgoing = self._make(channels[0], range(geometry.num_heads))
            self._outgoing.start_early(early)
            self._outgoing.pack_ahead(_chunks(self._offer, geometry, geometry.heads, [0] * len(self._written), True))

    def send(self, channel: Channel, answer: dict[str, Any]) -> None:
        """Sends what a receiver wants."""
        heads, theirs = range(*answer["heads"]), Geometry.from_json(answer["geometry"])
        chunks = _chunks(self._offer, theirs, heads, answer["starts"], answer["takes_early"])
        if self._outgoing is not None and answer["takes_early"]:
            self._outgoing.send(chunks)
        elif heads:
            self._make(channel, _local(heads, self._geometry)).send(chunks)
        if self._outgoing is not None:
            self._outgoing.wait()

    def _make(self, channel: Channel, heads: range) -> Outgoing:
        staging = Staging(self._cache, self._sequences, heads, channel.device, sum(self._written))
        return Outgoing(staging, channel)


def _starts_early(channel: Channel) -> bool:
    """Returns whether to send a chunk before the answer, which pays if a chunk takes less time than messages."""
    return channel.device.type == "cuda"


def _answers(channels: list[Channel]) -> list[dict[str, Any]]:
    """Returns what the receivers answer. If one of several refuses, the others are told so."""
    answers: list[dict[str, Any] | TransferError] = []
    for channel in channels:
        try:
            answers.append(channel.receive().content)
        except TransferError as error:
            answers.append(error)
    failures = [answer for answer in answers if isinstance(answer, TransferError)]
    for channel, answer in zip(channels, answers, strict=True):
        if not isinstance(answer, TransferError) and len(channels) > 1:
            channel.send(Message({"error": str(failures[0])} if failures else {"go": True}))
    if failures:
        for channel in channels:
            channel.flush()
        raise failures[0]
    return [answer for answer in answers if not isinstance(answer, TransferError)]


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
        sources = [_Source(cache, mine, channel) for channel in channels]
        for source in sources:
            stack.callback(source.drain)
        first = sources[0].offer
        try:
            _agree(mine, sources)
            unit = math.lcm(*(alignment(mine, source.offer.geometry) for source in sources))
            sequences = cache._adopt("receive", first.drafts(), first.written, unit)
        except (TransferError, OutOfBlocks) as error:
            _refuse(sources, str(error))
            raise
        try:
            starts = [sequence.num_written for sequence in sequences]
            for source in sources:
                source.answer(starts)
            # The host has time for these two steps while the answer is on its way.
            done = [source.channel.parts(Message({"done": True})) for source in sources]
            cache._foresee_names(sequences, first.written)
            for source in sources:
                source.receive(sequences)
            _check(sources)
            cache._finish_adoption(sequences, first.written)
            for source, parts in zip(sources, done, strict=True):
                source.channel.send_parts(parts)
            for source in sources:
                source.channel.flush()
        except BaseException:
            for sequence in sequences:
                cache.free(sequence)
            raise
    return sequences


class _Source:
    """A sender, as the receiver sees it."""

    def __init__(self, cache: PagedCache, mine: Geometry, channel: Channel) -> None:
        """Receives the offer, and begins to receive the early chunk."""
        self._cache, self._mine, self.channel = cache, mine, channel
        self.heads = range(0)  # those that the source sends
        self._staging: Staging | None = None
        self._wanted: Pending | None = None  # the checksums of the sender
        self._early: Pending | None = None
        self.offer = Offer.receive(channel)
        if self.offer.early is not None:
            size = self.offer.early.num_tokens * self.offer.geometry.token_bytes
            self._early = channel.start_receiving(staging_memory(cache, channel.device, size))

    def answer(self, starts: list[int]) -> None:
        """Says what the receiver has, and wants."""
        early, theirs = self.offer.early, self.offer.geometry
        takes_early = (
            early is not None
            and self.heads == theirs.heads
            and early.begin % alignment(theirs, self._mine) == 0
            and starts[early.sequence] <= early.begin
        )
        self._chunks = _chunks(self.offer, self._mine, self.heads, starts, takes_early)
        answer = {"geometry": self._mine.to_json(), "starts": starts, "takes_early": takes_early}
        self.channel.send(Message(answer | {"heads": [self.heads.start, self.heads.stop]}))

    def receive(self, sequences: list[Sequence]) -> None:
        """Receives the chunks. On a GPU this queues the work."""
        if self.offer.num_receivers > 1:
            self.channel.receive()
        chunks = self._chunks
        if self.heads and chunks.num_tokens:
            heads = _local(self.heads, self._mine)
            self._staging = Staging(self._cache, sequences, heads, self.channel.device, chunks.num_tokens)
            early = self._early if chunks.early else None
            self._wanted = receive_chunks(self._staging, self.channel, chunks, early)

    def fault(self) -> str | None:
        """Waits for the chunks, and says what is wrong with them, if anything."""
        if self._staging is None or self._wanted is None:
            return None
        num_wrong = int((self._wanted.wait() != self._staging.checksums).sum())
        return f"the checksums of {num_wrong} of {self._chunks.num_tokens} tokens differ" if num_wrong else None

    def drain(self) -> None:
        """Waits for the early chunk, so that its memory is not written after it is freed."""
        if self._early is not None:
            with contextlib.suppress(TransferError):
                self._early.wait()


def _refuse(sources: list[_Source], reason: str) -> None:
    for source in sources:
        source.channel.send(Message({"error": reason}))
    for source in sources:
        source.channel.flush()


def _check(sources: list[_Source]) -> None:
    """Raises a TransferError if checksums differ, and tells all senders."""
    for source in sources:
        if fault := source.fault():
            _refuse(sources, fault)
            raise TransferError(f"receive: rank {source.channel.peer}: {fault}")


def _agree(mine: Geometry, sources: list[_Source]) -> None:
    """Chooses the heads that each source sends, or raises a TransferError."""
    first, *others = sources
    for source in others:
        if not source.offer.has_sequences_of(first.offer):
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


def _chunks(offer: Offer, receiver: Geometry, heads: range, starts: list[int], takes_early: bool) -> Chunks:
    """Plans the chunks of some heads; both sides get the same."""
    sender = offer.geometry
    token_bytes = sender.token_bytes // sender.num_heads * len(heads)
    early = offer.early if takes_early else None
    return Chunks.of(starts, offer.written, alignment(sender, receiver), token_bytes, offer.chunk_bytes, early)


def _local(heads: range, geometry: Geometry) -> range:
    """Counts heads of the model from the first of a cache."""
    return range(heads.start - geometry.first_head, heads.stop - geometry.first_head)


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
