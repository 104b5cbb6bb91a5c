"""Run in two processes: trains a net in fp16 with every engine; in some steps process 1's gradients overflow.

    torchrun --nproc_per_node 2 loss_scale.py OUTPUT_FOLDER ENGINE…

Of each engine the scale, the steps since it was last changed and whether parameters changed go, for each step, to
OUTPUT_FOLDER/ENGINE.json; then how many steps that overflow one after the other end the run.
"""

import json
import sys
from contextlib import suppress
from pathlib import Path

import torch

from deepres.batch_sizes import batch_sizes
from deepres.config import Config
from deepres.data import Batch
from deepres.distributed import start_process_group, stop_process_group, this_process
from deepres.engines import NonFiniteError, make_engine
from deepres.models import build_resnet
from tests.engines.contract import ENGINES

OVERFLOWS = (1, 3)


def train(name: str, folder: Path) -> None:
    process = this_process("cpu")
    config = Config.model_validate(
        {
            "model": {"depth": 8},
            "data": {"name": "synthetic"},
            "train": {"max_steps": 1, "micro_batch_size": 4},
            "engine": ENGINES[name],
            "precision": {"compute": "fp16"},
        }
    )
    torch.manual_seed(0)
    engine = make_engine(build_resnet(8), config, process, batch_sizes(config.train, process.world_size))
    factor = 1.0

    def spoil(_module, _input, logits):
        if logits.requires_grad:
            logits.register_hook(lambda gradient: gradient * factor)

    engine.net.register_forward_hook(spoil)
    generator = torch.Generator().manual_seed(process.rank)
    batches = [
        Batch(
            torch.randn(4, 3, 8, 8, generator=generator),
            torch.randint(10, (4,), generator=generator),
            torch.arange(4),
        )
    ]
    steps = []
    weight = dict(engine.whole_parameters())["head.linear.weight"]
    for step in range(6):
        factor = float("inf") if step in OVERFLOWS and process.rank == 1 else 1.0
        engine.step(batches, 0.1)
        before, weight = weight, dict(engine.whole_parameters())["head.linear.weight"]
        state = engine.loss_scaler.state_dict()
        steps.append([state["scale"], state["_growth_tracker"], not torch.equal(before, weight)])
    factor = float("inf")
    with suppress(NonFiniteError):
        for _ in range(100):
            engine.step(batches, 0.1)
    if process.is_first:
        (folder / f"{name}.json").write_text(json.dumps([steps, engine.num_skipped]), encoding="utf-8")


if __name__ == "__main__":
    start_process_group(this_process("cpu"))
    for each in sys.argv[2:]:
        train(each, Path(sys.argv[1]))
    stop_process_group()
