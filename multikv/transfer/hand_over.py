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
there are several early chunks, the answer is queued before the last one. So that chunk is on its way while the sender
reads the answer.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch.distributed as dist
from torch import Tensor

from ..pool import OutOfBlocks, Sequence
from ..pool.arguments import as_integer, as_list, check_type
from ..pool.paged import PagedCache
from .channel import Channel, Pending
from .errors import TransferError
from .offer import Manifest, Offer
from .plan import Chunk, Chunks, Geometry, alignment, assign_heads, early_chunks
from .staging import Incoming, Outgoing, Staging

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
        sender = _Sender(cache, mine, *numbers, channels)
        try:
            sender.start()
            for channel, answer in zip(channels, sender.answers(), strict=True):
                sender.send(channel, answer)
            for channel in channels:
                channel.receive()
                channel.flush()
        finally:
            sender.drain()


class _Sender:
    """What a sender does with its receivers."""

    def __init__(
        self, cache: PagedCache, sequences: list[Sequence], first_head: int, chunk_bytes: int, channels: list[Channel]
    ) -> None:
        """Sends nothing yet."""
        self._cache, self._sequences, self._channels = cache, sequences, channels
        self._written = [sequence.num_written for sequence in sequences]
        self._outgoing: Outgoing | None = None  # that of the early chunks
        self._parcel: Pending | None = None  # of the answer, if it is expected already
        geometry, early = Geometry.of(cache, first_head), []
        if len(channels) == 1 and _starts_early(channels[0]):
            early = early_chunks(self._written, cache.block_size, geometry.bytes_of(geometry.heads), chunk_bytes)
        sizes = len(sequences), sum(map(len, sequences))
        self._offer = Offer(geometry, chunk_bytes, len(channels), early, *sizes)

    def start(self) -> None:
        """Sends all that comes before the answers."""
        for channel in self._channels:
            self._offer.send(channel)
        self._send_early(0, 1)
        manifest = Manifest.of(self._sequences)
        for channel in self._channels:
            manifest.send(channel)
        place = self._offer.num_before_answer
        self._send_early(1, place)
        if self._offer.early[place:]:
            self._parcel = self._channels[0].expect()
            self._send_early(place, place + 1)

    def _send_early(self, begin: int, end: int) -> None:
        early = self._offer.early
        for chunk in early[begin:end]:
            if self._outgoing is None:
                self._outgoing = self._make(self._channels[0], self._offer.geometry.heads)
            self._outgoing.send(chunk, early[-1].num_tokens).result()  # before the next message

    def answers(self) -> list[dict[str, Any]]:
        """Returns what the receivers answer. If one of several refuses, the others are told so."""
        answers: list[dict[str, Any] | TransferError] = []
        for channel in self._channels:
            try:
                answers.append(channel.receive(self._parcel))
            except TransferError as error:
                answers.append(error)
        failures = [answer for answer in answers if isinstance(answer, TransferError)]
        for channel, answer in zip(self._channels, answers, strict=True):
            if not isinstance(answer, TransferError) and len(self._channels) > 1:
                channel.send({"error": str(failures[0])} if failures else {"go": True})
        if failures:
            for channel in self._channels:
                channel.flush()
            raise failures[0]
        return [answer for answer in answers if not isinstance(answer, TransferError)]

    def send(self, channel: Channel, answer: dict[str, Any]) -> None:
        """Sends what a receiver wants."""
        heads, theirs = range(*answer["heads"]), Geometry(**answer["geometry"])
        if not heads:
            return
        spans = answer["starts"], self._written
        chunks = _chunks(self._offer, theirs, heads, *spans, answer["useless"])
        outgoing, num_useless = self._outgoing, _num_tokens(self._offer.early[: answer["useless"]])
        if outgoing is None or heads != self._offer.geometry.heads:
            outgoing, num_useless = self._make(channel, heads), 0
        for chunk in itertools.islice(chunks, len(chunks.early), None):
            outgoing.send(chunk, chunks.size)
        outgoing.finish(num_useless)

    def drain(self) -> None:
        """Waits for the early chunks, so that their memory is not reused while it is read."""
        if self._outgoing is not None:
            with contextlib.suppress(TransferError):
                self._outgoing.wait()

    def _make(self, channel: Channel, heads: range) -> Outgoing:
        geometry, num_tokens = self._offer.geometry, sum(self._written) + _num_tokens(self._offer.early)
        token_bytes = geometry.bytes_of(heads)
        staging = Staging(self._cache, _local(heads, geometry), channel.device, token_bytes, num_tokens)
        return Outgoing(staging, self._sequences, channel)


