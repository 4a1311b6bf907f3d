"""No input hurts: what was found once stands in tables, and fuzz.py looks for more. A broken input ends in one line."""

import json
import math
import os
import struct
import subprocess
import sys

import pytest
import torch
from fuzz import KINDS, change, dump, judge, read_rows, try_one, working_set
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from files import errors as cli
from files.safe import write_json
from generate import next_token

DEEP = "[" * 100_000 + "]" * 100_000
FEW = settings(max_examples=1 + 300 // len(KINDS), deadline=None, database=None, derandomize=True)


@pytest.fixture(scope="module")
def box():
    with working_set() as folder:
        yield folder


@pytest.mark.parametrize("kind", KINDS)
def test_random_damage(box, kind):
    """300 inputs; `make torture` tries 100,000."""

    @FEW
    @given(st.randoms(use_true_random=False))
    def try_many(rng):
        wrong, _, message, what = try_one(box, kind, lambda path: change(path, rng))
        assert wrong is None, f"{what}: {wrong}; {message}"

    try_many()


def test_the_judge_sees_what_is_wrong(box):
    """Each of its rules finds a program that breaks it."""

    def fails(read, why, size=0):
        wrong, *_ = judge(read, box, size)
        assert wrong is not None and why in wrong, wrong

    fails(lambda box: {}["key"], "traceback: KeyError")
    fails(lambda box: print("a line before", file=sys.stderr) or int("x"), "not one line")
    fails(lambda box: b"x" * 300_000_000, "MB for a file")
    fails(lambda box: open(box / "base" / "new", "w").close(), "wrote")
    os.unlink(box / "base" / "new")
    fails(lambda box: sys.exit(1), "exit code 1")
    assert judge(lambda box: open(box / "out" / "new", "w").close(), box)[0] is None


# ---------------------------------------------------------------- found once


def set_json(**values):
    """Damage: a JSON file with some of its values exchanged; DROP removes one."""

    def damage(path):
        content = json.loads(path.read_text()) | values
        path.write_text(dump({k: v for k, v in content.items() if v is not DROP}))

    return damage


def set_text(text):
    return lambda path: path.write_text(text)


def add_text(text):
    return lambda path: path.write_text(path.read_text() + text)


DROP = object()


def set_header(**values):
    """Damage: a prefix file's metadata; a dict is merged into the JSON that stands there."""

    def damage(path):
        tensors = load_file(path)
        with safe_open(path, framework="pt") as file:
            header = file.metadata()
        for key, value in values.items():
            if isinstance(value, dict):
                given = json.loads(header[key]) | value
                value = dump({k: v for k, v in given.items() if v is not DROP})
            header[key] = value
        save_file(tensors, path, metadata={k: v for k, v in header.items() if v is not DROP})

    return damage


def set_tensor(name, change):
    def damage(path):
        tensors = {n: t.clone() for n, t in load_file(path).items()}
        with safe_open(path, framework="pt") as file:
            header = file.metadata()
        tensors[name] = change(tensors[name])
        save_file(tensors, path, metadata=header)

    return damage


def set_raw_header(change):
    """Damage: the JSON header of a safetensors file, without anything that would keep it consistent."""

    def damage(path):
        content = path.read_bytes()
        n = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + n])
        change(header)
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + n :])

    return damage


def overlap(header):
    first, second = [name for name in header if name != "__metadata__"][:2]
    header[second] = header[first]


def ten_terabytes(header):
    name = next(name for name in header if name != "__metadata__")
    header[name] = {"dtype": "F32", "shape": [2_500_000_000_000], "data_offsets": [0, 10**13]}


def nan_at(t, value=math.nan):
    t.view(-1)[1] = value
    return t


def pipe(path):
    path.unlink()
    os.mkfifo(path)


def zero(path):
    path.unlink()
    path.symlink_to("/dev/zero")


def loop(path):
    path.unlink()
    path.symlink_to(path)


def folder(path):
    path.unlink()
    path.mkdir()


