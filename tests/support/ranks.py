"""`python -m tests.support.ranks cpu gloo NAME...`: hand-overs between four processes, as JSON for the tests.

Each scenario is a function that all ranks call at the same time, with a process group of its own. What a rank returns,
or the exception that it raises, is printed by the parent.
"""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import os
import pathlib
import sys
import tempfile
import time

import torch
import torch.distributed as dist

import multikv
from multikv import transfer
from multikv.transfer import channel, staging
from tests.support import early_chunks
from tests.support.early_chunks import early
from tests.support.pool import check_blocks
from tests.support.rank import Rank, check, make_sequences, step

WORLD = 4


def one_to_one(r):
    """Rank 0 to rank 1, in many chunks; block size and layout differ."""
    if r.rank == 0:
        cache = r.cache()
        sequences = make_sequences(cache)
        r.send(cache, sequences, 1, chunk_bytes=1024)
        check(cache, sequences)
    elif r.rank == 1:
        cache = r.cache(block_size=6, layout="HND")
        sequences = r.receive(cache, 0)
        assert [len(s) for s in sequences] == [9, 32, 4, 57] and sequences[1].num_pending == 2
        check(cache, sequences)
        step(cache, sequences[1:2])
        check(cache, sequences)
        assert cache.new(range(5700, 5757)).num_cached_tokens == 54


def no_sequences(r):
    if r.rank == 0:
        cache = r.cache()
        r.send(cache, [], 1)
        r.send(cache, [cache.new([1, 2])], 1)
    elif r.rank == 1:
        cache = r.cache()
        assert r.receive(cache, 0) == []
        (sequence,) = r.receive(cache, 0)
        assert sequence.num_pending == 2
        check_blocks(cache, [sequence])


def known_prefix(r):
    """A prefix that the receiver has is not sent. Its blocks end where blocks of both sides end."""
    sent = []
    if r.rank == 0:
        cache = r.cache()
        sequences = make_sequences(cache, (57,))
        inner = staging.pack_layers
        staging.pack_layers = lambda *a: (sent.append(a[3]), inner(*a))
        r.send(cache, sequences, 1)
        staging.pack_layers = inner
        return sum(sent)
    if r.rank == 1:
        cache = r.cache(block_size=6)
        mine = make_sequences(cache, (57,))
        sequences = r.receive(cache, 0)
        cache.free(mine[0])
        check(cache, sequences)
    return None


def fewer_ranks(r):
    """Two ranks of two heads each, to one rank of four heads."""
    if r.rank < 2:
        cache = r.cache(first_head=2 * r.rank)
        sequences = make_sequences(cache)
        r.send(cache, sequences, [2])
    elif r.rank == 2:
        cache = r.cache(num_heads=4, block_size=16)
        check(cache, r.receive(cache, [1, 0]))


def more_ranks(r):
    """One rank of four heads, to three ranks, of which two hold the same heads."""
    if r.rank == 0:
        cache = r.cache(num_heads=4)
        r.send(cache, make_sequences(cache), [1, 2, 3])
    else:
        cache = r.cache(first_head=(0, 2, 2)[r.rank - 1])
        check(cache, r.receive(cache, 0))


def head_of_two_sources(r):
    """A head that two ranks hold comes from the first of them."""
    if r.rank < 2:
        cache = r.cache(num_heads=1)
        r.send(cache, make_sequences(cache), 3)
    elif r.rank == 3:
        cache = r.cache(num_heads=1)
        check(cache, r.receive(cache, [0, 1]))


def mla(r):
    if r.rank > 1:
        return
    sizes = {"latent_size": 32, "rope_size": 8, "dtype": torch.bfloat16, "device": r.device, "kv_cache_dtype": "fp8"}
    cache = multikv.PagedMLACache(2, 16, block_size=4 + 4 * r.rank, **sizes)
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(21, 40, generator=generator).to(r.device, torch.bfloat16)
    if r.rank == 0:
        sequence = cache.new(range(21))
        batch = cache.extend([sequence])
        for layer in range(2):
            cache.write(layer, rows[:, :32], rows[:, 32:], batch)
        transfer.send(cache, [sequence], 1, r.group)
    else:
        (sequence,) = transfer.receive(cache, 0, r.group)
        sequence.append(1)
        batch = cache.extend([sequence])
        for layer in range(2):
            assert torch.allclose(cache.read(layer, batch)[:21], rows, rtol=0.1, atol=0.02)


