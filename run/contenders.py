"""What a run compares: the prompt, its baselines, and what text alone can do."""

import sys
from collections import Counter
from typing import NamedTuple

import torch

from data.batches import encode
from eval.contexts import as_text, best_context
from files.errors import UserError
from prefix import METHODS
from run import processes
from run.flags import NO_PROMPTS
from run.prompts import load_prefix
from tasks import IN_DISTRIBUTION


class Trigger(NamedTuple):
    """What the rows behind the random ones begin as."""

    kind: str  # "example", "examples", "instruction", "trigger" for a text of the user's, or ""
    text: str
    tokens: list


NO_TRIGGER = Trigger("", "", [])


def build(args, model, tokenizer, task, known=None, loaded=None):
    """What a run compares: ({name: Method}, training examples, {range: test examples}, Trigger, the best context as
    results.json has it). `known` is the best context of a run that was stopped. `loaded`, ({name: Method}, Trigger),
    stands in place of --method and --beside."""
    if args.own_data:
        task.write_with(tokenizer)
    dropped = True
    while dropped:  # anew, of the rows of your own data that are left
        prompts, trigger = loaded or build_prompts(args, model, tokenizer, task)
        n_positions = max((method.n_positions() for method in prompts.values()), default=0)
        dropped = args.own_data and drop_rows(task, model, tokenizer, n_positions)
    examples, tests, free = draw_examples(args, task, model, tokenizer, n_positions)
    found, context = contexts(args, model, tokenizer, task, examples, trigger, free, known)
    found |= prompts
    if not loaded:
        found |= baselines(args, model, tokenizer, task, examples, tests, free)
    return found, examples, tests, trigger, context


def n_examples(args, method):
    """How many examples a method learns from: the command line's number, or the method's own. None: all."""
    n = args.examples or (None if args.own_data else method.examples)
    return min(n or 500, 500) if args.quick else n


