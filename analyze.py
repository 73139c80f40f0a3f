"""How much each layer does: scores, figures, claims and a report from the runs of a sweep.

    python analyze.py out/demo                 analysis.json per run, figures and report.md
    python analyze.py out/*                    every sweep, and the figure and claims of all
    python analyze.py results/*.json           the same from published results: no GPU, no data
    python analyze.py out/demo --task my.jsonl also the accuracy on your own multiple-choice items
    python analyze.py out/depth --blimp tasks/blimp.jsonl   and on pairs of sentences

Every score is a function of a model and token ids, or of another score, that a student can call:

    model, config = load_run("out/demo/n_layer=8")
    idx, targets = held_out_sequences(config, model.config, n_sequences=16)
    ratios = prune_ratios(model, idx, targets)

Notation: h_l is the residual stream after l blocks, h_0 the embeddings. Blocks are numbered from 0,
as in model.blocks: block l takes h_l to h_{l+1} and adds delta_l = h_{l+1} - h_l (figures count
them from 1). L(M) is the mean cross-entropy, L alone the number of blocks, C the stream's width. An
intervention is a list of blocks, run from the cached state at the first changed one; the model
itself is never touched.
"""

from data import interrupt

if __name__ == "__main__":
    interrupt.before_imports()

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from configs.read import TrainConfig
from data import read
from data.files import duration, locked, matched, or_one_sentence, refuse_dashes, say, write_json
from data.prepare import tokenizer
from data.read import (
    SCORED_LENGTH,
    held_out_sequences,
    load_items,
    load_meta,
    load_tokens,
    same_targets,
    spread_offsets,
    take_sequences,
)
from downstream import choice_accuracy, minimal_pairs
from hardware import GIB, choose_hardware, fast, memory_errors_explained
from model import GPT
from pending import (
    CPU_SEQUENCES,
    SEQUENCES,
    TASKS,
    name_of,
    refuse_options,
    sweeps_of,
    tasks_of,
    work_on,
)
from results.hot import draw_beside
from results.report import counted, report_all, report_sweep
from results.runs import (
    described,
    folders_with,
    load_run,
    publish_runs,
    read_runs,
    restore_runs,
)
from results.scores import (
    TINY,
    causal_changes,
    derived,
    effective_depth,
    growth_of_variance,
    jackknife,
    kept_per_sequence,
    mean_by_bin,
    pair_mean,
    position_bins,
    pseudo_values,
    ratios_of,
    standard_errors,
    swap_changes,
    updates_in_the_middle,
    use_of_depth,
    usefulness,
)
from results.tables import write_tables
from sparsity import densities, in_float64
from theory import predict_variance
from train import branches_add_up, open_block, variance_of

NUMBERS_AT_ONCE = 2**30  # cached states and logits held together, 4 bytes each
TOKENS_AT_ONCE = 2**15
JACOBIAN_SHARE = 12  # one sequence in so many for the Jacobian, of three passes a feature
DENSITY_SEQUENCES = 16  # at most
SHORT_CONTEXT = 64  # tokens, of which 32 to 63 stand before a target
SAME_TARGETS_SHARE = 1 / 4  # of eval_tokens
ITEMS_PER_SEQUENCE = 20  # of the data's own multiple-choice items
BRANCHES = ("attention", "mlp")  # of a block


# States and interventions ------------------------------------------------------------------------


