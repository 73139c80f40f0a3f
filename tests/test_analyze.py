"""analyze.py: every score against a slow oracle written from its definition, and models whose
answer is known."""

import ast
import itertools
import json
import math
import shutil

import numpy as np
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

import analyze
import pending
import train
from configs.read import TrainConfig
from conftest import REPOSITORY, TOGGLES, as_if_trained, each_toggle, write_data
from data import files
from model import GPT, GPTConfig
from results import scores

LAYERS, WIDTH, LENGTH, VOCABULARY = 4, 8, 6, 11


def build(n_layer=LAYERS, **options):
    """A small float64 model with weights as large as after training, so that every block does
    something."""
    torch.manual_seed(0)
    if "n_expert" in options:
        options["expert_hidden"] = 8
    shape = dict(block_size=LENGTH, vocab_size=VOCABULARY, n_head=4, n_embd=WIDTH, mlp_hidden=16)
    model = GPT(GPTConfig(n_layer=n_layer, **shape, **options)).double()
    as_if_trained(model, 12)
    return model.eval()


def data(n=3, seed=0):
    """n sequences of inputs and targets, (n, LENGTH) each."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(VOCABULARY, (n, LENGTH + 1), generator=generator)
    return rows[:, :-1], rows[:, 1:]


def first_state(model, row):
    """h_0 (1, T, C) of one sequence."""
    h = model.embedding.weight[row][None]
    if model.config.embedding_norm:
        h = h / (h.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt()
    return h


@torch.no_grad()
def states_of(model, row, functions=None):
    """[h_0, ..., h_L], each (1, T, C), of one sequence through any list of functions for blocks."""
    states = [first_state(model, row)]
    for function in functions or model.blocks:
        states.append(function(states[-1]))
    return states


@torch.no_grad()
def loss_through(model, functions, idx, targets):
    """L(M) with any list of functions for blocks, one sequence and one position at a time."""
    total = 0.0
    for row, wanted in zip(idx, targets, strict=True):
        h = first_state(model, row)
        for function in functions:
            h = function(h)
        logits = model.head(model.norm(h))[0]
        for t in range(LENGTH):
            total -= logits[t].log_softmax(0)[wanted[t]].item()
    return total / idx.numel()


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """Two sequences at a time, so that what is summed over pieces is tested too."""
    monkeypatch.setattr(analyze, "TOKENS_AT_ONCE", 2 * LENGTH)


def unchanged(score, model, *arguments):
    """score(model, *arguments), which must leave the model as it was."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    blocks = list(model.blocks)
    result = score(model, *arguments)
    assert list(model.blocks) == blocks
    assert not model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    return result


def close(values):
    return pytest.approx(values, abs=1e-6)


# Against the definitions -------------------------------------------------------------------------


@each_toggle
def test_prune_ratios_are_losses_without_a_block(toggle):
    model, (idx, targets) = build(**toggle), data()
    blocks = list(model.blocks)
    whole = loss_through(model, blocks, idx, targets)
    expected = [
        loss_through(model, blocks[:l] + blocks[l + 1 :], idx, targets) / whole
        for l in range(LAYERS)
    ]
    assert unchanged(analyze.prune_ratios, model, idx, targets).tolist() == close(expected)


@each_toggle
def test_permutation_matrix_swaps_each_pair(toggle):
    model, (idx, targets) = build(**toggle), data()
    whole = loss_through(model, model.blocks, idx, targets)
    matrix = unchanged(analyze.permutation_matrix, model, idx, targets)
    for a in range(LAYERS):
        for b in range(LAYERS):
            swapped = list(model.blocks)
            swapped[a], swapped[b] = swapped[b], swapped[a]
            loss = loss_through(model, swapped, idx, targets)
            assert matrix[a, b].item() == close(abs(whole - loss) / whole)


@pytest.mark.parametrize("n_layer, one_in", [(4, 2), (3, 3), (1, 1)])
def test_pairs_that_take_turns_are_each_swapped_in_their_own_sequences(n_layer, one_in):
    """All of them, and then without each of the sequences, as the jackknife leaves one out."""
    N, model = 7, build(n_layer)
    idx, targets = data(N)
    tables = [table.numpy() for table in analyze.swap_losses(model, idx, targets, one_in)]
    pairs = [(a, b) for a in range(n_layer) for b in range(a + 1, n_layer)]
    assert all(table.shape == (N, len(pairs)) for table in tables)
    for left_out in [None, *range(N)]:
        kept = [n for n in range(N) if n != left_out]
        changes = scores.swap_changes(*(table[kept].mean(axis=0) for table in tables))
        for p, (a, b) in enumerate(pairs):
            of_pair = [n for n in kept if (n - p) % one_in == 0]
            swapped = list(model.blocks)
            swapped[a], swapped[b] = swapped[b], swapped[a]
            whole = loss_through(model, model.blocks, idx[of_pair], targets[of_pair])
            loss = loss_through(model, swapped, idx[of_pair], targets[of_pair])
            assert changes[p] == close(abs(whole - loss) / whole)


@pytest.mark.parametrize(
    "n_layer, n_sequences, expected",
    [(1, 48, 1), (16, 48, 1), (24, 48, 1), (32, 48, 4), (64, 48, 16), (64, 16, 8), (32, 1, 1)],
)
def test_turns(n_layer, n_sequences, expected):
    assert analyze.one_in_how_many(n_layer, n_sequences) == expected


@each_toggle
def test_cumulative_pruning_from_the_last(toggle):
    model, (idx, targets) = build(**toggle), data()
    blocks = list(model.blocks)
    expected = [loss_through(model, blocks[:n], idx, targets) for n in range(LAYERS, -1, -1)]
    curve = unchanged(analyze.cumulative_pruning, model, idx, targets, "last")
    assert curve.tolist() == close(expected)


@each_toggle
def test_cumulative_pruning_of_the_least_harmful(toggle):
    model, (idx, targets) = build(**toggle), data()
    ratios = analyze.prune_ratios(model, idx, targets).tolist()
    by_harm = sorted(range(LAYERS), key=lambda l: ratios[l])
    expected = []
    for n in range(LAYERS + 1):
        kept = [model.blocks[l] for l in range(LAYERS) if l not in by_harm[:n]]
        expected.append(loss_through(model, kept, idx, targets))
    curve = unchanged(analyze.cumulative_pruning, model, idx, targets, "least")
    assert curve.tolist() == close(expected)


