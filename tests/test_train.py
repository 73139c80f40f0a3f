"""train.py: the optimizer step against a hand-written one, runs, resuming, and what is refused."""

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
from configs.read import OPTIONS, Point, TrainConfig
from conftest import REPOSITORY, TOGGLES, write_config
from data import files, read
from data.files import read_json, write_json
from hardware import Hardware, choose_hardware
from model import GPT, Block, GPTConfig, MoE
from results.runs import load_run, read_log, read_runs


def run_folder(project, name="run", config="small"):
    return project / "out" / config / name


# The step ----------------------------------------------------------------------------------------


def test_learning_rate_by_hand():
    config = TrainConfig(learning_rate=1.0, min_lr=0.1, warmup_iters=4, max_iters=12)
    warm_up = [train.learning_rate_at(step, config) for step in range(4)]
    assert warm_up == [0.25, 0.5, 0.75, 1.0]
    assert train.learning_rate_at(4, config) == 1.0
    assert train.learning_rate_at(8, config) == pytest.approx(0.55)  # half way down the cosine
    assert train.learning_rate_at(12, config) == pytest.approx(0.1)


def test_a_batch_is_the_steps_sequences_with_one_token_more():
    tokens, config = np.arange(1000, dtype=np.uint16), TrainConfig(batch_size=3, seed=4)
    offsets = read.training_offsets(config, 1000, 8, step=7)
    batch = train.training_batch(tokens, config, 8, 7, torch.device("cpu"))
    assert batch.tolist() == [list(range(offset, offset + 9)) for offset in offsets]


def hand_written_steps(model_config, config, tokens, n_steps):
    """AdamW, clipping and schedule from their formulas, on the whole batch at once; of experts the
    balance is counted over each part of an accumulated batch. CompleteP's blocks have an eps of
    their own."""
    torch.manual_seed(config.seed)
    model = GPT(model_config)
    in_blocks = 4 / model_config.n_layer if model_config.complete_p else 1
    first, second, losses = {}, {}, []
    for step in range(n_steps):
        offsets = read.training_offsets(config, len(tokens), model_config.block_size, step)
        idx, targets = read.take_sequences(tokens, offsets, model_config.block_size, "cpu")
        _, loss = model(idx, targets)
        losses.append(loss.item())
        for part in idx.chunk(config.gradient_accumulation_steps):
            if model_config.n_expert:
                model(part)
                loss = loss + balance_by_hand(model, part) / config.gradient_accumulation_steps
        gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
        norm = math.sqrt(sum(g.square().sum().item() for g in gradients))
        lr = train.learning_rate_at(step, config)
        for (name, p), g in zip(model.named_parameters(), gradients, strict=True):
            eps = 1e-8 * (in_blocks if name.startswith("blocks.") else 1)
            g = g * min(1.0, config.grad_clip / (norm + 1e-6))
            m = first[p] = 0.9 * first.get(p, 0) + 0.1 * g
            v = second[p] = 0.95 * second.get(p, 0) + 0.05 * g**2
            decay = lr * config.weight_decay if p.dim() >= 2 else 0.0
            p.data.mul_(1 - decay)
            m_hat, v_hat = m / (1 - 0.9 ** (step + 1)), v / (1 - 0.95 ** (step + 1))
            p.data.sub_(lr * m_hat / (v_hat.sqrt() + eps))
    return model, losses


def balance_by_hand(model, idx):
    """The routers' losses, mean over blocks, from each router's logits."""
    seen, total, config = [], 0.0, model.config
    hooks = [
        block.mlp.router.register_forward_hook(lambda module, inputs, logits: seen.append(logits))
        for block in model.blocks
    ]
    model(idx)
    for hook in hooks:
        hook.remove()
    for logits in seen:
        probability = logits.softmax(-1)
        chosen = probability.topk(config.n_expert_active).indices
        share = torch.nn.functional.one_hot(chosen, config.n_expert).double().mean(dim=(0, 1))
        balance = config.n_expert * (share * probability.mean(0)).sum()
        total = total + config.load_balance_loss * balance
        total = total + config.router_z_loss * logits.logsumexp(-1).square().mean()
    return total / len(seen)


def tiny_model(**options):
    return GPTConfig(**{**dict(n_embd=16, n_head=2, block_size=16, n_layer=2), **options})


def build_update(model_config, config, tokens):
    hardware = choose_hardware(config)
    model, optimizer = train.build_training(model_config, config, hardware)
    return model, train.make_update(model, optimizer, tokens, config, hardware)


