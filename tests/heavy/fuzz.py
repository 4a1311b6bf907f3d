"""Broken inputs of every kind, made at random, and a judge of what the programs make of them.

    python tests/fuzz.py 100000     so many of them, in turn of each kind; the same number is the same input

Each input is one file of a small working set, changed: bytes of it, a value of its JSON, its tensors, or the whole file
for a device, a pipe or a folder. The program that reads it has to end with exit code 0, or with one line and code 2. A
traceback, ten seconds without an end, more memory than twice the file and MEMORY, and a file that is written outside
the output folder are failures.
"""

import contextlib
import copy
import gc
import io
import json
import os
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import prefix  # noqa: E402
import sample  # noqa: E402
import train_task  # noqa: E402
from data.tokenizer import Tokenizer  # noqa: E402
from eval import page  # noqa: E402
from files import errors as cli  # noqa: E402
from files import peft as peft_io  # noqa: E402
from files.prompts import save_prefix  # noqa: E402
from files.safe import write_json  # noqa: E402
from files.weights import load_model, save_model
from llama import Llama, LlamaConfig  # noqa: E402
from model import GPT, GPTConfig  # noqa: E402
from prefix import TRANSLATOR, save_translator  # noqa: E402
from research import (
    compare,  # noqa: E402
    pretrain,  # noqa: E402
)
from run import (
    contenders,  # noqa: E402
    resume,  # noqa: E402
)

METHODS = [name for name in prefix.METHODS if name != "scratch"]  # which train_task.py does not save
OPTIONS = {  # of methods, where the defaults would leave something out or be too large for the base below
    "hybrid": {"mlp": True},
    "ptuning": {"position": "inside"},
    "prompt": {"init": "labels"},
    "ptuning2": {"layers": 1, "head": True},
    "adapter-prefix": {"layers": 1},
    "adapter": {"bottleneck": 3},
    **{name: {"rank": 2} for name in ("lora", "lopt", "dept")},
}
SECONDS, MEMORY = 10, 100e6  # that an input may take

# ---------------------------------------------------------------- the working set


