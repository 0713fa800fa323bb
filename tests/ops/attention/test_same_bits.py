"""The bits of a row depend on its query, its visible keys and values, and the options alone."""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor

from multikv import platforms
from tests.support.arguments import Arguments, copy_of
from tests.support.attention import attend
from tests.support.calls.attention import (
    LAYOUTS,
    PACKED,
    attention_arguments,
    make_caches,
    query_bounds,
    slots_first,
)
from tests.support.parameters import FLOATS, FORMATS, short

LENGTHS = (700, 3, 257, 0, 1024, 90)
SHAPES = {"dtype": torch.bfloat16, "heads": (8, 2), "head_size": 32, "lengths": LENGTHS}
OPTIONS = {"alibi": True, "sinks": torch.float32, "softcap": 9.0, "window_left": 600}
THREADS = max(4, os.cpu_count() or 1)


def assert_same_rows(a: Arguments, b: Arguments, rows_a: list[int], rows_b: list[int]) -> None:
    assert torch.equal(a["out"][rows_a], b["out"][rows_b])
    if a["lse"] is not None and b["lse"] is not None:
        assert torch.equal(a["lse"][:, rows_a], b["lse"][:, rows_b])


def all_rows(call: Arguments) -> list[int]:
    return list(range(len(call["query"])))


def one_sequence(call: Arguments, s: int, rows: slice) -> Arguments:
    """The call of one sequence alone."""
    bounds = None if call["cu_query_lens"] is None else query_bounds([rows.stop - rows.start], torch.int32)
    return call | {
        "query": call["query"][rows],
        "out": call["out"][rows].clone(),
        "lse": call["lse"][:, rows].clone(),
        "block_table": call["block_table"][s : s + 1],
        "seq_lens": call["seq_lens"][s : s + 1],
        "cu_query_lens": None if bounds is None else bounds.to(call["query"].device),
        "max_query_len": rows.stop - rows.start,
    }


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("dtype", FLOATS, ids=short)
def test_alone_or_in_a_batch(device, dtype, format):
    call = attention_arguments(device, **SHAPES | {"dtype": dtype}, format=format, **OPTIONS)
    together = attend(call)
    for s in range(len(LENGTHS)):
        alone = attend(one_sequence(call, s, slice(s, s + 1)))
        assert_same_rows(alone, together, [0], [s])


@pytest.mark.parametrize("copies", [1, 40])
@pytest.mark.parametrize("query_len", [1, 5])
@pytest.mark.parametrize("format", ["auto", "fp8_e4m3"])
def test_small_and_large_bounds(gpu, format, query_len, copies):
    """A Hopper GPU serves calls of few granules by clusters of thread blocks, and others by equal shares."""
    lengths = LENGTHS * copies
    sizes = SHAPES | {"lengths": lengths, "head_size": 128}
    query_lens = [query_len] * len(lengths)
    call = attention_arguments(gpu, **sizes, query_lens=query_lens, format=format, workspace_bytes=1 << 20, **OPTIONS)
    small = attend(call)
    wide_table = torch.nn.functional.pad(call["block_table"], (0, 1024), value=-1)
    large = attend(call | {"block_table": wide_table})
    assert_same_rows(small, large, all_rows(call), all_rows(call))


def test_permuted_batch(device):
    query_lens = (5, 1, 64, 0, 17, 2)
    call = attention_arguments(device, **SHAPES, query_lens=query_lens)
    together, order = attend(call), torch.randperm(len(LENGTHS)).tolist()
    bounds = query_bounds(query_lens, torch.int64).tolist()
    rows = [row for s in order for row in range(bounds[s], bounds[s + 1])]
    permuted = attend(
        call
        | {
            "query": call["query"][rows],
            "block_table": call["block_table"][order],
            "seq_lens": call["seq_lens"][order],
            "cu_query_lens": query_bounds([query_lens[s] for s in order], torch.int32).to(device),
        }
    )
    assert_same_rows(permuted, together, all_rows(call), rows)


