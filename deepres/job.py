"""A whole run: check all that can be checked beforehand, then let the processes meet and train."""

from __future__ import annotations

import importlib.util
import os
import shutil
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from deepres import __version__
from deepres.autocast import ComputeIn
from deepres.batch_sizes import BatchSizes, batch_sizes
from deepres.checkpoints.identity import Identity, run_identity
from deepres.checkpoints.restoring import restore_engine, restore_net
from deepres.checkpoints.resuming import Checkpoint, choose_start, is_finished, share_start, warn_of_changes
from deepres.commit import SaveError
from deepres.config import Config, ConfigError, load_config
from deepres.data import DataError, FoundData, find_data
from deepres.deterministic import use_deterministic_algorithms
from deepres.distributed import Process, any_process, share_cores, start_process_group, this_process
from deepres.engines import make_engine
from deepres.exit_status import ExitStatus, RunError
from deepres.initial_weights import InitialWeights, set_initial_weights
from deepres.memory import keep_freed_memory, measure_activation_peak
from deepres.memory.planned_run import PlannedRun
from deepres.memory.run_planner import RunPlanner
from deepres.models import ResNet, compile_units
from deepres.out_of_memory import (
    UntilOutOfMemory,
    free_device_bytes,
    limit_device_memory,
    out_of_memory,
    shrink_until_it_fits,
)
from deepres.recompute import apply_plan
from deepres.rendezvous import Rendezvous, rendezvous
from deepres.run_folder import RunFolder, check_run_folder, is_inside, lock_run_folder, run_folder_path
from deepres.run_log import Summary
from deepres.run_net import net_of
from deepres.screen import say
from deepres.stopping import PeerWatch, StopRequest
from deepres.trainer import Trainer

_OF_A_HOST = (
    "data.root",
    "data.num_workers",
    "train.run_dir",
    "train.output",
    "train.initial_weights",
    "train.resume",
    "recompute.plan",
)
"""Settings that may differ between the processes of a run: where files are, and how many workers read them."""


@dataclass(frozen=True)
class Job:
    """Everything known about a run before anything is started.

    Attributes:
        initial: the weights that the net begins with; None: random ones.
    """

    config: Config
    config_path: Path
    process: Process
    sizes: BatchSizes
    data: FoundData
    net: ResNet
    planner: RunPlanner
    initial: InitialWeights | None

    @property
    def identity(self) -> Identity:
        """What another run must have in common with this one."""
        initial_sha256 = None if self.initial is None else self.initial.sha256
        return run_identity(self.config, self.sizes, self.data.info, initial_sha256)


def prepare(config_path: Path, overrides: list[str], local_rank: int | None = None) -> Job:
    """Read and check everything that can be checked before a process group or CUDA context exists.

    Raises:
        ConfigError: the configuration cannot be run here.
        DataError: the data cannot be used.
    """
    config = load_config(config_path, overrides)
    process = this_process(config.engine.device, local_rank)
    share_cores(process)  # before predictions, which depend on the number of threads
    sizes = batch_sizes(config.train, process.world_size)
    if config.precision.compute == "fp16" and process.device.type == "cpu":
        raise ConfigError("precision.compute fp16 needs a GPU: use bf16 or fp32 on a CPU")
    if config.engine.cuda_graphs and (process.device.type != "cuda" or process.world_size > 1):
        raise ConfigError(
            f"engine.cuda_graphs needs one process on a GPU, got {process.world_size} on {process.device.type}: "
            "switch it off"
        )
    if config.log.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise ConfigError("log.tensorboard needs the extra: pip install 'deepres[tensorboard]'")
    data = find_data(config.data)
    data.check_batch(sizes.global_size)
    info = data.info
    num_classes = config.model.num_classes or info.num_classes
    if num_classes != info.num_classes:
        raise ConfigError(
            f"model.num_classes is {num_classes}, but {info.name} has {info.num_classes} classes"
        )
    torch.manual_seed(config.train.seed)
    try:
        net = net_of(config, num_classes)
    except ValueError as error:
        is_overridden = any(each.startswith("model.") for each in overrides)
        raise ConfigError(f"{'command line' if is_overridden else config_path}: {error}") from None
    initial = set_initial_weights(net, config, info)
    if config.engine.compile == "units":
        _find_compiler(process)
        compile_units(net.units)
    planner = RunPlanner(config, net, info.image_size, process)
    sizes = planner.feasible_sizes(sizes)
    return Job(config, config_path, process, sizes, data, net, planner, initial)


def _find_compiler(process: Process) -> None:
    """Raise ConfigError if no compiler for the device is found."""
    if process.device.type == "cuda":
        if importlib.util.find_spec("triton") is None:
            raise ConfigError(
                "engine.compile=units needs triton on a GPU: pip install triton, or compile=none"
            )
    elif shutil.which(os.environ.get("CXX", "g++")) is None:
        raise ConfigError(
            "engine.compile=units needs a C++ compiler on a CPU: install g++ or set CXX, or compile=none"
        )


def run_job(job: Job, stop: StopRequest) -> Summary | None:
    """Train; collective. Returns None, and changes nothing, if the run is finished already.

    Raises:
        ConfigError: the run's folder cannot be written or holds another run, or there is no checkpoint to resume from.
        DataError: too many images cannot be read.
        RunError: the run ended early.
        SaveError: a checkpoint could not be written.
    """
    if not job.process.is_first:
        return _run_together(job, None, None, stop)
    path = run_folder_path(job.config, job.config_path)
    with lock_run_folder(path):
        if job.config.train.resume == "auto" and is_finished(job.config, path, job.identity):
            say(f"{path} holds this run, finished: nothing is left to do")
            return _run_together(job, path, None, stop, is_done=True)
        start = choose_start(job.config, job.identity, say)
        if start is not None:
            warn_of_changes(start, job.config, job.process, job.sizes, say)
        check_run_folder(job.config, path)
        if start is None and job.initial is not None:
            say(job.initial.told)
        return _run_together(job, path, start, stop)


