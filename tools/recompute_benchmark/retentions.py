"""Whether cheaper retentions than deepres has would pay: plans with hypothetical ones, from measured times."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace

from deepres import InfeasibleBudgetError, build_resnet, make_plan
from deepres.recompute import Chain, Retention, UnitCost
from measuring.report import Report
from measuring.timing import Clock
from recompute_benchmark.budgets import MIB, measured_chain
from recompute_benchmark.frontier import replay_fractions, with_retentions
from recompute_benchmark.op_times import OpTimes, op_times
from recompute_benchmark.segment_outputs import extra_ms_by_budget

BUDGETS_MIB = (64, 32, 16, 8)
Hypothesis = Callable[[Retention, OpTimes, int], Retention]


def retentions_report(depth: int, batch: int, clock: Clock) -> Report:
    """Extra time of plans with the retentions there are, and with one or two more.

    Args:
        depth: of the net.
        batch: at which costs are measured.
        clock: how to time.
    """
    arguments = {"depth": depth, "batch": batch, "repeats": 7}
    chain = Chain.from_json(clock.call(measured_chain, arguments))
    found = clock.call(op_times, arguments)
    times = [
        OpTimes(*(tuple(stage[key]) for key in ("convolutions_ms", "activations_ms"))) for stage in found
    ]
    hypotheses: dict[str, Sequence[Hypothesis]] = {
        "3x3": (second_output,),
        "output": (output_alone,),
        "3x3_and_output": (second_output, output_alone),
    }
    chains = {"both": chain} | {
        name: with_hypotheses(depth, batch, chain, times, more) for name, more in hypotheses.items()
    }
    segments = extra_ms_by_budget(
        chain,
        inner_bytes=_inner_bytes(depth, batch),
        last_ms=_last_ms(depth, chain, times),
        budgets_bytes=[mib * MIB * batch for mib in BUDGETS_MIB],
    )
    rows = []
    for mib, (without, with_inner) in zip(BUDGETS_MIB, segments, strict=True):
        row: dict[str, float | None] = {"budget_mib": mib}
        row["all"] = _extra_percent(with_retentions(chain, "all"), mib * MIB * batch)
        extras = {name: _extra_percent(kind, mib * MIB * batch) for name, kind in chains.items()}
        # What the planner finds with fewer retentions is open to it with more, though its rounding may hide it.
        row |= {name: _least(extra, extras["both"], row["all"]) for name, extra in extras.items()}
        row["coarse"] = None if without is None else 100 * without / chain.step_ms
        row["coarse_inner"] = None if with_inner is None else 100 * with_inner / chain.step_ms
        rows.append(row)
    stages = "; ".join(
        f"stage {k + 1}: convolutions {', '.join(f'{ms:.2f}' for ms in t.convolutions_ms)} ms, BN and ReLU before them "
        f"{', '.join(f'{ms:.2f}' for ms in t.activations_ms)} ms, replay by `conv_outputs` {fraction:.2f} forwards"
        for k, (t, fraction) in enumerate(zip(times, replay_fractions(depth, chain), strict=True))
    )
    note = (
        "Extra time in % of a step with everything kept, by the planner, from measured costs. None of the retentions "
        "right of `conv_outputs` exists: their bytes are counted, and their replays are `conv_outputs`' plus the "
        "measured time of the convolutions that they run again. *3×3's output* drops the first convolution's output "
        "(5w values a pixel remain of 6w); *output alone* the 3×3's too (4w: it replays all but the last convolution, "
        "which a segment of one unit would run again)."
    )
    coarse = (
        "The last two columns, to be compared with each other, are of a coarser programme (bytes by 1/400 of the "
        "budget, no transients, in long chains units by threes) without and with segments that keep the outputs of "
        "their inner convolutions (2w), so that a replay runs the last convolution alone."
    )
    return Report(
        name="retentions",
        title=f"Would further retentions pay? ResNet-{depth}, batch {batch}, fp32",
        columns={
            "budget_mib": "budget, MiB an image",
            "all": "`all`",
            "both": "+ `conv_outputs`",
            "3x3": "+ 3×3's output",
            "output": "+ output alone",
            "3x3_and_output": "+ both of these",
            "coarse": "coarse: + `conv_outputs`",
            "coarse_inner": "coarse: + segments' inner outputs",
        },
        rows=rows,
        notes=[note, coarse, f"Times behind the table ({clock}), {stages}."],
        data={"clock": str(clock), "depth": depth, "batch": batch, "op_times": found},
    )


def second_output(kept: Retention, times: OpTimes, value_bytes: int) -> Retention:
    """Keep the 3×3's output and the unit's, replay the first convolution."""
    return replace(
        kept,
        name="3x3_output",
        kept_bytes=kept.kept_bytes - value_bytes,
        replay_ms=kept.replay_ms + times.convolutions_ms[0],
        backward_temp_bytes=kept.backward_temp_bytes + value_bytes,
    )


def output_alone(kept: Retention, times: OpTimes, value_bytes: int) -> Retention:
    """Keep the unit's output alone, replay all but the last convolution."""
    return replace(
        kept,
        name="output",
        kept_bytes=kept.kept_bytes - 2 * value_bytes,
        replay_ms=kept.replay_ms + times.convolutions_ms[0] + times.convolutions_ms[1],
        backward_temp_bytes=kept.backward_temp_bytes + 2 * value_bytes,
    )


def with_hypotheses(
    depth: int, batch: int, chain: Chain, times: Sequence[OpTimes], more: Sequence[Hypothesis]
) -> Chain:
    """The chain with retentions that its units do not have."""

    def extended(unit: UnitCost, stage: int) -> UnitCost:
        kept, value_bytes = unit.retention("conv_outputs"), _value_bytes(stage, batch)
        added = tuple(make(kept, times[stage], value_bytes) for make in more)
        return replace(unit, retentions=(*unit.retentions, *added))

    return replace(
        chain,
        units=tuple(extended(unit, stage) for unit, stage in zip(chain.units, _stages(depth), strict=True)),
    )


def _least(*extras: float | None) -> float | None:
    return min((extra for extra in extras if extra is not None), default=None)


def _inner_bytes(depth: int, batch: int) -> list[int]:
    return [2 * _value_bytes(stage, batch) for stage in _stages(depth)]


def _last_ms(depth: int, chain: Chain, times: Sequence[OpTimes]) -> list[float]:
    """What a unit's output takes if its inner convolutions' outputs are there: BN, ReLU, convolution, addition.

    The addition is what the unit's forward takes beyond its convolutions and activations.
    """
    forward = {
        stage: statistics.median(
            unit.forward_ms for unit, s in zip(chain.units, _stages(depth), strict=True) if s == stage
        )
        for stage in range(3)
    }
    last = []
    for stage in _stages(depth):
        convolutions, activations = times[stage].convolutions_ms, times[stage].activations_ms
        addition = max(0.0, forward[stage] - sum(convolutions) - sum(activations))
        last.append(activations[2] + convolutions[2] + addition)
    return last


def _stages(depth: int) -> list[int]:
    per_stage = build_resnet(depth, block="bottleneck").units_per_stage
    return [stage for stage, num_units in enumerate(per_stage) for _ in range(num_units)]


def _value_bytes(stage: int, batch: int) -> int:
    """One inner convolution's output."""
    return 4 * batch * (16 << stage) * (32 >> stage) ** 2


def _extra_percent(chain: Chain, budget_bytes: int) -> float | None:
    try:
        return 100 * make_plan(chain, budget_bytes).extra_share
    except InfeasibleBudgetError:
        return None
