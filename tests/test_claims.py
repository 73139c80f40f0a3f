"""results/claims.py: metrics by hand, and which claims made-up sweeps speak to."""

import math
from dataclasses import asdict

import numpy as np
import pytest

import train
from configs.read import TrainConfig
from model import GPTConfig
from results import claims
from results.claims import judge_sweep
from results.runs import Run
from results.verdicts import SHAPES


def test_every_claim_has_a_rule_and_a_metric():
    for claim in claims.CLAIMS:
        assert claim.shape in SHAPES
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


# Without block 1 ---------------------------------------------------------------------------------


def scored_at_random(L, seed=0):
    """A run of L blocks: a causal matrix, whose lower half must not count, one of swaps, deviations
    and ratios, of which the last is no worth at all."""
    rng = np.random.default_rng(seed)
    swaps = rng.uniform(0.1, 1, (L, L))
    analysis = {
        "causal_matrix": rng.uniform(0.1, 1, (L, L)).tolist(),
        "permutation_matrix": (swaps + swaps.T).tolist(),
        "jacobian": {"deviation": rng.uniform(0.1, 1, L).tolist()},
        "prune_ratios": [*rng.uniform(1.01, 2, L - 1), 0.9],
    }
    return Run("", {}, {}, [], analysis)


@pytest.mark.parametrize("L", [3, 4, 8, 17])
@pytest.mark.parametrize("score", ["causal", "permutation"])
def test_pairs_without_block_1(L, score):
    """The mean of those that block 1 is none of, and what the others are of the sum of all."""
    run = scored_at_random(L)
    matrix = run.analysis[f"{score}_matrix"]
    later, all_pairs = [], []
    for a in range(L):
        for b in range(a + 1, L):
            all_pairs.append(matrix[a][b])
            if a > 0:
                later.append(matrix[a][b])
    mean = sum(later) / len(later)
    assert claims.CLAIM_METRICS[f"{score} without block 1"](run) == pytest.approx(mean)
    share = 1 - sum(later) / sum(all_pairs)
    assert claims.SHARE_OF_BLOCK_1[score](run) == pytest.approx(share)


@pytest.mark.parametrize("L", [3, 8])
def test_jacobians_without_block_1(L):
    run = scored_at_random(L)
    first, *later = run.analysis["jacobian"]["deviation"]
    mean = claims.CLAIM_METRICS["Jacobian deviation without block 1"](run)
    assert mean == pytest.approx(sum(later) / len(later))
    share = claims.SHARE_OF_BLOCK_1["the Jacobian deviation"](run)
    assert share == pytest.approx(first / (first + sum(later)))
    fitted = np.polyfit(np.arange(2, L + 1), np.log(later), 1)[0]
    assert claims.CLAIM_METRICS["slope without block 1"](run) == pytest.approx(fitted)


def test_a_slope_that_is_block_1_alone_is_none_without_it():
    run = Run("", {}, {}, [], {"jacobian": {"deviation": [0.8, 0.1, 0.1, 0.1]}})
    assert claims.slope_of_log_deviation(run) < -0.5
    assert claims.slope_without_block_1(run) == 0


@pytest.mark.parametrize("L", [4, 8, 17])
def test_worth_by_place(L):
    """A product of the blocks' worths, and its root; none at all counts as 1e-4."""
    run = scored_at_random(L)
    u = {l: run.analysis["prune_ratios"][l - 1] - 1 for l in range(1, L)} | {L: 1e-4}
    places = {"early": [], "middle": [], "late": [], "block 1": [1], "last block": [L]}
    for l in range(2, L + 1):
        sizes = [math.ceil((L - 1 - i) / 3) for i in range(3)]
        place = "early" if l < 2 + sizes[0] else "middle" if l < 2 + sum(sizes[:2]) else "late"
        places[place].append(l)
    for place, blocks in places.items():
        expected = math.prod(u[l] for l in blocks) ** (1 / len(blocks))
        assert claims.BY_PLACE[f"u, {place}"](run) == pytest.approx(expected)
        if place in ("early", "middle", "late"):
            assert claims.CLAIM_METRICS[f"worth, {place}"](run) == pytest.approx(expected)
    share = (run.analysis["prune_ratios"][0] - 1) / (sum(u.values()) - 1e-4)
    of_sum = claims.SHARE_OF_BLOCK_1["the sum of u, a block removed"](run)
    assert of_sum == pytest.approx(share)


TOO_FEW = {  # blocks at least: metrics that fewer have none of
    2: ["Jacobian deviation without block 1"],
    3: ["causal without block 1", "permutation without block 1", "slope without block 1"],
    4: ["worth, early", "worth, middle", "worth, late"],
}


@pytest.mark.parametrize("L", [1, 2, 3, 4])
def test_of_too_few_blocks_there_is_nothing_without_the_first(L):
    run = scored_at_random(L)
    for least, metrics in TOO_FEW.items():
        for metric in metrics:
            measured = claims.CLAIM_METRICS[metric](run)
            assert measured is None if L in range(least) else measured != 0


