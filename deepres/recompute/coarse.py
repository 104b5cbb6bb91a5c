"""Chains of thousands of units, planned in groups: the dynamic programme takes time cubic in the units."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby, pairwise

from deepres.recompute.chain import Chain, Retention, UnitCost
from deepres.recompute.least_peak import smallest_plan
from deepres.recompute.plan import Action, Plan, keep_all_plan, uniform_plan
from deepres.recompute.planner import make_plan
from deepres.recompute.simulate import simulate, timeline

_MOST_PLANNED = 48
"""Groups of more units get only uniform plans, without a search."""


@dataclass(frozen=True)
class CoarseChain:
    """A chain whose units are groups of another chain's units, and how to map its plans back.

    NOTE [ Groups of units ]
    1. Runs of units of equal costs are divided into groups of as equal sizes as possible.
    2. A group's retentions are plans of its own units: what such a plan holds after the group's forward phase
       counts as kept, its extra time as replay, and its peaks as transients.
    3. So each plan of the groups is a plan of the units that takes the same time and has no higher peak: a group
       holds its input while it is run discarding, and its output until its backward; single units need not.
    4. Not every plan of the units is one of groups (no segment begins inside a group and ends in another), so
       the fastest one may be missed; `least_extra_ms` bounds by how much.

    Attributes:
        chain: the chain of groups.
        starts: the first unit of each group, then the number of units.
        inner_plans: for each group, the plan of its units that each retention stands for, by name.
    """

    chain: Chain
    starts: tuple[int, ...]
    inner_plans: tuple[dict[str, Plan], ...]

    @property
    def num_units_per_group(self) -> int:
        """The number of units in the largest group."""
        return max(stop - start for start, stop in pairwise(self.starts))

    def expand(self, plan: Plan) -> Plan:
        """The plan of the units that a plan of the groups stands for."""
        segments = {(self.starts[start], self.starts[stop]) for start, stop in plan.segments}
        retentions = list[str]()
        for start, plans, name in zip(self.starts, self.inner_plans, plan.retentions, strict=False):
            inner = plans[name]
            segments |= {(start + a, start + b) for a, b in inner.segments}
            retentions += inner.retentions
        return Plan(tuple(segments), tuple(retentions))


def coarsen(chain: Chain, max_groups: int) -> CoarseChain:
    """Group a chain's units so that about `max_groups` groups remain; more if neighbours differ more often.

    A chain of no more than `max_groups` units stays as it is. See NOTE [ Groups of units ].
    """
    size = -(-len(chain.units) // max_groups)
    known: dict[tuple[int, int, UnitCost], tuple[UnitCost, dict[str, Plan]]] = {}
    costs, starts, inner_plans, x_bytes = list[UnitCost](), [0], list[dict[str, Plan]](), chain.input_bytes
    for unit, run in groupby(chain.units):
        num_units = len(list(run))
        num_groups = -(-num_units // size)
        bounds = [part * num_units // num_groups for part in range(num_groups + 1)]
        for start, stop in pairwise(bounds):
            key = (x_bytes, stop - start, unit)
            if key not in known:
                known[key] = _group(Chain(x_bytes, (unit,) * (stop - start)))
            cost, plans = known[key]
            costs.append(cost)
            inner_plans.append(plans)
            starts.append(starts[-1] + stop - start)
            x_bytes = unit.output_bytes
    return CoarseChain(replace(chain, units=tuple(costs)), tuple(starts), tuple(inner_plans))


def _group(chain: Chain) -> tuple[UnitCost, dict[str, Plan]]:
    """The group as one unit, and the plans that its retentions stand for."""
    num_units = len(chain.units)
    if num_units == 1:
        unit = chain.units[0]
        return unit, {retention.name: keep_all_plan(1, retention.name) for retention in unit.retentions}
    priced = [(_retention("plan", chain, plan), plan) for plan in dict.fromkeys(_inner_plans(chain))]
    retentions, plans = list[Retention](), dict[str, Plan]()
    for retention, plan in sorted(priced, key=lambda pair: (pair[0].kept_bytes, pair[0].replay_ms)):
        if not any(_is_worse(retention, other) for other, _ in priced if other != retention):
            name = f"plan {len(plans)}"
            if not any(_costs(known) == _costs(retention) for known in retentions):
                retentions.append(replace(retention, name=name))
                plans[name] = plan
    x = chain.state_bytes
    runs = [x[1] + chain.units[0].forward_temp_bytes]
    runs += [x[i] + x[i + 1] + chain.units[i].forward_temp_bytes for i in range(1, num_units)]
    cost = UnitCost(
        forward_ms=math.fsum(unit.forward_ms for unit in chain.units),
        backward_ms=math.fsum(unit.backward_ms for unit in chain.units),
        output_bytes=x[-1],
        retentions=tuple(retentions),
        forward_temp_bytes=max(0, max(runs) - x[-1]),
    )
    return cost, plans


def _inner_plans(chain: Chain) -> Iterator[Plan]:
    num_units = len(chain.units)
    for retention in chain.units[0].retentions:
        nums = {*range(1, min(num_units, 8) + 1), *(2**k for k in range(3, num_units.bit_length()))}
        for num_segments in sorted(nums):
            yield uniform_plan(num_units, num_segments, retention.name)
    if num_units <= _MOST_PLANNED:
        smallest = smallest_plan(chain)
        yield smallest
        most = keep_all_plan(num_units, chain.units[0].retentions[0].name)
        low, high = (simulate(chain, plan).peak_bytes for plan in (smallest, most))
        for eighth in range(1, 5):
            yield make_plan(chain, low + (high - low) * eighth // 8, 100)


def _retention(name: str, chain: Chain, plan: Plan) -> Retention:
    """What a group run under a plan keeps and replays, by rule 2."""
    moments = timeline(chain, plan)
    turn = next(i for i, moment in enumerate(moments) if moment.action is Action.HEAD)
    kept_bytes = moments[turn].total_bytes - chain.input_bytes
    forward_peak = max(moment.total_bytes for moment in moments[:turn]) - chain.input_bytes
    backward_peak = max(moment.total_bytes for moment in moments[turn + 1 :]) - chain.input_bytes
    backward_bytes = backward_peak - chain.state_bytes[-1] - chain.input_bytes  # without both gradients
    return Retention(
        name,
        kept_bytes,
        replay_ms=max(0.0, math.fsum(moment.duration_ms for moment in moments) - chain.step_ms),
        forward_temp_bytes=max(0, forward_peak - kept_bytes),
        backward_temp_bytes=max(0, backward_bytes - kept_bytes),
        freed_bytes=min(kept_bytes, max(0, kept_bytes - backward_bytes)),
    )


def _costs(retention: Retention) -> tuple[float, ...]:
    return (
        retention.kept_bytes,
        retention.replay_ms,
        retention.kept_bytes + retention.forward_temp_bytes,
        retention.kept_bytes + retention.backward_temp_bytes - retention.freed_bytes,
    )


def _is_worse(retention: Retention, other: Retention) -> bool:
    pairs = list(zip(_costs(retention), _costs(other), strict=True))
    return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)
