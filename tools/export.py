"""Write a run's net for other programs, and check that they compute the same.

python tools/export.py RUN --format safetensors|torchscript|onnx [--output FILE]

The ONNX format needs the extra `onnx`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from deepres.commit import SaveError
from deepres.config import ConfigError
from deepres.evaluating import load_net
from deepres.exporting import SUFFIXES, export
from deepres.load_config import load_config

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="a run's folder, or a file of weights (then give --config)")
    parser.add_argument("--format", choices=list(SUFFIXES), required=True)
    parser.add_argument("--config", type=Path, help="by default RUN/config.yaml")
    parser.add_argument("--output", type=Path, help="by default RUN/export.SUFFIX")
    parser.add_argument("--image-size", type=int, help="by default the data set's")
    options = parser.parse_args()
    folder = options.run if options.run.is_dir() else options.run.parent
    try:
        config = load_config(options.config or folder / "config.yaml")
        net = load_net(options.run, config)
        target = options.output or folder / f"export{SUFFIXES[options.format]}"
        default_size = 32 if config.model.dataset == "cifar" else 224
        image_size = options.image_size or config.data.image_size or default_size
        difference = export(net, target, options.format, image_size)
    except (ConfigError, SaveError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"{target}: {target.stat().st_size} bytes; logits differ by {difference:.2g} of the largest")
