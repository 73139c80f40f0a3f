"""The scores of analyze.py that need nothing of a model but its stream: of a decoder.Decoder, or of
any model with embed, blocks, read_out, position_losses and a config.

    passages = passages_of(ids, None, n_sequences=4, length=256, n_fit=40)
    entries, errors = SCORES["removal"](model, passages)

Each is a function of a model and passages to entries of analysis.json, under the names that these
have for a run, and to their standard errors over sequences.
"""

import math
from typing import NamedTuple

import numpy as np
import torch

from analyze import (
    JACOBIAN_SHARE,
    TOKENS_AT_ONCE,
    as_lists,
    causal_norms,
    cumulative_pruning,
    hidden_states,
    intervention_losses,
    jacobian_deviation,
    losses_by_position,
    matrix_of_pairs,
    removal_losses,
    score_linear_maps,
    score_similarity,
    stream_by_token,
    swap_losses,
    untouched,
    use_by_losses,
    variances_of,
    whole_block,
    zeros_in_float64,
)
from data.files import BadInput
from results.public import DEAREST
from results.scores import (
    causal_changes,
    growth_of_variance,
    jackknife,
    mean_by_bin,
    pair_mean,
    position_bins,
    ratios_of,
    standard_errors,
    swap_changes,
    updates_in_the_middle,
    use_of_depth,
)

PROBES = 32  # of the Jacobian: random directions, where the stream is wider


# Passages ----------------------------------------------------------------------------------------


class Passages(NamedTuple):
    idx: torch.Tensor  # (N, T), to score on
    targets: torch.Tensor
    fit_idx: torch.Tensor  # (more, T): other windows, to fit linear maps on
    fit_targets: torch.Tensor

    def to(self, device):
        return Passages(*(tensor.to(device) for tensor in self))


def passages_of(ids, bos, n_sequences, length, n_fit):
    """Windows of a text's token ids, one behind the other: n_sequences, evenly spaced, of every
    second to score on; n_fit, so again, of those between. Each begins with bos, unless None.
    Raises BadInput where there are not enough to score on."""
    own = length + 1 if bos is None else length  # tokens of the text in a window
    n_windows = len(ids) // own
    if n_windows // 2 < n_sequences:
        raise BadInput(
            f"the text has {len(ids):,} tokens of this model, too few for {n_sequences} sequences "
            f"of {length} and as many between them to fit on: give more by --text, or lower "
            "--sequences or --length"
        )
    windows = torch.tensor(ids[: n_windows * own]).view(n_windows, own)
    if bos is not None:
        windows = torch.cat((torch.full((n_windows, 1), bos), windows), dim=1)
    to_score, to_fit = windows[0::2], windows[1::2]
    rows = spread_over(to_score, n_sequences)
    others = spread_over(to_fit, max(n_sequences, n_fit))
    return Passages(rows[:, :-1], rows[:, 1:], others[:, :-1], others[:, 1:])


def spread_over(rows, n):
    """n of the rows, or all where there are fewer, from the first to the last."""
    return rows[np.linspace(0, len(rows) - 1, min(n, len(rows))).astype(int)]


# Scores ------------------------------------------------------------------------------------------


def score_loss(model, passages):
    def come_to(losses):
        loss = float(losses.mean())
        return {"loss": loss, "perplexity": math.exp(loss), "by_position": mean_by_bin(losses)}

    scores, errors = jackknife(come_to, losses_by_position(model, passages.idx, passages.targets))
    read = [(first + 1 + behind) / 2 for first, behind in position_bins(passages.idx.shape[1])]
    text = {"by_position": scores.pop("by_position"), "positions_read": read}
    return {**scores, "text": text}, errors


