"""Bandwidth of every op, compared with a copy of as many bytes and with PyTorch in the same process."""
