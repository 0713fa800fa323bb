"""The command `python -m multikv`."""

from __future__ import annotations

import argparse
import dataclasses
import json

import torch

from multikv import platforms

from . import cases
from .measure import describe, run

DESCRIPTION = "Says which libraries serve this host and why, and checks and times the ops on it."


def main(arguments: list[str] | None = None) -> int:
    """Runs the command.

    Args:
        arguments: arguments of the command line; None: those of this process.

    Returns:
        The exit code: 0 if all ops wrote the right bytes, else 1.
    """
    parser = argparse.ArgumentParser(prog="python -m multikv", description=DESCRIPTION)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), help="where the ops run (default: the GPU, if a library serves it)"
    )
    options = parser.parse_args(arguments)
    device = torch.device(options.device or ("cpu" if platforms.platform() == "cpu" else "cuda"))
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU on this host")
    return _print_json(device) if options.json else _print_tables(device)


def _print_json(device: torch.device) -> int:
    about, results = describe(device), [run(case, device) for case in cases.CASES]
    ok = all(result.ok for result in results)
    print(json.dumps({**about, "ops": [dataclasses.asdict(result) for result in results], "ok": ok}))
    return 0 if ok else 1


def _print_tables(device: torch.device) -> int:
    from . import table  # noqa: PLC0415  --json does not need rich

    about, console = describe(device), table.make_console()
    table.print_header(console, about)
    rows = table.Rows(console, (case.name for case in cases.CASES), about["copy"])
    all_ok = True
    for case in cases.CASES:
        result = run(case, device)
        rows.add(result)
        all_ok &= result.ok
    rows.finish()
    return 0 if all_ok else 1
