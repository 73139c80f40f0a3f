"""results/report.py: the whole text of one made-up report, written out by hand, and its parts."""

import math
import re
from dataclasses import asdict

import matplotlib.pyplot as plt
import pytest

import analyze
from conftest import REPOSITORY
from model import GPTConfig
from results import report
from results.claims import CLAIMS, Ends, Family, Verdict
from results.report import (
    after_correction,
    effect_text,
    family_table,
    left_out,
    report_text,
    sentences,
    sweep_of,
    with_interval,
)
from results.runs import Run, read_runs
from results.scores import derived

# A control: depths times rates, two seeds, of which one diverged ---------------------------------

OF_DEPTH = {  # what the two seeds measured, whatever the rate
    1: {"variance": (1, 1), "causal": (0.9, 0.9), "permutation": (None, None), "share": (1, 1)},
    8: {
        "variance": (math.exp(1), math.exp(1.1)),
        "causal": (0.5, 0.52),
        "permutation": (0.2, 0.2),
        "share": (0.5, 0.6),
    },
}
DEVIATION = {1: [0.1], 8: [0.02, 0.01]}
PERPLEXITY = {(1, 0.001): (20, 20.2), (1, 0.003): (30, 30), (8, 0.001): (25, 25.02)}


def made_up_run(n_layer, rate, seed, perplexity):
    point = f"n_layer={n_layer},learning_rate={rate}"
    measured = {name: of_seeds[seed] for name, of_seeds in OF_DEPTH[n_layer].items()}
    varies = {"point": None, "rung": None, "place": 0}
    config = {
        **asdict(GPTConfig(n_layer=n_layer)),
        "learning_rate": rate,
        "min_lr": rate / 5,
        "warmup_iters": 100,
        "max_iters": 600,
        "weight_decay": 0.1,
        "seed": seed,
        "dataset": "tiny",
        "sweep": {**varies, "options": ["n_layer", "learning_rate", "seed"]},
    }
    summary = {
        "perplexity": perplexity,
        "last_layer_variance": measured["variance"],
        "seconds": 20,
        "diverged": perplexity is None,
        "params": 1_500_000,
        "active_params": 1_500_000,
        "torch": "2.13.0",
        "device": "cpu",
    }
    analysis = {
        "sequences": 8,
        "length": 16,
        "causal": measured["causal"],
        "permutation": measured["permutation"],
        "usefulness": {"held_out": 1 / n_layer},
        "n_eff_share": measured["share"],
        "prune_ratios": [1.1] * n_layer,
        "jacobian": {"deviation": DEVIATION[n_layer]},
        "variance": {
            "residual": [5e-5 if rate == 0.003 and n_layer == 1 else 1.0, 2.0],
            "attention": [1.0] * n_layer,
        },
        "densities": dict.fromkeys(("weight", "attention", "key_value", "expert"), 1),
    }
    return Run(f"{point},seed={seed}", config, summary, [], analysis if perplexity else None)


@pytest.fixture
def control():
    runs = [
        made_up_run(*point, seed, perplexity)
        for point, perplexities in PERPLEXITY.items()
        for seed, perplexity in enumerate(perplexities)
    ]
    return sweep_of([*runs, made_up_run(8, 0.003, 0, 22), made_up_run(8, 0.003, 1, None)])


def test_all_versions_devices_data_and_numbers_of_sequences_are_named(control):
    first, second, third, *_ = [run for runs in control.points.values() for run in runs]
    first.summary["torch"], second.summary["torch"] = "2.11.0", "2.11.0"
    second.summary["device"], third.summary["device"] = "H200", "H100"
    third.analysis["sequences"], first.config["dataset"] = 48, "books"
    text = " ".join(sentences(control))
    assert "; data/books and data/tiny; scores on 8 and 48 held-out sequences of 16 tok" in text
    assert "; torch 2.11.0 and 2.13.0, H100, H200 and cpu. " in text


def test_blocks_that_could_not_be_opened_are_named(control):
    run = control.points["n_layer=8,learning_rate=0.001"][1]
    del run.analysis["variance"]["attention"]
    (sentence,) = report.about_closed_blocks(control)
    assert sentence.startswith("Without what each branch adds, and without theory, as blocks do")
    assert sentence.endswith(": n_layer=8,learning_rate=0.001,seed=1.")
    assert sentence in sentences(control)


