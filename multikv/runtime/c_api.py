"""Prototypes of the C functions that the libraries export, and typed wrappers around them.

`csrc/c_api.h` declares the functions; each of them also has a row in one of the tables below. A function that can fail
returns the text of the error, or NULL for success. The library owns the memory of the text. Only multikv_set_cpu_isa
reports success as 1 and failure as 0.
"""

from __future__ import annotations

import ctypes
import json
from ctypes import POINTER, c_char_p, c_int32, c_int64, c_void_p
from typing import Any, NamedTuple

ABI_VERSION = 4  # equals MULTIKV_ABI_VERSION of csrc/c_api.h


class Prototype(NamedTuple):
    """Result type and argument types of a C function."""

    result: Any
    arguments: tuple[Any, ...] = ()


EVERY_LIBRARY = {
    "multikv_abi_version": Prototype(c_int32),
    "multikv_build_id": Prototype(c_char_p),
    "multikv_vllm_ops": Prototype(c_char_p),
    "multikv_serve_vllm": Prototype(c_char_p, (c_char_p, c_char_p)),
    "multikv_stop_serving_vllm": Prototype(None),
}
CPU_LIBRARY = EVERY_LIBRARY | {
    "multikv_cpu_isa": Prototype(c_char_p),
    "multikv_cpu_isas": Prototype(c_char_p),
    "multikv_set_cpu_isa": Prototype(c_int32, (c_char_p,)),
    "multikv_formats": Prototype(c_char_p),
    "multikv_set_gpu_swap_batch": Prototype(None, (c_void_p,)),
}
GPU_LIBRARY = EVERY_LIBRARY | {
    "multikv_set_check_indices": Prototype(None, (c_int32,)),
    "multikv_gpu_swap_batch": Prototype(c_char_p, (c_void_p, POINTER(c_int32))),
    "multikv_allocate_host": Prototype(c_char_p, (POINTER(c_void_p), c_int64)),
    "multikv_free_host": Prototype(None, (c_void_p,)),
    "multikv_set_swap_strategy": Prototype(c_char_p, (c_int32,)),
    "multikv_set_swap_crossover": Prototype(c_char_p, (c_int32, c_int32, c_int64, c_int64, c_int32)),
    "multikv_get_swap_crossover": Prototype(
        c_char_p, (c_int32, c_int32, POINTER(c_int64), POINTER(c_int64), POINTER(c_int32))
    ),
}


class SwapCrossover(NamedTuple):
    """The run sizes at which copy engines take over from the kernel, in one direction on one device.

    A copy engine copies runs of at least `in_batches` bytes if runs are submitted in batches, and runs of at least
    `one_by_one` bytes if each run is submitted alone. A kernel of `kernel_threads` threads copies all smaller runs; if
    kernel_threads is 0, the kernel has as many threads as there is work for.
    """

    in_batches: int
    one_by_one: int
    kernel_threads: int


class _Library:
    """The C functions of one library."""

    def __init__(self, handle: ctypes.CDLL, prototypes: dict[str, Prototype]) -> None:
        """Looks all functions up and sets their prototypes.

        Raises:
            AttributeError: the library lacks one of them.
        """
        self._functions = {name: getattr(handle, name) for name in prototypes}
        for name, function in self._functions.items():
            function.restype, function.argtypes = prototypes[name]

    def _call(self, name: str, *arguments: object) -> Any:
        return self._functions[name](*arguments)

    def _checked_call(self, name: str, *arguments: object) -> None:
        """Calls a function that returns the text of an error.

        Raises:
            ValueError: the function has refused an argument.
        """
        error = self._call(name, *arguments)
        if error is not None:
            raise ValueError(f"{name}: {error.decode()}")

    def _text(self, name: str) -> str:
        return str(self._call(name).decode())

    def abi_version(self) -> int:
        """MULTIKV_ABI_VERSION of the header that the library was compiled with."""
        return int(self._call("multikv_abi_version"))

    def build_id(self) -> str:
        """Digest of the sources that the library was compiled from."""
        return self._text("multikv_build_id")

    def vllm_ops(self) -> tuple[str, ...]:
        """Names of the ops of vLLM's namespace _C_cache_ops that the library has a kernel for."""
        return tuple(self._text("multikv_vllm_ops").split(","))

    def serve_vllm(self, name: str, schema: str | None) -> str | None:
        """Registers the library's kernel for an op of vLLM's namespace _C_cache_ops, until stop_serving_vllm.

        Args:
            name: the op, one of vllm_ops().
            schema: the op's schema in this process; None if there is none, and the library defines the op.

        Returns:
            None, or the reason why the op is not served.
        """
        reason = self._call("multikv_serve_vllm", name.encode(), None if schema is None else schema.encode())
        return None if reason is None else str(reason.decode())

    def stop_serving_vllm(self) -> None:
        """Removes the kernels that serve_vllm has registered; those that they replaced are back."""
        self._call("multikv_stop_serving_vllm")


