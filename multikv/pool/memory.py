"""Arguments of caches: devices, dtypes and scales."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import formats
from .arguments import as_integer, shortened


def as_device(device: torch.device | str | None) -> torch.device:
    """Returns a device with its index; None is PyTorch's default."""
    chosen = torch.get_default_device() if device is None else torch.device(device)
    if chosen.type == "cuda" and chosen.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return chosen


def check_sizes(owner: str, least: int, **sizes: int) -> None:
    """Raises TypeError if a size of a cache is not an integer, and ValueError if it is less than `least`."""
    for name, size in sizes.items():
        if as_integer(owner, name, size) < least:
            raise ValueError(f"{owner}: {name}: expected at least {least}, got {size}")


def storage_dtype(
    owner: str, kv_cache_dtype: str, dtype: torch.dtype, family: formats.Family = formats.Family.CACHE
) -> torch.dtype:
    """Returns the dtype of a cache with this format: that of its input, an fp8 type, or uint8 for fp8_ds_mla."""
    try:
        codec = formats.find(kv_cache_dtype, family).codec
    except ValueError as error:
        raise ValueError(f"{owner}: {error}") from None
    if codec.scale_place == formats.ScalePlace.ENTRY:
        return torch.uint8
    if isinstance(codec.element, formats.Fp8Format):
        return codec.element.dtype
    if kv_cache_dtype not in ("auto", str(dtype).removeprefix("torch.")):
        raise ValueError(f"{owner}: kv_cache_dtype: expected 'auto' or the dtype of the cache, got {kv_cache_dtype!r}")
    return dtype


def as_scale(argument: str, scale: Tensor | float | None, num_heads: int, device: torch.device) -> Tensor:
    """Returns a scale as a float32 tensor of one element, or one for each head."""
    try:
        tensor = torch.as_tensor(1.0 if scale is None else scale, dtype=torch.float32, device=device).reshape(-1)
    except (TypeError, ValueError):
        raise TypeError(f"{argument}: expected a number or a tensor, got {shortened(scale)}") from None
    if tensor.numel() not in (1, num_heads):
        raise ValueError(f"{argument}: expected 1 or {num_heads} elements, got {tensor.numel()}")
    return tensor
