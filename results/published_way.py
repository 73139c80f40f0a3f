"""Our scores against the way of the published scripts, on one trained model and the same sequences.

    python -m results.published_way out/depth/n_layer=32,seed=0 [--sequences 100] [--every 16]

Their way, written anew: a bf16 model; every intervention is a full forward pass over all sequences
in micro-batches of four, logits and loss included; the Jacobian takes, for each layer and
micro-batch of two, a full forward pass and one backward pass for each of the n_embd features. As
that takes long, only one in `--every` of their interventions is timed and the time multiplied.
Ours is timed whole. Writes results/score_speed.json.
"""

from data import interrupt

if __name__ == "__main__":
    interrupt.before_imports()

import argparse
import time
from pathlib import Path

import torch
import torch.nn as nn

import analyze
from configs.read import TrainConfig
from data.files import or_one_sentence, write_json
from data.read import held_out_sequences
from hardware import choose_hardware, device_name, fast, forget_peak_memory, peak_memory
from results.runs import load_run

JACOBIAN_SHARE = analyze.JACOBIAN_SHARE  # one in so many sequences


# Their way ---------------------------------------------------------------------------------------


@torch.no_grad()
def full_pass(model, blocks, rows, wanted):
    """One intervention on one micro-batch: from the embeddings to the loss; all hidden states."""
    states = analyze.hidden_states(model, rows, blocks)
    model.read_out_with_loss(states[-1], wanted)[1].item()
    return states


def micro_batches(idx, targets):
    return zip(idx.split(4), targets.split(4), strict=True)


def published_causal(model, idx, targets, s):
    blocks = list(model.blocks)
    skipped = [*blocks[:s], nn.Identity(), *blocks[s + 1 :]]
    for rows, wanted in micro_batches(idx, targets):
        before = full_pass(model, blocks, rows, wanted)
        after = full_pass(model, skipped, rows, wanted)
        for l in range(s + 1, len(blocks)):
            added = before[l + 1] - before[l]
            change = (after[l + 1] - after[l]) - added
            (change.norm(dim=-1).mean() / added.norm(dim=-1).mean()).item()


def published_swap(model, idx, targets, pair):
    a, b = pair
    blocks = list(model.blocks)
    blocks[a], blocks[b] = blocks[b], blocks[a]
    for rows, wanted in micro_batches(idx, targets):
        full_pass(model, blocks, rows, wanted)


def published_linear(model, idx, targets, l):
    blocks = list(model.blocks)
    inputs, outputs = [], []
    for rows, wanted in micro_batches(idx, targets):
        states = full_pass(model, blocks, rows, wanted)
        inputs.append(states[l])
        outputs.append(states[l + 1])
    X, Y = (torch.cat([h.float().cpu().flatten(0, 1) for h in side]) for side in (inputs, outputs))
    solution = torch.linalg.lstsq(torch.cat((X, torch.ones(len(X), 1)), 1), Y).solution
    solution = solution.to(idx.device, inputs[0].dtype)
    blocks[l] = lambda h: h @ solution[:-1] + solution[-1]
    for rows, wanted in micro_batches(idx, targets):
        full_pass(model, blocks, rows, wanted)


def published_jacobian(model, idx, targets, l):
    for rows in idx.split(2):
        states = analyze.hidden_states(model, rows)
        for feature in range(model.config.n_embd):
            picked = torch.zeros_like(states[l + 1])
            picked[..., feature] = 1
            (gradient,) = torch.autograd.grad(states[l + 1], states[l], picked, retain_graph=True)
            gradient.mean(dim=(0, 1)).cpu()


# Timing ------------------------------------------------------------------------------------------


def seconds(function, *arguments):
    """How long function(*arguments) takes, on the GPU too."""
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    wait()
    start = time.perf_counter()
    function(*arguments)
    wait()
    return time.perf_counter() - start


def our_causal(model, idx, targets):
    analyze.causal_matrix(model, idx)


def our_linear(model, idx, targets):
    analyze.linear_ratios(model, analyze.fit_linear_maps(model, idx), idx, targets)


def compile_blocks(model, idx, targets):
    analyze.prune_ratios(model, idx, targets)
    analyze.causal_matrix(model, idx)


def time_ours(model, data, few):
    """Seconds of each of our scores, {name: seconds}, and of compiling before them."""
    ours = {"jacobian": seconds(analyze.jacobian_deviation, model, few[0])}
    torch.set_float32_matmul_precision("high")
    compiled = fast.with_compiled_blocks(model) if fast else model
    compiling = seconds(compile_blocks, compiled, *data)
    ours["causal"] = seconds(our_causal, compiled, *data)
    ours["permutation"] = seconds(analyze.permutation_matrix, compiled, *data)
    ours["linear"] = seconds(our_linear, compiled, *data)
    return ours, compiling


def time_published(model, data, few, every):
    """Seconds of each of theirs, {name: seconds}, from one intervention in `every`."""
    layers = list(range(len(model.blocks)))
    pairs = [(a, b) for a in layers for b in layers if b > a]
    return {
        "causal": time_some(published_causal, model, data, layers, every),
        "permutation": time_some(published_swap, model, data, pairs, every),
        "linear": time_some(published_linear, model, data, layers, every),
        "jacobian": time_some(published_jacobian, model, few, layers, every),
    }


def time_some(way, model, data, interventions, every):
    timed = interventions[every // 2 :: every] or interventions[:1]

    def run_timed():
        for intervention in timed:
            way(model, *data, intervention)

    return seconds(run_timed) * len(interventions) / len(timed)


def print_ratios(ours, published):
    print(f"{'seconds':14}{'ours':>10}{'published':>12}{'ratio':>8}")
    rows = [(name, ours[name], published[name]) for name in ours]
    rows.append(("together", sum(ours.values()), sum(published.values())))
    for name, our, their in rows:
        print(f"{name:14}{our:10.2f}{their:12.1f}{their / our:8.1f}")


def compare(folder, n_sequences, every):
    """What score_speed.json holds."""
    hardware = choose_hardware(TrainConfig())
    device = hardware.device
    model, config = load_run(folder, device)
    data = held_out_sequences(config, model.config, n_sequences, device=device)
    few = [t[: max(1, n_sequences // JACOBIAN_SHARE)] for t in data]
    analyze.layer_variance(model, data[0][:4])  # wake the device up
    forget_peak_memory(device)
    ours, compiling = time_ours(model, data, few)
    everything = seconds(analyze.score_run, model, config, n_sequences, device)
    memory = peak_memory(device)
    model.compute_dtype = hardware.dtype
    published = time_published(model, data, few, every)
    print_ratios(ours, published)
    print(f"all of our scores: {everything:.1f} s, and {compiling:.1f} s before to compile")
    print(f"peak memory: {memory:.2f} GiB")
    return {
        "torch": torch.__version__,
        "device": device_name(device),
        "run": folder.name,
        "sequences": len(data[0]),
        "length": data[0].shape[1],
        "jacobian_sequences": len(few[0]),
        "ours": ours,
        "published": published,
        "ratio": sum(published.values()) / sum(ours.values()),
        "all_scores_seconds": everything,
        "compile_seconds": compiling,
        "peak_memory_GiB": memory,
        "timed_one_in": every,
    }


def write_comparison(arguments):
    measured = compare(arguments.run, arguments.sequences, arguments.every)
    write_json(Path("results/score_speed.json"), measured)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--sequences", type=int, default=100)
    parser.add_argument("--every", type=int, default=16)
    or_one_sentence(write_comparison, parser.parse_args())


if __name__ == "__main__":
    main()
