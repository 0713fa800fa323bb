"""Tensors in awkward places, calls made of them, and the comparison of an op with its reference, byte for byte."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

import multikv
import reference
from multikv import platforms
from reference.formats import bits

ROOT = Path(__file__).resolve().parents[1]

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
INDEX_DTYPES = (torch.int32, torch.int64)
FP8_FORMATS = tuple(reference.FP8_FORMATS)
# One name per way of storing: as it comes, and the four fp8 formats.
FORMATS = ("auto", "fp8_e4m3fn", "fp8_e5m2", "fp8_e4m3fnuz", "fp8_e5m2fnuz")
# What a caller may name a format, and the dtype of the cache that it then hands in.
FP8_NAMES = (
    *((name, dtype) for name in ("fp8", "fp8_e4m3") for dtype in (torch.uint8, torch.float8_e4m3fn, torch.float8_e4m3fnuz)),
    ("fp8_e4m3fn", torch.float8_e4m3fn),
    ("fp8_e5m2", torch.float8_e5m2),
    ("fp8_e4m3fnuz", torch.float8_e4m3fnuz),
    ("fp8_e5m2fnuz", torch.float8_e5m2fnuz),
)
OPS = (
    "reshape_and_cache_flash",
    "reshape_and_cache",
    "concat_and_cache_mla",
    "concat_and_cache_mla_rope_fused",
    "convert_fp8",
    "gather_and_maybe_dequant_cache",
    "cp_gather_cache",
    "cp_gather_and_upconvert_fp8_kv_cache",
    "indexer_k_quant_and_cache",
    "cp_gather_indexer_k_quant_cache",
    "swap_blocks",
    "swap_blocks_layers",
    "swap_blocks_batch",
    "concat_mla_q",
    "concat_and_cache_mla_grouped",
)

# The arguments of a call by name, in the order of the schema.
Arguments = dict[str, object]

# Those that hold addresses, of the memory that they lie in.
ADDRESSES = ("kv_cache_ptrs", "src_ptrs", "dst_ptrs")


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


def last_level_cache_bytes() -> int:
    """The CPU's. An op that writes more than that stores past the cache."""
    try:
        kilobytes = Path("/sys/devices/system/cpu/cpu0/cache/index3/size").read_text().strip().removesuffix("K")
    except OSError:
        kilobytes = "0"
    return max(int(kilobytes), 32 << 10) << 10


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


def tensors_of(arguments: Arguments) -> dict[str, Tensor]:
    """All tensors of a call, those of lists as name[i]."""
    lists = {name: list(x) for name, x in arguments.items() if isinstance(x, (list, tuple))}
    listed = {f"{name}[{i}]": x for name, items in lists.items() for i, x in enumerate(items)}
    return {name: x for name, x in (arguments | listed).items() if isinstance(x, Tensor)}


def move_addresses(name: str, copied: Tensor, original: Tensor) -> None:
    """Addresses in a copy shall be of the copy's memory."""
    if name in ADDRESSES:
        copied += storage_bytes(copied).data_ptr() - storage_bytes(original).data_ptr()


def overwrite(arguments: Arguments, others: Arguments) -> None:
    """Gives the memory of every tensor the contents of the other's, which is as large."""
    theirs = tensors_of(others)
    for name, x in tensors_of(arguments).items():
        storage_bytes(x).copy_(storage_bytes(theirs[name]))
        move_addresses(name, x, theirs[name])


def copy_of(arguments: Arguments, device: torch.device | str | None = "cpu") -> Arguments:
    """The same tensors elsewhere: same strides, same surroundings, and what shared memory shares it again.

    Without a device, each where it is, in pinned memory if it is there.
    """
    storages: dict[int, torch.UntypedStorage] = {}

    def copy(name: str, x: object) -> object:
        if isinstance(x, (list, tuple)):
            return [copy(name, item) for item in x]
        if not isinstance(x, Tensor):
            return x
        bytes, place = storage_bytes(x), x.device if device is None else device
        if bytes.data_ptr() not in storages:
            copied = bytes.to(place, copy=True)
            if device is None and x.is_pinned():
                copied = copied.pin_memory()
            storages[bytes.data_ptr()] = copied.untyped_storage()
        empty = torch.empty(0, dtype=x.dtype, device=place)
        result = empty.set_(storages[bytes.data_ptr()], x.storage_offset(), x.shape, x.stride())
        move_addresses(name, result, x)
        return result

    return {name: copy(name, x) for name, x in arguments.items()}


def assert_same_bytes(actual: Arguments, expected: Arguments, nan_outputs: Sequence[str] = ()) -> None:
    """Compares the memory of every tensor with all that surrounds it; inputs are thereby seen to be unchanged.

    `nan_outputs` names tensors of floats in which one NaN is as good as another; what surrounds them is still compared
    byte for byte.
    """
    ours, theirs = tensors_of(actual), tensors_of(expected)
    for device in {x.device for x in ours.values() if x.is_cuda}:
        torch.cuda.synchronize(device)  # for the end of a copy to pinned memory, nothing below waits
    for name, x in ours.items():
        got, wanted = _memory(name, x), _memory(name, theirs[name])
        if name in nan_outputs:
            got = _with_nans_of(wanted, got, x)
        if not torch.equal(got, wanted):
            where = (got != wanted).nonzero().flatten()
            first = where[0].item()
            raise AssertionError(
                f"{name}: {len(where)} of {len(got)} bytes differ, the first at byte {first} (tensor starts at "
                f"{x.storage_offset() * x.element_size()}): got {got[first]:#04x}, expected {wanted[first]:#04x}"
            )


def _memory(name: str, x: Tensor) -> Tensor:
    if name not in ADDRESSES:
        return storage_bytes(x).cpu()
    x = copy_of({name: x})[name]
    x -= storage_bytes(x).data_ptr()
    return storage_bytes(x)


def _with_nans_of(wanted: Tensor, got: Tensor, x: Tensor) -> Tensor:
    """The bytes `got`, with the NaNs among the elements of x replaced by those that `wanted` has there."""
    got = got.clone()
    ours, theirs = (
        torch.empty(0, dtype=x.dtype).set_(bytes.untyped_storage(), x.storage_offset(), x.shape, x.stride())
        for bytes in (got, wanted)
    )
    bits(ours).copy_(torch.where(ours.isnan() & theirs.isnan(), bits(theirs), bits(ours)))
    return got


def run(op: str, arguments: Arguments) -> None:
    assert getattr(multikv, op)(*arguments.values()) is None


def check(op: str, arguments: Arguments, *, nan_outputs: Sequence[str] = (), **reference_options: object) -> None:
    """Runs the op, and the reference on a copy, and compares all memory."""
    expected = copy_of(arguments)
    getattr(reference, op)(**expected, **reference_options)
    run(op, arguments)
    assert_same_bytes(arguments, expected, nan_outputs)


# -- parts of calls ----------------------------------------------------------------------------------------------------


def cache_dtype(format: str, dtype: torch.dtype, *, float8: bool = False) -> torch.dtype:
    name = reference.fp8_format(format, torch.uint8)
    if name is None:
        return dtype
    return reference.FP8_FORMATS[name].dtype if float8 else torch.uint8


def distinct_slots(tokens: int, num_slots: int, dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.randperm(num_slots)[:tokens].to(dtype)