@each_toggle
def test_greedy_pruning_tries_every_block_at_every_step(toggle):
    model, (idx, targets) = build(**toggle), data()
    kept = list(range(LAYERS))
    expected = [loss_through(model, model.blocks, idx, targets)]
    while kept:
        losses = {}
        for l in kept:
            others = [model.blocks[k] for k in kept if k != l]
            losses[l] = loss_through(model, others, idx, targets)
        kept.remove(min(losses, key=losses.get))
        expected.append(min(losses.values()))
    curve = unchanged(analyze.cumulative_pruning, model, idx, targets, "greedy")
    assert curve.tolist() == close(expected)


def test_greedy_pruning_may_look_for_its_order_in_few_sequences():
    """Where that order is another than all sequences give: the curve is that of all."""
    model, (idx, targets) = build(), data(4, seed=4)
    orders, curves = [], []
    for one_in in (1, 2):
        kept, order = list(range(LAYERS)), []
        expected = [loss_through(model, model.blocks, idx, targets)]
        while kept:
            losses = {}
            for l in kept:
                others = [model.blocks[k] for k in kept if k != l]
                losses[l] = loss_through(model, others, idx[::one_in], targets[::one_in])
            order.append(min(losses, key=losses.get))
            kept.remove(order[-1])
            rest = [model.blocks[k] for k in kept]
            expected.append(loss_through(model, rest, idx, targets))
        curve = analyze.cumulative_pruning(model, idx, targets, "greedy", one_in=one_in)
        assert curve.tolist() == close(expected)
        orders.append(order)
        curves.append(expected)
    assert orders[0] != orders[1] and curves[0] != curves[1]


@each_toggle
def test_causal_matrix_skips_each_block(toggle):
    model, (idx, _) = build(**toggle), data()
    matrix = unchanged(analyze.causal_matrix, model, idx)
    for s in range(LAYERS):
        skipping = [*model.blocks[:s], nn.Identity(), *model.blocks[s + 1 :]]
        for l in range(LAYERS):
            changed, size = [], []
            for row in idx:
                h, skipped = states_of(model, row), states_of(model, row, skipping)
                delta, delta_skipped = h[l + 1] - h[l], skipped[l + 1] - skipped[l]
                changed += [(delta_skipped - delta)[0, t].norm().item() for t in range(LENGTH)]
                size += [delta[0, t].norm().item() for t in range(LENGTH)]
            expected = np.mean(changed) / np.mean(size) if l > s else 0
            assert matrix[s, l].item() == close(expected)


def jacobian_of_each_token(block, h):
    """[J_t] with J_t[j, i] the derivative of sum_s block(h)[s, i] with respect to h[t, j]."""
    full = torch.autograd.functional.jacobian(block, h)[0, :, :, 0]  # (T out, C out, T in, C in)
    return list(full.sum(dim=0).permute(1, 2, 0))  # (C in, C out) for each T in


@each_toggle
def test_jacobian_against_autograd(toggle):
    model, (idx, _) = build(**toggle), data(2)
    scores = unchanged(analyze.jacobian_deviation, model, idx)
    identity = torch.eye(WIDTH, dtype=torch.float64)
    for layer, block in enumerate(model.blocks):
        per_token = []
        for row in idx:
            per_token += jacobian_of_each_token(block, states_of(model, row)[layer])
        mean = torch.stack(per_token).mean(dim=0)
        norms = [(jacobian - identity).norm() / WIDTH for jacobian in per_token]
        expected = {
            "deviation": (mean - identity).norm() / WIDTH,
            "off_diagonal": (mean * (1 - identity)).norm() / WIDTH,
            "spectral": torch.linalg.svdvals(mean)[0],
            "per_token": torch.stack(norms).mean(),
        }
        assert scores.keys() == expected.keys()
        for name, value in expected.items():
            assert scores[name][layer].item() == close(value.item()), name


def test_jacobian_against_finite_differences():
    """The convention, without autograd: shifting h_l[t, j] moves sum_s h_{l+1}[s, i] by
    J_t[j, i]."""
    model, (idx, _) = build(), data(1)
    block, h = model.blocks[1], states_of(model, idx[0])[1]
    mean = torch.zeros(WIDTH, WIDTH, dtype=torch.float64)
    with torch.no_grad():
        for t in range(LENGTH):
            for j in range(WIDTH):
                step = torch.zeros_like(h)
                step[0, t, j] = 1e-5
                moved = (block(h + step) - block(h - step))[0].sum(dim=0) / 2e-5
                mean[j] += moved / LENGTH
    expected = (mean - torch.eye(WIDTH)).norm() / WIDTH
    assert analyze.jacobian_deviation(model, idx)["deviation"][1].item() == close(expected.item())


def least_squares(model, fit_idx, layer):
    """(W, b) of h_{l+1} ~ h_l W^T + b, by numpy on all tokens at once."""
    pairs = [states_of(model, row)[layer : layer + 2] for row in fit_idx]
    X, Y = (torch.cat([pair[side][0] for pair in pairs]).numpy() for side in (0, 1))
    with_one = np.hstack([X, np.ones((len(X), 1))])
    solution = torch.from_numpy(np.linalg.lstsq(with_one, Y, rcond=None)[0])
    return solution[:WIDTH].T, solution[WIDTH]


@each_toggle
@pytest.mark.parametrize("transposed", [False, True])
def test_linear_ratios_replace_a_block_by_its_least_squares_map(toggle, transposed):
    model, (idx, targets), (fit_idx, _) = build(**toggle), data(), data(9, seed=1)
    maps = unchanged(analyze.fit_linear_maps, model, fit_idx)
    ratios = unchanged(analyze.linear_ratios, model, maps, idx, targets, transposed)
    whole = loss_through(model, model.blocks, idx, targets)
    for layer in range(LAYERS):
        W, b = least_squares(model, fit_idx, layer)
        installed = W.T if transposed else W

        def stand_in(h, W=installed, b=b):
            return h @ W.T + b

        functions = [*model.blocks[:layer], stand_in, *model.blocks[layer + 1 :]]
        expected = loss_through(model, functions, idx, targets) / whole
        assert ratios[layer].item() == close(expected)


def tokens_of_states(model, idx):
    """[(tokens, C)] of h_0 .. h_L."""
    states = [states_of(model, row) for row in idx]
    return [torch.cat([of_row[l][0] for of_row in states]) for l in range(LAYERS + 1)]


@each_toggle
def test_layer_variance_of_the_stream(toggle):
    model, (idx, _) = build(**toggle), data()
    variance = unchanged(analyze.layer_variance, model, idx)
    expected = [h.var(dim=1).mean().item() for h in tokens_of_states(model, idx)]
    assert variance["residual"].tolist() == pytest.approx(expected)


