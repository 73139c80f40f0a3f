"""What can be configured, and how a TOML file and the command line become the points of a sweep.

A config's flat keys are the fields of model.GPTConfig and of TrainConfig below. Lists under [sweep] are crossed; each
[[point]] is a set of overrides, with a `name` if it likes.
"""
import itertools
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path

from data.files import BadInput
from data.read import load_meta
from model import GPTConfig, refuse

WHERE_NOT_WHAT = ("out_dir", "device", "dtype", "compile")  # options that may differ between two starts of the same run


@dataclass
class TrainConfig:
    dataset: str = "pycode"     # a folder under data/, made by data/prepare.py
    out_dir: str = "out"        # runs go to out_dir/<config>/<point>
    batch_size: int = 32        # sequences at once; halve it and double the next for a smaller GPU: same result
    gradient_accumulation_steps: int = 1  # batches per step
    learning_rate: float = 1e-3 # at its peak
    min_lr: float = -1.0        # at the end of the cosine; negative: a tenth of learning_rate
    weight_decay: float = 0.1   # of matrices and embeddings
    warmup_iters: int = 100     # steps of linear warm-up
    max_iters: int = 1000       # steps in all
    eval_interval: int = 250    # steps between validations, which are also the checkpoints
    eval_iters: int = 10        # validation tokens, in training steps' worth
    log_interval: int = 25      # steps between lines of log.jsonl
    grad_clip: float = 1.0      # largest gradient norm; 0: no clipping
    seed: int = 0               # of the weights and of the order of the data
    device: str = "auto"        # auto, cpu, cuda or cuda:N
    dtype: str = "auto"         # of the residual stream and the products: auto, float32 or bfloat16
    compile: bool = True        # torch.compile on the GPU

    def __post_init__(self):
        self.min_lr = self.learning_rate / 10 if self.min_lr < 0 else self.min_lr
        for name, least in dict(batch_size=1, gradient_accumulation_steps=1, max_iters=1, eval_interval=1, eval_iters=1, log_interval=1,
                                learning_rate=0, weight_decay=0, warmup_iters=0, grad_clip=0, seed=0).items():
            refuse(getattr(self, name) < least, f"{name} = {getattr(self, name)} must be at least {least}")
        refuse(self.dtype not in ("auto", "float32", "bfloat16"), f'dtype = "{self.dtype}" must be auto, float32 or bfloat16')

    @property
    def sequences_per_step(self):
        return self.batch_size * self.gradient_accumulation_steps


OPTIONS = {field.name: field for config in (GPTConfig, TrainConfig) for field in fields(config)}


def check_option(name, value, source):
    """The value as the field's type; raises BadInput for a name or a type that the dataclasses do not know."""
    if name not in OPTIONS:
        raise BadInput(f"{source}: there is no option {name}; python train.py --help lists them all")
    kind = OPTIONS[name].type
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise BadInput(f"{source}: {name} = {value!r} must be of type {kind.__name__}")
    return value


def parse_override(name, text):
    """'4' -> [4], '4,8' -> [4, 8], 'window,full' -> ['window', 'full']: the text as the field's type, always a list."""
    if OPTIONS[name].type is bool:
        text = text.lower()
    try:
        values = tomllib.loads(f"values = [{text}]")["values"]
    except tomllib.TOMLDecodeError:
        values = text.split(",")
    if OPTIONS[name].type is str:
        values = [str(value) for value in values]
    return [check_option(name, value, "command line") for value in values]


def load_points(path, overrides):
    """Config file and {option: [values]} -> {point name: (GPTConfig, TrainConfig)}, in the order they run.

    An override of a swept option replaces its list; one with several values becomes a sweep; any other replaces
    the value wherever the file gives it. Raises BadInput, naming file and key."""
    try:
        config = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadInput(f"{path} is not valid TOML: {error}") from None
    sweep, points = config.pop("sweep", {}), config.pop("point", [{}])
    for name, values in overrides.items():
        if name in sweep or len(values) > 1:
            sweep[name] = values
        else:
            config[name] = values[0]
            points = [{**point, name: values[0]} if name in point else point for point in points]
    for name, values in sweep.items():
        if not isinstance(values, list) or not values:
            raise BadInput(f"{path}: [sweep] {name} = {values!r} must be a list of values")
        sweep[name] = [check_option(name, value, path) for value in values]
    resolved = {}
    for point, *swept in itertools.product(points, *sweep.values()):
        changes = {**point, **dict(zip(sweep, swept))}
        parts = {**({} if "name" in point else point), **dict(zip(sweep, swept))}
        parts = [f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in parts.items()]
        name = ",".join(([changes.pop("name")] if "name" in point else []) + parts) or "run"
        if name in resolved:
            raise BadInput(f"{path}: two points are called {name}: give each [[point]] a name of its own")
        options = {k: check_option(k, v, path) for k, v in {**config, **changes}.items()}
        resolved[name] = build_configs(options, f"{path}, {name}")
    return resolved


def build_configs(options, source):
    if "vocab_size" not in options:  # as many as the data has
        options = {**options, "vocab_size": load_meta(options.get("dataset", TrainConfig.dataset))["vocab_size"]}
    try:
        return tuple(kind(**{f.name: options[f.name] for f in fields(kind) if f.name in options}) for kind in (GPTConfig, TrainConfig))
    except ValueError as error:
        raise BadInput(f"{source}: {error}") from None
