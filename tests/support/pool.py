"""Contents that tell which tokens they belong to, and what is always true of a cache's blocks."""

from __future__ import annotations

import collections
import zlib

import torch

import multikv

HEAD_SIZE = 4


def make_cache(device, num_blocks=16, num_host_blocks=0, block_size=4, num_layers=2):
    """A small float32 cache with one head."""
    sizes = {"num_layers": num_layers, "num_kv_heads": 1, "head_size": HEAD_SIZE, "num_blocks": num_blocks}
    return multikv.PagedKVCache(
        **sizes, block_size=block_size, dtype=torch.float32, device=device, num_host_blocks=num_host_blocks
    )


def contents(tokens, begin=0, salt=""):
    """A number for each position from `begin` on, which depends on all tokens up to it: as the keys of a model do."""
    numbers, state = [], zlib.crc32(salt.encode())
    for i, token in enumerate(tokens):
        state = zlib.crc32(token.to_bytes(8, "little", signed=True), state)
        if i >= begin:
            numbers.append(state % (1 << 22))
    return numbers


def write(cache, batch, salts=None):
    """Writes all layers of a batch. The value of layer i is that of layer 0 plus 2 i, and values are keys plus 1."""
    for row, sequence in zip(batch.block_table.tolist(), batch.sequences, strict=True):
        assert row[: len(sequence.blocks)] == list(sequence.blocks)[: len(row)]
    numbers = []
    for i, (sequence, start, end) in enumerate(zip(batch.sequences, batch._starts, batch._ends, strict=False)):
        numbers += contents(sequence.tokens[:end], start, salts[i] if salts else "")
    rows = torch.tensor(numbers, dtype=torch.float32, device=cache.device).view(-1, 1, 1).expand(-1, 1, HEAD_SIZE)
    for layer in range(cache.num_layers):
        cache.write(layer, rows + 2 * layer, rows + 2 * layer + 1, batch)


def step(cache, sequences, **options):
    """Extends and writes; returns the batch."""
    batch = cache.extend(sequences, **options)
    write(cache, batch)
    return batch


def stored(cache, sequence, plane):
    """What a plane of a cache, or of its host tier, holds for the written tokens of a sequence."""
    if cache.device.type == "cuda":
        torch.cuda.synchronize()
    if sequence.is_offloaded:
        memory = cache._host._host_planes[plane].view(torch.float32).view(-1, cache.block_size, HEAD_SIZE)
    else:
        memory = cache.planes[plane][:, :, 0]
    blocks = torch.tensor(list(sequence.blocks), dtype=torch.int64, device=memory.device)
    return memory[blocks].flatten(0, 1)[: sequence.num_written].cpu()


def check_contents(cache, sequences, salts=None):
    """Every written token of every sequence is where the sequence says."""
    for i, sequence in enumerate(sequences):
        numbers = contents(sequence.tokens[: sequence.num_written], 0, salts[i] if salts else "")
        for plane in range(2 * cache.num_layers):
            got = stored(cache, sequence, plane)
            assert torch.equal(got, torch.tensor(numbers).float().add(plane).unsqueeze(1).expand_as(got)), sequence


def check_blocks(cache, sequences):
    """No block is leaked, and none is in the tails of two sequences that would both write it."""
    pools = {"device": cache._pool} | ({"host": cache._host.blocks} if cache._host else {})
    for tier, pool in pools.items():
        mine = [s for s in sequences if s.is_offloaded == (tier == "host")]
        users = collections.Counter(block for s in mine for block in s.blocks)
        assert pool.references == [users[block] for block in range(pool.num_blocks)], f"references of the {tier}"
        free = [*pool._unused, *pool._cached]
        assert sorted(free) == [block for block in range(pool.num_blocks) if not users[block]], f"leak on the {tier}"
        assert all(pool.name_of(block) is None for block in pool._unused)
        assert {name: block for block, name in enumerate(pool._names) if name} == pool._by_name
    for sequence in sequences:
        assert sequence._pool is pools["host" if sequence.is_offloaded else "device"]
        assert len(sequence.blocks) * cache.block_size >= sequence.num_written
        if not sequence._shares_tail:
            for block in sequence.blocks[sequence.num_written // cache.block_size :]:
                assert sequence._pool.references[block] == 1 and sequence._pool.name_of(block) is None


def snapshot(cache, sequences):
    """All that may not change when a call fails."""
    pools = [cache._pool] + ([cache._host.blocks] if cache._host else [])
    return (
        [(list(p.references), list(p._names), list(p._unused), list(p._cached)) for p in pools],
        [(list(s.blocks), list(s.tokens), s.num_written, s.is_offloaded) for s in sequences],
        [plane.cpu().clone() for plane in cache.planes],
    )
