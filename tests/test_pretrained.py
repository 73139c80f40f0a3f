"""pretrained.py: from a Hugging Face folder to scores, figures and report, score by score; a model
without some blocks; and every bad input in one sentence."""

import json
import math
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import decoder
import pretrained
from conftest import REPOSITORY, as_if_trained, write_data
from data.files import BadInput

transformers = pytest.importorskip(
    "transformers", reason="public models need it: pip install transformers"
)
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors  # noqa: E402

SEQUENCES, LENGTH = 2, 10
FEW = ("--sequences", SEQUENCES, "--length", LENGTH)
TEXT = "It was a dark and stormy night; the rain fell in torrents, except at odd intervals. " * 12


def write_model(folder, n_layer=4, bos=False, **options):
    """A random Llama's Hugging Face folder, whose tokens are bytes; bos: put before every text."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=258,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=n_layer,
        num_attention_heads=2,
        max_position_embeddings=64,
        bos_token_id=256,
        eos_token_id=257,
        **options,
    )
    hf = transformers.LlamaForCausalLM(config)
    as_if_trained(hf, 8)
    hf.save_pretrained(folder)
    write_tokenizer(folder, bos)
    return folder


def write_tokenizer(folder, bos):
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: i for i, letter in enumerate(letters)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 256)]
        )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)


@pytest.fixture
def workplace(project):
    """A working folder with a model, llama, a text, mine.txt, and a dataset, data/tiny."""
    write_model(project / "llama")
    (project / "mine.txt").write_text(TEXT, encoding="utf-8")
    item = {"context": "the rain fell", "choices": [" in torrents", " up", "x", "y"], "answer": 0}
    (project / "items.jsonl").write_text(f"{json.dumps(item)}\n" * 3, encoding="utf-8")
    pair = {"paradigm": "night", "good": "It was a dark night.", "bad": "It were a dark night."}
    (project / "pairs.jsonl").write_text(f"{json.dumps(pair)}\n" * 3, encoding="utf-8")
    return project


def run(*arguments):
    pretrained.main([str(argument) for argument in arguments])


def score(*arguments):
    run("llama", "--text", "mine.txt", *FEW, *arguments)
    return analysis_of("llama")


def analysis_of(name):
    with open(f"out/pretrained/{name}/analysis.json", encoding="utf-8") as file:
        return json.load(file)


# The whole way -----------------------------------------------------------------------------------


def test_from_a_folder_to_scores_figures_and_report(workplace, capsys):
    analysis = score("--task", "items.jsonl", "--blimp", "pairs.jsonl")
    assert list(analysis["measured"]) == [*pretrained.SCORES, "task", "blimp"]
    for how in analysis["measured"].values():
        assert (how["sequences"], how["length"]) == (SEQUENCES, LENGTH)
        assert how["seconds"] > 0 and how["dtype"] == "float32" and how["text"] == "mine.txt"
    folder = workplace / "out/pretrained/llama"
    report = (folder / "report.md").read_text(encoding="utf-8")
    figures = {path.stem for path in folder.glob("*.png")}
    assert figures == {
        "overview", "positions", "updates", "removal", "linear", "jacobian", "matrices",
    }  # fmt: skip
    assert all(f"![{figure}]({figure}.png)" in report for figure in figures)
    assert "LlamaForCausalLM of 4 blocks" in report and "densities" in report
    said = capsys.readouterr().out
    assert "on 2 sequences of 10 tokens take about" in said and "up to 0.1 GiB here" in said


def test_memory_that_the_system_does_not_say_is_left_out(workplace, monkeypatch):
    monkeypatch.setattr(pretrained, "peak_memory", lambda _: math.nan)
    analysis = score("--scores", "loss")
    assert analysis["measured"]["loss"].keys() >= {"seconds", "identity"}
    assert "peak_GiB" not in analysis["measured"]["loss"]


def test_the_loss_is_the_model_s_own(workplace):
    """By transformers alone, on the windows that the text has."""
    analysis = score("--scores", "loss")
    ids = list(TEXT.encode())
    windows = [ids[start : start + LENGTH + 1] for start in range(0, len(ids) - LENGTH, LENGTH + 1)]
    chosen = np.linspace(0, len(windows[0::2]) - 1, SEQUENCES).astype(int)
    letters = sorted(pretrained.load_tokenizer("llama").get_vocab().items(), key=lambda x: x[1])
    byte_of = {letter: i for letter, i in letters}
    alphabet = dict(zip(sorted(pre_tokenizers.ByteLevel.alphabet()), range(256), strict=True))
    assert byte_of.items() >= alphabet.items()
    hf = transformers.AutoModelForCausalLM.from_pretrained("llama").eval()
    losses = []
    for place in chosen:
        text = bytes(windows[0::2][place]).decode()
        row = torch.tensor([[alphabet["Ġ" if letter == " " else letter] for letter in text]])
        with torch.no_grad():
            losses.append(hf(row, labels=row).loss.item())
    assert analysis["loss"] == pytest.approx(np.mean(losses), rel=1e-5)


def test_what_is_scored_is_not_scored_again(workplace, monkeypatch):
    score("--scores", "loss,removal")
    before = (workplace / "out/pretrained/llama/analysis.json").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(pretrained, "load_decoder", lambda *_: pytest.fail("the model was loaded"))
        score("--scores", "removal,loss")
    assert (workplace / "out/pretrained/llama/analysis.json").read_bytes() == before


@pytest.mark.parametrize("change", ["text", "length", "weights", "precision"])
def test_what_changed_is_scored_again(workplace, change):
    before = score("--scores", "loss")
    if change == "text":
        (workplace / "mine.txt").write_text(TEXT.upper(), encoding="utf-8")
    if change == "weights":
        write_model(workplace / "llama", rms_norm_eps=0.1)
    more = {"length": ("--length", 12), "precision": ("--dtype", "bfloat16")}.get(change, ())
    after = score("--scores", "loss", *more)
    assert after["loss"] != before["loss"]
    assert after["measured"]["loss"]["identity"] != before["measured"]["loss"]["identity"]


def test_a_stop_loses_no_score_that_was_there(workplace, monkeypatch, capsys):
    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stopped:
        patch.setitem(pretrained.SCORES, "removal", stop)
        score("--scores", "loss,stream,removal")
    assert stopped.value.code == 130 and "stay so" in capsys.readouterr().err
    assert list(analysis_of("llama")["measured"]) == ["loss", "stream"]
    done = analysis_of("llama")
    after = score("--scores", "loss,stream,removal")
    assert list(after["measured"]) == ["loss", "stream", "removal"]
    assert after["measured"]["stream"] == done["measured"]["stream"]


def test_few_scores_make_few_figures(workplace):
    score("--scores", "stream")
    folder = workplace / "out/pretrained/llama"
    assert {path.stem for path in folder.glob("*.png")} == {"overview", "positions", "updates"}
    assert "removal" not in (folder / "report.md").read_text(encoding="utf-8")


def test_bfloat16_warns(workplace, capsys):
    score("--scores", "loss", "--dtype", "bfloat16")
    assert "keeps 8 bits of every number" in capsys.readouterr().out
    assert analysis_of("llama")["measured"]["loss"]["dtype"] == "bfloat16"


def test_several_models_stand_side_by_side(workplace):
    write_model(workplace / "deeper", n_layer=6)
    scores = ("--scores", "stream,removal,similarity")
    run("llama", "deeper", "--text", "mine.txt", *FEW, *scores)
    assert (workplace / "out/pretrained/side_by_side.png").exists()
    assert analysis_of("deeper")["model"]["n_layer"] == 6
    assert len(analysis_of("deeper")["prune_ratios"]) == 6


def test_what_is_published_draws_the_same_without_the_model(workplace):
    score("--scores", "stream,removal,similarity", "--publish", "results")
    published = workplace / "results/pretrained"
    report = (published / "llama/report.md").read_text(encoding="utf-8")
    assert not (workplace / "out/pretrained/llama/report.md").exists()
    shutil.rmtree(workplace / "llama")
    shutil.rmtree(published / "llama")
    run("results/pretrained/llama.json")
    assert (published / "llama/report.md").read_text(encoding="utf-8") == report
    assert (published / "llama/overview.png").exists()
    content = (published / "llama.json").read_text(encoding="utf-8")
    assert str(workplace) not in content


def test_memory_is_weights_states_logits_and_maps():
    """Of 3 blocks 8 wide: 4 states, 32 numbers a token, and a vocabulary of 10."""
    config = SimpleNamespace(n_layer=3, n_embd=8, vocab_size=10)
    a_token = 4 * (32 + 4 * 10) + 2 * 8 * 32
    maps = 8 * 3 * (8 * 8 + 16 * 16)
    needed = pretrained.memory_needed(config, 100, 1000, torch.float32)
    assert needed == 4 * 1000 + 100 * a_token + maps
    assert pretrained.memory_needed(config, 100, 1000, torch.bfloat16) == needed - 2 * 1000
    most = pretrained.memory_needed(config, 10**12, 1000, torch.float32)
    assert most == 4 * 1000 + 2**15 * a_token + maps


# Text --------------------------------------------------------------------------------------------


def test_the_held_out_part_of_a_dataset_is_read_as_text(workplace):
    tokens = np.array([*b"One day.", 256, *b"And another.", 256], dtype=np.uint16)
    folder = workplace / "data/words"
    write_data(folder)
    tokens.tofile(folder / "val.bin")
    assert pretrained.text_of(folder).split() == ["One", "day.", "And", "another."]


def test_a_dataset_brings_its_choices(workplace):
    shutil.copy("items.jsonl", "data/tiny/choices.jsonl")
    run("llama", "--text", "data/tiny", *FEW, "--scores", "choices,loss")
    analysis = analysis_of("llama")
    assert analysis["choices"]["items"] == 3 and analysis["choices"]["file"] == "choices.jsonl"
    assert analysis["measured"]["loss"]["text"] == "data/tiny"


@pytest.mark.parametrize("bos", [True, False])
def test_bos_stands_where_the_tokenizer_puts_it(workplace, bos, monkeypatch):
    write_model(workplace / "llama", bos=bos)
    seen, score_loss = [], pretrained.SCORES["loss"]

    def note(model, passages):
        seen.append(passages)
        return score_loss(model, passages)

    monkeypatch.setitem(pretrained.SCORES, "loss", note)
    score("--scores", "loss")
    (passages,) = seen
    for rows in (passages.idx, passages.fit_idx):
        assert bool((rows[:, 0] == 256).all()) == bos and not (rows[:, 1:] == 256).any()
    assert not (passages.targets == 256).any() and passages.idx.shape == (SEQUENCES, LENGTH)
    assert analysis_of("llama")["measured"]["loss"]["begins_with_bos"] == bos


def test_tasks_are_read_behind_bos(workplace):
    """The likelihoods are those of the model's own logits with the token before the text."""
    write_model(workplace / "llama", bos=True)
    model, tokenizer = decoder.load_decoder("llama")
    reader = pretrained.BehindBeginning(model, 256)
    ids = torch.tensor(pretrained.encoder_of(tokenizer)("a dark night"))[None]
    whole = torch.tensor(tokenizer("a dark night").input_ids)[None]
    assert whole[0, 0] == 256 and torch.equal(whole[:, 1:], ids)
    with torch.no_grad():
        assert torch.equal(reader(ids)[0], model.hf(whole).logits[:, 1:])