def test_a_sweep_that_no_claim_is_about_has_a_sentence_and_no_empty_table():
    assert report.verdicts_table([]) == ["None of the paper's claims is about this sweep."]


# Decay's clock is 0.1 x rate x (100 steps of half the rate + 500 of 0.6 of it), 35 rates.
# Of two seeds the half-width is 12.706 / 2 times their difference, or that of their logarithms.
# Contrasts of two points of two seeds have two degrees of freedom: a half-width of 4.303 standard
# errors, and with t of them p = 1 - t / sqrt(2 + t^2).
EXPECTED = """\
# control

7 runs, seeds 0, 1; data/tiny; scores on 8 held-out sequences of 16 tokens; torch 2.13.0, cpu. \
Mean ± 95 % Student-t interval over seeds; of what is compared by its logarithm, the geometric \
mean (and the interval of the logarithm). A number without an interval is of one seed, or of seeds \
that all agree. \
Usefulness and N_eff are with the linear maps fitted on other sequences. \
Training took 2 minutes, summed over runs. \
Left out: n_layer=8,learning_rate=0.003,seed=1 (diverged). \
At n_layer=8 the rate 0.003 diverged and was left out.

| point | perplexity | last-layer variance | causal | permutation | usefulness | N_eff / L \
| choice accuracy | Jacobian deviation | weight density | attention density | key/value density \
| expert density |
|---|---|---|---|---|---|---|---|---|---|---|---|---|
| n_layer=1,learning_rate=0.001 | 20.1 (18.9 to 21.4) | 1 | 0.9 | – | 1 | 1 | – | 0.1 \
| 1 | 1 | 1 | 1 |
| n_layer=1,learning_rate=0.003 | 30 | 1 | 0.9 | – | 1 | 1 | – | 0.1 | 1 | 1 | 1 | 1 |
| n_layer=8,learning_rate=0.001 | 25.01 (24.88 to 25.14) | 2.9 (1.5 to 5.4) | 0.51 (0.40 to 0.65) \
| 0.2 | 0.125 | 0.55 (0.17 to 1.74) | – | 0.015 | 1 | 1 | 1 | 1 |
| n_layer=8,learning_rate=0.003 | 22 | 2.718 | 0.5 | 0.2 | 0.125 | 0.5 | – | 0.015 | 1 | 1 | 1 | 1 |

| claim | predicted | measured effect | p | verdict |
|---|---|---|---|---|
| **C1** | deeper: more variance \
| +1.05 ± 0.22 a step of × 8 (2 seeds; log last-layer variance: rises) | 0.0023 | supported |
| C1 | deeper: more growth, var h_L / var h_1 | – (log growth: rises) | 1 | undecided |
| C1 | deeper: a larger exponent of growth | – (exponent: rises) | 1 | undecided |
| **C2** | deeper: the Jacobian nearer the identity \
| -1.897 ± 0 a step of × 8 (2 seeds; log Jacobian deviation: falls) | 1 | undecided |
| C2 | along the layers of the deepest: the Jacobian nearer the identity \
| -0.6931 ± 0 (2 seeds; slope of log deviation: negative) | 1 | undecided |
| **C3** | deeper: causal falls | -0.568 ± 0.084 a step of × 8 (2 seeds; log causal: falls) \
| 0.0012 | supported |
| C3 | deeper: permutation falls | – (log permutation: falls) | 1 | undecided |
| C3 | deeper: usefulness falls | -0.875 ± 0 a step of × 8 (2 seeds; usefulness: falls) \
| 1 | undecided |
| C3+ | deeper: N_eff / L, removed falls | – (log N_eff / L, removed: falls) | 1 | undecided |

Each claim is judged by itself; where sweeps are reported together, their claims.md corrects for \
how many there are. p is of what the seeds speak against: beside `no effect`, that the effect is \
as large as the margin; beside all else, that there is none.

Growth and updates, free of the stream's scale:

| point | permutation times L |
|---|---|
| n_layer=1,learning_rate=0.001 | – |
| n_layer=1,learning_rate=0.003 ‡ | – |
| n_layer=8,learning_rate=0.001 | 1.6 |
| n_layer=8,learning_rate=0.003 | 1.6 |

Size, decay's clock (rate x decay x steps: a steady state needs about 2, and none is claimed), \
data, and the gap between held-out and training text:

| point | parameters (M) | active (M) | decay's clock |
|---|---|---|---|
| n_layer=1,learning_rate=0.001 | 1.5 | 1.5 | 0.035 |
| n_layer=1,learning_rate=0.003 ‡ | 1.5 | 1.5 | 0.105 |
| n_layer=8,learning_rate=0.001 | 1.5 | 1.5 | 0.035 |
| n_layer=8,learning_rate=0.003 | 1.5 | 1.5 | 0.105 |

Without block 1, which turns the embedding into a stream and is unlike all others: alone, or in \
its pairs, it is 67 to 100 % of the Jacobian deviation and 12 to 100 % of the sum of u, a block \
removed (an even share would be 1 / L, of pairs 2 / L):

| point | Jacobian deviation | the same slope with block 1 |
|---|---|---|
| n_layer=1,learning_rate=0.001 | – | 0 |
| n_layer=1,learning_rate=0.003 ‡ | – | 0 |
| n_layer=8,learning_rate=0.001 | 0.01 | -0.6931 |
| n_layer=8,learning_rate=0.003 | 0.01 | -0.6931 |

What a block is worth, by place (geometric mean of u, a block removed; early, middle and late are \
thirds of blocks 2 to L, of 8: 2 to 4, 5 to 6, 7 to 8):

| point | u, block 1 | u, early | u, middle | u, late | u, last block |
|---|---|---|---|---|---|
| n_layer=1,learning_rate=0.001 | 0.1 | – | – | – | 0.1 |
| n_layer=1,learning_rate=0.003 ‡ | 0.1 | – | – | – | 0.1 |
| n_layer=8,learning_rate=0.001 | 0.1 | 0.1 | 0.1 | 0.1 | 0.1 |
| n_layer=8,learning_rate=0.003 | 0.1 | 0.1 | 0.1 | 0.1 | 0.1 |

‡ the norms' eps is more than 1 % of a variance of the stream.

![points](points.png)
![linear](linear.png)
"""


