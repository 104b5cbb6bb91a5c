"""What a plan costs on a chain; this module alone defines its peak."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from deepres.recompute.chain import Chain, Retention
from deepres.recompute.plan import Action, Plan, PricedPlan


class Moment(NamedTuple):
    """The bytes held while one step of a schedule runs, by kind, and how long it takes.

    Args:
        action: what the step does.
        unit: with which unit, from 0; for the HEAD, the number of units.
        fixed_bytes: what the chain holds whatever the plan.
        kept_input_bytes: x_0, the inputs that segments are replayed from, and the input and output
            of a discarding run. An x among some unit's kept bytes is counted there instead.
        kept_bytes: what units that were run KEEP hold under their retentions.
        gradient_bytes: gradients of the x's.
        transient_bytes: what lives only during this step.
        duration_ms: the step's time.
    """

    action: Action
    unit: int
    fixed_bytes: int
    kept_input_bytes: int
    kept_bytes: int
    gradient_bytes: int
    transient_bytes: int
    duration_ms: float

    @property
    def total_bytes(self) -> int:
        """The sum of all kinds."""
        return (
            self.fixed_bytes
            + self.kept_input_bytes
            + self.kept_bytes
            + self.gradient_bytes
            + self.transient_bytes
        )


@dataclass(frozen=True, slots=True)
class Simulation:
    """A plan's costs on a chain.

    Args:
        peak_bytes: the most bytes held during any step, or while the stem runs.
        total_ms: the sum of all steps' times.
        forward_runs: how often each unit is run forward; 1 if it is never replayed.
    """

    peak_bytes: int
    total_ms: float
    forward_runs: tuple[int, ...]


def simulate(chain: Chain, plan: Plan) -> Simulation:
    """A plan's peak and time on a chain.

    Raises:
        ValueError: the chain has another number of units, or a unit lacks the plan's retention.
    """
    peak_bytes, durations_ms, forward_runs = chain.stem_bytes, list[float](), [0] * plan.num_units
    for moment in _moments(chain, plan):
        peak_bytes = max(peak_bytes, moment.total_bytes)
        durations_ms.append(moment.duration_ms)
        if moment.action in (Action.DISCARD, Action.KEEP):
            forward_runs[moment.unit] += 1
    return Simulation(peak_bytes, math.fsum(durations_ms), tuple(forward_runs))


def price(chain: Chain, plan: Plan) -> PricedPlan:
    """A plan with its costs on a chain.

    Raises:
        ValueError: the chain has another number of units, or a unit lacks the plan's retention.
    """
    cost = simulate(chain, plan)
    extra_ms = max(0.0, cost.total_ms - chain.step_ms)
    return PricedPlan(plan.segments, plan.retentions, cost.peak_bytes, cost.total_ms, extra_ms)


def timeline(chain: Chain, plan: Plan) -> tuple[Moment, ...]:
    """The bytes held in each step of a plan's schedule, in order.

    Raises:
        ValueError: the chain has another number of units, or a unit lacks the plan's retention.
    """
    return tuple(_moments(chain, plan))


def _moments(chain: Chain, plan: Plan) -> Iterator[Moment]:
    """NOTE [ Who holds what, and until when ]

    1. x_0 and the fixed bytes are held throughout.
    2. If unit i − 1 was run KEEP, x_i is among that unit's kept bytes, until that unit's BACKWARD.
    3. If unit i − 1 was run DISCARD, x_i is held until the last step that needs it: the next DISCARD
       of unit i, the HEAD for x_L, or the BACKWARD of unit i if the next step is its KEEP or begins a segment
       (`Step.begins_segment`). If the next step is not unit i's at all (nothing follows the segment), x_i is
       freed at once.
    4. What a KEEP keeps is held until the unit's BACKWARD, except for what is freed when that begins.
    5. x_i is freed after the KEEP of unit i if that drops it (`Retention.dropped_bytes`), unless it is among the kept
       bytes of unit i − 1 and needed there too (`UnitCost.leaves_output`).
    6. The HEAD leaves the gradient of x_L; each BACKWARD of unit i adds the gradient of x_i and then frees
       that of x_{i+1}.
    """
    retentions = _retentions_of(chain, plan)
    state_bytes = chain.state_bytes
    fixed = chain.fixed_bytes
    inputs, kept, gradient = chain.input_bytes, 0, 0
    is_input = [False] * (plan.num_units + 1)  # x_i is counted in `inputs`, by rules 1 and 3
    is_input[0] = True
    gone = [0] * (plan.num_units + 1)  # bytes of x_i taken out of `kept` early, by rule 5
    output = 0  # index of the x that the last step made, if a DISCARD; else 0
    for action, unit, begins_segment in plan.schedule():
        if output and unit != output:
            is_input[output] = False
            inputs -= state_bytes[output]
        output = 0
        done_with_input = action is not Action.KEEP and not begins_segment
        if action is Action.HEAD:
            transient, duration_ms = chain.head_bytes, chain.fixed_ms
        elif action is Action.DISCARD:
            output = unit + 1
            is_input[output] = True
            inputs += state_bytes[output]
            transient, duration_ms = chain.units[unit].forward_temp_bytes, chain.units[unit].forward_ms
        elif action is Action.KEEP:
            kept += retentions[unit].kept_bytes
            transient, duration_ms = retentions[unit].forward_temp_bytes, chain.units[unit].forward_ms
        else:
            gradient += state_bytes[unit]
            freed, gone[unit + 1] = retentions[unit].freed_bytes - gone[unit + 1], 0
            kept -= freed
            transient = retentions[unit].backward_temp_bytes
            duration_ms = chain.units[unit].backward_ms + retentions[unit].replay_ms
        yield Moment(action, unit, fixed, inputs, kept, gradient, transient, duration_ms)
        if action is Action.HEAD:
            gradient = state_bytes[-1]
        elif action is Action.BACKWARD:
            kept -= retentions[unit].kept_bytes - retentions[unit].freed_bytes
            gradient -= state_bytes[unit + 1]
        if action is Action.KEEP and unit:
            dropped = retentions[unit].dropped_bytes(state_bytes[unit])
            done_with_input = dropped > 0
            if not is_input[unit] and chain.units[unit - 1].leaves_output(retentions[unit - 1]):
                gone[unit] = dropped
                kept -= dropped
        if done_with_input and unit and is_input[unit]:
            is_input[unit] = False
            inputs -= state_bytes[unit]


def _retentions_of(chain: Chain, plan: Plan) -> list[Retention]:
    if plan.num_units != len(chain.units):
        raise ValueError(f"this plan is for {plan.num_units} units, the chain has {len(chain.units)}")
    retentions = list[Retention]()
    for i, (unit, name) in enumerate(zip(chain.units, plan.retentions, strict=True)):
        try:
            retentions.append(unit.retention(name))
        except ValueError as error:
            raise ValueError(f"unit {i} has {error}") from None
    return retentions
