"""results/figures.py: which curves a sweep is drawn as, and that lines can be told apart."""

import math

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from conftest import REPOSITORY
from results import figures
from results.claims import CLAIMS, METRICS, Verdict, entry
from results.contrasts import ALONG
from results.figures import (
    LINES,
    VERDICT_COLOURS,
    changes_figure,
    contrasts_figure,
    curves_of,
    draw_lines,
    drawable,
    label_points,
    ladder_figure,
    line_figure,
    logarithmic,
    masks_figure,
    matrix_figure,
    means_and_bars,
    of_block,
    point_figure,
    point_styles,
    save_figure,
    scaling_figure,
    styles,
    theory_figure,
    verdicts_figure,
)
from results.report import draw_figures, sweep_of
from results.runs import Run, read_runs
from results.scores import derived
from results.verdicts import Contrast


def run(point=None, seed=0, perplexity=10.0, **options):
    varies = {"point": point, "rung": None, "place": 0, "options": [*options, "seed"]}
    config = {"weight_decay": 0.1, "seed": seed, **options, "sweep": varies}
    summary = {"perplexity": perplexity, "last_layer_variance": 2.0}
    analysis = {"n_eff_share": 0.5, "variance": {"residual": [1.0, 2.0]}}
    return Run("", config, summary, [], analysis)


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
}


@pytest.mark.parametrize("drawn", STYLES.values(), ids=STYLES.keys())
def test_lines_grow_lighter_and_have_markers_of_their_own(drawn):
    luminance = [np.dot(style["color"][:3], (0.3, 0.59, 0.11)) for style in drawn]
    assert luminance == sorted(set(luminance))  # greyscale keeps the order
    assert len({style["marker"] for style in drawn}) == len(drawn)


def test_points_of_two_options_differ_by_colour_and_marker_and_by_dashes():
    rates = (1e-3, 2e-3, 4e-3, 8e-3)
    points = sweep(*(run(n_layer=L, learning_rate=rate) for L in (4, 8, 32) for rate in rates))
    drawn, of_depth = point_styles(points), point_styles(depths(4, 8, 32))
    for point, (each,) in points.items():
        style, depth = drawn[point], of_depth[f"n_layer={each.config['n_layer']}"]
        assert (style["color"], style["marker"]) == (depth["color"], depth["marker"])
    dashes = [[drawn[point]["linestyle"] for point in points][first::4] for first in range(4)]
    assert [len(set(of_rate)) for of_rate in dashes] == [1, 1, 1, 1]
    assert len({of_rate[0] for of_rate in dashes}) == 4


@pytest.mark.parametrize("n", [9, 15, 20])
def test_of_many_lines_no_two_look_the_same_and_few_share_a_hue(n):
    drawn = list(styles(range(n)).values())
    looks = {(style["color"], style["linestyle"]) for style in drawn}
    assert len(looks) == n
    luminance = sorted({np.dot(style["color"][:3], (0.3, 0.59, 0.11)) for style in drawn})
    assert min(np.diff(luminance)) > 0.1


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
    label_points(axis, ["full", "window-8"])
    assert [label.get_text() for label in axis.get_xticklabels()] == ["full", "window-8"]
    assert axis.get_xlabel() == ""


def test_points_of_one_option_are_labelled_by_its_values(axis):
    label_points(axis, ["n_layer=4", "n_layer=16"])
    assert [label.get_text() for label in axis.get_xticklabels()] == ["4", "16"]
    assert axis.get_xlabel() == "n_layer"


def test_points_of_two_options_at_once_are_labelled_in_full(axis):
    label_points(axis, ["n_layer=4,seed=1", "n_layer=16,seed=1"])
    assert [label.get_text() for label in axis.get_xticklabels()][0] == "n_layer=4,seed=1"
    assert axis.get_xlabel() == ""


def test_points_of_two_options_are_drawn_along_the_one_of_more_values():
    """Three lengths of training, dense and with experts: two curves over the three."""
    points = sweep(*(run(name, n_expert=E, perplexity=9.0 - E) for name in "abc" for E in (0, 4)))
    figure = point_figure(points, {"perplexity": METRICS["perplexity"]})
    axis = figure.axes[0]
    dense, experts = [bars.lines[0].get_xydata() for bars in axis.containers]
    assert dense[:, 1].tolist() == [9, 9, 9] and experts[:, 1].tolist() == [5, 5, 5]
    for label in range(3):  # abreast, and nearer to their label than to the next
        assert label - 0.5 < dense[label, 0] < label < experts[label, 0] < label + 0.5
    assert [label.get_text() for label in axis.get_xticklabels()] == ["a", "b", "c"]
    assert [text.get_text() for text in figure.legends[0].texts] == ["n_expert=0", "n_expert=4"]
    plt.close(figure)