def values_by_position(call: Arguments, name: str) -> list[Tensor]:
    """The entries [n, heads, size] of each sequence, in the cache's dtype, as integers of one byte or more."""
    is_packed = call["key_cache"].dim() == 5
    by_slot = slots_first(call[name], name == "key_cache", is_packed)
    if is_packed:
        by_slot = by_slot.flatten(3) if name == "key_cache" else by_slot
        by_slot = by_slot.flatten(1, 2) if name == "value_cache" and call[name].dim() == 5 else by_slot
    block_size = by_slot.shape[1]
    table, entries = call["block_table"].cpu(), []
    for s, n in enumerate(call["seq_lens"].tolist()):
        blocks = table[s, : -(-n // block_size)].long()
        entries.append(by_slot[blocks.to(by_slot.device)].flatten(0, 1)[:n])
    return entries


def moved(call: Arguments, layout: str, block_size: int, device: torch.device) -> Arguments:
    """The same keys and values in other blocks of another size and layout."""
    keys, values = values_by_position(call, "key_cache"), values_by_position(call, "value_cache")
    lengths = call["seq_lens"].tolist()
    counts = [-(-n // block_size) for n in lengths]
    blocks = torch.randperm(sum(counts) + 3)
    heads, sizes = keys[0].shape[1], (keys[0].shape[2], values[0].shape[2])
    key_cache, value_cache = make_caches(layout, len(blocks), block_size, heads, sizes, call["key_cache"].dtype, device)
    table = torch.full((len(lengths), max(counts) + 1), -3, dtype=torch.int64)
    for s, count in enumerate(counts):
        table[s, :count], blocks = blocks[:count], blocks[count:]
        for position in range(lengths[s]):
            column, offset = divmod(position, block_size)
            block = int(table[s, column])
            _store(key_cache, True, layout in PACKED, block, offset, keys[s][position])
            _store(value_cache, False, layout in PACKED, block, offset, values[s][position])
    return call | {"key_cache": key_cache, "value_cache": value_cache, "block_table": table.to(device)}


def _store(cache: Tensor, is_key: bool, is_packed: bool, block: int, offset: int, entry: Tensor) -> None:
    if not is_packed:
        cache[block, offset] = entry
    elif is_key:
        cache[block, :, :, offset] = entry.unflatten(1, (-1, cache.shape[4]))
    elif cache.dim() == 4:
        cache[block, :, :, offset] = entry
    else:
        x = cache.shape[4]
        cache[block, :, offset // x, :, offset % x] = entry


@pytest.mark.parametrize("query_lens", [None, (3, 6)], ids=["decode", "prefill"])
@pytest.mark.parametrize("format", ["auto", "fp8_e5m2"])
def test_other_blocks_and_layouts(device, format, query_lens):
    shapes = {"heads": (4, 2), "head_size": 32, "lengths": (300, 7)}
    call = attention_arguments(device, format=format, query_lens=query_lens, **shapes)
    expected = attend(call)
    for layout in LAYOUTS:
        for block_size in (16, 5) if layout in ("NHD", "packed") else (8,):
            other = attend(moved(call, layout, block_size, device))
            assert_same_rows(other, expected, all_rows(call), all_rows(call))


@pytest.mark.parametrize("options", [{}, {"window_left": 40}, OPTIONS], ids=["plain", "window", "all"])
@pytest.mark.parametrize("heads", [(8, 2), (3, 3), (10, 1)], ids=short)
def test_chunks_of_a_prefill(device, options, heads):
    """At once, in chunks, and token by token: the same keys are visible, so the bits are the same."""
    n, first = 330, 200  # the last 130 tokens are new
    whole = attention_arguments(
        device, **SHAPES | {"lengths": (n,), "heads": heads}, query_lens=(n - first,), **options
    )
    expected = attend(whole)
    for chunks in ([100, 30], [1] * 3 + [64, 50, 13]):
        row = 0
        for chunk in chunks:
            part = attend(
                whole
                | {
                    "query": whole["query"][row : row + chunk],
                    "out": whole["out"][row : row + chunk].clone(),
                    "lse": whole["lse"][:, row : row + chunk].clone(),
                    "seq_lens": torch.tensor([first + row + chunk], dtype=torch.int32, device=device),
                    "cu_query_lens": torch.tensor([0, chunk], dtype=torch.int32, device=device),
                }
            )
            assert_same_rows(part, expected, list(range(chunk)), list(range(row, row + chunk)))
            row += chunk


def test_padding(device):
    """A batch with absent sequences, surplus rows and generous bounds, as a captured graph has."""
    call = attention_arguments(device, **SHAPES)
    expected, count = attend(call), len(LENGTHS)
    rows = torch.cat([call["query"], torch.full_like(call["query"], float("nan"))])
    padded = attend(
        call
        | {
            "query": rows,
            "out": torch.full_like(rows, 3.0),
            "lse": torch.zeros(8, len(rows), device=device),
            "block_table": torch.cat([call["block_table"], torch.full_like(call["block_table"], -1)]),
            "seq_lens": torch.cat([call["seq_lens"], torch.zeros_like(call["seq_lens"])]),
            "max_query_len": 100,
        }
    )
    assert_same_rows(padded, expected, list(range(count)), list(range(count)))


@pytest.mark.parametrize("query_lens", [None, (3, 1, 0, 0, 9, 2)], ids=["decode", "prefill"])
def test_workspaces(device, query_lens):
    call = attention_arguments(device, **SHAPES, query_lens=query_lens)
    expected = attend(call)
    for size in (1, 16, 4099, 1 << 16, 1 << 20):
        for fill in (0, 255):
            workspace = torch.full((size,), fill, dtype=torch.uint8, device=device)
            assert_same_rows(attend(call | {"workspace": workspace}), expected, all_rows(call), all_rows(call))


@pytest.mark.parametrize("format", ["auto", "fp8"])
@pytest.mark.parametrize("lengths", [(9_000,), (20_000, 5, 13_000), (150_000,)], ids=["few", "many", "most"])
def test_partial_results(gpu, lengths, format):
    """Thread blocks share a sequence. The results of few granules are joined by other code than those of many."""
    shapes = {"dtype": torch.bfloat16, "heads": (4, 2), "head_size": 16, "block_size": 64, "lse": True}
    call = attention_arguments(gpu, lengths=lengths, format=format, **shapes, sinks=torch.float32)
    expected = attend(call)
    call["workspace"] = torch.full((4 << 20,), 255, dtype=torch.uint8, device=gpu)  # NaN where nothing is written
    assert_same_rows(attend(call), expected, all_rows(call), all_rows(call))


def test_bounds(device):
    """A tight bound and a generous one give the same bits."""
    call = attention_arguments(device, **SHAPES, query_lens=(3, 1, 0, 0, 9, 2))
    expected = attend(call)
    for rows, keys in ((9, 1024), (15, 1030), (-1, -1)):
        other = attend(call | {"max_query_len": rows, "max_seq_len": keys})
        assert_same_rows(other, expected, all_rows(call), all_rows(call))


def with_threads(call: Arguments, threads: int) -> Arguments:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return attend(call)
    finally:
        torch.set_num_threads(before)


# Each of these has enough work for several threads; the first is cut along its keys, the last between its rows.
THREADED = {
    "one_sequence": {"lengths": (20_000,), "heads": (4, 1)},
    "many": {"lengths": (5000, 300, 0, 7000, 1), "heads": (8, 2)},
    "prefill": {"lengths": (700, 900), "query_lens": (300, 250), "heads": (8, 2)},
}


@pytest.mark.parametrize("isa", platforms.cpu_isas())
@pytest.mark.parametrize("name", THREADED)
def test_threads(name, isa):
    before = platforms.cpu_isa()
    platforms.set_cpu_isa(isa)
    try:
        call = attention_arguments(head_size=64, sinks=torch.float32, block_size=64, **THREADED[name])
        expected = with_threads(call, 1)
        for threads in (2, 3, THREADS, 13):
            assert_same_rows(with_threads(call, threads), expected, all_rows(call), all_rows(call))
    finally:
        platforms.set_cpu_isa(before)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("dtype", FLOATS, ids=short)
def test_instruction_sets(dtype, format):
    before = platforms.cpu_isa()
    try:
        for options in ({}, OPTIONS | {"query_lens": (9, 0, 70, 0, 2, 1)}, {"heads": (5, 5), "head_size": 37}):
            call = attention_arguments(**SHAPES | {"dtype": dtype} | options, format=format)
            results = []
            for isa in platforms.cpu_isas():
                platforms.set_cpu_isa(isa)
                results.append(attend(call))
            for other in results[1:]:
                assert_same_rows(other, results[0], all_rows(call), all_rows(call))
    finally:
        platforms.set_cpu_isa(before)


def test_replay_after_lengths_changed(gpu):
    """One captured graph serves every step."""
    call = attention_arguments(gpu, **SHAPES, workspace_bytes=1 << 20)
    call["workspace"] = torch.zeros(1 << 20, dtype=torch.uint8, device=gpu)
    from multikv import paged_attention  # noqa: PLC0415

    paged_attention(**call)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        paged_attention(**call)
    for lengths in ((1, 2, 3, 0, 1000, 5), (700, 3, 256, 0, 1, 90)):
        call["seq_lens"].copy_(torch.tensor(lengths))
        graph.replay()
        expected = attend(call)
        assert_same_rows(copy_of(call, None), expected, all_rows(call), all_rows(call))
