"""configs/read.py: points of a sweep and their names, options, their help, and bad input."""

import tomllib
from dataclasses import asdict

import pytest
import torch

import train
from configs.read import (
    OPTIONS,
    WHERE_NOT_WHAT,
    TrainConfig,
    help_of_options,
    load_points,
    parse_override,
)
from conftest import REPOSITORY, write_config
from data.files import BadInput
from model import GPTConfig
from results.claims import EXPERIMENT
from results.runs import read_published


def points(path, **overrides):
    """{name: Point} of a config and of options as they stand on the command line."""
    return load_points(path, {name: parse_override(name, text) for name, text in overrides.items()})


# Points -------------------------------------------------------------------------------------------


def test_without_a_sweep_there_is_one_point(project):
    resolved = points(write_config(project))
    assert list(resolved) == ["run"]
    assert resolved["run"].sweep == {"point": None, "rung": None, "place": 0, "options": []}


def test_sweep_lists_are_crossed_and_name_their_points(project):
    text = "[sweep]\nn_layer = [2, 4]\nlearning_rate = [1e-3, 0.01]\nseed = [0, 1]\n"
    resolved = points(write_config(project, text))
    assert list(resolved) == [
        f"n_layer={n_layer},learning_rate={learning_rate},seed={seed}"
        for n_layer in (2, 4)
        for learning_rate in ("0.001", "0.01")
        for seed in (0, 1)
    ]
    point = resolved["n_layer=4,learning_rate=0.01,seed=0"]
    assert point.model.n_layer == 4
    assert point.training.learning_rate == 0.01
    assert point.training.seed == 0
    assert point.sweep["options"] == ["n_layer", "learning_rate", "seed"]


def test_what_is_not_swept_comes_from_the_file_the_data_and_the_defaults(project):
    point = points(write_config(project, "learning_rate = 0.01\n"))["run"]
    assert point.training.batch_size == 4  # the file
    assert point.model.vocab_size == 257  # the data
    assert point.training.weight_decay == TrainConfig.weight_decay
    assert point.training.min_lr == 0.001  # a tenth of learning_rate


POINTS = """
[[point]]
name = "naive"
n_layer = 8

[[point]]
weight_decay = 1
n_layer = 2

[sweep]
seed = [0, 1]
"""


def test_points_are_overrides_with_or_without_a_name(project):
    resolved = points(write_config(project, POINTS))
    assert list(resolved) == [
        "naive,seed=0",
        "naive,seed=1",
        "weight_decay=1,n_layer=2,seed=0",
        "weight_decay=1,n_layer=2,seed=1",
    ]
    assert resolved["naive,seed=0"].model.n_layer == 8
    assert resolved["weight_decay=1,n_layer=2,seed=1"].training.weight_decay == 1.0


def test_a_point_knows_its_place_and_which_options_vary(project):
    resolved = points(write_config(project, POINTS))
    assert resolved["naive,seed=1"].sweep == {
        "point": "naive",
        "rung": None,
        "place": 1,
        "options": ["seed"],
    }
    assert resolved["weight_decay=1,n_layer=2,seed=0"].sweep == {
        "point": None,
        "rung": None,
        "place": 2,
        "options": ["weight_decay", "n_layer", "seed"],
    }


def test_a_point_can_stand_on_a_rung_which_is_no_option(project):
    text = '[[point]]\nname = "deep"\nrung = 3\n[[point]]\nrung = 4\nn_layer = 2\n'
    resolved = points(write_config(project, text))
    assert {name: point.sweep["rung"] for name, point in resolved.items()} == {
        "deep": 3,
        "n_layer=2": 4,
    }
    assert resolved["n_layer=2"].sweep["options"] == ["n_layer"]


def test_points_of_one_name_are_refused(project):
    twice = "[[point]]\nn_layer = 2\n" * 2
    with pytest.raises(BadInput, match="two points are called n_layer=2"):
        points(write_config(project, twice))


# Command line -------------------------------------------------------------------------------------


