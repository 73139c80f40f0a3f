"""How sparse a model is: four densities, and what theory says they do to the residual stream's variance.

    python sparsity.py out/depth/n_layer=8,seed=0    the four densities of a trained model, layer by layer
    python sparsity.py --theory                      predicted and simulated variance at initialisation, as a figure

A density is the share in use: of weights, of keys attended to, of key/value heads, of experts. 1 is dense.
Functions take any model with model.py's names; nothing of ours is imported until the command line needs a model.
"""
import argparse
import math
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

SMALL_WEIGHT = 1e-3         # a twentieth of the standard deviation at initialisation
ATTENTION_ENTRIES = 2**24   # attention probabilities held at once


# Measured on a model ------------------------------------------------------------------------------------------

def weight_density(weight):
    """Participation ratio (sum |w|)^2 / (n sum w^2) of any tensor: 1 when all magnitudes are equal, 2/pi = 0.64 for
    a Gaussian, 1/n when one weight holds everything. Scaling all weights changes nothing."""
    magnitude = weight.detach().double().abs()
    return (magnitude.sum() ** 2 / (magnitude.numel() * magnitude.square().sum().clamp_min(1e-300))).item()


def weight_sparsity(model):
    """Over all matrices of the blocks: the share of weights below SMALL_WEIGHT, which weight decay moves, and the
    scale-free density (mean over matrices, by size), which it moves only if it makes some weights matter less."""
    matrices = [p for p in model.blocks.parameters() if p.dim() >= 2]
    sizes = np.array([p.numel() for p in matrices], dtype=float)
    below = np.array([(p.detach().abs() < SMALL_WEIGHT).double().mean().item() for p in matrices])
    density = np.array([weight_density(p) for p in matrices])
    return {"share_below": float(below @ sizes / sizes.sum()), "density": float(density @ sizes / sizes.sum())}


