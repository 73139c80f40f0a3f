"""How it is trained: config -> runs -> run folders.

    python train.py configs/demo.toml                             every point of the sweep, one after another
    python train.py configs/depth.toml --n_layer=4,8 --seed=0     other values; a list, with commas, is swept
    torchrun --nproc_per_node=4 train.py configs/depth.toml       the points shared out among four GPUs

Each point of a config (configs/read.py) trains into out/<config>/<point>/: config.json, log.jsonl, ckpt.pt and, once it
is finished, summary.json. The same command, started again after any kind of death, skips what is finished and goes on
from the last evaluation.
"""
import argparse
import gc
import json
import math
import os
import statistics
import sys
import time
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch.utils._triton import has_triton
from tqdm import tqdm

from configs.read import OPTIONS, WHERE_NOT_WHAT, build_configs, help_of_options, load_points, parse_override
from data.files import BadInput, or_one_sentence, replacing, write_json
from data.read import load_meta, load_tokens, take_sequences, training_offsets, validation_offsets
from model import GPT, cross_entropy


# Measuring while training -------------------------------------------------------------------------------------

@torch.no_grad()
def forward_with_variance(model, idx):
    """Run idx (B, T) through the blocks: h_L (B, T, C), and the variance over features, averaged over tokens, of
    {"residual": h_0 .. h_L (L + 1 numbers), "attention": the branches' outputs (L), "mlp": the same (L)}.
    In fp32 or better whatever the stream's dtype. Paper: `h_l.var(dim=-1)`, unbiased."""
    variance = {"residual": [], "attention": [], "mlp": []}

    def record(kind):
        def hook(module, args, output):
            variance[kind].append((output if output.dtype == torch.float64 else output.float()).var(dim=-1).mean())
        return hook

    h = model.embed(idx)
    record("residual")(None, None, h)
    handles = [module.register_forward_hook(record(kind)) for block in model.blocks for kind, module in
               (("residual", block), ("attention", block.attention), ("mlp", block.mlp))]
    try:
        for block in model.blocks:
            h = block(h)
    finally:
        for handle in handles:
            handle.remove()
    return h, {kind: torch.stack(values) for kind, values in variance.items()}


@torch.no_grad()
def evaluate(model, tokens, config):
    """Cross-entropy alone (no router losses) and variances on the fixed validation set."""
    model.eval()
    T, device = model.config.block_size, model.head.weight.device
    offsets = validation_offsets(config, len(tokens), T)
    # Uncompiled: a second compilation, for evaluation, would cost more than it saves.
    eager = torch.compiler.set_stance("force_eager") if device.type == "cuda" else nullcontext()
    loss, totals = 0.0, {}
    with eager:
        for batch in np.array_split(offsets, math.ceil(len(offsets) / config.batch_size)):
            idx, targets = take_sequences(tokens, batch, T, device)
            h, variance = forward_with_variance(model, idx)
            share = len(batch) / len(offsets)
            loss += share * cross_entropy(model.read_out(h), targets).mean()
            totals = {kind: totals.get(kind, 0) + share * values for kind, values in variance.items()}
    model.train()
    return {"val_loss": loss.item(), "variance": totals["residual"].tolist(),
            "attention_variance": totals["attention"].tolist(), "mlp_variance": totals["mlp"].tolist()}


# One run ------------------------------------------------------------------------------------------------------

def choose_hardware(config):
    """-> device, dtype, whether to compile, and one line on what this GPU cannot do (empty: nothing)."""
    name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.empty(0, device=name if config.device == "auto" else config.device).device
    except (RuntimeError, AssertionError) as error:
        raise BadInput(f"device = {config.device} cannot be used here ({str(error).splitlines()[0]})") from None
    on_gpu = device.type == "cuda"
    real_bf16 = on_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
    dtype = {"auto": torch.bfloat16 if real_bf16 else torch.float32}.get(config.dtype) or getattr(torch, config.dtype)
    lacking = [what for what, has in (("bfloat16", real_bf16), ("Triton", has_triton())) if on_gpu and not has]
    note = f"this GPU has no {' and no '.join(lacking)}: training works, only slower" if lacking else ""
    return device, dtype, config.compile and on_gpu and has_triton(), note


def learning_rate_at(step, config):
    """Linear warm-up from 0, then a cosine down to min_lr at max_iters."""
    if step < config.warmup_iters:
        return config.learning_rate * (step + 1) / config.warmup_iters
    progress = (step - config.warmup_iters) / max(1, config.max_iters - config.warmup_iters)
    return config.min_lr + 0.5 * (config.learning_rate - config.min_lr) * (1 + math.cos(math.pi * progress))


