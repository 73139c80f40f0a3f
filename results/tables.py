"""The tables of README.md, results/README.md and results/speed.md that hold measured numbers.

A page has <!-- table: depth --> and <!-- end --> on lines of their own; write_tables puts between
them what TABLES makes of the files in results/. Each number is rounded once, from what the file
holds, to the place of its interval. What the paper measured stands here, as it has no file.
"""

import re
from pathlib import Path
from statistics import mean

from data.files import BadInput, read_json, read_text, write_text
from results.claims import METRICS
from results.report import (
    enumerated,
    sweep_of,
    table_row,
    table_rule,
    to_its_digit,
    with_interval,
)
from results.runs import read_runs

HERE = Path(__file__).parent
PAGES = (HERE.parent / "README.md", HERE / "README.md", HERE / "speed.md")
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
BENCH_LINE = re.compile(r"(?:(\w+) \d  )?(\S+)  ([\d,]+) tokens/s .* MFU ([\d.]+)%")


def benched(file):
    """[(which code, point, million tokens/s, MFU in per cent)], as train.py --bench printed them;
    in bench_turns.txt behind the code's name and the number of its turn."""
    lines = read_text(HERE / file).splitlines()
    return [
        (found[1], found[2], int(found[3].replace(",", "")) / 1e6, float(found[4]))
        for found in map(BENCH_LINE.match, lines)
        if found
    ]


def speed_table():
    measured = {point: (speed, mfu) for _, point, speed, mfu in benched("bench.txt")}
    rows = [table_row("model", "tokens/s", "MFU"), table_rule(3)]
    for point, name in BENCHED.items():
        speed, mfu = measured[point]
        rows.append(table_row(name, f"{speed:.2f} M", f"{mfu:.0f} %"))
    return rows


CODES = {"before": "before", "after": "after", "rot": "after, rotation as before"}


def turns_table():
    measured = benched("bench_turns.txt")
    rows = [table_row("row of `bench.toml`", *CODES.values()), table_rule(1 + len(CODES))]
    for point in BENCHED:
        of_point = [(code, speed) for code, of, speed, _ in measured if of == point]
        speeds = [
            ", ".join(f"{speed:.3f}" for of, speed in of_point if of == code) for code in CODES
        ]
        rows.append(table_row(point, *speeds))
    return rows


def scaling_table():
    rows = [table_row("what grows", "", "million tokens/s"), table_rule(3)]
    for panel, curves in read_json(HERE / "scaling.json", dict).items():
        for name, curve in curves.items():
            speeds = [f"{row['tokens_per_second'] / 1e6:.2f}" for row in curve.values()]
            rows.append(table_row(f"{panel} ({name})", ", ".join(curve), ", ".join(speeds)))
    return rows


def scoring_table():
    measured = read_json(HERE / "score_speed.json", dict)
    ours, published = measured["ours"], measured["published"]
    rows = [table_row("score", "ours, s", "published way, s", "ratio"), table_rule(4)]
    both = {name: (ours[name], published[name]) for name in ours}
    both["together"] = (sum(ours.values()), sum(published.values()))
    for name, (our, their) in both.items():
        rows.append(table_row(name, f"{our:.1f}", f"{their:.1f}", f"{their / our:.1f}"))
    memory = f"{measured['peak_memory_GiB']:.1f} GiB"
    everything = f"{measured['all_scores_seconds']:.0f}"
    return [*rows, table_row(f"all of our scores, in {memory}", everything, "", "")]


def files_table():
    """A row for each published sweep that lies here."""
    columns = ("file", "runs", "scored", "seeds", "sequences", "torch", "device", "minutes")
    rows = [table_row(*columns), table_rule(len(columns))]
    for path in sorted(HERE.rglob("*.json"), key=lambda path: path.relative_to(HERE).parts):
        if read_text(path).startswith("["):  # others are no sweeps
            rows.append(table_row(f"`{path.relative_to(HERE).as_posix()}`", *facts(path)))
    return rows


def facts(path):
    runs = read_runs(path)
    scored = [run for run in runs if run.analysis is not None]
    minutes = sum(run.summary["seconds"] for run in runs) / 60
    return (
        str(len(runs)),
        str(len(scored)),
        enumerated(run.seed for run in runs),
        enumerated(run.analysis["sequences"] for run in scored),
        enumerated(run.summary["torch"] for run in runs),
        enumerated(run.summary["device"] for run in runs),
        f"{minutes:.0f}",
    )


def masks_table():
    """Of theory_masks.json: claim C10 by family and number of blocks."""
    columns = ("masks", "blocks", "sparsest over full", "log growth, a step denser", "verdict")
    rows = [table_row(*columns), table_rule(len(columns))]
    for name, pattern in read_json(HERE / "theory_masks.json", dict)["patterns"].items():
        sparsest, full = pattern["points"][0]["growth"], pattern["points"][-1]["growth"]
        for layer, verdict in pattern["verdicts"].items():
            ratio = mean(sparsest[int(layer)]) / mean(full[int(layer)])
            effect = " ± ".join(to_its_digit(verdict["effect"], verdict["half"], sign="+"))
            rows.append(table_row(name, layer, f"{ratio:.2f}", effect, verdict["verdict"]))
    return rows


TABLES = {
    "depth": depth_table,
    "recipe": recipe_table,
    "scale": scale_table,
    "speed": speed_table,
    "turns": turns_table,
    "scaling": scaling_table,
    "scoring": scoring_table,
    "files": files_table,
    "masks": masks_table,
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