def test_what_an_older_run_lacks_has_no_share_and_nor_has_a_sum_of_nothing():
    lacking = Run("", {}, {}, [], {})
    nothing = scored_at_random(4)
    nothing.analysis["prune_ratios"] = [0.9] * 4
    nothing.analysis["causal_matrix"] = np.zeros((4, 4))
    assert {share(lacking) for share in claims.SHARE_OF_BLOCK_1.values()} == {None}
    for score in ("the sum of u, a block removed", "causal"):
        assert claims.SHARE_OF_BLOCK_1[score](nothing) is None


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
        "removal_use": {"n_eff_share": 1},
        "growth": {"growth": 1, "exponent": 1},
        "blimp": {"accuracy": 0.5},
        "same_targets": {"own_context": 1, "short_context": 1},
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


def test_claims_keep_silent_where_two_points_have_one_value():
    """Such as eight experts with and without a shared one: neither is a step."""
    points = changing("n_expert", 0, 8)
    assert names(points) == {"C7", "C7+"}
    points["8, shared"] = three_seeds(n_expert=8, n_shared_expert=1)
    assert names(points) == set()


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


def test_a_sweep_is_judged_on_all_seeds_of_every_point():
    points = changing("n_layer", 2, 4, 8)
    assert judge_sweep(points)[0].n_seeds == (3, 3)
    points["4"] = points["4"][1:]
    assert judge_sweep(points)[0].n_seeds == (2, 3)


def test_a_sweep_s_ends_are_those_of_its_option():
    points = changing("n_layer", 8, 2, 4)
    assert claims.ends_along(points)[1:] == (points["2"], points["8"])
    assert claims.ends_along({"one": three_seeds()}) is None
    ladder = {
        str(rung): three_seeds(rung=rung, n_layer=8, weight_decay=0.1 * rung, n_head=2)
        for rung in range(4)
    }
    ladder["0"] = three_seeds(rung=0, n_layer=4, n_head=4)
    assert claims.ends_along(ladder)[1:] == (ladder["1"], ladder["3"])


# Families ----------------------------------------------------------------------------------------


def test_each_of_the_paper_s_claims_has_one_primary_claim():
    primary = [claim.name for claim in claims.CLAIMS if claim.primary]
    assert primary == [f"C{i}" for i in range(1, 11)]


def test_every_claim_on_variance_has_its_twins():
    on = {
        metric: [(c.name, c.option, c.shape) for c in claims.CLAIMS if c.metric == metric]
        for metric in ("last-layer variance", "growth", "exponent")
    }
    assert on["last-layer variance"] == on["growth"] == on["exponent"]
    assert len(on["growth"]) == 6


def test_families_part_experiments_from_other_sweeps():
    verdicts = judge_sweep(changing("n_layer", 2, 4, 8))
    judged = [(name, verdict) for name in ("depth", "control") for verdict in verdicts]
    primary, secondary, control = claims.families(judged)
    assert [v.claim.name for _, v in primary.verdicts] == ["C1", "C2", "C3"]
    assert {name for name, _ in secondary.verdicts} == {"depth"}
    assert control.title == "Another sweep: control"
    assert [name for name, _ in control.verdicts] == ["control"] * len(verdicts)
    assert len(primary.verdicts) + len(secondary.verdicts) == len(verdicts)


def test_a_primary_claim_is_corrected_for_ten_also_while_others_are_missing():
    verdict = judge_sweep(changing("n_layer", 2, 4, 8))[0]._replace(p=0.004)
    (adjusted,) = claims.families([("depth", verdict)])[0].adjusted
    assert adjusted == pytest.approx(0.04)


def test_each_other_sweep_is_a_family_of_what_it_can_test():
    """Of two points none is inside, so of eight claims on weight decay the five on the best inside
    cannot be tested; and what one sweep is asked does not make another's verdicts harder."""
    verdicts = judge_sweep(changing("weight_decay", 0.1, 1.0))
    testable = [v for v in verdicts if "inside" not in v.claim.shape]
    assert 0 < len(testable) < len(verdicts)
    judged = [
        (name, v._replace(p=0.004 if v in testable else 1.0))
        for name in ("one", "other")
        for v in verdicts
    ]
    for family in claims.families(judged)[2:]:
        adjusted = [
            p
            for (_, v), p in zip(family.verdicts, family.adjusted, strict=True)
            if "inside" not in v.claim.shape
        ]
        assert adjusted == pytest.approx([0.004 * len(testable)] * len(testable))
        others = set(family.adjusted) - set(adjusted)
        assert others == {1.0}


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
    assert first.n_seeds == (3, 3)
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


def of_option(**config):
    return Run("", config, {}, [], {})


