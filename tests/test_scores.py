"""results/scores.py: each score by hand, and the jackknife by leaving out."""

import math

import numpy as np
import pytest

from results import scores


def close(value):
    return pytest.approx(value, rel=1e-12)


# The use of depth --------------------------------------------------------------------------------


def test_usefulness_by_hand():
    assert scores.usefulness([1.2, 1.05, 1.11, 0.9]) == 0.5
    assert scores.usefulness([1.2, 1.05, 1.11, 0.9], threshold=1.01) == 0.75


def test_effective_depth_by_hand():
    assert scores.effective_depth([1.5, 1.5, 1.0, 0.9]) == pytest.approx(2)
    assert scores.effective_depth([1.3, 1.1]) == pytest.approx(0.4**2 / (0.09 + 0.01))
    assert scores.effective_depth([1.0, 0.9]) == 0


def test_use_of_depth_by_hand():
    """Worths 3, 0.01, 0.01 and none: the first hides that the others share the rest evenly."""
    use = scores.use_of_depth([4.0, 1.01, 1.01, 0.9])
    n_eff = 3.02**2 / (9 + 2e-4)
    typical = (3 * 0.01 * 0.01 * 1e-4) ** (1 / 4)
    assert use == {
        "n_eff": close(n_eff),
        "n_eff_share": close(n_eff / 4),
        "sum": close(3.02),
        "geometric_mean": pytest.approx(typical),
        "geometric_mean_times_L": pytest.approx(4 * typical),
        "at_floor": 0.25,
        "n_eff_without_first": close(2),
        "n_eff_share_without_first": close(2 / 3),
    }


def test_a_typical_blocks_worth_by_hand():
    """Of 0.2 and 0.05 it is 0.1; none at all counts as 1e-4."""
    assert scores.typical_worth([0.2, 0.05]) == pytest.approx(0.1)
    assert scores.typical_worth([0.01, 0.0]) == pytest.approx(1e-3)


PLACES = {  # number of blocks: early, middle, late
    4: ([2], [3], [4]),
    5: ([2, 3], [4], [5]),
    8: ([2, 3, 4], [5, 6], [7, 8]),
    16: (range(2, 7), range(7, 12), range(12, 17)),
    32: (range(2, 13), range(13, 23), range(23, 33)),
}


@pytest.mark.parametrize("L, thirds", PLACES.items())
def test_blocks_behind_the_first_are_parted_into_thirds(L, thirds):
    of = {name: blocks.tolist() for name, blocks in scores.places(L).items()}
    assert list(of) == ["block 1", "early", "middle", "late", "last block"]
    assert list(of.values()) == [[1], *map(list, thirds), [L]]


@pytest.mark.parametrize("L", range(4, 34))
def test_thirds_hold_each_block_but_the_first_once_and_as_evenly_as_can_be(L):
    thirds = [scores.places(L)[name].tolist() for name in ("early", "middle", "late")]
    assert sum(thirds, []) == list(range(2, L + 1))
    assert max(map(len, thirds)) - min(map(len, thirds)) <= 1


@pytest.mark.parametrize("L", [1, 2, 3])
def test_too_few_blocks_have_no_thirds(L):
    assert list(scores.places(L)) == ["block 1", "last block"]


def test_one_block_has_nothing_without_the_first():
    assert (
        not {"n_eff_without_first", "n_eff_share_without_first"} & scores.use_of_depth([2]).keys()
    )


@pytest.mark.parametrize("L", [4, 12, 32])
def test_equal_shares_of_a_fixed_sum(L):
    """Where every block does as much, all of N_eff's shares are 1, and what falls as 1 / L stays
    once it is multiplied by L."""
    use = scores.use_of_depth(np.full(L, 1 + 0.5 / L))
    assert use["n_eff_share"] == use["n_eff_share_without_first"] == pytest.approx(1)
    assert use["geometric_mean_times_L"] == pytest.approx(use["sum"]) == pytest.approx(0.5)


