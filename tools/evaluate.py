"""Test a net on the test images of its data set.

python tools/evaluate.py RUN [--crop config|224|320|ten] [section.key=value ...]
python tools/evaluate.py RUN/checkpoints/step-00064000
python tools/evaluate.py FILE data.root=DIR
python tools/evaluate.py FILE --config configs/imagenet200.yaml data.root=DIR
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import get_args

from deepres.argument_parser import Parser
from deepres.config import ConfigError
from deepres.data import DataError
from deepres.distributed import this_process
from deepres.evaluating import Crop, evaluate, find_config
from interface.command_line import run_program


def main(arguments: list[str]) -> int:
    """Run a command line; 0 if the net was tested, 2 if the command line has a mistake."""
    options = _parser().parse_intermixed_args(arguments)
    try:
        config = find_config(options.weights, options.config, options.overrides)
        device = this_process(config.engine.device).device
        found = evaluate(options.weights, config, options.crop, device)
    except (ConfigError, DataError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(
        f"test on {found.num_images} images: loss {found.loss:.4f}  top-1 {100 * found.top1:.2f} %  "
        f"top-5 {100 * found.top5:.2f} %"
    )
    return 0


def _parser() -> Parser:
    parser = Parser(description=__doc__)
    parser.add_argument("weights", type=Path, help="a run's folder, a checkpoint, or a file of weights")
    parser.add_argument(
        "--config", type=Path, help="by default the run's or checkpoint's, or what the file records"
    )
    parser.add_argument(
        "--crop", choices=get_args(Crop), default="config", help="of image files (as configured)"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="override the run's settings"
    )
    return parser


if __name__ == "__main__":
    run_program(main)
