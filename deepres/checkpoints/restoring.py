"""Restore a checkpoint's state: parameters, buffers, momentum, random number generators, how far the run is."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from deepres.checkpoints.identity import Identity
from deepres.checkpoints.resuming import Checkpoint
from deepres.checkpoints.snapshot import MODEL, MOMENTUM, PROCESSES
from deepres.checkpoints.training_state import TrainingState
from deepres.config import ConfigError
from deepres.distributed import Process
from deepres.engines import Engine
from deepres.metrics import Metrics


def restore_net(checkpoint: Checkpoint, net: nn.Module) -> None:
    """Restore parameters and buffers, one at a time, before an engine takes the net over.

    Raises:
        ConfigError: the tensors are not this net's.
    """
    path = checkpoint.path / MODEL
    try:
        with safe_open(path, "pt") as model:
            state = net.state_dict()
            differing = state.keys() ^ set(model.keys())
            if differing:
                raise ConfigError(f"{path} is of another net: {min(differing)} is in one of them only")
            for name, tensor in state.items():
                _set(tensor, model.get_tensor(name), name, path)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None


def restore_engine(checkpoint: Checkpoint, engine: Engine) -> None:
    """Restore momentum, loss scaler, random number generators and this process's own buffers.

    Call it after `restore_net` and before the first step.

    Raises:
        ConfigError: the tensors are not this net's.
    """
    progress, process = checkpoint.progress, engine.process
    try:
        if (checkpoint.path / MOMENTUM).exists() and engine.config.optim.momentum:
            with safe_open(checkpoint.path / MOMENTUM, "pt") as file:
                engine.load_momentum(file.get_tensor)
        with safe_open(checkpoint.path / PROCESSES, "pt") as file:
            names = set(file.keys())
            if _has_same_processes(checkpoint, process):
                for name, buffer in engine.net.named_buffers():
                    own = f"{process.rank}/buffer/{name}"
                    if own in names:
                        _set(buffer, file.get_tensor(own), own, checkpoint.path / PROCESSES)
            own = f"{process.rank}/generator/"
            if own + "cpu" in names:
                torch.set_rng_state(file.get_tensor(own + "cpu"))
            if own + "cuda" in names and process.device.type == "cuda":
                torch.cuda.set_rng_state(file.get_tensor(own + "cuda"), process.device)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{checkpoint.path} cannot be read: {error}") from None
    if engine.loss_scaler is not None and progress.loss_scaler is not None:
        engine.loss_scaler.load_state_dict(progress.loss_scaler)
        engine.num_skipped = progress.num_skipped
    engine.has_averaged_buffers = progress.has_averaged_buffers or not _has_same_processes(
        checkpoint, process
    )


def restore_training(checkpoint: Checkpoint | None, process: Process, identity: Identity) -> TrainingState:
    """How far a run is that resumes from a checkpoint, or begins.

    Args:
        checkpoint: None: the run begins.
        process: this process; rank 0 takes the sums of all if their number has changed.
        identity: the run's; a checkpoint's test of anything else is not taken over.
    """
    if checkpoint is None:
        return TrainingState(0, sums=torch.zeros(4, dtype=torch.float64, device=process.device))
    progress = checkpoint.progress
    sums = torch.tensor(progress.sums, dtype=torch.float64)
    if _has_same_processes(checkpoint, process):
        own = sums[process.rank]
    else:
        own = sums.sum(0) if process.is_first else torch.zeros(4, dtype=torch.float64)
    state = TrainingState(progress.step, own.to(process.device))
    if progress.identity.of_test == identity.of_test:
        state.is_evaluated = progress.is_evaluated
        state.test = Metrics(*progress.test) if progress.test else Metrics.of_nothing()
    return state


@torch.no_grad()
def _set(tensor: Tensor, value: Tensor, name: str, path: Path) -> None:
    if value.shape != tensor.shape or value.dtype != tensor.dtype:
        theirs, ours = (f"{t.dtype} {list(t.shape)}".removeprefix("torch.") for t in (value, tensor))
        raise ConfigError(f"{path} is of another net: {name} is {ours} in the net, {theirs} in the file")
    tensor.copy_(value)


def _has_same_processes(checkpoint: Checkpoint, process: Process) -> bool:
    return checkpoint.progress.num_processes == process.world_size