STEPS = [  # metric, option and its values, by what factor it grows in a step
    ("growth", "n_layer", (4, 16, 32), math.sqrt(8)),
    ("growth", "n_layer", (8, 16, 32), 2),
    ("growth", "block_size", (64, 4096), 64),
    ("perplexity", "block_size", (64, 512, 4096), math.nan),  # lowest inside: no step's effect
    ("growth", "weight_decay", (0.1, 1.0), math.nan),  # swept from 0, by no factor
]


@pytest.mark.parametrize("metric, option, values, factor", STEPS)
def test_a_step_is_the_mean_factor_of_an_option_swept_by_factors(metric, option, values, factor):
    claim = next(c for c in claims.CLAIMS if (c.metric, c.option) == (metric, option))
    step = claims.step_of(claim, [of_option(**{option: value}) for value in values])
    assert step == pytest.approx(factor, nan_ok=True)


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


CLOCKS = [  # options of training: of the suite, without a warm-up, of nothing but a warm-up
    {"learning_rate": 2e-3, "warmup_iters": 305, "max_iters": 3050},
    {"learning_rate": 1.0, "min_lr": 0.4, "warmup_iters": 0, "max_iters": 7, "weight_decay": 3.0},
    {"learning_rate": 1.0, "min_lr": 0.0, "warmup_iters": 5, "max_iters": 5},
    {"weight_decay": 0.0},
]


@pytest.mark.parametrize("options", CLOCKS)
def test_decays_clock_is_summed_over_the_steps(options):
    """To within a step at the peak's rate: a sum of so many rates is not quite an integral."""
    config = TrainConfig(**options)
    rates = [train.learning_rate_at(step, config) for step in range(config.max_iters)]
    clock = claims.decays_clock(Run("", asdict(config), {}, [], {}))
    a_step = config.weight_decay * config.learning_rate
    assert clock == pytest.approx(config.weight_decay * sum(rates), rel=0, abs=a_step)


# What a score resolves ---------------------------------------------------------------------------


def scored(*pairs):
    """Runs of a point, by (score, its error over sequences)."""
    return [
        Run("", {}, {}, [], {"causal": score, "standard_errors": {"causal": error}})
        for score, error in pairs
    ]


def test_resolution_by_hand():
    points = {"a": scored((1.0, 0.3), (3.0, 0.4)), "b": scored((6.0, 0.0), (6.0, 0.5))}
    over_sequences, of_differences, over_seeds, over_points = claims.resolution(
        points, claims.score_at("causal")
    )
    assert math.isnan(of_differences)  # nothing is known of the sequences
    assert over_sequences == pytest.approx(math.sqrt((0.09 + 0.16 + 0.25) / 4))
    assert over_seeds == pytest.approx(1)  # squares 1, 1, 0, 0 of two degrees of freedom
    assert over_points == pytest.approx(4 / math.sqrt(2))


def test_resolution_of_a_logarithm_is_in_shares_of_the_score():
    """Scores 1 and e, e^3 and e^3: squares of the logarithms 1/4, 1/4, 0, 0, of two degrees of
    freedom; means 1/2 and 3."""
    e = math.e
    points = {"a": scored((1.0, 0.3), (e, 0.4 * e)), "b": scored((e**3, 0.0), (e**3, 0.5 * e**3))}
    of_log = claims.resolution(points, claims.score_at("causal"), log=True)
    assert of_log.over_sequences == pytest.approx(math.sqrt((0.09 + 0.16 + 0.25) / 4))
    assert of_log.over_seeds == pytest.approx(0.5)
    assert of_log.over_points == pytest.approx(2.5 / math.sqrt(2))


def test_resolution_of_too_few():
    score = claims.score_at("causal")
    numbers = claims.resolution({"a": scored((1.0, 0.3))}, score)
    assert [math.isnan(number) for number in numbers] == [False, True, True, True]
    older = [Run("", {}, {}, [], {"causal": 1.0})]
    assert claims.resolution({"a": scored((1.0, 0.3)), "b": older}, score) is None


def scored_by_sequence(values, length=16):
    analysis = {"causal": 1.0, "standard_errors": {"causal": 0.3}, "sequences": 2, "length": length}
    return [Run("", {"data_sha256": "x"}, {}, [], {**analysis, "per_sequence": {"causal": values}})]


def test_what_sequences_share_cancels_in_differences():
    """Differences 1 and 3: a standard deviation of sqrt(2), over sqrt(2) sequences."""
    points = {"a": scored_by_sequence([5.0, 9.0]), "b": scored_by_sequence([4.0, 6.0])}
    assert claims.resolution(points, claims.score_at("causal")).of_differences == 1
    points["a"][0].analysis["causal"] = 0.5  # pseudo-values 10 and 18 times the score: by 6, 12
    assert claims.resolution(points, claims.score_at("causal"), log=True).of_differences == (
        pytest.approx(3)
    )
    points["b"] = scored_by_sequence([4.0, 6.0], length=8)
    assert math.isnan(claims.resolution(points, claims.score_at("causal")).of_differences)
