"""Downstream tasks: which of several continuations of a context, and which of two sentences, does a
model hold for the likelier?

    pairs = load_pairs("tasks/blimp.jsonl")
    encoding = tokenizer(8192)
    minimal_pairs(model, pairs, encoding.encode_ordinary, end_of_text=encoding.n_vocab - 1)

`encode` is text -> list of token ids. Errors are standard errors.
"""

import math

import numpy as np
import torch

from model import cross_entropy

TOKENS_AT_ONCE = 2**15
LOGITS_AT_ONCE = 2**28


@torch.no_grad()
def log_probabilities(model, rows):
    """rows: [(token ids, n)] -> (len(rows),) the total log probability, in nats, of each row's last
    n tokens after those before them. Rows of like lengths run together, and are filled up behind
    their end, where a causal model does not look."""
    device = model.head.weight.device
    n_tokens = min(TOKENS_AT_ONCE, LOGITS_AT_ONCE // model.config.vocab_size)
    longest_first = sorted(range(len(rows)), key=lambda i: -len(rows[i][0]))
    totals = np.zeros(len(rows))
    while longest_first:
        width = len(rows[longest_first[0]][0]) - 1
        n_rows = max(1, n_tokens // width)
        picked, longest_first = longest_first[:n_rows], longest_first[n_rows:]
        ids = np.zeros((len(picked), width + 1), dtype=np.int64)
        counts = np.zeros((len(picked), width), dtype=np.float32)
        for i, (row, n) in enumerate(rows[place] for place in picked):
            ids[i, : len(row)] = row
            counts[i, len(row) - 1 - n : len(row) - 1] = 1  # a target stands one to the left
        ids, counts = (torch.from_numpy(array).to(device) for array in (ids, counts))
        losses = cross_entropy(model(ids[:, :-1])[0], ids[:, 1:])
        totals[picked] = -(losses * counts).cpu().double().sum(dim=1).numpy()
    return totals


# Multiple choice ---------------------------------------------------------------------------------


def at_a_word(context, choice):
    """The same text, cut where tokens can be: blanks at the end of a context begin the choice, as
    byte-pair tokens of words begin with theirs."""
    end = len(context.rstrip(" "))
    return context[:end], context[end:] + choice


def choice_row(context, choice, block_size):
    """(token ids, how many of them, at the end, are the choice's). The context loses its beginning
    where both exceed the block_size + 1 tokens that a model can take and predict."""
    choice = choice[:block_size]
    ids = (context + choice)[-(block_size + 1) :]
    return ids, min(len(choice), len(ids) - 1)


def right_choices(model, contexts, choices, answers):
    """For each item whether the true one of its choices has the highest mean log probability per
    token after its context. All are token ids: (n_items,) bool."""
    rows = [
        choice_row(context, choice, model.config.block_size)
        for context, of_item in zip(contexts, choices, strict=True)
        for choice in of_item
    ]
    means = log_probabilities(model, rows) / [n for _, n in rows]
    ends = np.cumsum([len(of_item) for of_item in choices])
    best = [of_item.argmax() for of_item in np.split(means, ends[:-1])]
    return np.array(best) == answers


def choice_accuracy(model, items, encode):
    """{"accuracy", "standard_error", "control", "control_error", "cut", "items"} of the items: the
    share whose true choice is the likeliest after its context; the same after the next item's
    context, which what the choices alone give away would explain; and the share of pairs of context
    and choice too long for the model, which lose the context's beginning."""
    texts = [[at_a_word(item["context"], text) for text in item["choices"]] for item in items]
    contexts = [encode(of_item[0][0]) for of_item in texts]
    choices = [[encode(choice) for _, choice in of_item] for of_item in texts]
    answers = [item["answer"] for item in items]
    right = right_choices(model, contexts, choices, answers).mean()
    control = right_choices(model, contexts[1:] + contexts[:1], choices, answers).mean()
    lengths = [
        len(context) + len(choice)
        for context, of_item in zip(contexts, choices, strict=True)
        for choice in of_item
    ]
    return {
        "accuracy": float(right),
        "standard_error": binomial_error(right, len(items)),
        "control": float(control),
        "control_error": binomial_error(control, len(items)),
        "cut": float(np.mean(np.array(lengths) > model.config.block_size + 1)),
        "items": len(items),
    }


def binomial_error(share, n):
    return math.sqrt(share * (1 - share) / n)


# Minimal pairs -----------------------------------------------------------------------------------


def sentence_row(sentence, end_of_text, block_size):
    """(end-of-text and the sentence's token ids, how many these are); of a longer sentence than the
    model can predict, its beginning."""
    ids = [end_of_text, *sentence][: block_size + 1]
    return ids, len(ids) - 1


def minimal_pairs(model, pairs, encode, end_of_text):
    """BLiMP's accuracy (arXiv 1912.00582): how often of a pair {"paradigm", "good", "bad"} the good
    sentence has the higher total log probability of its tokens after end-of-text; a tie is half.

    {"accuracy": mean over the paradigms, "standard_error": of that mean, over paradigms,
    "paradigms": {name: accuracy}, "cut": share of sentences too long for the model, "pairs"}.
    """
    block_size = model.config.block_size
    sentences = [encode(pair[side]) for side in ("good", "bad") for pair in pairs]
    rows = [sentence_row(sentence, end_of_text, block_size) for sentence in sentences]
    good, bad = np.split(log_probabilities(model, rows), 2)
    wins = (good > bad) + 0.5 * (good == bad)
    of_paradigm = {}
    for pair, win in zip(pairs, wins, strict=True):
        of_paradigm.setdefault(pair["paradigm"], []).append(win)
    accuracies = {name: float(np.mean(of)) for name, of in of_paradigm.items()}
    values = list(accuracies.values())
    several = len(values) > 1
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values)) if several else None
    return {
        "accuracy": float(np.mean(values)),
        "standard_error": error,
        "paradigms": accuracies,
        "cut": float(np.mean([len(sentence) > block_size for sentence in sentences])),
        "pairs": len(pairs),
    }
