"""Curves of a run: what stands at their axes can be read."""

import json
import math

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from deepres.curves import curves_figure, plot_curves


def _write(folder, epochs, errors, num_rows=40):
    """Metrics of a run whose error falls from `errors[0]` towards `errors[1]`."""
    rows = []
    for k in range(1, num_rows + 1):
        error = errors[1] + (errors[0] - errors[1]) * math.exp(-4 * k / num_rows)
        rows.append({"loss": 3 * error + 1e-3, "top1": 1 - error, "epoch": epochs * k / num_rows})
    path = folder / "metrics.jsonl"
    lines = [json.dumps({"kind": kind, **row}) for row in rows for kind in ("train", "test")]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def _labels(axes, along):
    """Texts of an axis' labels, and where they begin and end."""
    axis, (low, high) = (axes.xaxis, axes.get_xlim()) if along == "x" else (axes.yaxis, axes.get_ylim())
    renderer = FigureCanvasAgg(axes.figure).get_renderer()
    axes.figure.draw(renderer)
    for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
        box = tick.label1.get_window_extent(renderer)
        if low <= tick.get_loc() <= high and tick.label1.get_text():
            yield tick.label1.get_text(), getattr(box, f"{along}0"), getattr(box, f"{along}1")


@pytest.mark.parametrize(
    ("epochs", "errors"),
    [
        (0.08, (0.9, 0.75)),
        (0.0031, (0.9, 0.8)),
        (1, (0.9, 0.5)),
        (9, (0.9, 0.02)),
        (164, (0.9, 0.06)),
        (164, (0.3, 0.27)),
    ],
)
def test_every_axis_has_a_few_labels_apart_from_one_another(tmp_path, epochs, errors):
    figure = curves_figure(_write(tmp_path, epochs, errors))
    for axes in figure.axes:
        for along in "xy":
            texts, starts, ends = zip(*sorted(_labels(axes, along), key=lambda label: label[1]), strict=True)
            assert 3 <= len(set(texts)) == len(texts) <= 10
            assert all(float(text) >= 0 for text in texts)
            assert all(end < start for end, start in zip(ends, starts[1:], strict=False)), texts


def test_the_error_of_a_long_run_has_ticks_as_people_write_percentages(tmp_path):
    figure = curves_figure(_write(tmp_path, 164, (0.9, 0.06)))
    assert [text for text, *_ in _labels(figure.axes[1], "y")] == ["10", "20", "50"]


def test_epochs_are_whole_numbers_from_the_second_on(tmp_path):
    figure = curves_figure(_write(tmp_path, 3, (0.9, 0.06)))
    assert [text for text, *_ in _labels(figure.axes[0], "x")] == ["0", "1", "2", "3"]


@pytest.mark.parametrize("errors", [(0.0, 0.0), (0.4, 0.0), (1.0, 1.0)])
def test_runs_of_one_line_and_runs_without_an_error_are_drawn_too(tmp_path, errors):
    picture = tmp_path / "curves.png"
    assert plot_curves(_write(tmp_path, 1, errors, num_rows=1), picture)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_without_an_evaluation_there_is_nothing_to_draw(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"kind": "train", "loss": 1.0, "top1": 0.5, "epoch": 1.0}\n')
    assert not plot_curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()
