"""Tune a prompt for a frozen GPT-2 or Llama, and see what tuning adds and how far it carries.

    python train_task.py --task addition
    python train_task.py --task train.jsonl test.jsonl --model gpt2

Everything that learns is measured before and after, in distribution and out of it, beside the frozen base alone
(zero-shot), the best worked examples in its context (few-shot), and whatever --beside names. Results go to out/<run>/.
"""

import json
import math
import random
import shlex
import sys
from pathlib import Path

import torch
from tqdm import tqdm

import tasks
from data.batches import encode, training_batches
from data.tokenizer import Tokenizer
from eval import report
from eval.accuracy import classification, generate_answers, longest_answer, majority_vote, rank_choices, score
from eval.attention import attention_to_rows
from eval.contexts import majority, tfidf
from eval.neighbors import init_words, nearest_tokens
from eval.validation import Validation, hold_back
from files import schemas
from files.errors import UserError, run_main
from files.prompts import save_prefix
from files.safe import write_json, write_text
from files.weights import fingerprint, load_model
from prefix import METHODS, divergence
from run import processes as distributed
from run import record, resume
from run.contenders import budget, build_prompts, contexts, draw_examples, load_prompts, rivals
from run.flags import DEFAULT_BASE, Parser, at_least, rate, seed, weight, words
from tasks import IN_DISTRIBUTION, Example

MOST_PROMPTS = 32  # that --load takes: each is measured, twice, and then all of them together
ON_SHARDS = "hybrid", "prompt", "lopt", "cpt", "prefix", "ptuning2"  # which leave the base as it is
# what a run's numbers do not depend on
NO_SETTINGS = "out", "overwrite", "resume", "save_minutes", "reproduce", "log", "command"
OPTIONS = {name: spec for cls in METHODS.values() for name, spec in cls.options.items()}


