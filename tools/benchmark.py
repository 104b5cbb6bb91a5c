"""Training speed: images per second for each option of a step and for a bare PyTorch loop, in one run.

python tools/benchmark.py --depth 110 --batch 64
"""

from __future__ import annotations

import argparse
import sys

from deepres import build_resnet
from deepres.argument_parser import Parser
from interface.command_line import add_measuring_options, add_timing_options, positive, run_program
from measuring.child import ChildFailedError
from measuring.report import Report
from measuring.timing import Clock
from measuring.training_speed import BARE, steps_of_options, trainer_and_bare_loop


def main(arguments: list[str]) -> int:
    """Run a command line; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        build_resnet(options.depth)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        report = _report(options)
    except ChildFailedError as error:
        print(f"error: the process that measures ended early: {error}", file=sys.stderr)
        return 1
    report.publish(options.out, "benchmark.py", arguments)
    return 0


def _report(options: argparse.Namespace) -> Report:
    clock = Clock(options.processor_time)
    arguments = {name: getattr(options, name) for name in ("depth", "batch", "rounds", "steps", "device")}
    rows = clock.call(steps_of_options, {**arguments, "with_compiler": not options.no_compile})
    whole = clock.call(trainer_and_bare_loop, arguments)
    rows.insert(1, whole)
    note = (
        f"{BARE}: zero_grad, forward, cross entropy, backward, torch.optim.SGD, over the same net, fp32, one batch. "
        "Whole trainer: deepres/train.py in one process with CIFAR's augmentation, metrics, checks and log, without "
        "its first step and evaluation, and in a process of its own: its ratio is to the bare loop beside it there. "
        "The others are the trainer's step alone, with its check that all gradients are finite. "
        f"Time is {clock}, in alternating blocks of {options.steps} steps after one that is not timed; a "
        "device is waited for after a block's last step; a ratio is of blocks of the same round, the median of "
        f"{options.rounds}."
    )
    return Report(
        name=f"training_{options.depth}x{options.batch}",
        title=f"Images a second: ResNet-{options.depth}, batch {options.batch}",
        columns={
            "name": "",
            "images_per_s": "images/s",
            "ratio": "time over the bare loop",
            "data_wait_percent": "waiting for data, %",
            "preparation_s": "compiling or recording, s",
            "note": "",
        },
        rows=rows,
        notes=[note],
        data={"clock": str(clock), **arguments},
        device=options.device,
    )


def _parser() -> Parser:
    parser = Parser(description=__doc__)
    parser.add_argument("--depth", type=positive, default=110, help="of a CIFAR net (%(default)s)")
    parser.add_argument("--batch", type=positive, default=64, help="images in a batch (%(default)s)")
    add_timing_options(parser, steps=5)
    add_measuring_options(parser)
    parser.add_argument(
        "--no-compile",
        action="store_true",
        help="skip compiled units, which take minutes, and on a CPU need g++",
    )
    return parser


if __name__ == "__main__":
    run_program(main)
