"""Formats of caches: how elements become stored codes, where scales are stored, and which names each op accepts.

CACHE_FORMATS repeats the table of `csrc/core/format.h`, and a test compares the two. `multikv.reference` looks up the
element and the scales of a format in CACHE_FORMATS. A new format needs a row in both tables and in the table of
docs/formats.md. If its elements or scales are new, it also needs an encoder and a decoder in each backend and in
`multikv.reference`.

The types also describe what no op supports yet: int8, int4 and e2m1 elements, a scale for each token and head, scales
stored as one exponent byte or in e4m3fn, scales in a separate tensor or between the codes, zero points, and Hadamard
rotations.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any

import torch

__all__ = [
    "CACHE_FORMATS",
    "DS_MLA_ENTRY",
    "FP8_FORMATS",
    "CacheFormat",
    "Codec",
    "DsMlaEntry",
    "Element",
    "ElementChoice",
    "Family",
    "Fp8Format",
    "ScaleGroup",
    "ScalePlace",
    "ScaleType",
    "find",
    "names",
]


@dataclass(frozen=True)
class Element:
    """How one element of a cache is stored."""

    name: str
    bits: int
    dtype: torch.dtype  # of a cache of such elements; elements of less than 8 bits are packed into uint8


@dataclass(frozen=True)
class Fp8Format(Element):
    """An 8-bit floating-point element.

    With m = mantissa_bits:

        bit    7     6 .. m      m-1 .. 0
            | sign | exponent | mantissa |

    A code with exponent e > 0 and mantissa f is +-(1 + f / 2^m) * 2^(e - bias); with e = 0 it is
    +-(f / 2^m) * 2^(1 - bias). The codes in `nans` and `infinities` are exceptions.
    """

    mantissa_bits: int
    bias: int
    nan: int  # the code that NaN is stored as
    nans: frozenset[int]
    infinities: frozenset[int] = frozenset()

    @property
    def has_negative_zero(self) -> bool:
        """Whether 0x80 is -0 rather than NaN."""
        return 0x80 not in self.nans


FLOAT32 = Element("float32", 32, torch.float32)
FLOAT16 = Element("float16", 16, torch.float16)
BFLOAT16 = Element("bfloat16", 16, torch.bfloat16)
# e4m3fn and e5m2: OCP 8-bit Floating Point Specification 1.0; Micikevicius et al. 2022, "FP8 Formats for Deep
# Learning". The fnuz formats: Noune et al. 2022, "8-bit Numerical Formats for Deep Neural Networks".
E4M3FN = Fp8Format("e4m3fn", 8, torch.float8_e4m3fn, 3, 7, 0x7F, frozenset({0x7F, 0xFF}))
E5M2 = Fp8Format(
    "e5m2", 8, torch.float8_e5m2, 2, 15, 0x7F, frozenset({0x7D, 0x7E, 0x7F, 0xFD, 0xFE, 0xFF}), frozenset({0x7C, 0xFC})
)
E4M3FNUZ = Fp8Format("e4m3fnuz", 8, torch.float8_e4m3fnuz, 3, 8, 0x80, frozenset({0x80}))
E5M2FNUZ = Fp8Format("e5m2fnuz", 8, torch.float8_e5m2fnuz, 2, 16, 0x80, frozenset({0x80}))
# No op supports the following elements yet. e2m1: OCP Microscaling Formats (MX) Specification 1.0.
INT8 = Element("int8", 8, torch.int8)
INT4 = Element("int4", 4, torch.uint8)
E2M1 = Element("e2m1", 4, torch.uint8)

FP8_FORMATS = {element.name: element for element in (E4M3FN, E5M2, E4M3FNUZ, E5M2FNUZ)}


class ScaleGroup(enum.Enum):
    """Which elements share a scale."""

    NONE = "none"
    TENSOR_OR_HEAD = "tensor_or_head"  # the whole tensor if the scale has 1 element, each head if it has one per head
    TOKEN_HEAD = "token_head"  # the elements of one head of one token
    TILE = "tile"  # `tile_size` neighbouring elements of one token


class ScaleType(enum.Enum):
    """What a stored scale is."""

    NONE = "none"
    FLOAT32 = "float32"
    POWER_OF_TWO = "power_of_two"  # a float32 that is a power of two
    # One byte: the exponent of a power of two in float32. The kv_cache_dtype "ue8m0" means POWER_OF_TWO, not this type.
    EXPONENT_BYTE = "exponent_byte"
    EXPONENT_BYTES = "exponent_bytes"  # the exponent byte four times
    E4M3FN = "e4m3fn"  # an e4m3fn number; the scale is its product with a float32 scale of the whole tensor


class ScalePlace(enum.Enum):
    """Where scales are stored."""

    NONE = "none"
    ARGUMENT = "argument"  # in an argument of the op, which reads them
    TENSOR = "tensor"  # in a separate tensor, which the op writes
    INLINE = "inline"  # the scales of a head follow its codes and precede the codes of the next head
    BLOCK_TAIL = "block_tail"  # after the codes of all slots of a block
    ENTRY = "entry"  # in the entry of each token, at a fixed offset


@dataclass(frozen=True)
class Codec:
    """How elements become stored codes and back.

    Example:
        >>> # 4-bit elements with a float32 scale and a zero point per token and head, after a Hadamard rotation
        >>> codec = Codec(INT4, ScaleGroup.TOKEN_HEAD, ScaleType.FLOAT32, ScalePlace.TENSOR, 0, True, True)
    """

    element: Element
    scale_group: ScaleGroup = ScaleGroup.NONE
    scale_type: ScaleType = ScaleType.NONE
    scale_place: ScalePlace = ScalePlace.NONE
    tile_size: int = 0  # elements per tile; 0: an argument of the op gives the size, or there are no tiles
    has_zero_point: bool = False  # a zero point is stored with each scale
    is_rotated: bool = False  # a Hadamard rotation precedes the quantisation

    @property
    def is_fp8(self) -> bool:
        """Whether elements are stored as fp8 codes."""
        return isinstance(self.element, Fp8Format)


class ElementChoice(enum.Enum):
    """What determines the element of a format."""

    FIXED = "fixed"  # the format itself
    INPUT = "input"  # the dtype of the op's input, or of a gather's output
    E4M3 = "e4m3"  # e4m3fn or e4m3fnuz: that of the cache's dtype; if the dtype is no e4m3 type, that of the device


class Family(enum.Enum):
    """Groups of ops that accept the same values of kv_cache_dtype.

    These groups are not the families that modules are named after: concat_and_cache_mla_grouped is in CACHE.
    """

    # reshape_and_cache*, concat_and_cache_mla_grouped, gather_and_maybe_dequant_cache, gather_kv_cache,
    # paged_attention*, rotate_cached_keys, qk_norm_rope_cache
    CACHE = "cache"
    MLA = "mla"  # concat_and_cache_mla, concat_and_cache_mla_rope_fused
    CONVERT = "convert"  # convert_fp8
    INDEXER = "indexer"  # indexer_k_quant_and_cache


@dataclass(frozen=True)
class CacheFormat:
    """A value of kv_cache_dtype, and what it means to the families of ops that accept it."""

    name: str
    codec: Codec  # unless `choice` is FIXED, its element is a placeholder: FLOAT32 for INPUT, E4M3FN for E4M3
    choice: ElementChoice
    families: frozenset[Family]

    def to_json(self) -> dict[str, Any]:
        """Returns the format as multikv_formats() of csrc/c_api.h writes it to JSON."""
        codec = self.codec
        return {
            "name": self.name,
            "families": [family.value for family in Family if family in self.families],
            "element_choice": self.choice.value,
            "element": codec.element.name,
            "element_bits": codec.element.bits,
            "scale_group": codec.scale_group.value,
            "scale_type": codec.scale_type.value,
            "scale_place": codec.scale_place.value,
            "tile_size": codec.tile_size,
            "has_zero_point": codec.has_zero_point,
            "is_rotated": codec.is_rotated,
        }


@dataclass(frozen=True)
class DsMlaEntry:
    """The entry of fp8_ds_mla, the format of DeepSeek's sparse attention (source: FlashMLA).

    The layout of an entry:

        byte  0                 512                 528                 656
              | latent vector   | scales            | rotary key        |
              | 512 e4m3 codes  | 4 float32, powers | 64 elements       |
              | 4 tiles of 128  | of two            | of 16 bits        |
    """

    latent_size: int = 512
    tile_size: int = 128
    rope_size: int = 64

    @property
    def part_bytes(self) -> tuple[int, int, int]:
        """Sizes in bytes of the codes, the scales and the rotary key."""
        return self.latent_size, self.latent_size // self.tile_size * 4, self.rope_size * 2

    @property
    def num_bytes(self) -> int:
        """Size of an entry in bytes."""
        return sum(self.part_bytes)


DS_MLA_ENTRY = DsMlaEntry()

_CACHE_MLA = frozenset({Family.CACHE, Family.MLA})
_ALL_FP8 = _CACHE_MLA | {Family.CONVERT}
_INDEXER = frozenset({Family.INDEXER})
_DS_MLA = Codec(E4M3FN, ScaleGroup.TILE, ScaleType.POWER_OF_TWO, ScalePlace.ENTRY, DS_MLA_ENTRY.tile_size)
_FIXED, _INPUT, _E4M3 = ElementChoice.FIXED, ElementChoice.INPUT, ElementChoice.E4M3


def _scaled(element: Element) -> Codec:
    return Codec(element, ScaleGroup.TENSOR_OR_HEAD, ScaleType.FLOAT32, ScalePlace.ARGUMENT)


def _indexer(scale_type: ScaleType, element: Element = E4M3FN) -> Codec:
    return Codec(element, ScaleGroup.TILE, scale_type, ScalePlace.BLOCK_TAIL)


# Error messages list the names in this order. A name that means different things to different families has a row for
# each meaning.
CACHE_FORMATS = (
    CacheFormat("auto", Codec(FLOAT32), _INPUT, _CACHE_MLA),
    CacheFormat("auto", _indexer(ScaleType.FLOAT32), _E4M3, _INDEXER),
    CacheFormat("float16", Codec(FLOAT16), _FIXED, _CACHE_MLA),
    CacheFormat("bfloat16", Codec(BFLOAT16), _FIXED, _CACHE_MLA),
    CacheFormat("float32", Codec(FLOAT32), _FIXED, _CACHE_MLA),
    CacheFormat("float32", _indexer(ScaleType.FLOAT32), _E4M3, _INDEXER),
    CacheFormat("fp32", _indexer(ScaleType.FLOAT32), _E4M3, _INDEXER),
    CacheFormat("fp8", _scaled(E4M3FN), _E4M3, _ALL_FP8),
    CacheFormat("fp8", _indexer(ScaleType.FLOAT32), _E4M3, _INDEXER),
    CacheFormat("fp8_e4m3", _scaled(E4M3FN), _E4M3, _ALL_FP8),
    CacheFormat("fp8_e4m3", _indexer(ScaleType.FLOAT32), _E4M3, _INDEXER),
    CacheFormat("fp8_e5m2", _scaled(E5M2), _FIXED, _ALL_FP8),
    CacheFormat("fp8_e4m3fn", _scaled(E4M3FN), _FIXED, _ALL_FP8),
    CacheFormat("fp8_e4m3fn", _indexer(ScaleType.FLOAT32), _FIXED, _INDEXER),
    CacheFormat("fp8_e4m3fnuz", _scaled(E4M3FNUZ), _FIXED, _ALL_FP8),
    CacheFormat("fp8_e4m3fnuz", _indexer(ScaleType.FLOAT32, E4M3FNUZ), _FIXED, _INDEXER),
    CacheFormat("fp8_e5m2fnuz", _scaled(E5M2FNUZ), _FIXED, _ALL_FP8),
    CacheFormat("fp8_ds_mla", _DS_MLA, _E4M3, frozenset({Family.MLA})),
    CacheFormat("ue8m0", _indexer(ScaleType.POWER_OF_TWO), _E4M3, _INDEXER),
    CacheFormat("mxfp8", _indexer(ScaleType.EXPONENT_BYTES), _E4M3, _INDEXER),
)


def names(family: Family) -> list[str]:
    """Returns the values of kv_cache_dtype that the ops of a family accept, in the order of CACHE_FORMATS.

    Example:
        >>> from multikv import formats
        >>> formats.names(formats.Family.CONVERT)
        ['fp8', 'fp8_e4m3', 'fp8_e5m2', 'fp8_e4m3fn', 'fp8_e4m3fnuz', 'fp8_e5m2fnuz']
    """
    return [row.name for row in CACHE_FORMATS if family in row.families]


def find(name: str, family: Family) -> CacheFormat:
    """Returns what a value of kv_cache_dtype means to a family of ops.

    Args:
        name: the value, such as "fp8_e4m3".
        family: the family.

    Raises:
        ValueError: the ops of the family do not accept the name.

    Example:
        >>> from multikv import formats
        >>> formats.find("fp8_e5m2", formats.Family.CACHE).codec.element.name
        'e5m2'
    """
    for row in CACHE_FORMATS:
        if row.name == name and family in row.families:
            return row
    raise ValueError(f"kv_cache_dtype: expected one of {', '.join(names(family))}, got '{name}'")
