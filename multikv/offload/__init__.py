"""Offloading of blocks to the host: pinned memory, and the calibration of swaps.

A swap chooses between a kernel and the copy engines by costs that were measured on the device; docs/swap.md explains
how. Each module imports only modules above it:

- `memory` allocates pinned memory.
- `costs` holds what swaps cost on each device.
- `calibration` measures these costs.
- `pools` makes pinned tensors for pools of blocks.
"""

from .calibration import calibrate_swaps
from .costs import SwapCosts, swap_costs
from .pools import empty_pinned

__all__ = ["SwapCosts", "calibrate_swaps", "empty_pinned", "swap_costs"]
