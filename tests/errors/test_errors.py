"""Bad calls: the exception, its whole text, nothing written, and a good call works right after.

The same call gives the same text on every device. Bad indices: IndexError on a CPU and on a GPU that checks them.
"""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

import pytest
import torch

from multikv import platforms, reference
from tests.errors.bad_call import Bad
from tests.support.arguments import Arguments, copy_of, tensors_of, written_by
from tests.support.calls import CALLS
from tests.support.calls.gather import gather_arguments
from tests.support.calls.reshape_and_cache import flash_arguments
from tests.support.comparison import assert_same_bytes, check, run

# The modules beside this one, each of which has some of the tables.
TABLES = [
    importlib.import_module(f"tests.errors.{module.name}")
    for module in pkgutil.iter_modules([str(Path(__file__).parent)])
    if not module.name.startswith("test_") and module.name != "bad_call"
]


def bad_calls(kind: str) -> list[Bad]:
    return [bad for table in TABLES for bad in getattr(table, kind, [])]


BAD_ARGUMENTS = bad_calls("BAD_ARGUMENTS")
WRONG_DEVICES = bad_calls("WRONG_DEVICES")
# A GPU that does not check its indices skips them.
BAD_INDICES = bad_calls("BAD_INDICES")
# After bad bounds a GPU that does not check its indices may write to other rows of the output.
BAD_BOUNDS = bad_calls("BAD_BOUNDS")
# Every device checks them always.
BAD_PAIRS = bad_calls("BAD_PAIRS")

GOOD_CALLS = {call.op: call for call in CALLS.values() if call.uses_all}


def fails(bad: Bad, device: torch.device, exception: type[Exception]) -> None:
    call = bad.call(device)
    before = copy_of(call)
    with pytest.raises(Exception) as caught:
        run(bad.op, call)
    assert (type(caught.value), str(caught.value)) == (exception, bad.text(device))
    assert_same_bytes(call, before)
    check(bad.op, bad.good_call(device))


def test_these_tests_know_all_ops():
    assert sorted({bad.op for bad in BAD_ARGUMENTS}) == sorted(GOOD_CALLS) == platforms.op_names()


@pytest.mark.parametrize("bad", BAD_ARGUMENTS, ids=str)
def test_bad_arguments(any_device, bad):
    fails(bad, any_device, RuntimeError)


@pytest.mark.parametrize("bad", WRONG_DEVICES, ids=str)
def test_wrong_devices(gpu, bad):
    fails(bad, gpu, RuntimeError)


@pytest.mark.parametrize("bad", BAD_INDICES + BAD_BOUNDS, ids=str)
def test_bad_indices(any_device, bad, check_indices):
    check_indices(True)
    fails(bad, any_device, IndexError)


@pytest.mark.parametrize("bad", BAD_INDICES, ids=str)
def test_gpu_skips_bad_indices(gpu, bad, check_indices):
    check_indices(False)
    check(bad.op, bad.call(gpu), bad_indices="skip")


@pytest.mark.parametrize("bad", BAD_BOUNDS, ids=str)
def test_gpu_stays_inside_with_bad_bounds(gpu, bad, check_indices):
    """After bad bounds any row of the output may be written, and nothing else."""
    check_indices(False)
    call = bad.call(gpu)
    before = copy_of(call)
    run(bad.op, call)
    copies, results = tensors_of(before), tensors_of(call)
    for name in results:
        if name.partition("[")[0] in written_by(bad.op):
            copies[name].copy_(results[name])
    assert_same_bytes(call, before)


@pytest.mark.parametrize("bad", BAD_PAIRS, ids=str)
def test_bad_pairs(any_device, bad, check_indices):
    check_indices(False)
    fails(bad, any_device, IndexError)


