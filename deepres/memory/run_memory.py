"""What a whole run will hold on the device of one process, known before it starts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from torch import nn

from deepres.config import Config, ConfigError, RecomputeConfig, TrainConfig
from deepres.memory.gpus import Gpu
from deepres.memory.predict import predict_chain
from deepres.memory.states import ModelStates, model_states
from deepres.recompute import (
    Chain,
    Plan,
    PricedPlan,
    keep_all_plan,
    make_plan,
    price,
    sqrt_plan,
    uniform_plan,
)
from deepres.recompute.frontier import MAX_GROUPS, Frontier

_CUDA_WORKSPACE_BYTES = 256 * 2**20


@dataclass(frozen=True)
class OtherMemory:
    """Bytes on the device of one process at the peak of a step, besides activations.

    Attributes:
        states: parameters, gradients, optimizer state and buckets.
        batch_bytes: a micro batch, and the images of data sets that live on the device.
        workspace_bytes: a reserve for workspaces of a card's libraries; none on a CPU, where the plan's peak
            includes them.
    """

    states: ModelStates
    batch_bytes: int
    workspace_bytes: int

    @property
    def total_bytes(self) -> int:
        """The sum."""
        return self.states.total_bytes + self.batch_bytes + self.workspace_bytes


def other_memory(
    config: Config,
    *,
    num_parameters: int,
    image_size: int,
    micro_size: int,
    world_size: int,
    on_cuda: bool,
) -> OtherMemory:
    """What a run of `config` holds besides activations.

    Args:
        config: the run's configuration.
        num_parameters: the number of trained parameters.
        image_size: height and width of the images that the model sees.
        micro_size: images in a micro batch.
        world_size: the run's number of processes.
        on_cuda: whether the device is a card.
    """
    states = model_states(
        num_parameters,
        config.engine,
        world_size,
        has_momentum=config.optim.momentum > 0,
        accumulates=accumulates(config.train, micro_size, world_size),
    )
    known = config.data.known
    image_bytes = 3 * image_size**2
    # Batches come contiguous, and are there to the step's end.
    copies = 2 if config.precision.channels_last else 1
    return OtherMemory(
        states=states,
        batch_bytes=micro_size * (copies * 4 * image_bytes + 8)
        + (known.num_train + known.num_test) * (image_bytes + 8),
        workspace_bytes=_CUDA_WORKSPACE_BYTES if on_cuda else 0,
    )


def accumulates(train: TrainConfig, micro_size: int, world_size: int) -> bool:
    """Whether a step has several micro batches of that size."""
    if train.global_batch_size is not None:
        return train.global_batch_size > micro_size * world_size
    return (train.accumulation or 1) > 1


def predict_run_chain(
    config: Config, net: nn.Module, micro_size: int, image_size: int, gpu: Gpu | None
) -> Chain:
    """`predict_chain` for a micro batch of a run of `config`."""
    return predict_chain(
        net,
        (micro_size, 3, image_size, image_size),
        gpu,
        config.precision.dtype,
        channels_last=config.precision.channels_last,
    )


def plan_for(recompute: RecomputeConfig, chain: Chain, other_bytes: int, device_bytes: int = 0) -> PricedPlan:
    """The plan that a `recompute` section asks for, with its costs on a chain.

    For a budget it is `make_plan`'s, or `Frontier`'s for more than 400 units: in seconds instead of minutes.

    Args:
        recompute: the section.
        chain: the units' costs.
        other_bytes: what a process holds besides activations.
        device_bytes: what the device has, for `device_memory: auto`.

    Raises:
        InfeasibleBudgetError: no plan fits the budget.
        ConfigError: there are more segments than units, or the plan file cannot be read, is damaged or is for another
            net.
    """
    budget_bytes = activation_budget(recompute, other_bytes, device_bytes)
    if budget_bytes is not None:
        find = Frontier(chain).plan if len(chain.units) > MAX_GROUPS else partial(make_plan, chain)
        return find(max(1, budget_bytes))
    try:
        return price(chain, _fixed_plan(recompute, len(chain.units)))
    except OSError as error:
        raise ConfigError(f"recompute.plan {recompute.plan} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"recompute: {error}") from None


def _fixed_plan(recompute: RecomputeConfig, num_units: int) -> Plan:
    """The plan of a section that names no budget."""
    if recompute.plan is not None:
        return Plan.load(recompute.plan)
    if recompute.segments == "none":
        return keep_all_plan(num_units)
    if recompute.segments == "sqrt":
        return sqrt_plan(num_units)
    return uniform_plan(num_units, recompute.segments)


def activation_budget(recompute: RecomputeConfig, other_bytes: int, device_bytes: int) -> int | None:
    """What activations may take; None if `recompute` sets no budget, negative if nothing is left for them."""
    if recompute.device_memory is not None:
        limit = device_bytes if recompute.device_memory == "auto" else recompute.device_memory
        return limit - other_bytes
    return recompute.budget