def build_training(model_config, config):
    """The model on its device and its optimizer, seeded."""
    device, dtype, compiled, _ = choose_hardware(config)
    torch.manual_seed(config.seed)
    model = GPT(model_config).to(device)
    model.compute_dtype = dtype
    if compiled:
        model.compile_for_gpu()
    on_gpu = device.type == "cuda"  # there the learning rate is a tensor, which a recorded step can read
    optimizer = torch.optim.AdamW(model.parameter_groups(config.weight_decay), betas=(0.9, 0.95), eps=1e-8, fused=True,
                                  capturable=on_gpu, lr=torch.tensor(config.learning_rate, device=device) if on_gpu else config.learning_rate)
    return model, optimizer


def make_update(model, optimizer, tokens, config):
    """-> update(step): one optimizer step; its cross-entropy (mean over its batches) and gradient norm, on the device, as are the tokens."""
    T, device = model.config.block_size, model.head.weight.device
    tokens_there = torch.from_numpy(tokens.view(np.int16)).to(device)  # the bits of uint16, which few operations know
    places = torch.arange(T + 1, device=device)

    def optimize(offsets):
        rows = tokens_there[offsets[:, None] + places].long() & 0xFFFF
        loss = torch.zeros((), device=device)
        for batch in rows.chunk(config.gradient_accumulation_steps):
            _, batch_loss = model(batch[:, :-1], batch[:, 1:])
            ((batch_loss + model.router_loss()) / config.gradient_accumulation_steps).backward()
            loss += batch_loss.detach() / config.gradient_accumulation_steps
        gradient_norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])
        # Clipping: fused AdamW divides by grad_scale as it reads the gradients, which saves a pass over them.
        optimizer.grad_scale = (gradient_norm / (config.grad_clip or math.inf)).clamp(min=1)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss, gradient_norm

    def update(step):
        for group in optimizer.param_groups:
            if device.type == "cuda":
                group["lr"].fill_(learning_rate_at(step, config))
            else:
                group["lr"] = learning_rate_at(step, config)
        return optimize(torch.from_numpy(training_offsets(config, len(tokens), T, step)).to(device, non_blocking=True))

    if device.type == "cuda" and model.compute_dtype == torch.bfloat16:
        optimize = as_cuda_graph(optimize)
    return update


def as_cuda_graph(function, n_warm_up=3):
    """For speed alone: function(x) recorded once and replayed, as launching a step's many small kernels one by one
    takes longer than running them. The first calls run as they are, which compiles and allocates whatever is lazy."""
    graph, stream, calls, static_x, result = torch.cuda.CUDAGraph(), torch.cuda.Stream(), 0, None, None

    def replay(x):
        nonlocal calls, static_x, result
        static_x = torch.empty_like(x) if static_x is None else static_x
        static_x.copy_(x)
        calls += 1
        if calls <= n_warm_up:
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                result = function(static_x)
            torch.cuda.current_stream().wait_stream(stream)
            return result
        if calls == n_warm_up + 1:
            with torch.cuda.graph(graph):
                result = function(static_x)
        graph.replay()
        return result
    return replay


PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "4090": 165e12, "3090": 71e12}  # bf16, dense, by data sheet


def bench(points, n_windows=10):
    """Time the real training step of each point on random tokens; writes no run. Prints a line for each point and
    returns what it says, [{"name", "tokens_per_second", ...}]."""
    rows = []
    for name, point in points.items():
        rows.append({"name": name, **time_steps(point.model, point.training, n_windows)})
        tqdm.write("{name}  {tokens_per_second:,.0f} tokens/s ({slowest:,.0f} to {fastest:,.0f})  first step after {first_step_seconds:.1f} s  "
                   "MFU {mfu:.1%}  memory {memory_GiB:.2f} GiB  {device}".format(**rows[-1]).replace("nan%", "unknown"))
        gc.collect()  # a recorded step's memory goes with its last reference
    return rows