def test_the_whole_text_of_a_report(control):
    assert report_text("control", control, ["points", "linear"], found=[]) == EXPECTED


def test_a_single_run_of_a_minute_and_one_seed():
    run = made_up_run(1, 0.001, 0, 20)
    run.summary["seconds"], run.analysis["sequences"] = 61, 1
    text = " ".join(sentences(sweep_of([run])))
    assert text.startswith("1 run, seed 0; data/tiny; scores on 1 held-out sequence of 16 tokens;")
    assert "One seed: numbers have no intervals, and decide nothing." in text
    assert text.endswith("Training took 1 minute, summed over runs.")
    assert "±" not in text


def test_runs_that_read_a_tenth_of_blimp_beside_others_are_told():
    runs = [made_up_run(1, 0.001, seed, 20) for seed in (0, 0, 0)]
    assert "BLiMP" not in " ".join(sentences(sweep_of(runs)))
    for run, pairs in zip(runs, (67000, 6700, 6700), strict=True):
        run.analysis["blimp"] = {"pairs": pairs}
    assert "BLiMP is on 6700 and 67000 pairs." in sentences(sweep_of(runs))


def test_less_than_half_a_minute_is_less_than_a_minute():
    assert sentences(sweep_of([made_up_run(1, 0.001, 0, 20)]))[-1] == (
        "Training took less than a minute."
    )


@pytest.mark.parametrize("L, is_there", [(1, False), (2, False), (3, True)])
def test_what_is_left_without_block_1_is_said_where_two_blocks_are_left(L, is_there):
    runs = [run for run in read_runs(REPOSITORY / "results/demo.json") if run.point == "n_layer=2"]
    for each in runs:
        each.config["n_layer"] = L
        each.analysis["jacobian"]["deviation"] = [0.5] * L
    text = "\n".join(report.companion_tables({"a": runs}))
    assert ("Without block 1" in text) == is_there
    assert "What a block is worth, by place" in text


def test_at_another_rate_figures_are_few():
    points = sweep_of(read_runs(REPOSITORY / "results/wide_moe.json")).points
    few = report.draw_figures("half_rate_moe", points)
    assert list(few) == ["points", "companions", "pruning"]
    plt.close("all")
    assert few.keys() < report.draw_figures("moe", points).keys()
    for name in report.AT_ANOTHER_RATE:
        assert (REPOSITORY / "configs" / f"{name}.toml").exists()
    plt.close("all")


