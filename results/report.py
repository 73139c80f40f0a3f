"""report.md of a sweep, with its figures; claims.md and three figures of several sweeps."""

import math
from collections import Counter
from typing import NamedTuple

import numpy as np

from configs.read import MEASURED_BY
from data.files import BadInput, say, write_text
from results.claims import (
    BY_PLACE,
    COMPANIONS,
    EXPERIMENT,
    LOG_METRICS,
    METRICS,
    RESOLUTION,
    SHARE_OF_BLOCK_1,
    WITHOUT_BLOCK_1,
    by_logarithm,
    ends_along,
    entry,
    eps_counts,
    families,
    judge_sweep,
    points_along,
    resolution,
    value_of,
    without_diverged_rates,
)
from results.contrasts import ALONG, MEASURES, answers, set_against
from results.figures import (
    LINES,
    MATRICES,
    POINT_METRICS,
    changes_figure,
    contrasts_figure,
    drawable,
    hero_figure,
    ladder_figure,
    line_figure,
    matrix_figure,
    point_figure,
    save_figure,
    verdicts_figure,
)
from results.scores import places
from results.verdicts import LEVEL, ROUNDING, interval

EPS_MARK = " ‡"  # † is of verdicts, in README
SMALL_SHARE = 1 / 5  # of the seeds' spread: so small was the error over sequences to be
WORDS = {  # option: what a figure's rows call it, in their order
    "weight_decay": "decay",
    "block_size": "context",
    "queries per key": "queries per key",
    "mask density": "mask density",
    "n_expert": "experts",
    "rung": "recipe, rung",
    "n_layer": "blocks",
}
HALVED = ("context", "weight_decay", "moe")  # whose end points are a sweep at half the rate, too
AT_ANOTHER_RATE = (  # sweeps that ask whether another's answers hold there: of fewer figures
    *(f"half_rate_{name}" for name in HALVED),
    "remedies_double_rate",
)
LAST_PLACE = 7  # behind the point; smaller numbers stand with an exponent


class Sweep(NamedTuple):
    points: dict  # {point: its runs, one per seed}
    absent: list  # the runs without scores: they diverged, or were not scored

    @property
    def diverged(self):
        return [run for run in self.absent if run.summary["diverged"]]


def sweep_of(runs):
    points = {}
    for run in runs:
        if run.analysis is not None:
            points.setdefault(run.point, []).append(run)
    return Sweep(points, [run for run in runs if run.analysis is None])


def report_sweep(runs, folder):
    """Figures and report.md into folder. Returns the Sweep; raises BadInput where no run of it has
    scores."""
    sweep = sweep_of(runs)
    if not sweep.points:
        lacking = " that did not diverge" if runs else ""
        raise BadInput(
            f"{folder} holds no finished run{lacking}: train one first, with python train.py"
        )
    folder.mkdir(parents=True, exist_ok=True)
    found = answers(folder.name, sweep.points, sweep.diverged)
    figures = {**draw_contrasts(folder.name, found), **draw_figures(folder.name, sweep.points)}
    for name, figure in figures.items():
        save_figure(figure, folder / f"{name}.png")
    write_text(folder / "report.md", report_text(folder.name, sweep, figures, found))
    say("\n".join([*about_closed_blocks(sweep), str(folder / "report.md")]))
    return sweep


def draw_figures(name, points):
    """{file name: figure} of a sweep's name and its points, in the order of the report. At another
    rate: what points come to, and what their blocks are worth."""
    runs = [run for runs in points.values() for run in runs]
    figures = {file: point_figure(points, metrics) for file, metrics in POINT_METRICS.items()}
    if name in AT_ANOTHER_RATE:
        return figures | {"pruning": line_figure(points, LINES["pruning"])}
    for file, panels in LINES.items():
        if panels := drawable(panels, points):
            figures[file] = line_figure(points, panels)
    if all(matrix.key in run.analysis for run in runs for matrix in MATRICES):
        figures["matrices"] = matrix_figure(points)
    if any(run.rung is not None for run in runs):
        figures["ladder"] = ladder_figure(points)
    return figures


