"""What the experiments are asked: the numbers a run is judged by, the paper's claims, and which
sweeps speak to which of them.

A claim says how a metric moves along a swept option; the rule that decides it is that of
results/verdicts.py. Each of C1 to C10 has one primary claim, judged by the experiment that was made
for it: these ten are a family. All others are secondary, in that experiment too, a second family.
What another sweep says of any of them, such as one at another width or rate, stands apart, each
such sweep a family of its own.

A claim on variance has two twins, on growth and on its exponent, as the variance of h_L is half a
free scale: the same function has any variance that one likes. A claim on the use of depth is judged
by the paper's three scores and by one of ours, N_eff / L by removal, marked with a plus; where they
disagree, all stand. It was chosen as it resolves well over depths (results/control), before it was
seen that it goes as 1 / L there, whatever the blocks behind block 1 do; the geometric mean of u,
which resolves better and does not, stands beside it in the reports.

Where a sweep crosses the option with the learning rate, each value's best rate, by mean
perplexity, speaks for it; a rate at which any of its runs diverged is left out for that value.
"""

import math
from dataclasses import fields
from itertools import chain, pairwise
from typing import NamedTuple

import numpy as np

from configs.read import MEASURED_BY, WHERE_NOT_WHAT
from data.files import at
from model import NORM_EPS, GPTConfig, mask_density
from results.scores import pair_mean, paired_error, places, typical_worth, worths
from results.verdicts import LEVEL, holm, judge, slope_weights

SMALLEST_DEVIATION = 1e-30  # in place of a Jacobian deviation of zero, which has no logarithm


# Metrics: {name: function of a run}, None where the run has no such number -----------------------


def slope(values):
    """Least-squares slope over the rank 0, 1, 2, ... of the values. Of equal ones it is exactly 0,
    which no fit by matrices gives; of one alone, too."""
    if len(values) < 2:
        return 0.0
    return float(slope_weights(len(values)) @ (np.asarray(values) - values[0]))


def entry(*keys):
    """The function of a run that looks up its analysis by these keys, one inside the other; None
    where an older run lacks it."""

    return lambda run: at(run.analysis, keys)


def exponential(look_up):
    """The function of a run that is e to what look_up finds; None where it finds nothing."""

    def power(run):
        value = look_up(run)
        return None if value is None else math.exp(value)

    return power


def jacobian_deviation(run):
    return float(np.mean(run.analysis["jacobian"]["deviation"]))


def slope_of_log_deviation(run):
    return slope_of_log(run.analysis["jacobian"]["deviation"])


def slope_of_log(deviation):
    return slope(np.log(np.maximum(deviation, SMALLEST_DEVIATION)))


def growth_at_initialisation(run):
    variance = run.log[0]["variance"]
    return variance[-1] / variance[0]


def causal_without_block_1(run):
    return mean_of_later_pairs(run, "causal_matrix")


def permutation_without_block_1(run):
    return mean_of_later_pairs(run, "permutation_matrix")


def mean_of_later_pairs(run, name):
    """Mean of a matrix over all pairs but those of block 1; None where there are no others."""
    matrix = entry(name)(run)
    return None if matrix is None else pair_mean(np.asarray(matrix)[1:, 1:])


def deviation_without_block_1(run):
    later = run.analysis["jacobian"]["deviation"][1:]
    return float(np.mean(later)) if later else None


def slope_without_block_1(run):
    later = run.analysis["jacobian"]["deviation"][1:]
    return slope_of_log(later) if len(later) > 1 else None


def worth_at(place):
    """The function of a run that says what a typical block is worth, removed, at one of the places
    of results/scores.py; None where the run has too few blocks for it, or lacks the score."""

    def worth(run):
        ratios = entry("prune_ratios")(run)
        blocks = None if ratios is None else places(len(ratios)).get(place)
        return None if blocks is None else typical_worth(worths(ratios)[blocks - 1])

    return worth


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
    "growth": entry("growth", "growth"),
    "exponent": entry("growth", "exponent"),
    "N_eff / L, removed": entry("removal_use", "n_eff_share"),
    "geometric mean of u, removed": entry("removal_use", "geometric_mean"),
    "causal without block 1": causal_without_block_1,
    "permutation without block 1": permutation_without_block_1,
    "Jacobian deviation without block 1": deviation_without_block_1,
    "slope without block 1": slope_without_block_1,
    "worth, early": worth_at("early"),
    "worth, middle": worth_at("middle"),
    "worth, late": worth_at("late"),
    "BLiMP": entry("blimp", "accuracy"),
    "growth at initialisation": growth_at_initialisation,
    "slope of log deviation": slope_of_log_deviation,
    "perplexity, own context": exponential(entry("same_targets", "own_context")),
    "perplexity, 32 to 63 keys": exponential(entry("same_targets", "short_context")),
}
LOG_METRICS = (  # that are judged by their logarithms
    "perplexity",
    "perplexity, own context",
    "perplexity, 32 to 63 keys",
    "last-layer variance",
    "growth",
    "causal",
    "permutation",
    "N_eff / L, removed",
    "geometric mean of u, removed",
    "causal without block 1",
    "permutation without block 1",
    "Jacobian deviation without block 1",
    "worth, early",
    "worth, middle",
    "worth, late",
    "Jacobian deviation",
    "growth at initialisation",
)

