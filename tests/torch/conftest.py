"""Settings of the tests of torch.compile."""

import pytest
import torch
import torch._inductor.config


@pytest.fixture(autouse=True)
def no_compiled_code_of_other_tests():
    """PyTorch's cache of code on disk takes views of one pool for tensors of their own, so it is not used."""
    with torch._inductor.config.patch(force_disable_caches=True):
        yield