def score_stream(model, passages):
    """Growth is told twice: position 0 alone may make the mean over tokens."""
    by_token = stream_by_token(model, passages.idx, whole_block)
    residual, size = by_token["residual"], by_token["block", "size"].mean(dim=1)
    first = residual[:, 0].mean(dim=0)
    entries = {
        "variance": as_lists(variances_of(by_token) | {"first": first}),
        "size": {"block": size.mean(dim=0).tolist()},
        "cosine": {"block": by_token["block", "cosine"].mean(dim=(0, 1)).tolist()},
        "angle": by_token["angle"].mean(dim=(0, 1)).tolist(),
    }
    errors = {}
    positions = {"growth": slice(None), "growth_without_first": slice(1, None)}
    for name, kept in positions.items():
        of_sequences = residual[:, kept].mean(dim=1)
        entries[name], errors[name] = jackknife(growth_of_variance, of_sequences)
    angles = by_token["angle"].mean(dim=1)
    entries["updates"], errors["updates"] = jackknife(updates_in_the_middle, angles, size)
    return entries, errors


def score_likeness(model, passages):
    return score_similarity(model, passages.idx), {}


def score_removal(model, passages):
    losses = removal_losses(model, passages.idx, passages.targets)
    use, errors_of_use = jackknife(use_by_losses, losses)
    scores, errors = jackknife(lambda mean: {"prune_ratios": ratios_of(mean)}, losses)
    entries = {"prune_ratios": scores["prune_ratios"].tolist(), "removal_use": use}
    return entries, errors | {"removal_use": errors_of_use}


def score_stretches(model, passages):
    """Loss ratios without each stretch of n blocks, [n - 1][first block], n = 1, 2, ... as long as
    some stretch costs less than DEAREST of the loss, and one more."""
    idx, targets = passages.idx, passages.targets
    blocks = list(model.blocks)
    ratios = []
    whole = intervention_losses(model, idx, targets, [untouched(model)]).mean()
    for n in range(1, len(blocks)):
        removals = [(first, blocks[first + n :]) for first in range(len(blocks) - n + 1)]
        losses = intervention_losses(model, idx, targets, removals).mean(dim=0)
        ratios.append((losses / whole).tolist())
        if min(ratios[-1]) > 1 + DEAREST:
            break
    return {"stretches": ratios}, {}


def score_cumulative(model, passages):
    idx, targets = passages.idx, passages.targets
    orders = ("last", "least", "greedy")
    curves = {order: cumulative_pruning(model, idx, targets, order) for order in orders}
    return {"cumulative": as_lists(curves)}, {}


def score_linear(model, passages):
    entries, pseudo = score_linear_maps(model, *passages)
    use = use_of_depth(entries["linear_ratios"]["held_out"])
    fitted_on = passages.fit_idx.numel()
    return {**entries, "linear_use": use, "fitted_on": fitted_on}, standard_errors(pseudo)


def score_causal(model, passages):
    def come_to(changed, size):
        return {"causal": pair_mean(causal_changes(changed, size))}

    norms = causal_norms(model, passages.idx)
    matrix = causal_changes(*(of_sequences.mean(dim=0).numpy() for of_sequences in norms))
    scores, errors = jackknife(come_to, *norms)
    return {"causal_matrix": matrix.tolist(), **scores}, errors


def score_permutation(model, passages):
    def come_to(swapped, whole):
        changes = swap_changes(swapped, whole)
        return {"permutation": float(changes.mean()) if len(changes) else None}

    losses = swap_losses(model, passages.idx, passages.targets)
    changes = swap_changes(*(of_sequences.mean(dim=0) for of_sequences in losses))
    matrix = matrix_of_pairs(changes, len(model.blocks))
    scores, errors = jackknife(come_to, *losses)
    return {"permutation_matrix": matrix.tolist(), **scores}, errors


