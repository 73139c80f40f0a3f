"""Writes expected.toml: what every solution comes to, over three seeds. Half an hour on one core.

python tests/exercises/measure.py             all of them
python tests/exercises/measure.py depths      that one; the others' numbers stay
"""

import json
import math
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

HERE = Path(__file__).parent
REPOSITORY = HERE.parent.parent
EXPECTED = HERE / "expected.toml"
NO_SOLUTIONS = {"common", "measure", "score"}
PARTS = ("*.py", "configs/*", "data/*.py", "results/*.py", "tests/exercises/*.py")
HEADER = """# What came out of each exercise: [smallest, largest] over seeds 0, 1 and 2,
# rounded outwards. Written by tests/exercises/measure.py.
"""


def copy_project(folder):
    """A copy of the code, with pycode prepared; a solution edits and trains there."""
    for part in PARTS:
        for path in filter(Path.is_file, REPOSITORY.glob(part)):
            target = folder / path.relative_to(REPOSITORY)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    subprocess.run([sys.executable, "data/prepare.py", "pycode"], cwd=folder, check=True)


def solve(name, copy, *seeds):
    """What a solution comes to in a copy of the project, [{name: number}], one for each seed."""
    command = [sys.executable, f"tests/exercises/{name}.py", *map(str, seeds)]
    result = subprocess.run(command, cwd=copy, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def outwards(numbers):
    """[smallest, largest], to three digits, so that all of the numbers lie between them."""
    low, high = min(numbers), max(numbers)
    if all(isinstance(number, int) for number in numbers):
        return [low, high]
    step = 10.0 ** (math.floor(math.log10(abs(high))) - 2)
    return [
        float(f"{side(x / step) * step:.6g}") for side, x in ((math.floor, low), (math.ceil, high))
    ]


def as_toml(expected):
    text = HEADER
    for name, numbers in sorted(expected.items()):
        lines = [f'"{what}" = {low_high}' for what, low_high in numbers.items()]
        text += "\n".join(["", f"[{name}]", *lines, ""])
    return text


def main(names):
    expected = tomllib.loads(EXPECTED.read_text(encoding="utf-8")) if EXPECTED.exists() else {}
    solutions = sorted({path.stem for path in HERE.glob("*.py")} - NO_SOLUTIONS)
    for name in names or solutions:
        with tempfile.TemporaryDirectory() as folder:
            copy_project(Path(folder))
            of_seeds = solve(name, folder, 0, 1, 2)
        whats = [what for what in of_seeds[0] if what != "seed"]
        expected[name] = {what: outwards([one[what] for one in of_seeds]) for what in whats}
        EXPECTED.write_text(as_toml(expected), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main(sys.argv[1:])