def parser():
    p = Parser(__doc__)
    p.epilog = "methods:\n" + "\n".join(f"  {name:<16}{cls.__doc__.splitlines()[0]}" for name, cls in METHODS.items())
    p.add_argument(
        "--task",
        nargs="+",
        default=["addition"],
        metavar="TASK",
        help="a name (python -m tasks --list), or your own data: a .jsonl, .csv or .tsv file, and one to test on, or a "
        "fifth of the first is held out (default addition)",
    )
    p.add_argument("--text", metavar="FILE", help="a text instead of a task: --method cartridge puts it into a cache")
    p.add_argument("--columns", nargs=2, metavar=("PROMPT", "ANSWER"), help="of your own data (default: prompt answer)")
    p.add_argument(
        "--answer-after",
        type=words,
        metavar="TEXT",
        help="of your own data: what stands in an answer before the final answer, behind steps (default: no steps)",
    )
    p.add_base(f"{DEFAULT_BASE}; your own data: nano-prose")
    p.add_argument("--out", help="folder of the results (default out/TASK-MODEL)")
    p.add_argument("--overwrite", action="store_true", help="replace the results that are in that folder")
    p.add_argument("--resume", action="store_true", help="go on where the run in that folder was stopped, if it was")
    p.add_argument("--save-minutes", type=weight, default=10, help="between saves of its state (default %(default)s)")
    p.add_argument("--log", choices=["wandb", "trackio"], help="send the loss there too; log.jsonl gets it anyway")
    p.add_argument("--reproduce", metavar="RUN", help="run what that folder holds once more, and say what differs")
    p.add_argument("--seed", type=seed, default=0, help="of rows, examples and their order (default %(default)s)")
    p.add_argument("--quick", action="store_true", help="a look in a minute: less to learn from and to test on")

    g = p.add_argument_group("the prompt")
    g.add_argument(
        "--method", choices=METHODS, default="hybrid", metavar="METHOD", help="see below (default %(default)s)"
    )
    g.add_argument("--n-random", type=at_least(0), default=24, help="rows that begin at random (default %(default)s)")
    g.add_argument(
        "--trigger",
        type=words,
        metavar="TEXT",
        help="what the rows behind those begin as: example (a training example, the default), instruction (the task "
        "in words, the default for classes), none, or any TEXT; lora and others without rows read it as text",
    )
    g.add_argument(
        "--trigger-examples",
        type=at_least(1, 1000),
        metavar="N",
        help="training examples that --trigger example is made of: the longest (1, the default), or the first N, of "
        "mixed lengths (translator: 8, the longest first)",
    )
    g.add_argument(
        "--shots",
        type=at_least(0, 1000),
        default=0,
        help="worked examples between the prompt and the question (default 0)",
    )
    g.add_argument(
        "--init-from",
        metavar="FILE",
        help="begin as what another run learned, with the same method on the same base; rows at the input also on "
        "another base of the same width",
    )
    g.add_argument(
        "--load", nargs="+", metavar="FILE", help="measure what these hold instead of tuning; several prompts vote"
    )
    g.add_argument(
        "--tokenize",
        choices=["bytes", "bpe"],
        help="the task's text as a token for each byte (default), or in the base's BPE (default for your own data)",
    )

    g = p.add_argument_group("options of methods")
    for name, spec in OPTIONS.items():
        takes = ", ".join(cls.name for cls in METHODS.values() if name in cls.options)
        g.add_argument(f"--{name}", **spec | {"default": None, "help": f"{takes}: {spec['help']}"})

    g = p.add_argument_group("tuning")
    g.add_argument(
        "--examples", type=at_least(1), help="to learn from (default 4000; from scratch 20000; your own data: all)"
    )
    g.add_argument("--epochs", type=at_least(1), help="passes over them (default 1; from scratch and your own data: 5)")
    g.add_argument("--batch-size", type=at_least(1, 65536), default=32, help="examples per step (default %(default)s)")
    g.add_argument("--lr", type=rate, help="peak learning rate (default: 0.01 for rows at the input)")
    g.add_argument(
        "--validation",
        type=at_least(0),
        default=128,
        metavar="N",
        help="examples held back, on which the best state of what is tuned is chosen, its start included (default "
        "%(default)s, and at most a fifth; 0: the last state)",
    )
    g.add_argument("--l2-sp", type=weight, default=0.0, help="weight of the rows' squared distance to their start")
    g.add_argument(
        "--checkpoint-activations",
        action="store_true",
        help="compute each block again in the backward pass, which takes less memory and more time",
    )
    g.add_argument(
        "--shard-base",
        action="store_true",
        help="with torchrun: split the base's weights among the processes, for one that a GPU does not hold",
    )

    g = p.add_argument_group("measuring")
    g.add_argument(
        "--test-examples", type=at_least(1, 100_000), help="questions per range (default 500; your own data: all)"
    )
    g.add_argument(
        "--beside",
        nargs="+",
        choices=["finetune", "finetune-top2", "lora", "adapter", "scratch", "none"],
        metavar="METHOD",
        help="what else learns from the same examples: finetune, finetune-top2, lora, adapter, scratch (default "
        "scratch; your own data: finetune scratch); none: the method alone, without the best context and so without a "
        "table",
    )
    return p


