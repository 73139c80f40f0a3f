"""What theory says of the residual stream at initialisation: its variance after every block.

    python theory.py    theory and theory_masks, .png and .json, into results/: the variance as it
                        is predicted and as it is of models drawn at random; takes minutes

predict_variance has it in closed form, for every toggle of model.py, and simulate_variance from
models drawn at random (Monte Carlo). Both are of random weights: what training makes of them is not
here.

Assumed is a Pre-RMSNorm stack of large width. All weights are independent with mean 0 and variance
s2, so over their draw the features of the stream are exchangeable and every branch is uncorrelated
with the stream it is added to: covariances simply add. With c[q, k] the covariance of the stream at
positions q and k, RMSNorm hands on the correlation r = c[q, k] / sqrt(c[q, q] c[k, k]), and a
matrix of fan-in n makes n * s2 * r of it. A weight kept with probability p (else zero) turns s2
into p * s2. A norm on the embedding, or on what a branch adds (Peri-LN), leaves every token a
variance of 1, and correlations as they are.

First comes the stack, which adds up what its branches add; then attention, the feed-forward and
experts; then the integrals over Gaussians that these need; then Monte Carlo.
"""

from data import interrupt

if __name__ == "__main__":
    interrupt.before_imports()

import argparse
import math
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from data.files import or_one_sentence, say, write_json
from model import (
    GPT,
    INIT_STD,
    NORM_EPS,
    ROTARY_BASE,
    GPTConfig,
    branch_factor,
    mask_density,
    visible,
)
from results.claims import margin_of
from results.figures import masks_figure, save_figure, theory_figure
from results.runs import rounded
from results.scores import TINY
from results.verdicts import judge

FEW_SEQUENCES = 4  # that predict_variance follows one by one for topk
GRID = torch.linspace(-9, 9, 20001, dtype=torch.float64)  # for integrals over a standard Gaussian
EQUAL = 1 - 1e-9  # correlations above: the same token
SCORES = torch.linspace(-6.5, 6.5, 241, dtype=torch.float64)  # in units of their deviation


# The stack ---------------------------------------------------------------------------------------


def predict_variance(config, idx, keep=1.0):
    """Variance of the stream at initialisation, [h_0, ..., h_L], averaged over positions and over
    the sequences idx, (T,) or (N, T); the blocks' weights are kept with probability `keep`. Exact
    as widths grow, but where attention_branch, attended_variance and moe_routing approximate; only
    equal tokens are correlated at h_0.

    It is c_0 that is averaged over sequences, so that one prediction serves them all. This loses
    little beside what the sequences differ by; but it would not with topk, which picks equal tokens
    together. So with topk a few sequences, FEW_SEQUENCES, are followed one by one, too, and give
    what the mean loses.

    Layer-norm scaling divides a block's inputs, hence its s2, by its number. An embedding norm
    leaves h_0 a variance of 1."""
    idx = idx.reshape(-1, idx.shape[-1])
    s2 = keep * INIT_STD**2
    s2_in = [s2 / (l if config.layer_norm_scaling else 1) for l in range(1, 1 + config.n_layer)]
    statistics = {each: attention_statistics(config, idx.shape[1], each) for each in set(s2_in)}

    def curve(rows):
        equal = sum((row[:, None] == row[None, :]).double() for row in rows) / len(rows)
        covariance = INIT_STD**2 * equal
        if config.embedding_norm:
            covariance = behind_norm(covariance)
        return np.array(variance_curve(config, covariance, s2, s2_in, statistics))

    if config.attention != "topk":
        return curve(idx).tolist()
    few = idx[:: math.ceil(len(idx) / FEW_SEQUENCES)]
    lost = np.mean([curve(row[None]) for row in few], axis=0) - curve(few)
    return (curve(idx) + lost).tolist()