def draw_contrasts(name, found):
    """{file name: figure} of a sweep's name and its Answers: one where they make curves."""
    if name not in ALONG:
        return {}
    place = ALONG[name].place
    found = [each for each in found if place(each.runs[0]) == place(each.against[0])]
    if len(found) < 2:
        return {}
    places = [place(answer.runs[0]) for answer in found]
    labels = [answer.runs[0].parts[0] for answer in found]
    answered = [answer.measured for answer in found]
    return {"contrasts": contrasts_figure(ALONG[name], places, labels, answered)}


def report_text(name, sweep, figures, found):
    """figures: names of PNG files; found: the sweep's Answers."""
    lines = [
        f"# {name}",
        "",
        " ".join(sentences(sweep)),
        "",
        *metrics_table(sweep.points),
        "",
        *verdicts_table(judge_sweep(sweep.points, sweep.diverged)),
        "",
        *contrasts_table(found),
        *companion_tables(sweep.points),
        *resolution_table(sweep.points),
        *[f"![{figure}]({figure}.png)" for figure in figures],
    ]
    return "\n".join(lines) + "\n"


def sentences(sweep):
    """How many runs of what, how they were scored, what they cost, and what is not among them."""
    runs = [run for runs in sweep.points.values() for run in runs]
    seeds = sorted({run.seed for run in runs})
    lengths = [run.analysis["length"] for run in runs]
    shortest, longest = min(lengths), max(lengths)
    length = f"{shortest}" if shortest == longest else f"{shortest} to {longest}"
    datasets = enumerated(f"data/{run.config['dataset']}" for run in runs)
    sequences = enumerated(run.analysis["sequences"] for run in runs)
    are_several = {run.analysis["sequences"] for run in runs} != {1}
    torches = enumerated(run.summary["torch"] for run in runs)
    devices = enumerated(run.summary["device"] for run in runs)
    minutes = round(sum(run.summary["seconds"] for run in runs) / 60)
    cost = f"{counted(minutes, 'minute')}, summed over runs" if minutes else "less than a minute"
    said = [
        f"{counted(len(runs), 'run')}, seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))};",
        f"{datasets};",
        f"scores on {sequences} held-out sequence{'s' * are_several} of {length} tokens;",
        f"torch {torches}, {devices}.",
        about_intervals(sweep.points),
        "Usefulness and N_eff are with the linear maps fitted on other sequences.",
        f"Training took {cost}.",
    ]
    if len({validated_by(run) for run in runs}) > 1:
        said.append("Runs were validated on different tokens: perplexities compare in part only.")
    others = [run.name for run in runs if by_other_code(run)]
    if others:
        said.append(f"Scored by other code than that which trained them: {', '.join(others)}.")
    said += about_fewer_sequences(runs) + about_pairs(runs) + about_closed_blocks(sweep)
    if sweep.absent:
        said.append(f"Left out: {', '.join(left_out(sweep.absent))}.")
    return said + about_rates(sweep)


def about_fewer_sequences(runs):
    """The Jacobian, and swaps and greedy removal in deep models, are taken on fewer sequences."""
    of = [run.analysis["sequences_of"] for run in runs if "sequences_of" in run.analysis]
    if not of:
        return []
    jacobian, swap, greedy = (
        enumerated(each[score] for each in of) for score in ("jacobian", "swap", "greedy_order")
    )
    return [
        f"Of these the Jacobian is on {jacobian}, a swap on {swap}, greedy's order on {greedy}."
    ]


def about_pairs(runs):
    """How many pairs of sentences BLiMP's accuracy is of, which is a tenth of them in some runs."""
    n_pairs = known_of(entry("blimp", "pairs"), runs)
    return [f"BLiMP is on {enumerated(n_pairs)} pairs."] if n_pairs else []


