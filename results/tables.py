"""The tables of README.md and of the pages in results/ that hold measured numbers.

A page has <!-- table: depth --> and <!-- end --> on lines of their own; write_tables puts between
them what TABLES makes of the files in results/. Each number is rounded once, from what the file
holds, to the place of its interval.
"""

import math
import re
from functools import reduce
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import torch

from configs.read import load_points
from data.files import BadInput, read_json, read_text, write_text
from model import GPT
from results.claims import (
    CLAIMS,
    EXPERIMENT,
    METRICS,
    ends_along,
    entry,
    judge_sweep,
    margin_of,
)
from results.contrasts import set_against, weighed_measures
from results.paper import PAPER, beside_paper
from results.report import (
    CONTRAST_COLUMNS,
    HALVED,
    after_correction,
    amount_text,
    cells_of,
    contrast_cells,
    enumerated,
    seeds_text,
    sweep_of,
    table_row,
    table_rule,
    to_its_digit,
)
from results.runs import is_published, read_runs
from results.verdicts import judge

HERE = Path(__file__).parent
PAGES = (
    HERE.parent / "README.md",
    *(
        HERE / page
        for page in ("README.md", "speed.md", "machines.md", "theory.md", "pretrained/README.md")
    ),
)
MARKED = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def points_of(name):
    """{point: its runs} of a published file, such as "depth"."""
    return sweep_of(read_runs(HERE / f"{name}.json")).points


# What each table says ----------------------------------------------------------------------------


def primary_table():
    """The ten primary claims, with Holm's correction, and the twin of those on variance."""
    there = {
        verdict.claim: verdict
        for name, verdicts in after_correction(judged_by(*EXPERIMENT.values())).items()
        for verdict in verdicts
        if name == EXPERIMENT[verdict.claim.option]
    }
    columns = ("claim", "predicted", "measured", "verdict", "growth, free of scale", "verdict")
    rows = [table_row(*columns), table_rule(len(columns))]
    primary = [claim for claim in CLAIMS if claim.primary]
    for claim in primary:
        if claim in there:
            twin = claim._replace(metric="growth", primary=False)
            twins = [other for other in CLAIMS if same_question(other, twin)]
            cells = [cell for of in (claim, *twins) for cell in two_cells(there[of])]
            rows.append(table_row(claim.name, claim.says, *cells, *[""] * (4 - len(cells))))
    if missing := [claim.name for claim in primary if claim not in there]:
        rows.append(table_row(", ".join(missing), "not run yet", *[""] * 4))
    return rows


def same_question(one, other):
    return (one.name, one.metric) == (other.name, other.metric)


def two_cells(verdict):
    """What was measured, with the numbers of seeds where points have not equally many, and the
    Verdict after the correction; † where it does not hold with each point's own spread."""
    fewest, most = verdict.n_seeds
    change = change_text(verdict)
    if fewest < most:
        change += f", {seeds_text(verdict.n_seeds)}"
    if verdict.needs_pooling():
        return change, f"{verdict.verdict} †"
    return change, verdict.verdict if verdict.verdict == "undecided" else f"**{verdict.verdict}**"


def change_text(verdict):
    """Such as "2.9 times (2.8 to 3.0)" of a metric judged by its logarithm, or "-0.12 ± 0.03"."""
    if not math.isfinite(verdict.half):
        return "–"
    return amount_text(verdict.claim.metric, verdict.effect, verdict.half, times=" times")


def is_reported(name):
    """Is the sweep there, with its figures? A file alone holds runs of one that is not complete."""
    return (HERE / f"{name}.json").exists() and (HERE / name).is_dir()


def judged_by(*names):
    """{name: its Verdicts} of those of these sweeps that are there."""
    sweeps = {
        name: sweep_of(read_runs(HERE / f"{name}.json")) for name in names if is_reported(name)
    }
    return {name: judge_sweep(sweep.points, sweep.diverged) for name, sweep in sweeps.items()}


def half_rate_table():
    """Of each end point at half the suite's rate over the other, beside the same at the suite's,
    and what the halved rate does to either end alone."""
    columns = ("sweep", "points", "rate", *CONTRAST_COLUMNS)
    rows, missing = [table_row(*columns), table_rule(len(columns))], []
    for name in HALVED:
        ends = ends_along(published_points(f"half_rate_{name}"))
        if ends is None:
            missing.append(f"`half_rate_{name}`")
        else:
            rows += half_rate_rows(name, ends.first, ends.last, published_points(name))
    if missing:
        rows.append(table_row(", ".join(missing), "not run yet", *[""] * (len(columns) - 2)))
    return rows