def test_pair_mean_is_taken_above_the_diagonal():
    matrix = np.arange(16.0).reshape(4, 4)
    assert scores.pair_mean(matrix) == pytest.approx((1 + 2 + 3 + 6 + 7 + 11) / 6)
    assert scores.pair_mean(np.zeros((1, 1))) is None


# The stream --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "L, first, last", [(2, 1, 1), (3, 1, 2), (4, 2, 3), (8, 3, 6), (16, 5, 12), (32, 9, 24)]
)
def test_the_middle_half(L, first, last):
    assert scores.middle_half(L).tolist() == list(range(first, last + 1))


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.5])
def test_growth_of_a_power_of_depth(exponent):
    """Whatever the scale, and whatever the first and the last blocks do."""
    variance = 7e-9 * np.arange(17.0) ** exponent
    variance[0], variance[16] = 2e-9, 9e-6
    growth = scores.growth_of_variance(variance)
    assert growth["exponent"] == pytest.approx(exponent, abs=1e-9)
    assert growth["growth"] == pytest.approx(9e-6 / 7e-9)
    assert growth["growth_from_embedding"] == pytest.approx(9e-6 / 2e-9)


def test_the_exponent_is_a_least_squares_fit():
    variance = np.random.default_rng(0).uniform(1, 9, size=21)
    middle = np.arange(6, 16)
    expected = np.polyfit(np.log(middle), np.log(variance[middle]), 1)[0]
    assert scores.growth_of_variance(variance)["exponent"] == pytest.approx(expected, rel=1e-9)


def test_two_blocks_have_no_exponent():
    assert "exponent" not in scores.growth_of_variance([1, 2, 3])


def test_updates_are_means_over_the_middle_half():
    angle, size = np.arange(8.0), np.arange(8.0) ** 2  # blocks 3 to 6 are at places 2 to 5
    updates = scores.updates_in_the_middle(angle, size)
    assert updates == {"angle": 3.5, "angle_times_L": 28.0, "size": (4 + 9 + 16 + 25) / 4}
    assert scores.updates_in_the_middle(angle[:1]) == {}


def test_older_files_get_what_follows_from_theirs():
    """Angles over pi stand beside the diagonal of a matrix there."""
    angular = np.diag([0.5, 0.25, 0.25, 0.1], k=1)
    older = {
        "linear_ratios": {"held_out": [1.5, 1.1, 1.1, 1.0]},
        "variance": {"residual": [0.1, 1.0, 2.0, 3.0, 8.0]},
        "angular_distance": angular.tolist(),
    }
    added = scores.derived(older)
    assert added["linear_use"] == scores.use_of_depth([1.5, 1.1, 1.1, 1.0])
    assert added["growth"]["growth"] == 8
    assert added["growth"]["exponent"] == pytest.approx(1)
    assert added["updates"] == {"angle": close(math.pi / 4), "angle_times_L": close(math.pi)}
    assert "removal_use" not in added


# Positions ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "T, edges", [(1, [0, 1]), (2, [0, 1, 2]), (6, [0, 1, 2, 4, 6]), (16, [0, 1, 2, 4, 8, 16])]
)
def test_position_bins_double(T, edges):
    assert scores.position_bins(T) == list(zip(edges[:-1], edges[1:], strict=True))


def test_means_by_bin():
    assert scores.mean_by_bin(np.array([9.0, 8, 6, 4, 1, 2])) == [9, 8, 5, 1.5]


# Sampling error ----------------------------------------------------------------------------------


def test_the_jackknife_of_a_mean_is_its_standard_error():
    sample = np.random.default_rng(0).normal(3, 2, size=(20, 4))
    values, errors = scores.jackknife(lambda mean: {"mean": mean}, sample)
    assert values["mean"] == pytest.approx(sample.mean(axis=0))
    assert errors["mean"] == pytest.approx(sample.std(axis=0, ddof=1) / math.sqrt(20))


