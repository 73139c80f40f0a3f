"""What can be configured, and how a TOML file and a command line become the points of a sweep.

A config's flat keys are the fields of model.GPTConfig and of TrainConfig below. Lists under [sweep]
are crossed. Each [[point]] is a set of overrides, with a `name` if it likes, and with a `rung` if
it stands on a ladder of points that add to one another.
"""

import argparse
import inspect
import itertools
import re
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple

from data.files import BadInput, check_name, read_text, reason, refuse_dashes
from data.read import load_meta
from model import GPTConfig, refuse, refuse_outside

# What may differ when a run is resumed: where it goes, and how it gets there.
WHERE_NOT_WHAT = ("out_dir", "device", "dtype", "compile", "checkpoint_interval")

# How a run is validated, which is no part of what it is; older runs have eval_iters.
MEASURED_BY = ("eval_tokens", "eval_iters")


@dataclass
class TrainConfig:
    """Raises ValueError, in one sentence that names the option, for a run that cannot be."""

    dataset: str = "pycode"  # a folder under data/, made by data/prepare.py
    out_dir: str = "out"  # runs go to out_dir/<config>/<point>
    batch_size: int = 32  # sequences at once
    gradient_accumulation_steps: int = 1  # batches a step; two of half the size need less memory
    learning_rate: float = 1e-3  # at its peak
    min_lr: float = -1.0  # at the end of the cosine; negative: a tenth of learning_rate
    weight_decay: float = 0.1  # of matrices and embeddings
    warmup_iters: int = 100  # steps of linear warm-up
    max_iters: int = 1000  # steps in all
    eval_interval: int = 250  # steps between validations
    checkpoint_interval: int = 1  # validations between checkpoints; the last is always one
    eval_tokens: int = 65536  # validation tokens, spread over val.bin
    log_interval: int = 25  # steps between lines of log.jsonl
    grad_clip: float = 1.0  # largest gradient norm; 0: no clipping
    seed: int = 0  # of the weights and of the order of the data
    device: str = "auto"  # auto, cpu, cuda, cuda:N or mps, an Apple GPU
    dtype: str = "auto"  # of the residual stream and the products: auto, float32 or bfloat16
    compile: bool = True  # torch.compile on a CUDA GPU

    def __post_init__(self):
        self.min_lr = self.learning_rate / 10 if self.min_lr < 0 else self.min_lr
        may_be_0 = ("learning_rate", "min_lr", "weight_decay", "warmup_iters", "grad_clip", "seed")
        for name, value in vars(self).items():
            if isinstance(value, str):
                refuse(not value, f"{name} must not be empty")
                refuse("\0" in value, f"{name} = {value!r} must not hold a NUL character")
            elif not isinstance(value, bool):
                refuse_outside(name, value, least=0 if name in may_be_0 else 1)
        warmup, n_steps = self.warmup_iters, self.max_iters
        refuse(warmup > n_steps, f"warmup_iters = {warmup} must be at most max_iters = {n_steps}")
        low, high = self.min_lr, self.learning_rate
        refuse(low > high, f"min_lr = {low} must be at most learning_rate = {high}")
        known = ("auto", "float32", "bfloat16")
        refuse(self.dtype not in known, f'dtype = "{self.dtype}" must be one of {", ".join(known)}')

    @property
    def sequences_per_step(self):
        return self.batch_size * self.gradient_accumulation_steps


# Options ------------------------------------------------------------------------------------------

OPTIONS = {field.name: field for config in (GPTConfig, TrainConfig) for field in fields(config)}


def help_of_options():
    """What --help says of each option: the comment behind its field, here and in model.py.

    Of the line `    n_layer: int = 4  # depth L, in blocks` it is "depth L, in blocks".
    """
    source = inspect.getsource(GPTConfig) + inspect.getsource(TrainConfig)
    comments = dict(re.findall(r"^    (\w+): \w+ = [^#\n]*# (.*)$", source, re.MULTILINE))
    return {name: comments.get(name, "") for name in OPTIONS}


def parse_arguments(argv, program, description):
    """The config's path and {option: [values]}, of the command line of a program that takes these,
    such as train.py."""
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage=f"python {program} CONFIG [--option=value ...]",
        allow_abbrev=False,
    )
    parser.add_argument("config", metavar="CONFIG", help="a TOML file, such as configs/demo.toml")
    comments = help_of_options()
    for name, field in OPTIONS.items():
        text = f"{comments[name]} (default {field.default})"
        parser.add_argument(f"--{name}", metavar=field.type.__name__, help=text)
    arguments, unknown = parser.parse_known_args(argv)
    if unknown:
        raise BadInput(
            f"{unknown[0]} is no option: options are written --name=value, and "
            f"python {program} --help lists them all"
        )
    refuse_dashes(arguments)
    arguments = vars(arguments)
    path = Path(arguments.pop("config"))
    given = {name: text for name, text in arguments.items() if text is not None}
    return path, {name: parse_override(name, text) for name, text in given.items()}


KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def check_option(name, value, source):
    """The value as the field's type, so that 1 does for 1.0.

    Raises BadInput for a name or a type that the dataclasses do not know.
    """
    if name not in OPTIONS:
        raise BadInput(
            f"{source}: there is no option {name}; python train.py --help lists them all"
        )
    kind = OPTIONS[name].type
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise BadInput(f"{source}: {name} = {value!r} must be {KINDS[kind]}")
    return value


def parse_override(name, text):
    """The text behind --name= as a list of the option's type, whether it holds one value or more.

    "4" becomes [4], "4,8" becomes [4, 8], and "window,full" becomes ["window", "full"]. What says
    where a run goes, and not what it is, is one value, commas and all.
    """
    kind = OPTIONS[name].type
    parts = [text] if name in WHERE_NOT_WHAT else text.split(",")
    return [check_option(name, parse_value(kind, part.strip()), "command line") for part in parts]


