"""What the experiments are asked: the numbers a run is judged by, the paper's claims, and the rule
that decides them.

A claim says how a metric moves along a swept option. One effect is computed for each seed that
every point has; its 95 % Student-t interval over seeds decides. Wholly on the predicted side of
zero it is `supported`, wholly on the other `opposed`; anything else, any single seed, and seeds
that all say the same, as those of a score of few steps may, are `undecided`. The effect depends on
the claim's shape:

  rises, falls        least-squares slope of the metric (of its logarithm, if in LOG_METRICS) over
                      the points' rank
  negative            the metric itself, at the last point
  last lowest,        the smaller of the last point's gains over the first two
  last highest
  no worse            relative change from the first point to the last; supported when its interval
                      lies below MARGIN, opposed when above
  lowest inside,      for each inner point, the smaller of its gains over both ends; supported when
  highest inside      the best point's interval, widened for the number of inner points
                      (Bonferroni), lies above zero, opposed when an end beats every inner point so

Where a sweep crosses the option with the learning rate, each value's best rate, by mean
perplexity, speaks for it; a rate at which any of its runs diverged is left out for that value. The
rule was fixed before the runs in results/ were trained; the sentence on rates was added when some
perplexities of the learning-rate control had been seen, and none of its claims could be judged
yet, its second half before any published run diverged. A claim with a plus repeats the usefulness
claim before it with N_eff / L, as a threshold of 10 % passes one block or none of small models,
whatever is swept; those of C4 and C5 were added when two seeds of theirs had been seen.
"""

import math
from collections.abc import Callable
from dataclasses import fields
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from configs.read import MEASURED_BY, WHERE_NOT_WHAT
from model import NORM_EPS, GPTConfig, mask_density

LEVEL = 0.95  # of every interval
ROUNDING = 1e-9  # of a metric: a half-width below it, as of few equal seeds, is no certainty
MARGIN = 0.01  # a perplexity higher by less than 1 % is no worse
SMALLEST_DEVIATION = 1e-30  # in place of a Jacobian deviation of zero, which has no logarithm


# Intervals ---------------------------------------------------------------------------------------


@lru_cache
def student_t(level, df):
    """Half-width of a `level` interval in standard errors. With t = sqrt(df) tan(angle), the
    density of the angle is proportional to cos(angle)^(df - 1)."""
    angle = np.linspace(0, math.pi / 2, 200001)
    mass = np.cumsum(np.cos(angle) ** (df - 1))
    return math.sqrt(df) * math.tan(np.interp(level, mass / mass[-1], angle))


def interval(values, level=LEVEL):
    """Mean and half-width of its Student-t interval over seeds; infinite for fewer than two."""
    values = np.asarray(values, dtype=float)  # None becomes nan
    n = len(values)
    if n < 2:
        return float(values.mean()), math.inf
    standard_error = float(values.std(ddof=1)) / math.sqrt(n)
    return float(values.mean()), student_t(level, n - 1) * standard_error


# Metrics: {name: function of a run}, None where the run has no such number -----------------------


def slope(values):
    """Least-squares slope over the rank 0, 1, 2, ... of the values. Of equal ones it is exactly 0,
    which no fit by matrices gives; of one alone, too."""
    if len(values) < 2:
        return 0.0
    rank = np.arange(len(values)) - (len(values) - 1) / 2
    return float(rank @ (np.asarray(values) - values[0]) / (rank @ rank))


def entry(*keys):
    """The function of a run that looks up its analysis by these keys, one inside the other; None
    where an older run lacks it."""

    def look_up(run):
        value = run.analysis
        for key in keys:
            value = None if value is None else value.get(key)
        return value

    return look_up


def exponential(look_up):
    """The function of a run that is e to what look_up finds; None where it finds nothing."""

    def power(run):
        value = look_up(run)
        return None if value is None else math.exp(value)

    return power


def jacobian_deviation(run):
    return float(np.mean(run.analysis["jacobian"]["deviation"]))


def slope_of_log_deviation(run):
    deviation = np.maximum(run.analysis["jacobian"]["deviation"], SMALLEST_DEVIATION)
    return slope(np.log(deviation))


def growth_at_initialisation(run):
    variance = run.log[0]["variance"]
    return variance[-1] / variance[0]