JSON_KINDS = [kind for kind, (name, _) in KINDS.items() if name.endswith(".json")]
OPTIONAL = "config", "encoding"  # which a checkpoint may lack, so that another message follows
SAFETENSORS = "weights", "shard", "prefix hybrid", "peft lora weights"
REFUSED = [
    *(("config", set_json(n_layer=v), "n_layer`") for v in ("2", 2.0, None, [2], True, -1, 0)),
    *(("config", set_json(n_layer=v), "n_layer`") for v in (10**9, 100_000, 10**30, {})),
    *(("config", set_json(**{k: v}), k) for k, v in {"n_head": 0, "n_embd": -32, "vocab_size": -5}.items()),
    *(("config", set_json(**{k: v}), k) for k, v in {"n_embd": 10**12, "n_positions": 0, "n_head": 3}.items()),
    *(("config", set_json(**{k: DROP}), k) for k in ("n_layer", "n_head", "n_embd", "vocab_size", "n_positions")),
    ("config", set_json(n_embd=4096, n_head=64), "asks for"),
    ("config", set_json(n_layer=256), "says 256 layers, the weights have 2"),
    ("config", set_json(vocab_size=2**24), "asks for"),
    *(("llama config", set_json(**{k: v}), k) for k, v in {"num_hidden_layers": 10**9, "hidden_size": "16"}.items()),
    *(("llama config", set_json(**{k: v}), "heads") for k, v in {"num_key_value_heads": 3, "head_dim": 5}.items()),
    ("llama config", set_json(rope_parameters={"rope_type": "llama3", "rope_theta": 1e4}), "how positions turn"),
    ("llama config", set_json(rope_theta=0), "rope_theta"),
    ("llama config", set_json(max_position_embeddings=-1), "max_position_embeddings"),
    *((kind, set_text(DEEP), "") for kind in JSON_KINDS),
    *((kind, set_text('{"x":' * 100_000 + "1" + "}" * 100_000), "") for kind in JSON_KINDS),
    *((kind, set_text(text), "") for kind in JSON_KINDS for text in ("", "null", "[]", "NaN", '{"x": NaN}', "\x00")),
    *((kind, damage, "") for kind in KINDS for damage in (pipe, zero, folder, loop) if kind not in OPTIONAL),
    *(("encoding", set_json(**{k: DROP}), f"`{k}`") for k in ("tokens", "name", "pattern")),
    *(("encoding", set_json(tokens=v), "tokens") for v in (5, None, {}, [5], "text", [])),
    *(("encoding", set_json(pattern=v), "pattern") for v in (5, None, "", "a*", "(?=a)", "x", "(", "(a+)+$", "\\1")),
    ("encoding", lambda path: set_json(tokens=json.loads(path.read_text())["tokens"][1:] + ["ab"])(path), "the byte 0"),
    ("encoding", lambda path: set_json(tokens=json.loads(path.read_text())["tokens"][1:] + ["€"])(path), "of bytes"),
    *(
        ("prefix hybrid", set_header(**{k: DROP}), k if k != "format" else "is no prefix")
        for k in (
            *("format", "method", "init_kwargs", "base", "base_fingerprint", "tokenizer", "tokenize"),
            *("trigger", "question_format", "stop"),
        )
    ),
    *(("prefix hybrid", set_header(method=v), "is of the method") for v in ("none", "", "Method", "../x")),
    *(("prefix hybrid", set_header(method=v), "") for v in ("ptuning2", "warp", "finetune", "scratch", "hard")),
    ("prefix hybrid", set_header(tokenize="letters of old"), "tokenize"),
    *(("prefix hybrid", set_header(question_format=v), "question_format") for v in ("", "x", "{", "}{")),
    *(("prefix hybrid", set_header(init_kwargs=v), "init_kwargs") for v in ("", "[]", "null", "5", DEEP, "{")),
    *(("prefix hybrid", set_header(init_kwargs={"n_random": v}), "n_random") for v in (10**9, 10**12, -1)),
    *(("prefix hybrid", set_header(init_kwargs={"n_random": v}), "n_random") for v in ("3", None, 3.0, [], True)),
    ("prefix hybrid", set_header(init_kwargs={"n_random": DROP}), "n_random"),
    *(("prefix hybrid", set_header(init_kwargs={k: 1}), k) for k in ("model", "self", "labels", "x", "cls")),
    *(("prefix hybrid", set_header(init_kwargs={"mlp": v}), "mlp") for v in (1, "yes", None, [])),
    *(("prefix hybrid", set_header(init_kwargs={"seed": v}), "seed") for v in (-1, 2**64, "0", 0.5)),
    *(("prefix hybrid", set_header(init_kwargs={"trigger": v}), "trigger") for v in (5, "4", [-1], ["4"], [[4]])),
    ("prefix hybrid", set_header(init_kwargs={"trigger": [40, 257]}), "token 257 is past the vocabulary of 257"),
    ("prefix hybrid", set_header(init_kwargs={"trigger": [40]}), "'rows' is (5, 8), its header asks for (4, 8)"),
    ("prefix hybrid", set_tensor("rows", lambda t: t[:, :4].contiguous()), "'rows' is (5, 4)"),
    ("prefix hybrid", set_tensor("rows", nan_at), "'rows' holds NaN or infinite numbers"),
    *(("prefix warp", set_header(init_kwargs={"labels": v}), "") for v in (5, [5], [[257]], [[-1]], [[]], None, [])),
    ("prefix warp", set_tensor("label_tokens", lambda t: t + 10**9), "'label_tokens' holds tokens past"),
    *(("prefix ptuning2", set_header(init_kwargs={"layers": v}), "layers") for v in (0, -1, 3, 10**9, "x", 1.5, [])),
    *(("prefix adapter", set_header(init_kwargs={"bottleneck": v}), "bottleneck") for v in (0, 10**9, None, "x")),
    *(("prefix lora", set_header(init_kwargs={"rank": v}), "rank") for v in (0, -1, 10**9, "x")),
    *(("prefix lora", set_header(init_kwargs={"alpha": v}), "alpha") for v in (-1, "x", [])),
    *(("prefix prompt", set_header(init_kwargs={"init": v}), "init") for v in ("x", 1, None)),
    *(("prefix ptuning", set_header(init_kwargs={"position": v}), "position") for v in ("x", 1, None)),
    ("prefix text", set_tensor("tokens", lambda t: t - 100), "'tokens' holds tokens past"),
    ("prefix text", set_tensor("shots", lambda t: t + 300), "'shots' holds tokens past"),
    ("prefix text", set_tensor("shots", lambda t: t[0]), "'shots' is (2,), not (1, tokens)"),
    *((kind, set_raw_header(ten_terabytes), "cannot be read") for kind in SAFETENSORS),
    *((kind, set_raw_header(overlap), "cannot be read") for kind in SAFETENSORS),
    *((kind, lambda path: path.write_bytes(struct.pack("<Q", 10**13)), "cannot be read") for kind in SAFETENSORS),
    *((kind, lambda path: os.truncate(path, 100), "cannot be read") for kind in ("weights", "peft lora weights")),
    ("weights", set_tensor("wte.weight", nan_at), "'wte.weight' holds NaN or infinite numbers"),
    ("weights", set_tensor("h.1.ln_2.bias", lambda t: nan_at(t, -math.inf)), "'h.1.ln_2.bias' holds NaN or infinite"),
    ("weights", set_tensor("wpe.weight", lambda t: (t * 1e300).double() * 1e300), "'wpe.weight' holds NaN or infinite"),
    ("weights", set_tensor("wpe.weight", lambda t: t.to(torch.complex64)), "'wpe.weight' is of type torch.complex64"),
    ("weights", set_tensor("wpe.weight", lambda t: t[:0].contiguous()), "'wpe.weight' is (0, 8)"),
    ("weights", set_tensor("ln_f.bias", lambda t: t[0].clone()), "'ln_f.bias' is ()"),
    *(
        ("index", set_json(weight_map={"wte.weight": v}), "beside its index")
        for v in ("../base/model.safetensors", "/etc/passwd", "a/b.safetensors", "./model-1.safetensors")
    ),
    *(("index", set_json(weight_map=v), "weight_map") for v in (DROP, {}, [], None, "x", {"a": 5}, {"a": None})),
    *(("peft hybrid config", set_json(peft_type=v), "peft_type") for v in (DROP, 5, None, [])),
    ("peft hybrid config", set_json(peft_type="IA3"), "is a IA3 adapter"),
    ("peft hybrid weights", set_tensor("prompt_embeddings", lambda t: t[:, :4].contiguous()), "is (5, 4)"),
    ("peft hybrid weights", set_tensor("prompt_embeddings", nan_at), "holds NaN or infinite numbers"),
    *(("peft lora config", set_json(r=v), "") for v in (DROP, 0, -1, 10**9, "2", None, 3)),
    *(("peft lora config", set_json(lora_alpha=v), "lora_alpha") for v in (DROP, "x", None, -1)),
    *((kind, set_json(args=v), "args") for kind in ("results",) for v in (DROP, 5, {}, {"model": 5}, None)),
    *(("study", set_json(accuracy=v), "accuracy") for v in (DROP, 5, {"x": 5}, {"x": {"y": {"correct": 1}}})),
    ("study", set_json(accuracy={"x": {"y": {"correct": -1, "n": 0}}}), "correct"),
    *((kind, lambda path: path.write_bytes(b"\xff\xfe\x00"), "is not UTF-8") for kind in ("jsonl", "csv", "tsv")),
    *((kind, set_text(DEEP), "") for kind in ("jsonl", "csv", "tsv")),
]


