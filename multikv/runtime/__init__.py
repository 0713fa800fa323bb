"""Loading of the compiled libraries: which of them serve this host, and the C functions that they export.

Each module imports only modules above it:

- `command` says what is missing when `python -m multikv` cannot start.
- `hosts` finds the GPUs of this host.
- `settings` reads the environment variables.
- `c_api` has the prototypes of the C functions, which `csrc/c_api.h` declares.
- `libraries` says what a library file was built for, and opens it.
- `detection` decides whether a GPU library serves this host.
- `process` holds the libraries and settings of this process.
- `loading` loads the libraries when multikv is imported.
- `fake` registers what `torch.compile` runs in place of an op.
- `explanations` rewords errors of PyTorch's dispatcher.
- `exports` makes the `__all__` of a package from those of its modules.
"""
