"""`python -m multikv`: what it prints, and its exit codes."""

from __future__ import annotations

import importlib.util
import json
import re
from dataclasses import replace

import pytest
import torch

import multikv
from multikv import platforms, reference
from multikv.demo import cases, plot
from multikv.demo.measure import Result

# The demo has no addresses to copy between.
SHOWN_OPS = sorted(set(platforms.op_names()) - {"swap_blocks_batch"})


def test_json(run_module, monkeypatch):
    """Small inputs are timed, too: `make demo` times the large ones."""
    monkeypatch.setattr(cases, "CASES", [replace(case, large=case.small) for case in cases.CASES])
    run = run_module("multikv", "--json", "--device", "cpu")
    assert run.code == 0, run.err
    found = json.loads(run.out)
    assert found["ok"] and found["device"] == "cpu"
    assert found["multikv"] == multikv.__version__ and found["torch"] == torch.__version__
    assert found["cpu_isas"] == list(platforms.cpu_isas()) and found["report"] == platforms.report().splitlines()
    assert [library["name"] for library in found["libraries"]] == [library.name for library in platforms.libraries()]
    assert sorted({result["op"] for result in found["ops"]}) == SHOWN_OPS
    for result in found["ops"]:
        assert result["ok"] and result["error"] is None, result
        assert result["time_us"] > 0 and result["gb_per_s"] > 0 and result["share_of_copy"] > 0


def test_table_with_ops_that_are_wrong(run_module, monkeypatch):
    """The exit code is 1, and what is wrong is named. Only an op that is right is timed."""
    for op in SHOWN_OPS:
        if op != "concat_mla_q":
            monkeypatch.setattr(reference, op, lambda *arguments: None)  # writes nothing
    run = run_module("multikv", "--device", "cpu")
    assert run.code == 1
    assert f"multikv {multikv.__version__}, torch {torch.__version__}" in run.out
    assert all(line in run.out for line in platforms.report().splitlines())
    lines = [line.strip() for line in run.out.splitlines()]
    assert sorted(line for line in lines if line in platforms.op_names()) == SHOWN_OPS
    wrong = [line for line in lines if line.endswith("WRONG")]
    errors = [line for line in lines if line.endswith(": results differ from multikv.reference")]
    assert len(wrong) == len(errors) > len(SHOWN_OPS)
    assert sorted({error.partition(",")[0] for error in errors} | {"concat_mla_q"}) == SHOWN_OPS
    assert len([line for line in lines if re.search(r" right +\d", line)]) == 1


def test_json_of_one_wrong_byte(run_module, monkeypatch):
    """One op writes another byte than the reference, and the reference raises for all others: both are reported."""

    def flip(dst_cache, *others):
        right(dst_cache, *others)
        dst_cache.view(torch.uint8).view(-1)[3] ^= 1

    def fail(*arguments):
        raise ValueError("no reference")

    right = reference.convert_fp8
    for op in SHOWN_OPS:
        monkeypatch.setattr(reference, op, flip if op == "convert_fp8" else fail)
    run = run_module("multikv", "--device", "cpu", "--json")
    found = json.loads(run.out)
    assert run.code == 1 and found["ok"] is False
    for result in found["ops"]:
        differs = result["op"] == "convert_fp8"
        expected = "results differ from multikv.reference" if differs else "ValueError: no reference"
        assert (result["ok"], result["error"], result["time_us"]) == (False, expected, None)


def test_plot(tmp_path):
    """The figure has every case that was timed."""
    pytest.importorskip("matplotlib")
    results = [Result("op_a", "case 1", True, None, 1.0, 1.0, 0.5), Result("op_b", "wrong", False, "bytes differ")]
    about = {"copy": "memmove", "multikv": "1", "torch": "2", "device_name": "CPU"}
    plot.draw(results, about, tmp_path / "figure.svg")
    assert (tmp_path / "figure.svg").stat().st_size > 1000


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is not None, reason="matplotlib is installed")
def test_plot_without_matplotlib(run_module, tmp_path):
    run = run_module("multikv", "--plot", tmp_path / "figure.svg")
    assert run.code == 2 and "matplotlib is not installed" in run.err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--nonsense",), "unrecognized arguments: --nonsense"),
        (("--device", "tpu"), "argument --device: invalid choice: 'tpu'"),
        (("--device", "cuda"), "--device cuda: torch sees no GPU on this host"),
    ],
    ids=["option", "device", "no_gpu"],
)
def test_usage(run_module, arguments, message):
    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    run = run_module("multikv", *arguments)
    assert run.code == 2 and run.out == ""
    assert message in run.err


def test_names_of_swaps_say_how_many_blocks_are_copied():
    swaps = [case for case in cases.CASES if case.op.startswith("swap_blocks")]
    assert swaps
    for case in swaps:
        mapping = case.make(torch.device("meta"), **case.large).arguments[3]
        assert f" {len(mapping)} x 32 KiB" in case.name