@pytest.mark.parametrize("case", range(len(REFUSED)), ids=lambda i: f"{i} {REFUSED[i][0]}")
def test_what_was_found_is_refused_in_one_line(box, case):
    kind, damage, words = REFUSED[case]
    wrong, code, message, _ = try_one(box, kind, damage)
    assert wrong is None and code == 2, wrong or message
    assert words in message


READ = [
    ("csv", add_text('"' + "x" * 140_000 + '",red\n')),
    ("tsv", add_text("x" * 140_000 + "\tred\n")),
    ("jsonl", add_text(DEEP + "\n" + '{"prompt": ' + DEEP + ', "answer": "red"}\n')),
    ("jsonl", add_text('{"prompt": NaN, "answer": 1e999}\n{"prompt": "\\ud800", "answer": "red"}\n')),
    ("jsonl", add_text('{"prompt": "x", "answer": ' + "9" * 5000 + "}\n")),
    ("csv", add_text("a\x85b\u2028c,red\n")),
]


@pytest.mark.parametrize("case", range(len(READ)))
def test_a_row_that_cannot_be_used_is_left_out_with_its_line(box, case):
    kind, damage = READ[case]
    wrong, code, message, _ = try_one(box, kind, damage)
    assert wrong is None and code == 0, wrong or message