def time_steps(model_config, config, n_windows):
    """Tokens/s (median, slowest and fastest of n_windows windows of steps), seconds to the first step, model FLOPs
    utilisation (GPT.flops_per_token), peak memory."""
    started = time.perf_counter()
    model, optimizer = build_training(model_config, config)
    device = model.head.weight.device
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    tokens = np.random.default_rng(0).integers(model_config.vocab_size, size=2**22).astype(np.uint16)
    update = make_update(model, optimizer, tokens, config)
    update(0)[0].item()
    first, speeds, n_steps = time.perf_counter() - started, [], 20 if on_gpu else 2
    for window in range(-1, n_windows):  # the first one is not counted
        began = time.perf_counter()
        for step in range(n_steps):
            loss, _ = update(1 + step)
        loss.item()
        speeds.append(n_steps * config.sequences_per_step * model_config.block_size / (time.perf_counter() - began))
    speeds, kind = sorted(speeds[1:]), torch.cuda.get_device_name(device) if on_gpu else "cpu"
    peak = next((flops for part, flops in PEAK_FLOPS.items() if part in kind), math.nan)
    return {"tokens_per_second": statistics.median(speeds), "slowest": speeds[0], "fastest": speeds[-1], "first_step_seconds": first,
            "mfu": statistics.median(speeds) * model.flops_per_token() / peak,  # nan where the device's peak is unknown
            "memory_GiB": peak_memory(device), "device": kind, "torch": torch.__version__}


def peak_memory(device):
    """In GiB: on a GPU, of its tensors; on the CPU, of the whole process since it began."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    if sys.platform == "win32":
        return math.nan
    import resource  # which Windows lacks
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 2**30


def load_checkpoint(folder, map_location):
    try:
        return torch.load(folder / "ckpt.pt", map_location=map_location, weights_only=True)
    except Exception as error:  # torch.load raises many kinds for a damaged file
        raise BadInput(f"{folder / 'ckpt.pt'} cannot be read ({type(error).__name__}): delete {folder} to train it again") from None


def load_run(folder, device="cpu"):
    """A trained model, fp32 and in eval mode, with its TrainConfig. Raises BadInput."""
    folder = Path(folder)
    try:
        options = json.loads((folder / "config.json").read_text())
    except (OSError, json.JSONDecodeError):
        raise BadInput(f"{folder} is not a run folder: it has no readable config.json") from None
    model_config, config = build_configs({k: v for k, v in options.items() if k in OPTIONS}, folder / "config.json")
    model = GPT(model_config).to(device)
    model.load_state_dict(load_checkpoint(folder, device)["model"])
    return model.eval(), config


def read_log(folder):
    """The lines of log.jsonl, without a last one that a kill cut short."""
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().split("\n")[:-1]]


def finished(folder, identity):
    """Is this very run done? Raises BadInput where the folder holds another one's work."""
    if not (folder / "config.json").exists():
        return False
    was = json.loads((folder / "config.json").read_text())
    changed = [f"{k} was {was.get(k)}, now {v}" for k, v in identity.items() if k not in WHERE_NOT_WHAT and was.get(k) != v]
    if changed:
        raise BadInput(f"{folder} holds a run of another config ({'; '.join(changed)}): delete it, or set --out_dir")
    return (folder / "summary.json").exists()


