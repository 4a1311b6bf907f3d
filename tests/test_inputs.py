"""No input hurts: what was found once stands in a table, and heavy/fuzz.py looks for more. A broken input ends in one
line, a broken program in its traceback."""

import importlib
import json
import math
import os
import struct
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from files import errors, schemas
from files.errors import UserError
from files.safe import write_json
from tests.heavy.fuzz import KINDS, change, dump, judge, read_rows, try_one, working_set

DEEP = "[" * 100_000 + "]" * 100_000
pytestmark = pytest.mark.xdist_group("inputs")  # one working set will do
FEW = settings(max_examples=100 // len(KINDS), deadline=None, database=None, derandomize=True)


@pytest.fixture(scope="module")
def box():
    with working_set() as folder:
        yield folder


@pytest.mark.parametrize("kind", KINDS)
def test_random_damage(box, kind):
    """A few inputs; `make torture` tries 100,000."""

    @FEW
    @given(st.randoms(use_true_random=False))
    def try_many(rng):
        wrong, _, message, what = try_one(box, kind, lambda path: change(path, rng))
        assert wrong is None, f"{what}: {wrong}; {message}"

    try_many()


def test_the_judge_sees_what_is_wrong(box):
    """Each of its rules finds a program that breaks it."""
    for read, why in (
        (lambda box: {}["key"], "traceback: KeyError"),
        (lambda box: print("a line before", file=sys.stderr) or read_rows("nothing", box), "not one line"),
        (lambda box: b"x" * 300_000_000, "MB for a file"),
        (lambda box: open(box / "base" / "new", "w").close(), "wrote"),
        (lambda box: sys.exit(1), "exit code 1"),
    ):
        wrong, *_ = judge(read, box)
        assert wrong is not None and why in wrong, wrong
    (box / "base" / "new").unlink()
    assert judge(lambda box: open(box / "out" / "new", "w").close(), box)[0] is None


# ---------------------------------------------------------------- found once

DROP = object()


def set_json(**values):
    """Damage: a JSON file with some of its values exchanged; DROP removes one."""

    def damage(path):
        content = json.loads(path.read_text()) | values
        path.write_bytes(dump({k: v for k, v in content.items() if v is not DROP}))

    return damage


def set_tensors(header=None, **changes):
    """Damage: of a safetensors file the metadata, of which JSON is merged with a dict, and tensors by name."""

    def damage(path):
        tensors = {n: t.clone() for n, t in load_file(path).items()}
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
        for key, value in (header or {}).items():
            metadata[key] = json.dumps(json.loads(metadata[key]) | value) if isinstance(value, dict) else value
        for name, changed in changes.items():
            tensors[name] = changed(tensors[name])
        save_file(tensors, path, metadata={k: v for k, v in metadata.items() if v is not DROP})

    return damage


def init_kwargs(**values):
    return set_tensors({"init_kwargs": values})


def ten_terabytes(path):
    """Damage: the header of a safetensors file claims a tensor that would not fit into any memory."""
    header = {"wte.weight": {"dtype": "F32", "shape": [2_500_000_000_000], "data_offsets": [0, 10**13]}}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)


def nan_at(t, value=math.nan):
    t.view(-1)[1] = value
    return t


def first_token(new):
    """Damage: an encoding.json whose token of the byte 0 is another one."""
    return lambda path: set_json(tokens=[new, *json.loads(path.read_text())["tokens"][1:]])(path)


