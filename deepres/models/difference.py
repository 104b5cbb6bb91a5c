"""The first difference between two nets."""

from __future__ import annotations

from torch import nn


def first_difference(net: nn.Module, meant: nn.Module) -> str | None:
    """The first module that differs between `net` and the intended net, or None if all are alike.

    Names and shapes of parameters do not tell nets apart: with another scale of the shortcut, say, or the stride on
    another convolution, a net takes the same weights but computes something else.

    Returns:
        `NAME is THIS instead of THAT`.
    """
    ours, theirs = (
        {name: f"{type(module).__name__}({module.extra_repr()})" for name, module in each.named_modules()}
        for each in (net, meant)
    )
    for name in [*theirs, *(name for name in ours if name not in theirs)]:
        if ours.get(name) != theirs.get(name):
            return f"{name} is {ours.get(name, 'missing')} instead of {theirs.get(name, 'nothing')}"
    return None
