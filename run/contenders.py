"""What a run compares: the methods of --method, --beside and --load, and what words alone can do.

They are made of one set of examples. Each learns from its share of them, and all answer the same questions.
"""

import sys

import torch

from eval.contexts import as_text, best_context
from files.errors import UserError
from files.prompts import load_prefix
from prefix import METHODS
from run import processes as distributed


def budget(args, method):
    """(examples, epochs) that a method learns from: the command line's, or what serves the method. None: all."""
    examples = args.examples or (None if args.own_data else method.examples)
    epochs = args.epochs or (5 if args.own_data else method.epochs)
    if args.quick:
        return min(examples or 2000, 2000), min(epochs, 2)
    return examples, epochs


def trigger_of(args, task, tokenizer, examples):
    """(kind, text, tokens) of what the trigger rows begin as."""
    reads_examples = METHODS[args.method].needs_examples
    kind = args.trigger or ("instruction" if task.classes and not reads_examples else "example")
    if kind == "none":
        return "", "", []
    if kind == "example":
        n = args.trigger_examples
        shown = task.worth_showing(examples, 1) if n == 1 else examples[:n]
        if reads_examples:  # the longest first
            shown = task.worth_showing(shown, n)
        text = as_text(shown)
        return kind, text, tokenizer.bos + tokenizer.encode_task(text)
    text = (task.trigger if kind == "instruction" else kind) + "\n"
    return kind if kind == "instruction" else "trigger", text, tokenizer.bos + tokenizer.encode(text)


def build_method(args, name, model, tokenizer, task, examples, trigger=("", "", []), shots=0):
    """A method of prefix.py with the options of the command line, and its worked examples."""
    cls = METHODS[name]
    if args.n_random > model.config.block_size:
        raise UserError(f"--n-random {args.n_random}: {model.name} has block_size {model.config.block_size}")
    options = {o: getattr(args, o) for o in cls.options if getattr(args, o) is not None}
    if cls.needs_labels and task.classes:
        options["labels"] = [tokenizer.encode_task(task.answer_line(c)) for c in task.classes]
    elif cls.needs_labels:  # the tokens that answers are made of
        options["labels"] = [[t] for t in sorted({t for e in examples for t in tokenizer.encode_task(e.answer)})]
    kind, _, tokens = trigger
    method = cls(model, n_random=args.n_random, trigger=tokens, seed=args.seed, **options).to(args.device)
    method.init_kwargs["seed"] = args.seed
    if method.init_kwargs.get("trigger") and "init" not in cls.options:
        method.label += f" from the {kind}"
    add_text(args, method, tokenizer, task, examples, trigger, shots)
    return method


def add_text(args, method, tokenizer, task, examples, trigger, shots):
    """Put text behind a method's own cache: that many worked examples, and in front of them a trigger that was asked
    for where there are no rows, or else the token that the base expects before a text, unless rows begin as it."""
    kind, _, tokens = trigger
    begins_as_words = method.init_kwargs.get("trigger") and "init" not in method.options
    before = [] if begins_as_words and method.n_positions() else tokenizer.bos
    if args.trigger and tokens and not method.n_rows():
        before = tokens
        method.label += f" behind the {kind}"
    before = before + tokenizer.encode_task(as_text(task.worth_showing(examples, shots)) if shots else "")
    if before:
        method.shots = torch.tensor([before], device=args.device)  # (1, S)
    if shots:
        method.label += f", {shots} shot{'s' * (shots > 1)}"


def begin_from(args, model, tokenizer):
    """(method, what its file says) of --init-from: Vu et al. (2022), "SPoT: Better Frozen Model Adaptation through Soft
    Prompt Transfer"."""
    method, header = load_prefix(args.init_from, model, tokenizer, other_base=True)
    method = method.tunable(model)
    if method.name != args.method:
        raise UserError(f"{args.init_from} is of --method {method.name}, not {args.method}: give that")
    if hasattr(method, "start"):
        method.start.copy_(method.embeddings().detach())
    method.shots, method.init_kwargs["seed"] = None, args.seed
    method.label += f" from that of {header.get('task') or 'a text'}"
    return method, header


def build_prompts(args, model, tokenizer, task):
    """{name: Method} of --method, and what its trigger rows begin as. A hybrid prefix from a worked example comes with
    the study's own, from the task in words."""
    n, _ = budget(args, METHODS[args.method])
    examples = task.examples(n, split="train", seed=args.seed)
    trigger, methods = trigger_of(args, task, tokenizer, examples), {}
    if args.method in ("zero-shot", "few-shot", "scratch"):  # contexts and rivals make these
        return methods, trigger
    if args.init_from:
        method, header = begin_from(args, model, tokenizer)
        add_text(args, method, tokenizer, task, examples, trigger, args.shots)
        return {args.method: method}, ("trigger", header["trigger"], method.init_kwargs.get("trigger", []))
    if args.method == "hybrid" and trigger[0] == "example" and task.trigger and args.beside != ["none"]:
        words = "instruction", task.trigger, tokenizer.bos + tokenizer.encode(task.trigger + "\n")
        methods["hybrid-instruction"] = build_method(args, "hybrid", model, tokenizer, task, examples, words)
    methods[args.method] = build_method(args, args.method, model, tokenizer, task, examples, trigger, args.shots)
    return methods, trigger