METRICS = {  # in the order of a report's columns
    "perplexity": lambda run: run.summary["perplexity"],
    "last-layer variance": lambda run: run.summary["last_layer_variance"],
    "causal": lambda run: run.analysis["causal"],
    "permutation": lambda run: run.analysis["permutation"],
    "usefulness": lambda run: run.analysis["usefulness"]["held_out"],
    "N_eff / L": lambda run: run.analysis["n_eff_share"],
    "choice accuracy": entry("choices", "accuracy"),
    "Jacobian deviation": jacobian_deviation,
    "weight density": lambda run: run.analysis["densities"]["weight"],
    "attention density": lambda run: run.analysis["densities"]["attention"],
    "key/value density": lambda run: run.analysis["densities"]["key_value"],
    "expert density": lambda run: run.analysis["densities"]["expert"],
}
CLAIM_METRICS = {
    **METRICS,
    "growth at initialisation": growth_at_initialisation,
    "slope of log deviation": slope_of_log_deviation,
    "perplexity, own context": exponential(entry("same_targets", "own_context")),
    "perplexity, 32 to 63 keys": exponential(entry("same_targets", "short_context")),
}


def use_of_depth(ratios):
    """Columns of a report: scores of the use of depth by these ratios, of results/scores.py."""
    return {
        "N_eff": entry(ratios, "n_eff"),
        "N_eff / L": entry(ratios, "n_eff_share"),
        "N_eff / (L - 1) without block 1": entry(ratios, "n_eff_share_without_first"),
        "sum of u": entry(ratios, "sum"),
        "geometric mean of u": entry(ratios, "geometric_mean"),
        "geometric mean times L": entry(ratios, "geometric_mean_times_L"),
        "share of blocks at its floor": entry(ratios, "at_floor"),
    }


def permutation_times_L(run):
    permutation = run.analysis["permutation"]
    return None if permutation is None else permutation * len(run.analysis["prune_ratios"])


COMPANIONS = {  # more tables of a report, {title: {column: function of a run}}
    "Growth and updates, free of the stream's scale": {
        "var h_L / var h_1": entry("growth", "growth"),
        "var h_L / var h_0": entry("growth", "growth_from_embedding"),
        "exponent": entry("growth", "exponent"),
        "update angle": entry("updates", "angle"),
        "update angle times L": entry("updates", "angle_times_L"),
        "update / stream": entry("updates", "size"),
        "permutation times L": permutation_times_L,
    },
    "Use of depth, a block made linear": use_of_depth("linear_use"),
    "Use of depth, a block removed": use_of_depth("removal_use"),
    "Size, data, and the gap between held-out and training text": {
        "parameters (M)": lambda run: run.summary["params"] / 1e6,
        "active (M)": lambda run: run.summary["active_params"] / 1e6,
        "passes over the training tokens": entry("text", "passes"),
        "held-out loss": entry("text", "held_out_loss"),
        "training loss": entry("text", "training_loss"),
        "held-out less training": entry("text", "gap"),
        "same targets, own context": entry("same_targets", "own_context"),
        "same targets, 32 to 63 keys": entry("same_targets", "short_context"),
    },
    "Tasks, with their controls": {
        "choices after another item's context": entry("choices", "control"),
        "share of contexts cut": entry("choices", "cut"),
        "own items (--task)": entry("task", "accuracy"),
        "own items after another's context": entry("task", "control"),
        "BLiMP": entry("blimp", "accuracy"),
        "its error over paradigms": entry("blimp", "standard_error"),
    },
}


def with_error(*keys):
    return entry(*keys), entry("standard_errors", *keys)


RESOLUTION = {  # scores with a sampling error: functions of a run to the score and to its error
    "loss": with_error("loss"),
    "causal": with_error("causal"),
    "permutation": with_error("permutation"),
    "var h_L / var h_1": with_error("growth", "growth"),
    "exponent": with_error("growth", "exponent"),
    "update angle": with_error("updates", "angle"),
    "N_eff / L, linear": with_error("linear_use", "n_eff_share"),
    "N_eff / (L - 1) without block 1, linear": with_error(
        "linear_use", "n_eff_share_without_first"
    ),
    "sum of u, linear": with_error("linear_use", "sum"),
    "geometric mean of u, linear": with_error("linear_use", "geometric_mean"),
    "N_eff / L, removed": with_error("removal_use", "n_eff_share"),
    "N_eff / (L - 1) without block 1, removed": with_error(
        "removal_use", "n_eff_share_without_first"
    ),
    "sum of u, removed": with_error("removal_use", "sum"),
    "geometric mean of u, removed": with_error("removal_use", "geometric_mean"),
}


