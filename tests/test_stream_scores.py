"""stream_scores.py: of a Llama in float64 every score is that of a GPT with the same weights, by
analyze.py; what is new here is held by its definition."""

import json

import numpy as np
import pytest
import torch

import analyze
import stream_scores
from conftest import build as build_small
from data.files import BadInput
from results.scores import use_of_depth
from stream_scores import SCORES, jacobian_by_probes, passages_of

CLOSE = dict(rtol=1e-5, atol=1e-7)
L, T = 4, 12


def build(**options):
    shape = dict(n_layer=L, large_weights=True, block_size=T, n_kv_head=2)
    return build_small(**{**shape, **options}).double().eval()


def passages(n=3, n_fit=8):
    ids = np.random.default_rng(0).integers(20, size=600).tolist()
    return passages_of(ids, None, n, T, n_fit)


@pytest.fixture(scope="module")
def llama():
    """decoder.Decoder of a Llama with the weights of build()."""
    transformers = pytest.importorskip(
        "transformers", reason="public models need it: pip install transformers"
    )
    decoder = pytest.importorskip("decoder")
    model = build()
    config = model.config
    hf = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.n_embd,
            intermediate_size=config.mlp_hidden,
            num_hidden_layers=L,
            num_attention_heads=config.n_head,
            num_key_value_heads=config.n_kv_head,
            max_position_embeddings=T,
            rms_norm_eps=1e-6,
            tie_word_embeddings=False,
        )
    ).double()
    hf.load_state_dict(as_llama(model))
    return decoder.Decoder(hf)


def as_llama(model):
    """The weights of a GPT under Llama's names."""
    config, size = model.config, model.config.n_embd // model.config.n_head
    weights = {
        "model.embed_tokens.weight": model.embedding.weight,
        "model.norm.weight": model.norm.weight,
        "lm_head.weight": model.head.weight,
    }
    for l, block in enumerate(model.blocks):
        heads = (config.n_head * size, config.n_kv_head * size, config.n_kv_head * size)
        query, key, value = block.attention.query_key_value.weight.split(heads)
        gate, up = block.mlp.gate_up.weight.chunk(2)
        of_block = {
            "input_layernorm": block.attention_norm.weight,
            "self_attn.q_proj": query,
            "self_attn.k_proj": key,
            "self_attn.v_proj": value,
            "self_attn.o_proj": block.attention.output.weight,
            "post_attention_layernorm": block.mlp_norm.weight,
            "mlp.gate_proj": gate,
            "mlp.up_proj": up,
            "mlp.down_proj": block.mlp.down.weight,
        }
        weights |= {f"model.layers.{l}.{name}.weight": weight for name, weight in of_block.items()}
    return weights


@pytest.fixture(scope="module")
def scores(llama):
    """{score: entries} of the Llama."""
    return {name: score(llama, passages())[0] for name, score in SCORES.items()}


def test_its_logits_are_those_of_our_own_model(llama):
    idx = passages().idx
    with torch.no_grad():
        np.testing.assert_allclose(llama(idx)[0], build()(idx)[0], rtol=1e-5, atol=1e-5)


def close(got, wanted):
    np.testing.assert_allclose(np.asarray(got), np.asarray(wanted), **CLOSE)


