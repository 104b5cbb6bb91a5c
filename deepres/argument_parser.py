"""A parser of command lines that tells a mistake in one line."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from deepres.exit_status import ExitStatus


class Parser(argparse.ArgumentParser):
    """Tells a mistake in one line, shows its description as it is written, and takes no abbreviated options."""

    def __init__(self, **options: Any) -> None:
        layout = argparse.RawDescriptionHelpFormatter
        super().__init__(**{"formatter_class": layout, "allow_abbrev": False, **options})

    def error(self, message: str) -> NoReturn:
        """Exit with 2."""
        self.exit(ExitStatus.REFUSED, f"error: {message}\n")