def _starts_early(channel: Channel) -> bool:
    """Returns whether to send chunks before the answer, which pays if they take less time than messages."""
    return channel.device.type == "cuda"


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


class _Source:
    """A sender, as the receiver sees it."""

    def __init__(self, cache: PagedCache, mine: Geometry, channel: Channel) -> None:
        """Receives the offer, and begins to receive the early chunks."""
        self._cache, self._mine, self.channel = cache, mine, channel
        self.heads = range(0)  # those that the source sends
        self._num_wrong: Tensor | None = None  # tokens whose checksums differ
        offer = self.offer = Offer.receive(channel)
        self._num_useless = len(offer.early)  # the early chunks, from the first on, that the receiver cannot use
        self._incoming = self._make(offer.geometry.heads)
        self._early = iter(offer.early)
        self._expect_early(1)
        manifest = Manifest.expect(channel, offer)
        self._expect_early(offer.num_before_answer - 1)
        self.manifest = Manifest.receive(manifest, offer.num_sequences)

    def reply(self, message: dict[str, Any]) -> None:
        """Sends the answer. Begins to receive the last early chunk after the first parcel, as the sender expects."""
        first, *others = self.channel.parts(message)
        self.channel.send_parts([first])
        self._expect_early(1)
        self.channel.send_parts(others)

    def answer(self, starts: list[int]) -> None:
        """Says what the receiver has, and wants."""
        offer, theirs = self.offer, self.offer.geometry
        unit = alignment(theirs, self._mine)
        if self.heads == theirs.heads:
            self._num_useless = max(
                (i for i, x in enumerate(offer.early, 1) if x.begin % unit or x.begin < starts[x.sequence]), default=0
            )
        self._chunks = _chunks(offer, self._mine, self.heads, starts, [*self.manifest.written], self._num_useless)
        answer = {"geometry": vars(self._mine), "starts": starts, "useless": self._num_useless}
        self.reply(answer | {"heads": [self.heads.start, self.heads.stop]})

    def receive(self, sequences: list[Sequence]) -> None:
        """Receives the chunks. On a GPU this queues the work."""
        if self.offer.num_receivers > 1:
            self.channel.receive()
        useless = self.offer.early[: self._num_useless]
        if self.heads != self.offer.geometry.heads:
            self._incoming.wait()
            self._incoming, useless = self._make(self.heads), []
        if self.heads and self._chunks.num_tokens:
            checksums = self._incoming.unpack(sequences, useless, self._chunks).wait()
            self._num_wrong = (checksums != self._incoming.staging.checksums).sum()

    def fault(self) -> str | None:
        """Waits for the chunks, and says what is wrong with them, if anything."""
        num_wrong = 0 if self._num_wrong is None else int(self._num_wrong)
        return f"the checksums of {num_wrong} of {self._chunks.num_tokens} tokens differ" if num_wrong else None

    def drain(self) -> None:
        """Waits for the early chunks, so that their memory is not written after it is freed."""
        with contextlib.suppress(TransferError):
            self._incoming.wait()

    def _make(self, heads: range) -> Incoming:
        token_bytes, num_tokens = self.offer.geometry.bytes_of(heads), self.offer.num_tokens
        staging = Staging(self._cache, _local(heads, self._mine), self.channel.device, token_bytes, num_tokens)
        return Incoming(staging, self.channel)

    def _expect_early(self, count: int) -> None:
        for chunk in itertools.islice(self._early, count):
            self._incoming.expect(chunk, self.offer.early[-1].num_tokens)


def _refuse(sources: list[_Source], reason: str) -> None:
    for source in sources:
        source.reply({"error": reason})
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


def _chunks(
    offer: Offer, receiver: Geometry, heads: range, starts: list[int], ends: list[int], num_useless: int
) -> Chunks:
    """Plans the chunks of some heads; both sides get the same."""
    sender, early = offer.geometry, offer.early[num_useless:]
    token_bytes = sender.bytes_of(heads)
    return Chunks.of(starts, ends, alignment(sender, receiver), token_bytes, offer.chunk_bytes, early)


def _num_tokens(chunks: list[Chunk]) -> int:
    return sum(chunk.num_tokens for chunk in chunks)


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