def resolution(points, value, error):
    """Of a score: its error over sequences (root mean square over runs), its standard deviation
    over seeds (pooled over points) and that of the points' means; nan where there are too few.
    None where an older run, or one of too few blocks, lacks it."""
    table = [[value(run) for run in runs] for runs in points.values()]
    errors = [error(run) for runs in points.values() for run in runs]
    if None in errors:
        return None
    n_free = len(errors) - len(table)
    squares = sum(np.var(row) * len(row) for row in table)
    over_seeds = math.sqrt(squares / n_free) if n_free else math.nan
    means = [np.mean(row) for row in table]
    over_points = float(np.std(means, ddof=1)) if len(means) > 1 else math.nan
    return math.sqrt(np.mean(np.square(errors))), over_seeds, over_points


EPS_SHARE = 0.01  # of a variance: with more, the norms' eps is no longer negligible


def eps_counts(run):
    """Is the norms' eps more than 1 % of the variance of some h_l? Then the stream's scale is not
    free, and growth means less."""
    return EPS_SHARE * min(run.analysis["variance"]["residual"]) < NORM_EPS


LOG_METRICS = (
    "perplexity",
    "last-layer variance",
    "Jacobian deviation",
    "growth at initialisation",
)
DENSITY_OF = {  # which density an option moves
    "weight_decay": "weight density",
    "block_size": "attention density",
    "attention": "attention density",
    "window": "attention density",
    "stride": "attention density",
    "topk": "attention density",
    "n_kv_head": "key/value density",
    "n_expert": "expert density",
}


# Claims ------------------------------------------------------------------------------------------


class Claim(NamedTuple):
    name: str
    option: str  # what is swept: an option of the config, or one of VALUE_OF
    metric: str  # one of CLAIM_METRICS
    shape: str  # how the metric moves along the option: one of RULES
    says: str  # the same in words


# fmt: off
CLAIMS = (
    Claim("C1", "n_layer", "last-layer variance", "rises",
          "deeper: more last-layer variance"),
    Claim("C2", "n_layer", "Jacobian deviation", "falls",
          "deeper: the Jacobian nearer the identity"),
    Claim("C2", "n_layer", "slope of log deviation", "negative",
          "along the layers of the deepest: the Jacobian nearer the identity"),
    Claim("C3", "n_layer", "causal", "falls",
          "deeper: lower causal score"),
    Claim("C3", "n_layer", "permutation", "falls",
          "deeper: lower permutation score"),
    Claim("C3", "n_layer", "usefulness", "falls",
          "deeper: lower usefulness"),
    Claim("C3+", "n_layer", "N_eff / L", "falls",
          "deeper: smaller share of the depth in use (ours)"),
    Claim("C4", "weight_decay", "last-layer variance", "falls",
          "more weight decay: less variance"),
    Claim("C4", "weight_decay", "perplexity", "lowest inside",
          "perplexity best at a moderate weight decay"),
    Claim("C4", "weight_decay", "usefulness", "highest inside",
          "usefulness best at a moderate weight decay"),
    Claim("C4+", "weight_decay", "N_eff / L", "highest inside",
          "share of the depth in use largest at a moderate weight decay (ours)"),
    Claim("C5", "block_size", "last-layer variance", "falls",
          "longer context: less variance"),
    Claim("C5", "block_size", "perplexity", "lowest inside",
          "perplexity best at a moderate context"),
    Claim("C5", "block_size", "usefulness", "highest inside",
          "usefulness best at a moderate context"),
    Claim("C5+", "block_size", "N_eff / L", "highest inside",
          "share of the depth in use largest at a moderate context (ours)"),
    Claim("C6", "queries per key", "last-layer variance", "falls",
          "shared keys and values: less variance"),
    Claim("C6", "queries per key", "usefulness", "rises",
          "shared keys and values: higher usefulness"),
    Claim("C6+", "queries per key", "N_eff / L", "rises",
          "shared keys and values: larger share of the depth in use (ours)"),
    Claim("C6", "queries per key", "perplexity", "no worse",
          "shared keys and values: perplexity no worse"),
    Claim("C7", "n_expert", "last-layer variance", "falls",
          "experts: less variance"),
    Claim("C7", "n_expert", "perplexity", "falls",
          "experts: lower perplexity"),
    Claim("C7", "n_expert", "usefulness", "rises",
          "experts: higher usefulness"),
    Claim("C7+", "n_expert", "N_eff / L", "rises",
          "experts: larger share of the depth in use (ours)"),
    Claim("C8", "rung", "perplexity", "last lowest",
          "the whole recipe: lower perplexity than plain, deep or shallow"),
    Claim("C8", "rung", "choice accuracy", "last highest",
          "the whole recipe: higher accuracy than plain, deep or shallow"),
    Claim("C8+", "rung", "N_eff / L", "last highest",
          "the whole recipe: larger share of the depth in use than plain, deep or shallow (ours)"),
    Claim("C9", "mask density", "last-layer variance", "rises",
          "sparser attention mask: less variance"),
    Claim("C9", "mask density", "usefulness", "falls",
          "sparser attention mask: higher usefulness"),
    Claim("C9+", "mask density", "N_eff / L", "falls",
          "sparser attention mask: larger share of the depth in use (ours)"),
    Claim("C10", "mask density", "growth at initialisation", "rises",
          "sparser attention mask: slower growth at initialisation"),
)
# fmt: on