class CpuLibrary(_Library):
    """The C functions of libmultikv_cpu.so."""

    def __init__(self, handle: ctypes.CDLL) -> None:
        """Looks up the functions of CPU_LIBRARY."""
        super().__init__(handle, CPU_LIBRARY)

    def isa(self) -> str:
        """Name of the instruction set that the kernels use."""
        return self._text("multikv_cpu_isa")

    def isas(self) -> tuple[str, ...]:
        """Names of the instruction sets that this CPU supports, each of which includes those before it."""
        return tuple(self._text("multikv_cpu_isas").split(","))

    def set_isa(self, name: str) -> bool:
        """Selects an instruction set; returns False if the name is unknown or this CPU does not support it."""
        return bool(self._call("multikv_set_cpu_isa", name.encode()))

    def formats(self) -> list[dict[str, Any]]:
        """The rows of the codec table of csrc/core/format.h, as `multikv.formats.CacheFormat.to_json` returns them."""
        rows: list[dict[str, Any]] = json.loads(self._text("multikv_formats"))
        return rows

    def set_gpu_swap_batch(self, address: int | None) -> None:
        """Gives the CPU library the address of the GPU library's multikv_gpu_swap_batch; None removes it."""
        self._call("multikv_set_gpu_swap_batch", address)


class GpuLibrary(_Library):
    """The C functions of libmultikv_cuda.so or libmultikv_rocm.so."""

    def __init__(self, handle: ctypes.CDLL) -> None:
        """Looks up the functions of GPU_LIBRARY."""
        super().__init__(handle, GPU_LIBRARY)

    def set_check_indices(self, enabled: bool) -> None:
        """Turns the index checks of GPU ops on or off."""
        self._call("multikv_set_check_indices", enabled)

    def swap_batch_address(self) -> int | None:
        """Address of multikv_gpu_swap_batch, which the CPU library calls."""
        return ctypes.cast(self._functions["multikv_gpu_swap_batch"], c_void_p).value

    def allocate_host(self, num_bytes: int) -> int:
        """Allocates pinned memory that every GPU of the process can access, and returns its address.

        Raises:
            MemoryError: the driver refused, with its error text.
        """
        address = c_void_p()
        error = self._call("multikv_allocate_host", ctypes.byref(address), num_bytes)
        if error is not None or address.value is None:
            raise MemoryError(error.decode() if error else "the driver returned no memory")
        return address.value

    def free_host(self, address: int) -> None:
        """Frees what allocate_host returned."""
        self._call("multikv_free_host", address)

    def set_swap_strategy(self, strategy: int) -> None:
        """Selects what copies the blocks of swaps: 0 auto, 1 the copy engines, 2 a kernel."""
        self._checked_call("multikv_set_swap_strategy", strategy)

    def set_swap_crossover(self, device: int, direction: int, crossover: SwapCrossover) -> None:
        """Sets the crossover of `auto`. Directions: 0 to the host, 1 from the host, 2 within the device."""
        self._checked_call("multikv_set_swap_crossover", device, direction, *crossover)

    def swap_crossover(self, device: int, direction: int) -> SwapCrossover:
        """Returns the crossover that set_swap_crossover has set, or else the default of the library."""
        in_batches, one_by_one, kernel_threads = c_int64(), c_int64(), c_int32()
        references = (ctypes.byref(number) for number in (in_batches, one_by_one, kernel_threads))
        self._checked_call("multikv_get_swap_crossover", device, direction, *references)
        return SwapCrossover(in_batches.value, one_by_one.value, kernel_threads.value)
