import random
from dataclasses import replace

import pytest

from deepres.recompute.chain import Chain, Retention, UnitCost
from deepres.recompute.plan import Action, Plan, keep_all_plan, per_unit_plan, uniform_plan
from deepres.recompute.simulate import Simulation, simulate, timeline
from tests.recompute.costs import UNIT

D, K, H, B = Action.DISCARD, Action.KEEP, Action.HEAD, Action.BACKWARD


def totals(chain: Chain, plan: Plan) -> list[int]:
    return [moment.total_bytes for moment in timeline(chain, plan)]


def test_keeping_all_holds_every_unit_and_two_gradients_at_the_turn() -> None:
    chain = Chain(2, (UnitCost(1.0, 2.0, 4, (Retention("all", 10),)),) * 3, fixed_bytes=100)
    assert simulate(chain, keep_all_plan(3)) == Simulation(100 + 2 + 30 + 8, 9.0, (1, 1, 1))
    assert totals(chain, keep_all_plan(3)) == [112, 122, 132, 132, 140, 130, 118]


def test_the_head_adds_its_bytes_to_what_the_units_keep_or_to_their_discarded_output() -> None:
    unit = UnitCost(1.0, 2.0, 4, (Retention("all", 10),))
    chain = Chain(2, (unit,) * 3, head_bytes=1000, fixed_ms=0.5)
    assert totals(chain, keep_all_plan(3)) == [12, 22, 32, 1032, 40, 30, 18]
    assert totals(chain, Plan(((1, 3),), ("all",) * 3)) == [12, 16, 20, 1016, 26, 36, 40, 30, 18]
    assert simulate(chain, keep_all_plan(3)) == Simulation(1032, 9.5, (1, 1, 1))
    assert chain.step_ms == 9.5


def test_no_peak_is_below_what_is_held_while_the_stem_runs() -> None:
    chain = Chain(2, (UnitCost(1.0, 2.0, 4, (Retention("all", 10),)),) * 3, stem_bytes=39)
    assert simulate(chain, keep_all_plan(3)).peak_bytes == 40
    assert simulate(chain, Plan(((0, 3),), ("all",) * 3)).peak_bytes == 40
    chain = replace(chain, stem_bytes=41)
    assert simulate(chain, keep_all_plan(3)) == Simulation(41, 9.0, (1, 1, 1))


def test_a_segment_holds_its_input_and_one_kept_unit_at_a_time() -> None:
    chain = Chain(1, (UnitCost(1.0, 2.0, 1, (Retention("all", 10),)),) * 3)
    moments = timeline(chain, Plan(((0, 2), (0, 1)), ("all",) * 3))
    assert [(m.action, m.unit) for m in moments] == [
        (D, 0), (D, 1), (K, 2), (H, 3), (B, 2), (D, 0), (K, 1), (B, 1), (K, 0), (B, 0),
    ]  # fmt: skip
    assert [m.kept_input_bytes for m in moments] == [2, 3, 2, 2, 2, 2, 2, 2, 1, 1]
    assert [m.kept_bytes for m in moments] == [0, 0, 10, 10, 10, 0, 10, 10, 10, 10]
    assert [m.gradient_bytes for m in moments] == [0, 0, 0, 0, 2, 1, 1, 2, 1, 2]
    assert [m.duration_ms for m in moments] == [1, 1, 1, 0, 2, 1, 1, 2, 1, 2]
    assert simulate(chain, Plan(((0, 2), (0, 1)), ("all",) * 3)) == Simulation(14, 12.0, (3, 2, 1))


def test_transients_and_replays_are_counted_where_they_happen() -> None:
    unit = UnitCost(1.0, 2.0, 1, (Retention("few", 3, 0.25, 20, 30),), forward_temp_bytes=40)
    moments = timeline(Chain(1, (unit, unit)), Plan(((0, 1),), ("few", "few")))
    assert [m.transient_bytes for m in moments] == [40, 20, 0, 30, 20, 30]
    assert [m.duration_ms for m in moments] == [1.0, 1.0, 0.0, 2.25, 1.0, 2.25]
    assert totals(Chain(1, (unit, unit)), Plan(((0, 1),), ("few", "few"))) == [42, 25, 5, 37, 25, 36]