OF_RATIOS = ("N_eff", "geometric mean", "permutation times L", "var h_", "variance of h_", "u, ")


def by_logarithm(name, values):
    """Is a number of this name compared by its logarithm, as its claim is judged, or, as those that
    begin like OF_RATIOS, is of the same kind, and are all values positive that are there?"""
    judged_so = name in LOG_METRICS or name.startswith(OF_RATIOS)
    return judged_so and all(value > 0 for value in values if value is not None)


def columns_of_use(name):
    """Columns of a report: the scores under this entry of analysis.json, which are those of
    use_of_depth (results/scores.py)."""
    return {
        "N_eff": entry(name, "n_eff"),
        "N_eff / L": entry(name, "n_eff_share"),
        "N_eff / (L - 1) without block 1": entry(name, "n_eff_share_without_first"),
        "sum of u": entry(name, "sum"),
        "geometric mean of u": entry(name, "geometric_mean"),
        "geometric mean times L": entry(name, "geometric_mean_times_L"),
        "share of blocks at its floor": entry(name, "at_floor"),
    }


def permutation_times_L(run):
    permutation = run.analysis["permutation"]
    return None if permutation is None else permutation * len(run.analysis["prune_ratios"])


def decays_clock(run):
    """Rate x weight decay x steps, by the schedule's mean rates: half the peak in the warm-up, then
    half way between the peak and the end. A weight that no gradient moved would shrink to e to the
    minus this."""
    config = run.config
    peak, warm_up = config["learning_rate"], config["warmup_iters"]
    mean_after = (peak + config["min_lr"]) / 2
    summed_rates = warm_up * peak / 2 + (config["max_iters"] - warm_up) * mean_after
    return config["weight_decay"] * summed_rates


