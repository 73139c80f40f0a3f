"""How it is trained: config -> runs -> run folders.

    python train.py configs/demo.toml                             every point of the sweep in turn
    python train.py configs/depth.toml --n_layer=4,8 --seed=0     other values; a list is swept
    torchrun --nproc_per_node=4 train.py configs/depth.toml       points shared out among four GPUs

Each point of a config (configs/read.py) trains into out/<config>/<point>/: config.json, log.jsonl,
ckpt.pt and, once it is finished, summary.json. The same command, started again after any kind of
death, skips what is finished and goes on from the last checkpoint.
"""

from data import interrupt

if __name__ == "__main__":
    interrupt.before_imports()

import json
import math
import statistics
import sys
import time
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from configs.read import load_points, parse_arguments
from data.files import (
    BadInput,
    append_line,
    check_name,
    locked,
    or_one_sentence,
    reason,
    replacing,
    say,
    sync,
    write_json,
    write_text,
)
from data.read import load_meta, load_tokens, spread_offsets, take_sequences, training_offsets
from hardware import (
    Hardware,
    choose_hardware,
    device_name,
    fast,
    forget_peak_memory,
    from_environment,
    memory_errors_explained,
    peak_memory,
    refuse_too_large,
)
from model import GPT, RemediedBlock, at_least_fp32
from results.checks import LARGEST_LOSS
from results.runs import (
    copy_run,
    damaged,
    finished,
    load_checkpoint,
    load_weights,
    read_log,
    read_summary,
    twin_of,
)

# The step ----------------------------------------------------------------------------------------


def training_step(model, optimizer, batch, config):
    """One optimizer step on batch (sequences_per_step, block_size + 1), taken in
    gradient_accumulation_steps parts. Returns the mean cross-entropy in nats and the gradient norm
    before clipping."""
    parts = batch.chunk(config.gradient_accumulation_steps)
    mean_loss = torch.zeros((), device=batch.device)
    for part in parts:
        _, loss = model(part[:, :-1], part[:, 1:])
        ((loss + model.take_router_loss()) / len(parts)).backward()
        mean_loss += loss.detach() / len(parts)
    largest_norm = config.grad_clip or math.inf
    gradient_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), largest_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return mean_loss, gradient_norm


def training_batch(tokens, config, block_size, step, device):
    """The step's sequences (sequences_per_step, block_size + 1): all but the last column are the
    inputs, all but the first the targets. A function of seed and step alone."""
    offsets = training_offsets(config, len(tokens), block_size, step)
    rows = tokens[offsets[:, None] + np.arange(block_size + 1)].astype(np.int64)
    batch = torch.from_numpy(rows)
    if device.type != "cuda":
        return batch.to(device)
    return batch.pin_memory().to(device, non_blocking=True)  # without waiting for the steps before


def learning_rate_at(step, config):
    """Linear warm-up from 0, then a cosine down to min_lr at max_iters; step counts from 0."""
    if step < config.warmup_iters:
        return config.learning_rate * (step + 1) / config.warmup_iters
    n_steps = max(1, config.max_iters - config.warmup_iters)
    progress = (step - config.warmup_iters) / n_steps  # 0 to 1
    height = 0.5 * (1 + math.cos(math.pi * progress))  # 1 to 0
    return config.min_lr + height * (config.learning_rate - config.min_lr)


def make_update(model, optimizer, tokens, config, hardware):
    """update(step), which takes optimizer step number `step`, from 0, on its batch of tokens at its
    learning rate, and returns what training_step returns, on the device."""

    def take_step(batch):
        return training_step(model, optimizer, batch, config)

    if hardware.compiled:
        take_step = fast.recorded(take_step, model, optimizer)

    def update(step):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, config)
        batch = training_batch(tokens, config, model.config.block_size, step, hardware.device)
        return take_step(batch)

    return update


# One run -----------------------------------------------------------------------------------------


def train(folder, point, bar_position=0, out_dir=None):
    """Train a point (configs.read.Point) into its folder, from its checkpoint if it has one, and
    return its summary. A run that any sweep in out_dir has finished is copied. Raises BadInput
    where data, folder and options do not fit, or where another process trains it."""
    identity = identity_of(point)
    finished(folder, identity)  # before a folder is made: what is refused leaves nothing behind
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        if finished(folder, identity):
            return read_summary(folder)
        if out_dir and (twin := twin_of(folder, identity, out_dir)):
            say(f"{folder} is the same run as {twin}: copied")
            copy_run(twin, folder, point.sweep)
            return read_summary(folder)
        write_json(folder / "config.json", {**identity, "sweep": point.sweep})
        return train_to_the_end(folder, point, bar_position)


