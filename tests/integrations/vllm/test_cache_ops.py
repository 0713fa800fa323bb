"""Which ops of vLLM's namespace are taken over. vLLM is not needed: a program defines ops in place of its library."""

from __future__ import annotations

import json

import pytest

from multikv import platforms
from multikv.integrations.vllm import splitting_ops
from tests.support.processes import output_of

OPS = [
    "concat_and_cache_mla",
    "concat_and_cache_mla_grouped",
    "concat_and_cache_mla_rope_fused",
    "concat_mla_q",
    "convert_fp8",
    "cp_gather_and_upconvert_fp8_kv_cache",
    "cp_gather_cache",
    "cp_gather_indexer_k_quant_cache",
    "gather_and_maybe_dequant_cache",
    "indexer_k_quant_and_cache",
    "reshape_and_cache",
    "reshape_and_cache_flash",
    "swap_blocks",
    "swap_blocks_batch",
]

# The schemas of vLLM 0.33.0.
SCHEMAS = {
    "swap_blocks": "(Tensor src, Tensor! dst, int block_size_in_bytes, Tensor block_mapping) -> ()",
    "swap_blocks_batch": ("(Tensor src_ptrs, Tensor dst_ptrs, Tensor sizes, bool is_src_access_order_any=False) -> ()"),
    "reshape_and_cache": (
        "(Tensor key, Tensor value, Tensor! key_cache, Tensor! value_cache, Tensor slot_mapping, str kv_cache_dtype, "
        "Tensor k_scale, Tensor v_scale, bool interleaved_v=False) -> ()"
    ),
    "reshape_and_cache_flash": (
        "(Tensor key, Tensor value, Tensor! key_cache, Tensor! value_cache, Tensor slot_mapping, str kv_cache_dtype, "
        "Tensor k_scale, Tensor v_scale) -> ()"
    ),
    "concat_and_cache_mla": (
        "(Tensor kv_c, Tensor k_pe, Tensor! kv_cache, Tensor slot_mapping, str kv_cache_dtype, Tensor scale, "
        "bool skip_scale=False) -> ()"
    ),
    "concat_and_cache_mla_grouped": (
        "(Tensor kv_c, Tensor k_pe, Tensor kv_cache_ptrs, Tensor slot_mapping, int block_size, int block_stride, "
        "int entry_stride, Tensor? kv_scales=None, str kv_cache_dtype='auto') -> ()"
    ),
    "concat_and_cache_mla_rope_fused": (
        "(Tensor positions, Tensor! q_pe, Tensor! k_pe, Tensor kv_c, Tensor cos_sin_cache, bool is_neox, "
        "Tensor slot_mapping, Tensor! kv_cache, str kv_cache_dtype, Tensor kv_cache_scale) -> ()"
    ),
    "convert_fp8": "(Tensor! dst_cache, Tensor src_cache, float scale, str kv_cache_dtype) -> ()",
    "gather_and_maybe_dequant_cache": (
        "(Tensor src_cache, Tensor! dst, Tensor block_table, Tensor cu_seq_lens, Tensor token_to_seq, int num_tokens, "
        "str kv_cache_dtype, Tensor scale, Tensor? seq_starts) -> ()"
    ),
    "cp_gather_cache": (
        "(Tensor src_cache, Tensor! dst, Tensor block_table, Tensor cu_seq_lens, int batch_size, "
        "Tensor? seq_starts) -> ()"
    ),
    "cp_gather_and_upconvert_fp8_kv_cache": (
        "(Tensor src_cache, Tensor! dst, Tensor block_table, Tensor workspace_starts, int batch_size, "
        "Tensor? seq_starts, Tensor? host_cache=None, Tensor? host_row_ids=None, Tensor? device_row_ids=None) -> ()"
    ),
    "indexer_k_quant_and_cache": (
        "(Tensor k, Tensor! kv_cache, Tensor slot_mapping, int quant_block_size, str kv_cache_dtype) -> ()"
    ),
    "concat_mla_q": "(Tensor ql_nope, Tensor q_pe, Tensor! q_out) -> ()",
    "cp_gather_indexer_k_quant_cache": (
        "(Tensor kv_cache, Tensor! dst_k, Tensor! dst_scale, Tensor block_table, Tensor cu_seq_lens) -> ()"
    ),
}

