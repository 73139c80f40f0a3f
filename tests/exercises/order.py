"""Exercise 4: a fourth order of removing blocks, by block_influence; how near is it to greedy?"""

import json
import subprocess
import sys

from common import came_out, edit, train

edit("analyze.py", '"last", "least", "greedy"):', '"last", "least", "greedy", "influence"):')
edit(
    "analyze.py",
    """        removed = list(range(L))[::-1]
""",
    """        removed = list(range(L))[::-1]
    elif order == "influence":
        removed = block_influence(model, idx).argsort().tolist()
""",
)
CURVES = """
import json, sys
from analyze import cumulative_pruning
from data.read import held_out_sequences
from results.runs import load_run
model, config = load_run(sys.argv[1])
idx, targets = held_out_sequences(config, model.config, 16)
orders = ("greedy", "influence", "least", "last")
curves = {order: cumulative_pruning(model, idx, targets, order).tolist() for order in orders}
print(json.dumps(curves))
"""
for seed, (folder,) in train("out/order").items():
    command = [sys.executable, "-c", CURVES, folder]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    curves = json.loads(printed)
    growth = {order: losses[6] / losses[0] - 1 for order, losses in curves.items()}
    came_out(seed, {f"loss grown by, six gone, {order}": x for order, x in growth.items()})