def variance_curve(config, covariance, s2, s2_in, statistics):
    """[h_0, ..., h_L] from the covariance (T, T) of h_0: c_l = c_0 + sum of attention_branch and
    feed_forward_branch, each from the correlations before it. s2 is of all blocks' weights, s2_in
    of each block's after layer-norm scaling; scaled_residual_init divides those of both branches'
    last matrices, down_init_scale multiplies the feed-forward's; what reaches the stream is
    as_added."""
    s2_out = s2 / (2 * config.n_layer) if config.scaled_residual_init else s2
    s2_down = s2_out * config.down_init_scale**2
    probability = attention_probability(config, len(covariance))
    variance = [covariance.diagonal().mean().item()]
    for s2_block in s2_in:
        correlation = normalised(covariance)
        branch = attention_branch(
            config.n_embd, s2_block, s2_out, probability, correlation, statistics[s2_block]
        )
        covariance = covariance + as_added(config, branch)
        correlation = normalised(covariance)
        branch = feed_forward_branch(config, s2_block, s2_down, correlation)
        covariance = covariance + as_added(config, branch)
        variance.append(covariance.diagonal().mean().item())
    return variance


def as_added(config, branch):
    """What a branch's covariance (T, T) adds to the stream's: Peri-LN makes each variance 1, and
    CompleteP multiplies by (L_base / L)^2."""
    if config.peri_ln:
        branch = behind_norm(branch)
    return branch_factor(config) ** 2 * branch


def behind_norm(covariance):
    """The covariance (T, T) of x / rms(x). A variance v becomes v / (v + eps): 1, but for branches
    so weak, such as unnormalised experts, that the norm's eps counts."""
    return normalised(covariance, NORM_EPS)


def normalised(covariance, eps=0.0):
    """Covariance (T, T) -> correlation (T, T), which RMSNorm makes of it, as it divides each token
    by its root mean square. eps is added to each variance."""
    scale = (covariance.diagonal() + eps).rsqrt()
    return covariance * scale[:, None] * scale[None, :]


# Attention ---------------------------------------------------------------------------------------


def attention_probability(config, T):
    """(T, T) mean attention at initialisation: uniform over the keys in sight."""
    mask = visible(config, T).double()
    return mask / mask.sum(dim=1, keepdim=True)


def attention_branch(n_embd, s2_value, s2_output, probability, correlation, statistics=None):
    """Covariance (T, T) that random attention adds: n s2_value * n s2_output * P r P^T, where
    n = n_embd and P (T, T) is the mean attention.

    Scores at initialisation are near zero, so P is uniform over the keys in sight. For one query
    with m keys of mean correlation r this reads n^2 s2_value s2_output (r + (1 - r) / m): fewer
    keys, *more* variance from one block, as less is averaged away. What the mean P misses is put
    on the diagonal by attended_variance, from the `statistics` of attention_statistics; off the
    diagonal it stays missing. Sharing keys and values among heads changes nothing: every head's
    values keep their variance, and the output matrix draws independent weights for each head, so no
    head's share depends on another's."""
    seen = probability @ correlation
    added = seen @ probability.T
    if statistics is not None:
        own = attended_variance(n_embd, probability, correlation, seen, statistics)
        added.diagonal().copy_(own)
    return n_embd**2 * s2_value * s2_output * added


def attended_variance(n_embd, probability, correlation, seen, statistics):
    """E[sum over pairs of keys p p' r] (T,), the variance of each query's mean of values, where
    values have variance 1; seen = probability @ correlation.

    Scores of keys of mean correlation r differ by 1 - r of their variance only, which tempers the
    spread. And a query prefers keys whose scores are high together: to first order it sees a pair
    more often by `preference` times the correlation of their scores, r * cosine less what all the
    keys in sight share. For n_embd random features r^2 is (1 - r^2) / n_embd above its limit."""
    in_use, spread, preference, cosine = statistics
    uniform = probability.square().sum(dim=1)
    several = (1 - uniform).clamp_min(1e-12)  # the share of pairs that are of two keys

    def of_pairs(seen_values):
        return (seen_values * probability).sum(dim=1)

    not_shared = ((1 - of_pairs(seen)) / several).clamp(0, 1)
    squares = spread**not_shared / in_use  # E[sum p^2]
    seen_scores = probability @ (correlation * cosine)
    squared = correlation.square() * (1 - 1 / n_embd) + 1 / n_embd
    together = of_pairs(probability @ (squared * cosine)) - 2 * of_pairs(seen * seen_scores)
    together += of_pairs(seen) * of_pairs(seen_scores)
    together -= uniform * several * not_shared**2  # a key with itself is in squares
    aligned = preference * together * (1 - squares) / several
    return 1 - not_shared + not_shared * squares + aligned


