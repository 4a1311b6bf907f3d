"""Grade a folder of submissions: points for each of the five tasks of tasks.md, and what was missing.

    python -m lessons.teaching.grade FOLDER
    python -m lessons.teaching.grade FOLDER --seconds 60 --out points.csv

A submission is a .py file in FOLDER. It runs in a process of its own, so that one that hangs, crashes or exits costs
its author that task, and nobody else anything. This is no sandbox: what a student wrote runs with your rights.
"""

import csv
import faulthandler
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
from argparse import SUPPRESS
from pathlib import Path

from files.errors import Parser, UserError, run_main

ROOT = Path(__file__).parents[2]


# ---------------------------------------------------------------- the tasks


def memory(submission, check):
    f = submission.memory
    gpt2, llama = (124_439_808, 12, 12, 64, 768), (134_515_008, 30, 3, 64, 576)
    check("rows", lambda: f(*gpt2, 20, 5, 4)[0] == 5 * 20 * 768 * 4)
    check("caches, also where heads share keys and values",
          lambda: [f(*shape, 20, 5, 2)[1] for shape in (gpt2, llama)]
          == [5 * 20 * layers * 2 * heads * D * 2 for _, layers, heads, D, _ in (gpt2, llama)])  # fmt: skip
    check("fine-tuned copies", lambda: f(*llama, 20, 5, 2)[2] == 5 * 134_515_008 * 2)


def attend(submission, check):
    import torch
    import torch.nn.functional as F

    f = submission.attend

    def case(B, n_head, n_kv_head, P, T, D=4):
        rng = torch.Generator().manual_seed(P)
        shapes = (B, n_head, T), (B, n_kv_head, T), (B, n_kv_head, T), (1, n_kv_head, P), (1, n_kv_head, P)
        return [2 * torch.randn(*shape, D, generator=rng) for shape in shapes]

    def right(q, k, v, past_k, past_v):
        n = q.size(1) // k.size(1)
        keys, values = (
            torch.cat([past.expand(len(q), -1, -1, -1), new], 2).repeat_interleave(n, 1)
            for past, new in ((past_k, k), (past_v, v))
        )
        mask = torch.ones(q.size(2), keys.size(2), dtype=torch.bool).tril(past_k.size(2))
        return F.scaled_dot_product_attention(q, keys, values, mask)

    def same(*shape):
        args = case(*shape)
        return torch.allclose(f(*[x.clone() for x in args]), right(*args), atol=1e-5)

    def gradient():
        mine, theirs = case(3, 4, 2, 5, 3), case(3, 4, 2, 5, 3)
        mine[3].requires_grad_(), theirs[3].requires_grad_()
        f(*mine).square().sum().backward()
        right(*theirs).square().sum().backward()
        return torch.allclose(mine[3].grad, theirs[3].grad, atol=1e-3)

    check("one text behind a cache", lambda: same(1, 2, 2, 5, 3))
    check("several texts behind one cache, and an empty cache", lambda: same(3, 2, 2, 5, 3) and same(3, 2, 2, 0, 4))
    check("heads that share keys and values", lambda: same(2, 4, 2, 5, 3))
    check("the gradient of the cache", gradient)


