"""results/runs.py: what a run folder holds, what its sweep varies, published files and back."""

import json
import math
import random
import shutil
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

import analyze
from configs.read import TrainConfig, as_text, load_points
from conftest import REPOSITORY, as_if_trained, build
from data.files import BadInput, read_json, write_json
from model import GPT, GPTConfig
from results.checks import MEASURED
from results.runs import (
    Run,
    finished,
    is_published,
    load_run,
    publish_runs,
    read_log,
    read_published,
    read_runs,
    restore_runs,
    together,
)
from results.scores import use_of_depth

RESULTS = REPOSITORY / "results"
SMALL = {"block_size": 12, "vocab_size": 20, "n_layer": 2, "n_head": 4, "n_embd": 16}


def sweep(*options, point=None, rung=None, place=0):
    return {"point": point, "rung": rung, "place": place, "options": list(options)}


SHORT = {"max_iters": 1, "eval_interval": 1, "warmup_iters": 0}


def config_of(varies=None, **options):
    """What config.json holds; without `varies`, as it was before it said what the sweep varies."""
    training = asdict(TrainConfig(**SHORT))
    written = {**asdict(GPTConfig(**SMALL)), **training, "data_sha256": "x", **options}
    written.setdefault("code", "loss 1, gradient norm 1")
    return written if varies is None else {**written, "sweep": varies}


def summary(diverged=False):
    return {
        "diverged": diverged,
        "seconds": 1.5,
        "val_loss": None if diverged else 2.5,
        "perplexity": None if diverged else 12.1825,  # e to it
        "last_layer_variance": None if diverged else 1.0,
        "torch": "2.13",
        "device": "cpu",
        "params": 10,
        "active_params": 10,
    }


def analysis(L=2, **entries):
    """What analysis.json must hold, of L blocks without which the loss is what it is, with these
    entries in place of its own."""
    of_blocks, of_states = [1.0] * L, [1.0] * (L + 1)
    return {
        "sequences": 4,
        "length": 12,
        "variance": {"residual": of_states, "attention": of_blocks, "mlp": of_blocks},
        "prune_ratios": of_blocks,
        "cumulative": {order: of_states for order in ("last", "least", "greedy")},
        "causal_matrix": [of_blocks] * L,
        "causal": 1.0,
        "permutation_matrix": [of_blocks] * L,
        "permutation": 1.0,
        "linear_ratios": {fit: of_blocks for fit in ("held_out", "same", "transposed")},
        "usefulness": {fit: 0.0 for fit in ("held_out", "same", "transposed")},
        "n_eff": 0.0,
        "n_eff_share": 0.0,
        "jacobian": {
            norm: of_blocks for norm in ("deviation", "off_diagonal", "spectral", "per_token")
        },
        "block_influence": of_blocks,
        "angular_distance": [of_states] * (L + 1),
        "logit_lens": of_states,
        "densities": {kind: 1.0 for kind in ("weight", "attention", "key_value", "expert")},
        **entries,
    }


def run(name="run", varies=None, diverged=False, analysis=None, **options):
    config = config_of(varies, **options)
    states = {"variance": [1.0] * (config["n_layer"] + 1)}
    first = {"step": 0, "tokens": 0, "val_loss": 3.0 + config["seed"], **states}
    last = {"step": 1, "tokens": 1, "val_loss": 2.5, **states}
    return Run(name, config, summary(diverged), [first] if diverged else [first, last], analysis)


def write_folder(folder, run):
    """What train.py and analyze.py leave behind, without weights."""
    folder.mkdir(parents=True)
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in run.log))
    for name in ("config", "summary", "analysis"):
        if getattr(run, name) is not None:
            write_json(folder / f"{name}.json", getattr(run, name))


# What a sweep varies -----------------------------------------------------------------------------


def test_a_run_is_described_by_its_config():
    varies = sweep("n_layer", "learning_rate", "seed", point="gqa", rung=4)
    gqa = run("whatever", varies, n_layer=8, learning_rate=3e-3, seed=2)
    assert gqa.options == {"n_layer": 8, "learning_rate": 3e-3}
    assert gqa.parts == ["gqa", "n_layer=8", "learning_rate=0.003"]
    assert gqa.point == "gqa,n_layer=8,learning_rate=0.003"
    assert (gqa.seed, gqa.rung) == (2, 4)


def test_a_config_without_a_sweep_has_one_point():
    assert run("run", sweep()).point == "run"
    assert run("seed=1", sweep("seed"), seed=1).point == "run"


@pytest.mark.parametrize("numbers", [(4, 16), (16, 4)])
def test_runs_of_a_folder_come_in_the_order_of_points_options_and_seeds(tmp_path, numbers):
    for place, point in enumerate(("later", "early")[::-1], start=1):
        for L in numbers:
            for seed in (10, 9):
                varies = sweep("n_layer", "seed", point=point, place=place)
                name = f"{point},n_layer={L},seed={seed}"
                write_folder(tmp_path / name, run(name, varies, n_layer=L, seed=seed))
    names = [each.name for each in read_runs(tmp_path)]
    assert names == [
        f"{point},n_layer={L},seed={seed}"
        for point in ("early", "later")
        for L in (4, 16)
        for seed in (9, 10)
    ]


def test_unfinished_runs_are_left_out(tmp_path):
    write_folder(tmp_path / "n_layer=2", run("n_layer=2", sweep("n_layer")))
    write_folder(tmp_path / "n_layer=4", run("n_layer=4", sweep("n_layer"), n_layer=4))
    (tmp_path / "n_layer=4/summary.json").unlink()
    assert [each.name for each in read_runs(tmp_path)] == ["n_layer=2"]


OLDER = {  # name of a run from before config.json said what varies: what it should have said
    "n_layer=8": sweep("n_layer"),
    "n_layer=8,seed=2": sweep("n_layer", "seed"),
    "n_layer=8,learning_rate=0.00075,seed=2": sweep("n_layer", "learning_rate", "seed"),
    "window-8,seed=2": sweep("seed", point="window-8", place=1),
    "0-shallow,seed=2": sweep("seed", point="0-shallow", rung=0, place=1),
    "w128-L4": sweep(point="w128-L4", place=1),
    "layer-norm-scaling,n_layer=8": sweep("n_layer", point="layer-norm-scaling", place=1),
    "seed=2": sweep("seed"),
    "run": sweep(),
}


@pytest.mark.parametrize("name", OLDER)
def test_older_files_are_told_what_varies_by_the_names_of_their_runs(tmp_path, name):
    older = asdict(run(name, n_layer=8, learning_rate=7.5e-4, seed=2))
    (tmp_path / "sweep.json").write_text(json.dumps([{**older, "seed": 2}]))
    (read,) = read_runs(tmp_path / "sweep.json")
    assert read.config["sweep"] == OLDER[name]
    assert read.point == (name.removesuffix("seed=2").removesuffix(",") or "run")
    assert read.seed == 2


def test_points_of_older_files_are_numbered_as_they_appear(tmp_path):
    seeds = {"full,seed=0": 0, "full,seed=1": 1, "window-8,seed=0": 0, "full,seed=2": 2}
    runs = [asdict(run(name, seed=seed)) for name, seed in seeds.items()]
    (tmp_path / "sweep.json").write_text(json.dumps(runs))
    places = [each.config["sweep"]["place"] for each in read_runs(tmp_path / "sweep.json")]
    assert places == [1, 1, 2, 1]


def test_older_folders_are_read_too(tmp_path):
    for L in (16, 4, 8):
        write_folder(tmp_path / f"n_layer={L}", run(f"n_layer={L}", n_layer=L))
    assert [each.options for each in read_runs(tmp_path)] == [{"n_layer": L} for L in (4, 8, 16)]


# Published and restored --------------------------------------------------------------------------