def test_a_file_that_is_too_large_is_not_read(box, monkeypatch):
    monkeypatch.setattr("data.schemas.DATA_LIMIT", 100)
    wrong, code, message = judge(lambda box: read_rows(box, "rows.csv"), box)
    assert wrong is None and code == 2 and "at most 100 are read" in message


# ---------------------------------------------------------------- flags and streams

BIG = 10**9
FLAGS = [
    *(("train_task.py", ["--n-random", v], "--n-random") for v in (-1, BIG, 300, "x", 1.5)),
    *(("train_task.py", ["--method", "adapter", "--bottleneck", v], "--bottleneck") for v in (0, BIG, -1, "x")),
    *(("train_task.py", ["--method", "lora", "--rank", v], "--rank") for v in (0, BIG)),
    *(("train_task.py", ["--method", "lora", "--alpha", v], "--alpha") for v in ("nan", "inf", -1)),
    *(("train_task.py", ["--method", "ptuning2", "--layers", v], "--layers") for v in (0, BIG, -1)),
    *(("train_task.py", [flag, v], flag) for v in (0, BIG) for flag in ("--examples", "--test-examples", "--epochs")),
    *(("train_task.py", [flag, BIG], flag) for flag in ("--shots", "--batch-size", "--trigger-examples")),
    *(("train_task.py", ["--seed", v], "--seed") for v in (-1, 2**64, 2**63, "9" * 5000, "x", 0.5)),
    *(("train_task.py", [flag, v], flag) for v in ("nan", "inf", "-1", "1e300") for flag in ("--lr", "--l2-sp")),
    ("train_task.py", ["--load", *["x"] * 200], "--load of 200 files"),
    ("train_task.py", ["--method", "cartridge", "--text", "/dev/zero"], "/dev/zero is no regular file"),
    *(("sample.py", ["--temperature", v], "--temperature") for v in ("nan", "inf", "-1", "1e-40", "1e30")),
    *(("sample.py", ["--seed", v], "--seed") for v in (-1, 2**64)),
    *(("sample.py", [flag, v], flag) for v in (0, -1) for flag in ("--top-k", "--max-new-tokens")),
    ("sample.py", ["--max-new-tokens", BIG], "--max-new-tokens"),
    ("sample.py", ["--prefix", *["x"] * 300], "--prefix of 300 files"),
    *(("bench.py", [flag, 0], flag) for flag in ("--n-layer", "--rows", "--repeat", "--batch-size", "--vocab-size")),
    *(("bench.py", [flag, BIG], flag) for flag in ("--n-layer", "--n-embd", "--rows", "--repeat", "--batch-size")),
    ("bench.py", ["--n-layer", 1000, "--n-embd", 65536], "and this machine has"),
    ("bench.py", ["--json", "/nowhere/x.json"], "no folder for /nowhere/x.json"),
    *(("bench.py", ["--worker", v], "--worker") for v in ("", "{}", "[]", DEEP)),
    *(("compare.py", ["methods", "--jobs", v], "--jobs") for v in (-1, 0, BIG)),
    *(("compare.py", ["methods", flag, BIG], flag) for flag in ("--seeds", "--examples", "--questions")),
    *(("pretrain.py", ["--text", ".", "--tokens", v], "--tokens") for v in ("nan", "inf", 0, 1e20, 100)),
    *(("pretrain.py", ["--text", ".", "--vocab-size", v], "--vocab-size") for v in (0, 65537)),
    *(("pretrain.py", ["--text", ".", flag, BIG], flag) for flag in ("--n-layer", "--n-embd", "--n-head")),
    ("pretrain.py", ["--text", ".", "--n-head", 3], "is not a multiple of --n-head 3"),
    ("pretrain.py", ["--text", ".", "--n-layer", 1000, "--n-embd", 65536, "--n-head", 64], "and this machine has"),
]