def half_rate_rows(name, first, last, at_full_rate):
    """The last point's runs over the first's at half the rate. Where they are there, the same at
    the suite's, how far these contrasts differ, and half the rate over the suite's at each end."""
    ends = f"{last[0].point} over {first[0].point}"
    half = rate_of(first)
    measured = {(ends, half): set_against(last, first)}
    full_first, full_last = (at_full_rate.get(runs[0].point, []) for runs in (first, last))
    if full_first and full_last:
        full = rate_of(full_first)
        rates = f"{half} over {full}"
        of_both = [last, first, full_last, full_first]
        measured[ends, full] = set_against(full_last, full_first)
        measured[ends, rates] = weighed_measures(of_both, [1, -1, -1, 1])
        measured[first[0].point, rates] = set_against(first, full_first)
        measured[last[0].point, rates] = set_against(last, full_last)
    return [
        table_row(f"`{name}`", points, rate, *contrast_cells(of))
        for (points, rate), of in measured.items()
    ]


def rate_of(runs):
    return f"{runs[0].config['learning_rate']:g}"


def published_points(name):
    """As points_of; none where there is no such file."""
    return points_of(name) if (HERE / f"{name}.json").exists() else {}


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
BENCH_LINE = re.compile(
    r"(?:(\w+) \d  )?(\S+)  ([\d,]+) tokens/s .* MFU ([\d.]+)%  memory ([\d.]+) GiB  (.+)"
)


class Benched(NamedTuple):
    """A line of bench.py."""

    code: str | None  # which one ran, in bench_turns.txt, before the number of its turn
    point: str
    tokens_per_second: float
    mfu: float  # per cent
    memory: float  # GiB
    device: str


def benched(file):
    """[Benched] of a file in results/ that holds what bench.py printed."""
    lines = read_text(HERE / file).splitlines()
    return [
        Benched(code, point, float(speed.replace(",", "")), float(mfu), float(memory), device)
        for code, point, speed, mfu, memory, device in (
            found.groups() for found in map(BENCH_LINE.match, lines) if found
        )
    ]


def speed_table():
    measured = {row.point: row for row in benched("bench.txt")}
    rows = [table_row("model", "tokens/s", "MFU", "GiB"), table_rule(4)]
    for point, name in BENCHED.items():
        row = measured[point]
        speed = f"{row.tokens_per_second / 1e6:.2f} M"
        rows.append(table_row(name, speed, f"{row.mfu:.0f} %", f"{row.memory:.1f}"))
    return rows


CODES = {"before": "before", "after": "after", "rot": "after, rotation as before"}


def turns_table():
    measured = benched("bench_turns.txt")
    rows = [table_row("row of `bench.toml`", *CODES.values()), table_rule(1 + len(CODES))]
    for point in BENCHED:
        of_point = [row for row in measured if row.point == point]
        speeds = [
            ", ".join(f"{row.tokens_per_second / 1e6:.3f}" for row in of_point if row.code == code)
            for code in CODES
        ]
        rows.append(table_row(point, *speeds))
    return rows


class Card(NamedTuple):
    """A GPU, by its maker's data sheet."""

    flops: float  # a second, in fp32 without tensor cores: train.py lets none round to TF32
    bandwidth: float  # of its memory, bytes a second


CARDS = {  # part of a device's name: NVIDIA's data sheets of H100 (SXM) and T4
    "H100 80GB HBM3": Card(flops=67e12, bandwidth=3350e9),
    "T4": Card(flops=8.1e12, bandwidth=320e9),
}
SMALL_MEMORY = 8e9  # bytes, of "a card of 8 GB"
GIB = 2**30


def card_of(device):
    for name, card in CARDS.items():
        if name in device:
            return card
    raise BadInput(f"no data sheet of {device} is in tables.py, only of {', '.join(CARDS)}")


def on_card(flops, seconds, measured_on, card):
    """(least, most) seconds on a slower Card of what took so many on another and has so many
    floating-point operations. At least: these at the card's full rate, and nothing besides. At
    most: the measured time, times the larger of the cards' ratios, of fp32 rates and of
    bandwidths, as if the faster card had never waited."""
    ratios = (measured_on.flops / card.flops, measured_on.bandwidth / card.bandwidth)
    return flops / card.flops, seconds * max(ratios)


def flops_per_token(config):
    with torch.device("meta"):  # shapes alone
        model = GPT(config)
    return model.flops_per_token()