def test_a_segment_after_a_kept_unit_finds_its_input_among_what_that_unit_keeps() -> None:
    chain = Chain(1, (UnitCost(1.0, 2.0, 5, (Retention("all", 10),)),) * 3)
    moments = timeline(chain, Plan(((1, 2),), ("all",) * 3))
    assert [(m.action, m.unit, m.kept_input_bytes, m.kept_bytes) for m in moments] == [
        (K, 0, 1, 10), (D, 1, 6, 10), (K, 2, 6, 20), (H, 3, 6, 20),
        (B, 2, 6, 20), (K, 1, 1, 20), (B, 1, 1, 20), (B, 0, 1, 10),
    ]  # fmt: skip


def test_every_unit_runs_once_more_for_each_segment_it_lies_in() -> None:
    chain = Chain(1, (UNIT,) * 9)
    assert simulate(chain, uniform_plan(9, 3)).forward_runs == (2,) * 6 + (1,) * 3
    assert simulate(chain, per_unit_plan(9)).forward_runs == (2,) * 8 + (1,)


def test_what_only_the_next_unit_s_run_reads_goes_with_it() -> None:
    """As of a convolution's output before a ReLU: of ten bytes kept four are the output."""
    unit = UnitCost(1.0, 2.0, 4, (Retention("all", 10, freed_bytes=4, reads_input=False),))
    chain = Chain(4, (unit,) * 3)
    assert totals(chain, keep_all_plan(3)) == [14, 24, 30, 26, 30, 24, 18]
    assert totals(chain, Plan(((0, 2),), ("all",) * 3)) == [8, 12, 18, 14, 18, 18, 28, 24, 18]
    assert totals(chain, Plan(((1, 2),), ("all",) * 3)) == [14, 18, 28, 24, 28, 28, 24, 18]


def test_what_the_unit_before_reads_stays_and_goes_where_that_was_discarded() -> None:
    """As of a tanh, whose backward reads its output."""
    unit = UnitCost(1.0, 2.0, 4, (Retention("all", 4, reads_input=False),))
    chain = Chain(4, (unit,) * 3)
    assert totals(chain, keep_all_plan(3)) == [8, 12, 16, 16, 24, 20, 16]
    assert totals(chain, Plan(((0, 2),), ("all",) * 3)) == [8, 12, 12, 8, 16, 12, 16, 20, 16]


def test_an_input_that_is_larger_than_all_that_a_unit_keeps_is_taken_to_be_read() -> None:
    assert Retention("all", 10, reads_input=False).dropped_bytes(10) == 10
    assert Retention("all", 10, reads_input=False).dropped_bytes(11) == 0
    assert Retention("all", 10).dropped_bytes(10) == 0


def random_plan(chain: Chain, draw: random.Random) -> Plan:
    segments = set[tuple[int, int]]()
    num_units = len(chain.units)
    for _ in range(draw.randint(0, 2 * num_units)):
        start = draw.randrange(num_units)
        stop = draw.randint(start + 1, num_units)
        if all(
            stop <= s or start >= t or s <= start < stop <= t or start <= s < t <= stop for s, t in segments
        ):
            segments.add((start, stop))
    names = tuple(draw.choice(unit.retentions).name for unit in chain.units)
    return Plan(tuple(segments), names)


def random_chain(draw: random.Random) -> Chain:
    def size() -> int:
        return draw.randint(0, 9)

    reads_input = draw.random() < 0.5

    def retention(name: str) -> Retention:
        kept_bytes = size()
        freed_bytes = draw.choice((kept_bytes, draw.randint(0, kept_bytes)))
        reads = reads_input and draw.random() < 0.5
        return Retention(name, kept_bytes, draw.random(), size(), size(), freed_bytes, reads)

    units = tuple(
        UnitCost(draw.random(), draw.random(), size(), (retention("all"), retention("few")), size())
        for _ in range(draw.randint(1, 9))
    )
    return Chain(size(), units, size(), size(), draw.random())


