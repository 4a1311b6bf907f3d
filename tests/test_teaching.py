"""The checker of the graded tasks: a right submission has all points, a wrong one loses what is wrong, and a broken one
costs its author alone."""

import types

import pytest

from lessons.teaching import grade

RIGHT = '''
import random

import torch

from prefix import RANK, HybridPrefix
from tasks import IN_DISTRIBUTION, Task


def memory(n_parameters, n_layer, n_kv_head, head_dim, n_embd, P, n_tasks, n_bytes):
    cache = n_layer * 2 * n_kv_head * head_dim
    return tuple(n_tasks * n_bytes * n for n in (P * n_embd, P * cache, n_parameters))


def attend(q, k, v, past_k, past_v):
    def join(past, new):
        return torch.cat([past.expand(len(q), -1, -1, -1), new], 2).repeat_interleave(q.size(1) // k.size(1), 1)

    keys, values, T = join(past_k, k), join(past_v, v), q.size(2)
    scores = q @ keys.mT / q.size(-1) ** 0.5
    later = torch.ones(T, keys.size(2), dtype=torch.bool).triu(past_k.size(2) + 1)
    return scores.masked_fill(later, -torch.inf).softmax(-1) @ values


class LowRankPrefix(HybridPrefix):
    name, label, options = "lowrank", "low-rank rows", RANK

    def __init__(self, model, n_random=0, trigger=(), seed=0, rank=8):
        super().__init__(model, n_random, trigger, seed)
        self.rows.requires_grad_(False)
        P, C = self.rows.shape
        self.A = torch.nn.Parameter(torch.randn(P, rank, generator=torch.Generator().manual_seed(seed)))
        self.B = torch.nn.Parameter(torch.zeros(rank, C))

    def embeddings(self):
        return self.rows + self.A @ self.B


def difference(a, b, n=2000, seed=0):
    rng, deltas = random.Random(seed), [y - x for x, y in zip(a, b)]
    means = sorted(100 * sum(rng.choices(deltas, k=len(deltas))) / len(deltas) for _ in range(n))
    return 100 * (sum(b) - sum(a)) / len(a), means[int(0.025 * n)], means[int(0.975 * n)]


class DigitSum(Task):
    trigger, unit = "Add the digits one by one.", "digits"
    ranges = {IN_DISTRIBUTION: (2, 5), "6 digits": (6, 6), "8 digits": (8, 8)}
    list_errors = "digit left out", "wrong sum", "wrong end"

    def example(self, rng, length, new_words=False):
        digits = str(rng.randrange(10 ** (length - 1), 10**length))
        sums = [sum(map(int, digits[: i + 1])) for i in range(length)]
        return f"digitsum({digits})=", f"{';'.join(map(str, sums))}={sums[-1]}$"
'''

# what a right submission has, what a wrong one has instead, the task that loses points, how many
WRONG = [
    ("n_layer * 2 * n_kv_head * head_dim", "n_layer * 2 * n_embd", 0, 1),
    (".triu(past_k.size(2) + 1)", ".triu(1)", 1, 4),
    (".repeat_interleave(q.size(1) // k.size(1), 1)", ".repeat(1, q.size(1) // k.size(1), 1, 1)", 1, 2),
    ("torch.zeros(rank, C)", "torch.ones(rank, C)", 2, 1),
    ("self.rows.requires_grad_(False)", "pass", 2, 2),
    ("rng.choices(deltas, k=len(deltas))", "rng.choices(b, k=len(b))", 3, 2),
    ("random.Random(seed)", "random.Random()", 3, 1),
    ('"8 digits": (8, 8)', '"8 digits": (7, 8)', 4, 1),
    ("10 ** (length - 1)", "0", 4, 2),
    ("def difference", "def renamed", 3, 4),
    ("    keys, values, T =", "    raise SystemExit\n    keys, values, T =", 1, 4),
]


def points(source, tasks=grade.TASKS):
    submission = types.ModuleType("submission")
    exec(source, submission.__dict__)
    return [grade.grade_task(task, submission) for task in tasks]


def test_a_right_submission_has_all_points():
    assert points(RIGHT) == [(most, []) for most in grade.MOST]


@pytest.mark.parametrize("right, wrong, number, lost", WRONG)
def test_a_wrong_one_loses_points_for_what_is_wrong(right, wrong, number, lost):
    assert right in RIGHT
    ((had, missing),) = points(RIGHT.replace(right, wrong), [grade.TASKS[number]])
    assert had == grade.MOST[number] - lost, missing
    assert missing


def test_a_broken_submission_costs_its_author_alone(tmp_path, command):
    ada = RIGHT.replace("    cache = n_layer", "    while True:\n        pass\n    cache = n_layer")
    ada = ada.replace("    keys, values, T =", "    __import__('os')._exit(0)\n    keys, values, T =")
    (tmp_path / "ada.py").write_text(ada)  # hangs in the first task and exits in the second
    (tmp_path / "bob.py").write_text("def memory(:")
    done = command("lessons.teaching.grade", tmp_path, "--seconds", 4, "--out", tmp_path / "points.csv")
    assert done.code == 0
    assert (tmp_path / "points.csv").read_text().splitlines()[1:] == ["ada,0,0,5,4,4,13", "bob,0,0,0,0,0,0"]
    assert "memory: did not end in 4 seconds" in done.out and "attend: ended the process" in done.out
    assert "SyntaxError" in done.out


def test_a_folder_without_submissions_is_named(tmp_path, command):
    assert f"no .py file in {tmp_path}" in command("lessons.teaching.grade", tmp_path).err
