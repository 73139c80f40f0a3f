"""How sparse a model is: four densities.

    python sparsity.py out/depth/n_layer=8,seed=0    the four densities of a trained model
    python sparsity.py out/depth/n_layer=*           of several

A density is the share in use: of weights, of keys attended to, of key/value heads, of experts. 1
is dense. Functions take any model with model.py's names. What densities do to the variance at
initialisation is theory.py's.
"""

from data import interrupt

if __name__ == "__main__":
    interrupt.before_imports()

import argparse
from contextlib import contextmanager

import numpy as np
import torch

from data.files import matched, or_one_sentence, say
from data.read import held_out_sequences
from hardware import memory_errors_explained
from results.runs import load_run, refuse_other_data
from results.scores import TINY

SMALL_WEIGHT = 1e-3  # a twentieth of the standard deviation at initialisation
ATTENTION_ENTRIES = 2**24  # attention probabilities held at once
TOKENS_AT_ONCE = 2**14  # whose experts are looked up
TABLE_SEQUENCES = 16  # that the command line's table is measured on


def in_float64(x):
    """x in float64, in which sums and small differences keep their digits; on the CPU, where x is
    on an Apple GPU, which has no float64."""
    return (x.cpu() if x.device.type == "mps" else x).double()


@contextmanager
def inputs_of(modules):
    """While open, collects each module's latest input: {module: tensor}."""
    seen = {}

    def remember(module, args):
        seen[module] = args[0]

    handles = [module.register_forward_pre_hook(remember) for module in modules]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


# Weights -----------------------------------------------------------------------------------------


def weight_density(weight):
    """Participation ratio (sum |w|)^2 / (n sum w^2) of any tensor: 1 when all magnitudes are
    equal, 2/pi = 0.64 for a Gaussian, 1/n when one weight holds everything. Scaling all weights
    changes nothing."""
    magnitude = in_float64(weight.detach()).abs()
    sum_of_squares = magnitude.square().sum().clamp_min(TINY)
    return (magnitude.sum() ** 2 / (magnitude.numel() * sum_of_squares)).item()


def weight_sparsity(model):
    """Over all matrices of the blocks: "share_below", the share of weights below SMALL_WEIGHT,
    which weight decay moves; and "density" (mean over matrices, by size), which is free of scale,
    so that decay moves it only if it makes some weights matter less."""
    matrices = [p for p in model.blocks.parameters() if p.dim() >= 2]
    sizes = np.array([p.numel() for p in matrices], dtype=float)
    below = np.array([(p.detach().abs() < SMALL_WEIGHT).sum().item() for p in matrices])
    density = np.array([weight_density(p) for p in matrices])
    return {
        "share_below": float(below.sum() / sizes.sum()),
        "density": float(density @ sizes / sizes.sum()),
    }


# Attention ---------------------------------------------------------------------------------------


