"""What a scenario of `tests/support/ranks.py` knows and uses: caches, and the contents of their sequences."""

from __future__ import annotations

import torch

import multikv
from multikv import transfer
from tests.support.pool import HEAD_SIZE, check_blocks, contents


class Rank:
    """What a scenario knows."""

    def __init__(self, rank, device, group):
        self.rank, self.device, self.group = rank, device, group

    def cache(self, first_head=0, num_heads=2, **options):
        options = {"num_blocks": 64, "block_size": 4, "dtype": torch.float32, "device": self.device} | options
        cache = multikv.PagedKVCache(2, num_heads, HEAD_SIZE, **options)
        cache.first_head = first_head
        return cache

    def send(self, cache, sequences, dst, **options):
        transfer.send(cache, sequences, dst, self.group, getattr(cache, "first_head", 0), **options)

    def receive(self, cache, src, **options):
        return transfer.receive(cache, src, self.group, getattr(cache, "first_head", 0), **options)


def rows_of(cache, sequence, begin, end, plane):
    """The keys (even planes) or values of positions, [tokens, heads, head_size]: all tell where they belong."""
    numbers = torch.tensor(contents(sequence.tokens[:end], begin), dtype=torch.float32, device=cache.device)
    heads = torch.arange(cache.first_head, cache.first_head + cache.num_kv_heads, device=cache.device)
    rows = numbers[:, None] + 16 * heads + plane
    return rows.unsqueeze(2).expand(-1, -1, HEAD_SIZE)


def step(cache, sequences):
    batch = cache.extend(sequences)
    parts = list(zip(sequences, batch._starts, batch._ends, strict=True))
    for layer in range(cache.num_layers):
        key, value = (torch.cat([rows_of(cache, *part, 2 * layer + i) for part in parts]) for i in (0, 1))
        cache.write(layer, key, value, batch)


def check(cache, sequences):
    check_blocks(cache, sequences)
    for sequence in sequences:
        blocks = torch.tensor(list(sequence.blocks), device=cache.device)
        for plane, memory in enumerate(cache.planes):
            got = memory[blocks].flatten(0, 1)[: sequence.num_written]
            assert torch.equal(got, rows_of(cache, sequence, 0, sequence.num_written, plane)), sequence


def make_sequences(cache, lengths=(9, 30, 4, 57)):
    sequences = [cache.new(range(100 * n, 100 * n + n)) for n in lengths]
    step(cache, sequences)
    if len(sequences) > 1:
        sequences[1].append(5, 6)  # tokens that are pending
    return sequences
