"""What is profiled: the net, batch and number format of a run's configuration, and the device that is to hold it."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from deepres.batch_sizes import batch_sizes
from deepres.config import Config
from deepres.distributed import Process
from deepres.memory.gpus import GPUS, Gpu
from deepres.memory.run_memory import OtherMemory, other_memory, predict_run_chain
from deepres.memory.run_planner import RunPlanner
from deepres.memory.scaling import ScalingChain
from deepres.recompute import Chain
from deepres.run_net import net_of


@dataclass(frozen=True)
class Target:
    """The device to predict for.

    Attributes:
        name: for people.
        memory_bytes: what a process may use of it.
        gpu: its rates; None for a CPU.
    """

    name: str
    memory_bytes: int
    gpu: Gpu | None


class ProfiledNet:
    """A run's net with its costs at any batch size; predictions are made on demand.

    Args:
        config: the run's configuration.
        target: the device.
        world_size: the run's processes.

    Raises:
        ValueError: there is no such net.
        ConfigError: the batch sizes contradict each other, or for `auto` no micro batch fits.

    Attributes:
        batch: images in a micro batch of one process; for `auto`, as many as training would choose by predictions.
        image_size: height and width of the images.
    """

    def __init__(self, config: Config, target: Target, world_size: int = 1) -> None:
        self.config, self.target, self.world_size = config, target, world_size
        self.image_size = config.data.chosen_image_size
        self.net = net_of(config)
        sizes = batch_sizes(config.train, world_size)
        if config.train.micro_batch_size == "auto":
            device = torch.device("cpu" if target.gpu is None else "cuda")
            process = Process(0, 0, world_size, world_size, device)
            planner = RunPlanner(config, self.net, self.image_size, process, target.gpu or GPUS[0])
            sizes = planner.plan_as_predicted(sizes).sizes
        self.batch = sizes.micro_size

    @cached_property
    def num_parameters(self) -> int:
        """The number of trained parameters."""
        return sum(p.numel() for p in self.net.parameters() if p.requires_grad)

    @cached_property
    def multiply_adds(self) -> int:
        """The multiply-adds of one image's forward pass, in convolutions and linear layers."""
        counter: Any = FlopCounterMode(display=False)
        self.net.eval()
        with torch.no_grad(), counter:
            self.net(torch.zeros(1, 3, self.image_size, self.image_size))
        self.net.train()
        return int(counter.get_total_flops()) // 2

    @cached_property
    def scaling(self) -> ScalingChain:
        """The net's chain at any batch size, on the target."""
        sizes = (self.batch, 2 * self.batch)
        return ScalingChain(sizes, (self._predict(sizes[0]), self._predict(sizes[1])))

    @property
    def chain(self) -> Chain:
        """The net's chain at its batch, on the target."""
        return self.scaling.chains[0]

    def other_memory(self, batch: int) -> OtherMemory:
        """What a process holds on the target besides activations, with `batch` images in a micro batch."""
        return other_memory(
            self.config,
            num_parameters=self.num_parameters,
            image_size=self.image_size,
            micro_size=batch,
            world_size=self.world_size,
            on_cuda=self.target.gpu is not None,
        )

    def room(self, batch: int) -> int:
        """What the target has for activations; negative if the rest alone is too much."""
        return self.target.memory_bytes - self.other_memory(batch).total_bytes

    def within(self, memory_bytes: int) -> ProfiledNet:
        """The same net, with its costs, on a device with this much memory."""
        other = copy.copy(self)
        other.target = replace(self.target, memory_bytes=memory_bytes)
        return other

    def _predict(self, batch: int) -> Chain:
        return predict_run_chain(self.config, self.net, batch, self.image_size, self.target.gpu)
