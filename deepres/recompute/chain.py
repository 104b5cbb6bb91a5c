"""A chain: the units of a network in order, and what each costs in bytes and milliseconds.

Costs may be measured on a device or predicted from shapes; nothing here knows where they came from.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from numbers import Real
from typing import Any, TypeVar

from deepres.recompute.document import field, read_document, write_document

_FORMAT, _VERSION = "deepres.chain", 1


_MOST_BYTES, _MOST_MS = 2**45, 1e12
"""Far more than any device has or any step takes; sums of such numbers stay exact."""


def _check_bytes(owner: object, what: str, *names: str) -> None:
    for name in names:
        value = getattr(owner, name)
        if type(value) is not int or value < 0:
            raise ValueError(f"{name} of {what} must be an int of at least 0, got {value!r:.60}")
        if value > _MOST_BYTES:
            raise ValueError(f"{name} of {what} must be at most 2**45, got {value!r:.60}")


def _check_ms(owner: object, what: str, *names: str) -> None:
    for name in names:
        value = getattr(owner, name)
        is_number = isinstance(value, Real) and not isinstance(value, bool)
        if not is_number or not 0 <= value < math.inf:
            raise ValueError(f"{name} of {what} must be a finite number of at least 0, got {value!r:.60}")
        if value > _MOST_MS:
            raise ValueError(f"{name} of {what} must be at most 1e12, got {value!r:.60}")
        object.__setattr__(owner, name, float(value) + 0.0)  # 1 and 1.0, 0.0 and −0.0 are saved alike


def _check_tuple(owner: object, what: str, name: str, kind: type) -> None:
    value = getattr(owner, name)
    if not isinstance(value, Sequence) or not value or not all(isinstance(item, kind) for item in value):
        raise ValueError(
            f"{name} of {what} must be one {kind.__name__} or more, in a tuple, got {value!r:.60}"
        )
    object.__setattr__(owner, name, tuple(value))


@dataclass(frozen=True, slots=True)
class Retention:
    """A way to run a unit KEEP: what it keeps for its backward, and what that backward replays.

    Args:
        name: what plans call it; unique within a unit.
        kept_bytes: held from the unit's run to its backward, including its output but not its input.
        replay_ms: added to the unit's backward.
        forward_temp_bytes: transient bytes of the run, besides input and kept bytes.
        backward_temp_bytes: transient bytes of the backward, besides input, kept bytes and both gradients.
        freed_bytes: the kept bytes that are freed when the unit's own backward begins: its output, if only
            the next unit reads it.
        reads_input: whether the backward reads the unit's input (see `dropped_bytes`).

    Raises:
        ValueError: the name is empty, or a cost is negative, not finite or of the wrong type, or more is
            freed than kept.
    """

    name: str
    kept_bytes: int
    replay_ms: float = 0.0
    forward_temp_bytes: int = 0
    backward_temp_bytes: int = 0
    freed_bytes: int = 0
    reads_input: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ValueError(f"a retention's name must be a non-empty str, got {self.name!r}")
        what = f"retention {self.name!r}"
        _check_bytes(self, what, "kept_bytes", "forward_temp_bytes", "backward_temp_bytes", "freed_bytes")
        if self.freed_bytes > self.kept_bytes:
            raise ValueError(
                f"freed_bytes of {what} must be at most its kept_bytes, {self.kept_bytes}, got {self.freed_bytes}"
            )
        _check_ms(self, what, "replay_ms")
        if type(self.reads_input) is not bool:
            raise ValueError(f"reads_input of {what} must be a bool, got {self.reads_input!r:.60}")

    def dropped_bytes(self, input_bytes: int) -> int:
        """How many bytes of its input the unit's KEEP frees if nothing else holds it: all or none.

        The backward of a unit that begins with a ReLU reads the ReLU's output, not its input. An input larger than
        everything the unit keeps counts as read, so that a KEEP never lowers the bytes held.
        """
        return 0 if self.reads_input or self.kept_bytes < input_bytes else input_bytes


@dataclass(frozen=True, slots=True)
class UnitCost:
    """What one unit costs.

    Args:
        forward_ms: one forward run, keeping or discarding.
        backward_ms: one backward, without any replay.
        output_bytes: the size of the unit's output, and so of its gradient.
        retentions: the ways in which the unit can be run KEEP; at least one.
        forward_temp_bytes: transient bytes of a discarding run, besides input and output.

    Raises:
        ValueError: a cost is negative, not finite or of the wrong type, or `retentions` is empty or
            has a name twice.
    """

    forward_ms: float
    backward_ms: float
    output_bytes: int
    retentions: tuple[Retention, ...]
    forward_temp_bytes: int = 0

    def __post_init__(self) -> None:
        _check_bytes(self, "a unit", "output_bytes", "forward_temp_bytes")
        _check_ms(self, "a unit", "forward_ms", "backward_ms")
        _check_tuple(self, "a unit", "retentions", Retention)
        names = [retention.name for retention in self.retentions]
        if len(set(names)) < len(names):
            raise ValueError(f"a unit's retentions must have different names, got {', '.join(names)}")

    def leaves_output(self, retention: Retention) -> bool:
        """Whether a unit kept by this retention holds its output for the next unit alone."""
        return retention.freed_bytes >= self.output_bytes

    def retention(self, name: str) -> Retention:
        """The retention of that name.

        Raises:
            ValueError: the unit has none of that name.
        """
        for retention in self.retentions:
            if retention.name == name:
                return retention
        names = ", ".join(retention.name for retention in self.retentions)
        raise ValueError(f"no retention {name!r}; there is: {names}")


@dataclass(frozen=True, slots=True)
class Chain:
    """The units of a network in order. Unit i, from 0, takes x_i to x_{i+1}.

    Args:
        input_bytes: the size of x_0, held throughout a step.
        units: at least one.
        fixed_bytes: what a step holds whatever the plan: batch statistics, what the stem keeps.
        head_bytes: the most that head and loss, forward and backward, add to x_L and to what the units
            keep, including the gradient of x_L that they leave.
        fixed_ms: the time of stem, head and loss, forward and backward.
        stem_bytes: the most bytes held in total while the stem runs, forward or backward: no plan's peak
            is lower.

    Raises:
        ValueError: a cost is negative, not finite or of the wrong type, or there are no units.
    """

    input_bytes: int
    units: tuple[UnitCost, ...]
    fixed_bytes: int = 0
    head_bytes: int = 0
    fixed_ms: float = 0.0
    stem_bytes: int = 0

    def __post_init__(self) -> None:
        _check_bytes(self, "a chain", "input_bytes", "fixed_bytes", "head_bytes", "stem_bytes")
        _check_ms(self, "a chain", "fixed_ms")
        _check_tuple(self, "a chain", "units", UnitCost)

    @property
    def state_bytes(self) -> tuple[int, ...]:
        """The bytes of x_0 … x_L: the chain's input and each unit's output."""
        return (self.input_bytes, *(unit.output_bytes for unit in self.units))

    @property
    def step_ms(self) -> float:
        """The time of a step without recomputation: every forward and every backward once."""
        return math.fsum(
            [self.fixed_ms, *(ms for unit in self.units for ms in (unit.forward_ms, unit.backward_ms))]
        )

    def to_json(self) -> str:
        """The chain as JSON text; `from_json` gives an equal chain."""
        return write_document(_FORMAT, _VERSION, asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Chain":
        """The chain that `to_json` wrote.

        Raises:
            ValueError: the text is not such a document, is newer than this deepres, or holds invalid
                costs.
        """
        chain: Chain = _read(cls, read_document(text, _FORMAT, _VERSION), "the chain")
        return chain


Part = TypeVar("Part", Chain, UnitCost, Retention)


def combine(parts: Sequence[Part], cost: Callable[..., float]) -> Part:
    """Merge chains (or units, or retentions) that differ only in their costs.

    Args:
        parts: with the same number of units, and retentions of the same names.
        cost: computes a cost of the result from its name and its value in each part.
    """
    return _combine(parts, cost, {})


def _combine(parts: Sequence[Part], cost: Callable[..., float], known: dict[tuple[int, ...], Any]) -> Part:
    key = tuple(map(id, parts))  # most units of a chain are the same object
    if key not in known:
        values = dict[str, Any]()
        for item in fields(parts[0]):
            each = [getattr(part, item.name) for part in parts]
            if item.name in ("units", "retentions"):
                values[item.name] = tuple(_combine(same, cost, known) for same in zip(*each, strict=True))
            elif item.name != "name":
                values[item.name] = cost(item.name, *each)
        known[key] = replace(parts[0], **values)
    return known[key]  # type: ignore[no-any-return]


def _read(kind: Any, document: Any, what: str) -> Any:
    """Rebuild an object of one of the classes above from its `asdict`."""
    values = dict[str, Any]()
    for item in fields(kind):
        if item.name == "units":
            units = field(document, "units", list, what)
            values["units"] = tuple(_read(UnitCost, unit, f"unit {i}") for i, unit in enumerate(units))
        elif item.name == "retentions":
            retentions = field(document, "retentions", list, what)
            values["retentions"] = tuple(_read(Retention, r, f"a retention of {what}") for r in retentions)
        else:
            values[item.name] = field(document, item.name, item.type, what)  # type: ignore[arg-type]
    return kind(**values)
