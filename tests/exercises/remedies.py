"""Exercise 2: three remedies of twelve blocks. Which one lowers the loss, which the variance?"""

from common import SEEDS, came_out, score, train

REMEDIES = {
    "plain": [],
    "layer-norm scaling": ["--layer_norm_scaling=true"],
    "scaled initialisation": ["--scaled_residual_init=true"],
    "half the rate": ["--learning_rate=1e-3"],
}
runs = {name: train(f"out/{name.split()[0]}", *options) for name, options in REMEDIES.items()}
for seed in SEEDS:
    numbers = {}
    for name in REMEDIES:
        scores = score(runs[name][seed][0])
        numbers |= {
            f"loss, {name}": scores["loss"],
            f"variance of h_L, {name}": scores["variance"][-1],
            f"cost of a swap, {name}": scores["swap"],
        }
    came_out(seed, numbers)
