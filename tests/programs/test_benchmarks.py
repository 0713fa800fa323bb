"""`python -m benchmarks`: one small case, the file it writes, the comparison of two files, and its exit codes."""

from __future__ import annotations

import json
import random
from functools import partial

import torch

import multikv
from benchmarks import swap, vllm_timing
from multikv import platforms
from multikv.demo import cases as workloads
from multikv.demo import timing
from tests.support.processes import run_program

ONE_CASE = ("--device", "cpu", "--op", "concat_and_cache_mla", "--only", "bf16/T=1$", "--no-compile")
CASE = "concat_and_cache_mla/bf16/T=1"


def ours(path):
    (result,) = [x for x in json.loads(path.read_text())["results"] if x["contender"] == "multikv"]
    return result


def test_one_case_and_a_comparison(run_module, tmp_path):
    before, after = tmp_path / "some" / "before.json", tmp_path / "after.json"
    run = run_module("benchmarks", *ONE_CASE, "--out", before)
    assert run.code == 0
    assert "concat_and_cache_mla" in run.out and f"1/1 {CASE}" in run.err
    content = json.loads(before.read_text())
    assert content["machine"]["device"] == "cpu" and len(content["machine"]["csrc_sha256"]) == 64
    result = ours(before)
    assert result["bit_equal"] and result["error"] is None and result["device_us"] > 0

    for row in content["results"]:
        row["device_us"] = row["device_us"] and row["device_us"] / 2
    other = result | {"case": "of another op", "op": "another"}
    after.write_text(json.dumps(content | {"results": [*content["results"], other]}))
    run = run_module("benchmarks", "--compare", before, after)
    assert run.code == 0
    (row,) = [line.split() for line in run.out.splitlines() if line.strip().startswith(CASE)]
    assert row[3] == "2.00"
    assert "only in B: another/of another op" in run.out and "only in A" not in run.out


def test_wrong_bytes_fail_the_run(run_module, tmp_path, monkeypatch):
    monkeypatch.setattr(multikv, "concat_and_cache_mla", lambda *arguments: None)
    run = run_module("benchmarks", *ONE_CASE, "--contenders", "--out", tmp_path / "out.json")
    assert run.code == 1
    assert "the bytes written are not those of the reference" in run.out
    result = ours(tmp_path / "out.json")
    assert result["bit_equal"] is False and result["device_us"] is None


def test_an_error_while_a_case_is_timed_fails_the_run(run_module, tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise RuntimeError("no time")

    monkeypatch.setattr(timing, "device_times", fail)
    run = run_module("benchmarks", *ONE_CASE, "--contenders", "--out", tmp_path / "out.json")
    assert run.code == 1
    result = ours(tmp_path / "out.json")
    assert result["bit_equal"] is True and result["error"] == "RuntimeError: no time"


def test_no_case_is_a_usage_error(run_module):
    run = run_module("benchmarks", "--device", "cpu", "--only", "no such case")
    assert run.code == 2 and "no case matches" in run.err


def test_names_of_cases(run_module):
    run = run_module("benchmarks", "--device", "cpu", "--list")
    assert run.code == 0
    names = run.out.split()
    assert CASE in names and len(set(names)) == len(names)
    assert {name.partition("/")[0] for name in names} <= set(platforms.op_names())


def test_single_calls_take_turns():
    """Each contender's calls rotate, and no call begins before the one before it has ended."""
    log: list[str] = []
    contenders = [[partial(log.append, f"{who}{i}") for i in range(n)] for who, n in (("a", 2), ("b", 3))]
    times = timing.cold_times(contenders, torch.device("cpu"))
    assert len(times) == 2 and min(times) >= 0
    assert log[:8] == ["a0", "b0", "a1", "b1", "a0", "b2", "a1", "b0"]


def test_single_calls_of_swaps_are_cases_of_a_gpu_alone():
    names = {
        device: [case.name for case in swap.cases(torch.device(device)) if case.cold] for device in ("cpu", "cuda")
    }
    assert not names["cpu"]
    directions, sizes = ("d2h", "h2d", "d2d"), ("4K", "32K", "256K", "2M")
    assert names["cuda"] == [f"{direction}/{size}/one-call" for direction in directions for size in sizes]


def test_a_batch_of_addresses_does_the_same_job():
    workload = workloads.swap_blocks(torch.device("cpu"), "h2h", block_bytes=64, num_blocks=20)
    expected = workload.copy()
    expected.bind()()
    multikv.swap_blocks_batch(*swap._addresses(workload))
    assert workloads.same_bytes(workload.outputs(), expected.outputs())


def test_the_cache(tmp_path):
    run = run_program("-m", "benchmarks.pool", "--device", "cpu", "--transfer", "--out", tmp_path / "pool.json")
    assert run.returncode == 0, run.stderr
    content = json.loads((tmp_path / "pool.json").read_text())
    assert content.pop("machine")["device"] == "cpu"
    assert len(content) == 3 and all(0 < time < 1e6 for time in content.values())


def test_turns_of_kernels(monkeypatch):
    """A step takes the time of its launches, and waits for the step before. A quarter of the steps are disturbed.

    Changing between kernels takes long, and some generations have a step more.
    """
    source = random.Random(0)
    launch, device = {"vllm": 2.0, "multikv": 2.4}, {"vllm": 5.0, "multikv": 4.0}
    now, launched, in_use = 0.0, "vllm", "vllm"

    def use_kernels(name):
        nonlocal now, in_use
        now += 100 * (name != in_use)
        in_use = name

    def step():
        nonlocal now, launched
        now += (launch[in_use] + device[launched]) * source.uniform(1, 1.1) * source.choice([1, 1, 1, 3])
        launched = in_use
        return in_use

    monkeypatch.setattr(vllm_timing.time, "perf_counter", lambda: now)
    turns = vllm_timing.Turns(step, use_kernels)
    for generation in range(4 * 32):
        turns.begin(generation)
        launched = "vllm" if generation % 4 < 2 else "multikv"  # the first step has none before it
        used = [turns() for _ in range(20 + generation // 7 % 2)]
        assert {"vllm", "multikv"} == set(used[:5])
    found = turns.summary()
    assert found["rounds"] == 32 and found["steps"] == [20, 21]
    assert 20 * 7.0e3 <= found["vllm_ms"] <= 20 * 7.4e3
    factor = 6.4 / 7
    assert abs(found["multikv_relative"] / factor - 1) < 0.02 and abs(found["median"] / factor - 1) < 0.02
    low, high = found["interval"]
    assert low <= factor <= high and high - low < 0.1
