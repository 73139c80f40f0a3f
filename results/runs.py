"""Run folders, and the JSON files that hold a sweep's runs once they are published.

    out/<config>/<run>/config.json      every option, the data's hash, and what the sweep varies
                       log.jsonl        a line per logging step
                       ckpt.pt          weights and optimizer after the last evaluation
                       summary.json     there once the run is finished
                       analysis.json    there once it is scored, by analyze.py
    results/<config>.json               the same of all its runs, without weights, a line each

A run differs from the others of its sweep by its point, which its seeds share: the name of a
[[point]], the values of the swept options, or both. config.json says which, under "sweep":

    {"point": "4-gqa", "rung": 4, "place": 5, "options": ["seed"]}
    {"point": null, "rung": null, "place": 0, "options": ["n_layer", "seed"]}
"""

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from configs.read import OPTIONS, WHERE_NOT_WHAT, build_configs
from data.files import BadInput, read_json, write_json, write_text
from model import GPT
from results.scores import derived

DIGITS = 6  # of a measured number, once it is published


# One folder --------------------------------------------------------------------------------------


def load_checkpoint(folder, map_location):
    """What train.py saved last: {"model", "optimizer", "step", "seconds"}. Raises BadInput."""
    path = folder / "ckpt.pt"
    try:
        return torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:  # torch.load raises many kinds for a damaged file
        raise BadInput(
            f"{path} cannot be read ({type(error).__name__}): delete {folder} to train it again"
        ) from None


def load_run(folder, device="cpu"):
    """A trained model, fp32 and in eval mode, with its TrainConfig. Raises BadInput."""
    folder = Path(folder)
    try:
        written = read_json(folder / "config.json")
    except (OSError, ValueError):
        raise BadInput(f"{folder} is not a run folder: it has no readable config.json") from None
    options = {name: value for name, value in written.items() if name in OPTIONS}
    model_config, config = build_configs(options, folder / "config.json")
    model = GPT(model_config).to(device)
    model.load_state_dict(load_checkpoint(folder, device)["model"])
    return model.eval(), config


