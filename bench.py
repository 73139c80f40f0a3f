"""How fast it trains here: speed, model FLOPs utilisation and memory of a config's training step.

    python bench.py configs/bench.toml                           a line for each point
    python bench.py configs/depth.toml --n_layer=8,16 --seed=0   other values; a list is swept

Times the step that train.py takes, on random tokens, and writes no run; a config that says its
vocab_size needs no data. A last line says how long train.py would take for all of the config.
"""

from data import interrupt

if __name__ == "__main__":
    interrupt.before_imports()

import gc
import math
import statistics
import time
from dataclasses import astuple

import numpy as np
import torch

from configs.read import parse_arguments
from data.files import duration, or_one_sentence, say
from hardware import (
    choose_hardware,
    device_name,
    forget_peak_memory,
    memory_errors_explained,
    peak_memory,
)
from train import build_training, make_update, points_that_fit

# Dense bf16, by data sheet; a device's name contains one of these.
PEAK_FLOPS = {
    "H100 PCIe": 756e12,  # before "H100", which its name contains, too
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
    "4090": 165e12,
    "3090": 71e12,
}
BENCH_TOKENS = 2**22  # random ones to train on, and a sequence more


def bench(points, n_windows=10):
    """Time the real training step of each point {name: Point} on random tokens; writes no run. Of
    points with the same step, such as seeds, the first. Prints a line for each, and returns what
    they say, a list of dicts."""
    rows = {}
    for name, point in points.items():
        step = step_of(point)
        if step not in rows:
            rows[step] = {"name": name, **time_steps(point, n_windows)}
            say(bench_line(rows[step]))
            gc.collect()  # a recorded step's memory goes with its last reference
    seconds = 0.0
    for point in points.values():
        n_tokens = point.training.max_iters * tokens_per_step(point)
        seconds += n_tokens / rows[step_of(point)]["tokens_per_second"]
    say(f"all of it: about {duration(seconds)} of training here, one point after another")
    return list(rows.values())


def step_of(point):
    """What a step's speed depends on."""
    batches = (point.training.batch_size, point.training.gradient_accumulation_steps)
    return (*astuple(point.model), *batches, *choose_hardware(point.training))


def tokens_per_step(point):
    return point.training.sequences_per_step * point.model.block_size


def bench_line(row):
    speeds = (
        f"{row['tokens_per_second']:,.0f} tokens/s ({row['slowest']:,.0f} to {row['fastest']:,.0f})"
    )
    mfu = f"{row['mfu']:.1%}" if math.isfinite(row["mfu"]) else "unknown"
    return (
        f"{row['name']}  {speeds}  first step after {row['first_step_seconds']:.1f} s  "
        f"MFU {mfu}  memory {row['memory_GiB']:.2f} GiB  {row['device']}"
    )


def time_steps(point, n_windows):
    """Tokens/s (median, slowest and fastest of n_windows windows of steps), seconds to the first
    step, model FLOPs utilisation (GPT.flops_per_token; nan where the device's peak is unknown),
    and peak memory in GiB."""
    started = time.perf_counter()
    hardware = choose_hardware(point.training)
    model, optimizer = build_training(point.model, point.training, hardware)
    device = hardware.device
    forget_peak_memory(device)
    rng = np.random.default_rng(0)
    n_random = BENCH_TOKENS + point.model.block_size
    tokens = rng.integers(point.model.vocab_size, size=n_random).astype(np.uint16)
    update = make_update(model, optimizer, tokens, point.training, hardware)
    update(0)[0].item()
    first_step_seconds = time.perf_counter() - started
    n_steps = 20 if device.type == "cuda" else 2
    n_tokens = n_steps * tokens_per_step(point)
    speeds = []
    for _ in range(1 + n_windows):
        began = time.perf_counter()
        for step in range(n_steps):
            loss, _ = update(1 + step)
        loss.item()
        speeds.append(n_tokens / (time.perf_counter() - began))
    speeds = speeds[1:]  # the first window compiles and records what the first step did not
    median = statistics.median(speeds)
    name = device_name(device)
    peak_flops = next((flops for part, flops in PEAK_FLOPS.items() if part in name), math.nan)
    return {
        "tokens_per_second": median,
        "slowest": min(speeds),
        "fastest": max(speeds),
        "first_step_seconds": first_step_seconds,
        "mfu": median * model.flops_per_token() / peak_flops,
        "memory_GiB": peak_memory(device),
        "device": name,
        "torch": torch.__version__,
    }


# Command line ------------------------------------------------------------------------------------


def bench_config(path, overrides):
    points = points_that_fit(path, overrides)
    with memory_errors_explained("the bench"):
        bench(points)


def main(argv=None):
    or_one_sentence(lambda: bench_config(*parse_arguments(argv, "bench.py", __doc__)))


if __name__ == "__main__":
    main()
