"""Figures and report of public models, of the scores that pretrained.py measured; and the one file
that holds them once they are published.

An analysis is what out/pretrained/<name>/analysis.json and results/pretrained/<name>.json hold:
{"model": what it is, "measured": {score: how it was taken}, and the scores under the names that
they have in the analysis.json of a run}. What needs a model of ours inside, densities and the
theory of them, is not there.
"""

import json
from dataclasses import replace

import numpy as np
from matplotlib.ticker import MaxNLocator

from data.files import BadInput, Maybe, Number, at, fault_of, read_json, say, write_text
from results.claims import entry, slope
from results.figures import (
    COSINE,
    LINES,
    MATRICES,
    SIZE,
    SMALLEST_GROWTH,
    Panel,
    drawable,
    line_figure,
    matrix_figure,
    of_block,
    of_state,
    save_figure,
)
from results.report import counted, table_row, table_rule, to_its_digit
from results.runs import DIGITS, FEWER_DIGITS, Run, rounded
from results.scores import TINY

DEAREST = 0.05  # of the loss: what a stretch of blocks may cost, to be called one that can go
N_LEAST = 5  # blocks named as those that matter least
NUMBERS, NONE = [Number()], type(None)
MEASURED = {  # what others read of an analysis, and of what kind it must be
    "model": {
        "name": str,
        "architecture": str,
        "n_layer": Number(int, 1),
        "n_embd": Number(int, 1),
        "parameters": Number(int, 1),
    },
    "measured": dict,
    "standard_errors": dict,
    "loss": Maybe(Number()),
    "variance": Maybe(
        {"residual": NUMBERS, "median": NUMBERS, "without_first": NUMBERS, "first": NUMBERS}
    ),
    "prune_ratios": Maybe(NUMBERS),
    "stretches": Maybe([NUMBERS]),
    "cumulative": Maybe({"last": NUMBERS, "least": NUMBERS, "greedy": NUMBERS}),
    "causal_matrix": Maybe([NUMBERS]),
    "permutation_matrix": Maybe([NUMBERS]),
    "angular_distance": Maybe([NUMBERS]),
    "block_influence": Maybe(NUMBERS),
    "logit_lens": Maybe(NUMBERS),
    "jacobian": Maybe({"deviation": NUMBERS, "per_token": NUMBERS, "sequences": Number(int, 1)}),
    "linear_ratios": Maybe({"held_out": NUMBERS, "same": NUMBERS, "transposed": NUMBERS}),
    "choices": Maybe({"accuracy": Number(), "items": Number(int, 1), "file": str}),
    "task": Maybe({"accuracy": Number(), "items": Number(int, 1), "file": str}),
    "blimp": Maybe({"accuracy": Number(), "pairs": Number(int, 1), "file": str}),
}


HOW = {  # what "measured" says of each score
    "sequences": Number(int, 1),
    "length": Number(int, 1),
    "text": str,
    "dtype": str,
    "device": str,
    "seconds": Number(float, 0),
    "peak_GiB": Maybe(Number(float, 0)),  # older ones lack it
}
LENGTHS = {  # how many numbers, or rows, an entry holds beyond the number of blocks
    ("variance", "without_first"): 1,
    ("prune_ratios",): 0,
    ("cumulative", "greedy"): 1,
    ("causal_matrix",): 0,
    ("permutation_matrix",): 0,
    ("angular_distance",): 1,
    ("block_influence",): 0,
    ("logit_lens",): 1,
    ("jacobian", "deviation"): 0,
    ("linear_ratios", "held_out"): 0,
}


def read_analysis(path):
    """What an analysis.json, or a published file, holds. Raises BadInput, which names the file and
    the entry, where it is none, or its entries are those of another number of blocks."""
    analysis = read_json(path, MEASURED)
    for score, how in analysis["measured"].items():
        if fault := fault_of(how, HOW, f"measured.{score}"):
            raise BadInput(f"{path}: {fault}")
    for keys, more in LENGTHS.items():
        values, wanted = at(analysis, keys), analysis["model"]["n_layer"] + more
        if values is not None and len(values) != wanted:
            raise BadInput(
                f"{path}: {'.'.join(keys)} has {len(values)} entries, where {wanted} belong"
            )
    return analysis


