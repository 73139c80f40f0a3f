"""downstream.py: choices and minimal pairs against models that score one token at a time."""

import math

import numpy as np
import pytest
import torch
import torch.nn as nn

import downstream
from conftest import TOGGLES, as_if_trained
from downstream import choice_accuracy, minimal_pairs
from model import GPT, GPTConfig

LENGTH, VOCABULARY, END_OF_TEXT = 6, 12, 11


def build(**toggle):
    torch.manual_seed(0)
    shape = dict(block_size=LENGTH, vocab_size=VOCABULARY, n_head=4, n_embd=8, mlp_hidden=16)
    model = GPT(GPTConfig(n_layer=2, **shape, **toggle)).double()
    as_if_trained(model, 12)
    return model.eval()


def encode(text):
    """Letters a to k as tokens 0 to 10."""
    return [ord(letter) - ord("a") for letter in text]


def spell(rng, length):
    return "".join(chr(ord("a") + i) for i in rng.integers(END_OF_TEXT, size=length))


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """A few rows at a time, so that what is put together from pieces is tested too."""
    monkeypatch.setattr(downstream, "TOKENS_AT_ONCE", 4 * LENGTH)


@torch.no_grad()
def token_log_probabilities(model, ids):
    """Of ids[1:], one after another: each by a run of the model on the tokens before it."""
    return [
        model(torch.tensor([ids[:t]]))[0][0, -1].log_softmax(-1)[ids[t]].item()
        for t in range(1, len(ids))
    ]


def close(value):
    return pytest.approx(value, rel=1e-9)


# Multiple choice ---------------------------------------------------------------------------------


def random_items(n):
    """Items whose contexts and choices are shorter and longer than a sequence."""
    rng = np.random.default_rng(0)
    return [
        {
            "context": spell(rng, rng.integers(1, 9)),
            "choices": [spell(rng, rng.integers(1, 8)) for _ in range(3)],
            "answer": int(rng.integers(3)),
        }
        for _ in range(n)
    ]


def mean_log_probability(model, context, choice):
    choice = encode(choice)[:LENGTH]
    ids = (encode(context) + choice)[-(LENGTH + 1) :]
    return np.mean(token_log_probabilities(model, ids)[-len(choice) :])


@pytest.mark.parametrize("toggle", ["plain", "together"])
def test_choices_are_scored_by_mean_log_probability(toggle):
    """After their own context, and as a control after the next item's, the first being the last
    one's next."""
    model, items = build(**TOGGLES[toggle]), random_items(40)
    shares = []
    for shift in (0, 1):
        right = 0
        for i, item in enumerate(items):
            context = items[(i + shift) % 40]["context"]
            means = [mean_log_probability(model, context, choice) for choice in item["choices"]]
            right += int(np.argmax(means)) == item["answer"]
        shares.append(right / 40)
    result = choice_accuracy(model, items, encode)
    errors = [math.sqrt(share * (1 - share) / 40) for share in shares]
    lengths = [len(item["context"] + choice) for item in items for choice in item["choices"]]
    assert result == {
        "accuracy": close(shares[0]),
        "control": close(shares[1]),
        "standard_error": close(errors[0]),
        "control_error": close(errors[1]),
        "cut": close(np.mean([length > LENGTH + 1 for length in lengths])),
        "items": 40,
    }
    assert 0.2 < result["cut"] < 0.9


def test_choices_that_give_themselves_away_are_right_after_any_context():
    """A model that likes the letter a: the control is as good as the accuracy."""
    items = [{"context": "bcd", "choices": ["ab", "aa"], "answer": 1}] * 3
    result = choice_accuracy(Unigram({0: 0.5, 1: 0.25}), items, encode)
    assert result["accuracy"] == result["control"] == 1
    assert result["cut"] == 0


# Minimal pairs -----------------------------------------------------------------------------------


class Unigram(nn.Module):
    """Gives each token the same probability everywhere: a letter's own, and to the others, not
    named, what is left in equal parts. Its scores can be computed by hand."""

    def __init__(self, probability):
        super().__init__()
        rest = (1 - sum(probability.values())) / (VOCABULARY - len(probability))
        logits = torch.full((VOCABULARY,), rest, dtype=torch.float64)
        for token, value in probability.items():
            logits[token] = value
        self.logits = logits.log()
        self.head = nn.Linear(1, 1)
        self.config = GPTConfig(block_size=LENGTH, vocab_size=VOCABULARY, n_embd=8)

    def forward(self, idx):
        return self.logits.expand(*idx.shape, -1), None


def pair(paradigm, good, bad):
    return {"paradigm": paradigm, "good": good, "bad": bad}


def test_minimal_pairs_by_hand():
    """With p(a) = 1/2, p(b) = 1/4 and 1/40 each for the others a sentence's total decides, not its
    mean: "aac", with 1/160, loses to "ab", with 1/8, and wins against "cc", with 1/1600. The same
    letters in another order tie."""
    pairs = [
        pair("letters", "a", "b"),
        pair("letters", "b", "a"),
        pair("letters", "ab", "aac"),
        pair("letters", "aac", "cc"),
        pair("ties", "ab", "ba"),
        pair("ties", "cab", "cab"),
        pair("wrong", "ccc", "c"),
    ]
    result = minimal_pairs(Unigram({0: 0.5, 1: 0.25}), pairs, encode, END_OF_TEXT)
    assert result["paradigms"] == {"letters": 0.75, "ties": 0.5, "wrong": 0}
    assert result["accuracy"] == close(1.25 / 3)
    assert result["standard_error"] == close(np.std([0.75, 0.5, 0], ddof=1) / math.sqrt(3))
    assert (result["pairs"], result["cut"]) == (7, 0)


@pytest.mark.parametrize("toggle", ["plain", "gqa", "moe", "together"])
def test_sentences_are_scored_by_all_their_tokens_after_end_of_text(toggle):
    """And by their beginning, where they are longer than the model can take."""
    model, rng = build(**TOGGLES[toggle]), np.random.default_rng(0)
    pairs = [
        pair("odd" if i % 2 else "even", spell(rng, rng.integers(1, 9)), spell(rng, 6))
        for i in range(30)
    ]
    wins = {"even": [], "odd": []}
    for one in pairs:
        totals = [
            sum(token_log_probabilities(model, [END_OF_TEXT, *encode(one[side])][: LENGTH + 1]))
            for side in ("good", "bad")
        ]
        wins[one["paradigm"]].append(totals[0] > totals[1])
    result = minimal_pairs(model, pairs, encode, END_OF_TEXT)
    assert result["paradigms"] == {name: close(np.mean(of)) for name, of in wins.items()}
    long = [len(one[side]) > LENGTH for one in pairs for side in ("good", "bad")]
    assert result["cut"] == close(np.mean(long))


def test_one_paradigm_has_no_error():
    result = minimal_pairs(Unigram({0: 0.5}), [pair("one", "a", "b")], encode, END_OF_TEXT)
    assert (result["accuracy"], result["standard_error"]) == (1, None)
