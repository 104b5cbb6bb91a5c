"""What the benchmark computes itself, against figures found by hand."""

import pytest

from deepres.recompute import make_plan
from measuring import child
from recompute_benchmark.frontier import model_chain

MIB = 2**20


@pytest.mark.slow
@pytest.mark.parametrize(("mib", "percent"), [(32, 19.6), (16, 26), (8, 33), (4, 53)])
def test_with_the_retention_all_the_model_gives_the_known_frontier_of_resnet_1001(mib, percent):
    chain = model_chain(1001, (99.0, 99.0, 99.0))  # a replay too dear to be taken
    plan = make_plan(chain, mib * MIB)
    assert 100 * plan.extra_ms / chain.step_ms == pytest.approx(percent, abs=1.0)


def test_the_model_counts_146_mib_an_image_for_resnet_1001():
    chain = model_chain(1001, (0.2, 0.2, 0.2))
    assert sum(unit.retention("all").kept_bytes for unit in chain.units) == pytest.approx(
        145.7 * MIB, rel=1e-3
    )


def test_a_child_that_fails_hands_its_last_line_on():
    with pytest.raises(child.ChildFailedError, match=r"ZeroDivisionError"):
        child.call_in_child(_divide, {"by": 0})
    assert child.call_in_child(_divide, {"by": 4}) == 0.25


def _divide(by: int) -> float:
    return 1 / by
