"""bench.py: both sides have to agree before anything is timed; its times are not tested."""

import json

import pytest
import torch

pytest.importorskip("peft")
from files.weights import save_model
from llama import Llama
from model import GPT
from research import bench

SMALL = ["--n-layer", "1", "--n-embd", "64", "--vocab-size", "300", "--rows", "4", "--batch-size", "2", "--repeat", "1"]


@pytest.mark.parametrize("arch", ["gpt2", "llama"])
@pytest.mark.parametrize("job", bench.JOBS)
def test_all_sides_do_the_same_work(tmp_path, arch, job):
    """Here in one process; each turn works on what the one before has left."""
    args = bench.parse_args([*SMALL, "--arch", arch, "--answer", "5"])
    torch.manual_seed(0)
    model = (Llama if arch == "llama" else GPT)(bench.shape(vars(args))).freeze()
    save_model(model, tmp_path)
    w = bench.one_work(args, model, tmp_path, job, "float32", args.rows, args.batch_size)
    sides = ["ours", "PEFT"] + ["no cache"] * (job == "decode")
    turns = [bench.SIDES[side](w) for side in sides]
    for _ in range(2):
        out = {side: turn() for side, turn in zip(sides, turns)}
        bench.check_agreement(job, "float32", out)
        assert job != "decode" or out["no cache"] == out["ours"]
    assert bench.SIDES["products alone"](w)() == 0


def test_each_side_is_timed_in_a_process_of_its_own(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "best_dtype", lambda device: bench.torch.float32)
    bench.main([*SMALL, "--jobs", "prompt", "--json", str(tmp_path / "b.json")])
    assert "GPT-2 of 1 layers" in capsys.readouterr().out
    (r,) = json.loads((tmp_path / "b.json").read_text())["measurements"]
    assert r["job"] == "prompt" and r["sides"].keys() == {"ours", "PEFT", "products alone"}
    for side in r["sides"].values():
        assert [len(turns) for turns in side["runs"]] == [1] and side["runs"][0][0] > 0


def test_several_runs_keep_the_turns_of_each_and_leave_out_what_memory_did_not_hold(tmp_path, monkeypatch):
    """The sides are not started: each measurement takes a second more than the one before."""
    seconds = iter(range(1, 9))

    def measure(w, sides, repeat, bar):
        turns = {"turns": [float(next(seconds))], "gb": 1.0, "out": 2.0}
        return {side: turns for side in sides if side != "ours" or w["job"] == "prompt"}

    monkeypatch.setattr(bench, "measure", measure)
    monkeypatch.setattr(bench, "best_dtype", lambda device: bench.torch.float32)
    bench.main([*SMALL, "--jobs", "prompt", "prefix", "--runs", "2", "--json", str(tmp_path / "b.json")])
    (prompt,) = json.loads((tmp_path / "b.json").read_text())["measurements"]
    assert prompt["job"] == "prompt" and prompt["sides"]["ours"] == {"runs": [[1.0], [3.0]], "gb": 1.0}


def test_the_table_shows_the_turns_of_one_run_and_the_medians_of_several():
    """Worked by hand: three turns, then a second and a third run, whose medians are 3 and 4."""
    args = bench.parse_args(["--repeat", "3", "--answer", "10", "--batch-size", "2"])
    sides = {"ours": {"runs": [[1.0, 2.0, 5.0]], "gb": 1.0}, "PEFT": {"runs": [[4.0, 8.0, 10.0]], "gb": 4.0}}
    sides["products alone"] = {"runs": [[1.0, 1.0, 1.0]], "gb": 0.1}
    one = {"job": "prompt", "dtype": "float32", "rows": 50, "batch": 2, "sides": sides}
    text = bench.table([one], args, 0.0)
    line = "| float32 | 50 | 2 | 2.000 [1.000, 5.000] s, 1.0 GB | 8.000 [4.000, 10.000] s, 4.0 GB | 4.0x [2.0x, 4.0x] |"
    assert line in text and "of 3 turns." in text and "| 50% |" in text
    assert "| prompt tuning, a step | float32 | 4.0x [2.0x, 4.0x], float32 | 25% |" in text

    args.runs = 3
    for side, more in (("ours", [[3.0] * 3, [4.0] * 3]), ("PEFT", [[30.0] * 3, [8.0] * 3])):
        sides[side]["runs"] += more
    text = bench.table([one | {"job": "decode"}, one], args, 0.0)
    assert "| 3.000 [2.000, 4.000] s, 1.0 GB | 8.000 [8.000, 30.000] s, 4.0 GB | 4.0x [2.0x, 10.0x] |" in text
    assert "| 7 [5, 10] tok/s, 1.0 GB |" in text and "of the medians of 3 turns in 3 runs." in text
    with pytest.raises(ValueError, match="do not do the same work"):
        bench.check_agreement("prompt", "float32", {"ours": 1.0, "PEFT": 1.01})
    bench.check_agreement("prompt", "float32", {"ours": 1.0, "PEFT": 1.0001})
