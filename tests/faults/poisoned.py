"""Trains with numbers gone wrong in one of two processes, and goes on from the last checkpoint without them.

    python poisoned.py FOLDER ENGINE:WHAT:RANK…

What: `input` (a sample's pixels), `output` (of a unit), `loss`, `gradient` (of a unit's input). Prints a line of JSON
for each.
"""

import json
import re
import shutil
import sys
from pathlib import Path

import deepspeed  # noqa: F401  # once, before the processes are forked
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensor

from deepres.checkpoints.resuming import newest_checkpoint
from deepres.data import DataSource
from deepres.models import ResidualUnit
from tests.checkpoints.resume_cases import ENGINES
from tests.faults.forks import fork, same_weights, wait

SAMPLE, UNIT, FROM_STEP = 17, 1, 4


# ruff: noqa: ARG004  (autograd gives every function a context)


class NanBackwards(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * float("nan")


def poison(what, rank):
    """Makes the process of that rank, and no other, compute what is not finite, and again in a replay."""

    def before(own_rank):
        if own_rank != rank and what != "input":  # a sample comes to one of them anyway
            return
        if what == "input":
            finish = DataSource._finish

            def poisoned(self, fetched, *, augment):
                batch = finish(self, fetched, augment=augment)
                if augment:
                    batch.images[batch.indices == SAMPLE] = float("inf")
                return batch

            DataSource._finish = poisoned
        elif what == "loss":
            cross_entropy, calls = F.cross_entropy, []

            def poisoned(*arguments, **options):
                loss = cross_entropy(*arguments, **options)
                calls.append(loss.requires_grad)
                return loss * float("inf") if sum(calls) >= FROM_STEP else loss

            F.cross_entropy = poisoned
        else:
            forward, calls = ResidualUnit.forward, {}

            def poisoned(self, x, *arguments, **options):
                if isinstance(x, FakeTensor):  # copies of the units, run to predict what they take
                    return forward(self, x, *arguments, **options)
                calls.setdefault(id(self), len(calls))
                if calls[id(self)] == UNIT and self.training:
                    calls["steps"] = calls.get("steps", 0) + 1
                    # The pass before training that measures activations is one; a plan runs a unit twice a step.
                    if calls["steps"] > FROM_STEP:
                        x = NanBackwards.apply(x) if what == "gradient" else x
                        y = forward(self, x, *arguments, **options)
                        return y * float("nan") if what == "output" else y
                return forward(self, x, *arguments, **options)

            ResidualUnit.forward = poisoned

    return before


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    for case in sys.argv[2:]:
        engine, what, rank = case.split(":")
        settings = [f"engine.{setting}" for setting in ENGINES[engine].split()]
        settings += ["train.save_every=1 steps", "recompute.segments=none", "train.epochs=1"]
        whole, run_dir = folder / f"whole-{engine}", folder / "run"
        if not whole.exists():
            assert set(wait(fork(whole, *settings, world_size=2))) == {0}, Path(f"{whole}.0.txt").read_text()
        statuses = wait(fork(run_dir, *settings, world_size=2, before=poison(what, int(rank))))
        text = Path(f"{run_dir}.0.txt").read_text(encoding="utf-8")
        stopped = re.search(r"of step (\d+) is not finite", text)
        found = newest_checkpoint(run_dir, print)
        again = wait(fork(run_dir, *settings, world_size=2))
        outcome = {
            "case": case,
            "statuses": statuses,
            "step": int(stopped[1]) if stopped else None,
            "saved": found.progress.step if found else 0,
            "is_same": set(again) == {0} and same_weights(run_dir, whole),
            "message": text[text.find("error: ") :],
        }
        print(json.dumps(outcome), flush=True)
        shutil.rmtree(run_dir)
