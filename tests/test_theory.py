"""theory.py: integrals against known ones, and predictions against branches and models drawn at
random."""

import json
import math
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import torch.nn.functional as F

import analyze
import theory
from model import GPT, MLP, CausalSelfAttention, GPTConfig, MoE
from train import forward_with_variance

# Formulas ----------------------------------------------------------------------------------------

RHO = torch.tensor([-0.5, 0.0, 0.3, 0.9, 1.0], dtype=torch.float64)
INTEGRALS = {  # function, and E[f(z) f(z')] at correlation rho
    "identity": (lambda z: z, RHO),
    "square": (lambda z: z**2, 1 + 2 * RHO**2),
    "exp": (torch.exp, torch.exp(1 + RHO)),
}


@pytest.mark.parametrize("function, expected", INTEGRALS.values(), ids=INTEGRALS.keys())
def test_gaussian_kernel_against_known_integrals(function, expected):
    kernel = theory.gaussian_kernel(function, RHO)
    assert torch.allclose(kernel, expected, rtol=1e-5, atol=1e-6)


def test_gaussian_kernel_of_a_step_is_the_chance_of_an_orthant():
    both_positive = 0.25 + torch.asin(RHO) / (2 * math.pi)
    kernel = theory.gaussian_kernel(lambda z: (z > 0).double(), RHO, n_terms=400)
    assert torch.allclose(kernel, both_positive, atol=2e-3)


N, S2, T = 64, 1e-4, 10  # width, variance of the weights, positions
DISTINCT = torch.eye(T, dtype=torch.float64)  # no two tokens are correlated


def uniform_attention():
    """(T, T): position q attends to its q + 1 keys alike."""
    probability = torch.ones(T, T, dtype=torch.float64).tril()
    return probability / probability.sum(dim=1, keepdim=True)


def test_attention_averages_distinct_tokens():
    """Over m keys, n^2 s2^2 / m."""
    added = theory.attention_branch(N, S2, S2, uniform_attention(), DISTINCT)
    expected = N**2 * S2**2 / torch.arange(1.0, T + 1, dtype=torch.float64)
    assert torch.allclose(added.diagonal(), expected)


def test_attention_averages_nothing_away_of_equal_tokens():
    equal = torch.ones(T, T, dtype=torch.float64)
    added = theory.attention_branch(N, S2, S2, uniform_attention(), equal)
    assert torch.allclose(added.diagonal(), torch.tensor(N**2 * S2**2, dtype=torch.float64))


def test_a_narrow_swiglu_adds_the_third_power_of_its_weights_variance():
    """hidden n^2 s2^3 / 4, so an eighth for half the weights."""
    narrow = theory.mlp_branch(N, 32, S2, S2, DISTINCT)[0, 0].item()
    thinned = theory.mlp_branch(N, 32, S2 / 2, S2 / 2, DISTINCT)[0, 0].item()
    assert narrow == pytest.approx(32 * S2 * (N * S2) ** 2 / 4, rel=0.02)
    assert thinned == pytest.approx(narrow / 8, rel=0.02)


@pytest.mark.parametrize("keep", [1.0, 0.5])
@pytest.mark.parametrize("n_kept", [16, 3])
def test_the_spread_of_attention_follows_the_weights_variance(keep, n_kept):
    """Against scores drawn at random, for 1 to 16 keys in sight: E[sum p^2] times keys in use."""
    topk = dict(attention="topk", topk=n_kept)
    config, _ = theory.theory_model(n_layer=1, n_embd=512, T=16, **topk)
    s2 = keep * 0.05**2  # large, so that the spread is far from 1
    in_use, spread, *_ = theory.attention_statistics(config, 16, s2)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 24_000, 512, generator=generator)
    W = torch.randn(2, 512, 512, generator=generator) * math.sqrt(s2)
    query, key = (x @ W).unflatten(1, (-1, 16))
    scores = query @ key.mT / math.sqrt(512)
    scores = scores.masked_fill(torch.ones(16, 16).triu(1).bool(), -math.inf)
    kept, index = scores.topk(n_kept)
    p = torch.full_like(scores, -math.inf).scatter(-1, index, kept).softmax(dim=-1)
    simulated = p.square().sum(dim=-1).mean(dim=0) * in_use
    assert spread.tolist() == pytest.approx(simulated.tolist(), rel=0.05)


