"""Reproduce the experiments of "Identity Mappings in Deep Residual Networks".

python tools/reproduce_paper.py list                                   # every row, its config, what has been run
python tools/reproduce_paper.py run TABLE[/ROW] [section.key=value …]  # train it: five seeds on CIFAR
python tools/reproduce_paper.py table                                  # the paper's tables beside what was measured
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

from deepres.argument_parser import Parser
from deepres.commit import SaveError, replace_text
from deepres.config import ConfigError
from deepres.data import DataError
from interface.command_line import run_program
from paper_reproduction.launch import Order, train
from paper_reproduction.length import FULL, Length
from paper_reproduction.report import listing, read_results, results_html, results_markdown, results_text
from paper_reproduction.rows import RESULTS, ReproductionError, all_rows, check_results, find_rows


def main(arguments: list[str]) -> int:
    """Run a command line; returns the exit status."""
    parser = _Parser("", description=__doc__)
    parser.add_argument("command", choices=_COMMANDS)
    command = parser.parse_args(arguments[:1]).command
    try:
        return _COMMANDS[command](arguments[1:])
    except (ConfigError, DataError, ReproductionError, SaveError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except PermissionError as error:
        print(f"error: {error.filename} cannot be read: {error.strerror}", file=sys.stderr)
        return 2


def _list(arguments: list[str]) -> int:
    parser = _Parser("list", "every row, its config, its parameters, the paper's figure, what has been run")
    results = parser.parse_args(arguments).results
    rows = all_rows()
    check_results(rows, results)
    print(listing(rows, results))
    return 0


def _run(arguments: list[str]) -> int:
    parser = _Parser("run", "train a row, or all rows of a table; what is trained already is left alone")
    parser.add_argument("target", metavar="TABLE[/ROW]", help="see list")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="section.key=value", help="such as data.root=DIR"
    )
    parser.add_argument(
        "--seeds", type=_seeds, metavar="1,2,3", help="by default 1 to 5 on CIFAR, 1 on ImageNet"
    )
    parser.add_argument(
        "--short", type=_length, default=FULL, metavar="F", help="the recipe's length times F, such as 0.1"
    )
    parser.add_argument(
        "--launcher", type=shlex.split, default=[sys.executable], help='such as "deepspeed --num_gpus 2"'
    )
    options = parser.parse_intermixed_args(arguments)
    rows = find_rows(all_rows(), options.target)
    if not options.launcher:
        parser.error('argument --launcher: must be a command such as "deepspeed --num_gpus 2", got nothing')
    return train(
        Order(rows, options.seeds, options.short, options.results, options.overrides, options.launcher)
    )


def _table(arguments: list[str]) -> int:
    parser = _Parser("table", "the paper's tables beside what was measured here")
    parser.add_argument(
        "--markdown", type=_file, metavar="FILE", help="with neither, tables.md in the results"
    )
    parser.add_argument("--html", type=_file, metavar="FILE", help="with neither, tables.html in the results")
    options = parser.parse_args(arguments)
    rows = all_rows()
    check_results(rows, options.results)
    found = read_results(rows, options.results)
    print(results_text(found))
    command = shlex.join(["python", "tools/reproduce_paper.py", "table", *arguments])
    markdown, html = options.markdown, options.html
    if markdown is None and html is None:
        markdown, html = options.results / "tables.md", options.results / "tables.html"
    for path, text in ((markdown, results_markdown(found, command)), (html, results_html(found, command))):
        if path is None:
            continue
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_text(path, text)
        except OSError as error:
            raise ReproductionError(f"{path} cannot be written: {error.strerror}") from None
    return 0


_COMMANDS: dict[str, Callable[[list[str]], int]] = {"list": _list, "run": _run, "table": _table}


class _Parser(Parser):
    def __init__(self, command: str, description: str | None) -> None:
        super().__init__(prog=f"reproduce_paper.py {command}".rstrip(), description=description)
        if command:
            self.add_argument(
                "--results",
                type=_folder,
                default=RESULTS,
                metavar="DIR",
                help="(the project's results/paper)",
            )


def _folder(text: str) -> Path:
    if Path(text).exists() and not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"must be a folder, got {text}")
    return Path(text)


def _file(text: str) -> Path:
    if Path(text).is_dir():  # as "" is
        raise argparse.ArgumentTypeError(f"must be a file, got {text!r}")
    return Path(text)


def _seeds(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.isdecimal() for part in parts) or len(set(map(int, parts))) != len(parts):
        raise argparse.ArgumentTypeError(f"must be different whole numbers such as 1,2,3, got {text!r}")
    return tuple(map(int, parts))


def _length(text: str) -> Length:
    try:
        return Length.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


if __name__ == "__main__":
    run_program(main)