@pytest.mark.parametrize("program, args, words", FLAGS, ids=lambda v: str(v)[:40])
def test_flags_have_ranges(command, box, program, args, words):
    base = ["--model", box / "base"] if program in ("train_task.py", "sample.py") else []
    prompt = ["--prompt", "x"] if program == "sample.py" else []
    done = command(program, *base, *prompt, *args)
    assert (done.code, done.err.count("\n"), done.out) == (2, 1, ""), done.err[:500]
    assert done.err.startswith(f"{program}: ") and words in done.err and len(done.err) < 1100


def test_the_lowest_temperature_still_samples():
    logits = torch.tensor([[1e4, 9e3, -1e4]])
    assert next_token(logits, 0.001, None, torch.Generator().manual_seed(0)).item() == 0


def test_what_cannot_be_written_is_refused(command, box):
    for target in ("/nowhere/x.safetensors", "/dev/null/x"):
        done = command("peft_io.py", "import", box / "peft-hybrid", target, "--model", box / "base")
        assert (done.code, done.err.count("\n")) == (2, 1) and target[:8] in done.err
    with pytest.raises(ValueError, match="/dev/null is no regular file"):  # a rename would take its place
        write_json("/dev/null", {})
    assert not os.path.isfile("/dev/null")


TASKS = [sys.executable, "-m", "tasks", "addition", "--n"]


@pytest.mark.parametrize(
    "line, code, words",
    [
        ("{} 5 > /dev/full", 2, "No space left on device"),
        ("{} 5 >&-", 0, ""),
        ("{} 5 2>&-", 0, ""),
        ("{} 5 <&-", 0, ""),
        ("{} 3000 | head -1", 0, ""),
        ("{} 100000000 ", 2, "--n: 100000000: give at most 100000"),
        ("{} -1", 2, "--n: -1: give at least 1"),
        ("{} 5 --seed 99999999999999999999", 2, "--seed"),
    ],
)
def test_streams_that_are_full_or_closed(line, code, words):
    line = "set -o pipefail; " + line.format(" ".join(TASKS))
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
    assert done.returncode == code
    assert words in done.stderr and done.stderr.count("\n") == (code == 2)


def test_questions_from_a_closed_or_endless_stdin(command, box, monkeypatch):
    monkeypatch.setattr("sys.stdin", None)
    done = command("sample.py", "--model", box / "base")
    assert done.code == 2 and "stdin is closed: give --prompt" in done.err
    with open("/dev/zero") as endless:
        monkeypatch.setattr("sys.stdin", endless)
        done = command("sample.py", "--model", box / "base")
    assert done.code == 2 and "a question of more than 100,000 characters" in done.err


def test_bars_do_without_stderr(monkeypatch):
    monkeypatch.setattr("sys.stderr", None)
    seen = []
    cli.run_main(lambda argv: seen.extend(tqdm(range(3))), "program")
    assert seen == [0, 1, 2]


def test_a_lack_of_memory_is_one_line_and_an_error_of_ours_is_not(capsys):
    def allocate(argv):
        torch.empty(2**50)

    with pytest.raises(SystemExit):
        cli.run_main(allocate, "program")
    err = capsys.readouterr().err
    assert err.startswith("program: the machine's memory does not hold this") and err.count("\n") == 1
    with pytest.raises(RuntimeError, match="ours"):
        cli.run_main(lambda argv: (_ for _ in ()).throw(RuntimeError("ours")), "program")


def test_a_message_stands_on_a_line_of_its_own_behind_a_bar(capsys):
    def broken(argv):
        for i in tqdm(range(9), mininterval=0):
            if i == 3:
                raise ValueError("broken")

    with pytest.raises(SystemExit):
        cli.run_main(broken, "program")
    assert capsys.readouterr().err.splitlines()[-1] == "program: broken"