def train_to_the_end(folder, point, bar_position):
    """The training itself, from the folder's checkpoint or from the beginning. The folder has the
    run's config.json, and no other process works in it."""
    model_config, config, _ = point
    train_tokens = load_tokens(config.dataset, "train", model_config)
    val_tokens = load_tokens(config.dataset, "val", model_config)
    hardware = choose_hardware(config)
    forget_peak_memory(hardware.device)
    model, optimizer = build_training(model_config, config, hardware)
    log, seconds = resume_or_start(folder, model, optimizer, val_tokens, config)
    # Only now, as a loaded optimizer has new groups, which a recorded step holds on to.
    update = make_update(model, optimizer, train_tokens, config, hardware)
    began = time.perf_counter() - seconds  # as if there had been no stop
    diverged = not is_finite(log[-1])
    if not diverged:
        for line in run_steps(update, model, log, val_tokens, config, folder.name, bar_position):
            diverged = not is_finite(line)
            if diverged:
                break
            log.append(line)
            append_line(folder / "log.jsonl", json.dumps(line))
            if is_checkpoint(line, config):
                seconds = time.perf_counter() - began
                save_checkpoint(folder, model, optimizer, line["step"], seconds)
    summary = summarise(log, model, time.perf_counter() - began, diverged)
    write_json(folder / "summary.json", summary)
    return summary


def build_training(model_config, config, hardware):
    """A new model on its device, and its optimizer; seeded."""
    torch.manual_seed(config.seed)
    model = GPT(model_config).to(hardware.device)
    model.compute_dtype = hardware.dtype
    if hardware.compiled:
        try:
            fast.make_fast(model)
        except ValueError as error:
            raise BadInput(error) from None
    groups = model.parameter_groups(config.weight_decay, eps=1e-8)
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.95), fused=True)
    return model, optimizer


def run_steps(update, model, log, val_tokens, config, name, bar_position):
    """Take the steps behind the log's last one; yields a line, as for log.jsonl, at every logging
    step and at every evaluation, which has val_loss and the variances, too."""
    tokens_per_step = config.sequences_per_step * model.config.block_size
    step = last_step = log[-1]["step"]
    last_time = time.perf_counter()
    with progress_bar(name, step, config.max_iters, bar_position) as bar:
        while step < config.max_iters:
            loss, gradient_norm = update(step)
            step += 1
            bar.update()
            evaluates = step % config.eval_interval == 0 or step == config.max_iters
            if not evaluates and step % config.log_interval:
                continue
            line = {
                "step": step,
                "tokens": step * tokens_per_step,
                "train_loss": loss.item(),  # waits for the device
                "lr": learning_rate_at(step - 1, config),
                "grad_norm": gradient_norm.item(),
            }
            n_tokens = (step - last_step) * tokens_per_step
            line["tokens_per_second"] = n_tokens / (time.perf_counter() - last_time)
            show_on(bar, line)
            if evaluates and is_finite(line):
                line |= evaluate(model, val_tokens, config)
            yield line
            last_step, last_time = step, time.perf_counter()


def progress_bar(name, step, n_steps, position):
    """position: its line on the terminal; None: no bar, as other processes draw theirs."""
    return tqdm(
        total=n_steps,
        initial=step,
        desc=name,
        unit="step",
        position=position,
        leave=False,
        disable=True if position is None else None,
    )


def show_on(bar, line):
    speed = f"{line['tokens_per_second']:,.0f}"
    bar.set_postfix(loss=f"{line['train_loss']:.3f}", tokens_per_second=speed)


def is_finite(line):
    """Are all numbers of a line of log.jsonl finite, those in lists, too, and is its perplexity?
    If not, the run has diverged."""
    losses = [line.get(name, 0.0) for name in ("train_loss", "val_loss")]
    return max(losses) < LARGEST_LOSS and all(np.isfinite(v).all() for v in line.values())


