"""The rule that decides a claim: contrasts of points' means, intervals, and Holm's correction.

A sweep's points are lists of a metric, one number a seed. Seeds are never paired, as the same seed
does not repeat on a GPU. A contrast is a weighted sum of the points' means; its error comes from
the variance pooled over all points, or, where their spreads differ more than tenfold, from each
point's own (Welch). What a claim predicts is a shape, and a shape is a list of tests:

  rises, falls        the least-squares slope of the metric over the points' rank
  negative            the metric itself, at the last point
  last lowest,        both gains of the last point over the first two; of several gains that must
  last highest        all be positive the smallest t decides, and has the largest p
  no worse            the change of the logarithm from the first point to the last; supported when
                      its interval lies below log(1.01), opposed when above
  lowest inside,      some inner point's gains over both ends; p is multiplied by the number of
  highest inside      inner points, any of which may be the best. Opposed when an end beats every
                      inner point so, its p doubled, as there are two

There are four verdicts. `no effect`, of what rises or falls: the intervals of the slope and of each
step between neighbouring points lie within a margin that stands in results/claims.py. Otherwise
`supported` or `opposed`: p < 0.05, two-sided; p decides, and the interval that is shown is of the
test for the claim. Otherwise, and wherever seeds do not differ at all, as those of a score of few
steps may, or where some point has no such number: `undecided`.

The rule was fixed before a run of any experiment was looked at, but for what a reader found after
that, all of which takes verdicts away: that each step must be within the margin, and that no other
shape says `no effect`. The same reader found that pooling spreads of up to tenfold calls noise an
effect several times as often as it should; so every p stands beside that of each point's own
spread, by pooled=False. Before the sweeps at twice the width were judged, each sweep besides the
experiments became a family of its own, or each new one would have made the verdicts of the others
harder.
"""

import math
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np

LEVEL = 0.95  # of every interval
ROUNDING = 1e-9  # of a metric: a half-width below it, as of few equal seeds, is no certainty
NO_WORSE = math.log(1.01)  # a perplexity higher by less than 1 % is no worse
SPREADS_DIFFER = 10  # largest standard deviation of a point over the smallest that is not zero


# Student's t -------------------------------------------------------------------------------------


@lru_cache(maxsize=8)
def mass_of_angles(df):
    """With t = sqrt(df) tan(angle), the density of the angle is proportional to
    cos(angle)^(df - 1). Returns angles from 0 to pi / 2, and the share of |t| below each."""
    angle = np.linspace(0, math.pi / 2, 200001)
    density = np.cos(angle) ** (df - 1)
    mass = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return angle, mass / mass[-1]


def student_t(level, df):
    """Half-width of a `level` interval in standard errors."""
    angle, mass = mass_of_angles(df)
    return math.sqrt(df) * math.tan(np.interp(level, mass, angle))


def one_sided_p(t, df):
    """Probability of a larger t."""
    angle, mass = mass_of_angles(df)
    within = np.interp(math.atan(abs(t) / math.sqrt(df)), angle, mass)
    return float((1 - within) / 2 if t > 0 else (1 + within) / 2)


def interval(values, level=LEVEL):
    """Mean and half-width of its Student-t interval over seeds; infinite for fewer than two."""
    values = np.asarray(values, dtype=float)  # None becomes nan
    n = len(values)
    if n < 2:
        return float(values.mean()), math.inf
    standard_error = float(values.std(ddof=1)) / math.sqrt(n)
    return float(values.mean()), student_t(level, n - 1) * standard_error


# Contrasts ---------------------------------------------------------------------------------------


class Contrast(NamedTuple):
    effect: float
    error: float  # its standard error; infinite where no point has two seeds
    df: float

    def half(self, level=LEVEL):
        return student_t(level, self.df) * self.error if math.isfinite(self.error) else math.inf

    def p(self, threshold=0.0):
        """Two-sided p of an effect above the threshold: twice the one-sided, at most 1."""
        if not 0 < self.error < math.inf:
            return 1.0
        return min(1.0, 2 * one_sided_p((self.effect - threshold) / self.error, self.df))

    def excludes_zero(self):
        """Does the interval?"""
        return abs(self.effect) > self.half()

    def turned(self):
        return self._replace(effect=-self.effect)