def added_by(block, branch, h):
    """What a branch adds to the stream h, with the remedies that the block has."""
    part = getattr(block, branch)(getattr(block, f"{branch}_norm")(h))
    if hasattr(block, "factor"):
        part = block.factor * getattr(block, f"{branch}_outer_norm")(part)
    return part


@each_toggle
def test_layer_variance_of_the_branches(toggle):
    model, (idx, _) = build(**toggle), data()
    variance = analyze.layer_variance(model, idx)
    for layer, block in enumerate(model.blocks):
        attention, mlp = [], []
        with torch.no_grad():
            for row in idx:
                h = states_of(model, row)[layer]
                added = added_by(block, "attention", h)
                attention.append(added.var(dim=-1).mean().item())
                mlp.append(added_by(block, "mlp", h + added).var(dim=-1).mean().item())
        assert variance["attention"][layer].item() == pytest.approx(np.mean(attention))
        assert variance["mlp"][layer].item() == pytest.approx(np.mean(mlp))


class Silent(nn.Module):
    def forward(self, x):
        return torch.zeros_like(x)


@torch.no_grad()
def opened(block, h):
    """The stream h (1, T, C) before a block, between its branches, and after it, (T, C) arrays: it
    stands still between while the feed-forward branch is silent."""
    after, mlp = block(h), block.mlp
    block.mlp = Silent()
    between = block(h)
    block.mlp = mlp
    return [stream[0].numpy() for stream in (h, between, after)]


def rms(vector):
    return math.sqrt(np.mean(vector**2))


def size_and_cosine(stream, update):
    """Of one token, (C,) each."""
    return rms(update) / rms(stream), update @ stream / (WIDTH * rms(update) * rms(stream))


def angle_between(x, y):
    """By Kahan's formula, which is exact for small angles, too."""
    x, y = x / rms(x), y / rms(y)
    return 2 * math.atan2(rms(x - y), rms(x + y))


@each_toggle
def test_updates_beside_the_stream_token_by_token(toggle):
    model, (idx, _) = build(**toggle), data()
    by_token = unchanged(analyze.stream_by_token, model, idx)
    for n, row in enumerate(idx):
        states = states_of(model, row)
        for l, block in enumerate(model.blocks):
            for t, (h, between, after) in enumerate(zip(*opened(block, states[l]), strict=True)):
                pairs = {
                    "attention": size_and_cosine(h, between - h),
                    "mlp": size_and_cosine(between, after - between),
                    "block": size_and_cosine(h, after - h),
                }
                for part, (size, cosine) in pairs.items():
                    assert by_token[part, "size"][n, t, l].item() == close(size)
                    assert by_token[part, "cosine"][n, t, l].item() == close(cosine)
                assert by_token["angle"][n, t, l].item() == close(angle_between(h, after))


