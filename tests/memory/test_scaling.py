"""Chains at any batch from two, and the largest batch."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deepres import build_resnet, predict_chain
from deepres.memory.gpus import GPUS
from deepres.memory.scaling import ScalingChain, largest_batch
from deepres.recompute import keep_all_plan, per_unit_plan, simulate


@pytest.mark.parametrize(("depth", "activation"), [(11, "full_preactivation"), (8, "original")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_chain_at_another_batch_is_the_one_predicted_there(depth, activation, dtype):
    net = build_resnet(depth, activation=activation)

    def predicted(batch):
        return predict_chain(net, (batch, 3, 16, 16), GPUS[4], dtype)

    scaling = ScalingChain((8, 16), (predicted(8), predicted(16)))
    for batch in (8, 37, 3):
        at, exact = scaling.at(batch), predicted(batch)
        for a, b in zip(at.units, exact.units, strict=True):
            assert a.output_bytes == b.output_bytes
            assert [r.kept_bytes for r in a.retentions] == [r.kept_bytes for r in b.retentions]
        for plan in (keep_all_plan(3), per_unit_plan(3)):
            assert simulate(at, plan).peak_bytes == pytest.approx(
                simulate(exact, plan).peak_bytes, rel=0.01 if batch > 3 else 0.07
            )


@given(limit=st.integers(0, 3000))
def test_the_largest_batch_is_found_in_few_questions(limit):
    asked = []

    def fits(batch: int) -> bool:
        asked.append(batch)
        return batch <= limit

    assert largest_batch(fits, most=2000) == min(limit, 2000)
    assert len(asked) < 12


def test_the_largest_batch_may_be_a_large_one():
    assert largest_batch(lambda size: size <= 5000) == 5000
    assert largest_batch(lambda _: True) == 2**20
