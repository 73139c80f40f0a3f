"""What there is to score: which sweeps a command line of analyze.py names, and which of their runs
lack which scores. Bookkeeping alone; how a score is taken is analyze.py's.

A run's analysis.json says under "scored_from" what each of its parts follows from: "scores", on
held-out text, "task" and "blimp", on files of one's own. A part is done again when that changes.
"""

from pathlib import Path
from typing import NamedTuple

from configs.read import Point, TrainConfig
from data.files import BadInput, say, sha256_of
from data.read import load_items, load_meta, load_pairs, n_held_out
from hardware import choose_hardware
from results.runs import (
    described,
    read_analysis,
    read_summary,
    refuse_other_code,
    refuse_other_data,
)
from train import fingerprint

SEQUENCES = 48  # to score on, as in results/
CPU_SEQUENCES = 16
TASKS = {"task": load_items, "blimp": load_pairs}  # option: what reads its file
# The files whose change makes scores others.
SCORED_BY = [
    Path(__file__).parent / name
    for name in (
        "analyze.py",
        "downstream.py",
        "sparsity.py",
        "theory.py",
        "train.py",
        "hardware.py",  # which device scores, and whether with fast.py's layers: the last digits
        "model.py",
        "fast.py",
        "data/read.py",
        "data/prepare.py",
        "results/scores.py",
    )
]


# One run -----------------------------------------------------------------------------------------


class Work(NamedTuple):
    """Of a run: what is to be scored, and what is there already."""

    n_sequences: int | None  # to score on; None: these scores are there
    tasks: dict  # {"task", "blimp": the file}
    kept: dict  # entries of analysis.json that stay
    scored_from: dict  # {"scores", "task", "blimp": what they follow from}, once it is done
    code: str  # the fingerprint of the present code


def work_on(folder, n_sequences=None, tasks=None, old_code=False, again=False):
    """The Work that a finished run still needs, or None: it diverged, or has no weights any more,
    as a restored one, or is scored just so (again: then, too, it is to do).

    n_sequences None: as many as it is scored on already, or default_sequences; and never more than
    there are. tasks: {"task", "blimp": file}; an entry of one that is not among them stays, as long
    as weights, data and code do. Raises BadInput where data or code are not those that the run was
    trained with (old_code: the present code scores it all the same, which the report says)."""
    if read_summary(folder)["diverged"] or not (folder / "ckpt.pt").exists():
        return None
    code = present_code(folder, old_code)
    source = source_of_scores(folder)
    analysis = read_analysis(folder) or {}
    tasks = tasks or {}
    model_config, config, _ = described(folder)
    n_sequences = n_sequences or analysis.get("sequences") or default_sequences()
    n_sequences = min(n_sequences, n_held_out(config, model_config))

    was = analysis.get("scored_from", {})
    there = {part: scored for part, scored in was.items() if scored.startswith(source)}
    wanted = {"scores": f"{source}, {n_sequences} sequences"}
    wanted |= {task: f"{source}, {sha256_of([path])}" for task, path in tasks.items()}
    to_do = [part for part in wanted if again or there.get(part) != wanted[part]]
    say_what_goes(folder, analysis, {**there, **wanted})
    if not to_do:
        return None
    kept = {part: analysis[part] for part in there if part in TASKS and part in analysis}
    return Work(
        n_sequences=n_sequences if "scores" in to_do else None,
        tasks={task: path for task, path in tasks.items() if task in to_do},
        kept=kept if "scores" in to_do else analysis,
        scored_from={**there, **wanted},
        code=code,
    )


def default_sequences():
    """As many as in results/ on a GPU, fewer where they would take long."""
    on_cuda = choose_hardware(TrainConfig()).device.type == "cuda"
    return SEQUENCES if on_cuda else CPU_SEQUENCES


def present_code(folder, old_code):
    """The present code's fingerprint on a run's model. Raises BadInput where data, or code without
    old_code, are not those that the run was trained with."""
    model_config, config, written = described(folder)
    code = fingerprint(Point(model_config, config, sweep={}))
    refuse_other_data(folder)
    if not old_code:
        or_else = ", or give --old_code to score it by the present code"
        refuse_other_code(folder, written, code, or_else)
    return code


