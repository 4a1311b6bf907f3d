"""What each study of research/compare.py compares. A study is a function under `@study` which yields its cells for one
task; a cell is a row of the study's table or a point of a curve. A study of your own is one more such function here.
"""

import shlex
from typing import NamedTuple

from files.weights import locate
from methods import METHODS
from methods.translator import TRANSLATOR

TASKS = "addition", "multiplication", "symbolic_sum", "word_reversal", "last_letter"
TWO = "addition", "word_reversal"  # one of numbers and one of letters, for studies with a second axis
THREE = *TWO, "symbolic_sum"
SUMS = "addition", "symbolic_sum"
HELPED = "prefix-memory", "adapter", "lora", "finetune", "finetune-top2"  # by a worked example in their context
PROMPT = "PROMPT"  # in the command lines of `Cell.then`: the file of the prompt that the cell's run has learned


class Cell(NamedTuple):
    """One run of train_task.py for each seed, and the runs that need its prompt."""

    task: str
    series: str  # its name in the table
    x: int | None  # its place on the study's axis
    line: list  # train_task.py's arguments but the base, the seed and the device
    then: dict  # {other task: [program, *arguments]}


STUDIES = {}


def study(*tasks, axis="", learned_from="{examples:,} examples to tune on, {questions} questions a range"):
    """A decorator which adds a function to STUDIES, with its usual tasks, what x is, and a line for its table."""

    def add(function):
        function.tasks, function.axis, function.learned_from = tasks, axis, learned_from
        function.about = " ".join((function.__doc__ or "").split())  # python -OO drops it
        STUDIES[function.__name__] = function
        return function

    return add


def cell(args, task, series, flags="", x=None, then=()):
    """A cell of the hybrid prefix with the study's budget, unless the flags say otherwise."""
    usual = {"--task": task, "--beside": "none", "--method": "hybrid"}
    usual |= {"--examples": args.examples, "--test-examples": args.questions}
    given = shlex.split(flags)
    line = [word for flag, value in usual.items() if flag not in given for word in (flag, *str(value).split())]
    return Cell(task, series, x, line + given, dict(then))


def without_and_with_example(args, task, method, flags="", **more):
    """The cell of a method, and for methods that do not start from an example another with one in their context."""
    yield cell(args, task, method, f"--method {method} {flags}", **more)
    if method in HELPED:
        yield cell(args, task, f"{method}, 1 shot", f"--method {method} --shots 1 {flags}", **more)


def context_cells(args, cells):
    """The two contexts that each table shows: the example that prompts start from as text, and the best context."""
    for task in dict.fromkeys(c.task for c in cells):
        yield cell(args, task, "the example as text", "--method text --trigger example")
        yield cell(args, task, "best context", "--method few-shot")


@study(*TASKS)
def methods(args, task):
    """Every method on every task: what it reaches in distribution and out of it, with how many parameters."""
    yield cell(args, task, "zero-shot", "--method zero-shot")
    yield cell(args, task, "instruction as text", "--method text")
    yield cell(args, task, "hybrid, example", "--trigger example")
    translated = (locate(args.model)[0].parent / TRANSLATOR).is_file()
    for name in METHODS:
        if name not in ("zero-shot", "text", "few-shot") and (name != "translator" or translated):
            yield from without_and_with_example(args, task, name)


@study(*TASKS)
def headline(args, task):
    """The default run of train_task.py on every task with several seeds, and what it is compared with: keys and values
    in every layer, LoRA without and with an example, and a transformer from scratch on 20,000 examples."""
    yield cell(args, task, "instruction as text", "--method text")
    for method in ("hybrid", "ptuning2", "lora"):
        yield from without_and_with_example(args, task, method)
    yield cell(args, task, "scratch", "--method scratch --examples 20000")


@study(*TWO, axis="rows")
def length(args, task):
    """How many rows a prompt needs: 1 to 100 (Lester et al. 2021, figure 3a; Li & Liang 2021, figure 4)."""
    for method in ("prompt", "ptuning2"):
        for n in (1, 5, 10, 20, 50, 100):
            yield cell(args, task, method, f"--method {method} --n-random {n} --trigger none", n)


