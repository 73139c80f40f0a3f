"""Run folders, and the JSON files that hold a sweep's runs once they are published.

    out/<config>/<run>/config.json      every option, the data's hash, and what the sweep varies
                       log.jsonl        a line per logging step
                       ckpt.pt          weights and optimizer as of the last checkpoint
                       summary.json     there once the run is finished
                       analysis.json    there once it is scored, by analyze.py
    results/<config>.json               the same of all its runs, without weights, a line each
                                        (see "Published files" below)

A run differs from the others of its sweep by its point, which its seeds share: the name of a
[[point]], the values of the swept options, or both. config.json says which, under "sweep":

    {"point": "4-gqa", "rung": 4, "place": 5, "options": ["seed"]}
    {"point": null, "rung": null, "place": 0, "options": ["n_layer", "seed"]}
"""

import json
import re
import shutil
import zipfile
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch

from configs.read import (
    MEASURED_BY,
    OPTIONS,
    WHERE_NOT_WHAT,
    as_text,
    build_configs,
    check_option,
)
from data.files import (
    BadInput,
    Maybe,
    Number,
    Several,
    at,
    check_name,
    fault_of,
    read_json,
    read_json_lines,
    read_text,
    replacing,
    say,
    shortened,
    write_json,
    write_text,
)
from data.read import load_meta
from model import GPT
from results.checks import (
    ANALYSIS,
    CONFIG,
    LOGGED,
    NONE,
    NUMBERS,
    SUMMARY,
    VALIDATED,
    check_data,
    check_measured,
    check_seeds,
    refuse_impossible,
    same_numbers,
)
from results.scores import derived

DEFAULTS = {name: field.default for name, field in OPTIONS.items()}
DIGITS = 6  # of a measured number, once it is published
FEWER_DIGITS = {  # in the lists of an entry, where there are many numbers and none is judged
    "causal_matrix": 3,
    "permutation_matrix": 3,
    "angular_distance": 3,
    "densities": 3,
    "standard_errors": 3,
    "per_sequence": 4,
    "variance": 4,
    "size": 4,
    "cosine": 4,
    "cumulative": 4,
    "block_influence": 4,
    "logit_lens": 4,
    "predicted_variance": 4,
}
DIGITS_OF_LOG = 4  # of its variances
OF_FIRST_RUNS = [  # entries of analysis.json, of many numbers, that no report compares over seeds
    ("per_sequence",),
    ("standard_errors", "linear_ratios"),
    ("standard_errors", "prune_ratios"),
    ("densities", "attended_keys"),
    ("densities", "attended_share"),
    ("densities", "expert_use"),
]
SYMMETRIC = {  # the matrices; what is not symmetric is zero below the diagonal
    "causal_matrix": False,
    "permutation_matrix": True,
    "angular_distance": True,
}

CHECKPOINT = {
    "model": dict,
    "optimizer": dict,
    "step": Number(int, 0),
    "seconds": Number(float, 0),
}


# One folder --------------------------------------------------------------------------------------


def configs_of(written, source):
    """(GPTConfig, TrainConfig) of what a config.json holds, also one from before some options
    existed. Raises BadInput, which names the source and the option."""
    if fault := fault_of(written, CONFIG):
        raise BadInput(f"{source}: {fault}")
    options = {
        name: check_option(name, value, source)
        for name, value in written.items()
        if name in OPTIONS
    }
    return build_configs(options, source)