def test_loss_by_position(scores):
    idx, targets, _, _ = passages()
    losses = analyze.losses_by_position(build(), idx, targets).numpy()
    close(scores["loss"]["loss"], losses.mean())
    close(scores["loss"]["perplexity"], np.exp(losses.mean()))
    by_position = losses.mean(axis=0)
    bins = [[0], [1], [2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    close(scores["loss"]["text"]["by_position"], [by_position[places].mean() for places in bins])
    close(scores["loss"]["text"]["positions_read"], [1, 2, 3.5, 6.5, 10.5])


def test_what_blocks_do_to_the_stream(scores):
    by_token = analyze.stream_by_token(build(), passages().idx)
    entries, variance = scores["stream"], by_token["residual"]
    close(entries["variance"]["residual"], variance.mean(dim=(0, 1)))
    close(entries["variance"]["first"], variance[:, 0].mean(dim=0))
    close(entries["variance"]["without_first"], variance[:, 1:].mean(dim=(0, 1)))
    close(entries["variance"]["median"], variance.flatten(0, 1).median(dim=0).values)
    close(entries["size"]["block"], by_token["block", "size"].mean(dim=(0, 1)))
    close(entries["cosine"]["block"], by_token["block", "cosine"].mean(dim=(0, 1)))
    close(entries["angle"], by_token["angle"].mean(dim=(0, 1)))
    close(entries["growth"]["growth"], variance.mean(dim=(0, 1))[L] / variance.mean(dim=(0, 1))[1])
    without = variance[:, 1:].mean(dim=(0, 1))
    close(entries["growth_without_first"]["growth"], without[L] / without[1])
    middle = by_token["angle"].mean(dim=(0, 1))[1:3]  # blocks 2 and 3 of 4
    close(entries["updates"]["angle"], middle.mean())


def test_similarity_and_lens(scores):
    model, idx = build(), passages().idx
    distance, influence = analyze.angular_distance(model, idx)
    close(scores["similarity"]["angular_distance"], distance)
    close(scores["similarity"]["block_influence"], influence)
    close(scores["similarity"]["logit_lens"], analyze.logit_lens(model, idx))


def test_removal(scores):
    idx, targets, _, _ = passages()
    ratios = analyze.prune_ratios(build(), idx, targets)
    close(scores["removal"]["prune_ratios"], ratios)
    for name, value in use_of_depth(ratios.numpy()).items():
        close(scores["removal"]["removal_use"][name], value)


@pytest.mark.parametrize("order", ["last", "least", "greedy"])
def test_cumulative_removal(scores, order):
    idx, targets, _, _ = passages()
    wanted = analyze.cumulative_pruning(build(), idx, targets, order)
    close(scores["cumulative"]["cumulative"][order], wanted)


def test_causal_and_permutation(scores):
    model, (idx, targets, _, _) = build(), passages()
    above = np.triu_indices(L, k=1)
    causal = analyze.causal_matrix(model, idx)
    close(scores["causal"]["causal_matrix"], causal)
    close(scores["causal"]["causal"], causal[above].mean())
    permutation = analyze.permutation_matrix(model, idx, targets)
    close(scores["permutation"]["permutation_matrix"], permutation)
    close(scores["permutation"]["permutation"], permutation[above].mean())


def test_linear_maps(scores):
    model, (idx, targets, fit_idx, fit_targets) = build(), passages()
    maps = analyze.fit_linear_maps(model, fit_idx)
    wanted = {
        "held_out": analyze.linear_ratios(model, maps, idx, targets),
        "same": analyze.linear_ratios(model, maps, fit_idx[:3], fit_targets[:3]),
        "transposed": analyze.linear_ratios(model, maps, idx, targets, transposed=True),
    }
    for kind, ratios in wanted.items():
        close(scores["linear"]["linear_ratios"][kind], ratios)
        close(scores["linear"]["usefulness"][kind], (ratios > 1.1).double().mean())
    close(scores["linear"]["n_eff"], use_of_depth(wanted["held_out"].numpy())["n_eff"])
    close(scores["linear"]["linear_use"]["sum"], use_of_depth(wanted["held_out"].numpy())["sum"])
    assert scores["linear"]["fitted_on"] == 8 * T


def test_the_exact_jacobian(scores):
    wanted = analyze.jacobian_deviation(build(), passages().idx[:1])
    for name, values in wanted.items():
        close(scores["jacobian"]["jacobian"][name], values)
    assert scores["jacobian"]["jacobian"]["sequences"] == 1


def test_every_score_can_be_kept(scores):
    assert json.loads(json.dumps(scores, allow_nan=False)) == scores
    assert all(scores.values())


# By definition -----------------------------------------------------------------------------------


def test_probes_estimate_the_jacobian_within_their_error():
    model, idx = build(), passages().idx[:2]
    exact = analyze.jacobian_deviation(model, idx)
    values, errors = jacobian_by_probes(model, idx, n_probes=400)
    for name in ("deviation", "per_token"):
        away = np.abs(np.array(values[name]) - exact[name].numpy())
        assert (np.array(errors[name]) < 0.06 * exact[name].numpy()).all()
        assert (away < 4 * np.array(errors[name])).all()


def test_the_error_of_probes_is_that_of_other_probes():
    model, idx = build(), passages().idx[:1]
    runs = [jacobian_by_probes(model, idx, n_probes=16, seed=seed) for seed in range(60)]
    for name in ("deviation", "per_token"):
        spread = np.std([values[name] for values, _ in runs], axis=0)
        said = np.sqrt(np.mean(np.square([errors[name] for _, errors in runs]), axis=0))
        assert (said / spread > 0.7).all() and (said / spread < 1.4).all()


def test_without_each_stretch_of_blocks(monkeypatch):
    """Every ratio by running the other blocks; lengths go on until the cheapest is too dear."""
    model, (idx, targets, _, _) = build(), passages()
    for most in (0.01, 0.1, 10.0):
        monkeypatch.setattr(stream_scores, "DEAREST", most)
        ratios = stream_scores.score_stretches(model, passages())[0]["stretches"]
        cheapest = []
        for n, of_length in enumerate(ratios, start=1):
            assert len(of_length) == L - n + 1
            for first, ratio in enumerate(of_length):
                kept = [block for l, block in enumerate(model.blocks) if not first <= l < first + n]
                close(
                    ratio,
                    loss_of(model, kept, idx, targets) / loss_of(model, model.blocks, idx, targets),
                )
            cheapest.append(min(of_length) - 1)
        assert all(cost <= most for cost in cheapest[:-1])
        assert cheapest[-1] > most or len(cheapest) == L - 1


@torch.no_grad()
def loss_of(model, blocks, idx, targets):
    h = model.embed(idx)
    for block in blocks:
        h = block(h)
    logits = model.head(model.norm(h))
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()).item()


def test_windows_do_not_overlap_and_targets_are_one_on():
    ids = list(range(100))
    idx, targets, fit_idx, fit_targets = passages_of(ids, None, 3, 9, 4)
    assert torch.equal(targets, idx + 1) and torch.equal(fit_targets, fit_idx + 1)
    assert idx[:, 0].tolist() == [0, 40, 80] and fit_idx[:, 0].tolist() == [10, 30, 50, 90]
    read = [
        set(range(start, start + 10)) for start in (*idx[:, 0].tolist(), *fit_idx[:, 0].tolist())
    ]
    assert sum(map(len, read)) == len(set.union(*read))


def test_every_window_begins_with_bos():
    ids = list(range(100))
    idx, targets, fit_idx, _ = passages_of(ids, 777, 3, 10, 1)
    assert (idx[:, 0] == 777).all() and (fit_idx[:, 0] == 777).all()
    assert torch.equal(idx[:, 1:], targets[:, :-1]) and targets[:, 0].tolist() == [0, 40, 80]
    assert idx.shape == targets.shape == (3, 10)


def test_a_text_too_short_is_refused():
    with pytest.raises(BadInput, match="50 tokens of this model, too few for 3 sequences of 9"):
        passages_of(list(range(50)), None, 3, 9, 1)


@pytest.mark.parametrize("name", ["loss", "stream", "removal", "causal", "linear", "similarity"])
def test_the_cost_line_counts_block_runs(name):
    """Of the scores whose work is fixed, as they run one sequence at a time."""
    model, taken = build(), passages(n=2, n_fit=5)
    counted = {"blocks": 0, "read-outs": 0}
    for block in model.blocks:
        block.register_forward_hook(lambda _, x, __: add(counted, "blocks", x[0].shape[0]))
    model.head.register_forward_hook(lambda _, x, __: add(counted, "read-outs", x[0].shape[0]))
    SCORES[name](model, taken)
    blocks, read_outs = stream_scores.runs_of_scores(L, 16, 2, 5)[name]
    fit = 5 * L if name == "linear" else 0  # what solving costs beside running
    assert abs(counted["blocks"] - (blocks - fit)) <= 0.35 * counted["blocks"]
    assert abs(counted["read-outs"] - read_outs) <= 0.35 * max(1, counted["read-outs"])


def add(counted, what, n):
    counted[what] += n
