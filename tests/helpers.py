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


# -- reshape_and_cache_flash -------------------------------------------------------------------------------------------


def cache_dtype(format: str, dtype: torch.dtype, *, float8: bool = False) -> torch.dtype:
    name = reference.fp8_format(format, torch.uint8)
    if name is None:
        return dtype
    return reference.FP8_FORMATS[name].dtype if float8 else torch.uint8


Pair = tuple[Tensor, Tensor]


def _pair(shape: Sequence[int], sizes: Sequence[int], *at: object, **options: object) -> Pair:
    key, value = (embed((*shape, size), *at, **options) for size in sizes)
    return key, value


def _interleaved(n: int, b: int, h: int, d: Sequence[int], *at: object) -> Pair:
    """K and V of a block in one tensor; with unequal head sizes, of a head."""
    if d[0] == d[1]:
        return embed((n, 2, b, h, d[0]), *at).unbind(1)
    return embed((n, b, h, sum(d)), *at).split(d, -1)


# name -> (blocks, block_size, heads, (key's head size, value's), dtype, device) -> key_cache, value_cache
CACHE_LAYOUTS: dict[str, Callable[..., Pair]] = {
    "NHD": lambda n, b, h, *at: _pair((n, b, h), *at),
    "HND": lambda n, b, h, *at: _pair((n, b, h), *at, order=(0, 2, 1, 3)),
    "interleaved": _interleaved,
    "HND_side_by_side": lambda n, b, h, d, *at: embed((n, b, h, sum(d)), *at, order=(0, 2, 1, 3)).split(d, -1),
    "padded": lambda n, b, h, *at: _pair((n, b, h), *at, padding=(0, 1, 1, 5)),
    "unaligned": lambda n, b, h, *at: _pair((n, b, h), *at, offset=1),
    "heads_outermost": lambda n, b, h, *at: _pair((n, b, h), *at, order=(2, 1, 0, 3)),
}


def _projection(t: int, h: int, d: Sequence[int], *at: object) -> Pair:
    """Slices of what one projection gives: 3 * h query heads, then keys, then values."""
    _, key, value = embed((t, 3 * h * d[0] + h * d[0] + h * d[1]), *at).split([3 * h * d[0], h * d[0], h * d[1]], -1)
    return key.unflatten(1, (h, d[0])), value.unflatten(1, (h, d[1]))


# name -> (tokens, heads, (key's head size, value's), dtype, device) -> key, value
INPUT_LAYOUTS: dict[str, Callable[..., Pair]] = {
    "dense": lambda t, h, *at: _pair((t, h), *at),
    "projection": _projection,
    "padded": lambda t, h, *at: _pair((t, h), *at, padding=(0, 1, 3)),
    "unaligned": lambda t, h, *at: _pair((t, h), *at, offset=1),
    "heads_first": lambda t, h, *at: _pair((t, h), *at, order=(1, 0, 2)),
    "one_head_for_all": lambda t, h, *at: tuple(x.expand(t, h, -1) for x in _pair((t, 1), *at)),
}


def distinct_slots(tokens: int, num_slots: int, dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.randperm(num_slots)[:tokens].to(dtype)


def flash_arguments(
    device: torch.device | str = "cpu",
    *,
    dtype: torch.dtype = torch.bfloat16,
    format: str = "auto",
    float8: bool = False,
    tokens: int = 7,
    heads: int = 2,
    head_size: int = 64,
    value_head_size: int | None = None,
    blocks: int | None = None,
    block_size: int = 16,
    cache: str = "NHD",
    inputs: str = "dense",
    index_dtype: torch.dtype = torch.int64,
    surplus_rows: int = 0,
    per_head: bool = False,
) -> Arguments:
    """A good call; every token has a slot of its own, and some slots none."""
    blocks = -(-tokens // block_size) + 2 if blocks is None else blocks
    sizes = (head_size, head_size if value_head_size is None else value_head_size)
    key, value = INPUT_LAYOUTS[inputs](tokens + surplus_rows, heads, sizes, dtype, device)
    if inputs != "one_head_for_all":  # which cannot be written, and whose random bytes serve as well
        randomise(key), randomise(value)
    key_cache, value_cache = CACHE_LAYOUTS[cache](
        blocks, block_size, heads, sizes, cache_dtype(format, dtype, float8=float8), device
    )
    scales = (torch.rand(2, heads) + 0.25 if per_head else torch.tensor([[0.37], [1.9]])).to(device)
    return {
        "key": key,
        "value": value,
        "key_cache": key_cache,
        "value_cache": value_cache,
        "slot_mapping": distinct_slots(tokens, blocks * block_size, index_dtype).to(device),
        "kv_cache_dtype": format,
        "k_scale": scales[0],
        "v_scale": scales[1],
    }


# -- cp_gather_cache ---------------------------------------------------------------------------------------------------

# No token needs these blocks, so nobody may look at them.
BAD_BLOCKS = (2**31 - 1, -(2**31), -1, 1_000_000)


def gather_arguments(
    device: torch.device | str = "cpu",
    *,
    dtype: torch.dtype = torch.bfloat16,
    entry: Sequence[int] = (2, 64),
    lengths: Iterable[int] = (5, 0, 16, 33),
    starts: Sequence[int] | None = None,
    blocks: int = 9,
    block_size: int = 16,
    spare_columns: int = 1,
    surplus_rows: int = 3,
    first_row: int = 0,
    index_dtype: torch.dtype = torch.int32,
    src_options: dict[str, object] | None = None,
    dst_options: dict[str, object] | None = None,
) -> Arguments:
    """A good call; the table's entries that no token needs are bad."""
    lengths = list(lengths)
    begins = [0] * len(lengths) if starts is None else list(starts)
    columns = max([-(-(b + n) // block_size) for b, n in zip(begins, lengths, strict=True)], default=0)
    columns = max(0, columns + spare_columns)
    bad = torch.tensor(BAD_BLOCKS)
    table = bad[torch.randint(len(bad), (len(lengths), columns))]
    for row, begin, length in zip(table, begins, lengths, strict=True):
        if length:
            needed = slice(begin // block_size, (begin + length - 1) // block_size + 1)
            row[needed] = torch.randint(blocks, row[needed].shape)
    bounds = list(itertools.accumulate(lengths, initial=first_row))
    return {
        "src_cache": embed((blocks, block_size, *entry), dtype, device, **(src_options or {})),
        "dst": embed((bounds[-1] + surplus_rows, *entry), dtype, device, **(dst_options or {})),
        "block_table": table.to(device, index_dtype),
        "cu_seq_lens": torch.tensor(bounds, dtype=index_dtype, device=device),
        "batch_size": len(lengths),
        "seq_starts": None if starts is None else torch.tensor(begins, dtype=index_dtype, device=device),
    }