@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize(
    "options",
    [
        {},
        dict(n_kv_head=1, attention="window", window=4, layer_norm_scaling=True),
        dict(n_expert=4, expert_hidden=8, load_balance_loss=1.0, router_z_loss=0.5),
        dict(embedding_norm=True, peri_ln=True, complete_p=True),
    ],
    ids=["plain", "toggled", "experts", "remedies"],
)
def test_steps_equal_hand_written_ones_however_the_batch_is_cut(project, accumulation, options):
    model_config = tiny_model(**options)
    config = TrainConfig(
        batch_size=8 // accumulation,
        gradient_accumulation_steps=accumulation,
        learning_rate=1e-2,
        weight_decay=0.5,
        warmup_iters=2,
        max_iters=10,
        grad_clip=0.5,
        seed=3,
        device="cpu",
    )
    tokens = np.fromfile(project / "data/tiny/train.bin", dtype=np.uint16)
    reference, losses = hand_written_steps(model_config, config, tokens, 6)
    model, update = build_update(model_config, config, tokens)
    assert [update(step)[0].item() for step in range(6)] == pytest.approx(losses, rel=1e-4)
    for p, q in zip(model.parameters(), reference.parameters(), strict=True):
        assert torch.allclose(p, q, atol=2e-4)


@pytest.mark.parametrize("n_layer", [1, 2])
def test_complete_ps_eps_is_that_of_hand_written_steps(project, n_layer):
    """Clipped to a norm of 1e-6, gradients are about as small as eps, so that it decides."""
    model_config = tiny_model(n_layer=n_layer, complete_p=True)
    config = TrainConfig(batch_size=4, learning_rate=1e-2, grad_clip=1e-6, device="cpu")
    tokens = np.fromfile(project / "data/tiny/train.bin", dtype=np.uint16)
    wanted, _ = hand_written_steps(model_config, config, tokens, 6)
    model, update = build_update(model_config, config, tokens)
    for step in range(6):
        update(step)
    for p, q in zip(model.parameters(), wanted.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-6)


