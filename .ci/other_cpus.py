"""Every op, small, against the reference, on CPUs that this machine is not: run by qemu-user as one of them.

    qemu-x86_64 -cpu Nehalem python .ci/other_cpus.py baseline

The argument is the instruction set that multikv must choose there.
"""

import sys

import torch

from multikv import _cases, platforms, reference
from multikv.__main__ import CASES

expected_isa = sys.argv[1]
assert platforms.cpu_isa() == expected_isa, f"{platforms.cpu_isa()}, not {expected_isa}: {platforms.report()}"
# Nothing better can be forced upon it either.
assert platforms.cpu_isas()[-1] == expected_isa, platforms.cpu_isas()
device = torch.device("cpu")
for case in CASES:
    small = case.make(device, **case.small)
    expected = small.copy("cpu")
    expected.bind(reference)()
    small.bind()()
    assert _cases.same_bytes(small.outputs(), expected.outputs()), f"{case.op}, {case.name}: other bytes"
print(f"{expected_isa}: {len(CASES)} cases give the bytes of the reference")
