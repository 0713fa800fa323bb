"""Any thread may create, fork, move and free sequences, while one thread makes the steps."""

from __future__ import annotations

import contextlib
import random
import sys
import threading

import pytest

import multikv
from tests.support.pool import check_blocks, check_contents, make_cache, step


@pytest.fixture
def eager_switches():
    """Threads change after every few instructions of Python."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_threads(any_device, eager_switches):
    cache = make_cache(any_device, num_blocks=96, num_host_blocks=64)
    kept, errors = [], []

    def serve(seed):
        """Creates, forks, moves and frees sequences, whose prefixes other threads have written."""
        choice, mine = random.Random(seed), []
        try:
            for _ in range(150):
                with contextlib.suppress(multikv.OutOfBlocks):
                    mine.append(cache.new(range(choice.randrange(4), 20)))
                    mine.append(cache.fork(mine[-1]))
                    cache.offload(mine[-2:])
                    cache.restore(mine[-2:])
                while len(mine) > 4:
                    cache.free(mine.pop(choice.randrange(len(mine))))
            kept.extend(mine)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=serve, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    turn, stepping = 0, []
    while any(thread.is_alive() for thread in threads):
        with contextlib.suppress(multikv.OutOfBlocks):
            stepping.append(cache.new(range(turn % 4, 20)))
            step(cache, stepping[-1:])
        while len(stepping) > 2:
            cache.free(stepping.pop(0))
        turn += 1
    for thread in threads:
        thread.join()
    assert not errors, errors
    sequences = [*kept, *stepping]
    check_blocks(cache, sequences)
    check_contents(cache, sequences)
    for sequence in sequences:
        cache.free(sequence)
    assert cache.stats().num_used == cache.stats().num_host_used == 0


def test_a_lock_guards_every_method():
    """No call finishes while another holds the lock."""
    cache = make_cache("cpu", num_host_blocks=8)
    sequences = [cache.new([1, 2, 3]) for _ in range(2)]
    batch = step(cache, sequences)
    for sequence in sequences:
        sequence.append(4)
    calls = {
        "new": lambda: cache.new([1]),
        "fork": lambda: cache.fork(sequences[0]),
        "stats": cache.stats,
        "commit": lambda: cache.commit(batch),
        "extend": lambda: cache.extend(sequences[:1]),
        "offload": lambda: cache.offload(sequences[:1]),
        "restore": lambda: cache.restore(sequences[:1]),
        "truncate": lambda: cache.truncate(sequences[0], 2),
        "free": lambda: cache.free(sequences[0]),
    }
    for name, call in calls.items():
        done = threading.Event()
        thread = threading.Thread(target=lambda call=call, done=done: (call(), done.set()))
        with cache._lock:
            thread.start()
            assert not done.wait(0.01), name
        thread.join()
        assert done.is_set(), name
