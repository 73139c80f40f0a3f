"""sparsity.py: densities of models whose answer is known."""

import math
import os
import shutil
import sys

import numpy as np
import pytest
import torch

import sparsity
import train
from conftest import TOGGLES, build, tokens, write_config, write_data

# Weights -----------------------------------------------------------------------------------------


def test_weight_density_by_hand():
    assert sparsity.weight_density(torch.tensor([1.0, -1, 1, -1])) == pytest.approx(1)
    assert sparsity.weight_density(torch.tensor([0.0, 0, 0, 5])) == pytest.approx(1 / 4)
    assert sparsity.weight_density(torch.zeros(3)) == 0


def test_weight_density_of_a_gaussian_whatever_its_scale():
    gaussian = torch.randn(400, 400, generator=torch.Generator().manual_seed(0))
    density = sparsity.weight_density(gaussian)
    assert density == pytest.approx(2 / math.pi, rel=0.01)
    assert sparsity.weight_density(gaussian * 1e-3) == pytest.approx(density)


def test_weights_below_the_threshold_are_counted_over_the_blocks_matrices():
    model = build()
    for parameter in model.parameters():
        parameter.data.fill_(1.0)
    small = model.blocks[0].mlp.down.weight
    small.data.fill_(sparsity.SMALL_WEIGHT / 2)
    total = sum(p.numel() for p in model.blocks.parameters() if p.dim() == 2)
    measured = sparsity.weight_sparsity(model)
    assert measured["share_below"] == pytest.approx(small.numel() / total)
    assert measured["density"] == pytest.approx(1)


# Attention ---------------------------------------------------------------------------------------


def test_uniform_attention_attends_to_every_key():
    model = build()
    for block in model.blocks:
        block.attention.query_key_value.weight.data.zero_()  # every score equal
    attended = sparsity.attended_keys(model, tokens())
    mean_of_1_to_12 = torch.full((2, 4), (12 + 1) / 2, dtype=torch.float64)
    assert torch.allclose(attended["keys"], mean_of_1_to_12, atol=1e-4)
    assert torch.allclose(attended["share"], torch.ones(2, 4, dtype=torch.float64), atol=1e-5)


@pytest.mark.parametrize("options", [dict(window=1), dict(topk=1)], ids=["window", "topk"])
def test_single_minded_attention_attends_to_one_key(options):
    model = build(attention=next(iter(options)), **options)
    attended = sparsity.attended_keys(model, tokens())
    assert torch.allclose(attended["keys"], torch.ones(2, 4, dtype=torch.float64), atol=1e-4)


def effective_keys(weights):
    """exp(entropy) of one query's attention, a list."""
    return math.exp(-sum(w * math.log(w) for w in weights if w > 0))


@pytest.mark.parametrize("toggle", ["plain", "gqa", "window", "topk", "together"])
@torch.no_grad()
def test_attended_keys_against_a_loop(toggle, monkeypatch):
    monkeypatch.setattr(sparsity, "ATTENTION_ENTRIES", 4 * 12 * 12)  # one sequence at a time
    model, idx = build(large_weights=True, **TOGGLES[toggle]).eval(), tokens()
    attended = sparsity.attended_keys(model, idx)
    h = model.embed(idx)
    for layer, block in enumerate(model.blocks):
        weights = block.attention.probabilities(block.attention_norm(h))
        for head in range(4):
            keys, shares = [], []
            for b in range(3):
                for q in range(12):
                    effective = effective_keys(weights[b, head, q].tolist())
                    keys.append(effective)
                    shares.append(effective / (q + 1))
            assert attended["keys"][layer, head].item() == pytest.approx(np.mean(keys), rel=1e-4)
            assert attended["share"][layer, head].item() == pytest.approx(np.mean(shares), rel=1e-4)
        h = block(h)


# Experts -----------------------------------------------------------------------------------------

FOUR_EXPERTS = dict(n_expert=4, n_expert_active=2, expert_hidden=16)


def undecided_router():
    """A model whose first router gives every token the same two experts, as all are tied."""
    model = build(**FOUR_EXPERTS).eval()
    model.blocks[0].mlp.router.weight.data.zero_()
    return model


def test_expert_use_of_an_undecided_router():
    use = sparsity.expert_use(undecided_router(), tokens())
    assert use.shape == (2, 4)
    assert torch.allclose(use.sum(dim=1), torch.ones(2, dtype=torch.float64))
    assert sorted(use[0].tolist()) == [0, 0, 0.5, 0.5]


@torch.no_grad()
def test_expert_use_against_a_loop_over_tokens():
    model = build(large_weights=True, **FOUR_EXPERTS).eval()
    h = model.embed(tokens())
    for block, share in zip(model.blocks, sparsity.expert_use(model, tokens()), strict=True):
        x = h + block.attention(block.attention_norm(h))
        normed = x / x.square().mean(dim=-1, keepdim=True).sqrt() * block.mlp_norm.weight
        chosen = []
        for token in normed.view(-1, 16):
            logits = [float(row @ token) for row in block.mlp.router.weight]
            chosen += sorted(range(4), key=lambda e, logits=logits: -logits[e])[:2]
        expected = [chosen.count(e) / len(chosen) for e in range(4)]
        assert share.tolist() == pytest.approx(expected)
        h = block(h)


def test_a_dense_model_has_no_expert_use():
    assert sparsity.expert_use(build(), tokens()) is None


# All four ----------------------------------------------------------------------------------------


def test_balance_is_the_share_of_experts_that_are_used():
    result = sparsity.densities(undecided_router(), tokens())
    assert result["expert_balance"][0] == pytest.approx(0.5)


EXPERT_DENSITY = [({}, 1), (FOUR_EXPERTS, 0.5), (TOGGLES["moe_shared"], 3 / 5)]


@pytest.mark.parametrize("options, density", EXPERT_DENSITY)
def test_expert_density_counts_shared_experts_as_used(options, density):
    result = sparsity.densities(build(**options), tokens())
    assert result["expert"] == pytest.approx(density)


@pytest.mark.parametrize("n_kv_head, density", [(4, 1), (1, 0.25)])
def test_key_value_density(n_kv_head, density):
    result = sparsity.densities(build(n_kv_head=n_kv_head), tokens())
    assert result["key_value"] == density


# Command line ------------------------------------------------------------------------------------


def test_a_run_whose_data_are_others_now_is_refused(project, refused, capsys):
    """As its attention would be that to another text."""
    train.main([str(write_config(project)), "--n_layer=1"])
    sparsity.main(["out/small/run"])
    assert "keys in use" in capsys.readouterr().out
    shutil.rmtree(project / "data/tiny")
    write_data(project / "data/tiny", n_train=3999)
    assert "data/tiny is not what" in refused(sparsity.main, ["out/small/run"])


def test_memory_that_runs_out_is_one_sentence(project, refused):
    """Of a model that its config.json makes a trillion times as wide."""
    train.main([str(write_config(project)), "--n_layer=1"])
    path = project / "out/small/run/config.json"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('"n_embd": 16', '"n_embd": 16000000000000'), encoding="utf-8")
    message = refused(sparsity.main, ["out/small/run"])
    assert "measuring out/small/run is out of memory: lower TABLE_SEQUENCES" in message


def test_a_closed_pipe_stops_only_the_printing(project, monkeypatch):
    train.main([str(write_config(project)), "--n_layer=1"])
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w", encoding="utf-8") as nobody_reads:
        monkeypatch.setattr(sys, "stdout", nobody_reads)
        sparsity.main(["out/small/run", "out/small/run"])
