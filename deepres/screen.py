"""Printing that never ends a run, even if a line cannot be shown or nobody reads it any more."""

from __future__ import annotations

import io
import sys
from contextlib import suppress

from tqdm import tqdm

# A pipe whose reader has ended, a closed terminal or a full disk raises OSError; a stream that was closed when the
# process started is None.


def say(line: str) -> None:
    """Print a line to standard output, above any progress bar."""
    if sys.stdout is not None:
        with suppress(OSError):
            tqdm.write(line, file=sys.stdout)
            sys.stdout.flush()


def complain(line: str) -> None:
    """Print a line to standard error."""
    if sys.stderr is not None:
        with suppress(OSError):
            print(line, file=sys.stderr, flush=True)


def allow_any_encoding() -> None:
    """From now on print `?` for what standard output cannot encode, such as × in ASCII."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def flush() -> None:
    """Flush stdout and stderr before `os._exit`, which does not."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            with suppress(OSError):
                stream.flush()
