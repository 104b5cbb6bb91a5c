"""The fastest plan for a byte budget."""

from functools import lru_cache

from deepres.bytesize import format_bytes
from deepres.recompute.chain import Chain
from deepres.recompute.dynamic_program import DynamicProgram, quickest_retentions
from deepres.recompute.least_peak import least_needs
from deepres.recompute.memory_levels import even_levels, exact_levels
from deepres.recompute.plan import Plan, PricedPlan
from deepres.recompute.simulate import price

_FEW_UNITS = 200
"""Up to so many units, there is time to plan twice."""
_SMALL_TABLE = 2**22
"""A table of so many entries always fits: short chains get more levels than asked for."""


class InfeasibleBudgetError(ValueError):
    """No plan fits the budget.

    Attributes:
        budget_bytes: the budget asked for.
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
    """The fewest bytes within which a chain can be trained: exactly the least peak of any plan."""
    return max(chain.stem_bytes, chain.fixed_bytes + chain.input_bytes + int(least_needs(chain)[0, 0, -1]))


def fastest_plan(chain: Chain) -> Plan:
    """Every unit kept, by the retention that replays least."""
    choices = zip(chain.units, quickest_retentions(chain), strict=True)
    return Plan((), tuple(unit.retentions[r].name for unit, r in choices))


def make_plan(chain: Chain, budget_bytes: int, slots: int = 500) -> PricedPlan:
    """The fastest plan whose peak, by `simulate`, is within the budget.

    It is optimal over all plans if the bytes that plans may hold take few values: for short chains, or if
    all sizes are multiples of some size (`exact_levels`). Otherwise times are known at some memory levels and
    interpolated between them: the plan is then typically within 0.1 % of the optimal step time, and a slightly
    larger budget may give a slightly slower plan. The bytes are exact in any case. Algorithm and sources:
    NOTE [ The dynamic programme ] in dynamic_program.py. Planning takes O(units³ · slots) time, seconds for
    333 units, and O(units² · slots) memory. Plans are cached.

    Args:
        chain: what each unit costs.
        budget_bytes: what activations may take at any time, including the chain's input and fixed bytes.
        slots: the number of levels in the budget where they are not exact; short chains get more.

    Raises:
        InfeasibleBudgetError: no plan fits; the error has the smallest budget that would.
        TypeError: `chain` is not a Chain.
        ValueError: the budget or `slots` is not an int of at least 1.
    """
    if not isinstance(chain, Chain):
        raise TypeError(
            f"chain must be a Chain (of measure_chain or predict_chain), got {type(chain).__name__}"
        )
    for name, value in (("budget_bytes", budget_bytes), ("slots", slots)):
        if type(value) is not int or value < 1:
            raise ValueError(f"{name} must be an int of at least 1, got {value!r}")
    plan = _make_plan(chain, budget_bytes, slots)
    assert plan.peak_bytes <= budget_bytes, (plan.peak_bytes, budget_bytes)
    return plan


@lru_cache(maxsize=64)
def _make_plan(chain: Chain, budget_bytes: int, slots: int) -> PricedPlan:
    smallest_bytes = smallest_budget(chain)
    if budget_bytes < smallest_bytes:
        raise InfeasibleBudgetError(budget_bytes, smallest_bytes)
    keep_all = price(chain, fastest_plan(chain))
    if keep_all.peak_bytes <= budget_bytes:
        return keep_all
    room_bytes = budget_bytes - chain.fixed_bytes - chain.input_bytes
    num_levels = max(slots, _SMALL_TABLE // len(chain.units) ** 2)
    levels = exact_levels(chain, room_bytes, num_levels)
    if levels is not None:
        return price(chain, DynamicProgram(chain, levels).plan(room_bytes))
    levels = even_levels(room_bytes, num_levels)
    programs = [DynamicProgram(chain, levels)]
    if len(chain.units) <= _FEW_UNITS:
        programs.append(DynamicProgram(chain, levels, is_optimistic=True))
    plans = (plan for program in programs for plan in program.candidates(room_bytes, int(levels[1])))
    return min((price(chain, plan) for plan in plans), key=lambda plan: plan.total_ms)
