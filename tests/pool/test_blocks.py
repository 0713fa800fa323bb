"""The parts of a cache: names and pools of blocks."""

from __future__ import annotations

import array
import hashlib

import pytest

from multikv.pool import names
from multikv.pool.blocks import BlockPool


def test_names():
    tokens = array.array("q", range(11))
    root = names.root("tenant")
    chain = names.chain(root, tokens, 4)
    assert len(chain) == 2 and names.chain(chain[0], tokens[4:], 4) == chain[1:]
    assert chain[0] == hashlib.blake2b(root + tokens[:4].tobytes(), digest_size=32).digest()
    everything = [root, *chain, names.root(""), *names.chain(names.root(""), tokens, 4)]
    assert len(set(everything)) == len(everything) and {len(name) for name in everything} == {32}


@pytest.mark.parametrize("token", [2**63, -(2**63) - 1, 1.5, "a", None])
def test_tokens_of_64_bits_only(token):
    with pytest.raises((OverflowError, TypeError)):
        array.array("q", [token])


def test_blocks_are_taken_unused_first_and_cached_by_age():
    blocks = BlockPool(5)
    assert blocks.take(3) == ([0, 1, 2], [])
    for block in range(3):
        blocks.give_name(block, b"%d" % block)
    blocks.release([0, 1])
    assert blocks.num_free == 4 and blocks.num_cached == 2
    taken, evicted = blocks.take(3)
    assert taken == [3, 4, 1] and evicted == [(1, b"1")]  # the end of a released sequence goes first
    assert blocks.find(b"0") == 0 and blocks.find(b"1") is None and blocks.num_evicted == 1


def test_a_cached_block_that_is_shared_is_in_use():
    blocks = BlockPool(2)
    blocks.take(1)
    blocks.give_name(0, b"a")
    blocks.release([0])
    blocks.share([0])
    assert blocks.num_free == 1 and blocks.references == [1, 0]
    blocks.share([0])
    blocks.release([0])
    assert blocks.num_free == 1
    blocks.release([0])
    assert blocks.num_free == 2


def test_one_name_for_one_block():
    blocks = BlockPool(3)
    blocks.take(2)
    blocks.give_name(0, b"a")
    blocks.give_name(1, b"a")
    assert blocks.name_of(1) is None and blocks.find(b"a") == 0
    blocks.give_name(0, b"b")
    assert blocks.name_of(0) == b"a" and blocks.find(b"b") is None
    blocks.forget_name(0)
    assert blocks.find(b"a") is None
    assert blocks.find_all([b"a", b"b"]) == []


def test_what_is_found_ends_at_the_first_gap():
    blocks = BlockPool(3)
    blocks.take(3)
    for block, name in ((0, b"a"), (1, b"b"), (2, b"d")):
        blocks.give_name(block, name)
    assert blocks.find_all([b"a", b"b", b"c", b"d"]) == [0, 1]
    assert blocks.find_all([b"a", b"b"]) == [0, 1]
