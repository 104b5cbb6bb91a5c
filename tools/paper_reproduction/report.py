"""The paper's tables beside the results measured here, as text, Markdown and HTML."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from string import ascii_lowercase

from deepres.config import Config, load_config
from deepres.text_table import aligned
from interface.html_page import Section, page_html
from paper_reproduction.claims import TABLES, Table
from paper_reproduction.length import Length
from paper_reproduction.rows import ROOT, Row
from paper_reproduction.runs import SeedRun, differences, runs_of

_TITLE = "“Identity Mappings in Deep Residual Networks”, reproduced"
_HEADING = ["row", "paper, %", "here, %", "range", "seeds", "trained for", "remarks"]
_NOTES = (
    """Test error in % at the end of training: the paper's beside the median of the seeds that were trained here, with \
the lowest and the highest. The paper has the median of five runs on CIFAR and one run on ImageNet. A run that ended \
in a number that is not finite counts as failed.""",
    """Remarks tell what differs from the row's recipe. A shortened recipe has its length, drops and warm-up \
multiplied by the same fraction; its errors compare with one another, not with the paper's. “= TABLE/ROW”: the same \
net and recipe as that row, of which it shows the runs.""",
)


def listing(rows: Sequence[Row], results: Path) -> str:
    """Every row with its number of parameters, the paper's error and its runs, and where the configs are.

    Raises:
        ReproductionError, ConfigError: results cannot be read.
    """
    heading = ["row", "parameters", "paper, %", "run here"]
    cells = [[row.name, f"{row.num_parameters:,}", row.figure, _what_was_run(row, results)] for row in rows]
    folder = rows[0].config_path.relative_to(ROOT).parents[1]
    return "\n".join(
        [*aligned([heading, *cells], left=(0, 3)), "", f"the config of a row: {folder}/ROW.yaml"]
    )


@dataclass(frozen=True)
class Results:
    """The measured results.

    Attributes:
        tables: cells, the heading first; a row has a line for each length that it was trained for.
        notes: how to read them, and on which machines they were trained.
    """

    tables: Sequence[tuple[Table, Sequence[Sequence[str]]]]
    notes: Sequence[str]


def read_results(rows: Sequence[Row], results: Path) -> Results:
    """Read all results in a folder.

    Raises:
        ReproductionError, ConfigError: it cannot be read.
    """
    tables = list[tuple[Table, list[_Line]]]()
    machines: dict[Path, tuple[str, ...]] = {}
    for table in TABLES:
        lines = list[_Line]()
        for row in (row for row in rows if row.table == table):
            found = runs_of(row, results)
            machines |= {run.folder: run.machines for runs in found.values() for run in runs}
            groups = [group for length, runs in found.items() for group in _of_one_recipe(row, length, runs)]
            lines += [_line(row, group) for group in groups] or [_not_run(row)]
        tables.append((table, lines))
    letters = _letters(line for _, lines in tables for line in lines)
    return Results(
        [(table, [_HEADING, *(line.as_cells(letters) for line in lines)]) for table, lines in tables],
        [
            *_NOTES,
            *(f"{letter}: {remark}." for remark, letter in letters.items()),
            *_machines_texts(machines.values()),
        ],
    )


def results_text(results: Results) -> str:
    """The results as text for a terminal."""
    blocks = [
        "\n".join([table.title, "", *aligned(cells, left=(0, 5, 6))]) for table, cells in results.tables
    ]
    return "\n\n".join([*blocks, *results.notes[len(_NOTES) :]])


def results_markdown(results: Results, command: str) -> str:
    """The results as Markdown."""
    parts = [f"# {_TITLE}"]
    for table, cells in results.tables:
        heading, *lines = ("| " + " | ".join(map(_in_markdown, row)) + " |" for row in cells)
        rule = "|" + "|".join("---" if k in (0, 5, 6) else "---:" for k in range(len(cells[0]))) + "|"
        parts += [f"## {table.title}", "\n".join([heading, rule, *lines])]
    return "\n\n".join([*parts, *results.notes, _made_by(command)]) + "\n"


def results_html(results: Results, command: str) -> str:
    """The results as a self-contained HTML page."""
    sections = [Section(table.title, tables=[("", cells)]) for table, cells in results.tables]
    return page_html(_TITLE, _made_by(command), [*sections, Section("How to read this", lines=results.notes)])


@dataclass(frozen=True)
class _Line:
    """A line of a table: all cells but the last, and the remarks that make up the last."""

    cells: Sequence[str]
    remarks: Sequence[str]

    def as_cells(self, letters: Mapping[str, str]) -> list[str]:
        """All cells; remarks that have a letter are replaced by it."""
        told = [remark for remark in self.remarks if remark not in letters]
        noted = ", ".join(sorted(letters[remark] for remark in self.remarks if remark in letters))
        return [*self.cells, "; ".join(filter(None, [*told, noted]))]


def _letters(lines: Iterable[_Line]) -> dict[str, str]:
    """A letter for each remark on more than three recipes, which is then written once, below."""
    own = (line.remarks for line in lines if not any(remark.startswith("= ") for remark in line.remarks))
    number = Counter(remark for remarks in own for remark in remarks)
    return dict(zip((remark for remark, n in number.items() if n > 3), ascii_lowercase, strict=False))


