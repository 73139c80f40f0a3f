"""results/paper.py: the paper's numbers and ours in one table."""

import pytest

from results.paper import NOT_MEASURED, PAPER, beside_paper
from results.runs import Run


def run(perplexity, seed=0, rung=None, **config):
    summary = {"perplexity": perplexity, "last_layer_variance": 2.0}
    sweep = {"point": None, "rung": rung, "place": 0, "options": []}
    analysis = {"usefulness": {"held_out": 0.5, "transposed": 0.25}}
    return Run("", {**config, "seed": seed, "sweep": sweep}, summary, [], analysis)


def cells(row):
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_papers_numbers_and_ours_stand_under_the_value_that_both_are_at():
    points = {
        "weight_decay=0.1": [run(10.0, seed=0, weight_decay=0.1), run(10.2, 1, weight_decay=0.1)],
        "weight_decay=0.03": [run(12.0, weight_decay=0.03)],
    }
    header, _, papers, ours, *_ = beside_paper("weight_decay", points)
    assert cells(header) == ["weight decay", "", "0", "0.01", "0.03", "0.1", "1", "3"]
    assert cells(papers)[2:] == ["15.63", "15.20", NOT_MEASURED, "14.83", "15.55", "773.42"]
    ours_there = ["12", "10.1 (8.9 to 11.5)"]  # sqrt(102), and 1.02 to the power 12.706 / 2 of it
    assert cells(ours)[2:] == [*2 * [NOT_MEASURED], *ours_there, *2 * [NOT_MEASURED]]


def test_what_stands_beside_a_ladder_has_no_column():
    points = {"0-shallow": [run(3.0, rung=0)], "only-moe": [run(2.0)]}
    table = [cells(row) for row in beside_paper("recipe", points)]
    (ours,) = (row for row in table if row[:2] == ["perplexity", "ours"])
    assert ours[2:] == ["3", *5 * [NOT_MEASURED]]


@pytest.mark.parametrize("name", PAPER)
def test_a_number_for_each_value(name):
    for by in PAPER[name].measured.values():
        assert all(len(numbers) == len(PAPER[name].values) for numbers in by.values())