def test_intervals_over_seeds_are_drawn_but_none_of_one_seed_or_of_equal_ones():
    points = {
        "two": [run(seed=0, perplexity=9.0), run(seed=1, perplexity=11.0)],
        "one": [run(perplexity=7.0)],
        "equal": [run(seed=0, perplexity=7.0), run(seed=1, perplexity=7.0)],
    }
    mean, bars = means_and_bars(points, METRICS["perplexity"])
    assert mean.tolist() == [10, 7, 7]
    for ends in bars:
        assert ends == pytest.approx([12.706, math.nan, math.nan], rel=1e-3, nan_ok=True)


def seeds_of(*perplexities, point="a"):
    return [run(point, seed, perplexity=each) for seed, each in enumerate(perplexities)]


def test_intervals_of_logarithms_are_around_the_geometric_mean():
    """Of 2 and 8 it is 4; the logarithms' standard error is log(2), and t is 12.706."""
    points = {"two": seeds_of(2.0, 8.0), "one": seeds_of(7.0), "equal": seeds_of(7.0, 7.0)}
    mean, (below, above) = means_and_bars(points, METRICS["perplexity"], log=True)
    assert mean == pytest.approx([4, 7, 7])
    none = [math.nan, math.nan]
    assert below == pytest.approx([4 - 4 / 2**12.706, *none], nan_ok=True)
    assert above == pytest.approx([4 * 2**12.706 - 4, *none], rel=1e-3, nan_ok=True)


def test_what_has_no_logarithm_has_no_place_on_a_logarithmic_axis(recwarn):
    points = {"zero": seeds_of(0.0, 8.0), "lacking": [run(seed=0, perplexity=None)]}
    mean, bars = means_and_bars(points, METRICS["perplexity"], log=True)
    assert np.isnan(mean).all() and np.isnan(bars).all()
    assert not recwarn.list


@pytest.mark.parametrize("panel, middle", [("last-layer variance", 4), ("perplexity", 5)])
def test_a_logarithmic_panel_shows_the_mean_of_the_logarithm(panel, middle):
    points = {"a": seeds_of(2.0, 8.0)}
    figure = point_figure(points, {panel: METRICS["perplexity"]})
    axis = figure.axes[0]
    assert axis.containers[0].lines[0].get_ydata() == pytest.approx([middle])
    (bar,) = axis.containers[0].lines[2][0].get_segments()
    low, high = bar[:, 1]
    if panel == "last-layer variance":
        assert low > 0 and low * high == pytest.approx(middle**2)
        bottom, top = axis.get_ylim()
        assert bottom < low and high < top
    else:
        assert low + high == pytest.approx(2 * middle)
    of_logarithms = "geometric means on logarithmic axes" in figure.get_suptitle()
    assert of_logarithms == (panel == "last-layer variance")
    plt.close(figure)


@pytest.mark.parametrize("n_seeds, drawn", [(1, False), (2, True), (5, True), (6, False)])
def test_few_seeds_are_small_dots_beside_their_mark(n_seeds, drawn):
    seeds = [9.0 + seed for seed in range(n_seeds)]
    points = {"a": seeds_of(*seeds), "b": seeds_of(7.0, point="b")}
    figure = point_figure(points, {name: METRICS["perplexity"] for name in figures.LOGARITHMIC})
    for axis in figure.axes[:2]:
        dots = [line for line in axis.lines if line.get_markersize() == 3]
        assert [line.get_ydata().tolist() for line in dots] == [seeds] * drawn
        assert all(0 < x < 0.5 for line in dots for x in line.get_xdata())
    assert ("small dots: the seeds" in figure.get_suptitle()) == drawn
    plt.close(figure)


def caps_and_bars(axis):
    """How many ends of intervals a panel shows, and how many bars, in which something is drawn."""
    ends = [line for bars in axis.containers for line in bars.lines[1]]
    segments = [
        part for bars in axis.containers for of in bars.lines[2] for part in of.get_segments()
    ]
    return (
        sum(np.isfinite(line.get_xydata()).all(axis=1).sum() for line in ends),
        sum(len(part) > 0 and np.isfinite(part).all() for part in segments),
    )


@pytest.mark.parametrize("n_seeds, ends, bars", [(1, 0, 0), (2, 2, 1)])
def test_one_seed_is_a_mark_without_caps(n_seeds, ends, bars):
    points = {"n_layer=4": [run(seed=s, perplexity=9.0 + s, n_layer=4) for s in range(n_seeds)]}
    names = [*figures.LOGARITHMIC, "usefulness", "perplexity", "causal", "BLiMP"]
    figure = point_figure(points, {name: METRICS["perplexity"] for name in names})
    assert [caps_and_bars(axis) for axis in figure.axes] == [(ends, bars)] * 6
    said = "one seed" if n_seeds == 1 else "means and 95 % intervals"
    assert figure.get_suptitle().startswith(said)
    plt.close(figure)


