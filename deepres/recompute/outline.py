"""A plan as text for people: runs of equal neighbours on one line, nesting shown by indentation."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from deepres.recompute.segment_tree import Segment, segment_tree

if TYPE_CHECKING:
    from deepres.recompute.plan import Plan


def outline(plan: Plan, costs: str = "") -> str:
    """The segments and retentions of a plan, one line for each run of equal items; `costs` ends the first line.

    A run of equal segments is `12 segments of 9 units, each:`, and the content of one of them follows,
    indented. Unindented lines say which units they describe, counted from 0.
    """
    nodes = segment_tree(plan.num_units, plan.segments)
    shapes = _shapes(nodes, plan.retentions)
    lines = [f"{_count(plan.num_units, 'unit')}, {_count(plan.num_segments, 'segment')}{costs}"]
    pending: list[tuple[int, str, Segment | None]] = [(-1, "", nodes[0])]
    while pending:
        depth, line, segment = pending.pop()
        if depth >= 0:
            lines.append("  " * depth + line)
        if segment is None:
            continue
        runs = []
        for _, run in groupby(segment.items(), key=lambda item: shapes[item]):
            items = list(run)
            runs.append((depth + 1, _run_text(items, plan.retentions, depth < 0), _segment(items[0])))
        pending += reversed(runs)
    return "\n".join(lines)


def _run_text(items: list[Segment | int], retentions: tuple[str, ...], is_outermost: bool) -> str:
    first, last = items[0], items[-1]
    start = first if isinstance(first, int) else first.start
    stop = last + 1 if isinstance(last, int) else last.stop
    where = (
        "" if not is_outermost else f"unit {start}: " if stop - start == 1 else f"units {start}–{stop - 1}: "
    )
    if isinstance(first, int):
        return f"{where}{len(items)} × {retentions[first]}"
    size = _count(first.stop - first.start, "unit")
    return where + (f"segment of {size}:" if len(items) == 1 else f"{len(items)} segments of {size}, each:")


def _segment(item: Segment | int) -> Segment | None:
    return None if isinstance(item, int) else item


def _shapes(nodes: list[Segment], retentions: tuple[str, ...]) -> dict[Segment | int, int]:
    """A number for each segment and unit, the same for those that differ only in position."""
    numbers: dict[object, int] = {}
    shapes: dict[Segment | int, int] = {}
    for unit, name in enumerate(retentions):
        shapes[unit] = numbers.setdefault(name, len(numbers))
    for node in reversed(nodes):  # inner segments before outer ones
        content = tuple(shapes[item] for item in node.items())
        shapes[node] = numbers.setdefault(content, len(numbers))
    return shapes


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
