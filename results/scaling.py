"""How does the cost of a training step grow with depth, context and number of experts?

    python -m results.scaling [--out results] [--windows 3]
    python -m results.scaling --draw    the figure alone, of the numbers that are there

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
from data.files import or_one_sentence, read_json, write_json
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


def measure_and_draw(arguments):
    path = arguments.out / "scaling.json"
    if not arguments.draw:
        write_json(path, rounded(measured(arguments.windows), DIGITS))
    save_figure(scaling_figure(read_json(path, dict)), path.with_suffix(".png"))


def measured(n_windows):
    """{panel: {curve: {x: row of bench.py}}}"""
    panels = {}
    for row in bench(points_of(CURVES), n_windows):
        panel, curve, x = row.pop("name").split("|")
        row["mfu"] = row["mfu"] if math.isfinite(row["mfu"]) else None
        panels.setdefault(panel, {}).setdefault(curve, {})[x] = row
    return panels


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--windows", type=int, default=3, help="of steps, timed for each point")
    parser.add_argument("--draw", action="store_true", help="draw, without measuring again")
    or_one_sentence(measure_and_draw, parser.parse_args(argv))


if __name__ == "__main__":
    main()
