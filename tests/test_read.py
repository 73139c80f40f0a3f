"""data/read.py and data/files.py: token files as batches, and text files that are whole."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from configs.read import TrainConfig
from conftest import REPOSITORY, write_data
from data import files, read
from data.files import BadInput
from model import GPTConfig

MODEL = GPTConfig(n_embd=16, n_head=2, block_size=16)


# Files --------------------------------------------------------------------------------------------


def test_text_is_utf8_with_line_feeds(tmp_path):
    files.write_text(tmp_path / "text.md", "0.87 ± 0.02\n")
    assert (tmp_path / "text.md").read_bytes() == "0.87 ± 0.02\n".encode()


def test_text_is_utf8_whatever_the_locale(tmp_path):
    code = (
        "import locale, pathlib, sys; from data.files import read_json, write_text;"
        "path = pathlib.Path(sys.argv[1]);"
        "write_text(path, '\"\\u00b1\"');"
        "print(read_json(path) == '\\u00b1', locale.getpreferredencoding(False))"
    )
    plain = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    printed = python(code, tmp_path / "content.json", env={**os.environ, **plain})
    assert printed.startswith("True ") and "UTF-8" not in printed
    assert (tmp_path / "content.json").read_bytes() == '"±"'.encode()


def python(code, *arguments, env=None):
    """What code prints, run in the project's folder."""
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(
        command, cwd=REPOSITORY, env=env, check=True, capture_output=True, text=True
    ).stdout


def test_a_file_is_whole_or_as_it_was(tmp_path):
    path = tmp_path / "content.json"
    files.write_json(path, {"loss": 2.5})
    with pytest.raises(ValueError):
        files.write_json(path, {"loss": float("nan")})
    with pytest.raises(KeyboardInterrupt), files.replacing(path) as temporary:
        temporary.write_text("half", encoding="utf-8")
        raise KeyboardInterrupt
    assert files.read_json(path) == {"loss": 2.5}


def test_bad_input_ends_in_one_sentence(refused):
    def refuse_input(argv):
        def refuse():
            raise BadInput("no such layer: give one of 0 to 3")

        files.or_one_sentence(refuse)

    assert refused(refuse_input, []).endswith(": no such layer: give one of 0 to 3")


def test_a_file_that_cannot_be_opened_is_named(refused, tmp_path):
    message = refused(lambda argv: files.or_one_sentence(open, tmp_path / "none.txt"), [])
    assert message.endswith("none.txt: No such file or directory")


def test_training_loads_nothing_that_only_preparing_needs():
    loaded = python("import sys, train; print(*sys.modules)").split()
    assert "data.read" in loaded
    assert not {"data.prepare", "tiktoken"} & set(loaded)


# Tokens -------------------------------------------------------------------------------------------


def test_tokens_are_the_files(project):
    tokens = read.load_tokens("tiny", "train", MODEL)
    assert tokens.dtype == np.uint16
    assert np.array_equal(tokens, np.fromfile(project / "data/tiny/train.bin", dtype=np.uint16))


def test_targets_are_the_inputs_one_later():
    tokens = np.arange(100, dtype=np.uint16)
    idx, targets = read.take_sequences(tokens, np.array([3, 50]), 4, "cpu")
    assert idx.tolist() == [[3, 4, 5, 6], [50, 51, 52, 53]]
    assert targets.tolist() == [[4, 5, 6, 7], [51, 52, 53, 54]]


def test_training_offsets_depend_on_seed_and_step_alone():
    config = TrainConfig(batch_size=2, gradient_accumulation_steps=3, seed=5)
    halved = TrainConfig(batch_size=1, gradient_accumulation_steps=6, seed=5)
    other_seed = TrainConfig(batch_size=2, gradient_accumulation_steps=3, seed=6)
    offsets = read.training_offsets(config, 1000, 16, step=7).tolist()
    assert len(offsets) == 6
    assert offsets == read.training_offsets(halved, 1000, 16, step=7).tolist()
    assert offsets != read.training_offsets(config, 1000, 16, step=8).tolist()
    assert offsets != read.training_offsets(other_seed, 1000, 16, step=7).tolist()


def test_training_offsets_leave_room_for_a_sequence_and_its_last_target():
    config = TrainConfig(batch_size=1000)
    offsets = read.training_offsets(config, n_tokens=20, block_size=16, step=0)
    assert set(offsets.tolist()) == {0, 1, 2, 3}


def predicted(n_tokens, block_size, n_wanted):
    """The places that are predicted, and where their sequences start."""
    offsets = read.spread_offsets(n_tokens, block_size, n_wanted).tolist()
    return [start + t + 1 for start in offsets for t in range(block_size)], offsets


@pytest.mark.parametrize("block_size", [64, 128, 512, 2048, 4096])
def test_spread_sequences_predict_the_same_tokens_whatever_the_context(block_size):
    """A hundred and twenty-eight runs of 4096 places, from end to end of the file."""
    places, _ = predicted(1_400_001, block_size, 2**19)
    starts = [places[i] for i in range(0, len(places), 4096)]
    assert len(places) == len(set(places)) == 2**19
    assert places == [start + t for start in starts for t in range(4096)]
    assert (starts[0], places[-1]) == (1, 1_400_000)
    gaps = np.diff(starts)
    assert len(starts) == 128 and gaps.max() - gaps.min() <= 1