def test_text_becomes_values_of_the_options_type():
    assert parse_override("n_layer", "4") == [4]
    assert parse_override("n_layer", "4,8") == [4, 8]
    assert parse_override("learning_rate", "1") == [1.0]
    assert parse_override("attention", "window,full") == ["window", "full"]
    assert parse_override("out_dir", "2024") == ["2024"]
    assert parse_override("compile", "False") == [False]


SWEEP = "[sweep]\nn_layer = [2, 4]\nseed = [0, 1, 2]\n"


def test_an_override_replaces_a_swept_list_and_keeps_the_names(project):
    part = points(write_config(project, SWEEP), seed="1")
    assert list(part) == ["n_layer=2,seed=1", "n_layer=4,seed=1"]


def test_an_override_of_several_values_is_swept(project):
    resolved = points(write_config(project, SWEEP), n_layer="3", seed="0", weight_decay="0,0.5")
    assert list(resolved) == [
        "n_layer=3,seed=0,weight_decay=0",
        "n_layer=3,seed=0,weight_decay=0.5",
    ]


def test_an_override_replaces_what_the_file_says(project):
    point = points(write_config(project), batch_size="2", attention="window", compile="False")[
        "run"
    ]
    assert point.training.batch_size == 2
    assert point.model.attention == "window"
    assert point.training.compile is False


def test_an_override_replaces_what_a_point_says(project):
    path = write_config(project, '[[point]]\nname = "a"\nn_layer = 8\n')
    assert points(path, n_layer="2")["a"].model.n_layer == 2


def test_each_option_is_explained_by_the_comment_behind_its_field():
    explained = help_of_options()
    assert list(explained) == list(OPTIONS)
    assert all(explained.values())
    assert explained["n_layer"] == "depth L, in blocks"
    assert explained["grad_clip"] == "largest gradient norm; 0: no clipping"
    assert explained["normalize_expert_weights"].startswith("let the active experts' weights")


def test_help_shows_each_option(capsys):
    with pytest.raises(SystemExit):
        train.main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    for name in OPTIONS:
        assert f"--{name} " in text
    assert "--n_layer int depth L, in blocks (default 4)" in text
    assert "--grad_clip float largest gradient norm; 0: no clipping (default 1.0)" in text


# Bad input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, words",
    [
        ("n_layr = 3", ["small.toml", "n_layr"]),
        ("n_layer = 2.5", ["n_layer", "whole number"]),
        ("n_layer = true", ["n_layer", "whole number"]),
        ("n_kv_head = 3", ["n_head", "n_kv_head"]),
        ("n_embd = ", ["small.toml", "TOML"]),
        ("[sweep]\nn_layer = 4", ["[sweep] n_layer", "list"]),
        ("[sweep]\nn_layer = []", ["[sweep] n_layer", "list"]),
        ("[sweep]\nrung = [1]", ["small.toml", "rung"]),
        ('[[point]]\nname = "a"\nrung = "b"', ["small.toml", "rung", "whole number"]),
        ('[[point]]\nname = "a"\nrung = -1', ["small.toml", "rung", "at least 0"]),
        ("[[point]]\nname = 3", ["small.toml", "name", "text"]),
        ("sweep = 3", ["small.toml", "[sweep]"]),
        ("point = 3", ["small.toml", "[[point]]"]),
        ("point = []", ["small.toml", "[[point]]"]),
        ("point = [3]", ["small.toml", "[[point]]"]),
        ("[point]\nn_layer = 2", ["small.toml", "[[point]]"]),
        ('[[point]]\nname = "a/b"', ["small.toml", "'a/b'", "name"]),
        ('[[point]]\nname = ".."', ["small.toml", "'..'", "name"]),
        ('[[point]]\nname = "../../evil"', ["small.toml", "evil", "name"]),
        ('[[point]]\nname = "a\\u0000"', ["small.toml", "name"]),
        ("a = " + "[" * 5000, ["small.toml", "TOML"]),
        ("learning_rate = nan", ["learning_rate", "finite"]),
        ("[sweep]\nn_layer = [2, 4, 2]", ["small.toml", "n_layer has 2 twice"]),
        ("[sweep]\nmin_lr = [1e-4, 0.0001]", ["small.toml", "min_lr has 0.0001 twice"]),
        ("weight_decay = inf", ["weight_decay", "finite"]),
        ('out_dir = "a\\u0000b"', ["small.toml", "out_dir = 'a\\x00b'", "NUL"]),
        (f'[[point]]\nname = "a"\n[[point]]\nname = "{"b" * 201}"', ["small.toml", "at most 200"]),
    ],
)
def test_a_bad_config_gets_one_sentence(project, refused, text, words):
    message = refused(train.main, [write_config(project, text)])
    assert all(word in message for word in words), message
    assert not (project / "out").exists()


