"""The whole way as a reader walks it: text, runs, analysis, in a copy of the project and from its command lines."""
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import pytest

REPOSITORY = Path(__file__).parent.parent
TEXT = "".join(f"{i} times {j} is {i * j}.\n" for i in range(150) for j in range(12))
CONFIG = """
dataset = "mine"
n_embd = 16
n_head = 2
block_size = 32
batch_size = 4
max_iters = 20
eval_interval = 10
device = "cpu"

[sweep]
n_layer = [2, 3]
seed = [0, 1]
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of the code with a text prepared and a sweep trained."""
    folder = tmp_path_factory.mktemp("project")
    for pattern in ("*.py", "configs/*.py", "data/*.py", "results/*.py"):
        for path in REPOSITORY.glob(pattern):
            target = folder / path.relative_to(REPOSITORY)
            target.parent.mkdir(exist_ok=True)
            shutil.copy(path, target)
    (folder / "mine.txt").write_text(TEXT)
    (folder / "sweep.toml").write_text(CONFIG)
    (folder / "window.toml").write_text('attention = "window"\n' + CONFIG.replace("n_layer = [2, 3]", "window = [2, 8]"))
    run(folder, "data/prepare.py", "text", "mine.txt", "--name", "mine")
    run(folder, "train.py", "sweep.toml")
    run(folder, "train.py", "window.toml", "--n_expert=4", "--n_kv_head=1", "--layer_norm_scaling=true")
    return folder


def run(folder, *command, code=0):
    result = subprocess.run([sys.executable, *command], cwd=folder, capture_output=True, text=True)
    assert result.returncode == code, result.stderr
    return result


def test_analysis_writes_scores_figures_and_report(project):
    task = project / "task.jsonl"
    task.write_text(json.dumps({"context": "2 times 3 is ", "choices": ["6", "99"], "answer": 0}) + "\n")
    result = run(project, "analyze.py", "out/window", "out/sweep", "--sequences", "4", "--task", "task.jsonl")
    assert result.stderr == ""  # piped output stays clean
    claims = []
    for sweep, points in (("sweep", ("n_layer=2", "n_layer=3")), ("window", ("window=2", "window=8"))):
        report = (project / "out" / sweep / "report.md").read_text()
        for line in report.splitlines():
            if line.startswith("!["):
                assert matplotlib.image.imread(project / "out" / sweep / line.split("(")[1][:-1]).std() > 0.01
        assert report.count("![") == 8 and all(f"| {point} | " in report for point in points) and " ± " in report
        claims += [row for row in report.splitlines() if re.match(r"\| C\d", row)]
        assert report.count(", 2 seeds; ") == sum(f" | {sweep} | " in row for row in claims) > 0
    analysis = json.loads((project / "out/sweep/n_layer=3,seed=1/analysis.json").read_text())
    assert len(analysis["prune_ratios"]) == 3 and len(analysis["variance"]["residual"]) == 4 and analysis["task"]["items"] == 1
    assert analysis["choices"]["items"] > 20
    assert matplotlib.image.imread(project / "out/joint.png").std() > 0.01
    assert (project / "out/claims.md").read_text().splitlines()[4:] == claims  # C1 to C3 of the depths, then C9 of the windows
    assert not list(project.rglob("*.tmp"))


def test_published_json_rebuilds_the_report(project):
    run(project, "analyze.py", "out/sweep", "--sequences", "2", "--publish", "results")
    report, figure = (project / "results/sweep/report.md").read_text(), (project / "results/sweep/linear.png").read_bytes()
    shutil.rmtree(project / "results/sweep")
    shutil.move(project / "results/sweep.json", project / "sweep.json")
    run(project, "analyze.py", "sweep.json")
    assert (project / "sweep/report.md").read_text() == report and (project / "sweep/linear.png").read_bytes() == figure


def test_a_restored_sweep_goes_on_where_it_stopped(project):
    """Published with one seed, restored in a fresh place: the other seed is trained, and both are in the report."""
    shutil.copytree(project / "out/sweep", project / "part/sweep", ignore=lambda _, names: [name for name in names if name.endswith("seed=1")])
    run(project, "analyze.py", "part/sweep", "--sequences", "2", "--publish", "published")
    run(project, "analyze.py", "published/sweep.json", "--restore", "fresh")
    before = (project / "fresh/sweep/n_layer=3,seed=0/summary.json").read_text()
    run(project, "train.py", "sweep.toml", "--out_dir=fresh")
    assert (project / "fresh/sweep/n_layer=3,seed=0/summary.json").read_text() == before
    assert not (project / "fresh/sweep/n_layer=3,seed=0/ckpt.pt").exists() and (project / "fresh/sweep/n_layer=3,seed=1/ckpt.pt").exists()
    run(project, "analyze.py", "fresh/sweep", "--sequences", "2", "--publish", "whole")
    assert "4 runs, seeds 0, 1" in (project / "whole/sweep/report.md").read_text()
    message = run(project, "analyze.py", "published/sweep.json", "--restore", "fresh", code=2).stderr.strip()
    assert "exists already" in message and "\n" not in message


def test_sparsity_prints_a_table(project):
    output = run(project, "sparsity.py", "out/window/window=2,seed=0").stdout
    assert "experts in use  0.500" in output and "key/value heads in use  0.500" in output and "balance" in output


def test_bad_input_to_the_instruments(project):
    for command, word in ((("analyze.py", "out/none"), "out/none"), (("sparsity.py", "out/none"), "out/none"),
                          (("analyze.py", "out/sweep", "--task", "none.jsonl"), "none.jsonl")):
        message = run(project, *command, code=2).stderr.strip()
        assert word in message and "\n" not in message


def test_a_trained_model_can_be_read(project):
    code = ("import torch; from train import load_run; from data.prepare import tokenizer; "
            "model, config = load_run('out/sweep/n_layer=3,seed=0'); text = tokenizer(257); torch.manual_seed(0); "
            "print(text.decode(model.generate(torch.tensor([text.encode('7 times')]), 20)[0].tolist()))")
    assert run(project, "-c", code).stdout.startswith("7 times")


def test_a_diverged_run_does_not_stop_the_report(project):
    run(project, "train.py", "sweep.toml", "--learning_rate=1e30", "--grad_clip=0", "--seed=0", "--out_dir=bad")
    run(project, "analyze.py", "bad/sweep", code=2)
    shutil.copytree(project / "out/sweep", project / "mixed/sweep")
    shutil.copytree(project / "bad/sweep/n_layer=2,seed=0", project / "mixed/sweep/n_layer=9,seed=0")
    run(project, "analyze.py", "mixed/sweep", "--sequences", "2")
    assert "n_layer=9" in (project / "mixed/sweep/report.md").read_text()