def measured_runs():
    """Depths 4 and 16, two seeds each, with numbers of many digits."""
    runs = []
    for L in (4, 16):
        for seed in (0, 1):
            name = f"n_layer={L},seed={seed}"
            measured = analysis(L, causal=2 / 3, prune_ratios=[1 / 7] * (L - 1) + [1.0 + seed])
            measured["causal_matrix"] = [[2 / 3] * L] * L
            measured["variance"]["residual"] = [l ** (13 / 14) for l in range(L + 1)]
            measured |= {"sequences": 2, "growth": {"exponent": 13 / 14}}
            measured["per_sequence"] = {"growth": {"exponent": [3 / 7, 10 / 7]}}
            varies = sweep("n_layer", "seed")
            scored = run(name, varies, analysis=measured, n_layer=L, seed=seed, min_lr=0.003 / 10)
            scored.log[0] |= {"mlp_variance": [3.0], "attention_variance": [5.0]}
            runs.append(scored)
    return runs


def test_published_runs_are_read_back_with_six_digits_and_fewer_of_many(tmp_path):
    originals = measured_runs()
    publish_runs(originals, tmp_path / "sweep.json")
    back = read_runs(tmp_path / "sweep.json")
    assert [each.name for each in back] == [each.name for each in originals]
    for published, original in zip(back, originals, strict=True):
        assert published.config == original.config  # to the last digit
        assert published.summary == original.summary
        assert published.analysis["causal"] == 0.666667
        assert set(published.analysis["prune_ratios"][:-1]) == {0.142857}
        assert published.analysis["causal_matrix"][0][0] == 0.667
        by_sequence = published.analysis.get("per_sequence")
        is_first = original.config["seed"] == 0
        assert by_sequence == ({"growth": {"exponent": [0.4286, 1.429]}} if is_first else None)
        states = [1.0] * (original.config["n_layer"] + 1)
        assert [line.pop("variance") for line in published.log] == [states, states]
        first = {"step": 0, "tokens": 0, "val_loss": 3.0 + original.seed}
        assert published.log == [first, {"step": 1, "tokens": 1, "val_loss": 2.5}]
    assert originals[0].log[0]["mlp_variance"] == [3.0]  # what was published is left as it was


def test_what_no_report_compares_over_seeds_is_of_a_points_first_scored_run_alone(tmp_path):
    originals = measured_runs()
    for each in originals:
        L = each.config["n_layer"]
        each.analysis["densities"] |= {"attended_keys": [[2.0]] * L, "expert_use": [[1.0]] * L}
        each.analysis["standard_errors"] = {"causal": 0.5, "prune_ratios": [0.5] * L}
    originals[0].analysis = None
    publish_runs(originals, tmp_path / "sweep.json")
    unscored, *scored = read_published(tmp_path / "sweep.json")
    assert unscored.analysis is None
    assert [each.seed for each in scored] == [1, 0, 1]
    for each, is_first in zip(scored, (True, True, False), strict=True):
        L, densities = each.config["n_layer"], each.analysis["densities"]
        assert densities.pop("attended_keys", None) == ([[2.0]] * L if is_first else None)
        assert densities.pop("expert_use", None) == ([[1.0]] * L if is_first else None)
        assert densities == {"weight": 1.0, "attention": 1.0, "key_value": 1.0, "expert": 1.0}
        errors = each.analysis["standard_errors"]
        assert errors.pop("prune_ratios", None) == ([0.5] * L if is_first else None)
        assert errors == {"causal": 0.5}
        assert ("per_sequence" in each.analysis) == is_first


def test_what_scores_follow_from_is_not_published_as_no_weights_are(tmp_path):
    originals = measured_runs()
    for each in originals:
        each.analysis["scored_from"] = {"scores": "the hash of weights and code"}
    publish_runs(originals, tmp_path / "sweep.json")
    assert "scored_from" not in (tmp_path / "sweep.json").read_text(encoding="utf-8")
    assert originals[0].analysis["scored_from"]  # what was published is left as it was


def test_without_matrices_all_else_is_the_same(tmp_path):
    matrices = ("causal_matrix", "permutation_matrix", "angular_distance")
    publish_runs(drawn_sweep("unlike"), tmp_path / "whole.json")
    publish_runs(drawn_sweep("unlike"), tmp_path / "less.json", with_matrices=False)
    whole, less = (read_runs(tmp_path / f"{name}.json") for name in ("whole", "less"))
    for one, other in zip(whole, less, strict=True):
        for name in (*matrices, "updates"):  # these are of the angles
            assert other.analysis is None or name not in other.analysis
            (one.analysis or {}).pop(name, None)
    assert whole == less
    publish_runs(less, tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "less.json").read_bytes()


def test_restored_runs_are_finished_folders(tmp_path):
    publish_runs(measured_runs(), tmp_path / "sweep.json")
    restore_runs(tmp_path / "sweep.json", tmp_path / "out")
    assert read_runs(tmp_path / "out/sweep") == read_runs(tmp_path / "sweep.json")
    for each in measured_runs():
        assert finished(tmp_path / "out/sweep" / each.name, each.config)
    assert not list(tmp_path.rglob("*.tmp"))


PUBLISHED = sorted(
    path
    for path in (REPOSITORY / "configs").glob("*.toml")
    if (REPOSITORY / "results" / f"{path.stem}.json").exists()
)


@pytest.mark.parametrize("config", PUBLISHED, ids=lambda path: path.stem)
def test_what_was_published_goes_on_after_it_is_restored(config, tmp_path):
    """Real files: training takes their runs for finished, of the points that the configs name."""
    restore_runs(REPOSITORY / "results" / f"{config.stem}.json", tmp_path)
    points = load_points(config, {"vocab_size": [8192 if config.stem != "demo" else 257]})
    n_finished = 0
    for name, point in points.items():
        folder = tmp_path / config.stem / name
        if folder.exists():
            written = read_json(folder / "config.json")
            identity = {**asdict(point.model), **asdict(point.training)}
            identity |= {"data_sha256": written["data_sha256"], "code": written.get("code", "new")}
            assert finished(folder, identity)
            n_finished += 1
    assert n_finished == len(list((tmp_path / config.stem).iterdir())) > 0


def test_restoring_that_was_interrupted_goes_on(tmp_path):
    publish_runs(measured_runs(), tmp_path / "sweep.json")
    restore_runs(tmp_path / "sweep.json", tmp_path / "out")
    (tmp_path / "out/sweep/n_layer=4,seed=0/summary.json").unlink()
    for name in ("n_layer=4,seed=1", "n_layer=16,seed=0", "n_layer=16,seed=1"):
        shutil.rmtree(tmp_path / "out/sweep" / name)
    restore_runs(tmp_path / "sweep.json", tmp_path / "out")
    assert len(read_runs(tmp_path / "out/sweep")) == 4


DAMAGED = {  # of a published run: where, and what stands there
    "sweep": ("config", {"sweep": 3}),
    "sweep's keys": ("config", {"sweep": {}}),
    "sweep's option": ("config", {"sweep": sweep("nope")}),
    "sweep's place": ("config", {"sweep": {**sweep(), "place": "a"}}),
    "params": ("summary", {"params": None}),
    "perplexity": ("summary", {"perplexity": None}),
    "choices": ("analysis", {"choices": 3}),
    "growth": ("analysis", {"growth": 3}),
    "errors": ("analysis", {"standard_errors": []}),
    "text": ("analysis", {"text": {"passes": "a"}}),
    "rows": ("analysis", {"causal_matrix": [[1.0], [1.0]]}),
}


@pytest.mark.parametrize("part, entries", DAMAGED.values(), ids=DAMAGED)
def test_every_entry_that_is_read_is_looked_at(tmp_path, part, entries):
    each = run("run", sweep(), analysis=analysis())
    getattr(each, part).update(entries)
    (tmp_path / "sweep.json").write_text(json.dumps([asdict(each)]))
    with pytest.raises(BadInput, match="sweep.json") as error:
        read_runs(tmp_path / "sweep.json")
    assert "\n" not in str(error.value)


