"""How sparse a model is: four densities, and what theory says they do to the residual stream.

    python sparsity.py out/depth/n_layer=8,seed=0    the four densities of a trained model
    python sparsity.py --theory                      predicted and simulated variance at
                                                     initialisation, as figures in results/

A density is the share in use: of weights, of keys attended to, of key/value heads, of experts. 1
is dense. Functions take any model with model.py's names.
"""

import argparse
import math
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from data.files import or_one_sentence, write_json
from data.read import held_out_sequences
from model import GPT, INIT_STD, GPTConfig, mask_density, visible
from results.claims import judge
from results.figures import masks_figure, save_figure, theory_figure
from results.runs import load_run

SMALL_WEIGHT = 1e-3  # a twentieth of the standard deviation at initialisation
ATTENTION_ENTRIES = 2**24  # attention probabilities held at once
TOKENS_AT_ONCE = 2**14  # whose experts are looked up
TABLE_SEQUENCES = 16  # that the command line's table is measured on
TINY = 1e-300  # keeps 0 / 0 at 0


# Measured on a model -----------------------------------------------------------------------------


def weight_density(weight):
    """Participation ratio (sum |w|)^2 / (n sum w^2) of any tensor: 1 when all magnitudes are
    equal, 2/pi = 0.64 for a Gaussian, 1/n when one weight holds everything. Scaling all weights
    changes nothing."""
    magnitude = weight.detach().double().abs()
    sum_of_squares = magnitude.square().sum().clamp_min(TINY)
    return (magnitude.sum() ** 2 / (magnitude.numel() * sum_of_squares)).item()


def weight_sparsity(model):
    """Over all matrices of the blocks: "share_below", the share of weights below SMALL_WEIGHT,
    which weight decay moves; and "density" (mean over matrices, by size), which is free of scale,
    so that decay moves it only if it makes some weights matter less."""
    matrices = [p for p in model.blocks.parameters() if p.dim() >= 2]
    sizes = np.array([p.numel() for p in matrices], dtype=float)
    below = np.array([(p.detach().abs() < SMALL_WEIGHT).double().mean().item() for p in matrices])
    density = np.array([weight_density(p) for p in matrices])
    return {
        "share_below": float(below @ sizes / sizes.sum()),
        "density": float(density @ sizes / sizes.sum()),
    }


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


