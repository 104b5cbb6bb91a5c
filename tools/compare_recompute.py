"""Measure deepres' recompute: budgets kept, times as predicted, the frontier, and what its peers do."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

from recompute_benchmark.budgets import budgets_report
from recompute_benchmark.overhead import overhead_report
from recompute_benchmark.report import Report

from deepres import build_resnet


def main(arguments: list[str]) -> int:
    """Run a command line; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        build_resnet(options.depth, block="bottleneck")
    except ValueError as error:
        print(f"compare_recompute.py: {error}", file=sys.stderr)
        return 2
    report: Report = options.run(options)
    print(report.table())
    for note in report.notes:
        print(f"\n{note}")
    if options.out is not None:
        report.write(options.out, shlex.join(["python", "tools/compare_recompute.py", *arguments]))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(
        name: str, help_: str, run: Callable[[argparse.Namespace], Report]
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help_, description=help_)
        sub.add_argument("--depth", type=int, required=True, help="9n+2: a CIFAR net of bottleneck units")
        sub.add_argument("--batch", type=_positive, required=True, help="images in a batch")
        sub.add_argument("--out", type=Path, metavar="DIR", help="write the table and its JSON there")
        sub.set_defaults(run=run)
        return sub

    def timed(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--rounds", type=_positive, default=5, help="turns of each kind (%(default)s)")
        sub.add_argument("--steps", type=_positive, default=2, help="timed steps a turn (%(default)s)")

    budgets = command(
        "budgets",
        "the process's peak beside budget and prediction",
        lambda o: budgets_report(o.depth, o.batch, o.budgets),
    )
    budgets.add_argument("--budgets", type=_positive, default=10, help="how many (%(default)s)")
    overhead = command(
        "overhead",
        "step times beside prediction",
        lambda o: overhead_report(o.depth, o.batch, o.budgets, o.rounds, o.steps),
    )
    overhead.add_argument("--budgets", type=_positive, default=5, help="how many (%(default)s)")
    timed(overhead)
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
