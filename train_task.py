"""Tune a prompt for a frozen GPT-2 or Llama, and see what tuning adds and whether it generalizes.

    python train_task.py --task addition
    python train_task.py --task train.jsonl test.jsonl --model gpt2

Everything that learns is measured before and after tuning, in distribution and out of it, beside what text alone can do
(the trigger, one worked example, the best context) and the baselines of --beside. Results go to out/<run>/.
"""

import os
import sys

sys.path[:0] = [os.path.dirname(os.path.abspath(__file__))]  # which python -I leaves out
from files import schemas  # before torch is imported

# isort: split
import json
import math
import random
from dataclasses import asdict
from itertools import islice
from typing import NamedTuple

import torch
from tqdm import tqdm

import tasks
from data.batches import encode, training_batches
from data.tokenizer import Tokenizer
from eval import report
from eval.accuracy import generate_answers, rank_choices, score
from eval.attention import attention_to_rows
from eval.contexts import tfidf
from eval.neighbors import init_words, nearest_tokens
from eval.validation import Validation, hold_back
from files.errors import UserError, run_main
from files.safe import write_json, write_text
from files.weights import fingerprint, load_model
from run import flags, processes, record, resume
from run.contenders import build, n_epochs, n_examples, shown_examples
from run.prompts import save_prefix
from run.results import Results
from tasks import IN_DISTRIBUTION

# arguments that change no number of a run
NO_SETTINGS = "out", "overwrite", "resume", "command"


def parse_args(argv=None, doc=__doc__):
    return flags.parse_args(doc, argv)


def load_task(args):
    if not args.own_data:
        return tasks.load(args.task[0])
    prompt, answer = args.columns or ("prompt", "answer")
    test = args.task[1] if len(args.task) > 1 else None
    return tasks.load(args.task[0], test=test, prompt=prompt, answer=answer, answer_after=args.answer_after)


def load_base(args):
    """The frozen base. A small one computes on one CPU thread: two are no faster, and much slower on a busy machine."""
    model = load_model(args.model, args.device, args.dtype).freeze()
    model.checkpoint_activations = args.checkpoint_activations
    if args.device == "cpu" and sum(p.numel() for p in model.parameters()) < 20e6:
        torch.set_num_threads(1)  # accuracy.in_threads then measures on all of them
    return model


class Run(NamedTuple):
    """What a run's contenders have in common."""

    args: object
    task: tasks.Task
    model: torch.nn.Module
    tokenizer: Tokenizer
    tests: dict  # {range: [Example]}
    results: Results
    checkpoint: resume.Checkpoint


def main(argv=None, load_base=load_base, doc=__doc__):
    args = parse_args(argv, doc)
    processes.start(args.device)
    if processes.n_processes() > 1 and args.method in ("hard", "cartridge"):
        raise UserError(f"--method {args.method} draws at random what its step does: run it without torchrun")
    task, model = load_task(args), load_base(args)
    tokenizer = Tokenizer.load(model.folder, model.config.vocab_size, args.tokenize or task.tokenize)
    out = resume.output_folder(args, task.name, model)
    saved = resume.load(out) if args.resume else None
    known = saved and saved.state.get("context")
    known = known and schemas.decode(known, schemas.Context, f"the context in {out}", "give another --out")
    contenders, examples, tests, trigger, context = build(args, model, tokenizer, task, known)
    results = describe(args, task, model, contenders, trigger, context, [*examples, *sum(tests.values(), [])])
    if saved and saved.state:
        record.check_same(out, saved.state, asdict(results))
        results = Results.read(saved.state)
        if saved.finished:
            print(f"{out} is finished: nothing is left to do")
            return results
    print(report.heading(results.for_json(), examples[0]))

    with resume.Checkpoint(out, lambda: asdict(results), results.seconds, saved) as checkpoint:
        run = Run(args, task, model, tokenizer, tests, results, checkpoint)
        prompt = None if args.method in flags.NO_PROMPTS else contenders[args.method]
        # a prompt is untuned until here; one that does not learn looks the same at the end
        with_page = args.beside != ["none"] and not processes.is_sharded(model) and processes.is_main()
        look_before = where_answers_look(run, prompt) if with_page and prompt and prompt.learns() else None
        for name, method in contenders.items():
            checkpoint.restore(name, method)
            if name in results.accuracy:
                continue  # measured before the run was stopped
            if method.learns():
                measure(run, "before", name, method)
                tune(run, name, method, examples)
            measure(run, "accuracy", name, method)
            if name != args.method:
                checkpoint.modules.pop(name, None)  # its weights are not needed any more
        if task.classes and args.beside != ["none"]:
            measure_texts(run, examples)
        if processes.is_main():
            finish(run, prompt, with_page, look_before)
            checkpoint.finish()
            print(f"\nwrote {', '.join(sorted(p.name for p in out.iterdir() if p.name[0] != '.'))} to {out}")
    return results


