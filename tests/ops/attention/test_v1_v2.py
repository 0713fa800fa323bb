"""paged_attention_v1 and _v2 give the bits of paged_attention."""

from __future__ import annotations

import pytest
import torch

import multikv
from tests.support.arguments import copy_of
from tests.support.attention import attend
from tests.support.calls.attention import attention_arguments, v1_arguments, v2_arguments

OPTIONS = [{}, {"alibi": True}, {"format": "fp8_e5m2", "per_head": True}, {"layout": "packed_interleaved_padded"}]
SHAPES = {"lengths": (700, 0, 33), "heads": (8, 2), "head_size": 64, "lse": False}


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("op", ["paged_attention_v1", "paged_attention_v2"])
def test_same_bits_as_paged_attention(device, op, options):
    options = {"layout": "packed"} | SHAPES | options
    expected = attend(attention_arguments(device, **options))
    for extra in ({},) if op == "paged_attention_v1" else ({"partitions": 1}, {"partitions": 3}):
        torch.manual_seed(0)
        make = v1_arguments if op == "paged_attention_v1" else v2_arguments
        call = copy_of(make(device, **options, **extra), None)
        getattr(multikv, op)(**call)
        assert torch.equal(call["out"], expected["out"])


def test_tmp_out_of_any_alignment_and_stride(device):
    call = v2_arguments(device, **SHAPES)
    expected = copy_of(call, None)
    multikv.paged_attention_v2(**expected)
    rows, heads, partitions, size = call["tmp_out"].shape
    buffer = torch.zeros(rows * heads * partitions * size * 2 + 1, dtype=torch.bfloat16, device=device)
    for tmp_out in (buffer[1 : 1 + rows * heads * size], buffer[: rows * heads * size * 2 : 2]):
        call["tmp_out"] = tmp_out.view(rows, heads, partitions, size)
        multikv.paged_attention_v2(**call)
        assert torch.equal(call["out"], expected["out"])