# Remove and keep ---------------------------------------------------------------------------------


def test_a_model_without_some_blocks_is_saved_and_told(workplace, capsys):
    run("llama", "--text", "mine.txt", *FEW, "--remove", "2-3", "--save", "shorter")
    said = capsys.readouterr().out
    before, whole = decoder.load_decoder("llama")[0], decoder.load_decoder("shorter")[0]
    assert whole.config.n_layer == 2
    run("shorter", "--text", "mine.txt", *FEW, "--scores", "loss")
    run("llama", "--text", "mine.txt", *FEW, "--scores", "loss,stretches")
    told = [line.split() for line in said.splitlines() if "->" in line]
    told = {line[0]: tuple(float(line[i].replace(",", "")) for i in (1, 3)) for line in told}
    assert told.keys() == {"blocks", "loss", "tokens/s", "GiB"}
    assert told["blocks"] == (4, 2)
    losses = (analysis_of("llama")["loss"], analysis_of("shorter")["loss"])
    assert told["loss"] == pytest.approx(losses, rel=1e-3)
    sizes = [sum(p.numel() for p in model.hf.parameters()) * 4 for model in (before, whole)]
    assert told["GiB"] == pytest.approx([size / 2**30 for size in sizes], rel=1e-3)
    if len(analysis_of("llama")["stretches"]) > 1:
        ratio = analysis_of("llama")["stretches"][1][1]
        assert losses[1] / losses[0] == pytest.approx(ratio, rel=1e-4)


