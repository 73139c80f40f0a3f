"""Training and every score on the stand-in for an Apple GPU (apple.py) come to what they come to on
the CPU; so nothing asks such a GPU for float64, or for an operator that it lacks."""

from copy import deepcopy

import numpy as np
import pytest
import torch

import analyze
import downstream
import sparsity
import train
from apple import MPS_OPERATORS, apple_gpu
from configs.read import TrainConfig
from conftest import SMALL, TOGGLES, build, tokens
from hardware import choose_hardware
from model import GPTConfig

# The stand-in ------------------------------------------------------------------------------------


def test_the_stand_in_computes_what_the_cpu_does():
    with apple_gpu():
        x = torch.arange(6.0).view(2, 3).to("mps").requires_grad_()
        y = (x @ x.T).softmax(dim=-1)[0].sum() + x[1].square().sum()
        y.backward()
        assert (x.device.type, y.device.type, x.grad.device.type) == ("mps",) * 3
        assert y.item() == 51
        assert torch.allclose(x.grad.cpu(), torch.tensor([[0.0, 0, 0], [6, 8, 10]]), atol=1e-6)


@pytest.mark.parametrize(
    "wrong, error",
    [
        (lambda x: x.double(), TypeError),
        (lambda x: torch.zeros(2, dtype=torch.float64, device=x.device), TypeError),
        (lambda x: x.to(torch.float64), TypeError),
        (lambda x: x + torch.ones(2), RuntimeError),
        (lambda x: torch.linalg.eigh(x.outer(x)), NotImplementedError),
    ],
)
def test_the_stand_in_refuses_what_an_apple_gpu_refuses(wrong, error):
    with apple_gpu(), pytest.raises(error):
        wrong(torch.ones(2, device="mps"))


def test_operators_of_mps_are_read_as_torch_writes_them():
    """Plain, structured, composite, and some that are not there."""
    assert {"mul.Tensor", "_fused_adamw_", "cumsum", "one_hot", "detach"} <= MPS_OPERATORS
    assert MPS_OPERATORS.isdisjoint({"_linalg_eigh", "_linalg_svd", "linalg_eig", "geqrf"})


# Choosing ----------------------------------------------------------------------------------------


@pytest.fixture
def a_mac(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)


def test_auto_takes_an_apple_gpu(a_mac):
    with apple_gpu():
        hardware = choose_hardware(TrainConfig())
    assert hardware.device.type == "mps"
    assert hardware.dtype == torch.float32
    assert not hardware.compiled
    assert "Apple" in hardware.note and "float64" in hardware.note


def test_auto_takes_the_cpu_where_an_apple_gpu_does_not_work(a_mac, monkeypatch):
    """As in virtual machines, where it is there, but has no memory to give."""
    monkeypatch.setattr("hardware.probe", out_of_memory_on_mps)
    assert choose_hardware(TrainConfig()).device.type == "cpu"


def out_of_memory_on_mps(name):
    if name == "mps":
        raise RuntimeError("MPS backend out of memory")
    return torch.device(name)


# Training ----------------------------------------------------------------------------------------


def steps_on(device, model_config, data, grad_clip):
    """Loss and gradient norm of four accumulated steps, evaluation in between, and the weights."""
    config = TrainConfig(
        batch_size=2,
        gradient_accumulation_steps=2,
        learning_rate=1e-2,
        warmup_iters=2,
        max_iters=9,
        grad_clip=grad_clip,
        eval_tokens=96,
        device=device,
    )
    hardware = choose_hardware(config)
    model, optimizer = train.build_training(model_config, config, hardware)
    assert model.head.weight.device.type == device
    update = train.make_update(model, optimizer, data, config, hardware)
    numbers = [part.item() for step in range(2) for part in update(step)]
    validated = train.evaluate(model, data, config)
    numbers += [validated["val_loss"], *validated["variance"], *validated["mlp_variance"]]
    numbers += [part.item() for step in (2, 3) for part in update(step)]
    return numbers, [p.detach().cpu() for p in model.parameters()]


def some_slow(names, *fast):
    """Parameters, all but the `fast` ones marked slow."""
    return [n if n in fast else pytest.param(n, marks=pytest.mark.slow) for n in names]