def summarise(log, model, seconds, diverged):
    """summary.json: what a run came to. Of a diverged one the losses and the variance are None."""
    last = next(line for line in reversed(log) if "val_loss" in line)
    speeds = [line["tokens_per_second"] for line in log if "tokens_per_second" in line]
    device = model.head.weight.device
    return {
        "val_loss": None if diverged else last["val_loss"],
        "perplexity": None if diverged else math.exp(last["val_loss"]),
        "last_layer_variance": None if diverged else last["variance"][-1],
        "params": model.count_parameters(),
        "active_params": model.count_parameters(active=True),
        "tokens": log[-1]["tokens"],
        "seconds": seconds,
        "tokens_per_second": statistics.median(speeds) if speeds else None,
        "diverged": diverged,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),  # on the CPU, bits depend on them
        "memory_GiB": peak_memory(device) if device.type == "cuda" else None,
        "device": device_name(device),
    }


# Checkpoints -------------------------------------------------------------------------------------


def resume_or_start(folder, model, optimizer, val_tokens, config):
    """The log so far and the seconds it took: with a checkpoint, which is loaded, up to its step;
    without one, the evaluation before the first step. Raises BadInput where the checkpoint is
    damaged, another run's, or ahead of the log."""
    if (folder / "ckpt.pt").exists():
        checkpoint = load_checkpoint(folder, model.head.weight.device)
        load_weights(model, checkpoint, folder)
        load_moments(optimizer, checkpoint, folder)
        log = [line for line in read_log(folder) if line["step"] <= checkpoint["step"]]
        if not log or log[-1]["step"] != checkpoint["step"] or "val_loss" not in log[-1]:
            raise damaged(folder, f"log.jsonl lacks its step {checkpoint['step']}")
        seconds = checkpoint["seconds"]
    else:
        log = [{"step": 0, "tokens": 0, **evaluate(model, val_tokens, config)}]
        seconds = 0.0
    written = [json.dumps(line) + "\n" for line in log if is_finite(line)]
    write_text(folder / "log.jsonl", "".join(written))
    return log, seconds


