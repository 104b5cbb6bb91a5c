"""Parts of messages: lists, and suggestions for a misspelt name."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence


def listed(values: Collection[object], most: int | None = None) -> str:
    """`a, b, c`; of more than `most` values only the first, `and 5 more`."""
    shown = ", ".join(map(str, list(values)[:most]))
    return shown if most is None or len(values) <= most else f"{shown} and {len(values) - most} more"


def nearest(name: str, known: Sequence[str]) -> str:
    """`did you mean …?` with the only known name that begins so, or the most similar one; else all known names."""
    begun = [each for each in known if each.startswith(name)]
    close = begun if len(begun) == 1 else difflib.get_close_matches(name.lower(), known, n=1)
    return f"did you mean {close[0]}?" if close else f"known: {listed(known)}"