def counted(n, noun):
    """Such as "1 run" and "2 runs"."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def enumerated(values):
    """Such as "8", "8 and 16" or "8, 16 and 32": each value once, in order; a dash for none."""
    return joined(map(str, sorted(set(values)) or "–"))


def joined(texts):
    """Such as "a", "a and b" or "a, b and c"."""
    *others, last = texts
    return f"{', '.join(others)} and {last}" if others else last


def about_intervals(points):
    n_seeds = {len(runs) for runs in points.values()}
    if n_seeds == {1}:
        return "One seed: numbers have no intervals, and decide nothing."
    of_one = "of one seed, or " if 1 in n_seeds else ""
    return (
        "Mean ± 95 % Student-t interval over seeds; of what is compared by its logarithm, the "
        "geometric mean (and the interval of the logarithm). A number without an interval is "
        f"{of_one}of seeds that all agree."
    )


def about_closed_blocks(sweep):
    """A sentence where blocks were given a form that the instruments cannot open."""
    runs = [run for runs in sweep.points.values() for run in runs]
    closed = [run.name for run in runs if "attention" not in run.analysis["variance"]]
    if not closed:
        return []
    return [
        "Without what each branch adds, and without theory, as blocks do more than add attention "
        f"and then feed-forward to the stream: {', '.join(closed)}."
    ]


def about_rates(sweep):
    """Of a rate control: the rates that no verdict heeds."""
    return [
        f"At {option}={value} the rate {rate:g} diverged and was left out."
        for option, value, rate in without_diverged_rates(sweep.points, sweep.diverged)
    ]


def left_out(absent):
    """["n_layer=8,seed=0 (diverged)"] of the runs without scores."""
    return [
        f"{run.name} ({'diverged' if run.summary['diverged'] else 'not scored'})" for run in absent
    ]


def validated_by(run):
    return tuple(run.config.get(name) for name in MEASURED_BY)


def by_other_code(run):
    """Older runs do not say what code trained or scored them."""
    trained, scored = run.config.get("code"), run.analysis.get("code")
    return None not in (trained, scored) and trained != scored


def metrics_table(points, metrics=METRICS):
    """Lines of a Markdown table: the metrics of every point."""
    lines = [table_row("point", *metrics), table_rule(1 + len(metrics))]
    columns = [
        cells_of(name, [[metric(run) for run in runs] for runs in points.values()])
        for name, metric in metrics.items()
    ]
    return lines + [table_row(*row) for row in zip(points, *columns, strict=True)]


def cells_of(name, table):
    """The cells of a metric of this name, of a list for each point with a number for each seed."""
    log = by_logarithm(name, [value for values in table for value in values])
    return [with_interval(values, log) for values in table]


def companion_tables(points):
    """Lines of the tables of COMPANIONS, and of two on block 1 and the others, without the columns
    that no run has."""
    marked = {point + EPS_MARK * any(map(eps_counts, of)): of for point, of in points.items()}
    runs = [run for of_point in points.values() for run in of_point]
    lines = []
    tables = dict(COMPANIONS)
    if max(run.config["n_layer"] for run in runs) > 2:  # else there is no pair of other blocks
        tables[about_block_1(points)] = WITHOUT_BLOCK_1
    tables[about_places(points)] = BY_PLACE
    for title, columns in tables.items():
        there = {
            name: metric
            for name, metric in columns.items()
            if any(metric(run) is not None for run in runs)
        }
        if there:
            lines += [f"{title}:", "", *metrics_table(marked, there), ""]
    if marked.keys() != points.keys():
        lines += [
            f"{EPS_MARK.strip()} the norms' eps is more than 1 % of a variance of the stream.",
            "",
        ]
    return lines


def about_block_1(points):
    """The title of a table without it: why, with its share of each score, by the points' means."""
    shares = {
        name: [np.mean(known) for runs in points.values() if (known := known_of(share, runs))]
        for name, share in SHARE_OF_BLOCK_1.items()
    }
    said = joined([f"{percents(of)} of {name}" for name, of in shares.items() if of] or ["–"])
    return (
        "Without block 1, which turns the embedding into a stream and is unlike all others: alone, "
        f"or in its pairs, it is {said} (an even share would be 1 / L, of pairs 2 / L)"
    )


def known_of(metric, runs):
    return [value for value in map(metric, runs) if value is not None]


def percents(shares):
    """Such as "66 to 81 %"."""
    low, high = (f"{100 * share:.0f}" for share in (min(shares), max(shares)))
    return f"{low} %" if low == high else f"{low} to {high} %"


