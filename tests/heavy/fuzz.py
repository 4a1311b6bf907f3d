"""Broken inputs of every kind, made at random, and a judge of what the programs make of them. Linux only.

    python -m tests.heavy.fuzz 100000     so many of them, in turn of each kind; the same number is the same input
    python -m tests.heavy.fuzz 5000 0 tokenizer encoding     from number 0, of two kinds

Each input is one file of a small working set, changed. The program that reads it has to end with exit code 0, or with
one line and code 2. A traceback, ten seconds without an end, more memory than twice the file and MEMORY, and a file
that is written outside the output folder are failures.
"""

import contextlib
import importlib
import io
import json
import math
import os
import random
import re
import resource
import shutil
import signal
import struct
import sys
import tempfile
import traceback
from functools import partial
from pathlib import Path

import gguf
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import prefix
import sample
import tasks
import train_task
from data.tokenizer import Tokenizer, byte_alphabet
from eval import page
from files import errors, gguf_reader
from files.safe import write_json, write_tensors
from files.weights import load_model, save_model
from llama import Llama, LlamaConfig
from methods.translator import TRANSLATOR, TranslatorNetwork, save_translator
from model import GPT, GPTConfig
from research import compare
from research import peft as peft_files
from run import resume
from run.prompts import save_prefix

METHODS = [name for name in prefix.METHODS if name != "scratch"]  # which train_task.py does not save
OPTIONS = {  # of methods, where the defaults would leave something out
    "hybrid": {"mlp": True},
    "prompt": {"init": "labels"},
    "ptuning": {"position": "inside"},
    "adapter-prefix": {"layers": 1},
    "translator": {"trigger": []},  # whose file holds what it has read
}
SECONDS, MEMORY = 10, 100e6  # that an input may take

# ---------------------------------------------------------------- the working set


def make(box):
    """Write a good file of every kind into the folder `box`."""
    torch.manual_seed(0)
    save_model(GPT(GPTConfig(vocab_size=257, block_size=64, n_layer=2, n_head=2, n_embd=8)), box / "base")
    encoding = {"name": "bytes", "pattern": "(?s:.)", "tokens": [chr(b) for b in range(256)]}
    write_json(box / "base" / "encoding.json", encoding)
    shutil.copytree(box / "base", box / "shards")
    (box / "shards" / "model.safetensors").unlink()
    named = sorted(load_file(box / "base" / "model.safetensors").items())
    for i in (1, 2):
        save_file(dict(named[i - 1 :: 2]), box / "shards" / f"model-{i}.safetensors")
    index = {name: f"model-{1 + j % 2}.safetensors" for j, (name, _) in enumerate(named)}
    write_json(box / "shards" / "model.safetensors.index.json", {"weight_map": index})
    save_model(Llama(LlamaConfig(257, 64, 2, 4, 2, 16, 4, 24, 1e4, (8.0, 1.0, 4.0, 32))), box / "llama")
    write_tokenizer(box / "llama" / "tokenizer.json")
    write_gguf(box / "llama.gguf", load_model(box / "llama"))

    model = load_model(box / "base").freeze()
    save_translator(TranslatorNetwork(model, n_rows=3, rank=2, width=8), box / "base" / TRANSLATOR, model)
    (box / "prompts").mkdir()
    for name in METHODS:
        cls = prefix.METHODS[name]
        labels = {"labels": [[50], [51, 52]]} if cls.needs_labels else {}
        method = cls(model, **{"n_random": 3, "trigger": [40, 41]} | labels | OPTIONS.get(name, {}))
        if name == "text":
            method.shots = torch.tensor([[60, 61]])
        path, tokenizer = box / "prompts" / f"{name}.safetensors", Tokenizer.load(box / "base", 257)
        save_prefix(method, path, model, tokenizer, "addition", "1+1=2\n", "{}\n", "$")
        if name in ("hybrid", "prefix", "lora"):
            peft_files.export_peft(method, model, box / f"peft-{name}")

    (box / "mine.py").write_text(MINE)
    (box / "questions").write_text("1+1=\n\nWho is Ren\u00e9?\r\n23+45=\n")
    rows = [(f"question {i}", ("red", "green")[i % 2]) for i in range(30)]
    (box / "rows.jsonl").write_text("".join(json.dumps({"prompt": p, "answer": a}) + "\n" for p, a in rows))
    for name, mark in (("rows.csv", ","), ("rows.tsv", "\t")):
        (box / name).write_text(f"prompt{mark}answer\n" + "".join(f"{p}{mark}{a}\n" for p, a in rows))
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        train_task.main(own_data(box))
    (box / "stopped").mkdir()
    header, tensors = {"state": (box / "run" / "results.json").read_text()}, {"x": torch.zeros(3)}
    write_tensors(box / "stopped" / resume.NEWEST, tensors, header)


