"""The table of cache formats: csrc/core/format.h, multikv/formats.py and docs/formats.md hold the same."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from multikv import formats
from multikv.runtime.process import PROCESS
from tests.support.processes import ROOT

PAGE = ROOT / "docs" / "formats.md"


def markdown_row(row: formats.CacheFormat) -> str:
    """The row of docs/formats.md for a format."""
    codec, choice = row.codec, formats.ElementChoice
    element = {choice.FIXED: codec.element.name, choice.INPUT: "that of the input", choice.E4M3: "e4m3fn or e4m3fnuz"}
    families = ", ".join(family.value for family in formats.Family if family in row.families)
    group, kind, place = (
        field.value.replace("_", " ") for field in (codec.scale_group, codec.scale_type, codec.scale_place)
    )
    tile = f" of {codec.tile_size}" if codec.tile_size else ""
    return f"| `{row.name}` | {families} | {element[row.choice]} | {group}{tile} | {kind} | {place} |"


def test_python_and_csrc_hold_the_same_table():
    assert PROCESS.cpu.formats() == [row.to_json() for row in formats.CACHE_FORMATS]


def test_the_page_lists_every_row():
    lines = PAGE.read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("| `kv_cache_dtype` |")) + 2
    listed = [line for line in lines[start:] if line.startswith("| `")][: len(formats.CACHE_FORMATS)]
    assert listed == [markdown_row(row) for row in formats.CACHE_FORMATS]


@pytest.mark.parametrize("family", formats.Family)
def test_no_name_has_two_meanings_in_a_family(family):
    names = formats.names(family)
    assert names and len(names) == len(set(names))


def test_codecs_to_come_can_be_expressed(tmp_path):
    """Bytes of codes and scales, as static_asserts: sub-byte elements, scales per token and head, inline scales, ..."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++")
    source = Path(__file__).with_name("codecs_to_come.cpp")
    subprocess.run(
        [compiler, "-std=c++20", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", f"-I{ROOT / 'csrc'}", source],
        check=True,
    )
