"""Reports as text for a terminal, as CSV and as JSON."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any

from deepres.bytesize import format_bytes
from deepres.memory.gpus import GPUS
from deepres.memory.report_rows import Report, StrategyRow
from deepres.memory.scaling import MOST_IMAGES
from deepres.text_table import aligned

_FORMAT, _VERSION = "deepres.memory_report", 1
_COLUMNS = [field.name for field in fields(StrategyRow) if field.name not in ("kind", "plan")]


def report_text(report: Report) -> str:
    """The whole report, for people."""
    name, *facts = model_lines(report)
    lines = [
        name,
        *(f"  {fact}" for fact in facts),
        "",
        *verdict(report),
        "",
        trade_title(report),
        f"  {division(report)}",
        "",
        *_indented(trade_table(report)),
        "",
        *(f"  {note}" for note in notes(report)),
        "",
        "Activations with everything kept",
        *_indented(stages_table(report)),
        "",
        f"Model states{' of a process' if report.model.world_size > 1 else ''}",
        *_indented(states_table(report)),
    ]
    return "\n".join(lines)


def model_lines(report: Report) -> list[str]:
    """A report's net and batch, a line each."""
    model = report.model
    stages = ", ".join(map(str, model.units_per_stage))
    per = f", one of {model.world_size} processes" if model.world_size > 1 else ""
    return [
        f"ResNet-{model.depth}, {model.dataset}: {model.block} units, {model.activation}, shortcut {model.shortcut}",
        f"{model.num_units} units in stages of {stages}",
        f"{model.num_parameters:,} parameters",
        f"{_count(model.multiply_adds)} multiply-adds forward, an image of {model.image_size} × {model.image_size}",
        f"batch {model.batch}{per}, {model.precision}",
    ]


def verdict(report: Report) -> list[str]:
    """Whether the net fits the device, and what it costs to make it fit, a sentence each."""
    keep_all, device = report.row("keep all"), format_bytes(report.device_bytes)
    if keep_all.fits:
        return [f"It fits with everything kept: {format_bytes(keep_all.total_bytes)} of {device}."]
    kept = f"With everything kept it does not fit: it takes {format_bytes(keep_all.total_bytes)}, there are {device}."
    plans = [row for row in report.rows if row.fits]
    if not plans:
        least = format_bytes(min(row.total_bytes for row in report.rows))
        return [kept, f"Nothing fits: a run at batch {report.model.batch} takes at least {least}."]
    fastest = min(plans, key=lambda row: row.extra_share)
    share, total = f"{100 * fastest.extra_share:.1f} %", format_bytes(fastest.total_bytes)
    return [
        kept,
        f"The fastest plan that fits takes {share} extra time, in {total}: recompute.device_memory finds it.",
    ]


def trade_title(report: Report) -> str:
    """The heading of the trade, with the device and its memory."""
    return f"The trade on {report.device}, {format_bytes(report.device_bytes)}"


def states_table(report: Report) -> list[list[str]]:
    """Cells, the heading first."""
    rows = [["", "parameters", "gradients", "optimizer", "buckets", "total"]]
    for row in report.states:
        s = row.states
        sizes = (s.parameters_bytes, s.gradients_bytes, s.optimizer_bytes, s.buckets_bytes, s.total_bytes)
        rows.append([row.engine, *map(format_bytes, sizes)])
    return rows


def stages_table(report: Report) -> list[list[str]]:
    """Cells, the heading first."""
    rows = [["stage", "units", "a unit's output", "kept", "share"]]
    rows += [
        [str(row.stage), str(row.num_units), format_bytes(row.output_bytes), format_bytes(row.kept_bytes),
         f"{100 * row.share:.1f} %"]
        for row in report.stages
    ]  # fmt: skip
    rows.append(["stem, head, gradients", "", "", format_bytes(report.ends_bytes), ""])
    rows.append(
        ["peak", str(report.model.num_units), "", format_bytes(report.row("keep all").peak_bytes), ""]
    )
    return rows


def trade_table(report: Report) -> list[list[str]]:
    """Cells, the heading first; measured columns only where something was measured."""
    is_measured = _is_measured(report)
    heading = [
        "strategy",
        "activations",
        "total",
        "fits",
        "extra runs",
        "extra time",
        "bound",
        "largest batch",
        "images/s",
    ]
    if is_measured:
        heading += ["measured", "peak off by", "predicted ms", "measured ms", "time off by"]
    rows = [
        _trade_cells(row, with_measured=is_measured)
        for row in report.rows
        if not _is_below_another(row, report)
    ]
    return [heading, *rows]


def batch_text(largest: int) -> str:
    """A largest batch, for people."""
    if not largest:
        return "none"
    return f"{largest:,}" if largest < MOST_IMAGES else f"≥ {largest:,}"


def notes(report: Report) -> list[str]:
    """What a reader must know to read the trade, a line each."""
    lines = [
        "activations: the most that they take at once in a step; total: with model states, images and reserve",
        "extra runs: how often a unit is run forward again, on average; replays of batch norm and ReLU alone are none",
        "extra time: of a step with everything kept; bound: no plan within the same bytes takes less",
        "largest batch: with which this very plan fits",
        "plan for x %: the fastest found within x % of keep all's bytes; at the floor: the fewest bytes of any plan",
    ]
    if report.workspace_bytes and not _is_measured(report):
        lines.append(
            f"activations are tensors; of the total, {format_bytes(report.workspace_bytes)} are for cuDNN's "
            "workspaces, which only the card tells (--measure)"
        )
    if report.units_per_group > 1:
        lines.append(
            f"to save planning time, up to {report.units_per_group} neighbouring units were planned as one: the best "
            "plan's extra time lies between the columns 'bound' and 'extra time'"
        )
    return lines


