"""Offloading: keeps more conversations than the GPU has memory for, by copying those that wait to the host.

In every turn, one conversation continues. On one stream, a model step runs: matrix products, and a write of the K of
the new tokens to the cache. On another stream, swaps prepare the next turn. First, the conversations that have waited
longest are copied to the host until the next conversation has room. Then the next conversation is copied to the
device. One call of `swap_blocks_layers` copies all layers. At the end, every token of every conversation is compared
with what was written.

    python examples/offload.py [--device cuda] [--seconds 10] [--megabytes 2048] [--block-kib 32]

Without a GPU, "device" and "host" are two pools in host memory, and the link is a memcpy.
"""

import argparse
import contextlib
import dataclasses
import random
import time
from collections import OrderedDict
from collections.abc import Iterator

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

import multikv

LAYERS, HEAD_SIZE, BLOCK_SIZE = 8, 128, 16  # only K is cached; the same calls would swap V
SPARE_BLOCKS = 8
OVERCOMMIT = 4  # number of conversations / number of conversations of maximum length that the device holds


@dataclasses.dataclass
class Conversation:
    """A conversation. Every token has a number, and its K consists of copies of this number."""

    first: int  # the number of its token 0
    length: int = 0
    blocks: list[int] = dataclasses.field(default_factory=list)  # blocks of the device or of the host, see is_on_device
    is_on_device: bool = False

    def numbers(self, begin: int, device: torch.device) -> torch.Tensor:
        """Returns the numbers of the tokens from `begin` on."""
        return torch.arange(self.first + begin, self.first + self.length, device=device, dtype=torch.int32)


class Link:
    """Measures the bandwidth of swaps, and that of a plain copy."""

    def __init__(self, device: torch.device, host: torch.Tensor, on_device: torch.Tensor) -> None:
        self.device, self.bytes, self.calls = device, 0, 0
        self.marks: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self.seconds = 0.0
        size = min(host.nbytes, on_device.nbytes, 256 << 20)
        near, far = (x.view(-1).view(torch.uint8)[:size] for x in (on_device, host))
        rates = []
        for _ in range(5):
            self.bytes = self.seconds = 0
            with self.timed(2 * size):
                far.copy_(near, non_blocking=True)
                near.copy_(far, non_blocking=True)
            rates.append(self.rate())
        self.plain_copy, self.bytes, self.seconds, self.calls = max(rates), 0, 0.0, 0

    @contextlib.contextmanager
    def timed(self, num_bytes: int) -> Iterator[None]:
        """Measures the copy of num_bytes bytes that the body of the `with` statement makes."""
        self.bytes += num_bytes
        self.calls += 1
        if self.device.type == "cpu":
            start = time.perf_counter()
            yield
            self.seconds += time.perf_counter() - start
            return
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        yield
        end.record()
        self.marks.append((begin, end))

    def rate(self) -> float:
        """Returns the bytes per second, counting only the time during which copies ran."""
        for begin, end in self.marks:
            end.synchronize()
            self.seconds += begin.elapsed_time(end) * 1e-3
        self.marks.clear()
        return self.bytes / self.seconds if self.seconds else 0.0