def own_data(box):
    """The arguments of a run on the rows."""
    few = ["--n-random", "2", "--trigger", "none", "--examples", "4", "--epochs", "1", "--beside", "adapter"]
    return ["--task", str(box / "rows.jsonl"), "--model", str(box / "base"), "--out", str(box / "run"), *few]


def write_tokenizer(path):
    """A byte-level tokenizer.json without merges, of 257 tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocab = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(False), decoders.ByteLevel()
    tokenizer.add_special_tokens(["</s>"])
    tokenizer.save(str(path))


def write_gguf(path, model):
    """A Llama as a GGUF file, with the tokens of the tokenizer above."""
    c, w = model.config, gguf.GGUFWriter(path, "llama")
    w.add_block_count(c.n_layer)
    w.add_context_length(c.block_size)
    w.add_embedding_length(c.n_embd)
    w.add_head_count(c.n_head)
    w.add_head_count_kv(c.n_kv_head)
    w.add_key_length(c.head_dim)
    w.add_feed_forward_length(c.n_inner)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("smollm")
    w.add_token_list([*sorted(byte_alphabet()), "</s>"])
    w.add_token_types([1] * 256 + [3])
    names = {ours: theirs for theirs, ours in gguf_reader.LLAMA_NAMES.items()}
    for name, p in model.named_parameters():
        layer, stem, end = re.fullmatch(r"(h\.\d+\.)?(.*)(\.weight)", name).groups("")
        w.add_tensor(f"{layer.replace('h.', 'blk.')}{names[stem]}{end}", p.detach().numpy())
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


# ---------------------------------------------------------------- who reads what


def ask(folder, box, prompt=None):
    """sample.py with the base in a folder of the working set."""
    question = ["--prompt", "1+1=", "--max-new-tokens", "3", "--tokenize", "bytes"]
    flags = ["--prefix", str(box / "prompts" / f"{prompt}.safetensors")] if prompt else []
    sample.main(["--model", str(box / folder), *question, *flags])


def ask_lines(box):
    """sample.py with questions on stdin. What it says of single ones is not judged, but how it ends."""
    with open(box / "questions", encoding="utf-8") as sys.stdin, contextlib.redirect_stderr(io.StringIO()):
        sample.main(["--model", str(box / "base"), "--max-new-tokens", "3", "--tokenize", "bytes"])


def import_peft(name, box):
    target = box / "out" / "imported.safetensors"
    peft_files.main(["import", str(box / f"peft-{name}"), str(target), "--model", str(box / "base")])


def write_page(box):
    (box / "out" / "run").mkdir()
    for name in ("results.json", "details.json"):
        (box / "out" / "run" / name).symlink_to(box / "run" / name)
    page.main([str(box / "out" / "run")])


def translate(box):
    prefix.METHODS["translator"](load_model(box / "base").freeze(), trigger=[40, 41, 42, 43])


def read_rows(end, box):
    task = tasks.load(str(box / f"rows.{end}"))
    task.drop(lambda e: len(e.question) > 1000)
    task.worth_showing(task.examples(None, split="train"), 2)


def list_tasks(box):
    """The tasks of a folder, of which one is this file."""
    sys.modules.pop("tasks.mine", None)
    importlib.invalidate_caches()
    folder, tasks.FOLDER, tasks.__path__[:] = tasks.FOLDER, box, [str(box)]
    try:
        for name in tasks.names():
            with contextlib.suppress(Exception):  # a task's own keep their traceback
                tasks.load(name).examples(3)
    finally:
        tasks.FOLDER, tasks.__path__[:] = folder, [str(folder)]


MINE = """
from tasks import Task
class Mine(Task):
    stop, ranges = '$', {'in-distribution': (1, 3)}
    def example(self, rng, length, new_words):
        a = rng.randint(1, 10 ** length)
        return f'{a}+1=', f'{a + 1}$'