def about_places(points):
    """The title of a table of what blocks are worth: which stand where."""
    depths = sorted({run.config["n_layer"] for runs in points.values() for run in runs})
    thirds = [f"of {L}: {thirds_text(L)}" for L in depths if "early" in places(L)]
    parted = f"; early, middle and late are thirds of blocks 2 to L, {'; '.join(thirds)}"
    of = "geometric mean of u, a block removed" + parted * bool(thirds)
    return f"What a block is worth, by place ({of})"


def thirds_text(L):
    """Such as "2 to 4, 5 to 6, 7 to 8" of 8 blocks."""
    of = places(L)
    ends = [(of[name][0], of[name][-1]) for name in ("early", "middle", "late")]
    return ", ".join(f"{first} to {last}" if first < last else f"{first}" for first, last in ends)


def resolution_table(points):
    """Lines of a table of what a score resolves: its errors beside what the sweep does to it."""
    rows = {}
    for name, score in RESOLUTION.items():
        log = by_logarithm(name, [score.value(run) for runs in points.values() for run in runs])
        rows[f"log {name}" if log else name] = resolution(points, score, log)
    lines = [
        table_row(name, *map(without_nan, numbers), share_of_seeds(numbers))
        for name, numbers in rows.items()
        if numbers is not None
    ]
    if not lines:
        return []
    columns = ("over sequences", "of differences over sequences", "over seeds", "over points")
    heading = table_row("standard deviation of", *columns, "of differences / over seeds")
    shared = (
        "Of a logarithm 0.01 is one per cent of the score. Runs are scored on the same sequences, "
        "whose error they share: differences of runs have less of it."
    )
    if any("**" in line for line in lines):
        shared += " In bold: more than a fifth of the seeds', so that more sequences would help."
    return ["What each score resolves:", "", heading, table_rule(6), *lines, "", shared, ""]


def share_of_seeds(numbers):
    """Of a Resolution: the differences' error over the spread of seeds, bold where it is large."""
    share = numbers.of_differences / (numbers.over_seeds or math.nan)
    return f"**{without_nan(share)}**" if share > SMALL_SHARE else without_nan(share)


def without_nan(number):
    return "–" if math.isnan(number) else f"{number:.2g}"


def with_interval(values, log=False):
    """Such as "12.034 ± 0.063": the half-width to two digits and the mean to the same place, each
    rounded once. With log such as "1100 (310 to 4100)": geometric mean and interval of the
    logarithm. One seed, and seeds that all agree, have no interval; what was not measured is a
    dash."""
    values = np.asarray(values, dtype=float)  # None becomes nan
    mean, half = interval(np.log(values) if log else values)
    if math.isnan(mean):
        return "–"
    if math.isinf(half) or half <= ROUNDING * (1 if log else abs(mean)):
        return f"{math.exp(mean) if log else mean:.4g}"
    return factor_text(mean, half) if log else " ± ".join(to_its_digit(mean, half))


def to_its_digit(mean, half, sign=""):
    """(mean, half-width) as text. sign: "+" for a mean that always has one."""
    if half <= ROUNDING * abs(mean):
        return f"{mean:{sign}.4g}", "0"
    place = place_of_second_digit(half)
    if place > LAST_PLACE:
        return f"{mean:{sign}.4g}", f"{half:.2g}"
    decimals = max(0, place)
    return f"{round(mean, place):{sign}.{decimals}f}", f"{round(half, place):.{decimals}f}"


def place_of_second_digit(number):
    """Behind the point, or, below 0, before it: 2 of 0.65, -2 of 1100."""
    return 1 - int(f"{number:.1e}".split("e")[1])


def factor_text(effect, half, times=""):
    """Such as "2.9 (2.8 to 3.0)" or "0.65 (0.015 to 28)", of the logarithm and the half-width of
    its interval, with the word for times behind the first number: each to the place of half the
    interval's second digit, and with two digits at least."""
    low, middle, high = (math.exp(effect + side * half) for side in (-1, 0, 1))
    place = place_of_second_digit((high - low) / 2)
    low, middle, high = (
        rounded_at(max(place, place_of_second_digit(number)), number)
        for number in (low, middle, high)
    )
    return f"{middle}{times} ({low} to {high})"


def rounded_at(place, number):
    if place > LAST_PLACE:
        return f"{number:.3g}"
    return f"{round(number, place):.{max(0, place)}f}"


