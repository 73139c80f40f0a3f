"""What do all scores of a public model cost on one GPU, in minutes and GiB, by its size?

    python -m results.public_cost             measures, on a GPU
    python -m results.public_cost --again     counts anew from the file's times, on any machine

Writes results/public_cost.json. Times a block and a read-out of Llamas of random weights, and
counts how often pretrained.py runs each: no model is scored whole. Needs one package more: pip
install transformers.
"""

from data import interrupt

if __name__ == "__main__":
    interrupt.before_imports()

import argparse
import math
import statistics
from pathlib import Path
from typing import NamedTuple

import torch

import decoder
from configs.read import TrainConfig
from data.files import BadInput, Number, or_one_sentence, read_json, say, write_json
from hardware import GIB, choose_hardware, device_name, memory_errors_explained
from pretrained import FIT_TOKENS, LENGTH, SEQUENCES, memory_needed, time_parts
from results.runs import rounded
from stream_scores import runs_of_scores

TIMED_BLOCKS = 4  # as many are built: all blocks of a model have the same shape
N_TIMES = 5
DTYPES = ("float32", "bfloat16")
DIGITS = 4


class Shape(NamedTuple):
    """Of a Llama."""

    n_layer: int
    n_embd: int
    hidden: int  # of the feed-forward
    n_head: int
    n_kv_head: int
    vocab_size: int
    tied: bool  # whether the read-out is the embedding


SHAPES = {  # by the models' config.json
    "135M (SmolLM2)": Shape(30, 576, 1536, 9, 3, 49_152, tied=True),
    "1B (Llama 3.2)": Shape(16, 2048, 8192, 32, 8, 128_256, tied=True),
    "7B (Llama 2)": Shape(32, 4096, 11_008, 32, 32, 32_000, tied=False),
}


MODELS = {f"{name}, {dtype}": (shape, dtype) for name, shape in SHAPES.items() for dtype in DTYPES}


def llama_config(shape):
    """transformers' own. Raises BadInput where that is not installed."""
    decoder.refuse_without_transformers()
    return decoder.transformers.LlamaConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.n_embd,
        intermediate_size=shape.hidden,
        num_hidden_layers=shape.n_layer,
        num_attention_heads=shape.n_head,
        num_key_value_heads=shape.n_kv_head,
        tie_word_embeddings=shape.tied,
    )


# Measure -----------------------------------------------------------------------------------------


def time_model(shape, dtype, device):
    """Seconds of a block and of a read-out, for a sequence of LENGTH each: medians."""
    config = llama_config(shape._replace(n_layer=TIMED_BLOCKS))
    with torch.device(device):
        hf = decoder.transformers.LlamaForCausalLM(config).to(dtype)
        model = decoder.Decoder(hf)
    idx = torch.randint(shape.vocab_size, (SEQUENCES, LENGTH), device=device)
    times = [time_parts(model, idx) for _ in range(N_TIMES)]
    return [statistics.median(of_part) for of_part in zip(*times, strict=True)]


def measure_all():
    """The content of public_cost.json."""
    device = choose_hardware(TrainConfig()).device
    torch.set_float32_matmul_precision("high")  # as pretrained.py scores
    rows = {}
    for name, (shape, dtype) in MODELS.items():
        with memory_errors_explained(name, cure="a larger GPU is needed"):
            times = time_model(shape, getattr(torch, dtype), device)
        rows[name] = row = count(shape, dtype, *times)
        say(f"{name}: {row['minutes']:.3g} minutes, {row['GiB']:.3g} GiB")
    return {
        "device": device_name(device),
        "torch": torch.__version__,
        "transformers": decoder.transformers.__version__,
        "sequences": SEQUENCES,
        "length": LENGTH,
        "models": rows,
    }


# Count -------------------------------------------------------------------------------------------


def count(shape, dtype, block, read_out):
    """A row of public_cost.json, from the seconds of a block and of a read-out: what all scores of
    SEQUENCES sequences of LENGTH tokens take, as pretrained.py announces them on a GPU."""
    n_fit = max(SEQUENCES, math.ceil(FIT_TOKENS * shape.n_embd / LENGTH))
    runs = runs_of_scores(shape.n_layer, shape.n_embd, SEQUENCES, n_fit)
    minutes = {
        score: (block * n_blocks + read_out * n_read_outs) / 60
        for score, (n_blocks, n_read_outs) in runs.items()
    }
    n_parameters = decoder.count_parameters(llama_config(shape))
    memory = memory_needed(shape, LENGTH * n_fit, n_parameters, getattr(torch, dtype))
    return {
        "parameters": n_parameters,
        "milliseconds_block": 1000 * block,
        "milliseconds_read_out": 1000 * read_out,
        "minutes": sum(minutes.values()),
        "minutes_by_score": minutes,
        "GiB": memory / GIB,
    }


TIMES = {"milliseconds_block": Number(least=0), "milliseconds_read_out": Number(least=0)}


def count_again(path):
    """What the file at path holds, with all counted anew from its times. Raises BadInput."""
    measured = read_json(path, {"models": dict.fromkeys(MODELS, TIMES)})
    if (measured.get("sequences"), measured.get("length")) != (SEQUENCES, LENGTH):
        raise BadInput(f"{path} is not of {SEQUENCES} sequences of {LENGTH}: measure again")
    rows = {}
    for name, of_model in MODELS.items():
        seconds = [measured["models"][name][of_part] / 1000 for of_part in TIMES]
        rows[name] = count(*of_model, *seconds)
    return {**measured, "models": rows}


def run(arguments):
    counted = count_again(arguments.out) if arguments.again else measure_all()
    write_json(arguments.out, rounded(counted, DIGITS))


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("results/public_cost.json"))
    again_help = "count anew from the times that the file has"
    parser.add_argument("--again", action="store_true", help=again_help)
    or_one_sentence(run, parser.parse_args(argv))


if __name__ == "__main__":
    main()