@torch.no_grad()
def attended_keys(model, idx):
    """Effective number of keys, exp(entropy of a query's attention), and its share of the keys at
    or before the query; both averaged over queries: {"keys", "share"}, each (n_layer, n_head)
    float64. idx (N, T). Uniform attention over n keys counts n."""
    attentions = [block.attention for block in model.blocks]
    n_head, T = model.config.n_head, idx.shape[1]
    keys = torch.zeros(len(attentions), n_head, dtype=torch.float64)
    share = torch.zeros_like(keys)
    available = torch.arange(1, T + 1, device=idx.device)
    for rows in idx.split(max(1, ATTENTION_ENTRIES // (n_head * T * T))):
        with inputs_of(attentions) as inputs:
            model(rows)
        for layer, attention in enumerate(attentions):
            entropy = torch.special.entr(attention.weights(inputs[attention])).sum(dim=-1)
            effective = entropy.exp()  # (B, H, T)
            keys[layer] += mean_over_queries(effective).cpu() / len(idx)
            share[layer] += mean_over_queries(effective / available).cpu() / len(idx)
    return {"keys": keys, "share": share}


def mean_over_queries(values):
    """(B, H, T) -> (H,) float64: mean over positions, sum over sequences."""
    return values.double().mean(dim=-1).sum(dim=0)


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
            counts[layer] += expert.flatten().bincount(minlength=n_expert).double().cpu()
    return counts / counts.sum(dim=1, keepdim=True)


def densities(model, idx):
    """Everything this file measures on a model, as numbers and lists: the four densities under
    "weight", "attention", "key_value", "expert", and what they were computed from. "balance" is
    exp(entropy of expert use) / n_expert."""
    config = model.config
    weights, attended = weight_sparsity(model), attended_keys(model, idx)
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


# Theory: a Pre-RMSNorm stack with random weights -------------------------------------------------
#
# All weights are independent with mean 0 and variance s2, so over their draw the features of the
# stream are exchangeable and every branch is uncorrelated with the stream it is added to:
# covariances simply add. With c[q, k] the covariance of the stream at positions q and k, RMSNorm
# hands on r = c / sqrt(c[q, q] c[k, k]), and a matrix of fan-in n makes n * s2 * r of it. A weight
# kept with probability p (else zero) turns s2 into p * s2.

GRID = torch.linspace(-9, 9, 20001, dtype=torch.float64)  # for integrals over a standard Gaussian
EQUAL = 1 - 1e-9  # correlations above: the same token


def gaussian_kernel(function, correlation, n_terms=40):
    """E[f(z) f(z')] for standard Gaussians z, z' of the given correlations (any shape), by
    Mehler's formula: sum_n a_n^2 correlation^n with a_n = E[f(z) He_n(z)] / sqrt(n!). Where the
    correlation is 1 it is E[f(z)^2], exactly."""
    z = GRID
    weight = torch.exp(-(z**2) / 2) / math.sqrt(2 * math.pi) * (z[1] - z[0])
    values = function(z)
    total, power = torch.zeros_like(correlation), torch.ones_like(correlation)
    previous, hermite = torch.zeros_like(z), torch.ones_like(z)
    for n in range(n_terms):  # hermite = He_n / sqrt(n!); power = correlation^n
        total += (weight * values * hermite).sum() ** 2 * power
        power *= correlation
        following = (z * hermite - math.sqrt(n) * previous) / math.sqrt(n + 1)
        previous, hermite = hermite, following
    return torch.where(correlation > EQUAL, (weight * values**2).sum(), total)


def attention_branch(n_embd, s2_value, s2_output, probability, correlation, spread=None):
    """Covariance (T, T) that random attention adds: n s2_value * n s2_output * P r P^T, where
    n = n_embd and P (T, T) is the mean attention.

    Scores at initialisation are near zero, so P is uniform over the keys in sight. For one query
    with m keys of mean correlation r this reads n^2 s2_value s2_output (r + (1 - r) / m): fewer
    keys, *more* variance from one block, as less is averaged away. Where the keys in use vary from
    query to query (softmax of random scores, topk), the mean P misses that
    `spread` = E[sum p^2] / sum P^2 > 1, (T,), which counts on the diagonal only, in what is not
    shared, 1 - r. Sharing keys and values among heads changes nothing: every head's values keep
    their variance, and the output matrix draws independent weights for each head, so no head's
    share depends on another's."""
    added = probability @ correlation @ probability.T
    if spread is not None:
        alone = probability.square().sum(dim=1)  # the diagonal is alone + (1 - alone) * shared
        shared = (added.diagonal() - alone) / (1 - alone).clamp_min(1e-12)
        not_shared = 1 - shared.clamp(0, 1)
        added = added + torch.diag((spread - 1) * alone * not_shared)
    return n_embd**2 * s2_value * s2_output * added


def mlp_branch(n_embd, hidden, s2_in, s2_down, correlation):
    """Covariance (T, T) that a random SwiGLU adds: hidden * s2_down * v r * E[silu(g) silu(g')],
    where gate and up are independent Gaussians of variance v = n_embd * s2_in and correlation r.
    For small v the variance is hidden * s2_down * v^2 / 4, so a density of p on every weight
    scales it by p^3."""
    v = n_embd * s2_in
    gates = gaussian_kernel(lambda z: F.silu(math.sqrt(v) * z), correlation)
    return hidden * s2_down * v * correlation * gates


def moe_routing(n_embd, n_expert, n_active, s2_router, correlation, normalize=False):
    """E[sum over experts of weight * weight'] (T, T), by which a mixture multiplies one expert's
    covariance.

    Experts are independent, so cross terms vanish and only a shared expert correlates two tokens.
    Router logits are Gaussian with variance v = n_embd * s2_router; an expert is active above the
    quantile n_active / n_expert, with weight exp(logit) / (n_expert exp(v / 2)): about
    n_active / n_expert^2 on the diagonal. Top k of *unnormalised* probabilities thus damps the
    branch by far more than its share of experts; normalised, by 1 / n_active only."""
    v, threshold = n_embd * s2_router, -math.inf
    if n_active < n_expert:
        normal = torch.distributions.Normal(0.0, 1.0)
        inactive = torch.tensor(1 - n_active / n_expert, dtype=torch.float64)
        threshold = normal.icdf(inactive).item()

    def weight(z):
        return (z > threshold) * torch.exp(math.sqrt(v) * z - v / 2) / n_expert

    kernel = n_expert * gaussian_kernel(weight, correlation)
    if normalize:  # divide by the square of the active weights' mean sum
        uncorrelated = torch.zeros(1, dtype=torch.float64)
        kernel = kernel / (n_expert**2 * gaussian_kernel(weight, uncorrelated))
    return kernel


def attention_probability(config, T, s2):
    """(T, T) mean attention at initialisation, uniform over the keys in sight, and its spread (T,)
    (see attention_branch).

    Queries and keys have features of variance n_embd * s2, so a score, their product over the root
    of the head size, has variance (n_embd * s2)^2, and a softmax of many such Gaussians of
    variance v has E[p^2] / E[p]^2 = exp(v). topk instead leaves config.topk of m keys, each used
    with probability topk / m."""
    mask = visible(config, T).double()
    in_sight = mask.sum(dim=1)
    probability = mask / in_sight[:, None]
    if config.attention == "topk":
        return probability, in_sight / in_sight.clamp(max=config.topk)
    spread = math.exp((config.n_embd * s2) ** 2)
    return probability, torch.full((T,), spread, dtype=torch.float64)


def feed_forward_branch(config, s2_in, s2_out, correlation):
    """Covariance (T, T) that a block's random SwiGLU or experts add."""
    C = config.n_embd
    if not config.n_expert:
        return mlp_branch(C, config.mlp_hidden, s2_in, s2_out, correlation)
    n_expert, n_active = config.n_expert, config.n_expert_active
    normalize = config.normalize_expert_weights
    routing = moe_routing(C, n_expert, n_active, s2_in, correlation, normalize)
    added = routing * mlp_branch(C, config.expert_hidden, s2_in, s2_out, correlation)
    if config.n_shared_expert:
        hidden = config.n_shared_expert * config.expert_hidden
        added = added + mlp_branch(C, hidden, s2_in, s2_out, correlation)
    return added


def predict_variance(config, idx, keep=1.0, std=INIT_STD):
    """Variance of the stream at initialisation, [h_0, ..., h_L], averaged over positions of the
    one sequence idx (T,); the blocks' weights are kept with probability `keep`. Exact as widths
    grow; only equal tokens are correlated at h_0.

    After l blocks: c_l = c_0 + sum of attention_branch and feed_forward_branch, each from the
    correlations before it. Layer-norm scaling divides a block's inputs, hence its s2, by its
    number; scaled_residual_init divides s2_output."""
    s2 = keep * std**2
    s2_out = s2 / (2 * config.n_layer) if config.scaled_residual_init else s2
    probability, spread = attention_probability(config, len(idx), s2)
    covariance = std**2 * (idx[:, None] == idx[None, :]).double()  # embeddings are not thinned
    variance = [covariance.diagonal().mean().item()]
    for layer in range(1, config.n_layer + 1):
        s2_in = s2 / layer if config.layer_norm_scaling else s2
        correlation = normalised(covariance)
        covariance = covariance + attention_branch(
            config.n_embd, s2_in, s2_out, probability, correlation, spread
        )
        correlation = normalised(covariance)
        covariance = covariance + feed_forward_branch(config, s2_in, s2_out, correlation)
        variance.append(covariance.diagonal().mean().item())
    return variance


def normalised(covariance):
    """Covariance (T, T) -> correlation (T, T)."""
    scale = covariance.diagonal().rsqrt()
    return covariance * scale[:, None] * scale[None, :]


# Monte Carlo: the same of the real model ---------------------------------------------------------

TOP_2_OF_16 = {"n_expert": 16, "n_expert_active": 2}
THEORY_CASES = {  # name: model options, and the share of weights that is kept
    "dense": ({}, 1.0),
    "half the weights": ({}, 0.5),
    "multi-query": ({"n_kv_head": 1}, 1.0),
    "window 8": ({"attention": "window", "window": 8}, 1.0),
    "strided 8": ({"attention": "strided", "stride": 8}, 1.0),
    "top-8 keys": ({"attention": "topk", "topk": 8}, 1.0),
    "2 of 16 experts": (TOP_2_OF_16, 1.0),
    "2 of 16, normalised": ({**TOP_2_OF_16, "normalize_expert_weights": True}, 1.0),
    "2 of 16 and 1 shared": ({**TOP_2_OF_16, "n_shared_expert": 1}, 1.0),
    "layer-norm scaling": ({"layer_norm_scaling": True}, 1.0),
    "scaled init": ({"scaled_residual_init": True}, 1.0),
}
LARGE_VOCABULARY = 8192  # so that few tokens of a random sequence repeat


def theory_model(n_layer=32, n_embd=256, T=64, **options):
    """Config and one random sequence (T,) for theory and simulation."""
    config = GPTConfig(
        n_layer=n_layer,
        n_embd=n_embd,
        n_head=4,
        block_size=T,
        vocab_size=LARGE_VOCABULARY,
        **options,
    )
    generator = torch.Generator().manual_seed(0)
    return config, torch.randint(LARGE_VOCABULARY, (T,), generator=generator)


@torch.no_grad()
def simulate_variance(config, idx, keep=1.0, n_seeds=32):
    """(n_seeds, L + 1) variances h_0 .. h_L of the real model.py at initialisation, its blocks'
    weights kept with probability `keep`."""
    curves = []
    for seed in range(n_seeds):
        torch.manual_seed(seed)
        model = GPT(config).eval()
        for parameter in model.blocks.parameters():
            if keep < 1 and parameter.dim() >= 2:
                parameter.mul_(torch.rand_like(parameter) < keep)
        states = [model.embed(idx[None])]
        for block in model.blocks:
            states.append(block(states[-1]))
        curves.append(torch.stack([h.var(dim=-1).mean() for h in states]))
    return torch.stack(curves).double()


def theory_of_cases(folder, n_seeds=32):
    """Predicted and simulated variance of every case: theory.png and theory.json into folder, and
    a table on standard output."""
    cases = {}
    for name, (options, keep) in tqdm(THEORY_CASES.items(), desc="theory", disable=None):
        config, idx = theory_model(**options)
        simulated = simulate_variance(config, idx, keep, n_seeds)
        cases[name] = {
            "predicted": predict_variance(config, idx, keep),
            "simulated": simulated.mean(dim=0).tolist(),
            "standard_error": (simulated.std(dim=0) / math.sqrt(n_seeds)).tolist(),
        }
    write_theory(folder, "theory", theory_figure(cases), n_seeds, cases=cases)
    print(f"{'case':24}{'var(h_1)':>12}{'var(h_32)':>12}{'predicted':>12}{'largest gap':>13}")
    for name, case in cases.items():
        predicted, simulated = case["predicted"], case["simulated"]
        gap = max(abs(p / s - 1) for p, s in zip(predicted, simulated, strict=True))
        ends = f"{simulated[1]:12.2e}{simulated[-1]:12.2e}{predicted[-1]:12.2e}"
        print(f"{name:24}{ends}{gap:12.1%}")


def write_theory(folder, name, figure, n_seeds, **numbers):
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_figure(figure, folder / f"{name}.png")
    header = {"seeds": n_seeds, "torch": torch.__version__, "device": "cpu"}
    write_json(folder / f"{name}.json", {**header, **numbers})


MASK_SIZES = {  # mask: its option, and values from few keys in sight to all of 64
    "window": ("window", (2, 4, 8, 16, 32, 64)),
    "strided": ("stride", (2, 8, 16, 32, 64)),
    "topk": ("topk", (2, 4, 8, 16, 32, 64)),
}


def growth_under_mask(n_seeds, n_layer, **options):
    """{"density", "predicted": [l], "growth": [l][seed]}: of one mask its density, and
    var(h_l) / var(h_0) at initialisation in closed form and simulated."""
    config, idx = theory_model(n_layer=n_layer, **options)
    predicted = np.array(predict_variance(config, idx))
    simulated = simulate_variance(config, idx, n_seeds=n_seeds)
    return {
        "density": mask_density(config),
        "predicted": (predicted / predicted[0]).tolist(),
        "growth": (simulated / simulated[:, :1]).T.tolist(),
    }


def theory_of_masks(folder, n_seeds=16, depths=(1, 4, 16)):
    """Claim C10, that a sparser mask slows the growth of variance at initialisation:
    theory_masks.png and .json into folder hold var(h_l) / var(h_0) against mask density, in closed
    form and simulated, and verdicts by the rule of results/claims.py."""
    patterns = {}
    for name, (option, values) in tqdm(MASK_SIZES.items(), desc="masks", disable=None):
        masks = [{"attention": name, option: value} for value in values]
        rows = [growth_under_mask(n_seeds, max(depths), **mask) for mask in masks]
        rows.sort(key=lambda row: row["density"])
        patterns[name] = {"points": rows, "verdicts": {}}
        for layer in depths:
            verdict, effect, half = judge([row["growth"][layer] for row in rows], "rises", log=True)
            verdicts = {"verdict": verdict, "effect": effect, "half": half}
            patterns[name]["verdicts"][layer] = verdicts
            print(
                f"C10, {name}, {layer:2} blocks: log growth {effect:+.3f} ± {half:.3f} "
                f"from a mask to the next denser one: {verdict}"
            )
    figure = masks_figure({name: of["points"] for name, of in patterns.items()}, depths)
    write_theory(folder, "theory_masks", figure, n_seeds, patterns=patterns)


# Command line ------------------------------------------------------------------------------------


def print_table(result, name):
    """What densities() returned, for reading: the four, and attention layer by layer."""
    below = f"{result['weights_below_threshold']:.1%} below {SMALL_WEIGHT}"
    print(name)
    print(f"  weights  density {result['weight']:.3f} (Gaussian 0.637), {below}")
    print(f"  key/value heads in use  {result['key_value']:.3f}")
    print(f"  experts in use  {result['expert']:.3f}")
    print(f"  keys in use  {result['attention']:.3f} of those in sight")
    print(f"\n  layer  {'keys, each head':38}  share, each head")
    rows = zip(result["attended_keys"], result["attended_share"], strict=True)
    for layer, (keys, shares) in enumerate(rows, start=1):
        keys_text = " ".join(f"{k:6.1f}" for k in keys)
        share_text = " ".join(f"{s:.2f}" for s in shares)
        line = f"  {layer:5}  {keys_text:38}  {share_text}"
        if "expert_balance" in result:
            line += f"  experts' balance {result['expert_balance'][layer - 1]:.2f}"
        print(line)


def print_tables(folders):
    for folder in folders:
        model, config = load_run(folder)
        idx, _ = held_out_sequences(config, model.config, TABLE_SEQUENCES)
        print_table(densities(model, idx), folder)


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="*", help="run folders, such as out/demo/n_layer=8")
    theory_help = "write theory and theory_masks, .png and .json, into results/"
    parser.add_argument("--theory", action="store_true", help=theory_help)
    arguments = parser.parse_args(argv)
    if arguments.theory == bool(arguments.runs):
        parser.error("give run folders, or --theory alone")
    if arguments.theory:
        or_one_sentence(theory_of_cases, "results")
        or_one_sentence(theory_of_masks, "results")
    else:
        or_one_sentence(print_tables, arguments.runs)


if __name__ == "__main__":
    main()
