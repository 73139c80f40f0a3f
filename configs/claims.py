"""What the experiments are asked: the numbers a run is judged by, the paper's claims, and the rule that decides them.

A claim says how a metric moves along a swept option. One effect is computed for each seed that every point has; its
95 % Student-t interval over seeds decides: wholly on the predicted side of zero is `supported`, wholly on the other
`opposed`, anything else, and any single seed, `undecided`. Effects, by the claim's shape:

  rises, falls     least-squares slope of the metric (its logarithm, if in LOG_METRICS) over the points' rank
  negative         the metric itself, at the last point
  last lowest, last highest       the smaller of the last point's gains over the first two
  no worse         relative change from the first point to the last; supported when its interval lies below MARGIN,
                   opposed when above
  lowest inside, highest inside   for each inner point, the smaller of its gains over both ends; supported when the
                   best point's interval, widened for the number of inner points (Bonferroni), lies above zero,
                   opposed when an end beats every inner point so

Where a sweep crosses the option with the learning rate, each value's best rate, by mean perplexity, speaks for it. The
rule was fixed before the runs in results/ were trained; the sentence on rates was added when some perplexities of the
learning-rate control had been seen, and none of its claims could be judged yet. A claim with a plus repeats the usefulness
claim before it with N_eff / L, as a threshold of 10 % passes one block or none of small models, whatever is swept; those of
C4 and C5 were added when two seeds of theirs had been seen.
"""
import math
import re
from dataclasses import fields
from functools import lru_cache

import numpy as np

from configs.read import WHERE_NOT_WHAT
from model import GPTConfig, mask_density


@lru_cache
def student_t(level, df):
    """Half-width of a `level` interval in standard errors. With t = sqrt(df) tan(angle), the density of the angle is
    proportional to cos(angle)^(df - 1)."""
    angle = np.linspace(0, math.pi / 2, 200001)
    mass = np.cumsum(np.cos(angle) ** (df - 1))
    return math.sqrt(df) * math.tan(np.interp(level, mass / mass[-1], angle))


def interval(values, level=0.95):
    """Mean and half-width of its Student-t interval over seeds; the half-width of fewer than two is infinite."""
    values = np.asarray(values, dtype=float)  # None becomes nan
    if len(values) < 2:
        return float(values.mean()), math.inf
    return float(values.mean()), student_t(level, len(values) - 1) * float(values.std(ddof=1)) / math.sqrt(len(values))


METRICS = {  # what a run is judged by; None where it has no such number
    "perplexity": lambda run: run.summary["perplexity"],
    "last-layer variance": lambda run: run.summary["last_layer_variance"],
    "causal": lambda run: run.analysis["causal"],
    "permutation": lambda run: run.analysis["permutation"],
    "usefulness": lambda run: run.analysis["usefulness"]["held_out"],
    "N_eff / L": lambda run: run.analysis["n_eff_share"],
    "choice accuracy": lambda run: run.analysis.get("choices", {}).get("accuracy"),
    "Jacobian deviation": lambda run: float(np.mean(run.analysis["jacobian"]["deviation"])),
    "weight density": lambda run: run.analysis["densities"]["weight"],
    "attention density": lambda run: run.analysis["densities"]["attention"],
    "key/value density": lambda run: run.analysis["densities"]["key_value"],
    "expert density": lambda run: run.analysis["densities"]["expert"],
}
DENSITY_OF = {"weight_decay": "weight density", "n_kv_head": "key/value density", "n_expert": "expert density",
              **dict.fromkeys(("block_size", "attention", "window", "stride", "topk"), "attention density")}  # what an option moves


# Claims -----------------------------------------------------------------------------------------------------------

MARGIN = 0.01
LOG_METRICS = ("perplexity", "last-layer variance", "Jacobian deviation", "growth at initialisation")
CLAIM_METRICS = {
    **METRICS,
    "growth at initialisation": lambda run: run.log[0]["variance"][-1] / run.log[0]["variance"][0],
    "slope of log deviation": lambda run: slope(np.log(np.maximum(run.analysis["jacobian"]["deviation"], 1e-30))),
}


def rung(run):
    """Points named 0-..., 1-... are the rungs of a ladder; None beside it."""
    number = re.match(r"(\d+)-", run.point)
    return int(number[1]) if number else None


