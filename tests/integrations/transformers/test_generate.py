"""Models of Transformers generate with a MultikvCache what they generate with their own caches."""

from __future__ import annotations

import pytest
import torch
import transformers

from multikv.integrations.transformers import MultikvCache
from tests.support.transformers_models import (
    COMMON,
    CONFIGURATIONS,
    NUM_TOKENS,
    generate,
    left_padding,
    make_model,
    prompts,
)

pytestmark = pytest.mark.integration

# Attention by paged_attention, and by Transformers from gathered keys and values.
ATTENTIONS = ("multikv", "eager")
NUM_LAYERS = COMMON["num_hidden_layers"]


def assert_equal_results(got, expected, tolerance=1e-3):
    """The tokens are equal, and the logits as near as float32 lets them be."""
    tokens, logits = got
    assert torch.equal(tokens, expected[0])
    torch.testing.assert_close(logits, expected[1], rtol=tolerance, atol=tolerance)
    assert len(tokens.unique()) > 4  # so that equal tokens mean something


def expected_calls(attention, num_forwards=NUM_TOKENS):
    reader = "paged_attention" if attention == "multikv" else "gather_kv_cache"
    return dict.fromkeys(("reshape_and_cache_flash", reader), num_forwards * NUM_LAYERS)


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_greedy(name, attention, any_device, calls):
    model, prompt = make_model(name, any_device), prompts(2, 19, any_device)
    expected = generate(model, "eager", prompt)
    assert not calls
    assert_equal_results(generate(model, attention, prompt, MultikvCache(model.config)), expected)
    assert calls == expected_calls(attention)


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("padding", [(5, 0, 8), (18, 16, 2)], ids=str)
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_left_padding(name, padding, attention, any_device, calls):
    """Each sequence also generates what it generates alone."""
    model, prompt = make_model(name, any_device), prompts(3, 19, any_device)
    mask = left_padding(prompt, padding)
    expected = generate(model, "eager", prompt, attention_mask=mask)
    got = generate(model, attention, prompt, MultikvCache(model.config), attention_mask=mask)
    assert_equal_results(got, expected)
    assert calls == expected_calls(attention)
    for s, count in enumerate(padding) if attention == "multikv" else ():
        alone, _ = generate(model, "eager", prompt[s : s + 1, count:])
        assert torch.equal(got[0][s : s + 1], alone)


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_beams(name, attention, any_device, calls):
    model, prompt = make_model(name, any_device), prompts(2, 13, any_device)
    options = {
        "num_beams": 4,
        "num_return_sequences": 3,
        "attention_mask": left_padding(prompt, (0, 3)),
        "max_new_tokens": 24,
    }
    expected, _ = generate(model, "eager", prompt, **options)
    tokens, _ = generate(model, attention, prompt, MultikvCache(model.config), **options)
    assert torch.equal(tokens, expected)
    assert calls.pop("copy_blocks_layers") > 8  # beams share a block until one of them writes to it
    assert calls == expected_calls(attention, 24)


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_assistants(name, attention, any_device, calls):
    """Rejected tokens are cropped from the cache. Candidates come from a model, and from the prompt."""
    model, prompt = make_model(name, any_device), prompts(1, 9, any_device).repeat(1, 3)
    expected, _ = generate(model, "eager", prompt)
    assistant = make_model("llama", any_device) if name != "llama" else make_model("qwen3", any_device)
    assistant.set_attn_implementation("eager")
    for options in ({"assistant_model": assistant}, {"prompt_lookup_num_tokens": 4, "eos_token_id": 1000}):
        cache, cropped = MultikvCache(model.config), []
        crop = cache.crop
        cache.crop = lambda count, crop=crop, cropped=cropped: (cropped.append(count), crop(count))
        tokens, _ = generate(model, attention, prompt, cache, **options)
        assert torch.equal(tokens[:, :NUM_TOKENS], expected)  # Transformers 5.0 may generate one token more
        assert cropped
    num_calls = {calls[op] for op in expected_calls(attention)}
    assert len(num_calls) == 1 and num_calls.pop() >= 8


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("name", ["llama", "gemma2"])
@pytest.mark.parametrize("options", [{"max_length": 64}, {"block_size": 1}, {"block_size": 64}], ids=str)
def test_sizes(name, options, attention, any_device):
    model, prompt = make_model(name, any_device), prompts(2, 19, any_device)
    mask = left_padding(prompt, (6, 0))
    expected = generate(model, "eager", prompt, attention_mask=mask)
    cache = MultikvCache(model.config, **options)
    assert_equal_results(generate(model, attention, prompt, cache, attention_mask=mask), expected)


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_a_second_turn_and_a_second_batch(name, any_device, calls):
    """A cache goes on where it was, in several tokens at once, and after reset serves other sequences."""
    model, prompt = make_model(name, any_device), prompts(2, 19, any_device)
    cache = MultikvCache(model.config)
    first, _ = generate(model, "multikv", prompt, cache)
    prompt = torch.cat([prompt, first, prompts(2, 11, any_device)], 1)
    expected = generate(model, "eager", prompt)
    calls.clear()
    assert_equal_results(generate(model, "multikv", prompt, cache), expected)
    assert calls == expected_calls("multikv")
    cache.reset()
    prompt = prompts(3, 5, any_device)
    assert_equal_results(generate(model, "multikv", prompt, cache), generate(model, "eager", prompt))


