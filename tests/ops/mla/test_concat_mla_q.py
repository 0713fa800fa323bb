"""concat_mla_q against its reference. All memory is compared, so that a stray byte anywhere is found."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.support.calls.mla import concat_q_arguments
from tests.support.comparison import check
from tests.support.devices import last_level_cache_bytes
from tests.support.parameters import FLOATS, short
from tests.support.tensors import embed, random_bytes

OP = "concat_mla_q"
DTYPES = (*FLOATS, torch.uint8, torch.float8_e4m3fn, torch.int16, torch.float64, torch.complex128)

# Of [tokens, heads, size].
LAYOUTS = {
    "dense": {},
    "padded_heads": {"padding": (0, 0, 3)},
    "padded_tokens": {"padding": (0, 2, 0)},
    "aligned_heads": {"padding": (0, 0, 64)},
    "heads_first": {"order": (1, 0, 2)},
    "heads_first_padded": {"order": (1, 0, 2), "padding": (1, 0, 5)},
    "unaligned": {"offset": 1},
}


@pytest.mark.parametrize("dtype", DTYPES, ids=short)
@pytest.mark.parametrize("sizes", [(512, 64), (1, 0), (0, 1), (1, 1), (17, 3), (128, 64), (100, 28)], ids=short)
def test_dtypes_and_sizes(device, sizes, dtype):
    for surplus_heads in (0, 2):
        options = {"nope_size": sizes[0], "rope_size": sizes[1], "surplus_heads": surplus_heads}
        check(OP, concat_q_arguments(device, dtype=dtype, heads=5, **options))


@pytest.mark.parametrize("out", LAYOUTS)
@pytest.mark.parametrize("rope", LAYOUTS)
def test_layouts(device, rope, out):
    for nope, dtype in itertools.product(LAYOUTS, (torch.bfloat16, torch.uint8)):
        options = {"nope_options": LAYOUTS[nope], "rope_options": LAYOUTS[rope], "out_options": LAYOUTS[out]}
        check(OP, concat_q_arguments(device, dtype=dtype, heads=3, surplus_heads=1, nope_size=40, **options))


@pytest.mark.parametrize("tokens", [0, 1, 2, 33, 300])
@pytest.mark.parametrize("heads", [0, 1, 3, 16, 128])
def test_tokens_and_heads(device, heads, tokens):
    for surplus_heads in (0, 3):
        check(OP, concat_q_arguments(device, tokens=tokens, heads=heads, surplus_heads=surplus_heads, nope_size=48))


@pytest.mark.parametrize("sizes", [(5000, 64), (64, 5000), (16_385, 4099)], ids=short)
def test_large_heads(device, sizes):
    check(OP, concat_q_arguments(device, heads=2, tokens=3, nope_size=sizes[0], rope_size=sizes[1]))


def test_every_unaligned_start(device):
    for part in ("nope_options", "rope_options", "out_options"):
        for offset in range(1, 17):
            options = {part: {"offset": offset}}
            check(OP, concat_q_arguments(device, dtype=torch.uint8, heads=3, nope_size=64, rope_size=32, **options))


def test_nothing_to_write(device):
    check(OP, concat_q_arguments(device, nope_size=0, rope_size=0))


def test_rotary_part_of_queries(device):
    """q_pe as a slice of [tokens, heads, nope + rope]; ql_nope as what a product with heads outermost gives."""
    call = concat_q_arguments(device, heads=16)
    call["q_pe"] = embed((7, 16, 192), torch.bfloat16, device)[..., 128:]
    call["ql_nope"] = embed((16, 7, 512), torch.bfloat16, device).transpose(0, 1)
    check(OP, call)


def test_one_head_for_all(device):
    call = concat_q_arguments(device)
    call["ql_nope"] = call["ql_nope"][:, :1].expand(7, 16, 512)
    call["q_pe"] = call["q_pe"][:1].expand(7, 16, 64)
    check(OP, call)


@pytest.mark.parametrize(
    "sizes, heads, padding, offset", [((512, 64), 16, 0, 0), ((512, 64), 14, 3, 1), ((500, 63), 16, 0, 1)], ids=short
)
def test_more_than_the_cpu_cache_holds(device, sizes, heads, padding, offset):
    """The inputs of neighbouring heads overlap: each starts one element later."""
    tokens = last_level_cache_bytes() // (2 * heads * sum(sizes)) + 10
    call = {}
    for name, size in zip(("ql_nope", "q_pe"), sizes, strict=True):
        values = random_bytes(2 * (tokens * heads + size), device).view(torch.bfloat16)
        call[name] = values.as_strided((tokens, heads, size), (heads, 1, 1))
    options = {"padding": (0, 2 if padding else 0, padding), "offset": offset}
    check(OP, call | {"q_out": embed((tokens, heads, sum(sizes)), torch.bfloat16, device, **options)})


@st.composite
def calls(draw):
    def anywhere():
        return {
            "order": (*draw(st.permutations((0, 1))), 2),
            "padding": [draw(st.integers(0, 3)) for _ in range(3)],
            "offset": draw(st.integers(0, 8)),
        }

    return {
        "dtype": draw(st.sampled_from(DTYPES)),
        "tokens": draw(st.integers(0, 20)),
        "heads": draw(st.integers(0, 9)),
        "surplus_heads": draw(st.integers(0, 3)),
        "nope_size": draw(st.integers(0, 40) | st.sampled_from([64, 100, 512])),
        "rope_size": draw(st.integers(0, 40) | st.sampled_from([64, 128])),
        "nope_options": anywhere(),
        "rope_options": anywhere(),
        "out_options": anywhere(),
    }


@given(settings=calls())
def test_any_call(device, settings):
    check(OP, concat_q_arguments(device, **settings))
