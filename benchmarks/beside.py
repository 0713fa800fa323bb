"""`python -m benchmarks.beside`: measures how much swaps slow down computation that runs at the same time.

Matrix products run on one stream, while swaps run on another stream without a pause. For each strategy of swaps, a
Markdown table says by how much the products slow down, and which bandwidth the swaps reach.
"""

import argparse
import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

import multikv
from benchmarks import machine
from multikv import platforms

PRODUCTS = {"2,048^3": (2048, 300), "8,192^3": (8192, 12)}  # (size, count): many short kernels, or few long ones
BLOCKS = {"4 KiB": (4 << 10, 8192), "256 KiB": (256 << 10, 512), "2 MiB": (2 << 20, 64)}
DIRECTIONS = ("to the host", "from the host", "within the device")


def products(size: int, count: int) -> Iterator[float | None]:
    """Launches matrix products. Yields None while the products run, and then the milliseconds that they took."""
    a, b = (torch.randn(size, size, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    out = a @ b
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(count):
        torch.mm(a, b, out=out)
    end.record()
    while not end.query():
        yield None
    yield begin.elapsed_time(end)


def beside(size: int, count: int, swap: Callable[[], None] | None, num_bytes: int) -> tuple[float, float]:
    """Returns the milliseconds of the products, and the GB/s of the swaps that run beside them."""
    stream, swaps = torch.cuda.Stream(), 0
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
    torch.cuda.synchronize()
    running = products(size, count)
    if swap is not None:
        with torch.cuda.stream(stream):
            marks[0].record()
            for _ in range(3):
                swap()
    done, pending = None, []
    while (done := next(running)) is None:
        if swap is None:
            continue
        with torch.cuda.stream(stream):
            if len(pending) < 4:
                swap()
                swaps += 1
                pending.append(torch.cuda.Event())
                pending[-1].record()
            elif pending[0].query():
                pending.pop(0)
    with torch.cuda.stream(stream):
        marks[1].record()
    torch.cuda.synchronize()
    return done, (swaps + 3) * num_bytes / marks[0].elapsed_time(marks[1]) * 1e-6 if swap else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, metavar="FILE.json")
    out = parser.parse_args().out
    about = machine.describe(torch.device("cuda"))  # also calibrates swaps
    rows = []
    print(
        "| direction | blocks | what copies | swaps, GB/s | 2,048^3 slower by, % | GB/s | 8,192^3 slower by, % |",
        "|---|---|---|---:|---:|---:|---:|",
        sep="\n",
    )
    alone = {name: min(beside(*shape, None, 0)[0] for _ in range(3)) for name, shape in PRODUCTS.items()}
    for direction in DIRECTIONS:
        for block, (block_bytes, num_blocks) in BLOCKS.items():
            total = block_bytes * num_blocks
            tensors = [torch.empty(total, dtype=torch.uint8, device="cuda") for _ in range(2)]
            if direction != "within the device":
                tensors[0 if direction == "from the host" else 1] = multikv.empty_pinned(total)
            mapping = torch.stack([torch.randperm(num_blocks) for _ in range(2)], 1)
            for strategy in ("kernel", "copy_engine"):
                platforms.set_swap_strategy(strategy)
                row = {"direction": direction, "blocks": block, "strategy": strategy}
                for name, shape in PRODUCTS.items():
                    swap = functools.partial(multikv.swap_blocks, *tensors, block_bytes, mapping)
                    ms, rate = beside(*shape, swap, total)
                    row |= {f"{name} slower by": ms / alone[name] - 1, f"{name} GB/s": rate}
                rows.append(row)
                cells = [f"{row[f'{name} GB/s']:.1f} | {100 * row[f'{name} slower by']:.0f}" for name in PRODUCTS]
                print(f"| {direction} | {block} | {strategy} | {' | '.join(cells)} |", flush=True)
    if out:
        content = {"machine": about, "alone_ms": alone, "rows": rows}
        out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
