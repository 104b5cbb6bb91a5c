"""Checkpoints: all that a run needs to resume as if it had never stopped.

NOTE [ Checkpoints ]
1. A checkpoint is a folder `step-N`, committed by NOTE [ Committing a folder ]. Its tensors are safetensors, the rest
   is JSON; nothing in it can be executed.
2. It is the same for every engine, ZeRO stage and number of processes: parameters and momentum are unsharded, buffers
   are averaged over the processes.
3. Each process's own state (generator states, its buffers, its share of the metrics since the last line) is included.
   A run that resumes with the same number of processes restores it and is, bit for bit, the run that never stopped; so
   saving changes nothing in a run. With another number of processes, every process begins with the averaged buffers,
   and additional processes keep the generators that the seed gave them.
4. Only rank 0 writes, in a separate thread, from a copy in its memory; there is one such copy at a time. The processes
   wait for it, so that they never lose more than one interval, unless that would take too much of their time.
"""

from __future__ import annotations

import json
from dataclasses import asdict, astuple, dataclass

import torch
from torch import Tensor

from deepres.checkpoints.identity import Identity, batch_norm_size
from deepres.checkpoints.run_facts import RunFacts
from deepres.checkpoints.training_state import TrainingState
from deepres.config import Config
from deepres.distributed import to_first_process
from deepres.engines import Engine
from deepres.provenance import versions
from deepres.recompute.document import write_document
from deepres.trained_net import net_metadata

MODEL, MOMENTUM, PROCESSES = "model.safetensors", "momentum.safetensors", "processes.safetensors"
TRAINING, CONFIG, PLAN = "training.json", "config.json", "plan.json"
FILES = frozenset({MODEL, MOMENTUM, PROCESSES, TRAINING, CONFIG, PLAN})
FORMAT, VERSION = "deepres.checkpoint", 1


@dataclass(frozen=True)
class Progress:
    """A run's progress, as `training.json` of a checkpoint has it.

    Attributes:
        step: optimizer steps done.
        steps_per_epoch: so epoch and position within it follow from `step`.
        is_evaluated: whether the evaluation that is due after this step is done.
        test: the last evaluation's loss, top-1, top-5 and number of images, if there was one.
        sums: each process's `metric_sums` since the last line of metrics.
        metrics_bytes: the length of `metrics.jsonl`.
        has_averaged_buffers: whether the processes' buffers were the same.
        num_processes: how many there were.
        num_threads: CPU threads of the first process; None on a GPU.
        batch_norm_size: images over which batch norm computed its statistics.
        loss_scaler: state of fp16's loss scaler.
        num_skipped: consecutive steps that it has skipped.
        identity: the run's.
    """

    step: int
    steps_per_epoch: int
    is_evaluated: bool
    test: tuple[float, float, float, int] | None
    sums: tuple[tuple[float, ...], ...]
    metrics_bytes: int
    has_averaged_buffers: bool
    num_processes: int
    num_threads: int | None
    batch_norm_size: int
    loss_scaler: dict[str, float] | None
    num_skipped: int
    identity: Identity


@dataclass(frozen=True)
class Snapshot:
    """A checkpoint in memory, in rank 0.

    Attributes:
        step: the number of steps done when it was taken.
        tensors: on the CPU, by file and name.
        documents: JSON, by file.
        metadata: of the net's safetensors file.
    """

    step: int
    tensors: dict[str, dict[str, Tensor]]
    documents: dict[str, str]
    metadata: dict[str, str] | None = None

    @property
    def num_bytes(self) -> int:
        """Its approximate size on disk."""
        tensors = sum(t.nbytes + 128 for file in self.tensors.values() for t in file.values())
        return tensors + sum(len(text) for text in self.documents.values()) + 4096


def take_snapshot(
    engine: Engine, facts: RunFacts, state: TrainingState, metrics_bytes: int
) -> Snapshot | None:
    """Copy all state, one tensor at a time, to rank 0's memory; None in the others. Collective.

    Args:
        engine: holds the net and its optimizer.
        facts: the run's.
        state: how far it is.
        metrics_bytes: the length of `metrics.jsonl`, in rank 0.
    """
    config, process, scaler, test = engine.config, engine.process, engine.loss_scaler, state.test
    progress = Progress(
        step=state.step,
        steps_per_epoch=facts.steps_per_epoch,
        is_evaluated=state.is_evaluated,
        test=astuple(test) if test.num_images else None,
        sums=tuple(tuple(sums.tolist()) for sums in to_first_process(state.sums)),
        metrics_bytes=metrics_bytes,
        has_averaged_buffers=engine.has_averaged_buffers,
        num_processes=process.world_size,
        num_threads=process.num_threads,
        batch_norm_size=batch_norm_size(config, engine.sizes),
        loss_scaler=scaler.state_dict() if scaler is not None else None,
        num_skipped=engine.num_skipped,
        identity=facts.identity,
    )
    averaged = engine.averaged_buffers()
    model: dict[str, Tensor] = {}
    momentum: dict[str, Tensor] = {}
    for target, tensors in ((model, engine.whole_parameters()), (momentum, engine.momentum())):
        for name, tensor in tensors:
            if process.is_first:
                target[name] = tensor
    processes = _of_each_process(engine)
    if not process.is_first:
        return None
    fields = {
        **asdict(progress),
        "epoch": progress.step // facts.steps_per_epoch,
        "step_in_epoch": progress.step % facts.steps_per_epoch,
        "versions": versions(),
    }
    return Snapshot(
        progress.step,
        {MODEL: model | averaged, PROCESSES: processes, **({MOMENTUM: momentum} if momentum else {})},
        {
            TRAINING: write_document(FORMAT, VERSION, fields),
            CONFIG: json.dumps(config.model_dump(mode="json")),
            PLAN: facts.plan.to_json(),
        },
        weights_metadata(config, facts.classes_sha256, model),
    )


def weights_metadata(config: Config, classes_sha256: str, weights: dict[str, Tensor]) -> dict[str, str]:
    """The metadata of a file with the weights of a run's net."""
    arguments = config.model.building(num_classes=len(weights["head.linear.weight"]))
    return net_metadata(arguments, config.data.chosen_normalize, classes_sha256)


def _of_each_process(engine: Engine) -> dict[str, Tensor]:
    device = engine.process.device
    generators = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        generators["cuda"] = torch.cuda.get_rng_state(device)
    tensors = {
        f"{rank}/generator/{name}": state
        for name, own in generators.items()
        for rank, state in enumerate(to_first_process(own.to(device)))
    }
    floats = [(name, b) for name, b in engine.net.named_buffers() if b.is_floating_point()]
    if engine.process.world_size > 1 and not engine.has_averaged_buffers and floats:
        flat = torch.cat([buffer.detach().reshape(-1) for _, buffer in floats])
        for rank, own in enumerate(to_first_process(flat)):
            parts = own.split([buffer.numel() for _, buffer in floats])
            for (name, buffer), part in zip(floats, parts, strict=True):
                tensors[f"{rank}/buffer/{name}"] = part.view(buffer.shape).clone()
    return tensors