def attention_statistics(config, T, s2):
    """What attention_branch needs beside the mean attention. (T,) each: keys in use, m, or for
    topk the topk of them with the largest scores; the spread, E[sum p^2] times the keys in use;
    the preference for keys, squared (key_preference). (T, T): the cosine between the directions
    along which a query's scores take two keys, mean of cos(angle * distance) over the rotations.

    Queries and keys have features of variance n_embd * s2, so a score, their product over the root
    of the head size, has variance v = (n_embd * s2)^2. To first order in e^v - 1 a softmax of m
    such Gaussians is p = (1 + x - mean x) / m with x = exp(score - v / 2) - 1 of variance e^v - 1,
    and centring m of them keeps 1 - 1/m of it, so the spread is 1 + (e^v - 1) (1 - 1/m): 1 for one
    key, e^v for many. kept_weight gives the same without the approximation, and for topk."""
    topk = config.topk if config.attention == "topk" else T
    in_sight = visible(config, T).sum(dim=1)
    v = (config.n_embd * s2) ** 2
    in_use = in_sight.clamp(max=topk)
    most = in_sight.max().item()
    some = sorted({n for n in (topk, most, *(round(1.2**i) for i in range(60))) if n <= most})
    spread = [min(n, topk) * kept_weight(n, min(n, topk), v, power=2) for n in some]
    spread = np.interp(in_sight.log(), np.log(some), spread)  # smooth between those
    preference = key_preference(in_use / in_sight, v) ** 2
    return in_use, torch.from_numpy(spread), preference, rotary_cosine(config, T)


def key_preference(share, v):
    """Mean standard score of a key in use, weighted by its attention, where the `share` of largest
    scores is in use: with density and share tilted by exp(score), sqrt(v) + density / share."""
    tilted = torch.special.ndtri(1 - share) - math.sqrt(v)  # -inf where all are in use
    return math.sqrt(v) + normal_density(tilted) / torch.special.ndtr(-tilted)


def rotary_cosine(config, T):
    """(T, T) mean over a head's rotations of cos(angle * distance between two keys): RoPE turns
    pairs of features by angle * position, so that of a query of random features the scores of two
    keys of correlation r have correlation r times this mean."""
    size = config.n_embd // config.n_head
    angle = ROTARY_BASE ** -(torch.arange(0, size, 2, dtype=torch.float64) / size)
    position = torch.arange(T)
    by_distance = torch.outer(position.double(), angle).cos().mean(dim=1)
    return by_distance[(position[:, None] - position).abs()]


# Feed-forward and experts ------------------------------------------------------------------------


def feed_forward_branch(config, s2_in, s2_out, correlation):
    """Covariance (T, T) that a block's random SwiGLU or experts add: mlp_branch of the one, or of
    one expert times moe_routing; shared experts add as one SwiGLU of all their hidden features."""
    C = config.n_embd
    if not config.n_expert:
        return mlp_branch(C, config.mlp_hidden, s2_in, s2_out, correlation)
    n_expert, n_active = config.n_expert, config.n_expert_active
    normalize = config.normalize_expert_weights
    routing = moe_routing(C, n_expert, n_active, s2_in, correlation, normalize)
    added = routing * mlp_branch(C, config.expert_hidden, s2_in, s2_out, correlation)
    if config.n_shared_expert:
        hidden = config.n_shared_expert * config.expert_hidden
        added = added + mlp_branch(C, hidden, s2_in, s2_out, correlation)
    return added


def mlp_branch(n_embd, hidden, s2_in, s2_down, correlation):
    """Covariance (T, T) that a random SwiGLU adds: hidden * s2_down * v r * E[silu(g) silu(g')],
    where gate and up are independent Gaussians of variance v = n_embd * s2_in and correlation r.
    For small v the variance is hidden * s2_down * v^2 / 4, so a density of p on every weight
    scales it by p^3."""
    v = n_embd * s2_in
    gates = gaussian_kernel(lambda z: F.silu(math.sqrt(v) * z), correlation)
    return hidden * s2_down * v * correlation * gates


