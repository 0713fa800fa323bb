"""Bad arguments of PagedKVCache and PagedMLACache, and what the errors say."""

from __future__ import annotations

import re

import pytest
import torch

import multikv
from tests.support import pool
from tests.support.pool import check_contents, make_cache, step

BAD_CALLS = {
    "freed": ("extend", "expected a sequence in use, got <Sequence: 3 tokens, 0 written, 0 blocks, freed>"),
    "another": ("extend", "expected a sequence of this cache, got <Sequence: 3 tokens, 0 written, 0 blocks, on the"),
    "twice": ("extend", r"sequences\[1\] is sequences\[0\]; list each once"),
    "nothing pending": ("extend", r"sequences\[0\]: expected a pending token; append one to <Sequence: 3 tokens"),
    "none": ("extend", "sequences: expected at least one"),
    "chunk": ("extend", "max_query_len: expected at least 1, got 0"),
    "free twice": ("free", "expected a sequence in use"),
    "truncate": ("truncate", "num_tokens: expected 0 to 3, got 4"),
    "host": ("offload", "the cache has no host tier; make it with num_host_blocks"),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_calls(any_device, name):
    cache, other = make_cache(any_device), make_cache(any_device)
    sequence, freed = cache.new([1, 2, 3]), cache.new([1, 2, 3])
    cache.free(freed)
    if name == "nothing pending":
        step(cache, [sequence])
    calls = {
        "freed": lambda: cache.extend([freed]),
        "another": lambda: cache.extend([other.new([1, 2, 3])]),
        "twice": lambda: cache.extend([sequence, sequence]),
        "nothing pending": lambda: cache.extend([sequence]),
        "none": lambda: cache.extend([]),
        "chunk": lambda: cache.extend([sequence], max_query_len=0),
        "free twice": lambda: cache.free(freed),
        "truncate": lambda: cache.truncate(sequence, 4),
        "host": lambda: cache.offload([sequence]),
    }
    call, message = BAD_CALLS[name]
    with pytest.raises(ValueError, match=f"^{call}: .*{message}"):
        calls[name]()


def test_bad_arguments(any_device):
    make = multikv.PagedKVCache
    for name in ("num_layers", "num_kv_heads", "head_size", "num_blocks", "block_size"):
        sizes = {"num_layers": 1, "num_kv_heads": 1, "head_size": 8, "num_blocks": 2, name: 0}
        with pytest.raises(ValueError, match=f"^PagedKVCache: {name}: expected at least 1, got 0$"):
            multikv.PagedKVCache(**sizes)
    with pytest.raises(ValueError, match="^PagedKVCache: layout: expected one of NHD, HND, got 'DNH'$"):
        make(1, 1, 8, 4, layout="DNH")
    with pytest.raises(ValueError, match="^PagedKVCache: kv_cache_dtype: expected one of auto, .*got 'int4'$"):
        make(1, 1, 8, 4, kv_cache_dtype="int4")
    with pytest.raises(ValueError, match="^PagedKVCache: kv_cache_dtype: expected 'auto' or the dtype of the cache"):
        make(1, 1, 8, 4, dtype=torch.float32, kv_cache_dtype="bfloat16")
    with pytest.raises(ValueError, match="^PagedKVCache: k_scale: expected 1 or 2 elements, got 3$"):
        make(1, 2, 8, 4, k_scale=torch.ones(3))
    with pytest.raises(ValueError, match="^PagedMLACache: fp8_ds_mla: expected sizes 512 and 64, got 256, 64$"):
        multikv.PagedMLACache(1, 4, latent_size=256, kv_cache_dtype="fp8_ds_mla")


def wrong_types():
    """Calls with an argument of a wrong type, and what the TypeError says."""
    number = "expected an integer, got "
    return {
        "extend: sequences: expected an iterable of Sequence, got <Sequence: 3 tokens": lambda c, s: c.extend(s),
        "extend: sequences[1]: expected a Sequence, got 3": lambda c, s: c.extend([s, 3]),
        "offload: sequences[0]: expected a Sequence, got [1]": lambda c, s: c.offload([[1]]),
        "restore: sequences: expected an iterable of Sequence, got 3": lambda c, s: c.restore(3),
        f"extend: max_query_len: {number}1.5": lambda c, s: c.extend([s], 1.5),
        "free: sequence: expected a Sequence, got [<Sequence: 3": lambda c, s: c.free([s]),
        "fork: sequence: expected a Sequence, got None": lambda c, s: c.fork(None),
        "truncate: sequence: expected a Sequence, got 1": lambda c, s: c.truncate(1, s),
        f"truncate: num_tokens: {number}1.5": lambda c, s: c.truncate(s, 1.5),
        "new: tokens: expected integers, got 'text'": lambda c, s: c.new("text"),
        "new: tokens: expected integers, got b'12345678'": lambda c, s: c.new(b"12345678"),
        "new: tokens: expected integers, got [1, 2.5]": lambda c, s: c.new([1, 2.5]),
        "new: tokens: expected integers, got 5": lambda c, s: c.new(5),
        "new: cache_salt: expected str or bytes, got 5": lambda c, s: c.new([1], 5),
        "append: tokens: expected integers, got ('x',)": lambda c, s: s.append("x"),
        "append: tokens: expected integers, got (1, None)": lambda c, s: s.append(1, None),
        f"write: layer: {number}'0'": lambda c, s: c.write("0", None, None, c.extend([s])),
        "write: batch: expected a Batch, got None": lambda c, s: c.write(0, None, None, None),
        "commit: batch: expected a Batch, got None": lambda c, s: c.commit(None),
        "attend: batch: expected a Batch, got 'batch'": lambda c, s: c.attend(0, None, "batch"),
        "read: batch: expected a Batch, got None": lambda c, s: c.read(0, None),
    }


@pytest.mark.parametrize("message", wrong_types())
def test_arguments_of_wrong_types(any_device, message):
    """The cache and its sequences stay as they are."""
    cache = make_cache(any_device, num_host_blocks=4)
    sequence = cache.new([1, 2, 3])
    with pytest.raises(TypeError, match="^" + re.escape(message)):
        wrong_types()[message](cache, sequence)
    assert sequence.tokens.tolist() == [1, 2, 3]
    step(cache, [sequence])
    check_contents(cache, [sequence])


def test_tokens_of_more_than_64_bits():
    sequence = make_cache("cpu").new([1])
    with pytest.raises(
        ValueError, match=r"^new: tokens: expected integers of 64 bits, got \[1, 9223372036854775808\]$"
    ):
        make_cache("cpu").new([1, 2**63])
    for tokens in ((2**63,), (5, -(2**63) - 1)):
        with pytest.raises(ValueError, match="^append: tokens: expected integers of 64 bits, got "):
            sequence.append(*tokens)
    assert sequence.tokens.tolist() == [1]


def test_sizes_of_wrong_types():
    for name in ("num_layers", "head_size", "num_host_blocks"):
        sizes = {"num_layers": 1, "num_kv_heads": 1, "head_size": 8, "num_blocks": 2, name: 2.0}
        with pytest.raises(TypeError, match=f"^PagedKVCache: {name}: expected an integer, got 2.0$"):
            multikv.PagedKVCache(**sizes)
    with pytest.raises(ValueError, match="^PagedMLACache: num_host_blocks: expected at least 0, got -1$"):
        multikv.PagedMLACache(1, 4, num_host_blocks=-1)
    with pytest.raises(TypeError, match="^PagedMLACache: dtype: expected a dtype, got 'bfloat16'$"):
        multikv.PagedMLACache(1, 4, dtype="bfloat16")
    with pytest.raises(TypeError, match="^PagedKVCache: v_scale: expected a number or a tensor, got 'one'$"):
        multikv.PagedKVCache(1, 1, 8, 4, v_scale="one")


def test_layers_that_do_not_exist(any_device):
    cache = make_cache(any_device)
    batch = cache.extend([cache.new([1])])
    row = torch.zeros(1, 1, pool.HEAD_SIZE, device=any_device)
    for layer in (-1, 2):
        with pytest.raises(IndexError, match=f"^write: layer: expected 0 to 1, got {layer}$"):
            cache.write(layer, row, row, batch)
        with pytest.raises(IndexError, match=f"^attend: layer: expected 0 to 1, got {layer}$"):
            cache.attend(layer, row, batch)
        with pytest.raises(IndexError, match=f"^read: layer: expected 0 to 1, got {layer}$"):
            cache.read(layer, batch)
