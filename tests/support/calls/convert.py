"""Good calls of convert_fp8."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from multikv import reference
from tests.support.arguments import Arguments
from tests.support.calls.call import Call
from tests.support.calls.gather import without_nans
from tests.support.tensors import cache_dtype, embed, randomise


def convert_arguments(
    device: torch.device | str = "cpu",
    *,
    to_fp8: bool = True,
    dtype: torch.dtype = torch.bfloat16,
    format: str = "fp8_e4m3fn",
    float8: bool = False,
    nans: bool = False,
    shape: Sequence[int] = (5, 3, 40),
    scale: float = 0.37,
    src_options: dict[str, object] | None = None,
    dst_options: dict[str, object] | None = None,
) -> Arguments:
    """A good call; without `nans`, no code of fp8 that is read is one."""
    fp8 = cache_dtype(format, dtype, float8=float8)
    src = embed(shape, dtype if to_fp8 else fp8, device, **(src_options or {}))
    if to_fp8:
        randomise(src)
    elif not nans:
        without_nans(src, reference.fp8_format(format, torch.uint8))
    return {
        "dst_cache": embed(shape, fp8 if to_fp8 else dtype, device, **(dst_options or {})),
        "src_cache": src,
        "scale": scale,
        "kv_cache_dtype": format,
    }


CONVERT = "convert_fp8"
LARGER = {"shape": (500, 7, 130)}
STRIDED = {"src_options": {"padding": (0, 1, 3)}, "dst_options": {"order": (1, 0, 2), "offset": 1}}

CALLS = {
    "to_fp8": Call(CONVERT, convert_arguments, {}, larger=LARGER, uses_all=True),
    "to_fp8-strided": Call(CONVERT, convert_arguments, {"format": "fp8_e5m2", **STRIDED}, larger=LARGER),
    "to_fp8-nothing": Call(CONVERT, convert_arguments, {"shape": (3, 0, 8)}),
    "from_fp8": Call(CONVERT, convert_arguments, {"to_fp8": False}, larger=LARGER),
    "from_fp8-strided": Call(
        CONVERT, convert_arguments, {"to_fp8": False, "format": "fp8_e5m2", **STRIDED}, larger=LARGER
    ),
}
