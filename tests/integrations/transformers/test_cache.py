"""MultikvCache alone: what update returns, which blocks it holds, and what it and the attention functions refuse."""

from __future__ import annotations

import pytest
import torch
import transformers

from multikv.integrations.transformers import MultikvCache, multikv_attention
from multikv.integrations.transformers.blocks import BlockTables
from tests.support.processes import run_program
from tests.support.transformers_models import (
    COMMON,
    WINDOW,
    cache_argument,
    generate,
    make_model,
    mask_sizes_take_positions,
    prompts,
)

pytestmark = pytest.mark.integration

HEADS, HEAD_SIZE = COMMON["num_key_value_heads"], 16


@pytest.fixture
def llama(any_device):
    model = make_model("llama", any_device)
    model.set_attn_implementation("eager")
    return model


@pytest.fixture
def mistral(any_device):
    model = make_model("mistral", any_device)
    model.set_attn_implementation("eager")
    return model


def write(cache, batch_size, count, device, layers=(0, 1)):
    """Writes random keys and values to all layers, and returns those of the last and what update returned for them."""
    for layer in layers:
        tensors = torch.randn(2, batch_size, HEADS, count, HEAD_SIZE).to(device)
        returned = cache.update(*tensors, layer)
    return tensors, returned


def test_update_returns_all_keys_and_values(llama, any_device, calls):
    cache, written = MultikvCache(llama.config, block_size=4), []
    for count in (7, 1, 1, 6):
        tensors, returned = write(cache, 3, count, any_device)
        written.append(tensors)
        assert torch.equal(torch.stack(returned), torch.cat(written, 3))
    assert cache.get_seq_length() == 15 and calls["gather_kv_cache"] == 8


def test_a_window_holds_few_blocks(mistral, any_device):
    """The keys of the window are those of Transformers' own cache, and the number of blocks stays bounded."""
    cache, other = (kind(config=mistral.config) for kind in (MultikvCache, transformers.DynamicCache))
    blocks = set()
    for count in (3, 9, 1, 20, *[1] * 60):
        count_or_positions = torch.arange(count) if mask_sizes_take_positions() else count
        sizes = [x.get_mask_sizes(count_or_positions, 0) for x in (cache, other)]
        assert sizes[0] == sizes[1]
        tensors = torch.randn(2, 2, HEADS, count, HEAD_SIZE).to(any_device)
        for layer in (0, 1):
            returned = [torch.stack(x.update(*tensors, layer)) for x in (cache, other)]
            assert torch.equal(*returned)
            assert returned[0].size(3) == sizes[0][0]
        blocks.add(cache.layers[0].key_cache.size(0))
    assert max(blocks) <= 12  # 93 tokens of 2 sequences need 12 blocks of 16; the window of the last ones 2 or 4
    tables = cache.groups[WINDOW].tables
    assert len(tables.free) == tables.num_blocks - sum(uses > 0 for uses in tables.uses)
    assert sum(uses > 0 for uses in tables.uses) <= 4


def test_beams_share_blocks_until_they_write(llama, any_device, calls):
    cache = MultikvCache(llama.config, block_size=4)
    before, _ = write(cache, 2, 10, any_device)
    cache.reorder_cache(torch.tensor([1, 1]).to(any_device))
    assert [uses for uses in cache.groups[None].tables.uses if uses] == [2, 2, 2]
    after, returned = write(cache, 2, 1, any_device)
    assert calls["copy_blocks_layers"] == 1
    assert torch.equal(torch.stack(returned), torch.cat([before[:, [1, 1]], after], 3))
    assert sorted(uses for uses in cache.groups[None].tables.uses if uses) == [1, 1, 2, 2]
    cache.batch_repeat_interleave(2)
    cache.batch_select_indices(torch.tensor([3, 0, 1]))
    last, returned = write(cache, 3, 5, any_device)
    expected = torch.cat([before[:, [1, 1, 1]], after[:, [1, 0, 0]], last], 3)
    assert torch.equal(torch.stack(returned), expected)


