"""results/public.py: what a report says of numbers whose answer is known by hand."""

import json
import re

import matplotlib.pyplot as plt
import numpy as np
import pytest

from conftest import REPOSITORY
from data.files import BadInput
from results import public

L = 8


def analysis(**changes):
    """Of a model whose stream grows by half a block, and whose blocks 5 and 6 do nothing."""
    ratios = np.array([2.0, 1.4, 1.3, 1.2, 1.01, 1.02, 1.3, 1.6])
    distance = np.abs(np.subtract.outer(np.arange(L + 1), np.arange(L + 1))) / 10
    distance[4:7, 4:7] = 0  # nothing turns between h_4 and h_6
    how = {
        "sequences": 3,
        "length": 16,
        "text": "mine.txt",
        "dtype": "float32",
        "device": "cpu",
        "seconds": 1.25,
        "peak_GiB": 0.5,
    }
    variance = {
        "residual": [*range(100, 101 + L)],
        "median": [2.0] * 8 + [2.5],
        "without_first": (0.5 * 1.5 ** np.arange(L + 1)).tolist(),
        "first": [2.0] * 4 + [5000.0] + [2.0] * 4,
    }
    scores = ("loss", "stream", "similarity", "removal", "stretches", "causal", "jacobian")
    return {
        "model": {
            "name": "llama",
            "architecture": "LlamaForCausalLM",
            "n_layer": L,
            "n_embd": 16,
            "parameters": 12_345_678,
        },
        "measured": {score: how for score in scores},
        "standard_errors": {"loss": 0.0321, "prune_ratios": [0.004] * L},
        "loss": 3.45678,
        "perplexity": 31.7,
        "variance": variance,
        "size": {"block": np.linspace(0.5, 0.4, L).tolist()},
        "cosine": {"block": np.linspace(-0.1, 0.1, L).tolist()},
        "angle": np.linspace(0.3, 0.2, L).tolist(),
        "text": {"by_position": [5.0, 4.0, 3.0], "positions_read": [1, 2, 3]},
        "prune_ratios": ratios.tolist(),
        "stretches": [ratios.tolist(), [3, 3, 3, 1.9, 1.04, 1.5, 3], [4, 4, 4, 4, 1.6, 4]],
        "block_influence": np.linspace(0.4, 0.05, L).tolist(),
        "angular_distance": distance.tolist(),
        "logit_lens": np.linspace(8, 0, L + 1).tolist(),
        "causal_matrix": np.triu(np.full((L, L), 0.25), 1).tolist(),
        "causal": 0.25,
        "jacobian": {
            "deviation": (0.1 * 0.8 ** np.arange(L)).tolist(),
            "per_token": np.linspace(0.2, 0.1, L).tolist(),
            "sequences": 1,
        },
        **changes,
    }


def report(**changes):
    return public.report_text(analysis(**changes), ["variance"])


def test_numbers_stand_with_their_errors():
    assert "| loss (nats a token) | 3.457 ± 0.032 |" in report()
    assert "| perplexity | 31.7 |" in report()
    assert "12 M parameters" in report()
    assert (
        "| causal | 3 sequences of 16 tokens of mine.txt | float32 | cpu | 1.25 | 0.5 |" in report()
    )


def test_growth_is_told_by_block_and_by_its_kind():
    """1.5 ** l is an exponential of l with r² of 1, and less of one as a power."""
    factor, exponential, power = public.fit_of(analysis()["variance"]["without_first"])
    assert factor == pytest.approx(1.5) and exponential == pytest.approx(1) and power < 0.999
    factor, exponential, power = public.fit_of(np.arange(9) ** 2.0)
    assert power == pytest.approx(1) and exponential < 0.999
    assert "grows by a factor of 1.5 a block (r² 1.000 as an exponential" in report()


def test_the_first_position_is_told_of():
    assert "up to 2.5e+03 times that of the median token (at h_4)" in report()


