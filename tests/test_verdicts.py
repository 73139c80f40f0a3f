"""results/verdicts.py: intervals and contrasts against textbook formulas and simulation, and the
rule on made-up sweeps with known answers."""

import math

import numpy as np
import pytest

from results.verdicts import (
    SHAPES,
    Contrast,
    contrast,
    difference,
    holm,
    interval,
    judge,
    one_sided_p,
    slope_weights,
    student_t,
)

# Student's t -------------------------------------------------------------------------------------

STUDENT_T = [  # level, degrees of freedom, quantile from the tables
    (0.95, 1, 12.706),
    (0.95, 2, 4.303),
    (0.95, 4, 2.776),
    (0.95, 30, 2.042),
    (0.99, 2, 9.925),
    (0.9875, 2, 8.860),
]


@pytest.mark.parametrize("level, df, quantile", STUDENT_T)
def test_student_t_against_the_tables(level, df, quantile):
    assert student_t(level, df) == pytest.approx(quantile, rel=1e-3)
    assert one_sided_p(quantile, df) == pytest.approx((1 - level) / 2, rel=1e-3)
    assert one_sided_p(-quantile, df) == pytest.approx((1 + level) / 2, rel=1e-3)


def test_p_with_one_degree_of_freedom_is_an_arctangent():
    for t in (-3.0, 0.0, 0.5, 40.0, 1e4):
        assert one_sided_p(t, 1) == pytest.approx(0.5 - math.atan(t) / math.pi, abs=1e-8)


@pytest.mark.parametrize("n, level", [(2, 0.95), (3, 0.95), (5, 0.95), (3, 0.8)])
def test_intervals_cover_the_truth_as_often_as_they_say(n, level):
    rng = np.random.default_rng(0)
    hits = []
    for _ in range(3000):
        mean, half = interval(rng.normal(7, 3, size=n), level)
        hits.append(abs(mean - 7) <= half)
    assert np.mean(hits) == pytest.approx(level, abs=0.015)


def test_one_seed_has_no_interval():
    assert interval([3.0]) == (3.0, math.inf)


# Contrasts ---------------------------------------------------------------------------------------


def test_a_difference_of_two_points_by_hand():
    """Means 2 and 7; squares 2 and 8, of three degrees of freedom."""
    effect, error, df = difference([[1.0, 3.0], [5.0, 7.0, 9.0]], 1, 0)
    assert (effect, df) == (5, 3)
    assert error == pytest.approx(math.sqrt(10 / 3 * (1 / 2 + 1 / 3)))


def test_other_points_lend_their_spread():
    """A third point, of squares 12.5 and one degree of freedom, counts in the error alone."""
    effect, error, df = difference([[1.0, 3.0], [5.0, 7.0, 9.0], [20.0, 25.0]], 1, 0)
    assert (effect, df) == (5, 4)
    assert error == pytest.approx(math.sqrt(22.5 / 4 * (1 / 2 + 1 / 3)))


def test_tenfold_spreads_are_not_pooled():
    """Welch's error and Satterthwaite's degrees of freedom, as the textbooks have them."""
    narrow, wide = [1.0, 1.1, 1.2], [10.0, 30.0, 50.0, 90.0]
    effect, error, df = difference([narrow, wide], 1, 0)
    a, b = np.var(narrow, ddof=1) / 3, np.var(wide, ddof=1) / 4
    assert effect == pytest.approx(45 - 1.1)
    assert error == pytest.approx(math.sqrt(a + b))
    assert df == pytest.approx((a + b) ** 2 / (a**2 / 2 + b**2 / 3))


def test_points_whose_seeds_all_agree_do_not_part_the_others():
    """Of a score of few steps: three equal seeds are no proof of a spread of zero."""
    points = [[0.5, 0.5, 0.5], [0.25, 0.5, 0.25]]
    _, error, df = difference(points, 1, 0)
    assert df == 4
    assert error == pytest.approx(math.sqrt(np.var(points[1]) * 3 / 4 * 2 / 3))


def test_single_seeds_have_no_error_of_their_own():
    assert difference([[1.0], [2.0]], 1, 0).error == math.inf
    assert difference([[1.0], [2.0, 2.5]], 1, 0).df == 1


@pytest.mark.parametrize("spreads", [(1, 1, 1, 1), (0.02, 0.3, 1, 4)])
def test_contrasts_cover_the_truth_as_often_as_they_say(spreads):
    rng, hits = np.random.default_rng(0), []
    for _ in range(2000):
        points = [rng.normal(i, spread, size=4) for i, spread in enumerate(spreads)]
        slope = contrast(points, slope_weights(4))
        hits.append(abs(slope.effect - 1) <= slope.half())
    assert np.mean(hits) == pytest.approx(0.95, abs=0.02)


def test_slope_weights_are_those_of_least_squares():
    values = np.random.default_rng(0).normal(size=9)
    by_fit = np.polyfit(np.arange(9), values, 1)[0]
    assert slope_weights(9) @ values == pytest.approx(by_fit, rel=1e-12)


