"""README.md and the pages in results/ against the files there: tables and numbers in prose."""

import json
import math
import re
import shutil
from dataclasses import asdict
from decimal import Decimal

import numpy as np
import pytest

from conftest import REPOSITORY
from data.files import BadInput
from model import GPTConfig
from results import tables
from results.claims import CLAIMS, Verdict
from results.report import after_correction
from results.runs import Run
from results.tables import (
    BENCHED,
    HERE,
    PAGES,
    TABLES,
    change_text,
    filled,
    primary_table,
    two_cells,
    write_tables,
)
from results.verdicts import interval

each_page = pytest.mark.parametrize(
    "page", PAGES, ids=["README", "results/README", "speed", "machines", "theory", "pretrained"]
)


@each_page
def test_tables_are_those_of_the_files(page):
    """Where this fails, python analyze.py results/*.json writes them."""
    assert page.read_text(encoding="utf-8") == filled(page)


def test_every_table_stands_on_a_page():
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert sorted(re.findall("<!-- table: (.*) -->", text)) == sorted(TABLES)
    assert text.count("<!-- table:") == text.count("<!-- end -->")


def cells_of(table):
    """{first cell of a row: its others}"""
    rows = [row.strip("| ").split(" | ") for row in TABLES[table]()[2:]]
    return {first: others for first, *others in rows}


def test_the_bench_is_its_last_turn():
    turns = {point: float(codes[1].split(", ")[-1]) for point, codes in cells_of("turns").items()}
    for point, (speed, *_) in zip(BENCHED, cells_of("speed").values(), strict=True):
        assert float(speed.split()[0]) == pytest.approx(turns[point], abs=0.006)


def test_scores_together_have_the_ratio_that_was_measured():
    ratio = json.loads(read(HERE / "score_speed.json"))["ratio"]
    assert cells_of("scoring")["together"][-1] == f"{ratio:.1f}"


def test_every_sweep_has_a_row_with_its_runs():
    files, once = cells_of("files"), {}
    for path in HERE.rglob("*.json"):
        content = json.loads(read(path))
        if "shared" in content:
            names = [".".join(keys) for keys in content["names"]]
            published = [dict(zip(names, line, strict=True)) for line in content["runs"]]
            for run in published:  # the same seconds to every digit: copied
                seconds = run["summary.seconds"]
                once[seconds] = seconds, run["analysis.seconds"] or 0  # {} where unscored
            n_runs, n_scored, *_ = files.pop(f"`{path.relative_to(HERE).as_posix()}`")
            assert int(n_runs.partition(" of ")[0]) == len(published)
            assert int(n_scored) == sum(run.get("analysis", {}) is not None for run in published)
    n_once, *_, training, scoring = files.pop("each run once")
    assert all(n_runs.startswith("0 of ") for n_runs, *_ in files.values())  # to come
    assert int(n_once) == len(once)
    assert int(training) == round(sum(seconds for seconds, _ in once.values()) / 60)
    assert int(scoring) == round(sum(seconds for _, seconds in once.values()) / 60)


def test_masks_are_compared_from_the_sparsest_to_full_attention():
    patterns = json.loads(read(HERE / "theory_masks.json"))["patterns"]
    rows = [row.strip("| ").split(" | ") for row in TABLES["masks"]()[2:]]
    for name, blocks, ratio, effect, verdict in rows:
        points = sorted(patterns[name]["points"], key=lambda point: point["density"])
        assert points[-1]["density"] == 1
        growths = [np.mean(point["growth"][int(blocks)]) for point in points]
        logs = np.log([point["growth"][int(blocks)] for point in points])
        slope, _ = np.polyfit(range(len(logs)), logs.mean(axis=1), deg=1)
        assert float(ratio) == pytest.approx(growths[0] / growths[-1], abs=0.005)
        assert float(effect.split()[0]) == pytest.approx(slope, abs=1e-3)
        assert (verdict == "supported") <= (slope > 0) and (verdict == "opposed") <= (slope < 0)