@pytest.mark.parametrize("grad_clip", [0.0, 1e9, 0.1])
def test_the_gradient_norm_is_that_before_clipping(project, grad_clip):
    tokens = np.fromfile(project / "data/tiny/train.bin", dtype=np.uint16)
    config = TrainConfig(batch_size=4, grad_clip=grad_clip, device="cpu")
    model, update = build_update(tiny_model(), config, tokens)
    batch = train.training_batch(tokens, config, 16, 0, torch.device("cpu"))
    gradients = torch.autograd.grad(model(batch[:, :-1], batch[:, 1:])[1], list(model.parameters()))
    by_hand = math.sqrt(sum(g.square().sum().item() for g in gradients))
    assert update(0)[1].item() == pytest.approx(by_hand, rel=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize(
    "options",
    [
        {},
        dict(n_kv_head=2),
        dict(attention="window", window=40),
        dict(n_expert=8, expert_hidden=128),
        dict(layer_norm_scaling=True),
        dict(embedding_norm=True, peri_ln=True, complete_p=True),
    ],
    ids=["plain", "gqa", "window", "moe", "layer_norm_scaling", "remedies"],
)
def test_recorded_bf16_steps_follow_plain_fp32_ones(options, accumulation):
    """fast.py whole, against everything off: a dozen steps, most of them replayed, evaluation in
    between."""
    shape = dict(block_size=256, vocab_size=512, n_layer=3, n_embd=128, n_head=4)
    rng = np.random.default_rng(0)
    tokens = (np.cumsum(rng.integers(5, size=100_000)) % 500).astype(np.uint16)
    losses = {}
    for fast in (True, False):
        config = TrainConfig(
            batch_size=8 // accumulation,
            gradient_accumulation_steps=accumulation,
            warmup_iters=4,
            max_iters=40,
            eval_tokens=2048,
            dtype="bfloat16" if fast else "float32",
            compile=fast,
        )
        model, update = build_update(GPTConfig(**shape, **options), config, tokens)
        losses[fast] = []
        for step in range(12):
            losses[fast].append(update(step)[0].item())
            if step in (1, 7):
                assert math.isfinite(train.evaluate(model, tokens, config)["val_loss"])
    assert losses[True] == pytest.approx(losses[False], abs=0.02)
    assert losses[False][-1] < losses[False][0] - 0.15


# Measuring while training ------------------------------------------------------------------------


def variance_by_hand(values):
    """Mean over tokens of the unbiased variance over the last dimension's features."""
    rows = values.reshape(-1, values.shape[-1]).numpy()
    return np.mean([np.var(row, ddof=1) for row in rows])


@torch.no_grad()
def test_variance_while_training_is_the_papers():
    model = GPT(tiny_model(block_size=8, n_layer=3)).double()
    idx = torch.randint(257, (2, 8))
    h, variance = train.forward_with_variance(model, idx)
    x = model.embedding.weight[idx]
    assert variance["residual"][0].item() == pytest.approx(variance_by_hand(x))
    for layer, block in enumerate(model.blocks):
        a = block.attention(block.attention_norm(x))
        m = block.mlp(block.mlp_norm(x + a))
        x = x + a + m
        assert variance["attention"][layer].item() == pytest.approx(variance_by_hand(a))
        assert variance["mlp"][layer].item() == pytest.approx(variance_by_hand(m))
        assert variance["residual"][layer + 1].item() == pytest.approx(variance_by_hand(x))
    assert torch.allclose(h, x)


@torch.no_grad()
def test_validation_loss_is_the_mean_over_all_validation_tokens():
    tokens = np.random.default_rng(0).integers(257, size=1000).astype(np.uint16)
    config = TrainConfig(batch_size=4, eval_tokens=12 * 16)  # 12 sequences in 3 batches
    model = GPT(tiny_model(n_expert=4, expert_hidden=8))
    losses = []
    for start in np.linspace(0, 1000 - 17, 12).astype(int):
        ids = torch.from_numpy(tokens[start : start + 17].astype(np.int64))
        logits = model(ids[None, :-1])[0][0]
        losses += [-logits[t].log_softmax(-1)[ids[t + 1]].item() for t in range(16)]
    measured = train.evaluate(model, tokens, config)
    assert measured["val_loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert model.training


@torch.no_grad()
def test_variances_are_those_of_every_nth_sequence_however_many_are_taken_at_once(monkeypatch):
    monkeypatch.setattr(train, "VARIANCE_TOKENS", 64)  # 4 of 10 sequences: the 1st, 4th, ...
    tokens = np.random.default_rng(0).integers(257, size=16 * 10 + 1).astype(np.uint16)
    model = GPT(tiny_model())
    offsets = read.spread_offsets(len(tokens), 16, 160)
    assert len(offsets) == 10
    rows = torch.stack(
        [torch.from_numpy(tokens[o : o + 16].astype(np.int64)) for o in offsets[::3]]
    )
    _, wanted = train.forward_with_variance(model, rows)
    for batch_size in (1, 3, 4, 10):
        config = TrainConfig(batch_size=batch_size, eval_tokens=160)
        measured = train.evaluate(model, tokens, config)
        assert measured["variance"] == pytest.approx(wanted["residual"].tolist(), rel=1e-5)
        assert measured["mlp_variance"] == pytest.approx(wanted["mlp"].tolist(), rel=1e-5)


def test_validation_takes_a_last_batch_that_is_not_full():
    tokens = np.random.default_rng(0).integers(257, size=16 * 10 + 1).astype(np.uint16)
    model = GPT(tiny_model())
    losses = [
        train.evaluate(model, tokens, TrainConfig(batch_size=batch_size, eval_tokens=160))[
            "val_loss"
        ]
        for batch_size in (1, 4, 10)
    ]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)


# Runs --------------------------------------------------------------------------------------------


@pytest.fixture
def trained(project):
    """(config's path, folder) of a finished run of 2 blocks, of a sweep over 1 and 2."""
    path = write_config(project, "[sweep]\nn_layer = [1, 2]\n")
    train.main([str(path)])
    return path, run_folder(project, "n_layer=2")


def test_a_run_says_what_it_is(trained):
    _, folder = trained
    config = read_json(folder / "config.json")
    assert set(OPTIONS) <= set(config)
    assert config["n_layer"] == 2 and config["n_kv_head"] == 2  # as resolved
    assert config["data_sha256"] == read.load_meta("tiny")["sha256"]
    assert config["sweep"] == {"point": None, "rung": None, "place": 0, "options": ["n_layer"]}


def test_a_log_has_a_line_for_each_logging_step_and_more_at_evaluations(trained):
    log = read_log(trained[1])
    assert [line["step"] for line in log] == [0, 2, 4, 6, 8, 10, 12]
    for line in log[1:]:
        assert {"tokens", "train_loss", "lr", "grad_norm", "tokens_per_second"} <= set(line)
        assert ("val_loss" in line) == (line["step"] % 4 == 0) == ("variance" in line)
    assert len(log[-1]["variance"]) == 3 and len(log[-1]["mlp_variance"]) == 2
    assert log[-1]["val_loss"] < log[0]["val_loss"]


def test_a_summary_says_what_the_log_says_last(trained):
    summary, last = read_json(trained[1] / "summary.json"), read_log(trained[1])[-1]
    assert last["tokens"] == summary["tokens"] == 12 * 4 * 16
    assert summary["val_loss"] == last["val_loss"]
    assert summary["perplexity"] == pytest.approx(math.exp(summary["val_loss"]))
    assert summary["last_layer_variance"] == last["variance"][-1]
    assert not summary["diverged"] and summary["device"] == "cpu"
    assert {"params", "active_params", "seconds", "tokens_per_second", "torch"} <= set(summary)
    assert summary["memory_GiB"] is None  # of a GPU alone


def test_a_trained_model_has_the_validation_loss_that_its_summary_states(trained):
    _, folder = trained
    model, config = load_run(folder)
    tokens = read.load_tokens("tiny", "val", model.config)
    val_loss = train.evaluate(model, tokens, config)["val_loss"]
    assert val_loss == pytest.approx(read_json(folder / "summary.json")["val_loss"], rel=1e-6)


def test_a_second_start_trains_nothing_and_leaves_no_litter(trained, project):
    path, folder = trained
    before = (folder / "log.jsonl").stat().st_mtime_ns
    train.main([str(path)])
    assert (folder / "log.jsonl").stat().st_mtime_ns == before
    assert not list(project.rglob("*.tmp"))


def test_a_run_that_another_sweep_has_is_copied(trained, project, monkeypatch, capsys):
    """It is described as a point of its new sweep; a run of other options is trained."""
    _, old = trained
    damaged = run_folder(project, config="another")
    damaged.mkdir(parents=True)
    (damaged / "summary.json").write_text("{", encoding="utf-8")
    other = write_config(project, "n_layer = 2\n[sweep]\nseed = [0, 1]\n", name="seeds.toml")
    trained_now, run_steps = [], train.run_steps
    monkeypatch.setattr(train, "run_steps", lambda *a: trained_now.append(a[5]) or run_steps(*a))
    train.main([str(other)])
    new = run_folder(project, "seed=0", config="seeds")
    assert trained_now == ["seed=1"]
    for name in ("log.jsonl", "ckpt.pt", "summary.json"):
        assert (new / name).read_bytes() == (old / name).read_bytes()
    was, now = (read_json(folder / "config.json") for folder in (old, new))
    assert now.pop("sweep") == {"point": None, "rung": None, "place": 0, "options": ["seed"]}
    was.pop("sweep")
    assert now == was
    assert "copied" in capsys.readouterr().out


def test_runs_of_another_dtype_are_no_twins(project):
    path = write_config(project, '[sweep]\ndtype = ["float32", "bfloat16"]\n')
    train.main([str(path)])
    one, other = (run_folder(project, f"dtype={dtype}") for dtype in ("float32", "bfloat16"))
    assert (
        read_json(one / "summary.json")["val_loss"] != read_json(other / "summary.json")["val_loss"]
    )


def test_training_works_without_fast(project, monkeypatch):
    monkeypatch.setattr("hardware.fast", None)
    monkeypatch.setattr("train.fast", None)
    train.main([str(write_config(project))])
    assert (run_folder(project) / "summary.json").exists()


# What a run is -----------------------------------------------------------------------------------


def point_of(model_config=None, **options):
    sweep = {"point": None, "rung": None, "place": 0, "options": []}
    return Point(model_config or tiny_model(), TrainConfig(**options), sweep)


def test_the_fingerprint_is_that_of_two_hand_written_steps():
    """The third loss of AdamW from its formulas, in float64, on the small copy."""
    point = point_of(learning_rate=1e-2, grad_clip=0.5)
    model_config, config = train.small_copy(point)
    tokens = np.random.default_rng(0).integers(32, size=1000)
    torch.set_default_dtype(torch.float64)
    try:
        _, losses = hand_written_steps(model_config, config, tokens.astype(np.uint16), 3)
    finally:
        torch.set_default_dtype(torch.float32)
    loss = float(train.fingerprint(point).split()[1].rstrip(","))
    assert loss == pytest.approx(losses[2], rel=1e-5)


def test_every_toggle_changes_the_fingerprint():
    toggles = {**TOGGLES, "decay": {}}
    seen = {
        name: train.fingerprint(point_of(tiny_model(n_embd=32, n_head=4, **toggle)))
        for name, toggle in TOGGLES.items()
    }
    seen["decay"] = train.fingerprint(point_of(tiny_model(n_embd=32, n_head=4), weight_decay=0.7))
    assert len(set(seen.values())) == len(toggles)


def test_the_fingerprint_repeats_and_leaves_random_numbers_and_dtype_alone():
    torch.manual_seed(3)
    before = torch.rand(2)
    torch.manual_seed(3)
    first = train.fingerprint(point_of())
    assert torch.equal(torch.rand(2), before) and torch.get_default_dtype() == torch.float32
    assert train.fingerprint(point_of()) == first


@pytest.mark.parametrize("options", [dict(seed=7), dict(max_iters=999), dict(out_dir="x")])
def test_options_are_compared_by_themselves_and_not_by_the_fingerprint(options):
    assert train.fingerprint(point_of(**options)) == train.fingerprint(point_of())


def test_an_edit_of_the_model_changes_the_fingerprint(monkeypatch):
    before = {
        name: train.fingerprint(point_of(tiny_model(**toggle)))
        for name, toggle in (("plain", {}), ("moe", TOGGLES["moe"]))
    }

    def twice_the_attention(self, x):
        x = x + 2 * self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))

    plain_mix = MoE.mix
    monkeypatch.setattr(MoE, "mix", lambda self, *inputs: 2 * plain_mix(self, *inputs))
    after = {
        name: train.fingerprint(point_of(tiny_model(**toggle)))
        for name, toggle in (("plain", {}), ("moe", TOGGLES["moe"]))
    }
    assert after["plain"] == before["plain"] and after["moe"] != before["moe"]
    monkeypatch.setattr(Block, "forward", twice_the_attention)
    assert train.fingerprint(point_of()) != before["plain"]