GONE = object()
BY_HAND = {  # of a published file: where, what stands there now, and what the sentence says
    "runs": ((), [3], "runs[0] = 3 must be of type dict"),
    "runs.empty": (("runs",), [], "runs is empty"),
    "config": (("shared", "config"), GONE, "config.json: vocab_size is missing"),
    **{
        option: (("shared", "config", option), GONE, f"config.json: {option} is missing")
        for option in ("max_iters", "eval_interval", "n_layer", "n_kv_head", "data_sha256")
    },
    **{
        ".".join(keys): (("runs", 0, "analysis", *keys), value, f"{'.'.join(keys)}{words}")
        for keys, value, words in [
            (("variance", "median"), 3, " must be a list"),
            (("variance", "without_first"), 3, " must be a list"),
            (("predicted_variance",), [1.0], " has 1 entries"),
            (("text", "by_position"), [1.0], " and text.positions_read must be of one length"),
            (("text", "training_loss"), "x", " = 'x' must be a finite number"),
            (("choices", "control"), {}, " = {} must be a finite number"),
            (("blimp", "paradigms"), "x", " must be an object"),
            (("growth", "growth"), [], " = [] must be a finite number"),
            (("updates", "angle"), "x", " = 'x' must be a finite number"),
            (("linear_use", "sum"), {"a": 1}, " = {'a': 1} must be a finite number"),
            (("removal_use", "n_eff_share"), GONE, " belongs to no score that is there"),
            (("loss",), GONE, " belongs to no score that is there"),
            (("permutation",), None, " belongs to no score that is there"),
            (("standard_errors", "removal_use"), "x", " must be an object"),
            (("standard_errors", "causal"), {}, " = {} must be a finite number"),
            (("standard_errors", "prune_ratios"), [1.0], " has 1 entries, where 16 belong"),
            (("per_sequence", "causal"), [1.0] * 47, " has 47 entries, where 48 belong"),
            (("per_sequence", "loss"), [None] * 48, "[0] = None must be a finite number"),
            (("per_sequence", "growth", "growth"), {}, " must be a list"),
            (("per_sequence", "same_targets"), [1], " must be an object"),
        ]
    },
}


def older(path):
    """A published file's content, with an object for each run's line."""
    content = read_json(path)
    runs = [{} for _ in content["runs"]]
    for run, line in zip(runs, content["runs"], strict=True):
        for keys, value in zip(content["names"], line, strict=True):
            if value != {}:
                put(run, keys, value)
    return {"shared": content["shared"], "runs": runs}


def put(entry, keys, value):
    """keys: of dicts, which may not be there yet, and places in lists."""
    for key in keys[:-1]:
        entry = entry.setdefault(key, {}) if isinstance(entry, dict) else entry[key]
    entry[keys[-1]] = value


@pytest.mark.parametrize("keys, value, words", BY_HAND.values(), ids=BY_HAND)
def test_a_published_file_changed_by_hand_is_refused_in_a_sentence(
    tmp_path, capsys, keys, value, words
):
    changed = content = older(RESULTS / "wide_moe.json")
    if value is GONE:
        for key in keys[:-1]:
            changed = changed[key]
        del changed[keys[-1]]
    elif keys:
        put(content, keys, value)
    else:
        content = value
    write_json(tmp_path / "wide_moe.json", content)
    with pytest.raises(SystemExit) as ended:
        analyze.main([str(tmp_path / "wide_moe.json")])
    sentence = capsys.readouterr().err
    assert ended.value.code == 2
    assert "wide_moe.json" in sentence and words in sentence and sentence.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["wide_moe.json"]


# What no run can have ----------------------------------------------------------------------------
#
# Each is a change of results/gqa.json, of one run: [(keys, what stands there then)], where a number
# among the keys is a place in a list, and what the sentence says. Its runs are n_kv_head=2,seed=0
# and n_kv_head=4 with seeds 0, 1 and 2, of 16 blocks.


FOUR_RUNS = ("n_kv_head=2,seed=0", *(f"n_kv_head=4,seed={seed}" for seed in range(3)))


def four_of_gqa():
    """These runs of results/gqa.json, with nothing shared."""
    content = older(RESULTS / "gqa.json")
    runs = [together(content["shared"], run) for run in content["runs"]]
    return {"shared": {}, "runs": [run for run in runs if run["name"] in FOUR_RUNS]}


def scored(keys, value, words=""):
    """The row of a table of one change in the scores; words: beside the entry's name."""
    keys = tuple(int(key) if key.isdecimal() else key for key in keys.split("."))
    name = ".".join(key for key in keys if isinstance(key, str))
    return [(("analysis", *keys), value)], name, words


SCORES_THAT_CANNOT_BE = [
    scored("same_targets.own_context", 1000, " = 1000 must be a finite number of at least 0 and"),
    scored("same_targets.short_context", -1.0),
    scored("causal", -3.0, " = -3.0 must be a finite number of at least 0"),
    scored("causal", 0.9, " = 0.9 does not follow from causal_matrix, which gives"),
    scored("causal", None, " belongs to no score that is there"),
    scored("causal_matrix.0.3", -0.5, "[0][4] = -0.5 must be"),
    scored("permutation", 0, " = 0 does not follow from permutation_matrix"),
    scored("permutation", 0.4, " = 0.4 does not follow from permutation_matrix"),
    scored("permutation_matrix.2.1", -0.1),
    scored("usefulness.held_out", 7, " = 7 must be a finite number of at least 0 and at most 1"),
    scored("n_eff_share", 40, " = 40 must be a finite number of at least 0 and at most"),
    scored("removal_use.sum", -1.0),
    *(scored("prune_ratios.3", value, "[3] = ") for value in (-5, 0, 1e308)),
    scored("linear_ratios.held_out.3", 1e308, "[3] = 1e+308 must be"),
    scored("choices.accuracy", 42, " = 42 must be a finite number of at least 0 and at most 1"),
    scored("choices.control", -1),
    scored("blimp.accuracy", -1),
    scored("blimp.standard_error", -0.1),
    *(scored(f"densities.{kind}", 9) for kind in ("weight", "attention", "key_value", "expert")),
    scored("updates.size", -0.2),
    scored("angular_distance.0.3", 1.5),
    scored("variance.residual.4", -1.0, "[4] = -1.0 must be a finite number of at least 0"),
    scored("variance.attention.4", -1.0),
    scored("variance.residual.4", 1e300),
    scored("jacobian.deviation.0", -0.1),
    scored("logit_lens.2", -1.0),
    scored("cosine.block.2", 1.5),
    scored("loss", -1.0),
    scored("standard_errors.causal", -0.1, " = -0.1 must be a finite number of at least 0"),
    scored("standard_errors.prune_ratios", [-0.1] * 16, "[0] = -0.1 must be"),
    scored("length", 99999, " = 99999 must be at most block_size = 512"),
    scored("length", 0),
    scored("code", "loss 1 | 2"),
]
ENTRIES_THAT_CANNOT_BE = [
    *(([(("summary", "perplexity"), x)], "summary.perplexity", f" = {x}") for x in (-5, 0)),
    ([(("summary", "perplexity"), None)], "perplexity", "a run that did not diverge must have"),
    ([(("summary", "perplexity"), 1e30)], "perplexity = 1e+30", "does not follow from val_loss"),
    ([(("summary", "perplexity"), 31.0)], "perplexity = 31.0", "does not follow from val_loss"),
    ([(("summary", "val_loss"), 3.4)], "val_loss = 3.4", "does not end with the loss"),
    ([(("log", "val_loss", -1), 3.4)], "val_loss = ", "log.jsonl does not end with the loss"),
    ([(("summary", "val_loss"), -1.0)], "summary.val_loss", "at least 0"),
    ([(("summary", "last_layer_variance"), -1)], "summary.last_layer_variance", "at least 0"),
    (
        [(("summary", "last_layer_variance"), 1e9)],
        "last_layer_variance",
        "does not follow from the log's last variance",
    ),
    ([(("summary", "last_layer_variance"), 1e300)], "summary.last_layer_variance", "at most 1e+50"),
    ([(("log", "variance", 0, 3), -1.0)], "log[0].variance[3]", "at least 0"),
    ([(("summary", "params"), 0)], "summary.params", "at least 1"),
    ([(("summary", "active_params"), 10**12)], "active_params", "exceeds params"),
    ([(("summary", "device"), "a\nb")], "summary.device", "must be a line of text"),
    ([(("summary", "torch"), "2|13")], "summary.torch", "must be a line of text"),
    ([(("summary", "diverged"), True)], "summary.json", "diverged = True, though the log has"),
    ([(("config", "dataset"), "a|b")], "dataset", "must be a line of text"),
    ([(("config", "n_kv_head"), 2)], "n_kv_head = 2", "is not the 4 of the run's name"),
    ([(("config", "seed"), 7)], "seed = 7", "is not the 1 of the run's name"),
    ([(("config", "sweep", "point"), "a|b")], "sweep.point", "must be a line of text"),
    ([(("config", "sweep", "rung"), -1)], "sweep.rung", "at least 0"),
    ([(("analysys",), {})], "analysys", "is no part of a run"),
    ([(("summary", "diverged"), True), (("log",), {})], "val_loss", "a run that diverged has no"),
    (
        [
            (("summary", "diverged"), True),
            (("log",), {}),
            *((("summary", name), None) for name in ("val_loss", "perplexity")),
            (("summary", "last_layer_variance"), None),
        ],
        "scores",
        "a run that diverged has no",
    ),
]
CANNOT_BE = [*SCORES_THAT_CANNOT_BE, *ENTRIES_THAT_CANNOT_BE]


