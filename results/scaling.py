"""How does the cost of a training step grow with depth, context and number of experts?

    python -m results.scaling [--out results] [--windows 3]

Times the real training step (bench.py) of width 256, 32,768 tokens a step, and writes
scaling.json and scaling.png.
"""

from data import interrupt

if __name__ == "__main__":
    interrupt.before_imports()

import argparse
import math
from pathlib import Path

from bench import bench
from configs.read import Point, build_configs
from data.files import or_one_sentence, write_json
from results.figures import save_figure, scaling_figure
from results.runs import rounded

TOKENS_PER_STEP = 32768
BASE = {"vocab_size": 8192, "n_embd": 256, "n_head": 4, "n_layer": 16}
BASE |= {"block_size": 512, "batch_size": TOKENS_PER_STEP // 512}
LENGTHS = (256, 512, 1024, 2048, 4096, 8192, 16384)
WINDOW = 512
DIGITS = 4


def context(T, **options):
    return {"block_size": T, "batch_size": TOKENS_PER_STEP // T, **options}


def experts(E):
    """Two active experts of E; of one expert: the dense feed-forward of equal active size."""
    return {"n_expert": E, "n_expert_active": 2, "expert_hidden": 352} if E > 1 else {}


CURVES = {  # panel: {curve: {x: what differs from BASE}}
    "blocks": {"dense": {L: {"n_layer": L} for L in (4, 8, 16, 32, 64)}},
    "context": {
        "full": {T: context(T) for T in LENGTHS},
        f"window {WINDOW}": {T: context(T, attention="window", window=WINDOW) for T in LENGTHS},
    },
    "experts": {
        "top 2, equal active parameters": {E: experts(E) for E in (1, 2, 4, 8, 16, 32, 64)}
    },
}


def points_of(curves):
    """{"panel|curve|x": Point}"""
    return {
        f"{panel}|{curve}|{x}": Point(*build_configs({**BASE, **changes}, "scaling.py"), sweep={})
        for panel, of_panel in curves.items()
        for curve, values in of_panel.items()
        for x, changes in values.items()
    }


def measure(arguments):
    measured = {}  # {panel: {curve: {x: row}}}
    for row in bench(points_of(CURVES), arguments.windows):
        panel, curve, x = row.pop("name").split("|")
        row["mfu"] = row["mfu"] if math.isfinite(row["mfu"]) else None
        measured.setdefault(panel, {}).setdefault(curve, {})[x] = row
    write_json(arguments.out / "scaling.json", rounded(measured, DIGITS))
    save_figure(scaling_figure(measured), arguments.out / "scaling.png")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--windows", type=int, default=3, help="of steps, timed for each point")
    or_one_sentence(measure, parser.parse_args())


if __name__ == "__main__":
    main()