def contrast(points, weights, pooled=True):
    """The Contrast sum_i weights[i] * mean of points[i], with weights that sum to zero or do not.
    pooled: its error is from all points together, also those of weight zero, but where their
    spreads differ more than SPREADS_DIFFER times. Otherwise each point has its own spread (Welch),
    which is none where its seeds all agree."""
    weights = np.asarray(weights, dtype=float)
    n_seeds = np.array([len(p) for p in points])
    effect = float(weights @ [np.mean(point) for point in points])
    squares = np.array([np.var(point) * len(point) for point in points])
    if n_seeds.max() < 2:
        return Contrast(effect, math.inf, 1.0)
    shares = weights**2 / n_seeds
    if pooled and not spreads_differ(squares, n_seeds):
        df = (n_seeds - 1).sum()
        return Contrast(effect, math.sqrt(shares.sum() * squares.sum() / df), float(df))
    if np.any((n_seeds < 2) & (weights != 0)):
        return Contrast(effect, math.inf, 1.0)
    several = n_seeds > 1
    free = n_seeds[several] - 1
    parts = shares[several] * squares[several] / free  # of the contrast's variance
    if not parts.any():
        return Contrast(effect, 0.0, 1.0)
    df = parts.sum() ** 2 / (parts**2 / free).sum()  # Satterthwaite
    return Contrast(effect, math.sqrt(parts.sum()), max(1.0, float(df)))


def spreads_differ(squares, n_seeds):
    """More than SPREADS_DIFFER times, among the points of several seeds that differ at all?"""
    spread = np.sqrt(squares / np.maximum(1, n_seeds - 1))
    spread = spread[spread > 0]
    return len(spread) > 1 and spread.max() > SPREADS_DIFFER * spread.min()


def slope_weights(n_points):
    """Of the least-squares slope over the rank 0, 1, 2, ..."""
    rank = np.arange(n_points) - (n_points - 1) / 2
    return rank / (rank @ rank)


def difference(points, i, j, pooled=True):
    """The Contrast: mean of points[i] less that of points[j]."""
    weights = np.zeros(len(points))
    weights[i] += 1
    weights[j] -= 1
    return contrast(points, weights, pooled)


# Shapes ------------------------------------------------------------------------------------------
#
# A test is a list of contrasts that must all be positive. A shape gives the tests of which one must
# hold for the claim to be supported, and those of which one must hold for it to be opposed.


def rising(points, pooled):
    slope = contrast(points, slope_weights(len(points)), pooled)
    return [[slope]], [[slope.turned()]]


def falling(points, pooled):
    supporting, opposing = rising(points, pooled)
    return opposing, supporting


def negative(points, pooled):
    weights = np.zeros(len(points))
    weights[-1] = -1
    below = contrast(points, weights, pooled)
    return [[below]], [[below.turned()]]


def no_worse(points, pooled):
    change = difference(points, -1, 0, pooled)
    spare = change._replace(effect=NO_WORSE - change.effect)
    return [[spare]], [[spare.turned()]]


def last_highest(points, pooled):
    gains = [difference(points, -1, i, pooled) for i in range(min(2, len(points) - 1))]
    return [gains] if gains else [], [[gain.turned()] for gain in gains]


def highest_inside(points, pooled):
    n, ends = len(points), (0, len(points) - 1)
    inner = range(1, n - 1)
    supporting = [[difference(points, i, end, pooled) for end in ends] for i in inner]
    opposing = (
        [[difference(points, end, i, pooled) for i in inner] for end in ends] if n > 2 else []
    )
    return supporting, opposing


