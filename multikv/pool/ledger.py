"""The bookkeeping behind the methods of PagedCache: checks, slots, names, and moves between the tiers."""

from __future__ import annotations

import itertools
import operator
import threading
from dataclasses import dataclass

import torch
from torch import Tensor

from ..ops import copy_blocks_layers
from . import names
from .arguments import as_integer, check_type
from .batch import Batch, Buffers, Plan
from .blocks import BlockPool, Evicted
from .errors import OutOfBlocks
from .host import HostTier
from .moves import Move
from .sequence import Sequence

# `new` computes this number of names, and looks whether the cache has the last of them. If it has, the number grows.
_FEW_NAMES = 8


@dataclass
class Counts:
    """What has happened so far."""

    new_tokens: int = 0
    found_tokens: int = 0
    copied: int = 0
    to_host: int = 0
    from_host: int = 0


class Ledger:
    """Who holds which block.

    Methods that read or change blocks are called with the lock held, except _adopt and _finish_adoption, which take it.
    """

    num_layers: int
    block_size: int
    device: torch.device

    def _init_ledger(self, memory: list[Tensor], num_host_blocks: int) -> None:
        """Begins with unused blocks. memory: contiguous tensors [num_blocks, ...], all that a block consists of."""
        self._lock = threading.RLock()
        self._memory = memory
        self._pool = BlockPool(memory[0].size(0))
        self._host = HostTier(memory, num_host_blocks) if num_host_blocks else None
        self._buffers = Buffers(self.block_size, self.device)
        self._batch: Batch | None = None  # of the last extend, until a sequence of it is freed, truncated or offloaded
        self._version = 0  # counts the calls that have replaced blocks of sequences
        self._counts = Counts()

    def _plan(self, sequences: list[Sequence], max_query_len: int | None) -> tuple[Plan, list[int]]:
        """Returns the next step of sequences, and the number of tokens of each."""
        tokens = [s.tokens for s in sequences]
        starts = [s.num_written for s in sequences]
        ends = list(map(len, tokens))
        if max_query_len is not None:
            max_query_len = as_integer("extend", "max_query_len", max_query_len)
            if max_query_len < 1:
                raise ValueError(f"extend: max_query_len: expected at least 1, got {max_query_len}")
            ends = [min(start + max_query_len, end) for start, end in zip(starts, ends, strict=True)]
        query_lens = list(map(operator.sub, ends, starts))
        if self._batch is None or self._batch.sequences != sequences:
            self._check("extend", sequences, self._pool)
            if not sequences:
                raise ValueError("extend: sequences: expected at least one")
        if 0 in query_lens:
            i = query_lens.index(0)
            raise ValueError(f"extend: sequences[{i}]: expected a pending token; append one to {sequences[i]}")
        return Plan(sequences, tokens, starts, ends), query_lens

    def _take_slots(self, plan: Plan) -> None:
        """Takes the blocks that a step writes, and makes them the sequences' own."""
        sharing = [s for s in plan.sequences if s._shares_tail]
        copying = self._copying(sharing)
        grows = map(operator.gt, plan.ends, [s._capacity for s in plan.sequences])
        growing = list(itertools.compress(zip(plan.sequences, plan.ends, strict=True), grows))
        counts = [-(-end // self.block_size) - len(s.blocks) for s, end in growing]
        wanted = len(copying) + sum(counts)
        if wanted > self._pool.num_free:
            raise OutOfBlocks("extend", wanted, self._pool.num_free, self._pool.num_blocks, "device")
        if self._host is not None:
            self._order_copies(self._host, plan.sequences)
        blocks = self._take(wanted)
        if self._host is not None:
            self._host.wait_outgoing()
        begin = 0
        for (sequence, _), count in zip(growing, counts, strict=True):
            sequence._hold(blocks[begin : begin + count], self.block_size)
            begin += count
        self._copy_on_write(copying, blocks[begin:])
        for sequence in sharing:
            self._own_tail(sequence)

    def _copying(self, sharing: list[Sequence]) -> list[Sequence]:
        """Returns the sequences that have to copy the block of their next slot, because others use it."""
        users: dict[int, int] = {}
        copying = []
        for sequence in sharing:
            if sequence.num_written % self.block_size:
                block = sequence.blocks[sequence.num_written // self.block_size]
                users.setdefault(block, self._pool.references[block])
                if users[block] > 1:
                    users[block] -= 1
                    copying.append(sequence)
        return copying

    def _copy_on_write(self, sequences: list[Sequence], blocks: list[int]) -> None:
        """Gives each sequence a copy of the block of its next slot."""
        if not sequences:
            return
        pairs = []
        for sequence, block in zip(sequences, blocks, strict=True):
            tail = sequence.num_written // self.block_size
            pairs.append((sequence.blocks[tail], block))
            sequence.blocks[tail] = block
        copy_blocks_layers(self._memory, torch.tensor(pairs))
        self._pool.release(shared for shared, _ in pairs)
        self._counts.copied += len(pairs)
        self._version += 1

    def _own_tail(self, sequence: Sequence) -> None:
        """Marks the block of the next slot as one that the sequence alone uses, and that has no name."""
        if sequence.num_written % self.block_size:
            self._pool.forget_name(sequence.blocks[sequence.num_written // self.block_size])
        sequence._shares_tail = False

    def _take(self, count: int) -> list[int]:
        """Takes blocks of the device, and keeps on the host what is evicted."""
        blocks, evicted = self._pool.take(count)
        self._keep(evicted)
        return blocks

    def _keep(self, evicted: list[Evicted]) -> None:
        if evicted and self._host is not None:
            self._counts.to_host += self._host.keep(evicted)

    def _name_blocks(self, sequence: Sequence, begin: int) -> None:
        """Names the full blocks of a sequence that are written, from block `begin` on."""
        end = sequence.num_written // self.block_size
        self._know_names(sequence, end)
        self._pool.give_names(sequence.blocks[begin:end], sequence._names[begin:end])

    def _know_names(self, sequence: Sequence, end: int) -> None:
        """Computes the names of the first `end` blocks of a sequence, as far as they are not known."""
        known, size = sequence._names, self.block_size
        if len(known) < end:
            parent = known[-1] if known else sequence._root
            known += names.chain(parent, sequence.tokens[len(known) * size : end * size], size)

    def _share_prefix(self, sequence: Sequence) -> None:
        """Gives a new sequence the blocks of its longest prefix on the device and the host."""
        count = max(len(sequence) - 1, 0) // self.block_size
        end = 0
        while end < count and (end == 0 or self._holds(sequence._names[-1])):
            end = min(max(_FEW_NAMES, 4 * end), count)
            self._know_names(sequence, end)
        blocks = self._pool.find_all(sequence._names)
        self._pool.share(blocks)
        if self._host is not None:
            if len(blocks) < count:
                blocks += self._fetch_prefix(self._host, sequence._names[len(blocks) :])
            sequence._ready = self._host.incoming()
        sequence._hold(blocks, self.block_size)
        sequence.num_written = sequence.num_cached_tokens = len(blocks) * self.block_size

    def _holds(self, name: bytes) -> bool:
        """Returns whether a block of the device or the host has a name."""
        host = self._host.blocks if self._host is not None else None
        return self._pool.find(name) is not None or (host is not None and host.find(name) is not None)

    def _fetch_prefix(self, host: HostTier, wanted: list[bytes]) -> list[int]:
        """Returns the blocks of the longest prefix of `wanted` that can be on the device.

        The prefix ends before the first name that neither the device nor the host holds, and before the first block for
        which too few blocks of the device are free. Blocks of the device are shared. Blocks of the host are copied to
        newly taken blocks of the device.
        """
        found: list[tuple[int | None, int | None]] = []  # (block of the device, block of the host)
        for name in wanted:
            here = self._pool.find(name)
            there = host.blocks.find(name) if here is None else None
            if here is None and there is None:
                break
            found.append((here, there))
        del found[self._num_fitting(found) :]
        self._pool.share(here for here, _ in found if here is not None)
        sources = [there for _, there in found if there is not None]
        arrived = iter(self._bring(host, sources))
        blocks = [next(arrived) if here is None else here for here, _ in found]
        for block, name in zip(blocks, wanted, strict=False):
            self._pool.give_name(block, name)
        return blocks

    def _num_fitting(self, found: list[tuple[int | None, int | None]]) -> int:
        """Returns how many of these blocks, from the first on, the device has room for."""
        idle = num_missing = 0
        for i, (here, _) in enumerate(found):
            idle += here is not None and self._pool.references[here] == 0
            num_missing += here is None
            if num_missing + idle > self._pool.num_free:
                return i
        return len(found)

    def _bring(self, host: HostTier, sources: list[int]) -> list[int]:
        """Takes a block of the device for each block of the host, and copies the content."""
        host.blocks.share(sources)  # the host takes blocks for what the device evicts, and must not evict these
        taken = self._take(len(sources))
        host.copy_in(list(zip(sources, taken, strict=True)))
        host.blocks.release(sources)
        self._counts.from_host += len(taken)
        return taken

    def _adopt(self, call: str, drafts: list[Sequence], written: list[int], unit: int) -> list[Sequence]:
        """Gives new sequences the blocks of `written` tokens each, or raises OutOfBlocks.

        A sequence shares the prefix that the cache holds, rounded down to a multiple of `unit` tokens. num_written is
        set to the length of this prefix. The caller fills the blocks after it, and then calls _finish_adoption.
        """
        with self._lock:
            for sequence, end in zip(drafts, written, strict=True):
                sequence._pool = self._pool
                self._share_prefix(sequence)
                kept = min(sequence.num_written, end) // unit * unit
                self._pool.release(sequence.blocks[kept // self.block_size :])
                sequence._replace(sequence.blocks[: kept // self.block_size], self.block_size)
                sequence.num_written = sequence.num_cached_tokens = kept
            counts = [-(-end // self.block_size) - len(s.blocks) for s, end in zip(drafts, written, strict=True)]
            if sum(counts) > self._pool.num_free:
                for sequence in drafts:
                    self._pool.release(sequence.blocks)
                raise OutOfBlocks(call, sum(counts), self._pool.num_free, self._pool.num_blocks, "device")
            for sequence, count in zip(drafts, counts, strict=True):
                sequence._hold(self._take(count), self.block_size)
            if self._host is not None:
                self._order_copies(self._host, drafts)
                self._host.wait_outgoing()
            return drafts

    def _foresee_names(self, sequences: list[Sequence], written: list[int]) -> None:
        """Computes the names that _finish_adoption gives, before it is called."""
        for sequence, end in zip(sequences, written, strict=True):
            self._know_names(sequence, end // self.block_size)

    def _finish_adoption(self, sequences: list[Sequence], written: list[int]) -> None:
        """Declares that the blocks of adopted sequences are filled: num_written becomes `written`."""
        with self._lock:
            for sequence, end in zip(sequences, written, strict=True):
                begin, sequence.num_written = sequence.num_written, end
                self._name_blocks(sequence, begin // self.block_size)

    def _finish(self, move: Move, sequences: list[Sequence], is_offloaded: bool) -> None:
        move.finish()
        for sequence in sequences:
            sequence.is_offloaded = is_offloaded
        self._version += 1

    def _order_copies(self, host: HostTier, sequences: list[Sequence]) -> None:
        """Orders the computation after the arrival of the sequences, and later copies after the computation."""
        for sequence in [s for s in sequences if s._ready is not None]:
            self._wait_ready(sequence)
        if self.device.type == "cuda":
            host.compute = torch.cuda.current_stream(self.device)

    def _wait_ready(self, sequence: Sequence) -> None:
        """Orders the computation after the arrival of a sequence from the host."""
        if sequence._ready is not None:
            torch.cuda.current_stream(self.device).wait_event(sequence._ready)
            sequence._ready = None

    def _give_up_batch_of(self, sequence: Sequence) -> None:
        """Ends the batch of the last extend, if the sequence is in it."""
        if self._batch is not None and sequence in self._batch.sequences:
            self._batch = None

    def _check_current(self, call: str, batch: Batch) -> None:
        check_type(call, "batch", batch, Batch)
        if batch is not self._batch:
            expected = "none of whose sequences has been freed, truncated or offloaded since"
            raise RuntimeError(f"{call}: batch: expected the batch of the last extend, {expected}")

    def _host_tier(self, call: str) -> HostTier:
        if self._host is None:
            raise ValueError(f"{call}: the cache has no host tier; make it with num_host_blocks")
        return self._host

    def _pool_of(self, call: str, sequence: Sequence) -> BlockPool:
        """Returns the pool that holds the blocks of a sequence of this cache."""
        check_type(call, "sequence", sequence, Sequence)
        pool = sequence._pool
        if pool is None or (pool is not self._pool and (self._host is None or pool is not self._host.blocks)):
            raise ValueError(f"{call}: sequence: {_fault(sequence)}")
        return pool

    def _check(self, call: str, sequences: list[Sequence], pool: BlockPool) -> None:
        """Checks that sequences are distinct, and that their blocks are in `pool`."""
        for i, sequence in enumerate(sequences):
            if sequence._pool is not pool:
                self._pool_of(call, sequence)
                expected = "an offloaded sequence" if call == "restore" else "a sequence on the device"
                raise ValueError(f"{call}: sequences[{i}]: expected {expected}, got {sequence}")
        if len(set(map(id, sequences))) != len(sequences):
            i = next(i for i, sequence in enumerate(sequences) if sequence in sequences[:i])
            first = sequences.index(sequences[i])
            raise ValueError(f"{call}: sequences[{i}] is sequences[{first}]; list each once")


def _fault(sequence: Sequence) -> str:
    if sequence._pool is None:
        return f"expected a sequence in use, got {sequence}"
    return f"expected a sequence of this cache, got {sequence} of another"
