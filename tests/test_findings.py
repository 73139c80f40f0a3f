"""What README's findings say in words, from the published runs: where one of these fails, the
sentence that it stands for is no longer true."""

import math
from functools import cache

import numpy as np
import pytest

from conftest import REPOSITORY
from results.claims import CLAIM_METRICS
from results.report import sweep_of
from results.runs import read_runs
from results.scores import pair_mean, typical_worth, worths
from results.verdicts import difference


@cache
def points_in(sweep):
    return sweep_of(read_runs(REPOSITORY / f"results/{sweep}.json")).points


def points_of(sweep):
    """{point: runs}; of half_rate_moe those of moe, too, as "n_expert=0 at 0.002"."""
    if sweep != "half_rate_moe":
        return points_in(sweep)
    full = {f"{name} at 0.002": runs for name, runs in points_in("moe").items()}
    return points_in(sweep) | full


MEASURES = {
    "perplexity": lambda run: run.summary["perplexity"],
    "training loss": lambda run: run.analysis["text"]["training_loss"],
    "variance": lambda run: run.summary["last_layer_variance"],
    "causal": lambda run: run.analysis["causal"],
    "swap": lambda run: run.analysis["permutation"],
    "typical block": lambda run: run.analysis["removal_use"]["geometric_mean"],
    "parameters": lambda run: run.summary["params"],
    "perplexity, short context": CLAIM_METRICS["perplexity, 32 to 63 keys"],
    "BLiMP": lambda run: run.analysis["blimp"]["accuracy"],
    "growth": CLAIM_METRICS["growth"],
    "block 2": lambda run: run.analysis["prune_ratios"][1] - 1,
    "first third but block 2": lambda run: worth(run, 3, 6),
    "last block": lambda run: run.analysis["prune_ratios"][-1] - 1,
    "last third but the last block": lambda run: worth(run, 12, 15),
    "swap but of blocks 1 and 2": lambda run: swaps_from(run, 3),
    "first third": CLAIM_METRICS["worth, early"],
    "last third": CLAIM_METRICS["worth, late"],
    "causal without block 1": CLAIM_METRICS["causal without block 1"],
    "swap without block 1": CLAIM_METRICS["permutation without block 1"],
}


def worth(run, first, last):
    """Geometric mean of u, as the thirds' of 16 blocks."""
    return typical_worth(worths(run.analysis["prune_ratios"])[first - 1 : last])


def swaps_from(run, first):
    """Mean of the permutation matrix over pairs of this and later blocks."""
    return pair_mean(np.array(run.analysis["permutation_matrix"])[first - 1 :, first - 1 :])


def times(sweep, point, against, measure):
    """(how many times as large the geometric mean over seeds is, whether its 95 % interval is
    without 1)."""
    change = log_change(sweep, point, against, measure)
    return math.exp(change.effect), change.excludes_zero()


def log_change(sweep, point, against, measure):
    """The Contrast of the logarithms, each point with its own spread, as in a report's."""
    logs = [
        np.log([MEASURES[measure](run) for run in points_of(sweep)[name]])
        for name in (point, against)
    ]
    return difference(logs, 0, 1, pooled=False)