def n_epochs(args, method, n):
    """How many passes a method makes over n examples. Few rows of your own data are read up to five times."""
    return args.epochs or (max(1, min(5, 4000 // n)) if args.own_data else method.epochs)


def trigger_of(args, task, tokenizer, examples):
    kind = args.trigger or ("instruction" if task.trigger else "example")
    if kind == "none":
        return NO_TRIGGER
    if kind != "example" and not kind.startswith("examples:"):
        kind, words = ("instruction", task.trigger) if kind == "instruction" else ("trigger", kind)
        return Trigger(kind, words + "\n", tokenizer.bos + tokenizer.encode(words + "\n"))
    text = as_text(shown_examples(args, task, examples))
    return Trigger(kind.partition(":")[0], text, tokenizer.bos + tokenizer.encode_task(text))


def shown_examples(args, task, examples):
    """The worked examples of --trigger: the best one to show, or the first N, of mixed lengths."""
    if not (args.trigger or "").startswith("examples:"):
        return task.worth_showing(examples, 1)
    n = int(args.trigger.removeprefix("examples:"))
    # a method that only reads examples, as the translator does, reads the longest first
    return task.worth_showing(examples[:n], n) if METHODS[args.method].reads_examples else examples[:n]


def build_method(args, name, model, tokenizer, task, examples, trigger=NO_TRIGGER, shots=0):
    """A method with the options of the command line, and its text."""
    cls, c = METHODS[name], model.config
    given = {"n_random": args.n_random if cls.takes_n_random else 0, "trigger": trigger.tokens, "seed": args.seed}
    if name == args.method:
        given |= args.options
    if not trigger.tokens and (cls.needs_trigger or given.get("init") == "trigger"):
        raise UserError(f"--method {name} begins as a trigger: leave out --trigger none")
    if cls.takes_n_random and not given["n_random"] and not trigger.tokens:
        raise UserError("a prompt of no rows: raise --n-random or give a --trigger")
    longest = given["n_random"] + (0 if cls.reads_in_parts else len(trigger.tokens))
    if longest >= c.block_size:
        raise UserError(f"a prompt of {longest} rows exceeds block_size {c.block_size} of {model.name}: use fewer")
    if cls.needs_labels and task.classes:
        given["labels"] = [tokenizer.encode_task(task.answer_line(answer)) for answer in task.classes]
    elif cls.needs_labels:  # the tokens that answers are made of
        given["labels"] = [[t] for t in sorted({t for e in examples for t in tokenizer.encode_task(e.answer)})]
    method = cls(model, **given).to(args.device)
    if name == "text":
        method.label = f"the {trigger.kind} as text"
    elif method.trigger:
        method.label += f" from the {trigger.kind}"
    add_text(args, method, tokenizer, task, examples, trigger, shots)
    return method


def add_text(args, method, tokenizer, task, examples, trigger, shots):
    """Set method.shots: the start token, or the trigger as text where it was asked for and there are no rows, then that
    many worked examples. A prompt that begins as the trigger has the start token already."""
    before = [] if method.trigger and method.n_positions() else tokenizer.bos
    if args.trigger and trigger.tokens and not method.n_rows():
        before = trigger.tokens
        method.label += f" behind the {trigger.kind}"
    before = before + tokenizer.encode_task(as_text(task.worth_showing(examples, shots)) if shots else "")
    if before:
        method.shots = torch.tensor([before], device=args.device)  # (1, S)
    if shots:
        method.label += f", {shots} shot{'s' * (shots > 1)}"


def build_prompts(args, model, tokenizer, task):
    """({name: Method} of --method, its Trigger). --init-from begins as the prompt of a file: Vu et al. (2022), "SPoT:
    Better Frozen Model Adaptation through Soft Prompt Transfer"."""
    examples = draw(task, n_examples(args, METHODS[args.method]), split="train", seed=args.seed)
    trigger = trigger_of(args, task, tokenizer, examples)
    if args.method in NO_PROMPTS:  # contexts() and baselines() make these
        return {}, trigger
    if not args.init_from:
        method = build_method(args, args.method, model, tokenizer, task, examples, trigger, args.shots)
        return {args.method: method}, trigger
    method, header = load_prefix(args.init_from, model, tokenizer)
    if method.name != args.method:
        raise UserError(f"{args.init_from} is of --method {method.name}, not {args.method}: give that")
    if hasattr(method, "start"):
        method.start.copy_(method.embeddings().detach())
    method.shots = None
    method.label += f" from that of {header['task'] or 'a text'}"
    add_text(args, method, tokenizer, task, examples, trigger, args.shots)
    return {args.method: method}, Trigger("trigger", header["trigger"], method.trigger)


def draw(task, n, range_name=IN_DISTRIBUTION, **how):
    """task.examples(n, range_name, **how). Raises UserError where there are none."""
    examples = task.examples(n, range_name, **how)
    if not examples:
        raise UserError(f"task {task.name} made no example, {range_name}, {how}")
    return examples


def drop_rows(task, model, tokenizer, n_positions):
    """Leave out the rows of your own data that are too long for the base behind so many positions, or behind the
    shortest row as a worked example. Any question has to leave room for any answer, as they are compared. Returns
    whether there were any."""
    sizes = {e: tuple(map(len, encode(tokenizer, [e])[0])) for rows in task.rows.values() for _, e in rows}
    limit = model.config.block_size - max(n_positions, min(map(sum, sizes.values())))
    counts = Counter(sizes.values())  # {(tokens of the question, of the answer): how many}
    most = max(  # tokens of an answer: the least that keeps the most rows
        sorted({a for _, a in counts}),
        key=lambda m: sum(n for (q, a), n in counts.items() if a <= m and q + m <= limit),
    )
    return task.drop(lambda e: sizes[e][1] > most or sizes[e][0] + most > limit)


def draw_examples(args, task, model, tokenizer, n_positions):
    """(training examples, as many as the contender with the most wants; {range: test examples}; the number of positions
    that the longest question and the longest answer leave free). n_positions is the largest number of rows in front of
    them. Raises UserError where they are too long for the base."""
    block_size = model.config.block_size
    for note in task.notes if args.own_data and processes.is_main() else ():
        print(note, file=sys.stderr)
    wanted = [n_examples(args, METHODS[name]) for name in {args.method, *args.beside} - {"none"}]
    examples = draw(task, None if None in wanted else max(wanted), split="train", seed=args.seed)
    tests = {name: draw(task, args.test_examples, name) for name in task.ranges}
    questions, answers = zip(*encode(tokenizer, [*examples, *sum(tests.values(), [])]))
    longest = max(map(len, questions)) + max(map(len, answers))
    if n_positions + longest > block_size:
        sizes = f"{n_positions} prompt rows and {longest} tokens of text exceed block_size {block_size}"
        raise UserError(f"{sizes}: use fewer rows or shots")
    return examples, tests, block_size - longest


def contexts(args, model, tokenizer, task, examples, trigger, max_tokens, known=None):
    """({name: Method} of what text alone can do, the best context as results.json has it): the trigger as text, or
    nothing, one worked example, and the best worked examples of at most max_tokens. These are searched for unless
    `known`: each of 17 candidates is asked a question for every hundred examples that tuning reads."""
    alone, found = args.beside == ["none"], {}

    def add(name, tokens, label):
        found[name] = METHODS["text"](model, trigger=tokens).to(args.device)
        found[name].label = label

    if args.method == "zero-shot" or not alone and not trigger.tokens:
        found["zero-shot"] = build_method(args, "zero-shot", model, tokenizer, task, examples)
    if not alone and trigger.tokens and args.method != "text":
        add("text", trigger.tokens, f"the {trigger.kind} as text")
    if not alone and not trigger.kind.startswith("example"):
        one = tokenizer.bos + tokenizer.encode_task(as_text(task.worth_showing(examples, 1)))
        if len(one) <= max_tokens:
            add("one-shot", one, "one worked example as text")
    if alone and args.method != "few-shot":
        return found, None
    if known:
        tokens, best = tokenizer.bos + tokenizer.encode_task(known["text"]), known
    else:
        some = examples[: n_examples(args, METHODS[args.method])]
        read = len(some) * n_epochs(args, METHODS[args.method], len(some))
        how = {"n_questions": min(100, max(4, read // 100)), "quiet": not processes.is_main()}
        tokens, best = best_context(model, tokenizer, task, some, max_tokens, args.seed, **how)
    if not tokens:
        raise UserError(f"no worked example fits into the {max_tokens} tokens that {model.name} leaves: shorten it")
    add("few-shot", tokens, f"best context ({best['shots']} {best['lengths']})")
    return found, best


def baselines(args, model, tokenizer, task, examples, tests, max_tokens):
    """{name: Method} of --beside. Methods that start from the base run both zero-shot and one-shot, with the example
    that prompts begin as, where max_tokens hold it."""
    found = {}
    for name in ["scratch", *args.beside] if args.method == "scratch" else args.beside:
        if name == "scratch":
            longest = max(len((e.question + e.answer).encode()) for e in [*examples, *sum(tests.values(), [])])
            found[name] = METHODS[name](seed=args.seed, block_size=longest).to(args.device)
        elif name not in ("none", args.method):
            found[name] = build_method(args, name, model, tokenizer, task, examples)
            other = build_method(args, name, model, tokenizer, task, examples, shots=1)
            if other.n_positions() <= max_tokens:
                found[f"{name}, 1 shot"] = other
    return found
