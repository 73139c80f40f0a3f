"""What data/prepare.py wrote, as token ids: for training, for validation, for the instruments."""

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from data.files import (
    DATA_FILES,
    BadInput,
    Number,
    check_name,
    read_json,
    read_json_lines,
    sha256_of,
)

DATA = Path(__file__).parent  # datasets are beside the code, runs in the working folder
N_TOKENS = Number(int, 0)
META = {  # what we need of meta.json
    "vocab_size": Number(int, 2, 2**16),
    "tokens": {"train": N_TOKENS, "val": N_TOKENS},
    "sha256": str,
}
PAIR = {"paradigm": str, "good": str, "bad": str}
ITEM = {"context": str, "choices": [str], "answer": Number(int, 0)}
STRETCHES = 128  # that tokens to predict are taken from
SCORED_LENGTH = 512  # of a held-out sequence, at most
LONGEST_CONTEXT = 4096  # that can predict the same targets as every shorter one


def load_meta(dataset):
    """data/<dataset>/meta.json; raises BadInput where the dataset is not prepared, or damaged."""
    check_name(dataset, "dataset")
    try:
        return read_json(DATA / dataset / "meta.json", META)
    except (FileNotFoundError, NotADirectoryError):
        raise BadInput(
            f"data/{dataset} is not prepared: "
            "run python data/prepare.py first (--help lists the sources)"
        ) from None
    except BadInput as error:
        raise BadInput(f"{error}: prepare data/{dataset} again, by data/prepare.py") from None


def load_tokens(dataset, split, model_config):
    """data/<dataset>/<split>.bin as a uint16 memory map.

    Raises BadInput where the file, meta.json and the model do not agree.
    """
    meta = load_meta(dataset)
    path = DATA / dataset / f"{split}.bin"
    n_tokens = meta["tokens"][split]
    size = path.stat().st_size if path.exists() else 0
    if size != 2 * n_tokens:
        raise BadInput(
            f"{path} has {size:,} bytes where meta.json promises {2 * n_tokens:,}: "
            f"prepare data/{dataset} again"
        )
    if meta["vocab_size"] > model_config.vocab_size:
        raise BadInput(
            f"vocab_size = {model_config.vocab_size} is too small for data/{dataset}, "
            f"whose tokens go up to {meta['vocab_size'] - 1}: "
            "leave vocab_size out, or prepare the data with fewer"
        )
    if n_tokens <= model_config.block_size:
        raise BadInput(
            f"{path} has {n_tokens:,} tokens, too few for block_size = {model_config.block_size}: "
            f"lower it, or prepare data/{dataset} with more text"
        )
    refuse_changed(dataset, meta)
    return np.memmap(path, dtype=np.uint16, mode="c")  # never written, though torch asks for it


def refuse_changed(dataset, meta):
    """Raises BadInput where a file of a dataset is not the one that meta.json was written for."""
    paths = [DATA / dataset / name for name in DATA_FILES]
    for path in paths:
        if not path.exists():
            raise BadInput(f"there is no {path}: prepare data/{dataset} again")
    times = [path.stat().st_mtime_ns for path in paths]
    sha256, largest = contents_at(tuple(paths), tuple(times))
    if sha256 != meta["sha256"]:
        raise BadInput(
            f"the files of data/{dataset} have changed since meta.json was written: prepare "
            "it again, and give choices of your own by --task"
        )
    if largest >= meta["vocab_size"]:
        raise BadInput(
            f"data/{dataset}/val.bin has the token {largest}, which does not fit meta.json's "
            f"vocab_size = {meta['vocab_size']}: prepare data/{dataset} again"
        )


@lru_cache
def contents_at(paths, times):
    """sha256_of the DATA_FILES, and the largest token in val.bin, which end-of-text makes
    vocab_size - 1: found once, however often they are asked for; times: when the files changed."""
    val = np.fromfile(paths[DATA_FILES.index("val.bin")], dtype=np.uint16)
    return sha256_of(paths), int(val.max(initial=0))


def take_sequences(tokens, offsets, block_size, device):
    """The sequences that start at offsets: inputs (len(offsets), block_size), int64, and targets,
    which are the inputs one position on."""
    places = offsets[:, None] + np.arange(block_size + 1)
    rows = torch.from_numpy(tokens[places].astype(np.int64)).to(device)
    return rows[:, :-1], rows[:, 1:]