OPTIONS = {  # an option's value for a run, where it is not simply in the config
    "queries per key": lambda run: run.config["n_head"] // run.config["n_kv_head"],
    "mask density": lambda run: mask_density(GPTConfig(**{f.name: run.config[f.name] for f in fields(GPTConfig)})),
    "rung": rung,
}
TIED = {  # what may change together with an option; a claim keeps silent where anything else changes too
    "block_size": {"batch_size", "gradient_accumulation_steps"},
    "queries per key": {"n_kv_head"},
    "n_expert": {"n_expert_active", "n_shared_expert", "expert_hidden", "mlp_hidden"},
    "mask density": {"attention", "window", "stride", "topk"},
}
CLAIMS = (  # name, what the paper says, option, metric, shape
    ("C1", "deeper: more last-layer variance", "n_layer", "last-layer variance", "rises"),
    ("C2", "deeper: the Jacobian nearer the identity", "n_layer", "Jacobian deviation", "falls"),
    ("C2", "along the layers of the deepest: the Jacobian nearer the identity", "n_layer", "slope of log deviation", "negative"),
    ("C3", "deeper: lower causal score", "n_layer", "causal", "falls"),
    ("C3", "deeper: lower permutation score", "n_layer", "permutation", "falls"),
    ("C3", "deeper: lower usefulness", "n_layer", "usefulness", "falls"),
    ("C3+", "deeper: smaller share of the depth in use (ours)", "n_layer", "N_eff / L", "falls"),
    ("C4", "more weight decay: less variance", "weight_decay", "last-layer variance", "falls"),
    ("C4", "perplexity best at a moderate weight decay", "weight_decay", "perplexity", "lowest inside"),
    ("C4", "usefulness best at a moderate weight decay", "weight_decay", "usefulness", "highest inside"),
    ("C4+", "share of the depth in use largest at a moderate weight decay (ours)", "weight_decay", "N_eff / L", "highest inside"),
    ("C5", "longer context: less variance", "block_size", "last-layer variance", "falls"),
    ("C5", "perplexity best at a moderate context", "block_size", "perplexity", "lowest inside"),
    ("C5", "usefulness best at a moderate context", "block_size", "usefulness", "highest inside"),
    ("C5+", "share of the depth in use largest at a moderate context (ours)", "block_size", "N_eff / L", "highest inside"),
    ("C6", "shared keys and values: less variance", "queries per key", "last-layer variance", "falls"),
    ("C6", "shared keys and values: higher usefulness", "queries per key", "usefulness", "rises"),
    ("C6+", "shared keys and values: larger share of the depth in use (ours)", "queries per key", "N_eff / L", "rises"),
    ("C6", "shared keys and values: perplexity no worse", "queries per key", "perplexity", "no worse"),
    ("C7", "experts: less variance", "n_expert", "last-layer variance", "falls"),
    ("C7", "experts: lower perplexity", "n_expert", "perplexity", "falls"),
    ("C7", "experts: higher usefulness", "n_expert", "usefulness", "rises"),
    ("C7+", "experts: larger share of the depth in use (ours)", "n_expert", "N_eff / L", "rises"),
    ("C8", "the whole recipe: lower perplexity than plain, deep or shallow", "rung", "perplexity", "last lowest"),
    ("C8", "the whole recipe: higher accuracy than plain, deep or shallow", "rung", "choice accuracy", "last highest"),
    ("C8+", "the whole recipe: larger share of the depth in use than plain, deep or shallow (ours)", "rung", "N_eff / L", "last highest"),
    ("C9", "sparser attention mask: less variance", "mask density", "last-layer variance", "rises"),
    ("C9", "sparser attention mask: higher usefulness", "mask density", "usefulness", "falls"),
    ("C9+", "sparser attention mask: larger share of the depth in use (ours)", "mask density", "N_eff / L", "falls"),
    ("C10", "sparser attention mask: slower growth at initialisation", "mask density", "growth at initialisation", "rises"),
)


def slope(values):
    """Least-squares slope over the rank 0, 1, 2, ... of the values; of equal ones exactly 0, which no fit by matrices gives."""
    rank = np.arange(len(values)) - (len(values) - 1) / 2
    return float(rank @ (np.asarray(values) - values[0]) / max(rank @ rank, 1e-300))