variants = {'': Mine(), 'hard': Mine()}
"""
# the kind of input: the file that is changed, and who reads it
KINDS = {
    "config": ("base/config.json", partial(ask, "base")),
    "encoding": ("base/encoding.json", partial(ask, "base")),
    "weights": ("base/model.safetensors", partial(ask, "base")),
    "index": ("shards/model.safetensors.index.json", partial(ask, "shards")),
    "shard": ("shards/model-2.safetensors", partial(ask, "shards")),
    "llama config": ("llama/config.json", partial(ask, "llama")),
    "llama weights": ("llama/model.safetensors", partial(ask, "llama")),
    "tokenizer": ("llama/tokenizer.json", partial(ask, "llama")),
    "gguf": ("llama.gguf", partial(ask, "llama.gguf")),
    "task": ("mine.py", list_tasks),
    "stdin": ("questions", ask_lines),
    "translator": (f"base/{TRANSLATOR}", translate),
    **{f"prefix {name}": (f"prompts/{name}.safetensors", partial(ask, "base", prompt=name)) for name in METHODS},
    **{
        f"peft {name} {part}": (f"peft-{name}/adapter_{part}", partial(import_peft, name))
        for name in ("hybrid", "prefix", "lora")
        for part in ("config.json", "model.safetensors")
    },
    "results": ("run/results.json", lambda box: peft_files.main(["export", str(box / "run"), str(box / "out" / "a")])),
    "results of a page": ("run/results.json", write_page),
    "details of a page": ("run/details.json", write_page),
    "results of a study": ("run/results.json", lambda box: compare.read_results(box / "run")),
    "finished run": ("run/results.json", lambda box: train_task.main([*own_data(box), "--resume"])),
    "checkpoint": ("stopped/checkpoint.safetensors", lambda box: resume.load(box / "stopped")),
    **{end: (f"rows.{end}", partial(read_rows, end)) for end in ("jsonl", "csv", "tsv")},
}

# ---------------------------------------------------------------- changing a file

DEEP = object()  # stands for JSON nested 100,000 deep
VALUES = [
    *(None, True, False, 0, -1, 1, 2, 3, 7, 63, 64, 65, 256, 257, 258, 1000, 100_000, 10**9, 10**12, 2**31, 2**63),
    *(-(2**63), 2**64, 10**30, 10**400, 0.0, -0.5, 0.5, 2.0, 1e-300, 1e300, float("nan"), float("inf"), DEEP),
    *("", "2", "x" * 5000, "../../etc/passwd", "/dev/zero", "\x00", "\ud800", "é\u2028\n", "{}", "a*", "(", "(a+)+$"),
    *([], [[]], {}, [0], [-1], [10**9], [257], ["x"], {"x": 1}, [None], [1] * 1000, *prefix.METHODS),
]
PIECES = [b"\x00", b"\xff", b"\x7f", b"9", b"-", b'"', b"[", b"{", b",,,,", b"\t", b"\r", b"\x85", b"x" * 200_000]


def change_value(value, rng):
    """A JSON object with one of its parts, at any depth, exchanged, removed or added."""
    parent, last = value, "x"
    while parent:
        last = rng.choice(list(parent)) if isinstance(parent, dict) else rng.randrange(len(parent))
        if not isinstance(parent[last], (dict, list)) or not parent[last] or rng.randrange(4) == 0:
            break
        parent = parent[last]
    how = rng.randrange(8)
    if how == 0 and parent:
        parent.pop(last)
    else:
        new = rng.choice(["model", "seed", "x", "shots", "r", "eos_token_id"])
        parent[new if how == 1 and isinstance(parent, dict) else last] = rng.choice(VALUES)
    return value


def dump(value):
    text = json.dumps(value, default=lambda deep: "@DEEP@").replace('"@DEEP@"', "[" * 100_000 + "]" * 100_000)
    return text.encode("utf-8", "surrogatepass")


def change_bytes(content, rng):
    i = rng.randrange(len(content))
    j = i + rng.choice([1, 1, 4, 16, 100])
    flipped = bytes([content[i] ^ 1 << rng.randrange(8)])
    new = rng.choice([b"", content[i:j] * 2, rng.randbytes(8), flipped, rng.choice(PIECES)])
    return content[:i] + new + rng.choice([b"", content[i + 1 :], content[i + 1 :], content[i:], content[j:]])


def change_header(content, rng):
    """The JSON header of a safetensors file: metadata, types, shapes and offsets."""
    (n,) = struct.unpack("<Q", content[:8])
    if rng.randrange(4) == 0:
        return struct.pack("<Q", rng.choice([0, 1, n - 1, n + 1, 10**13, 2**63, 2**64 - 1])) + content[8:]
    header = json.loads(content[8 : 8 + n])
    data = header.get("__metadata__", {})
    if "init_kwargs" in data:  # JSON in JSON
        data["init_kwargs"] = json.loads(data["init_kwargs"])
    header = change_value(header, rng)
    if isinstance(data.get("init_kwargs"), dict):
        data["init_kwargs"] = dump(data["init_kwargs"]).decode("utf-8", "replace")
    text = dump(header)
    return struct.pack("<Q", len(text)) + text + content[8 + n :]


def change_tensors(path, rng):
    """The tensors of a safetensors file: numbers, types, shapes, names."""
    tensors = {n: t.clone() for n, t in load_file(path).items()}
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    name = rng.choice(sorted(tensors) or ["x"])  # zero-shot has none
    t = tensors.pop(name, torch.zeros(3))
    kinds = torch.float64, torch.bfloat16, torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn
    number = [torch.nan, torch.inf, 3e38] if t.is_floating_point() else [-1, 257, 10**9, -(2**62)]
    t = rng.choice([t.flatten(), t.to(rng.choice(kinds)), t.new_zeros(()), t.new_zeros(0, 10**12), t[None], t])
    if rng.randrange(2) and t.numel():
        t.view(-1)[0] = torch.tensor(rng.choice(number)).to(t.dtype)
    tensors[rng.choice([name] * 6 + ["shots", "x", "lm_head.weight", "h.0.attn.bias", "h.99.ln_1.weight"])] = t
    save_file({n: x.contiguous().clone() for n, x in tensors.items()}, path, metadata=metadata)


ATOMS = ["a", "(a|aa)", "[a-z]", r"\w", r"\d", r"\s?", ".", "(?:)", r"\p{L}", "[^a]", "x*", "(?=a)", r"\1", r"\b"]
TYPES = "Prepend Strip StripAccents Precompiled Replace NFC NFKD Lowercase Nmt BertNormalizer ByteLevel".split()
TYPES += "Metaspace Split Digits Punctuation FixedLength CharDelimiterSplit Whitespace UnicodeScripts".split()
TYPES += "TemplateProcessing RobertaProcessing BertProcessing Fuse ByteFallback WordPiece CTC BPEDecoder".split()
LENGTHS = [0, 1, 2, 50, 10**6, 10**9, -1]


def odd_pattern(rng):
    """A regular expression which may try all ways to cut a text, or cut nothing."""
    parts = [rng.choice(ATOMS) + rng.choice(["", "+", "*", "?", "{2,}"]) for _ in range(rng.randrange(1, 4))]
    return f"({'|'.join(parts) if rng.randrange(2) else ''.join(parts)})" + rng.choice(["+$", "*x", "*", "", r"+\."])


def odd_part(rng, depth=0):
    """A normalizer, pre-tokenizer, post-processor or decoder of a tokenizer.json, right or not."""
    if rng.randrange(4) == 0 and depth < 3:
        parts = [odd_part(rng, depth + 1)] * rng.choice([1, 2, 40 if depth == 0 else 3])
        names = "normalizers", "pretokenizers", "decoders", "processors"
        return {"type": "Sequence"} | dict.fromkeys(names, parts)
    token, length = rng.choice(["</s>", "<none>", "a", ""]), rng.choice(LENGTHS)
    text = rng.choice(["a", "", "aa", "\u2581", "x" * 10_000, "x" * (10_000 if depth else 2_000_000)])
    pattern = rng.choice([{"String": rng.choice(["a", " ", ""])}, {"Regex": odd_pattern(rng)}])
    one = [{"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    known = {token: {"id": token, "ids": [rng.choice([*LENGTHS, 256])], "tokens": [token]}} if rng.randrange(2) else {}
    return {
        **{"type": rng.choice(TYPES), "pattern": pattern, "content": text, "prepend": text, "replacement": text[:1]},
        **{"behavior": rng.choice(["Isolated", "Removed", "Contiguous"]), "invert": bool(rng.randrange(2))},
        **{"precompiled_charsmap": rng.choice(["", "AAAA", "A" * 1000]), "length": length, "delimiter": text[:1]},
        **{"single": one, "pair": [*one, {"Sequence": {"id": "B", "type_id": 1}}], "special_tokens": known},
        **{"start": length, "stop": length, "strip_left": True, "strip_right": True, "individual_digits": True},
        **{"add_prefix_space": True, "trim_offsets": True, "use_regex": bool(rng.randrange(2))},
        **{"sep": [token, length], "cls": [token, length], "prepend_scheme": rng.choice(["always", "first"])},
        **{"prefix": text[:2], "cleanup": True, "pad_token": token, "word_delimiter_token": "|", "suffix": text[:3]},
    }


def change_tokenizer(content, rng):
    """A tokenizer.json with parts that its library may loop, grow or break at."""
    value = json.loads(content)
    for part in rng.sample(["normalizer", "pre_tokenizer", "post_processor", "decoder"], rng.randrange(1, 3)):
        value[part] = odd_part(rng)
    if rng.randrange(6) == 0:
        length = rng.choice(LENGTHS)
        value["truncation"] = {"direction": "Right", "max_length": length, "strategy": "LongestFirst", "stride": 1}
        value["padding"] = {"strategy": {"Fixed": length}, "direction": "Left", "pad_to_multiple_of": 0}
        value["padding"] |= {"pad_id": length, "pad_type_id": 0, "pad_token": "x"}
    if rng.randrange(6) == 0:
        value["model"] = {"type": "Unigram", "unk_id": rng.choice(LENGTHS), "vocab": [["a", -1.0], ["b", math.nan]]}
    return dump(value)


def change(path, rng):
    """Change the file at `path`; returns what was done, in a word."""
    content, suffix, how = path.read_bytes(), path.suffix, rng.random()
    if how < 0.03:
        path.unlink()
        special = rng.choice([lambda: None, path.mkdir, path.touch, lambda: os.mkfifo(path)])
        rng.choice([special, lambda: path.symlink_to("/dev/zero"), lambda: path.symlink_to(path)])()
        return "another kind of file"
    if suffix == ".safetensors" and how > 0.65:
        change_tensors(path, rng)
        return "tensors"
    if path.name == "tokenizer.json" and how > 0.3:
        path.write_bytes(change_tokenizer(content, rng))
        return "parts of a tokenizer"
    if path.name == "encoding.json" and how > 0.7:
        path.write_bytes(dump(json.loads(content) | {"pattern": odd_pattern(rng)}))
        return "a pattern"
    if suffix == ".json" and how > 0.3:
        path.write_bytes(dump(change_value(json.loads(content), rng)))
        return "values"
    function = change_header if suffix == ".safetensors" and how > 0.3 else change_bytes
    path.write_bytes(function(content, rng))
    return function.__name__


# ---------------------------------------------------------------- the judge


class Hang(BaseException):
    pass


def stop(*_):
    raise Hang


written = []  # every path that Python opens for writing while an input is judged


def watch(event, args):
    if event == "open" and isinstance(args[0], str) and isinstance(args[2], int):
        if args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            written.append(os.path.abspath(args[0]))


sys.addaudithook(watch)


def status(key):
    """Bytes of this process, from /proc."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(key))