def moe_routing(n_embd, n_expert, n_active, s2_router, correlation, normalize=False):
    """E[sum over experts of weight * weight'] (T, T), by which a mixture multiplies one expert's
    covariance. Correlations from 0 to 1: those of a stream of branches are never below.

    Experts are independent, so cross terms vanish and only a shared expert correlates two tokens.
    Router logits are Gaussian with variance v = n_embd * s2_router. That both tokens choose an
    expert of logits z and z' is exact (chosen_by_both); its weight there is taken to be
    exp(z) / (exp(z) + mean of the others), and what this misses, as the others vary, is known
    exactly where the correlation is 0 or 1 (kept_weight) and interpolated between. For many experts
    and small v it is about n_active / n_expert^2 on the diagonal: top k of *unnormalised*
    probabilities damps the branch by far more than its share of experts; normalised, by
    1 / n_active only."""
    curve = routing_curve(n_expert, n_active, n_embd * s2_router, normalize)
    angle = correlation.clamp(0, 1).arccos()
    return torch.from_numpy(curve(angle.numpy()))


@cache
def routing_curve(n_expert, n_active, v, normalize):
    """moe_routing as a polynomial in the angle arccos(correlation), in which it is smooth: an
    approximation summed over chosen_by_both, times what makes it exact at correlations 0 and 1.

    There, with E[w^n] summed over experts by kept_weight, the exact values are E[w]^2 / n_expert,
    of independent tokens, and E[w^2], of the same token twice."""
    rest = (n_expert - 1) * math.exp(v / 2)  # mean of the other experts' exp(logit)
    if normalize and n_active < n_expert:
        # Of the chosen ones alone, whose logits lie above a quantile.
        share = torch.tensor(n_active / n_expert, dtype=torch.float64)
        above_quantile = torch.special.ndtr(math.sqrt(v) - torch.special.ndtri(1 - share))
        rest = (n_active - 1) * math.exp(v / 2) * (above_quantile / share).item()

    def approximation(r):
        z, other, pair, chosen = chosen_by_both(n_expert, n_active, r)
        e, e_other = torch.exp(math.sqrt(v) * z), torch.exp(math.sqrt(v) * other)
        weights = e / (e + rest) * e_other / (e_other + rest)
        return n_expert * (pair * chosen * weights).sum().item()

    at_0 = kept_weight(n_expert, n_active, v, 1, normalize) ** 2 / n_expert / approximation(0.0)
    at_1 = kept_weight(n_expert, n_active, v, 2, normalize) / approximation(1.0)

    def exact_at_ends(angle):
        cosines = [math.cos(a) for a in angle]
        return np.array([approximation(r) * at_0 ** (1 - r) * at_1**r for r in cosines])

    return np.polynomial.Chebyshev.interpolate(exact_at_ends, 8, domain=[0, math.pi / 2])


@cache
def chosen_by_both(n_expert, n_active, r):
    """An expert's logits z, z' of variance 1 for two tokens of correlation r, on a grid of pairs;
    the pairs' probability; and the probability that both tokens choose it, (pairs,) each.

    z and z' are sums and differences of two independent Gaussians, which span the grid. Of any
    other expert, orthant gives the probability that its logit is larger for the one token, for the
    other or for both. As experts are independent, they are added one at a time: better[i, j] is the
    probability that i of them have larger logits for the one token, j for the other; at most
    n_active - 1 may."""
    x = torch.arange(-5, 5.1, 0.25, dtype=torch.float64)
    x, y = torch.cartesian_prod(x, x[x >= 0]).T  # -y counts with y, as better is symmetric
    pair = torch.exp(-(x**2 + y**2) / 2) * (1 + (y > 0))
    x, y, pair = (values[pair > 1e-6] for values in (x, y, pair))
    sum_part, difference_part = math.sqrt((1 + r) / 2) * x, math.sqrt((1 - r) / 2) * y
    z, other = sum_part + difference_part, sum_part - difference_part
    both = orthant(z, other, r)
    first, second = torch.special.ndtr(-z) - both, torch.special.ndtr(-other) - both
    neither = 1 - both - first - second
    better = torch.zeros(n_active + 1, n_active + 1, len(z), dtype=torch.float64)
    better[1, 1] = 1  # row and column 0 stay empty: they are shifted in
    for _ in range(n_expert - 1 if n_active < n_expert else 0):
        more = neither * better
        more[1:] += first * better[:-1]
        more[:, 1:] += second * better[:, :-1]
        more[1:, 1:] += both * better[:-1, :-1]
        better = more
    return z, other, pair / pair.sum(), better.sum(dim=(0, 1))


