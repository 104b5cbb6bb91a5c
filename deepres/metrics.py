"""Loss and accuracies of a model's predictions, and the file to which they are written."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from deepres.commit import SaveError
from deepres.distributed import sum_over_processes

IGNORED_LABEL = -100
"""The label of a row that does not count; `torch.nn.functional.cross_entropy` ignores it by default."""


def summed_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """The cross entropy of `logits: (N, num_classes)`, summed over the rows whose label is not -100."""
    return F.cross_entropy(logits, labels, reduction="sum", ignore_index=IGNORED_LABEL)


@torch.no_grad()
def metric_sums(logits: Tensor, labels: Tensor, loss: Tensor | None = None) -> Tensor:
    """Sums over a batch, (4,) float64: cross entropy, top-1 hits, top-5 hits, images.

    Logits of NaN or infinity are never a hit, except in training, where the loss is given and they end the step.

    Args:
        logits: (N, num_classes).
        labels: (N,); rows labelled -100 do not count.
        loss: `summed_loss`, if already computed.
    """
    logits = logits.float()
    values, best = logits.topk(min(5, logits.size(1)), dim=1)
    hits = best == labels[:, None]  # no class has the ignored label
    if loss is None:
        loss = summed_loss(logits, labels)
        hits &= values < math.inf
    return torch.stack([loss, hits[:, 0].sum(), hits.sum(), (labels != IGNORED_LABEL).sum()]).double()


@dataclass(frozen=True)
class Metrics:
    """Means over images; accuracies are fractions; NaN if there were no images."""

    loss: float
    top1: float
    top5: float
    num_images: int

    @classmethod
    def over_processes(cls, sums: Tensor) -> Metrics:
        """From every process's `metric_sums`, added up; collective."""
        loss, top1, top5, count = sum_over_processes(sums.clone()).tolist()
        return cls(loss / count, top1 / count, top5 / count, int(count)) if count else cls.of_nothing()

    @classmethod
    def of_nothing(cls) -> Metrics:
        """The metrics of no images."""
        return cls(math.nan, math.nan, math.nan, 0)


class MetricsFile:
    """`metrics.jsonl`: one JSON object per line, each flushed as soon as it is written."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")

    def force_to_disk(self) -> int:
        """Make what was written survive a power failure; returns the file's length in bytes.

        Raises:
            SaveError: it cannot be written.
        """
        with self._errors_told():
            self._file.flush()
            os.fsync(self._file.fileno())
            return os.fstat(self._file.fileno()).st_size

    def write(self, kind: str, **values: Any) -> None:
        """Append `{"kind": kind, …}`; numbers that are not finite become null.

        Raises:
            SaveError: it cannot be written.
        """
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        with self._errors_told():
            self._file.write(json.dumps({"kind": kind, **finite}) + "\n")
            self._file.flush()

    @contextmanager
    def _errors_told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise SaveError(f"{self._file.name} cannot be written: {error.strerror}") from error

    def close(self) -> None:
        """Close the file; what could not be written has already raised an error."""
        with suppress(OSError):
            self._file.close()