BY_ITSELF = (
    "Each claim is judged by itself; where sweeps are reported together, their claims.md corrects "
    "for how many there are."
)
WHAT_P_IS = (
    "p is of what the seeds speak against: beside `no effect`, that the effect is as large as the "
    "margin; beside all else, that there is none."
)
WHAT_A_STEP_IS = (
    "What rises or falls does so by the effect at each step, from one value of the option to the "
    "next; where the option grows by factors, that of a step is beside it, or the mean one."
)


def verdicts_table(verdicts):
    """Lines of a Markdown table: the verdict on each claim that a sweep speaks to, or that none."""
    if not verdicts:
        return ["None of the paper's claims is about this sweep."]
    lines = [table_row("claim", "predicted", "measured effect", "p", "verdict"), table_rule(5)]
    for verdict in verdicts:
        name = f"**{verdict.claim.name}**" if verdict.claim.primary else verdict.claim.name
        cells = (name, verdict.claim.says, effect_text(verdict), p_text(verdict.p), verdict.verdict)
        lines.append(table_row(*cells))
    return [*lines, "", f"{BY_ITSELF} {WHAT_P_IS}"]


CONTRASTS_ARE = (
    "how many times as large each measure is at the first point as at the second, by the means of "
    "its logarithm, or how much larger, with 95 % intervals by each of the two points' own spread "
    "(Welch). In bold are intervals without 1, or of differences without 0; of so many, not "
    "corrected for their number, some are so by chance, and none is a verdict. Worth, early, "
    "middle and late: the geometric mean of u, a block removed, over thirds of blocks 2 to L."
)


def contrasts_table(found):
    """Lines of a Markdown table of these Answers; none where there are none."""
    if not found:
        return []
    lines = [table_row("asked", "points", "seeds", *CONTRAST_COLUMNS)]
    lines.append(table_rule(3 + len(CONTRAST_COLUMNS)))
    for asked, points, runs, against, measured in found:
        seeds = f"{len(runs)} over {len(against)}"
        lines.append(table_row(asked, points, seeds, *contrast_cells(measured)))
    return [f"Contrasts: {CONTRASTS_ARE}", "", *lines, ""]


CONTRAST_COLUMNS = [
    metric if metric in LOG_METRICS else f"{metric}, difference" for metric in MEASURES
]


def contrast_cells(measured):
    """Cells of {metric of MEASURES: a Contrast, or None}."""
    return [contrast_text(metric, measured[metric]) for metric in MEASURES]


def contrast_text(metric, change):
    """Such as "**2.00 (1.81 to 2.21)**", or "-0.12 ± 0.13"; a dash where there is no Contrast."""
    if change is None:
        return "–"
    text = amount_text(metric, change.effect, change.half())
    return f"**{text}**" if change.excludes_zero() else text


def amount_text(metric, effect, half, times=""):
    """Such as "2.9 (2.8 to 3.0)", with the word for times behind the first number, of a metric that
    is judged by its logarithm; of others such as "-0.12 ± 0.03"."""
    if metric not in LOG_METRICS:
        return " ± ".join(to_its_digit(effect, half, sign="+"))
    return factor_text(effect, half, times)


def family_table(family):
    """Lines of a Markdown table: verdicts with and without Holm's correction within the family, and
    p with each point's own spread."""
    columns = ("claim", "experiment", "predicted", "measured effect", "p", "verdict")
    columns += ("p by Holm", "verdict by Holm", "p by Holm, spreads not pooled")
    lines = [table_row(*columns), table_rule(len(columns))]
    rows = zip(family.verdicts, family.adjusted, family.adjusted_apart, strict=True)
    for (name, verdict), adjusted, apart in rows:
        cells = (verdict.claim.name, name, verdict.claim.says, effect_text(verdict))
        verdicts = (verdict.verdict, p_text(adjusted), corrected(verdict, adjusted), p_text(apart))
        lines.append(table_row(*cells, p_text(verdict.p), *verdicts))
    return lines


def corrected(verdict, adjusted):
    return verdict.verdict if adjusted < 1 - LEVEL else "undecided"


def families_of(of_sweep):
    """[Family] of {sweep: its Verdicts}."""
    return families([(name, verdict) for name in of_sweep for verdict in of_sweep[name]])


