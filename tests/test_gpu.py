"""What only a GPU runs: compiled blocks, FlexAttention's block masks and bf16 experts, against the plain fp32 model."""
import math

import numpy as np
import pytest
import torch

import analyze
from configs.read import TrainConfig
from model import GPT, GPTConfig, flex_mask
from test_model import TOGGLES, as_if_trained
from train import build_training, evaluate, make_update

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
SHAPE = dict(block_size=256, vocab_size=512, n_layer=3, n_head=4, n_embd=128, mlp_hidden=256)
ON_GPU = {**TOGGLES, "window": dict(attention="window", window=40), "strided": dict(attention="strided", stride=32),
          "topk": dict(attention="topk", topk=16), "moe": dict(n_expert=8, expert_hidden=128),
          "together": dict(n_kv_head=2, attention="strided", stride=24, n_expert=4, expert_hidden=64, layer_norm_scaling=True)}


@pytest.fixture(autouse=True)
def full_precision():
    torch.set_float32_matmul_precision("highest")


def build(name):
    torch.manual_seed(0)
    model = GPT(GPTConfig(**{**SHAPE, **ON_GPU[name]})).cuda()
    as_if_trained(model, 3)
    return model


def random_tokens(B, T):
    return torch.randint(512, (B, T), device="cuda", generator=torch.Generator("cuda").manual_seed(1))


def gradients(name, compiled, dtype):
    model, idx = build(name), random_tokens(4, 257)
    model.compute_dtype = dtype
    if compiled:
        model.compile_for_gpu()
    _, loss = model(idx[:, :-1], idx[:, 1:])
    (loss + model.router_loss()).backward()
    return loss.item(), [p.grad.double() for p in model.parameters()]


@pytest.mark.parametrize("name", ON_GPU)
def test_compiled_bf16_gradients_follow_eager_fp32(name):
    if name == "topk":  # rounding changes which keys are chosen, so only the compilation is checked
        (loss, compiled), (reference, eager) = (gradients(name, c, torch.float32) for c in (True, False))
    else:
        (loss, compiled), (reference, eager) = gradients(name, True, torch.bfloat16), gradients(name, False, torch.float32)
    assert loss == pytest.approx(reference, rel=3e-3)
    moe = "n_expert" in ON_GPU[name]  # rounding sends a few tokens to other experts
    for ours, plain in zip(compiled, eager):
        assert (ours - plain).norm() <= (0.2 if moe else 0.05) * plain.norm() + 1e-12


@pytest.mark.parametrize("name", ["plain", "window", "strided"])
def test_a_compiled_model_takes_other_context_lengths(name):
    """A block mask is made for one length; the others go another way, whichever comes first."""
    model, idx = build(name), random_tokens(2, 256)
    with torch.no_grad():
        plain = {T: model(idx[:, :T])[0] for T in (100, 256, 130)}
        model.compile_for_gpu()
        for T, logits in plain.items():
            assert torch.allclose(model(idx[:, :T])[0], logits, atol=1e-3 * logits.abs().max())


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("name", ["plain", "gqa", "window", "moe", "layer_norm_scaling"])
def test_recorded_steps_follow_plain_fp32_ones(name, accumulation):
    """Every optimisation on, against everything off: a dozen steps, most of them replayed, evaluation in between."""
    model_config = GPTConfig(**{**SHAPE, **ON_GPU[name]})
    tokens = (np.cumsum(np.random.default_rng(0).integers(5, size=100_000)) % 500).astype(np.uint16)
    losses = {}
    for fast in (True, False):
        config = TrainConfig(batch_size=8 // accumulation, gradient_accumulation_steps=accumulation, warmup_iters=4, max_iters=40, eval_iters=1,
                             dtype="bfloat16" if fast else "float32", compile=fast)
        model, optimizer = build_training(model_config, config)
        update, losses[fast] = make_update(model, optimizer, tokens, config), []
        for step in range(12):
            losses[fast].append(update(step)[0].item())
            if step in (1, 7):
                assert math.isfinite(evaluate(model, tokens, config)["val_loss"])
    assert losses[True] == pytest.approx(losses[False], abs=0.02) and losses[False][-1] < losses[False][0] - 0.15


@pytest.mark.parametrize("options", [dict(attention="window", window=512), dict(attention="strided", stride=128)])
def test_block_masks_skip_work(options):
    config = GPTConfig(block_size=8192, n_embd=64, n_head=2, **options)
    assert flex_mask(config, "cuda").sparsity() > 85  # per cent of blocks skipped, of the whole square; causal skips 49


@pytest.mark.parametrize("name", ["plain", "gqa", "window", "strided", "topk", "layer_norm_scaling", "moe"])
def test_interventions_on_compiled_blocks_agree_with_plain_ones(name):
    """As score_run uses them, though in full fp32; the given model runs no compiled code, or its hooks would be deaf."""
    model, idx = build(name).eval(), random_tokens(4, 256)
    fast = analyze.with_compiled_blocks(model)
    assert (fast is model) == (name == "moe") and not any(isinstance(block, torch._dynamo.OptimizedModule) for block in model.blocks)
    for score in (lambda m: analyze.permutation_matrix(m, idx, idx), lambda m: analyze.causal_matrix(m, idx),
                  lambda m: analyze.cumulative_pruning(m, idx, idx, "greedy"), lambda m: analyze.angular_distance(m, idx)[0]):
        assert torch.allclose(score(fast), score(model), rtol=1e-3, atol=1e-4)