@pytest.mark.parametrize("n_seeds", [1, 2])
def test_one_seed_is_a_line_without_a_band_and_the_legend_says_so(n_seeds):
    points = {"n_layer=2": [run(seed=s, n_layer=2) for s in range(n_seeds)]}
    for each in points["n_layer=2"]:
        each.analysis = {"losses": [2.0, 1.0 + each.seed]}
    figure = line_figure(points, [of_block("loss", "", entry("losses"))])
    assert len(figure.axes[0].collections) == n_seeds - 1
    said = figure.legends[0].get_title().get_text()
    assert said == ("one seed" if n_seeds == 1 else "means over seeds, with 95 % intervals")
    plt.close(figure)


# Values that are nothing --------------------------------------------------------------------------


def nothing(values):
    """As many zeros, in lists and dicts of the same shape."""
    if isinstance(values, dict):
        return {name: nothing(of_name) for name, of_name in values.items()}
    return [nothing(each) for each in values] if isinstance(values, list) else 0.0


def without_a_stream(each):
    """The run as if weights were zero: no block adds anything to nothing."""
    zero = ("variance", "size", "cosine", "jacobian", "causal_matrix", "permutation_matrix")
    zero += ("angular_distance", "block_influence", "logit_lens", "predicted_variance")
    zero += ("causal", "permutation", "cumulative", "usefulness", "n_eff_share")
    each.analysis |= {name: nothing(each.analysis[name]) for name in zero}
    each.analysis["prune_ratios"] = [1.0] * each.config["n_layer"]
    each.analysis["linear_ratios"] = {
        maps: [1.0] * each.config["n_layer"] for maps in ("held_out", "same", "transposed")
    }
    each.analysis |= derived(each.analysis)
    for line in each.log:
        line["variance"] = nothing(line["variance"])
    each.summary["last_layer_variance"] = 0.0


def published(*numbers):
    """{point: runs} of results/wide_moe.json, two points of three seeds, of which those of these
    numbers have no stream."""
    runs = read_runs(REPOSITORY / "results/wide_moe.json")
    for number in numbers:
        without_a_stream(runs[number])
    return sweep_of(runs).points


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("numbers", [range(4), range(6)], ids=["a point and a seed", "all"])
def test_what_is_nothing_is_drawn_without_a_warning(numbers):
    for figure in draw_figures("wide_moe", published(*numbers)).values():
        figure.draw_without_rendering()
        plt.close(figure)


def test_a_line_has_a_gap_where_a_seed_is_nothing(axis):
    points = {"n_layer=3": [run(seed=seed, n_layer=3) for seed in range(2)]}
    for each, losses in zip(points["n_layer=3"], ([1.0, 0.0, 4.0], [1.0, 2.0, 1.0]), strict=True):
        each.analysis = {"losses": losses}
    draw_lines(axis, points, of_block("", "", entry("losses")))
    assert axis.lines[0].get_ydata() == pytest.approx([1, math.nan, 2], nan_ok=True)
    assert axis.get_yscale() == "log"


def test_where_all_is_nothing_the_axis_is_linear(axis):
    points = {"n_layer=2": [run(n_layer=2)]}
    points["n_layer=2"][0].analysis = {"losses": [0.0, 0.0]}
    draw_lines(axis, points, of_block("", "", entry("losses")))
    assert axis.get_yscale() == "linear"


@pytest.mark.filterwarnings("error")
def test_one_value_but_for_rounding_is_drawn_as_one(axis):
    """As geometric means of equal numbers of seeds of other numbers are."""
    axis.plot([0, 1], [1e12, 1e12 * (1 + 1e-14)])
    logarithmic(axis, "y")
    low, high = axis.get_ylim()
    assert low == pytest.approx(5e11) and high == pytest.approx(2e12)


def test_a_variance_over_nothing_is_none():
    assert figures.over([1.0, 0.0], [2.0, 0.0]) == pytest.approx([0.5, math.nan], nan_ok=True)


# Lines across a panel ----------------------------------------------------------------------------


def with_ratios(*ratios):
    """One run whose blocks, made linear, raise the loss to these ratios."""
    points = depths(len(ratios))
    (runs,) = points.values()
    runs[0].analysis = {"linear_ratios": {"held_out": list(ratios)}}
    return points


@pytest.mark.parametrize("smallest, marked", [(1.00005, True), (0.9, True), (1.001, False)])
def test_what_ends_at_the_floor_is_marked(axis, smallest, marked):
    panel = LINES["linear"][0]
    draw_lines(axis, with_ratios(1.5, smallest), panel)
    across = [line for line in axis.lines if line.get_linestyle() == ":"]
    assert [line.get_ydata()[0] for line in across] == [1e-4] * marked
    assert axis.lines[0].get_ydata() == pytest.approx([0.5, max(smallest - 1, 1e-4)])
    assert ("0.0001 or less" in axis.get_ylabel()) == marked


def test_shares_are_of_blocks_above_each_threshold():
    """Exactly at a threshold, a block is not above it."""
    points = with_ratios(1.0, figures.THRESHOLDS[10], 1.5, 3.0)
    (runs,) = points.values()
    shares = figures.shares_above_thresholds(runs[0])
    assert [shares[i] for i in (0, 9, 10, 30, 60)] == [0.75, 0.75, 0.5, 0.5, 0.25]


