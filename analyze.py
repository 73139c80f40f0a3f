"""How much each layer does: scores, figures, claims and a report from the runs of a sweep.

    python analyze.py out/demo                 analysis.json per run, figures and report.md for the sweep
    python analyze.py out/*                    every sweep, and the figure and claims of all; or results/*.json
    python analyze.py out/demo --task my.jsonl also the accuracy on your own {"context", "choices", "answer"} items

Every score is a function of a model and token ids that a student can call:

    model, config = load_run("out/demo/n_layer=8")
    idx, targets = held_out_sequences(config, model.config, n_sequences=16)
    ratios = prune_ratios(model, idx, targets)

Notation: h_l is the residual stream after block l (h_0 the embeddings), delta_l = h_{l+1} - h_l what block l adds,
L(M) the mean cross-entropy. An intervention is a list of blocks to run from the cached state at the first changed
one; the model itself is never touched.
"""
import argparse
import json
import math
import re
import time
from copy import copy
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from PIL import Image  # which matplotlib stands on
from tqdm import tqdm

from configs.claims import CLAIMS, LOG_METRICS, METRICS, interval, judge_sweep, moved_density, rung
from configs.read import TrainConfig
from data import read
from data.prepare import BadInput, or_one_sentence, tokenizer
from data.read import held_out_sequences, load_items, load_meta
from model import cross_entropy
from sparsity import densities, predict_variance
from train import choose_hardware, forward_with_variance, load_run, read_log, replacing, write_json

NUMBERS_AT_ONCE = 2**30   # cached states and logits held together, 4 bytes each
TOKENS_AT_ONCE = 2**15
USEFUL = 1.10             # a block is useful when its linear stand-in raises the loss by more than 10 %
THRESHOLDS = [round(1 + growth, 5) for growth in np.geomspace(0.001, 1, 61).tolist()]


# States and interventions ---------------------------------------------------------------------------------------

