"""Export a run's net for other programs, and check that the file computes the same.

python tools/export.py RUN --format safetensors|torchscript|onnx [--output FILE]

The ONNX format needs the extra `onnx`.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from deepres.argument_parser import Parser
from deepres.commit import SaveError
from deepres.config import ConfigError
from deepres.evaluating import find_config, load_net
from deepres.exporting import SUFFIXES, export, export_path
from deepres.out_of_memory import UntilOutOfMemory
from interface.command_line import image_size, run_program, writable_file


def main(arguments: list[str]) -> int:
    """Run a command line; 0 if the file was written, 2 if not."""
    options = _parser().parse_args(arguments)
    try:
        config = find_config(options.weights, options.config)
        net = load_net(options.weights, config)
        building = config.model.building(num_classes=len(net.get_parameter("head.linear.weight")))
        target = options.output or export_path(options.weights, options.format)
        side = options.image_size or config.data.chosen_image_size
        with UntilOutOfMemory() as attempt:
            difference = export(net, building, target, options.format, side)
    except (ConfigError, SaveError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if attempt.ran_out:
        print(f"error: there is not enough memory for images of {side} x {side} pixels", file=sys.stderr)
        return 2
    logits = (
        f"differ from the net's by at most {difference:.2g} of the largest" if difference else "are the net's"
    )
    print(f"{target}: {target.stat().st_size} bytes; logits {logits}")
    return 0


def _parser() -> Parser:
    parser = Parser(description=__doc__)
    parser.add_argument("weights", type=Path, help="a run's folder, a checkpoint, or a file of weights")
    parser.add_argument("--format", choices=list(SUFFIXES), required=True)
    parser.add_argument("--config", type=Path, help="by default that of the run or checkpoint")
    parser.add_argument(
        "--output",
        type=_replaceable_file,
        metavar="FILE",
        help="by default RUN/export.SUFFIX, of a checkpoint RUN/export-step-N.SUFFIX",
    )
    parser.add_argument("--image-size", type=image_size, help="height and width (the data set's)")
    return parser


def _replaceable_file(text: str) -> Path:
    """A file that can be written; a link is resolved."""
    path = writable_file(os.path.realpath(text))
    if path.exists() and not path.is_file():
        raise argparse.ArgumentTypeError(f"{text} cannot be written: it exists and is not a regular file")
    return path


if __name__ == "__main__":
    run_program(main)