def make(box):
    """Write a good file of every kind into the folder `box`."""
    torch.manual_seed(0)
    base, prompts = box / "base", box / "prompts"
    save_model(GPT(GPTConfig(vocab_size=257, block_size=64, n_layer=2, n_head=2, n_embd=8)), base)
    shutil.copy(ROOT / "data" / "nano-1m-bytes" / "encoding.json", base)
    save_model(GPT(GPTConfig(vocab_size=257, block_size=192, n_layer=1, n_head=2, n_embd=8)), box / "longer")
    shutil.copy(base / "encoding.json", box / "longer")  # this one has positions for a text and what follows it
    shutil.copytree(base, box / "shards")
    tensors = load_file(base / "model.safetensors")
    (box / "shards" / "model.safetensors").unlink()
    index = {}
    for i in (1, 2):
        some = {n: t.clone() for j, (n, t) in enumerate(sorted(tensors.items())) if j % 2 == i - 1}
        save_file(some, box / "shards" / f"model-{i}.safetensors")
        index |= {name: f"model-{i}.safetensors" for name in some}
    write_json(box / "shards" / "model.safetensors.index.json", {"weight_map": index})
    rope = "llama3", 8.0, 1.0, 4.0, 32
    save_model(Llama(LlamaConfig(257, 64, 2, 4, 2, 16, 4, 24, 1e4, rope[1:])), box / "llama")
    write_tokenizer(box / "llama" / "tokenizer.json")

    model = load_model(base).freeze()
    tokenizer = Tokenizer.load(base, 257)
    made = {}
    for name in METHODS:
        cls, given = prefix.METHODS[name], OPTIONS.get(name, {})
        labels = {"labels": [[50], [51, 52]]} if cls.needs_labels else {}
        trigger = [] if name == "translator" else [40, 41]  # whose file holds what it has read
        made[name] = cls(model, n_random=3, trigger=trigger, **labels, **given)
    save_translator(prefix.TranslatorNetwork(model, n_rows=3, rank=2, width=8), base / TRANSLATOR, model)
    prompts.mkdir()
    for name, method in made.items():
        if name == "text":
            method.shots = torch.tensor([[60, 61]])
        save_prefix(method, prompts / f"{name}.safetensors", model, tokenizer, "addition", "1+1=2\n", "{}\n", "$")
    for name in ("ptuning2", "hybrid", "lora"):
        method = prefix.DeepPrefix(model, 2) if name == "ptuning2" else made[name]
        peft_io.export_peft(method, model, box / f"peft-{name}")

    rows = [(f"question {i}", ("red", "green")[i % 2]) for i in range(30)]
    (box / "rows.jsonl").write_text("".join(json.dumps({"prompt": p, "answer": a}) + "\n" for p, a in rows))
    for name, mark in (("rows.csv", ","), ("rows.tsv", "\t")):
        (box / name).write_text(f"prompt{mark}answer\n" + "".join(f"{p}{mark}{a}\n" for p, a in rows))
    (box / "text.txt").write_text("A text for a cache. ")
    run = box / "run"
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        train_task.main(own_data(box, run))
        train_task.main(distillation(box, box / "distilled"))
    results = json.loads((run / "results.json").read_text())
    (box / "stopped").mkdir()
    resume.write(box / "stopped", results, {"weights/hybrid/rows": torch.zeros(3, 8)}, 0)
    (box / "pretraining").mkdir()
    arguments = pretrain.check_arguments(pretrain.parse_args(["--text", str(box)]), box / "pretraining")
    write_json(box / "pretraining" / "args.json", arguments)

    for path in box.glob("**/*.safetensors"):  # the library writes its header in any order
        content = path.read_bytes()
        (n,) = struct.unpack("<Q", content[:8])
        text = json.dumps(json.loads(content[8 : 8 + n]), sort_keys=True).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + n :])


def own_data(box, out):
    """The arguments of a run on the rows."""
    few = ["--n-random", "2", "--trigger", "none", "--examples", "4", "--epochs", "1", "--beside", "adapter"]
    return ["--task", str(box / "rows.jsonl"), "--model", str(box / "base"), "--out", str(out), *few]


def distillation(box, out):
    """The arguments of a run on the text."""
    few = ["--method", "cartridge", "--n-random", "3", "--examples", "2", "--epochs", "1", "--tokenize", "bytes"]
    return ["--text", str(box / "text.txt"), "--model", str(box / "longer"), "--out", str(out), *few]


