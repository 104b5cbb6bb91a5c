"""Settings that hold for all tests."""

import hypothesis
import pytest
import torch

# The same examples in every run, and no deadline: the machines that run this are slow at times.
hypothesis.settings.register_profile("deepres", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("deepres")


@pytest.fixture(autouse=True)
def _fresh_generators():
    torch.manual_seed(0)
