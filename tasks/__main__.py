"""python -m tasks addition --n 3: look at a task's examples, tab-separated, one per line."""

import argparse
import sys

import tasks

parser = argparse.ArgumentParser(
    prog="python -m tasks",
    description="Print examples of a task: question, answer and final answer, separated by tabs.",
)
parser.add_argument("task", nargs="?", help="the task's name")
parser.add_argument("--n", type=int, default=10, help="how many examples (default 10)")
parser.add_argument("--range", help="the range to draw from (default: the in-distribution one)")
parser.add_argument("--seed", type=int, default=0, help="another seed, other examples")
parser.add_argument("--list", action="store_true", help="name the tasks and their ranges")
args = parser.parse_args()
try:
    if args.list:
        for name in tasks.names():
            task = tasks.load(name)
            print(
                name
                + "\t"
                + ", ".join(
                    f"{r} ({low}-{high} {task.unit})" if low < high else f"{r}"
                    for r, (low, high) in task.ranges.items()
                )
            )
    elif args.task is None:
        raise ValueError("name a task, or --list them")
    else:
        task = tasks.load(args.task)
        for e in task.examples(args.n, args.range or next(iter(task.ranges)), seed=args.seed):
            print(e.question, e.answer, task.final_answer(e.answer), sep="\t")
except ValueError as error:
    print(f"python -m tasks: {error}", file=sys.stderr)
    sys.exit(2)
except BrokenPipeError:
    sys.stderr.close()  # the reader, head for one, has seen enough
