"""`python -m multikv`: which libraries serve this host, and every op checked and timed on it.

Modules: `cli` the command, `run` checks and times a case, `table` prints results, `timing` measures, `cases` has the
inputs, which the benchmarks use too.
"""
