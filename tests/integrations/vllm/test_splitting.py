"""A model that calls ops of multikv itself, cut into the pieces that vLLM captures in CUDA graphs."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("vllm")

from vllm.compilation.backends import split_graph

import multikv
from multikv.integrations.vllm import splitting_ops

pytestmark = pytest.mark.integration


def layer(x, key_cache, value_cache, slots, table, lengths):
    multikv.reshape_and_cache_flash(x + 1, x - 1, key_cache, value_cache, slots, "auto", None, None)
    query, out, workspace = x * 2, torch.empty_like(x), torch.empty(0, dtype=torch.uint8)
    multikv.paged_attention(
        query, key_cache, value_cache, out, None, table, lengths, None, 1, -1, 1.0, "auto", None, None, workspace
    )
    return out * 3


def test_each_op_is_a_piece_of_its_own():
    graphs = []
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend=lambda graph, _: graphs.append(graph) or graph.forward)
    caches = torch.zeros(2, 8, 4, 2, 16)
    table = torch.arange(3, dtype=torch.int32)[:, None]
    call = (torch.randn(3, 2, 16), *caches, table[:, 0].long() * 4, table, torch.ones(3, dtype=torch.int32))
    expected = compiled(*call)
    split, pieces = split_graph(graphs[0], splitting_ops())
    targets = [
        [str(node.target) for node in piece.graph.graph.nodes if "multikv" in str(node.target)]
        for piece in pieces
        if piece.is_splitting_graph
    ]
    assert targets == [["multikv.reshape_and_cache_flash.default"], ["multikv.paged_attention.default"]]
    assert not [
        node
        for piece in pieces
        if not piece.is_splitting_graph
        for node in piece.graph.graph.nodes
        if "multikv" in str(node.target)
    ]
    placeholders = [node.name for node in graphs[0].graph.nodes if node.op == "placeholder"]
    assert len(placeholders) == len(call)
    assert torch.equal(split(*_in_order_of(placeholders, call))[0], expected)


def _in_order_of(placeholders, call):
    """The arguments in the order in which the graph takes them: that of their names after L_."""
    names = ("x", "key_cache", "value_cache", "slots", "table", "lengths")
    by_name = {f"l_{name}_": tensor for name, tensor in zip(names, call, strict=True)}
    return [by_name[name] for name in placeholders]
