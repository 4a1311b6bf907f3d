"""Print examples of a task: question, answer and final answer, separated by tabs.

    python -m tasks addition --n 3
    python -m tasks --list
"""

import tasks
from files.errors import UserError, run_main
from run.flags import Parser, at_least, seed


def main(argv=None):
    p = Parser(__doc__, device=False)
    p.add_argument("task", nargs="?", help="the task's name")
    p.add_argument("--n", type=at_least(1, 100_000), default=10, help="how many examples (default %(default)s)")
    p.add_argument("--range", help="the range to draw from (default: the in-distribution one)")
    p.add_argument("--seed", type=seed, default=0, help="another seed, other examples")
    p.add_argument("--list", action="store_true", help="name the tasks and their ranges")
    args = p.parse_args(argv)
    if args.list:
        for name in tasks.names():
            task = tasks.load(name)
            lengths = {r: f" ({low}-{high} {task.unit})" * (low < high) for r, (low, high) in task.ranges.items()}
            print(name + "\t" + ", ".join(r + length for r, length in lengths.items()))
    elif args.task is None:
        raise UserError("name a task, or --list them")
    else:
        task = tasks.load(args.task)
        for e in task.examples(args.n, args.range or next(iter(task.ranges)), seed=args.seed):
            print(e.question, e.answer, task.final_answer(e.answer), sep="\t")


if __name__ == "__main__":
    run_main(main, "python -m tasks")