OF_CLOCK = " (rate x decay x steps: a steady state needs about 2, and none is claimed)"
OF_WORTH = " (u: by what share the loss grows; N_eff = (Σu)² / Σu²)"
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
    f"Use of depth, a block made linear{OF_WORTH}": columns_of_use("linear_use"),
    f"Use of depth, a block removed{OF_WORTH}": columns_of_use("removal_use"),
    f"Size, decay's clock{OF_CLOCK}, data, and the gap between held-out and training text": {
        "parameters (M)": lambda run: run.summary["params"] / 1e6,
        "active (M)": lambda run: run.summary["active_params"] / 1e6,
        "decay's clock": decays_clock,
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
WITHOUT_BLOCK_1 = {  # columns of a table whose title report.py makes of SHARE_OF_BLOCK_1
    "causal": causal_without_block_1,
    "permutation": permutation_without_block_1,
    "Jacobian deviation": deviation_without_block_1,
    "slope of its logarithm along the blocks": slope_without_block_1,
    "the same slope with block 1": slope_of_log_deviation,
}
BY_PLACE = {  # columns of one whose title says which blocks stand where
    f"u, {place}": worth_at(place) for place in ("block 1", "early", "middle", "late", "last block")
}


def share_of_blocks(values):
    """What block 1 is of a sum over the blocks; None where that is nothing."""
    return values[0] / sum(values) if sum(values) else None


def share_of_pairs(matrix):
    """What the pairs of block 1 are of a sum over all pairs; None where that is nothing."""
    above = np.triu(matrix, 1)
    return above[0].sum() / above.sum() if above.any() else None


def share_of_block_1(share, *keys):
    """The function of a run that says what block 1 is of what it looks up; None as share and entry
    say."""

    def share_of(run):
        values = entry(*keys)(run)
        return None if values is None else share(values)

    return share_of


def share_of_worths(ratios):
    return share_of_blocks(worths(ratios))


SHARE_OF_BLOCK_1 = {  # functions of a run
    "causal": share_of_block_1(share_of_pairs, "causal_matrix"),
    "permutation": share_of_block_1(share_of_pairs, "permutation_matrix"),
    "the Jacobian deviation": share_of_block_1(share_of_blocks, "jacobian", "deviation"),
    "the sum of u, a block removed": share_of_block_1(share_of_worths, "prune_ratios"),
}


EPS_SHARE = 0.01  # of a variance: with more, the norms' eps is no longer negligible


def eps_counts(run):
    """Is the norms' eps more than 1 % of the variance of some h_l? Then the stream's scale is not
    free, and growth means less."""
    return EPS_SHARE * min(run.analysis["variance"]["residual"]) < NORM_EPS


# What a score resolves: its own error beside what a sweep does to it -----------------------------


class Score(NamedTuple):
    """Functions of a run."""

    value: object
    error: object  # its standard error over sequences
    of_sequences: object  # its pseudo-values


def score_at(*keys):
    """The Score that stands in analysis.json under these keys, one inside the other."""
    return Score(entry(*keys), entry("standard_errors", *keys), entry("per_sequence", *keys))


RESOLUTION = {
    "loss": score_at("loss"),
    "causal": score_at("causal"),
    "permutation": score_at("permutation"),
    "var h_L / var h_1": score_at("growth", "growth"),
    "exponent": score_at("growth", "exponent"),
    "update angle": score_at("updates", "angle"),
    "N_eff / L, linear": score_at("linear_use", "n_eff_share"),
    "N_eff / (L - 1) without block 1, linear": score_at("linear_use", "n_eff_share_without_first"),
    "sum of u, linear": score_at("linear_use", "sum"),
    "geometric mean of u, linear": score_at("linear_use", "geometric_mean"),
    "N_eff / L, removed": score_at("removal_use", "n_eff_share"),
    "N_eff / (L - 1) without block 1, removed": score_at(
        "removal_use", "n_eff_share_without_first"
    ),
    "sum of u, removed": score_at("removal_use", "sum"),
    "geometric mean of u, removed": score_at("removal_use", "geometric_mean"),
}


class Resolution(NamedTuple):
    """Standard deviations of a score, or of its logarithm; nan where there are too few, or older,
    runs."""

    over_sequences: float  # root mean square over runs
    of_differences: float  # the same, of two neighbouring points' runs, what they share cancelled
    over_seeds: float  # pooled over points
    over_points: float  # of the points' means


def resolution(points, score, log=False):
    """The Resolution of a Score over {point: runs}, with log of its logarithm, whose errors are
    those of the score over the score; None where a run lacks it."""
    table = [[score.value(run) for run in runs] for runs in points.values()]
    errors = [score.error(run) for runs in points.values() for run in runs]
    if None in errors:
        return None
    if log:
        errors = [error / value for error, value in zip(errors, chain(*table), strict=True)]
        table = [np.log(row) for row in table]
    n_free = len(errors) - len(table)
    squares = sum(np.var(row) * len(row) for row in table)
    means = [np.mean(row) for row in table]
    return Resolution(
        over_sequences=root_mean_square(errors),
        of_differences=root_mean_square(paired_errors(points, score, log)),
        over_seeds=math.sqrt(squares / n_free) if n_free else math.nan,
        over_points=float(np.std(means, ddof=1)) if len(means) > 1 else math.nan,
    )


def root_mean_square(numbers):
    return math.sqrt(np.mean(np.square(numbers))) if numbers else math.nan


def paired_errors(points, score, log):
    """Of each two neighbouring points' first runs, where they were scored on the same sequences."""

    def of_sequences(run):
        return np.divide(score.of_sequences(run), score.value(run) if log else 1)

    firsts = [runs[0] for runs in points.values()]
    return [
        paired_error(of_sequences(one), of_sequences(other))
        for one, other in pairwise(firsts)
        if None not in map(score.of_sequences, (one, other)) and scored_alike(one, other)
    ]


def scored_alike(one, other):
    """On the same held-out sequences?"""
    return one.config["data_sha256"] == other.config["data_sha256"] and all(
        one.analysis[name] == other.analysis[name] for name in ("sequences", "length")
    )


# Claims ------------------------------------------------------------------------------------------


class Claim(NamedTuple):
    name: str
    option: str  # what is swept: an option of the config, or one of VALUE_OF
    metric: str  # one of CLAIM_METRICS
    shape: str  # how the metric moves along the option: one of results/verdicts.py's SHAPES
    says: str  # the same in words
    primary: bool = False


def about_variance(name, option, shape, what):
    """A primary claim on the variance of h_L, and its twins, free of the stream's scale."""
    more, larger = {"rises": ("more", "larger"), "falls": ("less", "smaller")}[shape]
    return (
        Claim(name, option, "last-layer variance", shape, f"{what}: {more} variance", primary=True),
        Claim(name, option, "growth", shape, f"{what}: {more} growth, var h_L / var h_1"),
        Claim(name, option, "exponent", shape, f"{what}: a {larger} exponent of growth"),
    )


def about_use(name, option, shape, what, primary=""):
    """Claims on the use of depth: by the paper's three scores, of which one may be primary, and by
    ours."""
    scores = {"causal": "", "permutation": "", "usefulness": "", "N_eff / L, removed": "+"}
    moves = {"last highest": "is highest", "highest inside": "is highest"}.get(shape, shape)
    return tuple(
        Claim(name + plus, option, score, shape, f"{what}: {score} {moves}", score == primary)
        for score, plus in scores.items()
    )


# fmt: off
CLAIMS = (
    *about_variance("C1", "n_layer", "rises", "deeper"),
    Claim("C2", "n_layer", "Jacobian deviation", "falls",
          "deeper: the Jacobian nearer the identity", primary=True),
    Claim("C2", "n_layer", "slope of log deviation", "negative",
          "along the layers of the deepest: the Jacobian nearer the identity"),
    *about_use("C3", "n_layer", "falls", "deeper", primary="causal"),
    *about_variance("C4", "weight_decay", "falls", "more weight decay"),
    Claim("C4", "weight_decay", "perplexity", "lowest inside",
          "perplexity best at a moderate weight decay"),
    *about_use("C4", "weight_decay", "highest inside", "a moderate weight decay"),
    *about_variance("C5", "block_size", "falls", "longer context"),
    Claim("C5", "block_size", "perplexity", "lowest inside",
          "perplexity best at a moderate context"),
    Claim("C5", "block_size", "perplexity, own context", "lowest inside",
          "the same, on the same target tokens, each model with its own context"),
    Claim("C5", "block_size", "perplexity, 32 to 63 keys", "lowest inside",
          "the same, every model with 32 to 63 tokens before the target"),
    *about_use("C5", "block_size", "highest inside", "a moderate context"),
    *about_variance("C6", "queries per key", "falls", "shared keys and values"),
    Claim("C6", "queries per key", "perplexity", "no worse",
          "shared keys and values: perplexity no worse"),
    *about_use("C6", "queries per key", "rises", "shared keys and values"),
    *about_variance("C7", "n_expert", "falls", "experts"),
    Claim("C7", "n_expert", "perplexity", "falls",
          "experts: lower perplexity"),
    *about_use("C7", "n_expert", "rises", "experts"),
    Claim("C8", "rung", "perplexity", "last lowest",
          "the whole recipe: lower perplexity than plain, deep or shallow", primary=True),
    Claim("C8", "rung", "perplexity, own context", "last lowest",
          "the same, on the same target tokens, each model with its own context"),
    Claim("C8", "rung", "perplexity, 32 to 63 keys", "last lowest",
          "the same, every model with 32 to 63 tokens before the target"),
    Claim("C8", "rung", "choice accuracy", "last highest",
          "the whole recipe: higher accuracy than plain, deep or shallow"),
    Claim("C8", "rung", "BLiMP", "last highest",
          "the whole recipe: more grammar than plain, deep or shallow"),
    *about_use("C8", "rung", "last highest", "the whole recipe, beside plain, deep or shallow"),
    *about_variance("C9", "mask density", "rises", "denser attention mask"),
    *about_use("C9", "mask density", "falls", "denser attention mask"),
    Claim("C10", "mask density", "growth at initialisation", "rises",
          "denser attention mask: faster growth at initialisation", primary=True),
)
# fmt: on

EXPERIMENT = {  # whose verdict on the claims along an option counts; others stand apart
    "n_layer": "depth",
    "weight_decay": "weight_decay",
    "block_size": "context",
    "queries per key": "gqa",
    "n_expert": "moe",
    "rung": "recipe",
    "mask density": "sparse_attention",
}


def margin_of(metric):
    """The largest effect of a step of the swept option that is none; fixed before the sweeps."""
    if metric.startswith("perplexity"):
        return 0.005  # of its logarithm
    if metric == "slope of log deviation":
        return 0.01  # a layer
    if metric == "exponent":
        return 0.1
    return math.log(1.1) if metric in LOG_METRICS else 0.02  # of shares


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
    left_out = rates_left_out(option, diverged)
    by_value = {}
    n_kept = 0
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
    values = {value(runs) for runs in chosen}
    once = len(values) == len(chosen) or option == "mask density"  # masks may be equally dense
    if len(values) < 2 or not once or not (alone or option == "rung"):
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
    verdict: str  # supported, opposed, no effect or undecided
    effect: float
    half: float  # half-width of its interval
    p: float
    p_apart: float  # the same with each point's own spread, never pooled; 1 where it says otherwise
    n_seeds: tuple  # the fewest and the most that a point has
    step: float = math.nan  # of an effect that is a step's: by what factor the option grows in one

    def needs_pooling(self):
        """Does it not stand with each point's own spread?"""
        return self.verdict != "undecided" and self.p_apart >= 1 - LEVEL


def judge_sweep(points, diverged=()):
    """[Verdict] on the claims that the sweep speaks to. diverged: its other runs, which have no
    scores."""
    verdicts = []
    for claim in CLAIMS:
        ordered = points_along(claim.option, points, diverged)
        if not ordered:
            continue
        table = [[CLAIM_METRICS[claim.metric](run) for run in runs] for runs in ordered]
        verdict = verdict_on(claim, table)
        verdicts.append(verdict._replace(step=step_of(claim, [runs[0] for runs in ordered])))
    return verdicts


BY_FACTORS = ("n_layer", "block_size", "queries per key")  # options of which a step is one


def step_of(claim, runs):
    """By what factor the claim's option grows from one of these runs to the next, on average; nan
    where it is not swept by factors, or the effect is not a step's."""
    if claim.option not in BY_FACTORS or claim.shape not in ("rises", "falls"):
        return math.nan
    first, last = (value_of(claim.option, run) for run in (runs[0], runs[-1]))
    return (last / first) ** (1 / (len(runs) - 1))


class Ends(NamedTuple):
    option: str  # the option in EXPERIMENT that the sweep varies
    first: list  # runs of its first point
    last: list


def ends_along(points, diverged=()):
    """The sweep's Ends; None where it varies no option in EXPERIMENT, or several. Of a ladder, the
    plain deep rung is the first."""
    for option in EXPERIMENT:
        if ordered := points_along(option, points, diverged):
            first = ordered[1 if option == "rung" and len(ordered) > 2 else 0]
            return Ends(option, first, ordered[-1])
    return None


def verdict_on(claim, table):
    """The Verdict on a table of its metric: a list for each point, a number for each seed."""
    options = {"log": claim.metric in LOG_METRICS, "margin": margin_of(claim.metric)}
    judged = judge(table, claim.shape, **options)
    apart = judge(table, claim.shape, **options, pooled=False)
    p_apart = apart.p if apart.verdict in (judged.verdict, "undecided") else 1.0
    return Verdict(claim, *judged, p_apart, (min(map(len, table)), max(map(len, table))))


class Family(NamedTuple):
    title: str
    verdicts: list  # of (experiment, Verdict), in the order of CLAIMS
    adjusted: list  # p of each, by Holm's correction within the family
    adjusted_apart: list  # the same of p_apart


def families(judged):
    """[Family] of [(experiment, Verdict)]: primary, secondary, and what each other sweep says.
    Claims of the first two whose experiment is not there yet count in their family with p = 1; a
    claim that another sweep cannot test, as two points have none inside, does not count in its."""
    parts = {"Primary": [], "Secondary": []}
    for experiment, verdict in sorted(judged, key=lambda pair: CLAIMS.index(pair[1].claim)):
        if experiment != EXPERIMENT[verdict.claim.option]:
            part = f"Another sweep: {experiment}"
        else:
            part = "Primary" if verdict.claim.primary else "Secondary"
        parts.setdefault(part, []).append((experiment, verdict))
    n_primary = sum(claim.primary for claim in CLAIMS)
    sizes = {"Primary": n_primary, "Secondary": len(CLAIMS) - n_primary}
    return [
        Family(title, part, *(holm(ps, sizes.get(title, n_tested(part))) for ps in p_values(part)))
        for title, part in parts.items()
    ]


def n_tested(part):
    return sum(not math.isnan(verdict.effect) for _, verdict in part)


def p_values(part):
    return [verdict.p for _, verdict in part], [verdict.p_apart for _, verdict in part]
