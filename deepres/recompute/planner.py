"""The fastest plan for a byte budget."""

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache

from deepres.bytesize import format_bytes
from deepres.recompute.chain import Chain
from deepres.recompute.levels import exact_grid, rounded_grid
from deepres.recompute.needs import needs_of, smallest_plan
from deepres.recompute.optimum import Optimum, quickest_retentions
from deepres.recompute.plan import Plan, uniform_plan

_SMALL_TABLE = 2**22
"""Entries for each of which there is always room: short chains get more levels than asked for."""


class InfeasibleBudgetError(ValueError):
    """No plan fits the budget.

    Args:
        budget_bytes: what was asked for.
        smallest_bytes: the smallest budget for which there is a plan.
    """

    def __init__(self, budget_bytes: int, smallest_bytes: int) -> None:
        super().__init__(
            f"no plan fits a budget of {format_bytes(budget_bytes)} ({budget_bytes} bytes): the smallest that "
            f"any plan needs is {format_bytes(smallest_bytes)} ({smallest_bytes} bytes); raise the budget or "
            "make the batch smaller"
        )
        self.budget_bytes, self.smallest_bytes = budget_bytes, smallest_bytes


def smallest_budget(chain: Chain) -> int:
    """The fewest bytes within which a chain can be trained, exactly: the least peak of any plan."""
    return max(chain.stem_bytes, chain.fixed_bytes + chain.input_bytes + int(needs_of(chain)[0, -1]))


def make_plan(chain: Chain, budget_bytes: int, slots: int = 500) -> Plan:
    """The fastest plan whose peak, by `simulate`, is within the budget.

    It is the optimum over all plans if what they may hold takes few values: in short chains, or where
    sizes are multiples of some size (`exact_grid`). Otherwise bytes are rounded to slots, and the plan
    is the best of those so found that fits in exact bytes, as a rule within 0.5 % of the optimal step;
    only then may a slightly larger budget give a slightly slower plan. Algorithm and sources: NOTE
    [ The dynamic programme ] in optimum.py. It takes O(units³ · slots) time, seconds for 333 units,
    and O(units² · slots) memory. Plans are cached.

    Args:
        chain: what each unit costs.
        budget_bytes: what activations may take at any time, the chain's input and fixed bytes included.
        slots: into how many parts the budget is cut where it is rounded; short chains get more.

    Raises:
        InfeasibleBudgetError: no plan fits; it says which budget would do.
        ValueError: the budget or `slots` is not an int of at least 1.
    """
    for name, value in (("budget_bytes", budget_bytes), ("slots", slots)):
        if type(value) is not int or value < 1:
            raise ValueError(f"{name} must be an int of at least 1, got {value!r}")
    plan = _make_plan(chain, budget_bytes, slots)
    assert _fits(plan, budget_bytes), (plan.peak_bytes, budget_bytes)
    return plan


@lru_cache(maxsize=64)
def _make_plan(chain: Chain, budget_bytes: int, slots: int) -> Plan:
    smallest_bytes = smallest_budget(chain)
    if budget_bytes < smallest_bytes:
        raise InfeasibleBudgetError(budget_bytes, smallest_bytes)
    num_units = len(chain.units)
    choices = zip(chain.units, quickest_retentions(chain), strict=True)
    keep_all = Plan(num_units, (), tuple(unit.retentions[r].name for unit, r in choices)).priced(chain)
    if _fits(keep_all, budget_bytes):
        return keep_all
    room_bytes = budget_bytes - chain.fixed_bytes - chain.input_bytes
    num_levels = max(slots, _SMALL_TABLE // num_units**2)
    grid = exact_grid(chain, room_bytes, num_levels)
    if grid is None:
        optimum = Optimum(chain, rounded_grid(chain, room_bytes, num_levels))
        best = _best_that_fits(chain, budget_bytes, optimum)
        # Rounding must not make more choice slower than less.
        return min([best, *_plans_with_one_retention(chain, budget_bytes, slots)], key=_total_ms)
    plan = Optimum(chain, grid).plan(len(grid.levels) - 1)
    assert plan is not None, "the least peak and the dynamic programme disagree"
    return plan.priced(chain)


def _best_that_fits(chain: Chain, budget_bytes: int, optimum: Optimum) -> Plan:
    """The fastest of the plans at hand that fit: of levels, found by bisection; uniform; smallest."""
    best = smallest_plan(chain).priced(chain)
    low, high = 0, optimum.num_levels
    while low < high:
        level = (low + high) // 2
        plan = optimum.plan(level)
        if plan is not None:
            plan = plan.priced(chain)
        if plan is None or _fits(plan, budget_bytes):
            low = level + 1
            best = min(best, plan or best, key=_total_ms)
        else:
            high = level
    for plan in _uniform_plans(chain):
        if _total_ms_of_uniform(chain, plan) < _total_ms(best):
            priced = plan.priced(chain)
            if _fits(priced, budget_bytes):
                best = min(best, priced, key=_total_ms)
    return best


def _plans_with_one_retention(chain: Chain, budget_bytes: int, slots: int) -> Iterator[Plan]:
    """The plans that fit of chains whose units all have but one of their retentions, if they have several."""
    for name in [retention.name for retention in chain.units[0].retentions]:
        of_unit = [[r for r in unit.retentions if r.name == name] for unit in chain.units]
        if all(of_unit) and any(len(unit.retentions) > 1 for unit in chain.units):
            units = zip(chain.units, of_unit, strict=True)
            narrow = replace(
                chain, units=tuple(replace(unit, retentions=tuple(kept)) for unit, kept in units)
            )
            if smallest_budget(narrow) <= budget_bytes:
                yield _make_plan(narrow, budget_bytes, slots).priced(chain)


def _uniform_plans(chain: Chain) -> Iterator[Plan]:
    num_units = len(chain.units)
    for name in [retention.name for retention in chain.units[0].retentions]:
        if all(name in [retention.name for retention in unit.retentions] for unit in chain.units):
            for num_segments in range(1, num_units + 1):
                yield uniform_plan(num_units, num_segments, name)


def _total_ms_of_uniform(chain: Chain, plan: Plan) -> float:
    """What `simulate` would say, for plans without nesting."""
    num_discarded = plan.segments[-1][1] if plan.segments else 0
    replays = sum(
        unit.retention(name).replay_ms for unit, name in zip(chain.units, plan.retentions, strict=True)
    )
    return chain.step_ms + sum(unit.forward_ms for unit in chain.units[:num_discarded]) + replays


def _fits(plan: Plan, budget_bytes: int) -> bool:
    assert plan.peak_bytes is not None
    return plan.peak_bytes <= budget_bytes


def _total_ms(plan: Plan) -> float:
    assert plan.total_ms is not None
    return plan.total_ms
