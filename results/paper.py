"""What the paper measured, and what we did, one above the other: tables of results/README.md.

Muhtar et al., "When Does Sparsity Mitigate the Curse of Depth in LLMs" (arXiv 2603.15389). From its
tables; read off its figures: variances, and the recipe's usefulness.
"""

from typing import NamedTuple

from results.claims import METRICS, entry
from results.report import cells_of, table_row, table_rule

TRANSPOSED = "usefulness, the map transposed"  # as the published script installs it
OURS = {  # score: a function of a run
    "perplexity": METRICS["perplexity"],
    "choice accuracy": METRICS["choice accuracy"],
    "BLiMP": entry("blimp", "accuracy"),
    "causal": METRICS["causal"],
    "permutation": METRICS["permutation"],
    "last-layer variance": METRICS["last-layer variance"],
    TRANSPOSED: entry("usefulness", "transposed"),
    "usefulness": METRICS["usefulness"],
}
NOT_MEASURED = "–"


class InPaper(NamedTuple):
    """One of its experiments."""

    swept: str
    value_of: object  # function of a run of ours: where it stands among values; None: nowhere
    values: tuple  # of the paper
    measured: dict  # {score: {whose, where the paper has several: a number at each value}}


PAPER = {  # sweep of ours: the paper's
    "depth": InPaper(
        "blocks",
        lambda run: run.config["n_layer"],
        (12, 16, 24, 32),
        {
            "causal": {"": ("0.355", "0.336", "0.289", "0.259")},
            "permutation": {"": ("0.985", "0.713", "0.438", "0.306")},
            "last-layer variance": {"peak": ("1.6e3", "2.7e3", "5.3e3", "1e4")},
            TRANSPOSED: {"": ("1.000", "0.813", "0.625", "0.562")},
            "usefulness": {},
        },
    ),
    "weight_decay": InPaper(
        "weight decay",
        lambda run: run.config["weight_decay"],
        (0, 0.01, 0.1, 1, 3),
        {
            "perplexity": {"": ("15.63", "15.20", "14.83", "15.55", "773.42")},
            "last-layer variance": {"": ("320", "287", "117", "≈ 0", "≈ 0")},
            TRANSPOSED: {"": ("0.75", "0.75", "0.81", "0.69", "0.63")},
            "usefulness": {},
        },
    ),
    "context": InPaper(
        "tokens of context",
        lambda run: run.config["block_size"],
        (256, 512, 1024, 2048, 4096, 8192),
        {
            "perplexity": {"": ("18.51", "15.71", "14.77", "14.51", "14.52", "16.30")},
            "last-layer variance": {"": ("2.9e4", "8e3", "2.7e3", "1.4e3", "720", "70")},
            TRANSPOSED: {"": ("0.69", "0.75", "0.75", "0.81", "0.81", "0.75")},
            "usefulness": {},
        },
    ),
    "gqa": InPaper(
        "query heads to a key/value head",
        lambda run: run.config["n_head"] // run.config["n_kv_head"],
        (1, 4, 16),
        {
            "perplexity": {"": ("14.52", "14.50", "14.47")},
            "last-layer variance": {"": ("220", "122", "102")},
            TRANSPOSED: {"": ("0.81", "0.87", "0.87")},
            "usefulness": {},
        },
    ),
    "moe": InPaper(
        "experts (0: dense)",
        lambda run: run.config["n_expert"],
        (0, 32, 64),
        {
            "perplexity": {
                "400M active": ("17.56", "15.89", NOT_MEASURED),
                "1B active": ("14.52", NOT_MEASURED, "13.82"),
            },
            "last-layer variance": {"400M active, peak": ("152", "23", NOT_MEASURED)},
            TRANSPOSED: {
                "400M active": ("0.87", "0.94", NOT_MEASURED),
                "1B active": ("0.81", NOT_MEASURED, "0.94"),
            },
            "usefulness": {},
        },
    ),
    "recipe": InPaper(
        "rung (0: 16 blocks, 1: 32, 2: + context, 3: + decay, 4: + shared keys, 5: + experts)",
        lambda run: run.rung,
        (0, 1, 2, 3, 4, 5),
        {
            "accuracy, mean of tasks": {"%": ("40.1", "39.5", "40.0", "41.4", "42.1", "44.1")},
            "choice accuracy": {},
            "BLiMP": {},
            "perplexity": {},
            TRANSPOSED: {"": ("0.75", "0.53", "0.59", "0.63", "0.66", "0.75")},
            "usefulness": {},
        },
    ),
}


def beside_paper(name, points):
    """The lines of a table: of each score of PAPER[name] the paper's numbers and, of {point: its
    runs}, ours with their intervals, a column for each value of what is swept."""
    swept, value_of, papers_values, measured = PAPER[name]
    ours = {value_of(runs[0]): runs for runs in points.values()}
    ours.pop(None, None)  # beside a ladder
    values = sorted({*papers_values, *ours})
    rows = [table_row(swept, "", *(f"{value:g}" for value in values)), table_rule(2 + len(values))]
    for score, by in measured.items():
        for whose, numbers in by.items():
            there = dict(zip(papers_values, numbers, strict=True))
            cells = [there.get(value, NOT_MEASURED) for value in values]
            rows.append(table_row(score, f"paper, {whose}" if whose else "paper", *cells))
        if score in OURS:
            there = cells_of(score, [[OURS[score](run) for run in runs] for runs in ours.values()])
            there = dict(zip(ours, there, strict=True))
            cells = [there.get(value, NOT_MEASURED) for value in values]
            rows.append(table_row(score, "ours", *cells))
    return rows