def totals_by_last_use(chain: Chain, plan: Plan) -> list[int]:
    """The same bytes from another definition: a value is held from when it is made to its last reader."""
    steps = list(plan.schedule())
    x = chain.state_bytes
    made = {("x", 0): (-1, 0)}  # value: (since when, bytes)
    held = [chain.fixed_bytes + chain.input_bytes] * len(steps)

    def release(value: tuple[str, int], last: int) -> None:
        since, size = made.pop(value, (0, 0))
        for t in range(since, last + 1):
            held[t] += size

    read = dict[tuple[str, int], int]()
    for t, (action, unit, _) in enumerate(steps):
        if action is H:
            read["x", unit] = t
            made["gradient", unit] = (t + 1, x[unit])
            held[t] += chain.head_bytes
            continue
        retention = chain.units[unit].retention(plan.retentions[unit])
        read["x", unit] = t
        if action is B:
            read["gradient", unit + 1] = t
            made["gradient", unit] = (t, x[unit])
            read["gradient", unit] = t
            release(("gradient", unit + 1), t)
            release(("kept", unit), t)
            held[t] += retention.backward_temp_bytes - retention.freed_bytes
            if ("dropped", unit + 1) in made:
                read["dropped", unit + 1] = t - 1  # it is among what is freed now
                release(("dropped", unit + 1), t - 1)
            continue
        output = ("x", unit + 1)
        release(output, read.get(output, 0))  # an earlier run's; its last reader has passed
        if action is K:
            drops = not retention.reads_input and x[unit] <= retention.kept_bytes and unit > 0
            if drops and ("x", unit) in made:
                release(("x", unit), t)
            elif drops:  # what the unit before keeps is so much less from now on
                before = chain.units[unit - 1]
                if before.retention(plan.retentions[unit - 1]).freed_bytes >= x[unit]:
                    made["dropped", unit] = (t + 1, -x[unit])
            made["kept", unit] = (t, retention.kept_bytes)
            held[t] += retention.forward_temp_bytes
        else:
            made[output] = (t, x[unit + 1])
            read[output] = t
            held[t] += chain.units[unit].forward_temp_bytes
    for value in list(made):
        release(value, read[value])
    return held


def test_bytes_agree_with_the_liveness_of_each_value() -> None:
    draw = random.Random(0)
    for _ in range(500):
        chain = random_chain(draw)
        plan = random_plan(chain, draw)
        assert totals(chain, plan) == totals_by_last_use(chain, plan), plan


def test_simulate_is_the_maximum_and_the_sum_of_the_timeline() -> None:
    draw = random.Random(1)
    for _ in range(100):
        chain = random_chain(draw)
        plan = random_plan(chain, draw)
        moments, cost = timeline(chain, plan), simulate(chain, plan)
        assert cost.peak_bytes == max(moment.total_bytes for moment in moments)
        assert cost.total_ms == pytest.approx(sum(moment.duration_ms for moment in moments))
        assert cost.forward_runs == tuple(
            sum(m.unit == i and m.action in (D, K) for m in moments) for i in range(plan.num_units)
        )


def test_a_plan_for_another_number_of_units_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^this plan is for 54 units, the chain has 333$"):
        simulate(Chain(1, (UNIT,) * 333), keep_all_plan(54))


def test_a_retention_that_a_unit_lacks_is_refused() -> None:
    chain = Chain(1, (UNIT, replace(UNIT, retentions=(Retention("few", 3), Retention("some", 3)))))
    with pytest.raises(ValueError, match=r"^unit 1 has no retention 'all'; there is: few, some$"):
        timeline(chain, keep_all_plan(2))