def test_the_suites_rate_is_as_good_as_the_best_and_far_cooler():
    """As configs/depth.toml and results/README.md say, of sixteen plain blocks."""
    rates = {
        runs[0].config["learning_rate"]: [run.summary for run in runs]
        for runs in tables.points_of("rates").values()
        if runs[0].config["n_layer"] == 16
    }
    perplexity = {rate: [run["perplexity"] for run in of] for rate, of in rates.items()}
    assert min(perplexity, key=lambda rate: np.mean(perplexity[rate])) == 4e-3
    (mean, half), (best, half_of_best) = (interval(perplexity[rate]) for rate in (2e-3, 4e-3))
    assert mean - best < min(half, half_of_best)
    cool, hot = (np.mean([run["last_layer_variance"] for run in rates[r]]) for r in (2e-3, 4e-3))
    assert round(hot / cool) == 7


# What it takes elsewhere -------------------------------------------------------------------------


@pytest.fixture
def results(tmp_path, monkeypatch):
    """A folder in the place of results/, beside the configs."""
    shutil.copytree(REPOSITORY / "configs", tmp_path / "configs")
    (tmp_path / "results").mkdir()
    monkeypatch.setattr(tables, "HERE", tmp_path / "results")
    return tmp_path / "results"


def test_sweeps_to_come_have_a_row_with_what_they_ask_for(results):
    for name in ("depth", "moe"):
        shutil.copy(HERE / f"{name}.json", results)
    files = cells_of("files")
    to_come = {name for name, (n_runs, *_) in files.items() if n_runs.startswith("0 of ")}
    configs = {path.stem for path in (REPOSITORY / "configs").glob("*.toml")}
    others = {"depth", "moe", "bench", "exercise", "small_gpu"}
    assert to_come == {f"`{name}.json`" for name in configs - others}
    assert files["`half_rate_moe.json`"] == ["0 of 6"]  # two points, three seeds
    assert files["`context.json`"] == ["0 of 18"]


def bench_line(n_layer, speed, memory, device="NVIDIA H100 80GB HBM3"):
    return (
        f"n_layer={n_layer},seed=0  {speed} tokens/s (1 to 2)  first step after 0.9 s  MFU 2.5%  "
        f"memory {memory} GiB  {device}\n"
    )


def test_minutes_on_a_t4_by_hand(results):
    """3050 steps of 64 sequences of 512 tokens, 99,942,400, at 166,571 a second: 10 minutes. At
    most: a T4 has 8.1 of 67 TFLOP/s and 320 of 3350 GB/s, of which the latter is the smaller share;
    104.7 minutes. At least: 8 blocks of width 256 have 4 x 256 x 256 + 3 x 256 x 704 weights each,
    the read-out 8192 x 256, norms 17 x 256, and each weight six operations a token; attention
    12 x 8 x 256 for each of 256.5 keys; 57.5 M in all, so 11.8 minutes at 8.1 TFLOP/s. 8 GB are
    7.4506 GiB."""
    lines = bench_line(8, "166,571", 7.45) + bench_line(32, "16,657", 7.46) + "all 2 points\n"
    (results / "small_gpu.txt").write_text(lines, encoding="utf-8")
    measured = cells_of("small_gpu")
    assert measured["8"] == ["7.45", "yes", "166,571", "10", "12 to 105"]
    assert measured["32"][:4] == ["7.46", "no", "16,657", "100"]
    assert measured["32"][4].endswith(" to 1,047")
    assert "H100" in TABLES["small_gpu"]()[0] and "T4, **estimated**" in TABLES["small_gpu"]()[0]


def test_operations_a_token_by_hand():
    weights = 8 * (4 * 256 * 256 + 3 * 256 * 704) + 8192 * 256 + 17 * 256
    keys = sum(range(1, 513)) / 512
    config = GPTConfig(n_layer=8, n_embd=256, n_head=4, block_size=512, vocab_size=8192)
    assert tables.flops_per_token(config) == 6 * weights + 12 * 8 * 256 * keys