def test_a_run_by_other_code_is_neither_shown_nor_resumed(trained, refused, monkeypatch):
    path, folder = trained

    def post_norm(self, x):
        x = self.attention_norm(x + self.attention(x))
        return self.mlp_norm(x + self.mlp(x))

    monkeypatch.setattr(Block, "forward", post_norm)
    message = refused(train.main, [path])
    assert "other code" in message and "--out_dir" in message
    train.main([str(path), "--out_dir=new"])
    old, new = (read_json(f / "summary.json") for f in (folder, Path("new/small/n_layer=2")))
    assert old["val_loss"] != new["val_loss"]


# Dying and going on ------------------------------------------------------------------------------


def numbers(folder):
    """All that a run computed, without what a clock measured."""
    log = [{k: v for k, v in line.items() if k != "tokens_per_second"} for line in read_log(folder)]
    return log, torch.load(folder / "ckpt.pt", weights_only=True)["model"]


def assert_same_run(one, other):
    (log, weights), (other_log, other_weights) = numbers(one), numbers(other)
    assert log == other_log
    assert all(torch.equal(weights[name], other_weights[name]) for name in weights)


def command(project, *arguments):
    """train.py as a process of its own, on the project's data folder."""
    code = (
        f"import sys; sys.path.insert(0, {str(REPOSITORY)!r})\n"
        "import train\n"
        "from pathlib import Path\n"
        "from data import read\n"
        f"read.DATA = Path({str(project / 'data')!r})\n"
        "train.main()\n"
    )
    return [sys.executable, "-c", code, *map(str, arguments)]