def test_p_and_interval_say_the_same():
    made_up = Contrast(effect=2.0, error=0.7, df=5.0)
    level = 1 - made_up.p()
    assert made_up.half(level) == pytest.approx(2.0, rel=1e-4)
    assert made_up.turned().p() == 1
    assert made_up.p(threshold=2.0) == pytest.approx(1)


# The rule ----------------------------------------------------------------------------------------


def noisy(means, n_seeds, sd=0.02, seed=0):
    """Points of so many seeds around these means."""
    noise = np.random.default_rng(seed).normal(size=(len(means), n_seeds))
    return np.array(means)[:, None] + sd * noise


KNOWN = [  # shape, the points' means, verdict
    ("rises", [1, 2, 3, 4], "supported"),
    ("rises", [4, 3, 2, 1], "opposed"),
    ("falls", [4, 3, 2, 1], "supported"),
    ("falls", [1, 2, 3, 4], "opposed"),
    ("negative", [9, 9, -1], "supported"),
    ("negative", [-9, -9, 1], "opposed"),
    ("last highest", [1, 2, 0, 3], "supported"),
    ("last highest", [1, 3, 0, 2], "opposed"),
    ("last lowest", [2, 3, 0, 1], "supported"),
    ("last lowest", [1, 3, 0, 2], "opposed"),
    ("highest inside", [1, 3, 2, 1], "supported"),
    ("highest inside", [3, 2, 2, 1], "opposed"),
    ("highest inside", [1, 3, 3.01], "undecided"),
    ("lowest inside", [3, 1, 2, 3], "supported"),
    ("lowest inside", [1, 2, 2, 3], "opposed"),
    ("lowest inside", [1, 2], "undecided"),
    ("highest inside", [1], "undecided"),
]


@pytest.mark.parametrize("shape, means, verdict", KNOWN)
def test_verdicts_on_sweeps_with_known_answers(shape, means, verdict):
    assert judge(noisy(means, 4), shape).verdict == verdict


@pytest.mark.parametrize("shape, means, verdict", KNOWN)
def test_neither_one_seed_nor_three_that_scatter_decide(shape, means, verdict):
    assert judge(noisy(means, 1), shape).verdict == "undecided"
    assert judge(noisy(means, 3, sd=50), shape).verdict == "undecided"


NO_WORSE = [
    ([1.0, 1.3, 0.9], "supported"),
    ([1.0, 1.0, 1.005], "supported"),
    ([1.0, 1.0, 1.2], "opposed"),
    ([1.0, 1.0, 1.01], "undecided"),
]


@pytest.mark.parametrize("means, verdict", NO_WORSE)
def test_no_worse_is_within_a_hundredth(means, verdict):
    judged = judge(noisy(means, 4, sd=0.001), "no worse", log=True, margin=0.1)
    assert judged.verdict == verdict
    assert judged.effect == pytest.approx(math.log(means[-1] / means[0]), abs=0.005)


def test_effects_are_of_logarithms():
    judged = judge(np.exp(noisy([0, 2, 4], 3)), "rises", log=True)
    assert judged.verdict == "supported"
    assert judged.effect == pytest.approx(2, abs=0.05)
    assert judged.half < 0.2


NO_EFFECT = [  # means, margin, verdict
    ([1, 1.01, 1.02, 1.03], 0.1, "no effect"),  # a slope beyond doubt, too small to count
    ([1, 1.2, 1.4, 1.6], 0.1, "supported"),
    ([1, 0.8, 0.6, 0.4], 0.1, "opposed"),
    ([1, 1.01, 1.02, 1.03], 0.0, "supported"),
    ([1, 1, 1, 1.2], 0.1, "supported"),  # within it on average, but not in its last step
]


@pytest.mark.parametrize("means, margin, verdict", NO_EFFECT)
def test_an_effect_within_the_margin_is_none(means, margin, verdict):
    judged = judge(noisy(means, 5, sd=0.002), "rises", margin=margin)
    assert judged.verdict == verdict
    assert judged.p < 0.05


def test_no_effect_needs_every_step_s_interval_within_the_margin():
    """Its p is 0.05 where the interval of the largest step just touches the margin."""
    points = noisy([1, 1, 1, 1], 3, sd=0.1)
    steps = [difference(points, i + 1, i) for i in range(3)]
    farthest = max(abs(step.effect) + step.half() for step in steps)
    within, beyond = (judge(points, "rises", margin=farthest * f) for f in (1.0001, 0.9999))
    assert (within.verdict, beyond.verdict) == ("no effect", "undecided")
    assert within.p == pytest.approx(0.05, abs=2e-4)


def test_down_and_up_again_is_not_no_effect():
    assert judge(noisy([0, -5, 0], 3, sd=0.01), "falls", margin=0.1).verdict == "undecided"


def test_shapes_of_several_contrasts_never_say_no_effect():
    assert judge(noisy([0, 5, 10, 10.01], 4, sd=1e-3), "highest inside", margin=0.02).verdict == (
        "opposed"
    )
    assert judge(noisy([0.5, 0.2, 0.501], 4, sd=0.01), "last highest", margin=0.02).verdict == (
        "undecided"
    )


