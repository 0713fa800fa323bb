"""The libraries of this process: which serve this host, how they are loaded, and the C functions that they export.

Modules, each of which imports only those above it:

- `hosts`: the GPUs of this host
- `settings`: the environment variables
- `c_api`: prototypes of the C functions (the C side is `csrc/c_api.h`)
- `libraries`: what a library file was built for, and how it is opened
- `detection`: why a GPU library does not serve this host
- `process`: what is loaded and set in this process
- `loading`: what `import multikv` does
- `fake`: what `torch.compile` runs in place of an op
- `exports`: the `__all__` of a package, from those of its modules
"""
