"""Algorithms that give the same bits each time, where PyTorch has a choice."""

import os

import torch


def use_deterministic_algorithms() -> None:
    """Use them in this process from now on.

    Call it before the first CUDA kernel: cuBLAS reads its variable once.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    # It would also fill each new tensor with NaN, which only shows who reads what nobody wrote: a fifth of a step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # the stubs lack it
