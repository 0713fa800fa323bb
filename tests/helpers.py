"""Tensors in awkward places, calls made of them, and the comparison of an op with its reference, byte for byte."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

import multikv
import reference
from multikv import platforms

ROOT = Path(__file__).resolve().parents[1]

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
INDEX_DTYPES = (torch.int32, torch.int64)
FP8_FORMATS = tuple(reference.FP8_FORMATS)
# One name per way of storing: as it comes, and the four fp8 formats.
FORMATS = ("auto", "fp8_e4m3fn", "fp8_e5m2", "fp8_e4m3fnuz", "fp8_e5m2fnuz")
OPS = ("reshape_and_cache_flash", "cp_gather_cache")

# The arguments of a call by name, in the order of the schema.
Arguments = dict[str, object]


def short(value: object) -> str | None:
    """Test ids: 'bfloat16' for torch.bfloat16, (2, 3) as '2x3'."""
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, tuple):
        return "x".join(map(str, value)) or "none"
    return None


# -- devices -----------------------------------------------------------------------------------------------------------


def serves_gpu() -> bool:
    """ROCm tensors are on PyTorch's device "cuda" too."""
    return platforms.platform() in ("cuda", "rocm")


def device_names() -> list[str]:
    """The values of the `device` fixture: an ISA of this CPU each, and the GPU. See MULTIKV_TEST_DEVICES."""
    default = "cpu,cuda" if torch.cuda.is_available() else "cpu"
    wanted = [name.strip() for name in os.environ.get("MULTIKV_TEST_DEVICES", default).split(",") if name.strip()]
    names = []
    for name in wanted:
        if name == "cpu":
            names += [f"cpu-{isa}" for isa in platforms.cpu_isas()]
        elif name == "cuda":
            names.append("cuda")
        else:
            raise ValueError(f"MULTIKV_TEST_DEVICES: expected cpu or cuda, got {name!r}")
    if not names:
        raise ValueError("MULTIKV_TEST_DEVICES: expected at least one of cpu and cuda")
    if "cuda" in names and not torch.cuda.is_available():
        raise ValueError("MULTIKV_TEST_DEVICES names cuda, but PyTorch sees no GPU")
    if "cuda" in names and not serves_gpu():
        raise ValueError(f"cannot test on cuda: no library serves it\n{platforms.report()}")
    return names


def e4m3_of_bytes(device: torch.device) -> str:
    """The format that a uint8 cache has under the name fp8: fnuz on gfx940-gfx942."""
    if device.type == "cuda" and torch.version.hip:
        architecture = torch.cuda.get_device_properties(device).gcnArchName.split(":")[0]
        if architecture in ("gfx940", "gfx941", "gfx942"):
            return "e4m3fnuz"
    return "e4m3fn"


# -- tensors -----------------------------------------------------------------------------------------------------------


def random_bytes(count: int, device: torch.device | str = "cpu") -> Tensor:
    return torch.randint(0, 256, (count,), dtype=torch.uint8).to(device)


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
    """A tensor inside a larger one of random bytes, so that a stray write, or a read of the wrong place, shows.

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


def copy_of(arguments: Arguments, device: torch.device | str = "cpu") -> Arguments:
    """The same tensors elsewhere: same strides, same surroundings, and what shared memory shares it again."""
    storages: dict[int, torch.UntypedStorage] = {}

    def copy(x: object) -> object:
        if not isinstance(x, Tensor):
            return x
        bytes = storage_bytes(x)
        if bytes.data_ptr() not in storages:
            storages[bytes.data_ptr()] = bytes.to(device, copy=True).untyped_storage()
        empty = torch.empty(0, dtype=x.dtype, device=device)
        return empty.set_(storages[bytes.data_ptr()], x.storage_offset(), x.shape, x.stride())

    return {name: copy(x) for name, x in arguments.items()}


def assert_same_bytes(actual: Arguments, expected: Arguments) -> None:
    """Compares the memory of every tensor with all that surrounds it; inputs are thereby seen to be unchanged."""
    for name, x in actual.items():
        if isinstance(x, Tensor):
            got, wanted = storage_bytes(x).cpu(), storage_bytes(expected[name]).cpu()
            if not torch.equal(got, wanted):
                where = (got != wanted).nonzero().flatten()
                first = where[0].item()
                raise AssertionError(
                    f"{name}: {len(where)} of {len(got)} bytes differ, the first at byte {first} (tensor starts at "
                    f"{x.storage_offset() * x.element_size()}): got {got[first]:#04x}, expected {wanted[first]:#04x}"
                )


def run(op: str, arguments: Arguments) -> None:
    assert getattr(multikv, op)(*arguments.values()) is None


def check(op: str, arguments: Arguments, **reference_options: object) -> None:
    """Runs the op, and the reference on a copy, and compares all memory."""
    expected = copy_of(arguments)
    getattr(reference, op)(**expected, **reference_options)
    run(op, arguments)
    assert_same_bytes(arguments, expected)


# -- parts of calls ---------------------------------------------------------------------------------------------------------


def cache_dtype(format: str, dtype: torch.dtype, *, float8: bool = False) -> torch.dtype:
    name = reference.fp8_format(format, torch.uint8)
    if name is None:
        return dtype
    return reference.FP8_FORMATS[name].dtype if float8 else torch.uint8


def distinct_slots(tokens: int, num_slots: int, dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.randperm(num_slots)[:tokens].to(dtype)