def small_gpu_table():
    """Of small_gpu.txt: what each depth of configs/small_gpu.toml takes where it was timed, and
    would take on a T4."""
    points = load_points(HERE.parent / "configs/small_gpu.toml", {"vocab_size": [8192]})
    measured = benched("small_gpu.txt")
    device = measured[0].device
    columns = ("blocks", "GiB", "within 8 GB", "tokens/s", f"minutes, {device}")
    rows = [table_row(*columns, "minutes, T4, **estimated**"), table_rule(1 + len(columns))]
    for row in measured:
        model, config, _ = points[row.point]
        n_tokens = config.max_iters * config.sequences_per_step * model.block_size
        seconds, flops = n_tokens / row.tokens_per_second, n_tokens * flops_per_token(model)
        least, most = on_card(flops, seconds, card_of(device), CARDS["T4"])
        cells = (
            f"{row.memory:.2f}",
            "yes" if row.memory * GIB < SMALL_MEMORY else "no",
            f"{row.tokens_per_second:,.0f}",
            minutes_text(seconds / 60),
            f"{minutes_text(least / 60)} to {minutes_text(most / 60)}",
        )
        rows.append(table_row(str(model.n_layer), *cells))
    return rows


RUN_BY_TORCHRUN = re.compile(r"([\d.]+) s  (torchrun --nproc_per_node=(\d+) .+)")


def two_gpus_table():
    """Of two_gpus.txt: the wall time of equally many runs on one GPU and on several."""
    found = map(RUN_BY_TORCHRUN.match, read_text(HERE / "two_gpus.txt").splitlines())
    measured = [(int(run[3]), float(run[1]), run[2]) for run in found if run]
    (alone,) = (seconds for n_gpus, seconds, _ in measured if n_gpus == 1)
    rows = [table_row("GPUs", "command", "seconds", "times as fast"), table_rule(4)]
    for n_gpus, seconds, command in measured:
        faster = f"{alone / seconds:.2f}"
        rows.append(table_row(str(n_gpus), f"`{command}`", f"{seconds:.0f}", faster))
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


def paper_tables():
    """The paper beside ours, a table for each sweep that both have."""
    lines = []
    for name in PAPER:
        if is_reported(name):
            lines += ["", *beside_paper(name, points_of(name))]
    return lines[1:]


BESIDE = {  # score: (where a public model's file has it, what it is of a run of ours)
    "var h_L / var h_1 (SmolLM2: without position 0)": (
        ("growth_without_first", "growth"),
        ("growth", "growth"),
    ),
    "its exponent over the middle half": (
        ("growth_without_first", "exponent"),
        ("growth", "exponent"),
    ),
    "update angle times L": (("updates", "angle_times_L"),) * 2,
    "causal": (("causal",),) * 2,
    "permutation": (("permutation",),) * 2,
    "usefulness (10 %)": (("usefulness", "held_out"),) * 2,
    "N_eff / L, a block made linear": (("linear_use", "n_eff_share"),) * 2,
    "N_eff / L, a block removed": (("removal_use", "n_eff_share"),) * 2,
    "geometric mean of u, a block removed": (("removal_use", "geometric_mean"),) * 2,
}


def public_table():
    """SmolLM2's 30 blocks beside our 32 of the depth sweep."""
    public = read_json(HERE / "pretrained/SmolLM2-135M-Instruct.json", dict)
    ours = points_of("depth")["n_layer=32"]
    rows = [table_row("score", "SmolLM2, 30 blocks", "ours, 32 blocks"), table_rule(3)]
    for name, (theirs, our) in BESIDE.items():
        value = reduce(lambda nested, key: nested[key], theirs, public)
        (cell,) = cells_of(name, [[entry(*our)(run) for run in ours]])
        rows.append(table_row(name, f"{value:.3g}", cell))
    return rows


def public_cost_table():
    """What all scores of a public model take on one GPU."""
    counted = read_json(HERE / "public_cost.json", dict)
    taken_on = f"minutes, {counted['sequences']} sequences of {counted['length']} tokens"
    columns = (f"on one {counted['device']}", "ms a block", "ms a read-out", taken_on)
    rows = [table_row(*columns, "of which the dearest score", "GiB, at most"), table_rule(6)]
    for name, cost in counted["models"].items():
        of_score = cost["minutes_by_score"]
        dearest = max(of_score, key=of_score.get)
        cells = (
            f"{cost['milliseconds_block']:.3g}",
            f"{cost['milliseconds_read_out']:.3g}",
            minutes_text(cost["minutes"]),
            f"`{dearest}`, {minutes_text(of_score[dearest])}",
            f"{cost['GiB']:.1f}",
        )
        rows.append(table_row(name, *cells))
    return rows


def minutes_text(minutes):
    return f"{minutes:#.2g}" if minutes < 9.95 else f"{minutes:,.0f}"


