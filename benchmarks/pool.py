"""`python -m benchmarks.pool`: the host time of PagedKVCache, and the speed of transfers.

The first part times calls that launch no kernels of a model: `new`, `extend` and `commit`. The second part sends
sequences of 32 layers between two processes, and compares with a plain send of as many bytes: with gloo on the CPU, and
with nccl where the host has two GPUs, once in a group that has gloo for the host too, and once without. A plain send
and a transfer take turns, timed where they arrive. Of each the median counts, and the shortest time is noted. What the
last transfer has brought is compared byte for byte.
"""

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import multikv
from benchmarks import machine

STEPS, ROUNDS = 200, 6
TRANSFERS = {"cpu": 14, "cuda": 42}  # the first ones, which allocate memory, are not counted
PROMPT, TRANSFERRED = 50_000, 4096
LAYERS, KV_HEADS, HEAD_SIZE = 32, 8, 128
TARGETS = {"gloo": 70, "cpu:gloo,cuda:nccl": 80, "nccl": 80}  # % of a plain send, by the backend of the group


def small_cache(device: torch.device, num_blocks: int) -> multikv.PagedKVCache:
    return multikv.PagedKVCache(1, 1, 8, num_blocks, device=device)


def decode_us(device: torch.device, num_sequences: int) -> dict[str, float]:
    """Times steps of one token a sequence. Their CPU time leaves out what other programs of the host take."""
    cache = small_cache(device, 40 * num_sequences)
    sequences = [cache.new(range(1000 * i, 1000 * i + 100)) for i in range(num_sequences)]
    cache.commit(cache.extend(sequences))
    extend, step = [], []
    for _ in range(STEPS):
        for sequence in sequences:
            sequence.append(5)
        if device.type == "cuda":
            torch.cuda.synchronize()
        begin = time.thread_time_ns()
        batch = cache.extend(sequences)
        middle = time.thread_time_ns()
        cache.commit(batch)
        extend.append(middle - begin)
        step.append(time.thread_time_ns() - begin)
    return {"extend": statistics.median(extend) / 1e3, "extend and commit": statistics.median(step) / 1e3}


