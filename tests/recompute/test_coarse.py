"""Plans of groups of units are plans of the units, and no plan is faster than the bound."""

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepres.recompute import (
    Chain,
    Plan,
    Retention,
    UnitCost,
    keep_all_plan,
    make_plan,
    per_unit_plan,
    price,
    simulate,
)
from deepres.recompute.coarse import coarsen
from deepres.recompute.lower_bound import least_extra_ms
from deepres.recompute.planner import smallest_budget
from tests.recompute.costs import UNIT

_RETENTIONS = st.builds(
    lambda kept, replay, temps, more, freed: (
        Retention("all", kept + more, 0.0, *temps, freed),
        Retention("less", kept, replay, temps[1], temps[0]),
    ),
    st.integers(6, 12),
    st.integers(1, 4).map(float),
    st.tuples(st.integers(0, 6), st.integers(0, 6)),
    st.integers(1, 9),
    st.integers(0, 6),
)
_UNITS = st.builds(
    UnitCost,
    forward_ms=st.integers(1, 5).map(float),
    backward_ms=st.integers(1, 9).map(float),
    output_bytes=st.integers(1, 6),
    retentions=_RETENTIONS,
    forward_temp_bytes=st.integers(0, 8),
)
_CHAINS = st.builds(
    lambda runs, ends: Chain(ends[0], tuple(u for unit, n in runs for u in [unit] * n), ends[1], ends[2]),
    st.lists(st.tuples(_UNITS, st.integers(1, 7)), min_size=1, max_size=3),
    st.tuples(st.integers(0, 6), st.integers(0, 9), st.integers(0, 9)),
)


@given(chain=_CHAINS, max_groups=st.integers(1, 8), share=st.floats(0, 1))
def test_a_plan_of_groups_takes_the_time_it_says_and_no_more_bytes(chain, max_groups, share):
    coarse = coarsen(chain, max_groups)
    assert sum(unit.forward_ms + unit.backward_ms for unit in coarse.chain.units) == pytest.approx(
        chain.step_ms
    )
    least = smallest_budget(coarse.chain)
    assert least >= smallest_budget(chain)
    most = price(chain, keep_all_plan(len(chain.units))).peak_bytes
    budget_bytes = round(least + share * max(0, most - least))
    plan = make_plan(coarse.chain, budget_bytes)
    expanded = simulate(chain, coarse.expand(plan))
    assert expanded.total_ms == pytest.approx(plan.total_ms)
    assert expanded.peak_bytes <= plan.peak_bytes <= budget_bytes


@given(chain=_CHAINS, share=st.floats(0, 1))
def test_no_plan_is_faster_than_the_bound(chain, share):
    least = smallest_budget(chain)
    most = price(chain, keep_all_plan(len(chain.units))).peak_bytes
    budget_bytes = round(least + share * max(0, most - least))
    assert least_extra_ms(chain, budget_bytes) <= make_plan(chain, budget_bytes).extra_ms + 1e-6


def test_a_chain_of_no_more_units_than_groups_keeps_its_units():
    chain = Chain(1, (replace(UNIT, output_bytes=2),) * 5)
    coarse = coarsen(chain, 5)
    assert coarse.starts == (0, 1, 2, 3, 4, 5)
    assert coarse.num_units_per_group == 1
    plan = Plan(((0, 3), (1, 3)), ("all",) * 5)
    assert coarse.expand(plan) == plan


def test_groups_are_of_equal_units_and_as_equal_as_can_be():
    units = [replace(UNIT, forward_ms=ms) for ms, num in ((1.0, 1), (2.0, 11), (3.0, 8)) for _ in range(num)]
    coarse = coarsen(Chain(1, tuple(units)), 7)
    assert [b - a for a, b in itertools.pairwise(coarse.starts)] == [1, 2, 3, 3, 3, 2, 3, 3]
    assert coarse.num_units_per_group == 3


def test_for_room_in_plenty_the_bound_is_nothing_and_for_none_a_forward_of_every_unit():
    chain = Chain(1, (replace(UNIT, forward_ms=2.0),) * 10)
    assert least_extra_ms(chain, 100) == 0
    assert least_extra_ms(chain, 1 + 15) == pytest.approx(10.0)  # half of the units can be kept
    assert least_extra_ms(chain, 1) >= 20.0


def test_the_plan_of_a_thousand_groups_of_equal_units_is_close_to_the_bound():
    unit = UnitCost(1.0, 2.0, 2, (Retention("all", 6), Retention("less", 3, 0.5)))
    chain = Chain(1, (unit,) * 1500)
    coarse = coarsen(chain, 50)
    plan = price(chain, coarse.expand(make_plan(coarse.chain, 1500, slots=100)))
    bound = least_extra_ms(chain, 1500)
    assert bound <= plan.extra_ms <= bound + 0.03 * chain.step_ms


def test_a_group_that_is_discarded_needs_what_its_units_runs_need():
    unit = UnitCost(1.0, 2.0, 1, (Retention("all", 10),), forward_temp_bytes=50)
    chain = Chain(1, (unit,) * 12)
    coarse = coarsen(chain, 3)
    plan = per_unit_plan(3, coarse.chain.units[0].retentions[-1].name)
    assert simulate(chain, coarse.expand(plan)).peak_bytes <= simulate(coarse.chain, plan).peak_bytes


def test_units_that_keep_no_more_than_they_drop_have_no_bound():
    unit = UnitCost(1.0, 1.0, 2, (Retention("all", 2, freed_bytes=2, reads_input=False),))
    chain = Chain(2, (unit,) * 20)
    assert least_extra_ms(chain, simulate(chain, keep_all_plan(20)).peak_bytes) == 0
