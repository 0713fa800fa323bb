"""More conversations than fit the GPU: their blocks wait in the host's memory, and come back for their next turn.

Every turn one conversation goes on: a model step (matrix products, and the new tokens' K written to the cache) runs on
one stream, while on another the blocks of the next conversation come in, and those of the ones that have waited longest
go out to make room, all layers in one call of `swap_blocks_layers`. At the end every token of every conversation is
compared with what was written.

    python examples/offload.py [--device cuda] [--seconds 10] [--megabytes 2048] [--block-kib 32]

Without a GPU "device" and "host" are two places in the host's memory, and the link is a memcpy.
"""

import argparse
import contextlib
import dataclasses
import random
import time
from collections import OrderedDict

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

import multikv

LAYERS, HEAD_SIZE, BLOCK_SIZE = 8, 128, 16  # K of each layer; V would be as much again, in the same calls
SPARE_BLOCKS = 8
FITS_ONE_OF = 4  # so many conversations for one that fits the device


@dataclasses.dataclass
class Conversation:
    """Its tokens are numbered, and every byte of a token's K says which it is."""

    first: int  # the number of its token 0
    length: int = 0
    blocks: list[int] = dataclasses.field(default_factory=list)  # where they are now: on the device, or on the host
    is_on_device: bool = False

    def numbers(self, begin: int, device: torch.device) -> torch.Tensor:
        return torch.arange(self.first + begin, self.first + self.length, device=device, dtype=torch.int32)


class Link:
    """Times of the swaps, and what a plain copy reaches."""

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
    def timed(self, num_bytes: int):
        self.bytes += num_bytes
        self.calls += 1
        if self.device.type == "cpu":
            start = time.perf_counter()
            yield
            self.seconds += time.perf_counter() - start
            return
        marks = tuple(torch.cuda.Event(enable_timing=True) for _ in "be")
        marks[0].record()
        yield
        marks[1].record()
        self.marks.append(marks)

    def rate(self) -> float:
        """Bytes per second while a swap was going on."""
        for begin, end in self.marks:
            end.synchronize()
            self.seconds += begin.elapsed_time(end) * 1e-3
        self.marks.clear()
        return self.bytes / self.seconds if self.seconds else 0.0


