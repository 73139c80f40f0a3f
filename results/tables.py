"""The tables of README.md and results/README.md that hold measured numbers.

A page has <!-- table: depth --> and <!-- end --> on lines of their own; write_tables puts between
them what TABLES makes of the files in results/. Each number is rounded once, from what the file
holds, to the place of its interval. What the paper measured stands here, as it has no file.
"""

import re
from pathlib import Path

from data.files import BadInput, read_text, write_text
from results.claims import METRICS
from results.report import sweep_of, table_row, table_rule, with_interval
from results.runs import read_runs

HERE = Path(__file__).parent
PAGES = (HERE.parent / "README.md", HERE / "README.md")
MARKED = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def points_of(name):
    """{point: its runs} of a published file, such as "wide/depth"."""
    return sweep_of(read_runs(HERE / f"{name}.json")).points


def cells(runs, metrics):
    return [with_interval([METRICS[metric](run) for run in runs]) for metric in metrics]


# What each table says ----------------------------------------------------------------------------

DEPTH = {  # column: metric
    "perplexity": "perplexity",
    "variance of h_L": "last-layer variance",
    "causal": "causal",
    "permutation": "permutation",
    "usefulness": "usefulness",
    "N_eff / L": "N_eff / L",
}
PAPERS_DEPTH = (
    "the paper, 12 to 32",
    "",
    "1.6e3 to 1e4 (peak)",
    "0.355 to 0.259",
    "0.985 to 0.306",
    "1.000 to 0.562",
    "",
)


def depth_table():
    rows = [table_row("blocks", *DEPTH), table_rule(1 + len(DEPTH))]
    for runs in points_of("depth").values():
        rows.append(table_row(str(runs[0].config["n_layer"]), *cells(runs, DEPTH.values())))
    return [*rows, table_row(*PAPERS_DEPTH)]


RUNGS = {  # point: (what it is, the paper's accuracy and usefulness)
    "0-shallow": ("16 blocks, plain", "40.1 %, 0.75"),
    "1-deep": ("32 blocks, plain", "39.5 %, 0.53"),
    "2-context": ("+ context 1024 (paper: 4096)", "40.0 %, 0.59"),
    "3-decay": ("+ weight decay 0.3", "41.4 %, 0.63"),
    "4-gqa": ("+ keys and values shared by two", "42.1 %, 0.66"),
    "5-moe": ("+ 16 experts", "44.1 %, 0.75"),
}
RECIPE = ("perplexity", "choice accuracy", "N_eff / L")


def recipe_table():
    points = points_of("recipe")
    rows = [table_row("rung", *RECIPE, "the paper: accuracy, usefulness"), table_rule(5)]
    for point, (name, papers) in RUNGS.items():
        rows.append(table_row(name, *cells(points[point], RECIPE), papers))
    return rows


SCALES = {  # what it is: (file, its points of 4 and of 32 blocks)
    "256, 512, 64, 40 M (`wide/depth.json`, three seeds)": (
        "wide/depth",
        "n_layer=4",
        "n_layer=32",
    ),
    "256, 512, 32, 20 M": ("scale", "w256-L4", "w256-L32"),
    "128, 256, 128, 40 M": ("scale", "w128-L4", "w128-L32"),
}
SCALE = {
    "perplexity": "perplexity",
    "variance of h_L": "last-layer variance",
    "N_eff / L": "N_eff / L",
}


def scale_table():
    columns = [*SCALE, "seconds to train 32 blocks"]
    rows = [table_row("width, context, sequences a step, tokens", *columns), table_rule(5)]
    for name, (file, shallow, deep) in SCALES.items():
        points = points_of(file)
        both = zip(
            *(cells(points[point], SCALE.values()) for point in (shallow, deep)), strict=True
        )
        seconds = [run.summary["seconds"] for run in points[deep]]
        cost = with_interval(seconds) if len(seconds) == 1 else "– (they shared the GPU)"
        rows.append(table_row(name, *map(", ".join, both), cost))
    return rows


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
    "depth": depth_table,
    "recipe": recipe_table,
    "scale": scale_table,
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
