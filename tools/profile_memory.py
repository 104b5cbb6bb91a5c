"""Will it fit, and what will it cost? Compute against memory for a net, a batch and a card, without a GPU.

python tools/profile_memory.py --depth 1001
python tools/profile_memory.py --depth 200 --gpu "RTX 4090" --batch-size 64 --html page
python tools/profile_memory.py --depths 110,164,1001 --plot growth.png
python tools/profile_memory.py --config configs/cifar10_resnet164.yaml --measure
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import psutil
import torch
from matplotlib.figure import Figure
from pydantic import ValidationError

from command_line import Parser, positive
from deepres.bytesize import parse_bytes
from deepres.config import Config, ConfigError
from deepres.load_config import load_config
from deepres.memory.capacity import capacity, capacity_table
from deepres.memory.depths import DepthRow, depth_row, depths_table, depths_text, growth
from deepres.memory.gpus import GPUS, find_gpu
from deepres.memory.page import Section, page_html
from deepres.memory.plots import depths_figure, frontier_figure, timeline_figure, units_figure
from deepres.memory.report import Report, StrategyRow, make_report
from deepres.memory.step_log import recorded_memory
from deepres.memory.subject import Subject, Target
from deepres.memory.tables import (
    aligned,
    gpus_text,
    notes,
    report_csv,
    report_json,
    report_text,
    stages_table,
    states_table,
    trade_table,
)
from deepres.memory.trial import measured_row, run_plan, with_measured_times

IMAGENET_DEPTHS = (18, 34, 50, 101, 152, 200)
RECIPE_BATCHES = {"cifar": 128, "imagenet": 256}
DEFAULT_GPU = "RTX 3060 12GB"
MOST_LAYERS = 30_000


def parser() -> Parser:
    """All options."""
    parser = Parser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    what = parser.add_argument_group("the run")
    what.add_argument(
        "--depth", type=int, help="layers; 18 to 200 of ImageNet's are ImageNet nets, others CIFAR's"
    )
    what.add_argument("--depths", help="several, with commas: adds how memory and time grow")
    what.add_argument(
        "--config", type=Path, help="take everything from a training configuration; options go first"
    )
    what.add_argument("--dataset", choices=("cifar", "imagenet"))
    what.add_argument("--batch-size", type=positive, help="images of a process's micro batch (the recipe's)")
    what.add_argument("--image-size", type=positive, help="height and width (32; ImageNet 224)")
    what.add_argument("--precision", choices=("fp32", "bf16"))
    what.add_argument("--optimizer", choices=("momentum", "sgd"), help="SGD with momentum, or without")
    what.add_argument("--zero-stage", type=int, choices=(0, 1, 2, 3))
    what.add_argument(
        "--offload", action="store_true", help="optimizer, at stage 3 parameters too, on the CPU"
    )
    what.add_argument("--world-size", type=positive, default=1, help="processes")
    what.add_argument("--activation", help="of the units; see deepres.build_resnet")
    what.add_argument("--budget", help="plan for this much of activations too (2GiB)")
    where = parser.add_argument_group("the device")
    where.add_argument("--gpu", help=f'a card, "list" shows all ({DEFAULT_GPU})')
    where.add_argument("--device-memory", help="what a process has of the device's memory (8GiB)")
    where.add_argument("--measure", action="store_true", help="run every plan on the device at hand too")
    where.add_argument("--snapshot", type=Path, help="CUDA: torch's memory history of a step, for memory_viz")
    out = parser.add_argument_group("output")
    out.add_argument(
        "--capacity", action="store_true", help="the largest batch on cards of 8, 12 and 24 GiB too"
    )
    out.add_argument("--json", type=Path)
    out.add_argument("--csv", type=Path)
    out.add_argument(
        "--plot", type=Path, help="FILE.png: the trade; FILE-step.png, FILE-units.png, FILE-depths.png"
    )
    out.add_argument("--html", type=Path, help="a folder for one page with everything")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; 0 if it answered, 2 if the question has a mistake."""
    options = parser().parse_args(arguments)
    if options.gpu == "list":
        print(gpus_text())
        return 0
    try:
        profile(options)
    except (ConfigError, ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def profile(options: argparse.Namespace) -> None:
    """Answer, and write what was asked for.

    Raises:
        ValueError, ConfigError, OSError: the question has a mistake; the message says which.
    """
    check_outputs(options)
    target, device = find_target(options)
    subjects = [Subject(config, target, options.world_size) for config in read_configs(options)]
    budget_bytes = parse_bytes(options.budget) if options.budget else subjects[0].config.recompute.budget
    reports, rows = list[Report](), list[DepthRow]()
    for subject in subjects:
        if device is not None:
            with_measured_times(subject, device)
        report = make_report(subject, budget_bytes=budget_bytes)
        if device is not None:
            report = replace(report, rows=tuple(measured_row(subject, row, device) for row in report.rows))
        reports.append(report)
        print(report_text(report), end="\n\n", flush=True)
        if options.capacity:
            print(*(f"  {line}" for line in aligned(capacity_table(capacity(subject)))), sep="\n", end="\n\n")
        if len(subjects) > 1:
            rows.append(depth_row(subject, report))
    if rows:
        print(depths_text(rows, growth(rows)), end="\n\n", flush=True)
    write_outputs(options, subjects, reports, rows)


def read_configs(options: argparse.Namespace) -> list[Config]:
    """The configuration of each net.

    Raises:
        ValueError, ConfigError: there is none, or one is wrong.
    """
    settings = [
        (key, value)
        for key, value in (
            ("train.micro_batch_size", options.batch_size),
            ("data.image_size", options.image_size),
            ("precision.compute", options.precision),
            ("model.activation", options.activation),
            ("engine.zero_stage", options.zero_stage),
            ("engine.name", None if options.zero_stage is None else "deepspeed"),
            ("engine.offload_optimizer", options.offload or None),
            ("engine.offload_parameters", (options.offload and options.zero_stage == 3) or None),
            ("optim.momentum", {None: None, "momentum": 0.9, "sgd": 0.0}[options.optimizer]),
            ("optim.nesterov", False if options.optimizer == "sgd" else None),
        )
        if value is not None
    ]
    if options.offload and not options.zero_stage and options.config is None:
        raise ValueError("--offload needs --zero-stage 1, 2 or 3")
    if options.batch_size is not None:
        settings += [("train.global_batch_size", None), ("train.accumulation", None)]
    depths = read_depths(options)
    if options.config is not None:
        own = [] if options.dataset is None else [("model.dataset", options.dataset)]
        changes = [[*own, *settings, *([("model.depth", depth)] if depth else [])] for depth in depths or [0]]
        return [
            load_config(options.config, [f"{k}={'null' if v is None else v}" for k, v in c]) for c in changes
        ]
    if not depths:
        raise ValueError("give --depth, --depths or --config")
    configs = []
    for depth in depths:
        dataset = options.dataset or ("imagenet" if depth in (101, 152, 200) else "cifar")
        start = [
            ("model.depth", depth),
            ("model.dataset", dataset),
            ("data.name", "imagenet" if dataset == "imagenet" else "cifar10"),
            ("train.max_steps", 1),
            ("train.global_batch_size", RECIPE_BATCHES[dataset]),
        ]
        configs.append(config_of([*start, *settings]))
    return configs


def config_of(settings: Sequence[tuple[str, object]]) -> Config:
    """The configuration with these values of `section.key`.

    Raises:
        ConfigError: one of them is not allowed.
    """
    content: dict[str, dict[str, object]] = {}
    for path, value in settings:
        section, key = path.split(".")
        content.setdefault(section, {})[key] = value
    try:
        return Config.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(
            f"{where}: {first['msg'].removeprefix('Value error, ')}, got {first['input']!r}"
        ) from None


def read_depths(options: argparse.Namespace) -> list[int]:
    """Of `--depth` or `--depths`; none if neither is given.

    Raises:
        ValueError: they are no numbers, or too large.
    """
    if options.depth is not None and options.depths is not None:
        raise ValueError("give --depth or --depths, not both")
    try:
        depths = [int(depth) for depth in options.depths.split(",")] if options.depths else []
    except ValueError:
        raise ValueError(
            f"--depths must be numbers with commas (110,164,1001), got {options.depths!r}"
        ) from None
    depths += [] if options.depth is None else [options.depth]
    if depths and max(depths) > MOST_LAYERS:
        raise ValueError(f"depth must be at most {MOST_LAYERS:,} here, got {max(depths):,}")
    return sorted(set(depths))


def find_target(options: argparse.Namespace) -> tuple[Target, torch.device | None]:
    """What to predict for, and the device to measure on, if that was asked for.

    Raises:
        ValueError: there is no such card, or no CUDA device where one is needed.
    """
    memory_bytes = parse_bytes(options.device_memory) if options.device_memory else None
    on_cuda = torch.cuda.is_available()
    if options.snapshot is not None and not on_cuda:
        raise ValueError("--snapshot needs a CUDA device, this host has none: leave it out")
    if not options.measure and options.snapshot is None:
        try:
            gpu = find_gpu(options.gpu or DEFAULT_GPU)
        except ValueError as error:
            raise ValueError(f"{error}; --gpu list shows all") from None
        name = gpu.name if options.device_memory is None else f"a device as fast as {gpu.name}"
        if options.gpu is None and options.device_memory is None:
            name += " (none was named)"
        return Target(name, memory_bytes or gpu.memory_bytes, gpu), None
    if options.gpu is not None:
        raise ValueError("--measure and --snapshot take the device at hand: leave out --gpu")
    if not on_cuda:
        return Target(
            "this host's CPU", memory_bytes or psutil.virtual_memory().available, None
        ), torch.device("cpu")
    properties = torch.cuda.get_device_properties(0)
    like = next((gpu for gpu in GPUS if gpu.name.split()[-1] in properties.name), find_gpu(DEFAULT_GPU))
    gpu = replace(like, name=properties.name, memory_bytes=properties.total_memory)
    free_bytes = torch.cuda.mem_get_info(0)[0]
    if memory_bytes is not None:
        torch.cuda.set_per_process_memory_fraction(min(1.0, memory_bytes / properties.total_memory))
    return Target(properties.name, memory_bytes or free_bytes, gpu), torch.device("cuda", 0)


def check_outputs(options: argparse.Namespace) -> None:
    """Before any work, that what was asked for can be written.

    Raises:
        ValueError: it cannot.
    """
    for name in ("json", "csv", "plot", "snapshot"):
        path: Path | None = getattr(options, name)
        if path is None:
            continue
        if (
            path.is_dir()
            or not path.parent.is_dir()
            or not os.access(path if path.exists() else path.parent, os.W_OK)
        ):
            raise ValueError(
                f"--{name} {path} cannot be written: give a file in a folder that exists and is writable"
            )
    if options.plot is not None and options.plot.suffix.lower() != ".png":
        raise ValueError(f"--plot must be a .png file, got {options.plot}")
    if options.html is not None:
        try:
            options.html.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"--html {options.html} cannot be written: {error.strerror}") from None
        if not os.access(options.html, os.W_OK):
            raise ValueError(f"--html {options.html} cannot be written: give a folder that is writable")


