"""Changes between vLLM's own kernels and multikv's in a running engine, and times calls of single ops."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

from benchmarks.vllm_timing import KERNELS

_BATCHES, _CALLS = 200, 4


class Switch:
    """Makes an engine that has been started with multikv's kernels use either kernels.

    The steps after a change must not tell which change it was. So both changes do about the same, and little:
    `serve_cache_ops` looks for ops and their schemas for 4 ms, which takes the place of an engine's data in the CPU's
    caches. After it, steps of a small engine on a CPU were 3% slower than after `stop_serving`, whatever kernels they
    ran.
    """

    def __init__(self, llm: Any) -> None:
        """Captures the engine's CUDA graphs once more, with vLLM's kernels: a graph keeps those of its capture."""
        import torch  # noqa: PLC0415
        from vllm.config import set_current_vllm_config  # noqa: PLC0415

        from multikv.integrations.vllm import serve_cache_ops  # noqa: PLC0415
        from multikv.runtime.process import PROCESS  # noqa: PLC0415

        self._libraries = [library for library in (PROCESS.cpu, PROCESS.gpu) if library is not None]
        self.ops = {name: getattr(torch.ops._C_cache_ops, name) for name in serve_cache_ops().names}
        self._schemas = {name: str(op.default._schema) for name, op in self.ops.items()}
        self._kernels = "multikv"
        worker = llm.llm_engine.model_executor.driver_worker.worker
        self._manager = getattr(worker.model_runner, "cudagraph_manager", None)
        self._graphs: dict[str, Any] = {}
        if self._manager is not None and self._manager.graphs:
            self._graphs = {"multikv": self._manager.graphs, "vllm": {}}
            self("vllm")
            with set_current_vllm_config(worker.vllm_config):
                worker.model_runner.capture_model()

    def __call__(self, kernels: str) -> None:
        """Changes to one of KERNELS."""
        if kernels == self._kernels:
            return
        if kernels == "multikv":
            self._serve()
            self._stop_serving()
            self._serve()
        else:
            self._stop_serving()
            self._serve()
            self._stop_serving()
        if self._graphs:
            self._manager.graphs = self._graphs[kernels]
        self._kernels = kernels

    def _serve(self) -> None:
        for library in self._libraries:
            for name, schema in self._schemas.items():
                library.serve_vllm(name, schema)

    def _stop_serving(self) -> None:
        for library in self._libraries:
            library.stop_serving_vllm()


def host_times(generate: Callable[[], Any], switch: Switch) -> dict[str, dict[str, float]]:
    """Returns for each op that Python calls how many ns the host spends in a call, with either kernels.

    The arguments are those of the call in the middle of a generation. The device is idle when a batch of calls begins.
    """
    import torch  # noqa: PLC0415

    result = {}
    for name, (args, kwargs) in _calls_in_the_middle(generate, switch.ops).items():
        op = switch.ops[name]
        times: dict[str, list[float]] = {kernels: [] for kernels in KERNELS}
        for i in range(_BATCHES):
            kernels = KERNELS[(i + 1) // 2 % 2]
            switch(kernels)
            for _ in range(_CALLS):
                op(*args, **kwargs)
            torch.accelerator.synchronize()
            begun = time.perf_counter_ns()
            for _ in range(_CALLS):
                op(*args, **kwargs)
            times[kernels].append((time.perf_counter_ns() - begun) / _CALLS)
            torch.accelerator.synchronize()
        result[name] = {kernels: round(statistics.median(x), 1) for kernels, x in times.items()}
    return result


def _calls_in_the_middle(generate: Callable[[], Any], ops: dict[str, Any]) -> dict[str, Any]:
    """Returns the arguments of one call of each op."""
    import torch  # noqa: PLC0415

    namespace = torch.ops._C_cache_ops
    calls: dict[str, list[Any]] = {}

    def recorded(name: str, op: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls.setdefault(name, []).append((args, kwargs))
            return op(*args, **kwargs)

        return call

    for name, op in ops.items():
        setattr(namespace, name, recorded(name, op))
    generate()
    for name, op in ops.items():
        setattr(namespace, name, op)
    return {name: of_op[len(of_op) // 2] for name, of_op in calls.items()}
