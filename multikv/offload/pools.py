"""Pinned tensors for pools of blocks in host memory."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .. import platforms
from .calibration import calibrate_swaps
from .costs import CALIBRATIONS
from .memory import allocate_pinned


def empty_pinned(shape: Sequence[int] | int, dtype: torch.dtype = torch.uint8) -> Tensor:
    """Returns an uninitialised CPU tensor in pinned memory, which GPUs access directly: for pools of blocks.

    The memory is registered with the driver here, which takes about a second for every few gigabytes: make a pool once
    and keep it. The allocation has exactly the size of the tensor, while PyTorch's pin_memory=True rounds up to a power
    of two. The memory is freed when the tensor and all its views are gone. On a host without a GPU the tensor is in
    ordinary memory.

    The first call for a device also calibrates its swaps, which takes one or two seconds and needs a gigabyte of host
    and of device memory meanwhile; see calibrate_swaps. If there is not enough memory for that, swaps use the values of
    an H200.

    Args:
        shape: sizes, or one size.
        dtype: any dtype.

    Raises:
        RuntimeError: there is not enough memory that can be pinned.

    Example:
        >>> pool = multikv.empty_pinned((4096, 16, 8, 128), torch.bfloat16)  # 4,096 blocks of 32 KiB
        >>> multikv.swap_blocks(cache, pool, pool[0].nbytes, block_mapping)
    """
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    library, count = platforms.gpu_library(), math.prod(shape)
    if library is None or count == 0 or not torch.cuda.is_available():
        return torch.empty(shape, dtype=dtype)
    _calibrate_once(torch.cuda.current_device())
    return allocate_pinned(library, "empty_pinned", count * dtype.itemsize).view(dtype).view(shape)


def _calibrate_once(device: int) -> None:
    """Calibrates the current device unless that was done or tried before."""
    if device in CALIBRATIONS.measured or device in CALIBRATIONS.attempted or torch.cuda.is_current_stream_capturing():
        return
    CALIBRATIONS.attempted.add(device)
    with contextlib.suppress(torch.OutOfMemoryError):
        calibrate_swaps()