def named(row):
    changes, name, _ = row
    return f"{name} as {changes[0][1]!r:.20}"


@pytest.mark.parametrize("changes, name, words", CANNOT_BE, ids=map(named, CANNOT_BE))
def test_what_no_run_can_have_is_refused_by_name(tmp_path, refused, changes, name, words):
    content = four_of_gqa()
    for keys, value in changes:
        put(content["runs"][2], keys, value)
    write_json(tmp_path / "gqa.json", content)
    sentence = refused(analyze.main, [tmp_path / "gqa.json"])
    assert all(each in sentence for each in ("gqa.json", "n_kv_head=4,seed=1", name, words))


def same_but_seed(runs):
    """The third run as a copy of the second one, under its own name and seed."""
    copied = deepcopy(runs[1])
    put(copied, ("name",), runs[2]["name"])
    put(copied, ("config", "seed"), 1)
    runs[2] = copied


def same_scores(runs):
    runs[2]["analysis"] = {**runs[1]["analysis"], "seconds": 1.0}


def same_log(runs):
    for part in ("log", "summary"):
        runs[2][part] = runs[1][part]


def twice_by_another_name(runs):
    """As where a sweep of seeds was begun in the folder of a run without one in its name."""
    copied = deepcopy(runs[1])
    put(copied, ("name",), "n_kv_head=4")
    put(copied, ("config", "sweep", "options"), ["n_kv_head"])
    runs.append(copied)


def change(number, *keys, to):
    return lambda runs: put(runs[number], keys, to)


TOGETHER_IMPOSSIBLE = {
    "a copy": (same_but_seed, "seed=1 are both of n_kv_head=4 and have the same log"),
    "its scores": (same_scores, "seed=1 are both of n_kv_head=4 and have the same analysis"),
    "its log": (same_log, "seed=1 are both of n_kv_head=4 and have the same log"),
    "twice": (twice_by_another_name, "n_kv_head=4 are both of n_kv_head=4 with seed 0"),
    "data of a seed": (change(2, "config", "data_sha256", to="x"), "but data_sha256 is"),
    "data": (change(0, "config", "data_sha256", to="x"), "have another data_sha256"),
    "dataset of a seed": (change(2, "config", "dataset", to="x"), "but dataset is 'books' and 'x'"),
    "dataset": (change(0, "config", "dataset", to="x"), "dataset is x in n_kv_head=2,seed=0 and"),
    "step of a seed": (change(2, "config", "batch_size", to=32), "_steps is 64 and 32"),
    "rate of a seed": (change(2, "config", "learning_rate", to=0.1), "but learning_rate is 0.002"),
}


@pytest.mark.parametrize("impossible, words", TOGETHER_IMPOSSIBLE.values(), ids=TOGETHER_IMPOSSIBLE)
def test_runs_that_cannot_stand_together_are_refused(tmp_path, refused, impossible, words):
    content = four_of_gqa()
    impossible(content["runs"])
    write_json(tmp_path / "gqa.json", content)
    sentence = refused(analyze.main, [tmp_path / "gqa.json"])
    assert "gqa.json" in sentence and "n_kv_head=" in sentence and words in sentence


def other_rung(runs):
    put(runs[2], ("config", "sweep", "rung"), 99)


def swept_data(runs):
    """As of --dataset=books,code, of which each has a point."""
    for run in runs:
        dataset = "code" if run is runs[0] else "books"
        run["config"] |= {"dataset": dataset, "data_sha256": f"that of {dataset}"}
        run["config"]["sweep"]["options"] = ["n_kv_head", "dataset", "seed"]
        run["name"] = run["name"].replace(",", f",dataset={dataset},")


def data_of_named_points(runs):
    """As of [[point]]s that set their dataset."""
    for run in runs:
        point, seed = run["name"].split(",")
        point = point.replace("n_kv_head=", "heads-")
        run["config"] |= {"dataset": point, "data_sha256": point}
        run["config"]["sweep"] |= {"point": point, "options": ["seed"]}
        run["name"] = f"{point},{seed}"


def heads_left_to_the_model(runs):
    """n_kv_head = 0 is as many as n_head; the config has the number that it became."""
    for run in runs[1:]:
        run["config"]["n_head"] = 4
        run["name"] = run["name"].replace("n_kv_head=4", "n_kv_head=0")


def unscored(runs):
    runs[2]["analysis"] = None


def in_smaller_batches(runs):
    """As README advises for a smaller GPU; and logged more often."""
    runs[2]["config"] |= {"batch_size": 32, "gradient_accumulation_steps": 2, "log_interval": 5}


def called_otherwise(runs):
    runs[2]["name"] = "best"


def diverged_at_once(runs):
    runs[2] |= {"analysis": None, "log": {}}
    runs[2]["summary"] |= {"diverged": True, **dict.fromkeys(MEASURED)}


POSSIBLE = [
    lambda runs: None,
    other_rung,
    swept_data,
    data_of_named_points,
    heads_left_to_the_model,
    unscored,
    called_otherwise,
    in_smaller_batches,
    diverged_at_once,
]


@pytest.mark.parametrize("possible", POSSIBLE)
def test_what_a_sweep_can_have_is_read(tmp_path, possible):
    content = four_of_gqa()
    possible(content["runs"])
    write_json(tmp_path / "gqa.json", content)
    names = [run["name"] for run in content["runs"]]
    assert [each.name for each in read_runs(tmp_path / "gqa.json")] == names


def as_drawn(model):
    pass


def first_block_adds_nothing(model):
    for parameter in model.blocks[0].parameters():
        parameter.data.zero_()


def no_block_adds_anything(model):
    for parameter in model.blocks.parameters():
        parameter.data.zero_()


def far_from_initialisation(model):
    as_if_trained(model, 10)


def worse_with_its_last_block(model):
    """Its head reads what the others say, and the last block adds what is of no use."""
    model.head.weight.data.copy_(model.embedding.weight.data * 50)
    for parameter in model.blocks[-1].parameters():
        parameter.data.mul_(30)


MODELS = [
    as_drawn,
    first_block_adds_nothing,
    no_block_adds_anything,
    far_from_initialisation,
    worse_with_its_last_block,
]


