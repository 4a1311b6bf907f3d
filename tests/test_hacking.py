"""docs/hacking.md: each diff applies alone, and all of them together do what the page says."""

import json
import re
import shlex
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, assert_close, copy_source

pytestmark = pytest.mark.xdist_group("hacking")  # one process makes the runs
DOC = (ROOT / "docs" / "hacking.md").read_text()
PARTS = dict(re.findall(r"(?s)\n## (.*?)\n(.*?)(?=\n## |\Z)", DOC))
DIFFS = {title: re.search(r"(?s)```diff\n(.*?)```", text)[1] for title, text in PARTS.items()}
COMMANDS = {title: re.search(r"(?m)^    python (.*)$", text)[1] for title, text in PARTS.items()}
SEEN = """
import json, sys, torch
import model, prefix, train_task
from eval import page

for argv in json.load(sys.stdin):
    train_task.main(argv)
page.main(["out/A metric"])
values = torch.randn(1, 1, 3, 4)
causal = torch.full((3, 3), -torch.inf).triu(1)
read = model.Attention(model.GPTConfig(100, 9, 1, 1, 4)).attend(torch.zeros(1, 1, 3, 4), values, values, causal)
(optimizer,) = prefix.HybridPrefix(model.GPT(model.GPTConfig(100, 9, 1, 1, 4)), n_random=2).optimizers(1, None)
print(json.dumps({"values": values.tolist(), "read": read.tolist(), "optimizer": type(optimizer).__name__}))
"""


def copy_and_apply(folder, *diffs):
    copy_source(folder)
    for diff in diffs:
        done = subprocess.run(["git", "apply", "-"], cwd=folder, input=diff, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("title", DIFFS)
def test_each_diff_is_short_and_applies_alone(title, tmp_path):
    assert len(DIFFS[title].splitlines()) <= 20
    copy_and_apply(tmp_path, DIFFS[title])


@pytest.fixture(scope="module")
def changed(tmp_path_factory, little_base):
    """A copy of the tree with all of the diffs, in which each command has run on a tiny base."""
    folder = tmp_path_factory.mktemp("changed")
    copy_and_apply(folder, *DIFFS.values())
    base = little_base(folder / "base", n_layer=2, n_embd=32)
    few = f"--task word_reversal --model {base} --examples 4 --batch-size 2 --test-examples 4".split()
    lines = []
    for title, command in COMMANDS.items():
        program, *argv = shlex.split(command)
        if program == "train_task.py":
            beside = "lora" if title == "A metric" else "none"  # without baselines there is no page
            lines.append([*few, *argv, "--beside", beside, "--out", f"out/{title}"])
    argv = [sys.executable, "-c", SEEN]
    done = subprocess.run(argv, cwd=folder, input=json.dumps(lines), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout, json.loads(done.stdout.splitlines()[-1])


def read(folder, title, name="results.json"):
    return json.loads((folder / "out" / title / name).read_text())


def test_the_method_tunes_one_vector(changed):
    results = read(changed[0], "A method")
    first, *_, last = results["loss"]["shift"]["loss"]
    assert results["trainable"]["shift"] == 32 and first != last


def test_the_metric_is_in_the_table_and_right(changed):
    folder, out, _ = changed
    assert "how far answers go before the first wrong character, %" in out
    scores, details = read(folder, "A metric")["accuracy"]["text"], read(folder, "A metric", "details.json")
    for name, questions in details["questions"].items():
        far = 0
        for (_, truth, _), answer in zip(questions, details["written"]["accuracy"]["text"][name]):
            text = truth if answer is None else answer[0]
            far += sum(truth.startswith(text[: i + 1]) for i in range(min(len(text), len(truth)))) / len(truth)
        assert abs(scores[name]["until_wrong"] - far) < 1e-9


def test_a_head_may_attend_to_nothing(changed):
    """With queries of zero, each of the positions and nothing get the same weight."""
    values, seen = torch.tensor(changed[2]["values"]), torch.tensor(changed[2]["read"])  # (1, 1, 3, 4) each
    assert_close(seen, values.cumsum(2) / torch.tensor([2, 3, 4])[:, None])


def test_the_page_and_the_optimizer_are_others(changed):
    assert "Lecture 3" in (changed[0] / "out" / "A metric" / "report.html").read_text()
    assert changed[2]["optimizer"] == "SGD"


def test_every_file_and_name_of_the_map_exists():
    for row in re.findall(r"(?m)^\| (?!to change|---)(.*) \|$", DOC[: DOC.index("\n## ")]):
        _, files, names = row.split(" | ")
        found = [ROOT / name for name in re.findall(r"`([^`]+)`", files)] or [ROOT / "tasks"]
        text = "".join(f.read_text() for path in found for f in (path.glob("*.py") if path.is_dir() else [path]))
        assert all(name.split(".")[-1] in text for name in re.findall(r"`([^`]+)`", names)), row
