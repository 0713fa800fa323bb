"""Allocation of pinned host memory through the driver."""

from __future__ import annotations

import ctypes
import weakref

import torch
from torch import Tensor

from ..runtime.c_api import GpuLibrary


def allocate_pinned(library: GpuLibrary, function: str, num_bytes: int) -> Tensor:
    """Returns a uint8 tensor of pinned memory, which is freed when the tensor and all its views are gone.

    Args:
        library: the GPU library that allocates.
        function: name of the function to which an error refers.
        num_bytes: at least 1.

    Raises:
        torch.OutOfMemoryError: the driver refused, with its error text.
    """
    torch.cuda.init()
    try:
        address = library.allocate_host(num_bytes)
    except MemoryError as error:
        raise torch.OutOfMemoryError(f"{function}: {num_bytes} bytes: {error}") from None
    buffer = (ctypes.c_uint8 * num_bytes).from_address(address)  # the tensor keeps a reference to it
    weakref.finalize(buffer, library.free_host, address).atexit = False  # at exit, a tensor may still be in use
    return torch.frombuffer(buffer, dtype=torch.uint8)
