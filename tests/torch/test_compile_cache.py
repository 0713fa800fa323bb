"""A decoder layer with multikv's ops: what PyTorch's compile cache keeps, and how often it is compiled."""

from __future__ import annotations

import json

import pytest

from tests.support.processes import output_of

# Compiles a layer that writes and attends, and runs it for batches of several sizes. Prints how many graphs there were,
# how many came from the cache, and the allocations that are as large as a cache.
PROGRAM = """
import json, re
import torch, multikv
from torch._dynamo.utils import counters
from torch._inductor.utils import run_and_get_code

def layer(x, weight, key_cache, value_cache, slots, table, lengths):
    query, key, value = (x @ weight).view(-1, 3, 2, 16).unbind(1)
    multikv.reshape_and_cache_flash(key, value, key_cache, value_cache, slots, "auto", None, None)
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    workspace = torch.empty(0, dtype=torch.uint8)
    multikv.paged_attention(query, key_cache, value_cache, out, None, table, lengths, None, 1, -1, 0.25, "auto", None,
                            None, workspace)
    return out.flatten(1) + x

compiled = torch.compile(layer, fullgraph=True)
caches = [torch.zeros(64, 16, 2, 16) for _ in range(2)]
weight, codes, equal = torch.randn(32, 96), [], []
for batch in (3, 5, 8, 17, 60):
    x, table = torch.randn(batch, 32), torch.arange(batch, dtype=torch.int32)[:, None]
    slots, lengths = table[:, 0].long() * 16, torch.ones(batch, dtype=torch.int32)
    call = (x, weight, *caches, slots, table, lengths)
    for tensor in (x, slots, table, lengths):
        torch._dynamo.mark_dynamic(tensor, 0)
    if codes:
        result = compiled(*call)
    else:  # run_and_get_code forgets what was compiled before
        result, codes = run_and_get_code(compiled, *call)
    equal.append(torch.allclose(result, layer(*call), atol=1e-4))
large = [line for code in codes for line in re.findall(r"buf\\d+ = empty.*", code) if "64, 16, 2, 16" in line]
print(json.dumps({
    "equal": equal, "graphs": counters["stats"]["unique_graphs"], "hits": counters["inductor"]["fxgraph_cache_hit"],
    "misses": counters["inductor"]["fxgraph_cache_miss"], "large": large, "clones": "\\n".join(codes).count("clone"),
    "ops": sorted(set(re.findall(r"torch.ops.multikv.(\\w+)", "\\n".join(codes)))),
}))
"""


@pytest.mark.slow
def test_second_process_hits_the_compile_cache(tmp_path):
    """One graph for all batch sizes, without a copy of a cache; the second process does not compile it again."""
    first, second = (json.loads(output_of(PROGRAM, TORCHINDUCTOR_CACHE_DIR=str(tmp_path))) for _ in range(2))
    for run in (first, second):
        assert run["equal"] == [True] * 5
        assert run["graphs"] == 1
        assert not run["large"]
        assert run["clones"] == 0
    assert first["ops"] == ["paged_attention", "reshape_and_cache_flash"]
    assert (first["hits"], first["misses"]) == (0, 1)
    assert (second["hits"], second["misses"]) == (1, 0)
