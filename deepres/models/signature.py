"""Which modules run alike."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def signature(value: object) -> object:
    """Equal for modules that run alike: same classes, same settings, parameters of the same kinds."""
    if isinstance(value, nn.Module):
        return type(value), signature(vars(value))
    if isinstance(value, Tensor):
        return tuple(value.shape), value.stride(), value.dtype, value.requires_grad
    if isinstance(value, dict):
        return tuple((signature(k), signature(v)) for k, v in value.items())
    if isinstance(value, list | tuple):
        return tuple(map(signature, value))
    if isinstance(value, set | frozenset):
        return frozenset(map(signature, value))
    if value is None or isinstance(value, bool | int | float | complex | str | bytes | torch.dtype):
        return type(value), value
    return id(value)