def test_runs_without_matrices_have_all_other_figures_and_columns():
    sweep = sweep_of(read_runs(REPOSITORY / "results/wide_moe.json"))
    whole = report.draw_figures("wide_moe", sweep.points)
    plt.close("all")
    for each in [run for runs in sweep.points.values() for run in runs]:
        for name in ("causal_matrix", "permutation_matrix", "angular_distance"):
            del each.analysis[name]
    figures = report.draw_figures("wide_moe", sweep.points)
    assert whole.keys() - figures.keys() == {"matrices"}
    titles = [axis.get_title() for axis in figures["scale_free"].axes if axis.axison]
    assert len(titles) == 7 and "angle by which a block turns the stream" not in titles
    text = report_text("wide_moe", sweep, figures, found=[])
    assert "causal without block 1" not in text and "| Jacobian deviation |" in text
    plt.close("all")


def test_claims_of_several_sweeps_say_which_rates_they_leave_out(control, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "verdicts_figure", lambda panels: panels[""])
    monkeypatch.setattr(report, "changes_figure", lambda ends: ends)
    monkeypatch.setattr(
        report, "save_figure", lambda figure, path: path.write_text("".join(figure))
    )
    report.report_all({"control": control, "one": ONE_RUN}, tmp_path)
    assert (tmp_path / "verdicts.png").read_text(encoding="utf-8") == "control (C1, C2, C3)"
    text = (tmp_path / "claims.md").read_text(encoding="utf-8")
    assert text.count("| control |") == 9 and "| one |" not in text
    assert re.findall("## (.*)", text) == ["Another sweep: control"]  # no experiment, no family
    assert not (tmp_path / "hero.png").exists()  # of which no sweep is
    assert text.endswith("\n\ncontrol: At n_layer=8 the rate 0.003 diverged and was left out.\n")


def swept(option, *values, seeds=2, ratios=(3.0, 1.1), **config):
    """A Sweep of an option, of the other runs' shape."""
    runs = []
    for value in values:
        for seed in range(seeds):
            run = made_up_run(8, 0.001, seed, 20)
            run.config |= {**config, option: value}
            run.config["sweep"] = {**run.config["sweep"], "options": [option, "seed"]}
            run.analysis |= {"prune_ratios": ratios, **derived({"prune_ratios": ratios})}
            runs.append(run)
    return sweep_of(runs)


def test_each_source_of_sparsity_is_shown_by_its_sparsest_point():
    sweeps = {
        "moe": swept("n_expert", 64, 0, 4),
        "sparse_attention": swept("window", 4, 2, attention="window"),
        "gqa": swept("n_kv_head", 1, 4, 2),
        "weight_decay": swept("weight_decay", 0.1, 3.0, n_layer=16),  # is deeper than the first
        "wide_moe": swept("n_expert", 0, 16),  # no experiment of its own
        "depth": swept("n_layer", 4, 8),
    }
    found = {name: runs[0].point for name, runs in report.sparsest_of(sweeps).items()}
    assert found == {"weight_decay": "weight_decay=3"}
    del sweeps["weight_decay"]
    found = {name: runs[0].point for name, runs in report.sparsest_of(sweeps).items()}
    assert found == {
        "gqa": "n_kv_head=1",
        "moe": "n_expert=64",
        "sparse_attention": "window=2",
    }
    assert report.depths_of(sweeps) == sweeps["depth"].points
    assert report.depths_of({"moe": sweeps["moe"]}) == {}


