"""What a run must be: of what kind, and within which limits, every entry of its files is, and what
follows from what. results/runs.py reads these files; what cannot be is refused in one sentence."""

import math
import re
from itertools import combinations

from configs.read import (
    MEASURED_BY,
    OPTIONS,
    WHERE_NOT_WHAT,
    as_text,
    build_configs,
    check_option,
    parse_value,
)
from data.files import BadInput, Each, Line, Maybe, Number, Several, at, fault_of, shortened
from results.scores import pair_mean

NUMBERS, NONE = [Number()], type(None)
N_SEQUENCES = Number(int, 1)
LARGE = 1e50  # beyond norms of 32-bit numbers, while its square is still a number
NEARLY = 1e-6  # what sums of floats may miss a limit by
ROUNDED = 0.01  # what a number may miss the others by that it follows from: some have three digits
LARGEST_LOSS = 700.0  # nats: the perplexity of a larger one is no number any more
LOSS = Number(float, 0, LARGEST_LOSS)  # of what has a perplexity
NAT = Number(float, 0, LARGE)  # any other mean of cross-entropies
RATIO = Number(float, 1 / LARGE, LARGE)  # of two of these
SIZE = Number(float, 0, LARGE)  # a variance or a norm: 0, of what adds nothing, can be
CHANGE = Number(float, 0)  # relative, so that it may be anything beside next to nothing
SHARE = Number(float, 0, 1)
COMPUTED_SHARE = Number(float, 0, 1 + NEARLY)
COSINE = Number(float, -1 - NEARLY, 1 + NEARLY)
DIVERGENCE = Number(float, -1e-3, LARGE)  # at least 0, but for 32-bit logits' rounding
ERROR = Number(float, 0)
LINE = Line()
CONFIG = {  # what no run is too old to have; of what kind an option is, check_option says
    **dict.fromkeys(("vocab_size", "block_size", "n_layer", "n_embd", "n_head"), object),
    **dict.fromkeys(("n_kv_head", "n_expert", "max_iters", "eval_interval"), object),
    **dict.fromkeys(("warmup_iters", "learning_rate", "min_lr", "weight_decay", "seed"), object),
    "dataset": LINE,
    "data_sha256": str,
    "eval_iters": Maybe(Number(int, 1)),
    "code": Maybe(LINE),
}
SUMMARY = {
    "diverged": bool,
    "seconds": Number(float, 0),
    "val_loss": (LOSS, NONE),
    "perplexity": (Number(float, 1), NONE),
    "last_layer_variance": (SIZE, NONE),
    "torch": LINE,
    "device": LINE,
    "params": Number(int, 1),
    "active_params": Number(int, 1),
    "memory_GiB": Maybe((Number(float, 0), NONE)),
}
SWEEP = {
    "point": (LINE, NONE),
    "rung": (Number(int, 0), NONE),
    "place": Number(int, 0),
    "options": [str],
}
LOGGED = {
    "step": Number(int, 0),
    "tokens": Number(int, 0),
    **dict.fromkeys(
        ("train_loss", "lr", "grad_norm", "tokens_per_second"), Maybe(Number(float, 0))
    ),
    "val_loss": Maybe(NAT),
    **dict.fromkeys(("variance", "attention_variance", "mlp_variance"), Maybe([SIZE])),
}
VALIDATED = {**LOGGED, "val_loss": NAT, "variance": [SIZE]}
OF_TASK = {
    "accuracy": SHARE,
    "standard_error": Maybe((ERROR, NONE)),  # None: over a single paradigm
    **dict.fromkeys(("control", "cut"), Maybe(SHARE)),
    "control_error": Maybe(ERROR),
}
USE = Each(Number(float, 0))
ANALYSIS = {
    "sequences": N_SEQUENCES,
    "length": Number(int, 1),
    "variance": {
        "residual": [SIZE],
        **dict.fromkeys(("attention", "mlp", "median", "without_first"), Maybe([SIZE])),
    },
    "prune_ratios": [RATIO],
    "cumulative": {"last": [NAT], "least": [NAT], "greedy": [NAT]},
    "causal": (CHANGE, NONE),
    "permutation": (CHANGE, NONE),
    "linear_ratios": {"held_out": [RATIO], "same": [RATIO], "transposed": [RATIO]},
    "usefulness": {"held_out": SHARE, "same": SHARE, "transposed": SHARE},
    "n_eff": Number(float, 0),
    "n_eff_share": COMPUTED_SHARE,
    "jacobian": {
        "deviation": [SIZE],
        "off_diagonal": [SIZE],
        "spectral": [SIZE],
        "per_token": [SIZE],
    },
    "block_influence": [Number(float, -NEARLY, 2 + NEARLY)],  # 1 - a cosine
    "logit_lens": [DIVERGENCE],
    "densities": {
        "weight": COMPUTED_SHARE,
        "attention": COMPUTED_SHARE,
        "key_value": SHARE,
        "expert": SHARE,
    },
    # Runs of a file published without matrices lack these.
    **dict.fromkeys(("causal_matrix", "permutation_matrix"), Maybe([[CHANGE]])),
    "angular_distance": Maybe([[COMPUTED_SHARE]]),
    # Older runs lack some of these.
    "code": Maybe(LINE),
    "sequences_of": Maybe(
        {"jacobian": N_SEQUENCES, "swap": N_SEQUENCES, "greedy_order": N_SEQUENCES}
    ),
    "loss": Maybe(LOSS),
    "perplexity": Maybe(Number(float, 1)),
    "seconds": Maybe(Number(float, 0)),
    "predicted_variance": Maybe(([SIZE], NONE)),
    "choices": Maybe(OF_TASK),
    "task": Maybe(OF_TASK),
    "blimp": Maybe({**OF_TASK, "paradigms": Maybe(Each(SHARE))}),
    "size": Maybe({"attention": Maybe([CHANGE]), "mlp": Maybe([CHANGE]), "block": [CHANGE]}),
    "cosine": Maybe({"attention": Maybe([COSINE]), "mlp": Maybe([COSINE]), "block": [COSINE]}),
    "growth": Maybe(Each(Number())),
    "updates": Maybe(Each(Number(float, 0))),
    "linear_use": Maybe(USE),
    "removal_use": Maybe(USE),
    "standard_errors": Maybe(dict),  # of these two check_errors says more
    "per_sequence": Maybe({"same_targets": Maybe(Each(NUMBERS))}),
    "same_targets": Maybe(
        {
            "targets": Number(int, 0),
            "own_context": Maybe(LOSS),
            "short_context": Maybe(LOSS),
        }
    ),
    "text": Maybe(
        {
            "passes": Number(float, 0),
            "by_position": [NAT],
            "positions_read": [Number(float, 0)],
            **dict.fromkeys(("held_out_loss", "training_loss"), Maybe(NAT)),
            "gap": Maybe(Number()),
        }
    ),
    "scored_from": Maybe({"scores": Maybe(str), "task": Maybe(str), "blimp": Maybe(str)}),
}
MEASURED = ("val_loss", "perplexity", "last_layer_variance")  # of SUMMARY, unless a run diverged
LENGTHS = {  # how many numbers, or rows, an entry of ANALYSIS holds beyond the number of blocks
    ("variance", "residual"): 1,
    ("variance", "median"): 1,
    ("variance", "without_first"): 1,
    ("variance", "attention"): 0,
    ("variance", "mlp"): 0,
    ("prune_ratios",): 0,
    **{("cumulative", order): 1 for order in ("last", "least", "greedy")},
    ("causal_matrix",): 0,
    ("permutation_matrix",): 0,
    **{("linear_ratios", maps): 0 for maps in ("held_out", "same", "transposed")},
    **{("jacobian", of): 0 for of in ("deviation", "off_diagonal", "spectral", "per_token")},
    ("block_influence",): 0,
    ("angular_distance",): 1,
    ("logit_lens",): 1,
    ("predicted_variance",): 1,
    **{(kind, part): 0 for kind in ("size", "cosine") for part in ("attention", "mlp", "block")},
}