def training_offsets(config, n_tokens, block_size, step):
    """Where a step's sequences start, (sequences_per_step,).

    A function of the seed and the step alone, so that a resumed run needs no random state.
    """
    rng = np.random.default_rng((config.seed, step))
    return rng.integers(n_tokens - block_size, size=config.sequences_per_step)


def spread_offsets(n_tokens, block_size, n_wanted):
    """Where sequences start that predict about n_wanted tokens, spread over a file of n_tokens:
    back to back in 128 evenly spaced stretches of n_wanted / 128 tokens each.

    So all contexts that divide a stretch (4096 tokens, where 2**19 are wanted) predict the same
    tokens; a longer one makes its stretches as long as itself, and fewer. A file that has fewer
    tokens than are wanted is taken whole, but for less than a sequence.
    """
    n_there = n_tokens - 1  # the first token is never predicted
    stretch = block_size if n_there < n_wanted else max(block_size, n_wanted // STRETCHES)
    n_stretches = max(1, min(n_wanted, n_there) // stretch)
    starts = np.linspace(0, n_there - stretch, n_stretches).astype(int)
    return (starts[:, None] + np.arange(0, stretch - block_size + 1, block_size)).flatten()


def same_targets(n_tokens, n_wanted):
    """The tokens of a file that models of any context up to LONGEST_CONTEXT predict: the numbers of
    the first ones, (n,), of n stretches of LONGEST_CONTEXT / 2 tokens each, evenly spaced, about
    n_wanted tokens or what the file has. As many come before the first, for a context to begin in;
    a file that has no room for that gives none."""
    before = stretch = LONGEST_CONTEXT // 2
    n_there = n_tokens - 1 - before  # the last token is only ever behind a target
    n_stretches = min(max(1, n_wanted // stretch), max(0, n_there) // stretch)
    return np.linspace(before, n_tokens - 1 - stretch, n_stretches).astype(int)


def held_out_sequences(
    config, model_config, n_sequences, length=SCORED_LENGTH, device="cpu", parity=0
):
    """Windows of at most `length` tokens, evenly spaced over val.bin, as inputs and targets (N, T).

    Parity 0 and 1 interleave, which makes two sets of different sequences. A short val.bin gives
    fewer than n_sequences; raises BadInput where it has not even two.
    """
    tokens = load_tokens(config.dataset, "val", model_config)
    T = min(length, model_config.block_size)
    n_sequences = min(n_sequences, n_held_out(config, model_config, length))
    offsets = np.linspace(0, len(tokens) - T - 1, 2 * n_sequences).astype(int)
    return take_sequences(tokens, offsets[parity::2], T, device)


def n_held_out(config, model_config, length=SCORED_LENGTH):
    """How many sequences there are for held_out_sequences, of either parity. Raises BadInput where
    there are none."""
    T = min(length, model_config.block_size)
    n_tokens = load_meta(config.dataset)["tokens"]["val"]
    if n_tokens < 2 * (T + 1):
        raise BadInput(
            f"data/{config.dataset}/val.bin has {n_tokens:,} tokens, too few for two sequences "
            f"of {T}, one to fit on and one to score: prepare data/{config.dataset} with more text"
        )
    return n_tokens // (T + 1) // 2


def load_items(path):
    """The items of a JSONL file, each {"context": text, "choices": [texts], "answer": index}.

    Raises BadInput, which names file and line.
    """
    items = []
    for number, item in read_json_lines(path, ITEM):
        texts = [item["context"], *item["choices"]]
        n_choices = len(item["choices"])
        is_text = all(text.strip() for text in texts)
        if not is_text or n_choices < 2 or item["answer"] >= n_choices:
            raise BadInput(
                f"{path}, line {number}: context and two choices or more must hold text, "
                "and answer must be the index of a choice, from 0"
            )
        items.append(item)
    return items


def load_pairs(path):
    """The pairs of sentences of a JSONL file, each {"paradigm": name, "good": text, "bad": text}.

    Raises BadInput, which names file and line.
    """
    pairs = []
    for number, pair in read_json_lines(path, PAIR):
        if not all(pair[key] for key in PAIR):
            raise BadInput(f"{path}, line {number}: paradigm, good and bad must hold text")
        pairs.append(pair)
    return pairs
