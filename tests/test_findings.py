"""What README's findings say in words, from the published runs: where one of these fails, the
sentence that it stands for is no longer true."""

import math
from functools import cache

import numpy as np
import pytest

from conftest import REPOSITORY
from results.report import sweep_of
from results.runs import read_runs
from results.verdicts import difference


@cache
def points_of(sweep):
    return sweep_of(read_runs(REPOSITORY / f"results/{sweep}.json")).points


MEASURES = {
    "perplexity": lambda run: run.summary["perplexity"],
    "training loss": lambda run: run.analysis["text"]["training_loss"],
    "variance": lambda run: run.summary["last_layer_variance"],
    "causal": lambda run: run.analysis["causal"],
    "swap": lambda run: run.analysis["permutation"],
    "typical block": lambda run: run.analysis["removal_use"]["geometric_mean"],
    "parameters": lambda run: run.summary["params"],
}


def times(sweep, point, against, measure):
    """(how many times as large the geometric mean over seeds is, whether its 95 % interval is
    without 1), each point with its own spread, as in a report's contrasts."""
    logs = [
        np.log([MEASURES[measure](run) for run in points_of(sweep)[name]])
        for name in (point, against)
    ]
    change = difference(logs, 0, 1, pooled=False)
    return math.exp(change.effect), change.excludes_zero()


A_QUARTER, A_TENTH_LESS, ABOUT_HALF_MORE = (0.2, 0.3), (0.88, 0.91), (1.4, 1.6)
IN_WORDS = [  # sweep, point, against, measure, the words as (more than, less than)
    ("depth", "n_layer=32", "n_layer=16", "typical block", A_QUARTER),
    ("depth", "n_layer=32", "n_layer=16", "perplexity", (0, 1)),
    ("wide_depth", "n_layer=32", "n_layer=16", "perplexity", (1, 2)),
    ("wide_depth", "n_layer=32", "n_layer=16", "training loss", (1, 2)),
    ("weight_decay", "weight_decay=0.3", "weight_decay=0", "variance", (0, 0.1)),
    ("weight_decay", "weight_decay=3", "weight_decay=0", "swap", (0, 0.5)),
    ("weight_decay", "weight_decay=3", "weight_decay=0", "perplexity", (1, 2)),
    ("context", "context-4096", "context-512", "swap", (1, 2)),
    ("moe", "n_expert=4", "n_expert=0", "variance", (0, 1)),
    ("moe", "n_expert=64", "n_expert=0", "typical block", ABOUT_HALF_MORE),
    ("moe", "n_expert=64", "n_expert=0", "parameters", (16.5, 17.5)),
    ("moe_gate", "experts-normalised", "experts", "variance", (2, 3)),
    ("recipe", "5-moe", "1-deep", "perplexity", A_TENTH_LESS),
    ("recipe", "5-moe", "only-moe", "perplexity", (0, 1)),
    ("tokens", "12.5M,n_expert=16", "12.5M,n_expert=0", "causal", (1, 2)),
    ("tokens", "12.5M,n_expert=16", "12.5M,n_expert=0", "typical block", (1, 2)),
    ("tokens", "25M,n_expert=16", "25M,n_expert=0", "variance", (1, 3)),
    ("tokens", "200M,n_expert=16", "200M,n_expert=0", "swap", (0, 1)),
]


@pytest.mark.parametrize("sweep, point, against, measure, words", IN_WORDS)
def test_findings_in_words(sweep, point, against, measure, words):
    factor, is_decided = times(sweep, point, against, measure)
    assert words[0] < factor < words[1]
    assert is_decided


def test_experts_alone_are_more_than_half_of_what_the_recipe_gains():
    whole, alone = (
        math.log(times("recipe", point, "1-deep", "perplexity")[0])
        for point in ("5-moe", "only-moe")
    )
    assert 0.5 < alone / whole < 1


def test_200_million_tokens_undo_what_experts_do_to_a_typical_block():
    factor, _ = times("tokens", "200M,n_expert=16", "200M,n_expert=0", "typical block")
    assert factor < 1


def test_one_wide_run_with_experts_writes_forty_times_as_much_in_block_1():
    runs = points_of("wide_moe")["n_expert=16"]
    first = sorted(run.analysis["variance"]["residual"][1] for run in runs)
    assert len(first) == 3
    assert 35 < first[2] / np.mean(first[:2]) < 45
    odd = max(runs, key=lambda run: run.analysis["variance"]["residual"][1])
    assert odd.summary["perplexity"] == min(run.summary["perplexity"] for run in runs)