@pytest.mark.parametrize("changed", MODELS)
@pytest.mark.parametrize("L, n_sequences", [(1, 1), (1, 4), (2, 1), (3, 2), (5, 4)])
def test_whatever_analyze_measures_is_read_again(project, L, n_sequences, changed):
    """The folder's numbers, and the same after they have been rounded: neither is refused."""
    options = {**SMALL, "block_size": 16, "vocab_size": 257, "n_layer": L}
    model = build(**options)
    changed(model)
    training = TrainConfig(dataset="tiny", eval_tokens=64, **SHORT)
    measured = analyze.score_run(model, training, n_sequences, torch.device("cpu"))
    each = run(f"n_layer={L}", sweep("n_layer"), analysis=measured, **options)
    write_folder(project / "out/small" / each.name, each)
    (read,) = read_runs(project / "out/small")
    publish_runs([read], project / "small.json")
    (back,) = read_runs(project / "small.json")
    assert back.analysis["prune_ratios"] == pytest.approx(measured["prune_ratios"], rel=1e-5)


def test_a_run_that_train_py_copied_under_another_name_counts_once(tmp_path, capsys):
    """As n_layer=8, once the same config is started with --seed=0,1."""
    first = run("n_layer=8", sweep("n_layer"), n_layer=8, seed=0)
    copied = run("n_layer=8,seed=0", sweep("n_layer", "seed"), n_layer=8, seed=0)
    other = run("n_layer=8,seed=1", sweep("n_layer", "seed"), n_layer=8, seed=1)
    for line in other.log:
        line["variance"] = [1.5 * variance for variance in line["variance"]]
    other.summary["last_layer_variance"] *= 1.5
    for each in (first, copied, other):
        write_folder(tmp_path / each.name, each)
    assert [each.name for each in read_runs(tmp_path)] == ["n_layer=8", "n_layer=8,seed=1"]
    said = capsys.readouterr().out
    assert "n_layer=8,seed=0 is n_layer=8 by another name, and counts once" in said


@pytest.mark.parametrize("name", ["best", "n_layer=8,seed=0 (old)", "n_layer=8,seed=0.bak"])
def test_a_folder_may_be_called_otherwise(tmp_path, name):
    write_folder(tmp_path / name, run(name, sweep("n_layer", "seed"), n_layer=8, seed=0))
    (read,) = read_runs(tmp_path)
    assert (read.point, read.seed) == ("n_layer=8", 0)


def test_runs_that_cannot_be_scored_any_more_are_not_restored(tmp_path):
    unscored = run("n_layer=8", sweep("n_layer"), n_layer=8)
    diverged = run("n_layer=9", sweep("n_layer"), n_layer=9, diverged=True)
    publish_runs([unscored, diverged], tmp_path / "sweep.json")
    restore_runs(tmp_path / "sweep.json", tmp_path / "out")
    assert [each.name for each in read_runs(tmp_path / "sweep.json")] == ["n_layer=8", "n_layer=9"]
    assert [each.name for each in read_runs(tmp_path / "out/sweep")] == ["n_layer=9"]


def test_restoring_never_overwrites(tmp_path):
    publish_runs(measured_runs(), tmp_path / "sweep.json")
    restore_runs(tmp_path / "sweep.json", tmp_path / "out")
    with pytest.raises(BadInput, match="exists already"):
        restore_runs(tmp_path / "sweep.json", tmp_path / "out")


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[1]",
        '{"seeds": 32}',
        '[{"name": "run"}]',
        '{"shared": {}}',
        '{"shared": 3, "runs": []}',
        '{"shared": {}, "runs": [3]}',
        '{"shared": {"name": "run"}, "runs": [{}]}',
        '{"shared": {}, "runs": [{"log": {"step": [0], "val_loss": [2.5, 2.4]}}]}',
        '{"shared": {"log": {"step": [0]}}, "runs": [{"log": {"val_loss": "9"}}]}',
        '{"shared": {}, "names": 3, "runs": [[]]}',
        '{"shared": {}, "names": ["name"], "runs": [["run"]]}',
        '{"shared": {}, "names": [["name"]], "runs": [{"name": "run"}]}',
        '{"shared": {}, "names": [["name"]], "runs": [["run", 1]]}',
        '{"shared": {}, "names": [["name"]], "runs": []}',
        '{"shared": {}, "names": [[], ["name"]], "runs": [[1, "run"]]}',
        '{"shared": {}, "names": [["name"], ["name", "of"]], "runs": [["run", 3]]}',
    ],
)
def test_other_json_files_are_refused(tmp_path, text):
    (tmp_path / "other.json").write_text(text)
    with pytest.raises(BadInput, match="no sweep that --publish wrote"):
        read_runs(tmp_path / "other.json")


# What a published file keeps ---------------------------------------------------------------------

KEPT = {  # significant digits of the numbers in these entries' lists; of all others six
    "causal_matrix": 3,
    "permutation_matrix": 3,
    "angular_distance": 3,
    "densities": 3,
    "standard_errors": 3,
    "log": 4,
    "per_sequence": 4,
    "variance": 4,
    "size": 4,
    "cosine": 4,
    "cumulative": 4,
    "block_influence": 4,
    "logit_lens": 4,
    "predicted_variance": 4,
}


def is_rounded(after, before, digits, in_list=False):
    """Is this the same as before, each number to within half a unit of its last digit?"""
    if isinstance(before, dict):
        return after.keys() == before.keys() and all(
            is_rounded(after[name], before[name], KEPT.get(name, digits), in_list)
            for name in before
        )
    if isinstance(before, list):
        pairs = zip(after, before, strict=True)
        return all(is_rounded(one, other, digits, in_list=True) for one, other in pairs)
    if not isinstance(before, float) or before == 0:
        return after == before and type(after) is type(before)
    unit = 10.0 ** (math.floor(math.log10(abs(before))) + 1 - (digits if in_list else 6))
    return abs(after - before) <= 0.506 * unit  # six digits first, then fewer


def mean_above(matrix):
    """Of the pairs above the diagonal; None where there are none."""
    pairs = [x for a, row in enumerate(matrix) for x in row[a + 1 :]]
    return sum(pairs) / len(pairs) if pairs else None


def drawn_run(name, varies, L, rng, n_expert=0, blimp=True):
    """A run of what analyze.py measures now, of random numbers, mostly from 1e-5 to 1e5."""
    measured = drawn_analysis(L, rng, n_expert)
    if blimp:
        paradigms = {paradigm: rng.random() for paradigm in ("wh_island", "passive_1")}
        accuracy = sum(paradigms.values()) / 2
        measured["blimp"] = {"accuracy": accuracy, "paradigms": paradigms, "pairs": 2}
    drawn = run(name, varies, analysis=measured, n_layer=L, n_expert=n_expert)
    for line in drawn.log:
        line["variance"] = drawn_numbers(rng, L + 1)
    drawn.log[1] |= {"train_loss": rng.random(), "lr": 0.001}
    drawn.summary["last_layer_variance"] = drawn.log[1]["variance"][-1]
    return drawn


def drawn_numbers(rng, n, most=1e5):
    return [most * 10 ** rng.uniform(-10, 0) for _ in range(n)]


def drawn_matrix(rng, n, symmetric, most=1e5):
    rows = [drawn_numbers(rng, n, most) for _ in range(n)]
    mirrored = [[rows[min(a, b)][max(a, b)] for b in range(n)] for a in range(n)]
    return [
        [mirrored[a][b] if a < b or (symmetric and a > b) else 0.0 for b in range(n)]
        for a in range(n)
    ]


