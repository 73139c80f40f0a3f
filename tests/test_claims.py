"""configs/claims.py: intervals against simulation, and the verdict rule on made-up sweeps with known answers."""
import json
import math
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from analyze import Run, publish_runs, read_runs, restore_runs
from configs import claims
from configs.claims import interval, judge
from data.prepare import BadInput
from model import GPTConfig


def test_student_t_against_the_tables():
    for level, df, quantile in ((0.95, 1, 12.706), (0.95, 2, 4.303), (0.95, 4, 2.776), (0.95, 30, 2.042), (0.99, 2, 9.925), (0.9875, 2, 8.860)):
        assert claims.student_t(level, df) == pytest.approx(quantile, rel=1e-3)


@pytest.mark.parametrize("n, level", [(2, 0.95), (3, 0.95), (5, 0.95), (3, 0.8)])
def test_intervals_cover_the_truth_as_often_as_they_say(n, level):
    rng = np.random.default_rng(0)
    hits = [abs(mean - 7) <= half for mean, half in (interval(rng.normal(7, 3, size=n), level) for _ in range(3000))]
    assert np.mean(hits) == pytest.approx(level, abs=0.015)
    assert interval([3.0]) == (3.0, math.inf)


def noisy(means, n_seeds, sd=0.02, seed=0):
    return np.array(means)[:, None] + sd * np.random.default_rng(seed).normal(size=(len(means), n_seeds))


@pytest.mark.parametrize("shape, means, verdict", [
    ("rises", [1, 2, 3, 4], "supported"), ("rises", [4, 3, 2, 1], "opposed"),
    ("falls", [4, 3, 2, 1], "supported"), ("falls", [1, 2, 3, 4], "opposed"),
    ("negative", [9, 9, -1], "supported"), ("negative", [-9, -9, 1], "opposed"),
    ("last highest", [1, 2, 0, 3], "supported"), ("last highest", [1, 3, 0, 2], "opposed"),
    ("last lowest", [2, 3, 0, 1], "supported"), ("last lowest", [1, 3, 0, 2], "opposed"),
    ("highest inside", [1, 3, 2, 1], "supported"), ("highest inside", [3, 2, 2, 1], "opposed"), ("highest inside", [1, 3, 3], "undecided"),
    ("lowest inside", [3, 1, 2, 3], "supported"), ("lowest inside", [1, 2, 2, 3], "opposed"), ("lowest inside", [1, 2], "undecided"),
    ("no worse", [1.0, 1.3, 0.9], "supported"), ("no worse", [1.0, 1.0, 1.2], "opposed")])
def test_verdicts_on_sweeps_with_known_answers(shape, means, verdict):
    assert judge(noisy(means, 4), shape)[0] == verdict
    assert judge(noisy(means, 1), shape)[0] == "undecided"          # one seed decides nothing
    assert judge(noisy(means, 3, sd=50), shape)[0] == "undecided"   # nor do three that scatter


def test_verdicts_take_logarithms():
    verdict, effect, half = judge(np.exp(noisy([0, 2, 4], 3)), "rises", log=True)
    assert verdict == "supported" and effect == pytest.approx(2, abs=0.05) and half < 0.2
    verdict, effect, _ = judge(noisy([10.0, 12.0], 3, 0.001), "no worse", log=True)
    assert verdict == "opposed" and effect == pytest.approx(0.2, abs=0.001)   # a relative change all the same


@pytest.mark.parametrize("value", [1 / 16, 1 / 31, 0.1, 7.3])
@pytest.mark.parametrize("n_points", [1, 2, 4, 7])
def test_what_never_moves_has_no_effect(value, n_points):
    for shape in ("rises", "falls", "last lowest", "highest inside")[:2 if n_points < 2 else 4]:
        assert judge(np.full((n_points, 3), value), shape)[0] == "undecided"   # rounding is no effect, however alike the seeds
    assert claims.slope([value] * n_points) == 0.0