def parse_args(argv=None):
    """The command line, checked, with the defaults that depend on the task."""
    args = parser().parse_args(argv)
    args.command = shlex.join(["python", "train_task.py", *(sys.argv[1:] if argv is None else argv)])
    if args.log:
        record.check_installed(args.log)
    args.own_data = Path(args.task[0]).suffix in tasks.FILES
    args.model = args.model or ("nano-prose" if args.own_data or args.text else DEFAULT_BASE)
    if not args.own_data and (len(args.task) > 1 or args.columns or args.answer_after):
        flags = "a second file, --columns and --answer-after"
        raise UserError(f"{flags} are for your own data: {args.task[0]} makes its own")
    if len(args.task) > 2:
        raise UserError(f"--task {' '.join(args.task)}: give one file to tune on and one to test on")
    for name in OPTIONS:
        if getattr(args, name) is not None and name not in METHODS[args.method].options:
            takes = ", ".join(cls.name for cls in METHODS.values() if name in cls.options)
            raise UserError(f"--{name} is not for --method {args.method}: {takes} take it")
    if args.text and (args.method != "cartridge" or args.load or args.window):
        raise UserError(f"--text {args.text} is for --method cartridge, without --load and --window")
    if args.init_from and (args.load or args.text or args.method in ("zero-shot", "few-shot", "scratch")):
        raise UserError(f"--init-from {args.init_from} is for what learns on the base, without --load and --text")
    if METHODS[args.method].needs_examples and (args.trigger or "example") != "example":
        raise UserError(f"--trigger {args.trigger} is not for --method {args.method}: it reads worked examples")
    if args.l2_sp and not hasattr(METHODS[args.method], "embeddings"):
        raise UserError(f"--l2-sp is not for --method {args.method}: it has no rows that began as something")
    if len(args.load or []) > MOST_PROMPTS:
        raise UserError(f"--load of {len(args.load)} files: at most {MOST_PROMPTS} vote")
    if "none" in (args.beside or []) and len(args.beside) > 1:
        raise UserError(f"--beside {' '.join(args.beside)}: none stands alone")
    args.beside = args.beside or (["finetune", "scratch"] if args.own_data else ["scratch"])
    args.trigger_examples = args.trigger_examples or METHODS[args.method].trigger_examples
    args.test_examples = args.test_examples or (None if args.own_data else 500)
    if args.quick:
        args.test_examples = min(args.test_examples or 100, 100)
    return args


def check_processes(args):
    """Raise UserError where the processes, one or several, cannot do what the command line says."""
    if distributed.n_processes() > 1 and (args.text or args.reproduce or args.method in ("hard", "cartridge")):
        what = "--text" if args.text else "--reproduce" if args.reproduce else f"--method {args.method}"
        raise UserError(f"{what} draws at random what its step does: run it in one process, without torchrun")
    if not args.shard_base:
        return
    if distributed.n_processes() == 1:
        raise UserError("--shard-base splits the base among several processes: start them with torchrun")
    if args.method not in ON_SHARDS or args.head or args.load or set(args.beside) - {"scratch", "none"}:
        names = ", ".join(ON_SHARDS)
        raise UserError(f"--shard-base is for --method {names}, no --head or --load, and --beside scratch or none")


def load_task(args):
    if not args.own_data:
        return tasks.load(args.task[0])
    prompt, answer = args.columns or ("prompt", "answer")
    test = args.task[1] if len(args.task) > 1 else None
    return tasks.load(args.task[0], test=test, prompt=prompt, answer=answer, answer_after=args.answer_after)


# ---------------------------------------------------------------- tuning and measuring


def train_step(method, network, batch, optimizers, dtype, l2_sp=0.0):
    """One step on a batch (tokens, targets, answer), (B, T) each. Returns the loss, (), in nats per answer token.

    Networks of float32 weights are multiplied in `dtype`.
    """
    weight = network.wte.weight
    with torch.autocast(weight.device.type, dtype, enabled=weight.dtype == torch.float32 != dtype):
        loss = method.loss(network, *batch)
    (loss + l2_sp * method.distance_to_init() if l2_sp else loss).backward()
    parameters = [p for o in optimizers for p in o.param_groups[0]["params"]]
    loss = distributed.average(parameters, loss.detach(), weights=batch[2])  # over the answers
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    method.after_backward(network, batch, loss)
    return loss


