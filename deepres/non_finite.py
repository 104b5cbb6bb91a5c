"""Finds where a step first became non-finite, by running its passes again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepres.data import IGNORED_LABEL, Batch
from deepres.distributed import to_first_process
from deepres.engines import Engine
from deepres.models import ResNet
from deepres.recompute.random_state import RandomState

_MAX_SAMPLES = 8
_KINDS = (
    "",
    "the images",
    "the output of",
    "the loss",
    "the gradient of the output of",
    "a parameter's gradient of",
)


def where_first(engine: Engine, batches: Sequence[Batch], before: RandomState) -> str:
    """Replay a step that has not changed any parameter, and describe the first non-finite place; collective.

    The text, for rank 0, names the process, the part of the net and the samples whose rows are not finite there
    (batch norm spreads them over all rows of a micro batch). Buffers and gradients are invalid afterwards.

    Args:
        engine: its net must be a `ResNet`.
        batches: the micro batches of the step.
        before: the generators' state at the beginning of the step.
    """
    before.restore()
    net = engine.net
    assert isinstance(net, ResNet)
    parts: list[tuple[str, nn.Module]] = [("the stem", net.stem)]
    parts += [(f"unit {k} (of 0 … {len(net.units) - 1})", unit) for k, unit in enumerate(net.units)]
    parts += [("the head", net.head)]
    record = _Record()
    engine.run_eagerly()
    net.zero_grad(set_to_none=True)
    with ExitStack() as hooks:
        for place, (_, part) in enumerate(parts):
            is_head = part is net.head
            hooks.callback(
                part.register_forward_hook(partial(_look_at_output, record, place, is_head)).remove
            )
            for parameter in part.parameters():
                if parameter.requires_grad:
                    look = partial(record.look, 5, place, has_rows=False)
                    hooks.callback(parameter.register_hook(look).remove)
        engine.run_passes(record.following(batches))
    return _told([name for name, _ in parts], to_first_process(record.as_tensor(engine.process.device)))


class _Record:
    """The first non-finite place that was seen: kind, part, samples."""

    def __init__(self) -> None:
        self._first: tuple[int, int, list[int]] | None = None
        self._indices: list[int] = []
        self.labels = torch.zeros(0)

    def following(self, batches: Sequence[Batch]) -> Iterator[Batch]:
        """Yields the batches, each recorded as the current one."""
        for batch in batches:
            self._indices, self.labels = batch.indices.tolist(), batch.labels
            self.look(1, 0, batch.images)
            yield batch

    def look(self, kind: int, place: int, x: Tensor, *, has_rows: bool = True) -> None:
        if self._first is None and not x.isfinite().all():
            bad = ~x.detach().reshape(len(x), -1).isfinite().all(1) if has_rows else torch.zeros(0)
            self.note(kind, place, [self._indices[row] for row in bad.nonzero().flatten().tolist()])

    def note(self, kind: int, place: int, samples: list[int]) -> None:
        if self._first is None:
            self._first = kind, place, samples

    def as_tensor(self, device: torch.device) -> Tensor:
        kind, place, samples = self._first or (0, 0, [])
        shown = samples[:_MAX_SAMPLES]
        padding = [-1] * (_MAX_SAMPLES - len(shown))
        return torch.tensor([kind, place, len(samples), *shown, *padding], device=device)


def _look_at_output(
    record: _Record, place: int, is_head: bool, _: nn.Module, __: Any, output: Tensor
) -> None:
    record.look(2, place, output)
    if is_head:
        losses = F.cross_entropy(output.float(), record.labels, reduction="none", ignore_index=IGNORED_LABEL)
        record.look(3, place, losses)
    if output.requires_grad:
        output.register_hook(partial(record.look, 4, place))


def _told(parts: list[str], found: list[Tensor]) -> str:
    for rank, row in enumerate(found):
        kind, place, num_samples, *samples = row.tolist()
        if kind:
            where = _KINDS[kind] + (f" {parts[place]}" if kind in (2, 4, 5) else "")
            shown = ", ".join(str(sample) for sample in samples if sample >= 0)
            more = f" and {num_samples - _MAX_SAMPLES} more" if num_samples > _MAX_SAMPLES else ""
            which = f"; samples {shown}{more}" if num_samples else ""
            return f"in process {rank} it first shows in {where}{which}"
    return "a replay of the step did not show it again: suspect the machine"
