"""A public model, layer by layer: the scores of analyze.py of any decoder in a Hugging Face folder.

    python pretrained.py SmolLM2-135M                  on the held-out part of data/books
    python pretrained.py SmolLM2-135M --text mine.txt --sequences 4 --length 256
    python pretrained.py SmolLM2-135M --scores stream,removal     few scores cost little
    python pretrained.py SmolLM2-135M SmolLM2-360M     both, and side by side in one figure
    python pretrained.py results/pretrained/*.json     figures and reports again: no model, no GPU
    python pretrained.py SmolLM2-135M --remove 20-25 --save SmolLM2-shorter

Needs one package more: pip install transformers. A folder holds config.json, *.safetensors and a
tokenizer. out/pretrained/<its name>/ gets analysis.json, score by score, so that a stop loses at
most one; then figures and report.md. Blocks are counted from 1 here, as in figures and reports.
"""

from data import interrupt

if __name__ == "__main__":
    interrupt.before_imports()

import argparse
import hashlib
import math
import re
import shutil
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

import decoder
import stream_scores
from analyze import (
    NUMBERS_AT_ONCE,
    TOKENS_AT_ONCE,
    at_least_1,
    chunks,
    losses_by_position,
    numbers_per_token,
    run_blocks,
)
from configs.read import TrainConfig
from data import read
from data.files import (
    BadInput,
    check_name,
    duration,
    locked,
    or_one_sentence,
    read_json,
    read_text,
    refuse_dashes,
    say,
    write_json,
)
from data.prepare import tokenizer as own_tokenizer
from data.read import META, load_items, load_pairs
from decoder import (
    bytes_of_weights,
    count_parameters,
    load_decoder,
    load_tokenizer,
    read_config,
    refuse_unlike_itself,
    save_without,
)
from downstream import choice_accuracy, minimal_pairs
from hardware import (
    GIB,
    choose_hardware,
    device_name,
    memory_errors_explained,
    memory_of,
    peak_memory,
)
from pending import SCORED_BY
from results.public import publish, read_analysis, report_model, report_models
from stream_scores import SCORES, Passages, passages_of, runs_of_scores

OUT = Path("out/pretrained")
SEQUENCES, CPU_SEQUENCES = 32, 4
LENGTH = 512
FIT_TOKENS = 20  # for each of the stream's features, to fit a linear map
ITEMS = 100  # of a dataset's own multiple choice
# Of SmolLM2-135M, beside float32: results/pretrained/*.json, against which a test holds it.
BF16_WARNING = (
    "bfloat16 keeps 8 bits of every number, which moves loss ratios by up to 0.1 % and variances "
    "by up to 0.3 %, by 5 % at position 0"
)


# Text --------------------------------------------------------------------------------------------


def text_of(path):
    """A text file's, or the held-out part of a prepared dataset's folder, its documents one after
    the other. Raises BadInput."""
    if not path.exists():
        raise BadInput(
            f"there is no {path}: give a text file, or the folder of a prepared dataset, by --text"
        )
    if path.is_file():
        return read_text(path)
    if not (path / "meta.json").exists():
        raise BadInput(f"{path} is no prepared dataset: give one, or a text file, by --text")
    vocab_size = read_json(path / "meta.json", META)["vocab_size"]
    tokens = np.fromfile(path / "val.bin", dtype=np.uint16)
    if len(tokens) and tokens.max() >= vocab_size:
        raise BadInput(f"{path / 'val.bin'} does not fit meta.json: prepare {path} again")
    ends = np.flatnonzero(tokens == vocab_size - 1)
    encoding = own_tokenizer(vocab_size)
    documents = [
        encoding.decode(document[document != vocab_size - 1].tolist())
        for document in np.split(tokens, ends)
    ]
    return "\n\n".join(documents)


def beginning_of_text(tokenizer):
    """The token that the tokenizer puts before a text, or None where it puts none."""
    bos = tokenizer.bos_token_id
    return bos if bos is not None and tokenizer("a").input_ids[:1] == [bos] else None


def encoder_of(tokenizer):
    """Text -> list of token ids, nothing before or behind."""
    return lambda text: tokenizer(text, add_special_tokens=False).input_ids


# Scores: tasks -----------------------------------------------------------------------------------


