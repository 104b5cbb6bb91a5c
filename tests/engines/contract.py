"""Run in two processes: trains one net on the same batches with every engine and writes what came of it.

    torchrun --nproc_per_node 2 contract.py OUTPUT_FOLDER CASE…

A case is `NAME:accumulation:extra`; its losses and final state go to OUTPUT_FOLDER/CASE.safetensors.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from deepres.batch_sizes import batch_sizes
from deepres.config import Config
from deepres.data import Batch
from deepres.distributed import start_process_group, stop_process_group, sum_over_processes, this_process
from deepres.engines import make_engine
from deepres.models import build_resnet
from deepres.recompute import Plan, apply_plan

ENGINES = {
    "plain": {"name": "plain"},
    **{f"zero{stage}": {"name": "deepspeed", "zero_stage": stage} for stage in range(4)},
    "zero2_offload": {"name": "deepspeed", "zero_stage": 2, "offload_optimizer": True},
    "zero3_offload": {
        "name": "deepspeed",
        "zero_stage": 3,
        "offload_optimizer": True,
        "offload_parameters": True,
    },
    "fairscale": {"name": "fairscale"},
}
DEPTH, MICRO_BATCH, LEARNING_RATE = 20, 4, 1e-3


def train(case: str, folder: Path) -> None:
    engine_name, accumulation, extra = case.split(":")
    process = this_process("cpu")
    train_section = {"max_steps": 1, "micro_batch_size": MICRO_BATCH, "accumulation": int(accumulation)}
    config = Config.model_validate(
        {
            "model": {"depth": DEPTH, "block": "bottleneck"},
            "data": {"name": "synthetic"},
            "train": train_section,
            "engine": {**ENGINES[engine_name], "sync_batch_norm": extra.startswith("sync")},
            "optim": {"clip_grad_norm": 0.5 if extra.endswith("clip") else None, "nesterov": True},
            "precision": {
                "compute": extra.removesuffix("-clip") if extra[:4] in ("bf16", "fp16") else "fp32",
                "channels_last": extra == "channels_last",
            },
        }
    )
    sizes = batch_sizes(config.train, process.world_size)
    torch.manual_seed(0)
    net = build_resnet(
        DEPTH, block="bottleneck", shortcut="dropout" if extra.startswith("dropout") else "identity"
    )
    engine = make_engine(net, config, process, sizes)
    if extra.endswith("plan"):
        apply_plan(net, Plan(((0, 4), (1, 3)), ("all", "conv_outputs", "all") * 2))
    generator = torch.Generator().manual_seed(7 + process.rank)
    torch.manual_seed(11 + process.rank)
    losses = []
    for _ in range(6 if extra in ("none", "plan") and sizes.accumulation == 1 else 4):
        images = torch.randn(sizes.accumulation, MICRO_BATCH, 3, 8, 8, generator=generator)
        labels = torch.randint(0, 10, (sizes.accumulation, MICRO_BATCH), generator=generator)
        batches = [Batch(*pair, torch.arange(MICRO_BATCH)) for pair in zip(images, labels, strict=True)]
        sums, flags = engine.step(batches, LEARNING_RATE, lambda: [process.rank == 1, False])
        assert flags == [True, False]
        losses.append(sum_over_processes(sums)[0] / sizes.global_size)
    engine.average_buffers()
    state = engine.state()
    probe = torch.linspace(-1, 1, 2 * 3 * 8 * 8).view(2, 3, 8, 8)
    logits = engine.predict(probe)
    if process.is_first:
        save_file({"losses": torch.stack(losses), "logits": logits, **state}, folder / f"{case}.safetensors")


if __name__ == "__main__":
    start_process_group(this_process("cpu"))
    for each_case in sys.argv[2:]:
        train(each_case, Path(sys.argv[1]))
    stop_process_group()