@pytest.mark.parametrize("flops, bandwidth", [(2, 5), (5, 2)])
def test_an_estimate_ends_at_the_larger_ratio(flops, bandwidth):
    measured_on = tables.Card(flops=12e12, bandwidth=1e12)
    other = tables.Card(flops=12e12 / flops, bandwidth=1e12 / bandwidth)
    least, most = tables.on_card(36e12, 10, measured_on, other)
    assert least == pytest.approx(3 * flops) and most == pytest.approx(50)


def test_a_card_of_which_nothing_is_known_is_named(results):
    line = bench_line(8, "166,571", 7.45, device="NVIDIA GeForce RTX 9999")
    (results / "small_gpu.txt").write_text(line, encoding="utf-8")
    with pytest.raises(BadInput, match="RTX 9999.*T4"):
        TABLES["small_gpu"]()


def test_two_gpus_are_compared_with_one(results):
    (results / "two_gpus.txt").write_text(
        "Wall time of 2 and 1:\n\n330.4 s  torchrun --nproc_per_node=1 train.py x --seed=0,1\n"
        "177.6 s  torchrun --nproc_per_node=2 train.py x --seed=2,3\n",
        encoding="utf-8",
    )
    measured = cells_of("two_gpus")
    assert measured["1"] == ["`torchrun --nproc_per_node=1 train.py x --seed=0,1`", "330", "1.00"]
    assert measured["2"] == ["`torchrun --nproc_per_node=2 train.py x --seed=2,3`", "178", "1.86"]


def test_the_cost_of_public_models_names_the_dearest_score(results):
    cost = {
        "milliseconds_block": 0.456,
        "milliseconds_read_out": 12.344,
        "minutes": 1234.5,
        "minutes_by_score": {"loss": 0.5, "linear": 1225.06, "causal": 8.94},
        "GiB": 15.26,
    }
    counted = {"device": "a GPU", "sequences": 3, "length": 7, "models": {"1B, bfloat16": cost}}
    (results / "public_cost.json").write_text(json.dumps(counted), encoding="utf-8")
    row = ["0.456", "12.3", "1,234", "`linear`, 1,225", "15.3"]
    assert cells_of("public_cost") == {"1B, bfloat16": row}
    header = TABLES["public_cost"]()[0]
    assert "on one a GPU" in header and "3 sequences of 7 tokens" in header


@pytest.mark.parametrize(
    "minutes, text", [(0.041, "0.041"), (2, "2.0"), (9.94, "9.9"), (9.96, "10"), (2345.6, "2,346")]
)
def test_minutes_have_two_digits_at_least(minutes, text):
    assert tables.minutes_text(minutes) == text


# Numbers in prose --------------------------------------------------------------------------------

WITH_INTERVAL = re.compile(r"(\d+(?:\.\d+)?) (?:± |\(± )(\d+(?:\.\d+)?)( %)?")


def pairs(text):
    """{(mean, half-width)} of a text, per cent as shares, without signs."""
    return {
        tuple(Decimal(number).scaleb(-2 if percent else 0) for number in numbers)
        for *numbers, percent in WITH_INTERVAL.findall(text)
    }


@each_page
def test_numbers_with_an_interval_stand_in_a_report(page):
    measured = {pair for file in HERE.rglob("*.md") if file != page for pair in pairs(read(file))}
    for name in TABLES:
        measured |= pairs("\n".join(TABLES[name]()))
    assert pairs(read(page)) - measured == set()


def read(file):
    return file.read_text(encoding="utf-8")


# The table of claims ------------------------------------------------------------------------------

