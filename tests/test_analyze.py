"""analyze.py: every score against a slow oracle written from its definition, and models whose answer is known."""
import json
import math

import numpy as np
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from conftest import as_if_trained, each_toggle

import analyze
from analyze import pair_mean
from model import GPT, GPTConfig

LAYERS, WIDTH, LENGTH = 4, 8, 6


def build(n_layer=LAYERS, **options):
    """A small float64 model with weights as large as after training, so that every block does something."""
    torch.manual_seed(0)
    toggle = {**options, **({"expert_hidden": 8} if "n_expert" in options else {})}
    model = GPT(GPTConfig(block_size=LENGTH, vocab_size=11, n_layer=n_layer, n_head=4, n_embd=WIDTH, mlp_hidden=16, **toggle)).double()
    as_if_trained(model, 12)
    return model.eval()


def data(n=3, seed=0):
    rows = torch.randint(11, (n, LENGTH + 1), generator=torch.Generator().manual_seed(seed))
    return rows[:, :-1], rows[:, 1:]


def loss_through(model, functions, idx, targets):
    """L(M) with any list of functions for blocks, one sequence at a time."""
    total = 0.0
    for row, wanted in zip(idx, targets):
        h = model.embedding.weight[row][None]
        for function in functions:
            h = function(h)
        logits = model.head(model.norm(h))[0]
        total += sum(-logits[t].log_softmax(0)[wanted[t]].item() for t in range(LENGTH))
    return total / idx.numel()


def states_of(model, row, functions=None):
    h = [model.embedding.weight[row][None]]
    for function in functions or model.blocks:
        h.append(function(h[-1]))
    return h


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """Two sequences at a time, so that what is summed over pieces is tested too."""
    monkeypatch.setattr(analyze, "TOKENS_AT_ONCE", 2 * LENGTH)


def unchanged(model, call):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    blocks = list(model.blocks)
    result = call()
    assert list(model.blocks) == blocks and not model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    return result


# Against the definitions --------------------------------------------------------------------------------------------

@each_toggle
def test_prune_permutation_and_cumulative(toggle):
    model, (idx, targets) = build(**toggle), data()
    blocks, whole = list(model.blocks), loss_through(model, model.blocks, idx, targets)
    with torch.no_grad():
        pruned = unchanged(model, lambda: analyze.prune_ratios(model, idx, targets)).tolist()
        assert pruned == pytest.approx([loss_through(model, blocks[:l] + blocks[l + 1:], idx, targets) / whole for l in range(LAYERS)], abs=1e-6)
        matrix = unchanged(model, lambda: analyze.permutation_matrix(model, idx, targets))
        for a in range(LAYERS):
            for b in range(LAYERS):
                swapped = list(blocks)
                swapped[a], swapped[b] = blocks[b], blocks[a]
                assert matrix[a, b].item() == pytest.approx(abs(whole - loss_through(model, swapped, idx, targets)) / whole, abs=1e-6)
        curves = {order: unchanged(model, lambda: analyze.cumulative_pruning(model, idx, targets, order)).tolist() for order in ("last", "least", "greedy")}
        assert curves["last"] == pytest.approx([loss_through(model, blocks[:n], idx, targets) for n in range(LAYERS, -1, -1)], abs=1e-6)
        by_harm = sorted(range(LAYERS), key=lambda l: pruned[l])
        assert curves["least"] == pytest.approx([loss_through(model, [blocks[l] for l in range(LAYERS) if l not in by_harm[:n]], idx, targets)
                                                 for n in range(LAYERS + 1)], abs=1e-6)
        kept, greedy = list(range(LAYERS)), [whole]
        while kept:
            losses = {l: loss_through(model, [blocks[k] for k in kept if k != l], idx, targets) for l in kept}
            kept.remove(min(losses, key=losses.get))
            greedy.append(min(losses.values()))
        assert curves["greedy"] == pytest.approx(greedy, abs=1e-6)


@each_toggle
def test_causal(toggle):
    model, (idx, _) = build(**toggle), data()
    matrix = unchanged(model, lambda: analyze.causal_matrix(model, idx))
    with torch.no_grad():
        for s in range(LAYERS):
            for l in range(LAYERS):
                changed, size = [], []
                for row in idx:
                    h = states_of(model, row)
                    skipped = states_of(model, row, [*model.blocks[:s], nn.Identity(), *model.blocks[s + 1:]])
                    delta, delta_skipped = h[l + 1] - h[l], skipped[l + 1] - skipped[l]
                    changed += [(delta_skipped - delta)[0, t].norm().item() for t in range(LENGTH)]
                    size += [delta[0, t].norm().item() for t in range(LENGTH)]
                assert matrix[s, l].item() == pytest.approx(np.mean(changed) / np.mean(size) if l > s else 0, abs=1e-6)
    above = [matrix[s, l].item() for s in range(LAYERS) for l in range(s + 1, LAYERS)]
    assert pair_mean(matrix) == pytest.approx(sum(above) / len(above))