def test_each_points_own_spread_can_be_asked_for():
    """Fivefold spreads are pooled by the rule; apart, Welch's error is the wide point's own."""
    points = [[1.0, 1.1, 1.2], [3.0, 3.5, 4.0]]
    assert difference(points, 1, 0).df == 4
    apart = difference(points, 1, 0, pooled=False)
    assert apart.error == pytest.approx(math.sqrt(0.01 / 3 + 0.25 / 3))
    assert judge(points, "rises", pooled=False).p > judge(points, "rises").p


def test_a_point_whose_seeds_all_agree_lends_none_of_its_freedom():
    """Squares 1/24 of two degrees of freedom: nothing is pooled with the others' zeros. A point of
    weight zero has no part in it, and a single seed has no spread at all."""
    points = [[0.5, 0.5, 0.5], [0.25, 0.5, 0.25]]
    _, error, df = difference(points, 1, 0, pooled=False)
    assert (error, df) == (pytest.approx(math.sqrt(1 / 24 / 2 / 3)), 2)
    wide = [-9.0, 0.0, 9.0]
    assert difference([*points, wide], 1, 0, pooled=False)[1:] == (pytest.approx(error), 2)
    assert difference([points[0], [0.25]], 1, 0, pooled=False).error == math.inf
    assert difference([points[0], [0.25] * 3], 1, 0, pooled=False).p() == 1


def test_equal_spreads_apart_have_satterthwaites_freedom():
    """Of three points' slope the ends alone count, with two degrees of freedom each: four, where
    all three pooled have six."""
    points = [[0.0, 1.0, 2.0], [5.0, 6.0, 7.0], [9.0, 10.0, 11.0]]
    pooled, apart = (contrast(points, [-0.5, 0, 0.5], pooled=each) for each in (True, False))
    assert pooled == pytest.approx((4.5, math.sqrt(0.5 / 3), 6))
    assert apart == pytest.approx((4.5, math.sqrt(0.5 / 3), 4))


@pytest.mark.parametrize("points", [[[0.0, 0.1], [1.0, 2.0]], [[-1.0, 1.0], [1.0, 2.0]]])
def test_what_has_no_logarithm_is_undecided_without_a_warning(points, recwarn):
    assert judge(points, "rises", log=True).verdict == "undecided"
    assert not recwarn.list


@pytest.mark.parametrize("value", [1 / 16, 1 / 31, 0.1, 7.3])
@pytest.mark.parametrize("n_points", [1, 2, 4, 7])
def test_what_never_moves_has_no_verdict(value, n_points):
    """Rounding is no effect, however alike the seeds."""
    points = np.full((n_points, 3), value)
    shapes = ["rises", "falls"] if n_points > 1 else []
    for shape in [*shapes, "last lowest", "highest inside"]:
        assert judge(points, shape, margin=0.1).verdict == "undecided"


def test_seeds_that_all_say_the_same_are_no_certainty():
    """A score of few steps, as usefulness is, repeats exactly; and sums round, here to -1.6e-18."""
    assert judge([[0.75] * 3, [0.25] * 3], "falls").verdict == "undecided"
    to_and_fro = np.array([3, 2, 1, 1, 2, 3]) / 6
    assert judge(np.repeat(to_and_fro[:, None], 3, axis=1), "falls").verdict == "undecided"


def test_what_some_run_lacks_is_undecided():
    judged = judge([[1.0, 2.0], [3.0, None]], "rises")
    assert (judged.verdict, judged.p) == ("undecided", 1.0)
    assert math.isnan(judged.effect)


@pytest.mark.parametrize("shape", sorted(set(SHAPES) - {"no worse"}))
def test_noise_around_zero_is_seldom_called_an_effect(shape):
    judged = [judge(noisy(np.zeros(5), 3, sd=0.1, seed=seed), shape) for seed in range(1500)]
    assert np.mean([j.verdict != "undecided" for j in judged]) <= 0.065


def test_several_inner_points_have_each_their_chance():
    """With seven inner points of noise, one would look best more often than at one in twenty."""
    judged = [judge(noisy(np.zeros(9), 3, seed=seed), "highest inside") for seed in range(400)]
    assert np.mean([j.verdict == "supported" for j in judged]) <= 0.05


# Holm --------------------------------------------------------------------------------------------


def test_holm_by_hand():
    """0.01 times 3; 0.03 times 2; 0.04 times 1, but no less than the one before."""
    assert holm([0.01, 0.04, 0.03], 3) == pytest.approx([0.03, 0.06, 0.06])


def test_absent_members_of_a_family_count():
    assert holm([0.01, 0.2], 10) == pytest.approx([0.1, 1.0])
    assert holm([], 10) == []


def test_what_is_lowest_is_shown_by_how_much_lower_it_is():
    """Than the nearest of those that it must be below."""
    ends, middle, last = [4.0, 4.1], [3.0, 3.1], [2.0, 2.1]
    assert judge([ends, middle, last], "last lowest").effect == pytest.approx(-1)
    assert judge([ends, last, middle], "lowest inside").effect == pytest.approx(-1)
    assert judge([last, middle, ends], "last highest").effect == pytest.approx(1)