def test_the_plain_model_that_others_stand_beside_is_as_deep_and_half_the_rate_is_one():
    """Worths of blocks 2 to 7, seeds a hundredth to either side: 0.1, and twice as much."""

    def with_worth(worth, sweep):
        for runs in sweep.points.values():
            for run, factor in zip(runs, (1.01, 1 / 1.01), strict=True):
                ratios = [3.0] + [1 + worth * factor] * 6
                run.analysis |= {"prune_ratios": ratios, **derived({"prune_ratios": ratios})}
        return sweep

    sweeps = {
        "depth": with_worth(0.1, swept("n_layer", 4, 7)),
        "moe": with_worth(0.2, swept("n_expert", 0, 64, n_layer=7)),
    }
    name, beside = report.beside_plain(sweeps)
    assert name == "n_layer=7" and list(beside) == ["n_expert=64"]
    assert math.exp(beside["n_expert=64"]["worth, early"].effect) == pytest.approx(2)
    sweeps["half_rate_moe"] = swept("n_expert", 0, 64, n_layer=7)
    assert list(report.beside_plain(sweeps)[1]) == ["n_expert=64", "half the rate"]
    del sweeps["half_rate_moe"].points["n_expert=0"]
    assert list(report.beside_plain(sweeps)[1]) == ["n_expert=64"]
    assert report.beside_plain({"moe": sweeps["moe"]}) == ("", {})
    assert report.beside_plain({"depth": sweeps["depth"]}) == ("", {})
    too_deep = swept("n_expert", 0, 64, n_layer=9)
    assert report.beside_plain({"depth": sweeps["depth"], "moe": too_deep}) == ("", {})


def test_what_follows_from_the_depth_is_said_where_block_1_is_most_of_the_sum():
    """Worths 2 and 0.1: a share of 20 / 21, and an N_eff of 2.1^2 / 4.01 = 1.1."""

    def said(**sweeps):
        verdicts = {name: report.judge_sweep(sweep.points) for name, sweep in sweeps.items()}
        return report.about_n_eff(sweeps, verdicts)

    depth, moe = swept("n_layer", 2, 4), swept("n_expert", 0, 4)
    sentence = said(depth=depth, moe=moe)
    assert sentence.startswith("N_eff / L, removed (C3+) says little besides L")
    assert " alone is 95 % of the sum of u, " in sentence
    assert " between 1.1 and 1.1, " in sentence
    assert said(moe=moe) is None  # of one depth
    assert said(depth=swept("n_layer", 2, 4, ratios=(1.1, 1.1))) is None  # half of it


# Its parts ---------------------------------------------------------------------------------------


def test_runs_without_scores_are_named_with_their_reason():
    diverged, unscored = made_up_run(8, 0.003, 1, None), made_up_run(8, 0.001, 0, 25)
    unscored.analysis = None
    assert left_out([diverged, unscored]) == [
        "n_layer=8,learning_rate=0.003,seed=1 (diverged)",
        "n_layer=8,learning_rate=0.001,seed=0 (not scored)",
    ]


T_OF_TWO = 12.7062 / 2  # half-width over the difference of two values
INTERVALS = [  # mean, half-width, text
    (53.445, 0.446, "53.45 ± 0.45"),  # and not 53.5 by way of 53.45
    (3.0461, 0.0499, "3.046 ± 0.050"),
    (3.04499, 0.26, "3.04 ± 0.26"),
    (0.3731, 0.0996, "0.37 ± 0.10"),  # to 0.100, which has three digits
    (391.7, 137.2, "390 ± 140"),
    (15204.0, 1234.0, "15200 ± 1200"),
    (-0.0081, 0.085, "-0.008 ± 0.085"),
    (2.3e-9, 4.4e-10, "2.3e-09 ± 4.4e-10"),
    (0.125, 0.0, "0.125"),
]


@pytest.mark.parametrize("mean, half, text", INTERVALS)
def test_means_are_rounded_once_to_the_place_of_their_interval(mean, half, text):
    apart = half / T_OF_TWO / 2
    assert with_interval([mean - apart, mean + apart]) == text


OF_LOGARITHMS = [  # geometric mean, by what factor the interval reaches beyond it, text
    (1070.0, 3.8, "1100 (280 to 4100)"),
    (0.65, 43.0, "0.65 (0.015 to 28)"),  # two digits at least, of the least number too
    (29.72, 1.024, "29.72 (29.02 to 30.43)"),
    (2.3e-9, 1.2, "2.3e-09 (1.92e-09 to 2.76e-09)"),
    (0.2, 1.0, "0.2"),
]


@pytest.mark.parametrize("mean, factor, text", OF_LOGARITHMS)
def test_what_is_compared_by_its_logarithm_has_the_logarithms_interval(mean, factor, text):
    """Two seeds, sqrt(a b) of which is the mean, and whose ratio to the power 12.706 / 2 is how far
    the interval reaches."""
    apart = factor ** (1 / T_OF_TWO / 2)
    assert with_interval([mean / apart, mean * apart], log=True) == text


