"""Makes pinned tensors for pools of blocks in host memory."""

from __future__ import annotations

import contextlib
import math
import operator
from collections.abc import Iterable
from typing import SupportsIndex, cast

import torch
from torch import Tensor

from .. import platforms
from .calibration import calibrate_swaps
from .costs import CALIBRATIONS
from .memory import allocate_pinned

_MOST_BYTES = 2**63 - 1


def empty_pinned(shape: Iterable[SupportsIndex] | SupportsIndex, dtype: torch.dtype = torch.uint8) -> Tensor:
    """Returns an uninitialised CPU tensor in pinned memory, which GPUs access directly. Use it for pools of blocks.

    Pinning takes about a second for every few gigabytes, so make a pool once and keep it. The allocation has exactly
    the size of the tensor, while PyTorch's pin_memory=True rounds up to a power of two. The memory is freed when the
    tensor and all its views are gone. Without a GPU library, or without a GPU, the tensor is in pageable memory.

    The first call on a GPU also calibrates swaps on this GPU, which takes one or two seconds and 1 GiB each of pinned
    and device memory; see calibrate_swaps. If there is not enough memory for the calibration, swaps use default
    costs.

    Args:
        shape: sizes, or the size of a 1-D tensor. Sizes are integers of any kind, such as those of NumPy.
        dtype: any dtype.

    Returns:
        A contiguous tensor that shares no memory with any other.

    Raises:
        ValueError: a size is negative, or the sizes have more than 2^63 - 1 bytes.
        torch.OutOfMemoryError: there is not enough memory that can be pinned.
        TypeError: shape is neither an integer nor a sequence of integers.

    Example:
        >>> cache = torch.zeros(64, 16, 8, 128, dtype=torch.bfloat16, device="cuda")
        >>> block_mapping = torch.tensor([[3, 100], [5, 101]])  # block of cache, block of pool
        >>> pool = multikv.empty_pinned((4096, 16, 8, 128), torch.bfloat16)  # 4,096 blocks of 32 KiB
        >>> multikv.swap_blocks(cache, pool, pool[0].nbytes, block_mapping)
    """
    sizes = _sizes(shape)
    library, num_bytes = platforms.gpu_library(), math.prod(sizes) * dtype.itemsize
    if num_bytes > _MOST_BYTES:
        raise ValueError(f"empty_pinned: shape: expected at most {_MOST_BYTES} bytes, got {num_bytes}")
    if library is None or num_bytes == 0 or not torch.cuda.is_available():
        return torch.empty(sizes, dtype=dtype)
    _calibrate_once(torch.cuda.current_device())
    return allocate_pinned(library, "empty_pinned", num_bytes).view(dtype).view(sizes)


def _sizes(shape: Iterable[SupportsIndex] | SupportsIndex) -> tuple[int, ...]:
    """Returns the sizes of a shape as integers of Python."""
    try:
        if _is_integer(shape):  # asked first, because a tensor or an array of 0 dimensions is iterable as well
            sizes: tuple[int, ...] = (operator.index(cast(SupportsIndex, shape)),)
        else:
            sizes = tuple(map(operator.index, cast(Iterable[SupportsIndex], shape)))
    except TypeError:
        expected = "an integer or a sequence of integers"
        raise TypeError(f"empty_pinned: shape: expected {expected}, got {shape!r}") from None
    if any(size < 0 for size in sizes):
        raise ValueError(f"empty_pinned: shape: expected sizes of at least 0, got {list(sizes)}")
    return sizes


def _is_integer(value: object) -> bool:
    try:
        operator.index(cast(SupportsIndex, value))
    except TypeError:
        return False
    return True


def _calibrate_once(device: int) -> None:
    """Calibrates `device`, the current device, unless this was done or tried before.

    While the current stream is captured into a CUDA graph, nothing is calibrated.
    """
    if device in CALIBRATIONS.measured or device in CALIBRATIONS.attempted or torch.cuda.is_current_stream_capturing():
        return
    CALIBRATIONS.attempted.add(device)
    with contextlib.suppress(torch.OutOfMemoryError):
        calibrate_swaps()