CHANGES = [  # metric, effect, half-width, text
    ("last-layer variance", math.log(2), 0.1, "2.00 times (1.81 to 2.21)"),
    ("perplexity", -0.01, 0.002, "0.9900 times (0.9881 to 0.9920)"),
    ("usefulness", -0.1234, 0.045, "-0.123 ± 0.045"),
    ("usefulness", -0.1234, math.inf, "–"),
    ("causal", 0.0, math.log(25), "1.0 times (0.040 to 25)"),  # no ratio is 0
]


@pytest.mark.parametrize("metric, effect, half, text", CHANGES)
def test_changes_are_factors_of_what_is_judged_by_its_logarithm(metric, effect, half, text):
    claim = next(claim for claim in CLAIMS if claim.metric == metric)
    assert change_text(Verdict(claim, "", effect, half, 0.01, 0.01, (3, 3))) == text


CELLS = [(0.04, 0.04, "**opposed**"), (0.04, 0.06, "opposed †"), (0.06, 0.04, "undecided")]


@pytest.mark.parametrize("adjusted, apart, text", CELLS)
def test_verdicts_are_marked_that_need_pooled_spreads(adjusted, apart, text):
    """By p after the correction: of ten primary claims, a tenth of it before."""
    c1 = next(claim for claim in CLAIMS if claim.primary and claim.name == "C1")
    verdict = Verdict(c1, "opposed", 1.0, 0.1, adjusted / 10, apart / 10, (3, 3))
    (stands,) = after_correction({"depth": [verdict]})["depth"]
    assert two_cells(stands)[1] == text


def test_the_table_of_claims_has_all_ten():
    """Those that no sweep speaks to yet stand together in the last row."""
    rows = [row.strip("| ").split(" | ")[0] for row in primary_table()[2:]]
    assert sorted(", ".join(rows).split(", ")) == sorted(f"C{i}" for i in range(1, 11))
    assert {row.count("|") for row in primary_table()} == {7}


RATES = {"half_rate_moe": 1e-3, "moe": 2e-3}
OF_EXPERTS = {"half_rate_moe": {0: 10, 64: 8}, "moe": {0: 10, 16: 7, 64: 5}}  # perplexities


def of_experts(name, n_expert):
    """Three runs, of which the logarithms of the perplexity are 0.03 apart."""
    sweep = {"point": None, "rung": None, "place": 0, "options": ["n_expert", "seed"]}
    config = asdict(GPTConfig(n_expert=n_expert))
    config |= {"weight_decay": 0.1, "learning_rate": RATES[name], "sweep": sweep}
    perplexities = [OF_EXPERTS[name][n_expert] * math.exp(0.03 * step) for step in (-1, 0, 1)]
    return [
        Run(
            "",
            {**config, "seed": seed},
            {"perplexity": perplexity, "last_layer_variance": 1},
            [],
            {"causal": None, "permutation": None},
        )
        for seed, perplexity in enumerate(perplexities)
    ]


def half_rate_rows(monkeypatch, *names):
    def points(name):
        values = OF_EXPERTS[name] if name in names else ()
        return {f"n_expert={value}": of_experts(name, value) for value in values}

    monkeypatch.setattr(tables, "published_points", points)
    rows = [row.strip("| ").split(" | ") for row in TABLES["half_rate"]()[2:]]
    return [row[:4] for row in rows]


NOT_RUN = ["`half_rate_context`, `half_rate_weight_decay`", "not run yet"]
ENDS = ["`moe`", "n_expert=64 over n_expert=0"]


def test_end_points_at_half_the_rate_stand_beside_the_same_at_the_suites(monkeypatch):
    """Of two points of three seeds the half-width is 2.776 x 0.03 sqrt(2/3); of four, with eight
    degrees of freedom, 2.306 x 0.03 sqrt(4/3). Halving the rate leaves the dense ones at 10, and
    makes 8 of 5."""
    *rows, (missing, said, *_) = half_rate_rows(monkeypatch, "half_rate_moe", "moe")
    assert rows == [
        [*ENDS, "0.001", "**0.800 (0.747 to 0.856)**"],
        [*ENDS, "0.002", "**0.500 (0.467 to 0.535)**"],
        [*ENDS, "0.001 over 0.002", "**1.60 (1.48 to 1.73)**"],
        ["`moe`", "n_expert=0", "0.001 over 0.002", "1.000 (0.934 to 1.070)"],
        ["`moe`", "n_expert=64", "0.001 over 0.002", "**1.60 (1.49 to 1.71)**"],
    ]
    assert [missing, said] == NOT_RUN


