"""results/claims.py: intervals against simulation, and the verdict rule on made-up sweeps with
known answers."""

import math
from dataclasses import asdict

import numpy as np
import pytest

from model import GPTConfig
from results import claims
from results.claims import interval, judge, judge_sweep
from results.runs import Run

# Intervals ---------------------------------------------------------------------------------------

STUDENT_T = [  # level, degrees of freedom, quantile from the tables
    (0.95, 1, 12.706),
    (0.95, 2, 4.303),
    (0.95, 4, 2.776),
    (0.95, 30, 2.042),
    (0.99, 2, 9.925),
    (0.9875, 2, 8.860),
]


@pytest.mark.parametrize("level, df, quantile", STUDENT_T)
def test_student_t_against_the_tables(level, df, quantile):
    assert claims.student_t(level, df) == pytest.approx(quantile, rel=1e-3)


@pytest.mark.parametrize("n, level", [(2, 0.95), (3, 0.95), (5, 0.95), (3, 0.8)])
def test_intervals_cover_the_truth_as_often_as_they_say(n, level):
    rng = np.random.default_rng(0)
    hits = []
    for _ in range(3000):
        mean, half = interval(rng.normal(7, 3, size=n), level)
        hits.append(abs(mean - 7) <= half)
    assert np.mean(hits) == pytest.approx(level, abs=0.015)


def test_one_seed_has_no_interval():
    assert interval([3.0]) == (3.0, math.inf)


# The rule ----------------------------------------------------------------------------------------


def noisy(means, n_seeds, sd=0.02, seed=0):
    """A table (n_points, n_seeds) around these means."""
    noise = np.random.default_rng(seed).normal(size=(len(means), n_seeds))
    return np.array(means)[:, None] + sd * noise


KNOWN = [  # shape, the points' means, verdict
    ("rises", [1, 2, 3, 4], "supported"),
    ("rises", [4, 3, 2, 1], "opposed"),
    ("falls", [4, 3, 2, 1], "supported"),
    ("falls", [1, 2, 3, 4], "opposed"),
    ("negative", [9, 9, -1], "supported"),
    ("negative", [-9, -9, 1], "opposed"),
    ("last highest", [1, 2, 0, 3], "supported"),
    ("last highest", [1, 3, 0, 2], "opposed"),
    ("last lowest", [2, 3, 0, 1], "supported"),
    ("last lowest", [1, 3, 0, 2], "opposed"),
    ("highest inside", [1, 3, 2, 1], "supported"),
    ("highest inside", [3, 2, 2, 1], "opposed"),
    ("highest inside", [1, 3, 3], "undecided"),
    ("lowest inside", [3, 1, 2, 3], "supported"),
    ("lowest inside", [1, 2, 2, 3], "opposed"),
    ("lowest inside", [1, 2], "undecided"),
    ("highest inside", [1], "undecided"),
    ("no worse", [1.0, 1.3, 0.9], "supported"),
    ("no worse", [1.0, 1.0, 1.2], "opposed"),
]


@pytest.mark.parametrize("shape, means, verdict", KNOWN)
def test_verdicts_on_sweeps_with_known_answers(shape, means, verdict):
    assert judge(noisy(means, 4), shape)[0] == verdict


@pytest.mark.parametrize("shape, means, verdict", KNOWN)
def test_neither_one_seed_nor_three_that_scatter_decide(shape, means, verdict):
    assert judge(noisy(means, 1), shape)[0] == "undecided"
    assert judge(noisy(means, 3, sd=50), shape)[0] == "undecided"


def test_effects_are_of_logarithms():
    verdict, effect, half = judge(np.exp(noisy([0, 2, 4], 3)), "rises", log=True)
    assert verdict == "supported"
    assert effect == pytest.approx(2, abs=0.05)
    assert half < 0.2


def test_no_worse_is_a_relative_change_also_with_logarithms():
    verdict, effect, _ = judge(noisy([10.0, 12.0], 3, sd=0.001), "no worse", log=True)
    assert verdict == "opposed"
    assert effect == pytest.approx(0.2, abs=0.001)


@pytest.mark.parametrize("value", [1 / 16, 1 / 31, 0.1, 7.3])
@pytest.mark.parametrize("n_points", [1, 2, 4, 7])
def test_what_never_moves_has_no_effect(value, n_points):
    """Rounding is no effect, however alike the seeds."""
    table = np.full((n_points, 3), value)
    shapes = ["rises", "falls"]
    if n_points > 1:
        shapes += ["last lowest", "highest inside"]
    for shape in shapes:
        assert judge(table, shape)[0] == "undecided"
    assert claims.slope([value] * n_points) == 0.0


