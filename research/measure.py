"""Measure what prompt files hold, before and after tuning, beside the base alone and the best worked examples.

    python -m research.measure out/RUN/prefix.safetensors                        # on its own task and base
    python -m research.measure FILE [FILE ...] --task last_letter --beside none  # on another, without the best context

The flags of train_task.py follow the files. Several prompts also vote: the most frequent final answer wins.
"""

import shlex
from dataclasses import asdict

import torch

import train_task
from data.batches import encode
from data.tokenizer import Tokenizer
from eval import report
from eval.accuracy import majority_vote, score
from eval.neighbors import nearest_tokens
from files.errors import UserError, run_main
from files.prompts import load_prefix
from files.safe import read_tensors, write_json
from prefix import METHODS
from run import resume
from run.contenders import Trigger, contexts, draw_examples, drop_rows
from run.flags import Parser


def parse_args(argv=None):
    """(the files, the other flags)."""
    p = Parser(__doc__)
    p.add_argument("files", nargs="+", metavar="FILE", help="the prefix.safetensors of a run")
    args, flags = p.parse_known_args(argv)
    return args.files, flags + ["--device", args.device] * bool(args.device)


def load_prompts(files, model, tokenizer):
    """({name: Method}, {name: the same before tuning}, the first file's header). The tokenizer is set to theirs.
    Raises UserError where several cannot vote."""
    prompts, starts, headers = {}, {}, []
    for number, path in enumerate(files, 1):
        method, header = load_prefix(path, model, tokenizer)
        headers.append(header)
        if len(files) > 1:
            same = header["tokenize"] == headers[0]["tokenize"]
            if not same or method.network(model) is not model or method.insert_rows([]):
                raise UserError(f"{path} cannot vote: it is {method.label}, or reads other tokens than the first file")
            method.label += f", file {number}"
        name = f"{method.name} {number}" if prompts else method.name
        prompts[name] = method
        if method.learns() and not header["init_from"]:  # the start from another run's prompt is not in the file
            starts[name] = METHODS[method.name](model, **method.init_kwargs).to(model.wte.weight.device)
            starts[name].shots = method.shots
    tokenizer.tokenize = headers[0]["tokenize"]
    return prompts, starts, headers[0]


def main(argv=None):
    files, flags = parse_args(argv)
    header, _ = read_tensors(files[0])
    for flag, name in (("--method", "method"), ("--task", "task"), ("--model", "base")):
        flags = flags if flag in flags else [*flags, flag, header.get(name, "")]
    args = train_task.parse_args(flags)
    args.command = shlex.join(["python", "-m", "research.measure", *files, *flags])
    task, model = train_task.load_task(args), train_task.load_base(args)
    tokenizer = Tokenizer.load(model.folder, model.config.vocab_size)
    out = train_task.output_folder(args, f"{task.name}-measured", model)
    prompts, starts, header = load_prompts(files, model, tokenizer)
    trigger = Trigger("trigger", header["trigger"], prompts[args.method].trigger)
    n_positions = max(p.n_positions() for p in prompts.values())
    drop_rows(args, task, model, tokenizer, n_positions)
    examples, tests, free = draw_examples(args, task, model, tokenizer, n_positions)
    contenders, context = contexts(args, model, tokenizer, task, examples, trigger, free)
    contenders |= prompts
    data = [*examples, *sum(tests.values(), [])]
    results = train_task.describe(args, task, model, contenders, trigger, context, data)
    print(report.heading(results.for_json(), examples[0]))
    with resume.Checkpoint(out, lambda: asdict(results), results.seconds) as checkpoint:
        run = train_task.Run(args, task, model, tokenizer, tests, results, checkpoint)
        for name, method in contenders.items():
            if name in starts:
                train_task.measure(run, "before", name, starts[name])
            train_task.measure(run, "accuracy", name, method)
        if len(prompts) > 1:
            with torch.no_grad():
                pasts = [method.past(model) for method in prompts.values()]
            results.labels["vote"], results.accuracy["vote"] = f"vote of {len(prompts)}", {}
            for name, asked in tests.items():
                answers = majority_vote(model, pasts, tokenizer, task, encode(tokenizer, asked))
                results.accuracy["vote"][name] = score(task, asked, answers)
        results.nearest_tokens = nearest_tokens(model, tokenizer, next(iter(prompts.values())))
        write_json(out / "results.json", results.for_json())
        checkpoint.finish()
    print(f"\n{report.table(results.for_json())}\n\nwrote results.json to {out}")
    return results


if __name__ == "__main__":
    run_main(main, "measure.py")
