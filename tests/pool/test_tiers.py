"""The host tier: offload, restore, and evicted blocks that come back."""

from __future__ import annotations

import pytest
import torch

import multikv
from tests.support import pool
from tests.support.pool import check_blocks, check_contents, make_cache, step


def test_offloaded_sequences_come_back(any_device):
    cache = make_cache(any_device, num_blocks=6, num_host_blocks=8)
    first, second = cache.new(range(9)), cache.new(range(50, 57))
    step(cache, [first, second])
    cache.offload([first, second])
    assert first.is_offloaded and cache.stats().num_used == 0 and cache.stats().num_to_host == 5
    check_contents(cache, [first, second])
    other = cache.new(range(100, 124))
    step(cache, [other])
    check_contents(cache, [first, second, other])
    cache.free(other)
    cache.restore([second, first])
    assert not first.is_offloaded and cache.stats().num_host_used == 0
    first.append(1)
    step(cache, [first])
    check_contents(cache, [first, second])
    check_blocks(cache, [first, second])


def test_a_block_is_copied_once(any_device):
    """Sequences that share a prefix share its block on the host, and the device finds its own block again."""
    cache = make_cache(any_device, num_blocks=16, num_host_blocks=16)
    sequences = [cache.new([*range(8), i]) for i in range(4)]
    step(cache, sequences[:1])
    for sequence in sequences[1:]:
        cache.free(sequence)
    sequences[1:] = [cache.new([*range(8), i]) for i in range(1, 4)]
    step(cache, sequences[1:])
    sequences.append(cache.fork(sequences[3]))
    cache.offload(sequences[:2])
    cache.offload(sequences[2:])
    assert cache.stats().num_to_host == cache.stats().num_host_used == 2 + 4  # the fork shares all its blocks
    cache.restore(sequences)
    assert cache.stats().num_from_host == 4  # the prefix was still on the device
    for i, sequence in enumerate(sequences):
        sequence.append(i)
    step(cache, sequences)
    check_contents(cache, sequences)
    check_blocks(cache, sequences)


def test_an_evicted_block_falls_to_the_host_and_comes_back(any_device):
    cache = make_cache(any_device, num_blocks=6, num_host_blocks=4)
    first = cache.new(range(16))
    step(cache, [first])
    cache.free(first)
    other = cache.new(range(100, 116))
    step(cache, [other])
    assert cache.stats().num_evicted == 2 and cache.stats().num_host_cached == 2
    cache.free(other)
    again = cache.new(range(17))
    assert again.num_cached_tokens == 16 and cache.stats().num_from_host == 2
    step(cache, [again])
    check_contents(cache, [again])
    check_blocks(cache, [again])


def test_a_prefix_on_the_host_is_taken_as_far_as_there_is_room(any_device):
    cache = make_cache(any_device, num_blocks=6, num_host_blocks=8)
    first = cache.new(range(20))
    step(cache, [first])
    cache.offload([first])
    cache.free(first)
    other = cache.new(range(100, 112))
    step(cache, [other])  # evicts two of the five blocks of `first`, and needs one that never was used
    again = cache.new(range(21))
    assert again.num_cached_tokens == 12  # three blocks are free
    check_contents(cache, [again, other])
    check_blocks(cache, [again, other])


def test_a_prefix_that_comes_back_is_not_evicted_from_the_host(any_device):
    cache = make_cache(any_device, num_blocks=3, num_host_blocks=2)
    for tokens in (range(8), range(100, 112)):  # the second evicts the first to the host
        sequence = cache.new(tokens)
        step(cache, [sequence])
        cache.free(sequence)
    again = cache.new(range(9))  # evicts the second, for which the host has no room
    assert again.num_cached_tokens == 8
    step(cache, [again])
    check_contents(cache, [again])
    check_blocks(cache, [again])


