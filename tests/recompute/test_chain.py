import math
from dataclasses import replace
from typing import Any

import pytest

from deepres.recompute.chain import Chain, Retention, UnitCost
from deepres.recompute.planner import make_plan
from tests.recompute.costs import RETENTION, UNIT

CHAIN = Chain(
    input_bytes=12,
    units=(
        UnitCost(0.5, 1.25, 4, (Retention("all", 12), Retention("conv_outputs", 6, 0.1, 3, 2)), 5),
        UnitCost(1, 2, 2, (Retention("all", 6),)),
    ),
    fixed_bytes=100,
)


def test_only_costs_that_may_be_nothing_have_defaults() -> None:
    assert Retention("all", 3) == Retention("all", 3, 0.0, 0, 0, 0)
    assert UnitCost(1.0, 2.0, 1, (RETENTION,)) == UnitCost(1.0, 2.0, 1, (RETENTION,), 0)
    assert Chain(1, (UNIT,)) == Chain(1, (UNIT,), 0, 0, 0.0, 0)
    for kind, given in ((Retention, ("all",)), (UnitCost, (1.0, 2.0, 1)), (Chain, (1,))):
        with pytest.raises(TypeError, match="missing 1 required positional argument"):
            kind(*given)


def test_a_chain_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        CHAIN.input_bytes = 3  # type: ignore[misc]


def test_states_are_the_input_and_each_output() -> None:
    assert CHAIN.state_bytes == (12, 4, 2)


def test_a_step_without_extra_is_every_forward_and_backward_once() -> None:
    assert CHAIN.step_ms == 4.75


@pytest.mark.parametrize("name", ["kept_bytes", "forward_temp_bytes", "backward_temp_bytes"])
@pytest.mark.parametrize("value", [-1, 1.0, True, None, "3", math.nan])
def test_bytes_of_a_retention_must_be_ints_of_at_least_0(name: str, value: Any) -> None:
    with pytest.raises(
        ValueError, match=f"{name} of retention 'all' must be an int of at least 0, got {value!r}"
    ):
        replace(RETENTION, **{name: value})


@pytest.mark.parametrize("name", ["output_bytes", "forward_temp_bytes"])
def test_bytes_of_a_unit_must_be_ints_of_at_least_0(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} of a unit must be an int of at least 0, got -2"):
        replace(UNIT, **{name: -2})


@pytest.mark.parametrize("name", ["input_bytes", "fixed_bytes"])
def test_bytes_of_a_chain_must_be_ints_of_at_least_0(name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name} of a chain must be an int of at least 0, got 0\.5"):
        replace(CHAIN, **{name: 0.5})


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf, True, "1", None])
def test_times_must_be_finite_numbers_of_at_least_0(value: Any) -> None:
    message = f"of a unit must be a finite number of at least 0, got {value!r}"
    with pytest.raises(ValueError, match=f"forward_ms {message}"):
        replace(UNIT, forward_ms=value)
    with pytest.raises(ValueError, match=f"backward_ms {message}"):
        replace(UNIT, backward_ms=value)
    with pytest.raises(ValueError, match=f"replay_ms of retention 'all' must be a finite .* got {value!r}"):
        replace(RETENTION, replay_ms=value)


def test_costs_beyond_any_device_are_refused_before_sums_of_them_overflow() -> None:
    with pytest.raises(
        ValueError, match=r"^output_bytes of a unit must be at most 2\*\*45, got 4611686018427387904$"
    ):
        replace(UNIT, output_bytes=2**62)
    with pytest.raises(ValueError, match=r"^backward_ms of a unit must be at most 1e12, got 1e\+308$"):
        replace(UNIT, backward_ms=1e308)
    text = CHAIN.to_json().replace('"backward_ms":', '"backward_ms":1' + "0" * 400 + ',"was":', 1)
    with pytest.raises(ValueError, match=r"^backward_ms of a unit must be at most 1e12, got 10000"):
        Chain.from_json(text)
    units = (UnitCost(1e12, 1e12, 2**45, (Retention("all", 2**45), Retention("none", 2**44, 1e12))),) * 50
    plan = make_plan(Chain(2**45, units), 60 * 2**45)
    assert plan.peak_bytes is not None
    assert plan.peak_bytes <= 60 * 2**45


@pytest.mark.parametrize("name", ["", None, 3])
def test_a_retention_needs_a_name(name: Any) -> None:
    with pytest.raises(ValueError, match="a retention's name must be a non-empty str, got"):
        Retention(name, 3)


def test_a_unit_needs_a_retention() -> None:
    with pytest.raises(
        ValueError, match=r"retentions of a unit must be one Retention or more, in a tuple, got \(\)"
    ):
        replace(UNIT, retentions=())


def test_retentions_of_a_unit_have_different_names() -> None:
    with pytest.raises(ValueError, match="retentions must have different names, got all, few, all"):
        replace(UNIT, retentions=(RETENTION, Retention("few", 3), RETENTION))


def test_an_unknown_retention_is_answered_with_those_there_are() -> None:
    assert CHAIN.units[0].retention("conv_outputs").kept_bytes == 6
    with pytest.raises(ValueError, match="no retention 'none'; there is: all, conv_outputs"):
        CHAIN.units[0].retention("none")


@pytest.mark.parametrize("units", [(), None, (1, 2), "units"])
def test_a_chain_needs_units(units: Any) -> None:
    with pytest.raises(ValueError, match="units of a chain must be one UnitCost or more, in a tuple, got"):
        Chain(1, units)


def test_lists_of_units_and_whole_numbers_of_ms_make_an_equal_chain() -> None:
    units: Any = [UnitCost(1, 2, 1, [RETENTION])]  # type: ignore[arg-type]
    chain, equal = Chain(1, units), Chain(1, (UNIT,))
    assert chain == equal
    assert hash(chain) == hash(equal)
    assert chain.to_json() == equal.to_json()


def test_a_chain_comes_back_equal_from_json() -> None:
    assert Chain.from_json(CHAIN.to_json()) == CHAIN


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"not a complete JSON document .* write the deepres\.chain again"),
        (CHAIN.to_json()[:-9], r"not a complete JSON document"),
        ("[" * 100_000, r"not a complete JSON document"),
        ("[]", r'"format" must be \'deepres\.chain\', got \'list\''),
        ('{"format":"deepres.plan"}', r"not a deepres\.chain document: .* got 'deepres\.plan'"),
        ('{"format":"deepres.chain","version":"1"}', r"must be a whole number from 1 to 1, got '1'"),
        (
            '{"format":"deepres.chain","version":2}',
            r"has version 2, and this deepres reads up to 1: update deepres",
        ),
        ('{"format":"deepres.chain","version":1}', r'the chain lacks "input_bytes"'),
        (
            CHAIN.to_json().replace('"fixed_bytes":100', '"fixed_bytes":1e2'),
            r'"fixed_bytes" of the chain must be int',
        ),
        (
            CHAIN.to_json().replace('"replay_ms":0.1', '"replay_ms":NaN'),
            r"replay_ms of retention 'conv_outputs' must",
        ),
        (
            CHAIN.to_json().replace('"name":"all"', '"name":7'),
            r'"name" of a retention of unit 0 must be str, got 7',
        ),
        (CHAIN.to_json().replace('"units":[', '"units":[3,'), r"unit 0 must be an object, got 3"),
    ],
)
def test_json_that_is_no_chain_is_one_line_of_error(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        Chain.from_json(text)
    assert "\n" not in str(caught.value)