def test_median_variance_and_without_the_first_position():
    model, (idx, _) = build(), data()
    variance = analyze.layer_variance(model, idx)
    states = [states_of(model, row) for row in idx]
    for l in range(LAYERS + 1):
        by_token = np.array([of_row[l][0].numpy().var(axis=1, ddof=1) for of_row in states])
        middle = sorted(by_token.flatten())[by_token.size // 2 - 1]  # the lower of two
        assert variance["median"][l].item() == pytest.approx(middle)
        assert variance["without_first"][l].item() == pytest.approx(by_token[:, 1:].mean())


@each_toggle
def test_angular_distance_and_block_influence(toggle):
    model, (idx, _) = build(**toggle), data()
    distance, influence = unchanged(analyze.angular_distance, model, idx)
    states = tokens_of_states(model, idx)
    for a in range(LAYERS + 1):
        for b in range(LAYERS + 1):
            pairs = zip(states[a], states[b], strict=True)
            cosines = [float(x @ y / x.norm() / y.norm()) for x, y in pairs]
            angles = [math.acos(max(-1, min(1, cosine))) / math.pi for cosine in cosines]
            assert distance[a, b].item() == close(np.mean(angles))
            if b == a + 1:
                assert influence[a].item() == close(1 - np.mean(cosines))
    assert torch.equal(analyze.block_influence(model, idx), influence)


@each_toggle
def test_logit_lens_is_the_divergence_from_the_final_read_out(toggle):
    model, (idx, _) = build(**toggle), data()
    lens = unchanged(analyze.logit_lens, model, idx)
    with torch.no_grad():
        read_outs = [
            torch.distributions.Categorical(logits=model.head(model.norm(h)))
            for h in tokens_of_states(model, idx)
        ]
    for l, early in enumerate(read_outs):
        expected = torch.distributions.kl_divergence(early, read_outs[-1]).mean().item()
        assert lens[l].item() == close(expected)
    assert lens[-1] == 0


def test_scores_do_not_depend_on_the_size_of_the_pieces(monkeypatch):
    model, (idx, targets) = build(), data(5)
    results = []
    for n_tokens in (LENGTH, 10**6):
        monkeypatch.setattr(analyze, "TOKENS_AT_ONCE", n_tokens)
        maps = analyze.fit_linear_maps(model, idx)
        results.append(
            [
                analyze.prune_ratios(model, idx, targets),
                analyze.linear_ratios(model, maps, idx, targets),
                analyze.causal_matrix(model, idx),
                analyze.angular_distance(model, idx)[0],
                analyze.jacobian_deviation(model, idx)["per_token"],
            ]
        )
    for one_by_one, at_once in zip(*results, strict=True):
        assert torch.allclose(one_by_one, at_once, atol=1e-9)


# Models whose answer is known --------------------------------------------------------------------


def test_a_zero_block_scores_nothing():
    model, (idx, targets) = build(), data()
    block = model.blocks[2]
    block.attention.output.weight.data.zero_()
    block.mlp.down.weight.data.zero_()
    jacobian = analyze.jacobian_deviation(model, idx)
    assert analyze.prune_ratios(model, idx, targets)[2] == 1
    assert (analyze.causal_matrix(model, idx)[2] == 0).all()
    assert jacobian["deviation"][2] == 0
    assert jacobian["per_token"][2] == 0
    assert jacobian["spectral"][2] == pytest.approx(1)
    assert analyze.block_influence(model, idx)[2].item() == pytest.approx(0, abs=1e-12)
    assert analyze.layer_variance(model, idx)["mlp"][2] == 0


class LinearBlock(nn.Module):
    """h -> h W^T + b with an asymmetric W: exactly linear, so its least-squares stand-in is the
    block itself."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        noise = torch.randn(WIDTH, WIDTH, dtype=torch.float64, generator=generator)
        self.weight = nn.Parameter(torch.eye(WIDTH, dtype=torch.float64) + noise / 3)
        self.bias = nn.Parameter(torch.randn(WIDTH, dtype=torch.float64, generator=generator))

    def forward(self, h):
        return F.linear(h, self.weight, self.bias)


def test_a_linear_block_is_recovered():
    model, (idx, targets), (fit_idx, _) = build(), data(), data(9, seed=1)
    model.blocks[1] = LinearBlock()
    maps = analyze.fit_linear_maps(model, fit_idx)
    W, b = maps[1]
    assert torch.allclose(W, model.blocks[1].weight, atol=1e-8)
    assert torch.allclose(b, model.blocks[1].bias, atol=1e-8)
    ratios = analyze.linear_ratios(model, maps, idx, targets)
    assert ratios[1].item() == pytest.approx(1, abs=1e-9)


def test_the_transposed_map_of_a_linear_block_is_not_the_block():
    model, (idx, targets), (fit_idx, _) = build(), data(), data(9, seed=1)
    model.blocks[1] = LinearBlock()
    maps = analyze.fit_linear_maps(model, fit_idx)
    ratios = analyze.linear_ratios(model, maps, idx, targets, transposed=True)
    assert abs(ratios[1].item() - 1) > 1e-3


def test_the_fit_is_stable_where_features_span_ten_orders_of_magnitude():
    model, (fit_idx, _) = build(n_layer=1), data(40, seed=1)
    model.blocks[0] = LinearBlock()
    model.embedding.weight.data *= torch.logspace(-5, 5, WIDTH, dtype=torch.float64)
    ((W, b),) = analyze.fit_linear_maps(model, fit_idx)
    with torch.no_grad():
        h = model.embed(fit_idx)
        assert torch.allclose(F.linear(h, W, b), model.blocks[0](h), rtol=1e-6, atol=1e-6)


def test_swapping_identical_blocks_changes_nothing():
    model, (idx, targets) = build(), data()
    model.blocks[3].load_state_dict(model.blocks[1].state_dict())
    matrix = analyze.permutation_matrix(model, idx, targets)
    assert matrix[1, 3] == matrix[3, 1] == 0
    assert matrix[0, 1] > 1e-4


# Sampling error ----------------------------------------------------------------------------------


def scores_from_scratch(model, maps, idx, targets):
    """Every score that gets a sampling error, by the instruments that return it whole."""
    removed = analyze.prune_ratios(model, idx, targets).tolist()
    linear = analyze.linear_ratios(model, maps, idx, targets).tolist()
    permutation = analyze.permutation_matrix(model, idx, targets)
    variance = analyze.layer_variance(model, idx)["residual"].tolist()
    loss = loss_through(model, model.blocks, idx, targets)
    angle = math.pi * analyze.angular_distance(model, idx)[0].diagonal(offset=1).numpy()
    size = analyze.stream_by_token(model, idx)["block", "size"].mean(dim=(0, 1)).numpy()
    return {
        "loss": loss,
        "perplexity": math.exp(loss),
        "causal": scores.pair_mean(analyze.causal_matrix(model, idx)),
        "permutation": scores.pair_mean(permutation),
        "prune_ratios": removed,
        "linear_ratios": linear,
        "removal_use": scores.use_of_depth(removed),
        "linear_use": scores.use_of_depth(linear),
        "last_layer_variance": variance[-1],
        "growth": scores.growth_of_variance(variance),
        "updates": scores.updates_in_the_middle(angle, size),
    }


def flattened(tree, path=()):
    """{path: array} of numbers in dicts."""
    if not isinstance(tree, dict):
        return {path: np.array(tree)}
    return {key: v for name in tree for key, v in flattened(tree[name], (*path, name)).items()}


@pytest.mark.parametrize("toggle", ["plain", "together"])
def test_standard_errors_are_those_of_leaving_out_each_sequence(toggle, monkeypatch):
    """Against running the model anew without each."""
    N, model = 5, build(**TOGGLES[toggle])
    sets = {parity: data(N, parity) for parity in (0, 1)}
    monkeypatch.setattr(analyze, "held_out_sequences", lambda *_, parity=0, device: sets[parity])
    analysis = analyze.score_run(model, None, N, torch.device("cpu"))
    maps = analyze.fit_linear_maps(model, sets[1][0])
    idx, targets = sets[0]
    others = [[m for m in range(N) if m != n] for n in range(N)]
    left_out = [
        flattened(scores_from_scratch(model, maps, idx[kept], targets[kept])) for kept in others
    ]
    errors = flattened(analysis["standard_errors"])
    assert errors.keys() == left_out[0].keys()
    for name, error in errors.items():
        table = np.array([of_one[name] for of_one in left_out])
        expected = np.sqrt((N - 1) / N * ((table - table.mean(axis=0)) ** 2).sum(axis=0))
        assert error == pytest.approx(expected, rel=1e-6, abs=1e-12), name
    whole = flattened(scores_from_scratch(model, maps, idx, targets))
    for name, by_sequence in flattened(analysis["per_sequence"]).items():
        expected = [N * whole[name] - (N - 1) * of_one[name] for of_one in left_out]
        assert by_sequence == pytest.approx(np.array(expected), rel=1e-5, abs=1e-9), name
    own = [loss_through(model, model.blocks, idx[n : n + 1], targets[n : n + 1]) for n in range(N)]
    assert analysis["per_sequence"]["loss"] == close(own)
    for name in whole.keys() - {("last_layer_variance",), ("linear_ratios",)}:
        value = analysis
        for key in name:
            value = value[key]
        assert value == pytest.approx(whole[name], rel=1e-6), name


# Held-out and training text ----------------------------------------------------------------------


@each_toggle
def test_losses_by_position(toggle):
    model, (idx, targets) = build(**toggle), data()
    losses = unchanged(analyze.losses_by_position, model, idx, targets)
    for n, (row, wanted) in enumerate(zip(idx, targets, strict=True)):
        for t in range(LENGTH):
            logits = model.head(model.norm(states_of(model, row)[-1]))[0, t]
            assert losses[n, t].item() == close(-logits.log_softmax(0)[wanted[t]].item())


def test_text_is_scored_in_the_whole_context_on_as_many_tokens_of_either_file(project):
    """One sequence at a time: twelve of each file, from end to end."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(n_embd=16, n_head=2, block_size=16, n_layer=2)).eval()
    config = TrainConfig(
        dataset="tiny", eval_tokens=12 * 16, max_iters=25, warmup_iters=0, batch_size=2
    )
    entry, errors = analyze.score_text(model, config)
    means = {}
    for split in ("val", "train"):
        tokens = np.fromfile(project / f"data/tiny/{split}.bin", dtype=np.uint16).astype(int)
        starts = np.linspace(0, len(tokens) - 17, 12).astype(int)
        rows = torch.from_numpy(np.array([tokens[start : start + 17] for start in starts]))
        with torch.no_grad():
            log_probability = model(rows[:, :-1])[0].log_softmax(-1)
        losses = -log_probability.gather(-1, rows[:, 1:, None])[..., 0]
        means[split] = losses.mean(dim=1).double().numpy()
        if split == "val":
            by_bin = [losses[:, a:b].mean().item() for a, b in zip(EDGES, EDGES[1:], strict=False)]
            assert entry["by_position"] == pytest.approx(by_bin, rel=1e-5)
    held_out, training = means["val"], means["train"]
    assert entry["held_out_loss"] == pytest.approx(held_out.mean(), rel=1e-5)
    assert entry["training_loss"] == pytest.approx(training.mean(), rel=1e-5)
    assert entry["gap"] == pytest.approx(held_out.mean() - training.mean(), rel=1e-3)
    variances = [of.var(ddof=1) / 12 for of in (held_out, training)]
    assert errors["gap"] == pytest.approx(math.sqrt(sum(variances)), rel=1e-3)
    assert entry["positions_read"] == [1, 2, 3.5, 6.5, 12.5]
    assert entry["passes"] == 25 * 2 * 16 / 4000


EDGES = [0, 1, 2, 4, 8, 16]


# The same targets for all contexts ---------------------------------------------------------------


def model_of_context(T, vocab_size=20):
    torch.manual_seed(0)
    shape = dict(n_layer=2, n_head=2, n_embd=8, mlp_hidden=16)
    model = GPT(GPTConfig(block_size=T, vocab_size=vocab_size, **shape)).double()
    as_if_trained(model, 12)
    return model.eval()


@torch.no_grad()
def loss_of_token(model, tokens, place, n_before):
    """The loss of one token, predicted from so many before it and nothing else."""
    before = torch.tensor(tokens[place - n_before : place].astype(int))[None]
    return -model(before)[0][0, -1].log_softmax(-1)[int(tokens[place])].item()


@pytest.mark.parametrize(
    "T, n_before",  # of the eight targets of a stretch
    [
        (2, [1, 1, 1, 1, 1, 1, 1, 1]),
        (4, [2, 3, 2, 3, 2, 3, 2, 3]),
        (5, [3, 4, 3, 4, 3, 4, 3, 4]),
        (6, [3, 4, 5, 3, 4, 3, 4, 5]),  # the last window ends with the stretch
        (16, [8, 9, 10, 11, 12, 13, 14, 15]),
    ],
)
def test_each_target_has_half_its_context_before_it_or_more(T, n_before, monkeypatch):
    """Token by token: as many before it as are counted here by hand."""
    monkeypatch.setattr("data.read.LONGEST_CONTEXT", 16)
    model, firsts = model_of_context(T), np.array([8, 20, 21])
    tokens = np.random.default_rng(0).integers(20, size=30).astype(np.uint16)
    losses = unchanged(analyze.losses_of_targets, model, tokens, firsts, T)
    assert losses.shape == (3, 8)
    for row, first in zip(losses, firsts, strict=True):
        for target, (loss, n) in enumerate(zip(row, n_before, strict=True)):
            assert loss.item() == close(loss_of_token(model, tokens, first + target, n))


@pytest.mark.parametrize(
    "T, measured",
    [
        (2, {"own_context"}),
        (4, {"own_context", "short_context"}),
        (16, {"own_context", "short_context"}),
        (32, {"short_context"}),
    ],
)
def test_contexts_are_compared_on_the_same_targets(T, measured, project, monkeypatch):
    """Four stretches of eight tokens, whatever the context, with those behind it unread."""
    monkeypatch.setattr("data.read.LONGEST_CONTEXT", 16)
    monkeypatch.setattr(analyze, "SHORT_CONTEXT", 4)
    model = model_of_context(T, vocab_size=257)
    config = TrainConfig(dataset="tiny", eval_tokens=4 * 32)
    entry, pseudo = analyze.score_same_targets(model, config)
    assert entry.keys() == {"targets"} | measured and pseudo.keys() == measured
    assert entry["targets"] == 32
    tokens = np.fromfile(project / "data/tiny/val.bin", dtype=np.uint16)
    firsts = [8, 8 + 583 // 3, 8 + 2 * 583 // 3, 591]  # evenly from 8 to 600 - 1 - 8
    for name, window in {"own_context": T, "short_context": 4}.items():
        if name in measured:
            n_before = [window - window // 2 + i % (window // 2) for i in range(8)]
            means = [
                np.mean(
                    [loss_of_token(model, tokens, first + i, n) for i, n in enumerate(n_before)]
                )
                for first in firsts
            ]
            assert pseudo[name] == pytest.approx(np.array(means))
            assert entry[name] == pytest.approx(np.mean(means))


def test_a_text_too_short_for_the_longest_context_has_no_such_targets(project):
    config = TrainConfig(dataset="tiny", eval_tokens=128)
    assert analyze.score_same_targets(model_of_context(16, 257), config) == ({"targets": 0}, {})


# Interrupted -------------------------------------------------------------------------------------


def interrupt_after(n_calls):
    """A forward pre-hook that raises KeyboardInterrupt at the call after so many."""
    calls = []

    def hook(module, args):
        calls.append(1)
        if len(calls) > n_calls:
            raise KeyboardInterrupt

    return hook


def greedy(model, idx, targets):
    return analyze.cumulative_pruning(model, idx, targets, "greedy")


@pytest.mark.parametrize("score", [analyze.permutation_matrix, greedy])
def test_interrupted_interventions_leave_the_model_as_it_was(score):
    model, (idx, targets) = build(), data()
    before = model(idx)[0]
    handle = model.norm.register_forward_pre_hook(interrupt_after(8))
    with pytest.raises(KeyboardInterrupt):
        score(model, idx, targets)
    handle.remove()
    assert torch.equal(model(idx)[0], before)


@pytest.mark.parametrize("score", [analyze.layer_variance, analyze.jacobian_deviation])
def test_interrupted_scores_leave_no_hooks(score):
    model, (idx, _) = build(), data()
    before = model(idx)[0]
    handle = model.blocks[2].register_forward_pre_hook(interrupt_after(0))
    with pytest.raises(KeyboardInterrupt):
        score(model, idx)
    handle.remove()
    assert torch.equal(model(idx)[0], before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


# What a run's analysis holds ---------------------------------------------------------------------


def test_analysis_holds_what_figures_and_claims_read(monkeypatch):
    """All of it as plain numbers and lists, and nothing that nobody reads."""
    model = build().float()
    monkeypatch.setattr(analyze, "held_out_sequences", lambda *_, parity=0, device: data(3, parity))
    analysis = analyze.score_run(model, None, 3, torch.device("cpu"))
    assert analysis["sequences_of"] == {"jacobian": 1, "swap": 3, "greedy_order": 3}
    assert json.loads(json.dumps(analysis)) == analysis
    assert set(analysis["jacobian"]) == {"deviation", "off_diagonal", "spectral", "per_token"}
    assert not analysis.keys() & {"share_above", "thresholds"}
    idx, targets = data(3, 0)
    ratios = analyze.linear_ratios(
        model, analyze.fit_linear_maps(model, data(3, 1)[0]), idx, targets
    )
    assert analysis["linear_ratios"]["held_out"] == pytest.approx(ratios.tolist(), rel=1e-5)
    assert analysis["usefulness"]["held_out"] == scores.usefulness(ratios)
    assert analysis["n_eff"] == pytest.approx(scores.effective_depth(ratios), rel=1e-4)
    fit_idx, fit_targets = data(3, 1)
    maps = analyze.fit_linear_maps(model, fit_idx)
    same = analyze.linear_ratios(model, maps, fit_idx, fit_targets)
    assert analysis["linear_ratios"]["same"] == pytest.approx(same.tolist(), rel=1e-5)
    assert analysis["causal"] == pytest.approx(scores.pair_mean(analyze.causal_matrix(model, idx)))
    permutation = analyze.permutation_matrix(model, idx, targets)
    assert analysis["permutation"] == pytest.approx(scores.pair_mean(permutation), rel=1e-4)
    assert np.array(analysis["permutation_matrix"]) == pytest.approx(permutation.numpy(), rel=1e-4)


def test_deep_models_are_swapped_in_fewer_sequences_which_analysis_says(monkeypatch):
    """Five sequences, of which a pair is swapped in two or three: means, jackknife and matrix."""
    monkeypatch.setattr(analyze, "one_in_how_many", lambda L, N: 2)
    monkeypatch.setattr(analyze, "held_out_sequences", lambda *_, parity=0, device: data(5, parity))
    model, (idx, targets) = build(), data(5)
    analysis = analyze.score_run(model, None, 5, torch.device("cpu"))
    assert analysis["sequences_of"] == {"jacobian": 1, "swap": 2, "greedy_order": 3}
    matrix = np.zeros((LAYERS, LAYERS))
    for turn in (0, 1):
        of_turn = analyze.permutation_matrix(model, idx[turn::2], targets[turn::2]).numpy()
        pairs = [pair[turn::2] for pair in np.triu_indices(LAYERS, k=1)]
        matrix[tuple(pairs)] = of_turn[tuple(pairs)]
    assert np.array(analysis["permutation_matrix"]) == pytest.approx(matrix + matrix.T)
    assert analysis["permutation"] == pytest.approx(scores.pair_mean(matrix))


# A run that was scored ---------------------------------------------------------------------------


@pytest.fixture
def trained(project, monkeypatch):
    """The folder of a sweep of one run of two blocks on the tiny dataset, and the run's."""
    # Figures take a while.
    monkeypatch.setattr("results.report.draw_figures", lambda name, points: {})
    few = "n_layer = 2\nmax_iters = 2\nwarmup_iters = 0\neval_tokens = 64\n"
    config = project / "small.toml"
    config.write_text(few + SMALL_OPTIONS, encoding="utf-8")
    train.main([str(config)])
    return project / "out/small", project / "out/small/run"


SMALL_OPTIONS = """
dataset = "tiny"
n_embd = 16
n_head = 2
block_size = 16
batch_size = 4
device = "cpu"
"""


def scored(sweep, *options):
    """When analyze.py last wrote the run's scores."""
    analyze.main([str(sweep), "--sequences", "3", *options])
    return (sweep / "run/analysis.json").stat().st_mtime_ns


def test_what_is_scored_is_scored_again_where_something_changed_or_it_is_asked_for(trained):
    sweep, _ = trained
    first = scored(sweep)
    assert scored(sweep) == first
    again = scored(sweep, "--again")
    assert again != first
    assert scored(sweep, "--sequences", "2") != again


def test_a_run_is_scored_on_the_same_targets_as_others(trained, monkeypatch):
    monkeypatch.setattr("data.read.LONGEST_CONTEXT", 16)
    sweep, run = trained
    scored(sweep)
    analysis = json.loads((run / "analysis.json").read_text())
    entry, means = analysis["same_targets"], analysis["per_sequence"]["same_targets"]
    assert entry["targets"] == 16 and entry.keys() == {"targets", "own_context"}
    assert entry["own_context"] == pytest.approx(np.mean(means["own_context"]))
    error = analysis["standard_errors"]["same_targets"]["own_context"]
    assert error == pytest.approx(abs(np.subtract(*means["own_context"])) / 2)  # of two stretches


ITEMS = ('{"context": "ab", "choices": ["cd", "ef"], "answer": 0}\n',) * 3
PAIRS = ('{"paradigm": "p", "good": "ab", "bad": "cd"}\n',) * 3


def written(path, lines):
    path.write_text("".join(lines), encoding="utf-8")
    return str(path)


def entries(run):
    return json.loads((run / "analysis.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("step", ["analyse_run", "seconds_per_operation"])
def test_scoring_out_of_memory_says_what_helps_scoring(trained, refused, monkeypatch, step):
    """Also where the first model is but timed."""
    sweep, run = trained

    def run_out(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(analyze, step, run_out)
    sentence = refused(analyze.main, [sweep])
    assert f"scoring {sweep}" in sentence and "is out of GPU memory: score on the CPU" in sentence
    assert "NUMBERS_AT_ONCE in analyze.py" in sentence and hasattr(analyze, "NUMBERS_AT_ONCE")
    assert not (run / "analysis.json").exists()


def test_a_task_is_added_to_scores_that_are_there(trained, project, monkeypatch):
    """And once it is there it stays, whatever is asked for next."""
    sweep, run = trained
    task, pairs = written(project / "a.jsonl", ITEMS), written(project / "b.jsonl", PAIRS)
    scored(sweep)
    before = entries(run)
    monkeypatch.setattr(analyze, "score_run", None)  # not to be called
    scored(sweep, "--task", task)
    with_task = entries(run)
    assert with_task.pop("task")["items"] == 3
    assert with_task.pop("scored_from").keys() == {"scores", "task"}
    assert with_task == {name: of for name, of in before.items() if name != "scored_from"}
    scored(sweep, "--blimp", pairs)
    assert entries(run)["task"]["items"] == entries(run)["blimp"]["pairs"] == 3
    last = scored(sweep)
    assert scored(sweep, "--blimp", pairs, "--task", task) == last
    written(project / "a.jsonl", ITEMS[:2])
    assert scored(sweep, "--task", task) != last
    assert entries(run)["task"]["items"] == 2 and entries(run)["blimp"]["pairs"] == 3


def test_a_task_stays_where_the_scores_are_made_again(trained, project):
    sweep, run = trained
    scored(sweep, "--task", written(project / "a.jsonl", ITEMS))
    scored(sweep, "--again")
    scored(sweep, "--sequences", "2")
    assert entries(run)["task"]["items"] == 3 and entries(run)["sequences"] == 2


def test_scores_stay_on_as_many_sequences_as_they_are_on(trained):
    sweep, run = trained
    first = scored(sweep)
    analyze.main([str(sweep)])
    assert (run / "analysis.json").stat().st_mtime_ns == first
    assert entries(run)["sequences"] == 3


def test_scores_on_all_sequences_that_there_are_stay(trained, capsys):
    """600 tokens of val.bin are 600 // 17 // 2 = 17 of either parity, whatever is asked for."""
    sweep, run = trained
    first = scored(sweep, "--sequences", "1000")
    assert "on 17 sequences each" in capsys.readouterr().out
    for options in ([], ["--sequences", "1000"], ["--sequences", "18"]):
        analyze.main([str(sweep), *options])
        assert (run / "analysis.json").stat().st_mtime_ns == first


def test_a_task_by_other_code_goes_and_that_is_said(trained, project, capsys, monkeypatch):
    sweep, run = trained
    scored(sweep, "--task", written(project / "a.jsonl", ITEMS))
    written(project / "analyze.py", ["another score"])
    monkeypatch.setattr(pending, "SCORED_BY", [project / "analyze.py"])
    capsys.readouterr()
    scored(sweep)
    said = capsys.readouterr().out
    assert "a.jsonl are by other weights, data or code, and go: give --task again" in said
    assert "task" not in entries(run)


@pytest.mark.parametrize("option", ["--task", "--blimp"])
def test_an_empty_task_is_refused(trained, refused, project, option):
    sweep, run = trained
    message = refused(analyze.main, [sweep, option, written(project / "a.jsonl", ["\n"])])
    assert "a.jsonl is empty" in message and option in message
    assert not (run / "analysis.json").exists()


@pytest.mark.parametrize("content", ["3", "[1]", "{", '{"scored_from": 3}', '{"scored_from": []}'])
def test_a_damaged_analysis_is_refused_and_named(trained, refused, content):
    sweep, run = trained
    written(run / "analysis.json", [content])
    message = refused(analyze.main, [sweep])
    assert "analysis.json" in message and "delete it to score the run again" in message


def test_other_code_that_scores_scores_again(trained, monkeypatch, tmp_path):
    sweep, _ = trained
    first = scored(sweep)
    (tmp_path / "analyze.py").write_text("another score")
    monkeypatch.setattr(pending, "SCORED_BY", [tmp_path / "analyze.py"])
    assert scored(sweep) != first


def test_a_run_by_other_code_is_scored_only_where_that_is_asked_for(trained, refused, monkeypatch):
    sweep, run = trained
    monkeypatch.setattr("model.Block.forward", post_norm)
    message = refused(analyze.main, [sweep])
    assert "other code" in message and "--old_code" in message
    assert not (run / "analysis.json").exists()
    scored(sweep, "--old_code")
    report = (sweep / "report.md").read_text(encoding="utf-8")
    assert "Scored by other code than that which trained them: run." in report


def post_norm(self, x):
    x = self.attention_norm(x + self.attention(x))
    return self.mlp_norm(x + self.mlp(x))


def a_little_more_attention(self, x):
    x = x + 1.001 * self.attention(self.attention_norm(x))
    return x + self.mlp(self.mlp_norm(x))


def two_branches_side_by_side(self, x):
    return x + self.attention(self.attention_norm(x)) + self.mlp(self.mlp_norm(x))


def attention_alone(self, x):
    return x + self.attention(self.attention_norm(x))


OTHER_BLOCKS = [post_norm, a_little_more_attention, two_branches_side_by_side, attention_alone]


@torch.no_grad()
@pytest.mark.parametrize("forward", OTHER_BLOCKS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_of_a_block_of_another_form_only_the_whole_is_measured(forward, dtype, monkeypatch):
    monkeypatch.setattr("model.Block.forward", forward)
    model, (idx, _) = build().to(dtype), data()
    measured = analyze.stream_by_token(model, idx)
    assert measured.keys() == {"residual", "angle", ("block", "size"), ("block", "cosine")}
    states = analyze.hidden_states(model, idx)
    for l, (h, after) in enumerate(itertools.pairwise(states)):
        size = (after - h).norm(dim=-1) / h.norm(dim=-1)
        assert torch.allclose(measured["block", "size"][..., l], size.double(), rtol=1e-4)
    assert analyze.layer_variance(model, idx).keys() == {"residual", "median", "without_first"}


@each_toggle
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_every_block_of_ours_is_opened(toggle, dtype):
    model = build(**toggle)
    model.compute_dtype = dtype
    assert analyze.branches_add_up(model, data()[0])


def test_a_post_norm_run_is_trained_scored_and_reported(project, monkeypatch, capsys):
    """README's third exercise: no branch's size, no theory, and a sentence that says so."""
    monkeypatch.setattr("model.Block.forward", post_norm)
    few = "n_layer = 2\nmax_iters = 2\nwarmup_iters = 0\neval_tokens = 64\n"
    train.main([written(project / "small.toml", [few + SMALL_OPTIONS])])
    log = (project / "out/small/run/log.jsonl").read_text().splitlines()
    assert "variance" in log[-1] and "attention_variance" not in log[-1]
    sweep = project / "out/small"
    scored(sweep)
    analysis = entries(sweep / "run")
    assert analysis["size"].keys() == {"block"} and analysis["predicted_variance"] is None
    sentence = "Without what each branch adds, and without theory, as blocks do more than add"
    assert sentence in capsys.readouterr().out
    assert sentence in (sweep / "report.md").read_text()
    assert "theory" not in {path.stem for path in sweep.glob("*.png")}


def test_a_run_without_a_fingerprint_is_accepted(trained):
    sweep, run = trained
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    del config["code"]
    (run / "config.json").write_text(json.dumps(config))
    scored(sweep)
    assert "other code" not in (sweep / "report.md").read_text(encoding="utf-8")


def test_a_run_on_other_data_is_refused(trained, refused, project):
    sweep, _ = trained
    folder = project / "data/tiny"
    shutil.rmtree(folder)
    write_data(folder, n_train=3999)
    message = refused(analyze.main, [sweep])
    assert "data/tiny is not what" in message and "train again" in message


def test_it_says_what_scoring_will_cost_before_it_starts(trained, capsys):
    sweep, _ = trained
    capsys.readouterr()
    scored(sweep)
    line = capsys.readouterr().out.splitlines()[0]
    assert "scoring 1 run on 3 sequences each takes about" in line and "GiB here" in line


@pytest.mark.parametrize("text", ["0", "-5", "many", "1.5"])
def test_scores_need_a_sequence(text, capsys):
    with pytest.raises(SystemExit) as stop:
        analyze.main(["out/none", "--sequences", text])
    assert stop.value.code == 2 and "at least 1" in capsys.readouterr().err


def test_an_unknown_order_of_removal_is_refused():
    idx, targets = data()
    with pytest.raises(ValueError, match="must be last, least or greedy"):
        analyze.cumulative_pruning(build(), idx, targets, "lest", ratios=torch.ones(3))


def test_what_scores_follow_from_is_all_that_analysis_imports():
    """But for what keeps account of them, writes, judges and draws them."""
    imported, waiting = set(), ["analyze"]
    while waiting:
        module = waiting.pop()
        if module not in imported:
            imported.add(module)
            tree = ast.parse((REPOSITORY / f"{module.replace('.', '/')}.py").read_text("utf-8"))
            nodes = [
                node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom | ast.Import)
            ]
            for node in nodes:
                names = [node.module] if isinstance(node, ast.ImportFrom) else []
                names += [alias.name for alias in node.names] if not names else []
                waiting += [n for n in names if (REPOSITORY / f"{n.replace('.', '/')}.py").exists()]
    others = {"configs.read", "data.files", "pending"} | {
        f"results.{name}"
        for name in (
            "checks",
            "runs",
            "verdicts",
            "claims",
            "contrasts",
            "figures",
            "report",
            "hot",
            "paper",
            "tables",
        )
    }
    files = {REPOSITORY / f"{module.replace('.', '/')}.py" for module in imported - others}
    assert files <= set(pending.SCORED_BY)


def test_of_several_folders_those_without_runs_are_skipped(trained, capsys):
    sweep, _ = trained
    (sweep.parent / "empty").mkdir()
    capsys.readouterr()
    analyze.main([str(sweep), str(sweep.parent / "empty"), "--sequences", "2"])
    out = capsys.readouterr().out
    assert "skipped" in out and "empty" in out and (sweep / "report.md").exists()


def test_what_is_no_sweep_is_told_what_to_name(trained, refused, project, monkeypatch):
    sweep, run = trained
    (project / "results/demo").mkdir(parents=True)
    written(project / "results/demo.json", ["[]"])
    (project / "empty").mkdir()
    (project / "begun/run").mkdir(parents=True)
    shutil.copy(run / "config.json", project / "begun/run")
    for path, named in {
        "out": "name one, such as out/small, or all, out/*",
        "out/small/run": "name its sweep, out/small",
        "results/demo": "name results/demo.json",
        "results": "results/*.json",
        "small.toml": "a folder of runs, such as out/demo",
        "begun": "the command that trained it goes on with it",
        "empty": "train one first",
        "none": "there is no none",
        "/": "/ holds no",
    }.items():
        assert named in refused(analyze.main, [path])
    assert "holds no finished run" in refused(analyze.main, ["empty", "begun"])
    monkeypatch.chdir(run)
    analyze.main(["..", "--sequences", "2"])
    monkeypatch.chdir(sweep)
    analyze.main(["."])
    assert (sweep / "report.md").exists()


@pytest.mark.parametrize("option", [["--task", "a.jsonl"], ["--sequences", "3"], ["--again"]])
def test_published_files_cannot_be_scored(project, refused, option):
    written(project / "sweep.json", ["[]"])
    message = refused(analyze.main, ["sweep.json", *option])
    assert message.count(option[0]) == 1 and "name their folder" in message


def test_a_sweep_is_published_without_matrices_where_that_is_asked_for(trained, tmp_path):
    sweep, _ = trained
    options = ["--publish", str(tmp_path), "--without_matrices"]
    analyze.main([str(sweep), "--sequences", "2", *options])
    text = (tmp_path / "small.json").read_text(encoding="utf-8")
    assert "_matrix" not in text and "angular_distance" not in text and "prune_ratios" in text
    assert (tmp_path / "small/report.md").exists()


def test_only_what_is_published_can_lack_matrices(trained, refused):
    message = refused(analyze.main, [trained[0], "--without_matrices"])
    assert "--without_matrices" in message and "--publish" in message


@pytest.mark.skipif(files.fcntl is None, reason="this system has no such locks")
def test_two_processes_do_not_score_one_sweep(trained, refused):
    """As both would write to analysis.json.tmp, and one would take the other's half for its own."""
    sweep, run = trained
    with files.locked(sweep):
        assert "in use by another process" in refused(analyze.main, [sweep, "--sequences", "2"])
    assert not (run / "analysis.json").exists()
    analyze.main([str(sweep), "--sequences", "2"])
    assert (run / "analysis.json").exists()


def test_restoring_does_not_publish(project, refused):
    written(project / "sweep.json", ["[]"])
    message = refused(analyze.main, ["sweep.json", "--restore", "out", "--publish", "results"])
    assert "--publish in a second command" in message and not (project / "results").exists()


def test_runs_that_were_not_finished_are_named(trained, capsys):
    sweep, run = trained
    shutil.copytree(run, sweep / "other")
    (sweep / "other/summary.json").unlink()
    scored(sweep)
    assert "left out, as not trained to the end: other" in capsys.readouterr().out


def test_two_sweeps_of_one_name_are_refused(trained, refused):
    sweep, _ = trained
    shutil.copytree(sweep, sweep.parent / "other/small")
    message = refused(analyze.main, [sweep, sweep.parent / "other/small"])
    assert "two sweeps are called small" in message


def test_a_name_with_a_dot_stays_whole(trained, tmp_path):
    sweep, _ = trained
    sweep.rename(sweep.with_name("w0.25"))
    published = tmp_path / "published"
    analyze.main([str(sweep.with_name("w0.25")), "--sequences", "2", "--publish", str(published)])
    assert (published / "w0.25.json").exists() and (published / "w0.25/report.md").exists()


def test_nothing_is_announced_where_nothing_is_to_do(trained, capsys):
    sweep, _ = trained
    scored(sweep)
    capsys.readouterr()
    scored(sweep)
    assert "scoring" not in capsys.readouterr().out
