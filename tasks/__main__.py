"""Print examples of a task: question, answer and final answer, separated by tabs.

python -m tasks addition --n 3
python -m tasks --list
"""

import tasks
from files.errors import Parser, run_main


def main(argv=None):
    p = Parser(__doc__)
    p.add_argument("task", nargs="?", default="addition", help="the task's name (default %(default)s)")
    p.add_argument("--n", type=int, default=10, help="how many examples (default %(default)s)")
    p.add_argument("--list", action="store_true", help="name the tasks and their ranges")
    args = p.parse_args(argv)
    if not args.list:
        task = tasks.load(args.task)
        for e in task.examples(args.n):
            print(e.question, e.answer, task.final_answer(e.answer), sep="\t")
        return
    for name in tasks.names():
        task = tasks.load(name)
        lengths = {r: f" ({low}-{high} {task.unit})" * (low < high) for r, (low, high) in task.ranges.items()}
        print(name + "\t" + ", ".join(r + length for r, length in lengths.items()))


if __name__ == "__main__":
    run_main(main)