def train(
    method, model, encoded, epochs, batch_size, lr, dtype, seed, l2_sp=0.0, curve=None, checkpoint=None, validation=None
):
    """Minimize a method's loss over `encoded`, [(question tokens, answer tokens)]; the rates warm up over 50 steps,
    then fall as a cosine. With a checkpoint it can be stopped and goes on behind the last step of the curve. With a
    validation it ends as the best state.

    Returns the loss of each step, in nats per answer token, beside the examples seen by then. Raises UserError where
    the loss is no longer finite.
    """
    network, device = method.network(model), model.wte.weight.device
    encoded = [(method.insert_rows(question), answer) for question, answer in encoded]
    optimizers = method.optimizers(lr, dtype)
    peaks = [o.param_groups[0]["lr"] for o in optimizers]
    curve = curve or {"examples": [], "loss": []}
    if checkpoint:
        checkpoint.restore_optimizers(optimizers)
    step, steps_per_epoch = len(curve["loss"]), math.ceil(len(encoded) / batch_size)
    steps, seen = epochs * steps_per_epoch, curve["examples"][-1] if step else 0
    rng = random.Random(seed)
    if validation and validation.due(step, steps):
        validation.check(method, network, 0, distributed.first)
    shown = {"desc": method.label, "unit": " examples", "disable": not distributed.is_main()}
    with tqdm(initial=seen, total=epochs * len(encoded), **shown) as bar:
        for epoch in range(epochs):
            done = step - epoch * steps_per_epoch  # of this epoch, before the run was stopped
            for batch in training_batches(encoded, batch_size, rng, skip=done):
                factor = min(1, (step + 1) / 50, 0.5 + 0.5 * math.cos(math.pi * step / steps))
                for optimizer, peak in zip(optimizers, peaks):
                    optimizer.param_groups[0]["lr"] = peak * factor
                mine = [t.to(device) for t in distributed.share(batch)]
                loss = train_step(method, network, mine, optimizers, dtype, l2_sp).item()
                step += 1
                seen += len(batch[0])
                bar.update(len(batch[0]))
                bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
                curve["examples"].append(seen)
                curve["loss"].append(loss)
                if not math.isfinite(loss):
                    lower = f"lower --lr ({', '.join(f'{peak:g}' for peak in peaks)})"
                    raise UserError(f"{method.label}: the loss became {loss} after {seen} examples: {lower}")
                if validation and validation.due(step, steps):
                    validation.check(method, network, step, distributed.first)
                if checkpoint:
                    row = {"tuning": method.label, "step": step, "examples": seen, "loss": loss}
                    checkpoint.after_step(optimizers, row)
    if validation:
        validation.put_back(method)
    return curve


@torch.no_grad()
def evaluate(method, model, tokenizer, task, tests, desc):
    """{range: score} of a method's answers, {range: the answers}, and for a task of classes how they rank, else None.

    Of classes the answers are the likeliest ones, of other tasks what was written.
    """
    network, past, tokenizer = method.network(model), method.past(method.network(model)), method.tokenizer(tokenizer)
    accuracy, answers, classes = {}, {}, None
    # each process answers its part, but all of them everything where they compute every block together
    together = distributed.is_sharded(network)
    for name, examples in tqdm(tests.items(), desc=desc, unit=" ranges", disable=not distributed.is_main()):
        encoded = [(method.insert_rows(question), answer) for question, answer in encode(tokenizer, examples)]
        mine = encoded if together else distributed.part(encoded)
        texts = generate_answers(network, past, tokenizer, task, mine, longest_answer(encoded))
        answers[name] = texts if together else distributed.gather(texts, len(encoded))
        accuracy[name] = score(task, examples, answers[name])
        if task.classes:
            chosen = rank_choices(network, past, tokenizer, task, mine)
            chosen = chosen if together else distributed.gather(chosen, len(encoded))
            classes = classification(task, examples, chosen)
            answers[name] = [task.answer_line(task.classes[i]) for i in chosen]
    return accuracy, answers, classes


