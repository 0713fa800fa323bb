"""Compiled functions that write K and V of one pool: the layouts that docs/torch_compile.md calls correct."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch._inductor.utils import run_and_get_code

import multikv
from multikv import reference


class Pool(NamedTuple):
    shape: tuple[int, ...]
    halves: Callable[[Tensor], tuple[Tensor, ...]]


BLOCKS_OUTERMOST = Pool((20, 2, 16, 2, 64), lambda pool: pool.unbind(1))
HALVES_OUTERMOST = Pool((2, 20, 16, 2, 64), lambda pool: pool.unbind(0))
SIDE_BY_SIDE = Pool((20, 16, 2, 128), lambda pool: pool.split(64, -1))


@pytest.mark.parametrize(
    "pool, split_inside, dynamic",
    [
        (BLOCKS_OUTERMOST, False, False),
        (BLOCKS_OUTERMOST, False, True),
        (BLOCKS_OUTERMOST, True, False),
        (HALVES_OUTERMOST, True, False),
        (SIDE_BY_SIDE, True, True),
    ],
    ids=["blocks-halves", "blocks-halves-dynamic", "blocks-whole", "halves-whole", "side-by-side-whole"],
)
def test_pool(any_device, pool, split_inside, dynamic):
    def write(key, value, caches, slots, scale):
        key_cache, value_cache = pool.halves(caches[0]) if split_inside else caches
        multikv.reshape_and_cache_flash(key, value, key_cache, value_cache, slots, "fp8_e4m3fn", scale, scale)

    torch._dynamo.reset()
    key, value = torch.randn(2, 7, 2, 64, dtype=torch.bfloat16, device=any_device)
    slots, scale = torch.randperm(320)[:7].to(any_device), torch.tensor([0.7], device=any_device)
    got, expected = (torch.zeros(pool.shape, dtype=torch.uint8, device=device) for device in (any_device, "cpu"))
    inputs = (x.cpu() for x in (key, value))
    reference.reshape_and_cache_flash(
        *inputs, *pool.halves(expected), slots.cpu(), "fp8_e4m3fn", scale.cpu(), scale.cpu()
    )
    compiled = torch.compile(write, fullgraph=True, dynamic=True if dynamic else None)
    caches = (got,) if split_inside else pool.halves(got)
    _, code = run_and_get_code(compiled, key, value, caches, slots, scale)
    assert torch.equal(got.cpu(), expected)
    body = "".join(code).partition("def call(")[2]
    assert "torch.ops.multikv.reshape_and_cache_flash.default(" in body
    assert not re.search(r"empty_strided|clone", body)