def after_correction(of_sweep):
    """{sweep: its Verdicts}, each as it stands, with its p, after Holm's correction within its
    family."""
    return as_they_stand(of_sweep, families_of(of_sweep))


def as_they_stand(names, found):
    """The same of sweeps of these names, by their [Family]."""
    stands = {name: [] for name in names}
    for family in found:
        rows = zip(family.verdicts, family.adjusted, family.adjusted_apart, strict=True)
        for (name, verdict), adjusted, apart in rows:
            said = corrected(verdict, adjusted)
            stands[name].append(verdict._replace(verdict=said, p=adjusted, p_apart=apart))
    return stands


def p_text(p):
    return "< 0.0001" if p < 1e-4 else f"{p:.2g}"


def effect_text(verdict):
    """Such as "+0.123 ± 0.045 (3 seeds; log perplexity: falls)"; a dash where some point has no
    such number, as one block has no pairs."""
    claim, effect, half = verdict.claim, verdict.effect, verdict.half
    in_logs = claim.metric in LOG_METRICS
    metric = f"log {claim.metric}" if in_logs else claim.metric
    if math.isnan(effect):
        return f"– ({metric}: {claim.shape})"
    said = f"({seeds_text(verdict.n_seeds)}; {metric}: {claim.shape})"
    if math.isfinite(verdict.step):
        said = f"a step of × {verdict.step:.2g} {said}"
    if not math.isfinite(half):
        return f"{effect:+.3g} {said}"
    return f"{' ± '.join(to_its_digit(effect, half, sign='+'))} {said}"


def seeds_text(n_seeds):
    """Of (fewest, most) at a point: such as "3 seeds", or "1 to 3 seeds"."""
    fewest, most = n_seeds
    return counted(most, "seed") if fewest == most else f"{fewest} to {most} seeds"


def changes_of(ends):
    """{label: what set_against says of the last point over the first} of {sweep: its Ends}, in the
    order of a figure's rows: the narrowest models first, then by the option, and the experiment
    that was made for it before others."""

    def order(name):
        option, first, _ = ends[name]
        return width(first), list(WORDS).index(option), name != EXPERIMENT[option]

    labels = change_labels(ends)
    return {
        labels[name]: set_against(ends[name].last, ends[name].first)
        for name in sorted(ends, key=order)
    }


def change_labels(ends):
    """{sweep: such as "decay 0 to 3"}, with the width where that is not most sweeps'; the same
    change in a sweep besides the experiment has its name, too."""
    usual = Counter(width(first) for _, first, _ in ends.values()).most_common(1)[0][0]
    labels = {
        name: f"{from_to(*of)}" + f" (width {width(of.first)})" * (width(of.first) != usual)
        for name, of in ends.items()
    }
    n_with = Counter(labels.values())
    return {
        name: f"{label} ({name})"
        if n_with[label] > 1 and name != EXPERIMENT[ends[name].option]
        else label
        for name, label in labels.items()
    }


def from_to(option, first, last):
    values = (value_of(option, runs[0]) for runs in (first, last))
    return f"{WORDS[option]} {' to '.join(f'{value:.4g}' for value in values)}"


def width(runs):
    return runs[0].config["n_embd"]


def table_row(*cells):
    return f"| {' | '.join(cells)} |"


def table_rule(n_columns):
    return "|---" * n_columns + "|"


def labelled(of_sweep):
    """{"moe (C7)": its Verdicts}, of {"moe": its Verdicts}."""
    labels = {
        name: ", ".join(dict.fromkeys(verdict.claim.name.rstrip("+") for verdict in verdicts))
        for name, verdicts in of_sweep.items()
    }
    return {f"{name} ({labels[name]})": verdicts for name, verdicts in of_sweep.items()}


def depths_of(sweeps):
    """The points of the depth sweep; none where it is not there."""
    depth = sweeps.get(EXPERIMENT["n_layer"])
    return depth.points if depth else {}


