"""The error bound of attention: what a result may differ from that of float64 arithmetic, without a free parameter.

With the softmax weights p of the n visible keys, and u(t) the unit roundoff of a type, times two:

    A   = sum of p[j] * |v[j]|
    d   = (D + 8) * 2^-23 * max over j of (scale * sum of |q[i] * k[j, i]| + |alibi bias|) + 2^-20 * softcap
    out: u(out) * |out| + (u(P) + 2 * d + (1024 + n / 64) * 2^-23) * A + the smallest subnormal
    lse: d + (1024 + n / 64) * 2^-23 + 2^-22 * |lse|

P is the type in which weights are multiplied with values.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import torch
from torch import Tensor

import multikv
from multikv import reference
from multikv.reference.attention import AttentionRow, Options, Sequences, attention_rows
from tests.support.arguments import Arguments, copy_of

FEW_ROWS, MANY_KEYS = 64, 33_000  # see attend()
ROUNDING = {torch.float32: 2.0**-23, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-8}


def exact_rows(call: Arguments, bad_indices: str = "raise") -> Iterator[AttentionRow]:
    """The results of a call of paged_attention in float64."""
    options = {name: call[name] for name in inspect.signature(Options).parameters}
    sequences = {name: call[name] for name in inspect.signature(Sequences).parameters}
    yield from attention_rows(
        call["query"],
        call["key_cache"],
        call["value_cache"],
        Sequences(**sequences),
        call["kv_cache_dtype"],
        call["k_scale"],
        call["v_scale"],
        Options(**options),
        len(call["query"]),
        bad_indices,
    )


def bounds_of(result: AttentionRow, call: Arguments, weight_dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The largest allowed errors of out [Hq, Dv] and lse [Hq] of a row."""
    dtype = call["out"].dtype
    d = (call["query"].shape[2] + 8) * 2.0**-23 * result.magnitude + 2.0**-20 * max(call["softcap"], 0.0)
    sums = (1024 + result.num_visible / 64) * 2.0**-23
    tiny = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    factor = ROUNDING[weight_dtype] + 2 * d + sums
    out = ROUNDING[dtype] * result.out.abs() + factor[:, None] * result.weighted + tiny
    return out, d + sums + 2.0**-22 * result.lse.abs()


def weight_dtype_of(call: Arguments) -> torch.dtype:
    """CPU kernels keep weights in float32; GPU kernels may round them to the type of the query."""
    return call["out"].dtype if call["out"].is_cuda else torch.float32


def assert_within(got: Tensor, exact: Tensor, bound: Tensor, what: str) -> None:
    got = got.detach().cpu().double()
    same = (got == exact) | (got.isnan() & exact.isnan())
    wrong = ~(same | ((got - exact).abs() <= bound))
    if wrong.any():
        at = wrong.nonzero()[0].tolist()
        raise AssertionError(
            f"{what}: {int(wrong.sum())} of {wrong.numel()} elements are wrong, the first at {at}: got "
            f"{got[tuple(at)].item()}, expected {exact[tuple(at)].item()} +- {bound[tuple(at)].item()}"
        )


def assert_close(call: Arguments, rows: Iterator[AttentionRow] | list[AttentionRow]) -> None:
    """Compares out and lse of a call that has run with results in float64."""
    for result in rows:
        out_bound, lse_bound = bounds_of(result, call, weight_dtype_of(call))
        assert_within(call["out"][result.row], result.out, out_bound, f"out[{result.row}]")
        if call["lse"] is not None:
            assert_within(call["lse"][:, result.row], result.lse, lse_bound, f"lse[:, {result.row}]")


def attend(call: Arguments) -> Arguments:
    """Runs paged_attention on a copy of the call.

    A GPU may decode by another kernel if the bound of the lengths is large. So calls of few rows without a bound also
    run with a table that has room for many keys, and must return the same.
    """
    ours, table = copy_of(call, None), call["block_table"]
    multikv.paged_attention(**ours)
    if table.is_cuda and len(call["query"]) <= FEW_ROWS and call["max_seq_len"] < 0:
        columns = MANY_KEYS // call["key_cache"].shape[3 if call["key_cache"].dim() == 5 else 1] + 1
        wide = copy_of(call, None) | {"block_table": torch.nn.functional.pad(table, (0, columns), value=-1)}
        multikv.paged_attention(**wide)
        for name in ("out", "lse"):
            if call[name] is not None:
                torch.testing.assert_close(wide[name], ours[name], rtol=0, atol=0, equal_nan=True)
    return ours


def check_attention(call: Arguments) -> Arguments:
    """Runs paged_attention on a copy, compares its results with the bound, and all other memory with the original's."""
    ours, rows = attend(call), list(exact_rows(call))
    assert_close(ours, rows)
    restored = copy_of(ours, None)
    for result in rows:
        restored["out"][result.row] = call["out"][result.row]
        if call["lse"] is not None:
            restored["lse"][:, result.row] = call["lse"][:, result.row]
    from tests.support.comparison import assert_same_bytes  # noqa: PLC0415

    assert_same_bytes(restored | {"workspace": None}, call | {"workspace": None})
    return ours


__all__ = ["assert_close", "attend", "check_attention", "exact_rows", "reference"]
