"""What sweeps ask that no claim of the paper is about: two points, one set against the other.

CONTRASTS has a line for each question. What is measured are metrics of results/claims.py: how many
times as large the first point's is, or, of those not judged by their logarithm, by how much it is
larger. Seeds are unpaired. As only two points are compared, no third says how far seeds scatter,
and each of the two has its own spread (Welch); results/verdicts.py has the formulas. Points without
a second scored seed have no spread, so they are set against nothing.

These are no verdicts: a sweep has dozens of intervals, and none is corrected for their number.
"""

from itertools import pairwise
from typing import NamedTuple

import numpy as np

from results.claims import CLAIM_METRICS, LOG_METRICS, mean_perplexity
from results.verdicts import contrast, on_scale, usable

MEASURES = (  # of CLAIM_METRICS, in the order of the columns
    "perplexity",
    "last-layer variance",
    "growth",
    "exponent",
    "causal",
    "causal without block 1",
    "permutation",
    "permutation without block 1",
    "geometric mean of u, removed",
    "worth, early",
    "worth, middle",
    "worth, late",
    "BLiMP",
)

# The questions -----------------------------------------------------------------------------------
#
# {sweep: [(what is asked, a point, what it is set against)]}. Of several points, the one of lowest
# mean perplexity speaks.

LENGTHS = ("12.5M", "25M", "50M", "100M", "200M")
TOP = ("5-moe", "top-half-rate", "top-double-rate")
DEEP = ("1-deep", "deep-half-rate", "deep-double-rate")
REMEDIES = (
    "plain",
    "embedding-norm",
    "peri-ln",
    "complete-p",
    "layer-norm-scaling",
    "scaled-init",
)

CONTRASTS = {
    "tokens": [
        (f"experts, at {length} tokens", f"{length},n_expert=16", f"{length},n_expert=0")
        for length in LENGTHS
    ]
    + [
        (f"{model}: twice the tokens", f"{twice},{option}", f"{length},{option}")
        for model, option in (("dense", "n_expert=0"), ("experts", "n_expert=16"))
        for length, twice in pairwise(LENGTHS)
    ],
    "depth": [(f"{2 * L} blocks", f"n_layer={2 * L}", f"n_layer={L}") for L in (4, 8, 16)],
    "wide_depth": [(f"{2 * L} blocks", f"n_layer={2 * L}", f"n_layer={L}") for L in (8, 16)],
    "weight_decay": [
        ("much decay", "weight_decay=0.3", "weight_decay=0"),
        ("too much", "weight_decay=3", "weight_decay=0"),
    ],
    "context": [
        ("the suite's context, and texts to score as long", "context-512", "context-64"),
        ("eight times that", "context-4096", "context-512"),
    ],
    "gqa": [
        (f"{n} query heads to a key/value head", f"n_kv_head={4 // n}", "n_kv_head=4")
        for n in (2, 4)
    ],
    "moe": [(f"{E} experts", f"n_expert={E}", "n_expert=0") for E in (4, 16, 64)],
    "wide_moe": [("experts", "n_expert=16", "n_expert=0")],
    "moe_gate": [
        ("experts' weights normalised", "experts-normalised", "experts"),
        ("dense, with a start as small as experts'", "dense-small-start", "dense"),
        ("dense with that start, beside experts", "dense-small-start", "experts"),
    ],
    "recipe": [
        ("rung 1: twice the blocks", "1-deep", "0-shallow"),
        ("rung 2: + context (and context alone)", "2-context", "1-deep"),
        ("rung 3: + decay", "3-decay", "2-context"),
        ("rung 4: + shared keys", "4-gqa", "3-decay"),
        ("rung 5: + experts", "5-moe", "4-gqa"),
        ("decay alone", "only-decay", "1-deep"),
        ("shared keys alone", "only-gqa", "1-deep"),
        ("experts alone", "only-moe", "1-deep"),
        ("the whole recipe, each at the best rate tried", TOP, DEEP),
        ("the whole recipe, both at half the rate", "top-half-rate", "deep-half-rate"),
        ("the whole recipe, both at double the rate", "top-double-rate", "deep-double-rate"),
        ("half the rate, plain", "deep-half-rate", "1-deep"),
        ("double the rate, plain", "deep-double-rate", "1-deep"),
    ],
    "half_rate_context": [("all of the context", "context-4096", "context-64")],
    "half_rate_moe": [("64 experts", "n_expert=64", "n_expert=0")],
    "half_rate_weight_decay": [("too much", "weight_decay=3", "weight_decay=0")],
    "remedies": [
        *((f"{of}: twice the blocks", f"{of},n_layer=32", f"{of},n_layer=16") for of in REMEDIES),
        *((f"{of}, 32 blocks", f"{of},n_layer=32", "plain,n_layer=32") for of in REMEDIES[1:]),
    ],
    "remedies_double_rate": [(f"{of}, 32 blocks", of, "plain") for of in REMEDIES[1:]],
}


class Along(NamedTuple):
    title: str  # what is set against what
    xlabel: str
    place: object  # a function of a run: where it stands along x


ALONG = {  # sweep whose contrasts of points at one place make curves, of times alone
    "tokens": Along("experts over dense", "training tokens", lambda run: run.log[-1]["tokens"]),
}


# The answers -------------------------------------------------------------------------------------


class Answer(NamedTuple):
    asked: str
    points: str  # which was set against which
    runs: list  # of the first point
    against: list  # runs of the other
    measured: dict  # {metric of MEASURES: a Contrast, of logarithms if in LOG_METRICS; or None}


def answers(sweep, points, diverged=()):
    """[Answer] to the questions of the sweep of this name whose points are there, of {point: its
    scored runs}. diverged: the runs that did; no rate at which one did is the best."""
    found = []
    for asked, first, second in CONTRASTS.get(sweep, ()):
        name, runs = speaker(first, points, diverged)
        other, against = speaker(second, points, diverged)
        if runs and against:
            found.append(
                Answer(asked, f"{name} over {other}", runs, against, set_against(runs, against))
            )
    return found


def speaker(names, points, diverged):
    """(name, runs) of a point, or of the best of several, whose name then says of how many; no runs
    where none has two seeds."""
    several = not isinstance(names, str)
    lost = {run.point for run in diverged} if several else ()
    there = {
        name: points[name]
        for name in (names if several else [names])
        if len(points.get(name, ())) > 1 and name not in lost
    }
    if not there:
        return "", []
    best = min(there, key=lambda name: mean_perplexity(there[name]))
    return f"{best} (best of {len(there)})" if several else best, there[best]


def set_against(runs, against):
    """{metric of MEASURES: the Contrast of the first runs less the others, or None}."""
    return weighed_measures([runs, against], [1, -1])


def weighed_measures(lists_of_runs, weights):
    return {metric: weighed(metric, lists_of_runs, weights) for metric in MEASURES}


def weighed(metric, lists_of_runs, weights):
    """The Contrast of a metric with these weights, each list of runs with its own spread; None
    where a run lacks it, a list has a single run, or seeds do not differ, which is no certainty."""
    log = metric in LOG_METRICS
    table = [
        np.array([CLAIM_METRICS[metric](run) for run in runs], dtype=float)
        for runs in lists_of_runs
    ]
    if min(map(len, table)) < 2 or not usable(table, log):
        return None
    table, rounding = on_scale(table, log)
    change = contrast(table, weights, pooled=False)
    return change if change.half() > rounding else None
