"""What data/prepare.py wrote, as token ids: for training, for validation, and for the instruments."""
import json
from pathlib import Path

import numpy as np
import torch

from data.files import BadInput

DATA = Path(__file__).parent


def load_meta(dataset):
    try:
        return json.loads((DATA / dataset / "meta.json").read_text())
    except (OSError, json.JSONDecodeError):
        raise BadInput(f"data/{dataset} is not prepared: run python data/prepare.py first (--help lists the sources)") from None


def load_tokens(dataset, split, model_config):
    """data/<dataset>/<split>.bin as a uint16 memory map. Raises BadInput where file, meta.json and model do not agree."""
    meta, path = load_meta(dataset), DATA / dataset / f"{split}.bin"
    wanted = 2 * meta["tokens"][split]
    size = path.stat().st_size if path.exists() else 0
    if size != wanted:
        raise BadInput(f"{path} has {size:,} bytes where meta.json promises {wanted:,}: prepare data/{dataset} again")
    if meta["vocab_size"] > model_config.vocab_size:
        raise BadInput(f"vocab_size = {model_config.vocab_size} is too small for data/{dataset}, whose tokens go up to "
                       f"{meta['vocab_size'] - 1}: leave vocab_size out, or prepare the data with fewer")
    if meta["tokens"][split] <= model_config.block_size:
        raise BadInput(f"{path} has {meta['tokens'][split]:,} tokens, too few for block_size = {model_config.block_size}")
    return np.memmap(path, dtype=np.uint16, mode="c")  # never written, though torch wants it writable


def take_sequences(tokens, offsets, block_size, device):
    """(len(offsets), block_size) inputs, int64, and the same, one position on, as targets."""
    rows = torch.from_numpy(tokens[offsets[:, None] + np.arange(block_size + 1)].astype(np.int64)).to(device)
    return rows[:, :-1], rows[:, 1:]


def training_offsets(config, n_tokens, block_size, step):
    """Where step's sequences start: a function of seed and step alone, so a resumed run needs no random state."""
    return np.random.default_rng((config.seed, step)).integers(n_tokens - block_size, size=config.sequences_per_step)


def validation_offsets(config, n_tokens, block_size):
    """Back to back from the start of val.bin, so that points with equal tokens a step, whatever their context
    length, predict the same tokens."""
    n_sequences = min(config.eval_iters * config.sequences_per_step, (n_tokens - 1) // block_size)
    return np.arange(n_sequences) * block_size


def held_out_sequences(config, model_config, n_sequences, length=512, device="cpu", parity=0):
    """n_sequences windows of at most `length` tokens, evenly spaced over val.bin, as inputs and targets (N, T). Parity
    0 and 1 interleave: two sets of different sequences."""
    tokens, T = load_tokens(config.dataset, "val", model_config), min(length, model_config.block_size)
    n_sequences = max(1, min(n_sequences, len(tokens) // (T + 1) // 2))
    spaced = np.linspace(0, len(tokens) - T - 1, 2 * n_sequences).astype(int)
    return take_sequences(tokens, spaced[parity::2], T, device)


def load_items(path):
    """A JSONL of {"context", "choices", "answer"}; raises BadInput naming file and line."""
    items = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        try:
            item = json.loads(line)
            good = item["context"] and all(item["choices"]) and 0 <= item["answer"] < len(item["choices"])
        except (ValueError, KeyError, TypeError):
            good = False
        if not good:
            raise BadInput(f'{path}, line {number}: must be {{"context": text, "choices": [texts], "answer": index}}')
        items.append(item)
    return items
