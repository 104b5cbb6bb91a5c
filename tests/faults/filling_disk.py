"""Trains, and fills the disk in the middle of the save of step 6: takes the arguments of deepres/train.py."""

import os
import sys
from pathlib import Path

import safetensors.torch

import deepres.checkpoints.saving
from deepres.checkpoints.snapshot import MOMENTUM
from deepres.train import main


def save_file(tensors, path: Path, metadata) -> None:
    if path.name == MOMENTUM and "step-00000006" in str(path):
        with (path.parents[3] / "filler").open("wb", buffering=0) as filler:
            try:
                while True:
                    filler.write(bytes(4096))
            except OSError:
                pass
    safetensors.torch.save_file(tensors, path, metadata)


if __name__ == "__main__":
    deepres.checkpoints.saving.save_file = save_file
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
