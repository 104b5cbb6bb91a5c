"""Benchmark deepres' recomputation: are budgets kept and times as predicted; the frontier; its peers."""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

from deepres import build_resnet
from deepres.argument_parser import Parser
from interface.command_line import add_measuring_options, add_timing_options, positive, run_program
from measuring.child import ChildFailedError, ChildTimeoutError
from measuring.report import Report
from measuring.timing import Clock
from recompute_benchmark.budgets import budgets_report
from recompute_benchmark.contest import contest_report
from recompute_benchmark.frontier import frontier_report
from recompute_benchmark.overhead import overhead_report


def main(arguments: list[str]) -> int:
    """Run a command line; returns the exit status."""
    options = _parser().parse_args(arguments)
    draws = options.out is not None and options.command == "frontier"
    try:
        if draws and importlib.util.find_spec("matplotlib") is None:
            raise ValueError("the picture of --out needs matplotlib: pip install 'deepres[quickstart]'")
        build_resnet(options.depth, block="bottleneck")
        report: Report = options.run(options)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (ChildFailedError, ChildTimeoutError) as error:
        print(f"error: a process that measures ended early: {error}", file=sys.stderr)
        return 1
    report.publish(options.out, "compare_recompute.py", arguments)
    if draws:
        from recompute_benchmark.picture import draw_frontier  # needs matplotlib, of an extra

        written = options.out / f"{report.name}.json"
        draw_frontier(json.loads(written.read_text(encoding="utf-8")), written.with_suffix(".png"))
    return 0


def _parser() -> Parser:
    parser = Parser(description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(
        name: str, help_: str, run: Callable[[argparse.Namespace], Report]
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help_, description=help_)
        sub.add_argument("--depth", type=int, required=True, help="9n+2: a CIFAR net of bottleneck units")
        sub.add_argument("--batch", type=positive, required=True, help="images in a batch")
        add_measuring_options(sub)
        sub.set_defaults(command=name, run=run)
        return sub

    budgets = command(
        "budgets",
        "the process's peak beside budget and prediction",
        lambda o: budgets_report(o.depth, o.batch, o.budgets, _clock(o)),
    )
    budgets.add_argument("--budgets", type=positive, default=10, help="how many (%(default)s)")
    overhead = command(
        "overhead",
        "step times beside prediction",
        lambda o: overhead_report(o.depth, o.batch, o.budgets, o.rounds, o.steps, _clock(o), o.device),
    )
    overhead.add_argument("--budgets", type=positive, default=5, help="how many (%(default)s)")
    add_timing_options(overhead, steps=2)
    peers = command(
        "peers",
        "deepres beside its peers at equal or lower peak",
        lambda o: contest_report(
            o.depth,
            o.batch,
            o.rounds,
            o.steps,
            _clock(o),
            compile_budgets=o.compile_budget or [0.5],
            compile_limit_s=o.compile_limit,
            limit_s=o.limit,
            device=o.device,
            channels_last=o.channels_last,
        ),
    )
    add_timing_options(peers, steps=2)
    peers.add_argument("--channels-last", action="store_true", help="the layout of all nets and images")
    peers.add_argument(
        "--compile-budget",
        type=_part,
        action="append",
        help="part of the activations' memory that torch.compile is to keep, from 0 to 1 (0.5); may be repeated",
    )
    peers.add_argument(
        "--compile-limit",
        type=positive,
        default=600,
        help="seconds for each of these, its steps included (%(default)s)",
    )
    peers.add_argument("--limit", type=positive, default=3600, help="seconds for the others (%(default)s)")
    frontier = command(
        "frontier",
        "the least extra time that budgets cost, as a table and, with --out, a picture",
        lambda o: frontier_report(o.depth, o.batch, o.measured, _clock(o)),
    )
    frontier.add_argument(
        "--measured",
        type=Path,
        metavar="FILE",
        help="an overhead_*.json: take its costs, show its steps",
    )
    return parser


def _clock(options: argparse.Namespace) -> Clock:
    return Clock(options.processor_time)


def _part(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 1, got {text!r}")
    return value


if __name__ == "__main__":
    run_program(main)
