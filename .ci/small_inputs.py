"""Compares every op with the reference on small inputs, as the demo does. To be run on an emulated CPU:

    qemu-x86_64 -cpu Nehalem python .ci/other_cpus.py baseline

The argument is the instruction set that multikv must choose on that CPU.
"""

import sys

import torch

from multikv import platforms, reference
from multikv.demo import cases

expected_isa = sys.argv[1]
assert platforms.cpu_isa() == expected_isa, f"{platforms.cpu_isa()}, not {expected_isa}: {platforms.report()}"
# A better instruction set cannot be forced either.
assert platforms.cpu_isas()[-1] == expected_isa, platforms.cpu_isas()
device = torch.device("cpu")
for case in cases.CASES:
    small = case.make(device, **case.small)
    expected = small.copy("cpu")
    expected.bind(reference)()
    small.bind()()
    assert small.agrees_with(expected), f"{case.op}, {case.name}: other results"
print(f"{expected_isa}: {len(cases.CASES)} cases agree with the reference")
