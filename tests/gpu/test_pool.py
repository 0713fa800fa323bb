"""PagedKVCache on a GPU: streams of the host tier, and captured steps."""

from __future__ import annotations

import torch

import multikv
from tests.support import pool
from tests.support.pool import check_contents, make_cache, step


def test_copies_of_tiers_are_ordered_with_a_busy_stream(gpu):
    """Blocks are read, moved and written again while earlier steps are still queued."""
    cache = make_cache(gpu, num_blocks=64, num_host_blocks=256)
    matrix = torch.randn(2048, 2048, device=gpu)
    sequences = [cache.new(range(1000 * i, 1000 * i + 100)) for i in range(6)]
    running: list[multikv.Sequence] = []
    for turn in range(24):
        sequence = sequences[turn % 6]
        for _ in range(4):
            matrix = matrix @ matrix / 2048  # keeps the stream of the computation behind the host
        while running and cache.stats().num_blocks - cache.stats().num_used < 30:
            cache.offload([running.pop(0)])
        if sequence in running:
            running.remove(sequence)
        if sequence.is_offloaded:
            cache.restore([sequence])
        running.append(sequence)
        if not sequence.num_pending:
            sequence.append(turn, turn)
        step(cache, [sequence])
    check_contents(cache, sequences)


def test_evicted_blocks_are_kept_before_they_are_overwritten(gpu):
    cache = make_cache(gpu, num_blocks=64, num_host_blocks=256)
    matrix = torch.randn(2048, 2048, device=gpu)
    for i in range(8):
        matrix = matrix @ matrix / 2048
        sequence = cache.new(range(1000 * i, 1000 * i + 101))
        step(cache, [sequence])
        cache.free(sequence)
    found = [cache.new(range(1000 * i, 1000 * i + 101)) for i in range(2)]
    assert [sequence.num_cached_tokens for sequence in found] == [100, 100]
    assert cache.stats().num_from_host > 0
    step(cache, found)
    check_contents(cache, found)


def test_a_captured_step_serves_all_batches_with_its_key(gpu):
    cache = multikv.PagedKVCache(2, 2, 64, num_blocks=64, dtype=torch.bfloat16, device=gpu)
    weights = torch.randn(1000, 8, 64, dtype=torch.bfloat16, device=gpu)

    def model(batch):
        x = weights[batch.tokens]
        for layer in range(2):
            cache.write(layer, x[:, :2], x[:, 2:4], batch)
            x = x + cache.attend(layer, x, batch)
        return x

    def run(captured):
        sequences = [cache.new(range(n)) for n in (5, 20, 33)]
        model(cache.extend(sequences))
        outputs, graphs = [], {}
        for turn in range(40):
            for sequence in sequences:
                sequence.append(turn)
            batch = cache.extend(sequences)
            if captured and batch.key in graphs:
                graph, out = graphs[batch.key]
                graph.replay()
                assert sequences[0].num_pending == 1
                cache.commit(batch)
            else:
                out = model(batch)
                if captured:
                    graph = torch.cuda.CUDAGraph()
                    with torch.cuda.graph(graph):
                        captured_out = model(batch)
                    graphs[batch.key] = graph, captured_out
            assert sequences[0].num_pending == 0
            outputs.append(out.clone())
        for sequence in sequences:
            cache.free(sequence)
        return outputs, len(graphs)

    wanted, _ = run(False)
    got, num_graphs = run(True)
    assert num_graphs == 2  # tables of 4 and of 8 columns
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=False))


def test_a_captured_write_commits_nothing(gpu):
    cache = make_cache(gpu)
    sequence = cache.new(range(9))
    batch = cache.extend([sequence])
    rows = torch.zeros(9, 1, pool.HEAD_SIZE, device=gpu)
    cache.write(0, rows, rows, batch)  # loads the kernel
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for layer in range(2):
            cache.write(layer, rows, rows, batch)
    assert sequence.num_pending == 9 and cache.new(range(9)).num_cached_tokens == 0
    graph.replay()
    cache.commit(batch)
    assert sequence.num_pending == 0 and cache.new(range(9)).num_cached_tokens == 8