def chunks(model, *tensors):
    """Split (N, T) tensors along N, evenly, so that all cached states of a piece fit, whatever N, T and n_layer."""
    per_token = (len(model.blocks) + 1) * model.config.n_embd + 4 * model.config.vocab_size
    N, T = tensors[0].shape
    n_rows = max(1, min(TOKENS_AT_ONCE, NUMBERS_AT_ONCE // per_token) // T)
    return zip(*(tensor.tensor_split(math.ceil(N / n_rows)) for tensor in tensors))


def with_compiled_blocks(model):
    """For speed alone: the same weights behind a GPT whose blocks are compiled. The given one stays as it is, as
    compiled code runs no hooks. Experts stay uncompiled: in fp32 their number of rows decides what runs."""
    if not model.head.weight.is_cuda or not choose_hardware(TrainConfig())[2] or model.config.n_expert:
        return model
    torch._dynamo.config.recompile_limit = 256  # runs of a sweep share the block's code
    fast = copy(model)
    fast._modules = {**model._modules, "blocks": torch.nn.ModuleList(torch.compile(block, dynamic=False) for block in model.blocks)}
    fast.read_out_with_loss = torch.compile(model.read_out_with_loss, dynamic=False)
    return fast


def run(blocks, h):
    for block in blocks:
        h = block(h)
    return h


def hidden_states(model, idx, blocks=None):
    """[h_0, ..., h_L], each (B, T, C), through the model's blocks or the given ones."""
    states = [model.embed(idx)]
    for block in model.blocks if blocks is None else blocks:
        states.append(block(states[-1]))
    return states


@torch.no_grad()
def intervention_losses(model, idx, targets, interventions, blocks=None):
    """Mean cross-entropy in nats under each intervention (l, rest): h_l of `blocks` (default: the model's), then
    the blocks in `rest`, then the read-out. idx, targets (N, T) -> (len(interventions),) float64 on the CPU."""
    total = torch.zeros(len(interventions), dtype=torch.float64, device=idx.device)
    for rows, wanted in chunks(model, idx, targets):
        states = hidden_states(model, rows, blocks)
        for i, (start, rest) in enumerate(interventions):
            total[i] += model.read_out_with_loss(run(rest, states[start]), wanted)[1].double() * wanted.numel()
    return (total / targets.numel()).cpu()


# Scores -----------------------------------------------------------------------------------------------------------

@torch.no_grad()
def layer_variance(model, idx):
    """{"residual": h_0 .. h_L, "attention": each branch's output, "mlp": the same}: variance over features, mean over
    tokens. Both branches before the residual addition, also for experts (the published code takes those after)."""
    totals = {}
    for (rows,) in chunks(model, idx):
        for kind, values in forward_with_variance(model, rows)[1].items():
            totals[kind] = totals.get(kind, 0) + values.double().cpu() * len(rows) / len(idx)
    return totals


def jacobian_deviation(model, idx):
    """{"deviation", "off_diagonal", "diagonal_mean", "spectral", "per_token"}: one number per block each.

    J[j, i] = mean over tokens t of the derivative of sum_s h_{l+1}[s, i] with respect to h_l[t, j]; deviation is
    ||J - I||_F / d, as published, off_diagonal ||J - diag J||_F / d, spectral ||J||_2. Averaging before the norm
    lets tokens' Jacobians cancel: per_token is the mean over t of ||J_t - I||_F / d. In the weights' dtype.
    A group of features is one batch of vector-Jacobian products through a single block."""
    (N, T), L, C = idx.shape, len(model.blocks), model.config.n_embd
    device, dtype = idx.device, model.head.weight.dtype
    identity, groups = torch.eye(C, device=device, dtype=dtype), torch.arange(C, device=device).split(max(1, TOKENS_AT_ONCE // T))
    jacobian = torch.zeros(L, C, C, dtype=torch.float64, device=device)
    per_token = torch.zeros(L, dtype=torch.float64, device=device)
    for row in idx:
        with torch.no_grad():
            states = hidden_states(model, row[None])
        for layer, block in enumerate(model.blocks):
            squares = torch.zeros(T, dtype=torch.float64, device=device)
            for features in groups:
                x = states[layer].expand(len(features), T, C).clone().requires_grad_()
                picked = block(x).sum(dim=1).gather(1, features[:, None]).sum()
                gradient, = torch.autograd.grad(picked, x)                        # (features, T, C)
                jacobian[layer][:, features] += gradient.double().mean(dim=1).T / N
                squares += (gradient - identity[features, None]).double().square().sum(dim=(0, 2))
            per_token[layer] += squares.sqrt().mean() / C / N
    diagonal = jacobian.diagonal(dim1=1, dim2=2)
    return {"deviation": ((jacobian - identity).flatten(1).norm(dim=1) / C).cpu(),
            "off_diagonal": ((jacobian - torch.diag_embed(diagonal)).flatten(1).norm(dim=1) / C).cpu(),
            "diagonal_mean": diagonal.mean(dim=1).cpu(), "spectral": torch.linalg.matrix_norm(jacobian, 2).cpu(), "per_token": per_token.cpu()}


@torch.no_grad()
def causal_matrix(model, idx):
    """C[s, l], l > s: how much block l's output changes when block s is skipped, mean_t ||delta'_l - delta_l|| /
    mean_t ||delta_l||; zero elsewhere. (n_layer, n_layer). The scalar is pair_mean, zeros left out."""
    L = len(model.blocks)
    changed, size = (torch.zeros(shape, dtype=torch.float64, device=idx.device) for shape in ((L, L), (L,)))
    for (rows,) in chunks(model, idx):
        states = hidden_states(model, rows)
        deltas = [after - before for before, after in zip(states, states[1:])]
        size += torch.stack([delta.norm(dim=-1).double().sum() for delta in deltas])
        for s in range(L):
            h = states[s]
            for l in range(s + 1, L):
                following = model.blocks[l](h)
                changed[s, l] += (following - h - deltas[l]).norm(dim=-1).double().sum()
                h = following
    return (changed / size.clamp_min(1e-300)).cpu()


def permutation_matrix(model, idx, targets):
    """P[a, b] = |L(blocks a and b swapped) - L(M)| / L(M), symmetric, (n_layer, n_layer). Scalar: pair_mean."""
    blocks, L = list(model.blocks), len(model.blocks)
    pairs = [(a, b) for a in range(L) for b in range(a + 1, L)]
    swaps = [(a, [blocks[b], *blocks[a + 1:b], blocks[a], *blocks[b + 1:]]) for a, b in pairs]
    base, *losses = intervention_losses(model, idx, targets, [(L, []), *swaps])
    matrix = torch.zeros(L, L, dtype=torch.float64)
    for (a, b), loss in zip(pairs, losses):
        matrix[a, b] = matrix[b, a] = (loss - base).abs() / base
    return matrix


def pair_mean(matrix):
    """Mean over all pairs above the diagonal; None for a single layer, which has none."""
    rows, columns = np.triu_indices(len(matrix), k=1)
    return float(np.asarray(matrix)[rows, columns].mean()) if len(rows) else None


def prune_ratios(model, idx, targets):
    """L(M without block l) / L(M) for each l, (n_layer,)."""
    blocks, L = list(model.blocks), len(model.blocks)
    base, *losses = intervention_losses(model, idx, targets, [(L, []), *((l, blocks[l + 1:]) for l in range(L))])
    return torch.stack(losses) / base


def cumulative_pruning(model, idx, targets, order, ratios=None):
    """Losses with 0, 1, ..., n_layer blocks removed, (n_layer + 1,). order: "last" (deepest first), "least" (by
    prune_ratios, if not given computed, least harmful first) or "greedy" (at each step the block whose removal now hurts least)."""
    blocks, L = list(model.blocks), len(model.blocks)
    if order == "greedy":
        kept, losses = blocks, intervention_losses(model, idx, targets, [(L, [])]).tolist()
        while kept:
            tried = intervention_losses(model, idx, targets, [(i, kept[i + 1:]) for i in range(len(kept))], blocks=kept)
            losses.append(tried.min().item())
            kept = [block for i, block in enumerate(kept) if i != tried.argmin()]
        return torch.tensor(losses, dtype=torch.float64)
    ratios = prune_ratios(model, idx, targets) if order == "least" and ratios is None else ratios
    removed = list(range(L))[::-1] if order == "last" else ratios.argsort().tolist()
    firsts = [min(removed[:n], default=L) for n in range(L + 1)]
    return intervention_losses(model, idx, targets, [(first, [blocks[l] for l in range(first, L) if l not in removed[:n]])
                                                     for n, first in enumerate(firsts)])


@torch.no_grad()
def fit_linear_maps(model, idx):
    """[(W, b)] with h_{l+1} ~ h_l W^T + b, least squares over all tokens of idx; W (C, C), b (C,), one per block.

    The normal equations would square the condition number, so the R of a QR decomposition of [h_l, 1, h_{l+1}] is
    updated piece by piece in float64 (it is all that the fit needs to remember) and solved by singular values."""
    L, C = len(model.blocks), model.config.n_embd
    triangles = [None] * L
    for (rows,) in chunks(model, idx):
        states = [h.flatten(0, 1).double() for h in hidden_states(model, rows)]
        for l in range(L):
            piece = torch.cat((states[l], torch.ones_like(states[l][:, :1]), states[l + 1]), dim=1)
            piece = piece if triangles[l] is None else torch.cat((triangles[l], piece))
            triangles[l] = torch.linalg.qr(piece, mode="r").R
    maps = []
    for R in triangles:
        R = R.cpu()
        solution = torch.linalg.lstsq(R[:, :C + 1], R[:, C + 1:], driver="gelsd").solution.to(idx.device)  # (C + 1, C)
        maps.append((solution[:C].T, solution[C]))
    return maps


def linear_ratios(model, maps, idx, targets, transposed=False):
    """L(block l replaced by its linear map) / L(M) for each l, (n_layer,); maps from fit_linear_maps on other
    sequences (the honest way) or on idx (as published). transposed=True installs W where W^T belongs, which is what
    the published script does (it puts lstsq's solution into nn.Linear.weight as it comes)."""
    blocks, L = list(model.blocks), len(model.blocks)

    def linear(W, b):
        matrix = W.T if transposed else W
        return lambda h: F.linear(h, matrix.to(h.dtype), b.to(h.dtype))
    interventions = [(l, [linear(*maps[l]), *blocks[l + 1:]]) for l in range(L)]
    base, *losses = intervention_losses(model, idx, targets, [(L, []), *interventions])
    return torch.stack(losses) / base


def usefulness(ratios, threshold=USEFUL):
    """The share of blocks whose linear stand-in raises the loss by more than the threshold."""
    return (torch.as_tensor(ratios) > threshold).double().mean().item()


def effective_depth(ratios):
    """N_eff = (sum u)^2 / sum u^2 with u = max(0, ratio - 1): how many blocks share the work, with no threshold."""
    u = (torch.as_tensor(ratios, dtype=torch.float64) - 1).clamp_min(0)
    return (u.sum() ** 2 / u.square().sum().clamp_min(1e-300)).item()


@torch.no_grad()
def angular_distance(model, idx):
    """D[a, b] = mean over tokens of arccos(cos(h_a, h_b)) / pi, (L + 1, L + 1); D[l, l + n] prunes n blocks at l
    (arXiv 2403.17887, which takes the last token only). And block influence, 1 - mean cos(h_l, h_{l+1}), (L,)
    (arXiv 2403.03853)."""
    L = len(model.blocks)
    distance, cosine = (torch.zeros(L + 1, L + 1, dtype=torch.float64, device=idx.device) for _ in range(2))
    for (rows,) in chunks(model, idx):
        h = torch.stack([F.normalize(h.flatten(0, 1).double(), dim=-1) for h in hidden_states(model, rows)], dim=1)
        pairs = h @ h.mT                                                     # (tokens, L + 1, L + 1)
        cosine += pairs.sum(dim=0) / idx.numel()
        distance += pairs.clamp(-1, 1).arccos().sum(dim=0) / math.pi / idx.numel()
    distance.fill_diagonal_(0)  # arccos of one rounding error below 1 is not quite zero
    return distance.cpu(), 1 - cosine.diagonal(offset=1).cpu()


def block_influence(model, idx):
    """1 - mean cosine between a block's input and output, (n_layer,)."""
    return angular_distance(model, idx)[1]


@torch.no_grad()
def logit_lens(model, idx):
    """KL(p_l || p_L) in nats between the read-out of h_l and the final one, mean over tokens, (L + 1,); last is 0."""
    total = torch.zeros(len(model.blocks) + 1, dtype=torch.float64, device=idx.device)
    for (rows,) in chunks(model, idx):
        states = hidden_states(model, rows)
        final = model.read_out(states[-1]).log_softmax(dim=-1)
        for l, h in enumerate(states):
            early = model.read_out(h).log_softmax(dim=-1)
            total[l] += (early.exp() * (early - final)).sum(dim=-1).double().sum() / idx.numel()
    return total.cpu()


@torch.no_grad()
def choice_accuracy(model, items, encode):
    """Share of items whose true continuation has the highest mean log probability per token, with its standard
    error: {"accuracy", "standard_error", "items"}. Contexts lose their beginning where they exceed block_size."""
    T, rows = model.config.block_size, []
    for item in items:
        context = encode(item["context"])
        for choice in item["choices"]:
            choice = encode(choice)[:T]
            rows.append(((context + choice)[-(T + 1):], len(choice)))
    width = max(len(ids) for ids, _ in rows) - 1
    idx, targets = (torch.zeros(len(rows), width, dtype=torch.long) for _ in range(2))
    scored = torch.zeros(len(rows), width)
    for i, (ids, n) in enumerate(rows):
        idx[i, :len(ids) - 1], targets[i, :len(ids) - 1] = torch.tensor(ids[:-1]), torch.tensor(ids[1:])
        scored[i, max(0, len(ids) - 1 - n):len(ids) - 1] = 1
    there = (t.to(model.head.weight.device) for t in (idx, targets, scored))
    scores = torch.cat([(-cross_entropy(model(ids)[0], wanted) * mask).sum(dim=1) / mask.sum(dim=1) for ids, wanted, mask in chunks(model, *there)])
    of_items = scores.cpu().split([len(item["choices"]) for item in items])
    accuracy = sum(of_one.argmax().item() == item["answer"] for of_one, item in zip(of_items, items)) / len(items)
    return {"accuracy": accuracy, "standard_error": math.sqrt(accuracy * (1 - accuracy) / len(items)), "items": len(items)}


# One run --------------------------------------------------------------------------------------------------------

def score_run(model, config, n_sequences, device):
    """Every score of one model as plain numbers and lists, on held-out sequences; the fit of the linear maps on others.
    Leaves torch's matmul precision at "high"."""
    idx, targets = held_out_sequences(config, model.config, n_sequences, device=device)
    fit_idx, fit_targets = held_out_sequences(config, model.config, n_sequences, device=device, parity=1)
    torch.set_float32_matmul_precision("highest")  # as J - I is a small difference; for the rest a GPU's tf32 products will do
    jacobian = jacobian_deviation(model, idx[:max(1, n_sequences // 12)])
    torch.set_float32_matmul_precision("high")
    fast = with_compiled_blocks(model)
    maps = fit_linear_maps(fast, fit_idx)
    ratios = {"held_out": linear_ratios(fast, maps, idx, targets), "same": linear_ratios(fast, maps, fit_idx, fit_targets),
              "transposed": linear_ratios(fast, maps, idx, targets, transposed=True)}
    causal, permutation = causal_matrix(fast, idx), permutation_matrix(fast, idx, targets)
    (angular, influence), pruned = angular_distance(fast, idx), prune_ratios(fast, idx, targets)
    n_eff = effective_depth(ratios["held_out"])
    return {
        "sequences": len(idx), "length": idx.shape[1],
        "variance": {kind: values.tolist() for kind, values in layer_variance(model, idx).items()},
        "prune_ratios": pruned.tolist(),
        "cumulative": {order: cumulative_pruning(fast, idx, targets, order, pruned).tolist() for order in ("last", "least", "greedy")},
        "causal_matrix": causal.tolist(), "causal": pair_mean(causal),
        "permutation_matrix": permutation.tolist(), "permutation": pair_mean(permutation),
        "linear_ratios": {fit: r.tolist() for fit, r in ratios.items()}, "usefulness": {fit: usefulness(r) for fit, r in ratios.items()},
        "share_above": {fit: [usefulness(r, t) for t in THRESHOLDS] for fit, r in ratios.items()}, "thresholds": THRESHOLDS,
        "n_eff": n_eff, "n_eff_share": n_eff / len(model.blocks),
        "jacobian": {key: values.tolist() for key, values in jacobian.items()},
        "block_influence": influence.tolist(), "angular_distance": angular.tolist(),
        "logit_lens": logit_lens(fast, idx).tolist(),
        "densities": densities(model, idx[:16]),
        # what log.jsonl should show at step 0; None where that ran longer sequences than these
        "predicted_variance": predict_variance(model.config, idx[0].cpu()) if idx.shape[1] == model.config.block_size else None,
    }


def analyse_run(folder, n_sequences=100, task=None):
    """Score a finished run and write its analysis.json. A diverged one has nothing to score; a restored one, without
    its weights, has been scored before."""
    if json.loads((folder / "summary.json").read_text())["diverged"] or not (folder / "ckpt.pt").exists():
        return
    started, device = time.perf_counter(), choose_hardware(TrainConfig())[0]
    model, config = load_run(folder, device)
    analysis = score_run(model, config, n_sequences, device)
    encode = tokenizer(load_meta(config.dataset)["vocab_size"]).encode_ordinary
    for name, path, most in (("choices", read.DATA / config.dataset / "choices.jsonl", 20 * n_sequences), ("task", task, None)):
        if path and (items := load_items(path)[:most]):
            analysis[name] = {"file": path.name, **choice_accuracy(model, items, encode)}
    write_json(folder / "analysis.json", {**analysis, "seconds": time.perf_counter() - started,
                                          "torch": torch.__version__, "device": str(device)})


# Runs of a sweep -> points with intervals -----------------------------------------------------------------------

@dataclass
class Run:
    name: str           # its folder's, such as n_layer=8,seed=0
    seed: int
    config: dict
    summary: dict
    log: list           # the lines of log.jsonl that hold a validation
    analysis: dict      # None where the run diverged or was not scored

    @property
    def point(self):
        return re.sub(r",?seed=\d+", "", self.name).lstrip(",") or "run"


def read_runs(path):
    """All finished runs of a sweep's folder, or of the JSON file that --publish made of one; [Run], in natural order
    of their points (4 before 16)."""
    if path.suffix == ".json":
        try:
            return [Run(**run) for run in json.loads(path.read_text())]
        except (TypeError, json.JSONDecodeError):
            raise BadInput(f"{path} is no sweep that --publish wrote: give such a file, or a folder of runs") from None
    runs = []
    for folder in (file.parent for file in path.glob("*/summary.json")):
        config, summary, analysis = (json.loads(file.read_text()) if file.exists() else None for file in
                                     (folder / f"{name}.json" for name in ("config", "summary", "analysis")))
        runs.append(Run(folder.name, config["seed"], config, summary, [line for line in read_log(folder) if "val_loss" in line], analysis))
    return sorted(runs, key=lambda run: [(float(part), "") if re.fullmatch(r"\d+\.?\d*", part) else (math.inf, part)
                                         for part in re.split(r"(\d+\.?\d*)", run.point)] + [run.seed])


def publish_runs(runs, path):
    """One JSON file of a sweep's runs, a line each; six digits of each measured number, and of the log no branch's curves."""
    measured = json.loads(json.dumps([asdict(run) for run in runs]), parse_float=lambda number: float(f"{float(number):.6g}"))
    for numbers, run in zip(measured, runs):
        numbers.update(config=run.config, log=[{k: v for k, v in line.items() if not k.endswith("_variance")} for line in numbers["log"]])
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text("[\n" + ",\n".join(json.dumps(numbers, allow_nan=False) for numbers in measured) + "\n]\n")


def restore_runs(path, folder):
    """Run folders, without weights, from a published file: train.py takes their runs for finished and goes on with
    others. A run that was never scored cannot be without its weights, so it is left to be trained again."""
    for run in read_runs(path):
        if run.analysis is None and not run.summary["diverged"]:
            continue
        target = folder / path.stem / run.name
        if target.exists():
            raise BadInput(f"{target} exists already: delete it, or restore into another folder")
        target.mkdir(parents=True)
        (target / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in run.log))
        for name in ("config", "analysis", "summary"):  # the last one makes it a finished run
            write_json(target / f"{name}.json", getattr(run, name))


# Figures ------------------------------------------------------------------------------------------------------------

MARKERS = "osD^vP*X<>hd"
SHARES = ("choice accuracy", "usefulness", "N_eff / L")  # of 1: an interval may leave what is possible, no axis need


def growth(ratios):
    """Loss ratios as relative growth of the loss, on a logarithmic axis: all below one in ten thousand looks the same."""
    return np.maximum(np.array(ratios) - 1, 1e-4)


LINES = {  # figure: [(title, x label, y label, first x, logarithmic, curve of a run)]; a curve may bring its own x
    "variance": [
        ("during training", "step", "variance of h_L", 0, True,
         lambda run: ([line["step"] for line in run.log], [line["variance"][-1] for line in run.log])),
        ("after training", "block", "variance of h_l", 0, True, lambda run: run.analysis["variance"]["residual"]),
        ("attention branch", "block", "variance", 1, True, lambda run: run.analysis["variance"]["attention"]),
        ("feed-forward branch", "block", "variance", 1, True, lambda run: run.analysis["variance"]["mlp"])],
    "pruning": [
        ("one block removed", "block", "relative growth of the loss", 1, True, lambda run: growth(run.analysis["prune_ratios"])),
        *((title, "blocks removed", "loss", 0, False, lambda run, order=order: run.analysis["cumulative"][order]) for title, order in (
            ("last first", "last"), ("least harmful first", "least"), ("greedy", "greedy")))],
    "linear": [
        *((title, "block", "relative growth of the loss", 1, True, lambda run, fit=fit: growth(run.analysis["linear_ratios"][fit])) for title, fit in (
            ("one block made linear", "held_out"), ("fitted on the same sequences", "same"), ("the map transposed, as published", "transposed"))),
        ("share of blocks whose growth is above", "threshold (the paper's: 0.1)", "share of blocks", 0, False,
         lambda run: (np.array(THRESHOLDS) - 1, [usefulness(run.analysis["linear_ratios"]["held_out"], t) for t in THRESHOLDS]))],
    "jacobian": [(title, "block", ylabel, 1, True, lambda run, key=key: run.analysis["jacobian"][key]) for title, ylabel, key in (
        ("averaged over tokens, then norm", "||J - I|| / d", "deviation"), ("norm, then averaged", "||J - I|| / d", "per_token"),
        ("off the diagonal", "||J - diag J|| / d", "off_diagonal"), ("spectral norm", "||J||", "spectral"))],
    "theory": [
        ("before training", "block", "variance of h_l / predicted", 0, True,
         lambda run: np.divide(run.log[0]["variance"], run.analysis["predicted_variance"])),
        ("after training", "block", "variance of h_l / predicted", 0, True,
         lambda run: np.divide(run.analysis["variance"]["residual"], run.analysis["predicted_variance"]))],
    "similarity": [
        ("block influence", "block", "1 - cos(input, output)", 1, True, lambda run: run.analysis["block_influence"]),
        ("early read-out", "block", "KL to the final one (nats)", 0, True, lambda run: run.analysis["logit_lens"][:-1])],
}


def point_styles(points):
    """One colour (dark to light, so that greyscale keeps the order) and one marker for each point; a depth has its own in all figures."""
    ranks = [round(2 * math.log2(int(point.removeprefix("n_layer=")))) - 2 for point in points if re.fullmatch(r"n_layer=\d+", point)]
    ranks, top = (ranks, 8) if len(set(ranks)) == len(points) else (range(len(points)), max(1, len(points) - 1))  # or depths too close to tell
    return {point: dict(color=plt.get_cmap("viridis")(0.85 * rank / top), marker=MARKERS[rank % len(MARKERS)]) for point, rank in zip(points, ranks)}


def draw_lines(axis, points, title, xlabel, ylabel, first, log, curve):
    """Each point's curve, mean over seeds with its 95 % interval as a band; of the logarithms on a logarithmic axis."""
    into, back = (np.log, np.exp) if log else (np.array, np.array)
    for point, style in point_styles(points).items():
        curves = [curve(run) for run in points[point]]
        curves = [c if isinstance(c, tuple) else (np.arange(len(c)) + first, c) for c in curves]
        x, table = curves[0][0], into([values for _, values in curves])
        mean, half = np.array([interval(column) for column in table.T]).T
        axis.plot(x, back(mean), label=point, markevery=max(1, len(mean) // 8), markersize=4, **style)
        if len(curves) > 1:
            axis.fill_between(x, back(mean - half), back(mean + half), color=style["color"], alpha=0.25, linewidth=0)
    axis.set(title=title, xlabel=xlabel, ylabel=ylabel)
    if log:
        logarithmic(axis, "y")
    if xlabel.startswith("threshold"):
        axis.set(xscale="log", ylim=(-0.05, 1.05))
    else:
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))


def line_figure(points, panels):
    figure, axes = plt.subplots(len(panels) // 2, 2, figsize=(9.5, 1.7 * len(panels)), layout="constrained")
    for axis, panel in zip(axes.flat, panels):
        draw_lines(axis, points, *panel)
    figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside right center", fontsize=9)
    return figure


def logarithmic(axis, which):
    """A logarithmic scale whose few labels are plain numbers, also over less than a decade."""
    axis.set(**{f"{which}scale": "log"})
    low, high = getattr(axis, f"get_{which}lim")()
    ticks = getattr(axis, f"{which}axis")
    ticks.set_major_locator(MaxNLocator(5) if high < 4 * low else LogLocator(subs=(1, 2, 5) if high < 300 * low else (1,)))
    ticks.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ticks.set_minor_formatter(NullFormatter())


def means_and_halves(points, metric):
    """Mean and half-width of a metric at each point, two arrays; a single seed has no interval to draw."""
    mean, half = np.array([interval([METRICS[metric](run) for run in runs]) for runs in points.values()]).T
    return mean, np.where(np.isfinite(half), half, 0)


def point_figure(points):
    """What each point comes to, seeds as 95 % intervals. Points that differ in two options are curves over the second."""
    curves, labels = {}, list(dict.fromkeys(point.rpartition(",")[2] for point in points))
    crossed = len({point.rpartition(",")[0] for point in points}) > 1
    for point in points:
        curves.setdefault(point.rpartition(",")[0] if crossed else point, []).append(point)
    figure, axes = plt.subplots(2, 3, figsize=(11, 6.2), layout="constrained", sharex=True)
    for axis, metric in zip(axes.flat, ("perplexity", "last-layer variance", "causal", *SHARES)):
        for curve, style in point_styles(curves).items():
            shown = {point: points[point] for point in curves[curve]}
            places = [labels.index(point.rpartition(",")[2]) for point in shown]
            axis.errorbar(places, *means_and_halves(shown, metric), capsize=4, label=curve, **style)
        axis.set(title=metric, xticks=range(len(labels)))
        if metric == "last-layer variance":
            logarithmic(axis, "y")
        elif metric in SHARES:
            axis.set_ylim(None if metric == "choice accuracy" else -0.04 * axis.get_ylim()[1], min(1.03, axis.get_ylim()[1]))
        option, values = labels[0].rpartition("=")[0], [label.rpartition("=")[2] for label in labels]
        if option and all(label.startswith(f"{option}=") for label in labels):
            axis.set(xlabel=option, xticklabels=values)
        else:
            axis.set_xticklabels(labels, rotation=30, ha="right", fontsize=9)
    if crossed:
        figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside right center", fontsize=9)
    return figure


def ladder_figure(points):
    """The paper's first figure: choice accuracy as bars; usefulness, and our N_eff / L, as lines up the rungs."""
    rungs = [i for i, runs in enumerate(points.values()) if rung(runs[0]) is not None]
    beside = [i for i in range(len(points)) if i not in rungs]
    figure, axis = plt.subplots(figsize=(9.5, 4.2), layout="constrained")
    accuracy, half = means_and_halves(points, "choice accuracy")
    axis.bar(range(len(points)), accuracy, yerr=half, capsize=4, color="0.8", edgecolor="0.3", label="choice accuracy")
    axis.set(ylabel="choice accuracy", xticks=range(len(points)), ylim=(max(0, np.nanmin(accuracy - half) - 0.05), np.nanmax(accuracy + half) + 0.02))
    axis.set_xticklabels(points, rotation=30, ha="right")
    right = axis.twinx()
    for (metric, style), shift in zip(point_styles(("usefulness", "N_eff / L")).items(), (-0.2, 0.2)):  # beside the bars' own intervals
        mean, half = means_and_halves(points, metric)
        right.errorbar(np.add(rungs, shift), mean[rungs], half[rungs], capsize=4, label=metric, **style)
        right.errorbar(np.add(beside, shift), mean[beside], half[beside], capsize=4, linestyle="", **style)
    right.set(ylabel="share of the depth in use", ylim=(0, min(1.03, right.get_ylim()[1])))
    figure.legend(loc="outside upper center", ncols=3)
    return figure


def matrix_figure(points):
    """Causal, permutation and angular-distance matrices, a column for each point, means over seeds."""
    rows = (("causal_matrix", "skipped block", "block"), ("permutation_matrix", "swapped block", "swapped block"),
            ("angular_distance", "state h_a", "state h_b"))
    figure, axes = plt.subplots(3, len(points), figsize=(2.6 * len(points) + 1, 8), layout="constrained", squeeze=False)
    for (key, ylabel, xlabel), row in zip(rows, axes):
        means = [np.mean([run.analysis[key] for run in runs], axis=0) for runs in points.values()]
        first, top = 0 if key == "angular_distance" else 1, max(np.quantile(mean, 0.98) for mean in means)
        for axis, mean, point in zip(row, means, points):
            shown = np.where(np.triu(np.ones_like(mean), 1), mean, np.nan) if key == "causal_matrix" else mean
            edges = (first - 0.5, first + len(mean) - 0.5)
            picture = axis.imshow(shown, vmin=0, vmax=top or 1, cmap="viridis", extent=(*edges, *edges[::-1]))
            axis.set(title=point if key == "causal_matrix" else "", xlabel=xlabel)
            axis.locator_params(nbins=4, integer=True)
        row[0].set_ylabel(ylabel)
        figure.colorbar(picture, ax=row, fraction=0.05, label={"causal_matrix": "change of what the block adds",
                        "permutation_matrix": "|change of loss| / loss"}.get(key, "angle / pi"))
    return figure


def joint_figure(sweeps):
    """Density, last-layer variance and effective depth of every point of every sweep, seeds as 95 % intervals. A sweep
    whose option moves no one density is in the last panel alone."""
    moved = {name: moved_density(points) for name, points in sweeps.items()}
    n_panels = 3 if any(moved.values()) else 1
    figure, axes = plt.subplots(1, n_panels, figsize=(3.5 * n_panels + 1.8, 4), layout="constrained", squeeze=False)
    *density_axes, last = axes[0]
    for name, style in point_styles(sweeps).items():
        variance, share = (means_and_halves(sweeps[name], metric) for metric in ("last-layer variance", "N_eff / L"))
        style.update(label=f"{name} ({moved[name]})" if moved[name] else name, capsize=2, markersize=5)
        if moved[name]:
            density = means_and_halves(sweeps[name], moved[name])[0]
            order = density.argsort()
            for axis, (mean, half) in zip(density_axes, (variance, share)):
                axis.errorbar(density[order], mean[order], half[order], linestyle=":", **style)
        last.errorbar(variance[0], share[0], xerr=variance[1], yerr=share[1], linestyle="", **style)
    for axis, ylabel in zip(density_axes, ("variance of h_L", "N_eff / L")):
        axis.set(xlabel="density that was swept", ylabel=ylabel)
    last.set(xlabel="variance of h_L", ylabel="N_eff / L", ylim=(0, 1.03))
    logarithmic(last, "x")
    if density_axes:
        logarithmic(density_axes[0], "y")
        density_axes[1].set_ylim(0, 1.03)
    figure.legend(*last.get_legend_handles_labels(), loc="outside right center", fontsize=9)
    return figure


def save_figure(figure, path):
    """As PNG of 128 colours: a third of the bytes, and nothing that the eye would miss."""
    figure.savefig(picture := BytesIO(), format="png", dpi=100)
    plt.close(figure)
    with replacing(path) as temporary:
        Image.open(picture).convert("RGB").quantize(128).save(temporary, format="png", optimize=True)


# Report ---------------------------------------------------------------------------------------------------------------

def with_interval(values):
    mean, half = interval(values)
    return f"{mean:.4g}" + (f" ± {half:.2g}" if math.isfinite(half) else "")


def report_text(name, points, left_out, figures):
    runs = [run for runs in points.values() for run in runs]
    first, seeds, lengths = runs[0], sorted({run.seed for run in runs}), [run.analysis["length"] for run in runs]
    lines = [f"# {name}", "", f"{len(runs)} runs, seeds {', '.join(map(str, seeds))}; data/{first.config['dataset']}; scores on "
             f"{first.analysis['sequences']} held-out sequences of {' to '.join(map(str, sorted({min(lengths), max(lengths)})))} tokens; torch {first.summary['torch']}, "
             f"{first.summary['device']}. Mean ± 95 % Student-t interval over seeds; usefulness and N_eff with the linear maps "
             f"fitted on other sequences. Training took {sum(run.summary['seconds'] for run in runs) / 60:.0f} minutes, summed over runs."
             + (f" Left out: {', '.join(left_out)}." if left_out else ""), "",
             f"| point | {' | '.join(METRICS)} |", "|---" * (len(METRICS) + 1) + "|"]
    lines += [f"| {point} | {' | '.join(with_interval([metric(run) for run in runs]) for metric in METRICS.values())} |"
              for point, runs in points.items()]
    return "\n".join([*lines, "", *claims_table({name: points}), "", *(f"![{figure}]({figure}.png)" for figure in figures)]) + "\n"


def claims_table(sweeps):
    """Lines of a Markdown table: the verdict on each claim, by each of the sweeps, {name: points}, that speaks to it."""
    judged = [(name, *verdict) for name, points in sweeps.items() for verdict in judge_sweep(points)]
    lines = ["| claim | experiment | predicted | measured effect | verdict |", "|---" * 5 + "|"]
    for name, (claim, text, _, metric, shape), verdict, effect, half, n_seeds in sorted(judged, key=lambda row: CLAIMS.index(row[1])):
        scale = "log " if metric in LOG_METRICS and shape != "no worse" else ""
        width = f"± {half:.2g}, {n_seeds} seeds" if n_seeds > 1 else "one seed"
        lines.append(f"| {claim} | {name} | {text} | {effect:+.3g} ({width}; {scale}{metric}: {shape}) | {verdict} |")
    return lines


def report_sweep(runs, folder):
    """Figures and report.md into folder; returns {point: its runs, one per seed}, diverged ones left out."""
    scored = [run for run in runs if run.analysis is not None]
    if not scored:
        raise BadInput(f"{folder} holds no finished run{' that did not diverge' if runs else ''}: train one first, with python train.py")
    points = {point: [run for run in scored if run.point == point] for point in dict.fromkeys(run.point for run in scored)}
    folder.mkdir(parents=True, exist_ok=True)
    predicted = all(run.analysis.get("predicted_variance") for run in scored)
    figures = {"points": point_figure(points), **{name: line_figure(points, panels) for name, panels in LINES.items()
                                                  if name != "theory" or predicted}, "matrices": matrix_figure(points)}
    if any(rung(run) is not None for run in scored):
        figures["ladder"] = ladder_figure(points)
    for name, figure in figures.items():
        save_figure(figure, folder / f"{name}.png")
    left_out = [f"{run.name} ({'diverged' if run.summary['diverged'] else 'not scored'})" for run in runs if run.analysis is None]
    with replacing(folder / "report.md") as temporary:
        temporary.write_text(report_text(folder.name, points, left_out, figures))
    print(folder / "report.md")
    return points


def analyse_sweeps(arguments):
    # Of a pattern such as results/*.json, the files that have a sweep's figures beside them.
    sweeps = [path for path in arguments.sweeps if path.is_dir() or path.with_suffix("").is_dir() or len(arguments.sweeps) == 1]
    reported = {}
    for path in sweeps:
        if arguments.restore:
            restore_runs(path, arguments.restore)
            continue
        for folder in tqdm(sorted(file.parent for file in path.glob("*/summary.json")), desc=path.name, unit="run", disable=None):
            analyse_run(folder, arguments.sequences, arguments.task)
        runs, target = read_runs(path), path.with_suffix("") if path.suffix == ".json" else path
        if arguments.publish and runs:
            target = arguments.publish / path.stem
            publish_runs(runs, target.with_suffix(".json"))
            runs = read_runs(target.with_suffix(".json"))
        points = report_sweep(runs, target)
        if max(map(len, points.values())) > 1:  # one seed is a demonstration, no result to set beside others
            reported[path.stem] = points
    if len(reported) > 1:
        target = arguments.publish or sweeps[0].parent
        save_figure(joint_figure(reported), target / "joint.png")
        with replacing(target / "claims.md") as temporary:
            temporary.write_text("\n".join(["# All claims, by the rule in configs/claims.py", "", *claims_table(reported)]) + "\n")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweeps", nargs="+", type=Path, help="folders of runs, such as out/demo, or published .json files")
    parser.add_argument("--sequences", type=int, default=100, help="held-out sequences to score on (default 100, as published)")
    parser.add_argument("--task", type=Path, help='a JSONL of {"context", "choices", "answer"}')
    parser.add_argument("--publish", type=Path, help="write <sweep>.json, figures and report there, such as results")
    parser.add_argument("--restore", type=Path, help="make run folders there, such as out, of published .json files, and stop")
    or_one_sentence(analyse_sweeps, parser.parse_args(argv))


if __name__ == "__main__":
    main()
