"""Achieved bandwidth of every op against a copy of as many bytes, and against PyTorch, in one process."""