@pytest.mark.parametrize("grad_clip", some_slow([0.1, 0.0], 0.1))
@pytest.mark.parametrize("toggle", some_slow(TOGGLES, "plain", "together", "remedies_together"))
def test_training_is_that_of_the_cpu(toggle, grad_clip):
    model_config = GPTConfig(**{**SMALL, **TOGGLES[toggle]})
    data = np.random.default_rng(0).integers(20, size=500).astype(np.uint16)
    wanted, weights = steps_on("cpu", model_config, data, grad_clip)
    with apple_gpu():
        numbers, weights_there = steps_on("mps", model_config, data, grad_clip)
    assert numbers == pytest.approx(wanted, rel=1e-4)
    for p, q in zip(weights, weights_there, strict=True):
        assert torch.allclose(p, q, atol=1e-4)


# Scores ------------------------------------------------------------------------------------------


def linear_ratios(model, idx, targets):
    maps = analyze.fit_linear_maps(model, idx)
    return analyze.linear_ratios(model, maps, idx, targets)


PAIRS = [{"paradigm": name, "good": "one", "bad": "two"} for name in ("sums", "parts")]
ITEMS = [{"context": "on", "choices": ["e", "x"], "answer": 0}] * 2
SCORES = {
    "stream_by_token": lambda model, idx, _: analyze.stream_by_token(model, idx),
    "layer_variance": lambda model, idx, _: analyze.layer_variance(model, idx),
    "jacobian": lambda model, idx, _: analyze.jacobian_deviation(model, idx[:1]),
    "angles": lambda model, idx, _: analyze.angular_distance(model, idx),
    "logit_lens": lambda model, idx, _: analyze.logit_lens(model, idx),
    "causal": lambda model, idx, _: analyze.causal_norms(model, idx),
    "permutation": analyze.permutation_matrix,
    "removal": analyze.removal_losses,
    "greedy": lambda *given: analyze.cumulative_pruning(*given, "greedy"),
    "linear": linear_ratios,
    "by_position": analyze.losses_by_position,
    "densities": lambda model, idx, _: sparsity.densities(model, idx),
    "pairs": lambda model, *_: downstream.minimal_pairs(model, PAIRS, encode, 0),
    "choices": lambda model, *_: downstream.choice_accuracy(model, ITEMS, encode),
    "generate": lambda model, idx, _: model.generate(idx, 3, temperature=0),
}


def encode(text):
    return [ord(letter) % 20 for letter in text]


def flat(result):
    """All numbers of tensors in any tuples and dicts, each of them on the CPU."""
    if isinstance(result, dict):
        return [number for value in result.values() for number in flat(value)]
    if isinstance(result, (tuple, list)):
        return [number for value in result for number in flat(value)]
    if isinstance(result, torch.Tensor):
        return result.cpu().flatten().tolist()
    return [] if result is None else [result]


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize(
    "toggle", some_slow(["plain", "together", "remedies_together"], "together")
)
def test_every_score_is_that_of_the_cpu(toggle, score):
    model, idx, targets = build(large_weights=True, **TOGGLES[toggle]), tokens(), tokens(seed=2)
    wanted = flat(SCORES[score](model.eval(), idx, targets))
    with apple_gpu():
        model, idx, targets = deepcopy(model).to("mps"), idx.to("mps"), targets.to("mps")
        got = flat(SCORES[score](model, idx, targets))
    assert got == pytest.approx(wanted, rel=1e-4, abs=1e-5)


def analysis_on(device, model, config):
    """All entries of analysis.json that need no tokenizer."""
    analysis = analyze.score_run(model, config, 4, torch.device(device))
    text, errors = analyze.score_text(model, config)
    return {**analysis, "text": text, "text_errors": errors}


def test_a_whole_analysis_is_that_of_the_cpu(project):
    options = dict(vocab_size=257, block_size=16, n_expert=4, expert_hidden=8, embedding_norm=True)
    model, config = build(**options).eval(), TrainConfig(dataset="tiny", eval_tokens=128)
    wanted = analysis_on("cpu", model, config)
    with apple_gpu():
        got = analysis_on("mps", model.to("mps"), config)
    assert flat(got) == pytest.approx(flat(wanted), rel=1e-3, abs=1e-5)
