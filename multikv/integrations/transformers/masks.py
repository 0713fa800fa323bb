"""The attention mask of the attention function `multikv`: a window and numbers of padding tokens, and no tensor."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from transformers.masking_utils import causal_mask_function

_MOST_ELEMENTS = 1 << 24  # of a mask that is checked at once


@dataclasses.dataclass(frozen=True)
class CausalMask:
    """A token sees the last `window` tokens up to itself (None: all), but not the first starts[s] of its sequence."""

    window: int | None
    starts: tuple[int, ...] | None


def make_causal_mask(
    *,
    batch_size: int,
    kv_length: int,
    mask_function: Callable[..., Tensor],
    kv_offset: int = 0,
    q_length: int | None = None,
    q_offset: int = 0,
    cache_position: Tensor | None = None,
    attention_mask: Tensor | None = None,
    local_size: int | None = None,
    use_vmap: bool = False,
    device: torch.device | str | None = None,
    **_: object,
) -> CausalMask:
    """Returns the mask of Transformers' create_causal_mask and create_sliding_window_causal_mask.

    Transformers calls this function once for each forward pass and kind of layer. Transformers 5.0 passes
    cache_position instead of q_length and q_offset.

    Raises:
        RuntimeError: the mask is not causal, or hides tokens other than the first ones of a sequence.
    """
    if use_vmap:
        raise RuntimeError("multikv: attention_mask: expected a causal mask, got one with a mask function of the model")
    if cache_position is not None:
        q_length, q_offset = len(cache_position), int(cache_position[0])
    assert q_length is not None
    end = kv_offset + kv_length
    if int(q_offset) + q_length != end:
        got = f"queries from {int(q_offset)} to {int(q_offset) + q_length - 1} and keys up to {end - 1}"
        raise RuntimeError(f"multikv: attention_mask: expected the queries at the last positions, got {got}")
    if mask_function is not causal_mask_function or local_size is not None:
        queries, keys = torch.arange(end - q_length, end, device=device), torch.arange(kv_offset, end, device=device)
        _check_is_causal(mask_function, batch_size, queries, keys, local_size)
    return CausalMask(local_size, None if attention_mask is None else _padding(attention_mask, batch_size, end))


def _check_is_causal(
    mask_function: Callable[..., Tensor], batch_size: int, queries: Tensor, keys: Tensor, window: int | None
) -> None:
    """Raises an error if the mask function differs anywhere from a causal mask with a window."""
    batches, zero = torch.arange(batch_size, device=keys.device).view(-1, 1, 1, 1), torch.zeros_like(keys[:1])
    for rows in _chunks(queries, batch_size * len(keys)):
        visible = keys <= rows
        if window is not None:
            visible = visible & (keys > rows - window)
        if not torch.equal(mask_function(batches, zero, rows, keys).expand(batch_size, 1, -1, -1),
                           visible.expand(batch_size, 1, -1, -1)):  # fmt: skip
            among = "" if window is None else f" with a window of {window} tokens"
            raise RuntimeError(f"multikv: attention_mask: expected a causal mask{among}, got another one")


def _chunks(queries: Tensor, elements_per_query: int) -> Iterator[Tensor]:
    for rows in queries.split(max(_MOST_ELEMENTS // max(elements_per_query, 1), 1)):
        yield rows[:, None]


def _padding(attention_mask: Tensor, batch_size: int, length: int) -> tuple[int, ...] | None:
    """Returns how many tokens at the start of each sequence are padding; None if no sequence has any."""
    if attention_mask.shape != (batch_size, length):
        got = list(attention_mask.shape)
        raise RuntimeError(f"multikv: attention_mask: expected shape {[batch_size, length]}, got {got}")
    visible = attention_mask.bool()
    starts = length - visible.sum(1)
    is_left = visible == (torch.arange(length, device=visible.device) >= starts[:, None])
    *counts, is_padding = torch.cat([starts, is_left.all().view(1).long()]).tolist()
    if not is_padding:
        raise RuntimeError(
            "multikv: attention_mask: expected padding on the left, got hidden tokens after visible ones"
        )
    return tuple(counts) if any(counts) else None
