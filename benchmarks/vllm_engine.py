"""vLLM's engine on a GPU with and without multikv: tokens, log-probabilities, calls of ops, tokens per second.

    python -m benchmarks.vllm_engine --out benchmarks/results/<machine>_vllm.json

Needs vLLM with its compiled library. Each case runs in several modes: `vllm` leaves vLLM alone, `multikv` serves the
cache ops, and `attention` serves them and attends by paged_attention. Each mode of each case has a process of its own.
The processes of several cases start at once. Then one process at a time is timed, while the others are stopped. The
process of mode `multikv` times both vLLM's own kernels and multikv's: `benchmarks.vllm_timing` says how. Models are
small and have random weights. Most cases have 16 prompts of 1 to 900 tokens, which are prefilled in chunks of 512
tokens, and each generates 64 tokens greedily.

The report says for each case whether tokens and log-probabilities are those of vLLM, bit for bit, and whether they
differ once the ops that write do nothing (`control_differs`). `digest` names the tokens and log-probabilities of a
mode, so that cases can be compared. The report is written after each case. Cases that the file holds already are kept,
unless they run again. `--list` names the cases.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import IO, Any

from benchmarks.vllm_cases import CASES, MODES, Case, save_models

WORKER = "benchmarks.vllm_worker"
CHILD_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
    "TORCHINDUCTOR_COMPILE_THREADS": "1",
    "GLOO_SOCKET_IFNAME": "lo",
    "NCCL_SOCKET_IFNAME": "lo",
}
STEP_SECONDS = {"start": 240.0, "time": 60.0, "finish": 90.0}  # limits; "time" has the seconds of --time, too
TIMES = ("repeats_itself", "time", "host_ns", "tokens_per_second", "time_of_no_change")  # what is printed


class Worker:
    """One mode of a case, in a process of its own. After an error it answers nothing more."""

    def __init__(self, folder: Path, name: str, mode: str, seconds: float) -> None:
        """Remembers what to start, and for how long it is timed."""
        self.folder, self.name, self.mode, self.seconds = folder, name, mode, seconds
        self.number = list(CASES).index(name)
        self.num_steps = 0
        self.error = ""
        self.process: subprocess.Popen[bytes] | None = None
        self.log: IO[bytes] | None = None

    def ask(self, step: str, until: float) -> dict[str, Any]:
        """Runs one step, and returns its answer, or nothing after an error or at the time `until`."""
        if self.error:
            return {}
        if self.process is None:
            self._start()
        assert self.process is not None
        assert self.process.stdin is not None
        answer = self.folder / f"{self.number}-{self.mode}-{self.num_steps}.json"
        self.num_steps += 1
        self._signal(signal.SIGCONT)
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(f"{step}\n".encode())
            self.process.stdin.flush()
        seconds = STEP_SECONDS[step] + (self.seconds if step == "time" else 0)
        seconds = min(seconds, until - time.monotonic())
        end = time.monotonic() + seconds
        while not answer.exists():
            if self.process.poll() is not None:
                self.error = f"{step}: the process ended"
            elif time.monotonic() > end:
                self.error = f"{step}: not done after {seconds:.0f} s"
            if self.error:
                self._report()
                self.stop()
                return {}
            time.sleep(0.02)
        self._signal(signal.SIGSTOP)  # threads of an idle engine would take time from the others
        result: dict[str, Any] = json.loads(answer.read_text())
        return result

    def stop(self) -> None:
        """Ends the process, and those that it started."""
        if self.process is not None:
            self._signal(signal.SIGKILL)
            self.process.wait()
        if self.log is not None:
            self.log.close()
            self.log = None

    def _start(self) -> None:
        caches = {x: str(self.folder / f"{x}-{self.number}") for x in ("VLLM_CACHE_ROOT", "TORCHINDUCTOR_CACHE_DIR")}
        self.log = (self.folder / f"{self.number}-{self.mode}.log").open("wb")
        self.process = subprocess.Popen(
            [sys.executable, "-m", WORKER, str(self.folder), self.name, self.mode, str(self.seconds)],
            env=os.environ | CHILD_ENVIRONMENT | caches | MODES[self.mode],
            stdin=subprocess.PIPE,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def _signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def _report(self) -> None:
        lines = (self.folder / f"{self.number}-{self.mode}.log").read_text(errors="replace").splitlines()
        reasons = [line.strip() for line in lines if "Error" in line or "error:" in line]
        self.error += f" ({reasons[-1][:300]})" if reasons else ""
        print(f"{self.name}, {self.mode}: {self.error}", *lines[-25:], sep="\n  | ", flush=True)


def start(workers: list[Worker], case: Case, until: float) -> list[dict[str, Any]]:
    """Starts the modes of a case: at once, or the first one alone."""
    alone = 1 if case.compiles else 0
    answers = [worker.ask("start", until) for worker in workers[:alone]]
    with ThreadPoolExecutor(len(workers)) as pool:
        return answers + list(pool.map(lambda worker: worker.ask("start", until), workers[alone:]))


def compare(results: dict[str, dict[str, Any]]) -> None:
    """Compares the modes of a case with vLLM, and drops the outputs."""
    outputs = {mode: result.pop("outputs", None) for mode, result in results.items()}
    controls = {mode: result.pop("control", None) for mode, result in results.items()}
    for mode, got in outputs.items():
        if got:
            results[mode]["digest"] = hashlib.sha256(json.dumps(got).encode()).hexdigest()[:16]
        if got and mode != "vllm" and outputs.get("vllm"):
            results[mode].update(differences(got, outputs["vllm"]))
    if controls.get("vllm") and controls.get("multikv"):
        results["multikv"]["control_differs"] = controls["multikv"] != controls["vllm"]


def differences(got: list[Any], wanted: list[Any]) -> dict[str, Any]:
    """Returns whether tokens and log-probabilities are equal, and how close those of the first tokens are."""
    result = {"tokens_equal": [x[0] for x in got] == [x[0] for x in wanted], "logprobs_equal": got == wanted}
    if got == wanted:
        return result
    pairs = [(x[1][0], y[1][0]) for x, y in zip(got, wanted, strict=True) if x[0][0] == y[0][0]]
    distances = [abs(float.fromhex(x) - float.fromhex(y)) for x, y in pairs]
    first = {
        "first_tokens_equal": f"{len(pairs)} of {len(got)}",
        "first_logprobs_differ_by": max(distances, default=None),
    }
    return result | first


def run(folder: Path, names: list[str], options: argparse.Namespace, report: dict[str, Any], until: float) -> None:
    """Runs cases whose processes live at the same time."""
    modes = options.modes.split(",")
    workers = {
        name: [Worker(folder, name, mode, options.time) for mode in CASES[name].modes if mode in modes]
        for name in names
    }
    try:
        with ThreadPoolExecutor(len(names)) as pool:
            started = dict(
                zip(names, pool.map(lambda name: start(workers[name], CASES[name], until), names), strict=True)
            )
        cases = {}
        for name in names:
            answers = zip(workers[name], started[name], strict=True)
            cases[name] = {worker.mode: answer for worker, answer in answers}
            for answer in started[name]:
                for key in ("device", "torch"):
                    report[key] = answer.pop(key, report.get(key))
            for worker in workers[name]:
                result = cases[name][worker.mode]
                result.update(worker.ask("time", until))
                shown = (result[key] for key in TIMES if key in result)
                print(name, worker.mode, *shown, flush=True)

        def finish(worker: Worker) -> None:
            if not options.time_only:
                cases[worker.name][worker.mode].update(worker.ask("finish", until))
            if worker.error:
                cases[worker.name][worker.mode]["error"] = worker.error

        with ThreadPoolExecutor(8) as pool:  # counts do not depend on what else the GPU does
            finishing = {name: [pool.submit(finish, worker) for worker in workers[name]] for name in names}
            for name in names:
                wait(finishing[name])
                compare(cases[name])
                report["cases"][name] = cases[name]
                write(report, options.out)
    finally:
        for of_case in workers.values():
            for worker in of_case:
                worker.stop()


def write(report: dict[str, Any], out: Path | None) -> None:
    """Writes the report, its cases in the order of CASES."""
    report["cases"] = {name: report["cases"][name] for name in CASES if name in report["cases"]}
    if out:
        out.write_text(json.dumps(report, indent=1) + "\n")


def main() -> None:
    """Runs the cases, several at a time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--cases", default=",".join(str(i) for i in range(len(CASES))), help="numbers of cases")
    parser.add_argument("--list", action="store_true", help="prints the cases and their numbers")
    parser.add_argument("--together", type=int, default=6, help="how many cases start at once")
    parser.add_argument("--time", type=float, default=15, help="for how many seconds each mode is timed")
    parser.add_argument("--modes", default=",".join(MODES), help="modes to run")
    parser.add_argument("--time-only", action="store_true", help="count no calls, and leave out the control")
    parser.add_argument("--seconds", type=float, default=3600, help="limit of all cases together")
    options = parser.parse_args()
    if options.list:
        print(*(f"{i} {name}" for i, name in enumerate(CASES)), sep="\n")
        return
    until = time.monotonic() + options.seconds
    report: dict[str, Any] = {"vllm": "0.33.0", "cases": {}}
    if options.out and options.out.exists():
        report = json.loads(options.out.read_text())
    names = [list(CASES)[int(i)] for i in options.cases.split(",")]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        save_models(Path(folder))
        for i in range(0, len(names), options.together):
            run(Path(folder), names[i : i + options.together], options, report, until)
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
