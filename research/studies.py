"""What each study of compare.py compares: a function returns its cells, which are a row of the table or a point of a
curve each.

A study of your own is one more function here, with its name in STUDIES. Each contender of a study gets the same help,
and compare.py adds the contexts that it is measured beside.
"""

import prefix
import tasks
from data.tokenizer import Tokenizer
from eval.contexts import as_text
from files.errors import UserError
from files.weights import load_model, locate
from methods.translator import TRANSLATOR

TASKS = ["addition", "multiplication", "symbolic_sum", "word_reversal", "last_letter"]
TWO = ["addition", "word_reversal"]  # one of numbers, one of letters, for studies with a second axis
THREE = [*TWO, "symbolic_sum"]
# as long as the tasks' instructions, and about none of them: whether it is their words that help
OTHER_WORDS = "The rain had stopped, and the two old men walked slowly home along the river without a word."
HELPED = ["prefix-memory", "adapter", "lora", "finetune", "finetune-top2"]  # by an example, which prompts begin as


def cell(args, task, series, x=None, *flags, bases=None, then=(), how=("--load",)):
    """One run for each base and seed: what it is called in the table, where it stands on the axis, and the rest of its
    command line; `then` are tasks on which what it learned is measured as well, or whatever the flags `how` do with its
    file."""
    given = ["--task", task, "--beside", "none", "--test-examples", args.questions]
    given += [] if "--examples" in flags else ["--examples", args.examples]
    given += [] if "--method" in flags else ["--method", "hybrid"]
    run = {"bases": bases or args.model, "args": [str(a) for a in (*given, *flags)]}
    return {"task": task, "series": series, "x": x, **run, "then": then, "how": [str(a) for a in how]}


def unhelped_and_helped(args, task, method, x=None, *flags, bases=None, then=()):
    """The cell of a method, and where it does not begin as an example itself, the same with one in its context."""
    cells = [cell(args, task, method, x, "--method", method, *flags, bases=bases, then=then)]
    if method in HELPED:
        shot = "--method", method, "--shots", 1, *flags
        cells.append(cell(args, task, f"{method}, 1 shot", x, *shot, bases=bases, then=then))
    return cells


def context_cells(args, cells):
    """What no tuned prompt may be shown without: the example that prompts begin as, and the best context, as text, for
    each task of the cells. Where these do not all have the same bases, a context stands beside the cells of its own."""
    several = len({tuple(c["bases"]) for c in cells}) > 1
    return [
        cell(args, task, series, x, "--method", method, bases=list(bases))
        for task, bases, x in dict.fromkeys((c["task"], tuple(c["bases"]), c["x"] if several else None) for c in cells)
        for series, method in (("the example as text", "text"), ("best context", "few-shot"))
    ]


def headline(args):
    """The default run of train_task.py with several seeds: the two hybrid prefixes, and a transformer from scratch on
    five times as many examples, five times over."""
    return [
        c
        for task in args.tasks or ["addition"]
        for c in (
            cell(args, task, "zero-shot", None, "--method", "zero-shot"),
            cell(args, task, "hybrid, instruction", None, "--trigger", "instruction"),
            cell(args, task, "hybrid, example", None),
            cell(args, task, "scratch", None, "--method", "scratch", "--examples", 5 * args.examples, "--epochs", 5),
        )
    ]


def methods(args):
    """Every method on every task: what it reaches in distribution and out of it, with how many parameters."""
    cells, folders = [], [locate(name)[0].parent for name in args.model]
    without = [] if all((folder / TRANSLATOR).is_file() for folder in folders) else ["translator"]
    for task in args.tasks or TASKS:
        cells.append(cell(args, task, "zero-shot", None, "--method", "zero-shot"))
        cells.append(cell(args, task, "instruction as text", None, "--method", "text", "--trigger", "instruction"))
        cells.append(cell(args, task, "hybrid, instruction", None, "--trigger", "instruction"))
        for name in prefix.METHODS:
            if name not in ("zero-shot", "text", "few-shot", *without):
                cells += unhelped_and_helped(args, task, name)
    return cells


def length(args):
    """How many rows a prompt needs: 1 to 100 (Lester et al. 2021, figure 3a; Li & Liang 2021, figure 4)."""
    return [
        cell(args, task, method, n, "--method", method, "--n-random", n, "--trigger", "none")
        for task in args.tasks or TWO
        for method in ("prompt", "ptuning2")
        for n in (1, 5, 10, 20, 50, 100)
    ]


def capacity(args):
    """How many of 256 random letters a prompt holds, by its rows: at most linearly many (Meyer et al. 2025)."""
    if args.tasks:
        raise UserError(f"--tasks {' '.join(args.tasks)}: capacity has one task, memory: leave it out")
    how = "--method", "prompt", "--trigger", "none", "--lr", 0.1, "--epochs", 150, "--validation", 0
    pairs = "--examples", 256, "--test-examples", 256
    return [cell(args, "memory", "prompt", n, "--n-random", n, *how, *pairs) for n in (1, 2, 4, 8, 16, 32)]