@each_toggle
def test_jacobian(toggle):
    model, (idx, _) = build(**toggle), data(2)
    scores = unchanged(model, lambda: analyze.jacobian_deviation(model, idx))
    identity = torch.eye(WIDTH, dtype=torch.float64)
    for layer, block in enumerate(model.blocks):
        per_token = []
        for row in idx:
            with torch.no_grad():
                h = states_of(model, row)[layer]
            full = torch.autograd.functional.jacobian(block, h)[0, :, :, 0]       # (T_out, C_out, T_in, C_in)
            per_token += list(full.sum(dim=0).permute(1, 2, 0))                   # sum over s -> (T_in, C_in, C_out)
        mean = torch.stack(per_token).mean(dim=0)
        expected = {
            "deviation": (mean - identity).norm() / WIDTH,
            "off_diagonal": (mean * (1 - identity)).norm() / WIDTH,
            "diagonal_mean": mean.diagonal().mean(),
            "spectral": torch.linalg.svdvals(mean)[0],
            "per_token": torch.stack([(j - identity).norm() / WIDTH for j in per_token]).mean()}
        for name, value in expected.items():
            assert scores[name][layer].item() == pytest.approx(value.item(), abs=1e-6), name


def test_jacobian_of_the_oracle_is_a_finite_difference():
    """The convention, once more without autograd: shifting h_l[t, j] moves sum_s h_{l+1}[s, i] by J_t[j, i]."""
    model, (idx, _) = build(), data(1)
    block = model.blocks[1]
    with torch.no_grad():
        h = states_of(model, idx[0])[1]
        mean = torch.zeros(WIDTH, WIDTH, dtype=torch.float64)
        for t in range(LENGTH):
            for j in range(WIDTH):
                step = torch.zeros_like(h)
                step[0, t, j] = 1e-5
                mean[j] += (block(h + step) - block(h - step))[0].sum(dim=0) / 2e-5 / LENGTH
    deviation = (mean - torch.eye(WIDTH)).norm() / WIDTH
    assert analyze.jacobian_deviation(model, idx)["deviation"][1].item() == pytest.approx(deviation.item(), abs=1e-6)


@each_toggle
def test_linear_maps_and_ratios(toggle):
    model, (idx, targets), (fit_idx, _) = build(**toggle), data(), data(9, seed=1)
    maps = unchanged(model, lambda: analyze.fit_linear_maps(model, fit_idx))
    whole = loss_through(model, model.blocks, idx, targets)
    for transposed in (False, True):
        ratios = unchanged(model, lambda: analyze.linear_ratios(model, maps, idx, targets, transposed))
        for layer in range(LAYERS):
            with torch.no_grad():
                pairs = [states_of(model, row)[layer:layer + 2] for row in fit_idx]
                X, Y = (torch.cat([pair[side][0] for pair in pairs]).numpy() for side in (0, 1))
                solution = np.linalg.lstsq(np.hstack([X, np.ones((len(X), 1))]), Y, rcond=None)[0]
                W, b = torch.from_numpy(solution[:WIDTH].T if not transposed else solution[:WIDTH]), torch.from_numpy(solution[WIDTH])
                functions = [*model.blocks[:layer], lambda h: h @ W.T + b, *model.blocks[layer + 1:]]
                assert ratios[layer].item() == pytest.approx(loss_through(model, functions, idx, targets) / whole, abs=1e-6)


