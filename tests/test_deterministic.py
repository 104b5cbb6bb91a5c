"""Deterministic algorithms, and nothing that slows steps down beside them."""

import torch

from deepres.deterministic import use_deterministic_algorithms


def test_new_tensors_are_not_filled(monkeypatch):
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    was_on = torch.are_deterministic_algorithms_enabled()
    try:
        use_deterministic_algorithms()
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.utils.deterministic.fill_uninitialized_memory
    finally:
        torch.use_deterministic_algorithms(was_on)
