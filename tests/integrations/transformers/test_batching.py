"""Continuous batching of Transformers generates through multikv what generate does for each prompt alone."""

from __future__ import annotations

import pytest
import torch
import transformers
from packaging.version import Version

import multikv.integrations.transformers  # noqa: F401  registers the attention functions
from tests.support.transformers_models import COMMON, NUM_TOKENS, generate, make_model, prompts

pytestmark = pytest.mark.integration

VERSION = Version(transformers.__version__)
NEEDS_A_GPU = not Version("5.17") <= VERSION  # the oldest version whose continuous batching has been tried on a CPU
WRITES_TO_POOLS = not Version("5.18") <= VERSION  # a cache of later versions has no pools, and writes by itself
NEEDS_A_MANAGER = Version("5.19") <= VERSION  # generate_batch of these refuses other names of attention functions
LENGTHS = (21, 3, 40, 17, 1)


def configuration():
    return transformers.GenerationConfig(
        max_new_tokens=NUM_TOKENS,
        do_sample=False,
        eos_token_id=1000,
        pad_token_id=0,
        num_blocks=64,
        max_batch_tokens=256,
    )


def run_manager(model, ids):
    """Transformers 5.19 and later refuse the name of other attention functions until the manager exists."""
    model.set_attn_implementation("sdpa")
    manager = model.init_continuous_batching(generation_config=configuration())
    model.set_attn_implementation("multikv")
    manager.start()
    try:
        names = manager.add_requests(inputs=ids, max_new_tokens=NUM_TOKENS)
        results = {}
        while len(results) < len(ids):
            result = manager.get_result(timeout=5)
            if result is not None and result.is_finished():
                results[result.request_id] = result
            assert result is not None or manager.is_running(), "the thread of the manager has died"
    finally:
        manager.stop(block=True)
    return [results[name] for name in names]


def run_batch(model, ids):
    model.set_attn_implementation("paged|multikv")
    results = model.generate_batch(ids, generation_config=configuration(), progress_bar=False)
    return [results[name] for name in sorted(results, key=lambda name: int(name.rpartition("_")[2]))]


@pytest.mark.parametrize("name", ["llama", "qwen3", "mistral"])
def test_continuous_batching(name, any_device, calls):
    if NEEDS_A_GPU and any_device.type == "cpu":
        pytest.skip("continuous batching of this version of Transformers needs a GPU")
    model = make_model(name, any_device)
    ids = [prompts(1, length, any_device)[0].tolist() for length in LENGTHS]
    expected = [generate(model, "eager", torch.tensor([x]).to(any_device))[0][0].tolist() for x in ids]
    results = (run_manager if NEEDS_A_MANAGER else run_batch)(model, ids)
    assert [result.generated_tokens for result in results] == expected
    num_calls = COMMON["num_hidden_layers"] * NUM_TOKENS
    assert calls["paged_attention"] >= num_calls
    writes = WRITES_TO_POOLS and name != "mistral"
    assert calls["reshape_and_cache_flash"] == (calls["paged_attention"] if writes else 0)
