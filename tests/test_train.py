"""train.py: configs, schedule, the optimizer step against a hand-written one, resuming, and every kind of bad input."""
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import train
from configs.read import OPTIONS, TrainConfig, load_points
from data import read
from data.prepare import BadInput
from model import GPT, GPTConfig
from train import parse_arguments

REPOSITORY = Path(__file__).parent.parent
SMALL = """
dataset = "tiny"
n_embd = 16
n_head = 2
block_size = 16
batch_size = 4
max_iters = 12
eval_interval = 4
eval_iters = 2
log_interval = 2
warmup_iters = 3
device = "cpu"
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A temporary working folder with data/tiny: a text of repeating numbers, so that there is something to learn."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(read, "DATA", tmp_path / "data")
    write_data(tmp_path / "data/tiny")
    return tmp_path


def write_data(folder, vocab_size=257, n_train=4000, n_val=600):
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, n in (("train", n_train), ("val", n_val)):
        (np.cumsum(rng.integers(3, size=n)) % 20 + 40).astype(np.uint16).tofile(folder / f"{name}.bin")
    (folder / "choices.jsonl").write_text("")
    (folder / "meta.json").write_text(json.dumps({"vocab_size": vocab_size, "tokens": {"train": n_train, "val": n_val}, "sha256": "x"}))


def write_config(project, text="", name="small.toml"):
    (project / name).write_text(SMALL + text)
    return project / name


def points(path, *arguments):
    return load_points(*parse_arguments([str(path), *arguments])[:2])


def run_folder(project, name="run", config="small"):
    return project / "out" / config / name


# Configs --------------------------------------------------------------------------------------------------------

def test_sweep_lists_are_crossed_and_name_their_points(project):
    path = write_config(project, "[sweep]\nn_layer = [2, 4]\nlearning_rate = [1e-3, 0.01]\nseed = [0, 1]\n")
    resolved = points(path)
    assert list(resolved) == [f"n_layer={n},learning_rate={lr},seed={s}" for n in (2, 4) for lr in ("0.001", "0.01") for s in (0, 1)]
    model_config, config = resolved["n_layer=4,learning_rate=0.01,seed=1"]
    assert (model_config.n_layer, config.learning_rate, config.seed, config.min_lr) == (4, 0.01, 1, 0.001)
    assert model_config.vocab_size == 257 and config.batch_size == 4


def test_points_are_overrides_with_or_without_a_name(project):
    path = write_config(project, '[[point]]\nname = "naive"\nn_layer = 8\n[[point]]\nweight_decay = 1\nn_layer = 2\n[sweep]\nseed = [0, 1]\n')
    resolved = points(path)
    assert list(resolved) == ["naive,seed=0", "naive,seed=1", "weight_decay=1,n_layer=2,seed=0", "weight_decay=1,n_layer=2,seed=1"]
    assert resolved["naive,seed=0"][0].n_layer == 8 and resolved["weight_decay=1,n_layer=2,seed=1"][1].weight_decay == 1.0
    with pytest.raises(BadInput, match="two points are called"):
        points(write_config(project, "[[point]]\nn_layer = 2\n[[point]]\nn_layer = 2\n"))


def test_command_line_overrides_everything(project):
    path = write_config(project, "[sweep]\nn_layer = [2, 4]\nseed = [0, 1, 2]\n")
    assert list(points(path, "--seed=1")) == ["n_layer=2,seed=1", "n_layer=4,seed=1"]      # the same folders as the whole sweep
    assert list(points(path, "--n_layer=3", "--seed=0", "--weight_decay=0,0.5")) == [
        "n_layer=3,seed=0,weight_decay=0", "n_layer=3,seed=0,weight_decay=0.5"]
    model_config, config = next(iter(points(path, "--attention=window", "--learning_rate=1", "--compile=False").values()))
    assert (model_config.attention, config.learning_rate, config.compile) == ("window", 1.0, False)
    named = write_config(project, '[[point]]\nname = "a"\nn_layer = 8\n', "named.toml")
    assert points(named, "--n_layer=2")["a"][0].n_layer == 2


@pytest.mark.parametrize("text, arguments, words", [
    ("n_layr = 3", [], ["small.toml", "n_layr"]),
    ("n_layer = 2.5", [], ["n_layer", "int"]),
    ("n_layer = true", [], ["n_layer", "int"]),
    ("", ["--n_layer=many"], ["n_layer", "int"]),
    ("n_kv_head = 3", [], ["n_head", "n_kv_head"]),
    ("", ["--max_iters=0"], ["max_iters"]),
    ("", ["--learning_rate=-1"], ["learning_rate"]),
    ("", ["--dtype=int8"], ["dtype", "int8"]),
    ("[sweep]\nn_layer = 4", [], ["[sweep] n_layer", "list"]),
    ("[sweep]\nn_layer = []", [], ["[sweep] n_layer", "list"]),
    ("n_embd = ", [], ["small.toml", "TOML"]),
    ("", ["--dataset=nothing"], ["data/nothing", "prepare.py"]),
    ("", ["--vocab_size=100"], ["vocab_size", "too small"]),
    ("", ["--block_size=700"], ["block_size", "too few"]),
    ("", ["--device=cuda:99"], ["device"]),
])
def test_bad_configs_get_one_sentence_and_leave_nothing(project, capsys, text, arguments, words):
    assert_refused([str(write_config(project, text)), *arguments], words, capsys)
    assert not (project / "out").exists() or not list((project / "out").rglob("ckpt.pt"))


def assert_refused(arguments, words, capsys):
    with pytest.raises(SystemExit) as stop:
        train.main(arguments)
    message = capsys.readouterr().err.strip()
    assert stop.value.code == 2 and "\n" not in message and "Traceback" not in message
    assert all(word in message for word in words), message


def test_mistyped_option_and_missing_file(project, capsys):
    with pytest.raises(SystemExit) as stop:
        train.main([str(write_config(project)), "--n_layr=4"])
    assert stop.value.code == 2 and "--n_layr" in capsys.readouterr().err
    assert_refused([str(project / "none.toml")], ["none.toml"], capsys)


def test_help_shows_each_option_with_its_comment(capsys):
    with pytest.raises(SystemExit):
        parse_arguments(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    for name in OPTIONS:
        assert f"--{name} " in text
    assert "--n_layer int depth L, in blocks (default 4)" in text
    assert "--stride int strided: the last `stride` keys, and one of every `stride` before them (default 32)" in text
    assert "--grad_clip float largest gradient norm; 0: no clipping (default 1.0)" in text


# The step -------------------------------------------------------------------------------------------------------

def test_learning_rate_by_hand():
    config = TrainConfig(learning_rate=1.0, min_lr=0.1, warmup_iters=4, max_iters=12)
    assert [train.learning_rate_at(step, config) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert train.learning_rate_at(4, config) == 1.0
    assert train.learning_rate_at(8, config) == pytest.approx(0.55)   # half way down the cosine
    assert train.learning_rate_at(12, config) == pytest.approx(0.1)


def test_validation_predicts_the_same_tokens_whatever_the_context():
    seen = []
    for block_size, batch_size in ((16, 8), (64, 2)):
        offsets = read.validation_offsets(TrainConfig(batch_size=batch_size, eval_iters=3), 10_000, block_size)
        seen.append([o + t + 1 for o in offsets for t in range(block_size)])
    assert seen[0] == seen[1] == list(range(1, 3 * 128 + 1))
    short = read.validation_offsets(TrainConfig(batch_size=8, eval_iters=100), 100, 16)  # no more than there is
    assert short.tolist() == [0, 16, 32, 48, 64, 80]


def test_targets_are_the_inputs_one_later():
    tokens = np.arange(100, dtype=np.uint16)
    idx, targets = read.take_sequences(tokens, np.array([3, 50]), 4, "cpu")
    assert idx.tolist() == [[3, 4, 5, 6], [50, 51, 52, 53]] and targets.tolist() == [[4, 5, 6, 7], [51, 52, 53, 54]]


def hand_written_steps(model_config, config, tokens, n_steps):
    """AdamW, clipping and schedule from their formulas, in float64-free plain torch, on the whole batch at once."""
    torch.manual_seed(config.seed)
    model = GPT(model_config)
    first, second, losses = {}, {}, []
    for step in range(n_steps):
        offsets = read.training_offsets(config, len(tokens), model_config.block_size, step)
        idx, targets = read.take_sequences(tokens, offsets, model_config.block_size, "cpu")
        _, loss = model(idx, targets)
        losses.append(loss.item())
        gradients = torch.autograd.grad(loss + model.take_router_loss(), list(model.parameters()))
        norm = math.sqrt(sum(g.square().sum().item() for g in gradients))
        lr = train.learning_rate_at(step, config)
        for p, g in zip(model.parameters(), gradients):
            g = g * min(1.0, config.grad_clip / (norm + 1e-6))
            m = first[p] = 0.9 * first.get(p, 0) + 0.1 * g
            v = second[p] = 0.95 * second.get(p, 0) + 0.05 * g ** 2
            decay = lr * config.weight_decay if p.dim() >= 2 else 0.0
            p.data.mul_(1 - decay)
            p.data.sub_(lr * (m / (1 - 0.9 ** (step + 1))) / ((v / (1 - 0.95 ** (step + 1))).sqrt() + 1e-8))
    return model, losses


@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("options", [{}, dict(n_kv_head=1, attention="window", window=4, layer_norm_scaling=True)])
def test_steps_equal_hand_written_ones_however_the_batch_is_cut(project, accumulation, options):
    model_config = GPTConfig(n_embd=16, n_head=2, block_size=16, n_layer=2, **options)
    config = TrainConfig(batch_size=8 // accumulation, gradient_accumulation_steps=accumulation, learning_rate=1e-2,
                         weight_decay=0.5, warmup_iters=2, max_iters=10, grad_clip=0.5, seed=3, device="cpu")
    tokens = np.fromfile(project / "data/tiny/train.bin", dtype=np.uint16)
    reference, losses = hand_written_steps(model_config, config, tokens, 6)
    model, optimizer = train.build_training(model_config, config)
    update = train.make_update(model, optimizer, tokens, config)
    ours = [update(step)[0].item() for step in range(6)]
    assert ours == pytest.approx(losses, rel=1e-4)
    for p, q in zip(model.parameters(), reference.parameters()):
        assert torch.allclose(p, q, atol=2e-4)


def test_variance_while_training_is_the_papers():
    model, idx = GPT(GPTConfig(n_embd=16, n_head=2, block_size=8, n_layer=3)).double(), torch.randint(257, (2, 8))
    with torch.no_grad():
        h, variance = train.forward_with_variance(model, idx)
        x = model.embedding.weight[idx]
        stream = [x]
        for layer, block in enumerate(model.blocks):
            a = block.attention(block.attention_norm(x))
            m = block.mlp(block.mlp_norm(x + a))
            for kind, value in (("attention", a), ("mlp", m)):
                by_hand = np.mean([np.var(token, ddof=1) for token in value.reshape(-1, 16).numpy()])
                assert variance[kind][layer].item() == pytest.approx(by_hand)
            x = x + a + m
            stream.append(x)
    assert torch.allclose(h, x)
    for value, seen in zip(stream, variance["residual"], strict=True):
        assert seen.item() == pytest.approx(np.mean([np.var(token, ddof=1) for token in value.reshape(-1, 16).numpy()]))


def test_bench_times_the_step_and_writes_no_run(project, capsys):
    train.main([str(write_config(project)), "--bench", "--n_layer=1,2"])
    lines = capsys.readouterr().out.strip().splitlines()
    assert len(lines) == 2 and all("tokens/s" in line and "first step" in line for line in lines) and not (project / "out").exists()


# Runs -------------------------------------------------------------------------------------------------------------

def test_a_run_leaves_what_the_design_promises(project, capsys):
    path = write_config(project, "[sweep]\nn_layer = [1, 2]\n")
    train.main([str(path)])
    folder = run_folder(project, "n_layer=2")
    config, summary = (json.loads((folder / f"{name}.json").read_text()) for name in ("config", "summary"))
    log = train.read_log(folder)
    assert config["n_layer"] == 2 and config["n_kv_head"] == 2 and set(OPTIONS) <= set(config)
    assert [line["step"] for line in log] == [0, 2, 4, 6, 8, 10, 12]
    for line in log[1:]:
        assert {"tokens", "train_loss", "lr", "grad_norm", "tokens_per_second"} <= set(line)
        assert ("val_loss" in line) == (line["step"] % 4 == 0) == ("variance" in line)
    assert log[-1]["tokens"] == summary["tokens"] == 12 * 4 * 16
    assert log[-1]["val_loss"] < log[0]["val_loss"] and len(log[-1]["variance"]) == 3
    assert summary["perplexity"] == pytest.approx(math.exp(summary["val_loss"])) and summary["val_loss"] == log[-1]["val_loss"]
    assert summary["last_layer_variance"] == log[-1]["variance"][-1] and not summary["diverged"]
    assert {"params", "active_params", "seconds", "tokens_per_second", "torch", "device"} <= set(summary)
    torch.load(folder / "ckpt.pt", weights_only=True)
    # the trained model, loaded again, has the validation loss that the summary states
    model, config = train.load_run(folder)
    assert train.evaluate(model, read.load_tokens("tiny", "val", model.config), config)["val_loss"] == pytest.approx(summary["val_loss"], rel=1e-6)
    # a second start trains nothing
    before = (folder / "log.jsonl").stat().st_mtime_ns
    train.main([str(path)])
    assert (folder / "log.jsonl").stat().st_mtime_ns == before
    assert not list(project.rglob("*.tmp"))


def numbers(folder):
    """All that a run computed, without what a clock measured."""
    log = [{k: v for k, v in line.items() if k != "tokens_per_second"} for line in train.read_log(folder)]
    return log, torch.load(folder / "ckpt.pt", weights_only=True)["model"]


def assert_same_run(one, other):
    (log, weights), (other_log, other_weights) = numbers(one), numbers(other)
    assert log == other_log
    assert all(torch.equal(weights[name], other_weights[name]) for name in weights)


def command(project, *arguments):
    code = f"import sys; sys.path.insert(0, {str(REPOSITORY)!r}); import train; from data import read; from pathlib import Path; " \
           f"read.DATA = Path({str(project / 'data')!r}); train.main()"
    return [sys.executable, "-c", code, *map(str, arguments)]


def wait_for(path, process):
    while not path.exists() and process.poll() is None:
        time.sleep(0.01)


def test_kill_9_at_any_moment_changes_no_number(project):
    options = "n_expert = 4\nexpert_hidden = 8\n[sweep]\nn_layer = [1, 2]\n"  # experts, so that routing resumes too
    path = write_config(project, options)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command(project, path, "--max_iters=300", "--out_dir=whole"), check=True, env=environment)
    killed = 0
    for delay in (0.05, 0.4, 0.2, 0.6, 0.3):
        process = subprocess.Popen(command(project, path, "--max_iters=300"), env=environment)
        folder = run_folder(project, "n_layer=1")
        wait_for(folder / "log.jsonl", process)
        time.sleep(delay)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            killed += 1
        process.wait()
    subprocess.run(command(project, path, "--max_iters=300"), check=True, env=environment)
    assert killed >= 2
    for name in ("n_layer=1", "n_layer=2"):
        assert_same_run(run_folder(project, name), project / "whole/small" / name)


def test_ctrl_c_says_how_to_go_on(project):
    path = write_config(project)
    process = subprocess.Popen(command(project, path, "--max_iters=100000"), stderr=subprocess.PIPE, text=True)
    wait_for(run_folder(project) / "ckpt.pt", process)
    process.send_signal(signal.SIGINT)
    assert "goes on" in process.communicate()[1] and process.returncode == 130


def test_torchrun_shares_the_points_out(project):
    path = write_config(project, "[sweep]\nn_layer = [1, 2, 3]\n")
    (project / "start.py").write_text(command(project)[2])
    subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", project / "start.py", path],
                   check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True)
    for n_layer in (1, 2, 3):
        assert json.loads((run_folder(project, f"n_layer={n_layer}") / "summary.json").read_text())["tokens"] == 768


def test_divergence_is_recorded_and_the_sweep_goes_on(project, capsys):
    path = write_config(project, "grad_clip = 0\n[sweep]\nlearning_rate = [1e30, 1e-3]\n")
    train.main([str(path)])
    diverged, fine = (json.loads((run_folder(project, f"learning_rate={lr}") / "summary.json").read_text()) for lr in ("1e+30", "0.001"))
    assert diverged["diverged"] and diverged["val_loss"] is None and not fine["diverged"]
    assert "diverged" in capsys.readouterr().out


def test_a_changed_config_under_a_run_is_refused(project, capsys):
    path = write_config(project)
    train.main([str(path)])
    assert_refused([str(path), "--n_layer=2"], [str(Path("out/small/run")), "n_layer was 4, now 2"], capsys)
    assert json.loads((run_folder(project) / "config.json").read_text())["n_layer"] == 4


def test_damaged_files_are_named(project, capsys):
    path = write_config(project)
    train.main([str(path)])
    capsys.readouterr()
    folder = run_folder(project)
    (folder / "summary.json").unlink()
    checkpoint = (folder / "ckpt.pt").read_bytes()
    (folder / "ckpt.pt").write_bytes(checkpoint[:1000])
    assert_refused([str(path)], ["ckpt.pt", "delete"], capsys)
    (folder / "ckpt.pt").write_bytes(checkpoint)
    with open(project / "data/tiny/train.bin", "r+b") as file:
        file.truncate(1001)
    assert_refused([str(path)], ["train.bin", "1,001", "8,000"], capsys)
    (project / "data/tiny/meta.json").write_text("{")
    assert_refused([str(path)], ["data/tiny", "prepare.py"], capsys)


def test_a_folder_that_cannot_be_written(project, capsys):
    (project / "out").write_text("a file where the folder should be")
    assert_refused([str(write_config(project))], ["out"], capsys)


def test_tokens_beyond_the_vocabulary_are_refused(project, capsys):
    write_data(project / "data/large", vocab_size=1000)
    assert_refused([str(write_config(project)), "--dataset=large", "--vocab_size=257"], ["vocab_size = 257", "999"], capsys)
