"""A lesson: the same claims where training is hot and short, and in the right regime.

    python -m results.hot FOLDER    make hot/hot.json of whole published sweeps in FOLDER

The first sweeps (width 128, rate 3e-3, 20 M tokens; three seeds) are kept as what the claims read:
{experiment: [{"claim", "metric", "values": a list for each point, a number for each seed}]}.
python analyze.py results/*.json draws hot/verdicts.png of them, beside the sweeps in results/.
"""

from data import interrupt

if __name__ == "__main__":
    interrupt.before_imports()

import argparse
from pathlib import Path

from data.files import Number, or_one_sentence, read_json, write_json
from results.claims import (
    CLAIM_METRICS,
    CLAIMS,
    EXPERIMENT,
    judge_sweep,
    points_along,
    verdict_on,
)
from results.figures import save_figure, verdicts_figure
from results.report import after_correction, labelled, sweep_of
from results.runs import read_runs, rounded

HERE = Path(__file__).parent
ROW = {"claim": str, "metric": str, "values": [[(Number(), type(None))]]}


def thinned(folder):
    """What hot.json holds, of the published sweeps in a folder. Raises BadInput."""
    experiments = {}
    for name in dict.fromkeys(EXPERIMENT.values()):
        sweep = sweep_of(read_runs(folder / f"{name}.json"))
        experiments[name] = [
            {"claim": claim.name, "metric": claim.metric, "values": values}
            for claim in CLAIMS
            if (values := values_along(claim, sweep))
        ]
    return rounded(experiments)


def values_along(claim, sweep):
    metric = CLAIM_METRICS[claim.metric]
    return [
        [metric(run) for run in runs]
        for runs in points_along(claim.option, sweep.points, sweep.diverged)
    ]


def judged(rows):
    """[Verdict] of an experiment's rows in hot.json, by the present rule."""
    values_of = {(row["claim"], row["metric"]): row["values"] for row in rows}
    verdicts = []
    for claim in CLAIMS:
        if values := values_of.get((claim.name, claim.metric)):
            verdicts.append(verdict_on(claim, values))
    return verdicts


def draw_beside(sweeps, folder):
    """folder/hot/verdicts.png of folder/hot/hot.json, where that is there: the same experiments hot
    and in the right regime, {name: Sweep}, one panel below the other."""
    if not (folder / "hot/hot.json").exists():
        return
    hot = read_json(folder / "hot/hot.json", dict.fromkeys(EXPERIMENT.values(), [ROW]))
    there = [name for name in hot if name in sweeps]
    if not there:
        return
    panels = {
        "width 128, rate 3e-3, 20 M tokens": {name: judged(hot[name]) for name in there},
        "width 256, rate 2e-3, 100 M tokens": {
            name: judge_sweep(sweeps[name].points, sweeps[name].diverged) for name in there
        },
    }
    save_figure(
        verdicts_figure({name: labelled(after_correction(of)) for name, of in panels.items()}),
        folder / "hot/verdicts.png",
    )


def write_thinned(folder):
    write_json(HERE / "hot/hot.json", thinned(folder))


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="of whole published sweeps")
    or_one_sentence(write_thinned, parser.parse_args(argv).folder)


if __name__ == "__main__":
    main()
