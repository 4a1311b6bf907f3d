"""Tune a hybrid prefix on a frozen GPT-2, and see how far it carries.

    python train_task.py --task addition

measures, in distribution and out of it, what the frozen base does alone (zero-shot), with worked
examples in its context (few-shot), behind the tuned prefix (hybrid), and what a small transformer
learns from scratch on the same examples (scratch). Everything goes to out/<run>/.
"""

import argparse
import math
import random
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm import tqdm

import muon
import prefix
import tasks
from data.batches import encode, training_batches
from data.tokenizer import Tokenizer
from eval import report
from eval.accuracy import answers, score
from eval.baselines import few_shot, scratch
from eval.neighbours import nearest
from model import GPT, write_json


def read_args():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.error = bad_usage
    p.add_argument("--task", default="addition", help="python -m tasks --list names them (default %(default)s)")
    p.add_argument("--model", default="nano", help="nano, or a GPT-2 checkpoint folder (default %(default)s)")
    p.add_argument("--out", help="folder of the results (default out/TASK-MODEL)")
    p.add_argument("--overwrite", action="store_true", help="replace the results that are in that folder")
    p.add_argument(
        "--seed", type=int, default=0, help="of prefix, baseline and order of examples (default %(default)s)"
    )
    p.add_argument("--device", choices=["cpu", "cuda"], help="default: cuda where there is one")
    p.add_argument("--quick", action="store_true", help="a look in about a minute: less to learn from and to test on")

    g = p.add_argument_group("the prefix")
    g.add_argument("--n-random", type=int, default=24, help="rows that begin at random (default %(default)s)")
    g.add_argument("--trigger", metavar="TEXT", help="rows that begin as this text (default: the task's own words)")
    g.add_argument("--trigger-example", action="store_true", help="as a worked example instead, or after TEXT")
    g.add_argument("--no-trigger", action="store_true", help="no rows from words")
    g.add_argument("--mlp", action="store_true", help="pass the rows through an MLP while tuning")
    g.add_argument("--load", metavar="FILE", help="measure this saved prefix instead of tuning one")

    g = p.add_argument_group("tuning")
    g.add_argument("--examples", type=int, default=20000, help="for prefix and baseline alike (default %(default)s)")
    g.add_argument("--epochs", type=int, default=1, help="passes of the prefix over them (default %(default)s)")
    g.add_argument("--batch-size", type=int, default=32, help="examples per step (default %(default)s)")
    g.add_argument("--lr", type=float, default=2e-2, help="peak learning rate of the prefix (default %(default)s)")
    g.add_argument(
        "--scratch-epochs", type=int, default=5, help="passes of the baseline (default %(default)s; 0: none)"
    )
    g.add_argument(
        "--tokenise",
        choices=["letters", "bpe"],
        default="letters",
        help="tasks as single characters, or in the base's BPE (default %(default)s)",
    )

    g = p.add_argument_group("measuring")
    g.add_argument("--test-examples", type=int, default=1000, help="questions per range (default %(default)s)")
    g.add_argument("--shots", type=int, default=8, help="worked examples in the few-shot context (default %(default)s)")

    args = p.parse_args()
    if args.quick:
        for name, most in (("examples", 2000), ("epochs", 1), ("scratch_epochs", 2), ("test_examples", 100)):
            setattr(args, name, min(getattr(args, name), most))
    for name in ("examples", "epochs", "batch_size", "test_examples", "shots", "n_random", "scratch_epochs"):
        least = int(name not in ("n_random", "scratch_epochs"))
        if getattr(args, name) < least:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(args, name)}: give at least {least}")
    if not 0 < args.lr < math.inf:
        raise ValueError(f"--lr {args.lr}: give a learning rate above 0")
    if args.trigger is not None and not args.trigger.strip():
        raise ValueError("--trigger is empty: write some words, or --no-trigger for random rows only")
    if args.no_trigger and (args.trigger or args.trigger_example):
        raise ValueError("--no-trigger contradicts --trigger and --trigger-example: leave one out")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: this machine has none, leave it out")
    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    return args