class BehindBeginning:
    """The model on texts behind a token that its tokenizer puts before them, which nobody who calls
    it sees: what downstream.py asks of a model."""

    def __init__(self, model, bos):
        self.model, self.bos = model, bos
        self.config, self.head = model.config, model.head

    def __call__(self, idx):
        first = torch.full_like(idx[:, :1], self.bos)
        return self.model(torch.cat((first, idx), dim=1))[0][:, 1:], None


def task_scores(text, tokenizer, task, blimp):
    """{score: function of (model, passages)} of a prepared dataset's own multiple choice, of a file
    of items, `task`, and of pairs, `blimp`, as far as there are any. Raises BadInput."""
    encode = encoder_of(tokenizer)
    bos = beginning_of_text(tokenizer)
    choices = text / "choices.jsonl"
    scores = {}
    if choices.exists() and (items := load_items(choices)[:ITEMS]):
        scores["choices"] = choices_score("choices", choices.name, items, encode, bos)
    if task and (items := load_items(task)):
        scores["task"] = choices_score("task", task.name, items, encode, bos)
    if blimp and (pairs := load_pairs(blimp)):
        scores["blimp"] = pairs_score(blimp.name, pairs, encode, tokenizer)
    return scores


def choices_score(score, file, items, encode, bos):
    """The function of (model, passages) that scores multiple-choice items."""

    def run(model, _):
        reader = model if bos is None else BehindBeginning(model, bos)
        return {score: {"file": file, **choice_accuracy(reader, items, encode)}}, {}

    return run


def pairs_score(file, pairs, encode, tokenizer):
    """The function of (model, passages) that scores pairs of sentences. Each sentence stands behind
    the token that begins a text, or else the one that ends it."""

    def run(model, _):
        config = model.hf.config.get_text_config()
        known = (tokenizer.bos_token_id, tokenizer.eos_token_id, config.bos_token_id)
        before = next((token for token in known if token is not None), 0)
        return {"blimp": {"file": file, **minimal_pairs(model, pairs, encode, before)}}, {}

    return run


# What scoring costs ------------------------------------------------------------------------------


