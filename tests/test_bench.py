"""bench.py: both sides have to agree before anything is timed; its times are not tested."""

import json
import subprocess
import sys

import pytest

pytest.importorskip("peft")
import bench

SMALL = ["--n-layer", "1", "--n-embd", "64", "--vocab-size", "300", "--rows", "4", "--batch-size", "2", "--repeat", "1"]


@pytest.mark.parametrize("arch, jobs", [("gpt2", ["prompt"]), ("llama", ["prefix", "decode"])])
def test_two_sides_of_the_same_work(tmp_path, arch, jobs):
    args = [*SMALL, "--arch", arch, "--jobs", *jobs, "--json", tmp_path / "b.json"]
    done = subprocess.run([sys.executable, "bench.py", *args], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {"gpt2": "GPT-2 of 1 layers", "llama": "Llama of 1 layers"}[arch] in done.stdout
    measurements = json.loads((tmp_path / "b.json").read_text())["measurements"]
    assert [r["job"] for r in measurements] == jobs
    for r in measurements:
        assert {"ours", "PEFT", "products alone"} <= r["sides"].keys()
        assert all([len(turns) for turns in side["runs"]] == [1] for side in r["sides"].values())
        assert all(seconds > 0 for side in r["sides"].values() for turns in side["runs"] for seconds in turns)


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
