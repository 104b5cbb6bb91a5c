"""Parse and format sizes in bytes."""

from __future__ import annotations

import math
import re

_FACTORS: dict[str, int] = {
    "": 1,
    "b": 1,
    **{f"{p}b": 1000**k for k, p in enumerate("kmgt", start=1)},
    **{f"{p}ib": 1024**k for k, p in enumerate("kmgt", start=1)},
}
_PATTERN = re.compile(r"([+-]?[0-9.]+(?:[eE][+-]?[0-9]+)?)\s*([a-zA-Z]*)")


def parse_bytes(value: int | float | str) -> int:
    """Read a positive number of bytes: `8589934592`, `8e9`, `"8 GB"` (10^9) or `"8GiB"` (2^30).

    Raises:
        ValueError: it is not such a size, or not positive.
    """
    help_ = f'expected a positive size such as "8GiB", "8 GB" or 8589934592, got {value!r}'
    if isinstance(value, bool):
        raise ValueError(help_)
    match = _PATTERN.fullmatch(str(value).strip())
    if match is None or match[2].lower() not in _FACTORS:
        raise ValueError(help_)
    try:
        number = float(match[1])
    except ValueError:
        raise ValueError(help_) from None
    size = number * _FACTORS[match[2].lower()]
    if not math.isfinite(size) or size < 1:
        raise ValueError(help_)
    return round(size)


def format_bytes(num_bytes: int) -> str:
    """Format bytes with about three significant digits: `512 B`, `1.50 KiB`, `146 MiB`, `18.3 GiB`."""
    size = float(num_bytes)
    for unit in ("B", "KiB", "MiB"):
        if abs(size) < 999.5:
            return f"{num_bytes} B" if unit == "B" else f"{_three_digits(size)} {unit}"
        size /= 1024
    return f"{_three_digits(size)} GiB"


def _three_digits(size: float) -> str:
    magnitude = abs(size)
    return f"{size:.{2 if magnitude < 9.995 else 1 if magnitude < 99.95 else 0}f}"