def test_the_papers_threshold_is_a_line(axis):
    draw_lines(axis, with_ratios(1.5, 1.05), LINES["linear"][3])
    (up,) = [line for line in axis.lines if line.get_linestyle() == "--"]
    assert list(up.get_xdata()) == [0.1, 0.1]


def test_a_ratio_to_theory_is_held_against_one(axis):
    points = depths(1)
    (runs,) = points.values()
    runs[0].analysis = {"variance": {"residual": [1.0, 3.0]}, "predicted_variance": [1.0, 2.0]}
    draw_lines(axis, points, LINES["theory"][1])
    (across,) = [line for line in axis.lines if line.get_linestyle() == "--"]
    assert list(across.get_ydata()) == [1, 1]
    assert axis.lines[0].get_ydata() == pytest.approx([1, 1.5])


def test_losses_have_their_unit():
    panels = [panel for of_figure in LINES.values() for panel in of_figure]
    labels = {panel.ylabel for panel in panels if panel.ylabel.startswith("loss")}
    assert labels == {"loss (nats)"}


def test_a_band_does_not_push_its_line_into_a_corner(axis):
    points = {"n_layer=2": [run(seed=seed, n_layer=2) for seed in range(2)]}
    for each, losses in zip(points["n_layer=2"], ([1.0, 1e-6], [1.1, 1.0]), strict=True):
        each.analysis = {"losses": losses}
    draw_lines(axis, points, of_block("", "", entry("losses")))
    low, high = np.log(axis.get_ylim())
    line = np.log(axis.lines[0].get_ydata())
    assert low < line.min() < line.max() < high
    assert high - low <= 1.7 * (line.max() - line.min())


# The ladder and matrices -------------------------------------------------------------------------


def ladder(n=3):
    points = sweep(*(run(f"{i}-rung") for i in range(n)))
    for rung, (runs,) in enumerate(points.values()):
        runs.config["sweep"]["rung"] = rung if rung < n - 1 else None
        runs.analysis |= {"usefulness": {"held_out": 0.2}, "choices": {"accuracy": 0.4 + rung / 10}}
    return points


def test_a_ladder_has_a_panel_for_each_axis_and_no_bars():
    figure = ladder_figure(ladder())
    _, above, below = figure.axes
    assert not any(axis.patches for axis in figure.axes)
    rungs, beside = [bars.lines[0].get_xydata().tolist() for bars in above.containers]
    assert rungs == pytest.approx(np.array([[0, 0.4], [1, 0.5]]))
    assert beside == pytest.approx(np.array([[2, 0.6]]))
    plt.close(figure)


def test_a_ladders_mark_at_zero_is_whole():
    points = ladder()
    for (each,) in points.values():
        each.analysis["usefulness"] = {"held_out": 0.0}
    figure = ladder_figure(points)
    below = figure.axes[-1]
    figure.draw_without_rendering()
    mark = below.transData.transform((0, 0))[1]
    half = 3 / 72 * figure.dpi  # of a marker of 6 points
    assert mark - half >= below.get_window_extent().y0
    plt.close(figure)


def test_a_ladder_without_choices_can_be_drawn(tmp_path):
    points = ladder()
    for (each,) in points.values():
        del each.analysis["choices"]
    save_figure(ladder_figure(points), tmp_path / "ladder.png")


def with_matrices(n):
    points = sweep(*(run(n_layer=2, learning_rate=1e-5 + i / 1000) for i in range(n)))
    for (each,) in points.values():
        each.analysis = {matrix.key: np.eye(2) for matrix in figures.MATRICES}
    return points


def drawn_of(points):
    return list(figures.legible(points))


def test_all_of_few_points_are_drawn_as_lines():
    assert drawn_of(depths(*range(1, 9))) == [f"n_layer={L}" for L in range(1, 9)]


def test_of_many_points_on_and_off_a_ladder_its_rungs_are_drawn():
    points = ladder(6)
    points |= sweep(*(run(f"only-{i}", n_expert=i) for i in range(4)))
    assert drawn_of(points) == [f"{rung}-rung" for rung in range(5)]


@pytest.mark.parametrize("n_first, n_second", [(5, 2), (2, 5)])
def test_of_many_points_in_two_options_first_middle_and_last_of_the_longer_are_drawn(
    n_first, n_second
):
    grid = [(L, rate) for L in range(n_first) for rate in range(n_second)]
    points = sweep(*(run(n_layer=L, learning_rate=rate) for L, rate in grid))
    longer = 0 if n_first > n_second else 1
    wanted = [f"n_layer={at[0]},learning_rate={at[1]}" for at in grid if at[longer] in (0, 2, 4)]
    assert drawn_of(points) == wanted


@pytest.mark.parametrize("n", [9, 30])
def test_of_many_points_in_one_option_six_are_drawn_evenly(n):
    drawn = [int(point.partition("=")[2]) for point in drawn_of(depths(*range(1, n + 1)))]
    assert (drawn[0], drawn[-1], len(drawn)) == (1, n, 6)
    assert max(np.diff(drawn)) - min(np.diff(drawn)) <= 1