def test_slope_is_that_of_least_squares():
    values = np.random.default_rng(0).normal(size=9)
    by_fit = np.polyfit(np.arange(9), values, 1)[0]
    assert claims.slope(values) == pytest.approx(by_fit, rel=1e-12)


SHAPES_AROUND_ZERO = sorted(set(claims.RULES) - {"no worse"})


@pytest.mark.parametrize("shape", SHAPES_AROUND_ZERO)
def test_noise_around_zero_is_seldom_called_an_effect(shape):
    verdicts = [judge(noisy(np.zeros(5), 3, sd=0.1, seed=seed), shape)[0] for seed in range(400)]
    assert 1 - verdicts.count("undecided") / 400 <= 0.075


def test_every_claim_has_a_rule_and_a_metric():
    for claim in claims.CLAIMS:
        assert claim.shape in claims.RULES
        assert claim.metric in claims.CLAIM_METRICS


def test_perplexity_on_the_same_targets():
    """An older run, and one whose context is too short for it, has none."""
    losses = {"own_context": math.log(8), "short_context": math.log(9)}
    both, *without = (
        Run("", {}, {}, [], analysis) for analysis in ({"same_targets": losses}, {}, None)
    )
    for name, expected in {"own context": 8, "32 to 63 keys": 9}.items():
        metric = claims.CLAIM_METRICS[f"perplexity, {name}"]
        assert metric(both) == pytest.approx(expected)
        assert [metric(run) for run in without] == [None, None]


def test_seeds_that_all_say_the_same_are_no_certainty():
    """A score of few steps, as usefulness is, repeats exactly; and sums round, here to -1.6e-18."""
    assert judge([[0.75] * 3, [0.25] * 3], "falls")[0] == "undecided"
    to_and_fro = np.array([3, 2, 1, 1, 2, 3]) / 6
    assert judge(np.repeat(to_and_fro[:, None], 3, axis=1), "falls")[0] == "undecided"


# Which claims a sweep speaks to ------------------------------------------------------------------


def made_up_run(seed=0, variance=1.0, perplexity=10.0, accuracy=None, rung=None, **config):
    """A run with these measurements, and 1 for all others."""
    model = asdict(GPTConfig(block_size=16, window=4, stride=4, topk=4))
    training = {"weight_decay": 0.1, "batch_size": 4, "gradient_accumulation_steps": 1}
    training |= {"learning_rate": 1e-3, "seed": seed}
    varies = {"point": None, "rung": rung, "place": 0, "options": ["seed"]}
    analysis = {
        "causal": 1,
        "permutation": 1,
        "usefulness": {"held_out": 1},
        "n_eff_share": 1,
        "jacobian": {"deviation": [1, 0.5]},
        "densities": {"weight": 1, "attention": 1, "key_value": 1, "expert": 1},
        "choices": {"accuracy": accuracy},
    }
    return Run(
        name="",
        config={**model, **training, **config, "sweep": varies},
        summary={"perplexity": perplexity, "last_layer_variance": variance},
        log=[{"step": 0, "val_loss": 5.5, "variance": [1, 2]}],
        analysis=analysis,
    )


def three_seeds(**options):
    return [made_up_run(seed, **options) for seed in range(3)]


def names(points):
    return {verdict.claim.name for verdict in judge_sweep(points)}


def changing(option, *values):
    """A sweep of one option alone."""
    return {str(value): three_seeds(**{option: value}) for value in values}


SWEPT = [
    ("n_layer", [4, 8], {"C1", "C2", "C3", "C3+"}),
    ("weight_decay", [0.0, 0.1, 1.0], {"C4", "C4+"}),
    ("n_kv_head", [1, 4], {"C6", "C6+"}),
    ("n_expert", [0, 8], {"C7", "C7+"}),
]


@pytest.mark.parametrize("option, values, expected", SWEPT)
def test_claims_speak_of_what_was_swept_alone(option, values, expected):
    assert names(changing(option, *values)) == expected