def describe(args, task, model, contenders, trigger, context, data):
    """The Results before anything is measured."""
    settings = {k: v for k, v in vars(args).items() if k not in NO_SETTINGS}
    method = contenders[args.method]
    reads_trigger = method.trigger or method.needs_trigger or method.shots is not None  # LoRA alone reads none
    return Results(
        command=args.command,
        task=task.name,
        unit=task.unit,
        in_distribution_lengths=next(iter(task.ranges.values())),
        new_words=task.new_words,
        answers=task.classes,
        base={
            "name": model.name,
            "fingerprint": fingerprint(model),
            "parameters": sum(p.numel() for p in model.parameters()),
        },
        method=args.method,
        prompt={"rows": method.n_rows(), "random": method.n_random, "trigger": trigger.text if reads_trigger else ""},
        args=settings | {"dtype": str(args.dtype).removeprefix("torch.")},
        context=context,
        labels={name: m.label for name, m in contenders.items()},
        trainable={n: sum(p.numel() for p in m.parameters() if p.requires_grad) for n, m in contenders.items()},
        record=record.record(args.device, data),
    )


# ---------------------------------------------------------------- tuning


def train_step(method, network, batch, optimizers, dtype):
    """One step on a batch (tokens, targets, answer), (B, T) each. Returns the loss, (), in nats per answer token.

    Networks with float32 weights are multiplied in `dtype`.
    """
    weight = network.wte.weight
    with torch.autocast(weight.device.type, dtype, enabled=weight.dtype == torch.float32 != dtype):
        loss = method.loss(network, *batch)
    loss.backward()
    parameters = [p for group in groups(optimizers) for p in group["params"]]
    loss = processes.average(parameters, loss.detach(), weights=batch[2])  # over the answers
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    method.after_step(network, batch, loss)
    return loss


def groups(optimizers):
    return [group for optimizer in optimizers for group in optimizer.param_groups]


def train(method, model, encoded, epochs, batch_size, lr, dtype, seed, curve=None, checkpoint=None, validation=None):
    """Minimize a method's loss over `encoded`, [(question tokens, answer tokens)].

    The rates warm up over a tenth of the steps, then fall as a cosine. With a checkpoint the training can be stopped,
    and goes on behind the last step of `curve`. With a validation the method ends as the state that this kept. Returns
    the curve, {"examples": [...], "loss": [...]}: examples seen, and loss in nats per answer token, after each step.
    Raises FloatingPointError if the first loss is infinite or NaN, UserError if a later one is.
    """
    network, device = method.network(model), model.wte.weight.device
    encoded = [(method.insert_rows(question), answer) for question, answer in encoded]
    optimizers = method.optimizers(lr, dtype)
    peaks = [group["lr"] for group in groups(optimizers)]
    curve = curve or {"examples": [], "loss": []}
    if checkpoint:
        checkpoint.restore_optimizers(optimizers)
    step = len(curve["loss"])
    seen = curve["examples"][-1] if step else 0
    steps_per_epoch = math.ceil(len(encoded) / batch_size)
    steps = epochs * steps_per_epoch
    rng = random.Random(seed)
    if validation and not validation.record["steps"]:
        validation.check(method, network, 0, processes.first)
    shown = {"desc": method.label, "unit": " examples", "disable": not processes.is_main()}
    with tqdm(initial=seen, total=epochs * len(encoded), **shown) as bar:
        for epoch in range(epochs):
            done = step - epoch * steps_per_epoch  # of this epoch, before the run was stopped
            for batch in training_batches(encoded, batch_size, rng, skip=done):
                factor = min(1, 10 * (step + 1) / steps, 0.5 + 0.5 * math.cos(math.pi * step / steps))
                for group, peak in zip(groups(optimizers), peaks):
                    group["lr"] = peak * factor
                mine = [t.to(device) for t in processes.share(batch)]
                loss = train_step(method, network, mine, optimizers, dtype).item()
                step += 1
                seen += len(batch[0])
                bar.update(len(batch[0]))
                bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
                curve["examples"].append(seen)
                curve["loss"].append(loss)
                if not math.isfinite(loss):
                    if step == 1:  # before the first update the rate cannot be why
                        raise FloatingPointError(f"{method.label}: the loss of the first step is {loss}")
                    lower = f"lower --lr ({', '.join(f'{peak:g}' for peak in peaks)})"
                    raise UserError(f"{method.label}: the loss became {loss} after {seen} examples: {lower}")
                if validation and validation.due(step, steps):
                    validation.check(method, network, step, processes.first)
                if checkpoint:
                    row = {"tuning": method.label, "step": step, "examples": seen, "loss": loss}
                    checkpoint.after_step(optimizers, row)
    if validation:
        validation.put_back(method)
    return curve


