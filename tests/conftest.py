"""Helpers of several tests. Tests import the project's files from the repository's top folder, as
a reader runs them."""

import sys
from pathlib import Path

import pytest
import torch

REPOSITORY = Path(__file__).parent.parent
sys.path.insert(0, str(REPOSITORY))
torch.set_num_threads(1)  # models this small only lose time to a second thread

from model import GPT, GPTConfig  # noqa: E402

# Small models ------------------------------------------------------------------------------------

SMALL = dict(block_size=12, vocab_size=20, n_layer=2, n_head=4, n_embd=16, mlp_hidden=32)
TOGGLES = {
    "plain": {},
    "gqa": dict(n_kv_head=2),
    "mqa": dict(n_kv_head=1),
    "window": dict(attention="window", window=3),
    "strided": dict(attention="strided", stride=3),
    "topk": dict(attention="topk", topk=2),
    "moe": dict(n_expert=4, n_expert_active=2, expert_hidden=16),
    "moe_shared": dict(
        n_expert=4,
        n_expert_active=1,
        n_shared_expert=1,
        expert_hidden=16,
        normalize_expert_weights=True,
    ),
    "layer_norm_scaling": dict(layer_norm_scaling=True),
    "scaled_residual_init": dict(scaled_residual_init=True),
    "together": dict(
        n_kv_head=2,
        attention="window",
        window=3,
        n_expert=4,
        expert_hidden=16,
        layer_norm_scaling=True,
    ),
}
each_toggle = pytest.mark.parametrize("toggle", TOGGLES.values(), ids=TOGGLES.keys())


def build(seed=0, large_weights=False, **options):
    """A GPT of SMALL's size; large_weights: far from initialisation, as after training."""
    torch.manual_seed(seed)
    model = GPT(GPTConfig(**{**SMALL, **options}))
    if large_weights:
        as_if_trained(model, 10)
    return model


def as_if_trained(model, factor):
    """Matrices times factor: scores far apart, routers decided; and norms' weights no longer 1."""
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(factor)
        else:
            parameter.data.uniform_(0.5, 1.5)


def tokens(B=3, T=12, seed=1):
    """(B, T) random token ids of SMALL's vocabulary."""
    return torch.randint(20, (B, T), generator=torch.Generator().manual_seed(seed))