def drawn_analysis(L, rng, n_expert):
    def per_block(*names, more=0, most=1e5):
        return {of: drawn_numbers(rng, L + more, most) for of in names}

    densities = {kind: rng.random() for kind in ("weight", "attention", "key_value", "expert")}
    densities["attended_keys"] = [drawn_numbers(rng, 4) for _ in range(L)]
    if n_expert:
        densities["expert_use"] = [drawn_numbers(rng, n_expert, 1.0) for _ in range(L)]
    causal, permutation = (drawn_matrix(rng, L, symmetric) for symmetric in (False, True))
    return analysis(
        L,
        variance=per_block("residual", "median", more=1) | per_block("attention", "mlp"),
        cumulative=per_block("last", "least", "greedy", more=1),
        prune_ratios=drawn_numbers(rng, L),
        causal=mean_above(causal),
        causal_matrix=causal,
        permutation=mean_above(permutation),
        permutation_matrix=permutation,
        linear_ratios=per_block("held_out", "same", "transposed"),
        usefulness={fit: rng.random() for fit in ("held_out", "same", "transposed")},
        n_eff=L * rng.random(),
        n_eff_share=rng.random(),
        angular_distance=drawn_matrix(rng, L + 1, symmetric=True, most=1.0),
        jacobian=per_block("deviation", "off_diagonal", "spectral", "per_token"),
        size=per_block("attention", "mlp", "block"),
        cosine=per_block("attention", "mlp", "block", most=-1.0),
        block_influence=drawn_numbers(rng, L, 2.0),
        logit_lens=drawn_numbers(rng, L + 1),
        densities=densities,
        sequences=48,
        loss=10 * rng.random(),
        growth={"growth": 1 + rng.random()},
        standard_errors={"loss": rng.random(), "linear_ratios": drawn_numbers(rng, L)},
        per_sequence={
            "loss": drawn_numbers(rng, 48, -1.0),
            "growth": {"growth": drawn_numbers(rng, 48)},
        },
        predicted_variance=None if n_expert else drawn_numbers(rng, L + 1),
        code="loss 1, gradient norm 1",
    )


def drawn_sweep(kind):
    """Runs as differ within a sweep, or as do not."""
    rng = random.Random(0)
    if kind == "alone":
        return [drawn_run("run", sweep(), 3, rng)]
    runs = [drawn_run(f"n_layer={L}", sweep("n_layer"), L, rng) for L in (1, 2, 5, 17)]
    if kind == "unlike":
        experts = sweep(point="experts", place=1)
        runs.append(drawn_run("experts", experts, 3, rng, n_expert=4, blimp=False))
        runs.append(run("diverged", sweep(point="diverged", place=2), diverged=True, n_layer=3))
    return runs


@pytest.mark.parametrize("kind", ["alone", "alike", "unlike"])
def test_publishing_rounds_and_changes_nothing_else(tmp_path, kind):
    runs = drawn_sweep(kind)
    (tmp_path / "older.json").write_text(json.dumps([asdict(each) for each in runs]))
    publish_runs(read_published(tmp_path / "older.json"), tmp_path / "sweep.json")
    back = read_published(tmp_path / "sweep.json")
    assert [each.name for each in back] == [each.name for each in runs]
    for after, before in zip(back, runs, strict=True):
        assert after.config == before.config
        for part in ("summary", "log", "analysis"):
            assert is_rounded(getattr(after, part), getattr(before, part), KEPT.get(part, 6)), part
    publish_runs(read_runs(tmp_path / "sweep.json"), tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "sweep.json").read_bytes()
    restore_runs(tmp_path / "sweep.json", tmp_path / "out")
    restored = {each.name: each for each in read_runs(tmp_path / "out/sweep")}
    assert restored == {each.name: each for each in read_runs(tmp_path / "sweep.json")}


def test_the_measure_of_rounding_sees_a_digit():
    assert is_rounded({"loss": 1.23457}, {"loss": 1.234567}, 6)
    assert not is_rounded({"loss": 1.23458}, {"loss": 1.234567}, 6)
    assert not is_rounded({"loss": 1.235}, {"loss": 1.234567}, 4)  # by itself, so of six digits
    assert is_rounded({"size": [0.001235]}, {"size": [0.001234567]}, 6)
    assert not is_rounded({"size": [0.00124]}, {"size": [0.001234567]}, 6)
    assert not is_rounded({"size": [1.235, 1.0]}, {"size": [1.234567, 0.0]}, 6)


def test_a_published_file_is_read_as_it_is_described(tmp_path):
    """Written by hand: two runs of two blocks, of which one diverged; and the same as a table."""
    scores = {**analysis(2), "blimp": {"accuracy": 0.6, "paradigms": {"name": ["a", "name"]}}}
    for name in ("causal_matrix", "permutation_matrix", "angular_distance", "sequences"):
        del scores[name]
    shared = {
        "config": config_of(sweep("seed")),
        "summary": summary(),
        "log": {"tokens": [0]},
        "analysis": scores,
    }
    del shared["config"]["seed"], shared["summary"]["diverged"]
    ends = {"val_loss": 2.5, "perplexity": 12.1825, "last_layer_variance": 6.0}
    first = {
        "name": "seed=0",
        "config": {"seed": 0},
        "summary": {"diverged": False, **ends},
        "log": {
            "step": [0, 1],
            "tokens": [0, 16],
            "train_loss": [None, 2.4],
            "val_loss": [3.0, 2.5],
            "variance": [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]],
        },
        "analysis": {
            "sequences": 48,
            "causal": 0.5,
            "causal_matrix": [[0.5], []],
            "permutation": 0.7,
            "permutation_matrix": [[0.7], []],
            "angular_distance": [[0.1, 0.2], [0.3], []],
            "blimp": {"paradigms": {"accuracy": [0.8, 0.4]}},
        },
    }
    second = {
        **first,
        "name": "seed=1",
        "config": {"seed": 1},
        "summary": {"diverged": True, **dict.fromkeys(ends)},
        "log": {"step": [0], "val_loss": [3.5], "variance": [[1.0, 2.0, 3.0]]},
        "analysis": None,
    }
    write_json(tmp_path / "older.json", {"shared": shared, "runs": [first, second]})
    one, other = read_published(tmp_path / "older.json")
    names, *lines = zip(
        (("name",), "seed=0", "seed=1"),
        (("config", "seed"), 0, 1),
        (("summary", "diverged"), False, True),
        (("summary", "val_loss"), 2.5, None),
        (("summary", "perplexity"), 12.1825, None),
        (("summary", "last_layer_variance"), 6.0, None),
        (("log", "step"), [0, 1], [0]),
        (("log", "tokens"), [0, 16], {}),  # as is shared
        (("log", "train_loss"), [None, 2.4], {}),
        (("log", "val_loss"), [3.0, 2.5], [3.5]),
        (("log", "variance"), [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], [[1.0, 2.0, 3.0]]),
        (("analysis",), {}, None),
        (("analysis", "sequences"), 48, {}),
        (("analysis", "causal"), 0.5, {}),
        (("analysis", "causal_matrix"), [[0.5], []], {}),
        (("analysis", "permutation"), 0.7, {}),
        (("analysis", "permutation_matrix"), [[0.7], []], {}),
        (("analysis", "angular_distance"), [[0.1, 0.2], [0.3], []], {}),
        (("analysis", "blimp", "paradigms", "accuracy"), [0.8, 0.4], {}),
        strict=True,
    )
    write_json(tmp_path / "table.json", {"shared": shared, "names": names, "runs": lines})
    assert read_published(tmp_path / "table.json") == [one, other]
    assert one.config == config_of(sweep("seed"), seed=0)
    assert other.config == config_of(sweep("seed"), seed=1)
    assert (one.summary, other.summary) == ({**summary(), **ends}, summary(diverged=True))
    assert one.log == [
        {"step": 0, "tokens": 0, "val_loss": 3.0, "variance": [1.0, 2.0, 3.0]},
        {"step": 1, "tokens": 16, "train_loss": 2.4, "val_loss": 2.5, "variance": [4.0, 5.0, 6.0]},
    ]
    assert other.analysis is None
    first_line = {"step": 0, "tokens": 0, "val_loss": 3.5, "variance": [1.0, 2.0, 3.0]}
    assert other.log == [first_line]
    assert one.analysis["sequences"] == 48 and one.analysis["causal"] == 0.5
    assert one.analysis["causal_matrix"] == [[0.0, 0.5], [0.0, 0.0]]
    assert one.analysis["permutation_matrix"] == [[0.0, 0.7], [0.7, 0.0]]
    distance = [[0.0, 0.1, 0.2], [0.1, 0.0, 0.3], [0.2, 0.3, 0.0]]
    assert one.analysis["angular_distance"] == distance
    assert one.analysis["blimp"] == {"accuracy": 0.6, "paradigms": {"a": 0.8, "name": 0.4}}


