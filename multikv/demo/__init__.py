"""`python -m multikv`: says which libraries serve this host, and checks and times every op on it.

Modules: `cli` is the command, `measure` checks and times a case, `timing` measures times, `table` prints results, and
`cases` makes the inputs, which the benchmarks use, too.
"""
