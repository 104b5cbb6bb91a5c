"""Pictures of propagation: nothing is cut off, and no curve runs through a name."""

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from deepres.analysis.plots import gradient_figure, signal_figure
from deepres.analysis.propagation import Propagation

UNITS = 54


def _net(signal=1.0, factor=1.0, share=1.0):
    """A net whose signal is constant, and whose gradient, and shortcuts' share, changes by a factor each unit."""
    gradient = tuple(factor ** (UNITS - k) for k in range(UNITS + 1))
    shares = tuple(share ** (UNITS - k) for k in range(UNITS + 1))
    return Propagation(
        units_per_stage=(18, 18, 18),
        loss=2.3,
        signal_rms=(signal,) * (UNITS + 1),
        gradient_norm=gradient,
        gradient_rms=gradient,
        shortcut_gradient_norm=shares,
        shortcut_term_norm=(2.0,) * UNITS,
        residual_term_norm=(1.0,) * UNITS,
        lambdas=(share,) * UNITS,
        is_direct=(True,) * UNITS,
    )


@pytest.mark.parametrize("figure_of", [gradient_figure, signal_figure])
@pytest.mark.parametrize(
    "names",
    [
        ("identity", "constant_scaling"),
        (
            "constant_scaling+full_preactivation, at initialisation",
            "constant_scaling+full_preactivation, trained",
        ),
        tuple(f"constant_scaling+bn_after_addition+shortcut_scale=0.{k}" for k in range(6)),
        ("constant_scaling+full_preactivation+shortcut_scale=0.5+residual_scale=0.5+matching=projection",),
    ],
)
def test_the_legend_lies_within_the_picture_and_below_the_axes(figure_of, names):
    figure = figure_of({name: _net(share=0.5 + 0.05 * k) for k, name in enumerate(names)}, "a title")
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    (legend,) = figure.legends
    box = legend.get_window_extent(renderer)
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.width
    assert box.y0 >= 0
    for axes in figure.axes:
        assert axes.get_tightbbox(renderer).y0 >= box.y1
        assert axes.get_window_extent(renderer).height > figure.bbox.height / 3


@pytest.mark.parametrize("figure_of", [gradient_figure, signal_figure])
@pytest.mark.parametrize(
    "nets",
    [
        {"identity": _net()},
        {"identity": _net(), "constant_scaling": _net(share=0.5, factor=1.3)},
        {"identity": _net(), "constant_scaling": _net(signal=1e-4, share=0.1, factor=0.9)},
    ],
)
def test_no_curve_runs_through_the_name_of_a_stage(figure_of, nets):
    figure = figure_of(nets, "a title")
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    for axes in figure.axes:
        names = [text for text in axes.texts if text.get_text().startswith("stage ")]
        lowest = min(text.get_window_extent(renderer).y0 for text in names)
        curves = [line for line in axes.lines if len(line.get_xdata()) > 2]
        assert len(names) == 3
        assert curves
        for line in curves:
            highest = axes.transData.transform([(1, max(line.get_ydata()))])[0][1]
            assert highest + renderer.points_to_pixels(line.get_linewidth()) / 2 < lowest