# Defines the schemas of a fake library with kernels, and takes over. Prints what is served, what is refused, and
# for each op the keys that have a kernel, and whether the kernel of the fake library was replaced.
PROGRAM = """
import json, sys, torch
library = torch.library.Library("_C_cache_ops", "FRAGMENT")
for name, schema in json.loads(sys.argv[1]).items():
    library.define(name + schema)
    library.impl(name, print, "CPU")
from multikv.integrations.vllm import serve_cache_ops
served = serve_cache_ops()
assert serve_cache_ops() is served
has, dump = torch._C._dispatch_has_kernel_for_dispatch_key, torch._C._dispatch_dump
ops = {name: "_C_cache_ops::" + name for name in (*served.names, *served.refusals)}
keys = {name: [key for key in ("CPU", "CUDA") if has(op, key)] for name, op in ops.items()}
replaced = {name: "CPU (inactive)" in dump(op) for name, op in ops.items()}
print(json.dumps([served.names, served.refusals, keys, replaced]))
"""


def serve(schemas, **environment):
    """Serves a process in which these ops exist, and returns what PROGRAM prints."""
    code = f"import sys; sys.argv[1:] = [{json.dumps(schemas)!r}]\n{PROGRAM}"
    return json.loads(output_of(code, **{"MULTIKV_PLATFORM": "cpu"} | environment).splitlines()[-1])


@pytest.mark.parametrize("schemas", [{}, SCHEMAS], ids=["absent", "of_vllm"])
def test_all_ops_are_served(schemas):
    served, refusals, keys, replaced = serve(schemas)
    assert served == OPS == sorted(SCHEMAS)
    assert not refusals
    assert keys == {op: ["CPU"] for op in OPS}
    assert replaced == {op: op in schemas for op in OPS}


@pytest.mark.skipif(not platforms.libraries()[1].path.exists(), reason="the CUDA library is not built")
def test_keys_of_a_gpu_library():
    """The CUDA library registers under CUDA, beside the kernels of the CPU library."""
    served, refusals, keys, _ = serve(SCHEMAS, MULTIKV_PLATFORM="cuda")
    assert served == OPS
    assert not refusals
    assert keys == {op: ["CPU", "CUDA"] for op in OPS}


# Ops with another schema than multikv's: (what stands in SCHEMAS, what stands there instead).
DIFFERENT = {
    "reshape_and_cache_flash": ("Tensor slot_mapping, ", ""),
    "concat_and_cache_mla_grouped": (") ->", ", int num_blocks=-1) ->"),
    "cp_gather_indexer_k_quant_cache": ("dst_k, Tensor! dst_scale", "dst_scale, Tensor! dst_k"),
    "convert_fp8": ("float scale", "Tensor scale"),
    "gather_and_maybe_dequant_cache": ("Tensor token_to_seq", "Tensor? token_to_seq"),
    "swap_blocks": ("Tensor src", "Tensor[] src"),
    "swap_blocks_batch": ("bool is_", "*, bool is_"),
    "concat_mla_q": ("-> ()", "-> Tensor"),
}


def plain(schema):
    """A schema without alias sets and default values."""
    for ignored in ("!", "=None", "=False", "='auto'", "=-1"):
        schema = schema.replace(ignored, "")
    return schema


def test_refusals():
    """Ops with another schema and ops that multikv lacks keep the kernels that they have."""
    different = {name: SCHEMAS[name].replace(*change) for name, change in DIFFERENT.items()}
    different["indexer_k_quant_and_cache"] = (  # has the same arguments, and a default value that looks like arguments
        SCHEMAS["indexer_k_quant_and_cache"].replace("kv_cache_dtype", "kv_cache_dtype='a, (int b=1) -> c'")
    )
    served, refusals, keys, replaced = serve(SCHEMAS | different | {"hisparse_gather_plan": "(Tensor cache) -> ()"})
    assert served == [op for op in OPS if op not in DIFFERENT]
    for name in DIFFERENT:
        expected = f"its schema is {plain(different[name])}, expected {plain(SCHEMAS[name])}"
        assert refusals.pop(name) == expected
    assert refusals == {"hisparse_gather_plan": "multikv has no kernel of this name"}
    assert keys == {op: ["CPU"] for op in [*OPS, "hisparse_gather_plan"]}
    assert replaced == {op: op in served for op in [*OPS, "hisparse_gather_plan"]}


