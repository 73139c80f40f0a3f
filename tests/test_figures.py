"""results/figures.py: which curves a sweep is drawn as, and that lines can be told apart."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from results.claims import METRICS, entry
from results.figures import (
    LINES,
    curves_of,
    draw_lines,
    drawable,
    joint_figure,
    label_points,
    line_figure,
    logarithmic,
    means_and_halves,
    of_block,
    point_styles,
    save_figure,
    styles,
)
from results.runs import Run


def run(point=None, seed=0, perplexity=10.0, **options):
    varies = {"point": point, "rung": None, "place": 0, "options": [*options, "seed"]}
    config = {"weight_decay": 0.1, "seed": seed, **options, "sweep": varies}
    summary = {"perplexity": perplexity, "last_layer_variance": 2.0}
    return Run("", config, summary, [], {"n_eff_share": 0.5})


def sweep(*runs):
    return {each.point: [each] for each in runs}


def depths(*values):
    return sweep(*(run(n_layer=L) for L in values))


@pytest.fixture
def axis():
    figure, axis = plt.subplots()
    yield axis
    plt.close(figure)


# Styles ------------------------------------------------------------------------------------------


def test_a_depth_looks_the_same_in_every_figure():
    few, many = point_styles(depths(4, 32)), point_styles(depths(1, 2, 3, 4, 8, 12, 16, 32, 64))
    assert all(few[point] == many[point] for point in few)


STYLES = {
    "depths": list(point_styles(depths(2, 3, 4, 8, 12, 16, 32)).values()),
    "names": list(styles(["full", "window-8", "window-32", "topk-4"]).values()),
    "depths too close to tell": list(point_styles(depths(10, 11, 12)).values()),
    "depth and rate": list(
        point_styles(
            sweep(run(n_layer=4, learning_rate=1.0), run(n_layer=8, learning_rate=2.0))
        ).values()
    ),
}


@pytest.mark.parametrize("drawn", STYLES.values(), ids=STYLES.keys())
def test_lines_grow_lighter_and_have_markers_of_their_own(drawn):
    luminance = [np.dot(style["color"][:3], (0.3, 0.59, 0.11)) for style in drawn]
    assert luminance == sorted(set(luminance))  # greyscale keeps the order
    assert len({style["marker"] for style in drawn}) == len(drawn)


def test_a_depth_that_is_not_all_that_varies_takes_its_style_in_turn():
    crossed = sweep(run(n_layer=4, weight_decay=0.1), run(n_layer=8, weight_decay=0.3))
    assert list(point_styles(crossed).values()) == list(styles(["a", "b"]).values())


# Curves ------------------------------------------------------------------------------------------


def test_points_of_one_option_are_curves_of_their_own():
    curves, _ = curves_of(depths(4, 8))
    assert {curve: list(labels) for curve, labels in curves.items()} == {
        "n_layer=4": ["n_layer=4"],
        "n_layer=8": ["n_layer=8"],
    }


def test_points_of_two_options_are_curves_over_the_second():
    rates = (1e-3, 3e-3)
    points = sweep(*(run(n_layer=L, learning_rate=rate) for L in (4, 8) for rate in rates))
    curves, style_of = curves_of(points)
    labels = ["learning_rate=0.001", "learning_rate=0.003"]
    assert {curve: list(of) for curve, of in curves.items()} == {
        "n_layer=4": labels,
        "n_layer=8": labels,
    }
    assert style_of == point_styles(depths(4, 8))  # a depth's own


def test_named_points_are_labelled_by_their_names(axis):
    points = sweep(run("full"), run("window-8"))
    label_points(axis, list(points), points)
    assert [label.get_text() for label in axis.get_xticklabels()] == ["full", "window-8"]
    assert axis.get_xlabel() == ""


def test_points_of_one_option_are_labelled_by_its_values(axis):
    points = depths(4, 16)
    label_points(axis, list(points), points)
    assert [label.get_text() for label in axis.get_xticklabels()] == ["4", "16"]
    assert axis.get_xlabel() == "n_layer"


def test_intervals_over_seeds_are_drawn_and_of_one_seed_none():
    points = {
        "two": [run(seed=0, perplexity=9.0), run(seed=1, perplexity=11.0)],
        "one": [run(perplexity=7.0)],
    }
    mean, half = means_and_halves(points, METRICS["perplexity"])
    assert mean.tolist() == [10, 7]
    assert half == pytest.approx([12.706, 0], rel=1e-3)


# Axes and files ----------------------------------------------------------------------------------


@pytest.mark.parametrize("low, high", [(1, 2), (1, 50), (1e-3, 1e4)])
def test_logarithmic_axes_have_a_few_plain_labels(axis, low, high):
    axis.plot([0, 1], [low, high])
    logarithmic(axis, "y")
    labels = [axis.yaxis.get_major_formatter()(tick) for tick in axis.get_yticks()]
    assert 2 <= len(labels) <= 12
    assert all(float(label) > 0 for label in labels)


def test_a_sweep_that_moves_no_density_is_in_the_last_panel_alone():
    figure = joint_figure({"depth": depths(4, 8)})
    assert len(figure.axes) == 1
    plt.close(figure)


def test_saved_figures_are_small_and_whole(tmp_path, axis):
    axis.plot([0, 1])
    save_figure(axis.figure, tmp_path / "line.png")
    picture = plt.imread(tmp_path / "line.png")
    assert picture.shape[:2] == (480, 640)
    assert picture.std() > 0.01
    assert (tmp_path / "line.png").stat().st_size < 20_000
    assert not list(tmp_path.glob("*.tmp"))


# Older runs --------------------------------------------------------------------------------------


def test_panels_that_an_older_run_lacks_are_left_out():
    panels = [of_block("size", "", entry("size", "block")), of_block("loss", "", entry("losses"))]
    old, new = {"losses": [2.0, 1.0]}, {"losses": [2.0, 1.0], "size": {"block": [0.5, 0.1]}}
    points = depths(4, 8)
    for run, analysis in zip([runs[0] for runs in points.values()], (old, new), strict=True):
        run.analysis = analysis
    assert drawable(panels, points) == panels[1:]
    figure = line_figure(points, panels[1:])
    assert [axis.axison for axis in figure.axes] == [True, False]
    plt.close(figure)


@pytest.mark.parametrize("smallest, marker", [(0.99e-4, "white"), (1.01e-4, None)])
def test_growth_is_hollow_where_the_norms_eps_counts(axis, smallest, marker):
    points = depths(2)
    (runs,) = points.values()
    runs[0].analysis = {"variance": {"residual": [smallest, 1.0, 2.0]}}
    draw_lines(axis, points, LINES["scale_free"][0])
    (line,) = axis.lines
    assert line.get_ydata().tolist() == [1, 2]
    assert line.get_markerfacecolor() == (marker or line.get_color())