def evaluate_vote(methods, model, tokenizer, task, tests):
    """{range: score} of the majority vote of several prompts, and {range: its answers}."""
    with torch.no_grad():
        pasts = [method.past(model) for method in methods]
    answers = {name: majority_vote(model, pasts, tokenizer, task, encode(tokenizer, e)) for name, e in tests.items()}
    return {name: score(task, e, answers[name]) for name, e in tests.items()}, answers


def measure_texts(task, examples, tests, results):
    """On classes, the two rivals that need no base: the most frequent answer, and word frequencies."""
    (questions,) = tests.values()
    for name, label, texts in (
        ("majority", f"always {task.majority!r}", majority(task, questions)),
        ("tfidf", "TF-IDF + logistic regression", tfidf(task, examples, questions)),
    ):
        if texts is not None:
            results["labels"][name] = label
            results["accuracy"][name] = {IN_DISTRIBUTION: score(task, questions, texts)}
            results["written"]["accuracy"][name] = {IN_DISTRIBUTION: texts}
            chosen = [task.classes.index(task.final_answer(text)) for text in texts]
            results["classes"][name] = classification(task, questions, chosen)


# ---------------------------------------------------------------- a text in a cache


def snippets(text, n, seed, stop, length=8, longest=64):
    """What a base is asked about a text (a list of tokens): to continue n pieces of it, `length` tokens each, for at
    most `longest` tokens. Pairs of a question and a stand-in for its answer, as `train` takes them."""
    begins = random.Random(f"snippets {seed}").choices(range(max(1, len(text) - length)), k=n)
    return [(text[i : i + length], [stop] * longest) for i in begins]


def distill_text(args):
    """Put a text into a cache that sample.py reads, and say how close the base behind it comes to the base that reads
    the text: the divergence of their next tokens on continuations that it was not tuned on."""
    try:
        text = schemas.read_bytes(args.text).decode()
    except UnicodeDecodeError:
        raise UserError(f"{args.text} is not UTF-8 text: convert it, or give another") from None
    model = load_model(args.model, args.device, args.dtype).freeze()
    model.checkpoint_activations = args.checkpoint_activations
    tokenizer = Tokenizer.load(model.folder, model.config.vocab_size, args.tokenize or "bpe")
    tokens = tokenizer.encode_task(text)
    room = model.config.block_size - len(tokenizer.bos) - 8 - 64  # a snippet and its continuation
    if not 8 < len(tokens) <= room:
        raise UserError(
            f"{args.text} has {len(tokens)} tokens: give 9 to {room}, so that {model.name} reads it whole and continues"
        )
    method = METHODS["cartridge"](model, args.n_random, tokenizer.bos + tokens, args.seed).to(args.device)
    method.init_kwargs["seed"] = args.seed
    out = output_folder(args, Path(args.text).stem, model)
    before = resume.load(out) if args.resume else None
    n, epochs = budget(args, method)
    encoded = snippets(tokens, n, args.seed, tokenizer.eot)
    held_out = snippets(tokens, 64, f"held out {args.seed}", tokenizer.eot)
    (batch,) = training_batches(held_out, len(held_out), random.Random(0))
    lesson = method.teach(model, *(t.to(args.device) for t in batch))
    lr = args.lr or method.lr
    options = {k: v for k, v in vars(args).items() if k not in (*NO_SETTINGS, "load")}
    results = {"text": args.text, "tokens": len(tokens), "rows": method.n_rows(), "divergence": {}, "seconds": {}}
    results["command"] = args.command
    results |= {"loss": {"examples": [], "loss": []}, "base": {"name": model.name, "fingerprint": fingerprint(model)}}
    results["args"] = options | {"dtype": str(args.dtype).removeprefix("torch.")}
    results["record"] = record.record(args.device, args.dtype, [Example(text, "", len(text))])
    if before:
        record.check_same(out, before.state, results)
        results = before.state
        if before.finished:
            print(f"{out} is finished: nothing is left to do")
            return results
    kl = results["divergence"]
    with resume.Checkpoint(out, results, args.save_minutes, before, args.log) as checkpoint:
        with torch.no_grad():
            kl["nothing"] = divergence(model, None, *lesson).item()
            kl["before tuning"] = divergence(model, method.past(model), *lesson).item()
        checkpoint.restore("cartridge", method)
        checkpoint.modules["cartridge"] = method
        checkpoint.begin("tuning")
        settings = epochs, args.batch_size, lr, args.dtype, args.seed, args.l2_sp
        train(method, model, encoded, *settings, results["loss"], checkpoint)
        checkpoint.end()
        with torch.no_grad():
            kl["tuned"] = divergence(model, method.past(model), *lesson).item()
        save_prefix(method, out / "prefix.safetensors", model, tokenizer, trigger=text)
        write_json(out / "results.json", results)
        checkpoint.finish()
    print(f"{len(tokens)} tokens in {method.n_rows()} rows; divergence from {model.name} reading them, nats per token:")
    for name, value in kl.items():
        print(f"  {name:<14}{value:.3f}")
    print(f"\nwrote prefix.safetensors, results.json to {out}")
    return results


