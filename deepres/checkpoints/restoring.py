"""Restore a checkpoint's state: parameters, buffers, momentum, random number generators, sums."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from deepres.checkpoints.resuming import Checkpoint
from deepres.checkpoints.snapshot import MODEL, MOMENTUM, PROCESSES
from deepres.config import ConfigError
from deepres.distributed import Process
from deepres.engines import Engine


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


def own_sums(checkpoint: Checkpoint, process: Process) -> Tensor:
    """This process's share of `Progress.sums`, (4,) float64; with another number of processes, rank 0 takes all."""
    sums = torch.tensor(checkpoint.progress.sums, dtype=torch.float64)
    if _has_same_processes(checkpoint, process):
        own = sums[process.rank]
    else:
        own = sums.sum(0) if process.is_first else torch.zeros(4, dtype=torch.float64)
    return own.to(process.device)


@torch.no_grad()
def _set(tensor: Tensor, value: Tensor, name: str, path: Path) -> None:
    if value.shape != tensor.shape or value.dtype != tensor.dtype:
        theirs, ours = (f"{t.dtype} {list(t.shape)}".removeprefix("torch.") for t in (value, tensor))
        raise ConfigError(f"{path} is of another net: {name} is {ours} in the net, {theirs} in the file")
    tensor.copy_(value)


def _has_same_processes(checkpoint: Checkpoint, process: Process) -> bool:
    return checkpoint.progress.num_processes == process.world_size