def init(args):
    """How a prompt should begin (Lester et al. 2021, figure 3b), and the hybrid's parts with and without its MLP."""
    cells = []
    for task in args.tasks or THREE:
        for how in ("uniform", "vocabulary", "labels", "trigger"):
            cells.append(
                cell(args, task, f"prompt: {how}", None, "--method", "prompt", "--n-random", 48, "--init", how)
            )
        for name, rows in (
            ("random only", ["--n-random", 48, "--trigger", "none"]),
            ("instruction only", ["--n-random", 0, "--trigger", "instruction"]),
            ("random and instruction", ["--trigger", "instruction"]),
            ("example only", ["--n-random", 0]),
            ("random and example", []),
        ):
            for mlp in ([], ["--mlp", "--lr", 0.003]):
                cells.append(cell(args, task, f"hybrid: {name}{', MLP' * bool(mlp)}", None, *rows, *mlp))
    return cells


def prompt_position(args):
    """Whether rows before, inside or after the question steer best (Liu et al. 2021, "GPT Understands, Too")."""
    return [
        cell(args, task, where, None, "--method", "ptuning", "--position", where)
        for task in args.tasks or TWO
        for where in ("before", "inside", "after")
    ]


def data_efficiency(args):
    """Prompts from two starts, LoRA and fine-tuning with and without an example in their context, and a transformer
    from scratch on 16 to 4,000 examples, repeated until all have seen as many."""
    cells = []
    for task in args.tasks or ["addition", "symbolic_sum"]:
        for n in [n for n in (16, 128, 1000) if n < args.examples] + [args.examples]:
            given = "--examples", n, "--epochs", args.examples // n
            budget = given if n < args.examples else ()  # the default, so that other studies share its runs
            cells += [
                cell(args, task, "hybrid, instruction", n, "--trigger", "instruction", *budget),
                cell(args, task, "hybrid, example", n, *budget),
                *unhelped_and_helped(args, task, "lora", n, *budget),
                *unhelped_and_helped(args, task, "finetune", n, *budget),
                cell(args, task, "scratch", n, "--method", "scratch", *given),  # its default is 5 passes
            ]
    return cells


def steps(args):
    """How many steps a prompt needs from each start: 10, 30, 100 and 300 steps of 32 new examples, the last kept."""
    starts = {"example": [], "instruction": ["--trigger", "instruction"]}
    starts["random"] = ["--n-random", 65, "--trigger", "none"]
    return [
        cell(args, task, f"hybrid, {name}", n, "--examples", 32 * n, "--validation", 0, *start)
        for task in args.tasks or ["addition", "symbolic_sum"]
        for n in (10, 30, 100, 300)
        for name, start in starts.items()
    ]


def base_size(args):
    """Whether the gap between prompts and fine-tuning closes as the base grows (Lester et al. 2021, figure 1)."""
    bases = {}  # number of parameters: the bases of that size
    for name in args.sizes:
        bases.setdefault(sum(p.numel() for p in load_model(name).parameters()), []).append(name)
    return [
        c
        for task in args.tasks or THREE
        for n in bases
        for method in ("hybrid", "ptuning2", "lora", "finetune")
        for c in unhelped_and_helped(args, task, method, n, bases=bases[n])
    ]


def transfer(args):
    """Tuned on one format, asked in another, and on longer and new words (Lester et al. 2021, section 5)."""
    others = {
        "addition": ("addition:symbolic", "addition:plain"),
        "addition:symbolic": ("addition", "addition:plain"),
        "symbolic_sum": ("symbolic_sum:sequence",),
        "word_reversal": (),
        "last_letter": (),
    }
    cells = []
    for task in args.tasks or others:
        for method in ("hybrid", "ptuning2", "adapter", "lora", "finetune-top2", "finetune"):
            cells += unhelped_and_helped(args, task, method, then=others.get(task, ()))
    return cells


def unseen_skill(args):
    """Skills that the base has shown in other formats, and one that it never saw (Petrov et al. 2023), in one pass and
    in the five that a transformer from scratch makes."""
    return [
        cell(args, task, f"{method}{', 5 passes' * bool(passes)}", None, "--method", method, *passes)
        for task in args.tasks or ("word_reversal", "addition", "next_letter")
        for method in ("hybrid", "ptuning2", "adapter", "lora", "finetune", "scratch")
        for passes in ((), ("--epochs", 5))
        if passes or method != "scratch"
    ]