@torch.no_grad()
def attended_keys(model, idx):
    """Effective number of keys, exp(entropy of a query's attention), and its share of the keys at
    or before the query; both averaged over queries: {"keys", "share"}, each (n_layer, n_head)
    float64. idx (N, T). Uniform attention over n keys counts n."""
    attentions = [block.attention for block in model.blocks]
    n_head = model.config.n_head
    T = idx.shape[1]
    keys = torch.zeros(len(attentions), n_head, dtype=torch.float64)
    share = torch.zeros_like(keys)
    available = torch.arange(1, T + 1, device=idx.device)
    for rows in idx.split(max(1, ATTENTION_ENTRIES // (n_head * T * T))):
        with inputs_of(attentions) as inputs:
            model(rows)
        for layer, attention in enumerate(attentions):
            entropy = torch.special.entr(attention.probabilities(inputs[attention])).sum(dim=-1)
            effective = entropy.exp()  # (B, H, T)
            keys[layer] += mean_over_queries(effective).cpu() / len(idx)
            share[layer] += mean_over_queries(effective / available).cpu() / len(idx)
    return {"keys": keys, "share": share}


def mean_over_queries(values):
    """(B, H, T) -> (H,) float64: mean over positions, sum over sequences."""
    return in_float64(values).mean(dim=-1).sum(dim=0)


# Experts -----------------------------------------------------------------------------------------


@torch.no_grad()
def expert_use(model, idx):
    """Share of a layer's assignments that each expert gets, (n_layer, n_expert) float64, or None
    for a dense model. idx (N, T)."""
    n_expert = model.config.n_expert
    if not n_expert:
        return None
    experts = [block.mlp for block in model.blocks]
    counts = torch.zeros(len(experts), n_expert, dtype=torch.float64)
    for rows in idx.split(max(1, TOKENS_AT_ONCE // idx.shape[1])):
        with inputs_of(experts) as inputs:
            model(rows)
        for layer, moe in enumerate(experts):
            _, _, expert = moe.route(inputs[moe].flatten(0, -2))
            counts[layer] += expert.flatten().bincount(minlength=n_expert).cpu()
    return counts / counts.sum(dim=1, keepdim=True)


# All four ----------------------------------------------------------------------------------------


def densities(model, idx):
    """Everything this file measures on a model, as numbers and lists: the four densities under
    "weight", "attention", "key_value", "expert", and what they were computed from. "expert_balance"
    is exp(entropy of expert use) / n_expert."""
    config = model.config
    weights = weight_sparsity(model)
    attended = attended_keys(model, idx)
    result = {
        "weight": weights["density"],
        "attention": attended["share"].mean().item(),
        "key_value": config.n_kv_head / config.n_head,
        "expert": 1.0,
        "weights_below_threshold": weights["share_below"],
        "threshold": SMALL_WEIGHT,
        "attended_keys": attended["keys"].tolist(),
        "attended_share": attended["share"].tolist(),
    }
    if config.n_expert:
        use = expert_use(model, idx)
        used = config.n_expert_active + config.n_shared_expert
        balance = torch.special.entr(use).sum(dim=1).exp() / config.n_expert
        result["expert"] = used / (config.n_expert + config.n_shared_expert)
        result["expert_use"] = use.tolist()
        result["expert_balance"] = balance.tolist()
    return result


# Command line ------------------------------------------------------------------------------------


def table_of(result):
    """What densities() returned, for reading: the four, and attention layer by layer."""
    below = f"{result['weights_below_threshold']:.1%} below {SMALL_WEIGHT}"
    lines = [
        f"  weights  density {result['weight']:.3f} (Gaussian 0.637), {below}",
        f"  key/value heads in use  {result['key_value']:.3f}",
        f"  experts in use  {result['expert']:.3f}",
        f"  keys in use  {result['attention']:.3f} of those in sight",
        "",
        f"  layer  {'keys, each head':38}  share, each head",
    ]
    rows = zip(result["attended_keys"], result["attended_share"], strict=True)
    for layer, (keys, shares) in enumerate(rows, start=1):
        keys_text = " ".join(f"{k:6.1f}" for k in keys)
        share_text = " ".join(f"{s:.2f}" for s in shares)
        line = f"  {layer:5}  {keys_text:38}  {share_text}"
        if "expert_balance" in result:
            line += f"  experts' balance {result['expert_balance'][layer - 1]:.2f}"
        lines.append(line)
    return "\n".join(lines)


def say_tables(folders):
    for folder in matched(folders):
        with memory_errors_explained(f"measuring {folder}", "lower TABLE_SEQUENCES in sparsity.py"):
            model, config = load_run(folder)
            refuse_other_data(folder)
            idx, _ = held_out_sequences(config, model.config, TABLE_SEQUENCES)
            say(f"{folder}\n{table_of(densities(model, idx))}")


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", help="run folders, such as out/demo/n_layer=8")
    or_one_sentence(say_tables, parser.parse_args(argv).runs)


if __name__ == "__main__":
    main()
