"""The ops as PyTorch sees them: opcheck, torch.compile, inference mode."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._inductor.utils import run_and_get_code

import multikv
import reference
from calls.gather import gather_arguments
from calls.reshape_and_cache import flash_arguments
from helpers import assert_same_bytes, check, copy_of, distinct_slots, embed, randomise

FLASH, GATHER = "reshape_and_cache_flash", "cp_gather_cache"
TORCH = tuple(int(part) for part in torch.__version__.split(".")[:2])

CALLS = {
    "flash": (FLASH, flash_arguments, {}),
    "flash-fp8": (FLASH, flash_arguments, {"format": "fp8", "per_head": True, "cache": "HND"}),
    # A uint8 cache: opcheck cannot compare float8 tensors.
    "flash-e5m2": (FLASH, flash_arguments, {"format": "fp8_e5m2", "inputs": "projection", "value_head_size": 32}),
    "flash-no_tokens": (FLASH, flash_arguments, {"tokens": 0}),
    "gather": (GATHER, gather_arguments, {}),
    "gather-starts": (GATHER, gather_arguments, {"starts": (1, 0, 17, 3), "index_dtype": torch.int64}),
    "gather-no_sequences": (GATHER, gather_arguments, {"lengths": ()}),
}


@pytest.mark.parametrize("name", CALLS)
def test_opcheck(any_device, name):
    op, make, options = CALLS[name]
    call = make(any_device, **options)
    torch.library.opcheck(getattr(torch.ops.multikv, op).default, tuple(call.values()))


@pytest.mark.parametrize("name", CALLS)
def test_inference_mode(any_device, name):
    op, make, options = CALLS[name]
    with torch.inference_mode():
        check(op, make(any_device, **options))


def test_keyword_arguments(any_device):
    for op, make in ((FLASH, flash_arguments), (GATHER, gather_arguments)):
        for function in (getattr(multikv, op), getattr(torch.ops.multikv, op)):
            call = make(any_device)
            expected = copy_of(call)
            getattr(reference, op)(**expected)
            function(**call)
            assert_same_bytes(call, expected)


def test_seq_starts_may_be_left_out(any_device):
    call = gather_arguments(any_device)
    assert call.pop("seq_starts") is None
    check(GATHER, call)


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
    """What compiled code allocates: a copy of the cache would be among it."""
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
def test_compiled_gather(any_device, dynamic):
    def gather(src_cache, dst, block_table, cu_seq_lens, seq_starts):
        multikv.cp_gather_cache(src_cache, dst, block_table, cu_seq_lens, block_table.shape[0], seq_starts)
        return dst[0] + 1

    torch._dynamo.reset()
    call = gather_arguments(any_device, dtype=torch.int32, starts=(1, 0, 17, 3))
    expected = copy_of(call)
    reference.cp_gather_cache(**expected)
    tensors = [x for x in call.values() if isinstance(x, Tensor)]
    got, code = run_and_get_code(torch.compile(gather, fullgraph=True, dynamic=dynamic), *tensors)
    assert_same_bytes(call, expected)
    assert torch.equal(got.cpu(), expected["dst"][0] + 1)
    assert len(allocations(code)) == 1, allocations(code)
