"""The ops as PyTorch sees them: opcheck, torch.compile, inference mode."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._inductor.utils import run_and_get_code

import multikv
from multikv import reference
from tests.support.arguments import copy_of
from tests.support.calls import CALLS, GPU_CALLS, ONE_OF_EACH
from tests.support.comparison import assert_same_bytes, check, run
from tests.support.tensors import distinct_slots, embed, randomise

TORCH = tuple(int(part) for part in torch.__version__.split(".")[:2])


def call_of(name, device):
    if name in GPU_CALLS and device.type != "cuda":
        pytest.skip("on a CPU as the same call within one device")
    return (CALLS | GPU_CALLS)[name]


@pytest.mark.parametrize("name", [*CALLS, *GPU_CALLS])
def test_opcheck(any_device, name):
    call = call_of(name, any_device)
    if name == "upconvert-host" and any_device.type == "cuda":
        pytest.skip("opcheck's own copies of the arguments are not in pinned memory")
    if name == "merge":
        pytest.skip("opcheck cannot compare the float8 output")
    op = getattr(torch.ops.multikv, call.op).default
    torch.library.opcheck(op, tuple(call.arguments(any_device).values()))


@pytest.mark.parametrize("name", [*CALLS, *GPU_CALLS])
def test_inference_mode(any_device, name):
    call = call_of(name, any_device)
    with torch.inference_mode():
        check(call.op, call.arguments(any_device), nan_outputs=call.nan_outputs)


@pytest.mark.parametrize("op", ONE_OF_EACH)
def test_keyword_arguments(any_device, op):
    """Keyword arguments come in any order, and those that have their default value may be left out."""
    for function in (getattr(multikv, op), getattr(torch.ops.multikv, op)):
        call = ONE_OF_EACH[op].arguments(any_device)
        expected = copy_of(call)
        getattr(reference, op)(**expected)
        defaults = {name: p.default for name, p in inspect.signature(getattr(multikv, op)).parameters.items()}
        named = {
            name: x for name, x in call.items() if isinstance(x, (Tensor, list)) or x is None or x != defaults[name]
        }
        function(**dict(reversed(named.items())))
        assert_same_bytes(call, expected)


def test_options_may_be_left_out(any_device):
    for op, options in (
        ("cp_gather_cache", ["seq_starts"]),
        ("gather_and_maybe_dequant_cache", ["seq_starts"]),
        ("cp_gather_and_upconvert_fp8_kv_cache", ["seq_starts", "host_cache", "host_row_ids", "device_row_ids"]),
        ("concat_and_cache_mla_grouped", ["kv_scales"]),
    ):
        call = ONE_OF_EACH[op].arguments(any_device)
        for name in options:
            assert call.pop(name) is None
        expected = copy_of(call)
        getattr(reference, op)(**expected)
        getattr(multikv, op)(**call)
        assert_same_bytes(call, expected)


# -- torch.compile -----------------------------------------------------------------------------------------------------


def write(key, value, key_cache, value_cache, slots, scale):
    multikv.reshape_and_cache_flash(key, value, key_cache, value_cache, slots, "fp8_e4m3fn", scale, scale)


def write_interleaved(key, value, cache, slots, scale):
    write(key, value, *cache.unbind(1), slots, scale)


def write_between_other_work(key, value, cache, slots, scale):
    write(key * 2, value + 1, *cache.unbind(1), slots, scale)
    return cache[0, 0, 0] + 1


def write_arguments(function: Callable, device: torch.device, tokens: int) -> dict[str, Tensor]:
    key, value = (randomise(embed((tokens, 2, 64), torch.bfloat16, device)) for _ in range(2))
    slots, scale = distinct_slots(tokens, 320).to(device), torch.tensor([0.7], device=device)
    if function is write:
        key_cache, value_cache = (embed((20, 16, 2, 64), torch.uint8, device) for _ in range(2))
        return {"key": key, "value": value, "kc": key_cache, "vc": value_cache, "slots": slots, "scale": scale}
    # Before 2.13, PyTorch misplaces a written view of an input that does not start its storage, whatever the op.
    guard = 2048 if TORCH >= (2, 13) else 0
    cache = embed((20, 2, 16, 2, 64), torch.uint8, device, guard=guard)
    return {"key": key, "value": value, "cache": cache, "slots": slots, "scale": scale}


def allocations(code: list[str]) -> list[str]:
    """The allocations of compiled code; a copy of the cache would be one of them."""
    return re.findall(r"^ *(buf\d+ = (?!reinterpret_tensor|buf\d+;).*)", "\n".join(code), re.MULTILINE)


# "all": also the sizes of the caches are dynamic. Not for K and V in one tensor: PyTorch then loses the offset of
# a written view (pytorch/pytorch#198068), whatever the op.
@pytest.mark.parametrize(
    "function, dynamic, buffers",
    [
        (write, "none", 0),
        (write, "tokens", 0),
        (write, "all", 0),
        (write_interleaved, "none", 0),
        (write_interleaved, "tokens", 0),
        (write_between_other_work, "none", 3),  # key * 2, value + 1, the result
        (write_between_other_work, "tokens", 3),
    ],
    ids=lambda x: getattr(x, "__name__", str(x)),
)
def test_compiled_without_a_copy_of_the_cache(any_device, function, dynamic, buffers):
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, dynamic=True if dynamic == "all" else None)
    for tokens in (7,) if dynamic == "none" else (7, 30, 200):
        call = write_arguments(function, any_device, tokens)
        if dynamic == "tokens":
            for name in ("key", "value", "slots"):
                torch._dynamo.mark_dynamic(call[name], 0)
        expected = copy_of(call, any_device)
        result = function(*expected.values())
        if tokens == 7:
            got, code = run_and_get_code(compiled, *call.values())
        else:
            with torch._dynamo.config.patch(error_on_recompile=True):
                got = compiled(*call.values())
        assert_same_bytes(call, expected)
        assert result is got is None or torch.equal(got, result)
    assert "torch.ops.multikv.reshape_and_cache_flash.default(" in code[0]
    assert len(allocations(code)) == buffers, allocations(code)


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("op", ONE_OF_EACH)
@torch.fx.experimental._config.patch(use_duck_shape=False)  # by default, sizes that are equal once must always be
def test_compiled(any_device, op, dynamic):
    """Compiled code copies nothing, and with dynamic shapes it is compiled once for all sizes."""
    torch._dynamo.reset()
    compiled = torch.compile(getattr(multikv, op), fullgraph=True, dynamic=dynamic)
    make = ONE_OF_EACH[op].arguments
    call = make(any_device)
    expected = copy_of(call, None)
    run(op, expected)
    _, code = run_and_get_code(compiled, *call.values())
    assert_same_bytes(call, expected)
    assert f"torch.ops.multikv.{op}.default(" in code[0]
    assert not allocations(code)
    call, first = make(any_device, **ONE_OF_EACH[op].larger), call
    # A number in a schema is a constant of the graph: another number is another graph.
    if dynamic and all(isinstance(x, (Tensor, list)) or x == first[name] for name, x in call.items()):
        expected = copy_of(call, None)
        run(op, expected)
        with torch._dynamo.config.patch(error_on_recompile=True):
            compiled(*call.values())
        assert_same_bytes(call, expected)


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compiled_between_other_work(any_device, dynamic):
    """The compiled function computes what the op reads, and uses what the op writes."""

    def gather(src_cache, dst, block_table, cu_seq_lens):
        multikv.cp_gather_cache(src_cache, dst, block_table - 1, cu_seq_lens, block_table.shape[0])
        return dst[0] + 1

    torch._dynamo.reset()
    call = ONE_OF_EACH["cp_gather_cache"].arguments(any_device, dtype=torch.int32)
    expected = copy_of(call)
    reference.cp_gather_cache(**expected)
    call["block_table"] += 1
    tensors = [x for x in call.values() if isinstance(x, Tensor)]
    got, code = run_and_get_code(torch.compile(gather, fullgraph=True, dynamic=dynamic), *tensors)
    call["block_table"] -= 1
    assert_same_bytes(call, expected)
    assert torch.equal(got.cpu(), expected["dst"][0] + 1)
    assert len(allocations(code)) == 2, allocations(code)  # the table, the result