def train(folder, model_config, config, bar_position=0):
    """Train one point into its folder, from its checkpoint if it has one; returns its summary."""
    train_tokens, val_tokens = (load_tokens(config.dataset, split, model_config) for split in ("train", "val"))
    identity = {**asdict(model_config), **asdict(config), "data_sha256": load_meta(config.dataset)["sha256"]}
    if finished(folder, identity):
        return json.loads((folder / "summary.json").read_text())
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", identity)
    model, optimizer = build_training(model_config, config)
    device, tokens_per_step = model.head.weight.device, config.sequences_per_step * model_config.block_size
    step, seconds, log = 0, 0.0, []
    if (folder / "ckpt.pt").exists():
        checkpoint = load_checkpoint(folder, device)
        model.load_state_dict(checkpoint["model"])
        optimizer.load_state_dict({**optimizer.state_dict(), "state": checkpoint["optimizer"]})  # the options are this machine's
        step, seconds = checkpoint["step"], checkpoint["seconds"]
        log = [line for line in read_log(folder) if line["step"] <= step]
    else:
        log = [{"step": 0, "tokens": 0, **evaluate(model, val_tokens, config)}]
    with replacing(folder / "log.jsonl") as temporary:
        temporary.write_text("".join(json.dumps(line) + "\n" for line in log))

    update = make_update(model, optimizer, train_tokens, config)
    started, last_time, last_step = time.perf_counter() - seconds, time.perf_counter(), step
    bar = tqdm(total=config.max_iters, initial=step, desc=folder.name, unit="step", position=bar_position, leave=False, disable=None)
    diverged = False
    while step < config.max_iters and not diverged:
        loss, gradient_norm = update(step)
        step += 1
        bar.update()
        evaluates = step % config.eval_interval == 0 or step == config.max_iters
        if step % config.log_interval and not evaluates:
            continue
        loss, gradient_norm = loss.item(), gradient_norm.item()  # waits for the device
        diverged = not (math.isfinite(loss) and math.isfinite(gradient_norm))
        if diverged:
            break
        speed = (step - last_step) * tokens_per_step / (time.perf_counter() - last_time)
        line = {"step": step, "tokens": step * tokens_per_step, "train_loss": loss, "lr": learning_rate_at(step - 1, config),
                "grad_norm": gradient_norm, "tokens_per_second": speed}
        bar.set_postfix(loss=f"{loss:.3f}", tokens_per_second=f"{speed:,.0f}")
        if evaluates:
            line |= evaluate(model, val_tokens, config)
            diverged = not math.isfinite(line["val_loss"])
        log.append(line)
        with open(folder / "log.jsonl", "a") as file:
            file.write(json.dumps(line) + "\n")
        if evaluates and not diverged:
            with replacing(folder / "ckpt.pt") as temporary:
                torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()["state"], "step": step,
                            "seconds": time.perf_counter() - started}, temporary)
        last_time, last_step = time.perf_counter(), step
    bar.close()
    summary = summarise(log, model, step, time.perf_counter() - started, diverged)
    write_json(folder / "summary.json", summary)
    return summary


def summarise(log, model, step, seconds, diverged):
    validated = next(line for line in reversed(log) if "val_loss" in line)
    speeds = [line["tokens_per_second"] for line in log if "tokens_per_second" in line]
    device = model.head.weight.device
    return {"val_loss": None if diverged else validated["val_loss"],
            "perplexity": None if diverged else math.exp(validated["val_loss"]),
            "last_layer_variance": None if diverged else validated["variance"][-1],
            "params": model.count_parameters(), "active_params": model.count_parameters(active=True),
            "tokens": log[-1]["tokens"], "seconds": seconds, "tokens_per_second": statistics.median(speeds) if speeds else None,
            "diverged": diverged, "torch": torch.__version__,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"}


# Command line -------------------------------------------------------------------------------------------------

def parse_arguments(argv):
    """The config's path, {option: [values]} and whether to time only; --help shows the dataclasses' own comments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     usage="python train.py CONFIG [--option=value ...]", allow_abbrev=False)
    parser.add_argument("config", metavar="CONFIG", help="a TOML file, such as configs/demo.toml")
    comments = help_of_options()
    for name, field in OPTIONS.items():
        parser.add_argument(f"--{name}", metavar=field.type.__name__, help=f"{comments[name]} (default {field.default})")
    parser.add_argument("--bench", action="store_true", help="time the training step of each point; train nothing")
    arguments = vars(parser.parse_args(argv))
    path, timed = Path(arguments.pop("config")), arguments.pop("bench")
    return path, {name: parse_override(name, text) for name, text in arguments.items() if text is not None}, timed


def run_sweep(path, overrides, timed):
    points = load_points(path, overrides)
    if timed:
        bench(points)
        return
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    mine = list(points.items())[rank::world_size]  # torchrun: points are independent, so sharing them out is all
    if rank == 0 and (note := choose_hardware(next(iter(points.values()))[1])[-1]):
        print(note, file=sys.stderr)
    for name, (model_config, config, _) in tqdm(mine, desc=path.stem, unit="run", position=2 * rank, disable=None):
        try:
            summary = train(Path(config.out_dir) / path.stem / name, model_config, config, bar_position=2 * rank + 1)
        except torch.OutOfMemoryError:
            raise BadInput(f"{name} is out of GPU memory: halve batch_size and double gradient_accumulation_steps, which gives "
                           "the same result") from None
        result = "diverged" if summary["diverged"] else (
            f"val_loss {summary['val_loss']:.4f}  perplexity {summary['perplexity']:.2f}  "
            f"last_layer_variance {summary['last_layer_variance']:.4g}")
        tqdm.write(f"{name}  {result}  {summary['seconds']:.0f} s")


def main(argv=None):
    try:
        or_one_sentence(lambda: run_sweep(*parse_arguments(argv)))
    except KeyboardInterrupt:
        print("\ntrain.py: stopped; the same command goes on from the last evaluation", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
