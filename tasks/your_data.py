"""Your own data as a task: a JSONL, CSV or TSV file with a prompt and an answer in every row.

A prompt `What is an atom ?` with the answer `description` becomes

    What is an atom ?
    Answer: description

and a line break ends the answer. Where few answers occur again and again it is a classification,
and `classes` lists them.
"""

import csv
import io
import os
import random
from collections import Counter
from pathlib import Path
from typing import Any

from files import schemas
from files.errors import UserError
from tasks import IN_DISTRIBUTION, Example, Task, in_test

MOST_CHARACTERS = 100_000  # of a row: no base reads more at once
MOST_CLASSES, ROWS_A_CLASS = 50, 5  # more answers than that, or fewer rows for each, are text to generate


class YourData(Task):
    """Rows of `path` to tune on, and of `test` to test on; without `test` a hash of the prompt holds out a fifth.

    answer_after: what stands between the steps of an answer and the final answer, which alone is compared.
    `notes` are lines for the reader: broken rows by line number, prompts in both files. Raises
    ValueError for files that are empty, lack a column or have a single answer.
    """

    unit = "words in the prompt"
    stop = "\n"
    question_format = "{}\nAnswer:"
    tokenize = "bpe"

    def __init__(self, path, test=None, prompt="prompt", answer="answer", answer_after=None):
        self.answer_after = answer_after
        self.name, self.notes = "-".join(filter(None, [Path(os.path.abspath(path)).parent.name, Path(path).stem])), []
        rows = self.read(path, prompt, answer)
        if test:
            self.rows = {"train": rows, "test": self.read(test, prompt, answer)}
            asked = {e.question for _, e in self.rows["test"]}
            self.rows["train"] = [row for row in rows if row[1].question not in asked]
            if both := len(rows) - len(self.rows["train"]):
                self.notes.append(f"{path}: {both} prompts occur in {test} as well: not tuned on")
        else:
            self.rows = {s: [r for r in rows if in_test(r[1].question) == (s == "test")] for s in ("train", "test")}
        for split, some in self.rows.items():
            if not some:
                raise UserError(f"{path}: no row is left to {split} on: give more rows, or another --test file")
        counts = Counter(self.final_answer(e.answer) for _, e in self.rows["train"])
        if len(counts) == 1:
            raise UserError(f"{path}: every answer is {next(iter(counts))!r}: there is nothing to tell apart")
        if not answer_after and len(counts) <= MOST_CLASSES and counts.total() >= ROWS_A_CLASS * len(counts):
            self.classes = sorted(counts | Counter(self.final_answer(e.answer) for _, e in self.rows["test"]))
            self.majority = counts.most_common(1)[0][0]
            self.trigger = f"Answer with one of: {', '.join(self.classes)}." if len(self.classes) <= 12 else ""
        lengths = [e.length for some in self.rows.values() for _, e in some]
        self.ranges = {IN_DISTRIBUTION: (min(lengths), max(lengths))}

    def answer_line(self, answer):
        return f" {answer}{self.stop}"

    def final_answer(self, answer):
        text, stop, _ = answer.partition(self.stop)
        if self.answer_after:
            _, stop, text = text.rpartition(self.answer_after) if stop else ("", "", "")
        return text.strip() if stop else ""

    def kind_of_error(self, answer, text):
        if not self.classes or text == answer:
            return super().kind_of_error(answer, text)
        return f"{self.final_answer(answer)} taken for {self.final_answer(text)}"

    def worth_showing(self, examples, k):
        """Those of middle length: the longest of your own data may fill the whole context."""
        middle = sorted(e.length for e in examples)[len(examples) // 2]
        return sorted(examples, key=lambda e: abs(e.length - middle))[:k]

    def examples(self, n, range_name=IN_DISTRIBUTION, split="test", seed=0):
        """n examples of the file in random order, or all; None: all."""
        examples = [e for _, e in self.rows[split]]
        random.Random(seed).shuffle(examples)
        return examples[:n]

    def drop(self, too_long):
        """Drop the rows of which `too_long(example)` is true, and say which."""
        for split, rows in self.rows.items():
            self.rows[split] = [row for row in rows if not too_long(row[1])]
            lines = sorted({line for line, _ in rows} - {line for line, _ in self.rows[split]})
            if lines:
                self.notes.append(
                    f"{len(lines)} rows to {split} on are too long for the base: left out, {named(lines)}"
                )
            if not self.rows[split]:
                raise UserError(f"every row to {split} on is too long for the base: use one with a longer block_size")

    def read(self, path, prompt, answer):
        """[(line number, Example)] of the rows that can be used; notes about the others."""
        try:
            text = schemas.read_bytes(path, schemas.DATA_LIMIT).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not UTF-8 (byte {error.start}): save it as that") from None
        if not text.strip():
            raise UserError(f"{path} is empty")
        found, broken, columns = [], {}, set()
        for line, row in self.parse(path, text):
            if not isinstance(row, dict):
                broken[line] = row
                continue
            columns |= row.keys()
            pair = [str(row[c]).strip() if isinstance(row.get(c), str | int | float) else "" for c in (prompt, answer)]
            if not all(pair):
                broken[line] = f"no {(answer if pair[0] else prompt)!r}"
            elif self.answer_after and self.answer_after not in pair[1]:
                broken[line] = f"no {self.answer_after!r} in {answer!r}"
            elif sum(map(len, pair)) > MOST_CHARACTERS:
                broken[line] = f"more than {MOST_CHARACTERS:,} characters"
            elif self.stop in pair[1]:
                broken[line] = f"a line break in {answer!r}"
            else:
                question = self.question_format.replace("{}", pair[0])
                found.append((line, Example(question, self.answer_line(pair[1]), len(pair[0].split()))))
        for column in (prompt, answer):
            if columns and column not in columns:
                has = ", ".join(map(repr, sorted(map(str, columns))))
                raise UserError(f"{path} has no column {column!r} but {has}: name both with --columns")
        if broken:
            first = next(iter(broken))
            if not found:
                raise UserError(f"{path}: not one row can be used; line {first}: {broken[first]}")
            self.notes.append(
                f"{path}: {len(broken)} broken rows left out, {named(broken)}; line {first}: {broken[first]}"
            )
        return found

    @staticmethod
    def parse(path, text):
        """(line number, dict of the row, or what is wrong with it)."""
        if Path(path).suffix == ".jsonl":
            for line, one in enumerate(text.split("\n"), 1):
                if one.strip():
                    try:
                        row = schemas.decode(one, Any, f"line {line}", "")
                        yield line, row if isinstance(row, dict) else "not an object"
                    except ValueError:
                        yield line, "not JSON"
            return
        csv.field_size_limit(schemas.DATA_LIMIT)  # too long a field is left out below, with its line
        rows = csv.DictReader(io.StringIO(text, newline=""), delimiter="\t" if Path(path).suffix == ".tsv" else ",")
        before = rows.line_num
        for row in rows:
            yield before + 1, "more fields than the header" if None in row else row
            before = rows.line_num


def named(lines):
    """Line numbers for a reader: the first ten of them."""
    lines = list(lines)
    return f"line{'s' * (len(lines) > 1)} {', '.join(map(str, lines[:10]))}{', ...' * (len(lines) > 10)}"


variants = {}  # it has no name of its own: train_task.py --task FILE
