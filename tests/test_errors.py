"""Bad calls: the exception, its whole text, nothing written, and a good call works right after.

The same call gives the same text on every device. Bad indices: IndexError on a CPU and on a GPU that checks them.
"""

from __future__ import annotations

import pytest
import torch

import bad_gather
import bad_reshape_and_cache
import reference
from bad_calls import Bad
from calls.reshape_and_cache import flash_arguments
from helpers import assert_same_bytes, check, copy_of, run

FAMILIES = (bad_reshape_and_cache, bad_gather)
BAD_ARGUMENTS = [bad for family in FAMILIES for bad in family.BAD_ARGUMENTS]
WRONG_DEVICES = [bad for family in FAMILIES for bad in family.WRONG_DEVICES]
# What a GPU skips, and bounds, after which it may write to other rows of the output.
BAD_INDICES = [*bad_reshape_and_cache.BAD_INDICES, *bad_gather.BAD_BLOCKS]
BAD_BOUNDS = bad_gather.BAD_BOUNDS


def fails(bad: Bad, device: torch.device, exception: type[Exception]) -> None:
    call = bad.call(device)
    before = copy_of(call)
    with pytest.raises(Exception) as caught:
        run(bad.op, call)
    assert (type(caught.value), str(caught.value)) == (exception, bad.text(device))
    assert_same_bytes(call, before)
    check(bad.op, bad.good_call(device))


@pytest.mark.parametrize("bad", BAD_ARGUMENTS, ids=str)
def test_bad_arguments(device, bad):
    fails(bad, device, RuntimeError)


@pytest.mark.parametrize("bad", WRONG_DEVICES, ids=str)
def test_wrong_devices(gpu, bad):
    fails(bad, gpu, RuntimeError)


@pytest.mark.parametrize("bad", BAD_INDICES + BAD_BOUNDS, ids=str)
def test_bad_indices(device, bad, check_indices):
    check_indices(True)
    fails(bad, device, IndexError)


@pytest.mark.parametrize("bad", BAD_INDICES, ids=str)
def test_gpu_skips_bad_indices(gpu, bad, check_indices):
    check_indices(False)
    check(bad.op, bad.call(gpu), bad_indices="skip")


@pytest.mark.parametrize("bad", BAD_BOUNDS, ids=str)
def test_gpu_stays_inside_with_bad_bounds(gpu, bad, check_indices):
    """Which rows are then written is not said; all that is not the output stays as it was."""
    check_indices(False)
    call = bad.call(gpu)
    before = copy_of(call)
    run(bad.op, call)
    before["dst"].copy_(call["dst"])
    assert_same_bytes(call, before)


def test_wrong_number_and_kind_of_arguments(device):
    """What the dispatcher checks itself, by the schema."""
    call = list(flash_arguments(device).values())
    op = torch.ops.multikv.reshape_and_cache_flash
    for wrong in (call[:-1], [*call, 1], [call[0], 1, *call[2:]], [*call[:5], 8, *call[6:]]):
        with pytest.raises(RuntimeError, match=r"multikv::reshape_and_cache_flash\(\) "):
            op(*wrong)


def test_first_bad_index_is_named(device, check_indices):
    check_indices(True)
    call = flash_arguments(device, tokens=500)
    call["slot_mapping"][[77, 400]] = 10**9
    with pytest.raises(IndexError, match=r"slot_mapping\[77\]"):
        run("reshape_and_cache_flash", call)


def test_reference_rejects_the_same_indices():
    for bad in BAD_INDICES + BAD_BOUNDS:
        with pytest.raises(IndexError):
            getattr(reference, bad.op)(**bad.call(torch.device("cpu")))


def test_one_meta_tensor_among_others(device):
    """Dispatched to the fake kernels, which write nothing: it must not pass in silence."""
    call = flash_arguments(device)
    call["slot_mapping"] = call["slot_mapping"].to("meta")
    with pytest.raises(RuntimeError) as caught:
        run("reshape_and_cache_flash", call)
    expected = f"expected all tensors on one device, got {', '.join(sorted([device.type, 'meta']))}"
    assert str(caught.value) == f"reshape_and_cache_flash: {expected}"


@pytest.mark.parametrize("name", ["key", "value_cache", "slot_mapping", "k_scale"])
def test_address_between_two_elements(name):
    """As tensors of other libraries may have: GPUs cannot read there, so it is an error on every device."""
    call = flash_arguments(format="fp8_e4m3" if name == "k_scale" else "auto")
    x = call[name]
    buffer = bytearray(x.nbytes + 1)
    shifted = torch.frombuffer(buffer, dtype=x.dtype, offset=1, count=x.numel()).view(x.shape)
    shifted.copy_(x)
    with pytest.raises(RuntimeError) as caught:
        run("reshape_and_cache_flash", call | {name: shifted})
    size = x.element_size()
    rest = shifted.data_ptr() % size
    assert str(caught.value) == (
        f"reshape_and_cache_flash: {name}: expected an address that is a multiple of {size}, the element's size, "
        f"got {rest} bytes more"
    )


def test_gpu_leaves_rows_of_a_sequence_that_begins_too_early(gpu, check_indices):
    check_indices(False)
    call = bad_gather.gather_arguments(gpu)
    expected = call["dst"].clone()
    good = copy_of(call)
    reference.cp_gather_cache(**good)
    expected[5:54] = good["dst"].to(gpu)[5:54]
    call["cu_seq_lens"][0] = -3
    run("cp_gather_cache", call)
    assert torch.equal(call["dst"].view(torch.int16), expected.view(torch.int16))
