"""bench.py: both sides have to agree before anything is timed; its times are not tested."""

import json
import subprocess
import sys

import pytest

pytest.importorskip("peft")
SMALL = ["--n-layer", "1", "--n-embd", "64", "--vocab-size", "300", "--rows", "4", "--batch-size", "2", "--repeat", "1"]


@pytest.mark.parametrize("arch, jobs", [("gpt2", ["prompt", "decode"]), ("llama", ["prefix", "decode"])])
def test_two_sides_of_the_same_work(tmp_path, arch, jobs):
    args = [*SMALL, "--arch", arch, "--jobs", *jobs, "--json", tmp_path / "b.json"]
    done = subprocess.run([sys.executable, "bench.py", *args], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {"gpt2": "GPT-2 of 1 layers", "llama": "Llama of 1 layers"}[arch] in done.stdout
    for r in json.loads((tmp_path / "b.json").read_text()):
        assert {"ours", "PEFT", "products alone"} <= r["sides"].keys()
        assert all(side["seconds"] > 0 for side in r["sides"].values())