# ---------------------------------------------------------------- the program


def output_folder(args, name, model):
    """The run's folder. Raises UserError where something else is in it."""
    out = Path(args.out or f"out/{name.replace(':', '-')}-{model.name.rpartition('/')[2]}")
    known = args.overwrite or args.resume and (resume.is_stopped(out) or (out / "results.json").exists())
    if out.exists() and not (out.is_dir() and (known or all(resume.is_leftover(p) for p in out.iterdir()))):
        raise UserError(f"{out} is already in use: give another --out, --resume to go on, or --overwrite it")
    return out


def describe(args, task, model, contenders, name, trigger, context):
    """The part of results.json that is known before anything is measured; `name` is the contender that the run is
    about."""
    method = contenders[name]
    reads_trigger = method.n_rows() or method.shots is not None  # LoRA with nothing in front reads none
    options = {k: v for k, v in vars(args).items() if k not in NO_SETTINGS}
    return {
        "command": args.command,
        "task": task.name,
        "unit": task.unit,
        "in_distribution_lengths": next(iter(task.ranges.values())),
        "new_words": task.new_words,
        "answers": task.classes,
        "base": {
            "name": model.name,
            "fingerprint": fingerprint(model),
            "parameters": sum(p.numel() for p in model.parameters()),
        },
        "method": name,
        "prompt": {"rows": method.n_rows(), "random": method.n_random, "trigger": trigger[1] if reads_trigger else ""},
        "args": options | {"dtype": str(args.dtype).removeprefix("torch.")},
        "context": context,
        "labels": {name: method.label for name, method in contenders.items()},
        "trainable": {
            name: sum(p.numel() for p in method.parameters() if p.requires_grad) for name, method in contenders.items()
        },
        "examples": {},
        "before": {},
        "accuracy": {},
        "classes_before": {},
        "classes": {},
        "nearest_tokens": [],
        "written": {"before": {}, "accuracy": {}},  # answers: they go to details.json
        "loss": {},
        "validation": {},
        "seconds": {},
    }


def measure(method, name, model, tokenizer, task, tests, checkpoint, when="accuracy"):
    """Evaluate a method and put what came of it into the results, under "before" or "accuracy"."""
    results, before = checkpoint.state, when == "before"
    desc = f"{method.label}, {'before' if before else 'after' if name in results['before'] else 'measuring'}"
    checkpoint.begin(desc)
    results[when][name], results["written"][when][name], classes = evaluate(method, model, tokenizer, task, tests, desc)
    if classes:
        results["classes_before" if before else "classes"][name] = classes
    checkpoint.end()


