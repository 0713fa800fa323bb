"""Batches: the tensors of one step, in buffers whose addresses stay the same."""

from __future__ import annotations

import array
import ctypes
import itertools
import operator
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from ..ops import compute_slot_mapping
from .sequence import Sequence

__all__ = ["Batch"]


class BatchKey(NamedTuple):
    """What the sizes and addresses of the tensors of a batch depend on."""

    num_sequences: int
    num_tokens: int
    max_query_len: int
    max_blocks: int


class Batch:
    """One step of a model: the pending tokens of some sequences, and where their keys and values belong.

    A batch is valid until the next `extend` of its cache, which reuses the memory of its tensors, or until one of its
    sequences is freed, truncated or offloaded. All tensors are on the device of the cache.

    Attributes:
        sequences: the sequences, in the order of the rows.
        tokens: [num_tokens], int64: the tokens to compute, sequence by sequence.
        positions: [num_tokens], int64: their positions.
        slot_mapping: [num_tokens], int64: their slots.
        block_table: [num_sequences, max_blocks], int32. max_blocks is a power of two; entries behind the blocks of a
            sequence are undefined.
        seq_lens: [num_sequences], int32: the tokens of each sequence, those of this batch included.
        cu_query_lens: [num_sequences + 1], int32: the first row of each sequence, and num_tokens. The last token of
            each sequence is in row `cu_query_lens[1:] - 1`.
        num_tokens: the number of rows.
        max_query_len: the most rows of a sequence.
        key: names the sizes. The tensors of batches with equal keys have equal shapes and equal addresses, so that a
            CUDA graph that was captured with one of these batches serves all of them: `graphs[batch.key].replay()`,
            then `cache.commit(batch)`.

    Example:
        >>> cache = multikv.PagedKVCache(num_layers=1, num_kv_heads=8, head_size=64, num_blocks=64)
        >>> batch = cache.extend([cache.new([5, 6, 7]), cache.new([8])])
        >>> batch.tokens, batch.positions, batch.seq_lens
        (tensor([5, 6, 7, 8]), tensor([0, 1, 2, 0]), tensor([3, 1], dtype=torch.int32))
        >>> batch.slot_mapping
        tensor([ 0,  1,  2, 16])
    """

    __slots__ = (
        "_ends",
        "_missing",
        "_starts",
        "block_table",
        "cu_query_lens",
        "key",
        "max_query_len",
        "num_tokens",
        "positions",
        "seq_lens",
        "sequences",
        "slot_mapping",
        "tokens",
    )

    sequences: list[Sequence]
    tokens: Tensor
    positions: Tensor
    slot_mapping: Tensor
    block_table: Tensor
    seq_lens: Tensor
    cu_query_lens: Tensor
    num_tokens: int
    max_query_len: int
    key: BatchKey
    _starts: list[int]
    _ends: list[int]
    _missing: int  # bit i: layer i was not written yet

    def __repr__(self) -> str:
        """Describes the batch in one line."""
        return f"<Batch: {self.num_tokens} tokens of {len(self.sequences)} sequences>"


class Plan(NamedTuple):
    """The step that a batch describes: positions starts[i] to ends[i] of sequence i."""

    sequences: list[Sequence]
    tokens: list[array.array[int]]
    starts: list[int]
    ends: list[int]


class Mirror:
    """A tensor that the host fills and the device reads: one tensor on a CPU, two on a GPU."""

    def __init__(self, size: int, dtype: torch.dtype, device: torch.device) -> None:
        """Allocates `size` elements, int32 or int64."""
        gpu = device.type == "cuda"
        self.host = torch.zeros(size, dtype=dtype, pin_memory=gpu)
        self.device = torch.zeros(size, dtype=dtype, device=device) if gpu else self.host
        memory = memoryview((ctypes.c_uint8 * self.host.nbytes).from_address(self.host.data_ptr())).cast("B")
        self.view = memory.cast("i" if dtype == torch.int32 else "q")

    def upload(self, size: int) -> None:
        """Copies the first elements to the device, asynchronously."""
        if self.device is not self.host:
            self.device[:size].copy_(self.host[:size], non_blocking=True)


class SequenceBuffer:
    """Lengths, bounds and block tables of up to `rows` sequences of up to `columns` blocks, as int32.

    | seq_lens: rows | cu_query_lens: rows + 1 | block table: rows x columns |
    """

    def __init__(self, rows: int, columns: int, block_size: int, device: torch.device) -> None:
        """Allocates the buffer."""
        self.rows, self.columns, self._block_size = rows, columns, block_size
        self.table_start = 2 * rows + 1
        self.mirror = Mirror(self.table_start + rows * columns, torch.int32, device)
        self._version = -1  # the version of the last call of fill
        self._laid: list[Sequence] = []  # the sequences whose blocks are in the table
        self._laid_slots: list[int] = []  # the number of slots of their blocks in the table, for each sequence

    def fill(self, plan: Plan, bounds: array.array[int], version: int) -> None:
        """Writes the rows of the sequences.

        As long as `version` stays the same, sequences may gain blocks, but none of their blocks was replaced.
        """
        view, n = self.mirror.view, len(plan.ends)
        view[:n] = array.array("i", plan.ends)
        view[self.rows : self.rows + n + 1] = bounds
        slots = [s._capacity for s in plan.sequences]
        if version != self._version or self._laid != plan.sequences:
            self._version, self._laid, self._laid_slots = version, plan.sequences, [0] * n
        elif slots == self._laid_slots:
            self.mirror.upload(self.table_start)
            return
        for i in itertools.compress(range(n), map(operator.lt, self._laid_slots, slots)):
            begin = self._laid_slots[i] // self._block_size
            # A sequence may have more than `columns` blocks: those that a larger step took before it failed.
            blocks = plan.sequences[i].blocks[begin : self.columns]
            row = self.table_start + i * self.columns + begin
            view[row : row + len(blocks)] = blocks
        self._laid_slots = slots
        self.mirror.upload(self.table_start + n * self.columns)

    def bind(self, batch: Batch) -> None:
        """Points the batch at the first rows."""
        n, data = len(batch.sequences), self.mirror.device
        batch.seq_lens = data[:n]
        batch.cu_query_lens = data[self.rows : self.rows + n + 1]
        batch.block_table = data[self.table_start :].view(self.rows, self.columns)[:n]


