"""Test a net on the test images of its data set.

python tools/evaluate.py RUN [--crop config|224|320|ten] [section.key=value ...]
python tools/evaluate.py FILE --config configs/imagenet200.yaml data.root=DIR
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import get_args

from deepres.config import ConfigError
from deepres.data import DataError
from deepres.distributed import this_process
from deepres.evaluating import Crop, evaluate, load_net
from deepres.load_config import load_config

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("weights", type=Path, help="a run's folder, a checkpoint, or a file of weights")
    parser.add_argument("--config", type=Path, help="by default RUN/config.yaml")
    parser.add_argument("--crop", choices=get_args(Crop), default="config")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    options = parser.parse_intermixed_args()
    try:
        config = load_config(options.config or options.weights / "config.yaml", options.overrides)
        device = this_process(config.engine.device).device
        found = evaluate(load_net(options.weights, config), config, options.crop, device)
    except (ConfigError, DataError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(
        f"test on {found.num_images} images: loss {found.loss:.4f}  top-1 {100 * found.top1:.2f} %  "
        f"top-5 {100 * found.top5:.2f} %"
    )