def parse_value(kind, text):
    """The text as an int, float, bool or str; as it is where it is none."""
    try:
        return {"true": True, "false": False}[text.lower()] if kind is bool else kind(text)
    except (KeyError, ValueError):
        return text


def build_configs(options, source):
    """{option: value} as (GPTConfig, TrainConfig); raises BadInput for what cannot be."""
    if "vocab_size" not in options:  # as many as the data has
        dataset = options.get("dataset", TrainConfig.dataset)
        options = {**options, "vocab_size": load_meta(dataset)["vocab_size"]}

    def build(kind):
        return kind(**{f.name: options[f.name] for f in fields(kind) if f.name in options})

    try:
        return build(GPTConfig), build(TrainConfig)
    except ValueError as error:
        raise BadInput(f"{source}: {error}") from None


# Points -------------------------------------------------------------------------------------------

LABELS = {"name": str, "rung": int}  # what a [[point]] may hold beside options


class Point(NamedTuple):
    """One run of a sweep. `sweep` says what sets it apart, and goes into the run's config.json:

    {"point": "5-moe",      the name of its [[point]], or None
     "rung": 5,             the rung of its [[point]], or None
     "place": 6,            which [[point]] of the file it is, from 1; 0 where the file has none
     "options": ["seed"]}   the options that vary, in the order in which the run's name has them
    """

    model: GPTConfig
    training: TrainConfig
    sweep: dict


def load_points(path, overrides):
    """Config file and {option: [values]} -> {name: Point}, in the order in which they run.

    A run is called by its [[point]]'s name and the values that vary, such as "5-moe,seed=0" or
    "n_layer=8,seed=0"; "run", where there is neither. Raises BadInput, which names file and key.
    """
    options, sweep, points = override(*read_config(path), overrides)
    sweep = {
        name: check_list(name, values, "command line" if name in overrides else path)
        for name, values in sweep.items()
    }
    first = 0 if points == [{}] else 1
    numbered_points = list(enumerate(points, start=first))
    resolved = {}
    for (place, point), *values in itertools.product(numbered_points, *sweep.values()):
        own, labels = split_labels(point, path)
        swept = dict(zip(sweep, values, strict=True))
        varied = swept if "name" in labels else {**own, **swept}
        name = check_name(run_name(labels, varied), f"{path}: the point")
        if name in resolved:
            raise BadInput(
                f"{path}: two points are called {name}: give each [[point]] a name of its own"
            )
        changed = {**options, **own, **swept}
        checked = {key: check_option(key, value, path) for key, value in changed.items()}
        description = {
            "point": labels.get("name"),
            "rung": labels.get("rung"),
            "place": place,
            "options": list(varied),
        }
        resolved[name] = Point(*build_configs(checked, f"{path}, {name}"), description)
    return resolved


def read_config(path):
    """A TOML file's flat options {name: value}, its [sweep] {name: values} and its [[point]]s."""
    try:
        options = tomllib.loads(read_text(path))
    except FileNotFoundError:
        raise BadInput(f"there is no {path}: name a config, such as configs/demo.toml") from None
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path} is not valid TOML: {reason(error)}") from None
    sweep, points = options.pop("sweep", {}), options.pop("point", [{}])
    if not isinstance(sweep, dict):
        raise BadInput(f"{path}: sweep must be a table, [sweep], of lists of values")
    if not isinstance(points, list) or not points or not all(isinstance(p, dict) for p in points):
        raise BadInput(f"{path}: point must be tables, [[point]] each, of options")
    return options, sweep, points


def override(options, sweep, points, overrides):
    """Put {option: [values]} over what a file says.

    An override of a swept option replaces its list. One with several values becomes a sweep. Any
    other replaces the value wherever the file gives it.
    """
    options, sweep = dict(options), dict(sweep)
    for name, values in overrides.items():
        if name in sweep or len(values) > 1:
            sweep[name] = values
        else:
            options[name] = values[0]
            points = [{**point, name: values[0]} if name in point else point for point in points]
    return options, sweep, points


def check_list(name, values, source):
    """The values under [sweep], each as the field's type, and none twice, as names show them."""
    if not isinstance(values, list) or not values:
        raise BadInput(f"{source}: [sweep] {name} = {values!r} must be a list of values")
    values = [check_option(name, value, source) for value in values]
    texts = [as_text(value) for value in values]
    if twice := [text for text in texts if texts.count(text) > 1]:
        raise BadInput(f"{source}: {name} has {twice[0]} twice: leave one out")
    return values


def split_labels(point, path):
    """A [[point]]'s options, and its labels: both {key: value}."""
    options = {key: value for key, value in point.items() if key not in LABELS}
    labels = {key: value for key, value in point.items() if key in LABELS}
    for key, value in labels.items():
        kind = LABELS[key]
        if type(value) is not kind:
            raise BadInput(f"{path}: [[point]] {key} = {value!r} must be {KINDS[kind]}")
    if labels.get("rung", 0) < 0:
        raise BadInput(f"{path}: [[point]] rung = {labels['rung']} must be at least 0")
    return options, labels


def as_text(value):
    """A value as it stands in names: 0.003 and not 0.0030000000000000001."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def run_name(labels, varied):
    """{"name": "full"} and {"seed": 0, "min_lr": 1e-4} -> "full,seed=0,min_lr=0.0001"."""
    parts = [labels["name"]] if "name" in labels else []
    for key, value in varied.items():
        parts.append(f"{key}={as_text(value)}")
    return ",".join(parts) or "run"