def test_what_all_runs_share_stands_once(tmp_path):
    diverged = run("n_layer=3", sweep("n_layer"), diverged=True, n_layer=3)
    runs = [*drawn_sweep("alike"), diverged]
    publish_runs(runs, tmp_path / "sweep.json")
    text = (tmp_path / "sweep.json").read_text(encoding="utf-8")
    for once in ("learning_rate", "wh_island", '"sequences"', '"2.13"'):
        assert text.count(once) == 1, once
    back = read_published(tmp_path / "sweep.json")
    back[0].analysis["blimp"]["paradigms"]["wh_island"] = back[0].config["sweep"]["options"] = None
    assert back[1].config == runs[1].config  # each has what is shared for itself
    assert back[1].analysis["blimp"]["paradigms"]["wh_island"] is not None


def test_a_matrix_with_more_than_is_above_its_diagonal_stays_whole(tmp_path):
    whole = [[0.0, 0.5], [0.25, 0.0]], [[0.125, 0.5], [0.5, 0.0]], [[0.0, 0.5], [0.0, 0.0]]
    for matrix in whole:
        scalars = {"causal": matrix[0][1], "permutation": matrix[0][1]}
        measured = analysis(causal_matrix=matrix, permutation_matrix=matrix, **scalars)
        publish_runs([run("run", sweep(), analysis=measured)], tmp_path / "sweep.json")
        (back,) = read_published(tmp_path / "sweep.json")
        assert back.analysis["causal_matrix"] == back.analysis["permutation_matrix"] == matrix


SWEEPS = [path for path in sorted(RESULTS.rglob("*.json")) if is_published(path)]


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_published_files_are_as_they_would_be_written_now(path, tmp_path):
    """Where this fails, python analyze.py results/<sweep>.json --publish results writes it anew."""
    publish_runs(read_runs(path), tmp_path / "sweep.json")  # what that command does
    assert (tmp_path / "sweep.json").read_bytes() == path.read_bytes()


def test_what_holds_a_sweep_is_seen_by_its_content(tmp_path):
    path = tmp_path / "sweep.json"
    publish_runs(measured_runs(), path)
    assert is_published(path)
    path.write_text(json.dumps(read_json(path), indent=2, sort_keys=True))
    assert is_published(path) and len(read_runs(path)) == 4
    path.write_text(json.dumps([asdict(each) for each in measured_runs()], indent=2))
    assert is_published(path) and len(read_runs(path)) == 4
    assert not is_published(RESULTS / "theory.json")
    path.write_text('{"shared":')
    with pytest.raises(BadInput, match="sweep.json: not JSON"):
        is_published(path)