# Integrals over Gaussians ------------------------------------------------------------------------


def gaussian_kernel(function, correlation, n_terms=40):
    """E[f(z) f(z')] for standard Gaussians z, z' of the given correlations (any shape), by
    Mehler's formula: sum_n a_n^2 correlation^n with a_n = E[f(z) He_n(z)] / sqrt(n!). It is for
    smooth f: it stops at n_terms, or where 1e-12 of E[f(z)^2] is left, and where f jumps the terms
    fall off slowly. Where the correlation is 1 it is E[f(z)^2], exactly."""
    z = GRID
    values = function(z)
    weighted = values * normal_density(z) * (z[1] - z[0])
    second_moment = (weighted * values).sum().item()
    terms, previous, hermite = [], torch.zeros_like(z), torch.ones_like(z)
    while len(terms) < n_terms and sum(terms) < (1 - 1e-12) * second_moment:
        n = len(terms)  # hermite = He_n / sqrt(n!)
        terms.append((weighted * hermite).sum().item() ** 2)
        following = (z * hermite - math.sqrt(n) * previous) / math.sqrt(n + 1)
        previous, hermite = hermite, following
    total = torch.zeros_like(correlation)
    for term in reversed(terms):
        total.mul_(correlation).add_(term)
    return torch.where(correlation > EQUAL, second_moment, total)


def normal_density(z):
    """Density of a standard Gaussian at z."""
    return torch.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)


@cache
def kept_weight(n, n_kept, v, power, normalize=True):
    """E[sum of w^power over the n_kept largest of n softmax weights w], the scores independent
    Gaussians of variance v; with `normalize` the softmax is of the kept scores alone.

    1 / Z^power = integral of t^(power - 1) exp(-t Z) / (power - 1)! dt for the normaliser Z, a sum
    of exp(score), makes the scores independent; and given the smallest kept one, z, n_kept - 1 are
    above it and n - n_kept below. With g(x) = density(x) exp(-t exp(score)), "up" its integral
    above z and "down" below (of the density alone if only the kept are in Z), this is exact:

        n binom(n - 1, n_kept - 1) integral dt t^(power - 1) / (power - 1)!  integral dz
          down^(n - n_kept) (exp(power score) g up^(n_kept - 1)
                             + (n_kept - 1) g up_power up^(n_kept - 2))

    where up_power is the integral of exp(power score) g."""
    scores = math.sqrt(v) * SCORES
    dz = SCORES[1] - SCORES[0]
    d_log_t = 0.5
    largest = scores[-1].item()
    t = torch.arange(-20 - largest, 6 + largest, d_log_t, dtype=torch.float64).exp()[:, None]
    exponential = torch.exp(power * scores)
    density = normal_density(SCORES) * dz
    g = density * torch.exp(-t * torch.exp(scores))  # (t, z)
    up = above(g)
    up_power = above(g * exponential)
    down = below(density if normalize else g)
    log_up, log_down = up.clamp_min(TINY).log(), down.clamp_min(TINY).log()
    ways = math.log(n) + math.lgamma(n) - math.lgamma(n_kept) - math.lgamma(n - n_kept + 1)
    rest = ways + (n - n_kept) * log_down + (n_kept - 1) * log_up
    total = exponential * rest.exp()
    if n_kept > 1:
        total = total + (n_kept - 1) * up_power * torch.exp(rest - log_up)
    return (t**power * g * total).sum().item() * d_log_t / math.gamma(power)


