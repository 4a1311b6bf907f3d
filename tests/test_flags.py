"""The flags of train_task.py: what is refused, in one line, and how a method in methods/ gets its own."""

import subprocess
import sys

import pytest
from conftest import ROOT, copy_source

from files.errors import UserError
from prefix import METHODS
from train_task import parse_args

BAD = [
    ("--task sums", "no task 'sums': choose from addition"),
    ("--task none.jsonl", "no file none.jsonl"),
    ("--task addition none.jsonl", "--task addition none.jsonl: give one task"),
    ("--task rows.csv --columns text text", "name two, the prompt's and the answer's"),
    ("--model tests", "/tests: a model is a folder with config.json"),
    ("--n-random 0 --trigger none", "no rows"),
    ("--n-random 250", "a prompt of 2"),
    ("--shots 50", "exceed block_size 256: use fewer rows or shots"),
    ("--init-from README.md", "README.md cannot be read"),
    ("--trigger examples:x", "argument --trigger: 'x' is not a whole number"),
    ("--trigger examples:0", "argument --trigger: 0: give a number from 1 to 999"),
    ("--out README.md --overwrite", "README.md is a file: give another --out"),
    ("--trigers add", "unrecognized arguments: --trigers"),
    ("--examples many", "'many' is not a whole number"),
    ("--lr 0", "--lr: 0: give a number from 1e-30"),
    ("--lr nan", "--lr: nan: give"),
    ("--batch-size 0", "--batch-size: 0: give a number from 1"),
    ("--beside none lora", "none stands alone"),
    ("--device mps", "--device mps: this machine has none"),
    ("--out /dev/null", "/dev/null"),
    ("--out /proc/nothing", "/proc/nothing: No such file or directory"),
    ("--layers 1", "--layers is not for --method hybrid: it is an option of adapter-prefix"),
    ("--method lora --rank 0", "argument --rank: 0: give a number from 1 to 4096"),
    ("--method lora --rank 1_0", "argument --rank: '1_0' is not a whole number"),
    ("--method cpt --n-random 50", "--method cpt has no random rows: leave out --n-random"),
    ("--method text --trigger none", "--method text begins as a trigger: leave out --trigger none"),
    ("--method prompt --init trigger --trigger none", "--method prompt begins as a trigger"),
    ("--method scratch --init-from README.md", "--method scratch: leave out --init-from"),
    ("--method few-shot --shots 2", "--method few-shot: leave out --init-from and --shots"),
]


@pytest.mark.parametrize("flags, message", BAD, ids=[flags for flags, _ in BAD])
def test_bad_input_gets_one_line_and_code_2(run, tmp_path, flags, message):
    done = run("--out", tmp_path / "run", *flags.split())
    (line,) = [line for line in done.err.splitlines() if line and "candidates/s" not in line]  # without a bar
    assert done.code == 2 and line.startswith("train_task.py: ") and message in line
    assert not (tmp_path / "run").exists()


def test_a_method_shows_its_own_options_and_no_other(run):
    plain, lora = run("--help").ok(), run("--method", "lora", "--help").ok()
    for word in ("--task", "--trigger", "--quick", "default 1000", *METHODS):
        assert word in plain.out
    assert "--rank" in lora.out and "--alpha" in lora.out and "--mlp" not in lora.out
    assert "--rank" not in plain.out and "--mlp" not in plain.out


def test_defaults_follow_the_task_and_the_method():
    args = parse_args([])
    assert (args.n_random, args.model, args.beside, args.test_examples) == (24, "nano-2", ["scratch"], 500)
    assert parse_args(["--task", "a.jsonl", "--answer-after", "examples:"]).answer_after == "examples:"
    args = parse_args("--task own.jsonl --method lora --quick --rank 4".split())
    assert (args.n_random, args.model, args.test_examples, args.options) == (0, "smollm2", 60, {"rank": 4})
    assert parse_args(["--model", "tests/../data"]).model == str(ROOT / "data")  # which another folder finds too
    with pytest.raises(UserError, match="--method nothing: choose from hybrid, "):
        parse_args(["--method", "nothing"])


OF_MINE = """
import prefix

class Mine(prefix.HybridPrefix):
    name, label, options = "mine", "mine", {"rank": {"type": float, "help": "half a rank"}}

    def __init__(self, model, n_random=0, trigger=(), seed=0, rank=0.5):
        super().__init__(model, n_random, trigger, seed)
"""
SEEN = """
import json
from files.errors import run_main
from train_task import main, parse_args
print(json.dumps([parse_args(argv.split()).options for argv in ("--method mine --rank 0.5", "--method lora --rank 4")]))
try:
    parse_args(["--method", "mine", "--help"])
except SystemExit:
    run_main(main, "train_task.py", ["--method", "half"])
"""


def test_a_file_in_methods_is_a_method_and_a_broken_one_leaves_the_others(tmp_path):
    """A file without a docstring, whose option has the name of another method's and another type."""
    copy_source(tmp_path)
    (tmp_path / "methods" / "mine.py").write_text(OF_MINE)
    (tmp_path / "methods" / "half.py").write_text("import prefix\nclass Half(prefix.NoSuchClass):\n    pass\n")
    (tmp_path / "methods" / "twice.py").write_text("import prefix\nclass Mine(prefix.Method):\n    name = 'mine'\n")
    done = subprocess.run([sys.executable, "-c", SEEN], cwd=tmp_path, capture_output=True, text=True)
    options, _, shown = done.stdout.partition("\n")
    assert options == '[{"rank": 0.5}, {"rank": 4}]'
    assert "half a rank" in shown and "mine" in shown.partition("methods: ")[2]
    left_out, twice, *traceback = done.stderr.splitlines()
    assert left_out.startswith("methods/half.py is left out: AttributeError")
    assert twice.startswith("methods/twice.py is left out: AssertionError: methods.mine has a method 'mine' as well")
    assert done.returncode == 1 and 'half.py", line 2' in done.stderr and "NoSuchClass" in traceback[-1]
