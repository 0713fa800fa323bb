"""Prints the results of the demo to a terminal or a file."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import rich.box
from rich.console import Console
from rich.table import Table

from .measure import Result

_FILE_WIDTH = 120  # columns, where the output is not a terminal


def print_header(console: Console, about: dict[str, Any]) -> None:
    """Prints what `measure.describe` returned."""
    console.print(f"[bold]multikv {about['multikv']}[/], torch {about['torch']}, Python {about['python']}")
    console.print(
        f"platform: [bold]{about['platform']}[/]; ops run on {about['device_name']}, {about['threads']} CPU threads",
        highlight=False,
    )
    console.print(*about["report"], sep="\n", markup=False, highlight=False)


def print_results(console: Console, results: list[Result], copy: str) -> None:
    """Prints a table of all results, and then the errors."""
    console.print(_table(results, copy))
    for r in results:
        if r.error:
            console.print(f"{r.op}, {r.case}: {r.error}", style="red", markup=False)


def make_console() -> Console:
    """Returns a console for the standard output."""
    console = Console()
    if not console.is_terminal:
        console.width = _FILE_WIDTH
    return console


def _table(results: list[Result], copy: str) -> Table:
    table = Table(
        title="bytes: compared with those of multikv.reference\n"
        f"% copy: 100 * time of a copy of as many bytes ({copy}) / time of the op",
        title_justify="left",
        box=rich.box.SIMPLE_HEAD,
    )
    for name in ("op and case", "bytes"):
        table.add_column(name, no_wrap=True)
    for name in ("us", "GB/s", "% copy"):
        table.add_column(name, justify="right", no_wrap=True)
    for op, rows in itertools.groupby(results, lambda r: r.op):
        table.add_row(f"[bold]{op}")
        for r in rows:
            table.add_row(f"  {r.case}", "[green]equal[/]" if r.ok else "[bold red]WRONG[/]", *_numbers(r))
    return table


def _numbers(r: Result) -> Iterable[str]:
    if r.time_us is None or r.gb_per_s is None or r.share_of_copy is None:
        return ()
    return f"{r.time_us:.1f}", f"{r.gb_per_s:.1f}", f"{100 * r.share_of_copy:.0f}"