def score_jacobian(model, passages):
    """On few of the sequences, as it costs much; exact where the stream is no wider than the probes
    are many."""
    few = few_of(passages.idx)
    if model.config.n_embd > PROBES:
        values, errors = jacobian_by_probes(model, few)
        entries, errors = {**values, "probes": PROBES}, {"jacobian": errors}
    else:
        torch.set_float32_matmul_precision("highest")  # J - I is a small difference
        entries, errors = as_lists(jacobian_deviation(model, few)), {}
        torch.set_float32_matmul_precision("high")
    return {"jacobian": {**entries, "sequences": len(few)}}, errors


def few_of(idx):
    return idx[: max(1, len(idx) // JACOBIAN_SHARE)]


def jacobian_by_probes(model, idx, n_probes=PROBES, seed=0):
    """{"deviation", "per_token"} of analyze.jacobian_deviation for each block, and their standard
    errors over the probes. With random signs v, the mean of ||(J - I) v||^2 is ||J - I||_F^2, and
    J v is the derivative of v . sum_s h_{l+1}[s] with respect to h_l (Hutchinson's trick)."""
    (N, T), L, C = idx.shape, len(model.blocks), model.config.n_embd
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(n_probes, C))
    signs = torch.from_numpy(signs).to(idx.device)
    mean = zeros_in_float64(L, n_probes, C, device=idx.device)  # J v
    squares = zeros_in_float64(L, n_probes, N * T, device=idx.device)  # ||(J_t - I) v||^2
    for n, row in enumerate(idx):
        with torch.no_grad():
            states = hidden_states(model, row[None])
        for l, block in enumerate(model.blocks):
            for some in torch.arange(n_probes).split(max(1, TOKENS_AT_ONCE // T)):
                products = probe_products(block, states[l][0], signs[some])
                mean[l, some] += products.mean(dim=1) / N
                of_tokens = (products - signs[some, None]).square().sum(dim=-1)
                squares[l, some, n * T : (n + 1) * T] = of_tokens
    deviation = (mean - signs).square().sum(dim=-1).T  # (probes, L)

    def come_to(deviation, squares):
        return {
            "deviation": np.sqrt(deviation) / C,
            "per_token": np.sqrt(squares).mean(axis=-1) / C,
        }

    values, errors = jackknife(come_to, deviation.cpu(), squares.transpose(0, 1).cpu())
    return {name: value.tolist() for name, value in values.items()}, errors


def probe_products(block, h, signs):
    """J_t v of the block at h (T, C) for each v of signs (n, C): (n, T, C), float64."""
    x = h.expand(len(signs), *h.shape).clone().requires_grad_()
    picked = (block(x).sum(dim=1) * signs.to(h.dtype)).sum()
    (products,) = torch.autograd.grad(picked, x)
    return products.double()


SCORES = {  # in the order in which they run
    "loss": score_loss,
    "stream": score_stream,
    "similarity": score_likeness,
    "removal": score_removal,
    "causal": score_causal,
    "linear": score_linear,
    "jacobian": score_jacobian,
    "stretches": score_stretches,
    "permutation": score_permutation,
    "cumulative": score_cumulative,
}


def runs_of_scores(L, C, n_sequences, n_fit):
    """{score: (block runs, read-outs)}, about, a sequence at a time. A gradient counts for two, a
    fitted map for one. Of stretches, a quarter of all lengths are thought to be tried."""
    N, pairs = n_sequences, L * L / 2
    few = max(1, N // JACOBIAN_SHARE)
    return {
        "loss": (N * L, N),
        "stream": (N * L, 0),
        "similarity": (2 * N * L, N * (L + 2)),
        "removal": (N * (L + pairs), N * (L + 1)),
        "causal": (N * (L + pairs), 0),
        "linear": (2 * n_fit * L + 3 * N * (L + pairs), 3 * N * (L + 1)),
        "jacobian": (3 * few * L * min(C, PROBES), 0),
        "stretches": (N * L**3 / 11, N * L * L / 4),
        "permutation": (N * L**3 / 3, N * pairs),
        "cumulative": (N * (L**3 / 6 + 3 * pairs), N * (pairs + 3 * L)),
    }
