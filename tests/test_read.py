"""data/read.py: token files as batches, and what is refused."""

import json

import numpy as np
import pytest

from configs.read import TrainConfig
from conftest import write_data, write_meta
from data import read
from data.files import BadInput
from model import GPTConfig

MODEL = GPTConfig(n_embd=16, n_head=2, block_size=16)


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
    write_data(project / "data/counted", vocab_size=n_val)
    (project / "data/counted/val.bin").write_bytes(np.arange(n_val, dtype=np.uint16).tobytes())
    write_meta(project / "data/counted", n_val, {"train": 4000, "val": n_val})
    config, model = TrainConfig(dataset="counted"), GPTConfig(block_size=16, vocab_size=n_val)
    even, targets = read.held_out_sequences(config, model, n_sequences=8)
    odd, _ = read.held_out_sequences(config, model, n_sequences=8, parity=1)
    assert even.shape == odd.shape == (8, 16)
    assert (targets == even + 1).all()
    assert even[0, 0] == 0 and odd[-1, -1] == n_val - 2  # from end to end
    assert not set(even.flatten().tolist()) & set(odd.flatten().tolist())


def test_a_short_val_bin_gives_fewer_held_out_sequences(project):
    idx, _ = read.held_out_sequences(TrainConfig(dataset="tiny"), MODEL, n_sequences=100)
    assert len(idx) == 600 // 17 // 2
    idx, _ = read.held_out_sequences(TrainConfig(dataset="tiny"), MODEL, 4, length=8)
    assert idx.shape == (4, 8)


def test_a_val_bin_of_less_than_two_sequences_is_refused(project):
    """One to fit linear maps on and one to score them: they must not overlap."""
    write_data(project / "data/short", n_val=33)
    with pytest.raises(BadInput, match="too few for two sequences of 16"):
        read.held_out_sequences(TrainConfig(dataset="short"), MODEL, 4)


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


def test_a_file_that_has_changed_at_equal_size_is_refused(project):
    """Also after it was read as it should be, and whichever split is asked for."""
    read.load_tokens("tiny", "val", MODEL)
    tokens = np.fromfile(project / "data/tiny/train.bin", dtype=np.uint16)
    tokens[7] ^= 1
    tokens.tofile(project / "data/tiny/train.bin")
    with pytest.raises(BadInput, match="data/tiny have changed since meta.json was written"):
        read.load_tokens("tiny", "val", MODEL)


def test_a_dataset_without_its_choices_is_refused(project):
    (project / "data/tiny/choices.jsonl").unlink()
    with pytest.raises(BadInput, match="there is no .*choices.jsonl: prepare data/tiny again"):
        read.load_tokens("tiny", "train", MODEL)


@pytest.mark.parametrize("name", ["../tiny", "/tiny", ".", "a b"])
def test_a_dataset_lies_in_the_data_folder(name):
    with pytest.raises(BadInput, match="dataset .* must be a name"):
        read.load_meta(name)


@pytest.mark.parametrize(
    "field, value, words",
    [
        ("vocab_size", "257", "vocab_size = '257'"),
        ("vocab_size", 1, "vocab_size = 1"),
        ("tokens", {"train": 4000}, "tokens.val is missing"),
        ("tokens", {"train": 4000, "val": -1}, "tokens.val = -1"),
        ("sha256", None, "sha256 = None"),
    ],
)
def test_a_damaged_meta_json_is_refused_with_its_field(project, field, value, words):
    path = project / "data/tiny/meta.json"
    meta = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**meta, field: value}), encoding="utf-8")
    with pytest.raises(BadInput, match="meta.json") as error:
        read.load_meta("tiny")
    assert words in str(error.value) and "data/prepare.py" in str(error.value)


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
        '{"context": "a", "choices": ["b"], "answer": 0}',
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
    with pytest.raises(BadInput, match="task.jsonl, line 2: "):
        read.load_pairs(path)


@pytest.mark.parametrize(
    "n_tokens, n_wanted, firsts",
    [
        (16, 8, []),  # 8 before, 8 targets, and one behind them, make 17
        (17, 8, [8]),
        (17, 800, [8]),
        (17, 1, [8]),
        (100, 24, [8, 49, 91]),
        (100, 31, [8, 49, 91]),
        (41, 800, [8, 16, 24, 32]),
    ],
)
def test_the_same_targets_by_hand(n_tokens, n_wanted, firsts, monkeypatch):
    monkeypatch.setattr(read, "LONGEST_CONTEXT", 16)
    assert read.same_targets(n_tokens, n_wanted).tolist() == firsts