class Engine:
    def __init__(self, device: torch.device, megabytes: int, block_kib: int, seed: int) -> None:
        self.device, self.random = device, random.Random(seed)
        self.heads = max(1, (block_kib << 10) // (BLOCK_SIZE * HEAD_SIZE * 2))
        self.block_bytes = BLOCK_SIZE * self.heads * HEAD_SIZE * 2
        num_blocks = max(64, (megabytes << 20) // (LAYERS * self.block_bytes))
        shape = BLOCK_SIZE, self.heads, HEAD_SIZE
        self.caches = [torch.zeros(num_blocks, *shape, dtype=torch.bfloat16, device=device) for _ in range(LAYERS)]
        pool = multikv.empty_pinned((LAYERS, FITS_ONE_OF * num_blocks, *shape), torch.bfloat16)
        if device.type == "cpu":
            pool.zero_()  # pinned memory is there; ordinary memory comes when it is first written
        self.pools = list(pool.unbind(0))
        self.free_on_device, self.free_on_host = list(range(num_blocks)), list(range(FITS_ONE_OF * num_blocks))
        self.random.shuffle(self.free_on_device)
        self.random.shuffle(self.free_on_host)
        self.most_blocks = num_blocks // 8
        self.resident: OrderedDict[int, Conversation] = OrderedDict()  # those that waited longest first
        self.conversations = [Conversation(first=i << 16) for i in range(FITS_ONE_OF * 8)]
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

    def on(self, stream: torch.cuda.Stream | None):
        return contextlib.nullcontext() if stream is None else torch.cuda.stream(stream)

    def wait(self, which: int) -> None:
        """One of the streams for the other: swaps for what was computed, or computing for what was swapped."""
        if self.streams[0] is not None:
            self.streams[which].wait_stream(self.streams[1 - which])

    def swap(self, conversation: Conversation, targets: list[int]) -> None:
        out = conversation.is_on_device
        tensors = (self.caches, self.pools) if out else (self.pools, self.caches)
        mapping = torch.tensor([conversation.blocks, targets], dtype=torch.int64).T.contiguous()
        with self.link.timed(LAYERS * len(mapping) * self.block_bytes):
            multikv.swap_blocks_layers(*tensors, self.block_bytes, mapping)
        (self.free_on_device if out else self.free_on_host).extend(conversation.blocks)
        conversation.blocks, conversation.is_on_device = targets, not out

    def bring(self, conversation: Conversation, busy: Conversation | None = None, room: int = SPARE_BLOCKS) -> None:
        """Onto the device, with room to grow; `busy` must stay there."""
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
        """The model computes, and writes the new tokens' K into the cache."""
        begin = conversation.length
        conversation.length = min(begin + tokens, self.most_blocks * BLOCK_SIZE)
        while len(conversation.blocks) * BLOCK_SIZE < conversation.length:
            conversation.blocks.append(self.free_on_device.pop())
        if conversation.length == begin:
            return  # it is as long as it may become
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
        blocks = torch.tensor(conversation.blocks, dtype=torch.int64)[:, None] * BLOCK_SIZE
        return (blocks + torch.arange(BLOCK_SIZE)).flatten()[: conversation.length].to(self.device)

    def turn(self, current: Conversation) -> Conversation:
        """One conversation goes on while the next one comes."""
        following = self.random.choice([c for c in self.conversations if c is not current])
        self.wait(0)  # the current one is here
        self.wait(1)  # the steps before this one, of those that may now leave, are done
        self.step(current, self.random.randint(1, 32))
        self.bring(following, busy=current)
        return following

    def wrong_tokens(self) -> int:
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument(
        "--megabytes", type=int, default=2048, help=f"of cache on the device; the host has {FITS_ONE_OF} times that"
    )
    parser.add_argument("--block-kib", type=int, default=32, help="size of a block in one layer")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error(
            "--device cuda: torch sees no GPU on this host; --device cpu runs the same within the host's memory"
        )

    console = Console()
    engine = Engine(device, arguments.megabytes, arguments.block_kib, arguments.seed)
    link, turns, current = engine.link, 0, engine.conversations[0]
    engine.bring(current)
    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f}%"), TimeRemainingColumn()
    with Progress(*columns, console=console) as progress:
        task, start = progress.add_task("swapping", total=arguments.seconds), time.monotonic()
        while (elapsed := time.monotonic() - start) < arguments.seconds:
            current = engine.turn(current)
            turns += 1
            if turns % 20 == 0:
                share = 100 * link.rate() / link.plain_copy
                text = f"turn {turns}: {link.bytes / 1e9:.1f} GB, {share:.0f}% of the link"
                progress.update(task, completed=elapsed, description=text)
        progress.update(task, completed=arguments.seconds)
    wrong = engine.wrong_tokens()
    rate = link.rate()
    tokens = sum(conversation.length for conversation in engine.conversations)
    console.print(
        f"{turns} turns of {len(engine.conversations)} conversations, {tokens:,} tokens, of which the device "
        f"holds a part: {link.bytes / 1e9:.2f} GB moved in {link.calls} calls, "
        f"blocks of {engine.block_bytes >> 10} KiB x {LAYERS} layers"
    )
    console.print(
        f"link: {rate / 1e9:.1f} GB/s while swapping, {100 * rate / link.plain_copy:.0f}% of a plain copy's "
        f"{link.plain_copy / 1e9:.1f}"
    )
    console.print(f"[red]{wrong} tokens are WRONG[/]" if wrong else "all contents are right")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
