"""results/hot.py: what is kept of whole sweeps is what their claims read."""

from conftest import REPOSITORY
from data.files import read_json
from results import hot
from results.claims import CLAIMS, EXPERIMENT
from results.report import sweep_of
from results.runs import read_runs


def test_what_is_kept_is_judged_as_the_whole_sweep_is(monkeypatch, tmp_path):
    """Of a published sweep, here the control's in the place of depth."""
    control = REPOSITORY / "results/control.json"
    monkeypatch.setattr(hot, "EXPERIMENT", {"n_layer": "depth"})
    (tmp_path / "depth.json").write_bytes(control.read_bytes())
    rows = hot.thinned(tmp_path)["depth"]
    sweep = sweep_of(read_runs(control))
    kept, whole = hot.judged(rows), hot.judge_sweep(sweep.points, sweep.diverged)
    assert [v.claim for v in kept] == [v.claim for v in whole] and len(kept) == 9
    assert [v.verdict for v in kept] == [v.verdict for v in whole]


def test_the_lesson_has_every_experiment():
    kept = read_json(REPOSITORY / "results/hot/hot.json", dict)
    assert kept.keys() == set(EXPERIMENT.values())
    names = {claim.name for claim in CLAIMS}
    assert {row["claim"] for rows in kept.values() for row in rows} == names
