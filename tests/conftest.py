"""Tests import the project's files as a reader runs them: from the repository's top folder."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

REPOSITORY = Path(__file__).parent.parent
sys.path.insert(0, str(REPOSITORY))
torch.set_num_threads(1)  # models this small only lose time to a second thread

# A project folder with a tiny dataset -------------------------------------------------------------

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
    meta = {"vocab_size": vocab_size, "tokens": {"train": n_train, "val": n_val}, "sha256": "x"}
    (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")


def write_config(project, text="", name="small.toml"):
    """The path of a config that adds text to SMALL."""
    (project / name).write_text(SMALL + text, encoding="utf-8")
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