# One run -----------------------------------------------------------------------------------------


def refuse_impossible(run, varied, config, source):
    """Raises BadInput, naming the source, where a results.runs.Run is not what its name says, or
    its scores are not its own, or do not follow from one another. varied: what its sweep varies;
    config: all its options."""
    check_sweep(run.name, varied, config, source)
    check_log(run, source)
    check_summary(run, source)
    if run.analysis is None:
        return
    check_lengths(run.analysis, config, source)
    check_errors(run, source)
    follow = {
        name: (pair_mean(run.analysis[f"{name}_matrix"]), f"{name}_matrix")
        for name in ("causal", "permutation")
        if f"{name}_matrix" in run.analysis
    }
    check_following(run.analysis, follow, f"{source}, analysis.json")


def check_sweep(name, varied, config, source):
    """Raises BadInput where config.json and the run's name disagree on what the sweep varies."""
    if fault := fault_of(varied, SWEEP, "sweep"):
        raise BadInput(f"{source}, config.json: {fault}")
    if unknown := set(varied["options"]) - OPTIONS.keys():
        raise BadInput(f"{source}, config.json: sweep.options names {min(unknown)}, no option")
    for option, text in values_in_name(name, varied).items():
        if not says(text, option, config):
            raise BadInput(
                f"{source}, config.json: {option} = {shortened(config[option])} is not the {text} "
                "of the run's name"
            )


