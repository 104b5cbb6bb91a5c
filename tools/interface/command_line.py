"""What the tools' command lines share: how they exit, and types of arguments."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import torch

from deepres.bytesize import parse_bytes
from deepres.config import MOST_PIXELS


def run_program(main: Callable[[list[str]], int]) -> NoReturn:
    """Exit with what `main` returns; silently on Ctrl-C, or if the output's reader has gone, such as `head`."""
    try:
        status = main(sys.argv[1:])
        sys.stdout.flush()
    except KeyboardInterrupt:
        status = 128 + signal.SIGINT
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is flushed at the very end
        status = 1
        if not isinstance(error, BrokenPipeError):
            status = 2
            print(f"error: {error}", file=sys.stderr)
    sys.exit(status)


def positive(text: str, most: int = 2**20) -> int:
    """A whole number from 1 to `most`.

    Raises:
        argparse.ArgumentTypeError: `text` is not one.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    if int(text) > most:
        raise argparse.ArgumentTypeError(f"must be at most {most}, got {text!r}")
    return int(text)


def seed(text: str) -> int:
    """A random seed.

    Raises:
        argparse.ArgumentTypeError: it is not a whole number from 0 to 2⁶² − 1.
    """
    if not text.isdecimal() or int(text) >= 2**62:
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 to 2**62 - 1, got {text!r}")
    return int(text)


def image_size(text: str) -> int:
    """A height and width in pixels.

    Raises:
        argparse.ArgumentTypeError: `text` is not one.
    """
    return positive(text, MOST_PIXELS)


def num_bytes(text: str) -> int:
    """A size, in bytes or with a unit.

    Raises:
        argparse.ArgumentTypeError: `text` is not one.
    """
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def device(text: str) -> str:
    """`cpu`, or `cuda` if there is a GPU.

    Raises:
        argparse.ArgumentTypeError: it is neither.
    """
    if text not in ("cpu", "cuda"):
        raise argparse.ArgumentTypeError(f"must be cpu or cuda, got {text!r}")
    if text == "cuda" and not torch.cuda.is_available():
        raise argparse.ArgumentTypeError("cuda: there is no GPU here")
    return text


def add_measuring_options(parser: argparse.ArgumentParser) -> None:
    """Add `--out` and `--processor-time`."""
    parser.add_argument(
        "--out", type=writable_folder, metavar="DIR", help="write the table and its JSON there"
    )
    parser.add_argument(
        "--processor-time",
        action="store_true",
        help="compute in one thread and count processor time: for a machine that others use meanwhile",
    )


def writable_folder(text: str) -> Path:
    """A folder that can be written; it is created if necessary.

    Raises:
        argparse.ArgumentTypeError: it cannot.
    """
    path = Path(text)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text} cannot be written: {error.strerror}") from None
    if not os.access(path, os.W_OK):
        raise argparse.ArgumentTypeError(f"{text} cannot be written")
    return path


def writable_file(text: str) -> Path:
    """A file that can be written.

    Raises:
        argparse.ArgumentTypeError: it cannot.
    """
    path = Path(text)
    if (
        path.is_dir()
        or not path.parent.is_dir()
        or not os.access(path if path.exists() else path.parent, os.W_OK)
    ):
        raise argparse.ArgumentTypeError(
            f"{text} cannot be written: give a file in a folder that exists and is writable"
        )
    return path


def add_timing_options(parser: argparse.ArgumentParser, steps: int) -> None:
    """Add `--rounds`, `--steps` (`steps` by default) and `--device`."""
    parser.add_argument("--rounds", type=positive, default=5, help="timed rounds of each kind (%(default)s)")
    parser.add_argument("--steps", type=positive, default=steps, help="timed steps a turn (%(default)s)")
    parser.add_argument("--device", type=device, default="cpu", help="cpu or cuda (%(default)s)")
