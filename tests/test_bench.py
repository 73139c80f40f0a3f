"""bench.py: what it times and says, and what it refuses."""

import math
import shutil

import pytest
import torch

import bench
import train
from configs.read import OPTIONS
from conftest import write_config
from data.files import read_json
from results import scaling

# What it says ------------------------------------------------------------------------------------


def test_bench_times_the_step_and_writes_no_run(project, capsys):
    bench.main([str(write_config(project)), "--n_layer=1,2", "--seed=0,1,2"])
    *lines, last = capsys.readouterr().out.strip().splitlines()
    assert len(lines) == 2  # seeds take the same step
    assert all("tokens/s" in line and "first step" in line for line in lines)
    assert last.startswith("all of it: about ") and " of training here" in last
    assert not (project / "out").exists()


def test_the_last_line_is_the_time_of_every_point(project, monkeypatch, capsys):
    """Of both seeds, though one is timed: 12 steps of 64 tokens each, at 8 and at 2 tokens/s."""

    def as_if_timed(point, n_windows):
        speed = {2: 8.0, 4: 2.0}[point.model.n_layer]
        row = dict.fromkeys(("tokens_per_second", "slowest", "fastest"), speed)
        return row | {"first_step_seconds": 1.0, "mfu": 0.5, "memory_GiB": 1.0, "device": "cpu"}

    monkeypatch.setattr(bench, "time_steps", as_if_timed)
    bench.main([str(write_config(project)), "--n_layer=2,4", "--seed=0,1"])
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert last.startswith("all of it: about 16 minutes")  # 2 * 768 / 8 + 2 * 768 / 2 s


def test_a_config_with_a_vocabulary_needs_no_data(project, capsys):
    path = write_config(project, "vocab_size = 257\n")
    shutil.rmtree(project / "data")
    bench.main([str(path), "--n_layer=1"])
    assert "tokens/s" in capsys.readouterr().out


def test_a_context_longer_than_the_random_tokens_is_timed(project, monkeypatch, capsys):
    monkeypatch.setattr(bench, "BENCH_TOKENS", 8)
    bench.main([str(write_config(project)), "--n_layer=1", "--block_size=16"])
    assert "tokens/s" in capsys.readouterr().out


def test_the_peak_of_a_card_is_that_of_its_kind():
    def peak(name):
        return next(flops for part, flops in bench.PEAK_FLOPS.items() if part in name)

    assert peak("NVIDIA H100 PCIe") == 756e12 and peak("NVIDIA H100 NVL") == 835e12
    assert peak("NVIDIA H100 80GB HBM3") == 989e12


def test_help_shows_its_own_use_and_each_option(capsys):
    with pytest.raises(SystemExit):
        bench.main(["--help"])
    text = capsys.readouterr().out
    assert text.startswith("usage: python bench.py CONFIG")
    assert "random tokens" in text and all(f"--{name} " in text for name in OPTIONS)


# What goes wrong ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "argument, words",
    [
        ("--n_layer=x", ["n_layer", "whole number"]),
        ("--n_layers=3", ["--n_layers=3 is no option", "python bench.py --help"]),
        ("--dataset=nothing", ["data/nothing", "prepare.py"]),
        ("--device=cuda:99", ["device = cuda:99 cannot be used here"]),
        ("--n_layer=1000000000", ["n_layer", "GiB of memory"]),
        (
            "--router_z_loss=--",
            ["router_z_loss"],
        ),  # argparse's versions differ in what they pass on
    ],
)
def test_a_bad_argument_gets_one_sentence(project, refused, argument, words):
    message = refused(bench.main, [write_config(project), argument])
    assert all(word in message for word in words), message


def test_a_missing_file_is_named(refused):
    assert "there is no none.toml" in refused(bench.main, ["none.toml"])


def raises(error):
    def time_steps(point, n_windows):
        raise error

    return time_steps


def test_memory_that_runs_out_is_one_sentence(project, refused, monkeypatch):
    monkeypatch.setattr(bench, "time_steps", raises(torch.OutOfMemoryError("CUDA out of memory")))
    message = refused(bench.main, [write_config(project)])
    assert "the bench is out of GPU memory: halve batch_size" in message


def test_ctrl_c_is_one_line(project, monkeypatch, capsys):
    monkeypatch.setattr(bench, "time_steps", raises(KeyboardInterrupt))
    with pytest.raises(SystemExit) as stop:
        bench.main([str(write_config(project))])
    lines = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 130 and len(lines) == 1 and "nothing was written" in lines[0]


def test_training_has_no_such_option(project, refused):
    message = refused(train.main, [write_config(project), "--bench"])
    assert "--bench is no option" in message and not (project / "out").exists()


# results/scaling.py ------------------------------------------------------------------------------


def test_the_cost_of_a_step_is_measured_and_drawn_or_drawn_again(monkeypatch, tmp_path):
    def as_if_timed(point, n_windows):
        speed = {"tokens_per_second": 1 / 3, "slowest": 0.25, "fastest": 0.5}
        others = {"first_step_seconds": 1.0, "mfu": math.nan, "memory_GiB": 1.0, "device": "cpu"}
        return speed | others

    monkeypatch.setattr(bench, "time_steps", as_if_timed)
    scaling.main(["--out", str(tmp_path)])
    rows = read_json(tmp_path / "scaling.json")
    assert list(rows) == ["blocks", "context", "experts"]
    assert list(rows["blocks"]["dense"]) == ["4", "8", "16", "32", "64"]
    row = rows["experts"]["top 2, equal active parameters"]["16"]
    assert row["tokens_per_second"] == 0.3333 and row["mfu"] is None
    drawn = (tmp_path / "scaling.png").read_bytes()
    (tmp_path / "scaling.png").unlink()

    monkeypatch.setattr(bench, "time_steps", None)  # nothing is timed
    scaling.main(["--out", str(tmp_path), "--draw"])
    assert (tmp_path / "scaling.png").read_bytes() == drawn
    assert read_json(tmp_path / "scaling.json") == rows
