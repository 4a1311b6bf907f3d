"""Synthetic tasks. A task is one file of this folder; `load(name)` finds it, nothing registers it.

A task says how to make a question and its answer, which is the steps and the final answer, and which lengths are
in-distribution and which are out. `python -m tasks addition --n 3` prints some.
"""

import builtins
import hashlib
import importlib
import os
import random
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

from files import schemas
from files.errors import UserError

FOLDER = Path(__file__).parent
IN_DISTRIBUTION = "in-distribution"
ENDINGS = (".jsonl", ".csv", ".tsv")  # of the files of your own data


class Example(NamedTuple):
    question: str  # 321+654=
    answer: str  # 1405;2507;3609;000=975$
    length: int  # what makes it harder: digits, letters, words, terms


class Task:
    """A task makes questions and answers. Subclasses say what is below and `example(rng, length, new_words)` ->
    (question, answer).

    `stop` ends every answer; the final answer is what stands between its last `=` and that.
    """

    trigger = ""  # words a person would write to ask for it
    reading = ""  # how a person reads an answer, for the page of a run
    unit = "length"  # what length counts
    ranges = {}  # {name: (shortest, longest)}; the first is in-distribution, and tuned on
    new_words = ()  # names of ranges that draw words which tuning never sees
    pattern = r"(?!)"  # a regular expression of its format, which no text and no answer of pretraining may contain
    steps_pattern = r"(?!)"  # the same of its steps alone
    stop = "$"
    question_format = "{}"  # how a question is put, for sample.py
    tokenize = "bytes"  # or "bpe"
    classes = None  # the few answers that there are, where there are few
    list_errors = ()  # names of three errors in a list such as 3;8;12=12$: an item left out, a wrong one, a wrong end

    def examples(self, n, range_name=IN_DISTRIBUTION, split="test", seed=0):
        """A list of n `Example`s, lengths drawn uniformly from the range.

        In distribution, questions of split "test" and "train" never meet: a hash of the question decides. The other
        ranges are all test. Test examples are distinct, so short ones may run out: the list is then shorter than n.
        """
        in_distribution = range_name == next(iter(self.ranges))
        assert split == "test" or in_distribution, f"range {range_name!r} is out of distribution"
        low, high = self.ranges[range_name]
        rng = random.Random(f"{self.name} {range_name} {split} {seed}")
        examples, seen, misses = [], set(), 0
        while len(examples) < n and misses < 10_000:
            length = rng.randint(low, high)
            question, answer = check(self, self.example(rng, length, range_name in self.new_words))
            of_other_split = in_distribution and in_test(question) != (split == "test")
            if of_other_split or (split == "test" and question in seen):
                misses += 1
                continue
            misses = 0
            seen.add(question)
            examples.append(Example(question, answer, length))
        return examples

    def worth_showing(self, examples, k):
        """The k examples that a prompt begins as or a context shows: the longest, of equal length the earlier ones."""
        return sorted(examples, key=lambda e: -e.length)[:k]

    def final_answer(self, answer):
        """The final answer at the end of an answer: '' where it was cut off."""
        text, stop, _ = answer.partition(self.stop)
        return text.rpartition("=")[2] if stop else ""

    def kind_of_error(self, answer, text):
        """What went wrong where another text first differs from the true answer, in two or three words. Tasks with
        steps tell more kinds apart."""
        i = first_difference(answer, text)
        if text[i : i + 1] in ("", self.stop):
            return "stopped early"
        if answer[i : i + 1] in ("", self.stop):
            return "ran on"
        if self.list_errors and "=" in text and text.count(";") < answer.count(";"):
            return self.list_errors[0]
        if text[i] == " ":
            return "space added"
        return self.list_errors[1 + (i >= answer.rindex("="))] if self.list_errors else "wrong character"


def check(task, made):
    """(question, answer) of what a task made, which may be an Example. Raises UserError where it is something else, or
    where nothing could be compared: the answer ends with the task's stop, and its final answer is not empty."""
    texts = made[:2] if isinstance(made, tuple | list) else ()  # half of a surrogate pair, below, is no text
    if len([t for t in texts if isinstance(t, str) and t and t.encode(errors="replace").decode() == t]) < 2:
        fault = "no question and answer, two texts that are not empty"
    elif texts[1].partition(task.stop)[1:] != (task.stop, ""):
        fault = f"an answer that does not end with the first {task.stop!r}, the task's stop"
    elif not task.final_answer(texts[1]):
        fault = "an answer with no final answer"
    else:
        return texts
    raise UserError(f"task {task.name} made {str(made)[:200]}: {fault}")


def first_difference(a, b):
    """The index of the first character in which two texts differ, which may be the end of the shorter one."""
    return len(os.path.commonprefix([a, b]))


def in_test(text):
    """Whether a question, or a word, is one of the fifth that tuning never sees: a hash of it decides."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % 5 == 0


@cache
def words(new):
    """The word list by length, {letters: [words]}: the fifth that is `new` never meets the rest."""
    by_length = {}
    for word in (FOLDER.parent / "data" / "words.txt").read_text().split():
        if in_test(word) == new:
            by_length.setdefault(len(word), []).append(word)
    return by_length


def task_files():
    return sorted(path.stem for path in FOLDER.glob("[!_]*.py") if path.is_file())


def names():
    """Every task's name, variants behind a colon: addition, addition:plain, ... A file that cannot be imported is left
    out, with one line on stderr."""
    found = []
    for file in task_files():
        try:
            found += [f"{file}:{variant}" if variant else file for variant in variants_of(file)]
        except (Exception, SystemExit) as error:  # of a file that somebody is writing
            print(f"tasks/{file}.py is left out: {type(error).__name__}: {error}", file=sys.stderr)
    return found


def variants_of(file):
    """{name: Task} of a file."""
    hidden = getattr(builtins, file, globals().get(file))
    if hidden is not None and getattr(hidden, "__name__", "") != f"tasks.{file}":
        raise UserError(f"tasks/{file}.py hides {file!r}, which tasks/__init__.py uses: give it another name")
    variants = importlib.import_module(f"tasks.{file}").variants
    for name, task in variants.items() if isinstance(variants, dict) else [("", variants)]:
        parts = [name, task.stop, task.tokenize, task.ranges] if isinstance(task, Task) else []
        wanted = f"variants is {{'': a Task}}, with a range {IN_DISTRIBUTION!r} and a stop"
        schemas.decode(parts, schemas.Variant, f"tasks/{file}.py", wanted)
        if [*task.ranges][:1] != [IN_DISTRIBUTION]:
            raise UserError(f"tasks/{file}.py: {wanted}")
    return variants


def load(name, **own):
    """The task of that name, or YourData(name, **own) for a file of data. Raises UserError that lists the names."""
    if Path(name).suffix.lower() in ENDINGS:
        return importlib.import_module("tasks.your_data").YourData(name, **own)
    file, _, variant = name.partition(":")
    variants = variants_of(file) if file in task_files() else {}
    if variant not in variants:
        raise UserError(f"no task {name!r}: choose from {', '.join(names())}, or name a .jsonl, .csv or .tsv file")
    variants[variant].name = name
    return variants[variant]
