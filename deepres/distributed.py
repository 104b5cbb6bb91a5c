"""The processes of a run: who this one is, its device, and the few collectives a trainer needs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import HashStore, Store

from deepres.config import ConfigError

Value = TypeVar("Value")


@dataclass(frozen=True)
class Process:
    """This process among the run's.

    Attributes:
        rank: its number among all processes, from 0.
        local_rank: its number among those on this host, and its GPU's number.
        world_size: the number of all processes.
        local_world_size: the number of processes on this host.
        device: where it computes.
    """

    rank: int
    local_rank: int
    world_size: int
    local_world_size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which logs and writes."""
        return self.rank == 0

    @property
    def num_threads(self) -> int | None:
        """The number of CPU threads, which decides in what order sums are added up; None on a GPU."""
        return torch.get_num_threads() if self.device.type == "cpu" else None


def this_process(device: Literal["auto", "cpu", "cuda"] = "auto", local_rank: int | None = None) -> Process:
    """Read what the launcher (deepspeed, torchrun or none) set in the environment; starts nothing.

    Args:
        device: `auto` takes a GPU if there is one.
        local_rank: from `--local_rank`, which the deepspeed launcher appends; used if the environment has none.

    Raises:
        ConfigError: the environment's numbers are invalid, or it is an unsupported launcher's, or this host has no GPU
            for each process.
    """
    _refuse_other_launchers()
    try:
        world_size = int(os.environ.get("WORLD_SIZE", "1"))
        rank = int(os.environ.get("RANK", "0"))
        local = int(os.environ.get("LOCAL_RANK", local_rank or 0))
        local_world_size = int(
            os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or world_size
        )
    except ValueError as error:
        raise ConfigError(f"RANK, WORLD_SIZE and LOCAL_RANK must be numbers: {error}") from None
    if not 0 <= rank < world_size:
        raise ConfigError(f"RANK must be between 0 and WORLD_SIZE - 1 = {world_size - 1}, got {rank}")
    num_gpus = torch.cuda.device_count() if device != "cpu" else 0
    if device == "cpu" or (device == "auto" and num_gpus == 0):
        return Process(rank, local, world_size, local_world_size, torch.device("cpu"))
    if num_gpus == 0:
        raise ConfigError(
            "engine.device is cuda, but this host has no GPU that PyTorch can use: use auto or cpu"
        )
    if local_world_size > num_gpus:
        raise ConfigError(
            f"{local_world_size} processes on this host need a GPU each, there are {num_gpus}: start at most "
            f"{num_gpus}, or set engine.device=cpu"
        )
    return Process(rank, local, world_size, local_world_size, torch.device("cuda", local))


_SIZES_OF_OTHERS = {"srun": "SLURM_STEP_NUM_TASKS", "mpirun": "OMPI_COMM_WORLD_SIZE", "mpiexec": "PMI_SIZE"}
"""Variables in which launchers that do not set WORLD_SIZE give the number of processes."""


def _refuse_other_launchers() -> None:
    if "WORLD_SIZE" in os.environ:
        return
    for launcher, name in _SIZES_OF_OTHERS.items():
        if os.environ.get(name, "1") not in ("", "1"):
            raise ConfigError(
                f"{launcher} started {os.environ[name]} processes ({name}), which would each train alone: let it start "
                f"torchrun once on each host, or set RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT in each "
                "(WORLD_SIZE=1 if they are to train alone)"
            )


def share_cores(process: Process) -> None:
    """Divide a host's cores among the processes that compute on them, unless OMP_NUM_THREADS is set.

    torchrun sets it; deepspeed does not, and each of its processes would use all cores.
    """
    if process.device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // process.local_world_size))


def start_process_group(process: Process, store: Store | None = None) -> None:
    """Join the run's process group (NCCL on GPUs, else gloo); a process that was started alone forms its own.

    Args:
        store: through which the processes have met; by default they meet at `MASTER_ADDR:MASTER_PORT`.
    """
    if dist.is_initialized():
        return
    os.environ.setdefault("LOCAL_RANK", str(process.local_rank))  # DeepSpeed reads it
    if process.device.type == "cuda":
        torch.cuda.set_device(process.device)
    if store is None and process.world_size == 1:
        store = HashStore()
    dist.init_process_group(
        "nccl" if process.device.type == "cuda" else "gloo",
        store=store,
        rank=process.rank,
        world_size=process.world_size,
    )


def stop_process_group() -> None:
    """Leave the group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def sum_over_processes(x: Tensor) -> Tensor:
    """Sum `x` over the processes, in place, in all of them."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(x)
    return x


def any_process(flags: Sequence[bool], device: torch.device) -> list[bool]:
    """Which of `flags` is set in at least one process; collective."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return list(flags)
    x = torch.tensor([float(flag) for flag in flags], device=device)
    dist.all_reduce(x, dist.ReduceOp.MAX)
    return [value > 0 for value in x.tolist()]


def to_first_process(x: Tensor) -> list[Tensor]:
    """Every process's `x`, all of one shape, on the CPU of rank 0; an empty list in the others."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [x.detach().to("cpu", copy=True)]
    x = x.detach().contiguous()
    gathered = [torch.empty_like(x) for _ in range(dist.get_world_size())] if dist.get_rank() == 0 else None
    dist.gather(x, gathered)
    return [each.cpu() for each in gathered or ()]


def from_any_process(value: Value | None) -> Value | None:
    """The value of the first process that has one; collective."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return value
    values: list[Value | None] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return next((each for each in values if each is not None), None)


def average_over_processes(tensors: Iterable[Tensor]) -> None:
    """Replace floating-point `tensors` by their means over the processes, in one all-reduce."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return
    floats = [t for t in tensors if t.is_floating_point()]
    if not floats:
        return
    flat = torch.cat([t.detach().reshape(-1).float() for t in floats])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    with torch.no_grad():
        for tensor, mean in zip(floats, torch.split(flat, [t.numel() for t in floats]), strict=True):
            tensor.copy_(mean.view_as(tensor))