def sparsest_of(sweeps):
    """{sweep: runs of its sparsest point} of the sources of sparsity whose experiments are there,
    as far as they are as deep as the first."""
    found = {}
    for option, name in EXPERIMENT.items():
        if name in sweeps and option not in ("n_layer", "rung"):
            sweep = sweeps[name]
            if ordered := points_along(option, sweep.points, sweep.diverged):
                found[name] = ordered[0 if option == "mask density" else -1]
    depths = {name: runs[0].config["n_layer"] for name, runs in found.items()}
    first, *_ = depths.values() or [None]
    return {name: runs for name, runs in found.items() if depths[name] == first}


PLAIN_ELSEWHERE = {  # what is done to a plain model besides sparsity: its sweep and point
    "half the rate": ("half_rate_moe", "n_expert=0"),
    "twice the tokens": ("tokens", "200M,n_expert=0"),
}


def beside_plain(sweeps):
    """(the plain point of the depth sweep that is as deep as the sparsest points, {name: what
    set_against says of a model over it}): of the sparsest points, and of PLAIN_ELSEWHERE. ("", {})
    where there are no sparse points, or no such plain one."""
    others = {runs[0].point: runs for runs in sparsest_of(sweeps).values()}
    as_deep = {runs[0].config["n_layer"] for runs in others.values()}
    for name, (sweep, point) in PLAIN_ELSEWHERE.items():
        if sweep in sweeps and (runs := sweeps[sweep].points.get(point)):
            others[name] = runs
    for plain, runs in depths_of(sweeps).items():
        if runs[0].config["n_layer"] in as_deep:
            return plain, {name: set_against(of, runs) for name, of in others.items()}
    return "", {}


N_EFF_REMOVED = "N_eff / L, removed"  # a claim's metric
SHARE_OF_SUM = SHARE_OF_BLOCK_1["the sum of u, a block removed"]


def about_n_eff(sweeps, of_sweep):
    """What the verdicts on N_eff / L by removal are worth where the depth changes: a sentence, or
    none where no such sweep is among {name: its Verdicts} or block 1 has less than half of a sum.
    """
    shares, n_effs, names = [], [], set()
    for name, verdicts in of_sweep.items():
        claims = {v.claim.name for v in verdicts if v.claim.metric == N_EFF_REMOVED}
        runs = [run for of_point in sweeps[name].points.values() for run in of_point]
        if claims and len({run.config["n_layer"] for run in runs}) > 1:
            names |= claims
            shares += known_of(SHARE_OF_SUM, runs)
            n_effs += known_of(entry("removal_use", "n_eff"), runs)
    if not shares or min(shares) <= 1 / 2:
        return None
    return (
        f"{N_EFF_REMOVED} ({enumerated(names)}) says little besides L: block 1 alone is "
        f"{percents(shares)} of the sum of u, so N_eff, which is at most 1 over its share squared, "
        f"stays between {min(n_effs):.1f} and {max(n_effs):.1f}, and N_eff / L goes as 1 / L."
    )


def report_all(sweeps, folder):
    """Figures and claims.md, over several sweeps {name: Sweep}, into folder."""
    of_sweep = {name: judge_sweep(sweep.points, sweep.diverged) for name, sweep in sweeps.items()}
    found = families_of(of_sweep)
    if speaking := [name for name, verdicts in of_sweep.items() if verdicts]:
        panels = {"": labelled(as_they_stand(speaking, found))}
        save_figure(verdicts_figure(panels), folder / "verdicts.png")
        ends = {name: ends_along(sweeps[name].points, sweeps[name].diverged) for name in speaking}
        save_figure(changes_figure(changes_of(ends)), folder / "changes.png")
    depths = depths_of(sweeps)
    if depths:
        save_figure(hero_figure(depths, *beside_plain(sweeps)), folder / "hero.png")
    lines = [f"# Claims of {', '.join(sweeps)}, by the rule in results/verdicts.py"]
    lines += ["", f"{WHAT_P_IS} {WHAT_A_STEP_IS}"]
    for family in found:
        if family.verdicts:  # of somebody's own sweeps none may be an experiment
            lines += ["", f"## {family.title}", "", *family_table(family)]
    if said := about_n_eff(sweeps, of_sweep):
        lines += ["", said]
    for name, sweep in sweeps.items():
        lines += [f"\n{name}: {sentence}" for sentence in about_rates(sweep)]
    write_text(folder / "claims.md", "\n".join(lines) + "\n")