@study("memory", axis="rows for 256 names", learned_from="256 names to tune on, 150 times over, and all of them asked")
def capacity(args, task):
    """How many of 256 random letters a prompt holds, by its rows: at most linearly many (Meyer et al. 2025)."""
    how = "--method prompt --trigger none --lr 0.1 --epochs 150 --validation 0 --examples 256 --test-examples 256"
    for n in (1, 2, 4, 8, 16, 32):
        yield cell(args, task, "prompt", f"--n-random {n} {how}", n)


@study(*THREE)
def init(args, task):
    """How a prompt should begin (Lester et al. 2021, figure 3b), and the hybrid's parts with and without its MLP."""
    for how in ("uniform", "vocabulary", "labels", "trigger"):
        yield cell(args, task, f"prompt: {how}", f"--method prompt --n-random 48 --init {how}")
    for name, rows in {
        "random only": "--n-random 48 --trigger none",
        "instruction only": "--n-random 0",
        "random and instruction": "",
        "example only": "--n-random 0 --trigger example",
        "random and example": "--trigger example",
    }.items():
        yield cell(args, task, f"hybrid: {name}", rows)
        yield cell(args, task, f"hybrid: {name}, MLP", f"{rows} --mlp --lr 0.003")


@study(*TWO)
def prompt_position(args, task):
    """Whether rows before, inside or after the question steer best (Liu et al. 2021, "GPT Understands, Too")."""
    for where in ("before", "inside", "after"):
        yield cell(args, task, where, f"--method ptuning --position {where}")


@study(*SUMS, axis="examples", learned_from="examples as stated, {questions} questions a range")
def data_efficiency(args, task):
    """Prompts from two starts, LoRA and fine-tuning with and without an example in their context, and a transformer
    from scratch on 16 to 1,000 examples, repeated until all have seen as many."""
    for n in [n for n in (16, 64, 256) if n < args.examples] + [args.examples]:
        given = f"--examples {n} --epochs {args.examples // n}"
        budget = given if n < args.examples else ""  # the default, so that other studies share its runs
        yield cell(args, task, "hybrid, instruction", budget, n)
        yield cell(args, task, "hybrid, example", f"--trigger example {budget}", n)
        for method in ("lora", "finetune"):
            yield from without_and_with_example(args, task, method, budget, x=n)
        yield cell(args, task, "scratch", f"--method scratch {given}", n)  # its default is 3 epochs


@study(*SUMS, axis="steps", learned_from="32 new examples a step, {questions} questions a range")
def steps(args, task):
    """How many steps a prompt needs from each start: 10, 30, 100 and 300 steps of 32 new examples, the last kept."""
    starts = {"example": "--trigger example", "instruction": "", "random": "--n-random 65 --trigger none"}
    for n in (10, 30, 100, 300):
        for name, start in starts.items():
            yield cell(args, task, f"hybrid, {name}", f"--examples {32 * n} --batch-size 32 --validation 0 {start}", n)


@study("addition", "addition:symbolic", "symbolic_sum", "word_reversal", "last_letter")
def transfer(args, task):
    """Tuned on one format, asked in another, and on longer and new words (Lester et al. 2021, section 5)."""
    formats = "addition", "addition:symbolic", "addition:plain"
    others = {"symbolic_sum": ["symbolic_sum:sequence"]} | {a: [b for b in formats if b != a] for a in formats}
    measure = ["research.measure", PROMPT, "--beside", "none", "--test-examples", str(args.questions), "--task"]
    then = {other: [*measure, other] for other in others.get(task, ())}
    for method in ("hybrid", "ptuning2", "adapter", "lora", "finetune-top2", "finetune"):
        yield from without_and_with_example(args, task, method, then=then)


@study("word_reversal", "addition", "next_letter")
def unseen_skill(args, task):
    """Skills that the base has shown in other formats, and one that it never saw (Petrov et al. 2023), in one epoch and
    in the five that a transformer from scratch makes."""
    for method in ("hybrid", "ptuning2", "adapter", "lora", "finetune", "scratch"):
        if method != "scratch":
            yield cell(args, task, method, f"--method {method}")
        yield cell(args, task, f"{method}, 5 passes", f"--method {method} --epochs 5")


