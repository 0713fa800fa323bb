"""The host tier: blocks that leave the device, and come back."""

from __future__ import annotations

import array
import itertools
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from ..offload import empty_pinned
from ..ops import swap_blocks_layers
from .blocks import BlockPool, Evicted

Pairs = list[tuple[int, int]]
Copy = Callable[[Pairs], None]


class HostTier:
    """Blocks in pinned host memory, and the stream that copies them.

    On a GPU all copies run on one stream, in the order of the calls, beside the computation. Two events order them with
    the stream of the computation:

        outgoing    device blocks that were copied to the host may be overwritten
        incoming    device blocks that were copied from the host may be read
    """

    def __init__(self, planes: list[Tensor], num_blocks: int) -> None:
        """Allocates num_blocks blocks for each plane; planes are contiguous, [blocks of the device, ...]."""
        self.blocks = BlockPool(num_blocks)
        self._device, self._device_planes = planes[0].device, planes
        self._block_bytes = planes[0][0].nbytes
        self._host_planes = list(empty_pinned((len(planes), num_blocks, self._block_bytes)).unbind())
        self._stream = torch.cuda.Stream(planes[0].device) if planes[0].is_cuda else None
        self.compute: torch.cuda.Stream | None = None  # the stream of the computation; None: the current one
        self._outgoing: torch.cuda.Event | None = None
        self._incoming: torch.cuda.Event | None = None

    def copy_out(self, pairs: Pairs) -> None:
        """Copies blocks (device, host) to the host."""
        self._outgoing = self._copy(self._device_planes, self._host_planes, pairs) or self._outgoing

    def copy_in(self, pairs: Pairs) -> None:
        """Copies blocks (host, device) to the device."""
        self._incoming = self._copy(self._host_planes, self._device_planes, pairs) or self._incoming

    def keep(self, evicted: Iterable[Evicted]) -> int:
        """Copies evicted blocks of the device that the host lacks, as long as there is room; returns their number."""
        pairs: Pairs = []
        for block, name in evicted:
            if self.blocks.num_free and self.blocks.find(name) is None:
                (to,), _ = self.blocks.take(1)
                self.blocks.give_name(to, name)
                pairs.append((block, to))
        if pairs:
            self.copy_out(pairs)
            self.blocks.release([to for _, to in pairs])
        return len(pairs)

    def wait_outgoing(self) -> None:
        """Orders the computation after all copies to the host: device blocks may be overwritten."""
        if self._outgoing is not None:
            torch.cuda.current_stream(self._device).wait_event(self._outgoing)
            self._outgoing = None

    def incoming(self) -> torch.cuda.Event | None:
        """Returns the event of the last copy to the device, or None if all have arrived."""
        if self._incoming is not None and self._incoming.query():
            self._incoming = None
        return self._incoming

    def _copy(self, source: list[Tensor], target: list[Tensor], pairs: Pairs) -> torch.cuda.Event | None:
        if not pairs:
            return None
        mapping = torch.frombuffer(array.array("q", itertools.chain.from_iterable(pairs)), dtype=torch.int64)
        arguments = source, target, self._block_bytes, mapping.view(-1, 2)
        if self._stream is None:
            swap_blocks_layers(*arguments)
            return None
        self._stream.wait_stream(self.compute or torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            swap_blocks_layers(*arguments)
            event = torch.cuda.Event()
            event.record()
        return event
