"""README.md and docs/: their listings run, their commands parse, their links lead somewhere, and their tables are made
from the JSON files beside them."""

import importlib
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from research import figures

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "lessons" / "README.md", *DOCS]
LISTINGS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def run(argv, cwd=ROOT):
    done = subprocess.run([sys.executable, *map(str, argv)], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def listing(mark):
    (code,) = [code for code in LISTINGS if mark in code]
    return code


def test_pages_are_short():
    assert len(README.splitlines()) <= 130
    assert len((ROOT / "docs" / "results.md").read_text().split()) <= 1500


def test_the_three_lines_stand_once_in_the_source_word_for_word():
    lines = listing("past = self.past(network)")
    assert len(lines.splitlines()) == 3
    source = [re.sub(r"(?m)^ +", "", file.read_text()) for file in ROOT.glob("*.py")]
    assert sum(text.count(lines) for text in source) == 1


def test_the_library_listing_prints_what_its_comment_says():
    code = listing("from train_task import")
    assert run(["-c", code]).strip() == re.search(r"print\(.*\)  # (.*)", code)[1]


def test_the_listed_task_and_method_run(tmp_path):
    copy, ignore = tmp_path / "copy", shutil.ignore_patterns("nano-prose", "__pycache__")
    copy.mkdir()
    for file in ROOT.glob("*.py"):
        shutil.copy(file, copy)
    for name in ("data", "eval", "files", "methods", "research", "run", "tasks"):
        shutil.copytree(ROOT / name, copy / name, ignore=ignore)
    (copy / "tasks" / "sorting.py").write_text(listing("(Task):"))
    (copy / "methods" / "bounded.py").write_text(listing("(HybridPrefix):"))
    flags = "--task sorting --method bounded --examples 64 --test-examples 5 --beside none --out one".split()
    out = run(["train_task.py", *flags], copy)
    assert "sorting on nano-2" in out and "rows between -1 and 1" in out
    assert "rows between -1 and 1" in run(["-m", "research.measure", "one/prefix.safetensors"], copy)


def commands():
    """(page, module, arguments) of each command of README.md and docs/, but for those that make this environment."""
    for page in PAGES:
        for module, line in re.findall(r"python (-m [\w.]+|\w+\.py)([^#`|\n]*)", page.read_text()):
            module = module.removeprefix("-m ").removesuffix(".py")
            if module not in ("venv", "pytest"):
                yield page.name, module, line.replace("SEED", "0").replace("TASK", "addition")


@pytest.mark.parametrize("page, module, line", sorted(set(commands())))
def test_every_command_parses(page, module, line):
    if page == "hacking.md":  # about what its diffs add: test_hacking.py runs them
        return
    module = module if "." in module or (ROOT / f"{module}.py").exists() else f"{module}.__main__"
    importlib.import_module(module).parse_args([a for a in shlex.split(line) if a != "--help"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page):
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if link.startswith("http"):
            continue
        path, _, part = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        titles = re.findall(r"(?m)^#+ (.*)$", target.read_text()) if part else []
        slugs = [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles]
        assert not part or part in slugs, link


def test_generated_tables_are_those_of_the_json_files():
    assert figures.demo_table(json.loads((ROOT / "docs" / "addition.json").read_text())) in README
    files = sorted(figures.STUDY_FILES.glob("*.json"))
    assert len(files) > 10
    for file in files:
        assert figures.study_table(file)[-1] in (ROOT / "docs" / "results" / f"{file.stem}.md").read_text()