def test_results_stay_small():
    files = [path for path in RESULTS.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    most, n_bytes = 10 * 2**20, sum(path.stat().st_size for path in files)
    assert n_bytes <= most, (
        f"results/ is {n_bytes - most:,} bytes too large: take digits in FEWER_DIGITS "
        "(results/runs.py), or colours or dots in results/figures.py, and write all anew with "
        "python analyze.py results/*.json --publish results; or leave a sweep's figures out"
    )


# One folder --------------------------------------------------------------------------------------


@pytest.fixture
def trained(tmp_path):
    """A run's folder and its model, with weights in ckpt.pt."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(**SMALL))
    write_json(tmp_path / "config.json", config_of(sweep(), **asdict(model.config)))
    checkpoint = {"model": model.state_dict(), "optimizer": {}, "step": 3, "seconds": 1.0}
    torch.save(checkpoint, tmp_path / "ckpt.pt")
    return tmp_path, model, checkpoint


def test_a_trained_model_comes_back_in_eval_mode(trained):
    folder, model, _ = trained
    loaded, config = load_run(folder)
    assert not loaded.training
    assert config == TrainConfig(**SHORT)
    for ours, saved in zip(loaded.parameters(), model.parameters(), strict=True):
        assert torch.equal(ours, saved)


def test_a_model_from_before_eval_tokens_comes_back(tmp_path):
    """Its config.json has an option that there is no more, and lacks one."""
    model = GPT(GPTConfig(**SMALL))
    written = config_of(sweep(), **asdict(model.config), eval_iters=16, batch_size=7)
    del written["eval_tokens"]
    write_json(tmp_path / "config.json", written)
    checkpoint = {"model": model.state_dict(), "optimizer": {}, "step": 3, "seconds": 1.0}
    torch.save(checkpoint, tmp_path / "ckpt.pt")
    assert load_run(tmp_path)[1] == TrainConfig(**SHORT, batch_size=7)


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(BadInput, match="is no run's folder"):
        load_run(tmp_path)


def test_a_restored_run_without_weights_says_so(trained):
    folder, _, _ = trained
    (folder / "ckpt.pt").unlink()
    with pytest.raises(BadInput, match="restored"):
        load_run(folder)


def test_a_damaged_checkpoint_is_refused(trained):
    folder, _, _ = trained
    (folder / "ckpt.pt").write_bytes((folder / "ckpt.pt").read_bytes()[:1000])
    with pytest.raises(BadInput, match="ckpt.pt cannot be used"):
        load_run(folder)


def test_a_flipped_bit_in_a_weight_is_refused(trained):
    folder, model, _ = trained
    path, weights = folder / "ckpt.pt", model.head.weight.detach().numpy().tobytes()
    content = bytearray(path.read_bytes())
    content[content.index(weights) + 10] ^= 1
    path.write_bytes(content)
    with pytest.raises(BadInput, match="ckpt.pt cannot be used .* is not as it was written"):
        load_run(folder)


WEIGHTS_OF_ANOTHER = GPT(GPTConfig(**{**SMALL, "n_layer": 3})).state_dict()


@pytest.mark.parametrize(
    "entries, words",
    [
        ({"model": None}, "model = None"),
        ({"model": {}}, "another model"),
        ({"model": {"head.weight": "x"}}, "another model"),
        ({"model": WEIGHTS_OF_ANOTHER}, "another model"),
        ({"step": "3"}, "step = '3'"),
        ({"step": -1}, "step = -1"),
        ({"seconds": float("nan")}, "seconds = nan"),
    ],
)
def test_a_foreign_checkpoint_is_refused(trained, entries, words):
    folder, _, checkpoint = trained
    torch.save({**checkpoint, **entries}, folder / "ckpt.pt")
    with pytest.raises(BadInput, match="ckpt.pt cannot be used") as error:
        load_run(folder)
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("entry", [{"train_loss": "a"}, {"variance": [None]}, {"lr": [1]}])
def test_a_line_of_the_log_with_something_else_than_numbers_is_refused(tmp_path, entry):
    lines = [{"step": 0, "tokens": 0, **entry}, {"step": 5, "tokens": 80}]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(BadInput, match=f"log.jsonl, line 1: {next(iter(entry))}"):
        read_log(tmp_path)


@pytest.mark.parametrize("content", [torch.ones(3), [1, 2], {}, {"model": {}}])
def test_a_checkpoint_of_another_kind_is_refused(trained, content):
    folder, _, _ = trained
    torch.save(content, folder / "ckpt.pt")
    with pytest.raises(BadInput, match="ckpt.pt cannot be used"):
        load_run(folder)


def test_weights_that_are_not_finite_are_refused(trained):
    folder, _, checkpoint = trained
    checkpoint["model"]["head.weight"][0, 0] = float("nan")
    torch.save(checkpoint, folder / "ckpt.pt")
    with pytest.raises(BadInput, match="not finite"):
        load_run(folder)


def test_a_line_that_was_cut_short_is_left_out_of_the_log(tmp_path):
    lines = [{"step": 0, "tokens": 0}, {"step": 5, "tokens": 80}]
    whole = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "log.jsonl").write_text(whole + '{"st')
    assert read_log(tmp_path) == lines
    (tmp_path / "log.jsonl").write_text(whole)
    assert read_log(tmp_path) == lines


def test_a_damaged_line_inside_the_log_is_named(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"step": 0, "tokens": 0}\n{"st\n{"step": 9}\n')
    with pytest.raises(BadInput, match="log.jsonl, line 2"):
        read_log(tmp_path)


DAMAGE = {
    "summary.json": {"diverged": "no"},
    "config.json": {"n_layer": "four"},
    "analysis.json": {"causal": "high"},
}


@pytest.mark.parametrize("name", DAMAGE)
@pytest.mark.parametrize("content", [None, [], {}, "x", 3, "damaged"])
def test_damaged_files_of_a_run_are_named_with_their_field(tmp_path, name, content):
    write_folder(tmp_path / "run", run("run", sweep(), analysis=analysis()))
    path = tmp_path / "run" / name
    if content == "damaged":
        content = {**json.loads(path.read_text(encoding="utf-8")), **DAMAGE[name]}
    path.write_text(json.dumps(content))
    if (name, content) == ("analysis.json", None):
        return  # a run may be without scores
    with pytest.raises(BadInput, match=name) as error:
        read_runs(tmp_path)
    assert "\n" not in str(error.value)


def test_the_same_run_twice_is_no_second_seed(tmp_path):
    publish_runs([run("run", sweep()), run("run", sweep())], tmp_path / "sweep.json")
    with pytest.raises(BadInput, match="holds run twice"):
        read_runs(tmp_path / "sweep.json")


def test_a_run_that_may_not_be_looked_into_is_not_left_out(tmp_path, monkeypatch):
    for seed in (0, 1):
        write_folder(tmp_path / f"seed={seed}", run(f"seed={seed}", sweep("seed"), seed=seed))
    listed = Path.iterdir

    def denied(path):
        if path.name == "seed=1":
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(Path, "iterdir", denied)
    with pytest.raises(PermissionError):
        read_runs(tmp_path)


def test_a_run_of_a_name_that_no_file_hands_on_is_not_published(tmp_path):
    """Of a folder that somebody called so; what was published before stays."""
    publish_runs(measured_runs(), tmp_path / "sweep.json")
    before = (tmp_path / "sweep.json").read_bytes()
    with pytest.raises(BadInput, match="to be published, the run's folder 'my run' must be a name"):
        publish_runs([run("my run", sweep())], tmp_path / "sweep.json")
    assert (tmp_path / "sweep.json").read_bytes() == before


@pytest.mark.parametrize("name", ["../../evil", "/tmp/evil", "a/b", ".", ""])
def test_a_published_file_cannot_name_a_folder_outside(tmp_path, name):
    path = tmp_path / "sweep.json"
    publish_runs([run("run", sweep(), analysis=analysis())], path)
    text = path.read_text(encoding="utf-8")
    assert text.count('"run"') == 1
    path.write_text(text.replace('"run"', f'"{name}"'), encoding="utf-8")
    with pytest.raises(BadInput, match="must be a name"):
        restore_runs(tmp_path / "sweep.json", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_run_is_finished_once_it_has_a_summary(tmp_path):
    config = config_of(sweep("seed"))
    assert not finished(tmp_path, config)
    write_json(tmp_path / "config.json", config)
    assert not finished(tmp_path, config)
    write_json(tmp_path / "summary.json", {})
    assert finished(tmp_path, config)


def test_the_same_run_may_move_and_stand_in_another_sweep(tmp_path):
    write_json(tmp_path / "config.json", config_of())
    write_json(tmp_path / "summary.json", {})
    elsewhere = {"out_dir": "other", "device": "cuda", "dtype": "bfloat16", "compile": False}
    assert finished(tmp_path, config_of(sweep("n_layer"), **elsewhere))


def test_another_runs_folder_is_refused(tmp_path):
    write_json(tmp_path / "config.json", config_of())
    with pytest.raises(BadInput, match="seed was 0, now 1"):
        finished(tmp_path, config_of(seed=1))


def test_a_run_by_other_code_is_refused_and_an_older_one_accepted(tmp_path):
    write_json(tmp_path / "config.json", config_of(code="loss 3, gradient norm 2"))
    write_json(tmp_path / "summary.json", {})
    assert finished(tmp_path, config_of(code="loss 3, gradient norm 2"))
    with pytest.raises(BadInput, match="other code.*loss 3.*loss 4") as error:
        finished(tmp_path, config_of(code="loss 4, gradient norm 2"))
    assert "--out_dir" in str(error.value)
    older = config_of()
    del older["code"]
    write_json(tmp_path / "config.json", older)
    assert finished(tmp_path, config_of())


@pytest.mark.parametrize("number, shown", [(8, "8"), (0.003, "0.003"), (1e-5, "1e-05"), ("a", "a")])
def test_values_are_shown_as_in_names(number, shown):
    assert as_text(number) == shown


def test_older_runs_are_given_the_scores_that_follow_from_theirs(tmp_path):
    measured = analysis(prune_ratios=[1.5, 1.1], growth={"growth": 1.0})
    write_folder(tmp_path / "run", run(analysis=measured))
    (read,) = read_runs(tmp_path)
    assert read.analysis["removal_use"] == use_of_depth([1.5, 1.1])
    assert read.analysis["growth"] == {"growth": 1.0}  # its own


def test_scores_of_another_number_of_blocks_are_refused(tmp_path):
    write_folder(tmp_path / "run", run(analysis=analysis(prune_ratios=[1.5])))
    with pytest.raises(BadInput, match="prune_ratios has 1 entries, where 2 belong"):
        read_runs(tmp_path)


# A toggle of one's own ---------------------------------------------------------------------------


def test_runs_from_before_an_option_existed_had_its_default(tmp_path, monkeypatch):
    """As when a reader adds a toggle to GPTConfig: published runs and finished ones stay readable,
    and a sweep that mixes them with new ones knows what varies."""
    older = run("run", sweep(), analysis=analysis())
    del older.config["layer_norm_scaling"]
    write_folder(tmp_path / "out/run", older)
    assert read_runs(tmp_path / "out")[0].config["layer_norm_scaling"] is False
    assert finished(tmp_path / "out/run", config_of(sweep()))
    with pytest.raises(BadInput, match="layer_norm_scaling was False, now True"):
        finished(tmp_path / "out/run", config_of(sweep(), layer_norm_scaling=True))


def test_an_older_published_file_stays_as_it_is_when_it_is_published_again(tmp_path):
    """The new option's default and the scores that follow are given on reading alone."""
    older = run("run", sweep(), analysis=analysis())
    del older.config["layer_norm_scaling"]
    publish_runs([older], tmp_path / "sweep.json")
    written = (tmp_path / "sweep.json").read_text(encoding="utf-8")
    (read,) = read_runs(tmp_path / "sweep.json")
    assert "layer_norm_scaling" in read.config and "removal_use" in read.analysis
    publish_runs([read], tmp_path / "sweep.json")
    assert (tmp_path / "sweep.json").read_text(encoding="utf-8") == written
    assert "layer_norm_scaling" not in written and "removal_use" not in written


@pytest.mark.parametrize("lost", [0, 1])
def test_a_published_run_that_lost_a_validation_is_refused(tmp_path, lost):
    cut = run("run", sweep(), analysis=analysis())
    del cut.log[lost]
    publish_runs([cut], tmp_path / "sweep.json")
    with pytest.raises(BadInput, match="a validation every 1 steps up to 1, with the variances of"):
        read_runs(tmp_path / "sweep.json")


def test_a_log_that_ends_before_its_run_did_is_refused(tmp_path):
    cut = run("run", sweep(), analysis=analysis())
    cut.log[-1]["val_loss"] = 3.0
    write_folder(tmp_path / "run", cut)
    with pytest.raises(BadInput, match="log.jsonl does not end with the loss"):
        read_runs(tmp_path)
