"""Every figure, drawn from numbers that others computed.

Of a sweep, {point: its runs, one per seed}: line_figure (curves over blocks or steps),
point_figure (what each point comes to), ladder_figure and matrix_figure; of points set against each
other: contrasts_figure. Of several sweeps: hero_figure, changes_figure and verdicts_figure. Of
theory.py's numbers: theory_figure and masks_figure; of results/scaling.py's: scaling_figure. Seeds
are shown by their mean and its 95 % interval; a single seed has none. A line across a panel says
where values end, at a floor, or what they are held against. A mark with a ring is of runs in which
the norms' eps counts; a hollow one is a change whose interval holds none, and an arrow at a panel's
edge is of one beyond it. save_figure writes the PNG.
"""

import math
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, replace
from io import BytesIO

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from PIL import Image, ImageChops  # which matplotlib stands on

from data.files import replacing
from results.claims import (
    CLAIM_METRICS,
    EXPERIMENT,
    LOG_METRICS,
    METRICS,
    Verdict,
    entry,
    eps_counts,
)
from results.verdicts import ROUNDING, interval

POINT_METRICS = {  # of point_figure: {figure: {panel: function of a run}}
    "points": {
        "perplexity": METRICS["perplexity"],
        "last-layer variance": METRICS["last-layer variance"],
        "growth, var h_L / var h_1": entry("growth", "growth"),
        "causal": METRICS["causal"],
        "permutation": METRICS["permutation"],
        "geometric mean of u, removed": CLAIM_METRICS["geometric mean of u, removed"],
    },
    "companions": {
        "exponent of the variance": entry("growth", "exponent"),
        "update angle times L": entry("updates", "angle_times_L"),
        "choice accuracy": METRICS["choice accuracy"],
        "usefulness": METRICS["usefulness"],
        "N_eff / L": METRICS["N_eff / L"],
        "BLiMP": entry("blimp", "accuracy"),
    },
}
FROM_ZERO = ("usefulness", "N_eff / L")
SHARES = (*FROM_ZERO, "choice accuracy", "BLiMP")  # their axes end where a share must
LOGARITHMIC = ("last-layer variance", "growth, var h_L / var h_1", "geometric mean of u, removed")
POINT_TITLES = {  # where a metric's name does not say what it is
    "last-layer variance": "variance of the last state, h_L",
    "causal": "causal score, one block skipped",
    "permutation": "permutation score, two swapped",
    "usefulness": "share of blocks above 10 % (usefulness)",
    "N_eff / L": "N_eff / L, a block made linear",
    "geometric mean of u, removed": "worth of a typical block, removed",
}
JUST_ABOVE_ONE = 1.03  # upper end of a share's axis
BELOW_ZERO = 0.04  # of its height: room for the lower half of a mark at 0
PAPERS_THRESHOLD = 0.1  # of a useful block's growth of the loss
THRESHOLDS = [round(1 + growth, 5) for growth in np.geomspace(0.001, 1, 61).tolist()]
SMALLEST_GROWTH = 1e-4  # of a loss: whatever is below is drawn there
SMALLEST_VARIANCE = 1e-200  # beside the largest, 1e50, still a number
FEW = 8  # lines at most that colour and marker alone tell apart
SOME = 6  # of more lines than that, and columns of matrices
TITLE_SIZE = 10
MARGIN_OF_BANDS = 0.3  # of the height of a panel's lines
LEGEND_BELOW = {"loc": "outside lower center", "fontsize": 9}
LONG_LABEL = 20  # characters: of longer ones, three stand in a legend's row and not four
SLANTED = {"rotation": 40, "ha": "right"}  # long labels of an axis
WIDTH = 9.5  # inches, of most figures
DOTS_PER_INCH = 88  # of that width 836, as many as a page on GitHub shows
HEIGHT = 3.0  # inches, of a row of panels, two in each
PNG_COLOURS = (32, 64, 128)  # at most
SQUARE = 8  # dots: of so large an area the eye sees the shade
SAME_SHADE = 6  # of 255: no difference is seen


# Styles: one colour, dark to light so that greyscale keeps the order, and one marker -------------
# Of more than FEW lines, these come in turn, and dashes tell one turn from the next.

MARKERS = "osD^vP*X<>hd"
LIGHTEST = 0.85  # place in the colour map: beyond, lines fade into the paper
DASHES = ("solid", "dashed", "dotted", "dashdot", (0, (6, 1, 1, 1, 1, 1)))
HUES = 4  # of many lines


def shade(place):
    """The colour at a place from 0, dark, to 1, light."""
    return plt.get_cmap("viridis")(place)


def styles(labels, depths=None):
    """{label: its line's colour and marker}. A depth, in blocks, looks the same in every figure;
    labels without depths, or with some too close to tell apart, take their styles in turn."""
    labels = list(labels)
    ranks, last = range(len(labels)), max(1, len(labels) - 1)
    if depths and None not in depths:
        of_depths = [round(2 * np.log2(depth / 2)) for depth in depths]  # half octaves above 2
        if len(set(of_depths)) == len(labels):
            ranks, last = of_depths, 8  # 32 blocks are the lightest
    elif len(labels) > FEW:
        return {label: style_of_many(rank) for label, rank in zip(labels, ranks, strict=True)}
    return {
        label: {
            "color": shade(LIGHTEST * rank / last),
            "marker": MARKERS[rank % len(MARKERS)],
        }
        for label, rank in zip(labels, ranks, strict=True)
    }