def test_the_jacobian_is_four_fifths_a_block_on():
    assert "0.1 at block 1, 0.021 at block 8; a block on, it is 0.800 times as large" in report()
    rising = {"deviation": [100.0, *(0.1 * 2.0 ** np.arange(7))], "per_token": [1.0] * L}
    assert "and from block 2 on 2.000 times" in report(jacobian=rising)


def test_estimates_say_so():
    deviation = [0.1] * L
    jacobian = {"deviation": deviation, "per_token": deviation, "probes": 32, "sequences": 2}
    errors = {"jacobian": {"deviation": [0.002] * L}}
    text = report(jacobian=jacobian, standard_errors=errors, fitted_on=3200)
    assert (
        "32 random directions, on 2 sequences; its standard error over these directions is 2.0%"
        in text
    )
    assert "fitted on 3,200 other tokens, 200 for each feature" in text
    assert "random directions" not in report()


@pytest.mark.filterwarnings("error")
def test_of_a_model_whose_blocks_do_nothing_all_is_said_and_drawn():
    zeros, states = [0.0] * L, [0.0] * (L + 1)
    nothing = {
        "variance": dict.fromkeys(("residual", "median", "without_first", "first"), states),
        "jacobian": {"deviation": zeros, "per_token": zeros, "probes": 32, "sequences": 2},
        "standard_errors": {"jacobian": {"deviation": zeros}},
        "size": {"block": zeros},
        "cosine": {"block": zeros},
        "angle": zeros,
        "block_influence": zeros,
        "angular_distance": [states] * (L + 1),
        "logit_lens": states,
        "causal_matrix": [zeros] * L,
        "causal": 0.0,
        "prune_ratios": [1.0] * L,
        "stretches": [[1.0] * (L - n) for n in range(3)],
    }
    text = report(**nothing)
    assert "it grows by a factor of 1 a block (r² 1.000 as an exponential of l, 1.000" in text
    assert "it is 1.000 times as large on average" in text and "is 0.0% of it" in text
    for figure in public.draw_figures(analysis(**nothing)).values():
        figure.draw_without_rendering()
        plt.close(figure)


def test_the_longest_stretch_by_both_ways():
    text = report()
    assert "by measured removal: blocks 5–6 (2 blocks, +4.00%)" in text
    assert "as chosen by the angle between its ends: blocks 5–6 (2 blocks, +4.00%)" in text
    assert "missed least: 5 (+1.00% ± 0.40%), 6 (+2.00% ± 0.40%), 4 (+20.00%" in text


def test_the_angle_may_choose_badly():
    distance = np.ones((L + 1, L + 1))
    distance[0, 1:3] = 0  # the first blocks turn nothing, and cost most
    chosen = public.likeliest(analysis(angular_distance=distance.tolist()))
    assert chosen == [(0, 2.0), (0, 3), (0, 4)]
    text = report(angular_distance=distance.tolist())
    assert "No block can go for less than 5% of the loss, as chosen by the angle" in text
    assert "by measured removal: blocks 5–6" in text


def test_one_block_is_no_stretch_of_blocks():
    text = report(stretches=[analysis()["prune_ratios"], [3.0] * 7])
    assert "by measured removal: block 5 (1 block, +1.00%)" in text


def test_quarters_of_the_blocks():
    columns = public.by_quarters(analysis())
    assert columns["blocks"] == ["1–2", "3–4", "5–6", "7–8"]
    assert columns["growth of the variance, a block"] == pytest.approx([1.5] * 4)
    assert columns["loss without one"] == pytest.approx([0.7, 0.25, 0.015, 0.45])
    assert columns["change of later blocks, one skipped"] == pytest.approx([0.25] * 4)
    assert columns["Jacobian deviation"] == pytest.approx([0.09, 0.0576, 0.036864, 0.02359296])
    four = public.by_quarters(
        {**analysis(), "model": {"n_layer": 4}, "causal_matrix": np.ones((4, 4)).tolist()}
        | dict.fromkeys(("variance", "prune_ratios", "block_influence", "jacobian"))
    )
    assert four["change of later blocks, one skipped"] == [1, 1, 1, None]


