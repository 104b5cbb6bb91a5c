"""Pictures hold the figures that they show."""

import struct

import pytest

from deepres.config import Config
from deepres.memory.depths import depth_row
from deepres.memory.end_of_forward import held_after_forward
from deepres.memory.gpus import find_gpu
from deepres.memory.plots import (
    depths_figure,
    frontier_figure,
    timeline_figure,
    units_figure,
)
from deepres.memory.profiled_net import ProfiledNet, Target
from deepres.memory.report import make_report
from deepres.recompute import Plan
from deepres.recompute.simulate import timeline

GPU = find_gpu("RTX 3050")


@pytest.fixture(scope="module")
def nets():
    found = []
    for depth in (29, 47):
        train = {"max_steps": 1, "micro_batch_size": 64}
        model = {"depth": depth, "block": "bottleneck"}
        config = Config.model_validate({"model": model, "data": {"name": "cifar10"}, "train": train})
        profiled = ProfiledNet(config, Target(GPU.name, 2**30, GPU))
        found.append((profiled, make_report(profiled, shares=(0.75, 0.5))))
    return found


def _labels(figure):
    (axes,) = figure.axes
    return [text.get_text() for text in axes.get_legend().get_texts()]


def _is_labelled(axes):
    return bool(axes.get_xlabel()) and bool(axes.get_ylabel())


def test_the_frontier_falls_and_begins_with_everything_kept(nets):
    profiled, report = nets[0]
    figure = frontier_figure(profiled, report, num_budgets=4)
    (axes,) = figure.axes
    assert _is_labelled(axes)
    assert "%" in axes.get_ylabel()
    assert axes.get_xscale() == "log"
    curve = next(line for line in axes.lines if str(line.get_label()).startswith("plans"))
    peaks, shares = list(curve.get_xdata()), list(curve.get_ydata())
    assert peaks == sorted(peaks)
    assert shares == sorted(shares, reverse=True)
    assert (peaks[-1], shares[-1]) == (report.rows[0].peak_bytes, pytest.approx(0, abs=1e-9))
    card = next(line for line in axes.lines if list(line.get_ydata()) == [0, 1])
    assert card.get_xdata()[0] == report.device_bytes - report.other_bytes


@pytest.mark.parametrize(("memory_bytes", "told"), [(2**34, "→"), (2**20, "(none)")])
def test_room_that_is_far_from_all_plans_is_told_in_words(nets, memory_bytes, told):
    profiled = nets[0][0].within(memory_bytes)
    (axes,) = frontier_figure(profiled, make_report(profiled, shares=(0.5,)), num_budgets=2).axes
    assert not any(list(line.get_ydata()) == [0, 1] for line in axes.lines)
    assert axes.texts[0].get_text().endswith(told)


def test_the_timeline_is_as_high_as_the_peak_and_as_long_as_the_step(nets):
    profiled, report = nets[0]
    row = report.rows[5]
    figure = timeline_figure(profiled, report, row)
    (axes,) = figure.axes
    assert _is_labelled(axes)
    assert _labels(figure)[::-1] == [
        "states, images, reserve",
        "kept inputs",
        "kept activations",
        "gradients",
        "transient",
    ]
    top = max(path.vertices[:, 1].max() for area in axes.collections for path in area.get_paths())
    in_steps = max(moment.total_bytes for moment in timeline(profiled.chain, row.plan))
    assert top == pytest.approx(in_steps + report.other_bytes)
    assert axes.get_xlim()[1] == pytest.approx(row.step_ms)


def test_what_units_hold_is_what_the_simulator_has_at_the_turn(nets):
    profiled, report = nets[0]
    for plan in (report.rows[0].plan, report.rows[2].plan, Plan(((0, 5), (1, 4), (6, 8)), ("all",) * 9)):
        inputs, kept = held_after_forward(profiled.chain, plan)
        turn = next(m for m in timeline(profiled.chain, plan) if m.action.value == "head")
        assert sum(kept) == turn.kept_bytes
        # x_L, if the last unit was discarded, is held for the head.
        x_L = 0 if kept[-1] else profiled.chain.state_bytes[-1]
        assert sum(inputs) + x_L == turn.kept_input_bytes
    assert _is_labelled(units_figure(profiled, report, report.rows[5]).axes[0])


def test_depths_are_two_panels_with_a_point_for_each_net(nets):
    figure = depths_figure([depth_row(profiled, report) for profiled, report in nets])
    assert len(figure.axes) == 2
    for axes in figure.axes:
        assert _is_labelled(axes)
        assert list(axes.lines[0].get_xdata()) == [9, 15]


def test_pictures_are_large_enough_to_be_read(nets, tmp_path):
    profiled, report = nets[0]
    figure = units_figure(profiled, report, report.rows[5])
    figure.savefig(tmp_path / "x.png")
    width, height = struct.unpack(">II", (tmp_path / "x.png").read_bytes()[16:24])
    assert width >= 1000
    assert height >= 500
