"""Measure what a prompt's file holds, before and after tuning, beside the base alone and the best worked examples.

    python -m research.measure out/RUN/prefix.safetensors               # on its own task and base
    python -m research.measure FILE --task last_letter --beside none    # on another, without the best context

The flags of train_task.py follow the file.
"""

import shlex
from dataclasses import asdict

import train_task
from data.tokenizer import Tokenizer
from eval import report
from eval.neighbors import nearest_tokens
from files.errors import Parser, run_main
from files.safe import read_tensors, write_json
from prefix import METHODS
from run import resume
from run.contenders import Trigger, build
from run.prompts import load_prefix


def parse_args(argv=None):
    """(the file, the other flags)."""
    p = Parser(__doc__)
    p.add_argument("file", metavar="FILE", help="the prefix.safetensors of a run")
    args, flags = p.parse_known_args(argv)
    return args.file, flags


def main(argv=None):
    file, flags = parse_args(argv)
    header, _ = read_tensors(file)
    given = {word.partition("=")[0] for word in flags}
    for flag, name in (("--method", "method"), ("--task", "task"), ("--model", "base")):
        flags += [] if flag in given else [flag, header.get(name, "")]
    args = train_task.parse_args(flags)
    args.command = shlex.join(["python", "-m", "research.measure", file, *flags])
    task, model = train_task.load_task(args), train_task.load_base(args)
    tokenizer = Tokenizer.load(model.folder, model.config.vocab_size)
    out = resume.output_folder(args, f"{task.name}-measured", model)
    method, header = load_prefix(file, model, tokenizer)
    tokenizer.tokenize = header["tokenize"]
    loaded = {method.name: method}, Trigger("trigger", header["trigger"], method.trigger)
    contenders, examples, tests, trigger, context = build(args, model, tokenizer, task, loaded=loaded)
    data = [*examples, *sum(tests.values(), [])]
    results = train_task.describe(args, task, model, contenders, trigger, context, data)
    print(report.heading(results.for_json(), examples[0]))
    with resume.Checkpoint(out, lambda: asdict(results), results.seconds) as checkpoint:
        run = train_task.Run(args, task, model, tokenizer, tests, results, checkpoint)
        if method.learns() and not header["init_from"]:  # the start from another run's prompt is not in the file
            start = METHODS[method.name](model, **method.init_kwargs).to(model.wte.weight.device)
            start.shots = method.shots
            train_task.measure(run, "before", method.name, start)
        for name, contender in contenders.items():
            train_task.measure(run, "accuracy", name, contender)
        results.nearest_tokens = nearest_tokens(model, tokenizer, method)
        write_json(out / "results.json", results.for_json())
        checkpoint.finish()
    print(f"\n{report.table(results.for_json())}\n\nwrote results.json to {out}")


if __name__ == "__main__":
    run_main(main)
