"""The figure of README: its cases are those of the benchmark, by name."""

import json
import runpy

import pytest

from tests.support.processes import ROOT

RESULTS = sorted((ROOT / "benchmarks/results").glob("nvidia-h200_torch-*.json"))
figure = runpy.run_path(str(ROOT / "benchmarks/figure.py"))


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_every_case_was_measured(path):
    rows = figure["shares"](json.loads(path.read_text()))
    assert rows.keys() == figure["PEERS"].keys()
    for case, by_whom in rows.items():
        assert 0 < by_whom["multikv"] < 150, case
        assert {who: share for who, share in by_whom.items() if who != "multikv"} == figure["PEERS"][case]


def test_every_case_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    figure["draw"](json.loads(RESULTS[-1].read_text()), tmp_path / "figure.svg")
    text = (tmp_path / "figure.svg").read_text()
    assert [case for case in figure["PEERS"] if "  ".join(case) not in text] == []
