"""Signals and gradients at every unit of a net, at initialisation or from a checkpoint.

python tools/propagation.py --depth 110
python tools/propagation.py --depth 110 --variants identity,constant_scaling+shortcut_scale=0.5 --activation original
python tools/propagation.py --depth 164 --variants activations --data DIR --json numbers.json --out pictures
python tools/propagation.py --checkpoint RUN [--data DIR | --data noise]
python tools/propagation.py --checkpoint FILE --depth 164 --variants identity

A variant is a shortcut, an activation and `setting=value`s (of build_resnet), joined by `+`; `shortcuts` and
`activations` stand for all of them.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from pathlib import Path

import torch

from deepres.analysis.measured_net import batch_of, checkpoint_nets, fresh_nets
from deepres.analysis.propagation import Propagation, measure_propagation
from deepres.analysis.report import NOTES, propagation_json, propagation_text, units_text
from deepres.argument_parser import Parser
from deepres.net_options import ACTIVATIONS, FAMILIES
from interface.command_line import device, positive, run_program, seed, writable_folder


def parser() -> Parser:
    """All options."""
    parser = Parser(description=__doc__)
    parser.add_argument("--depth", type=int, help="layers; taken from the run if --checkpoint names one")
    parser.add_argument("--variants", help="with commas (all shortcuts; for a checkpoint's file: identity)")
    parser.add_argument(
        "--activation", choices=ACTIVATIONS, help="of variants that name none (full_preactivation)"
    )
    parser.add_argument("--checkpoint", type=Path, help="a run's folder, a checkpoint, or a file of weights")
    parser.add_argument("--dataset", choices=FAMILIES, help="kind of net (cifar)")
    parser.add_argument("--batch-size", type=positive, default=16)
    parser.add_argument(
        "--data",
        metavar="DIR",
        help="CIFAR's or an image folder's place, or `noise`; by default a run's own data, noise for other nets",
    )
    parser.add_argument(
        "--seed",
        type=seed,
        default=0,
        help="of weights, noise and dropout (a run's own data come in its own order)",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "float64"),
        default="float32",
        help="float32 takes a product of more than some 140 halves for 0",
    )
    parser.add_argument("--device", type=device, default="cpu", help="cpu or cuda (%(default)s)")
    parser.add_argument("--json", type=Path, help="write all numbers to this file")
    parser.add_argument("--out", type=Path, help="write signal.png and gradient.png to this folder")
    return parser


def main(arguments: list[str]) -> int:
    """Run the command line; 0 if it was measured, 2 if the command line has a mistake."""
    options = parser().parse_args(arguments)
    try:
        run(options)
    except BrokenPipeError:
        raise
    except (argparse.ArgumentTypeError, ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def run(options: argparse.Namespace) -> None:
    """Measure, print, and write the requested files.

    Raises:
        argparse.ArgumentTypeError, ValueError, OSError: the command line has a mistake; the message says which.
    """
    if options.checkpoint is not None:
        nets = checkpoint_nets(
            options.checkpoint, options.depth, options.variants, options.activation, options.dataset
        )
    elif options.depth is None:
        raise ValueError("give --depth (e.g. 110), or --checkpoint with the folder of a run")
    else:
        nets = fresh_nets(
            options.depth,
            "shortcuts" if options.variants is None else options.variants,
            options.activation,
            options.dataset or "cifar",
        )
    dtype = getattr(torch, options.dtype)
    images, labels, data = batch_of(nets[0], options.data, options.batch_size, options.seed)
    if options.out is not None:  # report now what cannot be written, not after minutes of measuring
        writable_folder(options.out)
    if options.json is not None:
        try:
            options.json.open("a").close()
        except OSError as error:
            raise ValueError(f"--json {options.json} cannot be written: {error.strerror}") from None
    found = dict[str, Propagation]()
    for measured in nets:
        net = measured.make(options.seed).to(options.device, dtype)
        found[measured.name] = measure_propagation(
            net, images.to(options.device, dtype), labels.to(options.device), seed=options.seed
        )
    depth = nets[0].depth
    kind = "" if nets[0].dataset == "cifar" else f" for {nets[0].dataset}"
    title = f"ResNet-{depth}{kind}, batch {options.batch_size} of {data}, {options.dtype}"
    print(f"{title}\n\n{propagation_text(found)}\n\n{NOTES}")
    if len(found) <= 2:
        for name, propagation in found.items():
            print(f"\n{name}, loss {propagation.loss:.3f}\n{units_text(propagation)}")
    if options.json is not None or options.out is not None:
        print()
    if options.json is not None:
        about = {
            "depth": depth, "dataset": nets[0].dataset, "batch_size": options.batch_size, "data": data,
            "dtype": options.dtype, "seed": options.seed, "torch": torch.__version__,
            "python": platform.python_version(),
        }  # fmt: skip
        options.json.write_text(json.dumps(propagation_json(found, about)) + "\n", encoding="utf-8")
        print(f"wrote {options.json}")
    if options.out is not None:
        from deepres.analysis.plots import gradient_figure, signal_figure  # importing matplotlib is slow

        for name, figure in (("gradient", gradient_figure), ("signal", signal_figure)):
            path = options.out / f"{name}.png"
            figure(found, title).savefig(path)
            print(f"wrote {path}")


if __name__ == "__main__":
    run_program(main)
