"""Parts of messages: lists, and what a person may have meant."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence


def listed(values: Collection[object], most: int | None = None) -> str:
    """`a, b, c`, or of more than `most` values the first, `and 5 more`."""
    shown = ", ".join(map(str, list(values)[:most]))
    return shown if most is None or len(values) <= most else f"{shown} and {len(values) - most} more"


def nearest(name: str, known: Sequence[str]) -> str:
    """`did you mean …?` with the known name that alone begins so or is most like it, or else all known names."""
    begun = [each for each in known if each.startswith(name)]
    close = begun if len(begun) == 1 else difflib.get_close_matches(name.lower(), known, n=1)
    return f"did you mean {close[0]}?" if close else f"known: {listed(known)}"