def load_prompts(args, model, tokenizer):
    """{name: Method} of --load, {name: the same before it was tuned} and their trigger. The tokenizer is set to what
    they were tuned with. Several have to be able to vote."""
    loaded = [load_prefix(path, model, tokenizer) for path in args.load]
    first, header = loaded[0]
    methods, starts = {}, {}
    for path, (method, other) in zip(args.load, loaded):
        same = other["tokenize"] == header["tokenize"]
        if len(loaded) > 1 and (not same or method.network(model) is not model or method.insert_rows([])):
            raise UserError(f"{path} cannot vote: it is {method.label}, or was tuned with other tokens than the first")
        name = f"{method.name} {len(methods) + 1}" if methods else method.name
        method.label += f", file {len(methods) + 1}" * (len(loaded) > 1)
        methods[name] = method
        if method.learns() and not other.get("init_from"):  # another run's prompt as the start is not in the file
            starts[name] = METHODS[method.name](model, **method.init_kwargs).to(args.device)
            starts[name].shots = method.shots
    tokenizer.tokenize = header["tokenize"]
    return methods, starts, ("trigger", header["trigger"], first.init_kwargs.get("trigger", []))


def draw_examples(args, task, model, tokenizer, n_positions):
    """Training examples, as many as the contender with the most wants; {range: test examples}; and how many positions
    the longest of them leaves free.

    Rows of your own data that are too long for the base behind n_positions of prompt are left out. Raises UserError
    where another task's examples are.
    """
    limit = model.config.block_size - n_positions
    if args.own_data:
        task.drop(lambda e: len(tokenizer.encode_task(e.question + e.answer)) > limit)
        for note in task.notes if distributed.is_main() else ():
            print(note, file=sys.stderr)
    wanted = [budget(args, METHODS[name])[0] for name in {args.method, *args.beside} if name in METHODS]
    examples = task.examples(None if None in wanted else max(wanted), split="train", seed=args.seed)
    tests = {name: task.examples(args.test_examples, name) for name in task.ranges}
    longest = max(len(tokenizer.encode_task(e.question + e.answer)) for e in [*examples, *sum(tests.values(), [])])
    if longest > limit:
        raise UserError(
            f"{n_positions} prompt rows and {longest} tokens of text exceed block_size {model.config.block_size}: "
            "use fewer rows or shots"
        )
    return examples, tests, model.config.block_size - longest


def contexts(args, model, tokenizer, task, examples, trigger, max_tokens, known=None):
    """{name: Method} of what words alone can do, and what the best context is: nothing before the question, the
    trigger as text, and the best worked examples of at most max_tokens, searched for where they are not yet `known`."""
    alone, methods, (kind, _, tokens) = args.beside == ["none"], {}, trigger
    if not alone or args.method == "zero-shot":
        methods["zero-shot"] = build_method(args, "zero-shot", model, tokenizer, task, examples)
    if not alone and tokens and args.method != "text":
        methods["text"] = METHODS["text"](model, tokens).to(args.device)
        methods["text"].label = f"the {kind} as text"
    if alone and args.method != "few-shot":
        return methods, None
    n, _ = budget(args, METHODS[args.method])
    if known:
        tokens, best, candidates = tokenizer.encode_task(known["text"]), known, known["candidates"]
    else:
        tokens, best, candidates = best_context(model, tokenizer, task, examples[:n], max_tokens, args.seed)
    if not tokens:
        raise UserError(
            f"not one worked example fits into the {max_tokens} tokens that the base leaves: shorten the texts, or "
            "take a --model with a longer block_size"
        )
    methods["few-shot"] = METHODS["few-shot"](model, tokens).to(args.device)
    methods["few-shot"].label = f"best context ({best['shots']} {best['lengths']})"
    return methods, best | {"candidates": candidates}


def rivals(args, model, tokenizer, task, examples, tests, max_tokens):
    """{name: Method} of --beside. What starts from the base comes without and with one example in its context, the one
    that prompts begin as, where max_tokens hold it."""
    methods = {}
    for name in [args.method] * (args.method == "scratch") + args.beside:
        if name == "scratch":
            longest = max(len((e.question + e.answer).encode()) for e in [*examples, *sum(tests.values(), [])])
            methods[name] = METHODS[name](seed=args.seed, block_size=longest).to(args.device)
        elif name not in ("none", args.method):
            methods[name] = build_method(args, name, model, tokenizer, task, examples)
            other = build_method(args, name, model, tokenizer, task, examples, shots=1)
            if other.n_positions() <= max_tokens:
                methods[f"{name}, 1 shot"] = other
    return methods