def read_log(folder):
    """The lines of log.jsonl as dicts, without a last one that a kill cut short."""
    lines = (folder / "log.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    return [json.loads(line) for line in lines]


def finished(folder, identity):
    """Is the run with this config.json done? Raises BadInput where the folder holds another's work.

    The options that say where a run goes and not what it is may differ, and so may "sweep": the
    same run can be a point of several sweeps."""
    if not (folder / "config.json").exists():
        return False
    was = read_json(folder / "config.json")
    not_compared = {*WHERE_NOT_WHAT, "sweep"}
    changed = [
        f"{name} was {was.get(name)}, now {value}"
        for name, value in identity.items()
        if name not in not_compared and was.get(name) != value
    ]
    if changed:
        raise BadInput(
            f"{folder} holds a run of another config ({'; '.join(changed)}): delete it, "
            "or set --out_dir"
        )
    return (folder / "summary.json").exists()


# All runs of a sweep -----------------------------------------------------------------------------


def as_text(value):
    """A value as it stands in names: 0.003 and not 0.0030000000000000001."""
    return f"{value:g}" if isinstance(value, float) else str(value)


@dataclass
class Run:
    name: str  # its folder's, such as n_layer=8,seed=0
    config: dict  # what config.json holds
    summary: dict  # what summary.json holds
    log: list  # the lines of log.jsonl that hold a validation
    analysis: dict | None  # what analysis.json holds; None where the run diverged or was not scored

    @property
    def seed(self):
        return self.config["seed"]

    @property
    def rung(self):
        """The number of the run's rung on a ladder, or None."""
        return self.config["sweep"]["rung"]

    @property
    def options(self):
        """{swept option: its value}, without the seed, in the order of the run's name."""
        swept = self.config["sweep"]["options"]
        return {option: self.config[option] for option in swept if option != "seed"}

    @property
    def parts(self):
        """What tells the run's point from others, such as ["window-8"] or ["n_layer=8"]."""
        name = self.config["sweep"]["point"]
        values = [f"{option}={as_text(value)}" for option, value in self.options.items()]
        return values if name is None else [name, *values]

    @property
    def point(self):
        """The name of the run's point, which all its seeds share."""
        return ",".join(self.parts) or "run"

    @property
    def order(self):
        """What the runs of a sweep are sorted by. Options of several kinds do not compare, so
        text is kept apart from numbers."""
        values = [(isinstance(value, str), value) for value in self.options.values()]
        return self.config["sweep"]["place"], values, self.seed


def sweep_from_name(name, places):
    """What `config["sweep"]` would say, for a run from before it was written: read from the run's
    name, such as 4-gqa,seed=1. Here alone a name is taken apart. places {[[point]]: its number}
    grows by every one that it has not seen."""
    values = dict(part.split("=", 1) for part in name.split(",") if "=" in part)
    options = [option for option in values if option in OPTIONS]
    point = ",".join(part for part in name.split(",") if part.split("=")[0] not in options)
    point = None if point in ("", "run") else point
    rung = re.match(r"(\d+)-", point or "")
    return {
        "point": point,
        "rung": int(rung[1]) if rung else None,
        "place": places.setdefault(point, len(places) + 1) if point else 0,
        "options": options,
    }


def completed(runs):
    """The runs; older ones are told what their sweep varies, which config.json did not yet say, and
    are given those scores that follow from what their analysis.json holds."""
    places = {}
    for run in runs:
        if "sweep" not in run.config:
            run.config = {**run.config, "sweep": sweep_from_name(run.name, places)}
        if run.analysis is not None:
            run.analysis = derived(run.analysis) | run.analysis
    return runs


def read_runs(path):
    """All finished runs, [Run], of a sweep's folder (sorted: 4 blocks before 16), or of the JSON
    file that publish_runs made of one (as they stand there). Raises BadInput."""
    if path.suffix == ".json":
        return completed(read_published(path))
    folders = sorted(file.parent for file in path.glob("*/summary.json"))
    return sorted(completed([read_run(folder) for folder in folders]), key=lambda run: run.order)


def read_run(folder):
    analysis = folder / "analysis.json"
    return Run(
        name=folder.name,
        config=read_json(folder / "config.json"),
        summary=read_json(folder / "summary.json"),
        log=[line for line in read_log(folder) if "val_loss" in line],
        analysis=read_json(analysis) if analysis.exists() else None,
    )


def read_published(path):
    try:
        runs = read_json(path)
        for run in runs:
            run.pop("seed", None)  # older files repeat what stands in the config
        return [Run(**run) for run in runs]
    except (TypeError, AttributeError, ValueError):
        raise BadInput(
            f"{path} is no sweep that --publish wrote: give such a file, or a folder of runs"
        ) from None


def publish_runs(runs, path):
    """One JSON file of a sweep's runs, a line each: DIGITS of each measured number (of a config,
    all), and of the log the stream's variances, but not the branches'."""
    lines = [json.dumps(published(run), allow_nan=False) for run in runs]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "[\n" + ",\n".join(lines) + "\n]\n")


def published(run):
    fields = rounded(asdict(run))
    for line in fields["log"]:
        line.pop("attention_variance", None)
        line.pop("mlp_variance", None)
    return {**fields, "config": run.config}


def rounded(numbers, digits=DIGITS):
    """Numbers in any lists and dicts, to so many significant digits."""

    def shorten(number):
        return float(f"{float(number):.{digits}g}")

    return json.loads(json.dumps(numbers), parse_float=shorten)


def restore_runs(path, folder):
    """Run folders, without weights, from a published file: train.py takes their runs for finished
    and goes on with others. A run that was never scored cannot be without its weights, so it is
    left to be trained again. Raises BadInput where a folder exists already."""
    for run in read_runs(path):
        if run.analysis is None and not run.summary["diverged"]:
            continue
        target = folder / path.stem / run.name
        if target.exists():
            raise BadInput(f"{target} exists already: delete it, or restore into another folder")
        target.mkdir(parents=True)
        write_text(target / "log.jsonl", "".join(json.dumps(line) + "\n" for line in run.log))
        for name in ("config", "analysis", "summary"):  # the last one makes it a finished run
            write_json(target / f"{name}.json", getattr(run, name))
