"""Deterministic algorithms: the same bits in every run."""

import os

import torch


def use_deterministic_algorithms() -> None:
    """Use only deterministic algorithms in this process from now on.

    Call it before the first CUDA kernel: cuBLAS reads its environment variable once.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    # Filling new tensors with NaN only exposes reads of uninitialised memory, and takes a fifth of a step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # the stubs lack it
