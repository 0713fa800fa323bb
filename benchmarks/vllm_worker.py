"""One engine of `benchmarks.vllm_engine`, in a process of its own.

The process reads the names of steps from its standard input, and answers each by a JSON file in the folder:

    start   makes the engine and generates twice
    time    generates for some seconds. Mode `multikv` changes between vLLM's kernels and multikv's, and returns the
            times of both: `benchmarks.vllm_timing`. The other modes return tokens per second. Mode `attention` also
            changes between the kernels, although it does not call the ops that change
    finish  counts kernels and calls of ops. Then mode `attention` generates prompts alone and in a batch; the other
            modes generate the control, in which the ops of mode `multikv` that write do nothing
"""

from __future__ import annotations

import dataclasses
import gc
import json
import re
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.vllm_cases import CASES, ENGINE, LENGTHS, prompts_of
from benchmarks.vllm_switch import Switch, host_times
from benchmarks.vllm_timing import GENERATIONS_OF_A_ROUND, KERNELS, Turns, pin_threads

NAMESPACES = ("_C_cache_ops::", "multikv::")
CACHE_KERNELS = re.compile("cache|multikv|swap_blocks|concat_mla|Memcpy (HtoD|DtoH)")
WRITES = ("reshape_and_cache", "reshape_and_cache_flash", "concat_and_cache_mla", "concat_and_cache_mla_rope_fused")
CONTROL_TOKENS = 16


class Engine:
    """The engine of a case."""

    def __init__(self, folder: Path, name: str, mode: str, seconds: float) -> None:
        """Remembers the case, and for how long to time it; `start` makes the engine."""
        self.folder, self.mode, self.case, self.seconds = folder, mode, CASES[name], seconds
        self.prompts = prompts_of(self.case.lengths, 0)

    def start(self) -> dict[str, Any]:
        """Makes the engine. Generates until everything is compiled, and the CPU's memory holds what it can."""
        import torch  # noqa: PLC0415

        begun = time.perf_counter()
        from vllm import LLM  # noqa: PLC0415
        from vllm.compilation.counter import compilation_counter  # noqa: PLC0415

        self.llm = LLM(str(self.folder / self.case.model), **(ENGINE | self.case.options))
        self.generate(self.prompts)
        self.generate(self.prompts)
        if self.mode != "vllm":
            self.switch = Switch(self.llm)
        return {
            "seconds_to_start": round(time.perf_counter() - begun, 1),
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
            "torch": torch.__version__,
            "compilation": {k: v for k, v in dataclasses.asdict(compilation_counter).items() if v},
        }

    def time(self) -> dict[str, Any]:
        """Generates again and again. All outputs must be equal."""
        pin_threads()
        gc.collect()
        gc.disable()  # a collection takes as long as several steps
        self.generate(self.prompts, 4)  # after a process was stopped its first steps are slow
        self.outputs: list[Any] = []
        result = self._compare_kernels() if self.mode == "multikv" else self._time_generations()
        if self.mode == "attention":  # its kernels are the same, so the times that are compared must be equal
            result["time_of_no_change"] = self._time_turns()
            self.switch("multikv")
        gc.enable()
        equal = all(x == self.outputs[0] for x in self.outputs)
        return result | {"outputs": self.outputs[0], "repeats_itself": equal}

    def _time_turns(self) -> dict[str, Any]:
        """Compares the times of steps with vLLM's kernels and with multikv's.

        With `one_by_one`, prompts are timed, because the number of steps depends on when blocks arrive.
        """
        owner, name = (self, "_generate") if self.case.one_by_one else (self.llm.llm_engine, "step")
        function = getattr(owner, name)
        turns = Turns(function, self.switch)
        setattr(owner, name, turns)
        until = time.perf_counter() + self.seconds
        while time.perf_counter() < until:
            for i in range(GENERATIONS_OF_A_ROUND):
                turns.begin(i)
                self.outputs.append(self.generate(self.prompts))
        setattr(owner, name, function)
        return turns.summary()

    def _compare_kernels(self) -> dict[str, Any]:
        """Compares steps and calls of ops with vLLM's kernels and with multikv's, and counts the kernels of both."""
        result: dict[str, Any] = {"time": self._time_turns()}
        if ENGINE["enforce_eager"] == self.case.options.get("enforce_eager", True):
            result["host_ns"] = host_times(lambda: self.generate(self.prompts), self.switch)
            self.llm.reset_prefix_cache()  # the calls that were timed wrote to blocks that are cached
        for kernels in KERNELS:
            self.switch(kernels)
            self.outputs.append(self.generate(self.prompts))
            for name, counts in counts_of(lambda: self.generate(self.prompts, 4)).items():
                result.setdefault(f"{name}_in_turns", {})[kernels] = counts
        return result

    def _time_generations(self) -> dict[str, Any]:
        """Returns tokens per second. `generate` returns when the results are on the host."""
        prompt_tokens = sum(self.case.lengths) if self.case.counts_prompts else 0
        num_tokens = len(self.prompts) * self.case.num_tokens + prompt_tokens
        runs: list[float] = []
        until = time.perf_counter() + self.seconds
        while time.perf_counter() < until:
            begun = time.perf_counter()
            self.outputs.append(self.generate(self.prompts))
            runs.append(round(num_tokens / (time.perf_counter() - begun), 1))
        speeds = {"best": max(runs), "median": round(statistics.median(runs), 1)}
        return {"runs": runs, "tokens_per_second": speeds}

    def finish(self) -> dict[str, Any]:
        """Counts kernels and calls of ops. Then generates the control, or prompts alone and in a batch."""
        result = counts_of(lambda: self.generate(self.prompts, 4))
        if self.mode == "attention":
            if self.case.lengths == LENGTHS:
                many = prompts_of(LENGTHS * 4, 1)
                together = self.generate(many)
                result["alone_equal"] = [self.generate([many[i]])[0] == together[i] for i in (4, 9, 15, 63)]
            return result
        # These prompts were not in the cache before, so what is not written now cannot be there by chance.
        prompts = prompts_of(self.case.lengths, 1)
        if self.mode == "multikv":
            skip(("swap_blocks_batch",) if "kv_offloading_size" in self.case.options else WRITES)
        self.generate(prompts, CONTROL_TOKENS)
        result["control"] = self.generate(prompts, CONTROL_TOKENS)  # reads back what was offloaded
        return result

    def generate(self, prompts: list[list[int]], num_tokens: int | None = None) -> list[Any]:
        """Returns for each prompt its tokens and the exact values of their log-probabilities."""
        if self.case.one_by_one:
            return [result for prompt in prompts for result in self._generate([prompt], num_tokens)]
        return self._generate(prompts, num_tokens)

    def _generate(self, prompts: list[list[int]], num_tokens: int | None) -> list[Any]:
        from vllm import SamplingParams  # noqa: PLC0415

        parameters = SamplingParams(
            max_tokens=num_tokens or self.case.num_tokens, temperature=0, ignore_eos=True, detokenize=False, logprobs=1
        )
        outputs = self.llm.generate([{"prompt_token_ids": x} for x in prompts], parameters, use_tqdm=False)
        results = [output.outputs[0] for output in outputs]
        return [
            [list(x.token_ids), [step[t].logprob.hex() for t, step in zip(x.token_ids, x.logprobs, strict=True)]]
            for x in results
        ]