def below(values):
    """Integral of values (..., z), already times the grid's step, up to each z, by trapezoids."""
    return values.cumsum(dim=-1) - values / 2


def above(values):
    """Integral of values (..., z) from each z on."""
    return below(values.flip(-1)).flip(-1)


def orthant(a, b, r):
    """P(z > a, z' > b) for standard Gaussians of correlation r, by Plackett's identity: its
    derivative by r is their joint density at (a, b), integrated here over the angle arcsin r."""
    x, weight = np.polynomial.legendre.leggauss(48)
    angle = math.asin(r) * torch.from_numpy(x + 1) / 2
    weight = math.asin(r) * torch.from_numpy(weight) / (4 * math.pi)
    a, b = a[..., None], b[..., None]
    square = (a**2 + b**2 - 2 * a * b * angle.sin()) / (2 * angle.cos() ** 2)
    return (torch.special.ndtr(-a) * torch.special.ndtr(-b))[..., 0] + torch.exp(-square) @ weight


# Monte Carlo: the same of the real model ---------------------------------------------------------

TOP_2_OF_16 = {"n_expert": 16, "n_expert_active": 2}
THEORY_CASES = {  # name: model options, and the share of weights that is kept
    "dense": ({}, 1.0),
    "half the weights": ({}, 0.5),
    "multi-query": ({"n_kv_head": 1}, 1.0),
    "window 8": ({"attention": "window", "window": 8}, 1.0),
    "strided 8": ({"attention": "strided", "stride": 8}, 1.0),
    "top-8 keys": ({"attention": "topk", "topk": 8}, 1.0),
    "2 of 16 experts": (TOP_2_OF_16, 1.0),
    "2 of 16, normalised": ({**TOP_2_OF_16, "normalize_expert_weights": True}, 1.0),
    "2 of 16 and 1 shared": ({**TOP_2_OF_16, "n_shared_expert": 1}, 1.0),
    "layer-norm scaling": ({"layer_norm_scaling": True}, 1.0),
    "scaled init": ({"scaled_residual_init": True}, 1.0),
    "embedding norm": ({"embedding_norm": True}, 1.0),
    "Peri-LN": ({"peri_ln": True}, 1.0),
    "Peri-LN, embedding norm": ({"peri_ln": True, "embedding_norm": True}, 1.0),
    "CompleteP": ({"complete_p": True}, 1.0),
}
LARGE_VOCABULARY = 8192  # so that few tokens of a random sequence repeat


def theory_model(n_layer=32, n_embd=256, T=64, **options):
    """Config and one random sequence (T,) for theory and simulation."""
    config = GPTConfig(
        n_layer=n_layer,
        n_embd=n_embd,
        n_head=4,
        block_size=T,
        vocab_size=LARGE_VOCABULARY,
        **options,
    )
    generator = torch.Generator().manual_seed(0)
    return config, torch.randint(LARGE_VOCABULARY, (T,), generator=generator)


@torch.no_grad()
def simulate_variance(config, idx, keep=1.0, n_seeds=32):
    """(n_seeds, L + 1) variances h_0 .. h_L of the real model.py at initialisation, its blocks'
    weights kept with probability `keep`."""
    curves = []
    for seed in range(n_seeds):
        torch.manual_seed(seed)
        model = GPT(config).eval()
        for parameter in model.blocks.parameters():
            if keep < 1 and parameter.dim() >= 2:
                parameter.mul_(torch.rand_like(parameter) < keep)
        states = [model.embed(idx[None])]
        for block in model.blocks:
            states.append(block(states[-1]))
        curves.append(torch.stack([h.var(dim=-1).mean() for h in states]))
    return torch.stack(curves).double()


# What the command writes -------------------------------------------------------------------------