def publish(analysis, path):
    """Write the analysis as one JSON file, rounded as a sweep's runs are; returns it so."""
    few = rounded(analysis, DIGITS)
    for key in FEWER_DIGITS.keys() & few.keys():
        few[key] = rounded(few[key], FEWER_DIGITS[key])
    lines = [f"{json.dumps(key)}: {json.dumps(few[key], allow_nan=False)}" for key in few]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "{\n" + ",\n".join(lines) + "\n}\n")
    return few


# Figures -----------------------------------------------------------------------------------------


def of_lengths(title, curve):
    """A panel over the length of a stretch of blocks, n = 1, 2, ..., of its loss's growth."""
    ylabel = f"relative growth of the loss (dashed: {DEAREST:.0%})"
    return Panel(title, "blocks removed, side by side", ylabel, curve, first=1, level=DEAREST)


def cheapest_stretches(run):
    """Growth of the loss without the best stretch of n blocks, n = 1, 2, ..."""
    return [max(min(ratios) - 1, SMALLEST_GROWTH) for ratios in run.analysis["stretches"]]


def likeliest_stretches(run):
    """The same of the stretch that the angle between its two ends would take, without a loss."""
    stretches = likeliest(run.analysis)
    if stretches is None:
        return None
    return [max(ratio - 1, SMALLEST_GROWTH) for _, ratio in stretches]


def likeliest(analysis):
    """[(first block, loss ratio)] of the stretches of n = 1, 2, ... blocks whose ends are nearest
    in angle (arXiv 2403.17887); None without angles or without measured stretches."""
    if not {"stretches", "angular_distance"} <= analysis.keys():
        return None
    chosen = []
    for n, ratios in enumerate(analysis["stretches"], start=1):
        first = int(np.argmin(np.diagonal(analysis["angular_distance"], offset=n)))
        chosen.append((first, ratios[first]))
    return chosen


WITHOUT_FIRST = entry("variance", "without_first")
BY_REMOVAL = LINES["pruning"][0]
# Logarithmic, as the loss of a public model without any block may be a hundred nats.
BY_CUMULATIVE = [replace(panel, log=True) for panel in LINES["pruning"][1:]]
FIGURES = {  # {figure: {score: the panels that it feeds}}
    "overview": {
        "stream": [
            of_state(
                "variance of every state, without position 0", "variance of h_l", WITHOUT_FIRST
            )
        ],
        "removal": [BY_REMOVAL],
        "similarity": LINES["similarity"],
    },
    "positions": {
        "stream": [
            of_state(
                "variance of the median token", "variance of h_l", entry("variance", "median")
            ),
            of_state("variance at position 0", "variance of h_l", entry("variance", "first")),
            of_state(
                "variance, mean over all tokens", "variance of h_l", entry("variance", "residual")
            ),
        ],
        "loss": LINES["tokens"][:1],
    },
    "updates": {
        "stream": [
            of_block("size of what a block adds", SIZE, entry("size", "block")),
            of_block("direction of what a block adds", COSINE, entry("cosine", "block"), log=False),
            of_block("angle by which a block turns the stream", "radians", entry("angle")),
        ],
    },
    "removal": {
        "stretches": [
            of_lengths("loss without the cheapest stretch of blocks", cheapest_stretches),
            of_lengths("loss without the stretch that the angle chooses", likeliest_stretches),
        ],
        "cumulative": BY_CUMULATIVE,
    },
    "linear": {"linear": LINES["linear"]},
    "jacobian": {"jacobian": LINES["jacobian"]},
}


def relative(first):
    """The function of a run to the places of its states as shares of the depth, from h_first."""

    def places(run):
        L = run.analysis["model"]["n_layer"]
        return np.arange(first, L + 1) / L

    return places


SIDE_BY_SIDE = {  # {score: the panel that it feeds}
    "stream": Panel(
        "variance of every state, without position 0",
        "l / L",
        "variance of h_l",
        WITHOUT_FIRST,
        x=relative(0),
    ),
    "removal": Panel(
        BY_REMOVAL.title,
        "l / L",
        BY_REMOVAL.ylabel,
        BY_REMOVAL.curve,
        x=relative(1),
        floor=SMALLEST_GROWTH,
    ),
    "similarity": Panel(
        "how far a block turns its input",
        "l / L",
        "1 - cos(input, output)",
        entry("block_influence"),
        x=relative(1),
    ),
}


