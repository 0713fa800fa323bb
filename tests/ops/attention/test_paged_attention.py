"""paged_attention against float64 arithmetic, within the error bound of tests/support/attention.py."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import multikv
from tests.support.attention import assert_close, attend, check_attention, exact_rows
from tests.support.calls.attention import LAYOUTS, attention_arguments
from tests.support.parameters import FLOATS, FORMATS, FP8_NAMES, INDEX_DTYPES, short

RAGGED = {"query_lens": (5, 0, 1, 70, 2), "lengths": (300, 9, 513, 71, 0)}


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("dtype", FLOATS, ids=short)
def test_formats(device, dtype, format):
    for head_size, heads in ((64, (4, 2)), (40, (10, 2))):
        for query_lens in (None, (3, 1, 0)):
            check_attention(
                attention_arguments(
                    device,
                    dtype=dtype,
                    format=format,
                    head_size=head_size,
                    heads=heads,
                    query_lens=query_lens,
                    lengths=(300, 40, 9),
                    per_head=head_size == 64,
                )
            )


@pytest.mark.parametrize("name, cache_dtype", FP8_NAMES, ids=str)
def test_names_of_fp8(device, name, cache_dtype):
    check_attention(attention_arguments(device, format=name, float8=False))
    call = attention_arguments(device, format=name, float8=True)
    if call["key_cache"].dtype == cache_dtype:
        check_attention(call)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("format", ["auto", "fp8"])
def test_layouts(device, layout, format):
    for query_lens in (None, (17, 1, 2)):
        check_attention(
            attention_arguments(
                device, layout=layout, format=format, query_lens=query_lens, lengths=(270, 33, 2), head_size=24
            )
        )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("format", ["auto", "fp8"])
def test_many_rows(gpu, layout, format):
    """A GPU has kernels of their own for many rows, and for caches without vectors of 16 bytes."""
    shapes = {"query_lens": (70, 1, 90), "lengths": (270, 33, 90), "heads": (8, 2)}
    check_attention(attention_arguments(gpu, layout=layout, format=format, **shapes))


@pytest.mark.parametrize("window_left", [-1, 70])
def test_first_and_last_visible_key_anywhere(device, window_left):
    """Rows that see different keys are processed together. Their first and last keys lie anywhere in blocks of 64."""
    lengths = range(60, 140)
    shapes = {"lengths": lengths, "query_lens": [3] * len(lengths), "heads": (2, 1), "head_size": 16}
    check_attention(attention_arguments(device, window_left=window_left, **shapes))


@pytest.mark.parametrize("window_left", [-1, 90])
@pytest.mark.parametrize("layout", ["NHD", "packed_unaligned"])
def test_first_and_last_visible_key_of_many_rows_anywhere(gpu, layout, window_left):
    lengths = range(60, 140)
    shapes = {"lengths": lengths, "query_lens": [17] * len(lengths), "heads": (4, 1), "head_size": 16}
    check_attention(attention_arguments(gpu, layout=layout, window_left=window_left, **shapes))


@pytest.mark.parametrize(
    "head_size, value_size", [(1, 1), (7, 130), (64, 64), (80, 80), (96, 32), (256, 256), (576, 512)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=short)
def test_head_sizes(device, dtype, head_size, value_size):
    check_attention(attention_arguments(device, dtype=dtype, head_size=head_size, value_size=value_size))


@pytest.mark.parametrize("group", [1, 2, 3, 4, 5, 8, 20])
@pytest.mark.parametrize("query_lens", [None, (3, 0, 9)], ids=["decode", "prefill"])
def test_groups_of_query_heads(device, group, query_lens):
    check_attention(
        attention_arguments(device, heads=(3 * group, 3), query_lens=query_lens, lengths=(260, 1, 9), head_size=16)
    )


@pytest.mark.parametrize("block_size", [1, 5, 16, 300])
@pytest.mark.parametrize("layout", ["NHD", "packed"])
def test_block_sizes(device, block_size, layout):
    check_attention(attention_arguments(device, block_size=block_size, layout=layout, lengths=(517, 256, 257)))


OPTIONS = {
    "plain": {},
    "not_causal": {"causal": False},
    "window": {"window_left": 17},
    "window_of_one": {"window_left": 0},
    "window_not_causal": {"window_left": 4, "causal": False},
    "wide_window": {"window_left": 2**62},
    "softcap": {"softcap": 2.0},
    "alibi": {"alibi": True},
    "sinks": {"sinks": torch.float32},
    "sinks_16_bit": {"sinks": torch.bfloat16},
    "everything": {"window_left": 300, "softcap": 3.0, "alibi": True, "sinks": torch.float32},
}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("heads", [(4, 4), (6, 2)], ids=short)
def test_options(device, name, heads):
    check_attention(attention_arguments(device, heads=heads, head_size=16, **RAGGED, **OPTIONS[name]))


@pytest.mark.parametrize("heads", [(4, 4), (6, 2)], ids=short)
@pytest.mark.parametrize("options", [{}, {"window_left": 7}, {"sinks": torch.float32}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=short)
def test_query_mask(device, dtype, heads, options):
    call = attention_arguments(
        device,
        dtype=dtype,
        heads=heads,
        head_size=16,
        query_lens=(9, 64, 3, 1, 5),
        lengths=(300, 280, 2, 60, 0),
        mask=True,
        **options,
    )
    call["query_mask"][:3] = torch.tensor([0, 0b101, -1], device=device)
    check_attention(call)


def test_rows_and_lengths_of_32_and_64_bits(device):
    for dtype in INDEX_DTYPES:
        check_attention(attention_arguments(device, index_dtype=dtype, query_lens=(2, 1, 0), surplus=3))


def test_without_lse(device):
    check_attention(attention_arguments(device, lse=False))


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "not_causal"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=short)
def test_more_tokens_than_keys(device, dtype, causal):
    """Rows before the first key see nothing: their output is 0, and their lse -infinity, or the sink."""
    for sinks in (None, torch.float32):
        shapes = {"query_lens": (7, 2), "lengths": (3, 0), "dtype": dtype, "causal": causal}
        call = attend(attention_arguments(device, sinks=sinks, **shapes))
        assert_close(call, list(exact_rows(call)))
        blind = [0, 1, 2, 3, 7, 8]
        assert not call["out"][blind].any()
        expected = torch.full((4,), -float("inf"), device=device) if sinks is None else call["sinks"]
        assert torch.equal(call["lse"][:, blind], expected[:, None].expand(-1, len(blind)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=short)
def test_long_sequences(device, dtype):
    check_attention(
        attention_arguments(device, dtype=dtype, heads=(2, 1), head_size=16, lengths=(131_072, 5000, 1), block_size=64)
    )


def test_large_scores(device):
    """Weights range over all magnitudes, and most are 0."""
    call = attention_arguments(device, dtype=torch.float32, lengths=(600, 40, 9))
    check_attention(call | {"scale": 30.0})
    call["alibi_slopes"] = torch.full((4,), 50.0, device=device)
    check_attention(call)


def test_infinite_scores(device):
    """Scores of -infinity have no weight. If all are -infinity, the output is 0."""
    call = attention_arguments(device, dtype=torch.float32, head_size=16, lengths=(300, 2), block_size=1)
    table = call["block_table"].cpu()
    call["query"].fill_(1.0)
    hidden = table[0, :290].tolist() + table[1, :2].tolist()
    call["key_cache"][hidden, ..., 0] = -float("inf")
    ours = check_attention(call)
    assert not ours["out"][1].any() and torch.equal(ours["lse"][:, 1].cpu(), torch.full((4,), -float("inf")))


def test_empty_calls(device):
    for options in ({"lengths": (), "query_lens": ()}, {"heads": (0, 0)}, {"query_lens": (0, 0), "lengths": (5, 0)}):
        check_attention(attention_arguments(device, **options))


def test_workspace_bytes():
    size = multikv.paged_attention_workspace_bytes
    assert size(64, 32, 128, 1) == 0
    assert 0 < size(1, 8, 128, 8192) <= size(2, 8, 128, 8192) <= 128 << 20
    assert size(10**4, 128, 512, 10**6) == 128 << 20


@st.composite
def calls(draw):
    group, kv_heads = draw(st.sampled_from([1, 2, 4, 7])), draw(st.integers(1, 3))
    lengths = draw(st.lists(st.sampled_from([0, 1, 15, 16, 17, 255, 256, 257, 520]), min_size=1, max_size=4))
    decode = draw(st.booleans())
    query_lens = None if decode else [draw(st.sampled_from([0, 1, 2, 5, 33])) for _ in lengths]
    layout = draw(st.sampled_from(LAYOUTS))
    head_size = draw(st.sampled_from([8, 16, 24, 64]))
    return {
        "dtype": draw(st.sampled_from(FLOATS)),
        "format": draw(st.sampled_from(FORMATS)),
        "heads": (group * kv_heads, kv_heads),
        "lengths": lengths,
        "query_lens": query_lens,
        "layout": layout,
        "head_size": head_size,
        "value_size": None if layout.startswith("packed") else draw(st.sampled_from([None, 40])),
        "block_size": draw(st.sampled_from([1, 3, 16, 64])),
        "per_head": draw(st.booleans()),
        "causal": draw(st.booleans()),
        "window_left": draw(st.sampled_from([-1, -1, 0, 5, 100])),
        "softcap": draw(st.sampled_from([0.0, 0.0, 4.0])),
        "alibi": draw(st.booleans()),
        "sinks": draw(st.sampled_from([None, torch.float32])),
        "lse": draw(st.booleans()),
        "surplus": draw(st.integers(0, 2)),
    }


@given(calls(), st.integers(0, 2**32))
def test_random_calls(device, options, seed):
    torch.manual_seed(seed)
    check_attention(attention_arguments(device, **options))