@torch.no_grad()
def time_parts(model, idx):
    """Seconds of a block and of a read-out, a sequence each."""
    rows = idx[: max(1, min(len(idx), TOKENS_AT_ONCE // 4 // idx.shape[1]))]
    h = model.embed(rows)
    seconds = []
    for part in (lambda: run_blocks(model.blocks, h), lambda: model.read_out(h)):
        part().sum().item()
        began = time.perf_counter()
        part().sum().item()  # waits for the device
        seconds.append((time.perf_counter() - began) / len(rows))
    return seconds[0] / model.config.n_layer, seconds[1]


def memory_needed(config, n_tokens, n_parameters, dtype):
    """In bytes, about, at most: weights; cached states and logits; the states twice in float64; and
    for each block its linear map, and the fit's triangle, twice as wide, in float64."""
    per_token = numbers_per_token(config)
    states = (config.n_layer + 1) * config.n_embd
    at_once = min(n_tokens, TOKENS_AT_ONCE, NUMBERS_AT_ONCE // per_token)
    maps = 8 * config.n_layer * (config.n_embd**2 + (2 * config.n_embd) ** 2)
    return n_parameters * dtype.itemsize + at_once * (4 * per_token + 16 * states) + maps


def refuse_too_large(folder, n_parameters, dtype, device):
    needed, there = n_parameters * dtype.itemsize, memory_of(device)
    if needed > there:
        raise BadInput(
            f"{folder}: its {n_parameters / 1e9:.1f} billion weights take {needed / GIB:,.0f} GiB "
            f"in {str(dtype).removeprefix('torch.')}, and {device} has {there / GIB:,.0f}: "
            "choose a smaller model, or --dtype=bfloat16"
        )


def announce(name, model, passages, scores, dtype):
    """Say what scoring will take, and return a bar of so many seconds, which moves with every block
    that is run and with every read-out."""
    config = model.config
    N, T = passages.idx.shape
    block, read_out = time_parts(model, passages.idx)
    runs = runs_of_scores(config.n_layer, config.n_embd, N, len(passages.fit_idx))
    counted = [runs[score] for score in scores if score in runs]
    seconds = sum(block * n_blocks + read_out * n_read_outs for n_blocks, n_read_outs in counted)
    n_parameters = sum(parameter.numel() for parameter in model.hf.parameters())
    n_tokens = max(passages.idx.numel(), passages.fit_idx.numel())
    memory = memory_needed(config, n_tokens, n_parameters, dtype)
    beside = "" if len(counted) == len(scores) else ", and the tasks' time"
    say(
        f"{name}: {', '.join(scores)} on {N} sequences of {T} tokens take about "
        f"{duration(seconds)}{beside}, and up to {max(0.1, memory / GIB):.1f} GiB here "
        f"({1000 * block:.3g} ms a block and sequence, {1000 * read_out:.3g} ms a read-out)"
    )
    form = "{desc}: {percentage:3.0f}% |{bar}| {elapsed}<{remaining}"
    bar = tqdm(total=seconds, bar_format=form, disable=None, leave=False)
    for module in model.blocks:
        module.register_forward_hook(moves(bar, block / T))
    model.head.register_forward_hook(moves(bar, read_out / T))
    return bar


def moves(bar, of_token):
    """A hook that moves the bar by these seconds for each token; a gradient counts for two."""

    def move(_, inputs, __):
        n_tokens = inputs[0].shape[:-1].numel()
        bar.update(of_token * n_tokens * (3 if inputs[0].requires_grad else 1))

    return move


# One model ---------------------------------------------------------------------------------------


class Job(NamedTuple):
    """What is to be scored, before any weight is read."""

    folder: Path
    out: Path
    passages: Passages
    scores: dict  # {score: function of (model, passages)}
    about: dict  # what all scores' entries under "measured" share
    dtype: torch.dtype


def job_of(folder, arguments, device):
    """The Job of one folder. Raises BadInput for all that can be wrong with it or its text."""
    config = read_config(folder)
    dtype = getattr(torch, arguments.dtype)
    n_parameters = count_parameters(config)
    refuse_too_large(folder, n_parameters, dtype, device)
    tokenizer = load_tokenizer(folder)
    name = check_name(folder.resolve().name, "the folder")
    passages = read_passages(config, tokenizer, arguments, device, folder)
    known = SCORES | task_scores(arguments.text, tokenizer, arguments.task, arguments.blimp)
    wanted = known if arguments.scores is None else arguments.scores
    if lacking := [score for score in wanted if score not in known]:
        raise BadInput(
            f"--scores {lacking[0]}: there is none of this name here; there are {', '.join(known)} "
            "(choices with a dataset by --text, task and blimp with a file)"
        )
    about = {
        "sequences": len(passages.idx),
        "length": passages.idx.shape[1],
        "text": f"data/{arguments.text.name}" if arguments.text.is_dir() else arguments.text.name,
        "begins_with_bos": beginning_of_text(tokenizer) is not None,
        "dtype": arguments.dtype,
        "device": device_name(device),
        "torch": torch.__version__,
        "transformers": decoder.transformers.__version__,
    }
    chosen = {score: function for score, function in known.items() if score in wanted}
    return Job(folder, OUT / name, passages, chosen, about, dtype)


def read_passages(config, tokenizer, arguments, device, folder):
    text_config = config.get_text_config()
    n_sequences = arguments.sequences or (CPU_SEQUENCES if device.type == "cpu" else SEQUENCES)
    longest = getattr(text_config, "max_position_embeddings", None) or decoder.UNLIMITED
    length = arguments.length or min(LENGTH, longest)
    if not 2 <= length <= longest:
        raise BadInput(f"--length {length} must lie between 2 and the model's {longest} tokens")
    ids = encoder_of(tokenizer)(text_of(arguments.text))
    if ids and max(ids) >= text_config.vocab_size:
        raise BadInput(
            f"{folder}: its tokenizer knows more tokens than the model's {text_config.vocab_size}: "
            "it is that of another model"
        )
    n_fit = math.ceil(FIT_TOKENS * text_config.hidden_size / length)
    return passages_of(ids, beginning_of_text(tokenizer), n_sequences, length, n_fit)


def identities(job, arguments):
    """{score: what its numbers follow from}, in a hash: weights, text, precision and code."""
    digest = hashlib.sha256(f"{job.about['dtype']}".encode())
    own = [Path(__file__), Path(decoder.__file__), Path(stream_scores.__file__)]
    weights = sorted(path for path in job.folder.iterdir() if path.is_file())
    for path in [*SCORED_BY, *own, *weights]:
        if path.exists():  # fast.py may be deleted
            digest.update(hash_of(path))
    for tensor in job.passages:
        digest.update(tensor.numpy().tobytes())
    of_tasks = {"task": arguments.task, "blimp": arguments.blimp}
    found = {}
    for score in job.scores:
        of_score = digest.copy()
        if of_tasks.get(score):
            of_score.update(hash_of(of_tasks[score]))
        found[score] = of_score.hexdigest()
    return found


def hash_of(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def score_model(folder, arguments, device):
    """Score what is not scored yet, and keep each score as soon as it is there. Returns the folder
    of analysis.json."""
    job = job_of(folder, arguments, device)
    identity = identities(job, arguments)
    job.out.mkdir(parents=True, exist_ok=True)
    with locked(job.out):
        path = job.out / "analysis.json"
        analysis = read_analysis(path) if path.exists() else {}
        measured = analysis.get("measured", {})
        to_do = {
            score: function
            for score, function in job.scores.items()
            if measured.get(score, {}).get("identity") != identity[score]
        }
        if to_do:
            with memory_errors_explained(f"scoring {folder}", "lower --sequences or --length"):
                score_and_keep(job._replace(scores=to_do), identity, analysis, device)
    return job.out


def score_and_keep(job, identity, analysis, device):
    if job.dtype is torch.bfloat16:
        say(BF16_WARNING)
    model, _ = load_decoder(job.folder, job.dtype, device)
    passages = job.passages.to(device)
    refuse_unlike_itself(model, passages.idx, job.folder)
    torch.set_float32_matmul_precision("high")  # as analyze.py scores
    analysis = {**analysis, "model": description(model, job.folder)}
    with announce(job.folder.name, model, passages, job.scores, job.dtype) as bar:
        for score, function in job.scores.items():
            bar.set_description(f"{job.folder.name}, {score}")
            began = time.perf_counter()
            entries, errors = function(model, passages)
            seconds = time.perf_counter() - began
            about = {**job.about, "seconds": seconds, "identity": identity[score]}
            if math.isfinite(peak := peak_memory(device)):  # on Windows' CPU it is not
                about["peak_GiB"] = peak
            analysis = with_score(analysis, score, entries, errors, about)
            write_json(job.out / "analysis.json", analysis)


def with_score(analysis, score, entries, errors, about):
    """The analysis with one score more, or anew."""
    others = analysis.get("standard_errors", {})
    kept = {name: error for name, error in others.items() if name not in entries}
    measured = {**analysis.get("measured", {}), score: about}
    return {**analysis, **entries, "measured": measured, "standard_errors": kept | errors}


def description(model, folder):
    config = model.hf.config
    return {
        "name": folder.resolve().name,
        "architecture": type(model.hf).__name__,
        "kind": config.model_type,
        "n_layer": model.config.n_layer,
        "n_embd": model.config.n_embd,
        "vocab_size": model.config.vocab_size,
        "parameters": sum(parameter.numel() for parameter in model.hf.parameters()),
    }


# Remove and keep ---------------------------------------------------------------------------------


def stretch_of(text, L):
    """The blocks "20-25", or "20" alone, counted from 1, as numbers from 0. Raises BadInput."""
    found = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
    first, last = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not 1 <= first <= last <= L or last - first + 1 == L:
        raise BadInput(
            f"--remove {text} must name blocks such as 20-25, from 1 to the model's {L}, not all"
        )
    return set(range(first - 1, last))


@torch.no_grad()
def worth_of(model, passages, n_times=3):
    """{"blocks", "loss" in nats a token, "tokens/s" of the model's own forward pass, "GiB" of its
    weights}."""
    loss = losses_by_position(model, passages.idx, passages.targets).mean().item()
    idx = next(chunks(model, passages.idx))[0]
    seconds = []
    for _ in range(n_times):
        began = time.perf_counter()
        model(idx)[0].sum().item()  # waits for the device
        seconds.append(time.perf_counter() - began)
    return {
        "blocks": model.config.n_layer,
        "loss": loss,
        "tokens/s": idx.numel() / sorted(seconds)[n_times // 2],
        "GiB": bytes_of_weights(model) / GIB,
    }


def remove_and_save(folder, arguments, device):
    """Save the model without some blocks, once the saved one says what it should, and print what
    both are worth."""
    target = arguments.save
    if target.exists():
        raise BadInput(f"--save {target} exists already: delete it, or name another folder")
    config = read_config(folder)
    dtype = getattr(torch, arguments.dtype)
    removed = stretch_of(arguments.remove, config.get_text_config().num_hidden_layers)
    tokenizer = load_tokenizer(folder)
    passages = read_passages(config, tokenizer, arguments, device, folder).to(device)
    model, _ = load_decoder(folder, dtype, device)
    refuse_unlike_itself(model, passages.idx, folder)
    before = worth_of(model, passages)
    kept = [block for l, block in enumerate(model.blocks) if l not in removed]
    with torch.no_grad():
        wanted = model.read_out(run_blocks(kept, model.embed(passages.idx[:1])))
    temporary = target.with_name(f"{target.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        save_without(model, removed, temporary)
        tokenizer.save_pretrained(temporary)
        del model
        shorter = loaded_like(temporary, dtype, device, passages.idx[:1], wanted)
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    say(comparison(before, worth_of(shorter, passages), target, arguments.remove))


def loaded_like(folder, dtype, device, idx, wanted):
    """The saved model, if it loads and says what the blocks that it keeps said."""
    sentence = (
        "this architecture tells its layers apart by their number, so that transformers cannot "
        "describe it without some of them: nothing was saved"
    )
    try:
        model, _ = load_decoder(folder, dtype, device)
    except BadInput as error:
        raise BadInput(f"{sentence} ({error})") from None
    with torch.no_grad():
        if not decoder.alike(wanted, model(idx)[0]):
            raise BadInput(sentence)
    return model


def comparison(before, after, target, removed):
    lines = [f"{target} holds the model without blocks {removed}:"]
    for name, was in before.items():
        now = after[name]
        change = f"({now / was - 1:+.1%})"
        lines.append(f"  {name:9}{readable(was):>12} -> {readable(now):>12}  {change}")
    return "\n".join(lines)


def readable(number):
    """0.0001234, 3.802, 9,883, 1,234,567: four digits, or every digit before the point."""
    return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.4g}"


# Command line ------------------------------------------------------------------------------------


def score_and_report(arguments):
    refuse_dashes(arguments)
    device = choose_hardware(TrainConfig()).device
    if arguments.remove or arguments.save:
        if not (arguments.remove and arguments.save and len(arguments.models) == 1):
            raise BadInput("--remove A-B and --save FOLDER go together, with one model")
        with memory_errors_explained(
            f"running {arguments.models[0]}", "lower --sequences or --length"
        ):
            remove_and_save(arguments.models[0], arguments, device)
        return
    names = [
        path.stem if path.suffix == ".json" else path.resolve().name for path in arguments.models
    ]
    if twice := {name for name in names if names.count(name) > 1}:
        raise BadInput(f"two models are called {min(twice)}: give their folders different names")
    analyses = {}
    for path in arguments.models:
        if path.suffix == ".json":
            folder, analysis = path.with_suffix(""), read_analysis(path)
        else:
            folder = score_model(path, arguments, device)
            analysis = read_analysis(folder / "analysis.json")
        if arguments.publish:
            folder = arguments.publish / "pretrained" / folder.name
            analysis = publish(analysis, folder.with_name(f"{folder.name}.json"))
        report_model(folder, analysis)
        analyses[folder.name] = analysis
    if len(analyses) > 1:
        report_models(folder.parent, analyses)


def scores_of(text):
    return text.split(",")


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("models", nargs="+", type=Path, help="Hugging Face folders, or published .json files")
    text_help = (
        "a text file, or a prepared dataset's folder (default data/books): its held-out part"
    )
    add("--text", type=Path, default=read.DATA / "books", help=text_help)
    sequences_help = f"sequences to score on (default {SEQUENCES}; {CPU_SEQUENCES} without a GPU)"
    add("--sequences", type=at_least_1, help=sequences_help)
    add("--length", type=at_least_1, help=f"tokens in each (default {LENGTH})")
    scores_help = f"some of {','.join(SCORES)},choices,task,blimp (default: all)"
    add("--scores", type=scores_of, help=scores_help)
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="of weights and stream")
    add("--task", type=Path, help='a JSONL of {"context", "choices", "answer"}')
    add("--blimp", type=Path, help="pairs of sentences, such as tasks/blimp.jsonl")
    add("--publish", type=Path, help="write pretrained/<model>.json, figures, report there")
    add("--remove", help="blocks, such as 20-25, counted from 1: save the model without them")
    add("--save", type=Path, help="the folder to save it in")
    kept = "the scores that were there stay so, and the same command goes on"
    or_one_sentence(score_and_report, parser.parse_args(argv), stopped=kept)


if __name__ == "__main__":
    main()
