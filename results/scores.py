"""What measured numbers come to: scores that are functions of ratios, variances and losses alone,
whatever model or file these are from; and each score's own sampling error.

Notation: L blocks, N sequences. A block's worth is u = max(0, ratio - 1), the relative growth of
the loss without it: removed, or replaced by its linear stand-in.
"""

import numpy as np

USEFUL = 1.10  # a block is useful when its linear stand-in raises the loss by more than 10 %
FLOOR = 1e-4  # of a block's worth, in a mean of logarithms
TINY = 1e-300  # keeps 0 / 0 at 0
NOT_KEPT = {  # of a score's values by sequence
    "perplexity",
    "n_eff",
    "n_eff_without_first",
    "geometric_mean_times_L",
    "angle_times_L",
    "at_floor",
}

# The use of depth --------------------------------------------------------------------------------


def ratios_of(losses):
    """Losses of the model itself and under interventions, (1 + n,) -> L(intervention) / L(M)."""
    return losses[1:] / losses[0]


def worths(ratios):
    return np.maximum(np.asarray(ratios, dtype=np.float64) - 1, 0)


def usefulness(ratios, threshold=USEFUL):
    """The share of blocks whose linear stand-in raises the loss by more than the threshold."""
    return float((np.asarray(ratios) > threshold).mean())


def effective_depth(ratios):
    """N_eff = (sum u)^2 / sum u^2: how many blocks share the work, with no threshold."""
    u = worths(ratios)
    return float(u.sum() ** 2 / max((u**2).sum(), TINY))


def typical_worth(u):
    """What a typical one of some blocks is worth, exp(mean log max(u, FLOOR))."""
    return float(np.exp(np.log(np.maximum(u, FLOOR)).mean()))


def places(L):
    """{place: its block numbers}. Block 1 turns the embedding into a stream, so blocks 2 to L alone
    are parted: into thirds, of which an earlier one may have a block more. Of fewer than four
    blocks, in which a third would be empty, there are no thirds."""
    of = {"block 1": np.array([1])}
    if L > 3:
        thirds = np.array_split(np.arange(2, L + 1), 3)
        of |= zip(("early", "middle", "late"), thirds, strict=True)
    return of | {"last block": np.array([L])}


def use_of_depth(ratios):
    """{score: number} of the (L,) loss ratios of single blocks.

    Without the first block, which rewrites the embedding, N_eff is a share of L - 1. The geometric
    mean is what a typical block is worth; at_floor is the share of blocks that count as FLOOR. Were
    the same work shared among more blocks, it would fall as 1 / L: times_L it would stay.
    """
    L, u = len(ratios), worths(ratios)
    typical = typical_worth(u)
    scores = {
        "n_eff": effective_depth(ratios),
        "n_eff_share": effective_depth(ratios) / L,
        "sum": float(u.sum()),
        "geometric_mean": typical,
        "geometric_mean_times_L": L * typical,
        "at_floor": float((u <= FLOOR).mean()),
    }
    if L > 1:
        without_first = effective_depth(ratios[1:])
        scores["n_eff_without_first"] = without_first
        scores["n_eff_share_without_first"] = without_first / (L - 1)
    return scores


def swap_changes(swapped, whole):
    """|L(two blocks swapped) - L(M)| / L(M) of each pair, (pairs,) each: the loss of its swap, and
    the model's own on the same sequences."""
    return abs(swapped - whole) / whole


def causal_changes(changed, size):
    """C[s, l] of mean norms: changed (L, L), of the change of what block l adds; size (L,)."""
    return changed / np.maximum(size, TINY)


def pair_mean(matrix):
    """Mean over all pairs above the diagonal; None for a single layer, which has none."""
    rows, columns = np.triu_indices(len(matrix), k=1)
    return float(np.asarray(matrix)[rows, columns].mean()) if len(rows) else None


# The stream --------------------------------------------------------------------------------------


def middle_half(L):
    """Block numbers l of the middle half, L / 4 < l <= 3 L / 4: of 16 blocks 5 to 12."""
    l = np.arange(1, L + 1)
    return l[(4 * l > L) & (4 * l <= 3 * L)]


def growth_of_variance(variance):
    """{score: number} of the variances of h_0 .. h_L, (L + 1,): free of the stream's scale.

    growth is var h_L / var h_1, growth_from_embedding var h_L / var h_0, exponent the least-squares
    slope of log var h_l over log l, l in the middle half. Equal additions alone would give a growth
    of about L and an exponent of 1. Where the middle half has one block, there is no exponent.
    """
    variance = np.asarray(variance, dtype=np.float64)
    scores = {
        "growth": float(variance[-1] / max(variance[1], TINY)),
        "growth_from_embedding": float(variance[-1] / max(variance[0], TINY)),
    }
    middle = middle_half(len(variance) - 1)
    if len(middle) > 1:
        x, y = np.log(middle), np.log(np.maximum(variance[middle], TINY))
        x = x - x.mean()
        scores["exponent"] = float(x @ y / (x @ x))
    return scores