A_QUARTER, A_TENTH_LESS, TWO_OR_THREE_TIMES = (0.2, 0.3), (0.88, 0.91), (1.8, 3.5)
A_FIFTH, NEARLY_HALF, A_FIFTH_LESS = (0.15, 0.25), (0.4, 0.5), (0.75, 0.85)
A_FIFTH_MORE, A_THIRD_MORE = (1.15, 1.25), (1.28, 1.38)
TWO_TO_FOUR_TIMES, A_TWELFTH = (1.8, 4.2), (1 / 13, 1 / 11)
WITH_64 = ("moe", "n_expert=64", "n_expert=0")
TWICE_DENSE, TWICE_16 = (
    ("tokens", *(f"{n},n_expert={E}" for n in ("200M", "100M"))) for E in (0, 16)
)
RATES = (0.001, 0.002)
HALF_RATE = ("half_rate_moe", "n_expert=0", "n_expert=0 at 0.002")  # of the dense model
IN_WORDS = [  # sweep, point, against, measure, the words as (more than, less than)
    ("depth", "n_layer=32", "n_layer=16", "typical block", A_QUARTER),
    ("depth", "n_layer=32", "n_layer=16", "perplexity", (0, 1)),
    ("depth", "n_layer=32", "n_layer=16", "first third", A_FIFTH),
    ("depth", "n_layer=32", "n_layer=16", "last third", NEARLY_HALF),
    ("wide_depth", "n_layer=32", "n_layer=16", "perplexity", (1, 2)),
    ("wide_depth", "n_layer=32", "n_layer=16", "training loss", (1, 2)),
    ("weight_decay", "weight_decay=0.3", "weight_decay=0", "variance", (0, 0.1)),
    ("weight_decay", "weight_decay=3", "weight_decay=0", "swap", (0, 0.5)),
    ("weight_decay", "weight_decay=3", "weight_decay=0", "typical block", (0, 1)),
    ("weight_decay", "weight_decay=3", "weight_decay=0", "perplexity", (1, 2)),
    ("weight_decay", "weight_decay=3", "weight_decay=0", "swap without block 1", A_FIFTH_LESS),
    ("context", "context-512", "context-64", "swap", (1, 2)),
    ("context", "context-4096", "context-512", "swap", (1, 2)),
    ("moe", "n_expert=4", "n_expert=0", "variance", (0, 1)),
    ("moe", "n_expert=4", "n_expert=0", "last third", (0, 1)),
    ("moe", "n_expert=16", "n_expert=0", "first third", TWO_OR_THREE_TIMES),
    ("moe", "n_expert=16", "n_expert=0", "last third", (0, 1)),
    ("moe", "n_expert=16", "n_expert=0", "causal without block 1", (1, 2)),
    ("moe", "n_expert=64", "n_expert=0", "first third", TWO_OR_THREE_TIMES),
    ("moe", "n_expert=64", "n_expert=0", "causal without block 1", (1, 2)),
    ("wide_moe", "n_expert=16", "n_expert=0", "first third", TWO_TO_FOUR_TIMES),
    ("wide_moe", "n_expert=16", "n_expert=0", "causal without block 1", (1, 2)),
    ("recipe", "5-moe", "1-deep", "last third", (0, 1)),
    ("recipe", "only-moe", "1-deep", "last third", (0, 1)),
    ("moe", "n_expert=64", "n_expert=0", "parameters", (16.5, 17.5)),
    ("moe_gate", "experts-normalised", "experts", "variance", (2, 3)),
    ("recipe", "5-moe", "1-deep", "perplexity", A_TENTH_LESS),
    ("recipe", "5-moe", "only-moe", "perplexity", (0, 1)),
    ("tokens", "12.5M,n_expert=16", "12.5M,n_expert=0", "causal", (1, 2)),
    ("tokens", "12.5M,n_expert=16", "12.5M,n_expert=0", "typical block", (1, 2)),
    ("tokens", "25M,n_expert=16", "25M,n_expert=0", "typical block", (1, 2)),
    ("tokens", "50M,n_expert=16", "50M,n_expert=0", "typical block", (1, 2)),
    *(
        ("tokens", f"{tokens},n_expert=16", f"{tokens},n_expert=0", "first third", (1, 5))
        for tokens in ("12.5M", "25M", "50M")
    ),
    ("tokens", "25M,n_expert=16", "25M,n_expert=0", "variance", (1, 3)),
    ("tokens", "200M,n_expert=16", "200M,n_expert=0", "swap", (0, 1)),
    (*HALF_RATE, "first third", TWO_OR_THREE_TIMES),
    (*HALF_RATE, "variance", A_TWELFTH),
    (*HALF_RATE, "perplexity", (1, 2)),
    (*HALF_RATE, "causal without block 1", A_THIRD_MORE),
    (*HALF_RATE, "swap without block 1", A_THIRD_MORE),
    ("half_rate_moe", "n_expert=64", "n_expert=64 at 0.002", "typical block", (0.85, 0.95)),
    ("half_rate_moe", "n_expert=64", "n_expert=0", "perplexity", (0, 1)),
    ("half_rate_moe", "n_expert=64", "n_expert=0", "causal", (0, 1)),
    ("half_rate_moe", "n_expert=64", "n_expert=0", "swap without block 1", (1, 2)),
    ("gqa", "n_kv_head=1", "n_kv_head=4", "first third", (1.8, 2.2)),
    ("gqa", "n_kv_head=1", "n_kv_head=4", "typical block", A_FIFTH_MORE),
    (*HALF_RATE, "block 2", (8, 13)),
    (*WITH_64, "block 2", (8, 20)),
    (*WITH_64, "first third but block 2", (1, 2.5)),
    (*WITH_64, "swap without block 1", (2, 2.5)),
    (*WITH_64, "swap but of blocks 1 and 2", (1.5, 2)),
    ("moe", "n_expert=16", "n_expert=0", "first third but block 2", (1.5, 2.5)),
    *(("moe", f"n_expert={E}", "n_expert=0", "last block", (0.5, 0.7)) for E in (4, 16, 64)),
    ("rates", *(f"n_layer=16,learning_rate={rate}" for rate in RATES), "first third", (2, 3)),
    (*TWICE_DENSE, "first third", TWO_OR_THREE_TIMES),
    (*TWICE_DENSE, "causal without block 1", (1.2, 1.5)),
    (*TWICE_DENSE, "swap without block 1", (1.5, 1.9)),
    (*TWICE_DENSE, "typical block", (1.4, 1.7)),
    (*TWICE_DENSE, "perplexity", (0.88, 0.93)),
    ("context", "context-4096", "context-64", "BLiMP", (0.85, 1)),
    ("half_rate_context", "context-4096", "context-64", "BLiMP", (0.85, 1)),
    ("recipe", "top-half-rate", "deep-half-rate", "perplexity", A_TENTH_LESS),
    ("recipe", "top-double-rate", "deep-double-rate", "perplexity", A_TENTH_LESS),
    ("recipe", "deep-half-rate", "1-deep", "typical block", (1, 2)),
    ("recipe", "deep-half-rate", "1-deep", "perplexity", (1, 2)),
    ("recipe", "top-half-rate", "deep-half-rate", "growth", (0, 1)),
    ("recipe", "top-double-rate", "deep-double-rate", "growth", (1, 2)),
    ("recipe", "top-half-rate", "deep-half-rate", "last third", (0, 1)),
    ("recipe", "top-double-rate", "deep-double-rate", "last third", (0, 1)),
]