def test_a_legend_says_how_many_of_the_points_are_drawn():
    figure = line_figure(with_matrices(15), [of_block("a", "b", lambda run: [1.0, 2.0])])
    assert figure.legends[0].get_title().get_text() == f"6 of the 15 points: {figures.ONE_SEED}"
    plt.close(figure)


def bars_of(values, n=12):
    """Colour bars of two points' matrices, whose first row and column are 9; beyond, above the
    diagonal and below, the first has `values[0]`, the second `values[1]`, and one outlier, 5."""
    points = with_matrices(2)
    for value, runs in zip(values, points.values(), strict=True):
        matrix = np.full((n, n), value) * (1 - np.eye(n))
        matrix[2, 5] = 5
        matrix[0], matrix[:, 0] = 9, 9
        runs[0].analysis = dict.fromkeys(
            ("causal_matrix", "permutation_matrix", "angular_distance"), matrix
        )
    figure = matrix_figure(points)
    plt.close(figure)
    return [axis._colorbar for axis in figure.axes if axis.get_label() == "<colorbar>"]


def test_colours_end_where_the_largest_values_without_block_1_and_single_pairs_end():
    bars = bars_of((0.1, 0.2))
    assert [bar.vmax for bar in bars] == pytest.approx([0.2] * 3)
    assert [bar.extend for bar in bars] == ["max"] * 3


@pytest.mark.parametrize("n", [1, 2])
def test_colours_of_block_1_alone_end_at_its_largest_value(n):
    means = [np.full((n, n), value) * (1 - np.eye(n)) for value in (3.0, 4.0)]
    for above in (True, False):
        assert figures.top_of_colours(means, above) == (4 if n == 2 else 1)


@pytest.mark.parametrize("n, columns", [(1, 1), (6, 6), (15, 6)])
def test_matrices_are_of_six_points_at_most(n, columns):
    points = with_matrices(n)
    figure = matrix_figure(points)
    titles = [axis.get_title() for axis in figure.axes if axis.get_title()]
    assert len(titles) == columns
    names = [title.replace(", ", ",").replace(",\n", ",") for title in titles]
    assert names[0] == list(points)[0] and names[-1] == list(points)[-1]
    figure.draw_without_rendering()
    boxes = [axis.title.get_window_extent() for axis in figure.axes if axis.get_title()]
    assert all(one.x1 < other.x0 for one, other in zip(boxes[:-1], boxes[1:], strict=True))
    assert figure.get_size_inches()[0] * figures.DOTS_PER_INCH <= 836
    plt.close(figure)


def test_matrices_of_a_single_block_can_be_drawn(tmp_path, recwarn):
    points = depths(1, 2)
    for (each,), L in zip(points.values(), (1, 2), strict=True):
        each.analysis = {matrix.key: np.eye(L + 1 - matrix.first) for matrix in figures.MATRICES}
    save_figure(matrix_figure(points), tmp_path / "matrices.png")
    assert not recwarn.list


# Axes and files ----------------------------------------------------------------------------------


@pytest.mark.parametrize("low, high", [(1, 2), (1, 50), (1e-3, 1e4)])
def test_logarithmic_axes_have_a_few_plain_labels(axis, low, high):
    axis.plot([0, 1], [low, high])
    logarithmic(axis, "y")
    labels = [axis.yaxis.get_major_formatter()(tick) for tick in axis.get_yticks()]
    assert 2 <= len(labels) <= 12
    assert all(float(label) > 0 for label in labels)


def test_labels_side_by_side_do_not_touch():
    """Over six decades, in a panel as wide as those of changes_figure."""
    figure, axis = plt.subplots(figsize=(2.4, 2))
    axis.plot([3e-5, 20], [0, 1])
    logarithmic(axis, "x")
    axis.tick_params(labelsize=9)
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in axis.get_xticklabels() if text.get_text()]
    low, high = axis.get_window_extent().intervalx
    shown = [box for box in boxes if low <= (box.x0 + box.x1) / 2 <= high]
    assert len(shown) > 1
    assert all(one.x1 + 4 < other.x0 for one, other in zip(shown[:-1], shown[1:], strict=True))
    plt.close(figure)


def verdict(metric, verdict, effect):
    claim = next(claim for claim in CLAIMS if claim.metric == metric)
    return Verdict(claim, verdict, effect, 0.1, 0.01, 0.01, (3, 3))


@pytest.mark.parametrize(
    "metric, effect, words",
    [
        ("causal", math.log(1.9), "× 1.9"),
        ("usefulness", 0.123, "+0.12"),
        ("usefulness", -3.5e-18, "+0"),  # what equal values leave when they are averaged
        ("usefulness", math.nan, "–"),
    ],
)
def test_an_effect_in_a_box(metric, effect, words):
    assert figures.brief_effect(verdict(metric, "undecided", effect)) == words


NO_CHANGE = dict.fromkeys(figures.CHANGES)


