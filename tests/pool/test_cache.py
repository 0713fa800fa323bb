"""PagedKVCache and PagedMLACache: sequences, prefix sharing, copy on write, and what a batch says."""

from __future__ import annotations

import array

import pytest
import torch

import multikv
from multikv import formats
from tests.support import pool
from tests.support.pool import check_blocks, check_contents, make_cache, step


def test_a_batch_of_prompts_and_single_tokens(any_device):
    cache = make_cache(any_device)
    first = cache.new(range(5))
    step(cache, [first])
    first.append(7)
    batch = cache.extend([first, cache.new([1, 2, 3])])
    assert batch.tokens.tolist() == [7, 1, 2, 3] and batch.positions.tolist() == [5, 0, 1, 2]
    assert batch.seq_lens.tolist() == [6, 3] and batch.cu_query_lens.tolist() == [0, 1, 4]
    assert batch.slot_mapping.tolist() == [5, 8, 9, 10]
    assert batch.block_table[:, :1].tolist() == [[0], [2]] and batch.block_table[0, 1] == 1
    assert (batch.num_tokens, batch.max_query_len, batch.key) == (4, 3, (2, 4, 3, 2))
    assert {x.dtype for x in (batch.tokens, batch.positions, batch.slot_mapping)} == {torch.int64}
    assert {x.dtype for x in (batch.block_table, batch.seq_lens, batch.cu_query_lens)} == {torch.int32}
    assert all(x.device == cache.device for x in (batch.tokens, batch.slot_mapping, batch.block_table))


@pytest.mark.parametrize("count", [1, 2, 3, 8, 17])
def test_batches_of_equal_keys_have_equal_addresses(any_device, count):
    cache = make_cache(any_device, num_blocks=256)
    sequences = [cache.new(range(i, i + 5)) for i in range(count)]
    names = ("tokens", "positions", "slot_mapping", "block_table", "seq_lens", "cu_query_lens")
    seen: dict[object, list[int]] = {}
    for turn in range(12):
        batch = step(cache, sequences)
        addresses = [getattr(batch, name).data_ptr() for name in names]
        assert seen.setdefault(batch.key, addresses) == addresses
        rows = [list(s.blocks) for s in sequences]
        assert [row[: len(blocks)] for row, blocks in zip(batch.block_table.tolist(), rows, strict=False)] == rows
        for sequence in sequences:
            sequence.append(turn)
    assert len(seen) == 3  # the prompts, and single tokens with tables of 2 and 4 columns
    check_contents(cache, sequences)


def test_a_prefill_in_chunks(any_device):
    cache = make_cache(any_device)
    sequence = cache.new(range(11))
    lengths = []
    while sequence.num_pending:
        lengths.append(step(cache, [sequence], max_query_len=4).num_tokens)
    assert lengths == [4, 4, 3]
    check_contents(cache, [sequence])


def test_the_longest_prefix_is_shared(any_device):
    cache = make_cache(any_device)
    first = cache.new(range(11))
    step(cache, [first])
    second = cache.new([*range(9), 50, 51])
    assert second.num_cached_tokens == 8 and second.blocks == first.blocks[:2]
    step(cache, [second])
    assert cache.new(range(8)).num_cached_tokens == 4  # one token stays pending
    assert cache.new([1, *range(1, 9)]).num_cached_tokens == 0
    cache.free(first)
    assert cache.new(range(11)).num_cached_tokens == 8
    check_contents(cache, [second])


def test_a_prefix_is_found_only_under_its_salt(any_device):
    cache = make_cache(any_device)
    step(cache, [cache.new(range(9), cache_salt="a")])
    found = {salt: cache.new(range(9), cache_salt=salt).num_cached_tokens for salt in ("a", b"a", "b", "")}
    assert found == {"a": 8, b"a": 8, "b": 0, "": 0}