def style_of_many(rank):
    return {
        "color": shade(LIGHTEST * (rank % HUES) / (HUES - 1)),
        "marker": MARKERS[rank % len(MARKERS)],
        "linestyle": DASHES[rank // HUES % len(DASHES)],
    }


def point_styles(points):
    """Styles of {point: its runs}, by depth where the sweep varies nothing else. Points that differ
    in two options have their curve's colour and marker, and dashes by the second option."""
    curves, style_of = curves_of(points)
    if curves.keys() == points.keys():
        return style_of
    parts = {point: split_last(runs[0]) for point, runs in points.items()}
    labels = list(dict.fromkeys(label for _, label in parts.values()))
    if len(labels) > len(DASHES):
        return styles(points)
    return {
        point: {**style_of[curve], "linestyle": DASHES[labels.index(label)]}
        for point, (curve, label) in parts.items()
    }


def depth_alone(options):
    """The depth, where it is all that tells a line from the others; else None."""
    return options["n_layer"] if list(options) == ["n_layer"] else None


def has_positive(axis, which):
    """Is anything drawn that a logarithmic axis, "x" or "y", can show?"""
    return math.isfinite(getattr(axis.dataLim, f"minpos{which}"))


def logarithmic(axis, which):
    """A logarithmic scale for "x" or "y" whose few labels are plain numbers, also over less than
    a decade. Where nothing is positive, it stays linear."""
    if not has_positive(axis, which):
        return
    low, high = getattr(axis.dataLim, f"interval{which}")
    if high - low <= ROUNDING * high:  # one value, which matplotlib would take for a range
        axis.set(**{f"{which}lim": (low / 2, 2 * high)})
    axis.set(**{f"{which}scale": "log"})
    low, high = getattr(axis, f"get_{which}lim")()
    if high < 4 * low:
        locator = MaxNLocator(5)
    elif high < 300 * low:
        locator = LogLocator(subs=(1, 2, 5))
    else:
        locator = LogLocator(subs=(1,), numticks=6 if which == "y" else 4)  # side by side, fewer
    ticks = getattr(axis, f"{which}axis")
    ticks.set_major_locator(locator)
    ticks.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ticks.set_minor_formatter(NullFormatter())


# Curves over blocks or steps ---------------------------------------------------------------------


@dataclass
class Panel:
    title: str
    xlabel: str
    ylabel: str
    curve: Callable  # of a run: a number for each place along x; None: an older run lacks it
    x: Callable | None = None  # of a run: those places; None: first, first + 1, ...
    first: int = 0
    log: bool = True  # the vertical axis; means and intervals are then of logarithms
    log_x: bool = False
    ylim: tuple | None = None
    ringed: Callable | None = None  # of a run: whether its point's markers are
    floor: float | None = None  # the least that the curve can show; a line where some value is
    level: float | None = None  # what values are held against: a line across
    place: float | None = None  # along x that matters: a line up


def growth_of_loss(*keys):
    """The function of a run that looks up ratios of losses by these keys, as relative growth: 0.1
    for 1.1."""
    ratios = entry(*keys)
    return lambda run: np.maximum(np.array(ratios(run)) - 1, SMALLEST_GROWTH)


def steps(run):
    return [line["step"] for line in run.log]


def last_variance_at_steps(run):
    return [line["variance"][-1] for line in run.log]


def shares_above_thresholds(run):
    """The share of blocks whose linear stand-in raises the loss by more than each threshold."""
    ratios = np.array(run.analysis["linear_ratios"]["held_out"])
    return [(ratios > threshold).mean() for threshold in THRESHOLDS]


def variance_before_training(run):
    return over_predicted(run, run.log[0]["variance"])


def variance_after_training(run):
    return over_predicted(run, run.analysis["variance"]["residual"])


def over_predicted(run, variance):
    """None where scores were taken at another length than the theory speaks of."""
    predicted = run.analysis.get("predicted_variance")
    return over(variance, predicted) if predicted else None


def over(variance, others):
    """Variances over others; nan where these are 0."""
    others = np.array(others)
    return np.divide(variance, np.where(others > SMALLEST_VARIANCE, others, np.nan))


def growth_since_block_1(run):
    variance = np.array(run.analysis["variance"]["residual"])
    return variance[1:] / max(variance[1], SMALLEST_VARIANCE)


def update_angles(run):
    distance = entry("angular_distance")(run)
    return None if distance is None else np.pi * np.diagonal(distance, offset=1)


def of_block(title, ylabel, curve, **options):
    """A panel over the blocks 1 to L."""
    return Panel(title, "block", ylabel, curve, first=1, **options)


def of_state(title, ylabel, curve, **options):
    """A panel over the states h_0 to h_L."""
    return Panel(title, "block", ylabel, curve, first=0, **options)


def median_over_mean(run):
    return over_mean(run, "median")


def without_first_over_mean(run):
    return over_mean(run, "without_first")


def over_mean(run, kind):
    """The stream's variance of another kind over its mean over tokens."""
    variance = run.analysis["variance"]
    return over(variance[kind], variance["residual"]) if kind in variance else None


def of_removed(title, order):
    """A panel over the number of blocks removed in this order."""
    return Panel(title, "blocks removed", "loss (nats)", entry("cumulative", order), log=False)


def of_growth(title, *keys):
    """A panel over the blocks of loss ratios as relative growth, from SMALLEST_GROWTH on."""
    ylabel, curve = "relative growth of the loss", growth_of_loss(*keys)
    return of_block(title, ylabel, curve, floor=SMALLEST_GROWTH)


SIZE = "|update| / |stream|"
COSINE = "cos(update, stream)"
OVER_PREDICTED = "variance of h_l / predicted"
LINES = {  # figure: its panels, two in a row
    "variance": [
        Panel(
            "variance of the last state, during training",
            "step",
            "variance of h_L",
            last_variance_at_steps,
            x=steps,
        ),
        of_state(
            "variance of every state, after training",
            "variance of h_l",
            entry("variance", "residual"),
        ),
        of_block(
            "variance of what attention adds",
            "variance of the branch",
            entry("variance", "attention"),
        ),
        of_block(
            "variance of what the feed-forward branch adds",
            "variance of the branch",
            entry("variance", "mlp"),
        ),
    ],
    "scale_free": [
        of_block(
            "growth of the variance",
            "var h_l / var h_1",
            growth_since_block_1,
            ringed=eps_counts,
            level=1,
        ),
        of_block("angle by which a block turns the stream", "radians", update_angles),
        of_block("size of what a block adds", SIZE, entry("size", "block")),
        of_block("direction of what a block adds", COSINE, entry("cosine", "block"), log=False),
        of_block("size of what attention adds", SIZE, entry("size", "attention")),
        of_block(
            "direction of what attention adds", COSINE, entry("cosine", "attention"), log=False
        ),
        of_block("size of what the feed-forward branch adds", SIZE, entry("size", "mlp")),
        of_block(
            "direction of what the feed-forward branch adds",
            COSINE,
            entry("cosine", "mlp"),
            log=False,
        ),
    ],
    "tokens": [
        Panel(
            "held-out loss by the number of tokens read",
            "tokens read",
            "loss (nats)",
            entry("text", "by_position"),
            x=entry("text", "positions_read"),
            log=False,
            log_x=True,
        ),
        of_state(
            "variance of the median token, over the mean one's",
            "median / mean variance",
            median_over_mean,
            level=1,
        ),
        of_state(
            "variance without position 0, over that with it",
            "variance / with position 0",
            without_first_over_mean,
            level=1,
        ),
    ],
    "pruning": [
        of_growth("growth of the loss with one block removed", "prune_ratios"),
        of_removed("loss with blocks removed, the last first", "last"),
        of_removed("loss with blocks removed, the least harmful first", "least"),
        of_removed("loss with blocks removed, greedily", "greedy"),
    ],
    "linear": [
        of_growth("one block made linear", "linear_ratios", "held_out"),
        of_growth("one block made linear, fitted on the same text", "linear_ratios", "same"),
        of_growth("one block's map transposed, as published", "linear_ratios", "transposed"),
        Panel(
            "share of blocks whose growth is above the threshold",
            f"threshold (dashed: the paper's, {PAPERS_THRESHOLD})",
            "share of blocks",
            shares_above_thresholds,
            x=lambda run: np.array(THRESHOLDS) - 1,
            log=False,
            log_x=True,
            ylim=(-0.05, 1.05),
            place=PAPERS_THRESHOLD,
        ),
    ],
    "jacobian": [
        of_block(
            "Jacobian less identity: mean over tokens, then norm",
            "||J - I|| / d",
            entry("jacobian", "deviation"),
        ),
        of_block(
            "Jacobian less identity: norm, then mean over tokens",
            "||J - I|| / d",
            entry("jacobian", "per_token"),
        ),
        of_block(
            "Jacobian off its diagonal", "||J - diag J|| / d", entry("jacobian", "off_diagonal")
        ),
        of_block("spectral norm of the Jacobian", "||J||", entry("jacobian", "spectral")),
    ],
    "theory": [
        of_state(
            "variance over the predicted one, before training",
            OVER_PREDICTED,
            variance_before_training,
            level=1,
        ),
        of_state(
            "variance over the predicted one, after training",
            OVER_PREDICTED,
            variance_after_training,
            level=1,
        ),
    ],
    "similarity": [
        of_block(
            "how far a block turns its input", "1 - cos(input, output)", entry("block_influence")
        ),
        of_state(
            "how far an early read-out is from the final one",
            "KL to the final one (nats)",
            lambda run: run.analysis["logit_lens"][:-1],
        ),
    ],
}


def drawable(panels, points):
    """The panels whose curve every run has."""
    runs = [run for of_point in points.values() for run in of_point]
    return [panel for panel in panels if all(panel.curve(run) is not None for run in runs)]


def line_figure(points, panels, legend=None):
    """A panel each, two in a row, of the points that are legible together; legend: its title,
    instead of what shown_of says of seeds."""
    shown = legible(points)
    n_rows = (len(panels) + 1) // 2
    size = (WIDTH, HEIGHT * n_rows + height_of_legend(shown) + 0.1)
    figure, axes = plt.subplots(n_rows, 2, figsize=size, layout="constrained")
    for axis, panel in zip(axes.flat, panels, strict=False):
        draw_lines(axis, shown, panel)
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    lines, labels = axes.flat[0].get_legend_handles_labels()
    if legend is None:
        legend = ": ".join(filter(None, [some_of(shown, points), shown_of(shown)]))
    figure.legend(lines, labels, title=legend, ncols=columns_of_legend(shown), **LEGEND_BELOW)
    return figure


def legible(points):
    """All points, or, of more than FEW, some: the rungs of a ladder; of points that differ in two
    options, the first, middle and last value of that which takes more; and at most SOME."""
    if len(points) <= FEW:
        return points
    rungs = {point: runs for point, runs in points.items() if runs[0].rung is not None}
    if len(rungs) > 1:
        return spread_out(rungs, SOME)
    which = 0 if first_has_more(points) else 1
    values = {point: split_last(runs[0])[which] for point, runs in points.items()}
    kept = spread_out(dict.fromkeys(values.values()), 3)
    of_kept = {point: runs for point, runs in points.items() if values[point] in kept}
    return spread_out(of_kept if len(of_kept) > 3 else points, SOME)


def spread_out(points, n):
    """At most n of the points, evenly from the first to the last."""
    names = list(points)
    places = np.linspace(0, len(names) - 1, min(n, len(names))).round().astype(int)
    return {names[place]: points[names[place]] for place in places}


def some_of(shown, points):
    """How many of the points are shown, where not all are."""
    return f"{len(shown)} of the {len(points)} points" if len(shown) < len(points) else ""


def columns_of_legend(labels):
    return 3 if max(map(len, labels)) > LONG_LABEL else 4


def height_of_legend(labels):
    """In inches, of one below the panels."""
    return 0.2 * math.ceil(len(labels) / columns_of_legend(labels)) + 0.2


ONE_SEED = "one seed"
RING = {"marker": "o", "linestyle": "", "markerfacecolor": "none", "markeredgecolor": "black"}
RING_SAYS = " (ringed: the norms' eps counts)"  # in a title
RINGED = "ringed: the norms' eps is more than 1 % of a variance of the stream"


def shown_of(points):
    """What lines and bands are, for a legend."""
    if all(len(runs) == 1 for runs in points.values()):
        return ONE_SEED
    return "means over seeds, with 95 % intervals"


def draw_lines(axis, points, panel):
    for point, style in point_styles(points).items():
        draw_line(axis, point, points[point], panel, style)
    axis.set(xlabel=panel.xlabel, ylabel=panel.ylabel)
    axis.set_title(panel.title + RING_SAYS * has_rings(points, panel), fontsize=TITLE_SIZE)
    log = panel.log and has_positive(axis, "y")
    if log:
        logarithmic(axis, "y")
    keep_lines_in_sight(axis, log)
    draw_limits(axis, points, panel)
    if log:
        logarithmic(axis, "y")  # of these limits
    if panel.ylim:
        axis.set_ylim(panel.ylim)
    if panel.log_x:
        logarithmic(axis, "x")
    else:
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))