def test_what_a_shorter_model_is_worth_is_told_without_exponents():
    before = {"blocks": 30, "loss": 3.80249, "tokens/s": 9882.7, "GiB": 0.00012344}
    after = {"blocks": 28, "loss": 4.18274, "tokens/s": 1234567.4, "GiB": 0.00010001}
    title, *lines = pretrained.comparison(before, after, "shorter", "8-9").splitlines()
    assert title == "shorter holds the model without blocks 8-9:"
    assert [line.split() for line in lines] == [
        ["blocks", "30", "->", "28", "(-6.7%)"],
        ["loss", "3.802", "->", "4.183", "(+10.0%)"],
        ["tokens/s", "9,883", "->", "1,234,567", "(+12392.2%)"],
        ["GiB", "0.0001234", "->", "0.0001", "(-19.0%)"],
    ]


def test_an_architecture_that_numbers_its_layers_is_not_saved(workplace, refused, monkeypatch):
    """Where what was saved says something else than the blocks that stayed, it goes."""

    def other(model, removed, folder):
        decoder.save_without(model, {0, 1}, folder)

    monkeypatch.setattr(pretrained, "save_without", other)
    sentence = refused_with(refused, "llama", "--remove", "2-3", "--save", "shorter")
    assert "nothing was saved" in sentence
    assert not (workplace / "shorter").exists() and not (workplace / "shorter.tmp").exists()


