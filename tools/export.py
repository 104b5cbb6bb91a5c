"""Export a trained net for other programs, and check that the file computes the same.

python tools/export.py RUN --format safetensors|torchscript|onnx [--output FILE]
python tools/export.py FILE --source timm|torch7 --format safetensors --output FILE

The second turns another library's weights into a file like a run's, for train.initial_weights and tools/evaluate.py.
The ONNX format needs the extra `onnx`.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import NamedTuple, get_args

from deepres.argument_parser import Parser
from deepres.checkpoints.snapshot import weights_metadata
from deepres.commit import SaveError
from deepres.config import Config, ConfigError
from deepres.evaluating import find_config, net_with
from deepres.exporting import SUFFIXES, export, export_path
from deepres.known_sets import KNOWN_SETS
from deepres.models import ResNet
from deepres.out_of_memory import UntilOutOfMemory
from deepres.pretrained import PretrainedError
from deepres.pretrained.key_maps import Source
from deepres.pretrained.loading import read_pretrained
from deepres.tensor_files import TensorFile
from deepres.trained_net import recorded_arguments
from deepres.weights import load_weights
from interface.command_line import image_size, run_program, writable_file


class _Trained(NamedTuple):
    """A net in evaluation mode, what its file of weights should record, and the size of its images."""

    net: ResNet
    metadata: dict[str, str]
    image_size: int


def main(arguments: list[str]) -> int:
    """Run a command line; 0 if the file was written, 2 if not."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.source is not None and options.config is not None:
        parser.error("--config is for files of deepres: those of other libraries are of known nets")
    if options.source is not None and options.output is None:
        parser.error("--source needs --output, the file to write")
    suffix = SUFFIXES[options.format]
    if options.output is not None and options.output.suffix != suffix:
        parser.error(f"--output of the format {options.format} must end with {suffix}, got {options.output}")
    try:
        target = options.output or export_path(options.weights, options.format)
        config = find_config(options.weights, options.config) if options.source is None else None
        file = load_weights(options.weights)
        if target.resolve() == file.path.resolve():
            parser.error(f"--output {target} is the file to export")
        if config is not None:
            net, metadata, side = _of_a_run(file, config)
        else:
            net, metadata = read_pretrained(file, options.source)
            side = KNOWN_SETS["imagenet"].image_size
        side = options.image_size or side
        with UntilOutOfMemory() as attempt:
            difference = export(net, metadata, target, options.format, side)
    except (ConfigError, PretrainedError, SaveError) as error:
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


def _of_a_run(file: TensorFile, config: Config) -> _Trained:
    net = net_with(file, config)
    is_recorded = recorded_arguments(file) is not None
    metadata = file.metadata if is_recorded else weights_metadata(config, "", file.tensors)
    return _Trained(net, metadata, config.data.chosen_image_size)


def _parser() -> Parser:
    parser = Parser(description=__doc__)
    parser.add_argument("weights", type=Path, help="a run's folder, a checkpoint, or a file of weights")
    parser.add_argument("--format", choices=list(SUFFIXES), required=True)
    parser.add_argument(
        "--config", type=Path, help="by default the run's or checkpoint's, or what the file records"
    )
    parser.add_argument("--source", choices=get_args(Source), help="of weights of another library: its name")
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
