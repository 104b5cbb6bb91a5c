"""The plans of a chain over all budgets: how time trades against memory."""

from __future__ import annotations

from functools import cached_property, lru_cache

from deepres.recompute.chain import Chain
from deepres.recompute.coarse import coarsen
from deepres.recompute.dynamic_program import DynamicProgram
from deepres.recompute.least_peak import smallest_plan
from deepres.recompute.lower_bound import least_extra_ms
from deepres.recompute.memory_levels import geometric_levels
from deepres.recompute.plan import PricedPlan
from deepres.recompute.planner import InfeasibleBudgetError, fastest_plan, make_plan, smallest_budget
from deepres.recompute.simulate import price

_MOST_UNITS_FOR_FLOOR = 1000
"""Finding the least peak of more units takes minutes."""
_FEW_UNITS = 100
"""Up to so many, a table for each budget takes a tenth of a second."""
_NUM_LEVELS = 300
MAX_GROUPS = 400
"""How many units, or groups of them, a `Frontier` plans."""


class Frontier:
    """Plans of a chain for many budgets, in less time than calling `make_plan` for each.

    Plans of more than 100 units all come from one table of the dynamic programme, with geometrically spaced levels,
    which serve small budgets as well as large ones. Chains of more than `max_groups` units are planned in groups
    (`deepres.recompute.coarse`).

    Args:
        chain: what each unit costs.
        max_groups: about how many units or groups to plan.

    Attributes:
        units_per_group: in the largest group; 1 if units are planned one by one.
    """

    def __init__(self, chain: Chain, max_groups: int = MAX_GROUPS) -> None:
        self._chain = chain
        self._coarse = coarsen(chain, max_groups)
        self.units_per_group = self._coarse.num_units_per_group
        if len(chain.units) > _MOST_UNITS_FOR_FLOOR:
            smallest = self._coarse.expand(smallest_plan(self._coarse.chain))
        else:
            smallest = smallest_plan(chain)
        self._smallest = price(chain, smallest)

    @property
    def floor_bytes(self) -> int:
        """The least peak; for more than 1000 units, that of plans of groups."""
        return self._smallest.peak_bytes

    @cached_property
    def floor(self) -> PricedPlan:
        """A plan with the least peak: the fastest, unless units are planned in groups."""
        return self.plan(self.floor_bytes)

    def plan(self, budget_bytes: int) -> PricedPlan:
        """A fast plan within the budget; `least_extra_share` bounds how much faster any other can be.

        Raises:
            InfeasibleBudgetError: the budget is below the floor.
        """
        if budget_bytes < self.floor_bytes:
            raise InfeasibleBudgetError(budget_bytes, self.floor_bytes)
        groups = self._coarse.chain
        if budget_bytes < smallest_budget(groups):  # groups need more than units
            return self._smallest
        if len(groups.units) <= _FEW_UNITS:
            return price(self._chain, self._coarse.expand(make_plan(groups, budget_bytes)))
        program, most_bytes, ratio = _program_of(groups)
        room_bytes = min(budget_bytes - groups.fixed_bytes - groups.input_bytes, most_bytes)
        plans = program.candidates(room_bytes, distance_bytes=round((ratio - 1) * room_bytes))
        return min(
            (price(self._chain, self._coarse.expand(plan)) for plan in plans), key=lambda plan: plan.total_ms
        )

    def smallest_within(self, max_extra_share: float) -> PricedPlan:
        """A plan with the least peak, to 1 %, among those within a limit on extra time.

        Args:
            max_extra_share: the limit, as a share of a step with everything kept.
        """
        high = self.plan(2**62).peak_bytes
        best, low = self.plan(high), self.floor_bytes
        while high - low > max(1, 0.01 * low):
            middle = min(max(round((low * high) ** 0.5), low + 1), high - 1)
            plan = self.plan(middle)
            if plan.extra_share <= max_extra_share:
                best, high = plan, min(middle, plan.peak_bytes)
            else:
                low = middle
        return best

    def least_extra_share(self, budget_bytes: int) -> float:
        """A lower bound on any plan's extra time within the budget, as a share of a step with everything kept."""
        return least_extra_ms(self._chain, budget_bytes) / self._chain.step_ms if self._chain.step_ms else 0.0


@lru_cache(maxsize=1)
def _program_of(chain: Chain) -> tuple[DynamicProgram, int, float]:
    """The table of a chain, its highest level (where everything is kept), and the ratio of neighbouring levels.

    Cached for the last chain alone: a table of ResNet-1001 takes 128 MiB.
    """
    base_bytes = chain.fixed_bytes + chain.input_bytes
    least = max(1, (smallest_budget(chain) - base_bytes) // 16)  # parts of the chain may have far less left
    most = max(least + 1, price(chain, fastest_plan(chain)).peak_bytes - base_bytes)
    levels = geometric_levels(least, most, _NUM_LEVELS)
    return DynamicProgram(chain, levels), most, (most / least) ** (1 / _NUM_LEVELS)
