"""What is left behind when a run is out of memory."""

import json

import pytest
import torch

from deepres.memory.step_log import explained_out_of_memory, read_step_memory, recorded_memory, what_would_fit
from deepres.recompute import Chain, Plan, Retention, UnitCost, keep_all_plan, make_plan

_UNIT = UnitCost(1.0, 2.0, 2 * 2**20, (Retention("all", 6 * 2**20),))
_CHAIN = Chain(2**20, (_UNIT,) * 20)
_CPU = torch.device("cpu")


def test_out_of_memory_leaves_the_plan_and_says_what_would_have_fitted(tmp_path):
    plan = keep_all_plan(20)
    with (
        pytest.raises(torch.OutOfMemoryError) as raised,
        explained_out_of_memory(tmp_path, plan, _CHAIN, _CPU),
    ):
        raise torch.OutOfMemoryError("tried to allocate 20 GiB\nand more")
    document = json.loads((tmp_path / "out_of_memory.json").read_text(encoding="utf-8"))
    assert Plan.from_json(json.dumps(document["plan"])) == plan
    assert document["error"] == "tried to allocate 20 GiB"
    assert "recompute.budget=" in document["advice"]
    assert "\n" not in document["advice"]
    assert any(str(tmp_path) in note for note in raised.value.__notes__)


def test_the_budgets_of_the_advice_have_plans_and_its_times_are_theirs():
    text = what_would_fit(_CHAIN, keep_all_plan(20))
    peak = keep_all_plan(20).priced(_CHAIN).peak_bytes
    plan = make_plan(_CHAIN, peak // 2, 200)
    assert f"({100 * plan.extra_ms / _CHAIN.step_ms:.0f} % extra time)" in text


def test_at_the_floor_the_advice_is_a_smaller_batch():
    smallest = make_plan(_CHAIN, 14 * 2**20)
    assert "make the batch smaller" in what_would_fit(_CHAIN, smallest)


def test_other_errors_and_runs_that_fit_leave_nothing(tmp_path):
    with pytest.raises(KeyError), explained_out_of_memory(tmp_path, keep_all_plan(20), _CHAIN, _CPU):
        raise KeyError("x")
    with explained_out_of_memory(tmp_path, keep_all_plan(20), _CHAIN, _CPU):
        pass
    assert not list(tmp_path.iterdir())


def test_a_cpu_has_no_memory_to_tell_of(tmp_path):
    assert read_step_memory(_CPU) is None
    with pytest.raises(ValueError, match="needs CUDA"), recorded_memory(tmp_path / "x", _CPU):
        pass
