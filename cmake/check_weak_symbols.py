"""Fails where an object file defines a weak symbol: check_weak_symbols.py NM OBJECT..."""

import subprocess
import sys

nm, *objects = sys.argv[1:]
command = [nm, "-C", "-A", "--defined-only", *objects]
listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
# nm's V, v, W and w are weak symbols; u is the unique global symbol of a static variable in an inline function.
weak = [line for line in listing.splitlines() if line.split(":", 1)[1].split()[1] in "VvWwu"]
if weak:
    sys.exit("weak symbols in files that are compiled once per instruction set:\n" + "\n".join(weak))
