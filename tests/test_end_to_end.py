"""The whole way as a reader walks it: text, runs, analysis, in a copy of the project and from its
command lines."""

import json
import re
import shutil
import subprocess
import sys

import matplotlib.image
import pytest

from conftest import REPOSITORY
from results.claims import COMPANIONS

TEXT = "".join(f"{i} times {j} is {i * j}.\n" for i in range(150) for j in range(12))
CONFIG = """
dataset = "mine"
n_embd = 16
n_head = 2
block_size = 32
batch_size = 4
max_iters = 20
warmup_iters = 5
eval_interval = 10
eval_tokens = 2048
device = "cpu"

[sweep]
seed = [0, 1]
"""
SWEEP = CONFIG.replace("[sweep]", "[sweep]\nn_layer = [2, 3]")
WINDOWS = 'attention = "window"\n' + CONFIG.replace("[sweep]", "[sweep]\nwindow = [2, 8]")
LADDER = (
    CONFIG
    + """
[[point]]
name = "shallow"
rung = 0
n_layer = 1

[[point]]
name = "deep"
rung = 1
n_layer = 2
"""
)
ITEM = {"context": "2 times 3 is ", "choices": ["6", "99"], "answer": 0}
PAIR = {"paradigm": "tables", "good": "2 times 3 is 6.", "bad": "2 times 3 is."}


def run(folder, *command, code=0):
    """Run a command line of the project; its standard output and error."""
    command = [sys.executable, *command]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert result.returncode == code, result.stderr
    return result


def refusal(folder, *command):
    """The one sentence in which a command line refuses what it was given."""
    message = run(folder, *command, code=2).stderr.strip()
    assert "\n" not in message
    return message


def copy_project(folder):
    for pattern in ("*.py", "configs/*.py", "data/*.py", "results/*.py"):
        for path in REPOSITORY.glob(pattern):
            target = folder / path.relative_to(REPOSITORY)
            target.parent.mkdir(exist_ok=True)
            shutil.copy(path, target)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of the code with a text prepared and two sweeps trained: depths, and windows."""
    folder = tmp_path_factory.mktemp("project")
    copy_project(folder)
    (folder / "mine.txt").write_text(TEXT)
    (folder / "task.jsonl").write_text(json.dumps(ITEM) + "\n")
    (folder / "pairs.jsonl").write_text(json.dumps(PAIR) + "\n")
    (folder / "sweep.toml").write_text(SWEEP)
    (folder / "window.toml").write_text(WINDOWS)
    run(folder, "data/prepare.py", "text", "mine.txt", "--name", "mine")
    run(folder, "train.py", "sweep.toml")
    toggles = ("--n_expert=4", "--n_kv_head=1", "--layer_norm_scaling=true")
    run(folder, "train.py", "window.toml", *toggles)
    return folder


@pytest.fixture(scope="module")
def analysed(project):
    """The same, with both sweeps analysed at once."""
    sweeps, task = ("out/window", "out/sweep"), ("--task", "task.jsonl", "--blimp", "pairs.jsonl")
    result = run(project, "analyze.py", *sweeps, "--sequences", "4", *task)
    assert result.stderr == ""  # piped output stays clean
    return project


def picture(path):
    """The pixels of a PNG, which must show something."""
    pixels = matplotlib.image.imread(path)
    assert pixels.std() > 0.01
    return pixels


def claims_in(text):
    return [line for line in text.splitlines() if re.match(r"\| \**C\d", line)]


# Analysis ----------------------------------------------------------------------------------------

POINTS = [("sweep", ["n_layer=2", "n_layer=3"]), ("window", ["window=2", "window=8"])]


@pytest.mark.parametrize("sweep, points", POINTS)
def test_every_sweep_has_a_report_with_figures(analysed, sweep, points):
    folder = analysed / "out" / sweep
    report = (folder / "report.md").read_text(encoding="utf-8")
    figures = re.findall(r"^!\[\w+\]\((\w+\.png)\)$", report, re.MULTILINE)
    assert len(figures) == 11
    for figure in figures:
        picture(folder / figure)
    for point in points:
        assert f"| {point} | " in report
    assert " ± " in report
    tables = re.findall(r"^(.+):\n\n\| point \|", report, re.MULTILINE)
    assert "| causal | " in report
    *companions, without, by_place = tables
    assert companions == list(COMPANIONS)
    assert without.startswith("Without block 1, ") and by_place.startswith("What a block is worth")


@pytest.mark.parametrize("sweep, points", POINTS)
def test_every_sweep_is_judged_on_its_seeds(analysed, sweep, points):
    claims = claims_in((analysed / "out" / sweep / "report.md").read_text(encoding="utf-8"))
    assert len(claims) > 0
    for row in claims:
        assert "(2 seeds; " in row or "| – (" in row


def test_all_sweeps_have_one_figure_and_one_table_of_claims(analysed):
    """Every claim of the two reports, beside its sweep's name."""
    claims = set()
    for sweep in ("sweep", "window"):
        for row in claims_in((analysed / "out" / sweep / "report.md").read_text(encoding="utf-8")):
            name, *rest = row.replace("**", "").strip("| ").split(" | ")
            claims.add(" | ".join([name, sweep, *rest]))
    rows = claims_in((analysed / "out/claims.md").read_text(encoding="utf-8"))
    assert {" | ".join(row.strip("| ").split(" | ")[:-3]) for row in rows} == claims
    assert len(rows) == len(claims)
    picture(analysed / "out/verdicts.png")


def test_tasks_stand_in_the_report_with_their_controls(analysed):
    report = (analysed / "out/sweep/report.md").read_text(encoding="utf-8")
    for column in ("own items (--task)", "own items after another's context", "BLiMP"):
        assert f"| {column} " in report


