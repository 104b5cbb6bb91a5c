"""What the command line asks for: each net's configuration, and the device."""

from __future__ import annotations

import argparse

import psutil
import torch

from deepres.config import MOST_LAYERS, Config, load_config
from deepres.memory.gpus import find_gpu
from deepres.memory.profiled_net import Target
from deepres.memory.trial import card_at_hand
from deepres.out_of_memory import limit_device_memory

DEFAULT_GPU = "RTX 3060 12GB"
_IMAGENET_DEPTHS = (101, 152, 200)
_RECIPE_BATCHES = {"cifar": 128, "imagenet": 256}
_KEYS = {
    "depth": "model.depth",
    "depths": "model.depth",
    "dataset": "model.dataset",
    "activation": "model.activation",
    "batch_size": "train.micro_batch_size",
    "image_size": "data.image_size",
    "precision": "precision.compute",
    "optimizer": "optim.momentum",
    "zero_stage": "engine.zero_stage",
    "offload": "engine.offload_optimizer",
    "budget": "recompute.budget",
    "device_memory": "recompute.device_memory",
}
"""The settings that options set."""


def read_configs(options: argparse.Namespace) -> list[Config]:
    """The configuration of each net.

    Raises:
        ValueError, ConfigError: there is none, or one is invalid.
    """
    depths = read_depths(options)
    given = _given(options)
    for name, key in _KEYS.items():
        if getattr(options, name) not in (None, False) and key in given:
            raise ValueError(f"give --{name.replace('_', '-')} or {key}, not both")
    if options.config is None and not depths:
        raise ValueError("give --depth, --depths or --config")
    return [_read_config(options, depth) for depth in tuple(depths) or (None,)]


def _given(options: argparse.Namespace) -> dict[str, str]:
    """The values of `section.key=value`."""
    return {key: value for key, _, value in (each.partition("=") for each in options.overrides)}


def _read_config(options: argparse.Namespace, depth: int | None) -> Config:
    """The configuration of the net with that depth, by default the file's."""
    dataset = options.dataset or _given(options).get("model.dataset")
    start: list[tuple[str, object]] = [("model.dataset", dataset), ("model.depth", depth)]
    if options.config is None:
        dataset = dataset or ("imagenet" if depth in _IMAGENET_DEPTHS else "cifar")
        if dataset not in _RECIPE_BATCHES:
            raise ValueError(f"model.dataset must be {' or '.join(_RECIPE_BATCHES)}, got {dataset!r}")
        of_cifar = "synthetic" if options.image_size else "cifar10"  # CIFAR's image size is fixed
        start += [
            ("model.dataset", dataset),
            ("data.name", "imagenet" if dataset == "imagenet" else of_cifar),
            ("train.max_steps", 1),
            ("train.global_batch_size", _RECIPE_BATCHES[dataset]),
        ]
    settings = [
        *start,
        ("train.micro_batch_size", options.batch_size),
        ("data.image_size", options.image_size),
        ("precision.compute", options.precision),
        ("model.activation", options.activation),
        ("engine.zero_stage", options.zero_stage),
        ("engine.name", None if options.zero_stage is None else "deepspeed"),
        ("optim.momentum", {None: None, "momentum": 0.9, "sgd": 0.0}[options.optimizer]),
        ("optim.nesterov", "false" if options.optimizer == "sgd" else None),
    ]
    overrides = [f"{key}={value}" for key, value in settings if value is not None]
    if options.batch_size is not None:
        overrides += ["train.global_batch_size=null", "train.accumulation=null"]
    config = load_config(options.config, [*overrides, *options.overrides])
    if not options.offload:
        return config
    if config.engine.zero_stage == 0:
        raise ValueError("--offload needs --zero-stage 1, 2 or 3")
    parameters_too = str(config.engine.zero_stage == 3).lower()
    offload = ["engine.offload_optimizer=true", f"engine.offload_parameters={parameters_too}"]
    return load_config(options.config, [*overrides, *offload, *options.overrides])


def read_depths(options: argparse.Namespace) -> list[int]:
    """The depths of `--depth` or `--depths`; none if neither is given.

    Raises:
        ValueError: they are not numbers, or too large.
    """
    if options.depth is not None and options.depths is not None:
        raise ValueError("give --depth or --depths, not both")
    try:
        depths = [int(depth) for depth in options.depths.split(",")] if options.depths else []
    except ValueError:
        raise ValueError(
            f"--depths must be numbers with commas (110,164,1001), got {options.depths!r}"
        ) from None
    depths += [] if options.depth is None else [options.depth]
    if depths and max(depths) > MOST_LAYERS:
        raise ValueError(f"depth must be at most {MOST_LAYERS:,} here, got {max(depths):,}")
    return sorted(set(depths))


def on_target(config: Config, target: Target) -> Config:
    """The configuration; `recompute.device_memory`, if set, becomes the target's memory."""
    if config.recompute.device_memory is None:
        return config
    recompute = config.recompute.model_copy(update={"device_memory": target.memory_bytes})
    return config.model_copy(update={"recompute": recompute})


def find_target(options: argparse.Namespace, config: Config) -> tuple[Target, torch.device | None]:
    """The target of the prediction (whose memory may be the configuration's), and the device to measure on.

    Raises:
        ValueError: the GPU is unknown, or there is no CUDA device although one is needed.
    """
    own_bytes = config.recompute.device_memory
    memory_bytes = options.device_memory
    if memory_bytes is None and options.gpu is None and isinstance(own_bytes, int):
        memory_bytes = own_bytes
    on_cuda = torch.cuda.is_available()
    if options.snapshot is not None and not on_cuda:
        raise ValueError("--snapshot needs a CUDA device, this host has none: leave it out")
    if not options.measure and options.snapshot is None:
        try:
            gpu = find_gpu(DEFAULT_GPU if options.gpu is None else options.gpu)
        except ValueError as error:
            raise ValueError(f"{error}; --gpu list shows all") from None
        name = gpu.name if memory_bytes is None else f"a device as fast as {gpu.name}"
        if options.gpu is None and memory_bytes is None:
            name += " (none was named)"
        return Target(name, memory_bytes or gpu.memory_bytes, gpu), None
    if options.gpu is not None:
        raise ValueError("--measure and --snapshot take the device at hand: leave out --gpu")
    if not on_cuda:
        return Target(
            "this host's CPU", memory_bytes or psutil.virtual_memory().available, None
        ), torch.device("cpu")
    device = torch.device("cuda", 0)
    torch.backends.cudnn.benchmark = not config.train.deterministic  # as training does
    if memory_bytes is not None:
        limit_device_memory(device, memory_bytes)
    return card_at_hand(device, memory_bytes), device
