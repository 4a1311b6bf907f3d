"""research/bench.py: both sides have to agree before anything is timed; its times are not tested."""

import multiprocessing

import pytest

pytest.importorskip("peft")
from files.weights import save_model
from research import bench

SMALL = ["--rows", "4", "--batch-size", "2", "--repeat", "1", "--device", "cpu"]


def test_both_sides_do_the_same_work(tmp_path, either):
    """Here in one process; each turn works on what the one before has left."""
    args = bench.parse_args(SMALL)
    save_model(either, tmp_path)
    for job in bench.JOBS:
        w = bench.work_of(args, either, tmp_path, job, "float32")
        ours, peft = bench.ours(w), bench.theirs(w)
        for _ in range(2):
            bench.check_agreement(job, ours(), peft())


def test_the_command_times_each_side_in_a_process_of_its_own(tmp_path, tiny, monkeypatch, capsys):
    save_model(tiny, tmp_path / "small")
    measured, measure = [], bench.measure
    monkeypatch.setattr(bench, "measure", lambda w: measured.append(measure(w)) or measured[-1])
    bench.main([*SMALL, "--jobs", "prompt", "--model", str(tmp_path / "small")])
    out = capsys.readouterr().out
    assert "small; 2 texts of" in out and "beside 0 busy processes" in out
    for side in measured[0].values():
        assert len(side["seconds"]) == 1 and side["seconds"][0] > 0 and side["gb"] > 0 and side["out"] > 0
    monkeypatch.setattr(bench, "measure", lambda w: {"ours": {"out": 2.0}, "PEFT": {"out": 2.1}})
    with pytest.raises(AssertionError, match="do not do the same work"):
        bench.main([*SMALL, "--jobs", "prompt", "--busy", "1", "--model", str(tmp_path / "small")])
    (busy,) = multiprocessing.active_children()
    busy.terminate()  # else at the end of the command, as a daemon


def test_the_table_shows_medians_and_ranges():
    """Worked by hand, from three turns."""
    args = bench.parse_args(["--repeat", "3", "--batch-size", "2"])
    sides = {"ours": {"seconds": [1.0, 2.0, 5.0], "gb": 1.0}, "PEFT": {"seconds": [4.0, 8.0, 10.0], "gb": 4.0}}
    text = bench.table([(job, "float32", sides) for job in ("prompt", "decode")], args)
    assert "of 3 turns." in text
    assert "| float32 | 2.000 [1.000, 5.000] s, 1.0 GB | 8.000 [4.000, 10.000] s, 4.0 GB | 4.0x [2.0x, 4.0x] |" in text
    assert "| 30 [12, 60] tok/s, 1.0 GB | 8 [6, 15] tok/s, 4.0 GB | 4.0x [2.0x, 4.0x] |" in text
