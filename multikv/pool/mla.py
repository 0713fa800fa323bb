"""PagedMLACache: the latent vectors and rotary keys of multi-head latent attention."""

from __future__ import annotations

import torch
from torch import Tensor

from ..formats import DS_MLA_ENTRY, Family
from ..ops import concat_and_cache_mla, cp_gather_and_upconvert_fp8_kv_cache, gather_and_maybe_dequant_cache
from .arguments import check_type
from .batch import Batch, gather_bounds
from .memory import as_device, as_scale, check_sizes, storage_dtype
from .paged import PagedCache

__all__ = ["PagedMLACache"]

_DS_MLA = "fp8_ds_mla"


class PagedMLACache(PagedCache):
    """A paged cache of latent vectors and rotary keys for all layers of a model with multi-head latent attention.

    Sequences and batches are those of `PagedKVCache`. There is no `attend`: `read` returns what an attention kernel
    needs, and docs/ops.md says how `paged_attention` attends over `planes`.

    Args:
        num_layers: the number of layers.
        num_blocks: the number of blocks, each for block_size tokens of all layers.
        latent_size: the size of the latent vector.
        rope_size: the size of the rotary key.
        block_size: the tokens of a block.
        dtype: float32, float16 or bfloat16: the dtype of what is written. None: PyTorch's default.
        kv_cache_dtype: how elements are stored: "auto" (as dtype), or a format of `multikv.ops`. "fp8_ds_mla" needs a
            latent_size of 512, a rope_size of 64 and a dtype of 16 bits; `write` checks the dtype.
        device: where the cache is: a CPU or a GPU. None: PyTorch's default.
        num_host_blocks: blocks of the host tier, in pinned memory; 0: none.
        scale: of the fp8 formats except fp8_ds_mla: a number, or a float32 tensor with one element. None: 1.

    Attributes:
        planes: the cache of each layer, [num_blocks, block_size, 1, entry_size].

    Raises:
        RuntimeError: the memory does not suffice.
        ValueError: a size is less than 1, kv_cache_dtype is unknown, or does not fit dtype or the sizes, or scale has
            several elements.

    Example:
        >>> cache = multikv.PagedMLACache(num_layers=1, num_blocks=64, dtype=torch.bfloat16)
        >>> batch = cache.extend([cache.new(range(20))])
        >>> latent, rope = torch.randn(20, 576, dtype=torch.bfloat16).split([512, 64], dim=1)
        >>> cache.write(0, latent, rope, batch)
        >>> torch.equal(cache.read(0, batch), torch.cat([latent, rope], dim=1))
        True
    """

    def __init__(
        self,
        num_layers: int,
        num_blocks: int,
        latent_size: int = 512,
        rope_size: int = 64,
        block_size: int = 16,
        dtype: torch.dtype | None = None,
        kv_cache_dtype: str = "auto",
        device: torch.device | str | None = None,
        num_host_blocks: int = 0,
        scale: Tensor | float | None = None,
    ) -> None:
        """Allocates the cache."""
        sizes = {"num_layers": num_layers, "num_blocks": num_blocks, "block_size": block_size}
        check_sizes("PagedMLACache", 1, **sizes, latent_size=latent_size, rope_size=rope_size)
        check_sizes("PagedMLACache", 0, num_host_blocks=num_host_blocks)
        self.num_layers, self.latent_size, self.rope_size = num_layers, latent_size, rope_size
        self.block_size, self.kv_cache_dtype, self.device = block_size, kv_cache_dtype, as_device(device)
        self.dtype = torch.get_default_dtype() if dtype is None else dtype
        check_type("PagedMLACache", "dtype", self.dtype, torch.dtype)
        stored = storage_dtype("PagedMLACache", kv_cache_dtype, self.dtype, Family.MLA)
        entry_size = latent_size + rope_size
        if kv_cache_dtype == _DS_MLA:
            if (latent_size, rope_size) != (DS_MLA_ENTRY.latent_size, DS_MLA_ENTRY.rope_size):
                raise ValueError(f"PagedMLACache: {_DS_MLA}: expected sizes 512 and 64, got {latent_size}, {rope_size}")
            entry_size = DS_MLA_ENTRY.num_bytes
        self.scale = as_scale("PagedMLACache: scale", scale, 1, self.device)
        self.scales = [self.scale]
        shape = num_layers, num_blocks, block_size, entry_size
        memory = torch.zeros(shape, dtype=stored, device=self.device).unbind()
        self.planes = [plane.unsqueeze(2) for plane in memory]
        self._init_ledger(list(memory), num_host_blocks)

    def write(self, layer: int, latent: Tensor, rope: Tensor, batch: Batch) -> None:
        """Writes the latent vectors and rotary keys of a batch. After the last layer the tokens are no longer pending.

        Args:
            layer: from 0 on; layers may be written in any order.
            latent: [>= num_tokens, latent_size], the dtype of the cache.
            rope: [>= num_tokens, rope_size], the dtype of the cache.
            batch: that of the last `extend`.

        Raises:
            RuntimeError: a tensor has a wrong size, dtype or device, or the batch is not valid any more.
            IndexError: there is no such layer.
        """
        self._begin_write(layer, batch)
        cache, slots = self._memory[layer], batch.slot_mapping
        concat_and_cache_mla(latent, rope, cache, slots, self.kv_cache_dtype, self.scale)
        self._end_write(layer, batch)

    def read(self, layer: int, batch: Batch) -> Tensor:
        """Returns latent vectors and rotary keys of the first seq_lens tokens of each sequence of a batch, dequantised.

        Args:
            layer: from 0 on.
            batch: that of the last `extend`.

        Returns:
            [sum of seq_lens, latent_size + rope_size] of the dtype of the cache (fp8_ds_mla: bfloat16), sequence by
            sequence.
        """
        self._begin_read("read", layer, batch)
        size, cache = self.latent_size + self.rope_size, self._memory[layer]
        bounds, table = gather_bounds(batch._ends, self.device), batch.block_table
        is_ds_mla = self.kv_cache_dtype == _DS_MLA
        dtype = torch.bfloat16 if is_ds_mla else self.dtype
        rows = torch.empty(sum(batch._ends), size, dtype=dtype, device=self.device)
        if is_ds_mla:
            cp_gather_and_upconvert_fp8_kv_cache(cache, rows, table, bounds[:-1], -1)
        else:
            gather_and_maybe_dequant_cache(cache, rows, table, bounds, None, -1, self.kv_cache_dtype, self.scale)
        return rows