def test_every_run_has_its_scores(analysed):
    path = analysed / "out/sweep/n_layer=3,seed=1/analysis.json"
    analysis = json.loads(path.read_text(encoding="utf-8"))
    assert len(analysis["prune_ratios"]) == 3
    assert len(analysis["variance"]["residual"]) == 4
    assert analysis["task"]["items"] == 1
    assert analysis["text"]["tokens"] == 2048
    assert analysis["standard_errors"]["text"]["gap"] > 0
    assert analysis["same_targets"] == {"targets": 0}  # of a text as short as this
    assert len(analysis["per_sequence"]["loss"]) == analysis["sequences_of"]["swap"] == 4
    assert analysis["choices"]["items"] > 20
    assert analysis["choices"]["control"] < 1
    assert analysis["blimp"]["file"] == "pairs.jsonl"
    assert analysis["blimp"]["paradigms"].keys() == {"tables"}


def test_no_temporary_file_is_left(analysed):
    assert not list(analysed.rglob("*.tmp"))


@pytest.mark.slow
def test_a_ladder_has_a_figure_of_its_own(project):
    (project / "ladder.toml").write_text(LADDER)
    run(project, "train.py", "ladder.toml")
    run(project, "analyze.py", "out/ladder", "--sequences", "2")
    report = (project / "out/ladder/report.md").read_text(encoding="utf-8")
    picture(project / "out/ladder/ladder.png")
    assert report.index("| shallow |") < report.index("| deep |")  # as in the file
    assert {"| C8", "| C8+"} <= {row.split(" | ")[0] for row in claims_in(report)}


# Published and restored --------------------------------------------------------------------------


@pytest.mark.slow
def test_published_json_rebuilds_the_report(project):
    run(project, "analyze.py", "out/sweep", "--sequences", "2", "--publish", "published")
    shutil.copy(project / "published/sweep.json", project / "sweep.json")
    run(project, "analyze.py", "sweep.json")
    for name in ("report.md", "linear.png"):
        rebuilt, original = project / "sweep" / name, project / "published/sweep" / name
        assert rebuilt.read_bytes() == original.read_bytes()


@pytest.fixture(scope="module")
def restored(project):
    """fresh/sweep: restored from a file that holds seed 0 alone, then trained to the end."""

    def of_seed_1(_, names):
        return [name for name in names if name.endswith("seed=1")]

    shutil.copytree(project / "out/sweep", project / "part/sweep", ignore=of_seed_1)
    run(project, "analyze.py", "part/sweep", "--sequences", "2", "--publish", "half")
    run(project, "analyze.py", "half/sweep.json", "--restore", "fresh")
    before = (project / "fresh/sweep/n_layer=3,seed=0/summary.json").read_text(encoding="utf-8")
    run(project, "train.py", "sweep.toml", "--out_dir=fresh")
    assert (project / "fresh/sweep/n_layer=3,seed=0/summary.json").read_text(
        encoding="utf-8"
    ) == before
    return project


@pytest.mark.slow
def test_a_restored_sweep_trains_what_is_missing(restored):
    assert not (restored / "fresh/sweep/n_layer=3,seed=0/ckpt.pt").exists()
    assert (restored / "fresh/sweep/n_layer=3,seed=1/ckpt.pt").exists()


@pytest.mark.slow
def test_restored_and_new_runs_are_reported_together(restored):
    run(restored, "analyze.py", "fresh/sweep", "--sequences", "2", "--publish", "whole")
    assert "4 runs, seeds 0, 1" in (restored / "whole/sweep/report.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_restoring_into_an_existing_folder_is_refused(restored):
    message = refusal(restored, "analyze.py", "half/sweep.json", "--restore", "fresh")
    assert "exists already" in message


# One run -----------------------------------------------------------------------------------------


def test_sparsity_prints_a_table(project):
    output = run(project, "sparsity.py", "out/window/window=2,seed=0").stdout
    assert "experts in use  0.500" in output
    assert "key/value heads in use  0.500" in output
    assert "balance" in output


READ_A_MODEL = """
import torch
from data.prepare import tokenizer
from results.runs import load_run
model, config = load_run("out/sweep/n_layer=3,seed=0")
text = tokenizer(257)
torch.manual_seed(0)
idx = torch.tensor([text.encode("7 times")])
print(text.decode(model.generate(idx, 20)[0].tolist()))
"""


def test_a_trained_model_can_be_read(project):
    assert run(project, "-c", READ_A_MODEL).stdout.startswith("7 times")


# Bad input ---------------------------------------------------------------------------------------

REFUSED = [  # command line, and what its sentence names
    (["analyze.py", "out/none"], "out/none"),
    (["sparsity.py", "out/none"], "out/none"),
    (["analyze.py", "out/sweep", "--task", "none.jsonl"], "none.jsonl"),
]


@pytest.mark.slow
@pytest.mark.parametrize("command, named", REFUSED)
def test_bad_input_to_the_instruments(project, command, named):
    assert named in refusal(project, *command)


@pytest.mark.slow
def test_a_diverged_run_does_not_stop_the_report(project):
    diverging = ("--learning_rate=1e30", "--grad_clip=0", "--n_layer=9", "--seed=0")
    run(project, "train.py", "sweep.toml", *diverging, "--out_dir=bad")
    assert "did not diverge" in refusal(project, "analyze.py", "bad/sweep")
    mixed = project / "mixed/sweep"
    shutil.copytree(project / "out/sweep", mixed)
    shutil.copytree(project / "bad/sweep/n_layer=9,seed=0", mixed / "n_layer=9,seed=0")
    run(project, "analyze.py", "mixed/sweep", "--sequences", "2")
    assert "n_layer=9,seed=0 (diverged)" in (mixed / "report.md").read_text(encoding="utf-8")
