"""vLLM's attention backend, layer by layer, against attention over dense keys and values."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("vllm")

from vllm.v1.attention.backend import AttentionCGSupport, AttentionType
from vllm.v1.kv_cache_layout import KVCacheLayout

from multikv.integrations.vllm.attention import (
    CpuPagedAttentionBackend,
    PagedAttentionBackend,
    PagedAttentionBuilder,
    PagedAttentionImpl,
    PagedAttentionMetadata,
)

pytestmark = pytest.mark.integration

NUM_BLOCKS, NUM_KV_HEADS, BLOCK_SIZE, HEAD_SIZE, NUM_HEADS = 12, 2, 16, 32, 4
SEQUENCE_LENGTHS, QUERY_LENGTHS = (40, 17), (40, 3)  # a whole prompt, and the end of another
SLOPES = [0.5, 0.25, 0.125, 0.0625]

OPTIONS = {
    "plain": {},
    "window": {"sliding_window": 5},
    "window_of_one": {"sliding_window": 1},
    "softcap": {"logits_soft_cap": 1.5},
    "alibi": {"alibi_slopes": SLOPES},
    "sinks": {"sinks": torch.tensor([1.0, -2.0, 0.0, 3.0])},
    "all": {"sliding_window": 9, "logits_soft_cap": 3.0, "alibi_slopes": SLOPES, "sinks": torch.ones(NUM_HEADS)},
}


def cache_in(layout, dtype):
    """A cache [num_blocks, num_kv_heads, block_size, 2 * head_size] in an order of memory, filled with NaN."""
    shape = (NUM_BLOCKS, NUM_KV_HEADS, BLOCK_SIZE, 2 * HEAD_SIZE)
    order = layout.layer_view_order
    memory = torch.full([shape[i] for i in order], -1, dtype=torch.int8).view(torch.uint8)  # 0xff is NaN in e4m3
    if dtype != torch.uint8:
        memory = torch.full(memory.shape, float("nan"), dtype=dtype)
    return memory.permute([order.index(i) for i in range(4)])


def dense(query, key, value, options, causal):
    """Attention of the last rows of one sequence, in float64."""
    (num_rows, _, _), num_keys = query.shape, key.shape[0]
    key, value = (x.repeat_interleave(NUM_HEADS // NUM_KV_HEADS, 1).double() for x in (key, value))
    scores = torch.einsum("qhd,khd->hqk", query.double(), key) * HEAD_SIZE**-0.5
    if softcap := options.get("logits_soft_cap"):
        scores = softcap * (scores / softcap).tanh()
    distance = torch.arange(num_keys) - torch.arange(num_keys - num_rows, num_keys)[:, None]
    if "alibi_slopes" in options:
        scores += torch.tensor(SLOPES).double()[:, None, None] * distance
    visible = distance <= 0 if causal else torch.ones_like(distance, dtype=torch.bool)
    if window := options.get("sliding_window"):
        visible &= distance > -window
    scores = scores.masked_fill(~visible, -torch.inf)
    sinks = options.get("sinks", torch.full((NUM_HEADS,), -torch.inf)).double()[:, None, None]
    weights = torch.cat([scores, sinks.expand(-1, num_rows, 1)], -1).softmax(-1)[..., :-1]
    return torch.einsum("hqk,khd->qhd", weights, value)


def run(options, dtype=torch.float32, kv_cache_dtype="auto", layout=KVCacheLayout.LBNHC, causal=True):
    """Writes the keys and values of both sequences, attends, and returns the output with what is expected."""
    impl = PagedAttentionImpl(
        NUM_HEADS, HEAD_SIZE, HEAD_SIZE**-0.5, NUM_KV_HEADS, kv_cache_dtype=kv_cache_dtype, **options
    )
    layer = SimpleNamespace(_k_scale=torch.tensor(0.5), _v_scale=torch.tensor(0.25))
    cache = cache_in(layout, torch.uint8 if "fp8" in kv_cache_dtype else dtype)
    table = torch.tensor([[7, 2, 9], [4, 11, 0]], dtype=torch.int32)
    keys, values, queries = ([] for _ in range(3))
    for s, (length, rows) in enumerate(zip(SEQUENCE_LENGTHS, QUERY_LENGTHS, strict=True)):
        key, value = torch.randn(2, length, NUM_KV_HEADS, HEAD_SIZE).to(dtype)
        positions = torch.arange(length)
        slots = table[s, positions // BLOCK_SIZE].long() * BLOCK_SIZE + positions % BLOCK_SIZE
        impl.do_kv_cache_update(layer, key, value, cache, slots)
        keys.append(key), values.append(value), queries.append(torch.randn(rows, NUM_HEADS, HEAD_SIZE).to(dtype))
    metadata = PagedAttentionMetadata(
        num_actual_tokens=sum(QUERY_LENGTHS),
        query_start_loc=torch.tensor([0, *torch.tensor(QUERY_LENGTHS).cumsum(0)], dtype=torch.int32),
        max_query_len=max(QUERY_LENGTHS),
        seq_lens=torch.tensor(SEQUENCE_LENGTHS, dtype=torch.int32),
        max_seq_len=max(SEQUENCE_LENGTHS),
        block_table=table,
        slot_mapping=torch.empty(0),
        causal=causal,
        workspace=torch.empty(0, dtype=torch.uint8),
    )
    padded = torch.cat([*queries, torch.full((2, NUM_HEADS, HEAD_SIZE), float("nan"), dtype=dtype)])
    output = torch.full_like(padded, 7)
    assert impl.forward(layer, padded, padded, padded, cache, metadata, output) is output
    assert torch.equal(output[-2:], torch.full_like(output[-2:], 7))  # padding is left as it is
    if kv_cache_dtype == "fp8":
        keys = [(x / 0.5).to(torch.float8_e4m3fn).float() * 0.5 for x in keys]
        values = [(x / 0.25).to(torch.float8_e4m3fn).float() * 0.25 for x in values]
    wanted = [dense(*tensors, options, causal) for tensors in zip(queries, keys, values, strict=True)]
    return output[:-2], torch.cat(wanted)


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "all_keys"])
@pytest.mark.parametrize("what", OPTIONS)
def test_options(what, causal):
    output, wanted = run(OPTIONS[what], causal=causal)
    torch.testing.assert_close(output.double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", KVCacheLayout, ids=lambda layout: layout.name)
def test_layouts(layout):
    output, wanted = run({}, layout=layout)
    torch.testing.assert_close(output.double(), wanted, rtol=1e-5, atol=1e-5)


def test_scales_of_fp8():
    output, wanted = run({}, kv_cache_dtype="fp8")
    torch.testing.assert_close(output.double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dtypes(dtype):
    output, wanted = run({}, dtype)
    torch.testing.assert_close(output.double(), wanted, rtol=0.02, atol=0.02)


def test_memory_profile():
    """Without metadata, vLLM measures memory, and goes on with the output."""
    impl = PagedAttentionImpl(NUM_HEADS, HEAD_SIZE, 1.0)
    output = torch.full((3, NUM_HEADS, HEAD_SIZE), float("nan"))
    assert impl.forward(None, output, output, output, torch.empty(0), None, output).abs().max() == 0


def test_what_is_refused():
    with pytest.raises(NotImplementedError, match="expected attention of a decoder, got encoder_only"):
        PagedAttentionImpl(4, 32, 1.0, attn_type=AttentionType.ENCODER_ONLY.value)
    impl, x = PagedAttentionImpl(4, 32, 1.0), torch.empty(0)
    with pytest.raises(NotImplementedError, match="expected an output that is not quantised"):
        impl.forward(None, x, x, x, x, None, x, output_scale=x)


def test_names():
    """The names are members of the list of backends of vLLM."""
    assert (PagedAttentionBackend.get_name(), CpuPagedAttentionBackend.get_name()) == ("CUSTOM", "CPU_ATTN")


def test_graphs():
    """Decodes are captured in full graphs. Metadata of two batches share everything that a graph reads."""
    assert PagedAttentionBuilder.get_cudagraph_support(None, None) == AttentionCGSupport.UNIFORM_BATCH
    builder = PagedAttentionBuilder(None, [], None, torch.device("cpu"))
    buffers = {
        name: torch.zeros(4, dtype=torch.int32)
        for name in ("query_start_loc", "seq_lens", "block_table_tensor", "slot_mapping")
    }
    batch = SimpleNamespace(num_actual_tokens=3, max_query_len=1, max_seq_len=64, causal=True, **buffers)
    captured, replayed = builder.build_for_cudagraph_capture(batch), builder.build(0, batch)
    tensors = ("query_start_loc", "seq_lens", "block_table", "slot_mapping", "workspace")
    for name, buffer in zip(tensors, [*buffers.values(), captured.workspace], strict=True):
        assert getattr(captured, name).data_ptr() == getattr(replayed, name).data_ptr() == buffer.data_ptr()
    assert (captured.max_query_len, captured.max_seq_len) == (1, 64)