def judge(read, box, size=0, seconds=SECONDS):
    """(what is wrong with how `read(box)` ended, or None; exit code; the message). size: of the file, in bytes."""
    out, err, code, wrong = io.StringIO(), io.StringIO(), 0, None
    before, limit = status("VmRSS"), resource.getrlimit(resource.RLIMIT_DATA)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    resource.setrlimit(resource.RLIMIT_DATA, (status("VmData") + 4 * 2**30, limit[1]))  # so that the machine survives
    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    written.clear()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            errors.run_main(lambda argv: read(box), "program")
    except SystemExit as end:
        code = end.code
    except Hang:
        wrong = f"no end after {seconds} s"
    except BaseException as error:  # a panic of a Rust library is no Exception
        where = traceback.extract_tb(error.__traceback__)[-1]
        wrong = f"traceback: {type(error).__name__}: {str(error)[:300]} at {where}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_DATA, limit)
    message, peak = err.getvalue(), status("VmHWM") - before
    outside = [path for path in written if not path.startswith((str(box / "out"), "/dev/", "/proc/"))]
    rules = {
        f"exit code {code}": code not in (0, 2),
        f"not one line: {message[:300]!r}": code == 2 and (message.count("\n") != 1 or message[:9] != "program: "),
        f"out of memory: {message[:300]!r}": code == 2 and "memory of this machine" in message,
        f"{peak / 1e6:.0f} MB for a file of {size / 1e6:.1f} MB": peak > 2 * size + MEMORY,
        f"wrote {outside[:1]}": outside,
    }
    return wrong or next((rule for rule, is_broken in rules.items() if is_broken), None), code, message


