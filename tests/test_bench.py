"""research/bench.py: both sides have to agree before anything is timed; its times are not tested."""

import json

import pytest
import torch

pytest.importorskip("peft")
from files.errors import UserError
from files.weights import save_model
from llama import Llama
from model import GPT
from research import bench

SMALL = ["--n-layer", "1", "--n-embd", "64", "--vocab-size", "300", "--rows", "4", "--batch-size", "2", "--repeat", "1"]
SMALL += ["--answer", "5", "--device", "cpu"]


@pytest.mark.parametrize("arch", ["gpt2", "llama"])
def test_both_sides_do_the_same_work(tmp_path, arch):
    """Here in one process; each turn works on what the one before has left."""
    args = bench.parse_args([*SMALL, "--arch", arch])
    torch.manual_seed(0)
    model = (Llama if arch == "llama" else GPT)(bench.shape(args)).freeze()
    save_model(model, tmp_path)
    for job in bench.JOBS:
        w = bench.work_of(args, model, tmp_path, job, "float32")
        ours, peft, products = (side(w) for side in bench.SIDES.values())
        for _ in range(2):
            bench.check_agreement(job, ours(), peft())
        assert products() == 0


def test_each_side_is_timed_in_a_process_of_its_own(tmp_path, capfd):
    args = bench.parse_args(SMALL)
    model = GPT(bench.shape(args))
    save_model(model, tmp_path)
    w = bench.work_of(args, model, tmp_path, "prompt", "float32")
    side = bench.measure(w, ["ours"])["ours"]
    assert len(side["seconds"]) == 1 and side["seconds"][0] > 0 and side["gb"] > 0 and side["out"] == bench.ours(w)()
    w.folder = tmp_path / "nowhere"
    with pytest.raises(UserError, match="prompt, float32: ours broke off"):
        bench.measure(w, ["ours"])
    assert "nowhere" in capfd.readouterr().err


def test_the_command_checks_that_the_sides_agree_and_writes_its_numbers(tmp_path, monkeypatch, capsys):
    """The sides are not started."""
    sides = {name: {"seconds": [1.0], "gb": 1.0, "out": 2.0} for name in bench.SIDES}
    monkeypatch.setattr(bench, "measure", lambda *_: {name: dict(side) for name, side in sides.items()})
    bench.main([*SMALL, "--jobs", "prompt", "--json", str(tmp_path / "b.json")])
    assert "gpt2, 1 layers" in capsys.readouterr().out
    r = json.loads((tmp_path / "b.json").read_text())[0]
    assert r["job"] == "prompt" and r["sides"]["PEFT"] == {"seconds": [1.0], "gb": 1.0}
    sides["PEFT"]["out"] = 2.1
    with pytest.raises(UserError, match="do not do the same work"):
        bench.main([*SMALL, "--jobs", "prompt"])


def test_the_table_shows_medians_and_ranges():
    """Worked by hand, from three turns."""
    args = bench.parse_args(["--repeat", "3", "--answer", "10", "--batch-size", "2"])
    sides = {"ours": {"seconds": [1.0, 2.0, 5.0], "gb": 1.0}, "PEFT": {"seconds": [4.0, 8.0, 10.0], "gb": 4.0}}
    sides["products alone"] = {"seconds": [1.0, 1.0, 1.0], "gb": 0.1}
    text = bench.table([{"job": job, "dtype": "float32", "sides": sides} for job in ("prompt", "decode")], args)
    assert "of 3 turns." in text
    line = "| float32 | 2.000 [1.000, 5.000] s, 1.0 GB | 8.000 [4.000, 10.000] s, 4.0 GB | 4.0x [2.0x, 4.0x] | 50% |"
    assert line in text and "| 10 [4, 20] tok/s, 1.0 GB | 2 [2, 5] tok/s, 4.0 GB | 4.0x [2.0x, 4.0x] |" in text
