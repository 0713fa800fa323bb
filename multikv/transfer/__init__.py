"""Hands sequences over from the cache of one process to that of another, through torch.distributed.

    multikv.transfer.send(cache, sequences, dst=1)         # on rank 0, which has computed the prompts
    sequences = multikv.transfer.receive(cache, src=0)     # on rank 1, which goes on with them

Each module imports only modules above it:

- `errors` has the exception.
- `channel` sends messages and tensors to one peer.
- `plan` compares the caches, and chooses heads and chunks.
- `offer` has what a sender says at first.
- `staging` packs, sends and unpacks chunks.
- `sender` and `source` are the two sides: what sends, and a sender as its receiver sees it.
- `hand_over` has `send` and `receive`.
"""

from .errors import TransferError
from .hand_over import receive, send

__all__ = ["TransferError", "receive", "send"]