def test_tasks_say_their_items_and_not_the_passages():
    how = analysis()["measured"]["loss"]
    blimp = {"accuracy": 0.8, "standard_error": 0.01, "pairs": 67, "file": "blimp.jsonl"}
    text = report(measured={"blimp": how}, blimp=blimp)
    assert "| BLiMP | 0.800 ± 0.010 |" in text and "| blimp | 67 items of blimp.jsonl |" in text


def test_published_numbers_are_few_digits_of_the_same(tmp_path):
    path = tmp_path / "pretrained/llama.json"
    third = {"loss": 1 / 3, "angular_distance": (np.ones((L + 1, L + 1)) / 3).tolist()}
    said = public.publish(analysis(**third), path)
    assert said == json.loads(path.read_text()) == public.read_analysis(path)
    assert said["loss"] == 0.333333 and said["angular_distance"][0][0] == 0.333


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"model": {"name": "x"}}, "model.architecture is missing"),
        ({"prune_ratios": [1, "x"]}, "prune_ratios[1]"),
        ({"variance": {"residual": [1]}}, "variance.median is missing"),
        ({"measured": {"loss": {"sequences": 3}}}, "measured.loss.length is missing"),
        ({"prune_ratios": [1.0] * 7}, "prune_ratios has 7 entries, where 8 belong"),
    ],
)
def test_a_file_that_is_no_analysis_is_refused(tmp_path, changes, sentence):
    path = tmp_path / "llama.json"
    path.write_text(json.dumps(analysis(**changes)))
    with pytest.raises(BadInput, match="llama.json: ") as refusal:
        public.read_analysis(path)
    assert sentence in str(refusal.value)


PUBLISHED = sorted((REPOSITORY / "results/pretrained").glob("*.json"))


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_published_reports_are_those_of_their_files(path):
    analysis = public.read_analysis(path)
    report = (path.with_suffix("") / "report.md").read_text(encoding="utf-8")
    figures = re.findall(r"^!\[(\w+)\]", report, re.MULTILINE)
    assert report == public.report_text(analysis, figures)


def test_figures_are_those_of_the_scores_that_there_are():
    figures = public.draw_figures(analysis())
    assert list(figures) == [
        "overview", "positions", "updates", "removal", "jacobian", "matrices",
    ]  # fmt: skip
    assert "linear" not in figures and len(figures["removal"].axes) == 2  # nothing cumulative
    titles = [axis.get_title() for axis in figures["jacobian"].axes if axis.get_title()]
    assert len(titles) == 2  # probes give no spectral norm, and no diagonal
    drawn = figures["removal"].axes[0].lines[0].get_ydata()
    assert drawn == pytest.approx([0.01, 0.04, 0.6])


def test_side_by_side_is_over_relative_depth():
    short = analysis(prune_ratios=[1.5, 1.2], block_influence=[0.3, 0.2])
    short["model"] = {**short["model"], "n_layer": 2}
    short["variance"] = {**short["variance"], "without_first": [1.0, 2.0, 3.0]}
    figure = public.side_by_side_figure({"long": analysis(), "short": short})
    by_variance, by_removal, by_turn = figure.axes[:3]
    assert by_variance.lines[1].get_xdata().tolist() == [0, 0.5, 1]
    assert by_removal.lines[1].get_xdata().tolist() == [0.5, 1]
    assert by_turn.lines[0].get_ydata() == pytest.approx(analysis()["block_influence"])


def test_models_that_share_no_score_stand_apart(tmp_path, capsys):
    other = analysis(measured={"loss": analysis()["measured"]["loss"]})
    public.report_models(tmp_path, {"one": analysis(), "other": other})
    assert list(tmp_path.iterdir()) == [] and "share none" in capsys.readouterr().out
