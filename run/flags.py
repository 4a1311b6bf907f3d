"""The command line: what all programs share, and the flags of train_task.py."""

import argparse
import shlex
import sys
from functools import partial
from pathlib import Path
from textwrap import fill

import torch

import methods
import tasks
from files import errors
from files.errors import UserError
from files.weights import BUNDLED, HUB
from prefix import METHODS

DEFAULT_BASE, OWN_DATA_BASE = "nano-2", "smollm2"
MOVED = {  # flags of earlier versions
    "--load": "python -m research.measure FILE",
    "--text": "python -m research.distill FILE",
    "--reproduce": "python -m research.reproduce RUN",
    "--shard-base": "torchrun -m research.sharded",
    "--trigger-examples": "--trigger examples:N",
}
TOKENIZE = "bytes", "bpe", "special"
NO_PROMPTS = "zero-shot", "few-shot", "scratch"  # methods that leave no prompt's file
BASELINES = "finetune", "finetune-top2", "lora", "adapter", "scratch"


class Parser(errors.Parser):
    """A parser of the programs that take a base."""

    def __init__(self, doc):
        super().__init__(doc, usage="%(prog)s [flags]")
        self.formatter_class = partial(self.formatter_class, max_help_position=28, width=110)
        devices = ["cpu", "cuda", "mps"]
        self.add_argument("--device", choices=devices, metavar="NAME", help="cpu, cuda or mps (default cuda, else cpu)")

    def add_base(self, default=DEFAULT_BASE):
        """--model and --dtype. `default` is the default base, or says in words which one: --model is then None."""
        bases = f"{', '.join([*BUNDLED, *HUB])}, the hub's OWNER/NAME, a folder or a file (default {default})"
        known = default if default in BUNDLED else None
        self.add_argument("--model", metavar="BASE", type=base_name, default=known, help=bases)
        dtypes = ["float32", "bfloat16"]
        self.add_argument("--dtype", choices=dtypes, metavar="TYPE", help="float32 or bfloat16 (default: the faster)")

    def parse_args(self, argv=None):
        """args, with --device resolved, and with --dtype as a torch.dtype where the program has it."""
        args = super().parse_args(argv)
        has = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
        args.device = args.device or ("cuda" if has["cuda"] else "cpu")
        if not has[args.device]:
            raise UserError(f"--device {args.device}: this machine has none, leave it out")
        if "dtype" in args:
            args.dtype = getattr(torch, args.dtype) if args.dtype else best_dtype(args.device)
        return args


def best_dtype(device):
    """bfloat16 where the device multiplies matrices faster in it, else float32."""
    if device == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    capable = getattr(torch.cpu, "get_capabilities", dict)() if device == "cpu" else {}  # none in old torch
    return torch.bfloat16 if capable.get("amx_bf16") or capable.get("avx512_bf16") else torch.float32


def base_name(text):
    """An argparse type: a base, and of a folder or file its whole path, which other folders find too."""
    return text if text in (*BUNDLED, *HUB) or not Path(text).exists() else str(Path(text).resolve())


def number(low, high, kind=float):
    """An argparse type: a number from `low` to `high`."""

    def finite_number(text):
        try:
            value = kind(text)
            if kind is int and not text.removeprefix("-").isdecimal():  # int reads 1_0 and +1 as well
                raise ValueError
        except ValueError:
            what = "whole number" if kind is int else "number"
            raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a {what}") from None
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text}: give a number from {low} to {high}")
        return value

    return finite_number


def at_least(least, most=1_000_000):
    """An argparse type: a whole number from `least` to `most`."""
    return number(least, most, int)


seed_number = at_least(0, 2**63 - 1)  # what torch's generators take
above_zero = number(1e-30, 1e30)
KINDS = {int: at_least(1, 4096), float: above_zero}  # of a method's options, which may be of another type


def some_text(text, is_trigger=False):
    """An argparse type: text that is not blank. In a trigger a number stands after `examples:`."""
    if not text.strip():
        raise argparse.ArgumentTypeError("the text is empty: write some words")
    if is_trigger and text.startswith("examples:"):
        at_least(1, 999)(text.removeprefix("examples:"))
    return text


