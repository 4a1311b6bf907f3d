"""docs/hacking.md: every diff applies to the tree and does what the page says."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from files.weights import save_model
from model import GPT, GPTConfig

pytestmark = pytest.mark.xdist_group("hacking")  # one process makes the runs
ROOT = Path(__file__).parent.parent
DOC = (ROOT / "docs" / "hacking.md").read_text()
PARTS = dict(re.findall(r"(?s)\n## (.*?)\n(.*?)(?=\n## |\Z)", DOC))
DIFFS = {title: re.search(r"(?s)```diff\n(.*?)```", text)[1] for title, text in PARTS.items()}
COMMANDS = {title: re.findall(r"(?m)^    python (.*)$", text) for title, text in PARTS.items()}

SEEN = """
import json, sys, torch
import model, prefix, train_task
from eval import page, plots

plots.write = lambda fig, path: path.touch() if path else "data:,"
for argv in json.load(sys.stdin):
    train_task.main(argv)
page.main(["out/A metric"])
config = model.GPTConfig(100, 9, 1, 1, 4)
values = torch.randn(1, 1, 3, 4)
causal = torch.full((3, 3), -torch.inf).triu(1)
read = model.Attention(config).attend(torch.zeros_like(values), torch.randn_like(values), values, causal)
(optimizer,) = prefix.HybridPrefix(model.GPT(config), 2).optimizers(1, None)
print(json.dumps({"values": values.tolist(), "read": read.tolist(), "optimizer": type(optimizer).__name__}))
"""


def copy_of_the_tree(folder):
    for file in ROOT.glob("*.py"):
        shutil.copy(file, folder)
    for name in ("tasks", "eval", "data"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("nano*", "__pycache__"))


def apply(diff, folder):
    done = subprocess.run(["git", "apply", "-"], cwd=folder, input=diff, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("title", DIFFS)
def test_each_diff_is_short_and_applies_alone(title, tmp_path):
    assert len(DIFFS[title].splitlines()) <= 20
    assert COMMANDS[title]
    copy_of_the_tree(tmp_path)
    apply(DIFFS[title], tmp_path)


@pytest.fixture(scope="module")
def changed(tmp_path_factory):
    """A copy of the tree with all of them, a tiny base of random weights in data/mine, and each command run on it."""
    folder = tmp_path_factory.mktemp("changed")
    copy_of_the_tree(folder)
    for diff in DIFFS.values():
        apply(diff, folder)
    torch.manual_seed(0)
    mine = folder / "data" / "mine"
    save_model(GPT(GPTConfig(vocab_size=1024, block_size=256, n_layer=2, n_head=2, n_embd=32)), mine)
    shutil.copy(ROOT / "data" / "nano-2" / "encoding.json", mine)
    few = "--task word_reversal --model mine --examples 16 --batch-size 4 --test-examples 4".split()
    lines = []
    for title, commands in COMMANDS.items():
        for command in commands:
            program, *argv = shlex.split(command)
            if program == "train_task.py":
                beside = "lora" if title == "A metric" else "none"  # which leaves out zero-shot as well
                lines.append([*few, *argv, "--beside", beside, "--out", f"out/{title}"])
    command = [sys.executable, "-c", SEEN]
    done = subprocess.run(command, cwd=folder, input=json.dumps(lines), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def results(folder, title):
    return json.loads((folder / "out" / title / "results.json").read_text())


def test_all_of_them_run_together(changed):
    folder, out = changed
    assert len(list(folder.glob("out/*/results.json"))) == len(DIFFS) - 1  # the page's command makes none
    task = results(folder, "A task")
    assert task["task"] == "largest_digit" and task["base"]["name"] == "mine"
    assert {a["n"] for a in task["accuracy"]["hybrid"].values()} == {4}
    method, prompt = results(folder, "A method"), results(folder, "A base")
    rows = prompt["prompt"]["rows"]
    assert method["trainable"]["shift"] == 32 and prompt["trainable"]["hybrid"] == 32 * rows
    first, *_, last = method["loss"]["shift"]["loss"]
    assert first != last


def test_the_metric_is_in_the_table_and_right(changed):
    folder, out = changed
    assert "how far answers go before the first wrong character, %" in out
    scores = results(folder, "A metric")["accuracy"]["zero-shot"]
    details = json.loads((folder / "out" / "A metric" / "details.json").read_text())
    for name, questions in details["questions"].items():
        far = 0
        for (_, truth, _), answer in zip(questions, details["written"]["accuracy"]["zero-shot"][name]):
            text = truth if answer is None else answer[0]
            far += sum(truth.startswith(text[: i + 1]) for i in range(min(len(text), len(truth)))) / len(truth)
        assert abs(scores[name]["until_wrong"] - far) < 1e-9


def test_a_head_may_attend_to_nothing(changed):
    """With queries of zero, T positions and nothing get the same weight each."""
    seen = json.loads(changed[1].splitlines()[-1])
    values, read = torch.tensor(seen["values"]), torch.tensor(seen["read"])  # (1, 1, 3, 4) each
    torch.testing.assert_close(read, values.cumsum(2) / torch.tensor([2, 3, 4])[:, None])


def test_the_page_and_the_optimizer_are_changed(changed):
    folder, out = changed
    assert json.loads(out.splitlines()[-1])["optimizer"] == "SGD"
    assert COMMANDS["The page"] == ["-m eval.page out/addition-nano-2"]
    assert "Lecture 3" in (folder / "out" / "A metric" / "report.html").read_text()


def test_every_file_and_name_of_the_map_exists():
    table = DOC[: DOC.index("\n## ")]
    for row in re.findall(r"(?m)^\| (?!to change|---)(.*) \|$", table):
        _, files, names = row.split(" | ")
        found = [ROOT / f for f in re.findall(r"`([^`]+)`", files)]
        assert all(f.exists() for f in found), row
        text = "".join(f.read_text() for f in found if f.is_file()) + "".join(
            f.read_text() for folder in [ROOT / "tasks"] * (not found or found[0].is_dir()) for f in folder.glob("*.py")
        )
        for name in re.findall(r"`([^`]+)`", names):
            assert name.split(".")[-1] in text, name
