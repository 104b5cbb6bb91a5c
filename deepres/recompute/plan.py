"""Plans: which segments are discarded and replayed, how each unit is kept, and the resulting schedule."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from deepres.bytesize import format_bytes
from deepres.recompute.document import field, read_document, write_document
from deepres.recompute.outline import outline
from deepres.recompute.segment_tree import Segment, segment_tree

_FORMAT, _VERSION = "deepres.plan", 1


class Action(Enum):
    """What a step of a schedule does with its unit."""

    DISCARD = "discard"
    """Run forward, keep only the output."""
    KEEP = "keep"
    """Run forward and keep what the unit's retention says."""
    HEAD = "head"
    """Run head and loss, forward and backward."""
    BACKWARD = "backward"
    """Run backward."""


class Step(NamedTuple):
    """One step of a schedule.

    Args:
        action: what the step does.
        unit: with which unit, from 0; for the HEAD, the number of units.
        begins_segment: true for a segment's first DISCARD: the segment is replayed from this unit's input,
            which is therefore held.
    """

    action: Action
    unit: int
    begins_segment: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """Which segments of a chain are discarded and replayed, and how each unit is kept.

    NOTE [ What a plan means ]
    The items of a range of units are its outermost segments and the units outside them, in order.
    1. Forward phase of a range, left to right: a unit is run KEEP; a segment's units are each run
       DISCARD, and the segment's input is kept.
    2. Backward phase, right to left: a unit's BACKWARD; a segment's own forward phase from its
       input, over its inner items, and then its own backward phase.
    3. A step is the forward phase of all units, the HEAD, then the units' backward phase.
    So every unit is run KEEP once and BACKWARD once, and DISCARD once for each segment it lies in.
    `schedule` spells this out; simulator and executor both follow it.

    Args:
        segments: ranges [start, stop) of units, pairwise disjoint or nested, without duplicates; they
            get sorted by (start, −stop).
        retentions: the name of each unit's retention; at least one.

    Raises:
        ValueError: a segment is out of range, occurs twice or crosses another; there are no units.
    """

    segments: tuple[tuple[int, int], ...]
    retentions: tuple[str, ...]

    def __post_init__(self) -> None:
        retentions = tuple(self.retentions) if isinstance(self.retentions, list | tuple) else ()
        if not retentions or not all(isinstance(name, str) for name in retentions):
            raise ValueError(
                f"a plan's retentions must be one name for each unit, one or more, got {self.retentions!r:.60}"
            )
        object.__setattr__(self, "retentions", retentions)
        object.__setattr__(self, "segments", _checked_segments(self.segments, len(retentions)))

    @property
    def num_units(self) -> int:
        """The number of units in the chain that the plan is for."""
        return len(self.retentions)

    @property
    def num_segments(self) -> int:
        """How many segments there are, nested ones included."""
        return len(self.segments)

    @property
    def nesting_depth(self) -> int:
        """How many segments contain the most replayed unit; 0 if everything is kept."""
        depth, stops = 0, list[int]()
        for start, stop in self.segments:
            while stops and stops[-1] <= start:
                stops.pop()
            stops.append(stop)
            depth = max(depth, len(stops))
        return depth

    def schedule(self) -> Iterator[Step]:
        """The steps in order, following NOTE [ What a plan means ].

        It takes O(steps) time and O(units) memory, however deep segments nest.
        """
        discard, keep, backward = Action.DISCARD, Action.KEEP, Action.BACKWARD
        pending: list[Segment | int]  # a stack: items whose backward phase is still to come
        whole = segment_tree(self.num_units, self.segments)[0]
        pending = [whole]
        while pending:
            item = pending.pop()
            if isinstance(item, int):
                yield Step(backward, item)
                continue
            for inner in item.items():
                if isinstance(inner, int):
                    yield Step(keep, inner)
                else:
                    yield Step(discard, inner.start, begins_segment=True)
                    for unit in range(inner.start + 1, inner.stop):
                        yield Step(discard, unit)
                pending.append(inner)
            if item is whole:
                yield Step(Action.HEAD, self.num_units)

    def __str__(self) -> str:
        return outline(self)

    def to_json(self) -> str:
        """The plan as JSON text; `from_json` gives an equal plan."""
        return write_document(_FORMAT, _VERSION, asdict(self))

    @staticmethod
    def from_json(text: str) -> "Plan":
        """Read the plan that `to_json` wrote: a `PricedPlan` if it was one.

        Raises:
            ValueError: the text is not such a document, is newer than this deepres, or its segments,
                retentions or costs are invalid.
        """
        fields = read_document(text, _FORMAT, _VERSION)
        segments, retentions = (field(fields, name, list, "the plan") for name in ("segments", "retentions"))
        costs = {"peak_bytes": int, "total_ms": float, "extra_ms": float}
        if all(fields.get(name) is None for name in costs):
            return Plan(segments, retentions)
        return PricedPlan(
            segments, retentions, *(field(fields, name, kind, "the plan") for name, kind in costs.items())
        )

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON, replacing an existing file."""
        Path(path).write_text(self.to_json() + "\n", encoding="utf-8")

    @staticmethod
    def load(path: str | Path) -> "Plan":
        """Read the plan that `save` wrote: a `PricedPlan` if it was one.

        Raises:
            ValueError: the file holds no plan; the message names the file.
            OSError: the file cannot be read.
        """
        try:
            return Plan.from_json(Path(path).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None


@dataclass(frozen=True, slots=True)
class PricedPlan(Plan):
    """A plan with its costs on a chain, as computed by `price`.

    Args:
        segments, retentions: see `Plan`.
        peak_bytes: the most bytes held at any moment of a training step.
        total_ms: the time of a training step.
        extra_ms: `total_ms` less one forward and one backward of everything.

    Raises:
        ValueError: the plan is invalid, or a cost is negative, not finite or of the wrong type.
    """

    peak_bytes: int
    total_ms: float
    extra_ms: float

    def __post_init__(self) -> None:
        Plan.__post_init__(self)  # slots=True makes a new class, which super() does not know
        costs = (self.peak_bytes, self.total_ms, self.extra_ms)
        if type(self.peak_bytes) is not int or not all(_is_cost(cost) for cost in costs):
            raise ValueError(
                f"a plan's costs must be an int and two floats, finite and at least 0, got {costs}"
            )

    @property
    def extra_share(self) -> float:
        """The extra time as a share of a step with everything kept; 0 if that takes no time."""
        kept_ms = self.total_ms - self.extra_ms
        return self.extra_ms / kept_ms if kept_ms > 0 else 0.0

    def __str__(self) -> str:
        return outline(
            self,
            f", peak {format_bytes(self.peak_bytes)}, {self.total_ms:.1f} ms a step "
            f"({self.extra_ms:.1f} ms extra, {self.extra_share:.1%})",
        )


def keep_all_plan(num_units: int, retention: str = "all") -> Plan:
    """Every unit kept, nothing replayed.

    Raises:
        ValueError: there are no units.
    """
    return uniform_plan(num_units, 1, retention)


def uniform_plan(num_units: int, num_segments: int, retention: str = "all") -> Plan:
    """Near-equal consecutive parts, each but the last a segment.

    The last part is kept: its backward comes next, so discarding it would only cost time.

    Args:
        num_units: the number of units in the chain.
        num_segments: the number of parts, including the last; 1 keeps everything.
        retention: how each unit is kept.

    Raises:
        ValueError: there are no parts, or more parts than units.
    """
    if not 1 <= num_segments <= num_units:
        raise ValueError(
            f"segments must be between 1 and the {num_units} units of this model, got {num_segments}"
        )
    bounds = [part * num_units // num_segments for part in range(num_segments)]
    return Plan(tuple(pairwise(bounds)), (retention,) * num_units)


def sqrt_plan(num_units: int, retention: str = "all") -> Plan:
    """About √units parts: O(√units) bytes for one more forward (Chen et al. 2016, arXiv 1604.06174, §4.1).

    Raises:
        ValueError: there are no units.
    """
    return uniform_plan(num_units, round(math.sqrt(max(num_units, 0))), retention)


def per_unit_plan(num_units: int, retention: str = "all") -> Plan:
    """Every unit but the last its own segment.

    Raises:
        ValueError: there are no units.
    """
    return uniform_plan(num_units, num_units, retention)


def _is_cost(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


def _checked_segments(segments: Any, num_units: int) -> tuple[tuple[int, int], ...]:
    """The segments in order of (start, −stop)."""
    if not isinstance(segments, Sequence):
        raise ValueError(f"a plan's segments must be a tuple of (start, stop), got {segments!r:.60}")
    pairs = list[tuple[int, int]]()
    for segment in segments:
        pair = tuple(segment) if isinstance(segment, Sequence) else ()
        if len(pair) != 2 or any(type(bound) is not int for bound in pair):
            raise ValueError(f"a segment must be two ints (start, stop), got {segment!r:.60}")
        if not 0 <= pair[0] < pair[1] <= num_units:
            raise ValueError(f"a segment must have 0 <= start < stop <= {num_units}, got {pair}")
        pairs.append((pair[0], pair[1]))
    pairs.sort(key=lambda pair: (pair[0], -pair[1]))
    around = list[tuple[int, int]]()  # segments that may contain the next one, outermost first
    for pair in pairs:
        while around and around[-1][1] <= pair[0]:
            around.pop()
        if around and around[-1] == pair:
            raise ValueError(f"segment {pair} occurs twice")
        if around and pair[1] > around[-1][1]:
            raise ValueError(f"segments must be disjoint or nested, but {pair} crosses {around[-1]}")
        around.append(pair)
    return tuple(pairs)