def changes(**effects):
    """{row: what changes_figure reads} of {row: {metric: (effect, half-width)}}, by a Contrast of
    two degrees of freedom."""
    return {
        row: NO_CHANGE
        | {name: Contrast(effect, half / 4.3027, 2.0) for name, (effect, half) in of.items()}
        for row, of in effects.items()
    }


def arrows(axis):
    """[(marker, row)] at a panel's edges."""
    return [(line.get_marker(), *line.get_ydata()) for line in axis.lines if not line.get_clip_on()]


def test_changes_are_factors_with_intervals_of_logarithms():
    """A dot, filled where its interval is without 1, and nothing where there is no contrast."""
    rows = {"a": {"growth": (math.log(8), 2.0)}, "b": {"growth": (math.log(8), 2.1)}, "c": {}}
    figure = changes_figure(changes(**rows))
    growth = figure.axes[1]
    bar, dot, _, other_dot = growth.lines[:4]
    assert np.log(bar.get_xdata()) == pytest.approx([math.log(8) - 2, math.log(8) + 2], abs=1e-3)
    assert dot.get_xdata() == pytest.approx([8]) and list(dot.get_ydata()) == [0]
    assert dot.get_markerfacecolor() == "black" and other_dot.get_markerfacecolor() == "white"
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["a", "b", "c"]
    assert [len(axis.lines) for axis in figure.axes] == [1, 5, 1, 1, 1, 1]  # and a line at 1
    low, high = np.log(growth.get_xlim())
    assert low < math.log(8) - 2.1 and math.log(8) + 2.1 < high
    assert "hollow where they hold 1" in figure.get_supxlabel()
    assert "arrows" not in figure.get_supxlabel()
    plt.close(figure)


def test_what_lies_far_beyond_the_others_is_an_arrow_at_the_edge():
    """A dot at 1e-5 with its number; and a bar from 1/e^5 to e^5, whose dot the panel shows."""
    rows = {
        "far": {"growth": (math.log(1e-5), 0.1)},
        "wide": {"growth": (0.0, 5.0)},
        "x": {"growth": (1.0, 0.2)},
        "y": {"growth": (-1.0, 0.2)},
    }
    figure = changes_figure(changes(**rows))
    growth = figure.axes[1]
    assert arrows(growth) == [("<", 0), ("<", 1), (">", 1)]
    assert [text.get_text() for text in growth.texts] == ["1e-05"]
    low, high = np.log(growth.get_xlim())
    assert -2.5 < low < -1.2 and 1.2 < high < 2.5  # so that the others can be told apart
    assert "arrows: beyond the panel" in figure.get_supxlabel()
    assert all(arrows(axis) == [] for axis in figure.axes if axis is not growth)
    plt.close(figure)


def test_a_single_change_is_shown_whole_however_wide():
    figure = changes_figure(changes(only={"causal": (0.01, 3.0)}))
    assert arrows(figure.axes[3]) == []
    plt.close(figure)


CASES = {
    name: {of: [1.0, 2.0] for of in ("predicted", "simulated", "standard_error")}
    for name in "abcde"
}
MASKS = [
    {"density": density, "predicted": [1.0, 2.0], "growth": [[1.0, 1.1], [2.0, 2.2]]}
    for density in (0.5, 1.0)
]
SPEED = {"tokens_per_second": 2e6, "slowest": 1.9e6, "fastest": 2.1e6}
SPEEDS = {panel: {"dense": {"4": SPEED, "8": SPEED}} for panel in ("blocks", "context", "experts")}


def test_every_column_of_theory_has_its_numbers_below():
    figure = theory_figure(CASES)  # five in rows of four
    drawn = [axis for axis in figure.axes if axis.axison]
    labelled = [axis.xaxis.get_tick_params()["labelbottom"] for axis in drawn]
    assert labelled == [False, True, True, True, True]
    plt.close(figure)


def test_what_a_page_shows_is_drawn_no_wider_than_the_page():
    points = depths(4, 8)
    for (each,) in points.values():
        each.analysis |= {"causal": 0.5, "permutation": 0.5}
    drawn = [
        point_figure(points, {"perplexity": METRICS["perplexity"]}),
        changes_figure({"depth": NO_CHANGE}),
        contrasts_figure(ALONG["tokens"], [1, 2], ["a", "b"], [NO_CHANGE] * 2),
        theory_figure(CASES),
        masks_figure({"window": MASKS, "strided": MASKS}, [0, 1]),
        scaling_figure(SPEEDS),
    ]
    for figure in drawn:
        assert figure.get_size_inches()[0] * figures.DOTS_PER_INCH <= 836
        plt.close(figure)


