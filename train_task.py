"""Tune a hybrid prefix on a frozen GPT-2, and see how far it carries.

    python train_task.py --task addition
    python train_task.py --task train.jsonl --test test.jsonl --model gpt2

measures, in distribution and out of it, what the frozen base does alone (zero-shot), with worked
examples in its context (few-shot), behind the tuned prefix, and what a small transformer learns
from scratch on the same examples (scratch); on your own data also what tuning all of the base
learns (finetune). Everything goes to out/<run>/.
"""

import math
import random
import sys
import time
from pathlib import Path

import torch
from tqdm import tqdm

import muon
import prefix
import tasks
from cli import Parser, run
from data.batches import encode, training_batches
from data.tokenizer import Tokenizer
from eval import report
from eval.accuracy import classification, generate_answers, majority_vote, rank_choices, score
from eval.baselines import few_shot, scratch
from eval.neighbours import nearest
from model import GPT, write_json
from tasks import IN_DISTRIBUTION
from tasks.your_data import YourData


def read_args():
    p = Parser(__doc__)
    p.add_argument(
        "--task",
        default="addition",
        help="python -m tasks --list names them; or a .jsonl, .csv or .tsv file (default %(default)s)",
    )
    p.add_base()
    p.add_argument("--out", help="folder of the results (default out/TASK-MODEL)")
    p.add_argument("--overwrite", action="store_true", help="replace the results that are in that folder")
    p.add_argument(
        "--seed", type=int, default=0, help="of prefix, baseline and order of examples (default %(default)s)"
    )
    p.add_argument("--quick", action="store_true", help="a look in about a minute: less to learn from and to test on")

    g = p.add_argument_group("your own data")
    g.add_argument("--test", metavar="FILE", help="questions to test on (default: a fifth of --task, by a hash)")
    g.add_argument("--prompt-column", default="prompt", help="(default %(default)s)")
    g.add_argument("--answer-column", default="answer", help="(default %(default)s)")

    g = p.add_argument_group("the prefix")
    g.add_argument(
        "--method",
        choices=[*prefix.METHODS, "few-shot", "zero-shot", "scratch"],
        default="hybrid",
        help="python train_task.py --methods says what each is (default %(default)s)",
    )
    g.add_argument("--methods", action="store_true", help="list the methods and stop")
    g.add_argument("--n-random", type=int, default=24, help="rows that begin at random (default %(default)s)")
    g.add_argument(
        "--trigger",
        metavar="TEXT",
        help="rows that begin as this text (default: a worked example; your own data: its classes)",
    )
    g.add_argument("--trigger-words", action="store_true", help="as the words in which the task is asked for instead")
    g.add_argument("--no-trigger", action="store_true", help="no rows from words")
    g.add_argument("--mlp", action="store_true", default=None, help="hybrid: pass the rows through an MLP while tuning")
    g.add_argument("--layers", type=int, help="prefix, ptuning2, adapter-prefix: in the top ones only")
    g.add_argument(
        "--init",
        choices=["uniform", "vocabulary", "labels", "trigger"],
        help="prompt: what its --n-random rows begin as (default vocabulary)",
    )
    g.add_argument("--place", choices=["before", "inside", "after"], help="ptuning: where in the question (before)")
    g.add_argument("--head", action="store_true", default=None, help="ptuning2: a classification head for the answers")
    g.add_argument("--bottleneck", type=int, help="adapter: its width (default 16)")
    g.add_argument(
        "--shots", type=int, default=0, help="worked examples between any of these and the question (default 0)"
    )
    g.add_argument(
        "--load", nargs="+", metavar="FILE", help="measure what this file holds instead of tuning; several prompts vote"
    )

    g = p.add_argument_group("tuning")
    g.add_argument("--examples", type=int, help="for all that learns alike (default 20000; your own data: all)")
    g.add_argument("--epochs", type=int, help="passes of the prefix over them (default 1; your own data: 5)")
    g.add_argument("--batch-size", type=int, default=32, help="examples per step (default %(default)s)")
    g.add_argument("--lr", type=float, help="its peak learning rate (default: 0.01 for rows at the input)")
    g.add_argument("--pull", type=float, default=0.0, help="weight of the rows' mean squared distance from their start")
    g.add_argument(
        "--scratch-epochs", type=int, default=5, help="passes of the baseline (default %(default)s; 0: none)"
    )
    g.add_argument("--finetune-epochs", type=int, help="passes of tuning all of the base (default 0; your own data: 3)")
    g.add_argument("--finetune-lr", type=float, default=3e-4, help="its peak learning rate (default %(default)s)")
    g.add_argument(
        "--tokenise",
        choices=["letters", "bpe"],
        help="text of the task as single characters (default), or in the base's BPE (default for your own data)",
    )

    g = p.add_argument_group("measuring")
    g.add_argument("--test-examples", type=int, help="questions per range (default 1000; your own data: all)")
    g.add_argument("--few-shots", type=int, default=8, help="worked examples of the few-shot baseline (%(default)s)")
    g.add_argument("--no-baselines", action="store_true", help="the method alone")

    args = p.parse_args()
    own = Path(args.task).suffix in tasks.FILES
    if not own and (args.test or args.prompt_column != "prompt" or args.answer_column != "answer"):
        raise ValueError(f"--test and the columns are for your own data: {args.task} is a task that makes its own")
    for name, made, yours in (
        ("examples", 20000, None),
        ("epochs", 1, 5),
        ("finetune_epochs", 0, 3),
        ("test_examples", 1000, None),
    ):
        if getattr(args, name) is None:
            setattr(args, name, yours if own else made)
    if args.quick:
        for name, most in (
            ("examples", 2000),
            ("epochs", 1),
            ("scratch_epochs", 2),
            ("finetune_epochs", 1),
            ("test_examples", 100),
        ):
            setattr(args, name, min(getattr(args, name) or most, most))
    may_be_0 = ("n_random", "scratch_epochs", "finetune_epochs", "shots")
    for name in ("examples", "epochs", "batch_size", "test_examples", "few_shots", "layers", "bottleneck", *may_be_0):
        least = int(name not in may_be_0)
        if getattr(args, name) is not None and getattr(args, name) < least:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(args, name)}: give at least {least}")
    for name in ("lr", "finetune_lr"):
        if getattr(args, name) is not None and not 0 < getattr(args, name) < math.inf:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(args, name)}: give a learning rate above 0")
    if not 0 <= args.pull < math.inf:
        raise ValueError(f"--pull {args.pull}: give 0 or more")
    if args.trigger is not None and not args.trigger.strip():
        raise ValueError("--trigger is empty: write some words, or --no-trigger for random rows only")
    kind = prefix.METHODS.get(args.method)
    for name in ("mlp", "layers", "head", "init", "place", "bottleneck"):
        if getattr(args, name) is not None and name not in getattr(kind, "options", ()):
            takes = ", ".join(m for m, k in prefix.METHODS.items() if name in k.options)
            raise ValueError(f"--{name} is not for --method {args.method}: {takes} take it")
    if args.method == "scratch" and not args.scratch_epochs:
        raise ValueError("--method scratch contradicts --scratch-epochs 0")
    if args.pull and not issubclass(kind or object, prefix.HybridPrefix | prefix.DeepPrefix):
        raise ValueError(f"--pull is not for --method {args.method}: it has no rows that began as something")
    args.lr = args.lr or getattr(kind, "lr", None)
    if args.no_trigger and (args.trigger or args.trigger_words):
        raise ValueError("--no-trigger contradicts --trigger and --trigger-words: leave one out")
    return args