@pytest.mark.parametrize("by_length", [False, True])
def test_crop(by_length, llama, any_device):
    cache = MultikvCache(llama.config, block_size=4)
    before, _ = write(cache, 2, 13, any_device)
    cache.crop(6 if by_length else -7)
    assert cache.get_seq_length() == 6
    after, returned = write(cache, 2, 3, any_device)
    assert torch.equal(torch.stack(returned), torch.cat([before[..., :6, :], after], 3))
    cache.crop(0)
    assert cache.get_seq_length() == 9


def test_crop_of_a_window(mistral, any_device):
    """What the last update wrote can always be cropped, and more of it if the cache records what leaves the window."""
    cache = MultikvCache(mistral.config, block_size=2)
    write(cache, 1, 30, any_device)
    write(cache, 1, 12, any_device)
    cache.crop(-12)
    after, returned = write(cache, 1, 12, any_device)
    assert torch.equal(torch.stack(returned)[..., WINDOW - 1 :, :], after)
    write(cache, 1, 1, any_device)
    with pytest.raises(RuntimeError) as error:
        cache.crop(-12)
    assert str(error.value) == (
        f"MultikvCache: crop: expected a length whose window of {WINDOW} tokens is still in the cache, got 31: "
        "call activate_past_recording() before the tokens are written"
    )
    cache = MultikvCache(mistral.config, block_size=2)
    cache.activate_past_recording()
    for _ in range(20):
        write(cache, 1, 1, any_device)
    cache.crop(-12)
    assert cache.get_seq_length() == 8


def test_max_length(llama, any_device):
    cache = MultikvCache(llama.config, max_length=32)
    write(cache, 2, 3, any_device)
    pointers = [layer.key_cache.data_ptr() for layer in cache.layers]
    write(cache, 2, 29, any_device)
    assert [layer.key_cache.data_ptr() for layer in cache.layers] == pointers
    with pytest.raises(RuntimeError, match=r"^MultikvCache: max_length: expected at least 33, got 32$"):
        write(cache, 2, 1, any_device)