def test_verdicts_stand_in_their_measures_column_with_their_effect():
    said = [verdict("growth", "opposed", math.log(2)), verdict("usefulness", "no effect", 0.004)]
    figure = verdicts_figure({"hot": {"moe": said}, "right": {"moe": said, "depth": []}})
    hot, right = figure.axes
    assert [text.get_text() for text in hot.texts] == ["× 2", "+0.004"]
    assert [text.get_position() for text in hot.texts] == [(0, 0), (1, 0)]  # nothing else is asked
    assert [label.get_text() for label in hot.get_xticklabels()] == ["growth", "useful-\nness"]
    colours = [matplotlib.colors.to_hex(patch.get_facecolor()) for patch in hot.patches]
    assert colours == [VERDICT_COLOURS["opposed"], VERDICT_COLOURS["no effect"]]
    assert [label.get_text() for label in right.get_yticklabels()] == ["moe", "depth"]
    assert "†" not in figure.legends[0].get_title().get_text()
    plt.close(figure)


def test_verdicts_that_need_pooled_spreads_are_marked():
    said = [
        verdict("growth", "opposed", math.log(2))._replace(p_apart=0.06),
        verdict("causal", "undecided", math.log(2))._replace(p_apart=0.06),
        verdict("usefulness", "no effect", 0.004)._replace(p_apart=0.04),
    ]
    figure = verdicts_figure({"": {"moe": said}})
    assert [text.get_text() for text in figure.axes[0].texts] == ["× 2 †", "× 2", "+0.004"]
    assert "† not if each point keeps its own" in figure.legends[0].get_title().get_text()
    plt.close(figure)


# The hero ----------------------------------------------------------------------------------------


def with_worths(L, *factors, **options):
    """Runs of L blocks, one for each factor, whose block l is worth factor / l."""
    runs = [run(seed=seed, **options) for seed in range(len(factors))]
    for each, factor in zip(runs, factors, strict=True):
        each.config["n_layer"] = L
        each.analysis = {
            "prune_ratios": [1 + factor / l for l in range(1, L + 1)],
            "variance": {"residual": [1.0, *(2.0**l for l in range(L))]},
        }
    return runs


DEPTHS = {f"n_layer={L}": with_worths(L, 0.1, 0.2, n_layer=L) for L in (4, 8)}
EARLY, MIDDLE, LATE = "worth, early", "worth, middle", "worth, late"
BESIDE = {  # two models
    "n_expert=64": {EARLY: (math.log(3), 0.5), MIDDLE: (0.1, 0.2), LATE: (-0.1, 0.2)},
    "half the rate": {MIDDLE: (-0.7, 0.2), LATE: (0.0, 0.2)},
}


def curves(axis):
    return {line.get_label(): line for line in axis.lines if not line.get_label().startswith("_")}


def hero():
    unknown = dict.fromkeys((EARLY, MIDDLE, LATE))
    beside = {name: unknown | of for name, of in changes(**BESIDE).items()}
    return figures.hero_figure(DEPTHS, "n_layer=8", beside)


def test_the_hero_has_the_curse_of_every_depth():
    figure = hero()
    variance, depth, _ = figure.axes
    assert list(curves(variance)) == list(curves(depth)) == ["n_layer=4", "n_layer=8"]
    assert curves(variance)["n_layer=4"].get_ydata() == pytest.approx([1, 2, 4, 8])
    middle = [math.sqrt(0.1 * 0.2) / l for l in range(1, 9)]
    assert curves(depth)["n_layer=8"].get_ydata() == pytest.approx(middle)
    first, second = figure.get_supxlabel().splitlines()
    assert first.startswith(
        "left and middle: all of depth; right: over n_layer=8 (depth), by third"
    )
    assert second == "means over seeds, with 95 % intervals"
    plt.close(figure)


def test_the_hero_sets_other_models_beside_the_plain_one_by_thirds():
    """Dots at the factors, hollow where the interval holds 1; what was not measured has none."""
    figure = hero()
    axis = figure.axes[-1]
    dots = [line for line in axis.lines if line.get_marker() != "None" and len(line.get_xdata())]
    drawn = {line.get_xdata()[0]: line for line in dots}
    assert [label.get_text() for label in axis.get_xticklabels()] == list(BESIDE)
    assert sorted(drawn) == [-0.25, 0, 0.25, 1, 1.25]
    heights = [drawn[place].get_ydata()[0] for place in sorted(drawn)]
    assert heights == pytest.approx([3, *np.exp([0.1, -0.1, -0.7, 0.0])])
    hollow = [drawn[place].get_markerfacecolor() == "white" for place in sorted(drawn)]
    assert hollow == [False, True, True, False, True]
    (bar,) = [line for line in axis.lines if list(line.get_xdata()) == [-0.25, -0.25]]
    assert bar.get_ydata() == pytest.approx([3 * math.exp(-0.5), 3 * math.exp(0.5)], rel=1e-4)
    assert [text.get_text() for text in axis.get_legend().get_texts()] == [
        "early",
        "middle",
        "late",
    ]
    lowest_bar = math.exp(-0.9)
    assert axis.get_ylim()[0] < 0.8 * lowest_bar and axis.get_yscale() == "log"
    plt.close(figure)


def test_without_other_models_the_hero_is_the_curse_alone():
    figure = figures.hero_figure(DEPTHS, "", {})
    assert len(figure.axes) == 2
    assert figure.get_supxlabel() == (
        "left and middle: all of depth\nmeans over seeds, with 95 % intervals"
    )
    plt.close(figure)


