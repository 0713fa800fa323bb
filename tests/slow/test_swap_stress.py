"""Random swaps on several streams while other streams write to the cache: nothing is lost, nothing is torn.

To the host and back, and to a second GPU and back.

MULTIKV_STRESS_SECONDS: how long (default: 2).
"""

from __future__ import annotations

import contextlib
import os
import random
import time

import pytest
import torch

import multikv

SECONDS = float(os.environ.get("MULTIKV_STRESS_SECONDS", "2"))
LAYERS, BLOCKS, BLOCK_SIZE, HEADS, HEAD_SIZE = 4, 512, 16, 8, 128  # of 32 KiB
BLOCK_BYTES = BLOCK_SIZE * HEADS * HEAD_SIZE * 2


class Lane:
    """A part of all blocks, with its own stream on each GPU, and a model of the number that each block holds."""

    def __init__(self, caches, pools, first, count, seed):
        self.caches, self.pools = caches, pools
        self.streams = [torch.cuda.Stream(x[0].device) for x in (pools, caches) if x[0].is_cuda]
        self.random = random.Random(seed)
        self.on_device = dict.fromkeys(range(first, first + count), 0)
        self.in_pools = dict.fromkeys(range(first, first + count), 0)
        self.next, self.scale = seed * 10_000_000 + 1, torch.ones(1, device="cuda")
        self.steps = 0

    def _mapping(self, sources, targets):
        """Pairs of some blocks, some of them in runs."""
        count = self.random.randint(1, len(sources))
        start, runs = self.random.randrange(len(sources)), self.random.random() < 0.5
        chosen = [(start + i) % len(sources) for i in range(count)]
        if not runs:
            self.random.shuffle(chosen)
        source, target = sorted(sources), sorted(targets)
        places = chosen if runs else self.random.sample(range(len(target)), count)
        return [(source[s], target[t]) for s, t in zip(chosen, places, strict=True)]

    def write(self):
        """Writes all tokens of some blocks, in each layer's K."""
        blocks = self.random.sample(sorted(self.on_device), self.random.randint(1, 20))
        tokens = torch.empty(len(blocks), BLOCK_SIZE, HEADS, HEAD_SIZE, dtype=torch.bfloat16, device="cuda")
        numbers = torch.arange(self.next, self.next + len(blocks), device="cuda")
        tokens.view(torch.int32).view(len(blocks), -1).copy_(numbers[:, None])
        slots = torch.tensor(blocks, device="cuda")[:, None] * BLOCK_SIZE + torch.arange(BLOCK_SIZE, device="cuda")
        key = tokens.view(-1, HEADS, HEAD_SIZE)
        for cache in self.caches:
            multikv.reshape_and_cache_flash(key, key, cache, cache, slots.flatten(), "auto", self.scale, self.scale)
        for i, block in enumerate(blocks):
            self.on_device[block] = self.next + i
        self.next += len(blocks)

    def swap(self):
        out = self.random.random() < 0.5
        held = (self.on_device, self.in_pools) if out else (self.in_pools, self.on_device)
        tensors = (self.caches, self.pools) if out else (self.pools, self.caches)
        pairs = self._mapping(*held)
        mapping = torch.tensor(pairs)
        if self.random.random() < 0.7:
            multikv.swap_blocks_layers(*tensors, BLOCK_BYTES, mapping)
        else:
            for src, dst in zip(*tensors, strict=True):
                multikv.swap_blocks(src, dst, BLOCK_BYTES, mapping)
        mapping.fill_(10**9)
        values = [held[0][s] for s, _ in pairs]
        held[1].update(zip((t for _, t in pairs), values, strict=True))

    def move(self):
        """Copies within the device, from one half of the blocks to the other."""
        blocks = sorted(self.on_device)
        self.random.shuffle(blocks)
        half = len(blocks) // 2
        pairs = list(zip(blocks[:half], blocks[half:], strict=True))[: self.random.randint(1, half)]
        multikv.swap_blocks_layers(self.caches, self.caches, BLOCK_BYTES, torch.tensor(pairs))
        self.on_device.update({t: self.on_device[s] for s, t in pairs})

    def step(self):
        with contextlib.ExitStack() as stack:
            for stream in self.streams:  # that of the caches last: theirs is the current device
                stack.enter_context(torch.cuda.stream(stream))
            self.random.choice((self.write, self.swap, self.swap, self.move))()
        self.steps += 1

    def wrong(self):
        """Counts the blocks of all layers that do not hold their number."""
        count = 0
        for tensors, held in ((self.caches, self.on_device), (self.pools, self.in_pools)):
            blocks = torch.tensor(list(held))
            expected = torch.tensor(list(held.values()), dtype=torch.int32)
            for x in tensors:
                got = x.view(BLOCKS, -1).view(torch.int32)[blocks.to(x.device)].cpu()
                count += int((got != expected[:, None]).any(1).sum())
        return count


@pytest.mark.parametrize(
    "strategy, place", [("auto", "host"), ("copy_engine", "host"), ("kernel", "host"), ("auto", "gpu")]
)
def test_swaps_beside_writes(gpu, swap_strategy, strategy, place):
    if place == "gpu" and torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    swap_strategy(strategy)
    shape = (BLOCKS, BLOCK_SIZE, HEADS, HEAD_SIZE)
    caches = [torch.zeros(shape, dtype=torch.bfloat16, device=gpu) for _ in range(LAYERS)]
    if place == "host":
        pools = [multikv.empty_pinned(shape, torch.bfloat16).zero_() for _ in range(LAYERS)]
    else:
        pools = [torch.zeros(shape, dtype=torch.bfloat16, device="cuda:1") for _ in range(LAYERS)]
    synchronize(caches, pools)
    count, order = 128, random.Random(0)
    lanes = [Lane(caches, pools, i * count, count, seed=i + 1) for i in range(BLOCKS // count)]
    end = time.monotonic() + SECONDS / 4
    while time.monotonic() < end:
        for _ in range(400):
            order.choice(lanes).step()
        synchronize(caches, pools)
        assert [lane.wrong() for lane in lanes] == [0] * len(lanes)
    print(f"{strategy}, {place}: {sum(lane.steps for lane in lanes)} steps")


def synchronize(*places):
    for device in {x[0].device for x in places if x[0].is_cuda}:
        torch.cuda.synchronize(device)
