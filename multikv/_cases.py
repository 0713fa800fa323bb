"""Random inputs for each op, and the copies to compare with, for `python -m multikv` and the benchmarks."""

import ctypes
import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import multikv

CACHE_DTYPES = {
    "bfloat16": torch.bfloat16,
    "fp8_e4m3": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}
_SPARE_BLOCKS = 3  # blocks that nobody owns, to see that they stay as they were


@dataclasses.dataclass(frozen=True)
class Workload:
    """One op with concrete arguments."""

    op: str
    arguments: tuple[Any, ...]
    written: tuple[int, ...]  # positions of the arguments that the op writes
    num_bytes: int  # each input byte read once and each output byte written once; the few bytes of indices left out

    def bind(self, namespace: Any = multikv) -> Callable[[], None]:
        """The call, ready to be made: of multikv, or of another module with the same functions."""
        return functools.partial(getattr(namespace, self.op), *self.arguments)

    def copy(self, device: torch.device | str | None = None) -> "Workload":
        """The same values and strides in other memory."""
        arguments = tuple(a.to(device or a.device, copy=True) if isinstance(a, torch.Tensor) else a
                          for a in self.arguments)
        return dataclasses.replace(self, arguments=arguments)

    def outputs(self) -> list[torch.Tensor]:
        return [self.arguments[i] for i in self.written]


def same_bytes(ours: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor]) -> bool:
    """Whether the tensors hold the same bytes, whatever numbers these mean (a NaN equals itself)."""
    return all(a.shape == b.shape and torch.equal(a.view(torch.uint8), b.to(a.device).view(torch.uint8))
               for a, b in zip(ours, theirs, strict=True))


def reshape_and_cache_flash(device: torch.device, num_tokens: int, kv_cache_dtype: str = "bfloat16",
                            layout: str = "NHD", num_heads: int = 8, head_size: int = 128,
                            block_size: int = 16) -> Workload:
    """bfloat16 keys and values of num_tokens consecutive tokens; the cache's layout is NHD or HND."""
    cache_dtype = CACHE_DTYPES[kv_cache_dtype]
    num_blocks = -(-num_tokens // block_size) + _SPARE_BLOCKS
    blocks = torch.randperm(num_blocks, device=device)[:-_SPARE_BLOCKS]
    slots = (blocks[:, None] * block_size + torch.arange(block_size, device=device)).flatten()[:num_tokens]

    def cache() -> torch.Tensor:
        if layout == "NHD":
            return _random((num_blocks, block_size, num_heads, head_size), cache_dtype, device)
        return _random((num_blocks, num_heads, block_size, head_size), cache_dtype, device).transpose(1, 2)

    key, value = (torch.randn(num_tokens, num_heads, head_size, dtype=torch.bfloat16, device=device) for _ in "kv")
    # No power of two, so that the division rounds; large enough that nothing saturates.
    k_scale, v_scale = (torch.tensor([scale], device=device) for scale in (0.037, 0.051))
    num_bytes = 2 * key.numel() * (key.element_size() + cache_dtype.itemsize)
    return Workload("reshape_and_cache_flash", (key, value, cache(), cache(), slots, kv_cache_dtype, k_scale, v_scale),
                    written=(2, 3), num_bytes=num_bytes)


def cp_gather_cache(device: torch.device, batch_size: int, length: int, dtype: torch.dtype = torch.bfloat16,
                    entry_size: int = 576, block_size: int = 64) -> Workload:
    """batch_size sequences of one length, from a cache of latent (MLA) entries."""
    blocks_per_sequence = -(-length // block_size)
    num_blocks = batch_size * blocks_per_sequence + _SPARE_BLOCKS
    block_table = torch.randperm(num_blocks, device=device)[:-_SPARE_BLOCKS].view(batch_size, -1).to(torch.int32)
    cu_seq_lens = torch.arange(batch_size + 1, dtype=torch.int32, device=device) * length
    src_cache = _random((num_blocks, block_size, entry_size), dtype, device)
    dst = _random((batch_size * length, entry_size), dtype, device)
    return Workload("cp_gather_cache", (src_cache, dst, block_table, cu_seq_lens, batch_size), written=(1,),
                    num_bytes=2 * dst.numel() * dst.element_size())


def copy_calls(num_bytes: int, device: torch.device) -> list[Callable[[], object]]:
    """Plain copies that move as much: half of num_bytes read and as much written, rotated likewise."""
    size = max(num_bytes // 2, 1)
    pairs = [(_random((size,), torch.uint8, device), _random((size,), torch.uint8, device))
             for _ in range(rotation(num_bytes, device))]
    if device.type == "cpu" and torch.get_num_threads() == 1:
        return [functools.partial(_memmove, a, b) for a, b in pairs]
    return [functools.partial(a.copy_, b) for a, b in pairs]


def copy_description(device: torch.device) -> str:
    """What `copy_calls` are on this device."""
    if device.type == "cuda":
        return "torch copy_ within the device"
    threads = torch.get_num_threads()
    return "memmove, 1 thread" if threads == 1 else f"torch copy_, {threads} threads"


def rotation(num_bytes: int, device: torch.device) -> int:
    """How many input sets to rotate for a call that moves num_bytes.

    A small case stays within the last-level cache, as it would just after the layer before it; from an eighth of the
    cache upwards the sets together are three times its size, so that it serves nothing.
    """
    cache = last_level_cache_bytes(device)
    return 4 if num_bytes < cache // 8 else max(2, -(-3 * cache // num_bytes))


@functools.cache
def last_level_cache_bytes(device: torch.device) -> int:
    """Size of the GPU's L2 or of the CPU's largest cache; 64 MiB where the system does not say."""
    if device.type == "cuda":
        return getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0) or 64 << 20
    units = {"K": 1 << 10, "M": 1 << 20}
    texts = [path.read_text().strip() for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    return max((int(text[:-1]) * units[text[-1]] for text in texts if text[-1:] in units), default=64 << 20)


def device_name(device: torch.device) -> str:
    """The GPU's or the CPU's name for itself."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "CPU")


def _random(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Random bits: any number of the dtype, NaN included."""
    num_bytes = dtype.itemsize * functools.reduce(int.__mul__, shape)
    words = torch.empty(-(-num_bytes // 8), dtype=torch.int64, device=device).random_(-(2**63), None)
    return words.view(torch.uint8)[:num_bytes].view(dtype).view(shape)


def _memmove(dst: torch.Tensor, src: torch.Tensor) -> None:
    ctypes.memmove(dst.data_ptr(), src.data_ptr(), dst.numel())
