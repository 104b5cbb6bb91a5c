import itertools
import math
import random
from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepres.recompute.chain import Chain, Retention, UnitCost
from deepres.recompute.plan import Plan, uniform_plan
from deepres.recompute.planner import InfeasibleBudgetError, make_plan, smallest_budget
from deepres.recompute.simulate import price, simulate
from tests.recompute.costs import CHAIN, UNIT

Segments = tuple[tuple[int, int], ...]


@cache
def nestings(start: int, stop: int, *, with_trailing: bool = True) -> tuple[Segments, ...]:
    """All sets of segments in [start, stop); `with_trailing=False` leaves out those that nothing follows."""
    if start == stop:
        return ((),)
    found = list(nestings(start + 1, stop, with_trailing=with_trailing))
    for end in range(start + 1, stop + 1 if with_trailing else stop):
        rests = nestings(end, stop, with_trailing=with_trailing) if end < stop else ((),)
        whole = (start, end)
        inner = [
            (whole, *segments)
            for segments in (
                nestings(start, end, with_trailing=with_trailing) if whole != (start, stop) else found
            )
            if whole not in segments
        ]
        found += [segments + rest for segments in inner for rest in rests]
    return tuple(found)


def priced_plans(chain: Chain, *, with_trailing: bool) -> list[tuple[int, float]]:
    """The peak and time of every plan of a chain that no other beats in both."""
    names = [[retention.name for retention in unit.retentions] for unit in chain.units]
    num_units = len(chain.units)
    costs = set()
    for segments in nestings(0, num_units, with_trailing=with_trailing):
        for retentions in itertools.product(*names):
            cost = simulate(chain, Plan(segments, retentions))
            costs.add((cost.peak_bytes, cost.total_ms))
    front = list[tuple[int, float]]()
    for peak_bytes, total_ms in sorted(costs):
        if not front or total_ms < front[-1][1]:
            front.append((peak_bytes, total_ms))
    return front


def random_chain(
    num_units: int, num_retentions: int, seed: int, largest_bytes: int = 5, head_bytes: int = 0
) -> Chain:
    draw = random.Random(seed)

    def size(least: int = 0) -> int:
        return draw.randint(least, largest_bytes)

    units = []
    for _ in range(num_units):
        output_bytes, reads_input = size(1), draw.random() < 0.5
        retentions = tuple(
            Retention(
                f"r{r}",
                output_bytes + size(),
                float(draw.randint(0, 3)),
                size(),
                size(),
                draw.choice((0, output_bytes)) if reads_input else output_bytes,
                reads_input,
            )
            for r in range(num_retentions)
        )
        units.append(
            UnitCost(float(draw.randint(1, 9)), float(draw.randint(0, 9)), output_bytes, retentions, size())
        )
    return Chain(size(), tuple(units), size(), head_bytes)


def check_against(front: list[tuple[int, float]], chain: Chain, budgets: range | list[int]) -> None:
    assert smallest_budget(chain) == front[0][0]
    for budget_bytes in budgets:
        if budget_bytes < front[0][0]:
            with pytest.raises(InfeasibleBudgetError):
                make_plan(chain, budget_bytes)
            continue
        fastest = min(total_ms for peak_bytes, total_ms in front if peak_bytes <= budget_bytes)
        plan = make_plan(chain, budget_bytes, slots=budget_bytes)
        assert plan.total_ms == pytest.approx(fastest, abs=1e-9)
        assert plan.peak_bytes is not None
        assert plan.peak_bytes <= budget_bytes


def all_budgets(front: list[tuple[int, float]]) -> range:
    return range(max(1, front[0][0] - 1), front[-1][0] + 2)


def test_enumeration_finds_every_nesting() -> None:
    assert [len(nestings(0, n)) for n in range(1, 7)] == [2, 8, 48, 352, 2880, 25216]
    schroeder_numbers = [1, 2, 6, 22, 90, 394]
    assert [len(nestings(0, n, with_trailing=False)) for n in range(1, 7)] == schroeder_numbers
    assert all(len(set(nestings(0, n))) == len(nestings(0, n)) for n in range(1, 7))