def theory_of_cases(folder, n_seeds=32):
    """Predicted and simulated variance of every case: theory.png and theory.json into folder, and
    a table on standard output."""
    cases = {}
    for name, (options, keep) in tqdm(THEORY_CASES.items(), desc="theory", disable=None):
        config, idx = theory_model(**options)
        simulated = simulate_variance(config, idx, keep, n_seeds)
        cases[name] = {
            "predicted": predict_variance(config, idx, keep),
            "simulated": simulated.mean(dim=0).tolist(),
            "standard_error": (simulated.std(dim=0) / math.sqrt(n_seeds)).tolist(),
        }
    write_theory(folder, "theory", theory_figure(cases), n_seeds, cases=cases)
    say(f"{'case':24}{'var(h_1)':>12}{'var(h_32)':>12}{'predicted':>12}{'largest gap':>13}")
    for name, case in cases.items():
        predicted, simulated = case["predicted"], case["simulated"]
        gap = max(abs(p / s - 1) for p, s in zip(predicted, simulated, strict=True))
        ends = f"{simulated[1]:12.2e}{simulated[-1]:12.2e}{predicted[-1]:12.2e}"
        say(f"{name:24}{ends}{gap:12.1%}")


def write_theory(folder, name, figure, n_seeds, **numbers):
    """<name>.png and <name>.json into folder."""
    save_figure(figure, folder / f"{name}.png")
    header = {"seeds": n_seeds, "torch": torch.__version__, "device": "cpu"}
    write_json(folder / f"{name}.json", rounded({**header, **numbers}))


MASK_SIZES = {  # mask: its option, and values from few keys in sight to all of 64
    "window": ("window", (2, 4, 8, 16, 32, 64)),
    "strided": ("stride", (2, 8, 16, 32, 64)),
    "topk": ("topk", (2, 4, 8, 16, 32, 64)),
}


def growth_under_mask(n_seeds, n_layer, **options):
    """{"density", "predicted": [l], "growth": [l][seed]}: of one mask its density, and
    var(h_l) / var(h_0) at initialisation in closed form and simulated."""
    config, idx = theory_model(n_layer=n_layer, **options)
    predicted = np.array(predict_variance(config, idx))
    simulated = simulate_variance(config, idx, n_seeds=n_seeds)
    return {
        "density": mask_density(config),
        "predicted": (predicted / predicted[0]).tolist(),
        "growth": (simulated / simulated[:, :1]).T.tolist(),
    }


def theory_of_masks(folder, n_seeds=16, depths=(1, 4, 16)):
    """Claim C10, that a sparser mask slows the growth of variance at initialisation:
    theory_masks.png and .json into folder hold var(h_l) / var(h_0) against mask density, in closed
    form and simulated, and verdicts by the rule of results/verdicts.py."""
    patterns = {}
    for name, (option, values) in tqdm(MASK_SIZES.items(), desc="masks", disable=None):
        masks = [{"attention": name, option: value} for value in values]
        rows = [growth_under_mask(n_seeds, max(depths), **mask) for mask in masks]
        rows.sort(key=lambda row: row["density"])
        patterns[name] = {"points": rows, "verdicts": {}}
        for layer in depths:
            growth = [row["growth"][layer] for row in rows]
            margin = margin_of("growth")
            verdict, effect, half, p = judge(growth, "rises", log=True, margin=margin)
            verdicts = {"verdict": verdict, "effect": effect, "half": half, "p": p}
            patterns[name]["verdicts"][layer] = verdicts
            say(
                f"C10, {name}, {layer:2} blocks: log growth {effect:+.3f} ± {half:.3f} "
                f"from a mask to the next denser one: {verdict}"
            )
    figure = masks_figure({name: of["points"] for name, of in patterns.items()}, depths)
    write_theory(folder, "theory_masks", figure, n_seeds, patterns=patterns)


def write_both(folder):
    """What theory_of_cases and theory_of_masks write, into folder, which is made and tried at once:
    whether it can be written is not to be learned minutes later."""
    folder.mkdir(exist_ok=True)
    tempfile.TemporaryFile(dir=folder).close()
    theory_of_cases(folder)
    theory_of_masks(folder)


# Command line ------------------------------------------------------------------------------------


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args(argv)
    stopped = "files that were not written yet are as they were"
    or_one_sentence(write_both, Path("results"), stopped=stopped)


if __name__ == "__main__":
    main()