@pytest.mark.parametrize("log", [False, True])
def test_one_seed_has_no_interval_and_what_is_not_measured_is_a_dash(log):
    assert with_interval([1.23456], log) == "1.235"
    assert with_interval([None, None], log) == "–"


NAMES = [("causal", "0.51 (0.40 to 0.65)"), ("usefulness", "0.51 ± 0.13"), ("N_eff / L", None)]


@pytest.mark.parametrize("name, text", NAMES)
def test_which_columns_are_of_logarithms_is_by_their_name(name, text):
    """A column with a number that is not positive, anywhere, is of means throughout."""
    cells = report.cells_of(name, [[0.5, 0.52], [0.0, 0.1] if text is None else [None]])
    assert cells == ([text, "–"] if text else ["0.51 ± 0.13", "0.05 ± 0.64"])


FALLS = next(claim for claim in CLAIMS if claim.metric == "perplexity" and claim.shape == "falls")
EFFECTS = [  # effect, half-width, seeds, text
    (0.1234, 0.045, (3, 3), "+0.123 ± 0.045 (3 seeds; log perplexity: falls)"),
    (0.1234, 0.045, (3, 5), "+0.123 ± 0.045 (3 to 5 seeds; log perplexity: falls)"),
    (-2.0, math.inf, (1, 1), "-2 (1 seed; log perplexity: falls)"),
    (math.nan, math.inf, (3, 3), "– (log perplexity: falls)"),
    (0.0, 0.0, (3, 3), "+0 ± 0 (3 seeds; log perplexity: falls)"),
]


@pytest.mark.parametrize("effect, half, n_seeds, text", EFFECTS)
def test_effects_stand_with_their_half_widths(effect, half, n_seeds, text):
    assert effect_text(Verdict(FALLS, "", effect, half, 0.5, 0.5, n_seeds)) == text


def test_an_effect_says_how_large_a_step_is():
    verdict = Verdict(FALLS, "", 0.1234, 0.045, 0.5, 0.5, (3, 3), step=math.sqrt(8))
    assert effect_text(verdict).startswith("+0.123 ± 0.045 a step of × 2.8 (3 seeds; ")


def test_verdicts_stand_with_and_without_the_correction():
    """Two of a family: p = 0.01 holds among its ten, 0.02 would not."""
    verdicts = [Verdict(FALLS, "opposed", 1.0, 0.5, p, p, (3, 3)) for p in (0.004, 0.02)]
    family = Family("Primary", [("moe", v) for v in verdicts], [0.04, 0.18], [0.05, 0.2])
    first, second = family_table(family)[2:]
    assert first.endswith("| 0.004 | opposed | 0.04 | opposed | 0.05 |")
    assert second.endswith("| 0.02 | opposed | 0.18 | undecided | 0.2 |")


def test_a_figure_shows_what_stands_after_the_correction():
    """Of ten primary claims p = 0.004 holds, as 10 * 0.004 < 0.05, and p = 0.02 does not."""
    c1, c3 = (
        next(claim for claim in CLAIMS if claim.primary and claim.name == name)
        for name in ("C1", "C3")
    )
    holds, fails = (
        Verdict(claim, "supported", 1.0, 0.5, p, p, (3, 3))
        for claim, p in ((c1, 0.004), (c3, 0.02))
    )
    stands = after_correction({"depth": [fails, holds], "tokens": []})
    assert {v.claim.name: v.verdict for v in stands["depth"]} == {
        "C1": "supported",
        "C3": "undecided",
    }
    assert stands["tokens"] == []


def ends(option, first, last, **config):
    """Ends of two seeds each, with perplexities 8 and 2, and their runs' options."""
    return Ends(
        option,
        *(
            [
                seed_of({"n_embd": 256, option: value, **config}, mean * apart)
                for apart in (0.9, 1.1)
            ]
            for value, mean in ((first, 8.0), (last, 2.0))
        ),
    )


def seed_of(config, perplexity):
    config |= {"sweep": {"rung": config.get("rung")}}
    summary = {"perplexity": perplexity, "last_layer_variance": 1.0}
    return Run("", config, summary, [], {"causal": None, "permutation": None})