def test_names_depend_on_all_tokens_before(any_device):
    cache = make_cache(any_device)
    step(cache, [cache.new([0, 0, 0, 0, 1, 1, 1, 1, 2])])
    assert cache.new([1, 1, 1, 1, 0, 0, 0, 0, 0]).num_cached_tokens == 0
    assert cache.new([0, 0, 0, 0, 1, 1, 1, 2, 2]).num_cached_tokens == 4
    assert cache.new([-1, 0, 0, 0, 1]).num_cached_tokens == 0


def test_a_block_has_no_name_before_all_layers_are_written(any_device):
    cache = make_cache(any_device)
    batch = cache.extend([cache.new(range(9))])
    rows = torch.zeros(9, 1, pool.HEAD_SIZE, device=any_device)
    assert cache.new(range(9)).num_cached_tokens == 0
    cache.write(1, rows, rows, batch)
    cache.write(1, rows, rows, batch)
    assert cache.new(range(9)).num_cached_tokens == 0
    cache.write(0, rows, rows, batch)
    assert cache.new(range(9)).num_cached_tokens == 8


def test_a_failed_step_is_made_again(any_device):
    cache = make_cache(any_device)
    sequence = cache.new(range(9))
    batch = cache.extend([sequence])
    nothing = torch.zeros(9, 1, pool.HEAD_SIZE, device=any_device)
    cache.write(0, nothing, nothing, batch)
    assert sequence.num_pending == 9 and len(sequence.blocks) == 3
    again = step(cache, [sequence])
    assert sequence.num_pending == 0 and len(sequence.blocks) == 3
    with pytest.raises(RuntimeError, match="^write: batch: expected the batch of the last extend"):
        cache.write(0, nothing, nothing, batch)
    assert again is not batch
    check_contents(cache, [sequence])


def test_forks_copy_the_block_that_they_write(any_device):
    cache = make_cache(any_device)
    first = cache.new(range(6))
    step(cache, [first])
    forks = [first, cache.fork(first), cache.fork(first)]
    assert cache.stats().num_used == 2
    for i, sequence in enumerate(forks):
        sequence.append(100 + i)
    step(cache, forks)
    assert cache.stats().num_copied == 2 and cache.stats().num_used == 4
    assert len({s.blocks[0] for s in forks}) == 1 and len({s.blocks[1] for s in forks}) == 3
    check_contents(cache, forks)
    check_blocks(cache, forks)


def test_a_copied_block_replaces_the_shared_one_in_the_table(any_device):
    cache = make_cache(any_device)
    first = cache.new(range(6))
    step(cache, [first])
    fork = cache.fork(first)
    first.append(7)
    batch = step(cache, [first])
    assert batch.block_table.tolist() == [list(first.blocks)] and first.blocks != fork.blocks
    check_contents(cache, [first, fork])


def test_a_fork_between_two_blocks_copies_nothing(any_device):
    cache = make_cache(any_device)
    first = cache.new(range(8))
    step(cache, [first])
    second = cache.fork(first)
    first.append(1)
    second.append(2)
    step(cache, [first, second])
    assert cache.stats().num_copied == 0
    check_contents(cache, [first, second])


def test_the_last_of_the_forks_writes_in_place(any_device):
    cache = make_cache(any_device)
    first = cache.new(range(6))
    step(cache, [first])
    second = cache.fork(first)
    cache.free(first)
    second.append(9)
    step(cache, [second])
    assert cache.stats().num_copied == 0 and cache.stats().num_used == 2


def test_truncation_for_speculative_decoding(any_device):
    cache = make_cache(any_device)
    sequence = cache.new(range(6))
    step(cache, [sequence])
    sequence.append(60, 61, 62, 63)
    step(cache, [sequence])
    other = cache.new([0, 1, 2, 3, 4, 5, 60, 61, 62])
    assert other.num_cached_tokens == 8  # shares the block that is written next
    cache.truncate(sequence, 7)
    assert len(sequence.blocks) == 2 and sequence.num_written == 7
    sequence.append(70)
    step(cache, [sequence])
    step(cache, [other])
    check_contents(cache, [sequence, other])
    assert cache.stats().num_copied == 1
    check_blocks(cache, [sequence, other])


