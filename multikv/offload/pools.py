"""Makes pinned tensors for pools of blocks in host memory."""

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
    """Returns an uninitialised CPU tensor in pinned memory, which GPUs access directly. Use it for pools of blocks.

    Pinning takes about a second for every few gigabytes, so make a pool once and keep it. The allocation has exactly
    the size of the tensor, while PyTorch's pin_memory=True rounds up to a power of two. The memory is freed when the
    tensor and all its views are gone. Without a GPU library, or without a GPU, the tensor is in pageable memory.

    The first call on a GPU also calibrates swaps on this GPU, which takes one or two seconds and 1 GiB each of pinned
    and device memory; see calibrate_swaps. If there is not enough memory for the calibration, swaps use the costs of an
    H200.

    Args:
        shape: sizes, or the size of a 1-D tensor.
        dtype: any dtype.

    Returns:
        A contiguous tensor that shares no memory with any other.

    Raises:
        RuntimeError: there is not enough memory that can be pinned.

    Example:
        >>> cache = torch.zeros(64, 16, 8, 128, dtype=torch.bfloat16, device="cuda")
        >>> block_mapping = torch.tensor([[3, 100], [5, 101]])  # block of cache, block of pool
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
    """Calibrates `device`, the current device, unless this was done or tried before."""
    if device in CALIBRATIONS.measured or device in CALIBRATIONS.attempted or torch.cuda.is_current_stream_capturing():
        return
    CALIBRATIONS.attempted.add(device)
    with contextlib.suppress(torch.OutOfMemoryError):
        calibrate_swaps()