def wait_for(path, process):
    while not path.exists() and process.poll() is None:
        time.sleep(0.01)


def test_kill_9_at_any_moment_changes_no_number(project):
    """With experts, so that routing resumes, too."""
    path = write_config(project, "n_expert = 4\nexpert_hidden = 8\n[sweep]\nn_layer = [1, 2]\n")
    whole = command(project, path, "--max_iters=120", "--out_dir=whole")
    subprocess.run(whole, check=True)
    n_killed = 0
    for delay in (0.05, 0.4, 0.2):
        process = subprocess.Popen(command(project, path, "--max_iters=120"))
        wait_for(run_folder(project, "n_layer=1") / "log.jsonl", process)
        time.sleep(delay)
        if process.poll() is None:
            process.kill()
            n_killed += 1
        process.wait()
    subprocess.run(command(project, path, "--max_iters=120"), check=True)
    assert n_killed >= 2
    for name in ("n_layer=1", "n_layer=2"):
        assert_same_run(run_folder(project, name), project / "whole/small" / name)


def test_complete_ps_four_groups_resume_to_the_same_numbers(project, monkeypatch):
    """Moments are counted over the groups in order: a run that stops at its checkpoint goes on as
    if it had not."""
    path = write_config(project, "complete_p = true\nperi_ln = true\nn_layer = 2\n")
    train.main([str(path), "--out_dir=whole"])
    plain_save = train.save_checkpoint

    def save_and_stop(*arguments):
        plain_save(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "save_checkpoint", save_and_stop)
    with pytest.raises(SystemExit):
        train.main([str(path)])
    assert [line["step"] for line in read_log(run_folder(project))][-1] == 4
    monkeypatch.setattr(train, "save_checkpoint", plain_save)
    train.main([str(path)])
    (whole,) = (project / "whole/small").iterdir()
    (resumed,) = (project / "out/small").iterdir()
    assert_same_run(resumed, whole)


@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C is no signal there")
def test_ctrl_c_says_how_to_go_on(project):
    start = command(project, write_config(project), "--max_iters=100000")
    process = subprocess.Popen(start, stderr=subprocess.PIPE, text=True)
    wait_for(run_folder(project) / "ckpt.pt", process)
    process.send_signal(signal.SIGINT)
    assert "goes on" in process.communicate()[1] and process.returncode == 130


def torchrun(project, *arguments):
    """Train with these arguments in two processes, as torchrun starts them."""
    (project / "start.py").write_text(command(project)[2], encoding="utf-8")
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    subprocess.run([*start, project / "start.py", *arguments], check=True, capture_output=True)


