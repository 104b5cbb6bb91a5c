import itertools
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deepres.recompute.chain import Chain, Retention, UnitCost
from deepres.recompute.plan import (
    Action,
    Plan,
    PricedPlan,
    Step,
    keep_all_plan,
    per_unit_plan,
    sqrt_plan,
    uniform_plan,
)
from deepres.recompute.simulate import price
from tests.recompute.costs import UNIT

D, K, H, B = Action.DISCARD, Action.KEEP, Action.HEAD, Action.BACKWARD
NESTED = Plan(((0, 4), (0, 2), (2, 3), (4, 5)), ("all", "few", "all", "all", "few", "all"))


def spelled(plan: Plan) -> str:
    letters = {D: "d", K: "k", H: "head", B: "b"}
    return " ".join(
        letters[step.action] + str(step.unit) * (step.action is not H) for step in plan.schedule()
    )


def test_keeping_all_runs_every_unit_forward_and_then_backward() -> None:
    assert spelled(keep_all_plan(3)) == "k0 k1 k2 head b2 b1 b0"


def test_a_segment_is_discarded_and_replayed_when_its_backward_comes() -> None:
    assert spelled(Plan(((0, 2),), ("all",) * 3)) == "d0 d1 k2 head b2 k0 k1 b1 b0"


def test_nested_segments_are_discarded_once_for_each_that_holds_them() -> None:
    assert spelled(NESTED) == "d0 d1 d2 d3 d4 k5 head b5 k4 b4 d0 d1 d2 k3 b3 k2 b2 k0 k1 b1 b0"


def test_a_segment_that_nothing_follows_is_discarded_and_replayed_at_once() -> None:
    assert spelled(Plan(((0, 2), (1, 2)), ("all",) * 2)) == "d0 d1 head k0 d1 k1 b1 b0"


def test_the_first_discarding_run_of_each_segment_begins_it() -> None:
    steps = [(step.action, step.unit) for step in NESTED.schedule() if step.begins_segment]
    assert steps == [(D, 0), (D, 4), (D, 0), (D, 2)]
    assert list(keep_all_plan(1).schedule())[:2] == [Step(K, 0, False), Step(H, 1, False)]


def test_schedules_of_thousands_of_nested_segments_take_seconds_at_most() -> None:
    started = time.perf_counter()
    num_units = 1500
    plan = Plan(tuple((0, stop) for stop in range(1, num_units)), ("all",) * num_units)
    assert plan.nesting_depth == num_units - 1
    assert sum(1 for _ in plan.schedule()) == 2 * num_units + 1 + num_units * (num_units - 1) // 2
    assert str(plan).count("segment of") == num_units - 1
    assert Plan.from_json(plan.to_json()) == plan
    assert sum(1 for _ in per_unit_plan(3333).schedule()) == 3 * 3333
    assert time.perf_counter() - started < 10


def test_segments_are_put_in_order() -> None:
    assert Plan(((2, 3), (0, 1), (0, 2)), ("all",) * 4).segments == ((0, 2), (0, 1), (2, 3))


