"""Scenarios of `tests/support/ranks.py` in which chunks are sent before the receiver has answered."""

from __future__ import annotations

import threading
import time

import torch

import multikv
from multikv.transfer import sender, staging
from tests.support.pool import HEAD_SIZE, check_blocks
from tests.support.rank import check, make_sequences, step


def early(scenario):
    """Lets gloo send chunks before the answer, as nccl does. Returns how many tokens each call of pack has packed."""

    def run(r):
        inner, starts_early, packed = staging.Staging.pack, sender._starts_early, []
        staging.Staging.pack = lambda *a: (packed.append(a[2].num_tokens), inner(*a))
        sender._starts_early = lambda channel: True
        try:
            scenario(r)
        finally:
            staging.Staging.pack, sender._starts_early = inner, starts_early
        return packed

    run.__name__ = f"early_{scenario.__name__}"
    return run


def taken(r, block_size=11):
    """Three chunks go early. Only the last of them begins where blocks of both sides begin, at position 44."""
    if r.rank == 0:
        cache = r.cache()
        r.send(cache, make_sequences(cache), 1, chunk_bytes=2048)
    elif r.rank == 1:
        cache = r.cache(block_size=block_size)
        check(cache, r.receive(cache, 0))


def same_blocks(r):
    """The receiver takes all early chunks."""
    taken(r, block_size=4)


def not_taken(r):
    """Blocks of the receiver begin where no early chunk begins."""
    taken(r, block_size=5)


def other_heads(r):
    """Early chunks have four heads, of which the receiver holds two."""
    if r.rank == 0:
        cache = r.cache(num_heads=4)
        r.send(cache, make_sequences(cache), 1)
    elif r.rank == 1:
        cache = r.cache(first_head=2)
        check(cache, r.receive(cache, 0))


def known(r, num_tokens=56):
    """Of 57 tokens the receiver has 56, and wants no early chunk."""
    if r.rank == 0:
        cache = r.cache()
        r.send(cache, make_sequences(cache, (57,)), 1, chunk_bytes=1536)
    elif r.rank == 1:
        cache = r.cache()
        mine = cache.new(range(5700, 5700 + num_tokens))
        step(cache, [mine])
        (sequence,) = r.receive(cache, 0)
        assert sequence.num_cached_tokens == num_tokens
        cache.free(mine)
        check(cache, [sequence])


def partly_known(r):
    """The receiver has 40 tokens, and wants the early chunk that begins at position 48, but not those at 32 and 36."""
    known(r, 40)


def long_messages(r):
    """The scales of 80 heads make the offer and the answer longer than a parcel."""
    if r.rank > 1:
        return
    scales = torch.linspace(0.1, 1, 80)
    cache = r.cache(num_heads=80, kv_cache_dtype="fp8_e4m3", k_scale=scales, v_scale=scales)
    sequence = cache.new(range(57))
    batch = cache.extend([sequence])
    rows = torch.randn(57, 80, HEAD_SIZE, generator=torch.Generator().manual_seed(0)).to(cache.device)
    for layer in range(cache.num_layers):
        cache.write(layer, rows, -rows, batch)
    if r.rank == 0:
        r.send(cache, [sequence], 1, chunk_bytes=16 << 10)
    else:
        received = r.cache(num_heads=80, kv_cache_dtype="fp8_e4m3", k_scale=scales, v_scale=scales)
        (copy,) = r.receive(received, 0)
        for mine, theirs in zip(cache.planes, received.planes, strict=True):
            blocks, copies = (torch.tensor(list(x.blocks), device=cache.device) for x in (sequence, copy))
            assert torch.equal(mine[blocks].flatten(0, 1)[:57], theirs[copies].flatten(0, 1)[:57])


def full(r):
    """The receiver has no room, and receives early chunks all the same, the last of them late.

    The next hand-over succeeds.
    """
    if r.rank == 0:
        cache = r.cache()
        sequences = make_sequences(cache)
        inner, sent = staging.Outgoing.send, []

        def slow(*arguments):
            sent.append(arguments)
            time.sleep(0.2 if len(sent) == 3 else 0)
            return inner(*arguments)

        staging.Outgoing.send = slow
        try:
            r.send(cache, sequences, 1, chunk_bytes=2048)
        finally:
            staging.Outgoing.send = inner
            assert not [x for x in threading.enumerate() if x.name.startswith("ThreadPool")]  # all chunks are sent
            r.send(cache, sequences[:1], 1)
    elif r.rank == 1:
        cache = r.cache(num_blocks=20)
        try:
            r.receive(cache, 0)
        except multikv.OutOfBlocks as error:
            refusal = error.with_traceback(None)  # so that all memory of the hand-over is freed
        check_blocks(cache, [])
        check(cache, r.receive(cache, 0))
        raise refusal


SCENARIOS = taken, same_blocks, not_taken, other_heads, known, partly_known, long_messages, full
