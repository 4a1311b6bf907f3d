"""README.md: its listings run as they stand, its commands exist, and its three lines are those of the source."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import sample
import train_task
from files import peft as peft_io
from research import bench, compare, pretrain, speedrun

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
LISTINGS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
PARSERS = {"train_task": train_task, "compare": compare, "sample": sample, "bench": bench, "pretrain": pretrain}
PARSERS["speedrun"] = speedrun


def test_the_three_lines_stand_once_in_the_source_word_for_word():
    (lines,) = [code for code in LISTINGS if code.startswith("past = ")]
    assert len(lines.splitlines()) == 3
    source = [re.sub(r"(?m)^ +", "", file.read_text()) for file in ROOT.glob("*.py")]
    assert sum(text.count(lines) for text in source) == 1


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of the program with README's task and method in it."""
    folder = tmp_path_factory.mktemp("copy")
    for file in ROOT.glob("*.py"):
        shutil.copy(file, folder)
    not_needed = shutil.ignore_patterns("nano-prose", "__pycache__")
    for name in ("tasks", "eval", "data"):
        shutil.copytree(ROOT / name, folder / name, ignore=not_needed)
    (method,) = [code for code in LISTINGS if "(Method):" in code]
    (task,) = [code for code in LISTINGS if "(Task):" in code]
    assert len(method.splitlines()) <= 20 and len(task.splitlines()) <= 20
    before, line, after = (folder / "prefix.py").read_text().partition("METHODS = ")
    (folder / "prefix.py").write_text(f"{before}{method}\n\n{line}{after}")
    (folder / "tasks" / "sorting.py").write_text(task)
    return folder


def test_the_listed_task_and_method_run(copy, tmp_path):
    command = [sys.executable, "train_task.py", "--task", "sorting", "--test-examples", "5", "--beside", "none"]
    saved = tmp_path / "one" / "prefix.safetensors"
    for flags, out in (["--method", "scaled", "--examples", "64"], "one"), (["--load", saved], "two"):
        argv = [*command, *flags, "--out", tmp_path / out]
        done = subprocess.run(argv, cwd=copy, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "sorting on nano-2" in done.stdout and "scaled trigger" in done.stdout


def test_every_command_of_the_readme_and_the_docs_is_one_that_exists():
    found = 0
    docs = set((ROOT / "docs").glob("*.md")) - {ROOT / "docs" / "hacking.md"}  # test_hacking.py runs that page's own
    for file in (ROOT / "README.md", *docs):
        for program, line in re.findall(r"python (\w+)\.py ([^#`\n]*)", file.read_text()):
            line = line.replace("SEED", "0").replace("TASK", "addition")
            if program in PARSERS:
                PARSERS[program].parse_args(shlex.split(line))
                found += 1
    assert found > 15


def test_peft_commands_name_what_exists():
    for what in re.findall(r"python peft_io\.py (\w+)", README):
        assert what in peft_io.__doc__