@contextmanager
def inputs_of(modules):
    """While open, collects each module's latest inputs: {module: tuple}."""
    seen = {}
    handles = [m.register_forward_pre_hook(lambda module, args: seen.__setitem__(module, args)) for m in modules]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def attended_keys(model, idx):
    """Effective number of keys, exp(entropy of a query's attention), and its share of the keys at or before the
    query; both averaged over queries: {"keys", "share"}, each (n_layer, n_head). idx (N, T). Uniform attention over
    n keys counts n."""
    attentions = [block.attention for block in model.blocks]
    n_head, T = model.config.n_head, idx.shape[1]
    keys = torch.zeros(len(attentions), n_head, dtype=torch.float64)
    share = torch.zeros_like(keys)
    available = torch.arange(1, T + 1, device=idx.device)
    for rows in idx.split(max(1, ATTENTION_ENTRIES // (n_head * T * T))):
        with inputs_of(attentions) as inputs:
            model(rows)
        for layer, attention in enumerate(attentions):
            effective = torch.special.entr(attention.weights(*inputs[attention])).sum(dim=-1).exp()  # (B, H, T)
            keys[layer] += effective.double().mean(dim=-1).sum(dim=0).cpu() / len(idx)
            share[layer] += (effective / available).double().mean(dim=-1).sum(dim=0).cpu() / len(idx)
    return {"keys": keys, "share": share}


@torch.no_grad()
def expert_use(model, idx):
    """Share of a layer's assignments that each expert gets, (n_layer, n_expert), or None for a dense model."""
    if not model.config.n_expert:
        return None
    experts = [block.mlp for block in model.blocks]
    counts = torch.zeros(len(experts), model.config.n_expert, dtype=torch.float64)
    for rows in idx.split(max(1, 2**14 // idx.shape[1])):
        with inputs_of(experts) as inputs:
            model(rows)
        for layer, moe in enumerate(experts):
            chosen = moe.route(inputs[moe][0].flatten(0, -2))[-1].flatten()
            counts[layer] += chosen.bincount(minlength=model.config.n_expert).double().cpu()
    return counts / counts.sum(dim=1, keepdim=True)


def densities(model, idx):
    """Everything this file measures on a model, as numbers and lists: the four densities under "weight", "attention",
    "key_value", "expert", and what they were computed from. Balance is exp(entropy of expert use) / n_expert."""
    config, weights, attended, use = model.config, weight_sparsity(model), attended_keys(model, idx), expert_use(model, idx)
    result = {"weight": weights["density"], "attention": attended["share"].mean().item(),
              "key_value": config.n_kv_head / config.n_head, "expert": 1.0,
              "weights_below_threshold": weights["share_below"], "threshold": SMALL_WEIGHT,
              "attended_keys": attended["keys"].tolist(), "attended_share": attended["share"].tolist()}
    if use is not None:
        result["expert"] = (config.n_expert_active + config.n_shared_expert) / (config.n_expert + config.n_shared_expert)
        result["expert_use"] = use.tolist()
        result["expert_balance"] = (torch.special.entr(use).sum(dim=1).exp() / config.n_expert).tolist()
    return result


# Theory: a Pre-RMSNorm stack with random weights ---------------------------------------------------------------
#
# All weights are independent with mean 0 and variance s2, so over their draw the features of the stream are
# exchangeable and every branch is uncorrelated with the stream it is added to: covariances simply add. With
# c[q, k] the covariance of the stream at positions q and k, RMSNorm hands on r = c / sqrt(c[q, q] c[k, k]), and a
# matrix of fan-in n makes n * s2 * r of it. A weight kept with probability p (else zero) turns s2 into p * s2.

def gaussian_kernel(function, correlation, n_terms=40):
    """E[f(z) f(z')] for standard Gaussians z, z' of the given correlations (any shape): Mehler's formula,
    sum_n a_n^2 correlation^n with a_n = E[f(z) He_n(z)] / sqrt(n!). Where correlation is 1: E[f(z)^2], exactly."""
    z = torch.linspace(-9, 9, 20001, dtype=torch.float64)
    weight = torch.exp(-z ** 2 / 2) / math.sqrt(2 * math.pi) * (z[1] - z[0])
    values = function(z)
    total, power = torch.zeros_like(correlation), torch.ones_like(correlation)
    previous, hermite = torch.zeros_like(z), torch.ones_like(z)
    for n in range(n_terms):  # hermite = He_n / sqrt(n!), by its three-term recurrence; power = correlation^n
        total += (weight * values * hermite).sum() ** 2 * power
        power *= correlation
        previous, hermite = hermite, (z * hermite - math.sqrt(n) * previous) / math.sqrt(n + 1)
    return torch.where(correlation > 1 - 1e-9, (weight * values ** 2).sum(), total)


def attention_branch(n_embd, s2_value, s2_output, probability, correlation, spread=None):
    """Covariance (T, T) that random attention adds: n s2_value * n s2_output * P r P^T, n = n_embd, P the attention.

    Scores at initialisation are near zero, so P is uniform over the keys in sight. For one query with m keys of mean
    correlation r this reads n^2 s2_value s2_output (r + (1 - r) / m): fewer keys, *more* variance from one block, as
    less is averaged away. Where the keys in use vary from query to query (softmax of random scores, topk), the mean
    P misses that `spread` = E[sum p^2] / sum P^2 > 1, which counts on the diagonal only, in what is not shared, 1 - r.
    Sharing keys and values among heads changes nothing: every head's values keep their variance, and the output
    matrix draws independent weights for each head, so no head's share depends on another's."""
    added = probability @ correlation @ probability.T
    if spread is not None:
        alone = probability.square().sum(dim=1)  # the diagonal is alone + (1 - alone) * shared
        shared = (added.diagonal() - alone) / (1 - alone).clamp_min(1e-12)
        added = added + torch.diag((spread - 1) * alone * (1 - shared.clamp(0, 1)))
    return n_embd ** 2 * s2_value * s2_output * added


def mlp_branch(n_embd, hidden, s2_in, s2_down, correlation):
    """Covariance (T, T) that a random SwiGLU adds: hidden * s2_down * v r * E[silu(g) silu(g')], where gate and up
    are independent Gaussians of variance v = n_embd * s2_in and correlation r. For small v the variance is
    hidden * s2_down * v^2 / 4, so a density of p on every weight scales it by p^3."""
    v = n_embd * s2_in
    return hidden * s2_down * v * correlation * gaussian_kernel(lambda z: F.silu(math.sqrt(v) * z), correlation)


def moe_routing(n_embd, n_expert, n_active, s2_router, correlation, normalize=False):
    """E[sum over experts of weight * weight'] (T, T), by which a mixture multiplies one expert's covariance.

    Experts are independent, so cross terms vanish and only a shared expert correlates two tokens. Router logits are
    Gaussian with variance v = n_embd * s2_router; an expert is active above the quantile n_active / n_expert, with
    weight exp(logit) / (n_expert exp(v / 2)): about n_active / n_expert^2 on the diagonal. Top k of *unnormalised*
    probabilities thus damps the branch by far more than its share of experts; normalised, by 1 / n_active only."""
    v, n_grid = n_embd * s2_router, torch.distributions.Normal(0.0, 1.0)
    threshold = n_grid.icdf(torch.tensor(1 - n_active / n_expert, dtype=torch.float64)).item() if n_active < n_expert else -math.inf

    def weight(z):
        return (z > threshold) * torch.exp(math.sqrt(v) * z - v / 2) / n_expert
    kernel = n_expert * gaussian_kernel(weight, correlation)
    if normalize:  # divide by the square of the active weights' mean sum
        one = torch.zeros(1, dtype=torch.float64)
        kernel = kernel / (n_expert ** 2 * gaussian_kernel(weight, one))
    return kernel


def attention_probability(config, T):
    """(T, T) mean attention at initialisation, uniform over the keys in sight, and its spread (see attention_branch)."""
    from model import visible
    mask = visible(config, T).double()
    probability = mask / mask.sum(dim=1, keepdim=True)
    if config.attention == "topk":
        in_sight = mask.sum(dim=1)
        return probability, in_sight / in_sight.clamp(max=config.topk)
    return probability, torch.full((T,), math.exp((config.n_embd * 0.02 ** 2) ** 2), dtype=torch.float64)


def predict_variance(config, idx, keep=1.0, std=0.02):
    """Variance of the stream at initialisation, h_0 .. h_L, averaged over positions of the one sequence idx (T,);
    weights are kept with probability `keep`. Exact as widths grow; only equal tokens are correlated at h_0.

    After l blocks: c_l = c_0 + sum of attention_branch and mlp_branch, each from the correlations before it. Layer-
    norm scaling divides a block's inputs, hence its s2, by its number; scaled_residual_init divides s2_output."""
    T, s2 = len(idx), keep * std ** 2
    covariance = std ** 2 * (idx[:, None] == idx[None, :]).double()  # embeddings are not thinned
    s2_out = s2 / (2 * config.n_layer) if config.scaled_residual_init else s2
    probability, spread = attention_probability(config, T)
    variance = [covariance.diagonal().mean().item()]
    for layer in range(1, config.n_layer + 1):
        s2_in = s2 / layer if config.layer_norm_scaling else s2
        covariance = covariance + attention_branch(config.n_embd, s2_in, s2_out, probability, normalised(covariance), spread)
        correlation = normalised(covariance)
        if config.n_expert:
            expert = mlp_branch(config.n_embd, config.expert_hidden, s2_in, s2_out, correlation)
            added = expert * moe_routing(config.n_embd, config.n_expert, config.n_expert_active, s2_in, correlation,
                                         config.normalize_expert_weights)
            if config.n_shared_expert:
                added = added + mlp_branch(config.n_embd, config.n_shared_expert * config.expert_hidden, s2_in, s2_out, correlation)
        else:
            added = mlp_branch(config.n_embd, config.mlp_hidden, s2_in, s2_out, correlation)
        covariance = covariance + added
        variance.append(covariance.diagonal().mean().item())
    return variance


def normalised(covariance):
    scale = covariance.diagonal().rsqrt()
    return covariance * scale[:, None] * scale[None, :]


# Monte Carlo and the command line -------------------------------------------------------------------------------

THEORY_CASES = {  # name -> model options and share of weights kept
    "dense": ({}, 1.0), "half the weights": ({}, 0.5), "multi-query": (dict(n_kv_head=1), 1.0),
    "window 8": (dict(attention="window", window=8), 1.0), "strided 8": (dict(attention="strided", stride=8), 1.0),
    "top-8 keys": (dict(attention="topk", topk=8), 1.0), "2 of 16 experts": (dict(n_expert=16, n_expert_active=2), 1.0),
    "2 of 16, normalised": (dict(n_expert=16, n_expert_active=2, normalize_expert_weights=True), 1.0),
    "2 of 16 and 1 shared": (dict(n_expert=16, n_expert_active=2, n_shared_expert=1), 1.0),
    "layer-norm scaling": (dict(layer_norm_scaling=True), 1.0), "scaled init": (dict(scaled_residual_init=True), 1.0)}


def theory_model(n_layer=32, n_embd=256, T=64, **options):
    """Config and one random sequence for theory and simulation; the vocabulary is large, so few tokens repeat."""
    from model import GPTConfig
    config = GPTConfig(n_layer=n_layer, n_embd=n_embd, n_head=4, block_size=T, vocab_size=8192, **options)
    return config, torch.randint(8192, (T,), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def simulate_variance(config, idx, keep=1.0, n_seeds=32):
    """(n_seeds, L + 1) variances h_0 .. h_L of the real model.py at initialisation, its blocks' weights thinned."""
    from model import GPT
    curves = []
    for seed in range(n_seeds):
        torch.manual_seed(seed)
        model = GPT(config).eval()
        for parameter in model.blocks.parameters():
            if keep < 1 and parameter.dim() >= 2:
                parameter.mul_(torch.rand_like(parameter) < keep)
        h = model.embed(idx[None])
        curve = [h.var(dim=-1).mean()]
        for block in model.blocks:
            h = block(h)
            curve.append(h.var(dim=-1).mean())
        curves.append(torch.stack(curve))
    return torch.stack(curves).double()


def draw_theory(folder, n_seeds=32):
    """Write theory.png and theory.json: predicted lines and simulated points, a panel for each case."""
    import matplotlib.pyplot as plt
    from tqdm import tqdm

    from analyze import save_figure
    from train import write_json
    figure, axes = plt.subplots(3, 4, figsize=(12, 8), sharex=True, sharey=True, layout="constrained")
    results = {}
    for axis, (name, (options, keep)) in zip(axes.flat, tqdm(THEORY_CASES.items(), desc="theory", disable=None)):
        config, idx = theory_model(**options)
        predicted, simulated = predict_variance(config, idx, keep), simulate_variance(config, idx, keep, n_seeds)
        mean, error = simulated.mean(0), simulated.std(0) / math.sqrt(n_seeds)
        results[name] = {"predicted": predicted, "simulated": mean.tolist(), "standard_error": error.tolist()}
        axis.plot(predicted, color="black", label="predicted")
        axis.errorbar(range(0, 33, 4), mean[::4], 2 * error[::4], fmt="o", markersize=4, color="tab:orange", label="simulated")
        axis.set(title=name, yscale="log")
    for axis in axes.flat[len(THEORY_CASES):]:
        axis.axis("off")
    axes.flat[len(THEORY_CASES) - 1].legend()
    figure.supxlabel("block")
    figure.supylabel("variance of the residual stream at initialisation")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_figure(figure, folder / "theory.png")
    write_json(folder / "theory.json", {"seeds": n_seeds, "torch": torch.__version__, "device": "cpu", "cases": results})
    print(f"{'case':24}{'var(h_1)':>12}{'var(h_32)':>12}{'predicted':>12}{'largest gap':>13}")
    for name, r in results.items():
        gap = max(abs(p / s - 1) for p, s in zip(r["predicted"], r["simulated"]))
        print(f"{name:24}{r['simulated'][1]:12.2e}{r['simulated'][-1]:12.2e}{r['predicted'][-1]:12.2e}{gap:12.1%}")


MASKS = {  # curve: {keys or stride: model options}; sparser masks to the left
    "window": {n: dict(attention="window", window=n) for n in (2, 4, 8, 16, 32, 64)},
    "strided": {n: dict(attention="strided", stride=n) for n in (2, 8, 16, 32, 64)},
    "topk": {n: dict(attention="topk", topk=n) for n in (2, 4, 8, 16, 32, 64)}}


def draw_masks(folder, n_seeds=16, depths=(1, 4, 16)):
    """Claim C10, that a sparser mask slows the growth of variance at initialisation: theory_masks.png and .json hold
    var(h_l) / var(h_0) against mask density, in closed form and simulated, and verdicts by the rule of claims.py."""
    import matplotlib.pyplot as plt
    from tqdm import tqdm

    from analyze import logarithmic, save_figure
    from configs.claims import interval, judge
    from model import mask_density
    from train import write_json
    figure, axes = plt.subplots(1, len(depths), figsize=(12, 3.8), layout="constrained")
    results, bar = {}, tqdm(total=sum(map(len, MASKS.values())), desc="masks", disable=None)
    for (pattern, options), colour, marker in zip(MASKS.items(), plt.get_cmap("viridis")((0.0, 0.45, 0.8)), "osD"):
        rows = []
        for changes in options.values():
            config, idx = theory_model(n_layer=max(depths), **changes)
            predicted, simulated = predict_variance(config, idx), simulate_variance(config, idx, n_seeds=n_seeds)
            rows.append({"density": mask_density(config), "predicted": (np.array(predicted) / predicted[0]).tolist(),
                         "growth": (simulated / simulated[:, :1]).T.tolist()})  # [layer][seed]
            bar.update()
        rows.sort(key=lambda row: row["density"])
        density, results[pattern] = [row["density"] for row in rows], {"points": rows, "verdicts": {}}
        for axis, layer in zip(axes, depths):
            verdict, effect, half = judge([row["growth"][layer] for row in rows], "rises", log=True)
            results[pattern]["verdicts"][layer] = {"verdict": verdict, "effect": effect, "half": half}
            print(f"C10, {pattern}, {layer:2} blocks: log growth {effect:+.3f} ± {half:.3f} from a mask to the next denser one: {verdict}")
            means, halves = np.array([interval(row["growth"][layer]) for row in rows]).T
            axis.plot(density, [row["predicted"][layer] for row in rows], color=colour)
            axis.errorbar(density, means, halves, color=colour, marker=marker, linestyle="", capsize=3, label=pattern)
    bar.close()
    for axis, layer in zip(axes, depths):
        axis.set(title=f"after {layer} block{'s' * (layer > 1)}", xlabel="mask density")
        logarithmic(axis, "x")
        logarithmic(axis, "y")
    axes[0].set_ylabel("var(h_l) / var(h_0) at initialisation")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center")
    save_figure(figure, Path(folder) / "theory_masks.png")
    write_json(Path(folder) / "theory_masks.json", {"seeds": n_seeds, "torch": torch.__version__, "device": "cpu", "patterns": results})


def print_table(result, name):
    rows = zip(result["attended_keys"], result["attended_share"])
    print(f"{name}\n  weights  density {result['weight']:.3f} (Gaussian 0.637), {result['weights_below_threshold']:.1%} below {SMALL_WEIGHT}")
    print(f"  key/value heads in use  {result['key_value']:.3f}\n  experts in use  {result['expert']:.3f}")
    print(f"  keys in use  {result['attention']:.3f} of those in sight\n\n  layer  keys, each head" + " " * 25 + "share, each head")
    for layer, (keys, share) in enumerate(rows, start=1):
        balance = f"  experts' balance {result['expert_balance'][layer - 1]:.2f}" if "expert_balance" in result else ""
        print(f"  {layer:5}  {' '.join(f'{k:6.1f}' for k in keys):38}  {' '.join(f'{s:.2f}' for s in share)}{balance}")


def print_tables(folders):
    from data.read import held_out_sequences
    from train import load_run
    for folder in folders:
        model, config = load_run(folder)
        print_table(densities(model, held_out_sequences(config, model.config, 16)[0]), folder)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", help="run folders, such as out/demo/n_layer=8")
    parser.add_argument("--theory", action="store_true", help="write theory and theory_masks, .png and .json, into results/")
    arguments = parser.parse_args(argv)
    if arguments.theory == bool(arguments.runs):
        parser.error("give run folders, or --theory alone")
    from data.prepare import or_one_sentence
    if arguments.theory:
        or_one_sentence(draw_theory, "results")
        or_one_sentence(draw_masks, "results")
    else:
        or_one_sentence(print_tables, arguments.runs)


if __name__ == "__main__":
    main()
