"""The two sides of a hand-over.

sender                                      receiver
geometry, sequences, tokens       ->
<-        its geometry, the heads that it wants, what it has already
no receiver has refused           ->
chunks of packed tokens           ->        unpacks them to blocks that no sequence uses yet
checksums of all tokens           ->        compares them
<-        done, and then names the blocks, so that `new` can find them
"""

from __future__ import annotations

import array
import contextlib
import math
from collections.abc import Iterable, Iterator

import torch.distributed as dist

from ..pool import OutOfBlocks, Sequence
from ..pool.paged import PagedCache
from .channel import Channel, Message, carrier
from .errors import TransferError
from .plan import Chunks, Geometry, alignment, assign_heads
from .staging import Staging

__all__ = ["receive", "send"]

_VERSION = 2
_CHUNK_BYTES, _CHUNK_BYTES_OF_GPU = 4 << 20, 64 << 20


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
        chunk_bytes: the size of a chunk, of which three are in flight. None: 4 MiB, and 64 MiB on a GPU.
        timeout: the most seconds to wait for a peer in one step. None: the timeout of the group.

    Raises:
        TransferError: the caches do not fit each other, or a peer refused, died, or did not answer in time. The cache
            is as before.
        ValueError: a sequence was freed, is of another cache, is offloaded, or is listed twice.

    Example:
        >>> if rank == 0:  # prefill
        ...     sequence = cache.new(prompt)
        ...     run(model, cache, [sequence])
        ...     multikv.transfer.send(cache, [sequence], dst=1)
        ... else:  # decode
        ...     (sequence,) = multikv.transfer.receive(cache, src=0)
    """
    device = carrier(group, cache.device)
    if chunk_bytes is None:
        chunk_bytes = _CHUNK_BYTES_OF_GPU if cache.device.type == "cuda" else _CHUNK_BYTES
    with _held(cache, list(sequences)) as mine:
        geometry = Geometry.of(cache, first_head)
        channels = [Channel("send", rank, group, device, timeout) for rank in _ranks(dst)]
        tokens = array.array("q")
        for sequence in mine:
            tokens.extend(sequence.tokens)
        offer = {
            "version": _VERSION,
            "geometry": geometry.to_json(),
            "chunk_bytes": chunk_bytes,
            "lengths": [len(sequence) for sequence in mine],
            "written": [sequence.num_written for sequence in mine],
            "roots": [sequence._root.hex() for sequence in mine],
        }
        for channel in channels:
            channel.send(offer)
            channel.send_numbers(tokens)
        for channel, answer in zip(channels, _answers(channels), strict=True):
            _send_heads(cache, mine, geometry, channel, answer, chunk_bytes)


def _answers(channels: list[Channel]) -> list[Message]:
    """Returns what the receivers answer. If one of them refuses, the others are told so."""
    answers: list[Message | TransferError] = []
    for channel in channels:
        try:
            answers.append(channel.receive())
        except TransferError as error:
            answers.append(error)
    failures = [answer for answer in answers if isinstance(answer, TransferError)]
    for channel, answer in zip(channels, answers, strict=True):
        if not isinstance(answer, TransferError):
            channel.send({"error": str(failures[0])} if failures else {"go": True})
    if failures:
        raise failures[0]
    return [answer for answer in answers if not isinstance(answer, TransferError)]


def _send_heads(
    cache: PagedCache,
    sequences: list[Sequence],
    geometry: Geometry,
    channel: Channel,
    answer: Message,
    chunk_bytes: int,
) -> None:
    """Sends what a receiver wants."""
    heads = range(*answer["heads"])
    if heads:
        theirs = Geometry.from_json(answer["geometry"])
        ends = [sequence.num_written for sequence in sequences]
        chunks = _chunks(geometry, theirs, heads, answer["starts"], ends, chunk_bytes)
        staging = Staging(cache, sequences, _local(heads, geometry), chunks, channel.device)
        staging.send(channel)
        if chunks.num_tokens:
            channel.start_sending(staging.checksums).wait()
    channel.receive()


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
    device = carrier(group, cache.device)
    channels = [Channel("receive", rank, group, device, timeout) for rank in _ranks(src)]
    offers = [_Offer(channel) for channel in channels]
    mine = Geometry.of(cache, first_head)
    try:
        heads = _agree(mine, channels, offers)
        unit = math.lcm(*(alignment(mine, offer.geometry) for offer in offers))
        sequences = cache._adopt("receive", offers[0].drafts(), offers[0].written, unit)
    except (TransferError, OutOfBlocks) as error:
        for channel in channels:
            channel.send({"error": str(error)})
        raise
    try:
        starts = [sequence.num_written for sequence in sequences]
        for channel in channels:
            answer = {"geometry": mine.to_json(), "starts": starts}
            channel.send(answer | {"heads": [heads[channel.peer].start, heads[channel.peer].stop]})
        for channel in channels:
            channel.receive()
        for channel, offer in zip(channels, offers, strict=True):
            _receive_heads(cache, sequences, mine, heads[channel.peer], channel, offer)
        for channel in channels:
            channel.send({"done": True})
    except BaseException:
        for sequence in sequences:
            cache.free(sequence)
        raise
    cache._finish_adoption(sequences, offers[0].written)
    return sequences


class _Offer:
    """What a sender has."""

    def __init__(self, channel: Channel) -> None:
        message = channel.receive()
        if message.get("version") != _VERSION:
            raise TransferError(f"receive: rank {channel.peer} speaks version {message.get('version')}, not {_VERSION}")
        self.geometry = Geometry.from_json(message["geometry"])
        self.chunk_bytes: int = message["chunk_bytes"]
        self.lengths: list[int] = message["lengths"]
        self.written: list[int] = message["written"]
        self.roots: list[str] = message["roots"]
        self.tokens = channel.receive_numbers(sum(self.lengths))

    def drafts(self) -> list[Sequence]:
        """Returns the sequences without blocks."""
        begin, drafts = 0, []
        for length, root in zip(self.lengths, self.roots, strict=True):
            drafts.append(Sequence(self.tokens[begin : begin + length], bytes.fromhex(root), None))
            begin += length
        return drafts

    def has_sequences_of(self, other: _Offer) -> bool:
        names = ("lengths", "written", "roots", "tokens")
        return all(getattr(self, name) == getattr(other, name) for name in names)


def _agree(mine: Geometry, channels: list[Channel], offers: list[_Offer]) -> dict[int, range]:
    """Returns the heads that each sender sends, or raises a TransferError."""
    for channel, offer in zip(channels, offers, strict=True):
        if not offer.has_sequences_of(offers[0]):
            raise TransferError(f"receive: ranks {channels[0].peer} and {channel.peer} send different sequences")
    geometries = {channel.peer: offer.geometry for channel, offer in zip(channels, offers, strict=True)}
    try:
        heads = assign_heads(mine, geometries)
    except TransferError as error:
        raise TransferError(f"receive: {error}") from None
    for rank, geometry in geometries.items():
        if difference := mine.difference(geometry, heads[rank]):
            raise TransferError(f"receive: the cache of rank {rank} does not fit: {difference}")
    return heads


def _receive_heads(
    cache: PagedCache, sequences: list[Sequence], mine: Geometry, heads: range, channel: Channel, offer: _Offer
) -> None:
    """Receives and checks what a sender sends."""
    if not heads:
        return
    starts = [sequence.num_written for sequence in sequences]
    chunks = _chunks(offer.geometry, mine, heads, starts, offer.written, offer.chunk_bytes)
    staging = Staging(cache, sequences, _local(heads, mine), chunks, channel.device)
    staging.receive(channel)
    if chunks.num_tokens == 0:
        return
    wanted = channel.start_receiving(staging.checksums.new_empty(staging.checksums.shape)).wait()
    num_wrong = int((wanted != staging.checksums).sum())
    if num_wrong:
        message = f"the checksums of {num_wrong} of {chunks.num_tokens} tokens differ"
        channel.send({"error": message})
        raise TransferError(f"receive: rank {channel.peer}: {message}")


def _chunks(
    sender: Geometry, receiver: Geometry, heads: range, starts: list[int], ends: list[int], chunk_bytes: int
) -> Chunks:
    token_bytes = sender.num_planes * len(heads) * sender.head_size * sender.element_bytes
    return Chunks.of(starts, ends, alignment(sender, receiver), token_bytes, chunk_bytes)


def _local(heads: range, geometry: Geometry) -> range:
    """Counts heads of the model from the first of a cache."""
    return range(heads.start - geometry.first_head, heads.stop - geometry.first_head)


def _ranks(ranks: int | Iterable[int]) -> list[int]:
    """Returns ranks in the order in which both sides serve them."""
    return [ranks] if isinstance(ranks, int) else sorted(set(ranks))


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