class Engine:
    """A model's caches on the device, pools on the host, and the conversations that share them."""

    def __init__(self, device: torch.device, megabytes: int, block_kib: int, seed: int) -> None:
        self.device, self.random = device, random.Random(seed)
        self.heads = max(1, (block_kib << 10) // (BLOCK_SIZE * HEAD_SIZE * 2))
        self.block_bytes = BLOCK_SIZE * self.heads * HEAD_SIZE * 2
        num_blocks = max(64, (megabytes << 20) // (LAYERS * self.block_bytes))
        shape = BLOCK_SIZE, self.heads, HEAD_SIZE
        self.caches = [torch.zeros(num_blocks, *shape, dtype=torch.bfloat16, device=device) for _ in range(LAYERS)]
        pool = multikv.empty_pinned((LAYERS, OVERCOMMIT * num_blocks, *shape), torch.bfloat16)
        if device.type == "cpu":
            pool.zero_()  # pageable memory is allocated when it is first written
        self.pools = list(pool.unbind(0))
        self.free_on_device, self.free_on_host = list(range(num_blocks)), list(range(OVERCOMMIT * num_blocks))
        self.random.shuffle(self.free_on_device)
        self.random.shuffle(self.free_on_host)
        self.most_blocks = num_blocks // 8
        self.resident: OrderedDict[int, Conversation] = OrderedDict()  # the conversation that has waited longest first
        self.conversations = [Conversation(first=i << 16) for i in range(OVERCOMMIT * 8)]
        size = 2048 if device.type == "cuda" else 64
        self.weights = torch.randn(size, size, dtype=torch.bfloat16, device=device)
        self.scale = torch.ones(1, device=device)
        self.link = Link(device, pool, self.caches[0])
        self.streams = [torch.cuda.Stream() for _ in range(2)] if device.type == "cuda" else [None, None]
        for conversation in self.conversations:
            blocks = self.random.randint(1, self.most_blocks // 2)
            self.wait(1)
            self.bring(conversation, room=blocks + SPARE_BLOCKS)
            self.wait(0)
            self.step(conversation, blocks * BLOCK_SIZE, products=0)

    def on(self, stream: torch.cuda.Stream | None) -> contextlib.AbstractContextManager[object]:
        """Makes a stream the current one."""
        return contextlib.nullcontext() if stream is None else torch.cuda.stream(stream)

    def wait(self, which: int) -> None:
        """Makes stream `which` wait for the other stream. Stream 0 runs the model, stream 1 runs the swaps."""
        if self.streams[0] is not None:
            self.streams[which].wait_stream(self.streams[1 - which])

    def swap(self, conversation: Conversation, targets: list[int]) -> None:
        """Copies the blocks of a conversation from the device to the host or back, to the blocks `targets` there."""
        out = conversation.is_on_device
        tensors = (self.caches, self.pools) if out else (self.pools, self.caches)
        mapping = torch.tensor([conversation.blocks, targets], dtype=torch.int64).T.contiguous()
        with self.link.timed(LAYERS * len(mapping) * self.block_bytes):
            multikv.swap_blocks_layers(*tensors, self.block_bytes, mapping)
        (self.free_on_device if out else self.free_on_host).extend(conversation.blocks)
        conversation.blocks, conversation.is_on_device = targets, not out

    def bring(self, conversation: Conversation, busy: Conversation | None = None, room: int = SPARE_BLOCKS) -> None:
        """Copies a conversation to the device and leaves `room` free blocks there. The conversation `busy` stays."""
        key = conversation.first
        with self.on(self.streams[1]):
            needed = room + (0 if conversation.is_on_device else len(conversation.blocks))
            while len(self.free_on_device) < needed:
                victim = next(c for c in self.resident.values() if c is not busy and c is not conversation)
                del self.resident[victim.first]
                self.swap(victim, [self.free_on_host.pop() for _ in victim.blocks])
            if not conversation.is_on_device:
                self.swap(conversation, [self.free_on_device.pop() for _ in conversation.blocks])
        self.resident[key] = conversation
        self.resident.move_to_end(key)

    def step(self, conversation: Conversation, tokens: int, products: int = 4) -> None:
        """Runs a model step, which writes the K of new tokens to the cache."""
        begin = conversation.length
        conversation.length = min(begin + tokens, self.most_blocks * BLOCK_SIZE)
        while len(conversation.blocks) * BLOCK_SIZE < conversation.length:
            conversation.blocks.append(self.free_on_device.pop())
        if conversation.length == begin:
            return  # the conversation has its maximum length
        with self.on(self.streams[0]):
            numbers = conversation.numbers(begin, self.device)
            key = numbers[:, None].expand(-1, self.heads * HEAD_SIZE // 2).contiguous().view(torch.bfloat16)
            key = key.view(-1, self.heads, HEAD_SIZE)
            slots = self.slots(conversation)[begin:]
            for cache in self.caches:
                for _ in range(products):
                    self.weights @ self.weights
                multikv.reshape_and_cache_flash(key, key, cache, cache, slots, "auto", self.scale, self.scale)

    def slots(self, conversation: Conversation) -> torch.Tensor:
        """Returns the slots of all tokens of a conversation."""
        blocks = torch.tensor(conversation.blocks, dtype=torch.int64)[:, None] * BLOCK_SIZE
        return (blocks + torch.arange(BLOCK_SIZE)).flatten()[: conversation.length].to(self.device)

    def turn(self, current: Conversation) -> Conversation:
        """Continues a conversation and brings the next one onto the device; returns the next one."""
        following = self.random.choice([c for c in self.conversations if c is not current])
        self.wait(0)  # until the current conversation is on the device
        self.wait(1)  # until earlier steps are done, whose conversations may be swapped out now
        self.step(current, self.random.randint(1, 32))
        self.bring(following, busy=current)
        return following

    def wrong_tokens(self) -> int:
        """Returns the number of tokens whose K is not what was written."""
        wrong = 0
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        for conversation in self.conversations:
            expected = conversation.numbers(0, self.device)
            for tensor in self.caches if conversation.is_on_device else self.pools:
                blocks = tensor[torch.tensor(conversation.blocks, device=tensor.device)]
                got = blocks.flatten(0, 1)[: conversation.length].view(torch.int32).flatten(1).to(self.device)
                wrong += int((got != expected[:, None]).any(1).sum())
        return wrong


def run(engine: Engine, seconds: float, console: Console) -> int:
    """Runs turns for some seconds and shows the progress; returns their number."""
    link, turns, current = engine.link, 0, engine.conversations[0]
    engine.bring(current)
    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f}%"), TimeRemainingColumn()
    with Progress(*columns, console=console) as progress:
        task, start = progress.add_task("swapping", total=seconds), time.monotonic()
        while (elapsed := time.monotonic() - start) < seconds:
            current = engine.turn(current)
            turns += 1
            if turns % 20 == 0:
                share = 100 * link.rate() / link.plain_copy
                text = f"turn {turns}: {link.bytes / 1e9:.1f} GB, {share:.0f}% of the link"
                progress.update(task, completed=elapsed, description=text)
        progress.update(task, completed=seconds)
    return turns


def main() -> int:
    """Runs the example; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=10)
    cache_size = f"size of the cache on the device; the host has {OVERCOMMIT} times as much"
    parser.add_argument("--megabytes", type=int, default=2048, help=cache_size)
    parser.add_argument("--block-kib", type=int, default=32, help="size of a block in one layer")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU on this host; use --device cpu")

    console = Console()
    engine = Engine(device, options.megabytes, options.block_kib, options.seed)
    turns = run(engine, options.seconds, console)
    link, wrong = engine.link, engine.wrong_tokens()
    rate = link.rate()
    tokens = sum(conversation.length for conversation in engine.conversations)
    console.print(
        f"{turns} turns of {len(engine.conversations)} conversations with {tokens:,} tokens. {link.calls} calls copied "
        f"{link.bytes / 1e9:.2f} GB, in blocks of {engine.block_bytes >> 10} KiB x {LAYERS} layers."
    )
    console.print(
        f"The swaps ran at {rate / 1e9:.1f} GB/s, {100 * rate / link.plain_copy:.0f}% of the "
        f"{link.plain_copy / 1e9:.1f} GB/s of a plain copy."
    )
    console.print(f"[red]{wrong} tokens are WRONG[/]" if wrong else "all contents are right")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