def test_rows_of_changes_stand_in_the_order_of_their_meaning_and_say_what_changes():
    rows = report.changes_of(
        {
            "control": ends("n_layer", 4, 32),
            "depth": ends("n_layer", 4, 32),
            "wide_moe": ends("n_expert", 0, 16, n_embd=512),
            "recipe": ends("rung", 1, 5),
            "context": ends("block_size", 64, 4096),
            "weight_decay": ends("weight_decay", 0.0, 3.0),
        }
    )
    assert list(rows) == [
        "decay 0 to 3",
        "context 64 to 4096",
        "recipe, rung 1 to 5",
        "blocks 4 to 32",
        "blocks 4 to 32 (control)",
        "experts 0 to 16 (width 512)",
    ]
    for measured in rows.values():  # the last over the first
        assert measured["perplexity"].effect == pytest.approx(math.log(1 / 4))
        assert measured["growth"] is None


def of_loss(score, per_sequence):
    analysis = {"loss": score, "standard_errors": {"loss": 0.5}, "sequences": 2, "length": 16}
    analysis["per_sequence"] = {"loss": per_sequence}
    return Run("", {"data_sha256": "x"}, {}, [], analysis)


SHARES = [  # half of what two seeds are apart, sequences of the other point: columns of the table
    (3.0, [4.0, 6.0], "0.5 | 1 | 4.2 | 7.1 | **0.24**"),
    (4.0, [4.0, 6.0], "0.5 | 1 | 5.7 | 7.1 | 0.18"),
    (0.0, [4.0, 6.0], "0.5 | 1 | 0 | 7.1 | –"),
    (4.0, None, "0.5 | – | 5.7 | 7.1 | –"),
]


@pytest.mark.parametrize("apart, per_sequence, columns", SHARES)
def test_scores_are_bold_whose_sequences_are_too_few(apart, per_sequence, columns):
    """Sequences differ by 1 and 3 between the points, so the mean of them by an error of 1. Seeds
    have a standard deviation of sqrt(2) times `apart`, points one of 10 / sqrt(2)."""
    points = {
        name: [of_loss(mean + side * apart, values) for side in (-1, 1)]
        for name, mean, values in (("a", 20.0, [5.0, 9.0]), ("b", 10.0, per_sequence))
    }
    *_, row, _, said, _ = report.resolution_table(points)
    assert row == f"| loss | {columns} |"
    assert ("In bold: " in said) == ("**" in columns)


def test_what_is_judged_by_its_logarithm_is_resolved_in_it():
    """Seeds 1 and e, a standard deviation of sqrt(1/2); their errors are a half and a half / e."""
    points = {"a": [of_loss(score, None) for score in (1.0, math.e)]}
    for each in points["a"]:
        each.analysis["causal"] = each.analysis["loss"]
        each.analysis["standard_errors"]["causal"] = 0.5
    _, row, *_ = report.resolution_table(points)[4:]
    assert row == f"| log causal | {0.5 * math.sqrt((1 + math.e**-2) / 2):.2g} | – | 0.71 | – | – |"
    points["a"][0].analysis["causal"] = 0.0
    assert report.resolution_table(points)[5].startswith("| causal | 0.5 | – | 1.9 |")


ONE_RUN = sweep_of([made_up_run(1, 0.001, 0, 20)])


# Which sweeps a command line reports --------------------------------------------------------------


def test_what_is_not_there_is_one_sentence(tmp_path, refused):
    message = refused(analyze.main, [tmp_path / "nope1", tmp_path / "nope2"])
    assert "nope1" in message and "nope2" in message


def test_files_without_a_folder_beside_them_are_skipped_and_named(tmp_path, capsys, monkeypatch):
    asked = []
    monkeypatch.setattr(analyze, "analyse_sweep", lambda path, _: asked.append(path) or ONE_RUN)
    for name in ("depth", "rates", "theory"):
        (tmp_path / f"{name}.json").touch()
    (tmp_path / "depth").mkdir()
    analyze.main([str(path) for path in sorted(tmp_path.glob("*.json"))])
    assert asked == [tmp_path / "depth.json"]
    (line,) = capsys.readouterr().out.splitlines()
    assert "skipped" in line and "depth.json" not in line
    assert "rates.json" in line and "theory.json" in line


def test_a_command_that_would_skip_everything_is_refused(tmp_path, refused):
    for name in ("rates.json", "theory.json"):
        (tmp_path / name).touch()
    refused(analyze.main, [tmp_path / "rates.json", tmp_path / "theory.json"])
