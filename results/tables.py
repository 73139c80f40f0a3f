"""The tables of README.md and results/README.md that hold measured numbers.

A page has <!-- table: depth --> and <!-- end --> on lines of their own; write_tables puts between
them what TABLES makes of the files in results/. Each number is rounded once, from what the file
holds, to the place of its interval.
"""

import math
import re
from pathlib import Path

from data.files import BadInput, read_text, write_text
from results.claims import CLAIMS, EXPERIMENT, LOG_METRICS, families, judge_sweep
from results.report import sweep_of, table_row, table_rule, to_its_digit
from results.runs import read_runs
from results.verdicts import LEVEL

HERE = Path(__file__).parent
PAGES = (HERE.parent / "README.md", HERE / "README.md")
MARKED = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def points_of(name):
    """{point: its runs} of a published file, such as "wide/depth"."""
    return sweep_of(read_runs(HERE / f"{name}.json")).points


# What each table says ----------------------------------------------------------------------------


def claims_table():
    """The ten primary claims, with Holm's correction, and the twin of those on variance."""
    judged = judged_by(*EXPERIMENT.values())
    primary, secondary, _ = families(judged)
    there = {
        verdict.claim: (verdict, adjusted)
        for family in (primary, secondary)
        for (_, verdict), adjusted in zip(family.verdicts, family.adjusted, strict=True)
    }
    columns = ("claim", "predicted", "measured", "verdict", "growth, free of scale", "verdict")
    rows = [table_row(*columns), table_rule(len(columns))]
    for claim in CLAIMS:
        if claim.primary:
            twin = claim._replace(metric="growth", primary=False)
            twins = [other for other in CLAIMS if same_question(other, twin)]
            cells = [cell for of in (claim, *twins) for cell in two_cells(there.get(of))]
            rows.append(table_row(claim.name, claim.says, *cells, *[""] * (4 - len(cells))))
    return rows


def same_question(one, other):
    return (one.name, one.metric) == (other.name, other.metric)


def two_cells(measured):
    """What was measured, and the verdict after the correction."""
    if measured is None:
        return "", "not run yet"
    verdict, adjusted = measured
    holds = adjusted < 1 - LEVEL
    return change_text(verdict), f"**{verdict.verdict}**" if holds else "undecided"


def change_text(verdict):
    """Such as "2.9 times (2.8 to 3.0)" of a metric judged by its logarithm, or "-0.12 ± 0.03"."""
    if not math.isfinite(verdict.half):
        return "–"
    if verdict.claim.metric not in LOG_METRICS:
        return " ± ".join(to_its_digit(verdict.effect, verdict.half, sign="+"))
    low, middle, high = (math.exp(verdict.effect + side * verdict.half) for side in (-1, 0, 1))
    _, spread = to_its_digit(middle, (high - low) / 2)
    places = len(spread.partition(".")[2])
    return f"{middle:.{places}f} times ({low:.{places}f} to {high:.{places}f})"


def judged_by(*names):
    """[(name, Verdict)] of the published sweeps of these names that are there."""
    sweeps = {name: points_of(name) for name in names if (HERE / f"{name}.json").exists()}
    return [(name, verdict) for name, points in sweeps.items() for verdict in judge_sweep(points)]


BENCHED = {  # point of configs/bench.toml: what it is
    "w256-L32": "width 256, 32 blocks, context 512, batch 64, vocabulary 8192",
    "w256-L16": "the same, 16 blocks",
    "w128-L16": "width 128, 16 blocks, context 256, batch 128",
    "w128-L16-4heads": "the same with heads of 32 features, as in the experiments"
    " (the other rows: 64)",
    "moe16": "width 256, 16 blocks, 2 of 16 experts at equal active parameters",
    "124M": "GPT-2's smallest shape, read-out untied (162 M parameters), context 1024, batch 32,"
    " vocabulary 50304",
    "T8192-full": "width 256, 16 blocks, context 8192, full attention",
    "T8192-window": "the same, window 512",
}
BENCH_LINE = re.compile(r"(\S+)  ([\d,]+) tokens/s .* MFU ([\d.]+)%")


def speed_table():
    """Of bench.txt, as train.py --bench printed it."""
    lines = read_text(HERE / "bench.txt").splitlines()
    measured = {found[1]: found for found in map(BENCH_LINE.match, lines) if found}
    rows = [table_row("model", "tokens/s", "MFU"), table_rule(3)]
    for point, name in BENCHED.items():
        speed, mfu = int(measured[point][2].replace(",", "")), float(measured[point][3])
        rows.append(table_row(name, f"{speed / 1e6:.2f} M", f"{mfu:.0f} %"))
    return rows


TABLES = {
    "claims": claims_table,
    "speed": speed_table,
}


# Pages -------------------------------------------------------------------------------------------


def filled(page):
    """The text of a page with its tables made anew."""

    def table(found):
        if found[2] not in TABLES:
            raise BadInput(f"{page}: there is no table {found[2]!r}, only {', '.join(TABLES)}")
        return found[1] + "\n".join(TABLES[found[2]]()) + "\n" + found[3]

    return MARKED.sub(table, read_text(page))


def write_tables(folder):
    """The pages' tables, where folder is the project's own results/."""
    if folder.resolve() == HERE.resolve():
        for page in PAGES:
            write_text(page, filled(page))
