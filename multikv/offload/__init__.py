"""Offloading blocks to the host: pinned memory for them, and the measured costs by which swaps choose a copy engine.

Modules, each of which imports only those above it:

- `memory`: allocation of pinned memory
- `costs`: what swaps cost on a device, and where that is stored
- `calibration`: measuring these costs
- `pools`: pinned tensors for pools of blocks

docs/swap.md explains how swaps choose.
"""

from .calibration import calibrate_swaps
from .costs import SwapCosts, swap_costs
from .pools import empty_pinned

__all__ = ["SwapCosts", "calibrate_swaps", "empty_pinned", "swap_costs"]