def train_parser(doc, cls, shown):
    """The parser of train_task.py, with the options of a method's class, which --help shows or not."""
    p = Parser(doc)
    names = f"methods: {', '.join(METHODS)} (--method NAME --help explains one)"
    p.epilog = fill(names, 110, break_on_hyphens=False)
    what = "a task (python -m tasks --list), or a .jsonl, .csv or .tsv file, and one to test on"
    p.add_argument("--task", nargs="+", default=["addition"], metavar="NAME", help=what)
    p.add_argument("--columns", nargs=2, metavar=("PROMPT", "ANSWER"), help="columns of your own data")
    p.add_argument("--answer-after", type=some_text, metavar="TEXT", help="ends the steps in answers of your own data")
    p.add_base(f"{DEFAULT_BASE}; your own data: {OWN_DATA_BASE}")
    p.add_argument("--out", help="folder of the results (default out/TASK-MODEL)")
    p.add_argument("--overwrite", action="store_true", help="replace the results in that folder")
    p.add_argument("--resume", action="store_true", help="go on where the run in that folder was stopped")
    p.add_argument("--seed", type=seed_number, metavar="N", default=0, help="of rows and examples (default 0)")
    p.add_argument("--quick", action="store_true", help="fewer examples and questions")

    g = p.add_argument_group("the prompt")
    g.add_argument("--method", metavar="NAME", default="hybrid", help="see below (default hybrid)")
    g.add_argument("--n-random", type=at_least(0), metavar="N", help="rows that begin as random numbers (default 24)")
    words = "what the other rows begin as: instruction, example, examples:N, none, or any TEXT (default: instruction; "
    words += "where a task has none, a worked example); methods without rows read it as text"
    g.add_argument("--trigger", type=partial(some_text, is_trigger=True), metavar="TEXT", help=words)
    shots = "worked examples behind the prompt (default 0)"
    g.add_argument("--shots", type=at_least(0, 1000), metavar="N", default=0, help=shots)
    g.add_argument("--init-from", metavar="FILE", help="begin as the prompt of another run")
    how = "bytes, bpe, or special: bpe with special tokens (default bytes; own data: bpe)"
    g.add_argument("--tokenize", choices=TOKENIZE, metavar="HOW", help=how)

    g = p.add_argument_group("tuning and measuring")
    g.add_argument("--examples", type=at_least(1), metavar="N", help="(default 1000; scratch: 20000; own data: all)")
    g.add_argument("--epochs", type=at_least(1), metavar="N", help="passes (default 1; scratch: 3; own data: up to 5)")
    g.add_argument("--batch-size", type=at_least(1, 65536), metavar="N", help="(default 8; scratch: 16)")
    g.add_argument("--lr", type=above_zero, metavar="RATE", help="peak learning rate (default: the method's)")
    best = "held-out examples that choose the best checkpoint (default 128; 0: keep the last)"
    g.add_argument("--validation", type=at_least(0), default=128, metavar="N", help=best)
    g.add_argument("--checkpoint-activations", action="store_true", help="use less memory and more time")
    g.add_argument("--test-examples", type=at_least(1, 100_000), metavar="N", help="questions per range (default 500)")
    names = f"baselines: {', '.join(BASELINES)}, or none and no context (default scratch; your own data: contexts)"
    g.add_argument("--beside", nargs="+", choices=[*BASELINES, "none"], metavar="NAME", help=names)
    about = (cls.__doc__ or "").split("\n\n")[0] if shown else None
    g = p.add_argument_group(f"options of --method {cls.name}", about)
    for name, spec in cls.options.items():
        hidden = {} if shown else {"help": argparse.SUPPRESS}
        kind = {"type": KINDS.get(spec["type"], spec["type"])} if "type" in spec else {}
        g.add_argument(f"--{name.replace('_', '-')}", **{"default": None} | spec | kind | hidden)
    return p


def parse_args(doc, argv=None):
    """The arguments of train_task.py, checked, with the defaults that depend on the task and the method. args.options
    holds those of the method that were given."""
    argv = [str(a) for a in (sys.argv[1:] if argv is None else argv)]
    method_parser = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    method_parser.add_argument("--method", nargs="?")
    given = method_parser.parse_known_args(argv)[0].method
    name = given or "hybrid"
    cls = methods.find(name)
    if cls is None:
        raise UserError(f"--method {name}: choose from {', '.join(METHODS)}")
    flags_given = {a.partition("=")[0] for a in argv}
    for flag in MOVED.keys() & flags_given:
        raise UserError(f"{flag} is now called {MOVED[flag]}")
    for option in {o for other in METHODS.values() for o in other.options} - cls.options.keys():
        flag = f"--{option.replace('_', '-')}"
        if flag in flags_given:
            takes = ", ".join(other.name for other in METHODS.values() if option in other.options)
            raise UserError(f"{flag} is not for --method {name}: it is an option of {takes}")
    args = train_parser(doc, cls, shown=given is not None).parse_args(argv)
    args.command = shlex.join(["python", "train_task.py", *argv])
    args.options = {o: getattr(args, o) for o in cls.options if getattr(args, o)}
    args.own_data = Path(args.task[0]).suffix.lower() in tasks.ENDINGS
    task, trigger, beside = " ".join(args.task), args.trigger or "example", args.beside or []
    refusals = {
        f"--task {task}: give one task, or a file to tune on and one to test on": len(args.task) > 1 + args.own_data,
        "--columns and --answer-after are for your own data": (args.columns or args.answer_after) and not args.own_data,
        f"--columns {args.columns}: name two, the prompt's and the answer's": len(set(args.columns or "12")) < 2,
        f"--method {name} has no random rows: leave out --n-random": args.n_random and not cls.takes_n_random,
        f"--method {name} reads worked examples: leave out --trigger {trigger}": cls.reads_examples
        and not trigger.startswith("example"),
        f"--method {name}: leave out --init-from and --shots": (args.init_from or args.shots) and name in NO_PROMPTS,
        f"--beside {' '.join(beside)}: none stands alone": "none" in beside and len(beside) > 1,
    }
    for message, is_wrong in refusals.items():
        if is_wrong:
            raise UserError(message)
    args.model = args.model or (OWN_DATA_BASE if args.own_data else DEFAULT_BASE)
    args.n_random = (24 if args.n_random is None else args.n_random) if cls.takes_n_random else 0
    args.trigger = args.trigger or cls.default_trigger
    args.beside = args.beside or ([] if args.own_data or args.quick else ["scratch"])
    args.test_examples = args.test_examples or (None if args.own_data else 500)
    if args.quick:
        args.test_examples = min(args.test_examples or 60, 60)
    return args