def spread_in_sight_of(n_keys, n_embd, s2=S2):
    config, _ = theory.theory_model(n_embd=n_embd, attention="window", window=n_keys)
    return theory.attention_statistics(config, 64, s2)[1][-1].item()


def test_the_spread_grows_with_the_keys_in_sight():
    """1 + (e^v - 1) (1 - 1/m) while v is small; 1 for one key, e^v for many, at any v."""
    v = (256 * S2) ** 2
    for m in (1, 2, 8, 64):
        first_order = 1 + math.expm1(v) * (1 - 1 / m)
        assert spread_in_sight_of(m, 256) == pytest.approx(first_order, rel=2e-3)
    assert spread_in_sight_of(1, 8192, 0.02**2) == pytest.approx(1)
    assert spread_in_sight_of(64, 8192) == pytest.approx(math.exp((8192 * S2) ** 2), rel=0.04)


def weights_of(scores, n_kept, normalize):
    """Softmax of scores (..., n) with all but the n_kept largest set to 0."""
    weight = scores.softmax(dim=-1)
    weight = torch.zeros_like(weight).scatter(-1, *reversed(weight.topk(n_kept)))
    return weight / weight.sum(dim=-1, keepdim=True) if normalize else weight


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("n, n_kept", [(1, 1), (2, 1), (5, 5), (16, 2), (64, 40)])
def test_kept_weight_against_drawn_scores(n, n_kept, normalize):
    scores = torch.randn(40_000, n, generator=torch.Generator().manual_seed(0))
    for v in (0.01, 0.8):
        weight = weights_of(math.sqrt(v) * scores, n_kept, normalize)
        for power in (1, 2):
            simulated = weight.pow(power).sum(dim=-1).mean().item()
            predicted = theory.kept_weight(n, n_kept, v, power, normalize)
            assert predicted == pytest.approx(simulated, rel=0.01)


def test_kept_weight_of_equal_scores():
    assert theory.kept_weight(512, 512, 1e-9, 2) == pytest.approx(1 / 512, rel=5e-3)
    assert theory.kept_weight(16, 4, 1e-9, 2) == pytest.approx(1 / 4, rel=1e-3)
    assert theory.kept_weight(16, 4, 1e-9, 1, normalize=False) == pytest.approx(1 / 4, rel=1e-3)


def test_orthant_probabilities():
    zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    for r in (0, 0.3, 0.9, 0.999, 1):
        expected = 0.25 + math.asin(r) / (2 * math.pi)
        assert theory.orthant(zero, zero, r).item() == pytest.approx(expected, rel=1e-9)
        alone = torch.special.ndtr(-one).item()
        assert theory.orthant(one, -20 * one, r).item() == pytest.approx(alone, rel=1e-9)


