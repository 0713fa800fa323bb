"""multikv.transfer between processes: `tests/support/ranks.py` has what the four ranks do."""

from __future__ import annotations

import functools
import json
import re

import pytest
import torch

import multikv
from multikv.transfer import TransferError, receive, send
from multikv.transfer.plan import Chunk, Chunks, Geometry, assign_heads, early_chunks
from tests.support.pool import check_blocks
from tests.support.processes import run_program

GOOD = ("one_to_one", "no_sequences", "fewer_ranks", "more_ranks", "head_of_two_sources", "mla")
FULL = "receive: 27 blocks wanted, 20 of 20 device blocks are free; free, truncate or offload sequences"
MISFIT = "receive: the cache of rank 0 does not fit: "
REFUSALS = {
    "other_dtype": MISFIT + "element_bytes: expected 4, got 2",
    "other_scale": MISFIT + "scale of head 0: expected 1.5, got 0.5",
    "missing_heads": "receive: no source holds the heads [0]",
}


@functools.cache
def results(device: str, backend: str, *names: str) -> list[dict[str, object]]:
    """What each of the ranks says about each scenario, or about all."""
    run = run_program("-m", "tests.support.ranks", device, backend, *names, OMP_NUM_THREADS="1")
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.fixture
def outcome(device_type):
    """Returns what the ranks say about a scenario, with the blocks of a GPU going through pinned memory."""
    return lambda name: [rank.get(name, "ended") for rank in results(device_type, "gloo")]


@pytest.mark.parametrize("name", GOOD)
def test_sequences_arrive(outcome, name):
    assert outcome(name) == [None] * 4


def test_a_known_prefix_is_not_sent(outcome):
    """Of 57 tokens the receiver has 54, and blocks of 4 and of 6 tokens end together after 48."""
    assert outcome("known_prefix") == [9, None, None, None]


def test_prefill_in_one_process_and_decode_in_another(outcome):
    one_process, two_processes, *_ = outcome("prefill_and_decode")
    assert one_process == two_processes and [len(tokens) for tokens in one_process] == [20, 63, 14]


@pytest.mark.parametrize("name", REFUSALS)
def test_caches_that_do_not_fit(outcome, name):
    sent, received, *_ = outcome(name)
    assert received == f"TransferError: {REFUSALS[name]}"
    assert sent == f"TransferError: send: rank 1 refused: {REFUSALS[name]}"


def test_a_receiver_without_room(outcome):
    sent, full, other, _ = outcome("too_few_blocks")
    assert full == f"OutOfBlocks: {FULL}"
    assert sent == f"TransferError: send: rank 1 refused: {FULL}"
    assert other == f"TransferError: receive: rank 0 refused: send: rank 1 refused: {FULL}"


def test_senders_that_disagree(outcome):
    first, second, received, _ = outcome("different_sequences")
    reason = "receive: ranks 0 and 1 send different sequences"
    assert received == f"TransferError: {reason}"
    assert first == second == f"TransferError: send: rank 2 refused: {reason}"


def test_a_damaged_chunk(outcome):
    sent, received, *_ = outcome("damaged")
    reason = "the checksums of 1 of 100 tokens differ"
    assert received == f"TransferError: receive: rank 0: {reason}"
    assert sent == f"TransferError: send: rank 1 refused: {reason}"


@pytest.mark.parametrize(
    ("name", "packed"),
    [
        ("taken", [4, 16, 13, 9, 30, 4, 44]),
        ("same_blocks", [4, 16, 13, 9, 16, 14, 4, 16, 4, 4]),
        ("not_taken", [4, 16, 13, 9, 20, 10, 4, 20, 20, 17]),
        ("known", [4, 12, 9, 1]),
        ("partly_known", [4, 12, 9, 8]),
    ],
)
def test_chunks_before_the_answer(outcome, name, packed):
    """The first three are early."""
    assert outcome(f"early_{name}") == [packed, [], [], []]


def test_a_refusal_after_early_chunks(outcome):
    sent, full, *_ = outcome("early_full")
    assert full == f"OutOfBlocks: {FULL}"
    assert sent == f"TransferError: send: rank 1 refused: {FULL}"


def test_a_damaged_chunk_after_early_ones(outcome):
    sent, received, *_ = outcome("early_damaged")
    assert received == "TransferError: receive: rank 0: the checksums of 1 of 100 tokens differ"
    assert sent == "TransferError: send: rank 1 refused: the checksums of 1 of 100 tokens differ"


@pytest.mark.parametrize("name", ["one_to_one", "other_heads", "fewer_ranks", "mla", "long_messages"])
def test_sequences_arrive_after_early_chunks(outcome, name):
    assert all(isinstance(packed, list) for packed in outcome(f"early_{name}"))


def test_a_peer_that_does_not_answer(outcome):
    sent, *_ = outcome("nobody_answers")
    assert sent.startswith("TransferError: send: rank 1 died or did not answer in time: ")