@pytest.mark.parametrize(
    ("segments", "message"),
    [
        (((0, 5),), r"a segment must have 0 <= start < stop <= 4, got \(0, 5\)"),
        (((-1, 2),), r"got \(-1, 2\)"),
        (((2, 2),), r"got \(2, 2\)"),
        (((0, 2), (0, 2)), r"segment \(0, 2\) occurs twice"),
        (((0, 2), (1, 3)), r"segments must be disjoint or nested, but \(1, 3\) crosses \(0, 2\)"),
        (((0, 4), (0, 1), (1, 3), (2, 4)), r"\(2, 4\) crosses \(1, 3\)"),
        (((0, 1, 2),), r"a segment must be two ints \(start, stop\), got \(0, 1, 2\)"),
        (((0, 1.0),), r"a segment must be two ints \(start, stop\), got \(0, 1\.0\)"),
        ((3,), r"a segment must be two ints \(start, stop\), got 3"),
        (7, r"a plan's segments must be a tuple of \(start, stop\), got 7"),
    ],
)
def test_segments_that_make_no_plan_are_refused(segments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Plan(segments, ("all",) * 4)


@pytest.mark.parametrize("retentions", [(), ("all", 3), "all", "ab", None])
def test_a_plan_names_a_retention_for_each_of_one_unit_or_more(retentions: Any) -> None:
    with pytest.raises(
        ValueError, match="a plan's retentions must be one name for each unit, one or more, got"
    ):
        Plan((), retentions)


@pytest.mark.parametrize("num_units", [0, -3])
def test_a_plan_is_for_one_unit_or_more(num_units: int) -> None:
    for make in (keep_all_plan, per_unit_plan, sqrt_plan):
        with pytest.raises(ValueError, match=r"one or more|segments must be between 1 and"):
            make(num_units)


@pytest.mark.parametrize(
    "costs",
    [
        (1, None, None),
        (1, 1.0, float("nan")),
        (-1, 1.0, 1.0),
        ("1", 1.0, 1.0),
        (1.5, 1.0, 1.0),
        (1, True, 0.0),
    ],
)
def test_costs_are_finite_and_not_negative(costs: tuple[Any, Any, Any]) -> None:
    with pytest.raises(
        ValueError, match="a plan's costs must be an int and two floats, finite and at least 0"
    ):
        PricedPlan((), ("all",), *costs)


def test_a_priced_plan_is_checked_and_compared_as_a_plan_is() -> None:
    with pytest.raises(ValueError, match=r"segment \(0, 1\) occurs twice"):
        PricedPlan(((0, 1), (0, 1)), ("all",), 1, 1.0, 0.0)
    plan = PricedPlan([[1, 2], [0, 2]], ["all"] * 2, 1, 1.5, 0.5)  # type: ignore[arg-type]
    assert (plan.segments, plan.retentions, plan.num_units) == (((0, 2), (1, 2)), ("all", "all"), 2)
    assert plan == PricedPlan(((0, 2), (1, 2)), ("all", "all"), 1, 1.5, 0.5)
    assert plan != Plan(plan.segments, plan.retentions)


def test_the_extra_share_is_of_a_step_with_everything_kept() -> None:
    assert PricedPlan((), ("all",), 1, 1.5, 0.5).extra_share == 0.5
    assert PricedPlan((), ("all",), 1, 0.5, 0.5).extra_share == 0.0


def test_near_equal_parts_are_each_a_segment_but_the_last() -> None:
    assert uniform_plan(10, 3).segments == ((0, 3), (3, 6))
    assert uniform_plan(10, 1) == keep_all_plan(10)
    assert per_unit_plan(4) == Plan(((0, 1), (1, 2), (2, 3)), ("all",) * 4)
    assert sqrt_plan(333).num_segments == 17
    assert sqrt_plan(1) == keep_all_plan(1)
    assert uniform_plan(4, 2, "few").retentions == ("few",) * 4
    for num_units, num_segments in itertools.product(range(1, 30), repeat=2):
        if num_segments <= num_units:
            bounds = [0, *(stop for _, stop in uniform_plan(num_units, num_segments).segments), num_units]
            assert len(bounds) == num_segments + 1
            assert {stop - start for start, stop in itertools.pairwise(bounds)} <= {
                num_units // num_segments,
                -(-num_units // num_segments),
            }


@pytest.mark.parametrize("num_segments", [0, -1, 28])
def test_there_are_as_many_parts_as_units_at_most(num_segments: int) -> None:
    message = f"segments must be between 1 and the 27 units of this model, got {num_segments}"
    with pytest.raises(ValueError, match=message):
        uniform_plan(27, num_segments)


def test_nesting_depth_counts_the_segments_around_a_unit() -> None:
    assert keep_all_plan(3).nesting_depth == 0
    assert uniform_plan(9, 3).nesting_depth == 1
    assert NESTED.nesting_depth == 2
    assert NESTED.num_segments == 4


def test_a_plan_is_priced_on_a_chain() -> None:
    chain = Chain(1, (UnitCost(1.0, 2.0, 1, (Retention("all", 3), Retention("few", 2, 0.5))),) * 6)
    priced = price(chain, NESTED)
    assert (priced.segments, priced.retentions) == (NESTED.segments, NESTED.retentions)
    assert priced.total_ms == 18 + 8 + 2 * 0.5
    assert priced.extra_ms == 9
    assert priced.extra_share == 0.5
    assert priced.peak_bytes == 1 + 1 + 1 + 3 + 2  # x_0, x_4, x_5, unit 5, two gradients
    with pytest.raises(ValueError, match="unit 1 has no retention 'few'; there is: all"):
        price(Chain(1, (UNIT,) * 6), NESTED)


def test_a_plan_comes_back_equal_from_json_and_from_a_file(tmp_path: Path) -> None:
    plan = price(Chain(1, (replace(UNIT, forward_ms=0.1, backward_ms=0.3),) * 9), uniform_plan(9, 3))
    costs = ',"peak_bytes":null,"total_ms":null,"extra_ms":null}'
    assert Plan.from_json(NESTED.to_json().removesuffix("}") + costs) == NESTED
    for each in (plan, NESTED, keep_all_plan(1)):
        assert Plan.from_json(each.to_json()) == each
        each.save(tmp_path / "plan.json")
        assert Plan.load(tmp_path / "plan.json") == each


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("]", "", "not a complete JSON document .* write the deepres.plan again"),
        (
            '"version":1',
            '"version":2',
            "this deepres.plan has version 2, and this deepres reads up to 1: update",
        ),
        (
            '"version":1',
            '"version":0',
            '"version" of a deepres.plan must be a whole number from 1 to 1, got 0',
        ),
        ("deepres.plan", "deepres.chain", "not a deepres.plan document: .* got 'deepres.chain'"),
        ('"retentions"', '"kept"', 'the plan lacks "retentions"'),
        ("[[0,4]", "[[0,7]", r"a segment must have 0 <= start < stop <= 6, got \(0, 7\)"),
        ("[[0,4]", "[[0]", r"a segment must be two ints \(start, stop\), got \[0\]"),
        ("[[0,4]", "[[1,4]", r"but \(1, 4\) crosses \(0, 2\)"),
        ('["all","few"', '[1,"few"', "a plan's retentions must be one name for each unit"),
        ('"total_ms":24.0,', "", 'the plan lacks "total_ms"'),
        ('"total_ms":24.0', '"total_ms":-1', "costs must be an int and two floats, finite and at least 0"),
        ('"peak_bytes":9', '"peak_bytes":1.5', '"peak_bytes" of the plan must be int, got 1.5'),
    ],
)
def test_files_that_hold_no_plan_are_one_line_of_error_that_names_the_file(
    old: str, new: str, message: str, tmp_path: Path
) -> None:
    text = PricedPlan(NESTED.segments, NESTED.retentions, 9, 24.0, 8.0).to_json()
    assert old in text
    path = tmp_path / "some plan.json"
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(ValueError, match=f"some plan.json: .*{message}") as caught:
        Plan.load(path)
    assert "\n" not in str(caught.value)