@each_toggle
def test_variance_similarity_and_lens(toggle):
    model, (idx, _) = build(**toggle), data()
    variance = unchanged(model, lambda: analyze.layer_variance(model, idx))
    distance, influence = unchanged(model, lambda: analyze.angular_distance(model, idx))
    lens = unchanged(model, lambda: analyze.logit_lens(model, idx))
    with torch.no_grad():
        states = [states_of(model, row) for row in idx]
        stack = [torch.cat([s[l][0] for s in states]) for l in range(LAYERS + 1)]    # (tokens, C) for each l
        assert variance["residual"].tolist() == pytest.approx([h.var(dim=1).mean().item() for h in stack])
        for a in range(LAYERS + 1):
            for b in range(LAYERS + 1):
                cosines = [float(x @ y / x.norm() / y.norm()) for x, y in zip(stack[a], stack[b])]
                angles = [math.acos(max(-1, min(1, c))) / math.pi for c in cosines]
                assert distance[a, b].item() == pytest.approx(np.mean(angles), abs=1e-6)
                if b == a + 1:
                    assert influence[a].item() == pytest.approx(1 - np.mean(cosines), abs=1e-6)
            early, final = (torch.distributions.Categorical(logits=model.head(model.norm(h))) for h in (stack[a], stack[-1]))
            assert lens[a].item() == pytest.approx(torch.distributions.kl_divergence(early, final).mean().item(), abs=1e-6)
    assert torch.equal(analyze.block_influence(model, idx), influence) and lens[-1] == 0


def test_scores_do_not_depend_on_the_size_of_the_pieces(monkeypatch):
    model, (idx, targets) = build(), data(5)
    scores = []
    for tokens in (LENGTH, 10**6):
        monkeypatch.setattr(analyze, "TOKENS_AT_ONCE", tokens)
        maps = analyze.fit_linear_maps(model, idx)
        scores.append([analyze.prune_ratios(model, idx, targets), analyze.linear_ratios(model, maps, idx, targets), analyze.causal_matrix(model, idx),
                       analyze.angular_distance(model, idx)[0], analyze.jacobian_deviation(model, idx)["per_token"]])
    assert all(torch.allclose(a, b, atol=1e-9) for a, b in zip(*scores))


# Models whose answer is known -----------------------------------------------------------------------------------------

def silence(block):
    """Make a block exactly zero: it adds nothing to the stream."""
    block.attention.output.weight.data.zero_()
    block.mlp.down.weight.data.zero_()


def test_a_zero_block_scores_nothing():
    model, (idx, targets) = build(), data()
    silence(model.blocks[2])
    assert analyze.prune_ratios(model, idx, targets)[2] == 1
    assert (analyze.causal_matrix(model, idx)[2] == 0).all()
    jacobian = analyze.jacobian_deviation(model, idx)
    assert jacobian["deviation"][2] == 0 and jacobian["per_token"][2] == 0 and jacobian["spectral"][2] == pytest.approx(1)
    assert analyze.block_influence(model, idx)[2].item() == pytest.approx(0, abs=1e-12)
    assert analyze.layer_variance(model, idx)["mlp"][2] == 0


class LinearBlock(nn.Module):
    """h -> h W^T + b with an asymmetric W: exactly linear, so its least-squares stand-in is the block itself."""
    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.weight = nn.Parameter(torch.eye(WIDTH, dtype=torch.float64) + torch.randn(WIDTH, WIDTH, dtype=torch.float64, generator=generator) / 3)
        self.bias = nn.Parameter(torch.randn(WIDTH, dtype=torch.float64, generator=generator))

    def forward(self, h):
        return F.linear(h, self.weight, self.bias)


def test_a_linear_block_is_recovered_and_the_transposed_map_is_not_it():
    model, (idx, targets), (fit_idx, _) = build(), data(), data(9, seed=1)
    model.blocks[1] = LinearBlock()
    maps = analyze.fit_linear_maps(model, fit_idx)
    assert torch.allclose(maps[1][0], model.blocks[1].weight, atol=1e-8) and torch.allclose(maps[1][1], model.blocks[1].bias, atol=1e-8)
    assert analyze.linear_ratios(model, maps, idx, targets)[1].item() == pytest.approx(1, abs=1e-9)
    assert abs(analyze.linear_ratios(model, maps, idx, targets, transposed=True)[1].item() - 1) > 1e-3


def test_the_fit_is_stable_where_features_span_ten_orders_of_magnitude(monkeypatch):
    model, (fit_idx, _) = build(n_layer=1), data(40, seed=1)
    model.blocks[0] = LinearBlock()
    model.embedding.weight.data *= torch.logspace(-5, 5, WIDTH, dtype=torch.float64)
    (W, b), = analyze.fit_linear_maps(model, fit_idx)
    with torch.no_grad():
        h = model.embed(fit_idx)
        assert torch.allclose(F.linear(h, W, b), model.blocks[0](h), rtol=1e-6, atol=1e-6)