def gpus_text() -> str:
    """The cards that `--gpu` knows."""
    rows = [["card", "memory", "GB/s", "fp32", "tf32", "16 bit", "source"]]
    for gpu in GPUS:
        rates = [
            f"{gpu.fp32_tflops:g}",
            *("–" if r is None else f"{r:g}" for r in (gpu.tf32_tflops, gpu.bf16_tflops)),
        ]
        rows.append([gpu.name, format_bytes(gpu.memory_bytes), f"{gpu.bandwidth_gb_s:g}", *rates, gpu.source])
    return "\n".join(
        [*aligned(rows, left=(0, 6)), "", "rates in 10^12 operations a second, dense, fp32 sums"]
    )


def report_csv(reports: Sequence[Report]) -> str:
    """The trade of one or several nets, a line for each strategy; bytes, milliseconds, and shares of 1."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["depth", "batch", "device", *_COLUMNS, "num_segments", "nesting_depth"])
    for report in reports:
        for row in report.rows:
            values = [getattr(row, name) for name in _COLUMNS]
            shape = ("", "") if row.plan is None else (row.plan.num_segments, row.plan.nesting_depth)
            writer.writerow(
                [report.model.depth, report.model.batch, report.device, *map(_plain, values), *shape]
            )
    return text.getvalue()


def report_json(reports: Sequence[Report], **more: Any) -> str:
    """All numbers of one or several nets; bytes are ints, times milliseconds, shares of 1.

    Args:
        reports: of the nets.
        more: what else to say (the command, versions).
    """
    nets = []
    for report in reports:
        rows = [_values(row) for row in report.rows]
        states = [
            {"engine": row.engine, **asdict(row.states), "total_bytes": row.states.total_bytes}
            for row in report.states
        ]
        others = {name: value for name, value in asdict(report).items() if name != "rows"}
        nets.append({**others, "states": states, "rows": rows})
    return json.dumps(
        {"format": _FORMAT, "version": _VERSION, **more, "nets": nets}, indent=1, allow_nan=False
    )


def _values(row: StrategyRow) -> dict[str, Any]:
    """A row for JSON: without NaN, and with the plan's numbers in place of the plan."""
    values: dict[str, Any] = {name: _plain(getattr(row, name)) for name in _COLUMNS}
    if row.plan is not None:
        values |= {"num_segments": row.plan.num_segments, "nesting_depth": row.plan.nesting_depth}
    return values


def _has_no_plan(row: StrategyRow) -> bool:
    """Whether no plan fits a share of keep-all; a budget asked for in bytes always has a row of its own."""
    return row.kind == "budget" and row.plan is None and row.strategy.endswith("%")


def _is_below_another(row: StrategyRow, report: Report) -> bool:
    """Whether it has no plan and is not the largest such share, which stands for all of them."""
    return _has_no_plan(row) and row is not next(filter(_has_no_plan, report.rows))


def _trade_cells(row: StrategyRow, *, with_measured: bool) -> list[str]:
    if row.plan is None:
        name = f"{row.strategy} or less" if _has_no_plan(row) else row.strategy
        cells = [name, f"needs {format_bytes(row.peak_bytes)}", "", "no plan", "", "", "", "", ""]
    else:
        cells = [
            row.strategy,
            format_bytes(row.peak_bytes),
            format_bytes(row.total_bytes),
            "yes" if row.fits else "no",
            f"{row.extra_forwards:.2f}",
            f"{100 * row.extra_share:.1f} %",
            "" if row.least_extra_share is None else f"{100 * row.least_extra_share:.1f} %",
            batch_text(row.largest_batch),
            f"{row.images_per_s:.3g}" if row.images_per_s < 1000 else f"{row.images_per_s:,.0f}",
        ]
    if not with_measured:
        return cells
    if row.measured_peak_bytes is None or row.measured_ms is None:
        return [*cells, row.measured_note, "", "", "", ""]
    return [
        *cells,
        format_bytes(row.measured_peak_bytes),
        f"{100 * (row.peak_bytes / row.measured_peak_bytes - 1):+z.2f} %",
        f"{row.step_ms:,.1f}",
        f"{row.measured_ms:,.1f}",
        f"{100 * (row.step_ms / row.measured_ms - 1):+z.1f} %" if row.measured_ms else "",
    ]


def division(report: Report) -> str:
    """How the device's memory is divided."""
    states = format_bytes(report.other_bytes - report.images_bytes - report.workspace_bytes)
    reserve = f", {format_bytes(report.workspace_bytes)} in reserve" if report.workspace_bytes else ""
    room = format_bytes(max(0, report.device_bytes - report.other_bytes))
    return (
        f"{states} of it for model states ({report.engine}), {format_bytes(report.images_bytes)} for images{reserve}, "
        f"{room} for activations"
    )


def _is_measured(report: Report) -> bool:
    return any(row.measured_peak_bytes is not None or row.measured_note for row in report.rows)


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value


def _indented(rows: Sequence[Sequence[str]]) -> list[str]:
    return ["  " + line for line in aligned(rows)]


def _count(number: int) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.2f} {letter}"
    return str(number)