@pytest.mark.parametrize("text", ["0", "3-2", "4-5", "1-4", "two", "1-", "-1"])
def test_blocks_that_are_not_there_are_refused(text):
    with pytest.raises(BadInput, match="from 1 to the model's 4, not all"):
        pretrained.stretch_of(text, 4)


def test_blocks_are_counted_from_1():
    assert pretrained.stretch_of("2-3", 4) == {1, 2} and pretrained.stretch_of("4", 4) == {3}


# Bad input ---------------------------------------------------------------------------------------


def refused_with(refused, *arguments):
    return refused(pretrained.main, [*arguments, "--text", "mine.txt", *FEW])


BAD = {  # arguments: what the sentence must say
    ("nowhere",): "nowhere is no folder",
    ("nowhere.json",): "nowhere.json: No such file",
    ("mine.txt",): "mine.txt is no folder",
    ("llama", "llama"): "two models are called llama",
    ("llama", "--scores", "loss,beauty"): "--scores beauty: there is none of this name",
    ("llama", "--scores", "blimp"): "--scores blimp: there is none of this name here",
    ("llama", "--length", "65"): "--length 65 must lie between 2 and the model's 64 tokens",
    ("llama", "--length", "1"): "--length 1 must lie between 2 and the model's 64 tokens",
    ("llama", "--sequences", "500"): "too few for 500 sequences of 10",
    ("llama", "--text", "empty.txt"): "the text has 0 tokens",
    ("llama", "--text", "none.txt"): "there is no none.txt",
    ("llama", "--text", "data"): "data is no prepared dataset",
    ("llama", "--task", "none.jsonl"): "none.jsonl: No such file",
    ("llama", "--remove", "2"): "--remove A-B and --save FOLDER go together",
    ("llama", "--save", "other"): "--remove A-B and --save FOLDER go together",
    ("llama", "--remove", "9", "--save", "other"): "--remove 9 must name blocks",
    ("llama", "--remove", "2", "--save", "llama"): "--save llama exists already",
    ("llama", "--dtype", "int8"): "",
}


