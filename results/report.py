"""report.md of a sweep, with its figures; claims.md and joint.png of several sweeps."""

import math

from data.files import BadInput, say, write_text
from results.claims import (
    CLAIMS,
    COMPANIONS,
    LOG_METRICS,
    METRICS,
    RESOLUTION,
    eps_counts,
    interval,
    judge_sweep,
    resolution,
)
from results.figures import (
    LINES,
    POINT_METRICS,
    drawable,
    joint_figure,
    ladder_figure,
    line_figure,
    matrix_figure,
    point_figure,
    save_figure,
)

EPS_MARK = " †"


def report_sweep(runs, folder):
    """Figures and report.md into folder. Returns {point: its runs, one per seed}, without those
    that diverged or were not scored; raises BadInput where none is left."""
    points = {}
    for run in runs:
        if run.analysis is not None:
            points.setdefault(run.point, []).append(run)
    if not points:
        lacking = " that did not diverge" if runs else ""
        raise BadInput(
            f"{folder} holds no finished run{lacking}: train one first, with python train.py"
        )
    folder.mkdir(parents=True, exist_ok=True)
    figures = draw_figures(points)
    for name, figure in figures.items():
        save_figure(figure, folder / f"{name}.png")
    write_text(folder / "report.md", report_text(folder.name, points, left_out(runs), figures))
    say(folder / "report.md")
    return points


def draw_figures(points):
    """{file name: figure}, in the order of the report."""
    runs = [run for runs in points.values() for run in runs]
    figures = {name: point_figure(points, of) for name, of in POINT_METRICS.items()}
    for name, panels in LINES.items():
        if panels := drawable(panels, points):
            figures[name] = line_figure(points, panels)
    figures["matrices"] = matrix_figure(points)
    if any(run.rung is not None for run in runs):
        figures["ladder"] = ladder_figure(points)
    return figures


def left_out(runs):
    """["n_layer=8,seed=0 (diverged)"] of the runs without scores."""
    return [
        f"{run.name} ({'diverged' if run.summary['diverged'] else 'not scored'})"
        for run in runs
        if run.analysis is None
    ]


def report_text(name, points, absent, figures):
    """absent: what left_out returned; figures: names of PNG files."""
    paragraph = " ".join(sentences([run for runs in points.values() for run in runs], absent))
    pictures = [f"![{figure}]({figure}.png)" for figure in figures]
    lines = [
        f"# {name}",
        "",
        paragraph,
        "",
        *metrics_table(points),
        "",
        *claims_table({name: points}),
        "",
        *companion_tables(points),
        *resolution_table(points),
        *pictures,
    ]
    return "\n".join(lines) + "\n"


def sentences(runs, absent):
    """How many runs of what, how they were scored, and what they cost."""
    first = runs[0]
    seeds = ", ".join(str(seed) for seed in sorted({run.seed for run in runs}))
    lengths = [run.analysis["length"] for run in runs]
    shortest, longest = min(lengths), max(lengths)
    length = f"{shortest}" if shortest == longest else f"{shortest} to {longest}"
    minutes = sum(run.summary["seconds"] for run in runs) / 60
    said = [
        f"{len(runs)} runs, seeds {seeds};",
        f"data/{first.config['dataset']};",
        f"scores on {first.analysis['sequences']} held-out sequences of {length} tokens;",
        f"torch {first.summary['torch']}, {first.summary['device']}.",
        "Mean ± 95 % Student-t interval over seeds;",
        "usefulness and N_eff with the linear maps fitted on other sequences.",
        f"Training took {minutes:.0f} minutes, summed over runs.",
    ]
    others = [run.name for run in runs if by_other_code(run)]
    if others:
        said.append(f"Scored by other code than that which trained them: {', '.join(others)}.")
    if absent:
        said.append(f"Left out: {', '.join(absent)}.")
    return said


def by_other_code(run):
    """Older runs do not say what code trained or scored them."""
    trained, scored = run.config.get("code"), run.analysis.get("code")
    return None not in (trained, scored) and trained != scored


def metrics_table(points, metrics=METRICS):
    """Lines of a Markdown table: the metrics of every point."""
    lines = [table_row("point", *metrics), table_rule(1 + len(metrics))]
    for point, runs in points.items():
        cells = [with_interval([metric(run) for run in runs]) for metric in metrics.values()]
        lines.append(table_row(point, *cells))
    return lines


def companion_tables(points):
    """Lines of the tables of COMPANIONS, without the columns that no run has."""
    marked = {point + EPS_MARK * any(map(eps_counts, of)): of for point, of in points.items()}
    runs = [run for of_point in points.values() for run in of_point]
    lines = []
    for title, columns in COMPANIONS.items():
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


def resolution_table(points):
    """Lines of a table of what a score resolves: its errors beside what the sweep does to it."""
    rows = {name: resolution(points, *functions) for name, functions in RESOLUTION.items()}
    lines = [
        table_row(*(name, *(without_nan(number) for number in numbers)))
        for name, numbers in rows.items()
        if numbers is not None
    ]
    if not lines:
        return []
    heading = table_row("standard deviation of", "over sequences", "over seeds", "over points")
    shared = (
        "Runs are scored on the same sequences, whose error they share: contrasts have less of it."
    )
    return ["What each score resolves:", "", heading, table_rule(4), *lines, "", shared, ""]


def without_nan(number):
    return "–" if math.isnan(number) else f"{number:.2g}"


def with_interval(values):
    mean, half = interval(values)
    if math.isnan(mean):
        return "–"
    return f"{mean:.4g}" + (f" ± {half:.2g}" if math.isfinite(half) else "")


def claims_table(sweeps):
    """Lines of a Markdown table: the verdict on each claim, by each of the sweeps, {name: points},
    that speaks to it."""
    judged = [(name, verdict) for name, points in sweeps.items() for verdict in judge_sweep(points)]
    judged.sort(key=lambda pair: CLAIMS.index(pair[1].claim))
    lines = [
        table_row("claim", "experiment", "predicted", "measured effect", "verdict"),
        table_rule(5),
    ]
    for name, verdict in judged:
        claim = verdict.claim
        cells = (claim.name, name, claim.says, effect_text(verdict), verdict.verdict)
        lines.append(table_row(*cells))
    return lines


def effect_text(verdict):
    """Such as "+0.123 (± 0.045, 3 seeds; log perplexity: falls)"."""
    claim = verdict.claim
    in_logs = claim.metric in LOG_METRICS and claim.shape != "no worse"
    metric = f"log {claim.metric}" if in_logs else claim.metric
    several = verdict.n_seeds > 1
    width = f"± {verdict.half:.2g}, {verdict.n_seeds} seeds" if several else "one seed"
    return f"{verdict.effect:+.3g} ({width}; {metric}: {claim.shape})"


def table_row(*cells):
    return f"| {' | '.join(cells)} |"


def table_rule(n_columns):
    return "|---" * n_columns + "|"


def report_all(sweeps, folder):
    """joint.png and claims.md, over several sweeps {name: points}, into folder."""
    save_figure(joint_figure(sweeps), folder / "joint.png")
    lines = ["# All claims, by the rule in results/claims.py", "", *claims_table(sweeps)]
    write_text(folder / "claims.md", "\n".join(lines) + "\n")
