"""Settings that hold for all tests."""

import gc
import os

import hypothesis
import pytest
import torch

from tests.forked import Forked

# The same examples in every run, and no deadline: the machines that run this are slow at times.
hypothesis.settings.register_profile("deepres", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("deepres")


def pytest_configure(config):
    """What is not marked `gpu` runs on a CPU, also on a host with GPUs, which runs take where they see any."""
    if "gpu" not in config.option.markexpr.replace("not gpu", ""):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    else:  # for deterministic algorithms; cuBLAS reads it once
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@pytest.fixture(autouse=True, scope="module")
def _modules_are_no_garbage():
    """Measuring memory collects garbage often: to look through all that was imported each time takes longer than it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _fresh_generators():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def forked():
    found = Forked()
    yield found
    found.stop()
