"""results/contrasts.py: ratios and intervals computed by hand, and which points are set against
which."""

import math

import matplotlib.pyplot as plt
import pytest

from configs.read import load_points
from conftest import REPOSITORY
from results.contrasts import ALONG, CONTRASTS, answers, set_against, weighed
from results.report import contrasts_table, draw_contrasts, sweep_of
from results.runs import Run

T = {2: 4.303, 3: 3.182, 4: 2.776, 8: 2.306}  # degrees of freedom: 95 % quantile, from the tables


def run(point, seed, perplexity, exponent=None, causal=1.0, tokens=1):
    sweep = {"point": point, "rung": None, "place": 0, "options": ["seed"]}
    summary = {"perplexity": perplexity, "last_layer_variance": 1.0, "diverged": False}
    analysis = {"causal": causal, "permutation": None}
    if exponent is not None:
        analysis["growth"] = {"growth": 2.0, "exponent": exponent}
    return Run(point, {"seed": seed, "sweep": sweep}, summary, [{"tokens": tokens}], analysis)


def point(name, *perplexities, **options):
    return [run(name, seed, value, **options) for seed, value in enumerate(perplexities)]


def spread(name, mean, deviation):
    """Three runs whose log perplexity, and exponent, have this mean and standard deviation."""
    values = [mean - deviation, mean, mean + deviation]
    return [run(name, seed, math.exp(value), value) for seed, value in enumerate(values)]


# How many times ----------------------------------------------------------------------------------

# The second deviation over the first, and Welch's degrees of freedom by hand, of r, their squares'
# ratio: 2 (1 + r)^2 / (1 + r^2), which is 4 for 1, 3 for 2 + sqrt(3), and goes to 2.
WELCH = [(1, 4), (math.sqrt(2 + math.sqrt(3)), 3), (1e4, 2)]


@pytest.mark.parametrize("ratio, df", WELCH)
def test_an_interval_is_by_each_points_own_spread(ratio, df):
    first, second = 1e-3, 1e-3 * ratio
    measured = set_against(spread("a", 0.7, first), spread("b", 1.0, second))
    half = T[df] * math.sqrt((first**2 + second**2) / 3)
    for metric in ("perplexity", "exponent"):  # of the first, logarithms
        change = measured[metric]
        assert change.effect == pytest.approx(-0.3)
        assert change.half() == pytest.approx(half, rel=1e-3)
        assert change.excludes_zero() == (half < 0.3)


def test_a_difference_of_contrasts_has_the_spreads_of_all_four_points():
    points = [spread(name, mean, 0.1) for name, mean in zip("abcd", (3, 1, 2, 1.5), strict=True)]
    change = weighed("perplexity", points, [1, -1, -1, 1])
    assert change.effect == pytest.approx(1.5)  # (3 - 1) - (2 - 1.5)
    assert change.half() == pytest.approx(T[8] * 0.1 * math.sqrt(4 / 3), rel=1e-3)


def test_what_decides_nothing_is_none():
    first, second = point("a", 8.0, 9.0), point("b", 9.0, 10.0)
    measured = set_against(first, second)
    assert measured["perplexity"] is not None
    assert measured["growth"] is None  # a score that these runs lack
    assert measured["causal"] is None  # seeds that do not differ
    assert set_against(first[:1], second)["perplexity"] is None  # one seed
    first[0].analysis["causal"] = 0.0  # which has no logarithm
    assert set_against(first, second)["causal"] is None


# Which points ------------------------------------------------------------------------------------


@pytest.mark.parametrize("sweep", CONTRASTS)
def test_points_of_a_contrast_are_points_of_its_config(sweep):
    there = load_points(REPOSITORY / f"configs/{sweep}.toml", {"vocab_size": [8192], "seed": [0]})
    names = {name.removesuffix(",seed=0") for name in there}
    for _, *sides in CONTRASTS[sweep]:
        for side in sides:
            assert names.issuperset([side] if isinstance(side, str) else side)


def sweep(*points):
    return {runs[0].point: runs for runs in points}


def test_points_that_are_not_there_or_have_one_seed_have_no_row():
    plain = point("1-deep", 30.0, 31.0)
    points = sweep(plain, point("2-context", 29.0, 29.5), point("only-gqa", 28.0))
    found = answers("recipe", points)
    assert [answer.points for answer in found] == ["2-context over 1-deep"]
    assert found[0].runs is points["2-context"] and found[0].against is plain
    assert answers("depth", points) == []