@pytest.mark.parametrize("arguments", BAD, ids=" ".join)
def test_bad_input_is_one_sentence_and_writes_nothing(workplace, refused, arguments, monkeypatch):
    (workplace / "empty.txt").write_text("", encoding="utf-8")
    before = sorted(workplace.rglob("*"))
    if arguments[-2:] == ("--dtype", "int8"):  # argparse's own, which also shows the usage
        with pytest.raises(SystemExit):
            run(*arguments)
        return
    sentence = refused(pretrained.main, ["--text", "mine.txt", *FEW, *arguments])
    assert BAD[arguments] in sentence
    assert sorted(workplace.rglob("*")) == before


def test_without_transformers_the_sentence_says_how_to_install_it(workplace, refused, monkeypatch):
    monkeypatch.setattr(decoder, "transformers", None)
    assert "pip install transformers" in refused_with(refused, "llama")


def test_too_little_memory_is_one_sentence(workplace, refused, monkeypatch):
    monkeypatch.setattr(pretrained, "memory_of", lambda _: 1000)
    assert "choose a smaller model, or --dtype=bfloat16" in refused_with(refused, "llama")


def test_memory_that_runs_out_is_one_sentence(workplace, refused, monkeypatch):
    def too_much(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setitem(pretrained.SCORES, "removal", too_much)
    sentence = refused_with(refused, "llama", "--scores", "loss,removal")
    assert "lower --sequences or --length" in sentence
    assert list(analysis_of("llama")["measured"]) == ["loss"]


def test_the_tokenizer_of_another_model_is_refused(workplace, refused):
    hf = transformers.AutoModelForCausalLM.from_pretrained("llama")
    hf.resize_token_embeddings(40)
    hf.save_pretrained("llama")
    assert "that of another model" in refused_with(refused, "llama")


def test_a_model_that_reads_more_than_the_stream_is_refused(workplace, refused, monkeypatch):
    monkeypatch.setattr(decoder, "alike", lambda *_: False)
    assert "read more than the stream" in refused_with(refused, "llama")
    assert not (workplace / "out/pretrained/llama/analysis.json").exists()


def test_a_damaged_analysis_is_one_sentence(workplace, refused):
    score("--scores", "removal")
    path = workplace / "out/pretrained/llama/analysis.json"
    path.write_text(path.read_text().replace('"prune_ratios": [', '"prune_ratios": ["x",'))
    assert "prune_ratios[0]" in refused_with(refused, "llama", "--scores", "removal")


def test_the_warning_of_bfloat16_is_what_was_measured():
    """Largest changes in percent, to one digit."""
    folder = REPOSITORY / "results/pretrained"
    files = ("SmolLM2-135M-Instruct.json", "SmolLM2-135M-Instruct-bfloat16.json")
    exact, rough = (json.loads((folder / file).read_text(encoding="utf-8")) for file in files)
    changed = [
        (exact["prune_ratios"], rough["prune_ratios"]),
        (exact["variance"]["without_first"], rough["variance"]["without_first"]),
        (exact["variance"]["first"], rough["variance"]["first"]),
    ]
    percent = [100 * np.abs(np.divide(after, before) - 1).max() for before, after in changed]
    said = re.findall(r"([\d.]+) %", pretrained.BF16_WARNING)
    assert [float(number) for number in said] == [float(f"{each:.1g}") for each in percent]
