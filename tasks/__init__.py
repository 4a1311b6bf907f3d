"""Synthetic tasks. A task is one file of this folder; `load(name)` finds it, nothing registers it.

A task says how to make a question and its answer, which is a scratchpad (the steps) and the final answer, and which
lengths are in-distribution and which are out. `python -m tasks addition --n 3` prints some.
"""

import hashlib
import importlib
import os
import random
from functools import cache
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from files.errors import UserError

FOLDER = Path(__file__).parent
IN_DISTRIBUTION = "in-distribution"
FILES = (".jsonl", ".csv", ".tsv")  # endings of your own data


class Example(NamedTuple):
    question: str  # 321+654=
    answer: str  # 1405;2507;3609;000=975$
    length: int  # what makes it harder: digits, letters, words, terms


class Task:
    """Subclass with: `trigger`, words a person would write to ask for it; `unit`, what length
    counts; `ranges`, the shortest and longest length of each range, the first of which is
    in-distribution and tuned on; `pattern` and `steps_pattern`, regular expressions of its format
    and of its steps alone, which no text and no answer of pretraining may contain; and
    `example(rng, length, new_words)` -> (question, answer).

    `stop` ends every answer; the final answer is what stands between its last `=` and that.
    A range whose name is in `new_words` draws words that tuning never sees.
    """

    trigger = ""
    unit = "length"
    ranges = {}
    new_words = ()
    pattern = r"(?!)"
    steps_pattern = r"(?!)"
    stop = "$"
    question_format = "{}"  # how a question is put, for sample.py
    tokenize = "bytes"  # or "bpe"
    classes = None  # the few answers that there are, where there are few

    def examples(self, n, range_name=IN_DISTRIBUTION, split="test", seed=0):
        """A list of n `Example`s, lengths drawn uniformly from the range.

        In distribution, questions of split "test" and "train" never meet: a hash of the question
        decides. The other ranges are all test. Test examples are distinct, so short ones may run
        out: the list is then shorter than n. Raises UserError for a range that is not the task's.
        """
        if range_name not in self.ranges:
            raise UserError(f"task {self.name} has no range {range_name!r}: choose from {', '.join(self.ranges)}")
        in_distribution = range_name == next(iter(self.ranges))
        if split == "train" and not in_distribution:
            raise UserError(f"range {range_name!r} is out of distribution: there is nothing to train on")
        low, high = self.ranges[range_name]
        rng = random.Random(f"{self.name} {range_name} {split} {seed}")
        examples, seen, misses = [], set(), 0
        bar = tqdm(total=n, desc=f"drawing {range_name}", unit=" examples", delay=2, leave=False)  # of many alone
        while len(examples) < n and misses < 10_000:
            length = rng.randint(low, high)
            question, answer = self.example(rng, length, range_name in self.new_words)
            if in_distribution and (split == "test") != in_test(question) or (split == "test" and question in seen):
                misses += 1
                continue
            misses = 0
            seen.add(question)
            examples.append(Example(question, answer, length))
            bar.update()
        bar.close()
        return examples

    def worth_showing(self, examples, k):
        """The k of some examples that a prompt begins as or a context shows: the longest, which show most; of equal
        length the earlier ones."""
        return sorted(examples, key=lambda e: -e.length)[:k]

    def final_answer(self, answer):
        """The final answer at the end of an answer: '' where it was cut off."""
        text, stop, _ = answer.partition(self.stop)
        return text.rpartition("=")[2] if stop else ""

    def kind_of_error(self, answer, text):
        """What went wrong in a text, mostly where it first differs from the true answer, in two or three words; ''
        where nothing did. Tasks with steps tell more kinds apart."""
        if text == answer:
            return ""
        i = first_difference(answer, text)
        if text[i : i + 1] in ("", self.stop):
            return "stopped early"
        if answer[i : i + 1] in ("", self.stop):
            return "ran on"
        return "space added" if text[i] == " " else "wrong character"


def first_difference(a, b):
    """The index of the first character in which two texts differ. Where one begins the other, it is where that ends."""
    return len(os.path.commonprefix([a, b]))


def error_in_list(kind, answer, text, left_out, wrong, miscopied):
    """What Task.kind_of_error tells of an answer that lists items before its `=`, as 3;8;12=12$, told more closely: a
    text that lists fewer, 3;12=12$; a wrong item; a wrong final answer."""
    if kind in ("wrong character", "space added") and "=" in text and text.count(";") < answer.count(";"):
        return left_out
    in_items = first_difference(answer, text) < answer.rindex("=")
    return kind.replace("wrong character", wrong if in_items else miscopied)


def in_test(question):
    """Membership by a hash of the input: one question in five is for testing."""
    return hash_of(question) % 5 == 0


def hash_of(text):
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


@cache
def words(new):
    """The word list by length, {letters: [words]}: the fifth that is `new` never meets the rest."""
    by_length = {}
    for word in (FOLDER.parent / "data" / "words.txt").read_text().split():
        if (hash_of(word) % 5 == 0) == new:
            by_length.setdefault(len(word), []).append(word)
    return by_length


def names():
    """Every task's name, variants behind a colon: addition, addition:plain, ..."""
    files = sorted(path.stem for path in FOLDER.glob("*.py") if not path.stem.startswith("_"))
    return [
        f"{file}:{variant}" if variant else file
        for file in files
        for variant in importlib.import_module(f"tasks.{file}").variants
    ]


def load(name, **files):
    """The task of that name, or of that .jsonl, .csv or .tsv file, with `files` the rest of what YourData
    (your_data.py) takes. Raises UserError that lists the names."""
    if Path(name).suffix in FILES:
        return importlib.import_module("tasks.your_data").YourData(name, **files)
    if name not in names():
        raise UserError(f"no task {name!r}: choose from {', '.join(names())}, or name a .jsonl, .csv or .tsv file")
    file, _, variant = name.partition(":")
    task = importlib.import_module(f"tasks.{file}").variants[variant]
    task.name = name
    return task