def test_of_several_rates_the_best_speaks_and_says_of_how_many():
    shallow = point("1-deep", 30.0, 31.0)
    deep = [point("deep-half-rate", 29.0, 29.5), point("deep-double-rate", 20.0, 20.1)]
    top = [point("5-moe", 25.0, 26.0), point("top-half-rate", 24.0)]  # of one seed
    (lost,) = point("deep-double-rate", math.nan)
    points = sweep(shallow, *deep, *top)
    (answer,) = (each for each in answers("recipe", points, [lost]) if "whole" in each.asked)
    assert answer.points == "5-moe (best of 1) over deep-half-rate (best of 2)"
    assert (answer.runs, answer.against) == (top[0], deep[0])


# In the report -----------------------------------------------------------------------------------


def lengths(*names):
    """Dense and sixteen experts, with half the perplexity and 0.01 more of an exponent."""
    points = {}
    for place, name in enumerate(names):
        for n_expert, mean in ((0, 1.0), (16, 1.0 - math.log(2))):
            runs = spread(name, mean, 0.03)
            for each in runs:
                each.config["n_expert"] = n_expert
                each.config["sweep"]["options"] = ["n_expert", "seed"]
                each.analysis["growth"]["exponent"] += 0.01 + math.log(2) if n_expert else 0
                each.log[0]["tokens"] = 10 * 2**place
            points[runs[0].point] = runs
    return points


def test_the_section_of_a_report():
    """Half-widths are 2.776 x 0.03 sqrt(2/3) = 0.068."""
    sentence, blank, header, rule, row, end = contrasts_table(answers("tokens", lengths("25M")))
    assert sentence.startswith("Contrasts: ") and (blank, end) == ("", "")
    cells = [row.strip("| ").split(" | ") for row in (header, row)]
    assert dict(zip(*cells, strict=True)) == {
        "asked": "experts, at 25M tokens",
        "points": "25M,n_expert=16 over 25M,n_expert=0",
        "seeds": "3 over 3",
        "perplexity": "**0.500 (0.467 to 0.535)**",
        "exponent, difference": "+0.010 ± 0.068",
        **dict.fromkeys(("last-layer variance", "growth", "causal", "permutation"), "–"),
        **dict.fromkeys(("causal without block 1", "permutation without block 1"), "–"),
        **dict.fromkeys(("worth, early", "worth, middle", "worth, late"), "–"),
        "geometric mean of u, removed": "–",
        "BLiMP, difference": "–",
    }
    assert rule.count("---") == len(cells[0])
    assert contrasts_table([]) == []


def test_contrasts_along_the_tokens_are_drawn():
    runs = [run for of_point in lengths("25M", "50M").values() for run in of_point]
    figure = draw_contrasts("tokens", answers("tokens", sweep_of(runs).points))["contrasts"]
    drawn = {axis.get_title(): axis for axis in figure.axes}
    bars = drawn["perplexity"].lines[:-1]  # the last is at 1
    half = T[4] * 0.03 * math.sqrt(2 / 3)
    for x, bar, dot in zip((10, 20), bars[::2], bars[1::2], strict=True):
        assert bar.get_xdata().tolist() == [x, x] and list(dot.get_xdata()) == [x]
        assert dot.get_ydata() == pytest.approx(0.5)
        assert bar.get_ydata() == pytest.approx(
            [0.5 * math.exp(-half), 0.5 * math.exp(half)], rel=1e-3
        )
    lowest = drawn["causal score"]
    assert [text.get_text() for text in lowest.get_xticklabels()] == ["25M", "50M"]
    assert len(lowest.lines) == 1  # of seeds that do not differ nothing but the line at 1
    plt.close(figure)


def test_a_single_length_and_other_sweeps_are_no_curve():
    runs = [run for of_point in lengths("25M").values() for run in of_point]
    assert draw_contrasts("tokens", answers("tokens", sweep_of(runs).points)) == {}
    assert "recipe" not in ALONG
    assert draw_contrasts("recipe", answers("recipe", sweep_of(runs).points)) == {}