REFUSED = [
    *(("config", set_json(n_layer=v), "n_layer`") for v in ("2", 2.0, True, 0, 10**9, 10**30)),
    *(("config", set_json(**{k: v}), k) for k, v in {"n_head": 3, "vocab_size": DROP, "n_positions": 0}.items()),
    *(("config", set_json(**{k: v}), "asks for") for k, v in {"n_embd": 4096, "vocab_size": 2**24}.items()),
    *(("llama config", set_json(**{k: v}), k) for k, v in {"num_hidden_layers": 10**9, "rope_theta": 0}.items()),
    *((kind, lambda path: path.write_text(DEEP), "") for kind, (name, _) in KINDS.items() if name.endswith("json")),
    *(("encoding", set_json(tokens=v), "tokens") for v in (DROP, [5], [])),
    *(("encoding", set_json(pattern=v), "pattern") for v in (5, "", "a*", "(?=a)", "x", "(", "(a+)+$", "\\1")),
    *(("encoding", first_token(new), words) for new, words in (("ab", "no token for some bytes"), ("€", "tokens[0]"))),
    *(("prefix hybrid", set_tensors({k: DROP}), k) for k in ("format", "method", "init_kwargs", "base", "stop")),
    *(("prefix hybrid", set_tensors({"method": v}), "") for v in ("../x", "ptuning2", "warp", "scratch")),
    *(("prefix hybrid", set_tensors({"init_kwargs": v}), "init_kwargs") for v in ("[]", DEEP, "{")),
    ("prefix hybrid", set_tensors({"question_format": "}{"}), "question_format"),
    *(("prefix hybrid", init_kwargs(n_random=v), "n_random") for v in (10**9, -1, "3", True)),
    *(("prefix hybrid", init_kwargs(**{k: 1}), k) for k in ("model", "self", "labels", "mlp", "trigger")),
    *(("prefix hybrid", init_kwargs(trigger=v), "trigger") for v in ([-1], ["4"], [[4]], [40, 257])),
    ("prefix hybrid", init_kwargs(trigger=[40]), "torch.Size([5, 8])"),
    ("prefix hybrid", set_tensors(rows=nan_at), "'rows' holds NaN or infinite numbers"),
    *(("prefix warp", init_kwargs(labels=v), "") for v in ([5], [[257]], [[]], [])),
    ("prefix warp", set_tensors(label_tokens=lambda t: t + 10**9), "'label_tokens' holds tokens past"),
    *(("prefix adapter", init_kwargs(bottleneck=v), "") for v in (0, 10**9, None)),
    ("prefix text", set_tensors(shots=lambda t: t + 300), "'shots' holds tokens past"),
    *((kind, ten_terabytes, "cannot be read") for kind in ("weights", "prefix hybrid")),
    *(("weights", set_tensors(**{"wpe.weight": lambda t, v=v: nan_at(t, v)}), "NaN") for v in (-math.inf, math.nan)),
    ("weights", set_tensors(**{"wpe.weight": lambda t: t.to(torch.complex64)}), "'wpe.weight' is (64, 8) of type C64"),
    *(("index", set_json(weight_map={"wte.weight": v}), "no passwd in") for v in ("../../etc/passwd", "/etc/passwd")),
    *(("index", set_json(weight_map=v), "weight_map") for v in (DROP, {}, {"a": 5})),
    *(("peft lora config.json", set_json(r=v), "") for v in (DROP, 0, 10**9, "2")),
    *(("results of a page", set_json(**{k: DROP}), "no results of this version") for k in ("task", "validation")),
    ("results of a page", set_json(examples={"adapter": [1]}), "no results of this version (ValueError"),
    *((kind, lambda path: path.write_bytes(b"\xff\xfe\x00"), "is not UTF-8") for kind in ("jsonl", "csv")),
]


@pytest.mark.parametrize("case", range(len(REFUSED)), ids=lambda i: f"{i} {REFUSED[i][0]}")
def test_what_was_found_is_refused_in_one_line(box, case):
    kind, damage, words = REFUSED[case]
    wrong, code, message, _ = try_one(box, kind, damage)
    assert wrong is None and code == 2, wrong or message
    assert words in message


@pytest.mark.parametrize(
    "kind, text",
    [
        ("csv", '"' + "x" * 140_000 + '",red\n'),
        ("jsonl", DEEP + "\n" + '{"prompt": ' + DEEP + ', "answer": "red"}\n'),
    ],
)
def test_a_row_that_cannot_be_used_is_left_out(box, kind, text):
    wrong, code, message, _ = try_one(box, kind, lambda path: path.write_text(path.read_text() + text))
    assert wrong is None and code == 0, wrong or message


def test_a_text_is_the_same_from_every_system(tmp_path):
    for content in (b"one\ntwo\n", b"\xef\xbb\xbfone\r\ntwo\r\n", b"one\rtwo\r"):
        (tmp_path / "text").write_bytes(content)
        assert schemas.read_text(tmp_path / "text") == "one\ntwo\n"


def test_a_file_that_is_too_large_is_not_read(box, monkeypatch):
    monkeypatch.setattr("files.schemas.DATA_LIMIT", 100)
    wrong, code, message = judge(lambda box: read_rows("csv", box), box)
    assert wrong is None and code == 2 and "at most 100 are read" in message


def test_what_cannot_be_written_is_refused(command, box):
    done = command("research.peft", "import", box / "peft-hybrid", "/nowhere/x.safetensors", "--model", box / "base")
    assert (done.code, done.err.count("\n")) == (2, 1) and "/nowhere" in done.err
    with pytest.raises(UserError, match="/dev/null is no regular file"):  # a rename would take its place
        write_json("/dev/null", {})


# ---------------------------------------------------------------- how a command ends


