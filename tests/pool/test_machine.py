"""Random calls of a cache leak no block, and its contents are those of a dictionary."""

from __future__ import annotations

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

import multikv
from tests.support import pool

ACTIONS = ["new", "step", "step", "step", "fork", "truncate", "free", "offload", "restore", "evict", "failed_step"]
CHOICE = st.integers(1, 255)  # bit i: the sequence with number i
SIZES = st.sampled_from([0, 1, 2, 3, 4, 5, 8, 9, 13, 17, 20])


class CacheMachine(RuleBasedStateMachine):
    """A cache that is often full, and a dictionary of what its sequences hold."""

    device = torch.device("cpu")

    def __init__(self):
        super().__init__()
        self.cache = pool.make_cache(self.device, num_blocks=12, num_host_blocks=7)
        self.model: dict[multikv.Sequence, tuple[list[int], int]] = {}  # sequence -> its tokens, how many are written
        self.salts: dict[multikv.Sequence, str] = {}

    def some(self, choice, offloaded=False):
        """Some sequences of a tier, at least one if there is one."""
        matching = [s for s in self.model if s.is_offloaded == offloaded]
        return [s for i, s in enumerate(matching) if choice >> i & 1] or matching[:1]

    def one(self, choice):
        """A sequence of any tier."""
        sequences = list(self.model)
        return sequences[choice % len(sequences)] if sequences else None

    def changes_nothing_if_it_fails(self, call):
        before = pool.snapshot(self.cache, self.model)
        try:
            return call()
        except multikv.OutOfBlocks as error:
            assert error.wanted > error.free >= 0  # noqa: PT017
            after = pool.snapshot(self.cache, self.model)
            assert before[:2] == after[:2]
            assert all(torch.equal(a, b) for a, b in zip(before[2], after[2], strict=False))
            return None

    @rule(action=st.sampled_from(ACTIONS), choice=CHOICE, size=SIZES)
    def act(self, action, choice, size):
        """One rule for all calls: hypothesis would leave some of several rules out of most runs."""
        if action == "new" or not self.model:
            self.new(choice, size)
        else:
            getattr(self, action)(choice, size)

    def new(self, choice, size):
        if len(self.model) == 8:
            return
        tokens = [choice % 2 + i // 7 for i in range(size)]  # few different texts, so that prefixes are often equal
        salt = "other" if choice % 8 == 7 else ""
        sequence = self.cache.new(tokens, salt)
        assert sequence.num_cached_tokens < max(len(tokens), 1)
        self.model[sequence], self.salts[sequence] = (tokens, sequence.num_cached_tokens), salt

    def step(self, choice, size):
        """Extends some sequences, which get a token if they have none to compute, and writes them."""
        chosen, batch = self.extend(choice, size)
        if batch is not None:
            pool.write(self.cache, batch, [self.salts[s] for s in chosen])
            for sequence, end in zip(chosen, batch._ends, strict=False):
                self.model[sequence] = (self.model[sequence][0], end)

    def failed_step(self, choice, size):
        """Writes nonsense, and to the first layer only."""
        _, batch = self.extend(choice, size)
        if batch is not None:
            nothing = torch.full((batch.num_tokens, 1, pool.HEAD_SIZE), -1.0, device=self.device)
            self.cache.write(0, nothing, nothing, batch)

    def extend(self, choice, size):
        chosen = self.some(choice)
        for sequence in chosen:
            if not sequence.num_pending:
                sequence.append(choice % 2)
                self.model[sequence][0].append(choice % 2)
        call = lambda: self.cache.extend(chosen, max_query_len=size if 0 < size < 8 else None)  # noqa: E731
        return chosen, self.changes_nothing_if_it_fails(call) if chosen else None

    def fork(self, choice, size):
        if len(self.model) < 8:
            sequence = self.one(choice)
            copy = self.cache.fork(sequence)
            tokens, written = self.model[sequence]
            self.model[copy], self.salts[copy] = (list(tokens), written), self.salts[sequence]

    def truncate(self, choice, size):
        sequence = self.one(choice)
        tokens, written = self.model[sequence]
        count = max(len(tokens) - size, 0)
        self.cache.truncate(sequence, count)
        self.model[sequence] = (tokens[:count], min(written, count))

    def free(self, choice, size):
        sequence = self.one(choice)
        self.cache.free(sequence)
        del self.model[sequence]

    def offload(self, choice, size):
        self.changes_nothing_if_it_fails(lambda: self.cache.offload(self.some(choice)))

    def restore(self, choice, size):
        self.changes_nothing_if_it_fails(lambda: self.cache.restore(self.some(choice, offloaded=True)))

    def evict(self, choice, size):
        """A sequence that is freed without being written takes cached blocks."""
        room = min(size, self.cache._pool.num_free)
        if room:
            sequence = self.cache.new(range(1000, 1000 + 4 * room))
            self.cache.extend([sequence])
            self.cache.free(sequence)

    @invariant()
    def holds_what_the_dictionary_says(self):
        for sequence, (tokens, written) in self.model.items():
            assert list(sequence.tokens) == tokens and sequence.num_written == written
        pool.check_blocks(self.cache, self.model)
        pool.check_contents(self.cache, self.model, [self.salts[s] for s in self.model])


def run(device, examples, steps):
    class Machine(CacheMachine):
        pass

    Machine.device = device
    settings = hypothesis.settings(max_examples=examples, stateful_step_count=steps)
    run_state_machine_as_test(Machine, settings=settings)


def test_random_calls(any_device):
    run(any_device, 12, 40)


@pytest.mark.slow
def test_ten_thousand_random_calls(any_device):
    run(any_device, 200, 50)
