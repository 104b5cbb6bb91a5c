"""Train a residual network.

deepspeed deepres/train.py --config configs/imagenet200_zero2.yaml [section.key=value ...]
python deepres/train.py --config configs/cifar10_resnet110.yaml data.root=/path/to/cifar10
torchrun --nproc_per_node 2 deepres/train.py --config configs/cifar10_resnet110.yaml
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from deepres.batch_sizes import BatchSizes, batch_sizes
from deepres.config import Config, ConfigError, load_config
from deepres.data import DataError, DataInfo, inspect_data, open_data
from deepres.distributed import Process, start_process_group, stop_process_group, this_process
from deepres.engines import make_engine
from deepres.engines.base import ComputeIn
from deepres.memory import measure_activation_peak
from deepres.memory.planning import Planner
from deepres.models import ResNet, build_resnet
from deepres.recompute import apply_plan
from deepres.run_folder import RunFolder, choose_run_folder
from deepres.trainer import Summary, Trainer


@dataclass(frozen=True)
class Job:
    """All that is known of a run before it starts anything."""

    config: Config
    config_path: Path
    process: Process
    sizes: BatchSizes
    info: DataInfo
    net: ResNet
    planner: Planner


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; 0 for a finished run, 2 for one that cannot be run as it was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, type=Path, help="a YAML file such as those in configs/")
    parser.add_argument("--local_rank", type=int, help="given by the deepspeed launcher")
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="override the file's settings"
    )
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        run_job(prepare(options.config, options.overrides, options.local_rank))
    except (ConfigError, DataError) as error:
        if int(os.environ.get("LOCAL_RANK", "0")) == 0:
            print(f"error: {error}", file=sys.stderr)
        return 2
    finally:
        stop_process_group()
    return 0


def prepare(config_path: Path, overrides: list[str], local_rank: int | None = None) -> Job:
    """Read and check everything that can be checked before a process group or CUDA context exists.

    Raises:
        ConfigError: the configuration cannot be run here.
        DataError: the data cannot be used.
    """
    config = load_config(config_path, overrides)
    process = this_process(config.engine.device, local_rank)
    sizes = batch_sizes(config.train, process.world_size)
    if config.precision.compute == "fp16" and process.device.type == "cpu":
        raise ConfigError("precision.compute fp16 needs a GPU: use bf16 or fp32 on a CPU")
    if config.log.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise ConfigError("log.tensorboard needs the extra: pip install 'deepres[tensorboard]'")
    data = config.data
    info = inspect_data(
        data.name,
        root=data.root,
        download=data.download,
        verify=data.verify,
        image_size=data.image_size,
        num_classes=data.num_classes,
        num_images=data.num_images,
        augmentation=data.augmentation,
        normalize=data.normalize,
        eval_image_size=data.eval_image_size,
        eval_shorter_side=data.eval_shorter_side,
        global_batch_size=sizes.global_size,
    )
    num_classes = config.model.num_classes or info.num_classes
    if num_classes != info.num_classes:
        raise ConfigError(
            f"model.num_classes is {num_classes}, but {data.name} has {info.num_classes} classes"
        )
    torch.manual_seed(config.train.seed)
    try:
        net = build_resnet(**config.model.model_dump(exclude={"num_classes"}), num_classes=num_classes)
    except ValueError as error:
        raise ConfigError(f"{config_path}: {error}") from None
    planner = Planner(config, net, info.image_size, process)
    return Job(config, config_path, process, planner.predict(sizes), info, net, planner)


def run_job(job: Job) -> Summary:
    """Train; collective.

    Raises:
        DataError: too many images cannot be read.
    """
    config, process = job.config, job.process
    folder = RunFolder(choose_run_folder(config, job.config_path)) if process.is_first else None
    if process.world_size > 1:
        start_process_group(process)
    if config.train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = not config.train.deterministic
    torch.manual_seed(config.train.seed + 1 + process.rank)  # dropout differs between processes

    planned = job.planner.settle(job.sizes)
    sizes = planned.sizes
    data = open_data(
        config.data.name,
        **config.data.model_dump(exclude={"name"}),
        micro_batch_size=sizes.micro_size,
        accumulation=sizes.accumulation,
        eval_batch_size=config.train.eval_batch_size,
        seed=config.train.seed,
        rank=process.rank,
        world_size=process.world_size,
        device=process.device,
    )
    apply_plan(job.net, planned.plan)
    job.net.to(process.device)
    sample = next(iter(data.train_batches(0)))
    compute_in = ComputeIn(job.net, config.precision.compute, process.device.type)
    peak = measure_activation_peak(job.net, compute_in, sample.images, sample.labels)
    engine = make_engine(job.net, config, process, sizes)
    trainer = Trainer(
        config,
        process,
        engine,
        data,
        folder,
        planned,
        activation_peak_bytes=peak,
    )
    try:
        return trainer.run()
    finally:
        data.close()


if __name__ == "__main__":
    exit_status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: a thread of gloo that asks for the interpreter while that shuts down would abort the process.
    os._exit(exit_status)
