"""README.md and results/README.md against the files in results/: tables and numbers in prose."""

import math
import re
from decimal import Decimal

import pytest

from data.files import BadInput
from results import tables
from results.claims import CLAIMS, Verdict
from results.tables import HERE, PAGES, TABLES, change_text, claims_table, filled, write_tables

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
    assert change_text(Verdict(claim, "", effect, half, 0.01, (3, 3))) == text


def test_the_table_of_claims_has_a_row_for_each_of_ten():
    rows = claims_table()[2:]
    assert [row.split(" | ")[0] for row in rows] == [f"| C{i}" for i in range(1, 11)]
    assert {row.count("|") for row in rows} == {7}


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