def write_tokenizer(path):
    """A byte-level tokenizer.json without merges, of 257 tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocab = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(False), decoders.ByteLevel()
    tokenizer.add_special_tokens(["</s>"])
    tokenizer.save(str(path))


# ---------------------------------------------------------------- who reads what


def ask(box, *args):
    return sample.main(["--prompt", "1+1=", "--max-new-tokens", "3", "--tokenize", "bytes", *map(str, args)])


def read_rows(box, name):
    """What train_task.py does with your own data before it tunes."""
    args = train_task.parse_args(["--task", str(box / name), "--model", str(box / "base"), "--examples", "20"])
    task, model = train_task.load_task(args), load_model(box / "base")
    tokenizer = Tokenizer.load(model.folder, 257, task.tokenize)
    examples, tests, _ = contenders.draw_examples(args, task, model, tokenizer, 4)
    contenders.trigger_of(args, task, tokenizer, examples)


def load_rows(box, name):
    args = ["--model", str(box / "base"), "--load", str(box / "prompts" / name)]
    model = load_model(box / "base").freeze()
    contenders.load_prompts(train_task.parse_args(args), model, Tokenizer.load(model.folder, 257))


def begin_from(box):
    """What train_task.py does with the file of --init-from before it tunes."""
    files = ["--model", str(box / "base"), "--init-from", str(box / "prompts" / "hybrid.safetensors")]
    args = train_task.parse_args(files)
    model = load_model(box / "base").freeze()
    contenders.begin_from(args, model, Tokenizer.load(model.folder, 257))


def translate(box):
    """What --method translator does."""
    prefix.Translator(load_model(box / "base").freeze(), trigger=[40, 41, 42, 43])


def write_page(box):
    """What `python -m eval.page` does, in a folder that has the two files of the run."""
    (box / "out" / "run").mkdir()
    for name in ("results.json", "details.json"):
        (box / "out" / "run" / name).symlink_to(box / "run" / name)
    page.main([str(box / "out" / "run")])


def peft(box, *args):
    return peft_io.main([*map(str, args), "--model", str(box / "base")])


# the kind of input: the file that is changed, and who reads it
KINDS = {
    "config": ("base/config.json", lambda box: ask(box, "--model", box / "base")),
    "encoding": ("base/encoding.json", lambda box: ask(box, "--model", box / "base")),
    "weights": ("base/model.safetensors", lambda box: ask(box, "--model", box / "base")),
    "index": ("shards/model.safetensors.index.json", lambda box: ask(box, "--model", box / "shards")),
    "shard": ("shards/model-2.safetensors", lambda box: ask(box, "--model", box / "shards")),
    "llama config": ("llama/config.json", lambda box: ask(box, "--model", box / "llama")),
    "llama weights": ("llama/model.safetensors", lambda box: ask(box, "--model", box / "llama")),
    "tokenizer": ("llama/tokenizer.json", lambda box: ask(box, "--model", box / "llama")),
    **{
        f"prefix {name}": (
            f"prompts/{name}.safetensors",
            lambda box, name=name: ask(
                box, "--model", box / "base", "--prefix", box / "prompts" / f"{name}.safetensors"
            ),
        )
        for name in METHODS
    },
    "prefix to measure": ("prompts/hybrid.safetensors", lambda box: load_rows(box, "hybrid.safetensors")),
    **{
        f"peft {name} {part}": (
            f"peft-{name}/{file}",
            lambda box, name=name: peft(box, "import", box / f"peft-{name}", box / "out" / "imported.safetensors"),
        )
        for name in ("hybrid", "ptuning2", "lora")
        for part, file in (("config", "adapter_config.json"), ("weights", "adapter_model.safetensors"))
    },
    "results": (
        "run/results.json",
        lambda box: peft_io.main(["export", str(box / "run"), str(box / "out" / "adapter")]),
    ),
    "results of a page": ("run/results.json", write_page),
    "details of a page": ("run/details.json", write_page),
    "finished run": ("run/results.json", lambda box: train_task.main([*own_data(box, box / "run"), "--resume"])),
    "checkpoint": ("stopped/checkpoint.safetensors", lambda box: resume.load(box / "stopped")),
    "start": ("prompts/hybrid.safetensors", begin_from),
    "text": ("text.txt", lambda box: train_task.main(distillation(box, box / "out" / "distilled"))),
    "pretraining": (
        "pretraining/args.json",
        lambda box: pretrain.check_arguments(pretrain.parse_args(["--text", str(box)]), box / "pretraining"),
    ),
    "study": ("run/results.json", lambda box: compare.read_results(box / "run")),
    "jsonl": ("rows.jsonl", lambda box: read_rows(box, "rows.jsonl")),
    "csv": ("rows.csv", lambda box: read_rows(box, "rows.csv")),
    "tsv": ("rows.tsv", lambda box: read_rows(box, "rows.tsv")),
    "translator": (f"base/{TRANSLATOR}", translate),
}

# ---------------------------------------------------------------- changing a file

VALUES = [
    *(None, True, False, 0, -1, 1, 2, 3, 7, 63, 64, 65, 256, 257, 258, 1000, 100_000, 10**9, 10**12, 2**31, 2**63),
    *(-(2**63), 2**64, 10**30, 10**400, 0.0, -0.5, 0.5, 2.0, 1e-300, 1e300, float("nan"), float("inf")),
    *("", "2", "x" * 5000, "../../etc/passwd", "/dev/zero", "\x00", "\ud800", "é\u2028\n", "{}", "a*", "(", "(a+)+$"),
    *([], [[]], {}, [0], [-1], [10**9], [257], ["x"], {"x": 1}, [None], [1] * 1000),
]
DEEP = object()  # stands for JSON nested 100,000 deep


def places(value, path=()):
    """Every path of keys and indices into a JSON value."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in items:
        yield from places(child, (*path, key))


