"""The scores that the exercises ask for, of one run, as JSON; those that analyze.py --sequences 16
writes into analysis.json, by the same functions."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path.cwd()))
from analyze import (
    fit_linear_maps,
    layer_variance,
    linear_ratios,
    permutation_matrix,
    prune_ratios,
)
from data.read import held_out_sequences
from results.runs import load_run
from results.scores import effective_depth, pair_mean


def score(folder):
    model, config = load_run(folder)
    idx, targets = held_out_sequences(config, model.config, 16)
    others, _ = held_out_sequences(config, model.config, 16, parity=1)
    ratios = prune_ratios(model, idx, targets)
    linear = linear_ratios(model, fit_linear_maps(model, others), idx, targets)
    summary = json.loads(Path(folder, "summary.json").read_text(encoding="utf-8"))
    return {
        "loss": summary["val_loss"],
        "variance": layer_variance(model, idx)["residual"].tolist(),
        "swap": pair_mean(permutation_matrix(model, idx, targets)),
        "n_eff_share": effective_depth(linear) / len(model.blocks),
        "could_go": int((ratios < 1.01).sum()),
    }


if __name__ == "__main__":
    print(json.dumps(score(sys.argv[1])))