@pytest.fixture(scope="module")
def two_tokens_at_many_routers():
    """(2, 4000, E) probabilities of two tokens at random routers, and the tokens' correlation."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 1, N, generator=generator)
    x = x / x.square().mean(-1, keepdim=True).sqrt()
    x[1] = 0.8 * x[0] + 0.6 * (x[1] - x[0] * (x[0] * x[1]).mean())  # correlation 0.8, roughly
    square = [(x[i] * x[i]).mean().double() for i in range(2)]
    correlation = (x[0] * x[1]).mean().double() / (square[0] * square[1]).sqrt()
    routers = torch.randn(4000, N, 16, generator=generator) * 0.02
    logits = torch.stack([(token @ routers)[:, 0] for token in x])
    return logits.softmax(-1), correlation.item()


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("other, tolerance", [(0, 0.02), (1, 0.05)])  # itself, the other token
def test_routing_factor_against_random_routers(
    normalize, other, tolerance, two_tokens_at_many_routers
):
    probability, correlation = two_tokens_at_many_routers
    chosen = F.one_hot(probability.topk(2).indices, 16).sum(dim=-2)
    kept = probability * chosen
    if normalize:
        kept = kept / kept.sum(dim=-1, keepdim=True)
    simulated = (kept[0] * kept[other]).sum(dim=-1).mean().item()
    rho = torch.tensor([correlation if other else 1.0], dtype=torch.float64)
    predicted = theory.moe_routing(N, 16, 2, 0.02**2, rho, normalize).item()
    assert predicted == pytest.approx(simulated, rel=tolerance)


FEW_CASES = ("dense", "window 8", "2 of 16 experts")  # the others are slow
CASES = [
    case if case in FEW_CASES else pytest.param(case, marks=pytest.mark.slow)
    for case in theory.THEORY_CASES
]


@pytest.mark.parametrize("case", CASES)
def test_theory_agrees_with_the_real_model_within_five_percent(case):
    """Up to the sampling error of 16 small models; the command uses more and wider
    ones."""
    options, keep = theory.THEORY_CASES[case]
    config, idx = theory.theory_model(n_embd=128, **options)
    predicted = torch.tensor(theory.predict_variance(config, idx, keep))
    simulated = theory.simulate_variance(config, idx, keep, n_seeds=16)
    error = simulated.std(dim=0) / 4
    assert ((predicted - simulated.mean(dim=0)).abs() < 0.05 * predicted + 2 * error).all()
    assert (error / predicted).max() < 0.06  # or the line above could not fail
    # There was a growth to predict: a normed embedding's is what_branches_add's.
    assert predicted[-1] / predicted[0] > 1.5 or case == "embedding norm"


# Within 5 % of Monte Carlo: a few always, a broad grid with -m slow ------------------------------


def some_and_slow(some, all_of_them):
    """Parameters: `some`, and the others of all_of_them marked slow."""
    others = [case for case in all_of_them if case not in some]
    return [*some, *(pytest.param(*case, marks=pytest.mark.slow) for case in others)]


def assert_within_five_percent(predicted, samples):
    """samples (n, ...): their mean, known to 1.25 % or better, is within 5 % of predicted."""
    simulated = samples.double().mean(dim=0)
    error = samples.double().std(dim=0) / math.sqrt(len(samples))
    assert (error / simulated).max() < 0.0125
    gap = torch.as_tensor(predicted, dtype=torch.float64) / simulated - 1
    assert gap.abs().max() < 0.05, gap


EXPERTS = [  # all, active
    (n, k) for n in (2, 3, 4, 8, 16, 32, 64) for k in (1, 2, n // 4, n // 2, n - 1, n) if 0 < k <= n
]
ALIKE = (0.0, 0.3, 0.6, 0.9, 0.99, 0.999, 1.0)  # correlations of two tokens
FEW_ROUTERS = [(2, 1, 0.1), (4, 1, 0.1), (16, 2, 0.4)]


@pytest.mark.parametrize(
    "n_expert, n_active, v",
    some_and_slow(FEW_ROUTERS, [(n, k, v) for n, k in set(EXPERTS) for v in (0.0256, 0.2, 0.8)]),
)
def test_routing_factor_of_few_and_many_experts(n_expert, n_active, v):
    """v = width * 0.02^2 from width 64 to 2048, tokens of any correlation."""
    generator = torch.Generator().manual_seed(0)
    n = max(100_000, 8000 * (n_expert // n_active)) // (1 + n_expert // 32)
    z, noise = math.sqrt(v) * torch.randn(2, n, n_expert, generator=generator)
    for normalize in (False, True):
        for r in ALIKE:
            mine = weights_of(z, n_active, normalize)
            other = weights_of(r * z + math.sqrt(1 - r**2) * noise, n_active, normalize)
            rho = torch.tensor([r], dtype=torch.float64)
            predicted = theory.moe_routing(1, n_expert, n_active, v, rho, normalize).item()
            if r == 0:  # independent tokens: a product of means, of less noise
                simulated = (mine.sum(dim=-1).mean() ** 2 / n_expert).item()
            else:
                simulated = (mine * other).sum(dim=-1).mean().item()
            assert predicted == pytest.approx(simulated, rel=0.05)


def variance_alone(build_branch, width, r, n_positions, n_seeds):
    """(n_seeds,) mean square of what branches drawn at random make of four sequences of tokens of
    root mean square 1 and correlation r."""
    samples = []
    for seed in range(n_seeds):
        torch.manual_seed(seed)
        x = math.sqrt(r) * torch.randn(4, 1, width)
        x = x + math.sqrt(1 - r) * torch.randn(4, n_positions, width)
        branch = build_branch().eval()
        with torch.no_grad():
            for weight in branch.parameters():
                weight.normal_(std=0.02)
            samples.append(branch(F.rms_norm(x, x.shape[-1:])).square().mean())
    return torch.stack(samples)


def alike(r, n_positions):
    return r + (1 - r) * torch.eye(n_positions, dtype=torch.float64)


MASKS = [("full", 0), *((mask, n) for mask in ("window", "topk") for n in (1, 2, 8, 24))]
MASKS += [("strided", 4)]
FEW_BRANCHES = [(64, "topk", 8, 0.0), (64, "window", 1, 0.5), (1024, "window", 1, 0.0)]
ALL_BRANCHES = [
    (width, mask, n, r) for width in (64, 256, 1024, 2048) for mask, n in MASKS for r in (0.0, 0.5)
]


@pytest.mark.parametrize("width, mask, n_keys, r", some_and_slow(FEW_BRANCHES, ALL_BRANCHES))
def test_attention_alone(width, mask, n_keys, r):
    T, n_keys = 32, n_keys or 1
    options = dict(attention=mask, window=n_keys, topk=n_keys, stride=n_keys)
    config = GPTConfig(n_embd=width, n_head=max(4, width // 64), block_size=T, **options)
    samples = variance_alone(
        lambda: CausalSelfAttention(config), width, r, T, max(32, 25_000 // width)
    )
    added = theory.attention_branch(
        width,
        0.02**2,
        0.02**2,
        theory.attention_probability(config, T),
        alike(r, T),
        theory.attention_statistics(config, T, 0.02**2),
    )
    assert_within_five_percent(added.diagonal().mean(), samples)


FEW_FEED_FORWARDS = [(64, 0, 1), (64, 2, 1), (256, 16, 2)]  # width, experts (0: dense), active
ALL_FEED_FORWARDS = [
    (width, *experts)
    for width in (64, 256, 1024, 2048)
    for experts in ((0, 1), (2, 1), (4, 1), (4, 2), (16, 2), (64, 8))
    if width * experts[0] <= 2**14
]


@pytest.mark.parametrize(
    "width, n_expert, n_active", some_and_slow(FEW_FEED_FORWARDS, ALL_FEED_FORWARDS)
)
def test_feed_forward_alone(width, n_expert, n_active):
    T = 16
    config = GPTConfig(n_embd=width, n_expert=n_expert, n_expert_active=n_active)

    def build_branch():
        return MoE(config) if n_expert else MLP(width, config.mlp_hidden)

    n_seeds = max(8, 8000 // width)
    if n_expert and width >= 1024:  # whose few wide experts differ from draw to draw
        n_seeds *= {1024: 8, 2048: 4}[width]
    samples = variance_alone(build_branch, width, 0.0, T, n_seeds)
    added = theory.feed_forward_branch(config, 0.02**2, 0.02**2, alike(0.0, T))
    assert_within_five_percent(added.diagonal().mean(), samples)


STACKS = {  # options, share of the weights kept
    "dense": ({}, 1.0),
    "half the weights": ({}, 0.5),
    "a tenth of the weights": ({}, 0.1),
    "one key": (dict(attention="window", window=1), 1.0),
    "one key, half the weights": (dict(attention="window", window=1), 0.5),
    "two keys": (dict(attention="window", window=2), 1.0),
    "top-1 key": (dict(attention="topk", topk=1), 1.0),
    "top-8 keys": (dict(attention="topk", topk=8), 1.0),
    "strided 8": (dict(attention="strided", stride=8), 1.0),
    "layer-norm scaling": (dict(layer_norm_scaling=True), 1.0),
    "one key, layer-norm scaling": (
        dict(attention="window", window=1, layer_norm_scaling=True),
        1.0,
    ),
    "scaled init": (dict(scaled_residual_init=True), 1.0),
    "feed-forward four times as large": (dict(down_init_scale=4.0), 1.0),
    "1 of 2 experts": (dict(n_expert=2, n_expert_active=1), 1.0),
    "2 of 4 experts, normalised": (
        dict(n_expert=4, n_expert_active=2, normalize_expert_weights=True),
        1.0,
    ),
    "8 of 64 experts": (dict(n_expert=64, n_expert_active=8), 1.0),
    "Peri-LN": (dict(peri_ln=True), 1.0),
    "Peri-LN, half the weights": (dict(peri_ln=True), 0.5),
    "Peri-LN, 2 of 16 experts": (dict(peri_ln=True, n_expert=16), 1.0),
    "Peri-LN, top-8 keys": (dict(peri_ln=True, attention="topk", topk=8), 1.0),
    "Peri-LN, layer-norm scaling": (dict(peri_ln=True, layer_norm_scaling=True), 1.0),
    "Peri-LN, embedding norm": (dict(peri_ln=True, embedding_norm=True), 1.0),
    "CompleteP": (dict(complete_p=True), 1.0),
    "CompleteP, 2 of 16 experts": (dict(complete_p=True, n_expert=16), 1.0),
    "all three": (
        dict(peri_ln=True, embedding_norm=True, complete_p=True, attention="window", window=8),
        1.0,
    ),
}
WIDTHS = {64: (4, 300), 256: (4, 120), 1024: (2, 32), 2048: (1, 24)}  # blocks, seeds
FEW_STACKS = [
    (64, "one key"),
    (1024, "one key"),
    (64, "1 of 2 experts"),
    (64, "Peri-LN, 2 of 16 experts"),
    (64, "CompleteP"),
    (256, "all three"),
]
ALL_STACKS = [
    (width, name)
    for width in WIDTHS
    for name, (options, _) in STACKS.items()
    if width * options.get("n_expert", 0) <= 2**14
]


@pytest.mark.parametrize("width, name", some_and_slow(FEW_STACKS, ALL_STACKS))
def test_stacks_of_every_width(width, name):
    """Of 32 different tokens, after each block of model.py."""
    (n_layer, n_seeds), (options, keep), T = WIDTHS[width], STACKS[name], 32
    if (width, name) in FEW_STACKS:
        n_layer, n_seeds = 1, max(4, n_seeds // 3)
    if name == "1 of 2 experts" and width >= 1024:  # as above
        n_seeds *= {1024: 3, 2048: 6}[width]
    config = GPTConfig(
        n_layer=n_layer, n_embd=width, n_head=4, block_size=T, vocab_size=T, **options
    )
    idx = torch.arange(T)
    predicted = theory.predict_variance(config, idx, keep)
    assert_within_five_percent(predicted, theory.simulate_variance(config, idx, keep, n_seeds))


NORMED = {
    "dense": {},
    "one key": dict(attention="window", window=1),
    "top-8 keys": dict(attention="topk", topk=8),
    "2 of 4 experts": dict(n_expert=4),
    "CompleteP": dict(complete_p=True),
    "Peri-LN": dict(peri_ln=True),
    "layer-norm scaling": dict(layer_norm_scaling=True),
}
FEW_NORMED = [(64, "dense"), (64, "CompleteP")]
ALL_NORMED = [(width, name) for width in (64, 256, 1024) for name in NORMED]


@pytest.mark.parametrize("width, name", some_and_slow(FEW_NORMED, ALL_NORMED))
def test_what_branches_add_to_a_normed_embedding(width, name):
    """A stream that begins at 1 hardly grows at initialisation, so its variance alone would show
    little: here, block by block, that of what both branches add."""
    n_layer, n_seeds = 3, max(24, 20_000 // width)
    config = GPTConfig(
        n_layer=n_layer,
        n_embd=width,
        n_head=4,
        block_size=32,
        vocab_size=32,
        embedding_norm=True,
        **NORMED[name],
    )
    idx, samples = torch.arange(32), []
    for seed in range(n_seeds):
        torch.manual_seed(seed)
        _, variance = forward_with_variance(GPT(config).eval(), idx[None])
        samples.append(variance["attention"] + variance["mlp"])
        assert variance["residual"][0].item() == pytest.approx(1, rel=0.02)
    predicted = theory.predict_variance(config, idx)
    assert predicted[0] == pytest.approx(1, rel=0.005)
    assert_within_five_percent(np.diff(predicted), torch.stack(samples))


@pytest.mark.parametrize("options", [{}, dict(n_expert=4), dict(attention="window", window=8)])
def test_a_prediction_for_several_sequences_is_their_mean(options):
    """Within a fifth of what sequences of frequent and rare tokens, as in text, differ by."""
    config, _ = theory.theory_model(n_layer=8, n_embd=256, T=64, **options)
    generator = torch.Generator().manual_seed(0)
    share = 1 / torch.arange(4.0, 104).expand(40, 100)  # of each token
    idx = share.multinomial(64, replacement=True, generator=generator)
    one_by_one = np.array([theory.predict_variance(config, row) for row in idx])
    mean, deviation = one_by_one.mean(axis=0), one_by_one.std(axis=0)
    assert 0.02 < deviation[2] / mean[2] < 0.1
    together = np.array(theory.predict_variance(config, idx))
    assert (np.abs(together - mean) <= deviation / 5 + 1e-9 * mean).all()
    assert theory.predict_variance(config, idx[:1]) == one_by_one[0].tolist()


@pytest.mark.parametrize("topk", [2, 8])
def test_top_keys_of_text_are_equal_tokens(topk):
    """Keys of equal tokens are picked together, so less is averaged away: h_1 of model.py."""
    options = dict(attention="topk", topk=topk)
    config = GPTConfig(n_layer=1, n_embd=128, block_size=64, vocab_size=100, **options)
    generator = torch.Generator().manual_seed(0)
    share = 1 / torch.arange(4.0, 104).expand(8, 100)
    idx = share.multinomial(64, replacement=True, generator=generator)
    samples = torch.cat([theory.simulate_variance(config, row, n_seeds=40) for row in idx])
    assert_within_five_percent(theory.predict_variance(config, idx), samples)
    few = idx[: theory.FEW_SEQUENCES]
    one_by_one = np.array([theory.predict_variance(config, row) for row in few])
    assert theory.predict_variance(config, few) == pytest.approx(one_by_one.mean(axis=0))


def test_analysis_predicts_for_all_its_sequences():
    config, _ = theory.theory_model(n_layer=2, n_embd=64, T=16)
    idx = torch.randint(5, (6, 16), generator=torch.Generator().manual_seed(0))
    predicted = analyze.variance_at_initialisation(config, idx)
    assert predicted == theory.predict_variance(config, idx)
    assert predicted[1] != theory.predict_variance(config, idx[0])[1]
    assert analyze.variance_at_initialisation(config, idx[:, :8]) is None  # log.jsonl's are longer


def test_sharing_keys_and_values_changes_no_prediction():
    config, idx = theory.theory_model(n_layer=4)
    shared, _ = theory.theory_model(n_layer=4, n_kv_head=1)
    assert theory.predict_variance(config, idx) == theory.predict_variance(shared, idx)


def test_simulation_thins_only_the_blocks():
    config, idx = theory.theory_model(n_layer=2, n_embd=32)
    torch.manual_seed(0)
    h_0 = GPT(config).embed(idx[None]).var(dim=-1).mean().item()
    simulated = theory.simulate_variance(config, idx, 0.5, n_seeds=1)
    assert simulated[0, 0].item() == pytest.approx(h_0, rel=1e-5)


# What the command writes -------------------------------------------------------------------------

SIX_DIGITS = 5e-6  # of 1.00000, half a unit of the last one, beside the number


@pytest.fixture
def small_theory(monkeypatch):
    """theory.theory_model at width 64 and 16 positions."""
    full_size = theory.theory_model

    def small(n_layer=2, **options):
        return full_size(n_layer=n_layer, n_embd=64, T=16, **options)

    monkeypatch.setattr(theory, "theory_model", small)
    return small


def test_cases_are_predicted_and_simulated(tmp_path, monkeypatch, small_theory, capsys):
    monkeypatch.setattr(theory, "THEORY_CASES", {"half": ({}, 0.5)})
    theory.theory_of_cases(tmp_path, n_seeds=4)
    case = json.loads((tmp_path / "theory.json").read_text(encoding="utf-8"))["cases"]["half"]
    config, idx = small_theory()
    simulated = theory.simulate_variance(config, idx, 0.5, n_seeds=4)
    predicted = theory.predict_variance(config, idx, 0.5)
    error = simulated.std(dim=0) / 2
    assert case["predicted"] == pytest.approx(predicted, rel=SIX_DIGITS)
    assert case["simulated"] == pytest.approx(simulated.mean(dim=0).tolist(), rel=SIX_DIGITS)
    assert case["standard_error"] == pytest.approx(error.tolist(), rel=SIX_DIGITS)
    assert "half" in capsys.readouterr().out
    assert plt.imread(tmp_path / "theory.png").std() > 0.01  # there is something on it


@pytest.fixture
def three_windows(tmp_path, monkeypatch, small_theory):
    """What theory_masks.json holds of windows of 1, 4 and all 16 keys, after 1 and 2 blocks."""
    monkeypatch.setattr(theory, "MASK_SIZES", {"window": ("window", (16, 1, 4))})
    theory.theory_of_masks(tmp_path, n_seeds=4, depths=(1, 2))
    assert plt.imread(tmp_path / "theory_masks.png").std() > 0.01
    return json.loads((tmp_path / "theory_masks.json").read_text(encoding="utf-8"))["patterns"][
        "window"
    ]


def test_masks_stand_in_the_order_of_their_density(three_windows):
    density = [row["density"] for row in three_windows["points"]]
    assert density == pytest.approx([16 / 136, (16 * 4 - 6) / 136, 1], rel=SIX_DIGITS)


def test_growth_under_a_mask_is_what_was_simulated(three_windows, small_theory):
    for row, window in zip(three_windows["points"], (1, 4, 16), strict=True):
        config, idx = small_theory(attention="window", window=window)
        simulated = theory.simulate_variance(config, idx, n_seeds=4)
        growth = simulated[:, 1] / simulated[:, 0]
        assert row["growth"][1] == pytest.approx(growth.tolist(), rel=SIX_DIGITS)
        assert row["predicted"][0] == 1


def test_masks_are_judged_by_that_growth(three_windows):
    """One block adds n_embd^2 * 0.02^4 / (keys in sight), so a window of one key adds most: C10 is
    wrong for one block."""
    after_one_block = three_windows["verdicts"]["1"]
    assert after_one_block["verdict"] == "opposed"
    assert after_one_block["effect"] < 0


def test_the_command_writes_both_into_results(tmp_path, monkeypatch, small_theory):
    simulate = theory.simulate_variance

    def two_draws(config, idx, keep=1.0, n_seeds=2):
        return simulate(config, idx, keep, n_seeds=2)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(theory, "THEORY_CASES", {"half": ({}, 0.5)})
    monkeypatch.setattr(theory, "MASK_SIZES", {"window": ("window", (16, 4))})
    monkeypatch.setattr(theory, "simulate_variance", two_draws)
    theory.main([])
    names = ("theory.json", "theory.png", "theory_masks.json", "theory_masks.png")
    assert sorted(path.name for path in Path("results").iterdir()) == sorted(names)


def test_where_results_cannot_be_is_said_before_anything_is_computed(
    tmp_path, monkeypatch, refused
):
    monkeypatch.chdir(tmp_path)
    Path("results").write_text("a file", encoding="utf-8")
    monkeypatch.setattr(theory, "simulate_variance", None)
    message = refused(theory.main, [])
    assert "results: File exists; a folder is to stand there" in message
    assert Path("results").read_text(encoding="utf-8") == "a file"
    if Path("/proc").is_dir():  # where nobody can make a file
        Path("results").unlink()
        Path("results").symlink_to("/proc")
        assert "results" in refused(theory.main, [])
