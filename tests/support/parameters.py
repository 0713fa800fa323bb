"""What tests are parametrized with: dtypes and formats, and how they read in a test's id."""

from __future__ import annotations

import torch

from multikv import reference

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
INDEX_DTYPES = (torch.int32, torch.int64)
FP8_FORMATS = tuple(reference.FP8_FORMATS)
# One name per way of storing: unconverted, and each fp8 format.
FORMATS = ("auto", *(f"fp8_{name}" for name in FP8_FORMATS))
# The names that a caller may give an fp8 format, with the dtype of the cache.
FP8_NAMES = (
    *(
        (name, dtype)
        for name in ("fp8", "fp8_e4m3")
        for dtype in (torch.uint8, torch.float8_e4m3fn, torch.float8_e4m3fnuz)
    ),
    *((f"fp8_{name}", format.dtype) for name, format in reference.FP8_FORMATS.items()),
)


def short(value: object) -> str | None:
    """Test ids: 'bfloat16' for torch.bfloat16, '2x3' for (2, 3)."""
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, tuple):
        return "x".join(map(str, value)) or "none"
    return None