def test_a_peer_that_dies(outcome):
    _, _, received, died = outcome("sender_dies")
    assert died == "ended" and received.startswith("TransferError: receive: rank 3 died or did not answer in time: ")


def test_nccl(gpu):
    """With two GPUs, those scenarios that need ranks 0 and 1 only: nccl connects ranks when they first send."""
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    names = GOOD if torch.cuda.device_count() >= 4 else ("one_to_one", "no_sequences", "mla")
    ranks = results("cuda", "nccl", *names)
    assert {name: [rank.get(name, "ended") for rank in ranks] for name in names} == dict.fromkeys(names, [None] * 4)


def test_arguments_of_wrong_types():
    cache = multikv.PagedKVCache(1, 1, 8, 4, dtype=torch.float32, device="cpu")
    sequence, unused = cache.new([1]), object()
    bad_calls = {
        "send: cache: expected a PagedCache, got 'cache'": lambda: send("cache", [sequence], 1),
        "send: sequences[0]: expected a Sequence, got 3": lambda: send(cache, [3], 1),
        "send: sequences: expected an iterable of Sequence, got <Sequence": lambda: send(cache, sequence, 1),
        "send: dst: expected an integer, got 'x'": lambda: send(cache, [sequence], "x"),
        "send: dst: expected an integer, got 1.5": lambda: send(cache, [sequence], 1.5),
        "receive: cache: expected a PagedCache, got <object": lambda: receive(unused, 0),
        "receive: src: expected an integer, got None": lambda: receive(cache, None),
        "receive: first_head: expected an integer, got 'x'": lambda: receive(cache, 0, first_head="x"),
    }
    for message, call in bad_calls.items():
        with pytest.raises(TypeError, match="^" + re.escape(message)):
            call()
    with pytest.raises(ValueError, match="^receive: src: expected at least one rank$"):
        receive(cache, [])
    check_blocks(cache, [sequence])


def geometry(first_head, num_heads, **options):
    return Geometry(
        **{"num_planes": 2, "head_size": 8, "element_bytes": 2, "format": "bfloat16"} | options,
        **{"block_size": 4, "first_head": first_head, "num_heads": num_heads, "scales": []},
    )


def test_heads():
    mine = geometry(2, 4)
    assert assign_heads(mine, {0: geometry(0, 4), 1: geometry(4, 4)}) == {0: range(2, 4), 1: range(4, 6)}
    assert assign_heads(mine, {5: geometry(0, 8), 7: geometry(0, 8)}) == {5: range(2, 6), 7: range(0)}
    with pytest.raises(TransferError, match=r"^no source holds the heads \[2, 5\]$"):
        assign_heads(mine, {0: geometry(3, 2)})
    with pytest.raises(TransferError, match=r"^rank 1: expected neighbouring heads, got \[2, 5\]$"):
        assign_heads(mine, {0: geometry(3, 2), 1: geometry(0, 8)})


def test_chunks():
    chunks = Chunks.of([0, 8, 4], [20, 8, 9], unit=4, token_bytes=100, chunk_bytes=900)
    assert [tuple(chunk) for chunk in chunks] == [(0, 0, 8), (0, 8, 16), (0, 16, 20), (2, 4, 9)]
    assert chunks.num_tokens == 25
    assert Chunks.of([0], [3], 4, 100, 1).size == 4 and Chunks.of([], [], 4, 100, 1).num_tokens == 0


def test_the_end_of_many_chunks_is_a_short_one():
    chunks = Chunks.of([0], [40], unit=2, token_bytes=100, chunk_bytes=800)
    assert [tuple(chunk)[1:] for chunk in chunks] == [(0, 8), (8, 16), (16, 24), (24, 32), (32, 38), (38, 40)]


def test_early_chunks():
    """A short chunk and two whole ones, but at most three quarters of all tokens, and the end of the longest."""
    assert early_chunks([160], 8, token_bytes=10, chunk_bytes=480) == [(0, 56, 64), (0, 64, 112), (0, 112, 160)]
    assert early_chunks([160], 8, token_bytes=10, chunk_bytes=960) == [(0, 40, 64), (0, 64, 160)]
    assert early_chunks([20, 160, 140], 8, token_bytes=10, chunk_bytes=250) == [
        (1, 104, 112),
        (1, 112, 136),
        (1, 136, 160),
    ]
    assert early_chunks([15], 8, token_bytes=10, chunk_bytes=10) == [(0, 8, 15)]
    assert early_chunks([8], 8, token_bytes=10, chunk_bytes=1000) == []
    assert early_chunks([], 8, token_bytes=10, chunk_bytes=1000) == []


def test_chunks_after_early_ones():
    early = [Chunk(1, 8, 12), Chunk(1, 12, 13)]
    chunks = Chunks.of([0, 4], [4, 13], 4, 100, 900, early)
    assert [tuple(chunk) for chunk in chunks] == [*early, (0, 0, 4), (1, 4, 8)] and chunks.num_tokens == 13