SHAPES = {  # name: (its tests, -1 where they are of the metric with its sign turned)
    "rises": (rising, 1),
    "falls": (falling, 1),
    "negative": (negative, 1),
    "no worse": (no_worse, 1),
    "last highest": (last_highest, 1),
    "last lowest": (last_highest, -1),
    "highest inside": (highest_inside, 1),
    "lowest inside": (highest_inside, -1),
}
AS_MEASURED = {  # the effect that is shown, of what a test found, where it is not that itself
    "falls": lambda effect: -effect,
    "negative": lambda effect: -effect,
    "last lowest": lambda effect: -effect,
    "lowest inside": lambda effect: -effect,
    "no worse": lambda effect: NO_WORSE - effect,
}


class Judged(NamedTuple):
    verdict: str  # supported, opposed, no effect or undecided
    effect: float  # what the best test for the claim measured, by its weakest contrast
    half: float  # half-width of its interval
    p: float  # of the verdict; of an undecided one, of a difference


def doubt(change):
    """What Contrasts are ranked by: p, and where it is the same, a smaller effect."""
    return change.p(), -change.effect


def best(tests):
    """Of the test whose weakest contrast has the smallest p: (that contrast, p times the number of
    tests)."""
    chosen = min((max(test, key=doubt) for test in tests), key=doubt)
    return chosen, min(1.0, len(tests) * chosen.p())


def judge(points, shape, log=False, margin=0.0, pooled=True):
    """The rule. points: lists of the metric, one number a seed (None where it was not measured),
    in the order of the swept option; log: contrasts are of its logarithm; margin: a smaller effect
    is none, 0 for no such verdict; pooled: as in contrast, of which False is no part of the rule
    but what its verdicts are held against. Returns Judged."""
    points = [np.asarray(point, dtype=float) for point in points]
    tests_of, sign = SHAPES[shape]
    if not usable(points, log):
        return Judged("undecided", math.nan, math.inf, 1.0)
    points, rounding = on_scale(points, log)
    supporting, opposing = tests_of([sign * point for point in points], pooled)
    if not supporting:
        return Judged("undecided", math.nan, math.inf, 1.0)
    chosen, p_for = best(supporting)
    half = chosen.half(1 - (1 - LEVEL) / len(supporting))
    effect = AS_MEASURED.get(shape, lambda effect: effect)(chosen.effect)
    if half <= rounding:
        return Judged("undecided", effect, half, 1.0)
    if shape in ("rises", "falls"):
        steps = [difference(points, i + 1, i, pooled) for i in range(len(points) - 1)]
        p = max(map(partial(p_within, margin=margin), [chosen, *steps]))
        if p < 1 - LEVEL:
            return Judged("no effect", effect, half, p)
    _, p_against = best(opposing)
    verdict, p = min((("supported", p_for), ("opposed", p_against)), key=lambda pair: pair[1])
    return Judged(verdict if p < 1 - LEVEL else "undecided", effect, half, p)


def on_scale(points, log):
    """(the points' numbers, of log their logarithms; how much of a difference is but rounding)."""
    if log:
        return [np.log(point) for point in points], ROUNDING
    return points, ROUNDING * max(np.abs(point).max() for point in points)


def usable(points, log):
    """Finite numbers, and positive ones for a logarithm."""
    numbers = np.concatenate(points)
    return bool(np.isfinite(numbers).all() and not (log and numbers.min() <= 0))


def p_within(change, margin):
    """Two-sided p of a change within the margin: below 0.05 where its 95 % interval lies in it."""
    return max(change.p(-margin), change.turned().p(-margin))


def holm(ps, n_family):
    """Holm's adjusted p of each, in a family of n_family claims; those not among ps count as 1, and
    those of ps that are 1 as they could not be tested need not count."""
    adjusted, largest = [0.0] * len(ps), 0.0
    for rank, i in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        largest = max(largest, min(1.0, max(1, n_family - rank) * ps[i]))
        adjusted[i] = largest
    return adjusted
