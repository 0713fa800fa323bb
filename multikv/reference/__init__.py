"""Every op in plain PyTorch: slow, obvious, and what all backends are tested against, byte for byte.

The functions have the signatures of the ops, write into the tensors they are given, and take tensors of any strides on
any device (they compute on the CPU). They assume valid arguments; only indices are checked: `bad_indices="raise"` is
what a CPU does (IndexError before anything is written), `bad_indices="skip"` what a GPU does.

Letters in shapes: T tokens, H heads, D head size, N blocks, B block size, S sequences. slot = block * B + offset.
"""

from .formats import FP8_FORMATS, Fp8Format, decode_fp8, encode_fp8, fp8_format, quantise
from .gather import cp_gather_cache
from .reshape_and_cache import reshape_and_cache_flash

__all__ = [
    "FP8_FORMATS",
    "Fp8Format",
    "cp_gather_cache",
    "decode_fp8",
    "encode_fp8",
    "fp8_format",
    "quantise",
    "reshape_and_cache_flash",
]