@study("word_reversal")
def real_base(args, task):
    """Prompts and LoRA on a base that has not seen the tasks (--model smollm2 --examples 2400). A task may be your own
    data: --tasks 'train.jsonl test.jsonl'."""
    words = "example" if task in TASKS else "instruction"  # what the rows of the prompts begin as
    for series, flags in {
        "hybrid": f"--trigger {words}",
        "ptuning2": f"--method ptuning2 --trigger {words}",
        "lora": "--method lora",
        "lora, same words": f"--method lora --trigger {words}",
    }.items():
        yield cell(args, task, series, f"--epochs 1 {flags}")


@study("addition")
def length_generalization(args, task):
    """What keeps a prompt right beyond the lengths it was tuned on: from an example, one thing changed at a time."""
    example, words, last = "--trigger example", "--trigger instruction", "--validation 0"
    shot, random_rows = "--shots 1", "--n-random 65 --trigger none"
    # as long as the tasks' instructions and about none of them: whether it is an instruction's words that help
    rain = "The rain had stopped, and the two old men walked slowly home along the river without a word."
    for series, flags in {
        "24 random + example": example,
        "0 random + example": f"--n-random 0 {example}",
        "96 random + example": f"--n-random 96 {example}",
        "65 random": random_rows,
        "24 random + instruction": words,
        "MLP": f"--mlp --lr 0.003 {example}",
        "4000 examples": f"--examples 4000 {example}",
        "the last state": f"{last} {example}",
        "1 shot behind it": f"{shot} {example}",
        "keys, values: example": f"--method ptuning2 --n-random 0 {example}",
        "keys, values: 24 random + example": f"--method ptuning2 {example}",
        "keys, values: 65 random": f"--method ptuning2 {random_rows}",
        "adapter": "--method adapter",
        "adapter, 1 shot": f"--method adapter {shot}",
        "LoRA": "--method lora",
        "LoRA, 1 shot": f"--method lora {shot}",
        "LoRA, 1 shot, the last state": f"--method lora {shot} {last}",
        "LoRA, instruction": f"--method lora {words}",
        "LoRA, other words": f"--method lora --trigger '{rain}'",
        "LoRA, lr 1e-3, instruction": f"--method lora --lr 0.001 {words}",
        "LoRA, lr 1e-3, 1 shot": f"--method lora --lr 0.001 {shot}",
        "fine-tuned": "--method finetune",
        "fine-tuned, 1 shot": f"--method finetune {shot}",
        "fine-tuned, 1 shot, the last state": f"--method finetune {shot} {last}",
        "fine-tuned, instruction": f"--method finetune {words}",
        "fine-tuned, lr 1e-4, 1 shot": f"--method finetune --lr 0.0001 {shot}",
        "from scratch": "--method scratch",
    }.items():
        yield cell(args, task, series, flags)


@study(*TASKS)
def init_from(args, task):
    """Which task's prompt is a good start for which (Vu et al. 2022): the prompt of each task, tuned further on a tenth
    of the examples of each, four times over, beside the default start and random rows tuned alike."""
    tenth = f"--examples {max(1, args.examples // 10)} --epochs 4"
    begun = [cell(args, name, "", f"{tenth} --init-from {PROMPT}") for name in args.tasks or TASKS]
    yield cell(args, task, "hybrid", then={c.task: ["train_task", "--resume", *c.line] for c in begun})
    yield cell(args, task, "hybrid, a tenth", tenth)
    yield cell(args, task, "65 random rows, a tenth", f"--n-random 65 --trigger none {tenth}")


@study(*TWO, axis="rows")
def distill(args, task):
    """2, 8 and 32 worked examples distilled into 8, 16 and 65 keys and values of each layer, beside the same examples
    in the context, where nano-2 holds them, and beside as many keys and values tuned on their labels for as many
    steps."""
    for k in (2, 8, 32):
        examples, labels = f"--trigger examples:{k}", f"--examples {k} --epochs {max(1, args.examples // 32)}"
        if k < 32:
            yield cell(args, task, f"{k} examples as text", f"--method text {examples}")
        for n in (8, 16, 65):
            yield cell(args, task, f"{k} examples distilled", f"--method cartridge --n-random {n} {examples}", n)
            rows = f"--method ptuning2 --n-random {n} --trigger none"
            yield cell(args, task, f"{k} examples' labels", f"{rows} {labels}", n)
