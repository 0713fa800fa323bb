"""The command `python -m multikv`."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
from pathlib import Path
from typing import Any

import torch

from multikv import platforms

from . import cases, plot
from .measure import Result, describe, run

DESCRIPTION = "Says which libraries serve this host and why, and checks and times the ops on it."


def main(arguments: list[str] | None = None) -> int:
    """Runs the command.

    Args:
        arguments: arguments of the command line; None: those of this process.

    Returns:
        The exit code: 0 if all results agree with those of multikv.reference (see `Workload.agrees_with`), else 1.
    """
    parser = argparse.ArgumentParser(prog="python -m multikv", description=DESCRIPTION)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), help="where the ops run (default: the GPU, if a library serves it)"
    )
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="also draw the results, to an .svg or .png file; needs multikv[plot]"
    )
    options = parser.parse_args(arguments)
    if options.plot is not None and importlib.util.find_spec("matplotlib") is None:
        parser.error("--plot: matplotlib is not installed: pip install matplotlib")
    device = torch.device(options.device or ("cpu" if platforms.platform() == "cpu" else "cuda"))
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU on this host")
    about = describe(device)
    results = (_print_json if options.json else _print_table)(device, about)
    if options.plot is not None:
        plot.draw(results, about, options.plot)
    return 0 if all(result.ok for result in results) else 1


def _print_json(device: torch.device, about: dict[str, Any]) -> list[Result]:
    results = [run(case, device) for case in cases.CASES]
    ok = all(result.ok for result in results)
    print(json.dumps({**about, "ops": [dataclasses.asdict(result) for result in results], "ok": ok}))
    return results


def _print_table(device: torch.device, about: dict[str, Any]) -> list[Result]:
    from . import table  # noqa: PLC0415  --json does not need rich

    console = table.make_console()
    table.print_header(console, about)
    rows = table.Rows(console, (case.name for case in cases.CASES), about["copy"])
    results = []
    for case in cases.CASES:
        results.append(run(case, device))
        rows.add(results[-1])
    rows.finish()
    return results