def prefix_ms(device: torch.device) -> float:
    """Times `new` and `extend` of a long prompt that the cache holds."""
    cache, prompt, times = small_cache(device, PROMPT // 16 + 16), list(range(PROMPT)), []
    cache.commit(cache.extend([cache.new(prompt)]))
    for _ in range(ROUNDS):
        begin = time.thread_time_ns()
        sequence = cache.new(prompt)
        cache.extend([sequence])
        times.append(time.thread_time_ns() - begin)
        assert sequence.num_cached_tokens > PROMPT - 32
        cache.free(sequence)
    return statistics.median(times) / 1e6


def contents(plane: int, device: torch.device) -> torch.Tensor:
    """What all tokens of a sequence hold in a plane: random bits, the same in all processes."""
    generator, shape = torch.Generator(device).manual_seed(plane), (TRANSFERRED // 16, 16, KV_HEADS, HEAD_SIZE)
    bits = torch.randint(-(2**15), 2**15, shape, dtype=torch.int16, device=device, generator=generator)
    return bits.view(torch.bfloat16)


def blocks_of(sequence: multikv.Sequence, device: torch.device) -> torch.Tensor:
    return torch.tensor(list(sequence.blocks), device=device)


def transfer_rank(rank: int, folder: str, backend: str) -> None:
    """Times a transfer and a plain send in turn; rank 1 compares what has arrived, and writes the times."""
    torch.set_num_threads(1)
    device = torch.device("cpu") if backend == "gloo" else torch.device("cuda", rank)
    if device.type == "cuda":
        torch.cuda.set_device(rank)
    dist.init_process_group(backend, init_method=f"file://{folder}/store", rank=rank, world_size=2)
    sizes = (LAYERS, KV_HEADS, HEAD_SIZE, TRANSFERRED // 16 + 1)
    cache = multikv.PagedKVCache(*sizes, dtype=torch.bfloat16, device=device)
    for plane in cache.planes:
        plane.zero_()
    plain = torch.ones(2 * LAYERS * KV_HEADS * HEAD_SIZE * 2 * TRANSFERRED, dtype=torch.uint8, device=device)

    def timed(call: Callable[[], Any]) -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        dist.barrier()
        begin = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begin

    sequences: list[multikv.Sequence] = []
    times: dict[str, list[float]] = {"plain": [], "transfer": []}
    for turn in range(TRANSFERS[device.type]):
        times["plain"].append(timed(lambda: (dist.recv if rank else dist.send)(plain, 1 - rank)))
        if rank == 0:
            sequences[:] = [cache.new(range(turn * TRANSFERRED, (turn + 1) * TRANSFERRED))]
            cache.commit(cache.extend(sequences))
            if turn == TRANSFERS[device.type] - 1:
                for i, plane in enumerate(cache.planes):
                    plane[blocks_of(sequences[0], device)] = contents(i, device)
            times["transfer"].append(timed(lambda: multikv.transfer.send(cache, sequences, 1)))
        else:
            times["transfer"].append(timed(lambda: sequences.extend(multikv.transfer.receive(cache, 0))))
            if turn == TRANSFERS[device.type] - 1:
                for i, plane in enumerate(cache.planes):
                    got = plane[blocks_of(sequences[0], device)]
                    assert torch.equal(got.view(torch.int16), contents(i, device).view(torch.int16)), f"plane {i}"
        cache.free(sequences.pop())
    if rank == 1:
        kept = {name: sorted(seconds[1:]) for name, seconds in times.items()}
        rates = {name: plain.nbytes / statistics.median(seconds) * 1e-9 for name, seconds in kept.items()}
        shortest = {f"shortest {name}, ms": seconds[0] * 1e3 for name, seconds in kept.items()}
        Path(folder, "rates").write_text(json.dumps(rates | shortest))
    dist.barrier()
    dist.destroy_process_group()


def transfer_gb_per_s(backend: str) -> dict[str, float]:
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        ranks = [context.Process(target=transfer_rank, args=(rank, folder, backend)) for rank in range(2)]
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join()
        assert all(rank.exitcode == 0 for rank in ranks), "a rank has failed"
        rates = json.loads(Path(folder, "rates").read_text())
    return rates | {"share": rates["transfer"] / rates["plain"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--transfer",
        nargs="*",
        choices=TARGETS,
        default=list(TARGETS) if torch.cuda.device_count() > 1 else ["gloo"],
        help="backends of the second part; none: leave it out",
    )
    parser.add_argument("--transfer-only", action="store_true", help="leave out the first part")
    parser.add_argument("--out", type=Path, metavar="FILE.json")
    options = parser.parse_args()
    device = torch.device(options.device)
    torch.set_num_threads(1)
    results: dict[str, Any] = {"machine": machine.describe(device)}
    print("| what | target | measured |", "|---|---:|---:|", sep="\n")
    for count, name, target in () if options.transfer_only else ((256, "extend", 150), (64, "extend and commit", 100)):
        results[f"{name} of {count} decoding sequences, us"] = us = decode_us(device, count)[name]
        print(f"| {name} of {count} decoding sequences, CPU time | {target} us | {us:.0f} us |")
    if not options.transfer_only:
        results["new and extend of 50,000 cached tokens, ms"] = ms = prefix_ms(device)
        print(f"| new and extend of {PROMPT:,} cached tokens | 10 ms | {ms:.1f} ms |")
    for backend in options.transfer:
        results[f"transfer by {backend}, GB/s"] = rates = transfer_gb_per_s(backend)
        text = f"{100 * rates['share']:.0f}% ({rates['transfer']:.1f} of {rates['plain']:.1f} GB/s)"
        print(f"| transfer by {backend}, share of a plain send | {TARGETS[backend]}% | {text} |", flush=True)
        if options.out:
            options.out.write_text(json.dumps(results, indent=1) + "\n")
    if options.out:
        options.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
