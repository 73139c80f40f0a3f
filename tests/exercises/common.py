"""What the exercises' solutions share. Each is run from the project's top folder, a copy of it:

    python tests/exercises/depths.py 0 1 2      the seeds to train with

It does what README asks, by the same commands, and prints what came out: one line of JSON for each
seed, {name: number}.
"""

import json
import subprocess
import sys
from pathlib import Path

CONFIG = "configs/exercise.toml"
SEEDS = sys.argv[1:] or ["0", "1", "2"]
SCORE = Path(__file__).with_name("score.py")


def edit(path, old, new):
    """Replace what stands once in a file."""
    text = Path(path).read_text(encoding="utf-8")
    assert text.count(old) == 1, f"{path} does not hold once: {old}"
    Path(path).write_text(text.replace(old, new), encoding="utf-8", newline="\n")


def train(out, *options):
    """Train into out/, for every seed; returns the folders of the runs by seed, {seed: [folder]},
    in the order of the config."""
    command = [sys.executable, "train.py", CONFIG, f"--seed={','.join(SEEDS)}", *options]
    subprocess.run([*command, f"--out_dir={out}"], check=True, stdout=sys.stderr)
    folders = sorted(Path(out, "exercise").iterdir(), key=depth_of)
    return {seed: [f for f in folders if options_of(f)["seed"] == int(seed)] for seed in SEEDS}


def options_of(folder):
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))


def depth_of(folder):
    return options_of(folder)["n_layer"]


def score(folder):
    """What score.py prints of a run, by a process that reads the code as it stands by now."""
    command = [sys.executable, SCORE, folder]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def came_out(seed, numbers):
    print(json.dumps({"seed": seed, **numbers}), flush=True)