# The rule ----------------------------------------------------------------------------------------
#
# An effect is a mean and a half-width. A table (n_points, n_seeds) holds the metric, its points in
# the order of the swept option.


class Rule(NamedTuple):
    effect: Callable  # of a table
    sign: int  # +1 where the claim predicts an effect above the threshold, -1 below
    threshold: float = 0.0
    relative: bool = False  # the effect is a share of the metric, never of its logarithm
    lowest: bool = False  # the lowest is best: gains are those of the table with its sign turned
    inside: bool = False  # an end that is best opposes the claim, whatever the effect


def slope_effect(table):
    return interval([slope(column) for column in table.T])


def last_value(table):
    return interval(table[-1])


def relative_change(table):
    return interval(table[-1] / table[0] - 1)


def gain_over_first_two(table):
    return least_gain(table[-1], table[:2])


def gain_of_best_inner_point(table):
    if len(table) < 3:
        return math.nan, math.inf
    inner, level = table[1:-1], level_for(table)
    gains = [least_gain(point, table[[0, -1]], level) for point in inner]
    return max(gains, key=lower_bound)


def an_end_is_best(table):
    """Does one end beat every inner point by more than the interval's half-width?"""
    if len(table) < 3:
        return False
    inner, level = table[1:-1], level_for(table)
    gains = [least_gain(end, inner, level) for end in table[[0, -1]]]
    return any(mean > half for mean, half in gains)


def least_gain(point, others, level=LEVEL):
    """Gains (mean, half-width) of a point, its seeds in a row, over others; of these the one with
    the lowest lower bound."""
    return min((interval(point - other, level) for other in others), key=lower_bound)


def lower_bound(effect):
    mean, half = effect
    return mean - half


def level_for(table):
    """Of the intervals of several inner points, one of which may be called best (Bonferroni)."""
    return 1 - (1 - LEVEL) / (len(table) - 2)


RULES = {
    "rises": Rule(slope_effect, +1),
    "falls": Rule(slope_effect, -1),
    "negative": Rule(last_value, -1),
    "last lowest": Rule(gain_over_first_two, +1, lowest=True),
    "last highest": Rule(gain_over_first_two, +1),
    "no worse": Rule(relative_change, -1, MARGIN, relative=True),
    "lowest inside": Rule(gain_of_best_inner_point, +1, lowest=True, inside=True),
    "highest inside": Rule(gain_of_best_inner_point, +1, inside=True),
}


def judge(table, shape, log=False):
    """The rule. table (n_points, n_seeds): the metric, points in the order of the swept option;
    log: effects are of its logarithm (a relative change is one in any case). Returns (verdict,
    mean effect, half-width)."""
    rule, table = RULES[shape], np.asarray(table, dtype=float)
    if log and not rule.relative:
        table = np.log(table)
    if rule.lowest:
        table = -table
    mean, half = rule.effect(table)
    if half <= ROUNDING * np.abs(table).max():
        return "undecided", mean, half
    predicted = rule.sign * (mean - rule.threshold)
    if predicted > half:
        return "supported", mean, half
    opposed = an_end_is_best(table) if rule.inside else -predicted > half
    return "opposed" if opposed else "undecided", mean, half


# Sweeps: which claims they speak to --------------------------------------------------------------
#
# A sweep is {point: its runs, one per seed}.


def queries_per_key(run):
    return run.config["n_head"] // run.config["n_kv_head"]


def density_of_mask(run):
    options = {field.name: run.config[field.name] for field in fields(GPTConfig)}
    return mask_density(GPTConfig(**options))


VALUE_OF = {  # a run's value of a swept "option" that does not stand in its config
    "queries per key": queries_per_key,
    "mask density": density_of_mask,
    "rung": lambda run: run.rung,
}
TIED = {  # what may change together with an option
    "block_size": {"batch_size", "gradient_accumulation_steps"},
    "queries per key": {"n_kv_head"},
    "n_expert": {"n_expert_active", "n_shared_expert", "expert_hidden", "mlp_hidden"},
    "mask density": {"attention", "window", "stride", "topk"},
}
RATES = {"learning_rate", "min_lr"}