ON_NO_MAC = pytest.mark.skipif(torch.backends.mps.is_available(), reason="it is there")


@pytest.mark.parametrize(
    "argument, words",
    [
        ("--n_layer=many", ["n_layer", "whole number"]),
        ("--max_iters=0", ["max_iters"]),
        ("--learning_rate=-1", ["learning_rate"]),
        ("--dtype=int8", ["dtype", "int8"]),
        ("--dataset=nothing", ["data/nothing", "prepare.py"]),
        ("--vocab_size=100", ["vocab_size", "too small"]),
        ("--block_size=700", ["block_size", "too few"]),
        ("--device=cuda:99", ["device"]),
        pytest.param("--device=mps", ["device"], marks=ON_NO_MAC),
        ("--router_z_loss=--", ["router_z_loss", "no value"]),
        ("--device=", ["device", "empty"]),
        ("--dataset=", ["dataset", "name"]),
        ("--out_dir=", ["out_dir", "empty"]),
        ("--dataset=../tiny", ["dataset", "name"]),
        ("--learning_rate=nan", ["learning_rate", "finite"]),
        ("--n_layer=1,,2", ["n_layer", "whole number"]),
        ("--warmup_iters=13", ["warmup_iters", "max_iters"]),
        ("--min_lr=1", ["min_lr", "learning_rate"]),
        (f"--seed={2**63}", ["seed", "smaller than 2^63"]),
        (f"--window={2**63}", ["window", "smaller than 2^63"]),
        (f"--stride={10**30}", ["stride", "smaller than 2^63"]),
        ("--seed=0,0", ["command line", "seed has 0 twice"]),
        ("--n_layers=3", ["--n_layers=3", "no option", "--help"]),
        ("n_layer=3", ["n_layer=3", "no option", "--name=value"]),
        ("--compile=yes", ["compile", "true or false"]),
        ("--device=gpu", ["gpu", "torch knows no such device", "auto, cpu"]),
        ("--n_layer=1000000000", ["n_layer", "memory"]),
        ("--n_embd=1000000000", ["n_embd", "memory"]),
        ("--batch_size=1000000000000", ["batch_size", "memory"]),
    ],
)
def test_a_bad_argument_gets_one_sentence(project, refused, argument, words):
    message = refused(train.main, [write_config(project), argument])
    assert all(word in message for word in words), message
    assert not list(project.rglob("ckpt.pt"))


def test_a_missing_file_is_named(project, refused):
    message = refused(train.main, ["none.toml"])
    assert "there is no none.toml" in message and "configs/demo.toml" in message


def test_a_mistyped_option_is_named(project, capsys):
    with pytest.raises(SystemExit) as stop:
        train.main([str(write_config(project)), "--n_layr=4"])
    assert stop.value.code == 2
    assert "--n_layr" in capsys.readouterr().err


# The experiments ----------------------------------------------------------------------------------

NO_EXPERIMENTS = ("bench", "demo", "exercise", "small_gpu")  # nothing of theirs is published
EXPERIMENTS = sorted(
    path for path in (REPOSITORY / "configs").glob("*.toml") if path.stem not in NO_EXPERIMENTS
)


PUBLISHED = [path for path in EXPERIMENTS if (REPOSITORY / f"results/{path.stem}.json").exists()]


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_what_is_published_can_be_trained_again(path):
    """Names and options are those in results/*.json, which may lack runs that are still to come."""
    runs = read_published(REPOSITORY / "results" / f"{path.stem}.json")
    published = {run.name: run.config for run in runs}
    resolved = points(path, vocab_size="8192")
    assert published and set(published) <= set(resolved)
    for name in published:
        point = resolved[name]
        options = {**asdict(point.model), **asdict(point.training)}
        for key in set(options) & set(published[name]) - set(WHERE_NOT_WHAT):
            assert options[key] == published[name][key], f"{name}: {key}"


