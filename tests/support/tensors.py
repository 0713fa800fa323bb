"""Tensors in awkward memory, and values for them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from multikv import reference


def random_bytes(count: int, device: torch.device | str = "cpu") -> Tensor:
    words = torch.randint(-(2**63), 2**63 - 1, (count // 8 + 1,))  # eight bytes at a time
    return words.view(torch.uint8)[:count].clone().to(device)


def embed(
    shape: Sequence[int],
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    *,
    order: Sequence[int] | None = None,
    padding: Sequence[int] | None = None,
    offset: int = 0,
    guard: int = 2048,
) -> Tensor:
    """A tensor inside a larger one of random bytes, so that a stray write, or a read of the wrong element, shows.

    `order` lists the dimensions from outermost to innermost in memory, `padding` how many more elements each has there,
    `offset` shifts the start off the alignment that the allocator gives; `guard` elements follow and precede.
    """
    extents = [size + pad for size, pad in zip(shape, padding or [0] * len(shape), strict=True)]
    strides, step = [0] * len(shape), 1
    for dim in reversed(order if order is not None else range(len(shape))):
        strides[dim] = step
        step *= max(extents[dim], 1)
    storage = random_bytes((guard + offset + step + guard) * dtype.itemsize, device)
    return storage.view(dtype).as_strided(shape, strides, guard + offset)


def randomise(x: Tensor) -> Tensor:
    """Fills x with numbers over the range of fp8, among them zeros, infinities, NaNs and subnormals."""
    values = torch.randn(x.shape) * torch.exp2(torch.randint(-12, 12, x.shape).float())
    special = torch.tensor([0.0, -0.0, float("inf"), -float("inf"), float("nan"), 1e-40, -3e-5, 448.0, -500.0, 65504.0])
    chosen = special[torch.randint(len(special), x.shape)]
    x.copy_(torch.where(torch.rand(x.shape) < 0.1, chosen, values))
    return x


def storage_bytes(x: Tensor) -> Tensor:
    """All bytes of the memory that x is part of."""
    return torch.empty(0, dtype=torch.uint8, device=x.device).set_(x.untyped_storage())


def pinned(x: Tensor) -> Tensor:
    """The same tensor in memory that a GPU can read, with the same surroundings."""
    storage = storage_bytes(x).pin_memory().untyped_storage()
    return torch.empty(0, dtype=x.dtype).set_(storage, x.storage_offset(), x.shape, x.stride())


def cache_dtype(format: str, dtype: torch.dtype, *, float8: bool = False) -> torch.dtype:
    """The dtype of a cache that holds inputs of `dtype` in this format."""
    name = reference.fp8_format(format, torch.uint8)
    if name is None:
        return dtype
    return reference.FP8_FORMATS[name].dtype if float8 else torch.uint8


def distinct_slots(tokens: int, num_slots: int, dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.randperm(num_slots)[:tokens].to(dtype)