def test_the_hero_is_legible_at_the_width_of_a_page():
    figure = hero()
    assert figure.get_size_inches()[0] * figures.DOTS_PER_INCH <= 836
    figure.draw_without_rendering()
    titles = [axis.title.get_window_extent() for axis in figure.axes]
    assert all(one.x1 < other.x0 for one, other in zip(titles[:-1], titles[1:], strict=True))
    below = figure._supxlabel.get_window_extent()
    assert below.x0 >= 0 and below.x1 <= figure.bbox.x1
    plt.close(figure)


def test_saved_figures_are_small_and_whole(tmp_path, axis):
    axis.plot([0, 1])
    save_figure(axis.figure, tmp_path / "line.png")
    picture = plt.imread(tmp_path / "line.png")
    assert picture.shape[:2] == (422, 563)  # 4.8 by 6.4 inches of 88 dots
    assert picture.std() > 0.01
    assert (tmp_path / "line.png").stat().st_size < 20_000
    assert not list(tmp_path.glob("*.tmp"))


def patches(n_shades):
    """A picture of 16 by 16 patches, 8 dots wide, of so many shades."""
    rng = np.random.default_rng(0)
    shades = rng.integers(120, 256, (n_shades, 3), dtype=np.uint8)
    which = np.arange(16 * 16).reshape(16, 16) % n_shades
    return Image.fromarray(shades[which].repeat(8, axis=0).repeat(8, axis=1))


@pytest.mark.parametrize("n_shades", [2, 30, 90, 120])
def test_areas_keep_their_shades(n_shades):
    picture = patches(n_shades)
    few = figures.in_few_colours(picture)
    off = np.array(few.convert("RGB"), dtype=int) - np.array(picture, dtype=int)
    areas = off.reshape(16, 8, 16, 8, 3).mean(axis=(1, 3))
    assert abs(areas).max() <= 6


def test_where_32_colours_show_no_difference_there_are_no_more():
    few = figures.in_few_colours(Image.linear_gradient("L").convert("RGB"))  # 256 greys
    assert len(few.getcolors()) <= 32


def test_a_faint_band_among_lines_of_many_colours_keeps_its_hue(tmp_path, axis):
    """As of one point among several: 32 colours alone would turn it grey."""
    for place in np.linspace(0, 1, 60):
        axis.plot([0, 1], [place, 1 - place], color=plt.get_cmap("hsv")(place), linewidth=4)
    axis.fill_between([0, 1], 2, 3, color="tab:blue", alpha=0.25, linewidth=0)
    save_figure(axis.figure, tmp_path / "bands.png")
    picture = Image.open(tmp_path / "bands.png")
    assert len(picture.getcolors()) > 32
    wanted = 255 - 0.25 * (255 - 255 * np.array(matplotlib.colors.to_rgb("tab:blue")))
    middle = picture.convert("RGB").getpixel((280, 100))
    assert abs(middle - wanted).max() <= 6


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


def rings(axis):
    """Marks around others, which nothing fills."""
    return [line for line in axis.lines if line.get_markerfacecolor() == "none"]


@pytest.mark.parametrize("smallest, ringed", [(0.99e-4, True), (1.01e-4, False)])
def test_growth_is_ringed_where_the_norms_eps_counts(axis, smallest, ringed):
    points = depths(2)
    (runs,) = points.values()
    runs[0].analysis = {"variance": {"residual": [smallest, 1.0, 2.0]}}
    draw_lines(axis, points, LINES["scale_free"][0])
    line = axis.lines[0]
    assert line.get_ydata().tolist() == [1, 2]
    assert line.get_markerfacecolor() == line.get_color()  # not hollow
    assert [ring.get_ydata().tolist() for ring in rings(axis)] == [[1, 2]] * ringed
    assert ("ringed" in axis.get_title()) == ringed
    assert len(axis.get_legend_handles_labels()[0]) == 1


def test_points_are_ringed_where_the_norms_eps_counts_and_a_line_says_so():
    """Of two curves, one point: by one of its two seeds."""
    points = {
        f"{name},n_layer={L}": [run(name, seed, perplexity=L, n_layer=L) for seed in range(2)]
        for name in "ab"
        for L in (4, 8, 16)
    }
    for seed, smallest in enumerate((1.01e-4, 0.99e-4)):
        points["b,n_layer=8"][seed].analysis = {"variance": {"residual": [smallest, 1.0]}}
    figure = point_figure(points, {"perplexity": METRICS["perplexity"]})
    axis = figure.axes[0]
    (ring,) = rings(axis)
    mark = axis.containers[1].lines[0].get_xydata()[1].tolist()
    assert ring.get_xydata().tolist() == [mark] and mark[1] == 8
    assert "ringed: the norms' eps" in figure.get_suptitle()
    assert "hollow" not in figure.get_suptitle()
    assert [text.get_text() for text in figure.legends[0].texts] == ["a", "b"]
    plt.close(figure)