def tune(method, name, args, model, tokenizer, task, examples, checkpoint):
    """Train a method on its share of the examples and put the loss curve into the results, and what was kept."""
    results, (n, epochs) = checkpoint.state, budget(args, method)
    checkpoint.begin(f"{method.label}, tuning")
    shown = task.worth_showing(examples, max(1, args.shots)) + examples[: args.trigger_examples]
    most = args.validation if method.is_validated else 0
    tuned_on, held_back = (encode(method.tokenizer(tokenizer), e) for e in hold_back(task, examples[:n], most, shown))
    validation = None
    if held_back:
        validation = Validation(held_back, results["validation"].setdefault(name, {}), checkpoint.best)
    lr, l2_sp = (args.lr or method.lr, args.l2_sp) if method.name == args.method else (method.lr, 0.0)
    results["examples"][name] = len(tuned_on), epochs
    curve = results["loss"].setdefault(name, {"examples": [], "loss": []})
    checkpoint.modules[name] = method
    settings = epochs, args.batch_size, lr, args.dtype, args.seed, l2_sp
    train(method, model, tuned_on, *settings, curve, checkpoint, validation)
    checkpoint.best.clear()
    checkpoint.end()


def write_results(results, out, args, task):
    """results.json, plots, and the table on stdout."""
    from eval import plots  # imported here, so that --help need not wait for matplotlib

    if results["loss"]:
        plots.plot_loss(results, out / "loss.png")
    if task.classes:
        plots.plot_confusion(results, results["method"], out / "confusion.png")
    elif not args.own_data:
        plots.plot_lengths(results, out / "accuracy_by_length.png")
    write_json(out / "results.json", results)
    print("\n" + report.table(results))
    if results["nearest_tokens"]:
        print("\n" + report.token_table(results["nearest_tokens"]))


def where_answers_look(method, model, tokenizer, tests):
    """The attention of some answers to the rows of a prompt: None where there is no prompt, or none with such rows."""
    return method and attention_to_rows(method, model, tokenizer, next(iter(tests.values()))[:64])


def write_page(results, out, task, tests, written, words, before, tuned):
    """report.html, the run on one page, and details.json, which holds what results.json would be too long with."""
    from eval import page

    details = page.details(task, tests, written, words, before, tuned)
    write_text(out / "details.json", json.dumps(details) + "\n")
    page.write_page(out / "report.html", results, details)


def reproduce(args):
    """Run a finished run again, in another folder, and say what differs. Exit code 1 if its results do."""
    path = Path(args.reproduce) / "results.json"
    try:
        before = schemas.read_json(path, dict)
        command = shlex.split(schemas.convert(before, schemas.RecordedRun, path, "")["command"])[2:]
    except ValueError:
        raise UserError(f"{args.reproduce} holds no results.json with a command: name the folder of a run") from None
    out = Path(args.out or f"{args.reproduce.rstrip('/')}-again")
    if out.exists() and not args.overwrite:
        raise UserError(f"{out} is already in use: give another --out, or --overwrite to replace it")
    main([*command, "--out", str(out), "--overwrite"])
    lines = record.differences(before, json.loads((out / "results.json").read_text()))
    print("\n".join(["", f"{args.reproduce} and {out} differ:", *lines] if lines else ["", f"{out}: the same results"]))
    if any(not line.startswith("record.") for line in lines):
        sys.exit(1)


