"""What the tests of Transformers share: counts of the calls of each op."""

from __future__ import annotations

import collections
import functools
import importlib.util

import pytest

import multikv

if importlib.util.find_spec("transformers") is None:
    collect_ignore_glob = ["test_*.py"]

COUNTED = ("reshape_and_cache_flash", "paged_attention", "gather_kv_cache", "copy_blocks_layers")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> collections.Counter[str]:
    """How often each op was called, in all threads."""
    counts: collections.Counter[str] = collections.Counter()

    def counting(name):
        op = getattr(multikv, name)

        @functools.wraps(op)
        def call(*arguments, **options):
            counts[name] += 1
            return op(*arguments, **options)

        return call

    for name in COUNTED:
        monkeypatch.setattr(multikv, name, counting(name))
    return counts