def updates_in_the_middle(angle, size=None):
    """{score: number} of the mean angle, in radians, by which each block turns the stream, and of
    the size of its update beside the stream, (L,) each: means over the middle half. Blocks that
    refine one another's work turn it by about 1 / L each, independent ones by 1 / sqrt(L) (arXiv
    2602.05970); times_L the first would stay."""
    L = len(angle)
    middle = middle_half(L) - 1
    if not len(middle):
        return {}
    turned = float(np.asarray(angle)[middle].mean())
    scores = {"angle": turned, "angle_times_L": L * turned}
    if size is not None:
        scores["size"] = float(np.asarray(size)[middle].mean())
    return scores


def derived(analysis):
    """What an analysis.json, also an older one without these entries, has by its ratios, variances
    and angles: {"linear_use", "removal_use", "growth", "updates"}."""
    entries = {}
    if "linear_ratios" in analysis:
        entries["linear_use"] = use_of_depth(analysis["linear_ratios"]["held_out"])
    if "prune_ratios" in analysis:
        entries["removal_use"] = use_of_depth(analysis["prune_ratios"])
    if "variance" in analysis:
        entries["growth"] = growth_of_variance(analysis["variance"]["residual"])
    if "angular_distance" in analysis:
        angle = np.pi * np.diagonal(analysis["angular_distance"], offset=1)
        entries["updates"] = updates_in_the_middle(angle, analysis.get("size", {}).get("block"))
    return entries


# Positions ---------------------------------------------------------------------------------------


def position_bins(T):
    """Positions 0 to T - 1 in logarithmic bins [(first, behind the last)]: 0, 1, 2-3, 4-7, ..."""
    edges = [0, *(2**k for k in range(T.bit_length()) if 2**k < T), T]
    return list(zip(edges[:-1], edges[1:], strict=True))


def mean_by_bin(losses):
    """Losses by position (T,) -> their mean in each of position_bins(T)."""
    return [float(losses[first:behind].mean()) for first, behind in position_bins(len(losses))]


# Sampling error ----------------------------------------------------------------------------------


def pseudo_values(score, *samples):
    """A score over sequences, and what each of these contributes to it.

    samples: arrays (N, ...), a row for each sequence; score: their means over sequences, (...) each
    -> {name: number, list or None}. Returns the same dict of all sequences, and {name: (N, ...)}
    the jackknife's pseudo-values, N s - (N - 1) s_n with s_n the score without sequence n, of those
    that are numbers. Of a mean they are the sequences' own numbers. One sequence has none.
    """
    samples = [np.asarray(sample, dtype=np.float64) for sample in samples]
    N = len(samples[0])
    totals = [sample.sum(axis=0) for sample in samples]
    values = score(*(total / N for total in totals))
    if N < 2:
        return values, {}
    left_out = [
        score(
            *((total - sample[n]) / (N - 1) for total, sample in zip(totals, samples, strict=True))
        )
        for n in range(N)
    ]
    pseudo = {}
    for name, value in values.items():
        if value is not None:
            without = np.array([scores[name] for scores in left_out])
            pseudo[name] = N * np.asarray(value) - (N - 1) * without
    return values, pseudo


def standard_errors(pseudo):
    """{name: standard error, had other sequences been drawn} of a tree of pseudo-values: their
    standard deviation over sqrt(N), which is the jackknife's
    sqrt((N - 1) / N * sum of (s_n - their mean)^2)."""
    if isinstance(pseudo, dict):
        return {name: standard_errors(values) for name, values in pseudo.items()}
    return (pseudo.std(axis=0, ddof=1) / np.sqrt(len(pseudo))).tolist()


def jackknife(score, *samples):
    """A score over sequences as pseudo_values takes it, and {name: standard error}."""
    values, pseudo = pseudo_values(score, *samples)
    return values, standard_errors(pseudo)


def paired_error(values_a, values_b):
    """The standard error over sequences of the difference of two runs' scores, of their
    pseudo-values (N,), as analysis.json keeps them under "per_sequence". What makes a sequence hard
    for both runs cancels, so they must have been scored on the same ones, in the same order: the
    same text, "sequences" and "length". Raises ValueError where they cannot have been."""
    if len(values_a) != len(values_b):
        raise ValueError(f"{len(values_a)} and {len(values_b)} sequences are not the same ones")
    return standard_errors(np.asarray(values_a) - np.asarray(values_b))


def kept_per_sequence(pseudo):
    """Of a tree of pseudo-values the numbers that differences of runs need, as lists: no lists of
    blocks, which would fill a file, nothing that follows from another by a factor, nor a count."""
    kept = {}
    for name, values in pseudo.items():
        if isinstance(values, dict):
            kept[name] = kept_per_sequence(values)
        elif values.ndim == 1 and name not in NOT_KEPT:
            kept[name] = values.tolist()
    return kept