def source_of_scores(folder):
    """What all scores of a run follow from: its weights and the code that scores, and its data."""
    _, config, _ = described(folder)
    files = [folder / "ckpt.pt", *filter(Path.exists, SCORED_BY)]  # fast.py may be deleted
    return f"{sha256_of(files)}, {load_meta(config.dataset)['sha256']}"


def say_what_goes(folder, analysis, stays):
    """A line for each task whose entry of the analysis is not among what stays."""
    for task in TASKS:
        if task in analysis and task not in stays:
            say(
                f"{folder}: its scores on {analysis[task].get('file', 'a task')} are by other "
                f"weights, data or code, and go: give --{task} again"
            )


# A command line ----------------------------------------------------------------------------------


def sweeps_of(paths):
    """Of several paths, such as out/* or results/*.json, those with finished runs in them or with a
    sweep's figures beside them; a line says which are left out. A file alone is taken as it is.
    Raises BadInput where none is left, one does not exist, or two have one name."""
    paths = [path if path.name not in ("", "..") else path.resolve() for path in paths]
    if absent := [str(path) for path in paths if not path.exists()]:
        raise BadInput(f"there is no {', no '.join(absent)}: train one first, with python train.py")
    if len(paths) == 1 and paths[0].suffix == ".json":
        return paths
    sweeps = [
        path
        for path in paths
        if any(path.glob("*/summary.json"))
        or (path.suffix == ".json" and path.with_suffix("").is_dir())
    ]
    if not sweeps:
        raise BadInput(what_to_name(paths[0]))
    if skipped := [str(path) for path in paths if path not in sweeps]:
        say(f"skipped, without finished runs, or figures beside them: {', '.join(skipped)}")
    names = [name_of(path) for path in sweeps]
    if twice := {name for name in names if names.count(name) > 1}:
        raise BadInput(f"two sweeps are called {min(twice)}: analyze them one at a time")
    return sweeps


def name_of(path):
    """A sweep's: of out/depth and of results/depth.json it is "depth"."""
    return path.stem if path.suffix == ".json" else path.name


def what_to_name(path):
    """A sentence for a path that is no sweep."""
    published = Path(f"{path}.json")
    if path.suffix == ".json":
        return f"{path} has no figures beside it: name it alone, and it gets some"
    if not path.is_dir():
        return f"{path} is no sweep: name a folder of runs, such as out/demo, or a published .json"
    if (path / "config.json").exists():
        return f"{path} is one run: name its sweep, {path.parent}"
    if published.is_file():
        return f"{path} holds figures alone: name {published}"
    if sweeps := sorted({file.parent.parent for file in path.glob("*/*/summary.json")}):
        return f"{path} holds sweeps: name one, such as {sweeps[0]}, or all, {path}/*"
    if any(path.glob("*.json")):
        return f"{path} holds no runs: name one of its files, or all, {path}/*.json"
    if any(path.glob("*/config.json")):
        return f"{path} holds no finished run: the command that trained it goes on with it"
    return f"{path} holds no finished run: train one first, with python train.py"


def refuse_options(arguments, sweeps):
    """Raises BadInput for options that do not go together, or that these sweeps cannot have."""
    if arguments.without_matrices and not arguments.publish:
        raise BadInput("--without_matrices is of what --publish writes: give --publish, too")
    if arguments.restore and arguments.publish:
        raise BadInput("--restore makes run folders and stops: give --publish in a second command")
    if all(path.suffix == ".json" for path in sweeps):
        scoring = ("sequences", "task", "blimp", "again", "old_code")
        if given := [name for name in scoring if getattr(arguments, name)]:
            raise BadInput(
                f"--{given[0]} scores runs, whose weights no published file holds: name their "
                "folder, such as out/demo"
            )


def tasks_of(arguments):
    """{"task", "blimp": the file given}. Raises BadInput where one cannot be scored."""
    given = {task: getattr(arguments, task) for task in TASKS}
    given = {task: path for task, path in given.items() if path is not None}
    for task, path in given.items():
        if not TASKS[task](path):
            raise BadInput(f"{path} is empty: give --{task} a file with items, a line each")
    return given