def test_attention_functions_may_change_between_turns(any_device):
    model, prompt = make_model("gemma2", any_device), prompts(2, 19, any_device)
    cache = MultikvCache(model.config)
    first, _ = generate(model, "eager", prompt, cache)
    prompt = torch.cat([prompt, first, prompts(2, 3, any_device)], 1)
    expected = generate(model, "eager", prompt)
    assert_equal_results(generate(model, "multikv", prompt, cache), expected)


class RoundedLayer(transformers.cache_utils.DynamicLayer):
    """A layer of Transformers' own cache, whose elements are rounded as those of an fp8 cache are."""

    def __init__(self, dtype, k_scale, v_scale):
        super().__init__()
        self.rounding = dtype, k_scale, v_scale

    def update(self, key, value, *arguments, **options):
        dtype, *scales = self.rounding
        shape = (1, -1, 1, 1)
        scales = [torch.as_tensor(x, device=key.device).view(shape) for x in scales]
        rounded = [(x / s).to(dtype).float() * s for x, s in zip((key, value), scales, strict=True)]
        return super().update(*rounded, *arguments, **options)


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("format", ["fp8_e4m3fn", "fp8_e5m2"])
@pytest.mark.parametrize("scales", ["one", "heads", "layers"])
def test_fp8(format, scales, attention, any_device, calls):
    """Results are those of a cache of Transformers that rounds its keys and values to the same fp8 numbers.

    A key that lies near the middle between two fp8 numbers may be rounded to either, so the tolerance is larger.
    """
    model, prompt = make_model("llama", any_device), prompts(2, 19, any_device)
    k_scale, v_scale = {
        "one": (0.5, 0.25),
        "heads": (torch.tensor([0.5, 0.375]), torch.tensor([0.25, 0.75])),
        "layers": ([0.5, 0.75], [0.25, 1.0]),
    }[scales]
    of_layers = zip(k_scale, v_scale, strict=True) if scales == "layers" else [(k_scale, v_scale)] * NUM_LAYERS
    dtype = torch.float8_e4m3fn if format == "fp8_e4m3fn" else torch.float8_e5m2
    reference = transformers.Cache(layers=[RoundedLayer(dtype, *of_layer) for of_layer in of_layers])
    mask = left_padding(prompt, (3, 0))
    expected = generate(model, "eager", prompt, reference, attention_mask=mask)
    cache = MultikvCache(model.config, format, k_scale=k_scale, v_scale=v_scale)
    assert_equal_results(generate(model, attention, prompt, cache, attention_mask=mask), expected, tolerance=0.05)
    assert (generate(model, "eager", prompt, attention_mask=mask)[1][0] - expected[1][0]).abs().max() > 0.3
    assert {layer.key_cache.dtype for layer in cache.layers} == {torch.uint8}
    assert calls == expected_calls(attention)