def write_outputs(
    options: argparse.Namespace,
    subjects: Sequence[Subject],
    reports: Sequence[Report],
    rows: Sequence[DepthRow],
) -> None:
    """The files that were asked for, each with a line that tells of it."""
    command = " ".join(["tools/profile_memory.py", *map(str, sys.argv[1:])])
    if options.json is not None:
        text = report_json(reports, command=command, torch=torch.__version__)
        options.json.write_text(text + "\n", encoding="utf-8")
        print(f"wrote {options.json}")
    if options.csv is not None:
        options.csv.write_text(report_csv(reports), encoding="utf-8")
        print(f"wrote {options.csv}")
    if options.snapshot is not None:
        row = typical_row(reports[0])
        with recorded_memory(options.snapshot, torch.device("cuda", 0)):
            run_plan(subjects[0], row.plan, torch.device("cuda", 0), repeats=1)
        print(
            f"wrote {options.snapshot}: a step under the {row.strategy}; drop it on https://pytorch.org/memory_viz"
        )
    if options.plot is None and options.html is None:
        return
    pictures = {name: figure for name, (_, figure) in draw(subjects[-1], reports[-1], rows).items()}
    if options.plot is not None:
        for name, figure in pictures.items():
            path = options.plot.with_stem(options.plot.stem + name)
            figure.savefig(path)
            print(f"wrote {path}")
    if options.html is not None:
        path = options.html / "index.html"
        path.write_text(page(command, subjects, reports, rows), encoding="utf-8")
        print(f"wrote {path}")


