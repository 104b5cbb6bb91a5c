"""The peak of a step as predicted, against the same step run on the device at hand.

python tools/predict_vs_measure.py --output results/profiler/predicted_vs_measured.md
python tools/predict_vs_measure.py --device cuda --output results/gpu/predicted.md

On a card the prediction that counts is the one that training and --measure plan with: the transients of the units are
read off the card, one of each kind, for what cuDNN takes beside tensors depends on the algorithms that it chooses
there. The prediction without a card stands beside it.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from deepres.bytesize import format_bytes
from deepres.config import Config
from deepres.memory.report import make_report
from deepres.memory.report_rows import StrategyRow
from deepres.memory.subject import Subject, Target
from deepres.memory.tables import aligned
from deepres.memory.trial import run_plan, with_measured_costs

SHARES = (0.75, 0.5, 0.4, 0.3, 0.12, 0.06, 0.03)


class Case(NamedTuple):
    """A net, and its batch on a CPU and on a card."""

    depth: int
    dataset: str
    block: str
    cpu_batch: int
    card_batch: int


CASES = (
    Case(29, "cifar", "bottleneck", 32, 128),
    Case(56, "cifar", "basic", 32, 128),
    Case(110, "cifar", "basic", 32, 128),
    Case(164, "cifar", "bottleneck", 16, 128),
    Case(101, "imagenet", "bottleneck", 2, 16),
    Case(200, "imagenet", "bottleneck", 2, 16),
    Case(1001, "cifar", "bottleneck", 8, 64),
)


class Result(NamedTuple):
    """One step; `unread_bytes` is predicted without the card that `predicted_bytes` has its transients from."""

    net: str
    precision: str
    strategy: str
    predicted_bytes: int
    measured_bytes: int
    unread_bytes: int | None = None

    @property
    def error(self) -> float:
        """Of the prediction, relative to what was measured."""
        return self.predicted_bytes / self.measured_bytes - 1


def main(arguments: list[str] | None = None) -> int:
    """Run every case, print a line for each, and write the table; 1 if one is off by more than 3 %."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, help="write the table here, worst case first")
    parser.add_argument("--depths", help="only these, with commas")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    options = parser.parse_args(arguments)
    depths = None if options.depths is None else {int(depth) for depth in options.depths.split(",")}
    results = list[Result]()
    for case in CASES:
        if depths is not None and case.depth not in depths:
            continue
        for precision in ("fp32", "bf16"):
            for result in run_case(case, precision, torch.device(options.device)):
                results.append(result)
                print("  ".join(cells(result)), flush=True)
                if options.output is not None:
                    options.output.write_text(document(results, options.device), encoding="utf-8")
    return int(any(abs(result.error) > 0.03 for result in results))


def run_case(case: Case, precision: str, device: torch.device) -> Iterator[Result]:
    """Everything kept, and five plans."""
    model = {"depth": case.depth, "dataset": case.dataset, "block": case.block}
    data = {"name": "imagenet" if case.dataset == "imagenet" else "cifar10"}
    on_cuda = device.type == "cuda"
    batch = case.card_batch if on_cuda else case.cpu_batch
    train = {"max_steps": 1, "micro_batch_size": batch}
    config = Config.model_validate(
        {"model": model, "data": data, "train": train, "precision": {"compute": precision}}
    )
    subject = Subject(config, target_of(device))
    rows = chosen(make_report(subject, shares=SHARES).rows)
    if on_cuda:
        with_measured_costs(subject, device, repeats=0)
    for row in rows:
        assert row.plan is not None
        plan = None if row.strategy == "keep all" else row.plan
        measured_bytes, _ = run_plan(subject, plan, device, repeats=0)
        predicted_bytes = row.plan.priced(subject.chain).peak_bytes or 0
        net = f"ResNet-{case.depth} × {batch}"
        unread_bytes = row.peak_bytes if on_cuda else None
        yield Result(net, precision, row.strategy, predicted_bytes, measured_bytes, unread_bytes)


def chosen(rows: Sequence[StrategyRow]) -> list[StrategyRow]:
    """Keep all, per unit, √units, and three plans: for half of keep-all, for the least budget, and the floor."""
    plans = [row for row in rows if row.strategy.startswith("plan for") and row.plan is not None]
    half = plans[1] if len(plans) > 2 else plans[0]  # a small net's least budget may be half of keep-all
    return [rows[0], rows[1], rows[2], half, plans[-1], rows[-1]]


def target_of(device: torch.device) -> Target:
    """The device as something to predict for; a card's rates do not matter for bytes."""
    if device.type == "cpu":
        return Target("CPU", 2**40, None)
    from deepres.memory.gpus import GPUS

    properties = torch.cuda.get_device_properties(device)
    gpu = replace(GPUS[0], name=properties.name, memory_bytes=properties.total_memory)
    return Target(gpu.name, gpu.memory_bytes, gpu)


def cells(result: Result) -> list[str]:
    """A line of the table."""
    sizes = (format_bytes(result.predicted_bytes), format_bytes(result.measured_bytes))
    unread = [] if result.unread_bytes is None else [format_bytes(result.unread_bytes)]
    return [result.net, result.precision, result.strategy, *sizes, f"{100 * result.error:+z.2f} %", *unread]


def _threads() -> str:
    number = torch.get_num_threads()
    return f"{number} thread{'s' * (number > 1)}"


def document(results: Sequence[Result], device: str) -> str:
    """The table as Markdown, worst case first."""
    ordered = sorted(results, key=lambda result: -abs(result.error))
    heading = ["net × batch", "precision", "strategy", "predicted", "measured", "off by"]
    if device == "cuda":
        heading.append("predicted without the card")
    rows = [heading, *map(cells, ordered)]
    worst = max((abs(result.error) for result in results), default=0.0)
    where = (
        torch.cuda.get_device_name() if device == "cuda" else f"{device}, {platform.machine()}, {_threads()}"
    )
    today, count = f"{datetime.datetime.now(tz=datetime.UTC):%Y-%m-%d}", f"{len(results)} steps"
    return "\n".join(
        [
            "# Peak of a step's activations, predicted and measured",
            "",
            f"    python tools/predict_vs_measure.py{' --device cuda' if device == 'cuda' else ''}",
            "",
            f"{today}, {where}, torch {torch.__version__}: {count}, the worst off by {100 * worst:.2f} %.",
            "",
            "```",
            *aligned(rows, left=(0, 1, 2)),
            "```",
            "",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