def bad_usage(message):
    """In place of argparse's own, which prints the whole usage before the one line that matters."""
    raise ValueError(f"{message}; --help shows what there is")


def load_base(name, tokenise, device):
    """The frozen model and its tokenizer, by name or folder."""
    folder = Path(__file__).parent / "data" / "nano" if name == "nano" else Path(name)
    if not folder.is_dir():
        raise ValueError(f"no model {name!r}: --model takes nano or the folder of a GPT-2 checkpoint")
    model = GPT.load(folder, device).freeze()
    return model, Tokenizer.load(folder, model.config.vocab_size, letters=tokenise == "letters")


def output_folder(args):
    """Made and seen to be writable before any work is done."""
    out = Path(args.out or f"out/{args.task.replace(':', '-')}-{Path(args.model).resolve().name}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())) and not (args.overwrite and out.is_dir()):
        raise ValueError(f"{out} is already in use: give another --out, or --overwrite to replace it")
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "tmp").touch()
        (out / "tmp").unlink()
    except OSError as error:
        raise ValueError(f"cannot write to {out} ({error.strerror}): give another --out") from None
    return out


def train(model, prompt, encoded, epochs, batch_size, lr, seed, name):
    """Minimise the loss on the worked answers over `encoded`; the rate warms up, then falls as a cosine.

    With a prompt only the prompt learns, by AdamW, and the model is frozen; with None the model learns itself.
    Returns the loss of each step, in nats per answer token, beside the examples seen by then.
    """
    device = model.wte.weight.device
    parameters = list((prompt or model).parameters())
    optimizers = [torch.optim.AdamW(parameters, lr, weight_decay=0)] if prompt else muon.optimizers(model, 10 * lr, lr)
    steps, step = epochs * -(-len(encoded) // batch_size), 0
    peaks = [o.param_groups[0]["lr"] for o in optimizers]
    rng = random.Random(seed)
    curve = {"examples": [], "loss": []}
    bar = tqdm(total=epochs * len(encoded), desc=name, unit=" examples")
    for _ in range(epochs):
        for tokens, targets, answer in training_batches(encoded, batch_size, rng):
            tokens, targets, answer = tokens.to(device), targets.to(device), answer.to(device)  # (B, T) each
            past = prompt(model) if prompt else None  # run once, whatever the batch size
            hidden = model(tokens, past)  # (B, T, C)
            loss = F.cross_entropy(model.logits(hidden[answer]), targets[answer])  # over answer positions only
            if not loss.isfinite():
                bar.close()
                raise ValueError(f"the loss of {name} became {loss.item()} after {bar.n} examples: lower --lr ({lr:g})")
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            factor = min(1, (step + 1) / 50, 0.5 + 0.5 * math.cos(math.pi * step / steps))
            for optimizer, peak in zip(optimizers, peaks):
                optimizer.param_groups[0]["lr"] = peak * factor
                optimizer.step()
                optimizer.zero_grad()
            step += 1
            bar.update(len(tokens))
            bar.set_postfix(loss=f"{loss.item():.4f}", refresh=False)
            curve["examples"].append(bar.n)
            curve["loss"].append(loss.item())
    bar.close()
    return curve


def main():
    args = read_args()
    task = tasks.load(args.task)
    model, tokenizer = load_base(args.model, args.tokenise, args.device)
    tests = {name: task.examples(args.test_examples, name) for name in task.ranges}
    examples = task.examples(args.examples, split="train", seed=args.seed)
    encoded = encode(tokenizer, examples)
    every = [encoded, *(encode(tokenizer, questions) for questions in tests.values())]
    longest = max(sum(map(len, pair)) for group in every for pair in group)

    # the prefix: random rows, then the trigger's
    if args.load:
        prompt, header = prefix.load(args.load, model, tokenizer)
        trigger = header["trigger"]
    else:
        trigger = args.trigger or ("" if args.no_trigger or args.trigger_example else task.trigger)
        rows = tokenizer.encode(trigger + "\n") if trigger else []
        if args.trigger_example:  # the longest of the training examples shows most
            e = max(examples, key=lambda e: e.length)
            trigger += f"{e.question}{e.worked}"
            rows += tokenizer.spell(f"{e.question}{e.worked}\n")
        prompt = prefix.HybridPrefix(model, args.n_random, rows, args.mlp, args.seed).to(args.device)
    P, room = len(prompt.rows), model.config.block_size - longest
    if P > room:
        block_size = model.config.block_size
        raise ValueError(f"{P} prompt rows and {longest} tokens of text exceed block_size {block_size}: use fewer rows")
    out = output_folder(args)

    trainable, base_size = sum(p.numel() for p in prompt.parameters()), sum(p.numel() for p in model.parameters())
    print(f"{task.name} on {model.name}: {base_size:,} frozen parameters", end=", ")
    print(f"{trainable:,} trainable ({100 * trainable / base_size:.2f}%)", end=", ")
    print(f"{P} rows: {prompt.n_random} random, {P - prompt.n_random} from words")
    print(f"an example: {examples[0].question}{examples[0].worked}\ntrigger: {trigger!r}")

    texts, n_shots = few_shot(tokenizer, task, args.shots, room, args.seed)
    labels = {
        "zero-shot": "zero-shot",
        "few-shot": f"few-shot ({n_shots})",
        "hybrid": "hybrid prefix",
        "scratch": "from scratch",
    }
    results = {
        "task": task.name,
        "unit": task.unit,
        "in_distribution_lengths": next(iter(task.ranges.values())),
        "new_words": task.new_words,
        "base": {"name": model.name, "fingerprint": model.fingerprint(), "parameters": base_size},
        "prefix": {
            "rows": P,
            "random": prompt.n_random,
            "trigger": trigger,
            "mlp": prompt.mlp is not None,
            "trainable": trainable,
            "share": trainable / base_size,
        },
        "args": {k: v for k, v in vars(args).items() if k not in ("out", "overwrite", "load")},
        "shots": n_shots,
        "labels": labels,
        "accuracy": {},
        "loss": {},
        "seconds": {},
    }

    def measure(method, model, past, tokenizer):
        start = time.time()
        results["accuracy"][method] = {}
        for name, questions in tqdm(tests.items(), desc=f"measuring {method}", unit=" ranges"):
            results["accuracy"][method][name] = score(task, questions, answers(model, past, tokenizer, task, questions))
        results["seconds"][f"measuring {method}"] = time.time() - start

    with torch.no_grad():
        context = texts.to(args.device)(model)
    measure("zero-shot", model, None, tokenizer)
    measure("few-shot", model, context, tokenizer)

    if not args.load:
        start = time.time()
        results["loss"]["hybrid"] = train(
            model, prompt, encoded, args.epochs, args.batch_size, args.lr, args.seed, "tuning the prefix"
        )
        results["seconds"]["tuning the prefix"] = time.time() - start
        prefix.save(prompt, out / "prefix.safetensors", model, tokenizer, task.name, trigger)
    with torch.no_grad():
        past = prompt(model)
    measure("hybrid", model, past, tokenizer)
    results["neighbours"] = nearest(model, tokenizer, prompt)

    if args.scratch_epochs and not args.load:
        longest_text = max(
            len((e.question + e.worked).encode()) for group in (examples, *tests.values()) for e in group
        )
        baseline, letters = scratch(args.seed, longest_text)
        baseline.to(args.device)
        start = time.time()
        results["loss"]["scratch"] = train(
            baseline, None, encode(letters, examples), args.scratch_epochs, 32, 2e-3, args.seed, "training from scratch"
        )
        results["seconds"]["training from scratch"] = time.time() - start
        measure("scratch", baseline, None, letters)

    print("\n" + report.table(results) + "\n\n" + report.reading(results["neighbours"]))
    if results["loss"]:
        report.plot_loss(results, out / "loss.png")
    report.plot_lengths(results, out / "accuracy_by_length.png")
    write_json(out / "results.json", results)
    print(f"\nwrote {', '.join(sorted(p.name for p in out.iterdir()))} to {out}")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        print(f"train_task.py: {error}", file=sys.stderr)
        sys.exit(2)