def test_a_truncated_block_loses_its_name_when_it_is_written(any_device):
    cache = make_cache(any_device)
    sequence = cache.new(range(8))
    step(cache, [sequence])
    cache.truncate(sequence, 5)
    assert cache.new(range(9)).num_cached_tokens == 8
    cache = make_cache(any_device)
    sequence = cache.new(range(8))
    step(cache, [sequence])
    cache.truncate(sequence, 5)
    sequence.append(50, 51, 52)
    step(cache, [sequence])
    assert cache.new(range(9)).num_cached_tokens == 4
    assert cache.new([0, 1, 2, 3, 4, 50, 51, 52, 53]).num_cached_tokens == 8


def test_eviction_takes_the_block_released_first_and_none_in_use(any_device):
    cache = make_cache(any_device, num_blocks=7)
    first, second, third = (cache.new(range(i, i + 8)) for i in (0, 100, 200))
    step(cache, [first, second, third])
    cache.free(second)
    cache.free(first)
    fourth = cache.new(range(300, 312))
    step(cache, [fourth])
    check_contents(cache, [third, fourth])
    check_blocks(cache, [third, fourth])
    assert [cache.new(range(i, i + 9)).num_cached_tokens for i in (0, 100, 200)] == [8, 0, 8]


def test_a_shared_block_is_not_evicted(any_device):
    cache = make_cache(any_device, num_blocks=4)
    first = cache.new(range(8))
    step(cache, [first])
    second = cache.new(range(9))
    cache.free(first)
    third = cache.new(range(50, 58))
    step(cache, [third])
    fourth = cache.new([77])
    with pytest.raises(multikv.OutOfBlocks):
        cache.extend([fourth])
    check_blocks(cache, [second, third, fourth])
    check_contents(cache, [second, third])


def test_out_of_blocks_changes_nothing(any_device):
    cache = make_cache(any_device, num_blocks=4)
    first = cache.new(range(6))
    step(cache, [first])
    second = cache.fork(first)
    sequences = [first, second, cache.new(range(20, 28))]
    first.append(1)
    second.append(2)
    before = pool.snapshot(cache, sequences)
    with pytest.raises(multikv.OutOfBlocks) as caught:
        cache.extend(sequences)
    assert (caught.value.wanted, caught.value.free) == (3, 2)  # one to copy, two to fill
    expected = "extend: 3 blocks wanted, 2 of 4 device blocks are free; free, truncate or offload sequences"
    assert str(caught.value) == expected
    after = pool.snapshot(cache, sequences)
    assert before[:2] == after[:2] and all(torch.equal(a, b) for a, b in zip(before[2], after[2], strict=False))
    step(cache, sequences[:2])
    check_contents(cache, sequences[:2])


def test_sharing_saves_work(any_device):
    """Of twenty prompts, 90% of whose tokens are equal, a fifth of the tokens are computed."""
    cache = make_cache(any_device, num_blocks=512)
    prompts = [[*range(360), *range(1000 * i, 1000 * i + 40)] for i in range(1, 21)]
    sequences, computed = [], 0
    for prompt in prompts:
        sequences.append(cache.new(prompt))
        computed += step(cache, sequences[-1:]).num_tokens
    assert 5 * computed <= sum(map(len, prompts))
    assert cache.stats().hit_rate > 0.8
    check_contents(cache, sequences)