def test_every_claim_has_its_experiment():
    assert set(EXPERIMENT.values()) <= {path.stem for path in EXPERIMENTS}


SHARED = ("dataset", "weight_decay", "max_iters", "eval_tokens", "log_interval")


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_experiments_agree_in_what_they_do_not_ask_about(path):
    depth, config = (
        tomllib.loads(file.read_text(encoding="utf-8"))
        for file in (REPOSITORY / "configs/depth.toml", path)
    )
    varied = {"eval_tokens", *config.get("sweep", {}), *sum(map(list, config.get("point", [])), [])}
    for name in SHARED:
        assert name in varied or config[name] == depth[name]
    for point in points(path, vocab_size="8192").values():
        assert point.training.eval_tokens == depth["eval_tokens"]
        assert point.training.sequences_per_step * point.model.block_size == 64 * 512
        assert point.training.warmup_iters == point.training.max_iters // 10
        assert point.training.eval_interval == point.training.max_iters // 10


RATES = {  # of every point, where it is not the suite's
    "rates": {5e-4, 1e-3, 2e-3, 4e-3, 8e-3},
    "control": {2e-3, 4e-3},
    "recipe": {1e-3, 2e-3, 4e-3},
    "remedies_double_rate": {4e-3},
    "half_rate_moe": {1e-3},
    "half_rate_context": {1e-3},
    "half_rate_weight_decay": {1e-3},
}


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_rates_are_the_suites_but_where_that_is_the_question(path):
    rates = {p.training.learning_rate for p in points(path, vocab_size="8192").values()}
    assert rates == RATES.get(path.stem, {2e-3})


HALF_RATE = sorted((REPOSITORY / "configs").glob("half_rate_*.toml"))


@pytest.mark.parametrize("path", HALF_RATE, ids=lambda path: path.stem)
def test_half_the_rate_is_tried_at_the_first_and_the_last_point_of_the_suite(path):
    """With three seeds, and nothing else changed."""
    suite = path.with_stem(path.stem.removeprefix("half_rate_"))
    half, full = points(path, vocab_size="8192"), points(suite, vocab_size="8192", seed="0,1,2")
    names = list(full)
    assert list(half) == names[:3] + names[-3:]
    for name, point in half.items():
        assert point.model == full[name].model
        ours, theirs = asdict(point.training), asdict(full[name].training)
        assert ours == theirs | {rate: theirs[rate] / 2 for rate in ("learning_rate", "min_lr")}


def test_the_rungs_of_the_recipe_are_its_ladder():
    recipe = points(REPOSITORY / "configs/recipe.toml", vocab_size="8192", seed="0")
    rungs = {point.sweep["point"]: point.sweep["rung"] for point in recipe.values()}
    ladder = [name for name, rung in rungs.items() if rung is not None]
    assert ladder == ["0-shallow", "1-deep", "2-context", "3-decay", "4-gqa", "5-moe"]
    assert [rungs[name] for name in ladder] == [0, 1, 2, 3, 4, 5]


def test_a_small_gpu_trains_what_depth_trains_in_smaller_parts():
    small, depth = (
        points(REPOSITORY / f"configs/{name}.toml", vocab_size="8192")
        for name in ("small_gpu", "depth")
    )
    assert list(small) == [name for name in depth if name.endswith("seed=0")]
    how = ("batch_size", "gradient_accumulation_steps", "dtype", "compile")
    for name, point in small.items():
        assert point.model == depth[name].model
        ours, theirs = asdict(point.training), asdict(depth[name].training)
        assert {key: ours[key] for key in ours if key not in how} == {
            key: theirs[key] for key in theirs if key not in how
        }
        assert point.training.sequences_per_step == depth[name].training.sequences_per_step
        assert ours["dtype"] == "float32" and not ours["compile"]


def test_all_configs_can_be_read():
    for path in (REPOSITORY / "configs").glob("*.toml"):
        for point in points(path, vocab_size="8192").values():
            assert isinstance(point.model, GPTConfig)
            assert isinstance(point.training, TrainConfig)
