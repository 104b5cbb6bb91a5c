"""Algorithms that give the same bits each time, where PyTorch has a choice."""

import os

import torch


def use_deterministic_algorithms() -> None:
    """In this process, from now on; on CUDA before anything has been computed there, for cuBLAS asks once."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    # It would also fill each new tensor with NaN, which only shows who reads what nobody wrote: a fifth of a step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # the stubs lack it
