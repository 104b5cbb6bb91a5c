"""The plans of a chain over all budgets: how time trades against memory."""

from __future__ import annotations

from functools import cached_property

from deepres.recompute.chain import Chain
from deepres.recompute.coarse import coarsen
from deepres.recompute.lower_bound import least_extra_ms
from deepres.recompute.needs import smallest_plan
from deepres.recompute.plan import PricedPlan
from deepres.recompute.planner import InfeasibleBudgetError, make_plan
from deepres.recompute.simulate import price

_MOST_UNITS_FOR_FLOOR, _MOST_UNITS_AT_FLOOR = 1000, 400
"""To find the least peak of more units takes minutes, and to find a fast plan with it seconds."""


class Frontier:
    """Plans of a chain for many budgets, in less time than `make_plan` takes for each.

    Chains of more than `max_groups` units are planned in groups (`deepres.recompute.coarse`).

    Args:
        chain: what each unit costs.
        max_groups: how many units or groups to plan.
        slots: as of `make_plan`.

    Attributes:
        units_per_group: the most; 1 if units are planned one by one.
    """

    def __init__(self, chain: Chain, max_groups: int = 111, slots: int = 200) -> None:
        self._chain, self._slots = chain, slots
        self._coarse = coarsen(chain, max_groups)
        self.units_per_group = self._coarse.num_units_per_group
        if len(chain.units) > _MOST_UNITS_FOR_FLOOR:
            smallest = self._coarse.expand(smallest_plan(self._coarse.chain))
        else:
            smallest = smallest_plan(chain)
        self._smallest = price(chain, smallest)

    @property
    def floor_bytes(self) -> int:
        """The least peak; of more than 1000 units, that of groups."""
        return self._smallest.peak_bytes

    @cached_property
    def floor(self) -> PricedPlan:
        """A plan with the least peak; of up to 400 units a fast one."""
        if len(self._chain.units) > _MOST_UNITS_AT_FLOOR:
            return self._smallest
        return make_plan(self._chain, self.floor_bytes, 100)

    def plan(self, budget_bytes: int) -> PricedPlan:
        """A fast plan within the budget; `least_extra_share` says how much faster another one may be.

        Raises:
            InfeasibleBudgetError: the budget is below the floor.
        """
        if budget_bytes < self.floor_bytes:
            raise InfeasibleBudgetError(budget_bytes, self.floor_bytes)
        try:
            plan = make_plan(self._coarse.chain, budget_bytes, self._slots)
        except InfeasibleBudgetError:  # groups need more than units
            return self.floor
        return price(self._chain, self._coarse.expand(plan))

    def smallest_within(self, max_extra_share: float, precision: float = 0.01) -> PricedPlan:
        """The plan of about the least peak that takes no more than that share of a step extra.

        Args:
            max_extra_share: of a step with everything kept.
            precision: how close the budgets are to each other between which to choose, relatively.
        """
        high = self.plan(2**62).peak_bytes
        best, low = self.plan(high), self.floor_bytes
        while high - low > max(1, precision * low):
            middle = min(max(round((low * high) ** 0.5), low + 1), high - 1)
            plan = self.plan(middle)
            if plan.extra_share <= max_extra_share:
                best, high = plan, min(middle, plan.peak_bytes)
            else:
                low = middle
        return best

    def least_extra_share(self, budget_bytes: int) -> float:
        """A share of a step with everything kept that every plan for the budget takes extra."""
        return least_extra_ms(self._chain, budget_bytes) / self._chain.step_ms if self._chain.step_ms else 0.0
