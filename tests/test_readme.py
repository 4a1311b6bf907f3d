"""README.md and docs/: listings run, commands parse, links lead somewhere, tables are those of the JSON files."""

import argparse
import importlib
import json
import re
import shlex
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, copy_source

from research import figures

README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "lessons" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LIBRARY, THREE_LINES, TASK, METHOD = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def run(*argv, cwd=ROOT):
    done = subprocess.run([sys.executable, *argv], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_three_lines_stand_once_in_the_source_word_for_word():
    assert len(THREE_LINES.splitlines()) == 3
    source = [re.sub(r"(?m)^ +", "", file.read_text()) for file in ROOT.glob("*.py")]
    assert sum(text.count(THREE_LINES) for text in source) == 1


def test_the_library_listing_prints_what_its_comment_says():
    assert run("-c", LIBRARY).strip() == re.search(r"print\(.*\)  # (.*)", LIBRARY)[1]


def test_the_listed_task_and_method_run(tmp_path):
    copy_source(tmp_path)
    shutil.copytree(ROOT / "data" / "nano-2", tmp_path / "data" / "nano-2")
    (tmp_path / "tasks" / "sorting.py").write_text(TASK)
    (tmp_path / "methods" / "bounded.py").write_text(METHOD)
    flags = "--task sorting --method bounded --examples 64 --test-examples 5 --beside none --out one"
    assert "sorting on nano-2" in run("train_task.py", *flags.split(), cwd=tmp_path)
    again = "-m research.measure one/prefix.safetensors --test-examples 5 --beside none"
    assert "rows between -1 and 1" in run(*again.split(), cwd=tmp_path)


def commands():
    """(page, module, arguments) of every command but those that make this environment."""
    for page in PAGES:
        for module, line in re.findall(r"python (-m [\w.]+|\w+\.py)([^#`|\n]*)", page.read_text()):
            module = {"-m tasks": "tasks.__main__"}.get(module, module.removeprefix("-m ").removesuffix(".py"))
            if module not in ("venv", "pytest") and page.name != "hacking.md":  # that page has a test of its own
                yield page.name, module, line.replace("SEED", "0").replace("TASK", "addition")


@pytest.mark.parametrize("page, module, line", sorted(set(commands())))
def test_every_command_parses(page, module, line, monkeypatch):
    parse, module = argparse.ArgumentParser.parse_args, importlib.import_module(module)

    def parse_and_stop(parser, argv=None):
        parse(parser, argv)
        raise KeyboardInterrupt

    argv = [a for a in shlex.split(line) if a != "--help"]
    if hasattr(module, "parse_args"):  # which may check more than the parser does
        module.parse_args(argv)
        return
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
    with pytest.raises(KeyboardInterrupt):
        module.main(argv)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page):
    for link in re.findall(r"\]\((?!http)([^)]+)\)", page.read_text()):
        path, _, part = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        titles = re.findall(r"(?m)^#+ (.*)$", target.read_text()) if part else []
        assert part in ["", *(re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles)], link


def test_tables_are_those_of_the_json_files():
    assert figures.demo_table(json.loads((ROOT / "docs" / "addition.json").read_text())) in README
    files = sorted((ROOT / "docs" / "results").glob("*/*.json"))
    assert len(files) > 10
    for file in files:
        assert figures.study_table(file)[-1] in (ROOT / "docs" / "results" / f"{file.stem}.md").read_text()