def low_rank(submission, check):
    import torch

    from model import GPT, GPTConfig
    from prefix import HybridPrefix
    from run.prompts import load_prefix, save_prefix

    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=40, block_size=64, n_layer=2, n_head=2, n_embd=16))
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    model.freeze()
    given = {"n_random": 3, "trigger": [5, 7, 9, 11], "seed": 1}
    start = HybridPrefix(model, **given).rows.detach()  # (P, C)

    def make():
        return submission.LowRankPrefix(model, **given, rank=2)

    def tuned(steps):
        prompt, tokens = make(), torch.arange(12).view(2, 6)  # (B, T)
        targets, answer = torch.full_like(tokens, 7), torch.ones(2, 6, dtype=torch.bool)
        (optimizer,), losses = prompt.optimizers(0.1, torch.float32), []
        for _ in range(steps):
            loss = prompt.loss(model, tokens, targets, answer)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        return prompt, losses

    def falls():
        _, losses = tuned(15)
        return losses[-1] < losses[0] - 0.1

    def has_rank():
        moved = tuned(15)[0].embeddings().detach() - start  # (P, C)
        return moved.abs().max() > 1e-3 and torch.linalg.matrix_rank(moved, rtol=1e-3).item() <= 2

    def comes_back():
        prompt, _ = tuned(2)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "prompt.safetensors"
            save_prefix(prompt, path, model, Bytes(), task="", stop="$")
            again, _ = load_prefix(path, model, Bytes())
        return torch.equal(prompt.embeddings(), again.embeddings())

    check("starts as the hybrid prefix", lambda: torch.allclose(make().embeddings(), start, atol=1e-6))
    check("rank * (P + C) trained numbers",
          lambda: sum(p.numel() for p in make().parameters() if p.requires_grad) == 2 * (7 + 16))  # fmt: skip
    check("tuning lowers the loss", falls)
    check("what tuning adds has that rank", has_rank)
    check("a saved prompt comes back", comes_back)


class Bytes:
    """What a prompt's file asks of a tokenizer."""

    name = tokenize = "bytes"


def difference(submission, check):
    import random

    f, rng = submission.difference, random.Random(0)
    a = [rng.random() < 0.6 for _ in range(400)]
    b = [x != (rng.random() < 0.1) for x in a]  # differs in a tenth of the questions
    points = 100 * (sum(b) - sum(a)) / 400
    deltas = [100 * (y - x) for x, y in zip(a, b)]
    half = 1.96 * (sum((d - points) ** 2 for d in deltas) / 400 / 400) ** 0.5
    check("the difference in points", lambda: abs(f(a, b)[0] - points) < 1e-9)
    check("an interval around it", lambda: f(a, b)[1] < points < f(a, b)[2])
    check("its width, with the pairs kept", lambda: abs((f(a, b)[2] - f(a, b)[1]) / (2 * half) - 1) < 0.15)

    def follows_the_seed():
        same, others = ({f(a, b, n=40, seed=seed) for seed in seeds} for seeds in ([1] * 5, range(5)))
        return len(same) == 1 < len(others)

    check("the same seed gives the same, others do not", follows_the_seed)


def digit_sum(submission, check):
    from itertools import accumulate

    task = submission.DigitSum()
    task.name = "digit_sum"
    lengths = {"in-distribution": (2, 5), "6 digits": (6, 6), "8 digits": (8, 8)}
    drawn = {name: task.examples(200, name) for name in lengths if name in task.ranges}

    def formats():
        for e in sum(drawn.values(), []):
            digits = e.question.removeprefix("digitsum(").removesuffix(")=")
            steps = list(map(str, accumulate(map(int, digits))))
            if e.question != f"digitsum({digits})=" or e.answer != f"{';'.join(steps)}={steps[-1]}$":
                return False
        return True

    check("questions and answers", lambda: len(drawn) == 3 and formats())
    check("lengths, and no leading zero",
          lambda: all({len(e.question) - 11 for e in drawn[name]} == {*range(low, high + 1)}
                      and not any(e.question.startswith("digitsum(0") for e in drawn[name])
                      for name, (low, high) in lengths.items()))  # fmt: skip
    check("training and test questions never meet",
          lambda: not {e.question for e in task.examples(500, split="train")}
          & {e.question for e in task.examples(200)})  # fmt: skip
    check("words for its errors, and an instruction",
          lambda: len(task.trigger) > 10
          and [task.kind_of_error("4;12;14=14$", text) for text in ("4;14=14$", "4;13;15=15$", "4;12;14=15$")]
          == ["digit left out", "wrong sum", "wrong end"])  # fmt: skip


TASKS = memory, attend, low_rank, difference, digit_sum
MOST = 3, 4, 5, 4, 4  # points
LOADED = -1  # in the place of a task's number: the submission could be imported


# ---------------------------------------------------------------- one submission, in a process of its own