@pytest.mark.parametrize(
    "n_tokens, block_size, n_wanted",
    [(1000, 16, 192), (1000, 16, 10**6), (100, 16, 2**19), (17, 16, 1), (900, 50, 10**5)],
)
def test_spread_sequences_stay_apart_and_inside(n_tokens, block_size, n_wanted):
    places, offsets = predicted(n_tokens, block_size, n_wanted)
    assert len(set(places)) == len(places) > 0
    assert min(offsets) == 0 and max(places) == n_tokens - 1 or len(offsets) == 1
    room = min(n_wanted, n_tokens - 1)
    assert room - block_size < len(places) <= max(room, block_size)


def test_a_context_longer_than_a_stretch_makes_stretches_of_its_own_length():
    places, offsets = predicted(100_000, 512, 16_384)
    assert len(offsets) == 32 and len(places) == 16_384


def test_held_out_sequences_of_either_parity_share_no_token(project):
    n_val = 600
    (project / "data/tiny/val.bin").write_bytes(np.arange(n_val, dtype=np.uint16).tobytes())
    config = TrainConfig(dataset="tiny")
    even, targets = read.held_out_sequences(config, MODEL, n_sequences=8)
    odd, _ = read.held_out_sequences(config, MODEL, n_sequences=8, parity=1)
    assert even.shape == odd.shape == (8, 16)
    assert (targets == even + 1).all()
    assert even[0, 0] == 0 and odd[-1, -1] == n_val - 2  # from end to end
    assert not set(even.flatten().tolist()) & set(odd.flatten().tolist())


def test_a_short_val_bin_gives_fewer_held_out_sequences(project):
    idx, _ = read.held_out_sequences(TrainConfig(dataset="tiny"), MODEL, n_sequences=100)
    assert len(idx) == 600 // 17 // 2
    idx, _ = read.held_out_sequences(TrainConfig(dataset="tiny"), MODEL, 4, length=8)
    assert idx.shape == (4, 8)


# Bad input ----------------------------------------------------------------------------------------


def refusal(dataset, model_config=MODEL):
    with pytest.raises(BadInput) as error:
        read.load_tokens(dataset, "train", model_config)
    return str(error.value)


@pytest.mark.parametrize("content", [None, b"{", b"\xff\xfe"])
def test_a_dataset_that_is_not_prepared_is_refused(project, content):
    folder = project / "data/broken"
    folder.mkdir()
    if content is not None:
        (folder / "meta.json").write_bytes(content)
    message = refusal("broken")
    assert "data/broken" in message and "prepare.py" in message


def test_a_token_file_of_another_length_is_refused(project):
    with open(project / "data/tiny/train.bin", "r+b") as file:
        file.truncate(1001)
    message = refusal("tiny")
    assert "train.bin" in message and "1,001" in message and "8,000" in message


def test_a_missing_token_file_is_refused(project):
    (project / "data/tiny/train.bin").unlink()
    assert "train.bin has 0 bytes" in refusal("tiny")


def test_tokens_beyond_the_vocabulary_are_refused(project):
    write_data(project / "data/large", vocab_size=1000)
    message = refusal("large")
    assert "vocab_size = 257" in message and "999" in message


def test_fewer_tokens_than_the_context_are_refused(project):
    message = refusal("tiny", GPTConfig(block_size=4000))
    assert "4,000 tokens" in message and "too few for block_size = 4000" in message


# Items --------------------------------------------------------------------------------------------

ITEM = {"context": "naïve 数", "choices": ["b", "c"], "answer": 1}


def write_items(folder, *lines):
    path = folder / "task.jsonl"
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def test_items_are_the_lines_of_a_file(tmp_path):
    lines = [json.dumps(ITEM), json.dumps(ITEM, ensure_ascii=False)]
    assert read.load_items(write_items(tmp_path, *lines)) == [ITEM, ITEM]


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        '{"context": "a", "choices": ["b"]}',
        '{"context": "", "choices": ["b", "c"], "answer": 0}',
        '{"context": "a", "choices": ["b", ""], "answer": 0}',
        '{"context": "a", "choices": ["b", "c"], "answer": 2}',
    ],
)
def test_a_bad_item_is_refused_with_its_line(tmp_path, line):
    path = write_items(tmp_path, json.dumps(ITEM), line)
    with pytest.raises(BadInput, match="task.jsonl, line 2: "):
        read.load_items(path)


PAIR = {"paradigm": "agreement", "good": "He runs.", "bad": "He run."}


def test_pairs_are_the_lines_of_a_file(tmp_path):
    assert read.load_pairs(write_items(tmp_path, json.dumps(PAIR))) == [PAIR]


@pytest.mark.parametrize("change", [{"good": ""}, {"bad": 5}, {"paradigm": None}])
def test_a_bad_pair_is_refused_with_its_line(tmp_path, change):
    path = write_items(tmp_path, json.dumps(PAIR), json.dumps({**PAIR, **change}))
    with pytest.raises(BadInput, match='line 2: must be {"paradigm"'):
        read.load_pairs(path)
