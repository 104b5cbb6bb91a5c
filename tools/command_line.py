"""What the command lines here share: a mistake is told in one line."""

from __future__ import annotations

import argparse
from typing import NoReturn

import torch


class Parser(argparse.ArgumentParser):
    """Tells a mistake in one line."""

    def error(self, message: str) -> NoReturn:
        """Exit with 2."""
        self.exit(2, f"error: {message}\n")


def positive(text: str) -> int:
    """A whole number of at least 1.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)


def device(text: str) -> str:
    """`cpu`, or `cuda` where there is a GPU.

    Raises:
        argparse.ArgumentTypeError: it is neither.
    """
    if text not in ("cpu", "cuda"):
        raise argparse.ArgumentTypeError(f"must be cpu or cuda, got {text!r}")
    if text == "cuda" and not torch.cuda.is_available():
        raise argparse.ArgumentTypeError("cuda: there is no GPU here")
    return text
