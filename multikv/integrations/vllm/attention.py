"""An attention backend of vLLM that writes by `reshape_and_cache_flash` and attends by `paged_attention`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from vllm.v1.attention.backend import (
    AttentionBackend,
    AttentionCGSupport,
    AttentionImpl,
    AttentionMetadataBuilder,
    AttentionType,
    CommonAttentionMetadata,
)

import multikv


class PagedAttentionBackend(AttentionBackend):
    """Attention of decoders over caches of any layout, the same bits whatever the batch."""

    forward_includes_kv_cache_update: bool = False
    supported_dtypes: ClassVar[list[torch.dtype]] = [torch.float32, torch.float16, torch.bfloat16]
    supported_kv_cache_dtypes: ClassVar[list[str]] = [
        "auto",
        "float16",
        "bfloat16",
        "fp8",
        "fp8_e4m3",
        "fp8_e5m2",
    ]

    @staticmethod
    def get_name() -> str:
        """Returns the name of the member of AttentionBackendEnum."""
        return "CUSTOM"

    @staticmethod
    def get_impl_cls() -> type[PagedAttentionImpl]:
        """Returns the class of a layer's attention."""
        return PagedAttentionImpl

    @staticmethod
    def get_builder_cls() -> type[PagedAttentionBuilder]:
        """Returns the class that makes the metadata of a batch."""
        return PagedAttentionBuilder

    @classmethod
    def supports_sink(cls) -> bool:
        """Returns whether a head may have a score without a value."""
        return True

    @classmethod
    def supports_sliding_window(cls) -> bool:
        """Returns whether layers may see only the last keys."""
        return True

    @classmethod
    def supports_non_causal(cls) -> bool:
        """Returns whether all query tokens may see all keys."""
        return True

    @classmethod
    def supports_batch_invariance(cls) -> bool:
        """Returns whether results do not depend on the batch."""
        return True


class CpuPagedAttentionBackend(PagedAttentionBackend):
    """PagedAttentionBackend under the name that vLLM's CPU platform asks for."""

    @staticmethod
    def get_name() -> str:
        """Returns the name of the member of AttentionBackendEnum."""
        return "CPU_ATTN"


@dataclass
class PagedAttentionMetadata:
    """What `paged_attention` needs to know of a batch."""

    num_actual_tokens: int  # without padding
    query_start_loc: Tensor
    max_query_len: int
    seq_lens: Tensor
    max_seq_len: int
    block_table: Tensor
    slot_mapping: Tensor
    causal: bool
    workspace: Tensor


class PagedAttentionBuilder(AttentionMetadataBuilder[PagedAttentionMetadata]):
    """Makes the metadata of each batch. All layers of a group share one workspace, because they run one by one."""

    # A graph of batches whose sequences have equally many query tokens serves all such batches: lengths and tables are
    # read on the device, the workspace stays, and vLLM captures with its longest max_seq_len. Other batches are not
    # captured, because vLLM's older model runner captures them with a max_query_len that is too small.
    _cudagraph_support: ClassVar[AttentionCGSupport] = AttentionCGSupport.UNIFORM_BATCH

    def __init__(self, kv_cache_spec: Any, layer_names: list[str], vllm_config: Any, device: torch.device) -> None:
        """Allocates the workspace; the CPU does not use one."""
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        num_bytes = 0
        if device.type != "cpu":
            num_bytes = multikv.paged_attention_workspace_bytes(
                vllm_config.scheduler_config.max_num_batched_tokens,
                vllm_config.model_config.get_num_attention_heads(vllm_config.parallel_config),
                kv_cache_spec.head_size,
                vllm_config.model_config.max_model_len,
            )
        self._workspace = torch.empty(num_bytes, dtype=torch.uint8, device=device)

    def build(
        self, common_prefix_len: int, common_attn_metadata: CommonAttentionMetadata, fast_build: bool = False
    ) -> PagedAttentionMetadata:
        """Returns the metadata of a batch.

        Raises:
            NotImplementedError: some sequences of the batch are causal and others are not.
        """
        common = common_attn_metadata
        if isinstance(common.causal, Tensor):
            raise NotImplementedError("multikv: expected one value of causal for the batch, got one per sequence")
        return PagedAttentionMetadata(
            num_actual_tokens=common.num_actual_tokens,
            query_start_loc=common.query_start_loc,
            max_query_len=common.max_query_len,
            seq_lens=common.seq_lens,
            max_seq_len=common.max_seq_len,
            block_table=common.block_table_tensor,
            slot_mapping=common.slot_mapping,
            causal=common.causal,
            workspace=self._workspace,
        )