def test_slope_is_that_of_least_squares():
    values = np.random.default_rng(0).normal(size=9)
    assert claims.slope(values) == pytest.approx(np.polyfit(np.arange(9), values, 1)[0], rel=1e-12)


@pytest.mark.parametrize("shape", ["rises", "falls", "negative", "last lowest", "highest inside", "lowest inside"])
def test_noise_around_zero_is_seldom_called_an_effect(shape):
    verdicts = [judge(noisy(np.zeros(5), 3, sd=0.1, seed=seed), shape)[0] for seed in range(400)]
    assert 1 - verdicts.count("undecided") / 400 <= 0.075


def made_up_run(seed=0, variance=1.0, perplexity=10.0, name="", **config):
    base = {**asdict(GPTConfig(block_size=16, window=4, stride=4, topk=4)), "weight_decay": 0.1, "batch_size": 4,
            "gradient_accumulation_steps": 1, "learning_rate": 1e-3, "seed": seed}
    analysis = {"causal": 1, "permutation": 1, "usefulness": {"held_out": 1}, "n_eff_share": 1, "jacobian": {"deviation": [1, 0.5]},
                "densities": {"weight": 1, "attention": 1, "key_value": 1, "expert": 1}}
    log = [{"step": 0, "val_loss": 5.5, "variance": [1, 2]}]
    return Run(name, seed, {**base, **config}, {"perplexity": perplexity, "last_layer_variance": variance}, log, analysis)


def names(points):
    return {claim[0] for claim, *_ in claims.judge_sweep(points)}