def surest(choose, row, others, level=0.95):
    """Gains (mean, half-width) of a point, its seeds in row, over others; the one choose (min or max) by lower bound."""
    return choose((interval(row - other, level) for other in others), key=lambda gain: gain[0] - gain[1])


def judge(table, shape, log=False):
    """The rule. table (n_points, n_seeds): the metric, points in the order of the swept option.
    Returns (verdict, mean effect, half-width)."""
    table = np.log(np.asarray(table, dtype=float)) if log else np.asarray(table, dtype=float)
    table = -table if "lowest" in shape else table
    wanted, threshold, opposed = -1 if shape in ("falls", "negative", "no worse") else 1, 0.0, None
    if shape in ("rises", "falls"):
        effect = interval([slope(column) for column in table.T])
    elif shape == "negative":
        effect = interval(table[-1])
    elif shape == "no worse":
        effect, threshold = interval(np.expm1(table[-1] - table[0]) if log else table[-1] / table[0] - 1), MARGIN
    elif shape.startswith("last"):
        effect = surest(min, table[-1], table[:2])
    elif len(table) > 2:
        ends, inner, level = table[[0, -1]], table[1:-1], 1 - 0.05 / (len(table) - 2)
        effect = max((surest(min, row, ends, level) for row in inner), key=lambda gain: gain[0] - gain[1])
        opposed = any(gain[0] > gain[1] for gain in (surest(min, end, inner, level) for end in ends))
    else:
        return "undecided", math.nan, math.inf
    mean, half = effect
    if wanted * (mean - threshold) > half:
        return "supported", mean, half
    opposed = -wanted * (mean - threshold) > half if opposed is None else opposed
    return "opposed" if opposed else "undecided", mean, half


def varying_options(runs):
    keys = set(runs[0].config) - {"seed", "sweep", *WHERE_NOT_WHAT}
    return {key for key in keys if len({run.config[key] for run in runs}) > 1}


def moved_density(points):
    """The one density that the sweep's option moves; None where it moves none, or several."""
    moved = {DENSITY_OF[key] for key in varying_options(sum(points.values(), [])) if key in DENSITY_OF}
    return moved.pop() if len(moved) == 1 else None


def at_best_rate(points, value):
    """Of points that differ in value and learning rate, every value at the same several rates: each value's point of
    lowest mean perplexity. Other points are handed back as they are."""
    groups = {}
    for runs in points:
        groups.setdefault(value(runs[0]), {})[runs[0].config["learning_rate"]] = runs
    rates = [set(group) for group in groups.values()]
    crossed = len(rates[0]) > 1 and all(others == rates[0] for others in rates) and sum(map(len, rates)) == len(points)
    if not crossed:
        return points
    return [min(group.values(), key=lambda runs: np.mean([run.summary["perplexity"] for run in runs])) for group in groups.values()]


def points_along(option, points):
    """The points, each its runs, in the order of the option's values; [] where something that is not tied to it varies, too."""
    value = OPTIONS.get(option, lambda run: run.config[option])
    speaking = [runs for runs in points.values() if value(runs[0]) is not None]
    chosen = at_best_rate(speaking, value) if speaking else []
    tied = {option, *TIED.get(option, ()), *(("learning_rate", "min_lr") if len(chosen) < len(speaking) else ())}
    if len({value(runs[0]) for runs in chosen}) < 2 or not (option == "rung" or varying_options(sum(chosen, [])) <= tied):
        return []
    return sorted(chosen, key=lambda runs: value(runs[0]))


def judge_sweep(points):
    """[(claim, verdict, effect, half-width, number of seeds)] for the claims that the sweep speaks to."""
    verdicts = []
    for claim in CLAIMS:
        _, _, option, metric, shape = claim
        ordered = points_along(option, points)
        seeds = sorted(set.intersection(*({run.seed for run in runs} for runs in ordered))) if ordered else []
        if seeds:
            table = [[CLAIM_METRICS[metric](next(run for run in runs if run.seed == seed)) for seed in seeds] for runs in ordered]
            verdicts.append((claim, *judge(table, shape, metric in LOG_METRICS), len(seeds)))
    return verdicts