@pytest.mark.parametrize(
    ("num_units", "num_retentions"),
    [(1, 1), (1, 3), (2, 3), (3, 1), (3, 2), (3, 3), (4, 1), (4, 2), (5, 1), (6, 1)],
)
def test_plans_are_as_fast_as_the_best_of_all_plans(num_units: int, num_retentions: int) -> None:
    for seed in range(1 if num_units == 6 else 4):
        head_bytes = (0, 30, 8, 15)[seed]
        chain = random_chain(num_units, num_retentions, seed, head_bytes=head_bytes)
        front = priced_plans(chain, with_trailing=True)
        check_against(front, chain, all_budgets(front))


@pytest.mark.parametrize("seed", range(8))
def test_plans_mind_what_a_discarding_run_takes_for_a_moment(seed: int) -> None:
    draw = random.Random(seed)
    units = [
        UnitCost(
            forward_ms=float(draw.randint(1, 5)),
            backward_ms=1.0,
            output_bytes=draw.randint(1, 6),
            retentions=(Retention("all", draw.randint(6, 16)),),
            forward_temp_bytes=draw.choice((0, 0, 5, 20, 40)),
        )
        for _ in range(5)
    ]
    chain = Chain(draw.randint(1, 5), tuple(units))
    front = priced_plans(chain, with_trailing=True)
    check_against(front, chain, all_budgets(front))


def test_a_segment_that_only_the_head_follows_helps_if_the_head_is_large_and_never_else() -> None:
    for seed in range(2):
        chain = random_chain(4, 2, seed)
        assert priced_plans(chain, with_trailing=True) == priced_plans(chain, with_trailing=False)
        chain = random_chain(4, 2, seed, head_bytes=50)
        assert priced_plans(chain, with_trailing=True)[0] < priced_plans(chain, with_trailing=False)[0]


@pytest.mark.parametrize(("num_units", "num_retentions"), [(5, 2), (5, 3), (6, 2)])
def test_plans_are_as_fast_as_the_best_of_all_plans_without_trailing_segments(
    num_units: int, num_retentions: int
) -> None:
    for seed in range(100, 101 if num_units == 6 else 102):
        chain = random_chain(num_units, num_retentions, seed, largest_bytes=9)
        front = priced_plans(chain, with_trailing=False)
        check_against(front, chain, all_budgets(front))


@st.composite
def retentions_named(
    draw: st.DrawFn, name: str, size: st.SearchStrategy[int], ms: st.SearchStrategy[float]
) -> Retention:
    kept_bytes = draw(size)
    freed_bytes = draw(st.just(kept_bytes) | st.integers(0, kept_bytes))
    return Retention(name, kept_bytes, draw(ms), draw(size), draw(size), freed_bytes, draw(st.booleans()))


@st.composite
def chains(draw: st.DrawFn, max_units: int, max_bytes: int) -> Chain:
    size = st.integers(0, max_bytes)
    ms = st.integers(0, 9).map(float)
    units = []
    for _ in range(draw(st.integers(1, max_units))):
        names = draw(st.sampled_from([("all",), ("all", "some"), ("all", "some", "few")]))
        retentions = tuple(draw(retentions_named(name, size, ms)) for name in names)
        units.append(UnitCost(draw(ms), draw(ms), draw(size), retentions, draw(size)))
    return Chain(draw(size), tuple(units), draw(size), draw(size))


@settings(max_examples=60, deadline=None)
@given(chain=chains(max_units=4, max_bytes=6))
def test_plans_of_any_small_chain_are_optimal(chain: Chain) -> None:
    front = priced_plans(chain, with_trailing=len(chain.units) < 4 or chain.head_bytes > 0)
    check_against(front, chain, all_budgets(front))