def varying_options(runs):
    """The entries of config.json that differ among runs and say what a run is, but for the seed."""
    configs = [run.config for run in runs]
    ignored = {"seed", "sweep", "code", *WHERE_NOT_WHAT, *MEASURED_BY}
    return {
        option
        for option in set().union(*configs) - ignored
        if any(config.get(option) != configs[0].get(option) for config in configs)
    }


def moved_density(points):
    """The metric of the one density that the sweep's options move; None if they move none, or
    several."""
    varying = varying_options([run for runs in points.values() for run in runs])
    moved = {DENSITY_OF[option] for option in varying if option in DENSITY_OF}
    return moved.pop() if len(moved) == 1 else None


def mean_perplexity(runs):
    return np.mean([run.summary["perplexity"] for run in runs])


def value_of(option, run):
    return VALUE_OF[option](run) if option in VALUE_OF else run.config[option]


def speaking_of(option, points):
    """The lists of runs that have a value of the option: of a ladder, its rungs alone."""
    return [runs for runs in points.values() if value_of(option, runs[0]) is not None]


def rates_left_out(option, diverged):
    """{value of the option: its learning rates} at which some run diverged."""
    rates = {}
    for run in diverged:
        rates.setdefault(value_of(option, run), set()).add(run.config["learning_rate"])
    return rates


def at_best_rate(option, points, diverged):
    """points: lists of runs. Where every value was tried at the same several learning rates, each
    value's list of lowest mean perplexity, of the rates at which none of its runs diverged; else
    the points as they are."""
    left_out, by_value, n_kept = rates_left_out(option, diverged), {}, 0
    for runs in points:
        value, rate = value_of(option, runs[0]), runs[0].config["learning_rate"]
        if rate not in left_out.get(value, ()):
            by_value.setdefault(value, {})[rate] = runs
            n_kept += 1
    tried = [{*by_rate, *left_out.get(value, ())} for value, by_rate in by_value.items()]
    same_rates = tried and all(rates == tried[0] for rates in tried)
    nothing_else = sum(len(by_rate) for by_rate in by_value.values()) == n_kept
    if not same_rates or len(tried[0]) < 2 or not nothing_else:
        return points
    return [min(by_rate.values(), key=mean_perplexity) for by_rate in by_value.values()]


def points_along(option, points, diverged=()):
    """Lists of runs in the order of the option's values. Empty where the sweep does not vary it,
    or varies something that is not tied to it, so that a claim keeps silent. A ladder may vary
    anything from rung to rung."""

    def value(runs):
        return value_of(option, runs[0])

    speaking = speaking_of(option, points)
    if not speaking:
        return []
    chosen = at_best_rate(option, speaking, diverged)
    tied = {option} | TIED.get(option, set())
    if len(chosen) < len(speaking):
        tied |= RATES
    alone = varying_options([run for runs in chosen for run in runs]) <= tied
    several = len({value(runs) for runs in chosen}) > 1
    if not several or not (alone or option == "rung"):
        return []
    return sorted(chosen, key=value)


def without_diverged_rates(points, diverged):
    """[(option, value, rate)] that the sweep's verdicts leave out, as runs diverged there."""
    return [
        (option, value, rate)
        for option in dict.fromkeys(claim.option for claim in CLAIMS)
        if 0 < len(points_along(option, points, diverged)) < len(speaking_of(option, points))
        for value, rates in rates_left_out(option, diverged).items()
        for rate in sorted(rates)
    ]


class Verdict(NamedTuple):
    claim: Claim
    verdict: str  # supported, opposed or undecided
    effect: float
    half: float  # half-width of its interval
    n_seeds: int


def judge_sweep(points, diverged=()):
    """[Verdict] on the claims that the sweep speaks to, on the seeds that all its points have.
    diverged: its other runs, which have no scores."""
    verdicts = []
    for claim in CLAIMS:
        ordered = points_along(claim.option, points, diverged)
        if not ordered:
            continue
        seeds = sorted(set.intersection(*({run.seed for run in runs} for runs in ordered)))
        if not seeds:
            continue
        table = [measured(runs, claim.metric, seeds) for runs in ordered]
        judged = judge(table, claim.shape, log=claim.metric in LOG_METRICS)
        verdicts.append(Verdict(claim, *judged, len(seeds)))
    return verdicts


def measured(runs, metric, seeds):
    """The metric of a point's runs, in the order of the seeds."""
    run_of = {run.seed: run for run in runs}
    return [CLAIM_METRICS[metric](run_of[seed]) for seed in seeds]
