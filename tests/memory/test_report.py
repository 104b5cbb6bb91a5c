"""The rows of a report, its tables, growth and capacity."""

import csv
import io
import json
from dataclasses import replace

import pytest
import torch

from deepres.bytesize import format_bytes
from deepres.config import Config
from deepres.memory.capacity import capacity, capacity_table
from deepres.memory.depths import DepthRow, depth_row, depths_text, growth
from deepres.memory.gpus import find_gpu
from deepres.memory.profiled_net import ProfiledNet, Target
from deepres.memory.report import largest_batch_of, make_report
from deepres.memory.tables import gpus_text, report_csv, report_json, report_text, verdict
from deepres.memory.trial import measured_row, with_measured_costs
from deepres.recompute import simulate
from deepres.recompute.frontier import Frontier

GPU = find_gpu("RTX 3050")


def profiled_net(depth=29, batch=16, memory_bytes=GPU.memory_bytes, gpu=GPU, **sections) -> ProfiledNet:
    settings = {
        "model": {"depth": depth, "block": "bottleneck"},
        "data": {"name": "synthetic"},
        "train": {"max_steps": 1, "micro_batch_size": batch},
        **sections,
    }
    return ProfiledNet(Config.model_validate(settings), Target("a device", memory_bytes, gpu))


@pytest.fixture(scope="module")
def profiled():
    return profiled_net()


@pytest.fixture(scope="module")
def report(profiled):
    return make_report(profiled)


def test_every_row_is_what_the_simulator_says_of_its_plan(profiled, report):
    assert [row.strategy.split(",")[0] for row in report.rows[:4]] == [
        "keep all", "a segment per unit", "√units", "best uniform",
    ]  # fmt: skip
    assert len(report.rows) == 12
    for row in report.rows:
        if row.plan is None:
            assert row.peak_bytes == report.rows[-1].peak_bytes > row.budget_bytes
            continue
        cost = simulate(profiled.chain, row.plan)
        assert (row.peak_bytes, row.step_ms) == (cost.peak_bytes, cost.total_ms)
        assert row.extra_forwards == pytest.approx(sum(cost.forward_runs) / 9 - 1)
        assert row.images_per_s == pytest.approx(16_000 / cost.total_ms)
        assert row.total_bytes == row.peak_bytes + report.other_bytes
        if row.budget_bytes is not None:
            assert row.peak_bytes <= row.budget_bytes
            assert row.least_extra_share <= row.extra_share + 1e-9


def test_plans_for_budgets_and_the_least_peak_are_made_for_their_bytes_and_no_others():
    report = make_report(profiled_net(recompute={"segments": 3}), shares=(0.5,))
    kinds = [row.kind for row in report.rows]
    assert kinds == ["keep all", "per unit", "sqrt", "uniform", "own", "budget", "floor"]
    assert [row.kind for row in report.rows if row.is_planned] == ["budget", "floor"]


def test_the_largest_batch_fits_and_one_more_does_not(profiled, report):
    row = report.rows[0]
    for batch, fits in ((row.largest_batch, True), (row.largest_batch + 1, False)):
        larger = profiled_net(batch=batch)
        peak = simulate(larger.chain, row.plan).peak_bytes
        assert (peak + larger.other_memory(batch).total_bytes <= GPU.memory_bytes) is fits


def test_stages_and_ends_make_up_the_peak(report):
    assert sum(row.num_units for row in report.stages) == 9
    assert sum(row.share for row in report.stages) == pytest.approx(1)
    assert sum(row.kept_bytes for row in report.stages) + report.ends_bytes == report.rows[0].peak_bytes


def test_states_are_a_row_for_each_engine_and_shrink_without_momentum(report):
    names = [row.engine for row in report.states]
    assert names == [
        "plain", "ZeRO 0", "ZeRO 1", "ZeRO 1, offload", "ZeRO 2", "ZeRO 2, offload", "ZeRO 3", "ZeRO 3, offload",
    ]  # fmt: skip
    without = make_report(profiled_net(optim={"momentum": 0.0}))
    plain, plain_without = report.states[0], without.states[0]
    assert plain.states.optimizer_bytes == 4 * report.model.num_parameters
    assert plain_without.states.optimizer_bytes == 0
    pairs = zip(without.states, report.states, strict=True)
    assert all(a.states.total_bytes <= b.states.total_bytes for a, b in pairs)


