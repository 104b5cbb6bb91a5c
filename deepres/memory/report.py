"""What a net takes under each strategy, as rows of numbers; `tables` and `plots` show them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from deepres.bytesize import format_bytes
from deepres.config import EngineConfig, PrecisionConfig, RecomputeConfig
from deepres.memory.end_of_forward import held_after_forward
from deepres.memory.profiled_net import ProfiledNet
from deepres.memory.report_rows import Kind, ModelRow, Report, StageRow, StatesRow, StrategyRow
from deepres.memory.run_memory import accumulates, plan_for
from deepres.memory.scaling import largest_batch
from deepres.memory.states import model_states
from deepres.recompute import (
    Chain,
    InfeasibleBudgetError,
    Plan,
    PricedPlan,
    keep_all_plan,
    per_unit_plan,
    price,
    simulate,
    sqrt_plan,
    uniform_plan,
)
from deepres.recompute.frontier import Frontier

SHARES = (0.75, 0.5, 0.25, 0.12, 0.06, 0.03, 0.015)
"""The budgets of the table, as shares of the peak with everything kept."""


def make_report(
    profiled: ProfiledNet,
    *,
    budget_bytes: int | None = None,
    shares: Sequence[float] = SHARES,
    budget_must_fit: bool = True,
) -> Report:
    """Predict a net under every strategy, including the one that its run's configuration asks for.

    Args:
        profiled: the net.
        budget_bytes: one more budget to plan for.
        shares: budgets to plan for, as shares of the peak with everything kept.
        budget_must_fit: if false and no plan fits `budget_bytes`, a row says so.

    Raises:
        ValueError: no plan fits, and one must (the message has the floor and the largest batch that fits); or the
            configuration's plan cannot be read, or is for another net.
    """
    chain, frontier = profiled.chain, Frontier(profiled.chain)
    if budget_bytes is not None and budget_must_fit and budget_bytes < frontier.floor_bytes:
        raise ValueError(_below_the_floor(profiled, budget_bytes, frontier.floor_bytes))
    rows = [strategy_row(profiled, *strategy) for strategy in fixed_plans(chain)]
    rows += _own_row(profiled)
    keep_all_bytes = rows[0].peak_bytes
    budgets = [(share, round(share * keep_all_bytes), f"{100 * share:.3g} %") for share in shares]
    if budget_bytes is not None:
        budgets.append((budget_bytes / keep_all_bytes, budget_bytes, format_bytes(budget_bytes)))
    room_bytes = profiled.room(profiled.batch)
    has_own = profiled.config.recompute.device_memory is not None
    if frontier.floor_bytes <= room_bytes < keep_all_bytes and not has_own:
        budgets.append((room_bytes / keep_all_bytes, room_bytes, "the device"))
    for share, num_bytes, budget in sorted(budgets, reverse=True):
        name = f"plan for {budget}"
        try:
            plan = frontier.plan(num_bytes)
        except InfeasibleBudgetError as error:
            rows.append(_no_plan(profiled, "budget", name, share, num_bytes, error.smallest_bytes))
            continue
        row = strategy_row(profiled, "budget", name, plan)
        rows.append(
            replace(
                row,
                budget_share=share,
                budget_bytes=num_bytes,
                least_extra_share=frontier.least_extra_share(num_bytes),
            )
        )
    rows.append(strategy_row(profiled, "floor", "plan at the floor", frontier.floor))
    memory = profiled.other_memory(profiled.batch)
    return Report(
        model=_model_row(profiled),
        engine=_engine_name(profiled.config.engine),
        device=profiled.target.name,
        device_bytes=profiled.target.memory_bytes,
        other_bytes=memory.total_bytes,
        images_bytes=memory.batch_bytes,
        workspace_bytes=memory.workspace_bytes,
        states=states_rows(profiled),
        stages=stage_rows(profiled),
        ends_bytes=keep_all_bytes - sum(row.kept_bytes for row in stage_rows(profiled)),
        rows=tuple(rows),
        units_per_group=frontier.units_per_group,
    )


def _own_row(profiled: ProfiledNet) -> list[StrategyRow]:
    """The plan that the configuration asks for by other means than a budget of activations, if it does."""
    recompute, name = profiled.config.recompute, "the configuration's"
    if recompute.budget is not None or recompute == RecomputeConfig():
        return []
    other_bytes = profiled.other_memory(profiled.batch).total_bytes
    try:
        plan = plan_for(recompute, profiled.chain, other_bytes, profiled.target.memory_bytes)
    except InfeasibleBudgetError as error:
        room = profiled.target.memory_bytes - other_bytes
        return [_no_plan(profiled, "own", name, None, room, error.smallest_bytes)]
    return [strategy_row(profiled, "own", name, plan)]


def fixed_plans(chain: Chain) -> list[tuple[Kind, str, PricedPlan]]:
    """The strategies without a budget: everything kept, and segments of equal numbers of units."""
    num_units = len(chain.units)
    uniform = (price(chain, uniform_plan(num_units, num)) for num in _numbers_up_to(num_units))
    best = min(uniform, key=lambda plan: plan.peak_bytes)
    sqrt = price(chain, sqrt_plan(num_units))
    num_segments = best.num_segments + 1
    return [
        ("keep all", "keep all", price(chain, keep_all_plan(num_units))),
        ("per unit", "a segment per unit", price(chain, per_unit_plan(num_units))),
        ("sqrt", f"√units, {sqrt.num_segments + 1} segments", sqrt),
        ("uniform", f"best uniform, {num_segments} segment{'s' * (num_segments > 1)}", best),
    ]


def strategy_row(profiled: ProfiledNet, kind: Kind, name: str, plan: PricedPlan) -> StrategyRow:
    """What a plan takes, and the largest batch with which it fits the device."""
    chain, batch = profiled.chain, profiled.batch
    return StrategyRow(
        kind=kind,
        strategy=name,
        budget_share=None,
        budget_bytes=None,
        plan=plan,
        peak_bytes=plan.peak_bytes,
        total_bytes=plan.peak_bytes + profiled.other_memory(batch).total_bytes,
        extra_forwards=sum(simulate(chain, plan).forward_runs) / plan.num_units - 1,
        extra_share=plan.extra_share,
        least_extra_share=None,
        step_ms=plan.total_ms,
        images_per_s=1000 * batch / plan.total_ms,
        largest_batch=largest_batch_of(profiled, plan),
        fits=plan.peak_bytes <= profiled.room(batch),
    )


def largest_batch_of(profiled: ProfiledNet, plan: Plan) -> int:
    """The largest batch with which a plan fits the device."""

    def fits(size: int) -> bool:
        return simulate(profiled.scaling.at(size), plan).peak_bytes <= profiled.room(size)

    return largest_batch(fits)


def states_rows(profiled: ProfiledNet) -> tuple[StatesRow, ...]:
    """Model states under plain PyTorch and each ZeRO stage, with and without offload, and those of the run."""
    settings = [EngineConfig(), EngineConfig(name="deepspeed")]
    for stage in (1, 2, 3):
        settings.append(EngineConfig(name="deepspeed", zero_stage=stage))
        settings.append(
            settings[-1].model_copy(update={"offload_optimizer": True, "offload_parameters": stage == 3})
        )
    own = profiled.config.engine
    if _engine_name(own) not in map(_engine_name, settings):
        settings.append(own)
    bucket = {"bucket_mb": own.bucket_mb}
    rows = []
    for engine in (setting.model_copy(update=bucket) for setting in settings):
        states = model_states(
            profiled.num_parameters,
            engine,
            profiled.world_size,
            has_momentum=profiled.config.optim.momentum > 0,
            accumulates=accumulates(profiled.config.train, profiled.batch, profiled.world_size),
        )
        rows.append(StatesRow(_engine_name(engine), states))
    return tuple(rows)


def stage_rows(profiled: ProfiledNet) -> tuple[StageRow, ...]:
    """What each stage keeps with everything kept."""
    units, rows, start = profiled.chain.units, list[StageRow](), 0
    _, kept = held_after_forward(profiled.chain, keep_all_plan(len(units)))
    for stage, num_units in enumerate(profiled.net.units_per_stage, start=1):
        own = units[start : start + num_units]
        kept_bytes = sum(kept[start : start + num_units])
        rows.append(StageRow(stage, num_units, own[-1].output_bytes, kept_bytes, kept_bytes / sum(kept)))
        start += num_units
    return tuple(rows)


def _engine_name(engine: EngineConfig) -> str:
    name = f"ZeRO {engine.zero_stage}" if engine.name == "deepspeed" else engine.name
    if engine.zero_stage == 3 and engine.offload_optimizer != engine.offload_parameters:
        return f"{name}, {'optimizer' if engine.offload_optimizer else 'parameter'} offload"
    return f"{name}, offload" if engine.offload_optimizer else name


def _numbers_up_to(num: int) -> list[int]:
    """All numbers up to `num`; if there are more than 400, some 80 geometrically spaced ones."""
    if num <= 400:
        return list(range(1, num + 1))
    return sorted({round(num ** (k / 80)) for k in range(81)})


def _no_plan(
    profiled: ProfiledNet,
    kind: Kind,
    name: str,
    share: float | None,
    budget_bytes: int,
    smallest_bytes: int,
) -> StrategyRow:
    total_bytes = smallest_bytes + profiled.other_memory(profiled.batch).total_bytes
    return StrategyRow(
        kind, name, share, budget_bytes, None, smallest_bytes, total_bytes,
        math.nan, math.nan, None, math.nan, math.nan, 0, fits=False,
    )  # fmt: skip


def _below_the_floor(profiled: ProfiledNet, budget_bytes: int, floor_bytes: int) -> str:
    def fits(size: int) -> bool:
        return Frontier(profiled.scaling.at(size)).floor_bytes <= budget_bytes

    batch = largest_batch(fits, most=profiled.batch)
    advice = f"a batch of {batch} would fit" if batch else "not even a batch of 1 would fit"
    return (
        f"no plan fits a budget of {format_bytes(budget_bytes)} at batch {profiled.batch}: the smallest that any plan "
        f"needs is {format_bytes(floor_bytes)} ({floor_bytes} bytes); {advice}"
    )


def _precision(precision: PrecisionConfig) -> str:
    return precision.compute + (", channels_last" if precision.channels_last else "")


def _model_row(profiled: ProfiledNet) -> ModelRow:
    model = profiled.config.model
    return ModelRow(
        depth=model.depth,
        dataset=model.dataset,
        block=model.chosen_block,
        activation=model.activation,
        shortcut=model.shortcut,
        units_per_stage=profiled.net.units_per_stage,
        num_units=len(profiled.net.units),
        num_parameters=profiled.num_parameters,
        multiply_adds=profiled.multiply_adds,
        batch=profiled.batch,
        image_size=profiled.image_size,
        precision=_precision(profiled.config.precision),
        world_size=profiled.world_size,
    )
