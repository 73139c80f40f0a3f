"""How does the cost of a training step grow with depth, context and number of experts? No test.

    python tests/scaling.py [--out results] [--windows 3]      four minutes on one H100

Times the real training step (train.bench) of width 256, 32,768 tokens a step, and writes scaling.json and scaling.png."""
import argparse
import json
import math
import sys
from pathlib import Path

import matplotlib.pyplot as plt

sys.path.insert(0, str(Path(__file__).parent.parent))
from analyze import save_figure  # noqa: E402
from configs.read import build_configs  # noqa: E402
from train import bench, write_json  # noqa: E402

BASE = dict(vocab_size=8192, n_embd=256, n_head=4, n_layer=16, block_size=512, batch_size=64)
WINDOW = 512


def context(T, **toggle):
    return dict(block_size=T, batch_size=32768 // T, **toggle)


CURVES = {  # panel: {curve: {x: what differs from BASE}}
    "blocks": {"dense": {L: dict(n_layer=L) for L in (4, 8, 16, 32, 64)}},
    "context": {"full": {T: context(T) for T in (256, 512, 1024, 2048, 4096, 8192, 16384)},
                f"window {WINDOW}": {T: context(T, attention="window", window=WINDOW) for T in (256, 512, 1024, 2048, 4096, 8192, 16384)}},
    "experts": {"top 2, equal active parameters": {
        # one expert: the dense feed-forward of the same active parameters
        E: dict(n_expert=E, n_expert_active=2, expert_hidden=352) if E > 1 else {} for E in (1, 2, 4, 8, 16, 32, 64)}},
}


def draw(measured):
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.8), layout="constrained")
    colours = plt.get_cmap("viridis")((0.0, 0.6))
    for axis, (panel, curves) in zip(axes, measured.items()):
        for (curve, rows), marker, colour in zip(curves.items(), "os", colours):
            x = [int(value) for value in rows]
            middle, low, high = ([row[key] / 1e6 for row in rows.values()] for key in ("tokens_per_second", "slowest", "fastest"))
            axis.errorbar(x, middle, [[m - l for m, l in zip(middle, low)], [h - m for m, h in zip(middle, high)]],
                          marker=marker, color=colour, capsize=3, label=curve)
        axis.set(xscale="log", yscale="log", xlabel=panel, title=f"speed against {panel}", xticks=x, xticklabels=x)
        axis.minorticks_off()
        speeds = [0.25, 0.5, 1, 2, 4, 8]
        axis.set(yticks=speeds, yticklabels=speeds, ylim=(0.2, 8.5))
        axis.grid(alpha=0.3)
        if len(curves) > 1:
            axis.legend(loc="lower left")
    axes[0].set_ylabel("million tokens per second")
    return figure


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--windows", type=int, default=3)
    arguments = parser.parse_args()
    points = {f"{panel}|{curve}|{x}": build_configs({**BASE, **changes}, "tests/scaling.py")
              for panel, curves in CURVES.items() for curve, values in curves.items() for x, changes in values.items()}
    measured = {}
    for row in bench(points, arguments.windows):
        panel, curve, x = row.pop("name").split("|")
        row["mfu"] = row["mfu"] if math.isfinite(row["mfu"]) else None
        measured.setdefault(panel, {}).setdefault(curve, {})[x] = row
    write_json(arguments.out / "scaling.json", json.loads(json.dumps(measured), parse_float=lambda number: float(f"{float(number):.4g}")))
    save_figure(draw(measured), arguments.out / "scaling.png")


if __name__ == "__main__":
    main()
