"""README.md and the pages in results/ against the files there: tables and numbers in prose."""

import json
import math
import re
from decimal import Decimal

import numpy as np
import pytest

from data.files import BadInput
from results import tables
from results.claims import judge_sweep
from results.report import sweep_of
from results.runs import read_runs
from results.tables import BENCHED, HERE, PAGES, TABLES, filled, write_tables

each_page = pytest.mark.parametrize("page", PAGES, ids=["README", "results/README", "speed"])


@each_page
def test_tables_are_those_of_the_files(page):
    """Where this fails, python analyze.py results/*.json writes them."""
    assert page.read_text(encoding="utf-8") == filled(page)


def test_every_table_stands_on_a_page():
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert sorted(re.findall("<!-- table: (.*) -->", text)) == sorted(TABLES)
    assert text.count("<!-- table:") == text.count("<!-- end -->")


def cells_of(table):
    """{first cell of a row: its others}"""
    rows = [row.strip("| ").split(" | ") for row in TABLES[table]()[2:]]
    return {first: others for first, *others in rows}


def test_the_bench_is_its_last_turn():
    turns = {point: float(codes[1].split(", ")[-1]) for point, codes in cells_of("turns").items()}
    for point, (speed, *_) in zip(BENCHED, cells_of("speed").values(), strict=True):
        assert float(speed.split()[0]) == pytest.approx(turns[point], abs=0.006)


def test_scores_together_have_the_ratio_that_was_measured():
    ratio = json.loads(read(HERE / "score_speed.json"))["ratio"]
    assert cells_of("scoring")["together"][-1] == f"{ratio:.1f}"


def test_every_sweep_has_a_row_with_its_runs():
    files = cells_of("files")
    for path in HERE.rglob("*.json"):
        published = json.loads(read(path))
        if isinstance(published, list):
            n_runs, n_scored, *_ = files.pop(f"`{path.relative_to(HERE).as_posix()}`")
            assert int(n_runs) == len(published)
            assert int(n_scored) == sum(run["analysis"] is not None for run in published)
    assert not files


def test_masks_are_compared_from_the_sparsest_to_full_attention():
    patterns = json.loads(read(HERE / "theory_masks.json"))["patterns"]
    rows = [row.strip("| ").split(" | ") for row in TABLES["masks"]()[2:]]
    for name, blocks, ratio, effect, verdict in rows:
        points = sorted(patterns[name]["points"], key=lambda point: point["density"])
        assert points[-1]["density"] == 1
        growths = [np.mean(point["growth"][int(blocks)]) for point in points]
        logs = np.log([point["growth"][int(blocks)] for point in points])
        slope, _ = np.polyfit(range(len(logs)), logs.mean(axis=1), deg=1)
        assert float(ratio) == pytest.approx(growths[0] / growths[-1], abs=0.005)
        assert float(effect.split()[0]) == pytest.approx(slope, abs=1e-3)
        assert (verdict == "supported") <= (slope > 0) and (verdict == "opposed") <= (slope < 0)


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


def test_the_theory_agrees_as_well_as_is_said():
    written = json.loads(read(HERE / "theory.json"))
    (said,) = re.findall(r"\((\d+) seeds, (\d+) blocks; they agree within (\d+) %", read(PAGES[0]))
    gaps = [
        abs(predicted / simulated - 1)
        for case in written["cases"].values()
        for predicted, simulated in zip(case["predicted"], case["simulated"], strict=True)
    ]
    n_blocks = {len(case["predicted"]) - 1 for case in written["cases"].values()}
    assert (written["seeds"], n_blocks) == (int(said[0]), {int(said[1])})
    assert max(gaps) < int(said[2]) / 100


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