@pytest.mark.parametrize("layout", ["NHD", "HND"])
@pytest.mark.parametrize("format", ["auto", "fp8_e4m3", "fp8_e5m2"])
def test_attention_over_a_cache_is_that_over_plain_tensors(any_device, format, layout):
    """A decode step attends over what was written, as scaled_dot_product_attention does over what read returns."""
    options = {
        "kv_cache_dtype": format,
        "layout": layout,
        "device": any_device,
        "dtype": torch.float32,
        "k_scale": 0.02,
    }
    cache = multikv.PagedKVCache(2, 2, 16, num_blocks=32, block_size=4, v_scale=torch.tensor([0.02, 0.03]), **options)
    sequences = [cache.new(range(i, i + n)) for i, n in ((0, 9), (20, 3), (40, 14))]
    for _ in range(2):
        batch = cache.extend(sequences)
        key, value, query = (torch.randn(batch.num_tokens, h, 16, device=any_device) for h in (2, 2, 6))
        for layer in range(2):
            cache.write(layer, key + layer, value - layer, batch)
            out = cache.attend(layer, query, batch)
            keys, values = cache.read(layer, batch)
            lengths = batch.seq_lens.tolist()
            parts = (x.split(batch.cu_query_lens.diff().tolist()) for x in (query, out))
            for q, got, k, v in zip(*parts, keys.split(lengths), values.split(lengths), strict=False):
                mask = torch.ones(len(q), len(k), dtype=torch.bool, device=any_device).tril(len(k) - len(q))
                q, k, v = q.transpose(0, 1), *(x.transpose(0, 1).repeat_interleave(3, 0) for x in (k, v))
                wanted = torch.nn.functional.scaled_dot_product_attention(q, k, v, mask)
                tolerance = 1e-4 if any_device.type == "cpu" else 2e-2  # a GPU may multiply in 16 bits
                assert torch.allclose(got, wanted.transpose(0, 1), atol=tolerance)
        for sequence in sequences:
            sequence.append(5)
    if format == "auto":
        assert torch.equal(keys[lengths[0] - 1], key[0] + 1)


@pytest.mark.parametrize("format", [x for x in formats.names(formats.Family.MLA) if x not in ("float16", "float32")])
def test_mla(any_device, format):
    cache = multikv.PagedMLACache(2, 16, dtype=torch.bfloat16, kv_cache_dtype=format, device=any_device, scale=0.02)
    entries = torch.randn(40, 576, dtype=torch.bfloat16, device=any_device)
    for tokens, rows in ((range(20), entries[:20]), ([*range(16), 80, 81], entries[20:22])):
        sequence = cache.new(tokens)
        batch = cache.extend([sequence])
        for layer in range(2):
            cache.write(layer, rows[:, :512], rows[:, 512:], batch)
    got = cache.read(1, batch)
    wanted = torch.cat([entries[:16], entries[20:22]])
    error = (got.float() - wanted.float()).abs().max()
    assert error == 0 if format in ("auto", "bfloat16") else error < 0.5
    assert sequence.num_cached_tokens == 16


def test_a_batch_ends_when_one_of_its_sequences_changes(any_device):
    row = torch.zeros(3, 1, pool.HEAD_SIZE, device=any_device)
    for change in ("free", "truncate", "offload"):
        cache = make_cache(any_device, num_host_blocks=4)
        sequence, other = cache.new([1, 2]), cache.new([3])
        batch = cache.extend([sequence, other])
        getattr(cache, change)(*{"free": (sequence,), "truncate": (sequence, 1), "offload": ([sequence],)}[change])
        with pytest.raises(RuntimeError, match="^write: batch: expected the batch of the last extend"):
            cache.write(0, row, row, batch)
        with pytest.raises(RuntimeError, match="^commit: batch: expected the batch of the last extend"):
            cache.commit(batch)
        step(cache, [other])
        check_contents(cache, [other])


def test_append_and_tokens():
    cache = make_cache("cpu")
    sequence = cache.new([])
    sequence.append(1)
    sequence.append(2, 3)
    assert sequence.tokens == array.array("q", [1, 2, 3]) and len(sequence) == sequence.num_pending == 3
