"""Attention functions of Transformers that attend over paged caches."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface

import multikv

from .cache import ATTENTION, Written
from .masks import CausalMask, make_causal_mask

# Arguments of Transformers that must be None or False, and what paged_attention lacks for them.
_REFUSED = {
    "output_attentions": "returns no weights",
    "position_bias": "adds no such bias",
    "head_mask": "masks no heads",
}


@dataclasses.dataclass(frozen=True)
class Scores:
    """How scores are computed from queries and keys."""

    scale: float | None
    softcap: float | None
    sinks: Tensor | None
    window: int | None


@dataclasses.dataclass(frozen=True)
class Keys:
    """The keys and values of the sequences of a call, in paged caches."""

    key_cache: Tensor
    value_cache: Tensor
    block_table: Tensor
    seq_lens: Tensor
    cu_query_lens: Tensor
    max_query_len: int
    max_seq_len: int
    format: tuple[str, Tensor | None, Tensor | None] = ("auto", None, None)


def multikv_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: object,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attends over the cache that the keys were written to: the attention function `multikv`.

    Args:
        module: the attention layer.
        query: [batch_size, num_heads, num_tokens, head_size].
        key: what the update of a MultikvCache returned, or, with cu_seq_lens_q among the other arguments, the keys of
            all sequences one after the other.
        value: likewise.
        attention_mask: what `make_causal_mask` returned.
        scaling: factor of the scores; None: head_size**-0.5.
        dropout: 0.
        softcap: bound of the scores; None: none.
        s_aux: [num_heads], the sinks.
        kwargs: what else the model passes.

    Returns:
        The attention, [batch_size, num_tokens, num_heads, value_size], and None for the weights.

    Raises:
        RuntimeError: the model asks for what `paged_attention` does not compute.
    """
    _check_inference(module, (query, key, value), dropout, kwargs)
    written = getattr(key, "multikv", None)
    if not isinstance(written, Written):
        if kwargs.get("cu_seq_lens_q") is None:
            got = "other ones: pass past_key_values=MultikvCache(model.config)"
            raise RuntimeError(f"multikv: key: expected the keys of a MultikvCache, got {got}")
        scores = Scores(scaling, softcap, s_aux, _window_of(module, kwargs))
        return _attend_packed(query, _rows(key, value), None, scores, kwargs), None
    if not isinstance(attention_mask, CausalMask):
        got = "no mask" if attention_mask is None else f"a {type(attention_mask).__name__}"
        raise RuntimeError(f"multikv: attention_mask: expected a causal mask that Transformers made, got {got}")
    window = written.layer.group.tables.window
    if window is not None and attention_mask.window != window:
        raise RuntimeError(f"multikv: attention_mask: expected a window of {window}, got {attention_mask.window}")
    scores = Scores(scaling, softcap, s_aux, attention_mask.window)
    return _attend(query, _written_keys(written, attention_mask.starts), scores), None


def paged_multikv_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: object,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Writes to and attends over the cache of continuous batching: the attention function `paged|multikv`.

    The tensors are those of `multikv_attention` for a batch of one, which holds the tokens of all sequences, one
    sequence after the other. A layer with a sliding window writes and gathers its keys by the cache's own `update`,
    because new keys may take the slots of keys that are still visible.
    """
    _check_inference(module, (query, key, value), dropout, kwargs)
    cache, scores = kwargs["cache"], Scores(scaling, softcap, s_aux, _window_of(module, kwargs))
    indices = {name: kwargs[name] for name in ("read_index", "write_index")}
    if scores.window is not None or not hasattr(cache, "key_cache"):
        packed = cache.update(key_states=key, value_states=value, layer_idx=module.layer_idx, **indices)
        return _attend_packed(query, packed, None, scores, kwargs), None
    group, layer = cache.layer_index_to_group_indices[module.layer_idx]
    pools = cache.key_cache[layer], cache.value_cache[layer]
    written, read = indices["write_index"][group], indices["read_index"][group]
    rows, caches = _rows(key, value), [pool.unsqueeze(1) for pool in pools]
    multikv.reshape_and_cache_flash(rows[0], rows[1], caches[0], caches[1], written, "auto", None, None)
    # Transformers leaves the read indices empty if every key of the call is a new one.
    return _attend_packed(query, pools, read if len(read) else written, scores, kwargs), None


def _check_inference(
    module: torch.nn.Module, tensors: tuple[Tensor, ...], dropout: float, kwargs: dict[str, Any]
) -> None:
    if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
        raise RuntimeError("multikv: expected inference, got tensors that require grad: use torch.no_grad()")
    if dropout:
        raise RuntimeError(f"multikv: dropout: expected 0, got {dropout}: call model.eval()")
    for name, reason in _REFUSED.items():
        if kwargs.get(name) is not None and kwargs[name] is not False:
            caller = type(module).__name__
            raise RuntimeError(f"multikv: {name}: expected none from {caller}, because paged_attention {reason}")


def _window_of(module: torch.nn.Module, kwargs: dict[str, Any]) -> int | None:
    window = kwargs.get("sliding_window") or getattr(module, "sliding_window", None)
    return window or None


def _rows(key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the keys and values of a batch of one as [num_tokens, num_heads, head_size]."""
    return key[0].transpose(0, 1), value[0].transpose(0, 1)


