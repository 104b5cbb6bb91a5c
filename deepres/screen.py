"""Lines on the screen: what cannot be shown, or what nobody reads any more, ends no run."""

from __future__ import annotations

import io
import sys
from contextlib import suppress

from tqdm import tqdm

# Of a pipe whose reader has ended, a terminal that was closed, a full disk comes an OSError; a stream that was closed
# when the process started is None.


def say(line: str) -> None:
    """Print a line, above a bar."""
    if sys.stdout is not None:
        with suppress(OSError):
            tqdm.write(line, file=sys.stdout)
            sys.stdout.flush()


def complain(line: str) -> None:
    """Print a line to the standard error output."""
    if sys.stderr is not None:
        with suppress(OSError):
            print(line, file=sys.stderr, flush=True)


def allow_any_encoding() -> None:
    """Print `?` from now on for what the standard output's encoding does not have, such as × in ASCII."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def flush() -> None:
    """Print what has been said, before a process ends without the interpreter's doing so."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            with suppress(OSError):
                stream.flush()
