"""results/hot.py: what is kept of whole sweeps is what their claims read, and is drawn again."""

import pytest

import analyze
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


@pytest.mark.parametrize("has_lesson", [True, False])
def test_the_command_that_draws_all_draws_the_lesson(has_lesson, monkeypatch, tmp_path):
    """Of the sweeps that are there and in the lesson: depth, and not the control."""
    sweep = sweep_of(read_runs(REPOSITORY / "results/control.json"))
    for name in ("control", "depth", "hot"):
        (tmp_path / name).mkdir()
    (tmp_path / "control.json").touch()
    (tmp_path / "depth.json").touch()
    if has_lesson:
        kept = (REPOSITORY / "results/hot/hot.json").read_bytes()
        (tmp_path / "hot/hot.json").write_bytes(kept)
    drawn = {}
    monkeypatch.setattr(analyze, "analyse_sweep", lambda *_: sweep)
    monkeypatch.setattr(analyze, "report_all", lambda *_: None)
    monkeypatch.setattr(hot, "verdicts_figure", lambda panels: panels)
    monkeypatch.setattr(hot, "save_figure", lambda figure, path: drawn.update({path: figure}))
    analyze.main([str(path) for path in sorted(tmp_path.glob("*.json"))])
    assert list(drawn) == [tmp_path / "hot/verdicts.png"] * has_lesson
    for panels in drawn.values():
        then, now = panels.values()
        assert list(then) == list(now) == ["depth (C1, C2, C3)"]
        assert [v.claim for v in now.popitem()[1]] == [v.claim for v in then.popitem()[1]]
