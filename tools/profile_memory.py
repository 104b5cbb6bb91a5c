"""Will it fit, and at what cost? Compute against memory for a net, a batch and a GPU, without the GPU.

python tools/profile_memory.py --depth 1001
python tools/profile_memory.py --depth 200 --gpu "RTX 4090" --batch-size 64 --html page
python tools/profile_memory.py --depths 110,164,1001 --plot growth.png
python tools/profile_memory.py --config configs/cifar10_resnet164.yaml --measure
python tools/profile_memory.py --depth 110 model.shortcut=conv1x1 precision.channels_last=true
"""

from __future__ import annotations

import argparse
import sys
from contextlib import redirect_stdout
from dataclasses import replace
from functools import partial
from pathlib import Path

from tqdm import tqdm

from deepres.argument_parser import Parser
from deepres.config import ConfigError
from deepres.memory.capacity import capacity, capacity_table
from deepres.memory.depths import DepthRow, depth_row, depths_text, growth
from deepres.memory.profiled_net import ProfiledNet
from deepres.memory.report import make_report
from deepres.memory.tables import gpus_text, report_text
from deepres.memory.trial import measured_row, with_measured_costs
from deepres.net_options import ACTIVATIONS, FAMILIES
from deepres.text_table import aligned
from deepres.wording import listed
from interface.command_line import image_size, num_bytes, positive, run_program, writable_file
from memory_profile.outputs import OUTPUT, Answer, check_outputs, write_outputs
from memory_profile.question import DEFAULT_GPU, find_target, on_target, read_configs


def parser() -> Parser:
    """All options."""
    parser = Parser(description=__doc__)
    parser.add_argument(
        "overrides",
        nargs="*",
        default=[],
        metavar="section.key=value",
        help="any setting of a run (docs/settings.md)",
    )
    what = parser.add_argument_group("the run")
    what.add_argument(
        "--depth",
        type=int,
        help="layers; 101, 152 and 200 are nets for ImageNet, others for CIFAR (--dataset)",
    )
    what.add_argument("--depths", help="several, with commas: adds how memory and time grow")
    what.add_argument(
        "--config", type=Path, help="a training configuration; options and settings override it"
    )
    what.add_argument("--dataset", choices=FAMILIES, help="the kind of net (of --depth)")
    what.add_argument("--batch-size", type=positive, help="images of a process's micro batch (the recipe's)")
    what.add_argument("--image-size", type=image_size, help="height and width (32; ImageNet 224)")
    what.add_argument("--precision", choices=("fp32", "bf16"), help="what is computed in (fp32)")
    what.add_argument("--optimizer", choices=("momentum", "sgd"), help="SGD with momentum, or without")
    what.add_argument(
        "--zero-stage", type=int, choices=(0, 1, 2, 3), help="train with DeepSpeed, at this stage"
    )
    what.add_argument(
        "--offload", action="store_true", help="optimizer, at stage 3 parameters too, on the CPU"
    )
    what.add_argument("--world-size", type=positive, default=1, help="processes")
    what.add_argument("--activation", choices=ACTIVATIONS, help="of the units (full_preactivation)")
    what.add_argument(
        "--budget", type=num_bytes, help="add a plan for so many bytes of activations, such as 2GiB"
    )
    where = parser.add_argument_group("the device")
    where.add_argument("--gpu", help=f'a card, "list" shows all ({DEFAULT_GPU})')
    where.add_argument(
        "--device-memory",
        type=num_bytes,
        help="what a process has of the device's memory, such as 8GiB (the card's)",
    )
    where.add_argument(
        "--measure",
        action="store_true",
        help="time the units and run every plan on the device at hand: minutes on a CPU",
    )
    where.add_argument(
        "--snapshot",
        type=writable_file,
        help="CUDA: --measure, and torch's memory history of a step, for memory_viz",
    )
    out = parser.add_argument_group("output")
    out.add_argument(
        "--capacity", action="store_true", help="add the largest batches on cards of 8, 12 and 24 GiB"
    )
    out.add_argument(
        "--json", type=_file_or_output, metavar="FILE", help="all numbers; of - alone on standard output"
    )
    out.add_argument("--csv", type=writable_file, metavar="FILE", help="a line for each plan")
    out.add_argument(
        "--plot",
        type=writable_file,
        help="FILE.png: the trade; FILE-step.png, FILE-units.png, FILE-depths.png",
    )
    out.add_argument("--html", type=Path, help="a folder for one page with everything")
    return parser


def main(arguments: list[str]) -> int:
    """Run the command line; 0 if it was answered, 2 if it has a mistake."""
    options = parser().parse_intermixed_args(arguments)
    if options.gpu == "list":
        print(gpus_text())
        return 0
    try:
        # The report is still visible when the JSON is piped.
        with redirect_stdout(sys.stderr if options.json == OUTPUT else sys.stdout):
            profile(options, arguments)
    except BrokenPipeError:
        raise
    except (ConfigError, ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def _file_or_output(text: str) -> Path:
    return OUTPUT if text == str(OUTPUT) else writable_file(text)


def profile(options: argparse.Namespace, arguments: list[str]) -> None:
    """Print the report and write the requested files, which record the command line `arguments`.

    Raises:
        ValueError, ConfigError, OSError: the command line has a mistake; the message says which.
    """
    check_outputs(options)
    configs = read_configs(options)
    target, device = find_target(options, configs[0])
    profiled_nets = [ProfiledNet(on_target(config, target), target, options.world_size) for config in configs]
    if configs[0].train.micro_batch_size == "auto":
        batches = listed([profiled.batch for profiled in profiled_nets])
        print(f"train.micro_batch_size is auto: {batches} here; --batch-size sets another\n")
    budget_bytes = options.budget or profiled_nets[0].config.recompute.budget
    answers, rows = list[Answer](), list[DepthRow]()
    for profiled in profiled_nets:
        ask = partial(make_report, profiled, budget_bytes=budget_bytes, budget_must_fit=len(configs) == 1)
        report = ask()  # raises on a mistake before anything is measured
        if device is not None:
            with_measured_costs(profiled, device)
            report = ask()
            rows_to_run = tqdm(report.rows, "running each strategy", leave=False, disable=None)
            report = replace(report, rows=tuple(measured_row(profiled, row, device) for row in rows_to_run))
        print(report_text(report), end="\n\n", flush=True)
        cards = capacity(profiled) if options.capacity or options.html else ()
        if options.capacity:
            print(*(f"  {line}" for line in aligned(capacity_table(cards))), sep="\n", end="\n\n")
        answers.append(Answer(profiled, report, cards))
        if len(profiled_nets) > 1:
            rows.append(depth_row(profiled, report))
    if rows:
        print(depths_text(rows, growth(rows)), end="\n\n", flush=True)
    write_outputs(options, answers, rows, arguments)


if __name__ == "__main__":
    run_program(main)
