"""README.md and the pages in results/ against the files there: tables and numbers in prose."""

import json
import math
import re
from decimal import Decimal

import numpy as np
import pytest

from data.files import BadInput
from results import tables
from results.claims import CLAIMS, Verdict
from results.tables import (
    BENCHED,
    HERE,
    PAGES,
    TABLES,
    change_text,
    claims_table,
    filled,
    two_cells,
    write_tables,
)

each_page = pytest.mark.parametrize(
    "page", PAGES, ids=["README", "results/README", "speed", "theory", "pretrained"]
)


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
            assert int(n_runs.partition(" of ")[0]) == len(published)
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


# The table of claims ------------------------------------------------------------------------------

CHANGES = [  # metric, effect, half-width, text
    ("last-layer variance", math.log(2), 0.1, "2.00 times (1.81 to 2.21)"),
    ("perplexity", -0.01, 0.002, "0.9900 times (0.9881 to 0.9920)"),
    ("usefulness", -0.1234, 0.045, "-0.123 ± 0.045"),
    ("usefulness", -0.1234, math.inf, "–"),
]


@pytest.mark.parametrize("metric, effect, half, text", CHANGES)
def test_changes_are_factors_of_what_is_judged_by_its_logarithm(metric, effect, half, text):
    claim = next(claim for claim in CLAIMS if claim.metric == metric)
    assert change_text(Verdict(claim, "", effect, half, 0.01, 0.01, (3, 3))) == text


CELLS = [(0.04, 0.04, "**opposed**"), (0.04, 0.06, "opposed †"), (0.06, 0.04, "undecided")]


@pytest.mark.parametrize("adjusted, apart, text", CELLS)
def test_verdicts_are_marked_that_need_pooled_spreads(adjusted, apart, text):
    verdict = Verdict(CLAIMS[0], "opposed", 1.0, 0.1, 0.001, 0.001, (3, 3))
    assert two_cells((verdict, adjusted, apart))[1] == text


def test_the_table_of_claims_has_all_ten():
    """Those that no sweep speaks to yet stand together in the last row."""
    rows = [row.strip("| ").split(" | ")[0] for row in claims_table()[2:]]
    assert sorted(", ".join(rows).split(", ")) == sorted(f"C{i}" for i in range(1, 11))
    assert {row.count("|") for row in claims_table()} == {7}


def test_the_theory_agrees_as_well_as_is_said():
    written = json.loads(read(HERE / "theory.json"))
    (said,) = re.findall(
        r"\((\d+) seeds, (\d+) blocks; they agree within (\d+) %", read(HERE / "theory.md")
    )
    gaps = [
        abs(predicted / simulated - 1)
        for case in written["cases"].values()
        for predicted, simulated in zip(case["predicted"], case["simulated"], strict=True)
    ]
    n_blocks = {len(case["predicted"]) - 1 for case in written["cases"].values()}
    assert (written["seeds"], n_blocks) == (int(said[0]), {int(said[1])})
    assert max(gaps) < int(said[2]) / 100


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