def try_one(box, kind, damage, seconds=SECONDS):
    """Let `damage(path)` change the file of a kind, judge how its reader ends, and put the good file back."""
    name, read = KINDS[kind]
    path = box / name
    good = path.read_bytes()
    shutil.rmtree(box / "out", ignore_errors=True)
    (box / "out").mkdir()
    try:
        what = damage(path)
        size = path.stat().st_size if path.is_file() else 0
        wrong, code, message = judge(read, box, size, seconds)
    finally:
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        path.unlink(missing_ok=True)
        path.write_bytes(good)
    return wrong, code, message, what


@contextlib.contextmanager
def working_set():
    with tempfile.TemporaryDirectory() as folder:
        box = Path(folder).resolve()
        make(box)
        for kind in KINDS:  # all are good, and everything that is imported late is there
            wrong, code, message, _ = try_one(box, kind, lambda path: None, seconds=120)
            assert wrong is None and code == 0, (kind, wrong, message)
        yield box


def main(argv=None):
    p = errors.Parser(__doc__)
    p.add_argument("n", type=int)
    p.add_argument("first", type=int, nargs="?", default=0)
    p.add_argument("kinds", nargs="*", choices=[[], *KINDS], default=[])
    args = p.parse_args(argv)
    failures, refused, kinds = 0, 0, args.kinds or list(KINDS)
    with working_set() as box:
        for i in range(args.first, args.first + args.n):
            kind, rng = kinds[i % len(kinds)], random.Random(i)
            wrong, code, _, what = try_one(box, kind, lambda path: change(path, rng))  # noqa: B023
            refused += code == 2 and wrong is None
            if wrong:
                failures += 1
                print(f"input {i}, {kind}, {what}: {wrong}", flush=True)
    print(f"inputs tried: {args.n:,} of {len(kinds)} kinds, {refused:,} refused in one line; failures: {failures}")
    sys.exit(failures > 0)


if __name__ == "__main__":
    errors.run_main(main)