def values_in_name(name, sweep):
    """{swept option: its value's text} in a run's name; none where the name is not made of the
    sweep's point and options, as a folder may be called otherwise."""
    point = [] if sweep["point"] is None else [re.escape(sweep["point"])]
    pattern = ",".join(point + [f"{option}=(.+)" for option in sweep["options"]]) or "run"
    match = re.fullmatch(pattern, name)
    return dict(zip(sweep["options"], match.groups(), strict=True)) if match else {}


def says(text, option, config):
    """Is this text, of a run's name, the option's value in its config, or one that train.py made
    this value of, such as n_head of an n_kv_head of 0? Or is it none at all, as of a folder that
    somebody called "seed=0 (old)"?"""
    if text == as_text(config[option]):
        return True
    options = {name: value for name, value in config.items() if name in OPTIONS}
    try:
        options[option] = check_option(option, parse_value(OPTIONS[option].type, text), "")
        built = build_configs(options, "")
    except BadInput:
        return True
    return any(getattr(part, option, None) == config[option] for part in built)


def check_measured(summary, source):
    """Raises BadInput where summary.json has or lacks what a run that diverged cannot have, or any
    other must."""
    there = [name for name in MEASURED if summary[name] is not None]
    absent = [name for name in MEASURED if summary[name] is None]
    if summary["diverged"] and there:
        raise BadInput(f"{source}, summary.json: a run that diverged has no {there[0]}")
    if summary["active_params"] > summary["params"]:
        raise BadInput(f"{source}, summary.json: active_params exceeds params")
    if absent and not summary["diverged"]:
        raise BadInput(f"{source}, summary.json: a run that did not diverge must have {absent[0]}")


def check_summary(run, source):
    """Raises BadInput where summary.json is not that of the run's log, or of a run with scores."""
    summary = run.summary
    check_measured(summary, source)
    if summary["diverged"]:
        if run.analysis is not None:
            raise BadInput(f"{source}, summary.json: a run that diverged has no scores")
        return
    last = run.log[-1]
    if summary["val_loss"] != last["val_loss"]:
        raise BadInput(
            f"{source}, log.jsonl does not end with the loss that summary.json gives "
            f"(val_loss = {summary['val_loss']}): delete the run to train it again"
        )
    follow = {
        "perplexity": (math.exp(summary["val_loss"]), "val_loss"),
        "last_layer_variance": (last["variance"][-1], "the log's last variance"),
    }
    check_following(summary, follow, f"{source}, summary.json")


def check_following(entries, follow, source):
    """Raises BadInput where an entry is not what others give. follow: {entry: (that number, what
    it is of)}."""
    for name, (wanted, of) in follow.items():
        said = entries[name]
        alike = said is wanted or (
            None not in (said, wanted) and math.isclose(said, wanted, rel_tol=ROUNDED)
        )
        if not alike:
            raise BadInput(
                f"{source}: {name} = {said} does not follow from {of}, which gives {wanted}"
            )


def check_log(run, source):
    """Raises BadInput where validations are missing, or not of the model's states."""
    interval, n_steps = run.config["eval_interval"], run.config["max_iters"]
    steps = [line["step"] for line in run.log]
    n_states = run.config["n_layer"] + 1
    places = range(0, n_steps, interval)  # and the last step
    wanted = [*places[: len(steps)], n_steps][: len(steps)]
    is_whole = run.summary["diverged"] or len(steps) == len(places) + 1
    of_states = all(len(line["variance"]) == n_states for line in run.log)
    if run.summary["diverged"] and n_steps in steps:
        raise BadInput(
            f"{source}, summary.json: diverged = True, though the log has the last step, {n_steps}"
        )
    if steps != wanted or not is_whole or not of_states:
        raise BadInput(
            f"{source}, log.jsonl: there must be a validation every {interval} steps up to "
            f"{n_steps}, with the variances of {n_states} states"
        )


def check_lengths(analysis, config, source):
    """Raises BadInput where an entry is of another number of blocks, or of longer sequences than
    the model takes."""
    length, longest = analysis["length"], config["block_size"]
    if length > longest:
        raise BadInput(
            f"{source}, analysis.json: length = {length} must be at most block_size = {longest}"
        )
    for keys, more in LENGTHS.items():
        values = at(analysis, keys)
        if values is None:  # what fault_of lets be missing
            continue
        name, wanted = ".".join(keys), config["n_layer"] + more
        if len(values) != wanted:
            raise BadInput(
                f"{source}, analysis.json: {name} has {len(values)} entries, where {wanted} belong"
            )
        if any(len(row) != wanted for row in values if isinstance(row, list)):
            raise BadInput(f"{source}, analysis.json: rows of {name} must have {wanted} entries")
    text = analysis.get("text", {"by_position": [], "positions_read": []})
    if len(text["by_position"]) != len(text["positions_read"]):
        raise BadInput(
            f"{source}, analysis.json: text.by_position and text.positions_read must be of one "
            "length"
        )


