"""Prints results as tables, and saves them as JSON."""

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import rich.box
from rich.console import Console
from rich.table import Table

from benchmarks.runner import Result


def save(path: Path, machine: dict[str, Any], results: list[Result]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"machine": machine, "results": [dataclasses.asdict(r) for r in results]}
    path.write_text(json.dumps(content, indent=1) + "\n")


def print_cases(console: Console, machine: dict[str, Any], results: list[Result]) -> None:
    """Prints a row for each case: multikv, and the fastest of the other contenders."""
    table = _table(machine, ("op and case",), ("us", "% copy", "host us"), ("best baseline",), ("us",))
    for op, of_op in itertools.groupby(results, lambda r: r.op):
        table.add_row(f"[bold]{op}")
        for case, of_case in itertools.groupby(of_op, lambda r: r.case):
            ours, *others = of_case
            best = min((r for r in others if r.device_us), key=lambda r: r.device_us or 0.0, default=None)
            table.add_row(
                f"  {case}",
                "[red]failed[/]" if ours.error else _text(ours.device_us, ".2f"),
                _percent(ours.share_of_copy),
                _text(ours.host_us, ".1f"),
                *((best.contender, _text(best.device_us, ".2f")) if best else ()),
            )
    console.print(table)
    _print_errors(console, results)


def print_contenders(console: Console, machine: dict[str, Any], results: list[Result]) -> None:
    table = _table(machine, ("op and case", "contender", "bytes"), ("device us", "host us", "GB/s", "% copy"))
    for op, rows in itertools.groupby(results, lambda r: r.op):
        table.add_row(f"[bold]{op}")
        for r in rows:
            first = r.contender == "multikv"
            equal = {True: "equal", False: "[red]differ[/]", None: ""}[r.bit_equal]
            table.add_row(
                f"  {r.case}" if first else "",
                r.contender,
                "[red]failed[/]" if r.error else equal,
                _text(r.device_us, ".2f"),
                _text(r.host_us, ".2f"),
                _text(r.gb_per_s, ".1f"),
                _percent(r.share_of_copy),
                style="bold" if first else None,
            )
    console.print(table)
    _print_errors(console, results)


def _table(machine: dict[str, Any], *columns: tuple[str, ...]) -> Table:
    """Makes a table from groups of column names: text, numbers, text, numbers, ..."""
    title = f"{machine.get('gpu') or machine['cpu']}; copy: {machine['copy']}"
    if "neg_host_us" in machine:
        title += f"; neg_ of one element: host us {machine['neg_host_us']:.1f}"
    table = Table(title=title, title_justify="left", box=rich.box.SIMPLE_HEAD)
    for names, justify in zip(columns, itertools.cycle(("left", "right"))):
        for name in names:
            table.add_column(name, justify=justify, no_wrap=True)
    return table


def _print_errors(console: Console, results: list[Result]) -> None:
    for r in results:
        if r.error:
            lines = r.error.strip().splitlines()
            console.print(f"{r.op}/{r.case}, {r.contender}: {lines[0] if lines else r.error}", markup=False)


def print_comparison(console: Console, before: Path, after: Path) -> None:
    """Prints the times of multikv in two files of results, case by case."""
    for name, path in (("A", before), ("B", after)):
        machine = json.loads(path.read_text())["machine"]
        console.print(
            f"{name} = {path}: {machine.get('gpu') or machine['cpu']}, multikv {machine['multikv']} "
            f"({machine['git_revision']}), torch {machine['torch']}, {machine['date_utc']}",
            markup=False,
        )
    a, b = _times(before), _times(after)
    table = Table(title="multikv, device time", title_justify="left", box=rich.box.SIMPLE_HEAD)
    for name in ("case", "A: us", "B: us", "A / B", "A: % copy", "B: % copy"):
        table.add_column(name, justify="left" if name == "case" else "right", no_wrap=True)
    for case in [case for case in a if case in b]:
        (time_a, share_a), (time_b, share_b) = a[case], b[case]
        ratio = time_a / time_b
        color = "green" if ratio > 1.03 else "red" if ratio < 0.97 else "default"
        table.add_row(
            case,
            f"{time_a:.2f}",
            f"{time_b:.2f}",
            f"[{color}]{ratio:.2f}[/]",
            f"{100 * share_a:.0f}",
            f"{100 * share_b:.0f}",
        )
    console.print(table)
    for title, cases in (("only in A", a.keys() - b.keys()), ("only in B", b.keys() - a.keys())):
        if cases:
            console.print(f"{title}: {', '.join(sorted(cases))}")


def _times(path: Path) -> dict[str, tuple[float, float]]:
    results = json.loads(path.read_text())["results"]
    return {
        f"{r['op']}/{r['case']}": (r["device_us"], r["share_of_copy"])
        for r in results
        if r["contender"] == "multikv" and r["device_us"] is not None
    }


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.0f}"


def _text(number: float | None, form: str) -> str:
    return "" if number is None else format(number, form)
