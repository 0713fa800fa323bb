"""Serves many conversations with one PagedKVCache: continuous batching, shared prefixes, and a host tier.

Synthetic conversations share a system prompt. Each has several turns: the user's tokens, and an answer that a tiny
random Llama generates. Between turns a conversation waits. The cache has a quarter of the blocks that all conversations
need when they share the system prompt (at least 24 blocks). When it is full, a conversation that waits is offloaded to
the host, and restored for its next turn. If none waits, a running one is stopped and offloaded. At the end every answer
is compared with that of the same conversation alone, in a cache of its own, without sharing.

    python examples/serve.py [--device cuda] [--conversations 200] [--out serve.png]

With --out, a picture shows blocks in use, hit rate and tokens per second. It needs matplotlib: pip install matplotlib
"""

import argparse
import dataclasses
import importlib.util
import random
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

import multikv

LAYERS, HEADS, KV_HEADS, HEAD_SIZE, VOCABULARY = 2, 4, 2, 16, 512
WIDTH = HEADS * HEAD_SIZE
SYSTEM_TOKENS, BLOCK_SIZE = 96, 16
MOST_RUNNING, PAUSE = 32, 40  # conversations that run at once, and steps between two turns of one


class TinyLlama:
    """A random decoder. Its products are in float64, so that the tokens do not depend on the batch around them."""

    def __init__(self, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(0)

        def matrix(rows: int, columns: int) -> Tensor:
            return torch.randn(rows, columns, generator=generator, dtype=torch.float64).to(device) / rows**0.5

        self.embedding = matrix(VOCABULARY, WIDTH) * VOCABULARY**0.5
        sizes = (WIDTH, WIDTH + 2 * KV_HEADS * HEAD_SIZE), (WIDTH, WIDTH), (WIDTH, 2 * WIDTH), (2 * WIDTH, WIDTH)
        self.layers = [[matrix(*size) for size in sizes] for _ in range(LAYERS)]
        self.frequencies = 10_000 ** -(torch.arange(0, HEAD_SIZE, 2, device=device) / HEAD_SIZE)

    def rotate(self, x: Tensor, positions: Tensor) -> Tensor:
        angles = (positions[:, None] * self.frequencies)[:, None]
        (a, b), cos, sin = x.chunk(2, -1), angles.cos(), angles.sin()
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    def next_tokens(self, cache: multikv.PagedKVCache, batch: multikv.Batch) -> list[int]:
        """Writes the batch to the cache, and returns the likeliest next token of each sequence."""
        x = self.embedding[batch.tokens]
        for layer, (qkv, project, up, down) in enumerate(self.layers):
            heads = (normalise(x) @ qkv).view(len(x), -1, HEAD_SIZE).float()
            query, key, value = heads.split([HEADS, KV_HEADS, KV_HEADS], 1)
            cache.write(layer, self.rotate(key, batch.positions), value, batch)
            out = cache.attend(layer, self.rotate(query, batch.positions), batch)
            x = x + out.flatten(1).double() @ project
            x = x + torch.nn.functional.silu(normalise(x) @ up) @ down
        last = x[batch.cu_query_lens[1:] - 1]
        return (normalise(last) @ self.embedding.T).argmax(-1).tolist()


def normalise(x: Tensor) -> Tensor:
    return x * x.square().mean(-1, keepdim=True).add(1e-6).rsqrt()


@dataclasses.dataclass(eq=False)
class Conversation:
    """The turns of one user: what they say, how many tokens each answer has, and what was answered."""

    turns: list[tuple[list[int], int]]
    wakes: int = 0  # the step at which the next turn begins
    left: int = 0  # tokens that the present answer still lacks
    sequence: multikv.Sequence | None = None
    answers: list[int] = dataclasses.field(default_factory=list)

    def num_blocks(self) -> int:
        """Returns the blocks of the whole conversation."""
        return -(-(SYSTEM_TOKENS + sum(len(words) + count for words, count in self.turns)) // BLOCK_SIZE)


def make_conversations(count: int, seed: int) -> list[Conversation]:
    choice = random.Random(seed)

    def turn() -> tuple[list[int], int]:
        return choice.choices(range(VOCABULARY), k=choice.randint(4, 16)), choice.randint(4, 12)

    return [Conversation([turn() for _ in range(choice.randint(2, 3))], wakes=i // 8) for i in range(count)]


class Server:
    """Continuous batching: in each step, every running conversation computes what it has not written yet."""

    def __init__(self, model: TinyLlama, cache: multikv.PagedKVCache, conversations: list[Conversation]) -> None:
        self.model, self.cache, self.waiting = model, cache, list(conversations)
        self.running: list[Conversation] = []
        self.system = [i % VOCABULARY for i in range(SYSTEM_TOKENS)]
        self.steps = self.computed = 0
        self.history: list[tuple[float, float, float, int]] = []  # seconds, share of blocks, hit rate, tokens

    def begin(self, conversation: Conversation) -> bool:
        """Begins a turn, and returns False if the cache has no room for it."""
        words, count = conversation.turns[0]
        try:
            if conversation.sequence is None:
                conversation.sequence = self.cache.new(self.system + words)
            else:
                if conversation.sequence.is_offloaded:
                    self.cache.restore([conversation.sequence])
                conversation.sequence.append(*words)
        except multikv.OutOfBlocks:
            return False
        conversation.turns.pop(0)
        conversation.left = count
        return True

    def make_room(self) -> None:
        """Offloads the waiting conversation on the device whose next turn begins last.

        If none waits on the device, it stops and offloads the running conversation that began last.
        """
        idle = [c for c in self.waiting if c.sequence is not None and not c.sequence.is_offloaded]
        if idle:
            self.cache.offload([max(idle, key=lambda c: c.wakes).sequence])
            return
        stopped = self.running.pop()  # its unfinished turn goes on later
        self.cache.offload([stopped.sequence])
        stopped.turns.insert(0, ([], stopped.left))
        stopped.wakes = self.steps + 8
        self.waiting.append(stopped)

    def step(self) -> int:
        """Makes one step, and returns the number of conversations that have ended."""
        for conversation in sorted(self.waiting, key=lambda c: c.wakes):
            ready = conversation.wakes <= self.steps and len(self.running) < MOST_RUNNING
            if ready and self.begin(conversation):
                self.waiting.remove(conversation)
                self.running.append(conversation)
        self.steps += 1
        ended = 0
        if self.running:
            batch = self.extend()
            self.computed += batch.num_tokens
            tokens = self.model.next_tokens(self.cache, batch)
            for conversation, token in zip(list(self.running), tokens, strict=True):
                ended += self.answer(conversation, token)
        elif any(c.wakes < self.steps for c in self.waiting):
            self.make_room()
        return ended

    def extend(self) -> multikv.Batch:
        while True:
            try:
                return self.cache.extend([c.sequence for c in self.running])
            except multikv.OutOfBlocks:
                self.make_room()

    def answer(self, conversation: Conversation, token: int) -> int:
        conversation.sequence.append(token)
        conversation.answers.append(token)
        conversation.left -= 1
        if conversation.left:
            return 0
        self.running.remove(conversation)
        if conversation.turns:
            conversation.wakes = self.steps + PAUSE
            self.waiting.append(conversation)
            return 0
        self.cache.free(conversation.sequence)
        return 1

    def record(self, seconds: float) -> None:
        stats = self.cache.stats()
        self.history.append((seconds, stats.num_used / stats.num_blocks, stats.hit_rate, self.computed))


def serve(server: Server, count: int, console: Console) -> float:
    """Serves all conversations, and returns the seconds."""
    start, ended = time.perf_counter(), 0
    with Progress(console=console) as progress:
        bar = progress.add_task("serving", total=count)
        while ended < count:
            now = server.step()
            ended += now
            progress.advance(bar, now)
            server.record(time.perf_counter() - start)
    return time.perf_counter() - start


def wrong_tokens(
    model: TinyLlama, served: list[Conversation], again: list[Conversation], device: torch.device, console: Console
) -> int:
    """Returns the number of tokens that differ from those of each conversation alone, in a cache of its own."""
    wrong = 0
    with Progress(console=console) as progress:
        for mine, alone in zip(progress.track(served, description="verifying"), again, strict=True):
            server = Server(model, make_cache(alone.num_blocks(), 0, device), [alone])
            while server.waiting or server.running:
                server.step()
            wrong += sum(a != b for a, b in zip(mine.answers, alone.answers, strict=True))
    return wrong


def make_cache(num_blocks: int, num_host_blocks: int, device: torch.device) -> multikv.PagedKVCache:
    sizes = (LAYERS, KV_HEADS, HEAD_SIZE, num_blocks, BLOCK_SIZE)
    return multikv.PagedKVCache(*sizes, dtype=torch.float32, device=device, num_host_blocks=num_host_blocks)


def draw(history: list[tuple[float, float, float, int]], path: Path) -> None:
    """Draws what happened over time."""
    import matplotlib  # noqa: PLC0415

    matplotlib.use("Agg")
    from matplotlib import pyplot  # noqa: PLC0415

    seconds, used, hits, computed = zip(*history, strict=True)
    window = max(len(history) // 40, 1)
    rates = [
        (computed[i] - computed[max(i - window, 0)]) / (seconds[i] - seconds[max(i - window, 0)] or 1)
        for i in range(len(history))
    ]
    figure, axes = pyplot.subplots(3, 1, sharex=True, figsize=(8, 6), layout="constrained")
    for axis, values, label in zip(
        axes, (used, hits, rates), ("blocks in use", "prefix hit rate", "tokens / s"), strict=True
    ):
        axis.plot(seconds, values, linewidth=1.2)
        axis.set_ylabel(label)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    axes[-1].set_xlabel("seconds")
    figure.savefig(path, dpi=120)


@torch.no_grad()
def main() -> int:
    """Runs the example; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--conversations", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, metavar="FILE.png")
    options = parser.parse_args()
    if options.out and importlib.util.find_spec("matplotlib") is None:
        parser.error("--out: matplotlib is not installed: pip install matplotlib")
    device, console = torch.device(options.device), Console()

    conversations = make_conversations(options.conversations, options.seed)
    shared = SYSTEM_TOKENS // BLOCK_SIZE
    needed = shared + sum(conversation.num_blocks() - shared for conversation in conversations)
    model, cache = TinyLlama(device), make_cache(max(needed // 4, 24), needed, device)
    server = Server(model, cache, conversations)
    seconds = serve(server, len(conversations), console)

    stats = cache.stats()
    answered = sum(len(c.answers) for c in conversations)
    console.print(
        f"{len(conversations)} conversations, {answered:,} tokens in {server.steps:,} steps and {seconds:.1f} s. They "
        f"need {needed:,} blocks, and the cache has {stats.num_blocks:,}."
    )
    console.print(
        f"{stats.num_found_tokens:,} of {stats.num_new_tokens:,} prompt tokens were found in the cache "
        f"({100 * stats.hit_rate:.0f}%). {stats.num_to_host:,} blocks went to the host, {stats.num_from_host:,} came "
        "back."
    )
    again = make_conversations(options.conversations, options.seed)
    wrong = wrong_tokens(model, conversations, again, device, console)
    console.print(f"[red]{wrong} tokens are WRONG[/]" if wrong else "all tokens are right")
    if options.out:
        draw(server.history, options.out)
        console.print(f"wrote {options.out}")
    return 1 if wrong or stats.num_used else 0


if __name__ == "__main__":
    raise SystemExit(main())
