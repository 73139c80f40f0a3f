"""results/public_cost.py: what is counted from measured times, by hand; and the whole command on
Llamas small enough for a CPU."""

import json

import pytest
import torch

import decoder
import pretrained
from conftest import REPOSITORY
from data.files import BadInput
from results import public_cost
from results.public_cost import MODELS, SHAPES, Shape

needs_transformers = pytest.mark.skipif(
    decoder.transformers is None, reason="public models need it: pip install transformers"
)
SMALL = Shape(4, 16, 24, n_head=2, n_kv_head=1, vocab_size=40, tied=True)


@pytest.fixture
def small_models(monkeypatch):
    models = {f"small, {dtype}": (SMALL, dtype) for dtype in ("float32", "bfloat16")}
    monkeypatch.setattr(public_cost, "MODELS", models)
    monkeypatch.setattr(public_cost, "N_TIMES", 1)


# Shapes ------------------------------------------------------------------------------------------


def parameters_by_hand(shape):
    C, kv = shape.n_embd, shape.n_embd // shape.n_head * shape.n_kv_head
    attention = C * C + C * kv + C * kv + C * C
    feed_forward = 3 * C * shape.hidden
    block = attention + feed_forward + 2 * C
    return (1 if shape.tied else 2) * shape.vocab_size * C + shape.n_layer * block + C


@needs_transformers
@pytest.mark.parametrize(
    "name, published",
    [
        ("135M (SmolLM2)", 134_515_008),
        ("1B (Llama 3.2)", 1_235_814_400),
        ("7B (Llama 2)", 6_738_415_616),
    ],
)
def test_shapes_are_those_of_the_models_that_they_name(name, published):
    counted = decoder.count_parameters(public_cost.llama_config(SHAPES[name]))
    assert counted == parameters_by_hand(SHAPES[name]) == published


# Counts ------------------------------------------------------------------------------------------


def runs_by_hand(L, n_probes, n_fit):
    """{score: (block runs, read-outs)} for 32 sequences, from what each score does. Of a pair of
    blocks, or of one block's removal, what runs is the blocks behind it: L / 2 of them, about."""
    pairs = L * L / 2
    removals = 32 * (L + pairs)  # the whole, and once without each block
    return {
        "loss": (32 * L, 32),
        "stream": (32 * L, 0),
        "similarity": (32 * L + 32 * L, 32 * (L + 1) + 32),
        "removal": (removals, 32 * (L + 1)),
        "causal": (removals, 0),
        "linear": (n_fit * L + n_fit * L + 3 * removals, 3 * 32 * (L + 1)),
        "jacobian": (2 * L * n_probes * 3, 0),  # of every twelfth sequence; a gradient is two
        "stretches": (32 * L**3 / 11, 32 * L**2 / 4),
        "permutation": (32 * L**3 / 3, 32 * pairs),
        "cumulative": (32 * (L**3 / 6 + 3 * pairs), 32 * (pairs + 3 * L)),
    }


CASES = [  # width, probes of the Jacobian, sequences to fit on: 20 tokens a feature, 32 at least
    (16, 16, 32),
    (1024, 32, 40),
    (1032, 32, 41),
]


@needs_transformers
@pytest.mark.parametrize("width, n_probes, n_fit", CASES)
def test_minutes_are_runs_times_seconds(width, n_probes, n_fit):
    shape = SMALL._replace(n_embd=width, n_head=2, n_layer=6)
    row = public_cost.count(shape, "float32", block=0.25, read_out=3.0)
    by_hand, total = runs_by_hand(6, n_probes, n_fit), 0.0
    assert row["minutes_by_score"].keys() == by_hand.keys() == pretrained.SCORES.keys()
    for score, (n_blocks, n_read_outs) in by_hand.items():
        seconds = n_blocks * 0.25 + n_read_outs * 3.0
        assert row["minutes_by_score"][score] == pytest.approx(seconds / 60)
        total += seconds
    assert row["minutes"] == pytest.approx(total / 60)
    assert (row["milliseconds_block"], row["milliseconds_read_out"]) == (250, 3000)


@needs_transformers
@pytest.mark.parametrize("dtype, n_bytes", [("float32", 4), ("bfloat16", 2)])
def test_memory_of_7b_by_hand(dtype, n_bytes):
    states, logits = 33 * 4096, 32_000
    n_tokens = 2**30 // (states + 4 * logits)  # at once, fewer than the text has
    cached = n_tokens * (4 * (states + 4 * logits) + 2 * 8 * states)  # float64 twice
    maps = 32 * 8 * (4096 * 4096 + 8192 * 8192)
    row = public_cost.count(SHAPES["7B (Llama 2)"], dtype, block=1.0, read_out=1.0)
    assert row["GiB"] == pytest.approx((6_738_415_616 * n_bytes + cached + maps) / 2**30)