def change_value(value, rng):
    """A JSON value with one of its parts exchanged, removed or doubled."""
    value = copy.deepcopy(value)
    *path, last = rng.choice(list(places(value))[1:] or [()]) or [None]
    parent = value
    for key in path:
        parent = parent[key]
    new = rng.choice([*VALUES, DEEP])
    if not isinstance(parent, dict | list) or last is None:
        return new
    how = rng.randrange(8)
    if how == 0:
        del parent[last]
    elif how == 1 and isinstance(parent, dict):
        parent[rng.choice(["model", "seed", "", "x", "shots", "r", "eos_token_id"])] = new
    elif how == 2 and isinstance(parent, list):
        parent.insert(last, new)
    else:
        parent[last] = new
    return value


def dump(value):
    text = json.dumps(value, default=lambda deep: "@DEEP@")
    return text.replace('"@DEEP@"', "[" * 100_000 + "]" * 100_000)


def change_json(content, rng):
    value = json.loads(content)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        value = change_value(value, rng) if isinstance(value, dict | list) else value
    return dump(value).encode("utf-8", "surrogatepass")


def change_lines(content, rng):
    """One row of a JSONL, CSV or TSV file exchanged."""
    lines = content.splitlines(keepends=True)
    i = rng.randrange(len(lines))
    if lines[i].startswith(b"{"):
        lines[i] = change_json(lines[i], rng) + b"\n"
    else:
        new = [b'"', b",,,,", b"\t", b"\x00", b"x" * 200_000, b'"' + b"y" * 140_000 + b'"', b"\r", b"\xff", b"\x85"]
        cut = rng.randrange(len(lines[i]) + 1)
        lines[i] = lines[i][:cut] + rng.choice(new) + lines[i][cut:]
    return b"".join(lines)


def change_bytes(content, rng):
    content = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 8])):
        i = rng.randrange(len(content) + 1)
        j = min(len(content), i + rng.choice([1, 1, 4, 16, 100]))
        how = rng.randrange(7)
        if how == 0:
            del content[i:]
        elif how == 1:
            del content[i:j]
        elif how == 2:
            content[i:i] = rng.randbytes(rng.choice([1, 8, 64]))
        elif how == 3:
            content[i:j] = rng.choice([b"\x00", b"\xff", b"\x7f", b"9", b"-", b'"', b"[", b"{"]) * (j - i)
        elif how == 4:
            content[i:i] = content[i:j] * rng.choice([1, 3])
        elif i < len(content):
            content[i] ^= 1 << rng.randrange(8)
    return bytes(content)


def change_header(content, rng):
    """The JSON header of a safetensors file: metadata, types, shapes and offsets."""
    (n,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + n])
    how = rng.randrange(4)
    if how == 0:
        size = rng.choice([0, 1, n - 1, n + 1, 10**13, 2**63, 2**64 - 1])
        return struct.pack("<Q", size) + content[8:]
    if how == 1 and "__metadata__" in header:
        data = header["__metadata__"]
        if "init_kwargs" in data and rng.random() < 0.6:
            data["init_kwargs"] = dump(change_value(json.loads(data["init_kwargs"]), rng))
        else:
            name = rng.choice(list(data))
            if rng.random() < 0.3:
                del data[name]
            else:
                data[name] = rng.choice([*(v for v in VALUES if isinstance(v, str)), *prefix.METHODS])
    else:
        header = change_value(header, rng)
    text = dump(header).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(text)) + text + content[8 + n :]


