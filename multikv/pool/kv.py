"""PagedKVCache: keys and values."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops import gather_kv_cache, paged_attention, paged_attention_workspace_bytes, reshape_and_cache_flash
from .arguments import check_type
from .batch import Batch, gather_bounds, power_of_two
from .memory import as_device, as_scale, check_sizes, storage_dtype
from .paged import PagedCache

__all__ = ["PagedKVCache"]

_LAYOUTS = ("NHD", "HND")


class PagedKVCache(PagedCache):
    """A paged cache of keys and values for all layers of a model, shared by many sequences.

    A step of a model extends its sequences, and makes two calls a layer:

        batch = cache.extend(sequences)               # takes slots for the tokens that are not written yet
        for layer in range(num_layers):
            cache.write(layer, key, value, batch)
            out = cache.attend(layer, query, batch)
        for sequence, token in zip(sequences, next_tokens):
            sequence.append(token)

    The blocks of freed sequences stay in the cache until their memory is needed. A sequence that begins with the same
    tokens shares them. docs/concepts.md explains blocks, slots, sequences and batches.

    Args:
        num_layers: the number of layers.
        num_kv_heads: the number of key and value heads.
        head_size: the size of a head.
        num_blocks: the number of blocks, each for block_size tokens of all layers.
        block_size: the tokens of a block.
        dtype: float32, float16 or bfloat16: the dtype of keys, values and queries. None: PyTorch's default.
        kv_cache_dtype: how elements are stored: "auto" (as dtype), or a format of `multikv.ops`, such as "fp8_e4m3".
        device: where the cache is: a CPU or a GPU. None: PyTorch's default.
        num_host_blocks: blocks of the host tier, in pinned memory; 0: none.
        k_scale: of the fp8 formats, for all layers: a number, or a float32 tensor with one element or one for each
            head. None: 1. docs/scales.md says how to choose it.
        v_scale: like k_scale.
        layout: the order of the memory: "NHD" (token, head) or "HND" (head, token).

    Attributes:
        planes: the caches K0, V0, K1, V1, ..., each [num_blocks, block_size, num_kv_heads, head_size].

    Raises:
        RuntimeError: the memory does not suffice.
        TypeError: a size is not an integer, or dtype or a scale is of another type.
        ValueError: a size is less than 1, kv_cache_dtype or layout is unknown, kv_cache_dtype does not fit dtype, or a
            scale has a wrong number of elements.

    Example:
        >>> cache = multikv.PagedKVCache(num_layers=2, num_kv_heads=2, head_size=64, num_blocks=64)
        >>> sequences = [cache.new([1, 2, 3]), cache.new([4, 5])]
        >>> batch = cache.extend(sequences)
        >>> for layer in range(2):
        ...     key, value = torch.randn(2, batch.num_tokens, 2, 64)
        ...     cache.write(layer, key, value, batch)
        ...     out = cache.attend(layer, torch.randn(batch.num_tokens, 8, 64), batch)
        >>> out.shape, sequences[0].num_pending
        (torch.Size([5, 8, 64]), 0)
    """

    def __init__(
        self,
        num_layers: int,
        num_kv_heads: int,
        head_size: int,
        num_blocks: int,
        block_size: int = 16,
        dtype: torch.dtype | None = None,
        kv_cache_dtype: str = "auto",
        device: torch.device | str | None = None,
        num_host_blocks: int = 0,
        k_scale: Tensor | float | None = None,
        v_scale: Tensor | float | None = None,
        layout: str = "NHD",
    ) -> None:
        """Allocates the cache."""
        if layout not in _LAYOUTS:
            raise ValueError(f"PagedKVCache: layout: expected one of {', '.join(_LAYOUTS)}, got {layout!r}")
        sizes = {"num_layers": num_layers, "num_kv_heads": num_kv_heads, "head_size": head_size}
        check_sizes("PagedKVCache", 1, **sizes, num_blocks=num_blocks, block_size=block_size)
        check_sizes("PagedKVCache", 0, num_host_blocks=num_host_blocks)
        self.num_layers, self.num_kv_heads, self.head_size = num_layers, num_kv_heads, head_size
        self.block_size, self.kv_cache_dtype, self.device = block_size, kv_cache_dtype, as_device(device)
        self.dtype = torch.get_default_dtype() if dtype is None else dtype
        check_type("PagedKVCache", "dtype", self.dtype, torch.dtype)
        stored = storage_dtype("PagedKVCache", kv_cache_dtype, self.dtype)
        scales = {"k_scale": k_scale, "v_scale": v_scale}
        tensors = [as_scale(f"PagedKVCache: {name}", x, num_kv_heads, self.device) for name, x in scales.items()]
        self.k_scale, self.v_scale = self.scales = [x.contiguous() for x in torch.broadcast_tensors(*tensors)]
        inner = (block_size, num_kv_heads) if layout == "NHD" else (num_kv_heads, block_size)
        memory = torch.zeros(2 * num_layers, num_blocks, *inner, head_size, dtype=stored, device=self.device).unbind()
        self.planes = [plane if layout == "NHD" else plane.transpose(1, 2) for plane in memory]
        self._workspaces = {0: torch.empty(0, dtype=torch.uint8, device=self.device)}
        self._init_ledger(list(memory), num_host_blocks)

    def write(self, layer: int, key: Tensor, value: Tensor, batch: Batch) -> None:
        """Writes the keys and values of a batch. After the last layer the tokens are no longer pending.

        Args:
            layer: from 0 on; layers may be written in any order.
            key: [>= num_tokens, num_kv_heads, head_size], the dtype of the cache.
            value: like key.
            batch: that of the last `extend`.

        Raises:
            RuntimeError: a tensor has a wrong size, dtype or device, or the batch is not valid any more.
            IndexError: there is no such layer.
        """
        self._begin_write(layer, batch)
        key_cache, value_cache = self.planes[2 * layer], self.planes[2 * layer + 1]
        slots, scales = batch.slot_mapping, (self.k_scale, self.v_scale)
        reshape_and_cache_flash(key, value, key_cache, value_cache, slots, self.kv_cache_dtype, *scales)
        self._end_write(layer, batch)

    def attend(
        self,
        layer: int,
        query: Tensor,
        batch: Batch,
        scale: float | None = None,
        window_left: int = -1,
        softcap: float = 0.0,
        alibi_slopes: Tensor | None = None,
        sinks: Tensor | None = None,
        query_mask: Tensor | None = None,
    ) -> Tensor:
        """Returns the causal attention of the tokens of a batch over their sequences. Call `write` for the layer first.

        Args:
            layer: from 0 on.
            query: [num_tokens, num_query_heads, head_size], the dtype of the cache. num_query_heads is a multiple of
                num_kv_heads.
            batch: that of the last `extend`.
            scale: factor of the scores; None: head_size**-0.5.
            window_left: see `paged_attention`, which also explains the arguments that follow.
            softcap: bound of the scores; 0: none.
            alibi_slopes: [num_query_heads], float32.
            sinks: [num_query_heads].
            query_mask: [num_tokens], int64, for trees of speculative decoding.

        Returns:
            A new tensor like query.

        Raises:
            RuntimeError: a tensor has a wrong size, dtype or device.
            IndexError: there is no such layer.
        """
        self._begin_read("attend", layer, batch)
        out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        paged_attention(
            query,
            self.planes[2 * layer],
            self.planes[2 * layer + 1],
            out,
            None,
            batch.block_table,
            batch.seq_lens,
            batch.cu_query_lens,
            batch.max_query_len,
            -1,
            self.head_size**-0.5 if scale is None else scale,
            self.kv_cache_dtype,
            self.k_scale,
            self.v_scale,
            self._workspace(batch, query.size(1)),
            True,
            window_left,
            softcap,
            alibi_slopes,
            sinks,
            query_mask,
        )
        return out

    def read(self, layer: int, batch: Batch) -> tuple[Tensor, Tensor]:
        """Returns the keys and values of the first seq_lens tokens of each sequence of a batch, dequantised.

        Args:
            layer: from 0 on.
            batch: that of the last `extend`.

        Returns:
            Two tensors [sum of seq_lens, num_kv_heads, head_size] of the dtype of the cache, sequence by sequence.

        Example:
            >>> cache = multikv.PagedKVCache(num_layers=1, num_kv_heads=8, head_size=64, num_blocks=64)
            >>> batch = cache.extend([cache.new(range(20))])
            >>> key, value = torch.randn(2, 20, 8, 64)
            >>> cache.write(0, key, value, batch)
            >>> torch.equal(cache.read(0, batch)[0], key)
            True
        """
        self._begin_read("read", layer, batch)
        shape = sum(batch._ends), self.num_kv_heads, self.head_size
        key, value = torch.empty(2, *shape, dtype=self.dtype, device=self.device)
        key_cache, value_cache = self.planes[2 * layer], self.planes[2 * layer + 1]
        table, bounds, scales = batch.block_table, gather_bounds(batch._ends, self.device), (self.k_scale, self.v_scale)
        gather_kv_cache(key_cache, value_cache, key, value, table, bounds, self.kv_cache_dtype, *scales)
        return key, value

    def _workspace(self, batch: Batch, num_query_heads: int) -> Tensor:
        """Returns a workspace. It is never freed, because CUDA graphs may have captured its address."""
        if self.device.type == "cpu":
            return self._workspaces[0]
        longest = batch.key.max_blocks * self.block_size
        size = paged_attention_workspace_bytes(batch.num_tokens, num_query_heads, self.head_size, longest)
        size = power_of_two(size) if size else 0
        if size not in self._workspaces:
            self._workspaces[size] = torch.empty(size, dtype=torch.uint8, device=self.device)
        return self._workspaces[size]