def tune(run, name, method, examples):
    """Train a contender on its share of the examples. The results get the loss curve and which checkpoint was kept."""
    args, task, results, checkpoint = run.args, run.task, run.results, run.checkpoint
    in_prompt = task.worth_showing(examples, max(1, args.shots)) + shown_examples(args, task, examples)
    n_held_out = args.validation if method.is_validated else 0
    parts = hold_back(task, examples[: n_examples(args, method)], n_held_out, in_prompt)
    tuned_on, held_out = (encode(method.tokenizer(run.tokenizer), part) for part in parts)
    epochs = n_epochs(args, method, len(tuned_on))
    results.examples[name] = len(tuned_on), epochs
    curve = results.loss.setdefault(name, {"examples": [], "loss": []})
    validation = None
    if held_out:
        validation = Validation(held_out, results.validation.setdefault(name, {}), checkpoint.best)
    lr = args.lr if args.lr and method.name == args.method else method.lr
    batch_size = args.batch_size or method.batch_size
    checkpoint.modules[name] = method
    with checkpoint.part(f"{method.label}, tuning"):
        train(method, run.model, tuned_on, epochs, batch_size, lr, args.dtype, args.seed, curve, checkpoint, validation)
        results.record["peak_gb"] = max(record.peak_memory(args.device), results.record.get("peak_gb", 0))
        checkpoint.best.clear()


# ---------------------------------------------------------------- measuring


def measure(run, when, name, method):
    """Put a contender's score into the results, under "before" or "accuracy". What was measured before the run was
    stopped is skipped."""
    results = run.results
    if name in getattr(results, when):
        return
    stage = "before" if when == "before" else "after" if name in results.before else "measuring"
    desc = f"{method.label}, {stage}"
    with run.checkpoint.part(desc):
        score, answers = evaluate(method, run.model, run.tokenizer, run.task, run.tests, desc)
        getattr(results, when)[name] = score
        results.written[when][name] = answers


@torch.no_grad()
def evaluate(method, model, tokenizer, task, tests, desc):
    """({range: score}, {range: answers}): the likeliest class if the task has classes, else the generated text."""
    network, tokenizer = method.network(model), method.tokenizer(tokenizer)
    past, encoded, limits = method.past(network), [], []
    for examples in tests.values():
        asked = [(method.insert_rows(question), answer) for question, answer in encode(tokenizer, examples)]
        encoded += asked
        limits += [max(len(answer) for _, answer in asked)] * len(asked)  # tokens of an answer, by range
    # each process answers its part; of a sharded base all answer everything, since they compute each block together
    together = processes.is_sharded(network)
    mine, limits = (x if together else processes.part(x) for x in (encoded, limits))
    with tqdm(total=len(mine), desc=desc, unit=" questions", disable=not processes.is_main()) as bar:
        if task.classes:
            chosen = rank_choices(network, past, tokenizer, task, mine, bar.update)
            texts = [task.answer_line(task.classes[i]) for i in chosen]
        else:
            texts = generate_answers(network, past, tokenizer, task, mine, limits, bar.update)
    texts = iter(texts if together else processes.gather(texts, len(encoded)))
    answers = {name: list(islice(texts, len(examples))) for name, examples in tests.items()}
    return {name: score(task, examples, answers[name]) for name, examples in tests.items()}, answers


def measure_texts(run, examples):
    """For classes, the two baselines that need no base: the most frequent answer, and word frequencies."""
    task, results, (questions,) = run.task, run.results, run.tests.values()
    for name, label, texts in (
        ("majority", f"always {task.majority!r}", [task.answer_line(task.majority)] * len(questions)),
        ("tfidf", "TF-IDF + logistic regression", tfidf(task, examples, questions)),
    ):
        if texts is not None:
            results.labels[name] = label
            results.accuracy[name] = {IN_DISTRIBUTION: score(task, questions, texts)}
            results.written["accuracy"][name] = {IN_DISTRIBUTION: texts}


def where_answers_look(run, prompt):
    """The attention of some answers to the rows of the prompt, for the page of the run, or None."""
    return prompt and attention_to_rows(prompt, run.model, run.tokenizer, next(iter(run.tests.values()))[:64])


def finish(run, prompt, with_page, look_before):
    """Write results.json and the prompt, print the table, then draw the pictures and, if wanted, the page."""
    from eval import page, plots  # imported here, so that --help need not wait for matplotlib

    args, task, results, out = run.args, run.task, run.results, run.checkpoint.folder
    if prompt is not None:
        results.nearest_tokens = nearest_tokens(run.model, run.tokenizer, prompt)
        about = task.name, results.prompt["trigger"], task.question_format, task.stop, args.init_from or ""
        save_prefix(prompt, out / "prefix.safetensors", run.model, run.tokenizer, *about)
    content = results.for_json()
    write_json(out / "results.json", content)
    print("\n" + report.table(content))
    plots.draw_run(content, out)
    if with_page:
        words = init_words(prompt, run.tokenizer) if prompt else []
        look_after = where_answers_look(run, prompt)
        details = page.details(task, run.tests, results.written, words, look_before, look_after)
        write_text(out / "details.json", json.dumps(details) + "\n")
        page.write_page(out / "report.html", content, details)


if __name__ == "__main__":
    run_main(main)
    processes.leave()
