"""vLLM's engine on a CPU, without its compiled library: every write and every read of its cache is multikv's."""

from __future__ import annotations

import logging

import pytest
import torch

import multikv

pytest.importorskip("vllm")

from vllm import SamplingParams

from multikv.integrations import vllm as integration
from tests.integrations.vllm import models

pytestmark = pytest.mark.integration

MARGIN = 1e-3  # of the logits: results of two float32 programs differ by less


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.fixture
def calls(monkeypatch):
    """How many calls of each op were made."""
    counts = {}

    def count(name):
        function = getattr(multikv, name)

        def counted(*arguments):
            counts[name] = counts.get(name, 0) + 1
            return function(*arguments)

        monkeypatch.setattr(multikv, name, counted)

    for name in ("reshape_and_cache_flash", "paged_attention", "compute_slot_mapping"):
        count(name)
    return counts


def generate(llm, prompts):
    parameters = SamplingParams(max_tokens=models.MAX_TOKENS, temperature=0, ignore_eos=True, detokenize=False)
    return llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], parameters, use_tqdm=False)


def tokens_of(outputs):
    return [list(output.outputs[0].token_ids) for output in outputs]


def expected(model):
    results = [models.generate(model, prompt) for prompt in models.prompts()]
    assert min(margin for _, margin in results) > MARGIN, "the model does not say clearly which token is best"
    return [tokens for tokens, _ in results]


def test_llama(engine, folder, calls):
    """One batch of prompts of several lengths; the same prompts again, whose first blocks are in the cache."""
    model = models.save("llama", folder / "llama")
    llm = engine(folder / "llama")
    first = generate(llm, models.prompts())
    assert tokens_of(first) == expected(model)
    assert [output.num_cached_tokens for output in first] == [0, 0, 0, 0]
    num_steps = models.MAX_TOKENS  # the first of them takes all prompts
    assert calls == {
        "reshape_and_cache_flash": num_steps * models.NUM_LAYERS,
        "paged_attention": num_steps * models.NUM_LAYERS,
        "compute_slot_mapping": num_steps,
    }
    again = generate(llm, models.prompts())
    assert tokens_of(again) == tokens_of(first)
    assert [output.num_cached_tokens for output in again] == [0, 0, 32, 192]


def test_chunked_prefill(engine, folder, calls):
    """The longest prompt is computed in chunks, and decodes of the others are in the same batches."""
    model = models.save("llama", folder / "chunked")
    llm = engine(folder / "chunked", max_num_batched_tokens=64, max_num_seqs=8, block_size=16)
    assert tokens_of(generate(llm, models.prompts())) == expected(model)
    assert calls["paged_attention"] > models.MAX_TOKENS * models.NUM_LAYERS


def test_fp8_cache(engine, folder, calls):
    model = models.save("llama", folder / "fp8")
    unrounded = expected(model)
    models.round_to_fp8(model)
    tokens = tokens_of(generate(engine(folder / "fp8", kv_cache_dtype="fp8"), models.prompts()))
    assert tokens == expected(model)
    assert tokens != unrounded
    assert calls["paged_attention"] == models.MAX_TOKENS * models.NUM_LAYERS


@pytest.mark.parametrize("name", ["gemma2", "bloom"], ids=["window_and_softcap", "alibi"])
def test_other_attention(engine, folder, calls, name):
    model = models.save(name, folder / name)
    assert tokens_of(generate(engine(folder / name), models.prompts())) == expected(model)
    assert calls["reshape_and_cache_flash"] == calls["paged_attention"] == models.MAX_TOKENS * models.NUM_LAYERS


def test_line_of_the_log(caplog, monkeypatch):
    """The line names what is served. vLLM's loggers do not propagate by themselves."""
    monkeypatch.setattr(logging.getLogger("vllm"), "propagate", True)
    with caplog.at_level(logging.INFO, "vllm.multikv"):
        line = integration.register()
    assert {record.message for record in caplog.records} == {line}
    assert line.startswith("multikv serves 14 cache ops of vLLM 0.33.0: concat_and_cache_mla, ")
    assert line.endswith("; attention: CPU_ATTN")


def test_ops_of_the_absent_library():
    """Padding of a slot mapping gets -1, which no op writes to."""
    table = torch.tensor([[5, 7], [9, 2]], dtype=torch.int32)
    slots = torch.zeros(6, dtype=torch.int64)
    bounds, positions = torch.tensor([0, 1, 3], dtype=torch.int32), torch.tensor([4, 2, 3])
    torch.ops._C.compute_slot_mapping_kernel_impl(bounds, positions, table, slots, 4)
    assert slots.tolist() == [28, 38, 39, -1, -1, -1]
    assert torch.ops._C.greedy_argmax(torch.tensor([[1.0, 3, 2], [5, 4, 3]])).tolist() == [1, 0]