# Times -------------------------------------------------------------------------------------------


@needs_transformers
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_times_are_medians_of_a_model_of_this_shape(monkeypatch, dtype):
    times = iter([(9.0, 1.0), (2.0, 5.0), (4.0, 6.0), (1.0, 7.0), (3.0, 2.0)])
    seen = []

    def time_parts(model, idx):
        seen.append((model, idx))
        return next(times)

    monkeypatch.setattr(public_cost, "time_parts", time_parts)
    dtype, device = getattr(torch, dtype), torch.device("cpu")
    assert public_cost.time_model(SMALL, dtype, device) == [3.0, 5.0]
    (model, idx), *_ = seen
    assert idx.shape == (pretrained.SEQUENCES, pretrained.LENGTH) and idx.max() < SMALL.vocab_size
    weights = list(model.hf.parameters())
    assert {weight.dtype for weight in weights} == {dtype}
    few_blocks = SMALL._replace(n_layer=len(model.blocks))
    assert sum(weight.numel() for weight in weights) == parameters_by_hand(few_blocks)


# The command -------------------------------------------------------------------------------------


def content(path):
    return json.loads(path.read_text(encoding="utf-8"))


@needs_transformers
def test_from_nothing_to_a_file_and_counted_again(small_models, tmp_path, monkeypatch):
    path = tmp_path / "cost.json"
    public_cost.main([f"--out={path}"])
    measured = content(path)
    assert (measured["sequences"], measured["length"]) == (32, 512)
    for row in measured["models"].values():
        assert row["milliseconds_block"] > 0 and row["milliseconds_read_out"] > 0
        assert row["minutes"] == pytest.approx(sum(row["minutes_by_score"].values()), rel=1e-3)
    monkeypatch.setattr(public_cost, "time_model", lambda *_: pytest.fail("it was timed"))
    for row in measured["models"].values():
        row["minutes"] = row["GiB"] = -1
    stale = tmp_path / "stale.json"
    stale.write_text(json.dumps(measured), encoding="utf-8")
    public_cost.main([f"--out={stale}", "--again"])
    for name, row in content(path)["models"].items():
        for number in ("minutes", "GiB", "milliseconds_block", "milliseconds_read_out"):
            assert content(stale)["models"][name][number] == pytest.approx(row[number], rel=1e-3)


def test_without_transformers_one_sentence_says_what_to_install(tmp_path, monkeypatch, refused):
    monkeypatch.setattr(decoder, "transformers", None)
    path = tmp_path / "cost.json"
    assert "pip install transformers" in refused(public_cost.main, [f"--out={path}"])
    assert not list(tmp_path.iterdir())


def of_all(**times):
    return {"sequences": 32, "length": 512, "models": dict.fromkeys(MODELS, times)}


BAD = [  # what the file holds, what the sentence names
    ({"sequences": 32, "length": 512}, "models"),
    (of_all(milliseconds_block=1.0), "milliseconds_read_out"),
    (of_all(milliseconds_block=-1.0, milliseconds_read_out=1.0), "milliseconds_block"),
    (of_all(milliseconds_block=1.0, milliseconds_read_out=1.0) | {"length": 8}, "512"),
]


@pytest.mark.parametrize("held, named", BAD)
def test_a_file_that_cannot_be_counted_again_is_refused(tmp_path, held, named):
    path = tmp_path / "cost.json"
    path.write_text(json.dumps(held), encoding="utf-8")
    with pytest.raises(BadInput, match=f"cost.json.*{named}"):
        public_cost.count_again(path)


def test_memory_that_runs_out_is_one_sentence(small_models, tmp_path, monkeypatch, refused):
    def out_of_memory(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(public_cost, "time_model", out_of_memory)
    message = refused(public_cost.main, [f"--out={tmp_path / 'cost.json'}"])
    assert "small, float32" in message and "larger GPU" in message
    assert not list(tmp_path.iterdir())


@needs_transformers
def test_the_published_file_is_counted_as_now():
    """Where this fails, python -m results.public_cost --again writes it."""
    path = REPOSITORY / "results/public_cost.json"
    published, counted = content(path)["models"], public_cost.count_again(path)["models"]
    assert published.keys() == counted.keys()
    for name, row in counted.items():
        for number in ("parameters", "minutes", "GiB"):
            assert published[name][number] == pytest.approx(row[number], rel=1e-3)