def change_tensors(path, rng):
    """The tensors of a safetensors file: numbers, types, shapes, names."""
    tensors = {n: t.clone() for n, t in load_file(path).items()}
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    if not tensors:  # zero-shot
        return path.write_bytes(change_header(path.read_bytes(), rng))
    name = rng.choice(sorted(tensors))
    t = tensors[name]
    how = rng.randrange(9)
    if how < 2 and t.is_floating_point():
        value = rng.choice([torch.nan, torch.inf, -torch.inf, 3e38, 1e30])
        t.view(-1)[rng.randrange(t.numel())] = value
        if rng.random() < 0.3:
            t.fill_(value)
    elif how == 2:
        kinds = [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.bool, torch.uint8]
        tensors[name] = t.to(rng.choice([*kinds, torch.complex64, torch.float8_e4m3fn]))
    elif how == 3:
        shape = rng.choice([(), (0,), (1,), (0, 10**12), (1, 1, *t.shape), t.shape[::-1], (*t.shape, 1), (3, 5)])
        tensors[name] = torch.zeros(shape, dtype=t.dtype)
    elif how == 4:
        del tensors[name]
    elif how == 5:
        tensors[rng.choice(["shots", "x", "lm_head.weight", "h.0.attn.bias", "h.99.ln_1.weight", "a\nb"])] = t
    elif how == 6:
        tensors[name] = torch.cat([t, t]) if t.dim() else t
    elif not t.is_floating_point():
        t.view(-1)[0] = rng.choice([-1, 257, 10**9, -(2**62)])
    else:
        tensors[name] = t * rng.choice([0.0, 1e20, -1.0])
    save_file({n: x.contiguous().clone() for n, x in tensors.items()}, path, metadata=metadata)


def change(path, rng):
    """Change the file at `path`; returns what was done, in a word."""
    content, suffix = path.read_bytes(), path.suffix
    how = rng.random()
    if how < 0.03:
        path.unlink()
        special = rng.choice(["nothing", "folder", "pipe", "/dev/zero", "itself", "empty", "spaces"])
        if special == "folder":
            path.mkdir()
        elif special == "pipe":
            os.mkfifo(path)
        elif special in ("/dev/zero", "itself"):
            path.symlink_to(special if special != "itself" else path)
        elif special in ("empty", "spaces"):
            path.write_bytes(b"" if special == "empty" else b" \n" * 1000)
        return special
    if how < 0.3:
        path.write_bytes(change_bytes(content, rng))
        return "bytes"
    if suffix == ".json":
        path.write_bytes(change_json(content, rng))
        return "json"
    if suffix == ".safetensors":
        if how < 0.65:
            path.write_bytes(change_header(content, rng))
            return "header"
        change_tensors(path, rng)
        return "tensors"
    path.write_bytes(change_lines(content, rng))
    return "lines"


# ---------------------------------------------------------------- the judge


class Hang(BaseException):
    pass


def stop(*_):
    raise Hang


written = []  # every path that Python opens for writing while an input is judged
watching = False


def watch(event, args):
    if watching and event == "open" and isinstance(args[0], str | bytes | os.PathLike):
        if isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            written.append(os.path.abspath(os.fsdecode(args[0])))


sys.addaudithook(watch)