# Calls each op of a fake library after the take-over. vLLM's two ops with other arguments get theirs.
CALLS = """
import json, sys, torch
library = torch.library.Library("_C_cache_ops", "FRAGMENT")
def fake(*arguments, **keywords):
    raise KeyError("the kernel of the fake library")
for name, schema in json.loads(sys.argv[1]).items():
    library.define(name + schema)
    library.impl(name, fake, "CPU")
    library.impl(name, fake, "CUDA")
from multikv import reference
from multikv.integrations.vllm import serve_cache_ops
from tests.support.arguments import copy_of
from tests.support.calls import ONE_OF_EACH
from tests.support.comparison import assert_same_bytes
served = serve_cache_ops()
for device in sys.argv[2:]:
    for name in served.names:
        torch.manual_seed(0)
        call = ONE_OF_EACH[name].arguments(torch.device(device))
        if name == "gather_and_maybe_dequant_cache":
            call["token_to_seq"] = torch.zeros(1, dtype=torch.int32, device=device)
        expected = copy_of(call)
        getattr(reference, name)(**expected)
        arguments = [x for key, x in call.items() if key != "num_blocks"]
        getattr(torch.ops._C_cache_ops, name)(*arguments)
        assert_same_bytes(call, expected, ONE_OF_EACH[name].nan_outputs)
        print(device, name)
"""


def test_calls(device_type):
    """Each op gives the bytes of the reference, through vLLM's namespace."""
    code = f"import sys; sys.argv[1:] = [{json.dumps(SCHEMAS)!r}, {device_type!r}]\n{CALLS}"
    environment = {"MULTIKV_PLATFORM": "cpu"} if device_type == "cpu" else {}
    assert output_of(code, **environment).splitlines() == [f"{device_type} {name}" for name in OPS]


# Defines ops whose kernel counts calls, or none. Serves, stops and serves again, and prints after each of these steps
# the keys that have a kernel of multikv, for all ops, and what a call did: how often the fake library's kernel ran, and
# whether multikv's ran.
STOPPING = """
import json, sys, torch
library = torch.library.Library("_C_cache_ops", "FRAGMENT")
counted = []
for name, schema in json.loads(sys.argv[1]).items():
    library.define(name + schema)
    library.impl(name, lambda *_: counted.append(1), "CPU")
from multikv.integrations.vllm import serve_cache_ops, stop_serving
def dump(name):
    return torch._C._dispatch_dump("_C_cache_ops::" + name).splitlines()
def keys(name):
    return [line.split(":")[0] for line in dump(name) if "takeover.cpp" in line and line.startswith(("CPU:", "CUDA:"))]
def show():
    out = torch.zeros(1, 1, 6)
    counted.clear()
    try:
        torch.ops._C_cache_ops.concat_mla_q(torch.ones(1, 1, 4), torch.ones(1, 1, 2), out)
        error = None
    except NotImplementedError as caught:
        error = type(caught).__name__
    print(json.dumps([sorted({*sum(map(keys, names), [])}), len(counted), out.sum().item() == 6, error]))
names = serve_cache_ops().names
show()
stop_serving()
stop_serving()
show()
assert serve_cache_ops().names == names
show()
"""


@pytest.mark.parametrize("schemas", [{}, SCHEMAS], ids=["absent", "of_vllm"])
@pytest.mark.parametrize("platform", ["cpu", "cuda"])
def test_stop_serving(schemas, platform):
    """The kernels that were there are back; ops that multikv has defined have none. Serving again works."""
    if platform == "cuda" and not platforms.libraries()[1].path.exists():
        pytest.skip("the CUDA library is not built")
    code = f"import sys; sys.argv[1:] = [{json.dumps(schemas)!r}]\n{STOPPING}"
    steps = [json.loads(line) for line in output_of(code, MULTIKV_PLATFORM=platform).splitlines()]
    keys = ["CPU"] if platform == "cpu" else ["CPU", "CUDA"]
    serving = [keys, 0, True, None]
    stopped = [[], 1, False, None] if schemas else [[], 0, False, "NotImplementedError"]
    assert steps == [serving, stopped, serving]


def test_splitting_ops():
    assert splitting_ops() == [f"multikv::{name}" for name in platforms.op_names()]