def chunks(model, *tensors):
    """Split (N, T) tensors along N, evenly, so that all cached states of a piece fit, whatever N,
    T and n_layer. Yields a tuple of pieces at a time."""
    N, T = tensors[0].shape
    n_tokens = min(TOKENS_AT_ONCE, NUMBERS_AT_ONCE // numbers_per_token(model.config))
    n_pieces = math.ceil(N / max(1, n_tokens // T))
    return zip(*(tensor.tensor_split(n_pieces) for tensor in tensors), strict=True)


def numbers_per_token(config):
    """Of all cached states, and of logits, their softmax and what the loss holds of them."""
    return (config.n_layer + 1) * config.n_embd + 4 * config.vocab_size


def run_blocks(blocks, h):
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
    """Each sequence's mean cross-entropy in nats under each intervention (l, rest): h_l of `blocks`
    (default: the model's), then the blocks in `rest`, then the read-out. idx, targets (N, T) ->
    (N, len(interventions)), float64 on the CPU."""
    pieces = []
    for rows, wanted in chunks(model, idx, targets):
        states = hidden_states(model, rows, blocks)
        losses = [
            in_float64(model.position_losses(run_blocks(rest, states[start]), wanted)).mean(dim=1)
            for start, rest in interventions
        ]
        pieces.append(torch.stack(losses, dim=1))
    return torch.cat(pieces).cpu()


def untouched(model):
    """The intervention that changes nothing."""
    return len(model.blocks), []


def zeros_in_float64(*shape, device):
    """Zeros to add up in: float64, as sums over many tokens lose digits in fp32."""
    return in_float64(torch.zeros(*shape, device=device))


# Scores: what a block does to the stream ---------------------------------------------------------


@torch.no_grad()
def stream_by_token(model, idx, look_inside=None):
    """What blocks do to the stream at every token of idx (N, T), {name: (N, T, L)}, float64 on the
    CPU:

    "residual"          variance over features of h_0 .. h_L, L + 1 of them
    "attention", "mlp"  variance over features of what this branch adds
    (part, "size")      norm of the part's update over that of the stream it is added to
    (part, "cosine")    cosine between these two
    "angle"             arccos cos(h_l, h_{l+1}), in radians

    A part is "attention", "mlp" or the whole "block"; only this where branches do not add up.

    look_inside(block, h): what open_block returns, where branches add up; otherwise, and always of
    a model whose blocks are none of ours, {"after": the block's output}."""
    if look_inside is None:
        look_inside = open_block if branches_add_up(model, idx[:1]) else whole_block
    pieces = {}
    for (rows,) in chunks(model, idx):
        h = model.embed(rows)
        layers = {"residual": [variance_of(h)]}
        for block in model.blocks:
            parts = look_inside(block, h)
            for name, values in block_by_token(h, parts).items():
                layers.setdefault(name, []).append(values)
            h = parts["after"]
        for name, values in layers.items():
            pieces.setdefault(name, []).append(in_float64(torch.stack(values, dim=-1)).cpu())
    return {name: torch.cat(of_name) for name, of_name in pieces.items()}


def whole_block(block, h):
    return {"after": block(h)}


def block_by_token(h, parts):
    """What stream_by_token says of one block that was opened on h, {name: (B, T)}."""
    between, after = parts.get("between"), parts["after"]
    cosine = F.cosine_similarity(in_float64(h), in_float64(after), dim=-1)
    measured = {"residual": variance_of(after), "angle": cosine.clamp(-1, 1).arccos()}
    updates = {"block": (h, after)}
    if between is not None:
        measured |= {branch: variance_of(parts[branch]) for branch in BRANCHES}
        updates |= {"attention": (h, between), "mlp": (between, after)}
    for part, (stream, updated) in updates.items():
        update, stream = in_float64(updated - stream), in_float64(stream)
        measured[part, "size"] = update.norm(dim=-1) / stream.norm(dim=-1).clamp_min(TINY)
        measured[part, "cosine"] = F.cosine_similarity(update, stream, dim=-1)
    return measured


def layer_variance(model, idx):
    """Variance over features, mean over tokens: {"residual": of h_0 .. h_L, "attention" and "mlp":
    of what this branch adds}.

    The branches, only where they add up, are taken before the residual addition, also for experts
    (the published code takes those after). As few positions, or the first, may stand out, "median"
    and "without_first" are of the residual stream, too: its median over tokens, and its mean
    without position 0."""
    return variances_of(stream_by_token(model, idx))


def variances_of(by_token):
    """layer_variance, of what stream_by_token returned."""
    kinds = [kind for kind in ("residual", *BRANCHES) if kind in by_token]
    variance = {kind: by_token[kind].mean(dim=(0, 1)) for kind in kinds}
    residual = by_token["residual"]
    variance["median"] = residual.flatten(0, 1).median(dim=0).values
    variance["without_first"] = residual[:, 1:].mean(dim=(0, 1))
    return variance


def block_jacobian(block, h):
    """Yields (features, gradients), a group of features i at a time: the derivatives of
    sum_s block(h)[s, i] with respect to h (T, C), as (len(features), T, C). A group is one batch
    of vector-Jacobian products through the one block."""
    T, C = h.shape
    for features in torch.arange(C, device=h.device).split(max(1, TOKENS_AT_ONCE // T)):
        x = h.expand(len(features), T, C).clone().requires_grad_()
        picked = block(x).sum(dim=1).gather(1, features[:, None]).sum()
        (gradients,) = torch.autograd.grad(picked, x)
        yield features, gradients


def jacobian_deviation(model, idx):
    """{"deviation", "off_diagonal", "spectral", "per_token"}: a number for each block, float64.

    J[j, i] = mean over tokens t of the derivative of sum_s h_{l+1}[s, i] with respect to h_l[t, j].
    deviation is ||J - I||_F / C, as published; off_diagonal ||J - diag J||_F / C; spectral ||J||_2.
    Averaging before the norm lets tokens' Jacobians cancel: per_token is the mean over t of
    ||J_t - I||_F / C. In the weights' dtype."""
    (N, T), L, C = idx.shape, len(model.blocks), model.config.n_embd
    device = idx.device
    identity = torch.eye(C, dtype=model.head.weight.dtype, device=device)
    jacobian = zeros_in_float64(L, C, C, device=device)
    per_token = zeros_in_float64(L, device=device)
    for row in idx:
        with torch.no_grad():
            states = hidden_states(model, row[None])
        for l, block in enumerate(model.blocks):
            squares = zeros_in_float64(T, device=device)  # ||J_t - I||^2 of every token
            for features, gradients in block_jacobian(block, states[l][0]):
                off_identity = gradients - identity[features, None]
                squares += in_float64(off_identity).square().sum(dim=(0, 2))
                features = features.to(jacobian.device)
                jacobian[l][:, features] += in_float64(gradients).mean(dim=1).T / N
            per_token[l] += squares.sqrt().mean() / C / N
    diagonal = torch.diag_embed(jacobian.diagonal(dim1=1, dim2=2))
    return {
        "deviation": ((jacobian - in_float64(identity)).flatten(1).norm(dim=1) / C).cpu(),
        "off_diagonal": ((jacobian - diagonal).flatten(1).norm(dim=1) / C).cpu(),
        "spectral": torch.linalg.matrix_norm(jacobian, 2).cpu(),
        "per_token": per_token.cpu(),
    }


@torch.no_grad()
def angular_distance(model, idx):
    """D[a, b] = mean over tokens of arccos(cos(h_a, h_b)) / pi, (L + 1, L + 1); D[l, l + n] prunes
    n blocks at l (arXiv 2403.17887, which takes the last token only). And block influence,
    1 - mean cos(h_l, h_{l+1}), (L,) (arXiv 2403.03853)."""
    n_states = len(model.blocks) + 1
    distance, cosine = (zeros_in_float64(n_states, n_states, device=idx.device) for _ in range(2))
    for (rows,) in chunks(model, idx):
        states = [in_float64(h.flatten(0, 1)) for h in hidden_states(model, rows)]
        directions = torch.stack([F.normalize(h, dim=-1) for h in states], dim=1)
        cosines = directions @ directions.mT  # (tokens, L + 1, L + 1)
        cosine += cosines.sum(dim=0) / idx.numel()
        distance += cosines.clamp(-1, 1).arccos().sum(dim=0) / math.pi / idx.numel()
    distance.fill_diagonal_(0)  # arccos of one rounding error below 1 is not quite zero
    return distance.cpu(), 1 - cosine.diagonal(offset=1).cpu()


def block_influence(model, idx):
    """1 - mean cosine between a block's input and output, (L,)."""
    return angular_distance(model, idx)[1]


@torch.no_grad()
def logit_lens(model, idx):
    """KL(p_l || p_L) in nats between the read-out of h_l and the final one, mean over tokens,
    (L + 1,); the last is 0."""
    total = zeros_in_float64(len(model.blocks) + 1, device=idx.device)
    for (rows,) in chunks(model, idx):
        states = hidden_states(model, rows)
        final = model.read_out(states[-1]).log_softmax(dim=-1)
        for l, h in enumerate(states):
            early = model.read_out(h).log_softmax(dim=-1)
            divergence = (early.exp() * (early - final)).sum(dim=-1)
            total[l] += in_float64(divergence).sum() / idx.numel()
    return total.cpu()


# Scores: what becomes of the others, or of the loss, without a block -----------------------------


@torch.no_grad()
def causal_norms(model, idx):
    """For each sequence of idx (N, T), mean over its tokens: (N, L, L) ||delta'_l - delta_l||, the
    change of what block l adds when block s is skipped, at [:, s, l > s], zero elsewhere; and
    (N, L) ||delta_l||."""
    L = len(model.blocks)
    pieces = []
    for (rows,) in chunks(model, idx):
        states = hidden_states(model, rows)
        deltas = [states[l + 1] - states[l] for l in range(L)]
        size = torch.stack([mean_norm(delta) for delta in deltas], dim=1)
        changed = zeros_in_float64(len(rows), L, L, device=idx.device)
        for s in range(L):
            h = states[s]
            for l in range(s + 1, L):
                after = model.blocks[l](h)
                changed[:, s, l] = mean_norm(after - h - deltas[l])
                h = after
        pieces.append((changed.cpu(), size.cpu()))
    return tuple(torch.cat(of_all) for of_all in zip(*pieces, strict=True))


def mean_norm(delta):
    """(B, T, C) -> (B,): norms over features, mean over tokens."""
    return in_float64(torch.linalg.vector_norm(delta, dim=-1)).mean(dim=1)


def causal_matrix(model, idx):
    """C[s, l], l > s: how much what block l adds changes when block s is skipped,
    mean_t ||delta'_l - delta_l|| / mean_t ||delta_l||; zero elsewhere. (L, L). The scalar is
    pair_mean, zeros left out."""
    changed, size = (norms.mean(dim=0).numpy() for norms in causal_norms(model, idx))
    return torch.from_numpy(causal_changes(changed, size))


def swap_losses(model, idx, targets, one_in=1):
    """(N, pairs) each sequence's loss with blocks a and b > a swapped, pair by pair as
    np.triu_indices lists them; and (N, pairs) that of the model itself.

    one_in > 1 takes turns: pair p is swapped in one in so many sequences, n with n - p divisible by
    one_in, and both tables are zero at the others, so that means over all N still have the ratio of
    means over those."""
    blocks, L = list(model.blocks), len(model.blocks)
    swaps = [
        (a, [blocks[b], *blocks[a + 1 : b], blocks[a], *blocks[b + 1 :]])
        for a, b in zip(*np.triu_indices(L, k=1), strict=True)
    ]
    swapped, whole = torch.zeros(2, len(idx), len(swaps), dtype=torch.float64)
    for turn in range(one_in):
        mine = slice(turn, None, one_in)  # of the sequences, and of the pairs
        interventions = [untouched(model), *swaps[mine]]
        losses = intervention_losses(model, idx[mine], targets[mine], interventions)
        swapped[mine, mine] = losses[:, 1:]
        whole[mine, mine] = losses[:, :1]
    return swapped, whole


def one_in_how_many(L, N):
    """One in how many of N sequences a pair of L blocks is swapped in, or greedy removal looks for
    its order in. All pairs and all removals grow as L^3 a sequence; beyond 16 blocks fewer
    sequences each keep their cost at about L, and two of them always remain."""
    return max(1, min((L // 16) ** 2, N // 2))


def permutation_matrix(model, idx, targets):
    """P[a, b] = |L(blocks a and b swapped) - L(M)| / L(M), symmetric, (L, L). Scalar: pair_mean."""
    swapped, whole = (losses.mean(dim=0) for losses in swap_losses(model, idx, targets))
    return matrix_of_pairs(swap_changes(swapped, whole), len(model.blocks))


def matrix_of_pairs(values, L):
    """The symmetric matrix (L, L) of a value for each pair, as np.triu_indices lists them."""
    matrix = torch.zeros(L, L, dtype=torch.float64)
    matrix[np.triu_indices(L, k=1)] = values
    return matrix + matrix.T


def removal_losses(model, idx, targets):
    """Each sequence's loss, (N, 1 + L): of the model itself, then without each block."""
    blocks = list(model.blocks)
    removals = [(l, blocks[l + 1 :]) for l in range(len(blocks))]
    return intervention_losses(model, idx, targets, [untouched(model), *removals])


def prune_ratios(model, idx, targets):
    """L(M without block l) / L(M) for each l, (L,)."""
    return ratios_of(removal_losses(model, idx, targets).mean(dim=0))


def cumulative_pruning(model, idx, targets, order, ratios=None, one_in=1):
    """Losses with 0, 1, ..., L blocks removed, (L + 1,). order: "last" (deepest first), "least" (by
    prune_ratios, computed if not given, least harmful first) or "greedy" (at each step the block
    whose removal now hurts least, in one in one_in sequences; the losses are of all)."""
    if order not in ("last", "least", "greedy"):
        raise ValueError(f'order = "{order}" must be last, least or greedy')
    blocks, L = list(model.blocks), len(model.blocks)
    if order == "last":
        removed = list(range(L))[::-1]
    elif order == "greedy":
        removed = greedy_order(model, idx[::one_in], targets[::one_in])
    else:
        ratios = prune_ratios(model, idx, targets) if ratios is None else ratios
        removed = ratios.argsort().tolist()
    interventions = []
    for n in range(L + 1):
        first = min(removed[:n], default=L)
        rest = [blocks[l] for l in range(first, L) if l not in removed[:n]]
        interventions.append((first, rest))
    return intervention_losses(model, idx, targets, interventions).mean(dim=0)


def greedy_order(model, idx, targets):
    """Block numbers, as at each step the block goes whose removal hurts least."""
    kept, removed = list(range(len(model.blocks))), []
    while kept:
        blocks = [model.blocks[l] for l in kept]
        removals = [(i, blocks[i + 1 :]) for i in range(len(kept))]
        tried = intervention_losses(model, idx, targets, removals, blocks).mean(dim=0)
        removed.append(kept.pop(tried.argmin()))
    return removed


# Scores: usefulness, what becomes of the loss when a block is made linear ------------------------


@torch.no_grad()
def fit_linear_maps(model, idx):
    """[(W, b)] with h_{l+1} ~ h_l W^T + b, least squares over all tokens of idx; W (C, C), b (C,),
    one per block, float64 on the CPU.

    The normal equations would square the condition number. So the R of a QR decomposition of
    [h_l, 1, h_{l+1}] is updated piece by piece in float64 (it is all that the fit needs to
    remember) and solved by singular values."""
    L, C = len(model.blocks), model.config.n_embd
    triangles = [None] * L
    for (rows,) in chunks(model, idx):
        states = [in_float64(h.flatten(0, 1)) for h in hidden_states(model, rows)]
        one = torch.ones_like(states[0][:, :1])
        for l in range(L):
            piece = torch.cat((states[l], one, states[l + 1]), dim=1)
            if triangles[l] is not None:
                piece = torch.cat((triangles[l], piece))
            triangles[l] = torch.linalg.qr(piece, mode="r").R
    maps = []
    for R in (triangle.cpu() for triangle in triangles):
        inputs, outputs = R[:, : C + 1], R[:, C + 1 :]
        solution = torch.linalg.lstsq(inputs, outputs, driver="gelsd").solution  # (C + 1, C)
        maps.append((solution[:C].T, solution[C]))
    return maps


def linear_block(W, b):
    return lambda h: F.linear(h, W.to(h.dtype).to(h.device), b.to(h.dtype).to(h.device))


def linear_losses(model, maps, idx, targets, transposed=False):
    """Each sequence's loss, (N, 1 + L): of the model itself, then with each block replaced by its
    linear map. maps from fit_linear_maps on other sequences (the honest way) or on idx (as
    published). transposed=True installs W where W^T belongs, which is what the published script
    does (it puts lstsq's solution into nn.Linear.weight as it comes)."""
    blocks = list(model.blocks)
    interventions = [untouched(model)]
    for l, (W, b) in enumerate(maps):
        stand_in = linear_block(W.T if transposed else W, b)
        interventions.append((l, [stand_in, *blocks[l + 1 :]]))
    return intervention_losses(model, idx, targets, interventions)


def linear_ratios(model, maps, idx, targets, transposed=False):
    """L(block l replaced by its linear map) / L(M) for each l, (L,)."""
    return ratios_of(linear_losses(model, maps, idx, targets, transposed).mean(dim=0))


# Held-out and training text ----------------------------------------------------------------------


@torch.no_grad()
def losses_by_position(model, idx, targets):
    """Cross-entropy in nats of every target, (N, T), float64 on the CPU."""
    losses = [
        in_float64(model.position_losses(hidden_states(model, rows)[-1], wanted)).cpu()
        for rows, wanted in chunks(model, idx, targets)
    ]
    return torch.cat(losses)


def text_losses(model, config, split):
    """losses_by_position in the model's whole context, on eval_tokens of train.bin or val.bin."""
    tokens = load_tokens(config.dataset, split, model.config)
    T = model.config.block_size
    offsets = spread_offsets(len(tokens), T, config.eval_tokens)
    device = model.head.weight.device
    return losses_by_position(model, *take_sequences(tokens, offsets, T, device))


def losses_of_targets(model, tokens, firsts, T):
    """Cross-entropy in nats of the targets that same_targets begins at `firsts`, a stretch a row,
    float64 on the CPU: each in a window of T tokens, with T / 2 to T - 1 of them before it. Windows
    overlap by half, and of each the second half counts."""
    n_counted, stretch = T // 2, read.LONGEST_CONTEXT // 2
    losses = torch.zeros(len(firsts), stretch, dtype=torch.float64)
    for end in [*range(n_counted, stretch, n_counted), stretch]:
        rows, wanted = take_sequences(tokens, firsts + end - T, T, model.head.weight.device)
        # The window's last place predicts the token behind it, which is of no interest.
        of_window = losses_by_position(model, rows, wanted)[:, -1 - n_counted : -1]
        losses[:, end - n_counted : end] = of_window
    return losses


def passes_over_data(model, config):
    """Tokens that the model was trained on, over those that there are in train.bin."""
    n_trained = config.max_iters * config.sequences_per_step * model.config.block_size
    return n_trained / load_meta(config.dataset)["tokens"]["train"]


# One run -----------------------------------------------------------------------------------------
#
# Most score_ functions return entries of analysis.json, and pseudo-values by sequence, from which
# results/scores.py has their standard errors.


def analyse_run(folder, work):
    """Score what a finished run lacks, by its Work (pending.py), and write its analysis.json."""
    started = time.perf_counter()
    device = choose_hardware(TrainConfig()).device
    model, config = load_run(folder, device)
    model = fast.with_sorted_experts(model) if fast else model
    analysis = dict(work.kept)
    if n_sequences := work.n_sequences:
        analysis |= score_run(model, config, n_sequences, device)
        analysis["text"], analysis["standard_errors"]["text"] = score_text(model, config)
        analysis["same_targets"], pseudo = score_same_targets(model, config)
        analysis["standard_errors"]["same_targets"] = standard_errors(pseudo)
        analysis["per_sequence"]["same_targets"] = kept_per_sequence(pseudo)
        analysis |= score_choices(model, config, ITEMS_PER_SEQUENCE * n_sequences)
        analysis |= {
            "seconds": time.perf_counter() - started,
            "torch": torch.__version__,
            "device": str(device),
            "code": work.code,
        }
    for task, path in work.tasks.items():
        analysis[task] = score_task(model, config, task, path)
    write_json(folder / "analysis.json", {**analysis, "scored_from": work.scored_from})


def score_run(model, config, n_sequences, device):
    """Every score of one model, {name: numbers and lists}, on held-out sequences; the linear maps
    are fitted on others. "standard_errors" has the names again, with the errors over sequences of
    those that a jackknife can give (it fails for usefulness, which a threshold makes jump), and
    "per_sequence" the pseudo-values of those that differences of runs need (paired_error). Leaves
    torch's matmul precision at "high"."""
    idx, targets = held_out_sequences(config, model.config, n_sequences, device=device)
    others = held_out_sequences(config, model.config, n_sequences, device=device, parity=1)
    # J - I is a small difference; for the rest a GPU's tf32 products will do.
    torch.set_float32_matmul_precision("highest")
    few = idx[: max(1, n_sequences // JACOBIAN_SHARE)]
    jacobian = jacobian_deviation(model, few)
    torch.set_float32_matmul_precision("high")
    # Hooks do not run in compiled blocks, so what needs them takes the model as it is.
    compiled = fast.with_compiled_blocks(model) if fast else model
    predicted = variance_at_initialisation(model.config, idx.cpu())
    stream, stream_pseudo = score_stream(model, idx)
    losses, loss_pseudo = score_interventions(compiled, idx, targets)
    linear, linear_pseudo = score_linear_maps(compiled, idx, targets, *others)
    sequences_of = {"jacobian": len(few), **losses.pop("sequences_of")}
    pseudo = stream_pseudo | loss_pseudo | linear_pseudo
    analysis = {
        "sequences": len(idx),
        "sequences_of": sequences_of,
        "length": idx.shape[1],
        **stream,
        **losses,
        **linear,
        "jacobian": as_lists(jacobian),
        **score_similarity(compiled, idx),
        "densities": densities(model, idx[:DENSITY_SEQUENCES]),
        "predicted_variance": predicted if branches_add_up(model, idx[:1]) else None,
        "standard_errors": standard_errors(pseudo),
        "per_sequence": kept_per_sequence(pseudo),
    }
    return analysis | derived(analysis)


def score_stream(model, idx):
    """What blocks do to the stream."""
    by_token = stream_by_token(model, idx)
    of_sequences = {name: values.mean(dim=1) for name, values in by_token.items()}  # (N, L)
    entries = {"variance": as_lists(variances_of(by_token))}
    for measure in ("size", "cosine"):
        entries[measure] = {
            part: of_sequences[part, measure].mean(dim=0).tolist()
            for part in (*BRANCHES, "block")
            if (part, measure) in of_sequences
        }

    def last_variance(variance):
        return {"last_layer_variance": variance[-1]}

    residual, size = of_sequences["residual"], of_sequences["block", "size"]
    _, pseudo = pseudo_values(last_variance, residual)
    _, pseudo["growth"] = pseudo_values(growth_of_variance, residual)
    _, pseudo["updates"] = pseudo_values(updates_in_the_middle, of_sequences["angle"], size)
    return entries, pseudo


def score_interventions(model, idx, targets):
    """What becomes of the others, or of the loss, without a block."""
    L = len(model.blocks)
    one_in = one_in_how_many(L, len(idx))
    norms = causal_norms(model, idx)
    swaps = swap_losses(model, idx, targets, one_in)
    removals = removal_losses(model, idx, targets)
    pruned = ratios_of(removals.mean(dim=0))
    curves = {
        order: cumulative_pruning(model, idx, targets, order, pruned, one_in)
        for order in ("last", "least", "greedy")
    }
    causal = causal_changes(*(of_sequences.mean(dim=0).numpy() for of_sequences in norms))
    permutation = matrix_of_pairs(swap_changes(*(losses.mean(dim=0) for losses in swaps)), L)
    scores, pseudo = pseudo_values(scores_of_interventions, *norms, *swaps, removals)
    _, pseudo["removal_use"] = pseudo_values(use_by_losses, removals)
    entries = {
        **{name: scores[name] for name in ("loss", "perplexity", "causal", "permutation")},
        "prune_ratios": pruned.tolist(),
        "cumulative": as_lists(curves),
        "causal_matrix": causal.tolist(),
        "permutation_matrix": permutation.tolist(),
        "sequences_of": {"swap": len(idx) // one_in, "greedy_order": len(idx[::one_in])},
    }
    return entries, pseudo


def scores_of_interventions(changed, size, swapped, whole, removals):
    """Means over sequences of what causal_norms, swap_losses and removal_losses return -> {name:
    number or array}."""
    changes = swap_changes(swapped, whole)
    return {
        "loss": removals[0],
        "perplexity": float(np.exp(removals[0])),
        "causal": pair_mean(causal_changes(changed, size)),
        "permutation": float(changes.mean()) if len(changes) else None,
        "prune_ratios": ratios_of(removals),
    }


def use_by_losses(losses):
    """use_of_depth by the losses of the model itself and under one intervention a block."""
    return use_of_depth(ratios_of(losses))


def score_linear_maps(model, idx, targets, fit_idx, fit_targets):
    """What becomes of the loss when a block is made linear. Standard errors take the maps as they
    are. "same" is on no more sequences than are scored, as wide maps are fitted on more of them."""
    maps = fit_linear_maps(model, fit_idx)
    n = len(idx)
    losses = linear_losses(model, maps, idx, targets)
    ratios = {
        "held_out": ratios_of(losses.mean(dim=0)),
        "same": linear_ratios(model, maps, fit_idx[:n], fit_targets[:n]),
        "transposed": linear_ratios(model, maps, idx, targets, transposed=True),
    }
    n_eff = effective_depth(ratios["held_out"])
    entries = {
        "linear_ratios": as_lists(ratios),
        "usefulness": {fit: usefulness(values) for fit, values in ratios.items()},
        "n_eff": n_eff,
        "n_eff_share": n_eff / len(model.blocks),
    }
    _, pseudo = pseudo_values(lambda losses: {"linear_ratios": ratios_of(losses)}, losses)
    _, pseudo["linear_use"] = pseudo_values(use_by_losses, losses)
    return entries, pseudo


def score_similarity(model, idx):
    """How alike the stream's states are: entries alone, without errors."""
    angular, influence = angular_distance(model, idx)
    return {
        "block_influence": influence.tolist(),
        "angular_distance": angular.tolist(),
        "logit_lens": logit_lens(model, idx).tolist(),
    }


def score_text(model, config):
    """The entry "text" of analysis.json, and its standard errors, as if sequences were drawn one by
    one, though some stand in one stretch of text."""
    held_out, errors = jackknife(held_out_scores, text_losses(model, config, "val"))
    training, training_errors = jackknife(training_scores, text_losses(model, config, "train"))
    gap = held_out["held_out_loss"] - training["training_loss"]
    bins = position_bins(model.config.block_size)
    entry = {
        "tokens": config.eval_tokens,
        "passes": passes_over_data(model, config),
        "gap": gap,
        "positions_read": [(first + 1 + behind) / 2 for first, behind in bins],
        **held_out,
        **training,
    }
    errors |= training_errors
    if {"held_out_loss", "training_loss"} <= errors.keys():
        errors["gap"] = math.hypot(errors["held_out_loss"], errors["training_loss"])
    return entry, errors


def held_out_scores(losses):
    """Of mean losses by position, (T,)."""
    return {"held_out_loss": float(losses.mean()), "by_position": mean_by_bin(losses)}


def training_scores(losses):
    return {"training_loss": float(losses.mean())}


def score_same_targets(model, config):
    """The entry "same_targets" of analysis.json, and its pseudo-values, one for each stretch of
    text: the loss on tokens that are the same for all contexts, in windows of the model's own
    context and in those of SHORT_CONTEXT. A context that is too short or too long for one of the
    two, or a text too short for both, goes without."""
    tokens = load_tokens(config.dataset, "val", model.config)
    T = model.config.block_size
    firsts = same_targets(len(tokens), int(config.eval_tokens * SAME_TARGETS_SHARE))
    entry = {"targets": len(firsts) * (read.LONGEST_CONTEXT // 2)}
    pseudo = {}
    for name, length in {"own_context": T, "short_context": SHORT_CONTEXT}.items():
        if len(firsts) and 2 <= length <= min(T, read.LONGEST_CONTEXT):
            of_stretches = losses_of_targets(model, tokens, firsts, length).mean(dim=1).numpy()
            entry[name] = float(of_stretches.mean())
            if len(firsts) > 1:  # one stretch alone has no error
                pseudo[name] = of_stretches
    return entry, pseudo


def variance_at_initialisation(config, idx):
    """What log.jsonl should show at step 0, the mean over the sequences idx (N, T); None where
    that ran longer sequences than these."""
    return predict_variance(config, idx) if idx.shape[1] == config.block_size else None


def as_lists(tensors):
    return {name: values.tolist() for name, values in tensors.items()}


def score_choices(model, config, n_items):
    """The entry "choices" of analysis.json, of the first n_items that the data have; or none."""
    path = read.DATA / config.dataset / "choices.jsonl"
    items = load_items(path)[:n_items]
    if not items:
        return {}
    encode = encoding_of(config).encode_ordinary
    return {"choices": {"file": path.name, **choice_accuracy(model, items, encode)}}


def score_task(model, config, task, path):
    """The entry of analysis.json for a file of items, "task", or of pairs of sentences, "blimp"."""
    items = TASKS[task](path)
    encoding = encoding_of(config)
    if task == "task":
        return {"file": path.name, **choice_accuracy(model, items, encoding.encode_ordinary)}
    end_of_text = encoding.n_vocab - 1
    accuracy = minimal_pairs(model, items, encoding.encode_ordinary, end_of_text)
    return {"file": path.name, **accuracy}


def encoding_of(config):
    return tokenizer(load_meta(config.dataset)["vocab_size"])


# What scoring costs ------------------------------------------------------------------------------


def whole_passes(config, n_sequences):
    """About how many forward passes over its sequences the scores of a model take."""
    L, C = config.n_layer, config.n_embd
    swaps_and_greedy_removal = L * L / 2 / one_in_how_many(L, n_sequences)
    interventions = 5 * L + 20  # some ten for each block, of half the stack each
    jacobian = 3 * C / JACOBIAN_SHARE  # a pass and its gradient for each feature
    # Twice, by four continuations of some hundred tokens.
    choices = 8 * ITEMS_PER_SEQUENCE * min(1, 100 / config.block_size)
    return swaps_and_greedy_removal + interventions + jacobian + choices


def seconds_per_operation(folder, device):
    """Of a run's forward pass on two sequences, by GPT.flops_per_token."""
    model, config = load_run(folder, device)
    idx, _ = held_out_sequences(config, model.config, 2, device=device)
    with torch.no_grad():
        model(idx)
        began = time.perf_counter()
        model(idx)[0].sum().item()  # waits for the device
        seconds = time.perf_counter() - began
    return seconds / idx.numel() / model.flops_per_token()


def announce(path, to_do):
    """Say how long scoring these runs, {folder: Work}, will take here, and in how much memory, by
    the time of the first one's forward pass; tasks of one's own are not counted."""
    files = sorted({file.name for work in to_do.values() for file in work.tasks.values()})
    if files:
        say(f"{path}: scoring {counted(len(to_do), 'run')} on {', '.join(files)}")
    whole = {folder: work.n_sequences for folder, work in to_do.items() if work.n_sequences}
    if not whole:
        return
    device = choose_hardware(TrainConfig()).device
    per_operation = seconds_per_operation(next(iter(whole)), device)
    seconds, most_bytes = 0.0, 0.0
    for folder, n_sequences in whole.items():
        config, _, _ = described(folder)
        with torch.device("meta"):  # shapes alone
            model = GPT(config)
        n_tokens = n_sequences * min(config.block_size, SCORED_LENGTH)
        n_operations = whole_passes(config, n_sequences) * n_tokens * model.flops_per_token()
        seconds += n_operations * per_operation
        n_numbers = min(NUMBERS_AT_ONCE, n_tokens * numbers_per_token(config))
        most_bytes = max(most_bytes, 4 * (n_numbers + model.count_parameters()))
    in_part = "; what needs float64 runs on the CPU" if device.type == "mps" else ""
    say(
        f"{path}: scoring {counted(len(whole), 'run')} on {max(whole.values())} sequences each "
        f"takes about {duration(seconds)} and {max(0.1, most_bytes / GIB):.1f} GiB here{in_part}"
    )


# Command line ------------------------------------------------------------------------------------


def analyse_sweep(path, arguments):
    """Scores, figures and report of one sweep's folder or published file; returns its Sweep. Raises
    BadInput where another process works on the same folder."""
    if path.suffix == ".json":
        return publish_and_report(path, arguments)
    with locked(path):
        score_sweep(path, arguments)
        return publish_and_report(path, arguments)


def publish_and_report(path, arguments):
    """The same of runs that are scored, with their published file where that is asked for."""
    runs = read_runs(path)
    target = path.with_name(name_of(path))
    if arguments.publish and any(run.analysis for run in runs):
        target = arguments.publish / name_of(path)
        published = target.with_name(f"{target.name}.json")
        publish_runs(runs, published, with_matrices=not arguments.without_matrices)
        runs = read_runs(published)
    return report_sweep(runs, target)


LESS_AT_ONCE = (
    "score on the CPU, by CUDA_VISIBLE_DEVICES= before the command, or lower NUMBERS_AT_ONCE in "
    "analyze.py"
)


def score_sweep(path, arguments):
    """All runs are looked at before the first is scored."""
    folders = folders_with("summary.json", path)
    started = folders_with("config.json", path)
    if unfinished := [folder.name for folder in started if folder not in folders]:
        say(f"{path}: left out, as not trained to the end: {', '.join(unfinished)}")
    tasks = tasks_of(arguments)
    to_do = {}
    for folder in folders:
        work = work_on(folder, arguments.sequences, tasks, arguments.old_code, arguments.again)
        if work is not None:
            to_do[folder] = work
    with memory_errors_explained(f"scoring {path}", LESS_AT_ONCE):
        announce(path, to_do)
    for folder, work in tqdm(to_do.items(), desc=path.name, unit="run", disable=None, leave=False):
        with memory_errors_explained(f"scoring {folder}", LESS_AT_ONCE):
            analyse_run(folder, work)


def analyse_sweeps(arguments):
    refuse_dashes(arguments)
    sweeps = sweeps_of(matched(arguments.sweeps))
    refuse_options(arguments, sweeps)
    if arguments.restore:
        for path in sweeps:
            restore_runs(path, arguments.restore)
        return
    reported = {}
    for path in sweeps:
        sweep = analyse_sweep(path, arguments)
        # One seed is a demonstration, no result to set beside others.
        if max(len(runs) for runs in sweep.points.values()) > 1:
            reported[name_of(path)] = sweep
    if len(reported) > 1:
        folder = arguments.publish or sweeps[0].parent
        report_all(reported, folder)
        draw_beside(reported, folder)
        write_tables(folder)


def at_least_1(text):
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least 1")
    return int(text)


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    sweeps_help = "folders of runs, such as out/demo, or published .json files"
    add("sweeps", nargs="+", type=Path, help=sweeps_help)
    sequences_help = (
        f"held-out sequences to score on (default: as many as before; at first {SEQUENCES}, as "
        f"in results/, or {CPU_SEQUENCES} without a CUDA GPU)"
    )
    add("--sequences", type=at_least_1, help=sequences_help)
    add("--task", type=Path, help='a JSONL of {"context", "choices", "answer"}')
    blimp_help = "pairs of sentences, such as tasks/blimp.jsonl or data/blimp/blimp.jsonl"
    add("--blimp", type=Path, help=blimp_help)
    publish_help = "write <sweep>.json, figures and report there, such as results"
    add("--publish", type=Path, help=publish_help)
    without_help = "publish without the matrices, as of a search of rates, which needs no figures"
    add("--without_matrices", action="store_true", help=without_help)
    restore_help = "make run folders there, such as out, of published .json files, and stop"
    add("--restore", type=Path, help=restore_help)
    add("--again", action="store_true", help="score runs that are scored already, too")
    old_code_help = "score runs that other code trained, which the report then says"
    add("--old_code", action="store_true", help=old_code_help)
    kept = "the runs that were scored stay so, and the same command goes on"
    or_one_sentence(analyse_sweeps, parser.parse_args(argv), stopped=kept)


if __name__ == "__main__":
    main()
