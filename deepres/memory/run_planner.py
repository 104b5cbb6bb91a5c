"""The plan of a run: checked with predicted costs before anything starts, then made with costs from the device."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import psutil
from torch import nn

from deepres.batch_sizes import BatchSizes, smaller_micro_batches
from deepres.bytesize import format_bytes
from deepres.config import Config, ConfigError
from deepres.distributed import Process, from_any_process
from deepres.memory.gpus import GPUS, Gpu
from deepres.memory.measure import measure_chain
from deepres.memory.planned_run import PlannedRun
from deepres.memory.run_memory import (
    OtherMemory,
    activation_budget,
    other_memory,
    plan_for,
    predict_run_chain,
)
from deepres.out_of_memory import UntilOutOfMemory, free_device_bytes
from deepres.recompute import (
    Chain,
    InfeasibleBudgetError,
    PricedPlan,
    keep_all_plan,
    simulate,
    smallest_budget,
)


@dataclass(frozen=True)
class _Shortfall:
    """Batch sizes whose smallest plan takes more than their budget."""

    sizes: BatchSizes
    budget_bytes: int
    smallest_bytes: int


class RunPlanner:
    """Finds the plan that a configuration asks for.

    Args:
        config: the run's configuration.
        net: the net, on any device; it is left as it is.
        image_size: height and width of the training images.
        process: this process.
        gpu: the card to predict for; predicted bytes are the same for every card.
    """

    def __init__(
        self, config: Config, net: nn.Module, image_size: int, process: Process, gpu: Gpu = GPUS[0]
    ) -> None:
        self._config, self._net, self._process = config, net, process
        self._image_size = image_size
        self._num_parameters = sum(p.numel() for p in net.parameters() if p.requires_grad)
        self._on_cuda = process.device.type == "cuda"
        self._gpu = gpu if self._on_cuda else None
        self._chains: dict[int, Chain] = {}  # predicted, by micro batch

    def feasible_sizes(self, sizes: BatchSizes) -> BatchSizes:
        """Check by predicted bytes that there is a plan for this net; no device is touched.

        Returns:
            The sizes to run with: for `train.micro_batch_size: auto`, the largest that fit.

        Raises:
            ConfigError: nothing fits (the message has the smallest budget and the largest micro batch that fit), or
                the configuration's plan or segments are not for this net.
        """
        if activation_budget(self._config.recompute, 0, 0) is None:
            self._plan(self._predicted(sizes), sizes, 0)
            return sizes
        if self._config.recompute.device_memory == "auto" and self._on_cuda:
            return sizes
        return next(self._feasible(sizes, self._free_bytes()))

    def plan_as_predicted(self, sizes: BatchSizes) -> PlannedRun:
        """What `plan_as_measured` would choose if predictions held; no device is touched.

        Raises:
            ConfigError: nothing fits.
        """
        return self._choose(sizes, may_measure=False)

    def plan_as_measured(self, sizes: BatchSizes) -> PlannedRun:
        """The plan by costs that the first process measures on its device; a collective call.

        Raises:
            ConfigError: nothing fits, in every process.
        """
        planned: PlannedRun | None = None
        refusal: str | None = None
        if self._process.is_first:
            try:
                planned = self._choose(sizes, may_measure=True)
            except ConfigError as error:
                refusal = str(error)
        refusal = from_any_process(refusal)
        if refusal is not None:
            raise ConfigError(refusal)
        planned = from_any_process(planned)
        assert planned is not None
        return planned

    def rescaled(self, planned: PlannedRun, sizes: BatchSizes) -> PlannedRun:
        """The same plan for other micro batches: bytes as predicted, times in proportion; no device is touched."""
        if sizes == planned.sizes:
            return planned
        share = sizes.micro_size / planned.sizes.micro_size
        plan = replace(
            planned.plan,
            peak_bytes=simulate(self._predicted(sizes), planned.plan).peak_bytes,
            total_ms=share * planned.plan.total_ms,
            extra_ms=share * planned.plan.extra_ms,
        )
        return self._planned(plan, sizes, planned.budget_bytes)

    def _choose(self, sizes: BatchSizes, *, may_measure: bool) -> PlannedRun:
        device_bytes = self._free_bytes()
        recompute = self._config.recompute
        error: ConfigError | None = None
        for candidate in self._feasible(sizes, device_bytes):
            chain, budget_bytes = self._predicted(candidate), self._budget(candidate, device_bytes)
            with UntilOutOfMemory() as attempt:
                if may_measure and self._must_be_measured(chain, budget_bytes):
                    chain = self._measured(candidate)
            if attempt.ran_out:
                error = ConfigError(
                    f"{self._process.device} has no memory to measure a single unit with a micro batch of "
                    f"{candidate.micro_size}: lower train.micro_batch_size"
                )
                continue
            try:
                plan = self._plan(chain, candidate, device_bytes)
            except InfeasibleBudgetError as infeasible:
                error = ConfigError(f"as measured on {self._process.device}, {infeasible}")
                continue
            if self._is_auto and plan.extra_share > recompute.max_extra:
                error = ConfigError(
                    f"no micro batch trains in at most {100 * recompute.max_extra:g} % more time "
                    "(recompute.max_extra) within the memory asked for: raise one of them"
                )
                continue
            return self._planned(plan, candidate, budget_bytes)
        assert error is not None
        raise error

    def _must_be_measured(self, chain: Chain, budget_bytes: int | None) -> bool:
        """Whether units may be replayed, which needs their times on the device, or predictions do not hold for them."""
        recompute = self._config.recompute
        if self._config.engine.compile == "units":
            return True  # predictions are for eager units, which keep other tensors
        if budget_bytes is None:
            return recompute.segments != "none" or recompute.plan is not None
        return simulate(chain, keep_all_plan(len(chain.units))).peak_bytes > 0.9 * budget_bytes

    @property
    def _is_auto(self) -> bool:
        return self._config.train.micro_batch_size == "auto"

    def _feasible(self, sizes: BatchSizes, device_bytes: int) -> Iterator[BatchSizes]:
        """Sizes for which there is a plan by predicted bytes, the largest first; at least one.

        Raises:
            ConfigError: there is none, or the micro batch has too few images for batch norm.
        """
        smaller = self._with_a_plan(smaller_micro_batches(sizes), device_bytes)
        shortfall = self._shortfall(sizes, device_bytes)
        if shortfall is None:
            yield sizes
        else:
            largest = next(smaller, None)
            if largest is None or not self._is_auto:
                raise self._infeasible(shortfall, largest, device_bytes)
            yield largest
        if self._is_auto:
            yield from smaller

    def _with_a_plan(self, candidates: Iterable[BatchSizes], device_bytes: int) -> Iterator[BatchSizes]:
        for sizes in candidates:
            try:
                shortfall = self._shortfall(sizes, device_bytes)
            except ConfigError:  # too few images for batch norm, and smaller ones have fewer
                return
            if shortfall is None:
                yield sizes

    def _shortfall(self, sizes: BatchSizes, device_bytes: int) -> _Shortfall | None:
        """These sizes' shortfall by predicted bytes; None if there is a plan."""
        budget_bytes = self._budget(sizes, device_bytes)
        if budget_bytes is None:
            return None
        smallest_bytes = smallest_budget(self._predicted(sizes))
        return _Shortfall(sizes, budget_bytes, smallest_bytes) if smallest_bytes > budget_bytes else None

    def _infeasible(self, shortfall: _Shortfall, fits: BatchSizes | None, device_bytes: int) -> ConfigError:
        sizes, budget_bytes, smallest = shortfall.sizes, shortfall.budget_bytes, shortfall.smallest_bytes
        advice = "no smaller micro batch fits"
        if fits is not None:
            advice = (
                f"the largest micro batch that fits is train.micro_batch_size={fits.micro_size} "
                f"with train.accumulation={fits.accumulation}"
            )
        device_memory = self._config.recompute.device_memory
        if device_memory is None:
            asked = f"recompute.budget {format_bytes(budget_bytes)} is too small"
        else:
            other_bytes = self._other_memory(sizes).total_bytes
            limit = device_bytes if device_memory == "auto" else device_memory
            asked = (
                f"recompute.device_memory {device_memory if device_memory == 'auto' else format_bytes(limit)} "
                f"leaves {format_bytes(max(0, limit - other_bytes))} for activations beside "
                f"{format_bytes(other_bytes)} of model states, buckets, images and reserve"
            )
            smallest += other_bytes
        return ConfigError(
            f"{asked}: the smallest that any plan needs for a micro batch of {sizes.micro_size} is "
            f"{format_bytes(smallest)} ({smallest} bytes); {advice}"
        )

    def _plan(self, chain: Chain, sizes: BatchSizes, device_bytes: int) -> PricedPlan:
        other_bytes = self._other_memory(sizes).total_bytes
        return plan_for(self._config.recompute, chain, other_bytes, device_bytes)

    def _planned(self, plan: PricedPlan, sizes: BatchSizes, budget_bytes: int | None) -> PlannedRun:
        return PlannedRun(plan, sizes, self._other_memory(sizes), budget_bytes)

    def _other_memory(self, sizes: BatchSizes) -> OtherMemory:
        return other_memory(
            self._config,
            num_parameters=self._num_parameters,
            image_size=self._image_size,
            micro_size=sizes.micro_size,
            world_size=sizes.world_size,
            on_cuda=self._on_cuda,
        )

    def _budget(self, sizes: BatchSizes, device_bytes: int) -> int | None:
        return activation_budget(self._config.recompute, self._other_memory(sizes).total_bytes, device_bytes)

    def _predicted(self, sizes: BatchSizes) -> Chain:
        if sizes.micro_size not in self._chains:
            try:
                self._chains[sizes.micro_size] = predict_run_chain(
                    self._config, self._net, sizes.micro_size, self._image_size, self._gpu
                )
            except ValueError as error:
                raise ConfigError(f"a micro batch of {sizes.micro_size} cannot be trained: {error}") from None
        return self._chains[sizes.micro_size]

    def _measured(self, sizes: BatchSizes) -> Chain:
        precision = self._config.precision
        return measure_chain(
            self._net,
            (sizes.micro_size, 3, self._image_size, self._image_size),
            self._process.device,
            precision.dtype,
            channels_last=precision.channels_last,
        )

    def _free_bytes(self) -> int:
        """The device's free memory, divided among the processes that use it; 0 if the configuration does not need it.

        Asking a card starts CUDA on it.
        """
        if self._config.recompute.device_memory != "auto":
            return 0
        free_bytes = free_device_bytes(self._process.device)
        if free_bytes is None:
            return int(psutil.virtual_memory().available) // self._process.local_world_size
        return free_bytes