def test_blocks_that_are_found_are_not_free_for_others(any_device):
    cache = make_cache(any_device, num_blocks=4, num_host_blocks=8)
    sequence = cache.new(range(12))
    step(cache, [sequence])
    cache.offload([sequence])
    other = cache.new(range(50, 58))
    step(cache, [other])  # leaves two of the three blocks on the device
    with pytest.raises(multikv.OutOfBlocks) as caught:
        cache.restore([sequence])
    assert (caught.value.wanted, caught.value.free) == (1, 0)
    check_blocks(cache, [sequence, other])


def test_out_of_host_blocks_changes_nothing(any_device):
    cache = make_cache(any_device, num_blocks=8, num_host_blocks=2)
    sequence = cache.new(range(12))
    step(cache, [sequence])
    before = pool.snapshot(cache, [sequence])
    with pytest.raises(multikv.OutOfBlocks) as caught:
        cache.offload([sequence])
    assert str(caught.value) == "offload: 3 blocks wanted, 2 of 2 host blocks are free; free or restore sequences"
    assert pool.snapshot(cache, [sequence])[:2] == before[:2]


def test_out_of_device_blocks_changes_nothing(any_device):
    cache = make_cache(any_device, num_blocks=4, num_host_blocks=8)
    sequence = cache.new(range(12))
    step(cache, [sequence])
    cache.offload([sequence])
    other = cache.new(range(50, 62))
    step(cache, [other])
    before = pool.snapshot(cache, [sequence, other])
    with pytest.raises(multikv.OutOfBlocks) as caught:
        cache.restore([sequence])
    assert (caught.value.wanted, caught.value.free) == (2, 0)  # the device still has the first of three blocks
    assert pool.snapshot(cache, [sequence, other])[:2] == before[:2]
    check_contents(cache, [sequence, other])


def test_forked_truncated_and_freed_on_the_host(any_device):
    cache = make_cache(any_device, num_blocks=8, num_host_blocks=8)
    sequence = cache.new(range(11))
    step(cache, [sequence])
    cache.offload([sequence])
    fork = cache.fork(sequence)
    cache.truncate(sequence, 6)
    check_contents(cache, [sequence, fork])
    cache.restore([sequence, fork])
    sequence.append(60, 61)
    fork.append(70)
    step(cache, [fork, sequence])
    check_contents(cache, [sequence, fork])
    cache.offload([fork])
    cache.free(fork)
    check_blocks(cache, [sequence])


def test_bad_calls(any_device):
    cache = make_cache(any_device, num_host_blocks=4)
    sequence = cache.new(range(3))
    step(cache, [sequence])
    with pytest.raises(ValueError, match=r"^restore: sequences\[0\]: expected an offloaded sequence, got <Sequence: 3"):
        cache.restore([sequence])
    cache.offload([sequence])
    sequence.append(1)
    for call in (cache.extend, cache.offload):
        with pytest.raises(ValueError, match=r"sequences\[0\]: expected a sequence on the device, got .*offloaded>$"):
            call([sequence])


def test_fp8_blocks_move_as_bytes(any_device):
    options = {"kv_cache_dtype": "fp8_e4m3", "dtype": torch.float32, "device": any_device, "layout": "HND"}
    cache = multikv.PagedKVCache(1, 2, 8, num_blocks=8, block_size=4, num_host_blocks=8, **options)
    sequence = cache.new(range(10))
    batch = cache.extend([sequence])
    key, value = torch.randn(2, 10, 2, 8, device=any_device)
    cache.write(0, key, value, batch)
    before = cache.read(0, batch)
    cache.offload([sequence])
    other = cache.new(range(100, 132))
    cache.extend([other])
    cache.free(other)
    for plane in cache.planes:
        plane.zero_()
    cache.restore([sequence])
    sequence.append(1)
    batch = cache.extend([sequence])
    for mine, wanted in zip(cache.read(0, batch), before, strict=False):
        assert torch.equal(mine[:10], wanted)