def test_the_jackknife_of_a_ratio_is_near_its_spread():
    """Over 400 draws of 200 sequences each, ratios of means scatter as one draw's jackknife
    says."""
    rng = np.random.default_rng(0)

    def draw():
        size = rng.uniform(1, 3, size=200)
        return size * 2 + rng.normal(size=200), size

    def ratio(top, bottom):
        return {"ratio": top / bottom}

    draws = [scores.jackknife(ratio, *draw()) for _ in range(400)]
    spread = np.std([values["ratio"] for values, _ in draws])
    assert np.mean([errors["ratio"] for _, errors in draws]) == pytest.approx(spread, rel=0.1)


def test_what_has_no_value_has_no_error():
    assert scores.jackknife(lambda mean: {"a": None}, [1.0, 2.0])[1] == {}
    assert scores.jackknife(lambda mean: {"a": mean}, [1.0]) == ({"a": 1.0}, {})


def test_pseudo_values_of_a_mean_are_what_it_is_the_mean_of():
    sample = np.random.default_rng(0).normal(3, 2, size=(20, 4))
    values, pseudo = scores.pseudo_values(lambda mean: {"mean": mean, "none": None}, sample)
    assert pseudo.keys() == {"mean"}
    assert pseudo["mean"] == pytest.approx(sample)
    assert scores.pseudo_values(lambda mean: {"a": mean}, [1.0]) == ({"a": 1.0}, {})


def test_the_error_of_a_difference_is_that_of_leaving_out_the_same_sequence_of_both():
    """Two runs' ratios of sums over the same 12 sequences, of which some are hard for both."""
    rng = np.random.default_rng(0)
    hard = rng.uniform(1, 4, size=12)
    runs = [(hard * factor + rng.normal(0, 0.1, size=12), hard) for factor in (2, 2.1)]

    def ratio(run, kept):
        return sum(run[0][n] for n in kept) / sum(run[1][n] for n in kept)

    differences = []
    for left_out in range(12):
        kept = [n for n in range(12) if n != left_out]
        differences.append(ratio(runs[0], kept) - ratio(runs[1], kept))
    mean = sum(differences) / 12
    expected = math.sqrt(11 / 12 * sum((each - mean) ** 2 for each in differences))
    a, b = (
        scores.pseudo_values(lambda top, bottom: {"ratio": top / bottom}, *run)[1]["ratio"].tolist()
        for run in runs
    )
    assert scores.paired_error(a, b) == pytest.approx(expected, rel=1e-9)
    assert scores.paired_error(a, a) == 0


def test_a_difference_of_runs_scatters_as_its_paired_error_says():
    """Over 400 draws of 100 sequences: losses of two runs that share each sequence's difficulty."""
    rng = np.random.default_rng(0)
    differences, errors = [], []
    for _ in range(400):
        shared = rng.normal(3, 1, size=100)
        a, b = (shared + rng.normal(0, 0.1, size=100) for _ in range(2))
        differences.append(a.mean() - b.mean())
        errors.append(scores.paired_error(a, b))
    assert np.mean(errors) == pytest.approx(np.std(differences), rel=0.1)


def test_other_sequences_cannot_be_paired():
    with pytest.raises(ValueError, match="3 and 2 sequences are not the same ones"):
        scores.paired_error([1.0, 2.0, 3.0], [1.0, 2.0])


def test_what_is_kept_of_each_sequence():
    pseudo = {
        "loss": np.array([1.0, 2.0]),
        "perplexity": np.array([3.0, 4.0]),
        "prune_ratios": np.ones((2, 4)),
        "linear_use": {"n_eff": np.array([1.0, 2.0]), "n_eff_share": np.array([0.5, 1.0])},
    }
    kept = {"loss": [1.0, 2.0], "linear_use": {"n_eff_share": [0.5, 1.0]}}
    assert scores.kept_per_sequence(pseudo) == kept
