"""Other projects' ways to hold fewer activations, each applied to the same net."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from deepres import ResNet
from deepres.recompute import uniform_plan
from recompute_benchmark.nets import Forward

SEGMENTED = ("checkpoint_sequential", "torch checkpoint, uniform segments", "DeepSpeed, uniform segments")
"""Peers that take a number of segments."""
WHOLE = (
    "DeepSpeed, per unit",
    "fairscale checkpoint_wrapper, per unit",
    "torch selective, saves convolutions",
    "torch selective, saves inner convolutions",
)
"""Peers without a parameter."""


def apply_peer(name: str, net: ResNet, num_segments: int = 1) -> Forward:
    """Make a net run in a peer's way; returns its forward function.

    Args:
        name: one of `SEGMENTED` or `WHOLE`.
        net: with PyTorch's batch norms; may be changed permanently.
        num_segments: for `SEGMENTED`.
    """
    units = net.units
    run: Callable[[Tensor], Tensor]
    if name == "checkpoint_sequential":
        run = functools.partial(_sequential, units, num_segments)
    elif name == "torch checkpoint, uniform segments":
        run = functools.partial(_by_parts, _parts(units, num_segments), _torch_checkpoint, keeps_last=True)
    elif name == "DeepSpeed, uniform segments":
        run = functools.partial(
            _by_parts, _parts(units, num_segments), _deepspeed_checkpoint(), keeps_last=True
        )
    elif name == "DeepSpeed, per unit":
        run = functools.partial(_by_parts, list(units), _deepspeed_checkpoint(), keeps_last=False)
    elif name == "fairscale checkpoint_wrapper, per unit":
        from fairscale.nn.checkpoint import checkpoint_wrapper

        for unit in units:
            checkpoint_wrapper(unit)
        run = units
    elif name == "torch selective, saves convolutions":
        run = functools.partial(_selectively, units, _saves_convolutions)
    elif name == "torch selective, saves inner convolutions":
        run = functools.partial(_selectively, units, _saves_inner_convolutions)
    else:
        raise ValueError(f"no peer {name!r}")
    return lambda images: net.head(run(net.stem(images)))


def segments_of(name: str, num_units: int, num_segments: int) -> tuple[tuple[int, int], ...]:
    """Which units a segmented peer replays together, as a plan's segments."""
    if name == "checkpoint_sequential":
        size = num_units // num_segments
        return tuple((start, start + size) for start in range(0, size * (num_segments - 1), size))
    return uniform_plan(num_units, num_segments).segments


def _sequential(units: nn.Sequential, num_segments: int, x: Tensor) -> Tensor:
    y: Tensor = torch.utils.checkpoint.checkpoint_sequential(units, num_segments, x, use_reentrant=False)
    return y


def _parts(units: nn.Sequential, num_segments: int) -> list[nn.Module]:
    segments = uniform_plan(len(units), num_segments).segments
    last = segments[-1][1] if segments else 0
    return [units[start:stop] for start, stop in (*segments, (last, len(units)))]


def _by_parts(
    parts: Sequence[nn.Module],
    checkpoint: Callable[[nn.Module, Tensor], Tensor],
    x: Tensor,
    *,
    keeps_last: bool,
) -> Tensor:
    for part in parts[:-1]:
        x = checkpoint(part, x)
    y: Tensor = parts[-1](x) if keeps_last else checkpoint(parts[-1], x)
    return y


def _torch_checkpoint(part: nn.Module, x: Tensor) -> Tensor:
    y: Tensor = torch.utils.checkpoint.checkpoint(part, x, use_reentrant=False)
    return y


def _deepspeed_checkpoint() -> Callable[[nn.Module, Tensor], Tensor]:
    from deepspeed.runtime.activation_checkpointing.checkpointing import checkpoint

    return checkpoint  # type: ignore[no-any-return]


def _selectively(units: nn.Sequential, contexts: Callable[[], Any], x: Tensor) -> Tensor:
    for unit in units:
        x = torch.utils.checkpoint.checkpoint(unit, x, use_reentrant=False, context_fn=contexts)
    return x


def _saves_convolutions() -> Any:
    # A unit adds its shortcut in place to its last convolution's output, which the replay does not use.
    return create_selective_checkpoint_contexts(
        [torch.ops.aten.convolution.default], allow_cache_entry_mutation=True
    )


def _saves_inner_convolutions() -> Any:
    """Save all but the last convolution of a bottleneck's branch, as a thoughtful user would."""

    def policy(_: Any, op: Any, *args: Any, **__: Any) -> CheckpointPolicy:
        if op is torch.ops.aten.convolution.default:
            weight = args[1]
            if weight.shape[0] <= weight.shape[1]:  # the last one of a branch, and projections, widen
                return CheckpointPolicy.MUST_SAVE
        return CheckpointPolicy.PREFER_RECOMPUTE

    return create_selective_checkpoint_contexts(policy)