def load_moments(optimizer, checkpoint, folder):
    """Put the checkpoint's moments into the optimizer, whose options stay this machine's, as a run
    may go on on another device. Raises BadInput where they are not this model's."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    moments = checkpoint["optimizer"]
    try:
        fits = len(moments) == len(parameters) and all(
            moments[i][name].shape == parameter.shape
            for i, parameter in enumerate(parameters)
            for name in ("exp_avg", "exp_avg_sq")
        )
    except (KeyError, TypeError, AttributeError):
        fits = False
    if not fits:
        raise damaged(folder, "its optimizer is of another model")
    try:
        optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
    except (ValueError, TypeError, RuntimeError) as error:  # such as a step that is no number
        raise damaged(folder, f"its optimizer's state cannot be read: {reason(error)}") from None


def is_checkpoint(line, config):
    """Every `checkpoint_interval`th evaluation, and the last."""
    n_steps = config.checkpoint_interval * config.eval_interval
    is_due = line["step"] % n_steps == 0 or line["step"] == config.max_iters
    return "val_loss" in line and is_due


def save_checkpoint(folder, model, optimizer, step, seconds):
    """Through to the disk, and after the log, so that no crash leaves it ahead of the log."""
    checkpoint = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict()["state"],
        "step": step,
        "seconds": seconds,
    }
    sync(folder / "log.jsonl")
    with replacing(folder / "ckpt.pt") as temporary, open(temporary, "wb") as file:
        try:
            torch.save(checkpoint, file)
        except RuntimeError as error:  # what torch makes of a full disk
            raise OSError(reason(error.__context__ or error)) from None


# What makes a run this run -----------------------------------------------------------------------


def identity_of(point):
    """What makes a run this run and no other: every option, its data, and the code's behaviour.
    Raises BadInput where the data are not there, or do not fit the model."""
    for split in ("train", "val"):
        load_tokens(point.training.dataset, split, point.model)
    return {
        **asdict(point.model),
        **asdict(point.training),
        "data_sha256": load_meta(point.training.dataset)["sha256"],
        "code": fingerprint(point),
    }


def fingerprint(point):
    """What the code does, in numbers: loss and gradient norm of the third step of a small copy of
    the point's model, and its validation after that, in float64 on the CPU. Comments, form and
    toggles that are off do not change it; a factor of 2 before a branch does."""
    model_config, config = small_copy(point)
    tokens = np.random.default_rng(0).integers(model_config.vocab_size, size=1000)
    tokens = tokens.astype(np.uint16)
    dtype = torch.get_default_dtype()
    with torch.random.fork_rng(devices=[]):
        torch.set_default_dtype(torch.float64)  # of the weights as they are drawn
        try:
            hardware = Hardware(torch.device("cpu"), torch.float64, compiled=False, note="")
            model, optimizer = build_training(model_config, config, hardware)
            update = make_update(model, optimizer, tokens, config, hardware)
            for step in range(3):
                loss, gradient_norm = update(step)
            validated = evaluate(model, tokens, config)
        finally:
            torch.set_default_dtype(dtype)
    numbers = {
        "loss": loss.item(),
        "gradient norm": gradient_norm.item(),
        "validation": validated["val_loss"],
        "variance": validated["variance"][-1],
    }
    return ", ".join(f"{name} {number:.6g}" for name, number in numbers.items())


def small_copy(point):
    """The point's configs with two narrow blocks, few heads, short sequences and few steps; each
    toggle, and how a batch is cut, as they are."""
    model, config = point.model, point.training
    n_sharing = min(8, model.n_head // model.n_kv_head)
    n_kv_head = min(model.n_kv_head, 8 // n_sharing)
    n_expert = min(model.n_expert, max(4, model.n_expert_active))
    small_model = replace(
        model,
        n_layer=2,
        n_head=n_kv_head * n_sharing,
        n_kv_head=n_kv_head,
        n_embd=8 * n_kv_head * n_sharing,
        mlp_hidden=32,
        expert_hidden=8,
        n_expert=n_expert,
        n_shared_expert=min(model.n_shared_expert, 1),
        vocab_size=32,
        block_size=16,
        window=min(model.window, 4),
        stride=min(model.stride, 4),
        topk=min(model.topk, 4),
    )
    n_parts = min(config.gradient_accumulation_steps, 2)
    small_config = replace(
        config,
        batch_size=4 // n_parts,
        gradient_accumulation_steps=n_parts,
        warmup_iters=1,
        max_iters=4,
        eval_tokens=64,
        seed=0,
    )
    return small_model, small_config


# Measuring while training ------------------------------------------------------------------------

VARIANCE_TOKENS = 2**15  # a mean over so many tokens repeats to a per cent or two


@torch.no_grad()
def evaluate(model, tokens, config):
    """{"val_loss": mean cross-entropy in nats, without router losses, on eval_tokens of tokens;
    "variance", "attention_variance", "mlp_variance": what forward_with_variance measures on every
    n-th of their sequences, VARIANCE_TOKENS in all; of branches only where they add up}."""
    model.eval()
    T, device = model.config.block_size, model.head.weight.device
    offsets = spread_offsets(len(tokens), T, config.eval_tokens)
    batches = np.split(offsets, range(config.batch_size, len(offsets), config.batch_size))
    loss = 0.0
    for batch in batches:
        idx, targets = take_sequences(tokens, batch, T, device)
        loss += model(idx, targets)[1] * len(batch) / len(offsets)
    some = offsets[:: math.ceil(len(offsets) * T / VARIANCE_TOKENS)]
    variance = mean_variance(model, tokens, some, config.batch_size)
    model.train()
    measured = {"val_loss": loss.item(), "variance": variance.pop("residual").tolist()}
    for branch, values in variance.items():
        measured[f"{branch}_variance"] = values.tolist()
    return measured


def mean_variance(model, tokens, offsets, batch_size):
    """What forward_with_variance measures, mean over the sequences at these offsets, so that no
    number depends on how many are taken at once."""
    T, device = model.config.block_size, model.head.weight.device
    mean = {}
    with uncompiled(device):
        first, _ = take_sequences(tokens, offsets[:1], T, device)
        opened = branches_add_up(model, first)
        for batch in np.split(offsets, range(batch_size, len(offsets), batch_size)):
            idx, _ = take_sequences(tokens, batch, T, device)
            _, variance = forward_with_variance(model, idx, opened)
            for kind, values in variance.items():
                mean[kind] = mean.get(kind, 0) + values * len(batch) / len(offsets)
    return mean


@torch.no_grad()
def forward_with_variance(model, idx, opened=True):
    """Run idx (B, T) through the blocks. Returns h_L (B, T, C), and the variance over features,
    mean over tokens, of {"residual": h_0 .. h_L (L + 1 numbers), "attention": what the branches add
    (L), "mlp": the same (L)}; of "residual" alone where blocks are not to be opened."""
    h = model.embed(idx)
    variance = {"residual": [variance_of(h).mean()]}
    for block in model.blocks:
        parts = open_block(block, h) if opened else {"after": block(h)}
        h = parts["after"]
        variance["residual"].append(variance_of(h).mean())
        for branch in parts.keys() & {"attention", "mlp"}:
            variance.setdefault(branch, []).append(variance_of(parts[branch]).mean())
    return h, {kind: torch.stack(values) for kind, values in variance.items()}


def variance_of(h):
    """(B, T, C) -> (B, T). Paper: `h_l.var(dim=-1)`, unbiased; here in fp32 or better whatever the
    stream's dtype."""
    return at_least_fp32(h).var(dim=-1)