@pytest.mark.parametrize("op", GOOD_CALLS)
def test_wrong_number_and_kind_of_arguments(any_device, op):
    """The dispatcher itself checks these, by the schema."""
    call = list(GOOD_CALLS[op].arguments(any_device).values())
    for wrong in (call[:1], [*call, 1], [1, *call[1:]], [*call[:-1], object()]):
        with pytest.raises(RuntimeError, match=rf"multikv::{op}\(\) "):
            getattr(torch.ops.multikv, op)(*wrong)


def test_first_bad_index_is_named(any_device, check_indices):
    check_indices(True)
    call = flash_arguments(any_device, tokens=500)
    call["slot_mapping"][[77, 400]] = 10**9
    with pytest.raises(IndexError, match=r"slot_mapping\[77\]"):
        run("reshape_and_cache_flash", call)


def test_reference_rejects_the_same_indices():
    for bad in BAD_INDICES + BAD_BOUNDS:
        with pytest.raises(IndexError):
            getattr(reference, bad.op)(**bad.call(torch.device("cpu")))


@pytest.mark.parametrize("op", GOOD_CALLS)
def test_one_meta_tensor_among_others(any_device, op):
    """Such a call is dispatched to the fake kernels, which write nothing, so it must be an error."""
    call = GOOD_CALLS[op].arguments(any_device)
    for name, x in call.items():
        if not isinstance(x, torch.Tensor):
            continue
        wrong = call | {name: x.to("meta")}
        with pytest.raises(RuntimeError) as caught:
            run(op, wrong)
        types = sorted({x.device.type for x in tensors_of(wrong).values()})
        assert str(caught.value) == f"{op}: expected all tensors on one device, got {', '.join(types)}"


@pytest.mark.parametrize("op", GOOD_CALLS)
def test_address_between_two_elements(op):
    """Tensors of other libraries may have such an address. GPUs cannot read there, so it is an error on all devices."""
    call = GOOD_CALLS[op].arguments()
    for name, x in call.items():
        if not isinstance(x, torch.Tensor) or x.element_size() == 1:
            continue
        buffer = bytearray(x.nbytes + 1)
        shifted = torch.frombuffer(buffer, dtype=x.dtype, offset=1, count=x.numel()).view(x.shape)
        shifted.copy_(x)
        with pytest.raises(RuntimeError) as caught:
            run(op, call | {name: shifted})
        size = x.element_size()
        rest = shifted.data_ptr() % size
        expected = f"an address that is a multiple of {size} (bytes per element)"
        assert str(caught.value) == f"{op}: {name}: expected {expected}, got a remainder of {rest}"


def with_item(call: Arguments, name: str, changed: torch.Tensor) -> Arguments:
    """The call with another tensor `name`, which may be an item of a list: "src[1]"."""
    argument, _, index = name.removesuffix("]").partition("[")
    if not index:
        return call | {argument: changed}
    return call | {argument: [changed if i == int(index) else x for i, x in enumerate(call[argument])]}


@pytest.mark.parametrize("op", GOOD_CALLS)
def test_storage_that_ends_before_the_tensor(any_device, op):
    """untyped_storage().resize_() leaves such a tensor behind. A read of its last element would be out of bounds."""
    call = GOOD_CALLS[op].arguments(any_device)
    for name, x in tensors_of(call).items():
        short = x.clone()
        needed = short.nbytes
        short.untyped_storage().resize_(needed - 1)
        with pytest.raises(RuntimeError) as caught:
            run(op, with_item(call, name, short))
        expected = f"a storage with {needed} bytes from the first element on, got {needed - 1} bytes"
        assert str(caught.value) == f"{op}: {name}: expected {expected}"


def test_gpu_leaves_rows_of_a_sequence_that_begins_too_early(gpu, check_indices):
    check_indices(False)
    call = gather_arguments(gpu)
    expected = call["dst"].clone()
    good = copy_of(call)
    reference.cp_gather_cache(**good)
    expected[5:54] = good["dst"].to(gpu)[5:54]
    call["cu_seq_lens"][0] = -3
    run("cp_gather_cache", call)
    assert torch.equal(call["dst"].view(torch.int16), expected.view(torch.int16))
