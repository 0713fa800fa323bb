"""Scenarios of `tests/support/ranks.py` in which a chunk is sent before the receiver has answered."""

from __future__ import annotations

from multikv.transfer import hand_over, staging
from tests.support.pool import check_blocks
from tests.support.rank import check, make_sequences


def early(scenario):
    """Lets gloo send a chunk before the answer, as nccl does. Returns how many tokens each call of pack has packed."""

    def run(r):
        inner, starts_early, packed = staging.Staging.pack, hand_over._starts_early, []
        staging.Staging.pack = lambda self, chunk, rows: (packed.append(chunk.num_tokens), inner(self, chunk, rows))
        hand_over._starts_early = lambda channel: True
        try:
            scenario(r)
        finally:
            staging.Staging.pack, hand_over._starts_early = inner, starts_early
        return packed

    run.__name__ = f"early_{scenario.__name__}"
    return run


def taken(r, block_size=11):
    """The last 13 of 57 tokens go early: from position 44 on, where blocks of both sides begin."""
    if r.rank == 0:
        cache = r.cache()
        r.send(cache, make_sequences(cache), 1, chunk_bytes=2048)
    elif r.rank == 1:
        cache = r.cache(block_size=block_size)
        check(cache, r.receive(cache, 0))


def same_blocks(r):
    """The first chunk that the answer allows is the one that was packed ahead."""
    taken(r, block_size=4)


def not_taken(r):
    """Blocks of the receiver do not begin where the early chunk begins."""
    taken(r, block_size=5)


def other_heads(r):
    """The early chunk has four heads, of which the receiver holds two."""
    if r.rank == 0:
        cache = r.cache(num_heads=4)
        r.send(cache, make_sequences(cache), 1)
    elif r.rank == 1:
        cache = r.cache(first_head=2)
        check(cache, r.receive(cache, 0))


def known(r):
    """The receiver has 56 of 57 tokens. It wants neither the early chunk nor what was packed ahead."""
    if r.rank == 0:
        cache = r.cache()
        r.send(cache, make_sequences(cache, (57,)), 1, chunk_bytes=1536)
    elif r.rank == 1:
        cache = r.cache()
        mine = make_sequences(cache, (57,))
        (sequence,) = r.receive(cache, 0)
        assert sequence.num_cached_tokens == 56
        cache.free(mine[0])
        check(cache, [sequence])


def full(r):
    """The receiver has no room, and receives the early chunk all the same. The next hand-over succeeds."""
    if r.rank == 0:
        cache = r.cache()
        sequences = make_sequences(cache)
        try:
            r.send(cache, sequences, 1)
        finally:
            r.send(cache, sequences[:1], 1)
    elif r.rank == 1:
        cache = r.cache(num_blocks=20)
        try:
            r.receive(cache, 0)
        finally:
            check_blocks(cache, [])
            check(cache, r.receive(cache, 0))