def open_block(block, h):
    """Run the stream h (B, T, C) through a block, and look inside: {"attention": what this branch
    adds to the stream, "between": the stream that the other branch reads, "mlp": what that adds,
    "after": the stream behind the block}, (B, T, C) each."""
    if isinstance(block, RemediedBlock):  # its branches end in their outer norms
        attention, mlp, factor = block.attention_outer_norm, block.mlp_outer_norm, block.factor
    else:
        attention, mlp, factor = block.attention, block.mlp, 1.0
    parts = {}
    handles = [
        attention.register_forward_hook(lambda _, x, y: parts.update(attention=factor * y)),
        block.mlp_norm.register_forward_pre_hook(lambda _, x: parts.update(between=x[0])),
        mlp.register_forward_hook(lambda _, x, y: parts.update(mlp=factor * y)),
    ]
    try:
        parts["after"] = block(h)
    finally:
        for handle in handles:
            handle.remove()
    return parts


@torch.no_grad()
def branches_add_up(model, idx):
    """Is what open_block finds in each block, on idx (B, T), what the block adds to the stream, to
    rounding: h + attention = between, between + mlp = after? Not so where Block.forward was given
    another form, such as a norm behind each sum."""
    h = model.embed(idx)
    for block in model.blocks:
        parts = open_block(block, h)
        if len(parts) < 4 or not (
            is_sum(parts["between"], h, parts["attention"])
            and is_sum(parts["after"], parts["between"], parts["mlp"])
        ):
            return False
        h = parts["after"]
    return True


def is_sum(total, stream, added):
    """To the largest number's rounding; what is not finite, as of a model that diverges, may be."""
    rounding = 2 * torch.finfo(total.dtype).eps * total.abs().max()
    return not ((stream + added - total).abs() > rounding).any()


def uncompiled(device):
    """A context in which compiled blocks run as they were written: compiled code runs no hooks."""
    return torch.compiler.set_stance("force_eager") if device.type == "cuda" else nullcontext()


# Command line ------------------------------------------------------------------------------------


def points_that_fit(path, overrides):
    """A config's points {name: Point}, with overrides in the place of its values. Raises BadInput
    for one that is larger than this machine's memory, and for a config whose name no folder can
    have."""
    points = load_points(path, overrides)
    check_name(path.stem, "the config")
    for name, point in points.items():
        refuse_too_large(name, point, choose_hardware(point.training).device)
    return points


def run_sweep(path, overrides):
    points = points_that_fit(path, overrides)
    rank = from_environment("RANK", 0)
    world_size = from_environment("WORLD_SIZE", 1)
    folders = {name: Path(p.training.out_dir) / path.stem / name for name, p in points.items()}
    check_points(points, folders)
    mine = list(points.items())[rank :: max(1, world_size)]  # runs are independent
    note = choose_hardware(next(iter(points.values())).training).note
    if note and rank == 0:
        print(note, file=sys.stderr)
    hidden = True if rank else None  # one process draws
    for name, point in tqdm(mine, desc=path.stem, unit="run", disable=hidden, leave=False):
        with memory_errors_explained(name):
            bar_position = None if rank else 1
            summary = train(folders[name], point, bar_position, Path(point.training.out_dir))
        say(f"{name}  {result_line(summary)}  {summary['seconds']:.0f} s")


def check_points(points, folders):
    """Raises BadInput for the first point that cannot be trained, before any of them is."""
    for name, point in points.items():
        finished(folders[name], identity_of(point))


def result_line(summary):
    if summary["diverged"]:
        return "diverged"
    return (
        f"val_loss {summary['val_loss']:.4f}  perplexity {summary['perplexity']:.2f}  "
        f"last_layer_variance {summary['last_layer_variance']:.4g}"
    )


def main(argv=None):
    or_one_sentence(
        lambda: run_sweep(*parse_arguments(argv, "train.py", __doc__)),
        stopped="the same command goes on from the last checkpoint",
    )


if __name__ == "__main__":
    main()