def has_rings(points, panel):
    runs = [run for of_point in points.values() for run in of_point]
    return panel.ringed is not None and any(map(panel.ringed, runs))


def keep_lines_in_sight(axis, log):
    """Bands of two seeds may be many times as high as the lines that they belong to; they are cut
    off at MARGIN_OF_BANDS of the lines' height above and below these."""
    into, back = (log_of_positive, np.exp) if log else (np.array, np.array)
    heights = into(np.concatenate([line.get_ydata() for line in axis.lines]))
    heights = heights[np.isfinite(heights)]
    if not len(heights) or heights.min() == heights.max():
        return
    margin = MARGIN_OF_BANDS * (heights.max() - heights.min())
    drawn_low, drawn_high = axis.dataLim.intervaly
    low, high = back(heights.min() - margin), back(heights.max() + margin)
    if drawn_low < low:
        axis.set_ylim(bottom=low)
    if drawn_high > high:
        axis.set_ylim(top=high)


def draw_limits(axis, points, panel):
    """The lines across a panel, or up, behind those of the points."""
    style = {"color": "0.5", "linewidth": 1, "zorder": 0}
    if panel.level is not None:
        axis.axhline(panel.level, linestyle="dashed", **style)
    if panel.place is not None:
        axis.axvline(panel.place, linestyle="dashed", **style)
    if panel.floor is not None:
        axis.set_ylim(bottom=max(panel.floor / 2, axis.get_ylim()[0]))  # a band may go below
        runs = [run for of_point in points.values() for run in of_point]
        if min(np.min(panel.curve(run)) for run in runs) <= panel.floor:
            axis.axhline(panel.floor, linestyle="dotted", **style)
            axis.set_ylabel(f"{panel.ylabel}\n(dotted: {panel.floor:g} or less)")


