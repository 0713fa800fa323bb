"""Fails where an object file defines a weak symbol: check_weak_symbols.py NM OBJECT..."""

import subprocess
import sys

nm, *objects = sys.argv[1:]
listing = subprocess.run([nm, "-C", "-A", "--defined-only", *objects], check=True, capture_output=True, text=True).stdout
# V, v, W, w: weak. u: unique global, of a static in an inline function.
weak = [line for line in listing.splitlines() if line.split(":", 1)[1].split()[1] in "VvWwu"]
if weak:
    sys.exit("weak symbols in files that are compiled once per instruction set:\n" + "\n".join(weak))