def prefill_and_decode(r):
    """Rank 0 computes prompts, and rank 1 goes on: the tokens are those of one process."""
    if r.rank > 1:
        return None
    path = pathlib.Path(__file__).parents[2] / "examples" / "serve.py"
    spec = importlib.util.spec_from_file_location("serve", path)
    serve = sys.modules["serve"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(serve)
    model, cache = serve.TinyLlama(r.device), serve.make_cache(64, 0, r.device)

    def run(sequences, count):
        for _ in range(count):
            tokens = model.next_tokens(cache, cache.extend(sequences))
            for sequence, token in zip(sequences, tokens, strict=True):
                sequence.append(token)
        return [sequence.tokens.tolist() for sequence in sequences]

    prompts = [range(7), range(40, 90), [3]]
    if r.rank == 0:
        sequences = [cache.new(prompt) for prompt in prompts]
        run(sequences, 1)
        r.send(cache, sequences, 1)
        return run(sequences, 12)
    return run(r.receive(cache, 0), 12)


def refused(r, **options):
    """Both sides get an error, and nothing is left behind."""
    if r.rank == 0:
        cache = r.cache(**options)
        sequences = make_sequences(cache)
        try:
            r.send(cache, sequences, 1)
        finally:
            check(cache, sequences)
    elif r.rank == 1:
        cache = r.cache(block_size=8)
        try:
            r.receive(cache, 0)
        finally:
            check_blocks(cache, [])


def other_dtype(r):
    if r.rank == 0:
        cache = r.cache(dtype=torch.bfloat16)
        r.send(cache, [], 1)
    else:
        refused(r)


def other_scale(r):
    if r.rank < 2:
        cache = r.cache(kv_cache_dtype="fp8_e4m3", k_scale=0.5 + r.rank)
        r.send(cache, [], 1) if r.rank == 0 else r.receive(cache, 0)


def missing_heads(r):
    refused(r, first_head=1)


def too_few_blocks(r):
    """Of two receivers one is full: the other is told."""
    if r.rank == 0:
        cache = r.cache()
        sequences = make_sequences(cache)
        try:
            r.send(cache, sequences, [1, 2])
        finally:
            check(cache, sequences)
    elif r.rank < 3:
        cache = r.cache(num_blocks=20 if r.rank == 1 else 64)
        try:
            r.receive(cache, 0)
        finally:
            check_blocks(cache, [])


def different_sequences(r):
    if r.rank < 2:
        cache = r.cache(first_head=2 * r.rank)
        r.send(cache, make_sequences(cache, (9 + r.rank,)), 2)
    elif r.rank == 2:
        r.receive(r.cache(num_heads=4), [0, 1])


def damaged(r):
    """One bit of a token changes on the way."""
    if r.rank == 0:

        def damage(channel, content):
            sent.append(content)
            if len(sent) == 3:
                content = content.clone()
                content[-5] ^= 4
            return inner(channel, content)

        inner, sent = channel.Channel.start_sending, []
        channel.Channel.start_sending = damage
        cache = r.cache()
        try:
            r.send(cache, make_sequences(cache), 1, chunk_bytes=1024)
        finally:
            channel.Channel.start_sending = inner
    elif r.rank == 1:
        cache = r.cache()
        try:
            r.receive(cache, 0)
        finally:
            check_blocks(cache, [])
            assert cache.stats().num_cached == 0


def nobody_answers(r):
    """The receiver never comes."""
    if r.rank == 0:
        cache = r.cache()
        sequences = make_sequences(cache)
        begin = time.monotonic()
        try:
            r.send(cache, sequences, 1, timeout=0.3)
        finally:
            assert time.monotonic() - begin < 20
            step(cache, sequences[1:2])
            check(cache, sequences)
    elif r.rank == 1:
        time.sleep(1)


def sender_dies(r):
    """Rank 3 ends after its first chunk."""
    if r.rank == 2:
        cache = r.cache()
        mine = make_sequences(cache)
        try:
            r.receive(cache, 3)
        finally:
            check(cache, mine)
    elif r.rank == 3:
        cache = r.cache()
        sequences = make_sequences(cache, (63,))
        inner, calls = channel.Channel.start_sending, []

        def dying(channel, tensor):
            calls.append(tensor)
            if len(calls) == 2:
                os._exit(0)
            return inner(channel, tensor)

        channel.Channel.start_sending = dying
        r.send(cache, sequences, 2, chunk_bytes=1024)


ALL = {
    f.__name__: f
    for f in (
        one_to_one,
        no_sequences,
        known_prefix,
        fewer_ranks,
        more_ranks,
        head_of_two_sources,
        mla,
        prefill_and_decode,
    )
    + (other_dtype, other_scale, missing_heads, too_few_blocks, different_sequences, damaged)
    + tuple(map(early, (*early_chunks.SCENARIOS, damaged, one_to_one, fewer_ranks, mla)))
    + (nobody_answers, sender_dies)  # the last, because they break their group or end a rank
}


def run_rank(rank, folder, device, backend, names):
    torch.set_num_threads(1)
    if device == "cuda":
        torch.cuda.set_device(rank % torch.cuda.device_count())
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD)
    groups = {name: dist.new_group(backend=backend) for name in names}
    results = {}
    for name in names:
        dist.barrier()
        try:
            results[name] = ALL[name](Rank(rank, torch.device(device), groups[name]))
        except Exception as error:
            results[name] = f"{type(error).__name__}: {error}"
        pathlib.Path(folder, f"{rank}.json").write_text(json.dumps(results))
    os._exit(0)  # groups with a dead rank cannot be destroyed


def main():
    device, backend, *names = sys.argv[1:]
    context = multiprocessing.get_context("fork")  # nothing has started threads or CUDA yet
    with tempfile.TemporaryDirectory() as folder:
        arguments = folder, device, backend, names or list(ALL)
        ranks = [context.Process(target=run_rank, args=(rank, *arguments)) for rank in range(WORLD)]
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join(60)
            rank.kill()
        files = [pathlib.Path(folder, f"{rank}.json") for rank in range(WORLD)]
        print(json.dumps([json.loads(file.read_text()) if file.exists() else {} for file in files]))


if __name__ == "__main__":
    main()
