"""The output files: numbers, pictures, a page, a snapshot."""

from __future__ import annotations

import argparse
import importlib.util
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from deepres.memory.capacity import EXTRA_SHARES, CapacityRow, capacity_table
from deepres.memory.depths import DepthRow, depths_table, growth, laws_table
from deepres.memory.profiled_net import ProfiledNet
from deepres.memory.report_rows import Report, StrategyRow
from deepres.memory.step_log import recorded_memory
from deepres.memory.tables import (
    division,
    model_lines,
    notes,
    report_csv,
    report_json,
    stages_table,
    states_table,
    trade_table,
    trade_title,
    verdict,
)
from deepres.memory.trial import run_plan
from interface.command_line import writable_folder
from interface.html_page import MARK, Section, page_html

if TYPE_CHECKING:
    from matplotlib.figure import Figure  # an extra, only for pictures


OUTPUT = Path("-")
"""Where `--json -` writes: standard output."""


@dataclass(frozen=True)
class Answer:
    """The results for one net.

    Attributes:
        profiled: the net.
        report: the trade-off.
        cards: the largest batches on some GPUs, if asked for.
    """

    profiled: ProfiledNet
    report: Report
    cards: tuple[CapacityRow, ...]


def check_outputs(options: argparse.Namespace) -> None:
    """Check, before any work, that the requested files can be written.

    Raises:
        ValueError: one cannot be written.
    """
    wants_pictures = options.plot is not None or options.html is not None
    if wants_pictures and importlib.util.find_spec("matplotlib") is None:
        raise ValueError("--plot and --html need matplotlib: pip install 'deepres[quickstart]'")
    files = [path for path in (options.json, options.csv, options.snapshot) if path is not None]
    if options.plot is not None:
        files += [options.plot.with_stem(options.plot.stem + name) for name in _PICTURES]
    twice = next(
        (path for path in files if [each.resolve() for each in files].count(path.resolve()) > 1), None
    )
    if twice is not None:
        raise ValueError(f"{twice} is asked for twice: give each output a file of its own")
    if options.plot is not None and options.plot.suffix.lower() != ".png":
        raise ValueError(f"--plot must be a .png file, got {options.plot}")
    if options.html is not None:
        try:
            writable_folder(options.html)
        except argparse.ArgumentTypeError as error:
            raise ValueError(f"--html {error}") from None
        page_path = options.html / "index.html"
        if page_path.exists() and MARK not in page_path.read_text(encoding="utf-8", errors="replace"):
            raise ValueError(f"--html {options.html} holds another index.html: give another folder")


def write_outputs(
    options: argparse.Namespace, answers: Sequence[Answer], rows: Sequence[DepthRow], arguments: Sequence[str]
) -> None:
    """Write the requested files, and print a line for each.

    Args:
        options: the parsed command line.
        answers: of each net.
        rows: of several depths.
        arguments: the command line, as given.
    """
    reports = [answer.report for answer in answers]
    command = shlex.join(["tools/profile_memory.py", *arguments])
    if options.json is not None:
        more: dict[str, Any] = {}
        if rows:
            more = {"depths": list(map(asdict, rows)), "growth": list(map(asdict, growth(rows)))}
        if options.capacity:
            cards = [list(map(asdict, answer.cards)) for answer in answers]
            more["capacity"] = {"extra_shares": EXTRA_SHARES, "nets": cards}
        text = report_json(reports, command=command, torch=torch.__version__, **more)
        if options.json == OUTPUT:
            print(text, file=sys.__stdout__, flush=True)
        else:
            options.json.write_text(text + "\n", encoding="utf-8")
            print(f"wrote {options.json}")
    if options.csv is not None:
        options.csv.write_text(report_csv(reports), encoding="utf-8")
        print(f"wrote {options.csv}")
    if options.snapshot is not None:
        row = typical_row(reports[0])
        with recorded_memory(options.snapshot, torch.device("cuda", 0)):
            run_plan(answers[0].profiled, row.plan, torch.device("cuda", 0), repeats=1)
        print(
            f"wrote {options.snapshot}: a step under the {row.strategy}; drop it on https://pytorch.org/memory_viz"
        )
    if options.plot is not None:
        for name, (_, figure) in draw(answers[-1], rows).items():
            path = options.plot.with_stem(options.plot.stem + name)
            figure.savefig(path)
            print(f"wrote {path}")
    if options.html is not None:
        path = options.html / "index.html"
        path.write_text(page(command, answers, rows), encoding="utf-8")
        print(f"wrote {path}")


_PICTURES = ("", "-step", "-units", "-depths")
"""Suffixes of the names of `--plot`'s files."""


def draw(answer: Answer, rows: Sequence[DepthRow]) -> dict[str, tuple[str, Figure]]:
    """The pictures of a net: by file name suffix, a description and the picture."""
    from deepres.memory.plots import depths_figure, frontier_figure, timeline_figure, units_figure

    profiled, report = answer.profiled, answer.report
    row = typical_row(report)
    pictures = {
        "": ("extra time against the peak of activations", frontier_figure(profiled, report)),
        "-step": (f"bytes over a step under the {row.strategy}", timeline_figure(profiled, report, row)),
        "-units": ("bytes held by each unit when backward begins", units_figure(profiled, report, row)),
    }
    if rows:
        pictures["-depths"] = ("peak and extra time against depth", depths_figure(rows))
    return pictures


def typical_row(report: Report) -> StrategyRow:
    """A plan to show: the fastest that fits the device, of those that need at most half of keep-all."""
    plans = [row for row in report.rows if row.plan is not None and row.is_planned]
    small = [row for row in plans if (row.budget_share or 0.0) <= 0.5] or plans
    return next((row for row in small if row.fits), small[-1])


def page(command: str, answers: Sequence[Answer], rows: Sequence[DepthRow]) -> str:
    """The page of one or several nets."""
    depths = ", ".join(str(answer.report.model.depth) for answer in answers)
    sections = []
    if rows:
        from deepres.memory.plots import depths_figure

        tables = [("", depths_table(rows)), ("Fitted growth", laws_table(rows, growth(rows)))]
        sections.append(Section("How it grows with depth", (), tables, [("growth", depths_figure(rows))]))
    for answer in answers:
        report, pictures = answer.report, draw(answer, ())
        name = f"ResNet-{report.model.depth}: "
        sections += [
            Section(" ".join(model_lines(report)[:1]), model_lines(report)[1:]),
            Section(
                trade_title(report),
                [*verdict(report), division(report), *notes(report)],
                [("", trade_table(report))],
                [pictures[""]],
            ),
            Section(f"{name}what a card trains", (), [("", capacity_table(answer.cards))]),
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