def draw(subject: Subject, report: Report, rows: Sequence[DepthRow]) -> dict[str, tuple[str, Figure]]:
    """The pictures of a net: what to append to a file's name, a description, and the picture."""
    row = typical_row(report)
    pictures = {
        "": ("extra time against the peak of activations", frontier_figure(subject, report)),
        "-step": (f"bytes over a step under the {row.strategy}", timeline_figure(subject, report, row)),
        "-units": ("bytes held by each unit when backward begins", units_figure(subject, report, row)),
    }
    if rows:
        pictures["-depths"] = ("peak and extra time against depth", depths_figure(rows))
    return pictures


def typical_row(report: Report) -> StrategyRow:
    """A plan to show: the fastest that fits the device, of those for half of keep-all or less."""
    plans = [row for row in report.rows if row.plan is not None and row.strategy.startswith("plan")]
    small = [row for row in plans if (row.budget_share or 0.0) <= 0.5] or plans
    return next((row for row in small if row.fits), small[-1])


def page(
    command: str, subjects: Sequence[Subject], reports: Sequence[Report], rows: Sequence[DepthRow]
) -> str:
    """The page of one or several nets."""
    depths = ", ".join(str(report.model.depth) for report in reports)
    sections = []
    if rows:
        laws = growth(rows)
        fitted = [["", "fitted over the units", "off by at most"]]
        fitted += [[law.what, law.law, f"{100 * law.largest_error:.1f} %"] for law in laws]
        tables = [("", depths_table(rows)), ("Fitted growth", fitted)]
        sections.append(Section("How it grows with depth", (), tables, [("growth", depths_figure(rows))]))
    for subject, report in zip(subjects, reports, strict=True):
        pictures = draw(subject, report, ())
        name = f"ResNet-{report.model.depth}: "
        sections += [
            Section(
                f"{name}the trade on {report.device}",
                notes(report),
                [("", trade_table(report))],
                [pictures[""]],
            ),
            Section(f"{name}what a card trains", (), [("", capacity_table(capacity(subject)))]),
            Section(
                f"{name}a step, and where its bytes sit", (), (), [pictures["-step"], pictures["-units"]]
            ),
            Section(
                f"{name}what is held",
                (),
                [
                    ("Model states of a process", states_table(report)),
                    ("Activations, everything kept", stages_table(report)),
                ],
            ),
        ]
    return page_html(f"Memory and time of ResNet-{depths}", command, sections)


if __name__ == "__main__":
    sys.exit(main())
