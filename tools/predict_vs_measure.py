"""Predicted peak memory of a step, compared with the same step on this machine's device.

python tools/predict_vs_measure.py --output results/profiler/predicted_vs_measured.md
python tools/predict_vs_measure.py --device cuda --output results/gpu/predicted.md

On a GPU, the prediction that counts uses units' transient memory measured there, for one unit of each kind, as training
and --measure do before they plan: cuDNN's workspaces depend on the algorithms that it chooses. The prediction without
the GPU, with which these plans were made, is shown beside it.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from deepres.argument_parser import Parser
from deepres.bytesize import format_bytes
from deepres.config import Config
from deepres.memory.profiled_net import ProfiledNet, Target
from deepres.memory.report import make_report
from deepres.memory.report_rows import Report, StrategyRow
from deepres.memory.trial import card_at_hand, run_plan, with_measured_costs
from deepres.provenance import origin_text, provenance
from deepres.recompute import simulate
from deepres.text_table import aligned
from interface.command_line import device, run_program, writable_file

SHARES = (0.75, 0.5, 0.4, 0.3, 0.12, 0.06, 0.03)


class Case(NamedTuple):
    """A net, and its batch sizes on a CPU and on a GPU."""

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
    """One step; `predicted_bytes` uses transients measured on the GPU, `unread_bytes` is predicted without it."""

    net: str
    precision: str
    strategy: str
    predicted_bytes: int
    measured_bytes: int
    unread_bytes: int | None = None

    @property
    def error(self) -> float:
        """The prediction's error, relative to the measurement."""
        return self.predicted_bytes / self.measured_bytes - 1


def main(arguments: list[str]) -> int:
    """Run every case, print a line for each, and write the table; 1 if one is off by more than 3 %."""
    parser = Parser(description=__doc__)
    parser.add_argument("--output", type=writable_file, help="write the table here, worst case first")
    every = ",".join(str(case.depth) for case in CASES)
    parser.add_argument("--depths", dest="cases", type=_cases, default=CASES, help=f"only some of {every}")
    parser.add_argument("--device", type=device, default="cpu", help="cpu or cuda")
    options = parser.parse_args(arguments)
    command = shlex.join(["python", "tools/predict_vs_measure.py", *arguments])
    print("  ".join(heading(options.device)), flush=True)
    results = list[Result]()
    torch.backends.cudnn.benchmark = True  # as training does
    for case in options.cases:
        for precision in ("fp32", "bf16"):
            for result in run_case(case, precision, torch.device(options.device)):
                results.append(result)
                print("  ".join(cells(result)), flush=True)
                if options.output is not None:
                    options.output.write_text(document(results, options.device, command), encoding="utf-8")
    return int(any(abs(result.error) > 0.03 for result in results))


def run_case(case: Case, precision: str, device: torch.device) -> Iterator[Result]:
    """Measure a case with everything kept, and under five plans."""
    model = {"depth": case.depth, "dataset": case.dataset, "block": case.block}
    data = {"name": "imagenet" if case.dataset == "imagenet" else "cifar10"}
    on_cuda = device.type == "cuda"
    batch = case.card_batch if on_cuda else case.cpu_batch
    train = {"max_steps": 1, "micro_batch_size": batch}
    config = Config.model_validate(
        {"model": model, "data": data, "train": train, "precision": {"compute": precision}}
    )
    target = card_at_hand(device) if on_cuda else Target("CPU", 2**40, None)
    profiled = ProfiledNet(config, target)
    rows = chosen(make_report(profiled, shares=SHARES))
    if on_cuda:
        with_measured_costs(profiled, device, repeats=0)
    for row in rows:
        assert row.plan is not None
        plan = None if row.kind == "keep all" else row.plan
        measured_bytes, _ = run_plan(profiled, plan, device, repeats=0)
        predicted_bytes = simulate(profiled.chain, row.plan).peak_bytes
        net = f"ResNet-{case.depth} × {batch}"
        unread_bytes = row.peak_bytes if on_cuda else None
        yield Result(net, precision, row.strategy, predicted_bytes, measured_bytes, unread_bytes)


def chosen(report: Report) -> list[StrategyRow]:
    """Keep-all, per-unit, √units, and three plans: for half of keep-all, for the least budget, and the floor."""
    plans = [row for row in report.rows if row.kind == "budget" and row.plan is not None]
    half = plans[1] if len(plans) > 2 else plans[0]  # a small net's least budget may be half of keep-all
    others = report.row("keep all"), report.row("per unit"), report.row("sqrt")
    return [*others, half, plans[-1], report.row("floor")]


def heading(device: str) -> list[str]:
    """The table's heading."""
    beside = ["predicted without the card"] if device == "cuda" else []
    return ["net × batch", "precision", "strategy", "predicted", "measured", "off by", *beside]


def cells(result: Result) -> list[str]:
    """A row of the table."""
    sizes = (format_bytes(result.predicted_bytes), format_bytes(result.measured_bytes))
    unread = [] if result.unread_bytes is None else [format_bytes(result.unread_bytes)]
    return [result.net, result.precision, result.strategy, *sizes, f"{100 * result.error:+z.2f} %", *unread]


def _cases(text: str) -> list[Case]:
    known = {str(case.depth): case for case in CASES}
    if not set(text.split(",")) <= known.keys():
        raise argparse.ArgumentTypeError(f"must be some of {','.join(known)}, got {text}")
    return [known[depth] for depth in text.split(",")]


def document(results: Sequence[Result], device: str, command: str) -> str:
    """The table as Markdown, worst case first."""
    ordered = sorted(results, key=lambda result: -abs(result.error))
    rows = [heading(device), *map(cells, ordered)]
    worst = max((abs(result.error) for result in results), default=0.0)
    made_by = provenance(device)
    return "\n".join(
        [
            "# Peak of a step's activations, predicted and measured",
            "",
            f"    {command}",
            "",
            f"{made_by['date']}, {origin_text(made_by)}: {len(results)} steps, the worst off by {100 * worst:.2f} %.",
            "",
            "```",
            *aligned(rows, left=(0, 1, 2)),
            "```",
            "",
        ]
    )


if __name__ == "__main__":
    run_program(main)