@pytest.mark.parametrize("sweep, point, against, measure, words", IN_WORDS)
def test_findings_in_words(sweep, point, against, measure, words):
    factor, is_decided = times(sweep, point, against, measure)
    assert words[0] < factor < words[1]
    assert is_decided


UNDECIDED = [  # what is said to be open, not seen, or nothing
    ("moe", "n_expert=64", "n_expert=0", "last third"),
    ("wide_moe", "n_expert=16", "n_expert=0", "perplexity"),
    ("wide_moe", "n_expert=16", "n_expert=0", "last third"),
    ("weight_decay", "weight_decay=3", "weight_decay=0", "first third"),
    ("weight_decay", "weight_decay=3", "weight_decay=0", "last third"),
    ("recipe", "only-gqa", "1-deep", "typical block"),
    ("recipe", "5-moe", "only-moe", "perplexity, short context"),
    ("tokens", "200M,n_expert=16", "200M,n_expert=0", "first third"),
    ("tokens", "200M,n_expert=16", "200M,n_expert=0", "typical block"),
    *(
        ("half_rate_moe", "n_expert=64", "n_expert=0", measure)
        for measure in ("first third", "last third", "typical block", "causal without block 1")
    ),
    (*HALF_RATE, "first third but block 2"),
    (*HALF_RATE, "swap but of blocks 1 and 2"),
    ("half_rate_moe", "n_expert=64", "n_expert=0", "growth"),
    (*TWICE_16, "first third"),
    ("rates", *(f"n_layer=16,learning_rate={rate}" for rate in (0.004, 0.002)), "first third"),
    ("moe", "n_expert=4", "n_expert=0", "last third but the last block"),
    ("moe", "n_expert=16", "n_expert=0", "last third but the last block"),
    ("gqa", "n_kv_head=1", "n_kv_head=4", "first third but block 2"),
    ("recipe", "5-moe", "1-deep", "growth"),
    ("half_rate_moe", "n_expert=64 at 0.002", "n_expert=64", "first third"),
    ("half_rate_moe", "n_expert=64 at 0.002", "n_expert=64", "causal without block 1"),
    ("half_rate_moe", "n_expert=64 at 0.002", "n_expert=64", "swap without block 1"),
    ("gqa", "n_kv_head=2", "n_kv_head=4", "first third"),
    *(
        ("gqa", "n_kv_head=1", "n_kv_head=4", measure)
        for measure in ("variance", "perplexity", "last third")
    ),
]


@pytest.mark.parametrize("sweep, point, against, measure", UNDECIDED)
def test_findings_that_are_open(sweep, point, against, measure):
    _, is_decided = times(sweep, point, against, measure)
    assert not is_decided


def test_normalised_gates_have_a_perplexity_within_2_percent():
    change = log_change("moe_gate", "experts-normalised", "experts", "perplexity")
    assert abs(change.effect) + change.half() < math.log(1.02)


def test_of_what_the_recipe_gains_three_fifths_are_by_experts_alone():
    whole, alone = (
        math.log(times("recipe", point, "1-deep", "perplexity")[0])
        for point in ("5-moe", "only-moe")
    )
    assert 0.55 < alone / whole < 0.65


@pytest.mark.parametrize("n_layer", [16, 32])
def test_what_can_go_stands_just_behind_block_1_and_block_1_is_worth_most(n_layer):
    runs = points_of("depth")[f"n_layer={n_layer}"]
    growth = np.mean([run.analysis["prune_ratios"] for run in runs], axis=0) - 1
    assert 1 <= np.argmin(growth) < n_layer / 3
    assert growth[0] > growth[1:].sum()


def test_one_wide_run_with_experts_writes_forty_times_as_much_in_block_1():
    runs = points_of("wide_moe")["n_expert=16"]
    first = sorted(run.analysis["variance"]["residual"][1] for run in runs)
    assert len(first) == 3
    assert 35 < first[2] / np.mean(first[:2]) < 45
    odd = max(runs, key=lambda run: run.analysis["variance"]["residual"][1])
    assert odd.summary["perplexity"] == min(run.summary["perplexity"] for run in runs)