def output_folder(args, task, model):
    """Made and seen to be writable before any work is done."""
    out = Path(args.out or f"out/{task.name.replace(':', '-')}-{model.name}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())) and not (args.overwrite and out.is_dir()):
        raise ValueError(f"{out} is already in use: give another --out, or --overwrite to replace it")
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "tmp").touch()
        (out / "tmp").unlink()
    except OSError as error:
        raise ValueError(f"cannot write to {out} ({error.strerror}): give another --out") from None
    return out


def context(prompt, model, network, shots=None):
    """What stands before a question: the method's KV cache, then worked examples (1, S); None where nothing does."""
    past = prompt(model) if prompt else None
    return past if shots is None else network.prefill(shots, past)


def train(
    model, prompt, encoded, epochs, batch_size, optimizers, seed, name, dtype=torch.float32, shots=None, pull=0.0
):
    """Minimise the loss on the worked answers over `encoded`; the rates warm up, then fall as a cosine.

    What learns is what the optimizers hold: a method of prefix.py beside a frozen model, or with None the model
    itself. Networks of float32 weights are multiplied in `dtype`. `shots` are tokens of worked examples (1, S);
    `pull` weighs the rows' distance from where they began.
    Returns the loss of each step, in nats per answer token, beside the examples seen by then.
    """
    network = prompt.network(model) if prompt else model
    encoded = [(prompt.insert_rows(question), worked) for question, worked in encoded] if prompt else encoded
    device = model.wte.weight.device
    parameters = [p for o in optimizers for group in o.param_groups for p in group["params"]]
    steps, step = epochs * -(-len(encoded) // batch_size), 0
    peaks = [o.param_groups[0]["lr"] for o in optimizers]
    rng = random.Random(seed)
    curve = {"examples": [], "loss": []}
    bar = tqdm(total=epochs * len(encoded), desc=name, unit=" examples")
    for _ in range(epochs):
        for tokens, targets, answer in training_batches(encoded, batch_size, rng):
            tokens, targets, answer = tokens.to(device), targets.to(device), answer.to(device)  # (B, T) each
            with torch.autocast(device.type, dtype, enabled=network.wte.weight.dtype == torch.float32 != dtype):
                past = context(prompt, model, network, shots)  # run once, whatever the batch size
                hidden = network(tokens, past)  # (B, T, C)
                loss = network.loss(hidden[answer], targets[answer])  # over answer positions only
            if not loss.isfinite():
                bar.close()
                rates = ", ".join(f"{peak:g}" for peak in peaks)
                raise ValueError(
                    f"the loss of {name} became {loss.item()} after {bar.n} examples: lower --lr ({rates})"
                )
            (loss + pull * prompt.distance() if pull else loss).backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            factor = min(1, (step + 1) / 50, 0.5 + 0.5 * math.cos(math.pi * step / steps))
            for optimizer, peak in zip(optimizers, peaks):
                optimizer.param_groups[0]["lr"] = peak * factor
                optimizer.step()
                optimizer.zero_grad()
            if isinstance(prompt, prefix.HardPrompt):
                prompt.improve(model, tokens, targets, answer, loss, shots)
            step += 1
            bar.update(len(tokens))
            bar.set_postfix(loss=f"{loss.item():.4f}", refresh=False)
            curve["examples"].append(bar.n)
            curve["loss"].append(loss.item())
    bar.close()
    return curve


def main():
    args = read_args()
    if args.methods:
        for name, kind in prefix.METHODS.items():
            print(f"{name:<16}{' '.join(kind.__doc__.split(':')[0].split())}")
        return
    files = {"test": args.test, "prompt": args.prompt_column, "answer": args.answer_column}
    task = tasks.load(args.task, **files)
    model = GPT.load(args.model, args.device, args.dtype).freeze()
    block_size = model.config.block_size
    tokenizer = Tokenizer.load(model.folder, model.config.vocab_size)

    # the method: random rows, then the trigger's
    prompt, trigger, kind = None, "", prefix.METHODS.get(args.method)
    loaded = [prefix.load(path, model, tokenizer) for path in args.load or []]
    for path, (other, header) in zip(args.load or [], loaded):
        same = header["tokenise"] == loaded[0][1]["tokenise"]
        if len(loaded) > 1 and (not same or other.network(model) is not model or other.insert_rows([])):
            raise ValueError(f"{path} cannot vote: it is {other.title}, or was tuned with other tokens than the first")
    if loaded:
        prompt, header = loaded[0]
        args.method, trigger, args.tokenise = prompt.method, header["trigger"], header["tokenise"]
    others = [other for other, _ in loaded[1:]]  # they vote with the first
    args.tokenise = args.tokenise or task.tokenise
    tokenizer.letters = args.tokenise == "letters"
    examples = task.examples(args.examples, split="train", seed=args.seed)
    if kind and not prompt:
        rows = []
        if args.trigger or args.trigger_words or kind is prefix.TextPrompt or (task.classes and not args.no_trigger):
            trigger = args.trigger or task.trigger
            rows = tokenizer.encode(trigger + "\n")
        elif not args.no_trigger:  # the longest of the training examples shows most
            e = max(examples, key=lambda e: e.length)
            trigger = f"{e.question}{e.answer}".rstrip("\n") + "\n"
            rows = tokenizer.encode_task(trigger)
        own = {name: getattr(args, name, None) for name in kind.options}
        if "labels" in own:
            if task.classes:
                own["labels"] = [tokenizer.encode_task(task.answer_line(c)) for c in task.classes]
            else:  # the tokens that answers are made of
                own["labels"] = [[t] for t in sorted({t for e in examples for t in tokenizer.encode_task(e.answer)})]
        own = {name: value for name, value in own.items() if value is not None}
        prompt = kind(model, n_random=args.n_random, trigger=rows, seed=args.seed, **own).to(args.device)
    P = max((p.n_positions() for p in (prompt, *others) if p), default=0)

    if own_data := isinstance(task, YourData):
        task.drop(lambda e: P + len(tokenizer.encode_task(e.question + e.answer)) > block_size)
        for note in task.notes:
            print(note, file=sys.stderr)
        examples = task.examples(args.examples, split="train", seed=args.seed)
    tests = {name: task.examples(args.test_examples, name) for name in task.ranges}
    encoded = encode(tokenizer, examples)
    asked = {name: encode(tokenizer, questions) for name, questions in tests.items()}
    longest = max(sum(map(len, pair)) for group in (encoded, *asked.values()) for pair in group)
    room = block_size - longest
    if P > room:
        raise ValueError(f"{P} prompt rows and {longest} tokens of text exceed block_size {block_size}: use fewer rows")
    text, n_shots = few_shot(tokenizer, task, args.few_shots, room, args.seed)
    shots, between = few_shot(tokenizer, task, args.shots, room - P, args.seed)
    if args.method == "few-shot" and not text:
        raise ValueError(f"--method few-shot: not one worked example fits into {room} tokens")
    if between < args.shots:
        raise ValueError(f"--shots {args.shots}: only {between} worked examples fit into {room - P} positions")
    shots = torch.tensor([shots], device=args.device) if between else None  # (1, S)
    out = output_folder(args, task, model)

    base_size = sum(p.numel() for p in model.parameters())
    trainable = sum(p.numel() for p in prompt.parameters() if p.requires_grad) if prompt else 0
    print(f"{task.name} on {model.name}: {base_size:,} frozen parameters", end="")
    if prompt:
        print(f", {trainable:,} trainable ({100 * trainable / base_size:.2f}%), {prompt.title}, {P} rows", end="")
    print(f"\nan example: {examples[0].question}{examples[0].worked.rstrip()}\ntrigger: {trigger!r}")

    labels = {name: method.title for name, method in prefix.METHODS.items()} | {
        "majority": f"always {task.majority!r}" if task.classes else "",
        "zero-shot": "zero-shot",
        "few-shot": f"few-shot ({n_shots})",
        "scratch": "from scratch",
        "ensemble": f"vote of {1 + len(others)}",
    }
    if prompt and between:
        labels[args.method] += f", {between} shots"
    results = {
        "task": task.name,
        "unit": task.unit,
        "in_distribution_lengths": next(iter(task.ranges.values())),
        "new_words": task.new_words,
        "answers": task.classes,
        "base": {"name": model.name, "fingerprint": model.fingerprint(), "parameters": base_size},
        "prefix": {
            "rows": P,
            "random": prompt.n_random if prompt else 0,
            "trigger": trigger,
        },
        "trainable": {},
        "args": {k: v for k, v in vars(args).items() if k not in ("out", "overwrite", "load")}
        | {"dtype": str(args.dtype).removeprefix("torch.")},
        "few_shots": n_shots,
        "labels": labels,
        "accuracy": {},
        "classes": {},
        "neighbours": [],
        "loss": {},
        "seconds": {},
    }

    def measure(method, model, past, tokenizer, asked, how=answers):
        start = time.time()
        results["accuracy"][method] = {}
        for name, questions in tqdm(tests.items(), desc=f"measuring {method}", unit=" ranges"):
            results["accuracy"][method][name] = score(task, questions, how(model, past, tokenizer, task, asked[name]))
            if task.classes and how is answers:
                chosen = rank_choices(model, past, tokenizer, task, asked[name])
                results["classes"][method] = classification(task, questions, chosen)
        results["seconds"][f"measuring {method}"] = time.time() - start

    def learn(method, name, *what):
        start = time.time()
        more = (shots, args.pull) if method == args.method else ()
        results["loss"][method] = train(*what, args.seed, name, args.dtype, *more)
        results["seconds"][name] = time.time() - start

    def tune(prompt, lr, epochs):
        """Train a method, unless there is nothing to train, and measure it."""
        parameters = [p for p in prompt.parameters() if p.requires_grad]
        results["trainable"][prompt.method] = sum(p.numel() for p in parameters)
        optimizers = [torch.optim.AdamW(parameters, lr, weight_decay=0)] if parameters else []
        if (parameters or isinstance(prompt, prefix.HardPrompt)) and not args.load:
            learn(prompt.method, prompt.title, model, prompt, encoded, epochs, args.batch_size, optimizers)
        network = prompt.network(model)
        with torch.no_grad():
            past = context(prompt, model, network, shots if prompt.method == args.method else None)
        placed = {name: [(prompt.insert_rows(q), worked) for q, worked in some] for name, some in asked.items()}
        measure(prompt.method, network, past, tokenizer, placed)

    def wanted(method):
        return method == args.method or not args.no_baselines

    if task.classes and not args.no_baselines:
        questions = tests[IN_DISTRIBUTION]
        always = [task.answer_line(task.majority)] * len(questions)
        results["accuracy"]["majority"] = {IN_DISTRIBUTION: score(task, questions, always)}
    if wanted("zero-shot"):
        measure("zero-shot", model, None, tokenizer, asked)
    if wanted("few-shot"):
        if text:
            with torch.no_grad():
                past = model.prefill(torch.tensor([text], device=args.device))
            measure("few-shot", model, past, tokenizer, asked)
        else:
            print(f"not one worked example fits into {room} tokens: no few-shot", file=sys.stderr)
    if prompt:
        tune(prompt, args.lr, args.epochs)
        if not args.load:
            prefix.save(prompt, out / "prefix.safetensors", model, tokenizer, task.name, trigger, task.form, task.stop)
        if others:
            with torch.no_grad():
                pasts = [context(p, model, model, shots) for p in (prompt, *others)]
            for i, past in enumerate(pasts[1:], 2):
                labels[f"prompt {i}"] = f"{others[i - 2].title}, file {i}"
                measure(f"prompt {i}", model, past, tokenizer, asked)
            measure("ensemble", model, pasts, tokenizer, asked, vote)
        if isinstance(prompt, prefix.HybridPrefix):  # rows at the input
            results["neighbours"] = nearest(model, tokenizer, prompt)
    if args.finetune_epochs and not args.load and not args.no_baselines and args.method != "finetune":
        tune(prefix.Finetune(model), args.finetune_lr, args.finetune_epochs)
    if args.scratch_epochs and not args.load and wanted("scratch"):
        longest_text = max(
            len((e.question + e.answer).encode()) for group in (examples, *tests.values()) for e in group
        )
        baseline, letters = scratch(args.seed, longest_text)
        baseline.to(args.device)
        results["trainable"]["scratch"] = sum(p.numel() for p in baseline.parameters())
        optimizers = muon.optimizers(baseline, 2e-2, 2e-3, args.dtype)
        spelled = encode(letters, examples)
        learn("scratch", "training from scratch", baseline, None, spelled, args.scratch_epochs, 32, optimizers)
        spelled = {name: encode(letters, questions) for name, questions in tests.items()}
        measure("scratch", baseline, None, letters, spelled)

    print("\n" + (report.class_table if task.classes else report.table)(results))
    if results["neighbours"]:
        print("\n" + report.reading(results["neighbours"]))
    if results["loss"]:
        report.plot_loss(results, out / "loss.png")
    if task.classes:
        report.plot_confusion(results, args.method, out / "confusion.png")
    elif not own_data:
        report.plot_lengths(results, out / "accuracy_by_length.png")
    write_json(out / "results.json", results)
    print(f"\nwrote {', '.join(sorted(p.name for p in out.iterdir()))} to {out}")


if __name__ == "__main__":
    run(main, "train_task.py")