def _run_together(
    job: Job,
    path: Path | None,
    found: Checkpoint | None,
    stop: StopRequest,
    *,
    is_done: bool = False,
) -> Summary | None:
    """Meet the other processes and train; if one process ends, all do.

    Args:
        job: the run.
        path: its folder, in rank 0.
        found: the checkpoint that it resumes from, in rank 0.
        stop: what may end it early.
        is_done: whether rank 0 has found nothing left to do.
    """
    process = job.process
    met = None
    if process.world_size > 1:
        met = rendezvous(process, job.config.engine.rendezvous_timeout_s, stop, _terms(job))
    with PeerWatch(process.rank, met.peers if met else ()) as peers:
        try:
            if met is not None:
                _start_group(process, met, peers)
            start = share_start(found, job.config, process)
            is_done = any_process([is_done], process.device)[0]
            summary = None if is_done else _train(job, path, start, stop)
            any_process([False], process.device)  # a barrier: no process leaves while another still needs it
        except (ConfigError, DataError, RunError, SaveError):
            raise
        except Exception as error:
            dead = peers.look(wait_s=3.0)
            if dead is None:
                raise
            message = f"{dead}: the run stops, and train.resume=auto resumes from its last checkpoint"
            raise RunError(message, ExitStatus.PROCESS_DIED) from error
    return summary


def _terms(job: Job) -> dict[str, Any]:
    """What must be the same in all processes of a run."""
    config, identity = job.config.model_dump(mode="json"), job.identity
    settings = {
        f"{section}.{key}": value for section, values in config.items() for key, value in values.items()
    }
    return {
        **{name: value for name, value in settings.items() if name not in _OF_A_HOST},
        **identity.of_run,
        **identity.of_test,
        "the number of processes": job.process.world_size,
        "the device": job.process.device.type,
        "the version of deepres": __version__,
    }


def _start_group(process: Process, met: Rendezvous, peers: PeerWatch) -> None:
    try:
        start_process_group(process, met.store)
    except (RuntimeError, ValueError) as error:
        if peers.look(wait_s=3.0):
            raise
        reason = str(error).splitlines()[0]
        raise RunError(f"the processes cannot start their group: {reason}", ExitStatus.REFUSED) from error


def _train(job: Job, path: Path | None, start: Checkpoint | None, stop: StopRequest) -> Summary:
    config, process = job.config, job.process
    if config.train.deterministic:
        use_deterministic_algorithms()
    torch.backends.cudnn.benchmark = not config.train.deterministic
    torch.manual_seed(config.train.seed + 1 + process.rank)  # dropout differs between processes
    if process.device.type == "cpu":
        keep_freed_memory()
    elif isinstance(config.recompute.device_memory, int):
        limit_device_memory(process.device, config.recompute.device_memory)

    planned = _settle(job)
    sizes = planned.sizes
    data = job.data.open(
        micro_batch_size=sizes.micro_size,
        accumulation=sizes.accumulation,
        eval_batch_size=config.train.eval_batch_size,
        seed=config.train.seed,
        rank=process.rank,
        world_size=process.world_size,
        device=process.device,
    )
    if start is not None:
        restore_net(start, job.net)
    engine = make_engine(job.net, config, process, sizes)
    if start is not None:
        restore_engine(start, engine)
    with ExitStack() as stack:
        stack.callback(data.close)
        folder = None
        if path is not None:
            num_kept = 0
            if start is not None and (start.is_in(path) or is_inside(start.path, path)):
                num_kept = start.progress.metrics_bytes
            folder = RunFolder(path, config, num_kept)
            stack.callback(folder.metrics.close)
        return Trainer(engine, data, folder, planned, stop=stop, start=start, identity=job.identity).run()


def _settle(job: Job) -> PlannedRun:
    """Apply the plan to the net, move it to the device, and measure the peak memory of a micro batch.

    With `train.micro_batch_size: auto`, a micro batch that does not fit is halved or shrunk further, in all processes
    alike.
    """
    device, side, precision = job.process.device, job.data.info.image_size, job.config.precision
    planned = job.planner.plan_as_measured(job.sizes)
    apply_plan(job.net, planned.plan)
    job.net.to(device)
    compute_in = ComputeIn(job.net, precision.dtype, device.type)

    def attempt(micro_size: int) -> int:
        images = torch.zeros(micro_size, 3, side, side, device=device)
        images = images.contiguous(memory_format=precision.memory_format)
        labels = torch.zeros(micro_size, dtype=torch.long, device=device)
        return measure_activation_peak(job.net, compute_in, images, labels)

    if job.config.train.micro_batch_size == "auto":
        sizes, peak_bytes = shrink_until_it_fits(planned.sizes, attempt, device)
        return replace(job.planner.rescaled(planned, sizes), measured_peak_bytes=peak_bytes)
    with UntilOutOfMemory():
        return replace(planned, measured_peak_bytes=attempt(planned.sizes.micro_size))
    peak_bytes, free_bytes = planned.activations_bytes, free_device_bytes(device)
    raise out_of_memory("before the first step", planned.sizes, peak_bytes, free_bytes)