def test_without_the_suites_rate_half_of_it_stands_alone(monkeypatch):
    (row, (missing, said, *_)) = half_rate_rows(monkeypatch, "half_rate_moe")
    assert row == [*ENDS, "0.001", "**0.800 (0.747 to 0.856)**"]
    assert [missing, said] == NOT_RUN


def test_the_theory_agrees_as_well_as_is_said():
    written = json.loads(read(HERE / "theory.json"))
    (said,) = re.findall(
        r"\((\d+) seeds, (\d+) blocks; they agree within (\d+) %", read(HERE / "theory.md")
    )
    gaps = [
        abs(predicted / simulated - 1)
        for case in written["cases"].values()
        for predicted, simulated in zip(case["predicted"], case["simulated"], strict=True)
    ]
    n_blocks = {len(case["predicted"]) - 1 for case in written["cases"].values()}
    assert (written["seeds"], n_blocks) == (int(said[0]), {int(said[1])})
    assert max(gaps) < int(said[2]) / 100


# Pages -------------------------------------------------------------------------------------------


@pytest.fixture
def page(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "HERE", tmp_path)
    monkeypatch.setattr(tables, "PAGES", (tmp_path / "README.md",))
    monkeypatch.setattr(tables, "TABLES", {"ours": lambda: ["| a |", "|---|"]})
    (tmp_path / "README.md").write_text(
        "before\n\n<!-- table: ours -->\nold\n<!-- end -->\n\nafter ± 1\n", encoding="utf-8"
    )
    return tmp_path / "README.md"


def test_tables_are_put_between_their_marks_alone(page):
    write_tables(page.parent)
    written = "before\n\n<!-- table: ours -->\n| a |\n|---|\n<!-- end -->\n\nafter ± 1\n"
    assert page.read_text(encoding="utf-8") == written
    write_tables(page.parent)
    assert page.read_text(encoding="utf-8") == written


def test_pages_are_left_alone_where_other_sweeps_are_reported(page, tmp_path):
    before = page.read_bytes()
    write_tables(tmp_path / "elsewhere")
    assert page.read_bytes() == before


def test_a_table_that_nobody_makes_is_refused(page):
    page.write_text("<!-- table: theirs -->\n<!-- end -->\n", encoding="utf-8")
    with pytest.raises(BadInput, match="theirs.*ours"):
        write_tables(page.parent)


def test_a_cell_says_how_many_seeds_where_points_have_not_equally_many():
    claim = next(claim for claim in CLAIMS if claim.metric == "exponent")
    some = Verdict(claim, "opposed", -0.1, 0.04, 0.02, 0.2, (1, 3))
    equal = some._replace(n_seeds=(3, 3), p_apart=0.01)
    assert two_cells(some) == ("-0.100 ± 0.040, 1 to 3 seeds", "opposed †")
    assert two_cells(equal) == ("-0.100 ± 0.040", "**opposed**")
    undecided = equal._replace(verdict="undecided", p_apart=0.2)
    assert two_cells(undecided) == ("-0.100 ± 0.040", "undecided")


def test_runs_without_figures_are_judged_once_their_sweep_is_complete(monkeypatch, tmp_path):
    """As one seed of one point would stand in README as a verdict on the claim."""
    shutil.copy(tables.HERE / "depth.json", tmp_path)
    monkeypatch.setattr(tables, "HERE", tmp_path)
    assert tables.judged_by("depth", "moe") == {}
    (tmp_path / "depth").mkdir()
    assert list(tables.judged_by("depth", "moe")) == ["depth"]
