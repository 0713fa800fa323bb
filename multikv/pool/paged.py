"""What the caches of all models share: sequences, batches and their blocks. Subclasses write and read the contents."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from . import names
from .arguments import as_integer, as_list, as_tokens, check_type
from .batch import Batch
from .blocks import BlockPool
from .ledger import Ledger
from .moves import Move
from .sequence import Sequence

__all__ = ["CacheStats"]


@dataclass(frozen=True)
class CacheStats:
    """What a cache holds, and what it has done so far. See `PagedKVCache.stats`.

    Attributes:
        num_blocks: the blocks of the device.
        num_used: those that sequences use.
        num_cached: those that no sequence uses, and whose content `new` can find.
        num_host_blocks: the blocks of the host tier.
        num_host_used: those that offloaded sequences use.
        num_host_cached: those that no sequence uses, and whose content `new` can find.
        num_new_tokens: the tokens that were given to `new`.
        num_found_tokens: those of them that were in the cache.
        num_copied: blocks copied on write.
        num_evicted: cached blocks of the device that were given to another sequence.
        num_to_host: blocks copied to the host.
        num_from_host: blocks copied from the host.
    """

    num_blocks: int
    num_used: int
    num_cached: int
    num_host_blocks: int
    num_host_used: int
    num_host_cached: int
    num_new_tokens: int
    num_found_tokens: int
    num_copied: int
    num_evicted: int
    num_to_host: int
    num_from_host: int

    @property
    def hit_rate(self) -> float:
        """The share of the tokens given to `new` that were found."""
        return self.num_found_tokens / self.num_new_tokens if self.num_new_tokens else 0.0


class PagedCache(Ledger):
    """The base of PagedKVCache and PagedMLACache: everything but the contents of blocks.

    **Threads.** A lock makes every method atomic except `write`, `attend` and `read`. So any thread may create, fork,
    truncate, offload, restore and free sequences. The steps belong to one thread: a batch is valid until the next
    `extend` of the cache.

    **Streams.** On a GPU the cache works on the current stream, like PyTorch. Call `extend`, `write`, `attend` and
    `read` of one cache on the same stream. Copies between the tiers run on a stream of their own, ordered by events.
    """

    kv_cache_dtype: str
    scales: list[Tensor]  # of the fp8 formats: one element, or one for each head
    planes: list[Tensor]  # [num_blocks, block_size, heads, head_size] each: K0, V0, K1, ...; MLA: one for each layer

    def new(self, tokens: Iterable[int], cache_salt: str | bytes = "") -> Sequence:
        """Returns a sequence that shares the blocks of the longest prefix that the cache holds.

        A full block is found if any sequence with the same salt has written it, even one that was freed, and if it is
        still on the device or on the host. At least one token of a prompt stays pending: the model has to process the
        last token to predict the next one.

        Args:
            tokens: the prompt, possibly empty: integers of 64 bits.
            cache_salt: sequences share blocks only if their salts are equal. Give each tenant its own salt, so that no
                tenant can find out what another has asked by measuring how long a prefill takes.

        Raises:
            TypeError: a token is not an integer, or cache_salt is neither str nor bytes.
            ValueError: a token does not fit 64 bits.

        Example:
            >>> cache = multikv.PagedKVCache(num_layers=1, num_kv_heads=8, head_size=64, num_blocks=64)
            >>> batch = cache.extend([cache.new(range(40))])
            >>> key, value = torch.randn(2, 40, 8, 64)
            >>> cache.write(0, key, value, batch)
            >>> cache.new([*range(35), 7, 7, 7]).num_cached_tokens
            32
            >>> cache.new(range(40), cache_salt="another tenant").num_cached_tokens
            0
        """
        with self._lock:
            sequence = Sequence(as_tokens("new", tokens), names.root(cache_salt), self._pool)
            self._share_prefix(sequence)
            self._counts.new_tokens += len(sequence)
            self._counts.found_tokens += sequence.num_cached_tokens
            return sequence

    def extend(self, sequences: Iterable[Sequence], max_query_len: int | None = None) -> Batch:
        """Returns the batch of the pending tokens, with a slot for each.

        Takes blocks, and copies blocks that are about to be written and that others use (copy on write). If the
        previous batch was not written in all layers, it is given up, and its tokens are still pending. So a step that
        failed can be made again.

        Args:
            sequences: distinct sequences of this cache on the device, each with a pending token.
            max_query_len: the most tokens of each sequence, for a prefill in chunks. None: all.

        Raises:
            OutOfBlocks: there are too few free blocks. Nothing has changed.
            ValueError: a sequence was freed, is offloaded, is of another cache, is listed twice, or has no pending
                token; or there is no sequence, or max_query_len is below 1.

        Example:
            >>> cache = multikv.PagedKVCache(num_layers=1, num_kv_heads=8, head_size=64, num_blocks=64)
            >>> sequence = cache.new(range(100))
            >>> cache.extend([sequence], max_query_len=64).num_tokens
            64
        """
        with self._lock:
            plan, query_lens = self._plan(as_list("extend", "sequences", sequences, Sequence), max_query_len)
            self._take_slots(plan)
            batch = self._buffers.fill(plan, query_lens, self._version)
            batch._missing = (1 << self.num_layers) - 1
            self._batch = batch
            return batch

    def commit(self, batch: Batch) -> None:
        """Declares that a batch was written in all layers: its tokens are no longer pending, and can be found by `new`.

        `write` calls this after the last layer. Call it yourself after the replay of a CUDA graph, which has written
        the layers without a call of `write`. A second call does nothing.

        Raises:
            RuntimeError: the batch is not that of the last `extend`, or a sequence of it was freed, truncated or
                offloaded since.
        """
        with self._lock:
            self._check_current("commit", batch)
            batch._missing = 0
            for sequence, start, end in zip(batch.sequences, batch._starts, batch._ends, strict=True):
                sequence.num_written = end
                if start // self.block_size != end // self.block_size:
                    self._name_blocks(sequence, start // self.block_size)

    def fork(self, sequence: Sequence) -> Sequence:
        """Returns a copy of a sequence that shares the blocks of its written tokens.

        The first of the two that writes a token copies the last block, unless this block is full.

        Example:
            >>> cache = multikv.PagedKVCache(num_layers=1, num_kv_heads=8, head_size=64, num_blocks=64)
            >>> sequence = cache.new(range(20))
            >>> beams = [cache.fork(sequence) for _ in range(3)]
        """
        with self._lock:
            pool = self._pool_of("fork", sequence)
            copy = Sequence(sequence.tokens[:], sequence._root, pool)
            copy.num_written, copy.num_cached_tokens = sequence.num_written, sequence.num_cached_tokens
            copy.is_offloaded, copy._ready = sequence.is_offloaded, sequence._ready
            copy._names = sequence._names[:]
            copy._hold(sequence.blocks[: -(-sequence.num_written // self.block_size)], self.block_size)
            pool.share(copy.blocks)
            sequence._shares_tail = copy._shares_tail = True
            return copy

    def truncate(self, sequence: Sequence, num_tokens: int) -> None:
        """Keeps the first num_tokens tokens of a sequence, such as those that speculative decoding has accepted.

        Raises:
            ValueError: num_tokens is negative or above the length, or the sequence was freed or is of another cache.
        """
        with self._lock:
            pool, num_tokens = self._pool_of("truncate", sequence), as_integer("truncate", "num_tokens", num_tokens)
            if not 0 <= num_tokens <= len(sequence):
                raise ValueError(f"truncate: num_tokens: expected 0 to {len(sequence)}, got {num_tokens}")
            self._give_up_batch_of(sequence)
            del sequence.tokens[num_tokens:]
            sequence.num_written = min(sequence.num_written, num_tokens)
            del sequence._names[num_tokens // self.block_size :]
            kept = -(-sequence.num_written // self.block_size)
            self._wait_ready(sequence)
            pool.release(sequence.blocks[kept:])
            sequence._replace(sequence.blocks[:kept], self.block_size)
            sequence._shares_tail = True
            self._version += 1

    def free(self, sequence: Sequence) -> None:
        """Releases the blocks of a sequence. Full ones can be found by `new` until they are evicted.

        Raises:
            ValueError: the sequence was freed before, or is of another cache.
        """
        with self._lock:
            pool = self._pool_of("free", sequence)
            self._give_up_batch_of(sequence)
            self._wait_ready(sequence)
            pool.release(sequence.blocks)
            sequence._replace([], self.block_size)
            sequence._pool = None

    def offload(self, sequences: Iterable[Sequence]) -> None:
        """Moves sequences to the host tier. On a GPU the copies are asynchronous, on a stream of their own.

        A block that the host has already is not copied, and blocks that sequences share are copied once. Offloaded
        sequences can be freed, forked, truncated and restored, but not extended.

        Raises:
            OutOfBlocks: the host tier has too few free blocks. Nothing has changed.
            ValueError: a sequence was freed, is of another cache, is listed twice, or is offloaded already; or the
                cache has no host tier.
        """
        with self._lock:
            host, chosen = self._host_tier("offload"), as_list("offload", "sequences", sequences, Sequence)
            self._check("offload", chosen, self._pool)
            move = Move("offload", chosen, self._pool, host.blocks, self.block_size)
            for sequence in chosen:
                self._give_up_batch_of(sequence)
                self._wait_ready(sequence)
            pairs, _ = move.take()
            host.copy_out(pairs)
            self._finish(move, chosen, is_offloaded=True)
            self._counts.to_host += len(pairs)

    def restore(self, sequences: Iterable[Sequence]) -> None:
        """Moves offloaded sequences back to the device. On a GPU the copies are asynchronous.

        Blocks that the device still has are shared, and not copied. The next `extend` of a restored sequence orders the
        computation after its copies; other sequences can be extended meanwhile.

        Raises:
            OutOfBlocks: the device has too few free blocks. Nothing has changed.
            ValueError: a sequence was freed, is of another cache, is listed twice, or is not offloaded; or the cache
                has no host tier.

        Example:
            >>> cache = multikv.PagedKVCache(1, 8, 64, num_blocks=64, num_host_blocks=64)
            >>> sequence = cache.new(range(20))
            >>> cache.offload([sequence])
            >>> cache.restore([sequence])
        """
        with self._lock:
            host, chosen = self._host_tier("restore"), as_list("restore", "sequences", sequences, Sequence)
            self._check("restore", chosen, host.blocks)
            move = Move("restore", chosen, host.blocks, self._pool, self.block_size)
            pairs, evicted = move.take()
            self._keep(evicted)
            host.copy_in(pairs)
            self._finish(move, chosen, is_offloaded=False)
            self._counts.from_host += len(pairs)
            for sequence in chosen:
                sequence._ready = host.incoming()

    def stats(self) -> CacheStats:
        """Returns what the cache holds, and what it has done so far.

        Example:
            >>> cache = multikv.PagedKVCache(num_layers=1, num_kv_heads=8, head_size=64, num_blocks=64)
            >>> batch = cache.extend([cache.new(range(20))])
            >>> cache.stats().num_used
            2
        """
        with self._lock:
            pool, host, counts = self._pool, self._host.blocks if self._host else BlockPool(0), self._counts
            return CacheStats(
                num_blocks=pool.num_blocks,
                num_used=pool.num_blocks - pool.num_free,
                num_cached=pool.num_cached,
                num_host_blocks=host.num_blocks,
                num_host_used=host.num_blocks - host.num_free,
                num_host_cached=host.num_cached,
                num_new_tokens=counts.new_tokens,
                num_found_tokens=counts.found_tokens,
                num_copied=counts.copied,
                num_evicted=pool.num_evicted,
                num_to_host=counts.to_host,
                num_from_host=counts.from_host,
            )

    def _begin_write(self, layer: int, batch: Batch) -> None:
        """Checks the arguments of `write`."""
        if batch is None or batch is not self._batch:
            self._check_current("write", batch)
        self._check_layer("write", layer)

    def _check_layer(self, call: str, layer: int) -> None:
        if not 0 <= as_integer(call, "layer", layer) < self.num_layers:
            raise IndexError(f"{call}: layer: expected 0 to {self.num_layers - 1}, got {layer}")

    def _begin_read(self, call: str, layer: int, batch: Batch) -> None:
        """Checks the arguments of `attend` and `read`."""
        check_type(call, "batch", batch, Batch)
        self._check_layer(call, layer)

    def _end_write(self, layer: int, batch: Batch) -> None:
        """Notes that a layer was written, and commits the batch after the last one.

        Does nothing while a CUDA graph is captured, because a captured write has not run yet.
        """
        if batch._missing and not (self.device.type == "cuda" and torch.cuda.is_current_stream_capturing()):
            batch._missing &= ~(1 << layer)
            if not batch._missing:
                self.commit(batch)