EXPECTED = {  # column: a function of a run
    "perplexity": METRICS["perplexity"],
    "variance of h_L": METRICS["last-layer variance"],
    "seconds to train": lambda run: run.summary["seconds"],
    "GiB of the GPU": lambda run: run.summary.get("memory_GiB"),  # newer runs say it
}


def expected_table():
    """What a run of each published point comes to, over its seeds."""
    rows = [table_row("config", "point", "seeds", *EXPECTED, "on")]
    rows.append(table_rule(len(EXPECTED) + 4))
    for path in sorted(HERE.glob("*.json")):
        if not is_published(path):
            continue
        for point, runs in points_of(path.stem).items():
            cells = [
                cells_of(name, [[number(run) for run in runs]])[0]
                for name, number in EXPECTED.items()
            ]
            devices = enumerated(run.summary["device"] for run in runs)
            rows.append(table_row(f"`{path.stem}`", point, str(len(runs)), *cells, devices))
    return rows


def files_table():
    """A row for each published sweep that lies here, and for each that is to come; at the end, the
    minutes of them all, of which a run that several sweeps share counts once."""
    columns = ("file", "runs", "scored", "seeds", "sequences", "torch", "device", *MINUTES)
    rows, all_runs = [table_row(*columns), table_rule(len(columns))], {}
    for path in sorted(HERE.rglob("*.json"), key=lambda path: path.relative_to(HERE).parts):
        if is_published(path):
            runs = read_runs(path)
            all_runs |= {(run.summary["seconds"], run.summary["val_loss"]): run for run in runs}
            name = f"`{path.relative_to(HERE).as_posix()}`"
            rows.append(table_row(name, *facts(path.stem, runs), *minutes(runs)))
    blank = [""] * (len(columns) - 4)
    each_once = (str(len(all_runs)), *blank, *minutes(all_runs.values()))
    return [*rows, *rows_to_come(len(columns)), table_row("each run once", *each_once)]


NO_SWEEPS = ("bench", "exercise", "small_gpu")  # configs of which no runs are published


def rows_to_come(n_columns):
    """Rows of files_table for the configs whose sweeps have not been run."""
    names = sorted(path.stem for path in (HERE.parent / "configs").glob("*.toml"))
    return [
        table_row(f"`{name}.json`", f"0 of {n_asked(name)}", *[""] * (n_columns - 2))
        for name in names
        if name not in NO_SWEEPS and not (HERE / f"{name}.json").exists()
    ]


def n_asked(name):
    """How many runs a config asks for; this does not depend on the vocabulary."""
    return len(load_points(HERE.parent / "configs" / f"{name}.toml", {"vocab_size": [8192]}))


MINUTES = ("training, minutes", "scoring, minutes")


def minutes(runs):
    """What MINUTES says, of these runs."""
    scoring = [run.analysis.get("seconds", 0) for run in runs if run.analysis is not None]
    return f"{sum(run.summary['seconds'] for run in runs) / 60:.0f}", f"{sum(scoring) / 60:.0f}"


def facts(name, runs):
    scored = [run for run in runs if run.analysis is not None]
    return (
        f"{len(runs)} of {n_asked(name)}",
        str(len(scored)),
        enumerated(run.seed for run in runs),
        enumerated(run.analysis["sequences"] for run in scored),
        enumerated(run.summary["torch"] for run in runs),
        enumerated(run.summary["device"] for run in runs),
    )


def masks_table():
    """Of theory_masks.json: claim C10 by family and number of blocks."""
    columns = ("masks", "blocks", "sparsest over full", "log growth, a step denser", "verdict")
    rows = [table_row(*columns), table_rule(len(columns))]
    for name, pattern in read_json(HERE / "theory_masks.json", dict)["patterns"].items():
        sparsest, full = pattern["points"][0]["growth"], pattern["points"][-1]["growth"]
        for layer in map(int, pattern["verdicts"]):
            ratio = mean(sparsest[layer]) / mean(full[layer])
            growth = [point["growth"][layer] for point in pattern["points"]]
            judged = judge(growth, "rises", log=True, margin=margin_of("growth"))
            effect = " ± ".join(to_its_digit(judged.effect, judged.half, sign="+"))
            rows.append(table_row(name, str(layer), f"{ratio:.2f}", effect, judged.verdict))
    return rows


TABLES = {
    "claims": primary_table,
    "speed": speed_table,
    "turns": turns_table,
    "small_gpu": small_gpu_table,
    "two_gpus": two_gpus_table,
    "scaling": scaling_table,
    "scoring": scoring_table,
    "files": files_table,
    "expected": expected_table,
    "public": public_table,
    "public_cost": public_cost_table,
    "paper": paper_tables,
    "half_rate": half_rate_table,
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