def counts_of(run: Callable[[], Any]) -> dict[str, Any]:
    """Returns for each cache op how often it was called, and how long the host took in us, the launches included.

    Returns for each kernel how often it ran, replays of graphs included, and how long the device took in us.
    """
    from torch.autograd import DeviceType  # noqa: PLC0415
    from torch.profiler import ProfilerActivity, profile  # noqa: PLC0415

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        run()
    totals: dict[str, dict[str, list[float]]] = {"calls": {}, "kernels": {}}
    for event in profiler.events():
        is_op = event.name.startswith(NAMESPACES)
        if event.device_type == DeviceType.CPU and is_op:
            kind, name = "calls", event.name
        elif event.device_type != DeviceType.CPU and not is_op and CACHE_KERNELS.search(event.name):
            name = re.sub(r"\(anonymous namespace\)::|<unnamed>::|^void ", "", event.name)
            kind, name = "kernels", re.split(r"<|\((?!Pinned|Pageable|Device)", name)[0].strip()
        else:
            continue
        total = totals[kind].setdefault(name, [0, 0.0])
        total[0] += 1
        total[1] = round(total[1] + event.time_range.elapsed_us(), 2)
    return totals


def skip(names: tuple[str, ...]) -> None:
    """Replaces ops of vLLM's namespace by functions that do nothing, for the rest of the process."""
    import torch  # noqa: PLC0415

    library = torch.library.Library("_C_cache_ops", "IMPL")
    for name in names:
        library.impl(name, lambda *_, **__: None, "CPU" if name == "swap_blocks_batch" else "CUDA")
    _kept.append(library)


_kept: list[Any] = []  # a library that is garbage is unregistered


def main() -> None:
    """Answers steps until there are no more."""
    folder, name, mode, seconds = Path(sys.argv[1]), sys.argv[2], sys.argv[3], float(sys.argv[4])
    engine = Engine(folder, name, mode, seconds)
    for number, line in enumerate(sys.stdin):
        file = folder / f"{list(CASES).index(name)}-{mode}-{number}.json"
        part = file.with_suffix(".part")
        part.write_text(json.dumps(getattr(engine, line.strip())()))
        part.rename(file)


if __name__ == "__main__":
    main()