def test_claims_speak_only_of_what_was_swept_alone():
    sweep = lambda option, values, **also: {str(v): [made_up_run(seed, **{option: v}, **{k: f(v) for k, f in also.items()})  # noqa: E731
                                                     for seed in range(3)] for v in values}
    assert names(sweep("n_layer", [4, 8])) == {"C1", "C2", "C3", "C3+"}
    assert names(sweep("weight_decay", [0.0, 0.1, 1.0])) == {"C4", "C4+"}
    assert names(sweep("block_size", [16, 32], batch_size=lambda T: 64 // T)) == {"C5", "C5+"}
    assert names(sweep("n_kv_head", [1, 4])) == {"C6", "C6+"} and names(sweep("n_expert", [0, 8])) == {"C7", "C7+"}
    assert names(sweep("window", [2, 4], attention=lambda w: "window")) == {"C9", "C9+", "C10"}
    assert names(sweep("n_layer", [4, 8], out_dir=lambda L: f"out/{L}")) == {"C1", "C2", "C3", "C3+"}   # where, not what
    assert names(sweep("n_layer", [4, 8], learning_rate=lambda L: 1 / L)) == set()   # two things changed at once
    assert names({"one": [made_up_run(seed) for seed in range(3)]}) == set()


def test_a_sweep_is_judged_in_the_order_of_its_option_and_on_shared_seeds():
    values = {16: 4.0, 2: 1.0, 8: 3.0, 4: 2.0}   # given out of order
    points = {str(L): [made_up_run(seed, variance=math.exp(v + 0.01 * seed), n_layer=L) for seed in range(3)] for L, v in values.items()}
    points["4"] = points["4"][1:]
    claim, verdict, effect, half, n_seeds = claims.judge_sweep(points)[0]
    assert (claim[0], verdict, n_seeds) == ("C1", "supported", 2) and effect == pytest.approx(1)


def test_mask_density_counts_causal_pairs():
    for options, pairs in ((dict(), 136), (dict(attention="window", window=1), 16), (dict(attention="topk", topk=2), 31)):
        assert claims.OPTIONS["mask density"](made_up_run(**options)) == pytest.approx(pairs / 136)


def crossed(perplexity, variance=lambda L, rate: L, rates=(1e-3, 3e-3)):
    return {f"n_layer={L},learning_rate={rate}": [made_up_run(seed, variance(L, rate) + 0.001 * seed, perplexity(L, rate), n_layer=L, learning_rate=rate)
                                                  for seed in range(3)] for L in (4, 8, 16) for rate in rates}


def test_every_depth_speaks_at_its_best_rate():
    """At the best rates (small for the deep) the variance falls with depth, at either single rate it rises."""
    best = {4: 3e-3, 8: 1e-3, 16: 1e-3}
    points = crossed(lambda L, rate: 10 if rate == best[L] else 11, lambda L, rate: 1 / L if rate == best[L] else L)
    claim, verdict, *_ = claims.judge_sweep(points)[0]
    assert (claim[0], verdict) == ("C1", "opposed")
    for rate in (1e-3, 3e-3):
        assert claims.judge_sweep(crossed(lambda L, rate: 10, rates=[rate]))[0][1] == "supported"
    del points["n_layer=8,learning_rate=0.001"]
    assert names(points) == set()   # not every depth was tried at every rate
    twice = {f"weight_decay={decay},{name}": runs for decay in (0.1, 0.3) for name, runs in crossed(lambda L, rate: 10).items()}
    for name, runs in twice.items():
        for run in runs:
            run.config["weight_decay"] = float(name.split("=")[1].split(",")[0])
    assert names(twice) == set()    # a third option varies, too: no rate may speak for half of its points


def test_only_the_rungs_of_a_ladder_are_climbed():
    accuracy = {"0-shallow": 0.3, "1-deep": 0.2, "2-all": 0.4, "layer-norm-scaling": 0.9}
    points = {name: [made_up_run(seed, name=f"{name},seed={seed}", n_layer=4 if name == "0-shallow" else 8) for seed in range(3)] for name in accuracy}
    for name, runs in points.items():
        for run in runs:
            run.analysis["choices"] = {"accuracy": accuracy[name] + 0.001 * run.seed}
    verdicts = {claim[3]: (verdict, effect) for claim, verdict, effect, *_ in claims.judge_sweep(points)}
    assert verdicts["choice accuracy"][0] == "supported" and verdicts["choice accuracy"][1] == pytest.approx(0.1)


def test_published_runs_come_back_as_finished_folders(tmp_path):
    runs = [made_up_run(seed, 1 / 3, name=f"n_layer={L},seed={seed}", n_layer=L, min_lr=0.003 / 10) for L in (4, 16) for seed in (0, 1)]
    for run in runs:
        run.log[:] = [{"step": 7, "val_loss": 4.0, "variance": [1.0, 2.0], "mlp_variance": [3.0], "attention_variance": [5.0]}]
    unscored = made_up_run(9, name="n_layer=8,seed=9")
    unscored.analysis, unscored.summary["diverged"] = None, False
    publish_runs([*runs, unscored], tmp_path / "sweep.json")
    assert len(read_runs(tmp_path / "sweep.json")) == 5
    restore_runs(tmp_path / "sweep.json", tmp_path / "out")
    back = read_runs(tmp_path / "out/sweep")
    assert [run.name for run in back] == ["n_layer=4,seed=0", "n_layer=4,seed=1", "n_layer=16,seed=0", "n_layer=16,seed=1"]
    assert [run.point for run in back] == ["n_layer=4"] * 2 + ["n_layer=16"] * 2
    for run, original in zip(back, runs):
        assert run.summary["last_layer_variance"] == pytest.approx(1 / 3, rel=1e-5) and run.config == original.config
        assert run.analysis == json.loads(json.dumps(original.analysis))
        assert run.log == [{"step": 7, "val_loss": 4.0, "variance": [1.0, 2.0]}]
    with pytest.raises(BadInput, match="exists already"):
        restore_runs(tmp_path / "sweep.json", tmp_path / "out")
    assert not list(Path(tmp_path).rglob("*.tmp"))