class TokenBuffer:
    """Tokens, positions and slots of up to `size` rows, as int64. Slots are computed on the device."""

    def __init__(self, size: int, device: torch.device) -> None:
        """Allocates the buffer."""
        self.size = size
        self.mirror = Mirror(2 * size, torch.int64, device)
        self.slots = torch.empty(size, dtype=torch.int64, device=device)

    def fill(self, plan: Plan, bounds: array.array[int]) -> None:
        """Writes tokens and positions."""
        view, n, total = self.mirror.view, len(plan.ends), bounds[-1]
        if total == n:  # one token each
            view[:n] = array.array("q", list(map(operator.getitem, plan.tokens, plan.starts)))
            view[self.size : self.size + n] = array.array("q", plan.starts)
        else:
            for tokens, row, start, end in zip(plan.tokens, bounds, plan.starts, plan.ends, strict=False):
                view[row : row + end - start] = tokens[start:end]
            positions = itertools.chain.from_iterable(map(range, plan.starts, plan.ends))
            view[self.size : self.size + total] = array.array("q", positions)
        self.mirror.upload(self.size + total)

    def bind(self, batch: Batch) -> None:
        """Points the batch at the first rows."""
        total, data = batch.num_tokens, self.mirror.device
        batch.tokens = data[:total]
        batch.positions = data[self.size : self.size + total]
        batch.slot_mapping = self.slots[:total]


class Buffers:
    """The buffers of a cache, by size. Numbers of rows and columns are powers of two, so that buffers are few.

    A buffer is never freed: CUDA graphs may have captured its address.
    """

    def __init__(self, block_size: int, device: torch.device) -> None:
        """Makes no buffer yet."""
        self._block_size, self._device = block_size, device
        self._by_sequences: dict[tuple[int, int], SequenceBuffer] = {}
        self._by_tokens: dict[int, TokenBuffer] = {}
        self._batch: Batch | None = None
        self._uploaded: torch.cuda.Event | None = None
        self._steps = array.array("i", [0])  # 0, 1, 2, ...: the bounds of a batch with one token a sequence

    def fill(self, plan: Plan, query_lens: list[int], version: int) -> Batch:
        """Returns the batch of a step. `version` counts the calls that have replaced blocks of sequences."""
        if self._uploaded is not None:
            self._uploaded.synchronize()  # the last upload has read the host's tensors
        n, num_blocks = len(query_lens), -(-max(plan.ends) // self._block_size)
        one_each = query_lens.count(1) == n
        if one_each and n >= len(self._steps):
            self._steps = array.array("i", range(2 * n))
        bounds = self._steps[: n + 1] if one_each else array.array("i", itertools.accumulate(query_lens, initial=0))
        key = BatchKey(n, bounds[-1], 1 if one_each else max(query_lens), power_of_two(num_blocks))
        self._sequence_buffer(key).fill(plan, bounds, version)
        self._token_buffer(key).fill(plan, bounds)
        batch = self._bound(plan, key)
        self._record()
        slots = [batch.slot_mapping]
        compute_slot_mapping([batch.block_table], batch.cu_query_lens, batch.positions, slots, [self._block_size])
        return batch

    def _bound(self, plan: Plan, key: BatchKey) -> Batch:
        """Returns a new batch. Its tensors are those of the batch before if that has the same key."""
        batch, before = Batch(), self._batch
        batch.sequences, _, batch._starts, batch._ends = plan
        batch.key, batch.num_tokens, batch.max_query_len = key, key.num_tokens, key.max_query_len
        if before is not None and before.key == key:
            for name in ("tokens", "positions", "slot_mapping", "block_table", "seq_lens", "cu_query_lens"):
                setattr(batch, name, getattr(before, name))
        else:
            self._sequence_buffer(key).bind(batch)
            self._token_buffer(key).bind(batch)
        self._batch = batch
        return batch

    def _sequence_buffer(self, key: BatchKey) -> SequenceBuffer:
        size = power_of_two(key.num_sequences), key.max_blocks
        if size not in self._by_sequences:
            self._by_sequences[size] = SequenceBuffer(*size, self._block_size, self._device)
        return self._by_sequences[size]

    def _token_buffer(self, key: BatchKey) -> TokenBuffer:
        size = power_of_two(key.num_tokens)
        if size not in self._by_tokens:
            self._by_tokens[size] = TokenBuffer(size, self._device)
        return self._by_tokens[size]

    def _record(self) -> None:
        if self._device.type == "cuda":
            if self._uploaded is None:
                self._uploaded = torch.cuda.Event()
            self._uploaded.record()


def power_of_two(count: int) -> int:
    """Returns the smallest power of two that is at least count."""
    return 1 << (count - 1).bit_length()


def gather_bounds(lengths: Iterable[int], device: torch.device) -> Tensor:
    """Returns the first row of each sequence, and the end of the last, as int32 on a device."""
    return torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32).to(device)
