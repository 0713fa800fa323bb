"""Compares every op with the reference on small inputs, as the demo does: python .ci/small_inputs.py [ISA]

With an argument, it is the instruction set that multikv must choose on this CPU, which may be an emulated one:

    qemu-x86_64 -cpu Nehalem python .ci/small_inputs.py baseline
"""

import sys

import torch

from multikv import platforms, reference
from multikv.demo import cases

isa = platforms.cpu_isa()
for wanted in sys.argv[1:]:
    assert isa == wanted, f"{isa}, not {wanted}: {platforms.report()}"
    # A better instruction set cannot be forced either.
    assert platforms.cpu_isas()[-1] == wanted, platforms.cpu_isas()
device = torch.device("cpu")
for case in cases.CASES:
    small = case.make(device, **case.small)
    expected = small.copy("cpu")
    expected.bind(reference)()
    small.bind()()
    assert small.agrees_with(expected), f"{case.op}, {case.name}: other results"
loaded = ", ".join(str(library.path) for library in platforms.libraries() if library.loaded)
print(f"{isa}: {len(cases.CASES)} cases agree with the reference: {loaded}")