class PagedAttentionImpl(AttentionImpl[PagedAttentionMetadata]):
    """Attention of one layer."""

    def __init__(
        self,
        num_heads: int,
        head_size: int,
        scale: float,
        num_kv_heads: int | None = None,
        alibi_slopes: list[float] | None = None,
        sliding_window: int | None = None,
        kv_cache_dtype: str = "auto",
        logits_soft_cap: float | None = None,
        attn_type: str = AttentionType.DECODER,
        kv_sharing_target_layer_name: str | None = None,
        sinks: Tensor | None = None,
    ) -> None:
        """Keeps the options of the layer.

        Raises:
            NotImplementedError: the layer is not a decoder's.
        """
        if attn_type != AttentionType.DECODER:
            raise NotImplementedError(f"multikv: expected attention of a decoder, got {attn_type}")
        self.num_heads = num_heads
        self.head_size = head_size
        self.scale = float(scale)
        self.num_kv_heads = num_kv_heads or num_heads
        self.alibi_slopes = None if alibi_slopes is None else torch.tensor(alibi_slopes, dtype=torch.float32)
        self.sliding_window = sliding_window
        self.window_left = -1 if sliding_window is None else sliding_window - 1  # a window includes its own token
        self.kv_cache_dtype = kv_cache_dtype
        self.softcap = logits_soft_cap or 0.0
        self.kv_sharing_target_layer_name = kv_sharing_target_layer_name
        self.sinks = sinks

    def do_kv_cache_update(
        self, layer: Any, key: Tensor, value: Tensor, kv_cache: Tensor, slot_mapping: Tensor
    ) -> None:
        """Writes the keys and values of a batch. vLLM calls it before `forward`."""
        key_cache, value_cache = self._planes(kv_cache)
        multikv.reshape_and_cache_flash(
            key, value, key_cache, value_cache, slot_mapping, self.kv_cache_dtype, layer._k_scale, layer._v_scale
        )

    def forward(
        self,
        layer: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kv_cache: Tensor,
        attn_metadata: PagedAttentionMetadata | None,
        output: Tensor,
        output_scale: Tensor | None = None,
        output_block_scale: Tensor | None = None,
    ) -> Tensor:
        """Attends with the queries of a batch over the cache.

        Raises:
            NotImplementedError: the output is to be quantised.
        """
        if output_scale is not None or output_block_scale is not None:
            raise NotImplementedError("multikv: expected an output that is not quantised")
        if attn_metadata is None:  # vLLM measures the memory that a batch needs
            return output.fill_(0)
        key_cache, value_cache = self._planes(kv_cache)
        if self.alibi_slopes is not None:
            self.alibi_slopes = self.alibi_slopes.to(query.device)
        num_tokens = attn_metadata.num_actual_tokens
        multikv.paged_attention(
            query[:num_tokens],
            key_cache,
            value_cache,
            output[:num_tokens],
            None,
            attn_metadata.block_table,
            attn_metadata.seq_lens,
            attn_metadata.query_start_loc,
            attn_metadata.max_query_len,
            attn_metadata.max_seq_len,
            self.scale,
            self.kv_cache_dtype,
            layer._k_scale,
            layer._v_scale,
            attn_metadata.workspace,
            attn_metadata.causal,
            self.window_left,
            self.softcap,
            self.alibi_slopes,
            self.sinks,
        )
        return output

    def _planes(self, kv_cache: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the key cache and the value cache of vLLM's [num_blocks, num_kv_heads, block_size, 2 * head_size].

        The cache may have any strides, because vLLM chooses the order of its dimensions in memory.
        """
        cache = kv_cache.transpose(1, 2)
        return cache[..., : self.head_size], cache[..., self.head_size :]