def load_checkpoint(folder, map_location):
    """What train.py saved last: {"model", "optimizer", "step", "seconds"}. Raises BadInput."""
    path = folder / "ckpt.pt"
    if not path.exists():
        raise BadInput(
            f"{folder} has no ckpt.pt: its weights were not kept, as of runs restored from a "
            "published file; train it in another --out_dir"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            changed = archive.testzip()  # torch.load compares no checksums
        checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except PermissionError:  # which no training anew would cure
        raise
    except Exception as error:  # torch.load raises many kinds for a damaged file
        raise damaged(folder, f"{type(error).__name__}") from None
    if changed is not None:
        raise damaged(folder, f"{changed} is not as it was written")
    if fault := fault_of(checkpoint, CHECKPOINT):
        raise damaged(folder, fault)
    return checkpoint


def damaged(folder, fault):
    return BadInput(
        f"{folder / 'ckpt.pt'} cannot be used ({fault}): delete {folder} to train it again"
    )


def load_weights(model, checkpoint, folder):
    """Put the checkpoint's weights into the model; raises BadInput where they are not its own."""
    try:
        model.load_state_dict(checkpoint["model"])
    except Exception:  # of another shape, under other names, or no tensors at all
        raise damaged(folder, "it is of another model than config.json describes") from None
    if not all(torch.isfinite(parameter).all() for parameter in model.parameters()):
        raise damaged(folder, "its weights are not finite")


def described(folder):
    """(GPTConfig, TrainConfig, what config.json holds) of a run. Raises BadInput."""
    path = folder / "config.json"
    if not path.exists():
        runs = sorted(folder.glob("*/config.json"))
        such_as = f"{runs[0].parent}" if runs else "out/demo/n_layer=8"
        raise BadInput(f"{folder} is no run's folder, with a config.json: name one, as {such_as}")
    written = read_json(path, dict)
    return *configs_of(written, path), written


def load_run(folder, device="cpu"):
    """A trained model, fp32 and in eval mode, with its TrainConfig. Raises BadInput."""
    folder = Path(folder)
    model_config, config, _ = described(folder)
    checkpoint = load_checkpoint(folder, device)
    model = GPT(model_config).to(device)
    load_weights(model, checkpoint, folder)
    return model.eval(), config


def read_log(folder):
    """The lines of log.jsonl as dicts, without a last one that a kill cut short. Raises BadInput,
    which names the line, where another is damaged."""
    path = folder / "log.jsonl"
    cut_short = not read_text(path).endswith("\n")
    lines = read_json_lines(path, LOGGED, n_left_out=1 if cut_short else 0)
    return [line for _, line in lines]


def finished(folder, identity):
    """Is the run of this identity, which is what config.json holds but for "sweep", done? Raises
    BadInput where the folder holds another run's work, or the same run's by other code.

    The options that say where a run goes and not what it is may differ, and so may "sweep": the
    same run can be a point of several sweeps. Older runs do not say what code they are by."""
    path = folder / "config.json"
    if not path.exists():
        return False
    written = read_json(path, dict)
    was = {**defaults_of(written), "code": identity["code"], **written}
    not_compared = {*WHERE_NOT_WHAT, "sweep", "code"}
    if "eval_iters" in written:
        not_compared |= set(MEASURED_BY)
    changed = [
        f"{name} was {was.get(name)!r}, now {value!r}"
        for name, value in identity.items()
        if name not in not_compared and was.get(name) != value
    ]
    if changed:
        raise BadInput(
            f"{folder} holds a run of another config ({'; '.join(changed)}): delete it, "
            "or set --out_dir"
        )
    refuse_other_code(folder, written, identity["code"])
    return (folder / "summary.json").exists()


def refuse_other_code(folder, written, code, or_else=""):
    """Raises BadInput where a config.json says that other code trained; older ones do not say."""
    if written.get("code", code) != code:
        raise BadInput(
            f"{folder} was trained by other code: three small steps and a validation came to "
            f"{written['code']}, and come to {code} now; train anew in another --out_dir{or_else}"
        )


def refuse_other_data(folder):
    """Raises BadInput where the dataset of a run is not, or no longer, what it was trained on."""
    _, config, written = described(folder)
    now = load_meta(config.dataset)["sha256"]
    if written.get("data_sha256", now) != now:
        raise BadInput(
            f"data/{config.dataset} is not what {folder} was trained on: prepare it as it was, "
            "or train again"
        )


def twin_of(folder, identity, out_dir):
    """Another folder of a finished run of this identity, in any sweep in out_dir, or None."""

    def what(options):
        elsewhere = ("out_dir", "checkpoint_interval", "sweep")
        return {name: value for name, value in options.items() if name not in elsewhere}

    for path in sorted(out_dir.glob("*/*/summary.json")):
        twin = path.parent
        try:
            is_same = what(read_json(twin / "config.json", dict)) == what(identity)
            run = read_run(twin) if is_same and twin != folder else None
        except (BadInput, OSError):  # a damaged folder of another sweep is no concern of this one
            continue
        # One with neither weights nor scores could never be scored.
        if run and (run.analysis or run.summary["diverged"] or (twin / "ckpt.pt").exists()):
            return twin
    return None


def copy_run(twin, folder, sweep):
    """Make a finished run's folder, as a point of another sweep; summary.json comes last, so that
    what a kill leaves is no finished run."""
    write_json(folder / "config.json", {**read_json(twin / "config.json", dict), "sweep": sweep})
    for name in ("log.jsonl", "ckpt.pt", "analysis.json", "summary.json"):
        if (twin / name).exists():
            with replacing(folder / name) as temporary:
                shutil.copyfile(twin / name, temporary)


# All runs of a sweep -----------------------------------------------------------------------------


@dataclass
class Run:
    name: str  # its folder's, such as n_layer=8,seed=0
    config: dict  # what config.json holds
    summary: dict  # what summary.json holds
    log: list  # the lines of log.jsonl that hold a validation
    analysis: dict | None  # what analysis.json holds; None where the run diverged or was not scored
    added: tuple = field(default=(), compare=False)  # what completed did: ("config", its key), ...

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


def defaults_of(written):
    """Of options that config.json is too old to have. A run with eval_iters has no eval_tokens."""
    if "eval_iters" in written:
        return {name: default for name, default in DEFAULTS.items() if name not in MEASURED_BY}
    return DEFAULTS


def completed(runs):
    """The runs; older ones are told what their sweep varies, which config.json did not yet say, are
    given the defaults of options that did not exist yet, and those scores that follow from what
    their analysis.json holds."""
    places = {}
    for run in runs:
        add(run, "config", defaults_of(run.config))
        if "sweep" not in run.config:
            add(run, "config", {"sweep": sweep_from_name(run.name, places)})
        if run.analysis is not None:
            add(run, "analysis", derived(run.analysis))
    return runs


def add(run, part, entries):
    """Give a run's config or analysis those of the entries that it lacks, and note which."""
    own = getattr(run, part)
    run.added += tuple((part, name) for name in entries if name not in own)
    setattr(run, part, {**entries, **own})


def read_runs(path):
    """All finished runs, [Run], of a sweep's folder (sorted: 4 blocks before 16), or of the JSON
    file that publish_runs made of one (as they stand there). Raises BadInput."""
    if path.suffix == ".json":
        runs = completed(read_published(path))
    else:
        runs = completed([read_run(folder) for folder in folders_with("summary.json", path)])
        runs = without_copies(sorted(runs, key=lambda run: run.order), path)
    check_seeds(runs, path)
    check_data(runs, path)
    return runs


def folders_with(name, path):
    """A sweep's folders that hold a file of this name, sorted. Raises PermissionError for one that
    may not be looked into, which a pattern would leave out in silence."""
    folders = sorted(folder for folder in path.iterdir() if folder.is_dir())
    return [folder for folder in folders if folder / name in folder.iterdir()]


def without_copies(runs, path):
    """The runs, each once: train.py copies one that stands in the sweep's folder by another name,
    as n_layer=4 to n_layer=4,seed=0 once seeds are swept, too."""
    kept = []
    for run in runs:
        twins = [each for each in kept if (each.point, each.seed) == (run.point, run.seed)]
        if twins and same_numbers(twins[0], run) == "log":
            say(f"{path}: {run.name} is {twins[0].name} by another name, and counts once")
        else:
            kept.append(run)
    return kept


def read_summary(folder):
    """What summary.json holds. Raises BadInput."""
    try:
        summary = read_json(folder / "summary.json", SUMMARY)
        check_measured(summary, folder)
    except BadInput as error:
        raise BadInput(f"{error}; delete it, and train.py goes on from the checkpoint") from None
    return summary


def read_analysis(folder):
    """What analysis.json holds; None where a run has none, or diverged. Raises BadInput."""
    path = folder / "analysis.json"
    try:
        return read_json(path, (ANALYSIS, NONE)) if path.exists() else None
    except BadInput as error:
        raise BadInput(f"{error}; delete it to score the run again") from None


def read_run(folder):
    log = [line for line in read_log(folder) if "val_loss" in line]
    fields = {
        "config": read_json(folder / "config.json", dict),
        "summary": read_summary(folder),
        "log": log,
        "analysis": read_analysis(folder),
    }
    if fault := fault_of(log, [VALIDATED]):
        raise BadInput(f"{folder / 'log.jsonl'}: {fault}")
    return checked(Run(folder.name, **fields), folder)


def checked(run, source):
    """The run. Raises BadInput, naming the source, where it is not what a run must be."""
    configs_of(run.config, f"{source}, config.json")
    varied = run.config.get("sweep", sweep_from_name(run.name, {}))
    refuse_impossible(run, varied, {**defaults_of(run.config), **run.config}, source)
    return run


# Published files ---------------------------------------------------------------------------------
#
# {"shared": {...}, "names": [...], "runs": [...]}, a line for each run: "shared" is what all of
# them have, as most options. The rest is a table: each of "names" is the keys of an entry, such as
# ["analysis", "causal"], and a run's line has its values in their order, {} where it has none.
# The log stands in columns, {name: [values]}, null where a line lacks one, and so do the accuracies
# of BLiMP's paradigms. Of a matrix there is what stands above its diagonal, the last row being
# empty. Names are sorted, so that what is read and published again stays as it is, byte for byte.
# In older files a run's line is an object of its own entries, or all of the file a list of runs.


def publish_runs(runs, path, with_matrices=True):
    """One JSON file of a sweep's runs: DIGITS of each measured number (a config's all, fewer of
    those in FEWER_DIGITS), of the log the stream's variances, but not the branches', and what is in
    OF_FIRST_RUNS of each point's first scored run. Left out are what completed added, as it follows
    from the rest, and which weights and code the scores follow from, as no weights come with it;
    and, without matrices, these. Raises BadInput, before it writes, for a run whose folder was
    given a name that a file could not hand on."""
    firsts = {}
    for run in runs:
        check_name(run.name, "to be published, the run's folder")
        if run.analysis is not None:
            firsts.setdefault(run.point, run.name)
    runs = [packed(run, firsts.get(run.point) == run.name, with_matrices) for run in runs]
    shared = shared_by(runs) if len(runs) > 1 else {}
    own = [by_keys(without(shared, run)) for run in runs]
    names = sorted({keys for entries in own for keys in entries})
    lines = ",\n".join(as_line([entries.get(keys, {}) for keys in names]) for entries in own)
    path.parent.mkdir(parents=True, exist_ok=True)
    head = f'"shared":{as_line(shared)},\n"names":{as_line(names)}'
    write_text(path, f'{{{head},\n"runs":[\n{lines}\n]}}\n')


def is_published(path):
    """Does the JSON file hold a sweep's runs? Other measurements have other keys. Raises BadInput
    where it is no JSON."""
    content = read_json(path)
    if isinstance(content, dict):
        return "shared" in content or "runs" in content
    return isinstance(content, list)


def read_published(path):
    """The runs of a published file. Raises BadInput where it is none, names the same run twice, or
    names one that could leave its folder."""
    try:
        content = read_json(path)
        is_older = isinstance(content, list)
        if is_older:
            content = {"shared": {}, "runs": content}
        own = own_entries(content, path)
        runs = [unpacked(together(content["shared"], entries), path) for entries in own]
        for number, run in enumerate(runs):
            refuse_fields(run, path, number, is_older)
    except BadInput as error:
        raise BadInput(f"{error}; it is no sweep that --publish wrote") from None
    names = [check_name(run["name"], f"{path}: the run") for run in runs]
    for name in names:
        if names.count(name) > 1:
            raise BadInput(f"{path} holds {name} twice, which would count as two seeds: remove one")
    runs = [Run(**{field: run[field] for field in PUBLISHED}) for run in runs]
    return [checked(run, f"{path}, {run.name}") for run in runs]


PUBLISHED = {  # a run's fields
    "name": str,
    "config": dict,
    "summary": SUMMARY,
    "log": [VALIDATED],
    "analysis": (ANALYSIS, NONE),
}


def own_entries(content, path):
    """What each run has for itself, as dicts in dicts. Raises BadInput where the content is not
    that of a published file."""
    fault = fault_of(content, {"shared": dict, "names": Maybe([[str]]), "runs": list})
    if not fault:
        names = content.get("names")
        line = dict if names is None else Several(len(names), object)
        fault = fault_of(content, {"runs": [line]})
    if not (fault or content["runs"]):
        fault = "runs is empty"
    if fault:
        raise BadInput(f"{path}: {fault}")
    lines = content["runs"]
    return lines if names is None else [in_dicts(names, line) for line in lines]


def refuse_fields(fields, path, number, is_older):
    """Raises BadInput where the fields of the run of this number are not a run's. Those of older
    files may have more."""
    if fault := fault_of(fields, {"name": str}, f"runs[{number}]"):
        raise BadInput(f"{path}: {fault}")
    source = f"{path}, {shortened(fields['name'])[1:-1]}"
    if fault := fault_of(fields, PUBLISHED):
        raise BadInput(f"{source}: {fault}")
    unknown = fields.keys() - PUBLISHED.keys()
    if unknown and not is_older:
        raise BadInput(f"{source}: {min(unknown)} is no part of a run ({', '.join(PUBLISHED)})")


def packed(run, is_first, with_matrices):
    """What a published file says of a run; is_first: with what is in OF_FIRST_RUNS."""
    fields = asdict(run)
    for part, name in fields.pop("added"):
        fields[part].pop(name, None)
    config = fields["config"]
    fields = rounded(fields)
    for line in fields["log"]:
        line.pop("attention_variance", None)
        line.pop("mlp_variance", None)
    log = [rounded_lists(line, DIGITS_OF_LOG) for line in fields["log"]]
    analysis = fields["analysis"] or {}
    analysis.pop("scored_from", None)
    for *above, name in OF_FIRST_RUNS if not is_first else ():
        (at(analysis, above) or {}).pop(name, None)
    for name in FEWER_DIGITS.keys() & analysis.keys():
        analysis[name] = rounded_lists(analysis[name], FEWER_DIGITS[name])
    for name in SYMMETRIC.keys() & analysis.keys():
        matrix = analysis.pop(name)
        if with_matrices:
            analysis[name] = above_diagonal(matrix, SYMMETRIC[name])
    if paradigms := analysis.get("blimp", {}).get("paradigms"):
        columns = {"name": list(paradigms), "accuracy": list(paradigms.values())}
        analysis["blimp"]["paradigms"] = columns
    fields |= {"config": config, "log": columns_of(log)}
    return {part: in_order(of_part) for part, of_part in fields.items()}


def in_order(entry):
    """A dict with its keys sorted, and so on in the dicts in it; all else as it is."""
    if not isinstance(entry, dict):
        return entry
    return {name: in_order(entry[name]) for name in sorted(entry)}


def unpacked(fields, path):
    """The fields of which packed made these; those of older files stay as they are. Raises BadInput
    where columns are none."""
    if fault_of(fields, {"log": dict}) is None:
        fields["log"] = lines_of(fields["log"], path)
    analysis = fields.get("analysis")
    for name, symmetric in SYMMETRIC.items():
        if fault_of(analysis, {name: [NUMBERS]}) is None:
            analysis[name] = whole_matrix(analysis[name], symmetric)
    columns = {"name": [str], "accuracy": NUMBERS}
    if fault_of(analysis, {"blimp": {"paradigms": columns}}) is None:
        lines = lines_of(analysis["blimp"]["paradigms"], path)
        analysis["blimp"]["paradigms"] = {line["name"]: line["accuracy"] for line in lines}
    return fields


def rounded(numbers, digits=DIGITS):
    """Numbers in any lists and dicts, to so many significant digits."""

    def shorten(number):
        return float(f"{float(number):.{digits}g}")

    return json.loads(json.dumps(numbers), parse_float=shorten)


def rounded_lists(entry, digits):
    """The same of the lists in an entry alone."""
    if isinstance(entry, dict):
        return {name: rounded_lists(of_name, digits) for name, of_name in entry.items()}
    return rounded(entry, digits) if isinstance(entry, list) else entry


def above_diagonal(matrix, symmetric):
    """What stands above a matrix's diagonal, row by row; all of it, where that does not say it."""
    rows = [row[a + 1 :] for a, row in enumerate(matrix)]
    return rows if whole_matrix(rows, symmetric) == matrix else matrix


def whole_matrix(rows, symmetric):
    """The matrix (L, L) of which this stands above its diagonal of zeros. Other rows stay."""
    L = len(rows)
    if [len(row) for row in rows] != list(range(L))[::-1]:
        return rows
    matrix = np.zeros((L, L))
    matrix[np.triu_indices(L, k=1)] = sum(rows, [])
    return (matrix + matrix.T if symmetric else matrix).tolist()


def columns_of(lines):
    """{name: its value in each line}, None where a line lacks it."""
    names = dict.fromkeys(name for line in lines for name in line)
    return {name: [line.get(name) for line in lines] for name in names}


def lines_of(columns, path):
    """The lines of which columns_of made this. Raises BadInput where there are no such."""
    are_lists = all(isinstance(column, list) for column in columns.values())
    if not are_lists or len({len(column) for column in columns.values()}) > 1:
        raise BadInput(f"{path}: {', '.join(columns)} must be lists of one length")
    return [
        {name: value for name, value in zip(columns, row, strict=True) if value is not None}
        for row in zip(*columns.values(), strict=True)
    ]


def shared_by(entries):
    """What several dicts all say, and so on in the dicts in them. One that has no dict where others
    do, as a run without scores, keeps what it has and does not count."""
    shared = {}
    for name in entries[0]:
        values = [entry[name] for entry in entries if name in entry]
        dicts = [value for value in values if isinstance(value, dict)]
        if len(values) < len(entries):
            continue
        if len({as_line(value) for value in values}) == 1:
            shared[name] = values[0]
        elif len(dicts) > 1 and (of_dicts := shared_by(dicts)):
            shared[name] = of_dicts
    return shared


def without(shared, entry):
    """What an entry says beyond what is shared."""
    rest = {}
    for name, value in entry.items():
        if name in shared and as_line(value) == as_line(shared[name]):
            continue
        are_dicts = isinstance(value, dict) and isinstance(shared.get(name), dict)
        rest[name] = without(shared[name], value) if are_dicts else value
    return rest


def together(shared, entry):
    """The entry of which without made this."""
    merged = deepcopy(shared) | entry
    for name, value in entry.items():
        if isinstance(value, dict) and isinstance(shared.get(name), dict):
            merged[name] = together(shared[name], value)
    return merged


def by_keys(entry, above=()):
    """{keys, the outermost first: value} of what lies in dicts in dicts; nothing of empty ones."""
    values = {}
    for key, value in entry.items():
        keys = (*above, key)
        values |= by_keys(value, keys) if isinstance(value, dict) else {keys: value}
    return values


def in_dicts(names, values):
    """The dicts in dicts of which by_keys made these keys and values; {} stands for no value."""
    entry = {}
    for keys, value in zip(names, values, strict=True):
        if not keys or value == {}:
            continue
        *above, last = keys
        inner = entry
        for key in above:
            if not isinstance(inner.get(key), dict):
                inner[key] = {}
            inner = inner[key]
        inner[last] = value
    return entry


def as_line(content):
    return json.dumps(content, allow_nan=False, separators=(",", ":"))  # blanks: a tenth of a file


def restore_runs(path, folder):
    """Run folders, without weights, from a published file: train.py takes their runs for finished
    and goes on with others. A run that was never scored cannot be without its weights, so it is
    left to be trained again. Raises BadInput, before it writes, where one of them is there already;
    what an interrupted restoring left is written anew."""
    check_name(path.stem, "the sweep")
    runs = [run for run in read_runs(path) if run.analysis or run.summary["diverged"]]
    targets = [folder / path.stem / run.name for run in runs]
    for target in targets:
        if (target / "summary.json").exists() or (target / "ckpt.pt").exists():
            raise BadInput(f"{target} exists already: delete it, or restore into another folder")
    for run, target in zip(runs, targets, strict=True):
        target.mkdir(parents=True, exist_ok=True)
        write_text(target / "log.jsonl", "".join(json.dumps(line) + "\n" for line in run.log))
        for name in ("config", "analysis", "summary"):  # the last one makes it a finished run
            write_json(target / f"{name}.json", getattr(run, name))