@pytest.mark.slow
def test_torchrun_shares_the_points_out(project):
    torchrun(project, write_config(project, "[sweep]\nn_layer = [1, 2, 3]\n"))
    for n_layer in (1, 2, 3):
        summary = read_json(run_folder(project, f"n_layer={n_layer}") / "summary.json")
        assert summary["tokens"] == 768


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_run_on_the_second_gpu_is_that_on_the_first(project):
    """Steps recorded and replayed on both: in two processes, then seed 1 alone, on the first."""
    path = write_config(project, "[sweep]\nseed = [0, 1]\n")
    options = ["--device=auto", "--n_embd=64"]
    torchrun(project, path, *options)
    subprocess.run(command(project, path, *options, "--seed=1", "--out_dir=first"), check=True)
    folders = [project / out / "small/seed=1" for out in ("out", "first")]
    second, first = (read_json(folder / "summary.json") for folder in folders)
    assert second["tokens"] == first["tokens"] == 768
    assert second["val_loss"] == pytest.approx(first["val_loss"], abs=0.02)
    before = read_log(folders[0])[0]["val_loss"]
    assert second["val_loss"] < before - 0.02  # there is something to tell apart


# What goes wrong ---------------------------------------------------------------------------------


def test_divergence_is_recorded_and_the_sweep_goes_on(project, capsys):
    path = write_config(project, "grad_clip = 0\n[sweep]\nlearning_rate = [1e30, 1e-3]\n")
    train.main([str(path)])
    diverged = read_json(run_folder(project, "learning_rate=1e+30") / "summary.json")
    fine = read_json(run_folder(project, "learning_rate=0.001") / "summary.json")
    assert diverged["diverged"] and diverged["val_loss"] is None and not fine["diverged"]
    assert "diverged" in capsys.readouterr().out


@pytest.mark.parametrize(
    "key, value",
    [
        ("train_loss", math.nan),
        ("grad_norm", math.inf),
        ("val_loss", math.nan),
        ("variance", [1.0, math.inf]),
    ],
)
def test_a_number_that_is_not_finite_is_divergence(key, value):
    line = {"step": 1, "train_loss": 1.0, "grad_norm": 1.0, "val_loss": 1.0, "variance": [1.0, 2.0]}
    assert train.is_finite(line)
    assert not train.is_finite({**line, key: value})


def test_divergence_that_validation_sees_first_is_recorded_and_not_logged(project, monkeypatch):
    measured = train.evaluate

    def nan_at_step_4(model, tokens, config):
        line = measured(model, tokens, config)
        if model.config.vocab_size == 32:  # the fingerprint's
            return line
        n_evaluations.append(line)
        return line if len(n_evaluations) < 2 else {**line, "val_loss": math.nan}

    n_evaluations = []
    monkeypatch.setattr(train, "evaluate", nan_at_step_4)
    train.main([str(write_config(project))])
    assert read_json(run_folder(project) / "summary.json")["diverged"]
    assert [line["step"] for line in read_log(run_folder(project))] == [0, 2]


def test_a_changed_config_under_a_run_is_refused(trained, refused):
    path, folder = trained
    message = refused(train.main, [path, "--learning_rate=0.5"])
    assert "out/small/n_layer=1" in message or str(Path("out/small/n_layer=1")) in message
    assert "learning_rate was 0.001, now 0.5" in message and "out_dir" in message
    assert read_json(folder / "config.json")["learning_rate"] == 1e-3


@pytest.mark.parametrize(
    "options",
    [
        ["--learning_rate=20", "--warmup_iters=0", "--n_layer=4", "--max_iters=8"],
        ["--learning_rate=100", "--warmup_iters=0", "--n_layer=1"],
        ["--learning_rate=1e18", "--warmup_iters=0", "--n_layer=1", "--eval_interval=1"],
    ],
)
def test_every_form_of_divergence_is_recorded_and_later_points_run(project, options):
    """A loss that validation sees first, one whose perplexity is too large for a number, an
    infinite variance at a finite loss."""
    path = write_config(project, "grad_clip = 0\n[sweep]\nseed = [0, 1]\n")
    train.main([str(path), *options])
    for seed in (0, 1):
        folder = run_folder(project, f"seed={seed}")
        summary = read_json(folder / "summary.json")
        assert summary["diverged"] == (summary["perplexity"] is None)
        assert "NaN" not in (folder / "log.jsonl").read_text(encoding="utf-8")
    read_runs(project / "out/small")


def test_a_run_that_diverged_before_its_first_step_can_be_read(project, monkeypatch):
    measured = train.evaluate

    def nan(model, tokens, config):
        line = measured(model, tokens, config)
        return line if model.config.vocab_size == 32 else {**line, "val_loss": math.nan}

    monkeypatch.setattr(train, "evaluate", nan)
    train.main([str(write_config(project))])
    (run,) = read_runs(project / "out/small")
    assert run.summary["diverged"] and run.log == []


def test_an_edit_of_the_validation_changes_the_fingerprint(monkeypatch):
    before, measured = train.fingerprint(point_of()), train.evaluate

    def doubled(*arguments):
        line = measured(*arguments)
        return {**line, "val_loss": 2 * line["val_loss"]}

    monkeypatch.setattr(train, "evaluate", doubled)
    assert train.fingerprint(point_of()) != before


