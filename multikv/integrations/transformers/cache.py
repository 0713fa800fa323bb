"""A cache of Transformers whose keys and values are in paged caches."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedConfig
from transformers.cache_utils import CacheLayerMixin, DynamicLayer, DynamicSlidingWindowLayer

import multikv
from multikv import formats

from .blocks import BlockTables, Step, make_step

ATTENTION = "multikv"
Scale = float | Tensor | Sequence["float | Tensor"]


@dataclasses.dataclass
class Storage:
    """How the elements of a layer's cache are stored."""

    kv_cache_dtype: str
    k_scale: float | Tensor
    v_scale: float | Tensor

    def cache_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Returns the dtype of a cache of keys of `dtype`."""
        format = formats.find(self.kv_cache_dtype, formats.Family.CACHE)
        if format.codec.is_fp8:
            return torch.uint8
        return dtype if format.choice is formats.ElementChoice.INPUT else format.codec.element.dtype


class LayerGroup:
    """The layers that share block tables: those that see all tokens, or those with a sliding window of one size."""

    def __init__(self, block_size: int, window: int | None, max_length: int | None):
        """Begins without any layer."""
        self.tables = BlockTables(block_size, window)
        self.max_length = max_length
        self.layers: list[MultikvLayer] = []
        self._steps: dict[torch.device, Step] = {}

    def step(self, start: int, batch_size: int, count: int, device: torch.device) -> Step:
        """Returns the current step on a device; the first layer of a forward pass begins a new one."""
        current = next(iter(self._steps.values()), None)
        if current is None or (current.start, current.count) != (start, count):
            self._begin(start, batch_size, count)
        if device not in self._steps:
            self._steps[device] = make_step(self.tables, start, count, device)
        return self._steps[device]

    def forget_steps(self) -> None:
        """Must be called after any change of the tables."""
        self._steps.clear()

    def _begin(self, start: int, batch_size: int, count: int) -> None:
        """Makes room for the tokens of a step in the tables and in the caches of all layers."""
        if self.max_length is not None and start + count > self.max_length:
            expected = f"expected at least {start + count}, got {self.max_length}"
            raise RuntimeError(f"MultikvCache: max_length: {expected}")
        if not self.tables.rows:
            self._add_sequences(batch_size)
        if len(self.tables.rows) != batch_size:
            expected = f"expected {len(self.tables.rows)} sequences, got {batch_size}: call reset()"
            raise RuntimeError(f"MultikvCache: {expected}")
        copies = self.tables.extend(start, start + count)
        self.forget_steps()
        layers = [layer for layer in self.layers if layer.is_initialized]
        for layer in layers:
            layer.grow()
        for device in dict.fromkeys(layer.device for layer in layers if copies):
            caches = [x for layer in layers if layer.device == device for x in (layer.key_cache, layer.value_cache)]
            multikv.copy_blocks_layers(caches, torch.tensor(copies))

    def _add_sequences(self, batch_size: int) -> None:
        self.tables.rows = [[] for _ in range(batch_size)]
        if self.max_length is not None and self.tables.window is None:
            num_blocks = batch_size * -(-self.max_length // self.tables.block_size)
            self.tables.reserve(max(num_blocks, self.tables.num_blocks))


class MultikvLayer(CacheLayerMixin):
    """The keys and values of one layer, [num_blocks, block_size, num_heads, head_size] each."""

    is_compileable = False
    is_croppable = True
    key_cache: Tensor
    value_cache: Tensor
    device: torch.device

    def __init__(self, config: Any, group: LayerGroup, storage: Storage):
        """Begins without any memory."""
        super().__init__()
        self.config, self.group, self.storage = config, group, storage
        self.length = 0
        group.layers.append(self)

    @property
    def is_sliding(self) -> bool:
        """Whether a token sees only the last tokens before it."""
        return self.group.tables.window is not None

    @property
    def record_past(self) -> bool:
        """Whether tokens are kept that no later token sees."""
        return self.group.tables.keeps_past

    @property
    def batch_size(self) -> int:
        """The number of sequences."""
        return len(self.group.tables.rows)

    max_batch_size = batch_size

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Makes the caches when the first keys and values are known."""
        self.device = key_states.device
        dtype, tables = self.storage.cache_dtype(key_states.dtype), self.group.tables
        sizes = [(tables.num_blocks, tables.block_size, x.size(1), x.size(3)) for x in (key_states, value_states)]
        self.key_cache, self.value_cache = (torch.empty(size, dtype=dtype, device=self.device) for size in sizes)
        scales = (self.storage.k_scale, self.storage.v_scale)
        self.k_scale, self.v_scale = (
            torch.as_tensor(scale, dtype=torch.float32, device=self.device).flatten() for scale in scales
        )
        self.is_initialized = True

    def grow(self) -> None:
        """Gives the caches as many blocks as the tables have."""
        for name in ("key_cache", "value_cache"):
            cache: Tensor = getattr(self, name)
            if len(cache) < self.group.tables.num_blocks:
                larger = cache.new_empty(self.group.tables.num_blocks, *cache.shape[1:])
                larger[: len(cache)] = cache
                setattr(self, name, larger)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Writes the new keys and values, and returns what the model's attention is to read.

        The attention function `multikv` reads the caches themselves, and finds them through the tensors returned here.
        Every other attention function gets all keys and values that the new tokens may see.
        """
        batch_size, _, count, _ = key_states.shape
        step = self.group.step(self.length, batch_size, count, key_states.device)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.grow()
        key, value = (x.transpose(1, 2).flatten(0, 1) for x in (key_states, value_states))
        multikv.reshape_and_cache_flash(key, value, self.key_cache, self.value_cache, step.slots, *self.format)
        self.length = step.end
        if self.config._attn_implementation != ATTENTION:
            return self._gather(step, key_states.dtype)
        key_states.multikv = Written(self, step)  # type: ignore[attr-defined]
        return key_states, value_states

    @property
    def format(self) -> tuple[str, Tensor, Tensor]:
        """The arguments of the ops that say how elements are stored."""
        return self.storage.kv_cache_dtype, self.k_scale, self.v_scale

    def _gather(self, step: Step, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Returns the keys and values that the tokens of a step may see, [batch_size, num_heads, num_keys, size]."""
        first, batch_size = self._first_visible(step.start), len(step.table)
        rows, caches = batch_size * (step.end - first), (self.key_cache, self.value_cache)
        key, value = (x.new_empty(rows, *x.shape[2:], dtype=dtype) for x in caches)
        bounds = (step.end - first) * torch.arange(batch_size + 1, device=key.device)
        starts = torch.full((batch_size,), first, device=key.device)
        kv_cache_dtype, k_scale, v_scale = self.format
        multikv.gather_kv_cache(*caches, key, value, step.table, bounds, kv_cache_dtype, k_scale, v_scale, starts)
        key, value = (x.unflatten(0, (batch_size, -1)).transpose(1, 2) for x in (key, value))
        return key, value

    def _first_visible(self, start: int) -> int:
        window = self.group.tables.window
        return 0 if window is None else max(start - window + 1, 0)

    def get_mask_sizes(self, query_length: int | Tensor) -> tuple[int, int]:
        """Returns the number of keys that the new tokens may see, and the position of the first of these keys.

        Transformers 5.0 passes the positions of the queries instead of their number.
        """
        count = len(query_length) if isinstance(query_length, Tensor) else query_length
        first = self._first_visible(self.length)
        return self.length + count - first, first

    def get_seq_length(self) -> int:
        """Returns the number of tokens of each sequence."""
        return self.length

    def get_max_length(self) -> int:
        """Returns the largest number of tokens of a sequence, or -1."""
        return -1 if self.group.max_length is None else self.group.max_length

    get_max_cache_shape = get_max_length  # the name of Transformers 5.0

    def reset(self) -> None:
        """Raises an error: `MultikvCache.reset` resets all layers at once."""
        raise RuntimeError("MultikvCache: reset: expected a call of the cache, got one of a layer")

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Raises an error: `MultikvCache.reorder_cache` reorders all layers at once."""
        raise RuntimeError("MultikvCache: reorder_cache: expected a call of the cache, got one of a layer")


@dataclasses.dataclass
class Written:
    """The layer and the step that keys were written by."""

    layer: MultikvLayer
    step: Step


class MultikvCache(Cache):
    """Keys and values in paged caches, for any model with standard attention.

    With `model.set_attn_implementation("multikv")` attention reads the caches by `paged_attention`. With every other
    attention function the keys and values are gathered and dequantised at each layer.

    A cache serves one batch of sequences; `reset` makes it ready for another one. Beams share blocks; a block is copied
    when one of its sequences writes to it. Layers with a sliding window give back the blocks that left the window.

    Args:
        config: that of the model; the cache reads the kinds of its layers, and its attention function at each step.
        kv_cache_dtype: "auto", or an fp8 format such as "fp8_e4m3"; see `multikv.ops`.
        max_length: the most tokens of a sequence. Layers without a sliding window allocate the memory for all of them
            at the first step. None: memory grows with the sequences.
        block_size: slots of a block, a power of two.
        k_scale: scale of fp8 keys: a number, a float32 tensor with one element or one per kv head, or a list with one
            of these for each layer.
        v_scale: like k_scale, with as many elements.

    Raises:
        RuntimeError: a layer of the model has no standard attention, or an argument is wrong.
        ValueError: kv_cache_dtype is unknown.

    Example:
        >>> from multikv.integrations.transformers import MultikvCache
        >>> model.set_attn_implementation("multikv")
        >>> model.generate(**inputs, past_key_values=MultikvCache(model.config, "fp8_e4m3"))
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        kv_cache_dtype: str = "auto",
        *,
        max_length: int | None = None,
        block_size: int = 16,
        k_scale: Scale = 1.0,
        v_scale: Scale = 1.0,
    ):
        """Allocates nothing yet."""
        formats.find(kv_cache_dtype, formats.Family.CACHE)
        if block_size < 1 or block_size & (block_size - 1):
            raise RuntimeError(f"MultikvCache: block_size: expected a power of two, got {block_size}")
        windows = _windows(config)
        scales = [_of_layers(name, x, len(windows)) for name, x in (("k_scale", k_scale), ("v_scale", v_scale))]
        self.groups = {window: LayerGroup(block_size, window, max_length) for window in dict.fromkeys(windows)}
        decoder = config.get_text_config(decoder=True)
        super().__init__(
            layers=[
                MultikvLayer(decoder, self.groups[window], Storage(kv_cache_dtype, *of_layer))
                for window, *of_layer in zip(windows, *scales, strict=True)
            ]
        )

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Replaces the sequences: the new sequence i has the tokens of the old sequence beam_idx[i].

        The two share blocks: no key or value is copied yet.
        """
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Replaces the sequences by those that `indices` lists, each as often as it is listed. Copies share blocks."""
        self._select(torch.arange(self.layers[0].batch_size)[indices.cpu()].tolist())

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Replaces each sequence by `repeats` copies of it, which are neighbours and share its blocks."""
        self._select([i for i in range(self.layers[0].batch_size) for _ in range(repeats)])

    def _select(self, indices: list[int]) -> None:
        for group in self.groups.values():
            group.tables.select(indices)
            group.forget_steps()

    def crop(self, tokens_to_remove: int) -> None:
        """Forgets the last n tokens if tokens_to_remove is -n, and keeps the first n tokens if it is a positive n.

        0 changes nothing. Transformers 5.0 to 5.17 pass a length, and later versions a negative number.
        """
        before = self.get_seq_length()
        length = max(before + tokens_to_remove, 0) if tokens_to_remove <= 0 else min(tokens_to_remove, before)
        for group in self.groups.values():
            group.tables.crop(length)
            group.forget_steps()
        for layer in self.layers:
            layer.length = min(layer.length, length)

    def reset(self) -> None:
        """Forgets all sequences and keeps the memory."""
        self.crop(-self.get_seq_length())
        for group in self.groups.values():
            group.tables.rows = []

    def activate_past_recording(self) -> None:
        """Makes layers with a sliding window keep the tokens that leave the window.

        A crop to n tokens gives back the blocks that no token at position n or later sees.
        """
        for group in self.groups.values():
            group.tables.keeps_past = True


def _windows(config: PreTrainedConfig) -> list[int | None]:
    """Returns the sliding window of each layer, None without one, as the cache of Transformers sees them."""
    windows: list[int | None] = []
    layers = DynamicCache(config=config).layers
    for i, layer in enumerate(layers):
        if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer):
            got = type(layer).__name__
            raise RuntimeError(f"MultikvCache: config: expected standard attention in layer {i}, got {got}")
        windows.append(layer.sliding_window if isinstance(layer, DynamicSlidingWindowLayer) else None)
    if not windows:
        raise RuntimeError("MultikvCache: config: expected the configuration of a decoder, got no layers")
    return windows


def _of_layers(name: str, scale: Scale, num_layers: int) -> list[float | Tensor]:
    if isinstance(scale, Tensor) or not isinstance(scale, Sequence):
        return [scale] * num_layers
    if len(scale) != num_layers:
        raise RuntimeError(f"MultikvCache: {name}: expected a scale for each of {num_layers} layers, got {len(scale)}")
    return list(scale)
