"""Helpers of several tests. Tests import the project's files from the repository's top folder, as
a reader runs them."""

import hashlib
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

REPOSITORY = Path(__file__).parent.parent
sys.path.insert(0, str(REPOSITORY))
os.environ["OMP_NUM_THREADS"] = "1"  # of commands that tests start, as of the tests themselves:
torch.set_num_threads(1)  # models this small only lose time to a second thread

from data.files import DATA_FILES  # noqa: E402
from model import GPT, GPTConfig  # noqa: E402

# Small models ------------------------------------------------------------------------------------

SMALL = dict(block_size=12, vocab_size=20, n_layer=2, n_head=4, n_embd=16, mlp_hidden=32)
TOGGLES = {
    "plain": {},
    "gqa": dict(n_kv_head=2),
    "mqa": dict(n_kv_head=1),
    "window": dict(attention="window", window=3),
    "strided": dict(attention="strided", stride=3),
    "topk": dict(attention="topk", topk=2),
    "moe": dict(n_expert=4, n_expert_active=2, expert_hidden=16),
    "moe_shared": dict(
        n_expert=4,
        n_expert_active=2,
        n_shared_expert=1,
        expert_hidden=16,
        normalize_expert_weights=True,
    ),
    "layer_norm_scaling": dict(layer_norm_scaling=True),
    "scaled_residual_init": dict(scaled_residual_init=True),
    "down_init_scale": dict(down_init_scale=0.125),
    "embedding_norm": dict(embedding_norm=True),
    "peri_ln": dict(peri_ln=True),
    "complete_p": dict(complete_p=True),
    "together": dict(
        n_kv_head=2,
        attention="window",
        window=3,
        n_expert=4,
        expert_hidden=16,
        layer_norm_scaling=True,
    ),
    "remedies_together": dict(
        n_kv_head=2,
        attention="strided",
        stride=3,
        n_expert=4,
        n_shared_expert=1,
        expert_hidden=16,
        layer_norm_scaling=True,
        scaled_residual_init=True,
        embedding_norm=True,
        peri_ln=True,
        complete_p=True,
    ),
}
each_toggle = pytest.mark.parametrize("toggle", TOGGLES.values(), ids=TOGGLES.keys())


def build(seed=0, large_weights=False, **options):
    """A GPT of SMALL's size; large_weights: far from initialisation, as after training."""
    torch.manual_seed(seed)
    model = GPT(GPTConfig(**{**SMALL, **options}))
    if large_weights:
        as_if_trained(model, 10)
    return model


def as_if_trained(model, factor):
    """Matrices times factor: scores far apart, routers decided; and norms' weights no longer 1."""
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(factor)
        else:
            parameter.data.uniform_(0.5, 1.5)


def tokens(B=3, T=12, seed=1):
    """(B, T) random token ids of SMALL's vocabulary."""
    return torch.randint(20, (B, T), generator=torch.Generator().manual_seed(seed))


# A project folder with a tiny dataset -------------------------------------------------------------

SMALL_CONFIG = """
dataset = "tiny"
n_embd = 16
n_head = 2
block_size = 16
batch_size = 4
max_iters = 12
eval_interval = 4
eval_tokens = 128
log_interval = 2
warmup_iters = 3
device = "cpu"
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A temporary working folder with data/tiny, and the project's data folder in its place."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("data.read.DATA", tmp_path / "data")
    write_data(tmp_path / "data/tiny")
    return tmp_path


def write_data(folder, vocab_size=257, n_train=4000, n_val=600):
    """A dataset of numbers that go up in small steps, so that there is something to learn."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for split, n_tokens in (("train", n_train), ("val", n_val)):
        tokens = np.cumsum(rng.integers(3, size=n_tokens)) % 20 + 40
        tokens.astype(np.uint16).tofile(folder / f"{split}.bin")
    (folder / "choices.jsonl").write_text("", encoding="utf-8")
    write_meta(folder, vocab_size, {"train": n_train, "val": n_val})


def write_meta(folder, vocab_size, tokens):
    """meta.json, of the files as they now are."""
    contents = [(folder / name).read_bytes() for name in DATA_FILES]
    digest = hashlib.sha256(b"".join(contents)).hexdigest()
    meta = {"vocab_size": vocab_size, "tokens": tokens, "sha256": digest}
    (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")


def write_config(project, text="", name="small.toml"):
    """The path of a config that adds text to SMALL_CONFIG."""
    (project / name).write_text(SMALL_CONFIG + text, encoding="utf-8")
    return project / name


@pytest.fixture
def refused(capsys):
    """refused(main, arguments) -> the one sentence with which a command refuses its arguments."""

    def sentence(main, arguments):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        message = capsys.readouterr().err.strip()
        assert stop.value.code == 2
        assert message and "\n" not in message and "Traceback" not in message
        return message

    return sentence