def as_points(analyses):
    """{name: [Run]}, as the figures take a sweep's points, of {name: analysis}."""
    points = {}
    for place, (name, analysis) in enumerate(analyses.items()):
        sweep = {"point": name, "rung": None, "place": place, "options": []}
        points[name] = [Run(name, {"seed": 0, "sweep": sweep}, {}, [], analysis)]
    return points


def draw_figures(analysis):
    """{file name: figure}, of the scores that there are, in the order of the report."""
    points, figures = as_points({analysis["model"]["name"]: analysis}), {}
    for name, of_scores in FIGURES.items():
        there = [
            panel
            for score, panels in of_scores.items()
            if score in analysis["measured"]
            for panel in drawable(panels, points)
        ]
        if there:
            figures[name] = line_figure(points, there, legend="")
    if matrices := [matrix for matrix in MATRICES if matrix.key in analysis]:
        figures["matrices"] = matrix_figure(points, matrices)
    return figures


def side_by_side_figure(analyses):
    """Variance, removal and turn against relative depth, a line for each of {name: analysis}; None
    where there is no such score that all of them have."""
    panels = [
        panel
        for score, panel in SIDE_BY_SIDE.items()
        if all(score in analysis["measured"] for analysis in analyses.values())
    ]
    if not panels:
        return None
    figure = line_figure(as_points(analyses), panels, legend="")
    for axis in figure.axes:
        axis.xaxis.set_major_locator(MaxNLocator(5))
    return figure


# Report ------------------------------------------------------------------------------------------

SINGLE = {  # rows of the first table: {what: where in an analysis, and in its standard errors}
    "loss (nats a token)": ("loss",),
    "perplexity": ("perplexity",),
    "var h_L / var h_1, without position 0": ("growth_without_first", "growth"),
    "its exponent over the middle half": ("growth_without_first", "exponent"),
    "var h_L / var h_1, mean over all tokens": ("growth", "growth"),
    "update angle, middle half (radians)": ("updates", "angle"),
    "update angle times L": ("updates", "angle_times_L"),
    "causal": ("causal",),
    "permutation": ("permutation",),
    "usefulness (share of blocks above 10 %)": ("usefulness", "held_out"),
    "N_eff / L, a block made linear": ("linear_use", "n_eff_share"),
    "N_eff / L, a block removed": ("removal_use", "n_eff_share"),
    "geometric mean of u, a block removed": ("removal_use", "geometric_mean"),
    "choice accuracy": ("choices", "accuracy"),
    "own items": ("task", "accuracy"),
    "BLiMP": ("blimp", "accuracy"),
}
TASKS = ("choices", "task", "blimp")
LEFT_OUT = (
    "Left out, as they need a model of ours inside: densities, the theory's variance, and what "
    "attention and the feed-forward branch add apart."
)


def singles_table(analysis):
    """Lines of a Markdown table: what is one number, with its standard error: of a score over
    sequences, of a task over its items."""
    lines = [table_row("score", "value ± standard error"), table_rule(2)]
    for what, keys in SINGLE.items():
        value, error = at(analysis, keys), at(analysis["standard_errors"], keys)
        if keys[0] in TASKS:
            error = at(analysis, (keys[0], "standard_error"))
        if value is not None:
            said = " ± ".join(to_its_digit(value, error)) if error else f"{value:.4g}"
            lines.append(table_row(what, said))
    return lines


def by_quarters(analysis):
    """{column: [a number for each quarter of the blocks]} of the scores that there are."""
    L = analysis["model"]["n_layer"]
    quarters = np.array_split(np.arange(L), min(4, L))

    def mean(values):
        return [float(np.mean([values[l] for l in quarter])) for quarter in quarters]

    columns = {"blocks": [f"{quarter[0] + 1}–{quarter[-1] + 1}" for quarter in quarters]}
    if variance := at(analysis, ("variance", "without_first")):
        steps = np.diff(np.log(np.maximum(variance, TINY)))
        columns["growth of the variance, a block"] = [float(np.exp(step)) for step in mean(steps)]
    if ratios := analysis.get("prune_ratios"):
        columns["loss without one"] = mean(np.array(ratios) - 1)
    if ratios := at(analysis, ("linear_ratios", "held_out")):
        columns["loss with one made linear"] = mean(np.array(ratios) - 1)
    if influence := analysis.get("block_influence"):
        columns["1 - cos(input, output)"] = mean(influence)
    if matrix := analysis.get("causal_matrix"):
        later = [[row[l] for l in range(s + 1, L)] for s, row in enumerate(matrix)]
        columns["change of later blocks, one skipped"] = [
            mean_or_none([change for s in quarter for change in later[s]]) for quarter in quarters
        ]
    if deviation := at(analysis, ("jacobian", "deviation")):
        columns["Jacobian deviation"] = mean(deviation)
    return columns


