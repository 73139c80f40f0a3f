"""What do all scores of a public model cost on one GPU, in minutes and GiB, by its size?

    python -m results.public_cost [--out results/public_cost.json]

Times one block and one read-out of Llamas of random weights, whatever their number of blocks, and
counts how often pretrained.py runs each. Needs one package more: pip install transformers.
"""

from data import interrupt

if __name__ == "__main__":
    interrupt.before_imports()

import argparse
import math
from pathlib import Path
from typing import NamedTuple

import torch

from configs.read import TrainConfig
from data.files import BadInput, or_one_sentence, say, write_json
from pretrained import FIT_TOKENS, GIB, LENGTH, SEQUENCES, memory_needed, time_parts
from results.runs import rounded
from stream_scores import work
from train import choose_hardware, device_name, memory_said

TIMED_BLOCKS = 2  # as many as are built: all blocks of a model have the same shape
DTYPES = ("float32", "bfloat16")


class Shape(NamedTuple):
    """Of a Llama."""

    n_layer: int
    n_embd: int
    hidden: int  # of the feed-forward
    n_head: int
    n_kv_head: int
    vocab_size: int


SHAPES = {
    "135M (SmolLM2)": Shape(30, 576, 1536, 9, 3, 49_152),
    "1B (Llama 3.2)": Shape(16, 2048, 8192, 32, 8, 128_256),
    "7B (Llama 2)": Shape(32, 4096, 11_008, 32, 32, 32_000),
}


def random_llama(shape, dtype, device):
    """A Decoder of TIMED_BLOCKS blocks."""
    try:
        from transformers import LlamaConfig, LlamaForCausalLM
    except ModuleNotFoundError:
        raise BadInput("this needs transformers: pip install transformers") from None
    from decoder import Decoder

    config = LlamaConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.n_embd,
        intermediate_size=shape.hidden,
        num_hidden_layers=TIMED_BLOCKS,
        num_attention_heads=shape.n_head,
        num_key_value_heads=shape.n_kv_head,
    )
    with torch.device(device):
        return Decoder(LlamaForCausalLM(config).to(dtype))


def cost(shape, dtype, device, n_sequences, length):
    """A row of public_cost.json: what SEQUENCES of LENGTH would take, from times of n_sequences of
    length."""
    model = random_llama(shape, dtype, device)
    idx = torch.randint(shape.vocab_size, (n_sequences, length), device=device)
    with torch.no_grad():
        block, read_out = (LENGTH / length * s for s in time_parts(model, idx))
    n_fit = math.ceil(FIT_TOKENS * shape.n_embd / LENGTH)
    runs = work(shape.n_layer, shape.n_embd, SEQUENCES, n_fit)
    seconds = {score: block * a + read_out * b for score, (a, b) in runs.items()}
    n_parameters = sum(p.numel() for p in model.hf.parameters())
    one_block = sum(p.numel() for p in model.blocks[0].parameters())
    n_parameters += (shape.n_layer - TIMED_BLOCKS) * one_block
    model.config.n_layer = shape.n_layer
    n_tokens = LENGTH * max(SEQUENCES, n_fit)
    return {
        "parameters": n_parameters,
        "milliseconds_block": 1000 * block,
        "milliseconds_read_out": 1000 * read_out,
        "minutes": sum(seconds.values()) / 60,
        "minutes_by_score": {score: value / 60 for score, value in seconds.items()},
        "GiB": memory_needed(model.config, n_tokens, n_parameters, dtype) / GIB,
    }


def measure(arguments):
    device = choose_hardware(TrainConfig()).device
    torch.set_float32_matmul_precision("high")  # as pretrained.py has it on a GPU
    rows = {}
    for name, shape in SHAPES.items():
        for dtype in DTYPES:
            with memory_said(f"{name} in {dtype}", cure="a larger GPU is needed"):
                size = (arguments.sequences, arguments.length)
                row = cost(shape, getattr(torch, dtype), device, *size)
            rows[f"{name}, {dtype}"] = row
            say(f"{name}, {dtype}: {row['minutes']:.3g} minutes, {row['GiB']:.3g} GiB")
    measured = {
        "device": device_name(device),
        "torch": torch.__version__,
        "sequences": SEQUENCES,
        "length": LENGTH,
        "models": rows,
    }
    write_json(arguments.out, rounded(measured, digits=4))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("results/public_cost.json"))
    parser.add_argument("--sequences", type=int, default=SEQUENCES, help="timed at once")
    parser.add_argument("--length", type=int, default=LENGTH, help="of each, in tokens")
    or_one_sentence(measure, parser.parse_args())


if __name__ == "__main__":
    main()
