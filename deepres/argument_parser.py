"""A command-line parser that reports a mistake in one line."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from deepres.exit_status import ExitStatus


class Parser(argparse.ArgumentParser):
    """Reports a mistake in one line, prints its description verbatim, and accepts no abbreviated options."""

    def __init__(self, **options: Any) -> None:
        layout = argparse.RawDescriptionHelpFormatter
        super().__init__(**{"formatter_class": layout, "allow_abbrev": False, **options})

    def error(self, message: str) -> NoReturn:
        """Print the message and exit with 2."""
        self.exit(ExitStatus.REFUSED, f"error: {message}\n")