@pytest.mark.parametrize("end, words", [("5 > /dev/full", "No space left"), ("5 >&-", ""), ("3000 | head -1", "")])
def test_streams_that_are_full_or_closed(end, words):
    line = f"set -o pipefail; {sys.executable} -m tasks addition --n {end}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
    assert done.returncode == (2 if words else 0)
    assert words in done.stderr and done.stderr.count("\n") == bool(words)


def ends(capsys, error):
    """(exit code, last line of stderr) of a command that shows a bar and then raises an error."""

    def main(argv):
        for i in tqdm(range(9), mininterval=0):
            if i == 3:
                raise error

    with pytest.raises(SystemExit) as end:
        errors.run_main(main, "program")
    return end.value.code, capsys.readouterr().err.splitlines()[-1]


def test_an_input_s_fault_is_one_line_and_a_program_s_is_its_traceback(capsys, monkeypatch):
    assert ends(capsys, UserError("a file\nis broken")) == (2, "program: a file is broken")
    assert ends(capsys, FileNotFoundError(2, "No such file", "x")) == (2, "program: x: No such file")
    assert ends(capsys, KeyboardInterrupt())[0] == 130
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setenv("RANK", "1")
    assert ends(capsys, UserError("broken")) == (2, "program: process 1: broken")
    for error in (ValueError, RuntimeError):
        with pytest.raises(error, match="ours"):
            ends(capsys, error("ours"))
    capsys.readouterr()
    with pytest.raises(SystemExit):
        errors.run_main(lambda argv: torch.empty(2**50), "program")
    err = capsys.readouterr().err
    assert err.startswith("program: process 1: the memory of this machine") and err.count("\n") == 1


@pytest.mark.parametrize(
    "program, variable, words",
    [
        ("sample.py", "TQDM_MININTERVAL", "cannot import tqdm (could not convert string to float: 'odd'): unset"),
        ("-m research.compare methods", "TORCH_LOGS", "python -m research.compare: cannot import torch (Invalid log"),
    ],
)
def test_a_library_that_cannot_be_imported_is_one_line(program, variable, words):
    command, env = [sys.executable, *program.split()], os.environ | {variable: "odd"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1) and words in done.stderr


def test_a_library_that_fails_within_a_command_is_one_line_and_a_module_of_ours_its_traceback(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "odd_library.py").write_text("int('x')")
    for name, line in (("odd_library", "cannot import odd_library"), ("none_such", "cannot import none_such")):
        with pytest.raises((ValueError, ImportError)) as error:
            importlib.import_module(name)
        assert line in errors.explain(error.value)
    with pytest.raises(ImportError) as error:
        exec("from files.safe import nothing")
    assert errors.explain(error.value) is None


# the working directory's name is all that a command has of ours with -I; -OO drops docstrings and asserts
@pytest.mark.parametrize("how", ["-I", "-OO"])
def test_a_command_needs_neither_its_folder_on_the_path_nor_docstrings(how):
    for program in ("sample.py --prompt 1 --max-new-tokens 1", "-m research.compare --help")[: 1 + (how == "-OO")]:
        done = subprocess.run([sys.executable, how, *program.split()], capture_output=True, text=True, cwd=ROOT)
        assert (done.returncode, done.stderr) == (0, "")


FIRST = """
import os, signal, sys
sys.argv = [os.path.abspath("train_task.py")]
sys.modules["__main__"].__file__ = sys.argv[0]
import files
from files import errors
print(os.environ.get("GOMP_SPINCOUNT"), "torch" in sys.modules, flush=True)
def main(argv):
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        print("cleaned up")
        raise RecursionError("what an import makes of it")
errors.run_main(main, "program") if "main" in os.environ["AT"] else signal.raise_signal(signal.SIGINT)
"""


@pytest.mark.parametrize("at", ["import", "main"])
@pytest.mark.parametrize("own", ["GOMP_SPINCOUNT", "OMP_WAIT_POLICY", None])
def test_ctrl_c_is_silent_from_the_first_line_and_threads_wait_as_the_user_says(at, own):
    known = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    env = known | {"AT": at} | ({own: "7"} if own else {})
    done = subprocess.run([sys.executable, "-c", FIRST], capture_output=True, text=True, cwd=ROOT, env=env)
    spins = {"GOMP_SPINCOUNT": "7", "OMP_WAIT_POLICY": "None", None: "1000"}[own]
    assert (done.returncode, done.stderr) == (130, "")
    assert done.stdout.splitlines() == [f"{spins} False"] + ["cleaned up"] * (at == "main")
