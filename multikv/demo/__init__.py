"""`python -m multikv`: says which libraries serve this host, and checks and times the ops on it.

The demo has no case of swap_blocks_batch, which takes addresses.

Modules: `cli` is the command, `measure` checks and times a case, `timing` measures times, `table` prints results,
`plot` draws them, and `cases` makes the inputs, which the benchmarks use, too.
"""