def status(key):
    """Bytes of this process, from /proc."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(key))


def judge(read, box, size=0, seconds=SECONDS):
    """(what is wrong with how `read(box)` ended, or None; exit code; the message). size: of the file, in bytes."""
    global watching
    out, err, code, wrong = io.StringIO(), io.StringIO(), 0, None
    before = status("VmRSS")
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak is counted from here
    limit = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (status("VmData") + 4 * 2**30, limit[1]))  # so that the machine survives
    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    written.clear()
    watching = True
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.run_main(lambda argv: read(box), "program")
    except SystemExit as end:
        code = end.code
        if code == 130:  # interrupted: so is the judge
            raise KeyboardInterrupt from None
    except Hang:
        wrong = f"no end after {seconds} s"
    except BaseException as error:  # a panic of a Rust library is no Exception
        if isinstance(error, KeyboardInterrupt):
            raise
        wrong = "traceback: " + " ".join(traceback.format_exception(error)[-1].split())[:300]
        wrong += " at " + str(traceback.extract_tb(error.__traceback__)[-1])[:200]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        watching = False
        resource.setrlimit(resource.RLIMIT_DATA, limit)
    message, peak = err.getvalue(), status("VmHWM") - before
    outside = [path for path in written if not path.startswith(str(box / "out")) and path != os.devnull]
    if wrong:
        pass
    elif code not in (0, 2):
        wrong = f"exit code {code}"
    elif code == 2 and (message.count("\n") != 1 or not message.startswith("program: ")):
        wrong = f"not one line: {message[:300]!r}"
    elif code == 2 and "memory does not hold" in message:
        wrong = f"out of memory: {message[:300]!r}"
    elif peak > 2 * size + MEMORY:
        wrong = f"{peak / 1e6:.0f} MB for a file of {size / 1e6:.1f} MB"
    elif outside:
        wrong = f"wrote {outside[0]}"
    return wrong, code, message


def remove(path):
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def try_one(box, kind, damage, seconds=SECONDS):
    """Let `damage(path)` change the file of a kind, judge how its reader ends, and put the good file back."""
    name, read = KINDS[kind]
    path = box / name
    good = path.read_bytes()
    remove(box / "out")
    (box / "out").mkdir()
    what = None
    try:
        what = damage(path)
        listed = sorted(os.listdir(box))
        size = path.stat().st_size if path.is_file() else 0
        wrong, code, message = judge(read, box, size, seconds)
        if wrong is None and sorted(os.listdir(box)) != listed:
            wrong = "wrote into the folder of the inputs"
    finally:
        remove(path)
        path.write_bytes(good)
    return wrong, code, message, what


@contextlib.contextmanager
def working_set():
    with tempfile.TemporaryDirectory() as folder:
        box = Path(folder).resolve()
        make(box)
        (box / "out").mkdir()
        for kind in KINDS:  # all are good, and everything that is imported late is there
            wrong, code, message, _ = try_one(box, kind, lambda path: None, seconds=120)
            assert wrong is None and code == 0, (kind, wrong, message)
        yield box


def main():
    n, first = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    started, tried, failures, refused, kinds = time.time(), 0, 0, 0, list(KINDS)
    with working_set() as box, contextlib.suppress(KeyboardInterrupt):
        for i in range(first, first + n):
            kind, rng = kinds[i % len(kinds)], random.Random(i)
            wrong, code, message, what = try_one(box, kind, lambda path: change(path, rng))  # noqa: B023
            tried, refused = tried + 1, refused + (code == 2 and wrong is None)
            if wrong:
                failures += 1
                print(f"input {i}, {kind}, {what}: {wrong}", flush=True)
            if tried % 1000 == 0:  # no bar, since the programs close all bars
                print(f"{tried:,} inputs", file=sys.stderr, flush=True)
                gc.collect()
    minutes = (time.time() - started) / 60
    print(f"inputs tried: {tried:,} of {len(KINDS)} kinds, {refused:,} refused in one line; failures: {failures}")
    print(f"inputs took {minutes:.1f} minutes")
    sys.exit(failures > 0)


if __name__ == "__main__":
    main()