def draw_line(axis, point, runs, panel, style):
    """A point's curve: mean over its runs, with the interval as a band where there are several. On
    a logarithmic axis it has gaps where a seed's number is not positive."""
    into, back = (log_of_positive, np.exp) if panel.log else (np.array, np.array)
    table = into(np.array([panel.curve(run) for run in runs], dtype=float))  # (n_seeds, places)
    mean, half = np.array([interval(column) for column in table.T]).T
    x = panel.x(runs[0]) if panel.x else np.arange(len(mean)) + panel.first
    sparse = max(1, len(mean) // 8)
    axis.plot(x, back(mean), label=point, markevery=sparse, markersize=4, **style)
    if has_rings({point: runs}, panel):
        axis.plot(x, back(mean), markevery=sparse, markersize=8, **RING)
    if len(runs) > 1:
        low, high = back(mean - half), back(mean + half)
        axis.fill_between(x, low, high, color=style["color"], alpha=0.25, linewidth=0)


# What each point comes to ------------------------------------------------------------------------


FEW_SEEDS = 5  # at most: of a point of so few, each is drawn
SEED_DOT = {"marker": "o", "markersize": 3, "markeredgewidth": 0, "alpha": 0.7, "linestyle": ""}
SEEDS_SHOWN = "small dots: the seeds"
INTERVALS = "means and 95 % intervals"
OF_LOGARITHMS = ", geometric means on logarithmic axes"
BESIDE = 0.035  # of a panel's width: from a mark to its seeds, and from these to the next curve's
ABREAST = 0.7  # at most, of the way from a label to the next, for the curves that share it


def values_at(runs, metric):
    """A metric, a function of a run, of each run; nan where one lacks it."""
    return np.array([metric(run) for run in runs], dtype=float)


def means_and_bars(points, metric, log=False):
    """Mean of a metric, a function of a run, at each point: (n_points,), and how far below and
    above it the interval reaches: (2, n_points). With log both are of its logarithm, and what is
    not positive has none. A single seed, and seeds that all say the same, have no interval to
    draw: nan."""
    into, back = (log_of_positive, np.exp) if log else (np.array, np.array)
    intervals = [interval(into(values_at(runs, metric))) for runs in points.values()]
    middle, half = np.array(intervals).T
    half[np.isinf(half)] = np.nan
    mean = back(middle)
    bars = np.array([mean - back(middle - half), back(middle + half) - mean])
    return mean, np.where(bars > ROUNDING * abs(mean), bars, np.nan)


def log_of_positive(values):
    return np.log(np.where(values > 0, values, np.nan))


def split_last(run):
    """What tells the run's point apart, but for the last part, and that part: ("n_layer=4",
    "learning_rate=0.003"), or ("", "window-8")."""
    *others, last = run.parts or [run.point]
    return ",".join(others), last


def curves_of(points, along_the_first=False):
    """({curve: {x label: runs}}, {curve: its style}). Points that differ in two options are curves
    over the second, or along the first; of other sweeps each point is a curve of its own."""
    crossed = len({split_last(runs[0])[0] for runs in points.values()}) > 1
    curves, depths = {}, {}
    for point, runs in points.items():
        first, second = split_last(runs[0])
        curve, label = (second, first) if along_the_first else (first, second)
        curve = curve if crossed else point
        curves.setdefault(curve, {})[label] = runs
        depths[curve] = depth_alone(options_of(curve, runs[0]))
    return curves, styles(curves, list(depths.values()))


def options_of(curve, run):
    """Those of the run's options that the curve's name says."""
    said = {part.partition("=")[0] for part in curve.split(",")}
    return {name: value for name, value in run.options.items() if name in said}


def first_has_more(points):
    """Whether, of points that differ in two options, the first takes more values."""
    firsts, seconds = (
        set(parts) for parts in zip(*(split_last(runs[0]) for runs in points.values()), strict=True)
    )
    return len(firsts) > len(seconds) > 1


def point_figure(points, metrics):
    """Up to six metrics of each point, {panel: function of a run}, without those that no run has;
    of points that differ in two options, along the one that takes more values."""
    runs = [run for of_point in points.values() for run in of_point]
    drawn = [name for name in metrics if any(metrics[name](run) is not None for run in runs)]
    curves, style_of = curves_of(points, along_the_first=first_has_more(points))
    crossed = curves.keys() != points.keys()
    height = 5.8 + (height_of_legend(curves) if crossed else 0)
    figure, axes = plt.subplots(2, 3, figsize=(WIDTH, height), layout="constrained", sharex=True)
    for i in range(len(drawn), axes.size):
        axes.flat[i].axis("off")
        axes.flat[i - 3].tick_params(labelbottom=True)  # of the panel above, now the lowest
    for i, (axis, name) in enumerate(zip(axes.flat, drawn, strict=False)):
        draw_curves(axis, curves, style_of, metrics[name], log=name in LOGARITHMIC)
        axis.set_title(POINT_TITLES.get(name, name), fontsize=TITLE_SIZE)
        if i + 3 < len(drawn):
            axis.set_xlabel("")  # the panel below says it
        limit_metric(axis, name)
    figure.suptitle(said_of(points, drawn), fontsize=TITLE_SIZE)
    if crossed:
        handles = axes.flat[0].get_legend_handles_labels()
        figure.legend(*handles, ncols=columns_of_legend(curves), **LEGEND_BELOW)
    return figure


def said_of(points, panels):
    """What the marks of point_figure are."""
    several = max(map(len, points.values())) > 1
    logarithms = not set(LOGARITHMIC).isdisjoint(panels)
    said = [INTERVALS + OF_LOGARITHMS * logarithms if several else ONE_SEED]
    said += [SEEDS_SHOWN] * any(map(draws_seeds, points.values()))
    rings = any(eps_counts(run) for runs in points.values() for run in runs)
    return "; ".join(said) + f"\n{RINGED}" * rings


def draws_seeds(runs):
    return 1 < len(runs) <= FEW_SEEDS


def draw_curves(axis, curves, style_of, metric, log):
    """Each curve {x label: its runs}; those that share places along x stand abreast there."""
    labels = list(dict.fromkeys(label for along in curves.values() for label in along))
    shared = sum(map(len, curves.values())) > len(labels)
    n_abreast = len(curves) if shared else 1
    beside = min(BESIDE * len(labels), ABREAST / (2 * n_abreast))
    for rank, (curve, along) in enumerate(curves.items()):
        shift = beside * (2 * rank + 0.5 - n_abreast) if shared else 0
        places = [labels.index(label) + shift for label in along]
        draw_points(axis, curve, along, places, metric, style_of[curve], log, beside)
    label_points(axis, labels)


def draw_points(axis, curve, along, places, metric, style, log, beside):
    """A curve {x label: runs} at these places along x, and its seeds beside it; with a ring where
    the norms' eps counts."""
    means, bars = means_and_bars(along, metric, log)
    axis.errorbar(places, means, bars, capsize=3, markersize=5, label=curve, **style)
    for place, mean, runs in zip(places, means, along.values(), strict=True):
        if draws_seeds(runs):
            seeds = [place + beside] * len(runs)
            axis.plot(seeds, values_at(runs, metric), color=style["color"], **SEED_DOT)
        if any(map(eps_counts, runs)):
            axis.plot(place, mean, markersize=10, **RING)


def label_points(axis, labels):
    """The labels of the points along x: values alone where all are of one option."""
    options = {label.partition("=")[0] if label.count("=") == 1 else None for label in labels}
    axis.set_xticks(range(len(labels)))
    axis.set_xlim(-0.5, len(labels) - 0.5)
    if len(options) > 1 or None in options:
        axis.set_xticklabels(labels, fontsize=9, **SLANTED)
    else:
        axis.set(xlabel=options.pop(), xticklabels=[label.partition("=")[2] for label in labels])


def limit_metric(axis, metric):
    if metric in LOGARITHMIC:
        logarithmic(axis, "y")
    elif metric in SHARES:
        top = axis.get_ylim()[1]
        bottom = -BELOW_ZERO * top if metric in FROM_ZERO else None
        axis.set_ylim(bottom, min(JUST_ABOVE_ONE, top))


LADDER = {  # panel of ladder_figure: its metrics
    "perplexity": ("perplexity",),
    "choice accuracy": ("choice accuracy",),
    "share of the depth in use": ("N_eff / L", "N_eff / L, removed", "usefulness"),
}


def ladder_figure(points):
    """The paper's first figure, and the perplexity: as lines up the rungs, and as single marks
    beside the ladder."""
    on_rung = np.array([runs[0].rung is not None for runs in points.values()])
    where = "up the rungs" if on_rung.all() else "up the rungs and beside the ladder"
    figure, axes = plt.subplots(3, 1, figsize=(WIDTH, 8.5), layout="constrained", sharex=True)
    for axis, (title, metrics) in zip(axes, LADDER.items(), strict=True):
        for rank, (metric, style) in enumerate(styles(metrics).items()):
            mean, bars = means_and_bars(points, CLAIM_METRICS[metric])
            places = np.arange(len(points)) + 0.12 * rank
            for chosen, line in ((on_rung, {"label": metric}), (~on_rung, {"linestyle": ""})):
                ends = (places[chosen], mean[chosen], bars[:, chosen])
                axis.errorbar(*ends, capsize=4, **{**style, **line})
        axis.set(title=f"{title}, {where}", ylabel=title)
        axis.title.set_fontsize(TITLE_SIZE)
    highest = min(JUST_ABOVE_ONE, axes[-1].get_ylim()[1])
    axes[-1].set(ylim=(-BELOW_ZERO * highest, highest), xticks=range(len(points)))
    axes[-1].set_xticklabels(points, **SLANTED)
    handles = axes[-1].get_legend_handles_labels()
    figure.legend(*handles, ncols=len(LADDER), **LEGEND_BELOW)
    return figure


# Matrices ----------------------------------------------------------------------------------------


@dataclass
class Matrix:
    key: str  # of analysis.json
    xlabel: str
    ylabel: str
    bar: str  # label of the colours
    first: int  # number of the first row: 1 for blocks, 0 for states
    above: bool = False  # only what is above the diagonal is defined


MATRICES = (
    Matrix("causal_matrix", "block", "skipped block", "change of what the block adds", 1, True),
    Matrix("permutation_matrix", "swapped block", "swapped block", "|change of loss| / loss", 1),
    Matrix("angular_distance", "state h_b", "state h_a", "angle / pi", 0),
)


TITLE_WIDTH = 14  # characters of a column's title
SMALL = 8  # points, of its labels
MOST_EXTREME = 0.02  # share of a matrix that is beyond the colours


def matrix_figure(points, matrices=MATRICES):
    """Causal, permutation and angular-distance matrices, means over seeds, a column for each of
    the points that are legible together."""
    shown = spread_out(legible(points), SOME)
    width = min(2.6 * len(shown) + 2, WIDTH)
    size = (width, ((width - 1.5) / len(shown) + 0.5) * len(matrices) + 0.3)
    figure, axes = plt.subplots(
        len(matrices), len(shown), figsize=size, layout="constrained", squeeze=False
    )
    for matrix, row in zip(matrices, axes, strict=True):
        means = [
            np.mean([run.analysis[matrix.key] for run in runs], axis=0) for runs in shown.values()
        ]
        top = top_of_colours(means, matrix.above)
        for axis, mean in zip(row, means, strict=True):
            picture = draw_matrix(axis, mean, matrix, top)
        row[0].set_ylabel(matrix.ylabel, fontsize=SMALL)
        beyond = "max" if max(mean.max() for mean in means) > top else "neither"
        bar = figure.colorbar(picture, ax=row, fraction=0.05, extend=beyond)
        bar.set_label(matrix.bar, fontsize=SMALL)
        bar.ax.tick_params(labelsize=SMALL)
    for axis, point in zip(axes[0], shown, strict=True):
        words = point.replace(",", ", ")
        title = textwrap.fill(words, TITLE_WIDTH, break_long_words=False, break_on_hyphens=False)
        axis.set_title(title, fontsize=SMALL)
    if said := some_of(shown, points):
        figure.suptitle(said, fontsize=TITLE_SIZE)
    return figure


def top_of_colours(means, above):
    """All but MOST_EXTREME of the values beyond the first row and column are below it, in every
    matrix: block 1, or the embedding, and single pairs are so unlike the others that on their scale
    these would all be dark. above: only what is above the diagonal counts."""
    tops = [0]
    for mean in means:
        others = mean[1:, 1:]
        counted = others[np.triu_indices(len(others), 1)] if above else others
        if counted.size:
            tops.append(np.quantile(counted, 1 - MOST_EXTREME))
    return max(tops) or max(map(np.max, means)) or 1


def draw_matrix(axis, mean, matrix, top):
    shown = np.where(np.triu(np.ones_like(mean), 1), mean, np.nan) if matrix.above else mean
    edges = (matrix.first - 0.5, matrix.first + len(mean) - 0.5)
    picture = axis.imshow(shown, vmin=0, vmax=top, cmap="viridis", extent=(*edges, *edges[::-1]))
    axis.set_xlabel(matrix.xlabel, fontsize=SMALL)
    axis.tick_params(labelsize=SMALL)
    axis.locator_params(nbins=4, integer=True)
    return picture


# Two points, one over the other ------------------------------------------------------------------


HOLLOW = "bars: 95 % intervals, not corrected for their number; hollow where they hold 1"


def contrasts_figure(along, places, labels, answered):
    """How many times each measure of CHANGES is, along the sweep: an Along of results/contrasts.py,
    and for each place along x its label, and {metric: a Contrast of logarithms, or None}."""
    figure, axes = plt.subplots(2, 3, figsize=(WIDTH, 5.8), layout="constrained", sharex=True)
    for axis, (metric, title) in zip(axes.flat, CHANGES.items(), strict=True):
        for place, measured in zip(places, answered, strict=True):
            if change := measured[metric]:
                draw_dot(axis, place, change, mark_of(change))
        axis.axhline(1, color="black", linewidth=0.8)
        axis.set_title(title, fontsize=TITLE_SIZE)
        axis.set_xscale("log")
        axis.set_xticks(places, labels)
        axis.minorticks_off()
        axis.margins(x=0.08)
        logarithmic(axis, "y")
        axis.grid(axis="y", alpha=0.3)
    figure.supxlabel(f"{along.xlabel} ({HOLLOW})", fontsize=TITLE_SIZE)
    figure.supylabel(f"{along.title}, times", fontsize=TITLE_SIZE)
    return figure


def draw_dot(axis, place, change, style):
    """A Contrast of logarithms at a place along x, as a factor, with its interval."""
    axis.plot([place, place], ends_of(change), color=style["color"])
    axis.plot(place, np.exp(change.effect), **style)


def ends_of(change):
    """Of the interval of a Contrast of logarithms, as factors."""
    return np.exp([change.effect - change.half(), change.effect + change.half()])


def mark_of(change):
    """The style of a Contrast's dot: hollow and grey where its interval holds no change."""
    if change.excludes_zero():
        return {"marker": "o", "color": "black"}
    return {"marker": "o", "color": "grey", "markerfacecolor": "white"}


# Several sweeps ----------------------------------------------------------------------------------


HERO = [  # the curse at a glance
    replace(LINES["scale_free"][0], title="growth of the variance\nalong the blocks"),
    replace(LINES["pruning"][0], title="growth of the loss\nwith one block removed"),
]
THIRDS = {  # metric: (name, place beside the middle, look)
    "worth, early": ("early", -0.25, {"color": shade(0), "marker": "o"}),
    "worth, middle": ("middle", 0, {"color": shade(LIGHTEST / 2), "marker": "s"}),
    "worth, late": ("late", 0.25, {"color": shade(LIGHTEST), "marker": "D"}),
}
LINE_OF_TEXT = 140  # characters below that figure, at most


def hero_figure(depths, plain, beside):
    """The curse, and what sparsity does to it, in a row: growth of the variance, and of the loss
    with one block removed, of the depth sweep's points; then what blocks of other models are worth,
    {name of a model: {metric: a Contrast of logarithms, or None}} beside the plain one that this
    names, by thirds of the blocks behind block 1. There may be no other models."""
    n_panels = len(HERO) + bool(beside)
    figure, axes = plt.subplots(1, n_panels, figsize=(WIDTH, 3.9), layout="constrained")
    shown = legible(depths)
    for axis, panel in zip(axes, HERO, strict=False):
        draw_lines(axis, shown, panel)
    axes[1].legend(loc="upper right", fontsize=SMALL)
    if beside:
        draw_thirds(axes[-1], beside)
    figure.supxlabel(hero_text(depths, plain, beside), fontsize=9)
    return figure


def draw_thirds(axis, beside):
    """For each model a dot with its interval for each third, hollow where that holds 1."""
    for place, measured in enumerate(beside.values()):
        for metric, (_, aside, look) in THIRDS.items():
            if change := measured[metric]:
                style = look if change.excludes_zero() else {**look, "markerfacecolor": "white"}
                draw_dot(axis, place + aside, change, style)
    axis.axhline(1, color="black", linewidth=0.8)
    axis.set_xticks(range(len(beside)), beside, fontsize=SMALL, **SLANTED)
    axis.set_title("worth of a block, times\nthe plain model's", fontsize=TITLE_SIZE)
    logarithmic(axis, "y")
    low, high = axis.get_ylim()
    axis.set_ylim(low * (low / high) ** 0.15, high)  # room for the legend
    axis.grid(axis="y", alpha=0.3)
    for name, _, look in THIRDS.values():
        axis.plot([], [], linestyle="none", label=name, **look)
    narrow = {"handletextpad": 0, "columnspacing": 0.5, "borderaxespad": 0.2}
    axis.legend(loc="lower center", ncols=len(THIRDS), fontsize=SMALL, **narrow)


def hero_text(depths, plain, beside):
    """Which runs come from which sweep, and what lines, bands and bars are."""
    name = EXPERIMENT["n_layer"]
    said = [f"left and middle: all of {name}"]
    if beside:
        thirds = "by thirds of the blocks behind block 1; hollow: the interval holds 1"
        said.append(f"right: over {plain} ({name}), {thirds}")
    lines = textwrap.wrap("; ".join(said), LINE_OF_TEXT)
    return "\n".join([*lines, shown_of(depths)])


CHANGES = {  # metric, judged by its logarithm: title
    "last-layer variance": "variance of h_L",
    "growth": "growth, var h_L / var h_1",
    "perplexity": "perplexity",
    "causal": "causal score",
    "permutation": "permutation score",
    "geometric mean of u, removed": "worth of a typical block",
}


FARTHEST = 100  # times, up or down: the dots within it, and 1, make a panel's range
MARGIN_OF_BARS = 0.5  # of that range, or twice as far as the median bar: so far bars may exceed it
EDGE = 0.06  # of a panel's range, left free on either side
ARROWS = "arrows: beyond the panel"


def changes_figure(changes):
    """By what factor each measure of CHANGES changes from one point to another, with its interval:
    {label of a row: {metric: a Contrast of logarithms, or None}}; a panel for each measure."""
    size = (WIDTH, 1.6 + 0.55 * len(changes))
    figure, axes = plt.subplots(2, 3, figsize=size, sharey=True, layout="constrained")
    goes_beyond = False
    for axis, (metric, title) in zip(axes.flat, CHANGES.items(), strict=True):
        there = {row: of[metric] for row, of in enumerate(changes.values()) if of[metric]}
        goes_beyond |= draw_changes(axis, there)
        axis.axvline(1, color="black", linewidth=0.8)
        axis.set_title(title, fontsize=TITLE_SIZE)
        axis.set(ylim=(len(changes) - 0.5, -0.5))
        axis.set_yticks(range(len(changes)), changes)
        axis.tick_params(labelsize=9)
        axis.grid(axis="x", alpha=0.3)
    said = f"({HOLLOW}{f'; {ARROWS}' * goes_beyond})"
    figure.supxlabel(
        f"times as large at a row's second value as at its first\n{said}", fontsize=TITLE_SIZE
    )
    return figure


def draw_changes(axis, there):
    """A dot with its interval in each row, {row: a Contrast of logarithms}. Whether something lies
    beyond the panel: it has an arrow at the edge, and a dot there its number."""
    low, high = range_of(there.values())
    free = EDGE * (high - low) or EDGE
    axis.set_xlim(*np.exp([low - free, high + free]))
    logarithmic(axis, "x")
    goes_beyond = False
    for row, change in there.items():
        style = mark_of(change)
        axis.plot(ends_of(change), [row, row], color=style["color"])
        axis.plot(np.exp(change.effect), row, **style)
        if change.effect - change.half() < low - ROUNDING:
            goes_beyond = True
            draw_arrow(axis, row, change, low - free, "<", is_dot=change.effect < low)
        if change.effect + change.half() > high + ROUNDING:
            goes_beyond = True
            draw_arrow(axis, row, change, high + free, ">", is_dot=change.effect > high)
    return goes_beyond


def draw_arrow(axis, row, change, edge, marker, is_dot):
    """At an edge, a logarithm, of a panel; is_dot: with the factor that would stand beyond it."""
    style = {"marker": marker, "color": mark_of(change)["color"], "clip_on": False}
    axis.plot(np.exp(edge), row, **style)
    if is_dot:
        inwards, side = (7, "left") if marker == "<" else (-7, "right")
        place = {"xytext": (inwards, 0), "textcoords": "offset points", "ha": side, "va": "center"}
        axis.annotate(f"{np.exp(change.effect):.1g}", (np.exp(edge), row), fontsize=8, **place)


def range_of(changes):
    """(lowest, highest) logarithm that a panel of these Contrasts shows: the dots within FARTHEST,
    1, and their bars, as far as MARGIN_OF_BARS says."""
    near = [change for change in changes if abs(change.effect) <= math.log(FARTHEST)]
    dots = [0, *(change.effect for change in near)]
    halves = [change.half() for change in near]
    low, high = min(dots), max(dots)
    margin = max(MARGIN_OF_BARS * (high - low), 2 * np.median(halves or [0]))
    lowest = min([0, *(change.effect - change.half() for change in near)])
    highest = max([0, *(change.effect + change.half() for change in near)])
    return max(low - margin, lowest), min(high + margin, highest)


VERDICT_COLUMNS = {  # metric: heading
    "last-layer variance": "variance\nof h_L",
    "growth": "growth",
    "exponent": "exponent",
    "growth at initialisation": "growth, at\ninitialisation",
    "Jacobian deviation": "Jacobian\ndeviation",
    "perplexity": "perplexity",
    "causal": "causal",
    "permutation": "permu-\ntation",
    "usefulness": "useful-\nness",
    "N_eff / L, removed": "N_eff / L,\nremoved",
}
VERDICT_COLOURS = {
    "supported": "#9ecae1",
    "opposed": "#fdae6b",
    "no effect": "#d9d9d9",
    "undecided": "white",
}
DAGGER_SAYS = "; † not if each point keeps its own spread"


def verdicts_figure(panels):
    """What was asked of each experiment and what it said: {panel: {experiment: its Verdicts}}, a
    row for each experiment and a column for each measure, with the effect of a step."""
    n_rows = [len(experiments) for experiments in panels.values()]
    columns = columns_of(panels)
    width = min(WIDTH, 0.9 * len(columns) + 2)
    figure, axes = plt.subplots(
        len(panels),
        1,
        figsize=(width, 0.45 * sum(n_rows) + 0.9 * len(panels) + 0.4),
        height_ratios=n_rows,
        squeeze=False,
        layout="constrained",
    )
    for axis, (title, experiments) in zip(axes[:, 0], panels.items(), strict=True):
        draw_verdicts(axis, experiments, columns)
        axis.set_title(title, fontsize=TITLE_SIZE)
    patches = [
        Patch(facecolor=colour, edgecolor="black", label=verdict)
        for verdict, colour in VERDICT_COLOURS.items()
    ]
    title = "effect of a step, and verdict after Holm's correction"
    title += DAGGER_SAYS * any(map(Verdict.needs_pooling, verdicts_of(panels)))
    figure.legend(handles=patches, ncols=len(patches), title=title, **LEGEND_BELOW)
    return figure


def verdicts_of(panels):
    return [
        verdict
        for experiments in panels.values()
        for verdicts in experiments.values()
        for verdict in verdicts
    ]


def columns_of(panels):
    """Those of VERDICT_COLUMNS that something was asked of."""
    asked = {verdict.claim.metric for verdict in verdicts_of(panels)}
    return {metric: heading for metric, heading in VERDICT_COLUMNS.items() if metric in asked}


def draw_verdicts(axis, experiments, columns):
    for row, verdicts in enumerate(experiments.values()):
        of_metric = {verdict.claim.metric: verdict for verdict in verdicts}
        for column, metric in enumerate(columns):
            if verdict := of_metric.get(metric):
                colour = VERDICT_COLOURS[verdict.verdict]
                place = (column - 0.5, row - 0.5)
                box = {"facecolor": colour, "edgecolor": "black", "clip_on": False}
                axis.add_patch(Rectangle(place, 1, 1, **box))
                words = brief_effect(verdict) + " †" * verdict.needs_pooling()
                axis.text(column, row, words, ha="center", va="center", fontsize=8)
    n_rows, n_columns = len(experiments), len(columns)
    axis.set(xlim=(-0.5, n_columns - 0.5), ylim=(n_rows - 0.5, -0.5))
    axis.set_xticks(range(n_columns), columns.values(), fontsize=8)
    axis.set_yticks(range(n_rows), experiments, fontsize=9)
    axis.tick_params(length=0, top=False, labeltop=True, bottom=False, labelbottom=False)
    axis.spines[:].set_visible(False)


def brief_effect(verdict):
    """Such as "x 1.90" or "+0.12"; a dash where it was not measured."""
    if math.isnan(verdict.effect):
        return "–"
    if verdict.claim.metric in LOG_METRICS:
        return f"× {math.exp(verdict.effect):.3g}"
    return f"{verdict.effect if abs(verdict.effect) > ROUNDING else 0:+.2g}"


# Theory and speed --------------------------------------------------------------------------------


def theory_figure(cases):
    """Variance at initialisation along the blocks, a panel for each case: {name: {"predicted",
    "simulated", "standard_error"}}, a number for each of h_0 .. h_L."""
    n_rows = math.ceil(len(cases) / 4)
    size = (WIDTH, 2.2 * n_rows)
    figure, axes = plt.subplots(
        n_rows, 4, figsize=size, sharex=True, sharey=True, squeeze=False, layout="constrained"
    )
    for axis, (name, case) in zip(axes.flat, cases.items(), strict=False):
        places = range(0, len(case["predicted"]), 4)
        mean = np.array(case["simulated"])[::4]
        error = np.array(case["standard_error"])[::4]
        marks = {"fmt": "o", "markersize": 4, "color": "tab:orange", "label": "simulated"}
        axis.plot(case["predicted"], color="black", label="predicted")
        axis.errorbar(places, mean, 2 * error, **marks)
        axis.set_yscale("log")
        axis.set_title(name, fontsize=TITLE_SIZE)
    for i in range(len(cases), axes.size):
        axes.flat[i].axis("off")
        axes.flat[i - 4].tick_params(labelbottom=True)  # of the panel above, now the lowest
    axes.flat[len(cases) - 1].legend(fontsize=SMALL)
    figure.supxlabel("block", fontsize=TITLE_SIZE)
    figure.supylabel("variance of the residual stream at initialisation", fontsize=TITLE_SIZE)
    return figure


MASK_SHADES = (0.0, 0.45, 0.8)


def masks_figure(patterns, depths):
    """Growth of the variance at initialisation, var(h_l) / var(h_0), against mask density, a panel
    for each depth l. patterns {name: rows}, a row for each mask: {"density", "predicted": [l],
    "growth": [l][seed]}."""
    size = (WIDTH, 3.4)
    figure, axes = plt.subplots(1, len(depths), figsize=size, layout="constrained")
    for axis, layer in zip(axes, depths, strict=True):
        for (name, rows), place, marker in zip(
            patterns.items(), MASK_SHADES, MARKERS, strict=False
        ):
            density = [row["density"] for row in rows]
            means, halves = np.array([interval(row["growth"][layer]) for row in rows]).T
            style = {"color": shade(place), "marker": marker, "linestyle": "", "label": name}
            axis.plot(density, [row["predicted"][layer] for row in rows], color=shade(place))
            axis.errorbar(density, means, halves, capsize=3, **style)
        axis.set_xlabel("mask density")
        axis.set_title(f"after {layer} block{'s' * (layer > 1)}", fontsize=TITLE_SIZE)
        logarithmic(axis, "x")
        logarithmic(axis, "y")
    axes[0].set_ylabel("var(h_l) / var(h_0) at initialisation")
    handles = axes[0].get_legend_handles_labels()
    figure.legend(*handles, ncols=len(patterns), **LEGEND_BELOW)
    return figure


CURVE_SHADES = (0.0, 0.6)
SPEED_TICKS = (0.25, 0.5, 1, 2, 4, 8)  # million tokens per second


def scaling_figure(measured):
    """Speed of the training step, {panel: {curve: {x: row of bench.py}}}, both axes
    logarithmic; bars from the slowest window to the fastest."""
    figure, axes = plt.subplots(1, len(measured), figsize=(WIDTH, 3.4), layout="constrained")
    for axis, (panel, curves) in zip(axes, measured.items(), strict=True):
        for (curve, rows), place, marker in zip(
            curves.items(), CURVE_SHADES, MARKERS, strict=False
        ):
            draw_speeds(axis, curve, rows, {"color": shade(place), "marker": marker})
        x = [int(value) for value in next(iter(curves.values()))]
        axis.set(xscale="log", yscale="log", xlabel=panel)
        axis.set_title(f"speed against {panel}", fontsize=TITLE_SIZE)
        axis.set_xticks(x, x, fontsize=SMALL)
        axis.minorticks_off()
        axis.set(yticks=SPEED_TICKS, yticklabels=SPEED_TICKS, ylim=(0.2, 8.5))
        axis.grid(alpha=0.3)
        if len(curves) > 1:
            axis.legend(loc="lower left", fontsize=SMALL)
    axes[0].set_ylabel("million tokens per second")
    return figure


def draw_speeds(axis, curve, rows, style):
    x = [int(value) for value in rows]
    keys = ("tokens_per_second", "slowest", "fastest")
    middle, low, high = (np.array([row[key] for row in rows.values()]) / 1e6 for key in keys)
    axis.errorbar(x, middle, [middle - low, high - middle], capsize=3, label=curve, **style)


# Files -------------------------------------------------------------------------------------------


def save_figure(figure, path):
    """As PNG of few colours: a quarter of the bytes, and nothing that the eye would miss."""
    picture = BytesIO()
    figure.savefig(picture, format="png", dpi=DOTS_PER_INCH)
    plt.close(figure)
    all_colours = Image.open(picture).convert("RGB")
    with replacing(path) as temporary:
        in_few_colours(all_colours).save(temporary, format="png", optimize=True)


def in_few_colours(picture):
    """The picture in the fewest of PNG_COLOURS that leave the shade of its areas as it is. The
    colours cover all that there are evenly, and are then drawn to the most frequent; single dots,
    at the edge of a line, may be off."""
    for n_colours in PNG_COLOURS:
        few = picture.quantize(n_colours, Image.Quantize.MAXCOVERAGE, kmeans=1)
        if largest_difference(few.convert("RGB"), picture) <= SAME_SHADE:
            break
    return few


def largest_difference(one, other):
    """Of two pictures' mean red, green and blue over squares of SQUARE dots."""
    difference = ImageChops.difference(one.reduce(SQUARE), other.reduce(SQUARE))
    return max(highest for _, highest in difference.getextrema())