def _machines_texts(of_runs: Iterable[tuple[str, ...]]) -> list[str]:
    """A sentence for each machine, or sequence of machines, with the number of runs that it trained."""
    texts = []
    for machines, number in Counter(of_runs).items():
        runs = "1 run was" if number == 1 else f"{number} runs were"
        texts.append(f"{runs} trained on {'; then on '.join(machines) or 'a machine that is not noted'}.")
    return texts


def _in_markdown(cell: str) -> str:
    """A cell's text, escaped for Markdown: a bar would end the cell, and `<` begin a tag."""
    return cell.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def _made_by(command: str) -> str:
    return f"Made by `{command}` on {date.today().isoformat()}."


def _not_run(row: Row) -> _Line:
    return _Line([row.claim.label, row.figure, "not run", "", "", ""], list(filter(None, [_twin(row)])))


@dataclass(frozen=True)
class _Group:
    """Runs of one recipe: how long it is, and how else it differs from the row's at the length of their folder."""

    trained_for: str
    differences: tuple[str, ...]
    runs: Sequence[SeedRun]


def _of_one_recipe(row: Row, length: Length, runs: Sequence[SeedRun]) -> list[_Group]:
    """The runs grouped by recipe, so that a median is over runs of the same recipe."""
    wanted = load_config(row.config_path, length.settings(row.config))
    groups: dict[tuple[str, ...], list[SeedRun]] = {}
    for run in runs:
        remarks = [str(each) for each in differences(wanted, run.config)]
        of_row = row.config.train.micro_batch_size
        sizes = run.batch_norm_sizes
        if set(sizes) - {of_row}:
            always = "always " if of_row in sizes else ""
            remarks.append(f"batch norm over {' and '.join(map(str, sizes))} images, not {always}{of_row}")
        groups.setdefault(tuple(remarks), []).append(run)
    return [
        _Group(_trained_for(row.config, of_one, length), remarks, of_one)
        for remarks, of_one in groups.items()
    ]


def _line(row: Row, group: _Group) -> _Line:
    runs = group.runs
    ended = [run for run in runs if run.has_result]
    columns = [[run.error for run in ended]]
    if row.claim.top5_error is not None:
        columns.append([run.top5_error for run in ended])
    here = " / ".join(_error(statistics.median(column)) for column in columns if column)
    spans = [f"{_error(min(column))}–{_error(max(column))}" for column in columns if len(set(column)) > 1]
    cells = [
        row.claim.label,
        row.figure,
        here or runs[0].state,
        " / ".join(spans),
        str(len(ended)) if ended else "",
        group.trained_for,
    ]
    return _Line(cells, list(filter(None, [_twin(row), *group.differences, *_remarks(runs)])))


def _remarks(runs: Sequence[SeedRun]) -> list[str]:
    """Remarks on runs, with the seeds unless all are meant: notes, unfinished runs, diverged runs."""
    seeds: dict[str, list[int]] = {}
    for run in runs:
        remarks = [*run.notes]
        if run.state == "diverged":
            remarks.append(f"diverged in step {run.step}")
        if run.state == "unfinished":
            remarks.append(f"unfinished at step {run.step}")
        if run.state == "untested":
            remarks.append("trained, but not tested at this crop")
        for remark in remarks:
            seeds.setdefault(remark, []).append(run.seed)
    return [
        remark if len(which) == len(runs) else f"seed {', '.join(map(str, which))}: {remark}"
        for remark, which in seeds.items()
    ]


def _trained_for(row: Config, runs: Sequence[SeedRun], length: Length) -> str:
    """How long runs were trained, of the row's length; shows their folder's fraction only if that is true."""
    (whole, unit), (count, own_unit) = _length(row), _length(runs[0].config)
    if own_unit == "steps":  # `train.epochs` may have ended it earlier
        count = max((run.step for run in runs if run.state in ("finished", "untested")), default=count)
    if (count, own_unit) == (whole, unit):
        return f"{count:,} {unit}"
    if own_unit != unit:
        return f"{count:,} {own_unit}, not {whole:,} {unit}"
    fraction = str(length) if length.is_of(count, whole) else f"{count / whole:.2g}"
    return f"{count:,} of {whole:,} {unit} ({fraction})"


def _length(config: Config) -> tuple[int, str]:
    train = config.train
    count, unit = (train.epochs, "epochs") if train.max_steps is None else (train.max_steps, "steps")
    assert count is not None
    return count, unit


def _what_was_run(row: Row, results: Path) -> str:
    parts = []
    for length, runs in runs_of(row, results).items():
        ended = sum(run.has_result for run in runs)
        open_ = f", {len(runs) - ended} unfinished" if ended < len(runs) else ""
        other = ", by another recipe" if any(g.differences for g in _of_one_recipe(row, length, runs)) else ""
        parts.append(f"{length.folder}: {ended} seed{'s' * (ended != 1)}{open_}{other}")
    return "; ".join(parts) or (_twin(row) if row.twins[0] != row.name else "–")


def _twin(row: Row) -> str:
    return f"= {row.twins[0]}" if row.twins[0] != row.name else ""


def _error(error: float) -> str:
    return "fail" if math.isinf(error) else f"{error:.2f}"