def test_tables_free_what_no_row_lists():
    """Random steps keep the counts of uses right."""
    tables = BlockTables(4, None)
    tables.rows, length = [[], [], []], 0
    for _ in range(300):
        kind = torch.randint(3, ()).item()
        if kind == 0:
            tables.select(torch.randint(len(tables.rows), (3,)).tolist())
        elif kind == 1:
            length = int(torch.randint(length + 1, ()).item())
            tables.crop(length)
        else:
            count = int(torch.randint(1, 9, ()).item())
            copies = tables.extend(length, length + count)
            assert len({new for _, new in copies}) == len(copies)
            written = [row[i] for row in tables.rows for i in range(length // 4, len(row))]
            assert len(set(written)) == len(written)  # no two sequences write to one block
            length += count
        listed = [block for row in tables.rows for block in row]
        assert [listed.count(block) for block in range(tables.num_blocks)] == tables.uses
        assert sorted(tables.free) == [block for block, uses in enumerate(tables.uses) if not uses]
        assert {len(row) for row in tables.rows} == {-(-length // 4)}


def refused(message, function, *arguments, **options):
    with pytest.raises((RuntimeError, ValueError)) as error:
        function(*arguments, **options)
    assert str(error.value) == message


def test_refused_caches(llama):
    config = llama.config
    refused("MultikvCache: block_size: expected a power of two, got 12", MultikvCache, config, block_size=12)
    expected = "MultikvCache: k_scale: expected a scale for each of 2 layers, got 3"
    refused(expected, MultikvCache, config, "fp8", k_scale=[1.0, 1.0, 1.0])
    with pytest.raises(ValueError, match=r"^kv_cache_dtype: expected one of auto, .*, got 'int8'$"):
        MultikvCache(config, "int8")


def test_a_batch_of_another_size_is_refused(llama, any_device):
    cache = MultikvCache(llama.config)
    write(cache, 2, 3, any_device)
    expected = "MultikvCache: expected 2 sequences, got 3: call reset()"
    refused(expected, write, cache, 3, 1, any_device)


def forward(model, prompt, cache=None, **options):
    model.set_attn_implementation("multikv")
    if cache is not None:
        options[cache_argument(model)] = cache
    with torch.no_grad():
        return model(prompt, **options)


def test_refused_masks(llama, any_device):
    prompt, config = prompts(2, 9, any_device), llama.config
    holes = torch.ones_like(prompt)
    holes[0, 4] = 0
    start = "multikv: attention_mask: expected "
    expected = start + "padding on the left, got hidden tokens after visible ones"
    refused(expected, forward, llama, prompt, MultikvCache(config), attention_mask=holes)
    right = torch.ones_like(prompt)
    right[1, -2:] = 0
    refused(expected, forward, llama, prompt, MultikvCache(config), attention_mask=right)
    mask = torch.zeros(2, 1, 9, 9).to(any_device)
    expected = start + "a causal mask that Transformers made, got a Tensor"
    refused(expected, forward, llama, prompt, MultikvCache(config), attention_mask=mask)


def test_masks_of_other_kinds_are_refused(llama, mistral, any_device):
    """Bidirectional and chunked masks, and those of models that add a function of their own."""
    make_mask = transformers.masking_utils.ALL_MASK_ATTENTION_FUNCTIONS["multikv"]
    functions = transformers.masking_utils
    sizes = {"batch_size": 2, "kv_length": 9}
    sizes |= {"cache_position": torch.arange(9)} if mask_sizes_take_positions() else {"q_length": 9}
    start = "multikv: attention_mask: expected a causal mask"
    refused(f"{start}, got another one", make_mask, mask_function=functions.bidirectional_mask_function, **sizes)
    sliding = functions.sliding_window_causal_mask_function(4)
    refused(f"{start}, got another one", make_mask, mask_function=sliding, **sizes)
    expected = f"{start} with a window of 5 tokens, got another one"
    refused(expected, make_mask, mask_function=sliding, local_size=5, **sizes)
    chunked = functions.chunked_causal_mask_function(4, torch.zeros(2, dtype=torch.long))
    refused(
        f"{start} with a window of 4 tokens, got another one", make_mask, mask_function=chunked, local_size=4, **sizes
    )
    causal = functions.causal_mask_function
    refused(
        f"{start}, got one with a mask function of the model", make_mask, mask_function=causal, use_vmap=True, **sizes
    )
    assert make_mask(mask_function=sliding, local_size=4, **sizes).window == 4
    assert make_mask(mask_function=causal, **sizes).window is None


def test_refused_calls(llama, any_device):
    prompt, config = prompts(2, 9, any_device), llama.config
    expected = "multikv: key: expected the keys of a MultikvCache, got other ones: "
    refused(expected + "pass past_key_values=MultikvCache(model.config)", forward, llama, prompt)
    llama.set_attn_implementation("multikv")
    expected = "multikv: expected inference, got tensors that require grad: use torch.no_grad()"
    refused(expected, llama, prompt, **{cache_argument(llama): MultikvCache(config)})
    tensors = torch.randn(3, 1, 2, 4, 16)
    attend = (multikv_attention, torch.nn.Linear(1, 1), *tensors, None)
    refused("multikv: dropout: expected 0, got 0.5: call model.eval()", *attend, dropout=0.5)
    for name, reason in (("output_attentions", "returns no weights"), ("position_bias", "adds no such bias")):
        expected = f"multikv: {name}: expected none from Linear, because paged_attention {reason}"
        refused(expected, *attend, **{name: torch.ones(1)})


def test_layers_of_other_kinds_are_refused():
    config = transformers.Llama4TextConfig(num_hidden_layers=2, layer_types=["chunked_attention", "full_attention"])
    assert set(MultikvCache(config).groups) == {config.attention_chunk_size, None}
    if hasattr(transformers.cache_utils, "LinearAttentionLayer"):
        config = transformers.Qwen3NextConfig(num_hidden_layers=4)
        expected = "MultikvCache: config: expected standard attention in layer 0, got LinearAttentionLayer"
        refused(expected, MultikvCache, config)


def test_importing_multikv_imports_no_engine():
    code = (
        "import sys, multikv, multikv.integrations, multikv.integrations.adapters; print('transformers' in sys.modules)"
    )
    assert run_program("-c", code).stdout == "False\n"


def test_other_attention_functions_are_not_touched(llama, any_device):
    """Importing the module changes nothing for models that do not ask for it."""
    prompt = prompts(1, 9, any_device)
    assert llama.config._attn_implementation == "eager"
    assert type(generate(llama, "sdpa", prompt)[0]) is torch.Tensor