def test_what_is_tied_to_the_option_may_change_with_it():
    contexts = {str(T): three_seeds(block_size=T, batch_size=64 // T) for T in (16, 32)}
    assert names(contexts) == {"C5", "C5+"}
    masks = {str(w): three_seeds(attention="window", window=w) for w in (2, 4)}
    assert names(masks) == {"C9", "C9+", "C10"}


def test_where_a_run_went_may_change_with_the_option():
    depths = {str(L): three_seeds(n_layer=L, out_dir=f"out/{L}") for L in (4, 8)}
    assert names(depths) == {"C1", "C2", "C3", "C3+"}


def test_claims_keep_silent_where_two_things_changed_at_once():
    depths = {str(L): three_seeds(n_layer=L, learning_rate=1 / L) for L in (4, 8)}
    assert names(depths) == set()


def test_claims_keep_silent_on_a_single_point():
    assert names({"one": three_seeds()}) == set()


def test_a_sweep_is_judged_in_the_order_of_its_option():
    variance = {16: 4.0, 2: 1.0, 8: 3.0, 4: 2.0}  # given out of order
    points = {
        str(L): [made_up_run(seed, math.exp(v + 0.01 * seed * v), n_layer=L) for seed in range(3)]
        for L, v in variance.items()
    }
    first = judge_sweep(points)[0]
    assert (first.claim.name, first.verdict) == ("C1", "supported")
    assert first.effect == pytest.approx(1.01)  # of seeds 1, 1.01 and 1.02


def test_a_sweep_is_judged_on_the_seeds_that_all_points_have():
    points = changing("n_layer", 2, 4, 8)
    assert judge_sweep(points)[0].n_seeds == 3
    points["4"] = points["4"][1:]
    assert judge_sweep(points)[0].n_seeds == 2


MASKS = [  # options, and the (query, key) pairs that they leave of 16 * 17 / 2
    ({}, 136),
    ({"attention": "window", "window": 1}, 16),
    ({"attention": "topk", "topk": 2}, 31),
]


@pytest.mark.parametrize("options, pairs", MASKS)
def test_mask_density_counts_causal_pairs(options, pairs):
    run = made_up_run(**options)
    assert claims.VALUE_OF["mask density"](run) == pytest.approx(pairs / 136)


# Sweeps that cross an option with the learning rate ----------------------------------------------

BEST_RATE = {4: 3e-3, 8: 1e-3, 16: 1e-3}


def crossed(rates=(1e-3, 3e-3), **also):
    """Depths times rates: at the best rates (small for the deep) the variance falls with depth, at
    either single rate it rises."""
    points = {}
    for L in BEST_RATE:
        for rate in rates:
            is_best = rate == BEST_RATE[L]
            variance, perplexity = (1 / L, 10) if is_best else (L, 11)
            points[f"n_layer={L},learning_rate={rate}"] = [
                made_up_run(
                    seed,
                    variance + 0.001 * seed,
                    perplexity,
                    n_layer=L,
                    learning_rate=rate,
                    **also,
                )
                for seed in range(3)
            ]
    return points


def test_every_depth_speaks_at_its_best_rate():
    first = judge_sweep(crossed())[0]
    assert (first.claim.name, first.verdict) == ("C1", "opposed")


@pytest.mark.parametrize("rate", [2e-3, 5e-3])  # nobody's best
def test_at_a_single_rate_there_is_nothing_to_choose(rate):
    assert judge_sweep(crossed(rates=[rate]))[0].verdict == "supported"


def test_no_rate_speaks_where_not_every_depth_was_tried_at_every_rate():
    points = crossed()
    del points["n_layer=8,learning_rate=0.001"]
    assert names(points) == set()


def test_no_rate_speaks_for_half_of_its_points_where_a_third_option_varies():
    twice = {
        f"weight_decay={decay},{name}": runs
        for decay in (0.1, 0.3)
        for name, runs in crossed(weight_decay=decay).items()
    }
    assert names(twice) == set()


def diverged(n_layer, rate, seeds=range(3)):
    return [
        Run("", made_up_run(seed, n_layer=n_layer, learning_rate=rate).config, {}, [], None)
        for seed in seeds
    ]


@pytest.mark.parametrize("n_lost", [1, 3])  # of the point's three seeds
def test_a_rate_that_diverged_leaves_the_others_to_speak(n_lost):
    """At its best rate 8 blocks have a variance of 1/8, at the rate that is left one of 8."""
    points, lost = crossed(), diverged(8, 1e-3, range(n_lost))
    point = "n_layer=8,learning_rate=0.001"
    points[point] = points[point][n_lost:]
    if not points[point]:
        del points[point]
    first, *others = judge_sweep(points, lost)
    assert {verdict.claim.name for verdict in (first, *others)} == {"C1", "C2", "C3", "C3+"}
    assert first.n_seeds == 3
    logs = np.log([[1 / 4 + 0.001 * s, 8 + 0.001 * s, 1 / 16 + 0.001 * s] for s in range(3)])
    assert first.effect == pytest.approx((logs[:, 2] - logs[:, 0]).mean() / 2)
    assert claims.without_diverged_rates(points, lost) == [("n_layer", 8, 1e-3)]


def test_a_value_that_lacks_another_rate_besides_keeps_the_claims_silent():
    points = crossed(rates=(1e-3, 2e-3, 3e-3))
    del points["n_layer=8,learning_rate=0.001"], points["n_layer=4,learning_rate=0.002"]
    assert judge_sweep(points, diverged(8, 1e-3)) == []
    assert claims.without_diverged_rates(points, diverged(8, 1e-3)) == []


def test_a_value_without_any_rate_left_is_not_among_those_that_speak():
    points = {name: runs for name, runs in crossed().items() if "n_layer=8," not in name}
    lost = diverged(8, 1e-3) + diverged(8, 3e-3)
    assert judge_sweep(points, lost) == judge_sweep(points)
    assert claims.without_diverged_rates(points, lost) == [("n_layer", 8, r) for r in (1e-3, 3e-3)]


def test_where_no_rate_is_chosen_none_is_left_out():
    points = changing("n_layer", 4, 8)
    assert judge_sweep(points, diverged(16, 1e-3)) == judge_sweep(points)
    assert claims.without_diverged_rates(points, diverged(16, 1e-3)) == []


# Ladders -----------------------------------------------------------------------------------------


def test_only_the_rungs_of_a_ladder_are_climbed():
    """Whatever stands beside it, here with the best accuracy of all."""
    ladder = {"0-shallow": (0, 0.3), "1-deep": (1, 0.2), "2-all": (2, 0.4), "scaled": (None, 0.9)}
    points = {}
    for name, (rung, accuracy) in ladder.items():
        depth = 4 if rung == 0 else 8
        points[name] = [
            made_up_run(seed, accuracy=accuracy * (1 + 0.01 * seed), rung=rung, n_layer=depth)
            for seed in range(3)
        ]
    of_metric = {verdict.claim.metric: verdict for verdict in judge_sweep(points)}
    assert of_metric["choice accuracy"].verdict == "supported"
    assert of_metric["choice accuracy"].effect == pytest.approx(0.101)


# Older runs --------------------------------------------------------------------------------------


def test_an_option_that_only_newer_runs_have_varies_between_old_and_new():
    old, new = (Run("", {"seed": 0, **more}, {}, [], None) for more in ({"a": 1}, {"b": 1}))
    assert claims.varying_options([old, old]) == set()
    assert claims.varying_options([old, new]) == {"a", "b"}


def test_what_an_older_run_lacks_is_none():
    run = Run("", {}, {}, [], {"growth": {"growth": 3.0}})
    assert claims.entry("growth", "growth")(run) == 3
    assert claims.entry("growth", "exponent")(run) is None
    assert claims.entry("text", "gap")(run) is None


# What a score resolves ---------------------------------------------------------------------------


def scored(*pairs):
    """Runs of a point, by (score, its error over sequences)."""
    return [
        Run("", {}, {}, [], {"causal": score, "standard_errors": {"causal": error}})
        for score, error in pairs
    ]


def test_resolution_by_hand():
    points = {"a": scored((1.0, 0.3), (3.0, 0.4)), "b": scored((6.0, 0.0), (6.0, 0.5))}
    over_sequences, over_seeds, over_points = claims.resolution(
        points, *claims.with_error("causal")
    )
    assert over_sequences == pytest.approx(math.sqrt((0.09 + 0.16 + 0.25) / 4))
    assert over_seeds == pytest.approx(1)  # squares 1, 1, 0, 0 of two degrees of freedom
    assert over_points == pytest.approx(4 / math.sqrt(2))


def test_resolution_of_too_few():
    functions = claims.with_error("causal")
    numbers = claims.resolution({"a": scored((1.0, 0.3))}, *functions)
    assert [math.isnan(number) for number in numbers] == [False, True, True]
    older = [Run("", {}, {}, [], {"causal": 1.0})]
    assert claims.resolution({"a": scored((1.0, 0.3)), "b": older}, *functions) is None