def check_errors(run, source):
    """Raises BadInput where "standard_errors" or "per_sequence" names a score that the run lacks,
    or has not its error, or not a number for each sequence."""
    scores = {  # by the names that they have there
        **run.analysis,
        "last_layer_variance": run.summary["last_layer_variance"],
        "linear_ratios": run.analysis["linear_ratios"]["held_out"],
    }
    errors = run.analysis.get("standard_errors", {})
    by_sequence = dict(run.analysis.get("per_sequence", {}))
    by_sequence.pop("same_targets", None)  # of stretches of text, which are not the sequences
    for_each = Several(run.analysis["sequences"], Number())
    fault = fault_by_score(errors, scores, ERROR, "standard_errors")
    fault = fault or fault_by_score(by_sequence, scores, for_each, "per_sequence")
    if fault:
        raise BadInput(f"{source}, analysis.json: {fault}")


def fault_by_score(said, score, wanted, name):
    """Why what is said of a score, or of each score in a list or dict, is not as wanted; None where
    it is."""
    if score is None:
        return f"{name} belongs to no score that is there"
    if isinstance(score, list):
        wanted = Several(len(score), wanted)
    if not isinstance(score, dict):
        return fault_of(said, wanted, name)
    if not isinstance(said, dict):
        return fault_of(said, {}, name)
    faults = (fault_by_score(said[key], score.get(key), wanted, f"{name}.{key}") for key in said)
    return next((fault for fault in faults if fault), None)


# Runs of a sweep ---------------------------------------------------------------------------------


def check_seeds(runs, path):
    """Raises BadInput where runs of a point are not runs of one config with seeds of their own."""
    for one, other in combinations(runs, 2):
        if one.point != other.point:
            continue
        both = f"{path}: {one.name} and {other.name} are both of {one.point}"
        if one.seed == other.seed:
            raise BadInput(
                f"{both} with seed {one.seed}, and are no two samples: move one to another folder"
            )
        configs = [common_to_seeds(run.config) for run in (one, other)]
        if option := first_difference(*configs):
            was, now = (shortened(config.get(option)) for config in configs)
            raise BadInput(
                f"{both}, whose seeds share all else, but {option} is {was} and {now}: move one to "
                "another folder"
            )
        if part := same_numbers(one, other):
            raise BadInput(
                f"{both} and have the same {part}: one is a copy, and no other seed, so remove it"
            )


def first_difference(one, other):
    """The first entry, by name, in which two dicts differ; None where they do not."""
    names = sorted(one.keys() | other.keys())
    return next((name for name in names if one.get(name) != other.get(name)), None)


def common_to_seeds(config):
    """What the config of a point's seeds says alike. A step may be taken in more and smaller
    batches, as a smaller GPU needs."""
    free = {*WHERE_NOT_WHAT, *MEASURED_BY, "seed", "sweep", "code", "log_interval"}
    in_pieces = "batch_size", "gradient_accumulation_steps"
    same = {name: value for name, value in config.items() if name not in {*free, *in_pieces}}
    return {**same, " x ".join(in_pieces): math.prod(config[name] for name in in_pieces)}


def same_numbers(one, other):
    """In which of "log" and "analysis" two runs have all in common, as no two seeds do; or None."""
    logs = [[(line["val_loss"], line["variance"]) for line in run.log] for run in (one, other)]
    if logs[0] == logs[1] != []:
        return "log"
    if None in (one.analysis, other.analysis):
        return None
    judged = ("prune_ratios", "linear_ratios", "causal_matrix", "variance")
    same = all(one.analysis.get(name) == other.analysis.get(name) for name in judged)
    return "analysis" if same else None


def check_data(runs, path):
    """Raises BadInput where one dataset has two contents, or points have another dataset than the
    rest, though they neither sweep it nor have names of their own."""
    by_dataset, by_point = {}, {}
    for run in runs:
        dataset = run.config["dataset"]
        first = by_dataset.setdefault(dataset, run)
        if first.config["data_sha256"] != run.config["data_sha256"]:
            raise BadInput(
                f"{path}: {first.name} and {run.name} have another data_sha256: data/{dataset} was "
                "not the same, so they do not compare: move one to another folder"
            )
        kind = run.config["sweep"]["point"], run.options.get("dataset")
        first = by_point.setdefault(kind, run)
        if first.config["dataset"] != dataset:
            raise BadInput(
                f"{path}: dataset is {first.config['dataset']} in {first.name} and {dataset} in "
                f"{run.name}, and the sweep does not vary it: move one to another folder"
            )
