"""What several differential tests draw."""

from __future__ import annotations

from hypothesis import strategies as st

from tests.support.parameters import INDEX_DTYPES


@st.composite
def sequences(draw) -> dict[str, object]:
    """Options of calls.gather.make_sequences."""
    lengths = draw(st.lists(st.integers(0, 60), max_size=8))
    starts = draw(st.none() | st.lists(st.integers(0, 60), min_size=len(lengths), max_size=len(lengths)))
    return {
        "lengths": lengths,
        "starts": starts,
        "blocks": draw(st.integers(1, 9)),
        "block_size": draw(st.integers(1, 20)),
        "spare_columns": draw(st.integers(-2, 2)),
        "first_row": draw(st.sampled_from([0, 0, 4])),
        "index_dtype": draw(st.sampled_from(INDEX_DTYPES)),
    }


@st.composite
def rows(draw) -> dict[str, object]:
    """Options of tensors.embed for [rows, columns]."""
    return {"padding": (0, draw(st.integers(0, 3))), "offset": draw(st.integers(0, 8))}


@st.composite
def blocks(draw) -> dict[str, object]:
    """Options of tensors.embed for [blocks, block_size, entry]."""
    return {
        "order": (*draw(st.permutations((0, 1))), 2),
        "padding": (0, draw(st.integers(0, 2)), draw(st.integers(0, 3))),
        "offset": draw(st.integers(0, 8)),
    }
