"""The exercises still work: each solution in tests/exercises/, run in a copy of the project,
comes to what expected.toml says that three seeds came to."""

import re
import shutil
import tomllib

import pytest
from exercises.measure import EXPECTED, HERE, NO_SOLUTIONS, as_toml, copy_project, outwards, solve

from conftest import REPOSITORY

RANGES = tomllib.loads(EXPECTED.read_text(encoding="utf-8"))
EXERCISES = (REPOSITORY / "exercises.md").read_text(encoding="utf-8")
RANGE = re.compile(r"(\d[\d.]*) to (\d[\d.]*\d|\d)")


def is_near(number, low, high):
    """Within what three seeds gave, widened on both sides by as much again, or by a fifth of it."""
    margin = max(high - low, 0.2 * abs(high))
    return low - margin <= number <= high + margin


@pytest.mark.parametrize(
    "number, near", [(0.29, False), (0.31, True), (0.7, True), (1.19, True), (1.21, False)]
)
def test_near_is_as_much_again(number, near):
    assert is_near(number, 0.6, 0.9) is near


def test_near_is_a_fifth_where_seeds_agree():
    assert is_near(1.19, 1.0, 1.0) and not is_near(0.79, 1.0, 1.0)


@pytest.mark.parametrize(
    "numbers, low_high",
    [
        ([1.2344, 1.2399], [1.23, 1.24]),
        ([0.012345, 0.0099], [0.0099, 0.0124]),
        ([5, 3, 4], [3, 5]),
        ([2.0, 2.0], [2.0, 2.0]),
    ],
)
def test_ranges_are_rounded_outwards(numbers, low_high):
    assert outwards(numbers) == low_high


def test_every_solution_has_its_numbers():
    solutions = {path.stem for path in HERE.glob("*.py")} - NO_SOLUTIONS
    assert solutions == set(RANGES)
    assert tomllib.loads(as_toml(RANGES)) == RANGES
    for numbers in RANGES.values():
        assert numbers and all(low <= high for low, high in numbers.values())


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("project")
    copy_project(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", RANGES)
def test_an_exercise_comes_out_as_is_said(name, project, tmp_path):
    copy = tmp_path / "copy"  # its own, as a solution may edit the code
    shutil.copytree(project, copy)
    (came_out,) = solve(name, copy, 0)
    assert came_out.pop("seed") == "0"
    assert came_out.keys() == RANGES[name].keys()
    for what, number in came_out.items():
        assert is_near(number, *RANGES[name][what]), f"{what}: {number}"


def test_ranges_are_those_that_came_out():
    known = {tuple(low_high) for numbers in RANGES.values() for low_high in numbers.values()}
    found = {(float(low), float(high)) for low, high in RANGE.findall(EXERCISES)}
    assert len(found) > 10
    assert found <= known
