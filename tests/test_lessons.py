"""lessons.ipynb: small enough to read in a diff, and its cells run."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from conftest import REPOSITORY

PATH = REPOSITORY / "lessons.ipynb"
NOTEBOOK = json.loads(PATH.read_text(encoding="utf-8"))
CELLS = [(cell["cell_type"], "".join(cell["source"]), cell) for cell in NOTEBOOK["cells"]]


def is_for_colab(cell):
    return "colab" in cell["metadata"].get("tags", [])


CODE = [source for kind, source, cell in CELLS if kind == "code" and not is_for_colab(cell)]


def test_it_is_small_and_has_no_outputs():
    assert PATH.stat().st_size < 40_000
    for kind, _, cell in CELLS:
        assert kind == "markdown" or (cell["outputs"] == [] and cell["execution_count"] is None)


def test_it_is_written_as_jupyter_writes_it():
    """So that opening and saving it, outputs cleared, changes nothing."""
    text = json.dumps(NOTEBOOK, indent=1, ensure_ascii=False) + "\n"
    assert PATH.read_text(encoding="utf-8") == text
    assert NOTEBOOK["nbformat"] == 4 and NOTEBOOK["metadata"]["kernelspec"]["name"] == "python3"


def test_all_but_the_cell_for_colab_is_plain_python():
    assert sum(is_for_colab(cell) for _, _, cell in CELLS) == 1
    for source in CODE:
        ast.parse(source)


def test_cells_are_short():
    assert max(len(source.splitlines()) for source in CODE) <= 28
    assert max(len(line) for source in CODE for line in source.splitlines()) <= 100


def test_there_are_six_lessons():
    text = "\n".join(source for kind, source, _ in CELLS if kind == "markdown")
    assert re.findall("^## Lesson (.)", text, re.MULTILINE) == list("123456")


def test_every_figure_has_a_question_before_it_and_an_answer_after_it():
    figures = [i for i, (kind, source, _) in enumerate(CELLS) if re.search("^draw", source, re.M)]
    assert len(figures) >= 6
    for i in figures:
        before, after = CELLS[i - 1], CELLS[i + 1]
        assert before[0] == after[0] == "markdown"
        assert "**Question.**" in before[1] and "?" in before[1]
        assert after[1].startswith("**Answer.**")


def test_numbers_are_checked_in_every_lesson_that_trains():
    asserted = [source for source in CODE if re.search("^(check|assert)", source, re.M)]
    assert len(asserted) >= 7


RUN = """
import json
space = {"__name__": "__main__"}
for cell in json.load(open("cells.json", encoding="utf-8")):
    exec(cell, space)
"""


@pytest.mark.slow
def test_all_cells_run_in_order(tmp_path):
    """In a copy of the project, in one process, as a notebook would; checks stand in the cells."""
    parts = ("*.py", "configs/*.py", "data/*.py", "results/*.py", "results/pretrained/*.json")
    for part in parts:
        for path in REPOSITORY.glob(part):
            target = tmp_path / path.relative_to(REPOSITORY)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    (tmp_path / "cells.json").write_text(json.dumps(CODE), encoding="utf-8")
    environment = {**os.environ, "MPLBACKEND": "Agg", "PYTHONWARNINGS": "ignore"}
    result = subprocess.run(
        [sys.executable, "-c", RUN],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=3600,
    )
    assert result.returncode == 0, result.stderr
