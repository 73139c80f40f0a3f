"""Our scores against the way of the published scripts, on one trained model and the same sequences; no test.

    python tests/published_way.py out/depth/n_layer=32,seed=0 [--sequences 100] [--every 16]

Their way, written anew: a bf16 model; every intervention is a full forward pass over all sequences in micro-batches
of four, logits and loss included; the Jacobian takes, for each layer and micro-batch of two, a full forward pass and
one backward pass for each of the n_embd features. As that takes long, only one in `--every` of their interventions
is timed and the time multiplied. Ours is timed whole. Writes results/score_speed.json."""
import argparse
import sys
import time
from pathlib import Path

import torch
import torch.nn as nn

sys.path.insert(0, str(Path(__file__).parent.parent))
import analyze  # noqa: E402
from configs.read import TrainConfig  # noqa: E402
from data.read import held_out_sequences  # noqa: E402
from train import choose_hardware, load_run, write_json  # noqa: E402


@torch.no_grad()
def full_pass(model, blocks, rows, wanted):
    """One intervention on one micro-batch, their way: from the embeddings to the loss; all hidden states."""
    states = analyze.hidden_states(model, rows, blocks)
    model.read_out_with_loss(states[-1], wanted)[1].item()
    return states


def micro_batches(idx, targets):
    return zip(idx.split(4), targets.split(4))


def published_causal(model, idx, targets, s):
    blocks = list(model.blocks)
    for rows, wanted in micro_batches(idx, targets):
        before = full_pass(model, blocks, rows, wanted)
        after = full_pass(model, [*blocks[:s], nn.Identity(), *blocks[s + 1:]], rows, wanted)
        for l in range(s + 1, len(blocks)):
            change = (after[l + 1] - after[l]) - (before[l + 1] - before[l])
            (change.norm(dim=-1).mean() / (before[l + 1] - before[l]).norm(dim=-1).mean()).item()


def published_swap(model, idx, targets, pair):
    blocks = list(model.blocks)
    blocks[pair[0]], blocks[pair[1]] = blocks[pair[1]], blocks[pair[0]]
    for rows, wanted in micro_batches(idx, targets):
        full_pass(model, blocks, rows, wanted)


def published_linear(model, idx, targets, l):
    blocks = list(model.blocks)
    states = [full_pass(model, blocks, rows, wanted)[l:l + 2] for rows, wanted in micro_batches(idx, targets)]
    X, Y = (torch.cat([pair[side].float().cpu().flatten(0, 1) for pair in states]) for side in (0, 1))
    solution = torch.linalg.lstsq(torch.cat((X, torch.ones(len(X), 1)), 1), Y).solution.to(idx.device, states[0][0].dtype)
    blocks[l] = lambda h: h @ solution[:-1] + solution[-1]
    for rows, wanted in micro_batches(idx, targets):
        full_pass(model, blocks, rows, wanted)


def published_jacobian(model, idx, targets, l):
    for rows in idx.split(2):
        h = model.embed(rows)
        for depth, block in enumerate(model.blocks):
            x, h = h, block(h)
            if depth == l:
                inside, outside = x, h
        for feature in range(model.config.n_embd):
            gradient = torch.zeros_like(outside)
            gradient[..., feature] = 1
            torch.autograd.grad(outside, inside, gradient, retain_graph=True)[0].mean(dim=(0, 1)).cpu()


def seconds(function):
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--sequences", type=int, default=100)
    parser.add_argument("--every", type=int, default=16)
    arguments = parser.parse_args()
    device, dtype = choose_hardware(TrainConfig())[:2]
    model, config = load_run(arguments.run, device)
    data = held_out_sequences(config, model.config, arguments.sequences, device=device)
    few = tuple(t[:max(1, arguments.sequences // 12)] for t in data)
    layers = range(len(model.blocks))
    analyze.layer_variance(model, data[0][:4])  # wake the device up
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    ours = {"jacobian": seconds(lambda: analyze.jacobian_deviation(model, few[0]))}
    torch.set_float32_matmul_precision("high")
    fast = analyze.with_compiled_blocks(model)
    compiling = seconds(lambda: (analyze.prune_ratios(fast, *data), analyze.causal_matrix(fast, data[0])))
    ours |= {"causal": seconds(lambda: analyze.causal_matrix(fast, data[0])),
             "permutation": seconds(lambda: analyze.permutation_matrix(fast, *data)),
             "linear": seconds(lambda: analyze.linear_ratios(fast, analyze.fit_linear_maps(fast, data[0]), *data))}
    everything = seconds(lambda: analyze.score_run(model, config, arguments.sequences, device))
    memory = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None
    model.compute_dtype = dtype
    published = {}
    for name, way, interventions, sample in (
            ("causal", published_causal, layers, data), ("permutation", published_swap, [(a, b) for a in layers for b in layers if b > a], data),
            ("linear", published_linear, layers, data), ("jacobian", published_jacobian, layers, few)):
        timed = list(interventions)[arguments.every // 2::arguments.every] or list(interventions)[:1]
        published[name] = seconds(lambda: [way(model, *sample, i) for i in timed]) * len(interventions) / len(timed)
    total = {"ours": sum(ours.values()), "published": sum(published.values())}
    print(f"{'seconds':14}{'ours':>10}{'published':>12}{'ratio':>8}")
    for name in ours:
        print(f"{name:14}{ours[name]:10.2f}{published[name]:12.1f}{published[name] / ours[name]:8.1f}")
    print(f"{'together':14}{total['ours']:10.2f}{total['published']:12.1f}{total['published'] / total['ours']:8.1f}")
    print(f"all of our scores: {everything:.1f} s, and {compiling:.1f} s before to compile" + (f", {memory:.2f} GiB" if memory else ""))
    write_json(Path("results/score_speed.json"), {
        "run": arguments.run.name, "sequences": len(data[0]), "length": data[0].shape[1], "jacobian_sequences": len(few[0]), "ours": ours,
        "published": published, "ratio": total["published"] / total["ours"], "all_scores_seconds": everything, "compile_seconds": compiling, "peak_memory_GiB": memory,
        "timed_one_in": arguments.every, "torch": torch.__version__, "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu"})


if __name__ == "__main__":
    main()