def test_parameters_and_multiply_adds_are_the_papers():
    model = make_report(profiled_net(164), shares=()).model
    assert model.num_parameters == 1_703_258
    assert model.multiply_adds == pytest.approx(244.5e6, rel=0.002)


def test_a_budget_below_the_floor_is_refused_with_the_floor_and_the_batch_that_would_fit(profiled, report):
    floor = report.rows[-1].peak_bytes
    with pytest.raises(ValueError, match=f"{floor} bytes.; a batch of 7 would fit"):
        make_report(profiled, budget_bytes=floor // 2)
    with pytest.raises(ValueError, match="not even a batch of 1 would fit"):
        make_report(profiled, budget_bytes=1)
    named = make_report(profiled, budget_bytes=floor, shares=())
    assert named.rows[4].budget_bytes == floor == named.rows[4].peak_bytes


def test_numbers_come_back_from_csv_and_json(report):
    rows = list(csv.DictReader(io.StringIO(report_csv([report, report]))))
    assert [int(row["peak_bytes"]) for row in rows] == 2 * [row.peak_bytes for row in report.rows]
    document = json.loads(report_json([report], command="x"))
    assert document["format"] == "deepres.memory_report"
    (net,) = document["nets"]
    assert net["model"]["depth"] == 29
    states = report.states[0].states
    assert net["states"][0] == {"engine": "plain", **vars(states), "total_bytes": states.total_bytes}
    for row, values in zip(report.rows, net["rows"], strict=True):
        assert values["peak_bytes"] == row.peak_bytes
        assert values["extra_share"] == (None if row.plan is None else row.extra_share)


def test_the_text_has_a_line_for_each_row_and_no_line_is_too_long(report):
    text = report_text(report)
    without = [row.strategy for row in report.rows if row.plan is None]
    assert len(without) > 1
    for row in report.rows:
        num_lines = sum(line.startswith(f"  {row.strategy} ") for line in text.splitlines())
        assert num_lines == (row.strategy not in without[1:])
    assert f"  {without[0]} or less " in text
    assert max(map(len, text.splitlines())) <= 120
    assert "NaN" not in text
    assert "nan" not in text
    assert all(line == line.rstrip() for line in text.splitlines())
    parts = report.states[0].states.total_bytes, report.images_bytes, report.workspace_bytes
    assert sum(parts) == report.other_bytes
    states, images, reserve = map(format_bytes, parts)
    assert f"{states} of it for model states (plain), {images} for images, {reserve} in reserve, " in text
    assert gpus_text().count("\n") > 20


def test_the_first_lines_say_whether_it_fits_and_what_fits_best(report):
    keep_all, floor = report.row("keep all"), report.row("floor")
    for memory_bytes in (
        keep_all.total_bytes,
        keep_all.total_bytes - 1,
        floor.total_bytes,
        floor.total_bytes - 1,
    ):
        small = make_report(profiled_net(memory_bytes=memory_bytes))
        for_device = [row for row in small.rows if row.strategy == "plan for the device"]
        first, *second = verdict(small)
        assert first.startswith("It fits") is (memory_bytes >= keep_all.total_bytes)
        assert len(for_device) == (floor.total_bytes <= memory_bytes < keep_all.total_bytes)
        if for_device:
            assert for_device[0].extra_share == min(row.extra_share for row in small.rows if row.fits)
            assert second[0].startswith(
                f"The fastest plan that fits takes {100 * for_device[0].extra_share:.1f} %"
            )
        elif memory_bytes < floor.total_bytes:
            least = format_bytes(floor.total_bytes)
            assert second == [f"Nothing fits: a run at batch {small.model.batch} takes at least {least}."]
        assert report_text(small).index(first) < report_text(small).index("The trade on")


def test_more_depth_takes_linearly_more_with_everything_kept_and_its_root_in_segments():
    profiled_nets = [profiled_net(depth) for depth in (56, 83, 164)]
    rows = [depth_row(profiled, make_report(profiled, shares=())) for profiled in profiled_nets]
    laws = {law.what: law for law in growth(rows) if law.exponent is not None}
    assert laws["keep all, power law"].exponent == pytest.approx(1.0, abs=0.03)
    assert 0.35 < laws["√units, power law"].exponent < 0.7
    assert laws["plan, 20 % extra, power law"].exponent < 0.9
    assert all(row.overhead_extra_share <= 0.2 for row in rows)
    text = depths_text(rows, growth(rows))
    assert all(law.law in text for law in laws.values())


def depth_row_of(num_units: int, keep_all_bytes: int, extra_share: float | None) -> DepthRow:
    return DepthRow(
        depth=num_units, block="basic", num_units=num_units, batch=1, keep_all_bytes=keep_all_bytes,
        sqrt_bytes=2**20, sqrt_extra_share=0.3, overhead_bytes=2**20, overhead_extra_share=0.2,
        memory_bytes=2**30, memory_extra_share=extra_share,
    )  # fmt: skip


def test_the_error_of_bytes_is_relative_to_them_and_that_of_extra_times_to_a_step():
    bent = growth([depth_row_of(1, 100, 0.0), depth_row_of(2, 400, 0.0), depth_row_of(3, 400, 0.0)])
    line = next(law for law in bent if "a unit" in law.law)  # 0 + 150 a unit
    assert (line.of_times, line.largest_error) == (False, pytest.approx(0.5))
    rows = [depth_row_of(1, 100, 0.0), depth_row_of(2, 200, 0.1), depth_row_of(4, 400, 0.1)]
    times = growth(rows)[-1]  # 1/60 + 0.05 a doubling
    assert (times.of_times, times.largest_error) == (True, pytest.approx(0.1 / 3))
    assert depths_text(rows, growth(rows)).endswith(" 3.3 % of a step")


def test_extra_times_of_nets_with_as_many_units_have_no_law():
    rows = [depth_row_of(1, 100, 0.0), depth_row_of(1, 100, 0.0), depth_row_of(2, 200, None)]
    assert not any(law.of_times for law in growth(rows))


def test_more_extra_time_and_more_memory_train_larger_batches(profiled):
    rows = capacity(profiled, (1 * 2**30, 2 * 2**30))
    for row in rows:
        ten, twenty, thirty_five = row.plan_batches
        assert 0 < row.keep_all_batch < ten < twenty <= thirty_five
    assert rows[0].plan_batches < rows[1].plan_batches
    plans = map(Frontier(profiled.chain).smallest_within, (0.1, 0.2, 0.35))
    assert rows[0].plan_batches == tuple(largest_batch_of(profiled.within(2**30), plan) for plan in plans)
    assert capacity_table(rows)[0] == [
        "largest batch on",
        "keep all",
        "plan, ≤ 10 % extra",
        "plan, ≤ 20 % extra",
        "plan, ≤ 35 % extra",
    ]


def test_measured_columns_stand_beside_the_predicted_and_what_does_not_fit_says_so():
    profiled = profiled_net(gpu=None, memory_bytes=2**33)
    device = torch.device("cpu")
    with_measured_costs(profiled, device, repeats=1)
    report = make_report(profiled, shares=(0.5,))
    small = profiled_net(gpu=None, memory_bytes=report.rows[0].total_bytes - 1)
    rows = [measured_row(small, row, device, repeats=1) for row in report.rows]
    assert rows[0].measured_peak_bytes is None
    assert rows[0].measured_note == "does not fit"
    for row in rows[1:]:
        assert row.peak_bytes == pytest.approx(row.measured_peak_bytes, rel=0.03)
        assert row.measured_ms > 0
    text = report_text(replace(report, rows=tuple(rows)))
    assert "does not fit" in text
    assert "measured ms" in text
