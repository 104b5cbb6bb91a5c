"""Recognises modules that run alike."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def signature(value: object, around: tuple[object, ...] = ()) -> object:
    """Equal for modules that run alike: same classes, same settings, parameters of the same kinds.

    Args:
        value: a module, or a part of one.
        around: the modules that it is a part of.
    """
    if isinstance(value, nn.Module):
        if any(value is module for module in around):
            return "itself"
        return type(value), signature(vars(value), (*around, value))
    if isinstance(value, Tensor):
        return tuple(value.shape), value.stride(), value.dtype, value.requires_grad
    if isinstance(value, dict):
        return tuple((signature(k), signature(v, around)) for k, v in value.items())
    if isinstance(value, list | tuple):
        return tuple(signature(item, around) for item in value)
    if isinstance(value, set | frozenset):
        return frozenset(signature(item, around) for item in value)
    if value is None or isinstance(value, bool | int | float | complex | str | bytes | torch.dtype):
        return type(value), value
    return id(value)
