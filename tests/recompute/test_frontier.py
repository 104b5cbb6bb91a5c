"""The frontier's plans against the planner's."""

from dataclasses import replace

import pytest

from deepres.recompute import (
    Chain,
    InfeasibleBudgetError,
    Retention,
    UnitCost,
    keep_all_plan,
    make_plan,
    price,
)
from deepres.recompute.frontier import Frontier
from deepres.recompute.planner import fastest_plan, smallest_budget
from tests.recompute.costs import UNIT

_UNIT = UnitCost(1.0, 2.0, 2, (Retention("all", 6), Retention("less", 3, 0.5)))
_CHAIN = Chain(1, (_UNIT,) * 12, 1, 3)


@pytest.mark.parametrize("max_groups", [12, 4])
def test_plans_fit_and_are_close_to_the_planners(max_groups):
    frontier = Frontier(_CHAIN, max_groups)
    assert frontier.units_per_group == 12 // max_groups
    most = price(_CHAIN, keep_all_plan(12)).peak_bytes
    for budget_bytes in range(frontier.floor_bytes, most + 20, 15):
        plan, best = frontier.plan(budget_bytes), make_plan(_CHAIN, budget_bytes)
        assert plan.peak_bytes <= budget_bytes
        bound = frontier.least_extra_share(budget_bytes)
        assert bound <= best.extra_share + 1e-9 <= plan.extra_share + 2e-9
        if max_groups == 12:
            assert plan.extra_share == pytest.approx(best.extra_share, abs=1e-6)
        elif budget_bytes > 40:  # 20 states; below, groups of three are coarse
            assert plan.extra_share <= best.extra_share + 0.05


def test_one_table_for_all_budgets_gives_plans_as_fast_as_one_for_each():
    large = UnitCost(2.0, 3.0, 999, (Retention("all", 2500), Retention("less", 1301, 0.7, freed_bytes=999)))
    small = UnitCost(1.0, 2.0, 501, (Retention("all", 1203), Retention("less", 733, 0.4, 97, 53)))
    chain = Chain(303, (large,) * 40 + (small,) * 70, 17, 211, 5.0)
    frontier, most = Frontier(chain), price(chain, fastest_plan(chain)).peak_bytes
    for eighth in range(9):
        budget_bytes = round(frontier.floor_bytes * (most / frontier.floor_bytes) ** (eighth / 8))
        plan, best = frontier.plan(budget_bytes), make_plan(chain, budget_bytes)
        assert plan.peak_bytes <= budget_bytes
        assert frontier.least_extra_share(budget_bytes) <= plan.extra_share + 1e-9
        assert plan.total_ms <= 1.005 * best.total_ms


def test_the_floor_is_the_smallest_budget_and_below_it_there_is_no_plan():
    frontier = Frontier(_CHAIN, 4)
    assert frontier.floor_bytes == smallest_budget(_CHAIN) == frontier.floor.peak_bytes
    with pytest.raises(InfeasibleBudgetError, match="raise the budget"):
        frontier.plan(frontier.floor_bytes - 1)


@pytest.mark.parametrize("share", [0.0, 0.2])
def test_the_smallest_plan_within_a_time_takes_no_more_and_less_would(share):
    frontier = Frontier(_CHAIN)
    plan = frontier.smallest_within(share)
    assert plan.extra_share <= share
    assert make_plan(_CHAIN, round(0.95 * plan.peak_bytes)).extra_share > share


def test_a_chain_that_takes_no_time_has_no_extra_share():
    chain = Chain(1, (replace(UNIT, forward_ms=0.0, backward_ms=0.0),) * 4)
    assert Frontier(chain).least_extra_share(10) == 0