@pytest.mark.parametrize("heads", [(1, 1), (2, 1), (64, 64), (64, 2), (48, 3), (2048, 1)])
def test_the_small_copy_is_small(heads):
    n_head, n_kv_head = heads
    config = GPTConfig(n_embd=2 * n_head, n_head=n_head, n_kv_head=n_kv_head)
    small, _ = train.small_copy(point_of(config))
    assert small.n_embd <= 64 and (small.n_kv_head < small.n_head) == (n_kv_head < n_head)


def test_a_loss_too_large_for_a_perplexity_is_divergence():
    line = {"step": 1, "train_loss": 1.0, "val_loss": 710.0}
    assert not train.is_finite(line)


def test_all_points_are_checked_before_the_first_trains(project, refused):
    path = write_config(project, "[sweep]\nblock_size = [16, 700]\n")
    assert "too few" in refused(train.main, [path])
    assert not (project / "out").exists()


@pytest.mark.skipif(files.fcntl is None, reason="this system has no such locks")
def test_two_processes_do_not_train_one_run(project, refused):
    path = write_config(project)
    folder = run_folder(project)
    folder.mkdir(parents=True)
    with files.locked(folder):
        assert "in use by another process" in refused(train.main, [path])
    train.main([str(path)])
    assert (folder / "summary.json").exists()


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="needs limits on processes")
def test_a_full_disk_leaves_the_last_checkpoint_and_the_same_command_goes_on(project):
    """A limit on the size of files stands in for the disk: 20 kB hold a log, no checkpoint."""
    path = write_config(project, "n_layer = 1\n")
    whole = command(project, path, "--out_dir=whole")
    subprocess.run(whole, check=True)
    limited = command(project, path)
    limited[2] = limited[2].replace(
        "train.main()",
        "import resource\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "train.main()",
    )
    result = subprocess.run(limited, capture_output=True, text=True)
    assert result.returncode == 2
    assert "ckpt.pt cannot be written (File too large)" in result.stderr  # as the system says it
    assert len(result.stderr.strip().splitlines()) == 1
    assert not list(project.rglob("*.tmp"))
    subprocess.run(command(project, path), check=True)
    assert_same_run(run_folder(project), project / "whole/small/run")


@pytest.mark.slow
def test_a_closed_pipe_stops_only_the_printing(project):
    path = write_config(project, "[sweep]\nn_layer = [1, 2, 3]\n")
    (project / "start.py").write_text(command(project)[2], encoding="utf-8")
    shell = f"set -o pipefail; {sys.executable} start.py {path} | head -1"
    result = subprocess.run(["bash", "-c", shell], capture_output=True, text=True)
    assert result.returncode == 0 and result.stdout.startswith("n_layer=1") and not result.stderr
    assert (run_folder(project, "n_layer=3") / "summary.json").exists()


@pytest.mark.parametrize("interval, steps", [(1, [4, 8, 10]), (2, [8, 10]), (9, [10])])
def test_checkpoints_are_written_at_every_nth_evaluation_and_the_last(interval, steps):
    config = TrainConfig(
        checkpoint_interval=interval, eval_interval=4, max_iters=10, warmup_iters=0
    )
    lines = [{"step": step, "val_loss": 1.0} for step in (4, 8, 10)] + [{"step": 6}]
    assert [line["step"] for line in lines if train.is_checkpoint(line, config)] == steps


def test_a_checkpoint_ahead_of_its_log_is_refused(trained, refused):
    path, folder = trained
    (folder / "summary.json").unlink()
    log = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "log.jsonl").write_text("".join(log[:-1]))
    message = refused(train.main, [path])
    assert "log.jsonl lacks its step 12" in message and "delete" in message


@pytest.mark.parametrize("moments", [{}, {0: {}}, {0: {"exp_avg": torch.ones(2)}}, {"x": 1}])
def test_a_checkpoint_with_another_optimizer_is_refused(trained, refused, moments):
    path, folder = trained
    (folder / "summary.json").unlink()
    checkpoint = torch.load(folder / "ckpt.pt", weights_only=True)
    torch.save({**checkpoint, "optimizer": moments}, folder / "ckpt.pt")
    assert "its optimizer is of another model" in refused(train.main, [path])


def test_a_checkpoint_whose_optimizer_has_no_number_is_refused(trained, refused):
    path, folder = trained
    (folder / "summary.json").unlink()
    checkpoint = torch.load(folder / "ckpt.pt", weights_only=True)
    checkpoint["optimizer"][0]["step"] = ["a"]
    torch.save(checkpoint, folder / "ckpt.pt")
    assert "its optimizer's state cannot be read" in refused(train.main, [path])


@pytest.mark.parametrize("name, text", [("RANK", "a"), ("WORLD_SIZE", "-1"), ("RANK", "")])
def test_a_bad_environment_is_refused(project, refused, monkeypatch, name, text):
    monkeypatch.setenv(name, text)
    assert name in refused(train.main, [write_config(project)])