def run_one(path, out, numbers, seconds):
    """Grade the tasks `numbers` of a submission. Appends to `out` a line of JSON for each that came to its end."""
    with open(out, "a", buffering=1) as file:  # a line at a time, since a submission may end the process
        limit(seconds + 60)  # importing PyTorch takes a while
        submission = load(path)
        file.write(json.dumps([LOADED, 0, []]) + "\n")
        for number in numbers:
            limit(seconds)
            points, missing = grade_task(TASKS[number], submission)
            file.write(json.dumps([number, points, missing]) + "\n")


def limit(seconds):
    """End this process after so many seconds of computing, or of any kind where the system has no such timer."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)
    else:
        faulthandler.dump_traceback_later(seconds, exit=True)


def load(path):
    spec = importlib.util.spec_from_file_location("submission", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def grade_task(task, submission):
    """(points, what is missing): a point for each check that holds."""
    points, missing = 0, []

    def check(what, holds):
        nonlocal points
        try:
            right = bool(holds())
            missing.extend([] if right else [what])
        except BaseException as error:  # also SystemExit: it costs this point
            right = False
            missing.append(f"{what} ({type(error).__name__}: {str(error)[:80]})")
        points += right

    try:
        task(submission, check)
    except BaseException as error:
        missing.append(f"{type(error).__name__}: {str(error)[:80]}")
    return points, missing


def grade(path, seconds):
    """The results of a submission: {task number: (points, what is missing)}."""
    found, left = {}, list(range(len(TASKS)))
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        command = [sys.executable, "-m", "lessons.teaching.grade", str(path.resolve()), "--one", str(out)]
        while left:
            out.write_text("")
            args = [*command, "--seconds", str(seconds), "--numbers", *map(str, left)]
            env = os.environ | {"PYTHONPATH": str(ROOT)}
            quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
            try:
                ended = subprocess.run(args, cwd=folder, env=env, timeout=seconds * 6 + 300, **quiet)
                said = ended.stderr.decode(errors="replace")
                is_late = "Timeout (" in said or hasattr(signal, "SIGPROF") and ended.returncode == -signal.SIGPROF
            except subprocess.TimeoutExpired:
                said, is_late = "", True
            done = {number: (points, missing) for number, points, missing in map(json.loads, open(out))}
            found |= done
            left = [number for number in left if number not in found]
            last = (said.strip().splitlines() or ["ended the process"])[-1][:120]
            fault = f"did not end in {seconds} seconds" if is_late else last
            lost = left[:1] if LOADED in done else left  # what cannot be imported has no points
            found |= {number: (0, [fault]) for number in lost}
            left = [number for number in left if number not in found]
    found.pop(LOADED, None)
    return found


def main(argv=None):
    p = Parser(__doc__)
    p.add_argument("folder", type=Path)
    p.add_argument("--seconds", type=int, default=60, help="time limit of a task (default 60)")
    p.add_argument("--out", type=Path, help="also write the points as a .csv file")
    p.add_argument("--one", help=SUPPRESS)  # the program calls itself with these two
    p.add_argument("--numbers", type=int, nargs="*", help=SUPPRESS)
    args = p.parse_args(argv)
    if args.one:
        return run_one(args.folder, args.one, args.numbers, args.seconds)
    paths = sorted(args.folder.glob("*.py"))
    if not paths:
        raise UserError(f"no .py file in {args.folder}: a submission is one")
    rows = [["submission", *(f"{task.__name__} ({most})" for task, most in zip(TASKS, MOST)), f"of {sum(MOST)}"]]
    for path in paths:
        found = grade(path, args.seconds)
        points = [found[number][0] for number in range(len(TASKS))]
        rows.append([path.stem, *points, sum(points)])
        print(f"{path.stem}: {sum(points)} of {sum(MOST)}", flush=True)
        for number, (_, missing) in sorted(found.items()):
            for what in missing:
                print(f"    {TASKS[number].__name__}: {what}")
    if args.out:
        with open(args.out, "w", newline="") as file:
            csv.writer(file).writerows(rows)


if __name__ == "__main__":
    run_main(main)
