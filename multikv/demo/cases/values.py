"""Random values, slots and sequences."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

CACHE_DTYPES = {
    "bfloat16": torch.bfloat16,
    "fp8_e4m3": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
    "fp8_ds_mla": torch.float8_e4m3fn,
}
_LARGEST_FINITE = {torch.float8_e4m3fn: 0x7E, torch.float8_e5m2: 0x7B}
_DISTINCT = 100_003  # random values on a CPU; a prime, so that the rows and blocks of a tensor differ
SPARE_BLOCKS = 3  # blocks of a cache that no token is in, whose content must not change


def bits(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Returns random bits, any value of the dtype, NaN included. On a CPU, large tensors repeat themselves."""
    num_bytes = dtype.itemsize * math.prod(shape)
    num_words = -(-num_bytes // 8)
    words = torch.empty(_num_random(num_words, device), dtype=torch.int64, device=device).random_(-(2**63), None)
    return _repeated(words, num_words).view(torch.uint8)[:num_bytes].view(dtype).view(shape)


def finite_fp8(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Returns random codes of a float8 dtype without infinities and NaN."""
    codes = bits(shape, torch.uint8, device)
    return codes.masked_fill_((codes & 0x7F) > _LARGEST_FINITE[dtype], 0).view(dtype)


def normal(shape: Sequence[int], device: torch.device) -> Tensor:
    """Returns normally distributed bfloat16 values, which stand for the output of a layer of a model.

    On a CPU, large tensors repeat themselves.
    """
    size = math.prod(shape)
    values = torch.randn(_num_random(size, device), dtype=torch.bfloat16, device=device)
    return _repeated(values, size).view(torch.Size(shape))


def _num_random(size: int, device: torch.device) -> int:
    """Returns how many of `size` values are random.

    On a CPU it takes longer to draw a random number than any op takes to process one, so only some of them are random.
    """
    return min(size, _DISTINCT) if device.type == "cpu" else size


def _repeated(values: Tensor, size: int) -> Tensor:
    return values if values.numel() == size else values.repeat(-(-size // values.numel()))[:size]


def scales(device: torch.device, *numbers: float) -> Tensor:
    """Returns float32 scales.

    Callers pass numbers that are not powers of two, so that divisions by them round, and that are large enough for
    values of `normal` not to saturate.
    """
    return torch.tensor(numbers, device=device)


def as_bits(tensor: Tensor) -> Tensor:
    """Returns a view of the same memory as integers."""
    return tensor.view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])


def num_bytes(*tensors: Tensor) -> int:
    """Returns the number of bytes of all tensors together."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """Returns the tensor on a device. A copy from a GPU to the host is in pinned memory."""
    if device == tensor.device or tensor.is_meta:
        return tensor
    if device.type == "cpu":
        return torch.empty_like(tensor, device=device, pin_memory=True).copy_(tensor)
    return tensor.to(device)


def addresses(tensors: Sequence[Tensor]) -> Tensor:
    """Returns the addresses of tensors, as a tensor on their device."""
    return torch.tensor([tensor.data_ptr() for tensor in tensors], device=tensors[0].device)


def slots(num_tokens: int, block_size: int, device: torch.device) -> tuple[int, Tensor]:
    """Returns the number of blocks of a cache, some of them spare, and slots for the tokens of one sequence."""
    num_blocks = -(-num_tokens // block_size) + SPARE_BLOCKS
    blocks = torch.randperm(num_blocks, device=device)[:-SPARE_BLOCKS]
    return num_blocks, (blocks[:, None] * block_size + torch.arange(block_size, device=device)).flatten()[:num_tokens]


def sequences(batch_size: int, length: int, block_size: int, device: torch.device) -> tuple[int, Tensor, Tensor]:
    """Returns the number of blocks of a cache, some of them spare, a block table, and cu_seq_lens."""
    num_blocks = batch_size * -(-length // block_size) + SPARE_BLOCKS
    block_table = torch.randperm(num_blocks, device=device)[:-SPARE_BLOCKS].view(batch_size, -1).to(torch.int32)
    return num_blocks, block_table, torch.arange(batch_size + 1, dtype=torch.int32, device=device) * length