def main(argv=None):
    args = parse_args(argv)
    distributed.start(args.device)
    check_processes(args)
    if args.reproduce:
        return reproduce(args)
    if args.text:
        return distill_text(args)
    task = load_task(args)
    model = load_model(args.model, "cpu" if args.shard_base else args.device, args.dtype).freeze()
    model.checkpoint_activations = args.checkpoint_activations
    if args.shard_base:
        model.fingerprint = fingerprint(model)
        model = distributed.shard(model, args.device)
    tokenizer = Tokenizer.load(model.folder, model.config.vocab_size, args.tokenize or task.tokenize)
    out = output_folder(args, task.name, model)
    before = resume.load(out) if args.resume else None

    # what is compared
    starts = {}
    if args.load:
        prompts, starts, trigger = load_prompts(args, model, tokenizer)
    else:
        prompts, trigger = build_prompts(args, model, tokenizer, task)
    n_positions = max((method.n_positions() for method in prompts.values()), default=0)
    examples, tests, free = draw_examples(args, task, model, tokenizer, n_positions)
    known = before and before.state.get("context")
    known = known and schemas.convert(known, schemas.Context, f"the context in {out}", "give another --out")
    contenders, context = contexts(args, model, tokenizer, task, examples, trigger, free, known)
    contenders |= prompts
    if not args.load:
        contenders |= rivals(args, model, tokenizer, task, examples, tests, free)
    name = next(iter(prompts)) if args.load else args.method
    results = describe(args, task, model, contenders, name, trigger, context)
    results["record"] = record.record(args.device, args.dtype, [*examples, *sum(tests.values(), [])])
    if before:
        record.check_same(out, before.state, results)
        results = before.state
        if before.finished:
            print(f"{out} is finished: nothing is left to do")
            return results
    print(report.heading(results, examples[0]))

    # a page shows where answers look, before and after, unless it would show accuracy without the best context
    with_page = args.beside != ["none"] and not args.shard_base
    untuned, look_before = starts.get(name) if args.load else prompts.get(name), None
    if distributed.is_main() and with_page and untuned and untuned.learns():
        look_before = where_answers_look(untuned, model, tokenizer, tests)

    with resume.Checkpoint(out, results, args.save_minutes, before, args.log) as checkpoint:
        # everything that learns is measured before and after
        for key, method in contenders.items():
            checkpoint.restore(key, method)
            if key in results["accuracy"]:
                continue  # measured before the run was stopped
            if key in starts:
                measure(starts[key], key, model, tokenizer, task, tests, checkpoint, "before")
            elif method.learns() and not args.load:
                if key not in results["before"]:
                    measure(method, key, model, tokenizer, task, tests, checkpoint, "before")
                tune(method, key, args, model, tokenizer, task, examples, checkpoint)
            measure(method, key, model, tokenizer, task, tests, checkpoint)
            if key != name:
                checkpoint.modules.pop(key, None)  # its weights are not wanted any more
            for line in report.losses_against_start(results, key) if distributed.is_main() else ():
                print(line, file=sys.stderr)
        if len(prompts) > 1 and args.load:
            results["labels"]["vote"] = f"vote of {len(prompts)}"
            voted = evaluate_vote(prompts.values(), model, tokenizer, task, tests)
            results["accuracy"]["vote"], results["written"]["accuracy"]["vote"] = voted
        if task.classes and args.beside != ["none"]:
            measure_texts(task, examples, tests, results)

        if not distributed.is_main():
            return results
        if name in prompts:
            results["nearest_tokens"] = nearest_tokens(model, tokenizer, prompts[name])
        if name in prompts and not args.load:
            about = task.name, results["prompt"]["trigger"], task.question_format, task.stop, args.init_from or ""
            save_prefix(prompts[name], out / "prefix.safetensors", model, tokenizer, *about)
        written = results.pop("written")
        if with_page:
            words = init_words(prompts[name], tokenizer) if name in prompts else []
            look_after = where_answers_look(prompts.get(name), model, tokenizer, tests)
            write_page(results, out, task, tests, written, words, look_before, look_after)
        write_results(results, out, args, task)
        checkpoint.finish()
    print(f"\nwrote {', '.join(sorted(p.name for p in out.iterdir() if p.name[0] != '.'))} to {out}")
    if with_page:
        print(f"open {out / 'report.html'}: every question and answer, the prompt's rows, and where answers look")
    return results


if __name__ == "__main__":
    run_main(main, "train_task.py")