@settings(max_examples=30, deadline=None)
@given(chain=chains(max_units=4, max_bytes=10**9), slots=st.integers(1, 20))
def test_sizes_much_larger_than_slots_lose_nothing_in_short_chains(chain: Chain, slots: int) -> None:
    front = priced_plans(chain, with_trailing=True)
    for peak_bytes, total_ms in front:
        if peak_bytes:
            assert make_plan(chain, peak_bytes, slots=slots).total_ms == pytest.approx(total_ms, abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(
    chain=chains(max_units=8, max_bytes=10**6),
    budgets=st.lists(st.integers(1, 4 * 10**7), min_size=2, max_size=4),
)
def test_time_never_rises_and_the_peak_stays_below_as_the_budget_grows(
    chain: Chain, budgets: list[int]
) -> None:
    smallest_bytes = max(1, smallest_budget(chain))
    last_ms = math.inf
    for budget_bytes in sorted(smallest_bytes + budget // 8 for budget in budgets):
        plan = make_plan(chain, budget_bytes, slots=50)
        cost = simulate(chain, plan)
        assert cost.peak_bytes == plan.peak_bytes
        assert cost.peak_bytes <= budget_bytes
        assert cost.total_ms <= last_ms + 1e-9
        last_ms = cost.total_ms


@settings(max_examples=30, deadline=None)
@given(chain=chains(max_units=30, max_bytes=10**9), slots=st.integers(1, 20))
def test_the_smallest_budget_is_feasible_and_one_byte_less_is_not(chain: Chain, slots: int) -> None:
    smallest_bytes = smallest_budget(chain)
    if smallest_bytes < 2:
        return
    plan = make_plan(chain, smallest_bytes, slots=slots)
    assert simulate(chain, plan).peak_bytes == smallest_bytes
    with pytest.raises(InfeasibleBudgetError) as caught:
        make_plan(chain, smallest_bytes - 1, slots=slots)
    assert caught.value.smallest_bytes == smallest_bytes


def revolve_extra_runs(num_units: int, num_states: int) -> int:
    """Griewank and Walther, Algorithm 799: revolve, 2000: the least extra forward runs."""
    r = next(r for r in itertools.count() if math.comb(num_states + r, num_states) >= num_units)
    return r * num_units - math.comb(num_states + r, num_states + 1)


@pytest.mark.parametrize("num_units", [1, 2, 3, 5, 10, 33, 54, 111])
def test_equal_units_reach_the_binomial_optimum_of_revolve(num_units: int) -> None:
    """x's take 1 byte, and a kept unit so much that no two fit: revolve's model.

    A budget of s states is then: s held x's, x_0 among them; the x that the kept unit reads; the kept
    unit; two gradients. (A single unit reads x_0 itself.)
    """
    kept_bytes = num_units + 10
    chain = Chain(1, (UnitCost(1.0, 2.0, 1, (Retention("all", kept_bytes),)),) * num_units)
    for num_states in sorted({1, 2, 3, 4, 5, 7, 10, 20, num_units - 1} & set(range(1, num_units + 1))):
        plan = make_plan(chain, num_states + 1 + kept_bytes + 2)
        assert plan.extra_ms == revolve_extra_runs(num_units, num_states)


@pytest.mark.parametrize("num_states", [3, 8])
def test_a_chain_of_333_equal_units_reaches_the_binomial_optimum_of_revolve(num_states: int) -> None:
    chain = Chain(1, (UnitCost(1.0, 2.0, 1, (Retention("all", 400),)),) * 333)
    assert make_plan(chain, num_states + 403).extra_ms == revolve_extra_runs(333, num_states)


def resnet1001_chain(*, conv_outputs: bool = False) -> Chain:
    """One fp32 image: bottlenecks of inner width w, x_i of 4w values a pixel and 12w kept."""
    units = []
    for width, size in ((16, 32), (32, 16), (64, 8)):
        output_bytes = 4 * width * size * size * 4
        retentions = [Retention("all", 3 * output_bytes)]
        if conv_outputs:
            retentions.append(Retention("conv_outputs", 3 * output_bytes // 2, 0.2))
        units += [UnitCost(1.0, 2.0, output_bytes, tuple(retentions))] * 111
    return Chain(16 * 32 * 32 * 4, tuple(units))


@pytest.mark.parametrize(
    ("budget_mib", "extra_share"),
    [(32, 0.196), (8, 0.33), pytest.param(4, 0.53, marks=pytest.mark.slow), (3, 0.67)],
)
def test_resnet1001_costs_what_is_known_of_it(budget_mib: int, extra_share: float) -> None:
    """All sizes are multiples of 64 KiB, so that 500 slots are exact up to 32 MiB.

    The known figures are rounded to a percent or so and come from a model whose x_0 and rounding may
    differ by a unit or two: less than 1.5 % of a step, and never better than the optimum.
    """
    chain = resnet1001_chain()
    plan = make_plan(chain, budget_mib * 2**20)
    assert plan.extra_ms is not None
    assert extra_share - 0.015 <= plan.extra_ms / chain.step_ms <= extra_share + 0.005


def test_resnet1001_keeps_146_mib_an_image_with_nothing_replayed() -> None:
    chain = resnet1001_chain()
    plan = make_plan(chain, 147 * 2**20)
    assert plan.segments == ()
    assert plan.extra_ms == 0
    assert plan.peak_bytes is not None
    assert round(plan.peak_bytes / 2**20) == 146


def test_rounded_plans_of_a_long_chain_come_close_to_the_optimum() -> None:
    """64 MiB is 2048 times the unit of all sizes: 86.4 ms extra is the optimum, found with as many slots."""
    chain = resnet1001_chain(conv_outputs=True)
    plan = make_plan(chain, 64 * 2**20)
    assert plan.extra_ms is not None
    assert 86.4 - 1e-6 <= plan.extra_ms <= 86.4 + 0.001 * chain.step_ms


@pytest.mark.parametrize(
    "factor", [1, 1.03, 4, *(pytest.param(factor, marks=pytest.mark.slow) for factor in (1.001, 1.5, 12))]
)
def test_levels_far_apart_cost_little_at_any_budget(factor: float) -> None:
    """Compared with ten times as many."""
    chain = random_chain(80, 2, seed=3, largest_bytes=10**6, head_bytes=10**6)
    budget_bytes = int(smallest_budget(chain) * factor)
    fine = make_plan(chain, budget_bytes, 3000)
    assert fine.total_ms is not None
    for slots in (300, 1000, 2500):  # of which some divide the room
        coarse = make_plan(chain, budget_bytes, slots)
        assert coarse.total_ms is not None
        assert coarse.total_ms <= 1.002 * fine.total_ms


def test_more_retentions_are_never_slower_than_one_however_bytes_are_rounded() -> None:
    """In 340 slots, the least for so many units."""
    chain = random_chain(111, 2, seed=8, largest_bytes=10**6)
    narrow = replace(chain, units=tuple(replace(u, retentions=u.retentions[:1]) for u in chain.units))
    for factor in (1, 1.05, 3):
        budget_bytes = int(smallest_budget(narrow) * factor)
        both, one = make_plan(chain, budget_bytes, slots=1), make_plan(narrow, budget_bytes, slots=1)
        assert both.total_ms is not None
        assert one.total_ms is not None
        assert both.total_ms <= one.total_ms + 1e-6


def test_rounding_never_makes_a_plan_worse_than_a_uniform_one() -> None:
    """In 340 slots, the least for so many units."""
    chain = random_chain(111, 2, seed=7, largest_bytes=10**6)
    uniform = [price(chain, uniform_plan(111, k, name)) for k in range(1, 112) for name in ("r0", "r1")]
    for budget_bytes in (smallest_budget(chain) * 3, smallest_budget(chain) * 10):
        fastest_ms = min(
            p.total_ms
            for p in uniform
            if p.peak_bytes is not None and p.peak_bytes <= budget_bytes and p.total_ms
        )
        plan = make_plan(chain, budget_bytes, slots=1)
        assert plan.peak_bytes is not None
        assert plan.peak_bytes <= budget_bytes
        assert plan.total_ms is not None
        assert plan.total_ms <= fastest_ms


def test_a_unit_that_needs_less_before_the_head_than_within_a_segment_is_planned_so() -> None:
    """Its run needs 8 bytes, and 9 while the gradient of its output is held."""
    kept = (Retention("all", 7, 0.0, 0, 2, 1), Retention("less", 6, 1.0, 2, 0, 0))
    chain = Chain(0, (UnitCost(1.0, 1.0, 1, kept),) * 2)
    check_against(priced_plans(chain, with_trailing=True), chain, range(8, 30))


def test_a_budget_for_everything_keeps_everything_in_the_quickest_way() -> None:
    retentions = (Retention("few", 1, 0.5), Retention("all", 3), Retention("some", 2, 0.1))
    unit = replace(UNIT, retentions=retentions)
    plan = make_plan(Chain(1, (unit,) * 4), 10**30)
    assert plan.segments == ()
    assert plan.retentions == ("all",) * 4


def test_of_ways_that_are_as_quick_the_smallest_is_taken() -> None:
    retentions = (Retention("all", 3), Retention("few", 2), Retention("some", 2, 0.1))
    unit = UnitCost(1.0, 2.0, 1, retentions)
    assert make_plan(Chain(1, (unit,) * 4), 10**30).retentions == ("few",) * 4


def test_an_infeasible_budget_says_what_would_do() -> None:
    chain = Chain(1, (UNIT,) * 4)
    with pytest.raises(
        InfeasibleBudgetError, match=r"the smallest that any plan needs is 7 B \(7 bytes\)"
    ) as caught:
        make_plan(chain, 6)
    assert caught.value.smallest_bytes == 7
    assert caught.value.budget_bytes == 6
    assert make_plan(chain, 7).peak_bytes == 7


def test_no_budget_is_smaller_than_what_is_held_while_the_stem_runs() -> None:
    chain = Chain(1, (UNIT,) * 4, stem_bytes=20)
    assert smallest_budget(chain) == 20
    with pytest.raises(InfeasibleBudgetError, match=r"the smallest that any plan needs is 20 B \(20 bytes\)"):
        make_plan(chain, 19)
    assert make_plan(chain, 20).peak_bytes == 20


@pytest.mark.parametrize("budget_bytes", [0, -1, 1.5, True, "2GiB", None, math.nan])
def test_a_budget_must_be_a_positive_int(budget_bytes: object) -> None:
    with pytest.raises(ValueError, match="budget_bytes must be an int of at least 1, got"):
        make_plan(CHAIN, budget_bytes)  # type: ignore[arg-type]


def test_slots_must_be_a_positive_int() -> None:
    with pytest.raises(ValueError, match="slots must be an int of at least 1, got 0"):
        make_plan(CHAIN, 100, slots=0)


def test_budgets_close_to_each_other_are_rounded_alike() -> None:
    draw = random.Random(0)
    units = []
    for unit in resnet1001_chain(conv_outputs=True).units[::6]:
        sizes = [draw.randint(kept.kept_bytes, kept.kept_bytes * 11 // 10) for kept in unit.retentions]
        names = [(kept.name, kept.replay_ms) for kept in unit.retentions]
        retentions = tuple(
            Retention(name, size, replay_ms) for (name, replay_ms), size in zip(names, sizes, strict=True)
        )
        units.append(UnitCost(1.0, 2.0, unit.output_bytes, retentions))
    chain = Chain(2**16, tuple(units))
    times = [make_plan(chain, 8 * 2**20 + i * 2**15).total_ms for i in range(10)]
    assert times == sorted(times, key=lambda ms: -(ms or 0.0))


def test_the_same_question_is_answered_from_the_cache() -> None:
    chain = replace(resnet1001_chain(), units=resnet1001_chain().units[::20])
    assert make_plan(chain, 2**21) is make_plan(Chain.from_json(chain.to_json()), 2**21)
