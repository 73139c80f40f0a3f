"""Exercise 1: three depths. Which scores fall with depth in every seed?"""

from common import came_out, depth_of, score, train

for seed, folders in train("out/depths", "--n_layer=3,6,12").items():
    numbers = {}
    for folder in folders:
        scores, L = score(folder), depth_of(folder)
        numbers |= {
            f"variance of h_L, {L} blocks": scores["variance"][-1],
            f"cost of a swap, {L} blocks": scores["swap"],
            f"N_eff / L, {L} blocks": scores["n_eff_share"],
            f"blocks that could go, of {L}": scores["could_go"],
        }
    came_out(seed, numbers)
