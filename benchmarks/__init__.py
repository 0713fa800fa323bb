"""Measures the bandwidth of every op beside that of a copy of as many bytes, and that of PyTorch."""
