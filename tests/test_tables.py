"""README.md and results/README.md against the files in results/: tables and numbers in prose."""

import math
import re
from decimal import Decimal

import pytest

from data.files import BadInput
from results import tables
from results.claims import judge_sweep
from results.report import sweep_of
from results.runs import read_runs
from results.tables import HERE, PAGES, TABLES, filled, write_tables

each_page = pytest.mark.parametrize("page", PAGES, ids=["README", "results/README"])


@each_page
def test_tables_are_those_of_the_files(page):
    """Where this fails, python analyze.py results/*.json writes them."""
    assert page.read_text(encoding="utf-8") == filled(page)


def test_every_table_stands_on_a_page():
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert sorted(re.findall("<!-- table: (.*) -->", text)) == sorted(TABLES)
    assert text.count("<!-- table:") == text.count("<!-- end -->")


# Numbers in prose --------------------------------------------------------------------------------

WITH_INTERVAL = re.compile(r"(\d+(?:\.\d+)?) (?:± |\(± )(\d+(?:\.\d+)?)( %)?")


def pairs(text):
    """{(mean, half-width)} of a text, per cent as shares, without signs."""
    return {
        tuple(Decimal(number).scaleb(-2 if percent else 0) for number in numbers)
        for *numbers, percent in WITH_INTERVAL.findall(text)
    }


@each_page
def test_numbers_with_an_interval_stand_in_a_report(page):
    measured = {pair for file in HERE.rglob("*.md") if file != page for pair in pairs(read(file))}
    for name in TABLES:
        measured |= pairs("\n".join(TABLES[name]()))
    assert pairs(read(page)) - measured == set()


def read(file):
    return file.read_text(encoding="utf-8")


FACTOR = re.compile(r"(\d+(?:\.\d+)?) times \((\d+(?:\.\d+)?) to (\d+(?:\.\d+)?)\)")


def test_factors_are_effects_of_logarithms():
    """Such as 2.9 times (2.8 to 3.0), each rounded once from the effect."""
    sweeps = [sweep_of(read_runs(HERE / f"{name}.json")).points for name in SWEEPS]
    effects = [
        [math.exp(verdict.effect + side * verdict.half) for side in (0, -1, 1)]
        for points in sweeps
        for verdict in judge_sweep(points)
    ]
    factors = FACTOR.findall(read(PAGES[0]))
    assert len(factors) > 4
    for factor in factors:
        places = [len(number.partition(".")[2]) for number in factor]
        rounded = [
            tuple(f"{value:.{n}f}" for value, n in zip(effect, places, strict=True))
            for effect in effects
        ]
        assert factor in rounded


SWEEPS = ("depth", "learning_rate", "weight_decay", "gqa", "moe_small", "moe")


def test_entries_and_trainings_are_counted():
    """Runs that experiments share stand in several files; they agree in what they measured."""
    names = [path.stem for path in HERE.glob("*.json") if path.with_suffix("").is_dir()]
    runs = [
        run
        for name in names
        if name not in ("demo", "scale")
        for run in read_runs(HERE / f"{name}.json")
    ]
    trainings = {(run.summary["seconds"], run.summary["val_loss"]) for run in runs}
    assert f"{len(runs)} entries, which are {len(trainings)} trainings" in read(PAGES[0])


# Pages -------------------------------------------------------------------------------------------


@pytest.fixture
def page(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "HERE", tmp_path)
    monkeypatch.setattr(tables, "PAGES", (tmp_path / "README.md",))
    monkeypatch.setattr(tables, "TABLES", {"ours": lambda: ["| a |", "|---|"]})
    (tmp_path / "README.md").write_text(
        "before\n\n<!-- table: ours -->\nold\n<!-- end -->\n\nafter ± 1\n", encoding="utf-8"
    )
    return tmp_path / "README.md"


def test_tables_are_put_between_their_marks_alone(page):
    write_tables(page.parent)
    written = "before\n\n<!-- table: ours -->\n| a |\n|---|\n<!-- end -->\n\nafter ± 1\n"
    assert page.read_text(encoding="utf-8") == written
    write_tables(page.parent)
    assert page.read_text(encoding="utf-8") == written


def test_pages_are_left_alone_where_other_sweeps_are_reported(page, tmp_path):
    before = page.read_bytes()
    write_tables(tmp_path / "elsewhere")
    assert page.read_bytes() == before


def test_a_table_that_nobody_makes_is_refused(page):
    page.write_text("<!-- table: theirs -->\n<!-- end -->\n", encoding="utf-8")
    with pytest.raises(BadInput, match="theirs.*ours"):
        write_tables(page.parent)