def test_swapping_identical_blocks_changes_nothing():
    model, (idx, targets) = build(), data()
    model.blocks[3].load_state_dict(model.blocks[1].state_dict())
    matrix = analyze.permutation_matrix(model, idx, targets)
    assert matrix[1, 3] == matrix[3, 1] == 0 and matrix[0, 1] > 1e-4


def test_summaries_by_hand():
    assert analyze.usefulness([1.2, 1.05, 1.11, 0.9]) == 0.5
    assert analyze.usefulness([1.2, 1.05, 1.11, 0.9], 1.01) == 0.75
    assert analyze.effective_depth([1.5, 1.5, 1.0, 0.9]) == pytest.approx(2)
    assert analyze.effective_depth([1.3, 1.1]) == pytest.approx(0.4 ** 2 / (0.09 + 0.01))
    assert pair_mean(torch.zeros(1, 1)) is None


def test_interrupted_interventions_leave_the_model_as_it_was():
    model, (idx, targets) = build(), data()
    before = model(idx)[0]
    calls = []

    def interrupt(module, args):
        calls.append(1)
        if len(calls) > 8:
            raise KeyboardInterrupt
    handle = model.norm.register_forward_pre_hook(interrupt)
    for score in (analyze.permutation_matrix, lambda m, i, t: analyze.cumulative_pruning(m, i, t, "greedy")):
        calls.clear()
        with pytest.raises(KeyboardInterrupt):
            score(model, idx, targets)
    handle.remove()
    for interrupted in (analyze.layer_variance, analyze.jacobian_deviation):
        handle = model.blocks[2].register_forward_pre_hook(lambda module, args: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            interrupted(model, idx)
        handle.remove()
    assert torch.equal(model(idx)[0], before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


# Choices ----------------------------------------------------------------------------------------------------------

def test_choices_are_scored_by_mean_log_probability():
    model = build()
    encode = lambda text: [ord(letter) - 97 for letter in text]  # noqa: E731
    rng = np.random.default_rng(0)
    spell = lambda n: "".join(chr(97 + i) for i in rng.integers(11, size=n))  # noqa: E731
    items, right = [], 0
    for _ in range(40):
        item = {"context": spell(rng.integers(1, 9)), "choices": [spell(rng.integers(1, 8)) for _ in range(3)], "answer": int(rng.integers(3))}
        items.append(item)
        means = []
        for choice in item["choices"]:
            choice = encode(choice)[:LENGTH]
            ids = (encode(item["context"]) + choice)[-(LENGTH + 1):]
            log_probability = model(torch.tensor([ids[:-1]]))[0][0].log_softmax(-1)
            scored = [log_probability[t, ids[t + 1]].item() for t in range(len(ids) - 1)][-len(choice):]
            means.append(np.mean(scored))
        right += int(np.argmax(means)) == item["answer"]
    result = analyze.choice_accuracy(model, items, encode)
    assert result["accuracy"] == right / 40 and result["items"] == 40
    assert result["standard_error"] == pytest.approx(math.sqrt(right / 40 * (1 - right / 40) / 40))


@pytest.mark.parametrize("line", ["{", '{"context": "a", "choices": ["b"]}', '{"context": "a", "choices": ["b", "c"], "answer": 2}', '{"context": "a", "choices": ["b", ""], "answer": 0}', "[]"])
def test_bad_task_files_are_refused_with_their_line(tmp_path, line):
    good = json.dumps({"context": "a", "choices": ["b", "c"], "answer": 1})
    (tmp_path / "task.jsonl").write_text(good + "\n" + line + "\n")
    with pytest.raises(analyze.BadInput, match="line 2"):
        analyze.load_items(tmp_path / "task.jsonl")


def test_a_depth_looks_the_same_in_every_figure_and_grows_lighter():
    few, many = (analyze.point_styles([f"n_layer={L}" for L in depths]) for depths in ((4, 32), (1, 2, 3, 4, 8, 12, 16, 32, 64)))
    assert all(few[point] == many[point] for point in few)
    names, close = (analyze.point_styles(points) for points in (["full", "window-8", "window-32", "topk-4"], ["n_layer=10", "n_layer=11", "n_layer=12"]))
    for styles in (dict(list(many.items())[1:-1]), names, close):  # from 2 to 32 blocks, beyond which colours end
        light = [np.dot(style["color"][:3], (0.3, 0.59, 0.11)) for style in styles.values()]
        assert light == sorted(set(light)) and len({style["marker"] for style in styles.values()}) == len(styles)