def test_a_world_of_no_processes_is_one(project, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "0")
    train.main([str(write_config(project))])
    assert (run_folder(project) / "summary.json").exists()


def test_a_damaged_checkpoint_is_named(trained, refused):
    path, folder = trained
    (folder / "summary.json").unlink()
    checkpoint = (folder / "ckpt.pt").read_bytes()
    (folder / "ckpt.pt").write_bytes(checkpoint[:1000])
    message = refused(train.main, [path])
    assert "ckpt.pt" in message and "delete" in message


@pytest.mark.parametrize("change", [{"val_loss": None}, {"diverged": True}, {"seconds": "x"}])
def test_a_summary_that_cannot_be_is_refused_and_written_anew(trained, refused, change):
    """A loss of a run that diverged, none of another one."""
    path, folder = trained
    whole = read_json(folder / "summary.json")
    (folder / "summary.json").write_text(json.dumps({**whole, **change}), encoding="utf-8")
    message = refused(train.main, [path])
    assert "summary.json: " in message and "delete it, and train.py goes on" in message
    (folder / "summary.json").unlink()
    train.main([str(path)])
    assert read_json(folder / "summary.json")["val_loss"] == whole["val_loss"]


def test_a_vocabulary_smaller_than_the_tokens_is_refused(project, refused):
    """The dataset's tokens go up to 59, and their hash does not say what meta.json says of them."""
    meta = read_json(project / "data/tiny/meta.json")
    write_json(project / "data/tiny/meta.json", {**meta, "vocab_size": 59})
    message = refused(train.main, [write_config(project)])
    assert "val.bin has the token 59" in message and "vocab_size = 59" in message
    assert not (project / "out").exists()


def denied(path, *_, **__):
    raise PermissionError(13, "Permission denied", str(path))


def test_a_checkpoint_that_may_not_be_read_is_not_to_be_deleted(trained, refused, monkeypatch):
    path, folder = trained
    (folder / "summary.json").unlink()
    monkeypatch.setattr("results.runs.zipfile.ZipFile", denied)
    message = refused(train.main, [path])
    assert "ckpt.pt: Permission denied" in message and "delete" not in message


def test_data_that_may_not_be_read_are_not_to_be_prepared(project, refused, monkeypatch):
    monkeypatch.setattr("data.read.read_json", denied)
    message = refused(train.main, [write_config(project)])
    assert "meta.json: Permission denied" in message and "prepare" not in message


def test_a_config_json_that_was_edited_is_told(trained, refused):
    """As text that looks like the number, and as another depth than the weights have."""
    path, folder = trained
    (folder / "summary.json").unlink()
    whole = read_json(folder / "config.json")
    write_json(folder / "config.json", {**whole, "learning_rate": "0.001"})
    assert "learning_rate was '0.001', now 0.001" in refused(train.main, [path])
    write_json(folder / "config.json", {**whole, "n_layer": 3})
    with pytest.raises(train.BadInput, match="ckpt.pt.*another model than config.json describes"):
        load_run(folder)


def test_bad_data_is_named(project, refused):
    path = write_config(project)
    with open(project / "data/tiny/train.bin", "r+b") as file:
        file.truncate(1001)
    message = refused(train.main, [path])
    assert all(word in message for word in ("train.bin", "1,001", "8,000"))


def test_a_device_that_is_not_there_is_refused(project, refused):
    assert "device" in refused(train.main, [write_config(project), "--device=cuda:99"])
    assert not list(project.rglob("ckpt.pt"))


def test_a_folder_that_cannot_be_written_is_named(project, refused):
    (project / "out").write_text("a file where the folder should be", encoding="utf-8")
    assert "out" in refused(train.main, [write_config(project)])


def test_an_edit_of_the_model_that_fast_does_not_know_is_refused(project, monkeypatch):
    """As on a GPU: build_training swaps layers in where the hardware says compiled."""

    def post_norm(self, x):
        x = self.attention_norm(x + self.attention(x))
        return self.mlp_norm(x + self.mlp(x))

    monkeypatch.setattr("model.Block.forward", post_norm)
    hardware = Hardware(torch.device("cpu"), torch.float32, compiled=True, note="")
    with pytest.raises(train.BadInput, match="fast.py"):
        train.build_training(tiny_model(), TrainConfig(), hardware)


def test_a_point_is_what_train_takes(project):
    """Without the command line, as in a notebook."""
    few = dict(batch_size=4, warmup_iters=0, max_iters=2, eval_tokens=64)
    config = TrainConfig(dataset="tiny", device="cpu", **few)
    sweep = {"point": None, "rung": None, "place": 0, "options": []}
    summary = train.train(project / "mine", Point(tiny_model(), config, sweep))
    assert summary["tokens"] == 2 * 4 * 16
