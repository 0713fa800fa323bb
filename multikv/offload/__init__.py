"""Offloading of blocks to the host: pinned memory, and the calibration of swaps.

With the strategy `auto`, a swap chooses between a kernel and the copy engines by the costs of both: those measured on
the device, or default costs. docs/swap.md explains how. Each module imports only modules above it:

- `memory` allocates pinned memory.
- `costs` holds what swaps cost on each device.
- `calibration` measures these costs.
- `pools` makes pinned tensors for pools of blocks.
"""

from .calibration import calibrate_swaps
from .costs import SwapCosts, swap_costs
from .pools import empty_pinned

__all__ = ["SwapCosts", "calibrate_swaps", "empty_pinned", "swap_costs"]