def test_a_file_of_other_bytes_is_named_in_the_error(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"plan\.json: "):
        Plan.load(tmp_path / "plan.json")
    with pytest.raises(FileNotFoundError, match=r"none\.json"):
        Plan.load(tmp_path / "none.json")


def test_an_outline_groups_equal_neighbours_and_indents_what_is_nested() -> None:
    unit = UnitCost(1.0, 2.0, 2**20, (Retention("all", 3 * 2**20), Retention("few", 2**20, 0.5)))
    segments = ((0, 4), (0, 2), (4, 8), (4, 6), (8, 9))
    retentions = ("all", "all", "few", "few") * 2 + ("all", "few", "few")
    plan = Plan(segments, retentions)
    assert str(price(Chain(2**20, (unit,) * 11), plan)).splitlines() == [
        "11 units, 5 segments, peak 10.0 MiB, 49.0 ms a step (16.0 ms extra, 48.5%)",
        "units 0–7: 2 segments of 4 units, each:",
        "  segment of 2 units:",
        "    2 × all",
        "  2 × few",
        "unit 8: segment of 1 unit:",
        "  1 × all",
        "units 9–10: 2 × few",
    ]
    assert str(plan).splitlines()[0] == "11 units, 5 segments"
    assert str(keep_all_plan(1)).splitlines() == ["1 unit, 0 segments", "unit 0: 1 × all"]