def mean_or_none(values):
    return float(np.mean(values)) if values else None


def quarters_table(analysis):
    columns = by_quarters(analysis)
    lines = [table_row(*columns), table_rule(len(columns))]
    for row in zip(*columns.values(), strict=True):
        cells = [f"{value:.3g}" if isinstance(value, float) else value or "–" for value in row]
        lines.append(table_row(*cells))
    return lines


def measured_table(analysis):
    """Lines of a Markdown table: how each score was taken."""
    heading = ("score", "on", "precision", "device", "seconds", "peak GiB so far")
    lines = [table_row(*heading), table_rule(len(heading))]
    for score, how in analysis["measured"].items():
        on = f"{counted(how['sequences'], 'sequence')} of {how['length']} tokens of {how['text']}"
        if of_task := analysis.get(score) if score in TASKS else None:
            on = f"{of_task.get('items', of_task.get('pairs'))} items of {of_task['file']}"
        costs = [f"{how[cost]:.3g}" if cost in how else "–" for cost in ("seconds", "peak_GiB")]
        lines.append(table_row(score, on, how["dtype"], how["device"], *costs))
    return lines


def fit_of(variance):
    """(factor a block, r^2 as an exponential, r^2 as a power of l) of the second half's states."""
    l = np.arange(len(variance))[len(variance) // 2 :]
    y = np.log(np.maximum(np.asarray(variance)[l], TINY))
    if np.ptp(y) == 0:  # as where blocks add nothing: any such curve fits
        return 1.0, 1.0, 1.0
    squared = [np.corrcoef(x, y)[0, 1] ** 2 for x in (l, np.log(l))]
    return float(np.exp(slope(y))), *map(float, squared)


def trend_of(values):
    """By what factor values change from one to the next, by least squares of their logarithms."""
    return float(np.exp(slope(np.log(np.maximum(values, TINY)))))


def about_claims(analysis):
    """Sentences on what the claims speak of, as far as it was measured."""
    L, said = analysis["model"]["n_layer"], []
    if (variance := at(analysis, ("variance", "without_first"))) and L > 3:
        factor, exponential, power = fit_of(variance)
        said.append(
            f"C1, the variance along the depth: without position 0 it is {variance[1]:.3g} at h_1, "
            f"{variance[L // 2]:.3g} at h_{L // 2} and {variance[L]:.3g} at h_{L}; over the second "
            f"half it grows by a factor of {factor:.3g} a block (r² {exponential:.3f} as an "
            f"exponential of l, {power:.3f} as a power)."
        )
    if (deviation := at(analysis, ("jacobian", "deviation"))) and L > 1:
        said.append(
            f"C2, the Jacobian's deviation along the layers: {deviation[0]:.3g} at block 1, "
            f"{deviation[-1]:.3g} at block {L}; a block on, it is {trend_of(deviation):.3f} times "
            f"as large on average, and from block 2 on {trend_of(deviation[1:]):.3f} times."
        )
    compared = {
        "causal": analysis.get("causal"),
        "permutation": analysis.get("permutation"),
        "usefulness": at(analysis, ("usefulness", "held_out")),
    }
    if there := [f"{name} {value:.3g}" for name, value in compared.items() if value is not None]:
        said.append(f"C3, the use of {L} blocks: {', '.join(there)}.")
    if said:
        said.append("Claims compare depths; one model at one depth decides none of them.")
    return said


def about_first_position(analysis):
    if "variance" not in analysis:
        return []
    first, median = (np.array(analysis["variance"][kind]) for kind in ("first", "median"))
    most = int(np.argmax(first / np.maximum(median, TINY)))
    return [
        f"At position 0 the variance is up to {first[most] / max(median[most], TINY):,.3g} times "
        f"that of the median token (at h_{most}): means over tokens are given without it, too."
    ]


def about_stretches(analysis):
    """Which blocks can go: one alone, and the longest stretch that costs less than DEAREST."""
    said = []
    if ratios := analysis.get("prune_ratios"):
        errors = at(analysis["standard_errors"], ("prune_ratios",)) or [None] * len(ratios)
        least = [
            f"{l + 1} ({ratios[l] - 1:+.2%}{f' ± {errors[l]:.2%}' if errors[l] else ''})"
            for l in np.argsort(ratios)[:N_LEAST]
        ]
        said.append(f"Removed alone, these blocks are missed least: {', '.join(least)}.")
    if "stretches" in analysis:
        cheapest = [(int(np.argmin(ratios)), min(ratios)) for ratios in analysis["stretches"]]
        said.append(longest_stretch(cheapest, "by measured removal"))
        if chosen := likeliest(analysis):
            said.append(longest_stretch(chosen, "as chosen by the angle between its ends"))
    return said


def longest_stretch(stretches, how):
    """stretches: [(first block, loss ratio)] of n = 1, 2, ..."""
    cheap = [n for n, (_, ratio) in enumerate(stretches, start=1) if ratio < 1 + DEAREST]
    if not cheap:
        return f"No block can go for less than {DEAREST:.0%} of the loss, {how}."
    n, (first, ratio) = cheap[-1], stretches[cheap[-1] - 1]
    blocks = f"block {first + 1}" if n == 1 else f"blocks {first + 1}–{first + n}"
    return (
        f"The longest stretch that costs less than {DEAREST:.0%} of the loss, {how}: {blocks} "
        f"({counted(n, 'block')}, {ratio - 1:+.2%})."
    )


def about_methods(analysis):
    """Sentences on numbers that are estimates, or that follow from a fit."""
    said = []
    if n_probes := at(analysis, ("jacobian", "probes")):
        errors = at(analysis["standard_errors"], ("jacobian", "deviation"))
        share = np.median(np.divide(errors, np.maximum(analysis["jacobian"]["deviation"], TINY)))
        said.append(
            f"The Jacobian's deviation is by {n_probes} random directions, on "
            f"{counted(analysis['jacobian']['sequences'], 'sequence')}; its standard error over "
            f"these directions is {share:.1%} of it at the median block."
        )
    if n_tokens := analysis.get("fitted_on"):
        said.append(
            f"Linear maps were fitted on {n_tokens:,} other tokens, "
            f"{n_tokens / analysis['model']['n_embd']:.3g} for each feature."
        )
    return said


def report_text(analysis, figures):
    model = analysis["model"]
    lines = [
        f"# {model['name']}",
        "",
        f"{model['architecture']} of {counted(model['n_layer'], 'block')}, "
        f"{model['n_embd']} wide, {model['parameters'] / 1e6:,.0f} M parameters. " + LEFT_OUT,
        "",
        *singles_table(analysis),
        "",
        " ".join(about_first_position(analysis) + about_claims(analysis)),
        "",
        " ".join(about_stretches(analysis)),
        "",
        "Means over a quarter of the blocks each (of losses: relative growth):",
        "",
        *quarters_table(analysis),
        "",
        " ".join(["How each score was taken:", *about_methods(analysis)]),
        "",
        *measured_table(analysis),
        "",
        *[f"![{figure}]({figure}.png)" for figure in figures],
    ]
    return "\n".join(lines) + "\n"


def report_model(folder, analysis):
    """Figures and report.md into folder."""
    folder.mkdir(parents=True, exist_ok=True)
    figures = draw_figures(analysis)
    for name, figure in figures.items():
        save_figure(figure, folder / f"{name}.png")
    write_text(folder / "report.md", report_text(analysis, figures))
    say(folder / "report.md")


def report_models(folder, analyses):
    """side_by_side.png of {name: analysis} into folder."""
    figure = side_by_side_figure(analyses)
    if figure is None:
        say(f"no side_by_side.png: the models share none of the scores {', '.join(SIDE_BY_SIDE)}")
        return
    save_figure(figure, folder / "side_by_side.png")
    say(folder / "side_by_side.png")