def length_generalization(args):
    """What keeps a prompt right beyond the lengths it was tuned on: from the default, one thing changed at a time."""
    changes = [
        ("default: 24 random + example", []),
        *((f"{n} random + example", ["--n-random", n]) for n in (0, 96)),
        ("65 random", ["--n-random", 65, "--trigger", "none"]),
        ("24 random + instruction", ["--trigger", "instruction"]),
        ("default, MLP", ["--mlp", "--lr", 0.003]),
        *((f"{n} examples", ["--examples", n]) for n in (1000, 20000)),
        ("L2-SP 10", ["--l2-sp", 10]),
        ("the last state, not the best", ["--validation", 0]),
        ("20000 examples, the last state", ["--examples", 20000, "--validation", 0]),
        ("20000 examples, L2-SP 10", ["--examples", 20000, "--l2-sp", 10]),
        ("1 shot behind it", ["--shots", 1]),
        ("keys, values: example", ["--method", "ptuning2", "--n-random", 0]),
        ("keys, values: 24 random + example", ["--method", "ptuning2"]),
        ("keys, values: 65 random", ["--method", "ptuning2", "--n-random", 65, "--trigger", "none"]),
        ("adapter", ["--method", "adapter"]),
        ("adapter, 1 shot", ["--method", "adapter", "--shots", 1]),
        ("LoRA", ["--method", "lora"]),
        ("LoRA, 1 shot", ["--method", "lora", "--shots", 1]),
        ("LoRA, 1 shot, the last state", ["--method", "lora", "--shots", 1, "--validation", 0]),
        ("LoRA, instruction", ["--method", "lora", "--trigger", "instruction"]),
        ("LoRA, other words", ["--method", "lora", "--trigger", OTHER_WORDS]),
        ("LoRA, lr 1e-3, instruction", ["--method", "lora", "--lr", 1e-3, "--trigger", "instruction"]),
        ("LoRA, lr 1e-3, 1 shot", ["--method", "lora", "--lr", 1e-3, "--shots", 1]),
        ("fine-tuned", ["--method", "finetune"]),
        ("fine-tuned, 1 shot", ["--method", "finetune", "--shots", 1]),
        ("fine-tuned, 1 shot, the last state", ["--method", "finetune", "--shots", 1, "--validation", 0]),
        ("fine-tuned, instruction", ["--method", "finetune", "--trigger", "instruction"]),
        ("fine-tuned, lr 1e-4, 1 shot", ["--method", "finetune", "--lr", 1e-4, "--shots", 1]),
        ("from scratch", ["--method", "scratch"]),
    ]
    names = args.tasks or ["addition"]
    return [cell(args, task, series, None, *flags) for task in names for series, flags in changes]


def init_from(args):
    """Which task's prompt is a good start for which (Vu et al. 2022): the prompt of each task, tuned further on a tenth
    of the examples of each, four times over, beside the default start and random rows tuned alike."""
    names, cells = args.tasks or TASKS, []
    tenth = "--examples", max(1, args.examples // 10), "--epochs", 4
    for task in names:
        cells.append(cell(args, task, "hybrid, example", None, then=names, how=(*tenth, "--init-from")))
        cells.append(cell(args, task, "hybrid, example, a tenth", None, *tenth))
        cells.append(cell(args, task, "65 random rows, a tenth", None, "--n-random", 65, "--trigger", "none", *tenth))
    return cells


def distill(args):
    """2, 8 and 32 worked examples distilled into 8, 16 and 65 keys and values of each layer, beside the same examples
    in the context, where they fit, and beside as many keys and values tuned on their labels for as many steps."""
    cells = []
    for task in args.tasks or TWO:
        for k in (2, 8, 32):
            if fits(args, task, k):
                cells.append(
                    cell(args, task, f"{k} examples as text", None, "--method", "text", "--trigger-examples", k)
                )
            for n in (8, 16, 65):
                text = "--trigger-examples", k
                labels = "--trigger", "none", "--examples", k, "--epochs", max(1, args.examples // 32)
                cells += [
                    cell(args, task, f"{k} examples distilled", n, "--method", "cartridge", "--n-random", n, *text),
                    cell(args, task, f"{k} examples' labels", n, "--method", "ptuning2", "--n-random", n, *labels),
                ]
    return cells


def fits(args, name, k):
    """Whether a base's context holds the first k training examples of a task and the longest question and answer."""
    task = tasks.load(name)
    tests = [e for r in task.ranges for e in task.examples(args.questions, r)]
    for base in args.model:
        model = load_model(base)
        tokenizer = Tokenizer.load(model.folder, model.config.vocab_size, task.tokenize)
        for seed in range(args.seeds):
            examples = task.examples(args.examples, split="train", seed=seed)
            longest = max(len(tokenizer.encode_task(e.question + e.answer)) for e in [*examples, *tests])
            if len(tokenizer.encode_task(as_text(examples[:k]))) + longest > model.config.block_size:
                return False
    return True


STUDIES = {
    f.__name__: f
    for f in (
        *(methods, headline, length, capacity, init, prompt_position, data_efficiency, steps),
        *(base_size, transfer, unseen_skill, length_generalization, init_from, distill),
    )
}
AXES = {  # what x is, in the studies that have it
    "length": "rows",
    "capacity": "rows for 256 names",
    "distill": "rows",
    "data_efficiency": "examples",
    "steps": "steps",
    "base_size": "parameters of the base",
}
LEARNED_FROM = {  # in the studies whose runs do not all learn from --examples
    "capacity": "256 names to tune on, 150 times over, and all of them asked",
    "data_efficiency": "examples as stated, {questions} questions a range",
    "steps": "32 new examples a step, {questions} questions a range",
}