def _written_keys(written: Written, starts: tuple[int, ...] | None) -> Keys:
    layer, step = written.layer, written.step
    table, lengths, size = step.unpadded(starts or (0,) * len(step.table))
    key_cache, value_cache = (x.view(-1, size, *x.shape[2:]) for x in (layer.key_cache, layer.value_cache))
    return Keys(key_cache, value_cache, table, lengths, step.bounds, step.count, step.end, layer.format)


def _attend_packed(
    query: Tensor, pools: tuple[Tensor, Tensor], slots: Tensor | None, scores: Scores, kwargs: dict[str, Any]
) -> Tensor:
    """Attends over pools [num_slots, num_heads, head_size], which are caches with blocks of one slot.

    The keys of the sequences are at `slots` of the pools, one sequence after the other; None: at 0, 1, 2, ...
    """
    kind = "full_attention" if scores.window is None else "sliding_attention"
    bounds, max_query_len = kwargs["cu_seq_lens_q"], _longest("q", kind, kwargs)
    key_bounds, max_seq_len = _of_kind(kwargs["cu_seq_lens_k"], kind), _longest("k", kind, kwargs)
    table = key_bounds[:-1, None] + torch.arange(max_seq_len, device=query.device)
    table = table.clamp(max=(len(pools[0]) if slots is None else len(slots)) - 1)
    if slots is not None:
        table = slots[table]
    key_cache, value_cache = (pool.unsqueeze(1) for pool in pools)
    keys = Keys(key_cache, value_cache, table, key_bounds.diff(), bounds, max_query_len, max_seq_len)
    return _attend(query, keys, scores)


def _of_kind(value: Any, kind: str) -> Any:
    """Returns what continuous batching passes for a kind of layers; a model with one kind has no dictionary."""
    return value[kind] if isinstance(value, dict) else value


def _longest(side: str, kind: str, kwargs: dict[str, Any]) -> int:
    """Returns the most queries or keys of a sequence. Transformers 5.0 has another name for it than later versions."""
    given = kwargs.get(f"max_length_{side}", kwargs.get(f"max_seqlen_{side}"))
    if given is None:
        given = _of_kind(kwargs[f"cu_seq_lens_{side}"], kind).diff().max()
    return max(int(_of_kind(given, kind)), 1)


def _attend(query: Tensor, keys: Keys, scores: Scores) -> Tensor:
    """Returns the attention of queries [batch_size, num_heads, num_tokens, head_size]."""
    batch_size, num_heads, num_tokens, head_size = query.shape
    rows, value_size, num_bytes = query.transpose(1, 2).flatten(0, 1), keys.value_cache.size(3), 0
    out = query.new_zeros(len(rows), num_heads, value_size)
    if query.device.type != "cpu":
        num_bytes = multikv.paged_attention_workspace_bytes(len(rows), num_heads, value_size, keys.max_seq_len)
    kv_cache_dtype, k_scale, v_scale = keys.format
    multikv.paged_attention(
        rows,
        keys.key_cache,
        keys.value_cache,
        out,
        None,
        keys.block_table,
        keys.seq_lens,
        keys.cu_query_lens,
        keys.max_query_len,
        keys.max_seq_len,
        head_size**-0.5 if scores.scale is None else scores.scale,
        kv_cache_dtype,
        k_scale,
        v_scale,
        torch.empty(num_bytes, dtype=torch.uint8, device=query.device),
        window_left=-1 if scores.window is None else scores.window - 1,
        softcap=scores.softcap or 0.0,
        sinks=scores.sinks,
    )
    return out.view(batch_size, num_tokens, num_heads, value_size)


def register() -> None:
    """Makes the attention functions `multikv` and `paged|multikv`, and the mask of the first, known to Transformers."""
    AttentionInterface.register(ATTENTION, multikv_attention)
    AttentionInterface.register(f"paged|{ATTENTION}", paged_multikv_attention)
    AttentionMaskInterface.register(ATTENTION, make_causal_mask)
