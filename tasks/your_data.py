"""Your own data as a task: a JSONL, CSV or TSV file with a prompt and an answer in every row.

A prompt `What is an atom ?` with the answer `description` becomes

    What is an atom ?
    Answer: description

and a line break ends the answer. Where few answers occur again and again it is a classification,
and `classes` lists them.
"""

import csv
import io
import json
import os
import random
import re
import unicodedata
from collections import Counter
from itertools import zip_longest
from pathlib import Path

from files import schemas
from files.errors import UserError
from tasks import IN_DISTRIBUTION, Example, Task, in_test

MOST_CHARACTERS = 100_000  # of a row: no base reads more, and tiktoken fails on a million spaces
MOST_LABELS = 400  # characters of all labels in the trigger
MOST_CLASSES, ROWS_A_CLASS = 50, 5  # more answers than that, or fewer rows for each, are text to generate
DOUBLED = r'"(?=.*"".*")(?:[^"]|"")*"'  # a cell with a quotation mark inside, as csv and spreadsheets write it


class YourData(Task):
    """Rows of `path` to tune on, and of `test` to test on; without `test` a hash of the prompt holds out a fifth.

    answer_after: what stands between the steps of an answer and the final answer, which alone is compared.
    `notes` are lines for the reader: broken rows by line number, prompts in both files. Raises UserError for files that
    are empty, lack a column or have a single answer.
    """

    unit = "words in the prompt"
    stop = "\n"
    question_format = "{}\nAnswer:"
    tokenize = "bpe"

    def __init__(self, path, test=None, prompt="prompt", answer="answer", answer_after=None):
        self.answer_after, self.notes = answer_after and as_usual(answer_after), []
        name = "-".join(filter(None, [Path(os.path.abspath(path)).parent.name, Path(path).stem]))
        self.name = name.encode(errors="backslashreplace").decode()  # a path may be no text
        rows = self.read(path, prompt, answer)
        tests = self.read(test, prompt, answer) if test else [row for row in rows if in_test(row[1].question)]
        asked = {e.question for _, e in tests}
        self.rows = {"train": [row for row in rows if row[1].question not in asked], "test": tests}
        if test and (both := len(rows) - len(self.rows["train"])):
            self.notes.append(f"{path}: {both} prompts occur in {test} as well: not tuned on")
        self.check_rows(f"{path}: no row is left to {{}} on: give more rows, or another file to test on")
        self.find_classes()
        lengths = [e.length for some in self.rows.values() for _, e in some]
        self.ranges = {IN_DISTRIBUTION: (min(lengths), max(lengths))}

    def find_classes(self):
        """Set `classes`, those of the rows to tune on, where there are few; a note about others among the tests."""
        counts, tested = (Counter(self.final_answer(e.answer) for _, e in some) for some in self.rows.values())
        if len(counts) == 1:
            raise UserError(f"{self.name}: every answer is {next(iter(counts))!r}: there is nothing to tell apart")
        self.classes, self.majority, self.trigger = None, None, ""
        if self.answer_after or len(counts) > MOST_CLASSES or counts.total() < ROWS_A_CLASS * len(counts):
            return
        self.classes, self.majority = sorted(counts), counts.most_common(1)[0][0]
        words = f"Answer with one of: {', '.join(self.classes)}."
        self.trigger = words if len(self.classes) <= 12 and len(words) <= MOST_LABELS else ""
        if unknown := {answer: n for answer, n in tested.items() if answer not in counts}:
            n, which = sum(unknown.values()), ", ".join(map(repr, sorted(unknown)[:5]))
            what = "test answers occur nowhere among those to tune on, and count as wrong"
            note = f"{self.name}: {n} of {tested.total()} {what}: {which}{', ...' * (len(unknown) > 5)}"
            self.notes += [note] * (note not in self.notes)

    def write_with(self, tokenizer):
        """Let answers be as the tokenizer writes them: one that normalizes text may write another."""

        def written(text):
            return tokenizer.decode(tokenizer.encode_task(text))

        given, classes = self.rows, self.classes
        self.rows = {s: [(n, e._replace(answer=written(e.answer))) for n, e in rows] for s, rows in given.items()}
        self.answer_after = self.answer_after and written(self.answer_after)
        if self.rows == given:
            return
        if not all(self.final_answer(e.answer) for rows in self.rows.values() for _, e in rows):
            raise UserError(f"the tokenizer of this --model cannot write all answers of {self.name}: choose another")
        self.find_classes()
        if classes and len(self.classes or ()) < len(classes):
            self.notes.append(f"{self.name}: the tokenizer of this --model writes some answers as others")

    def check_rows(self, message):
        for split, rows in self.rows.items():
            if not rows:
                raise UserError(message.format(split))

    def answer_line(self, answer):
        return f" {answer}{self.stop}"

    def final_answer(self, answer):
        text, stop, _ = answer.partition(self.stop)
        if self.answer_after:
            _, stop, text = text.rpartition(self.answer_after) if stop else ("", "", "")
        return text.strip() if stop else ""

    def kind_of_error(self, answer, text):
        if not self.classes:
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
        """Drop the rows of which `too_long(example)` is true, and say which. Returns whether there were any."""
        before = len(self.notes)
        for split, rows in self.rows.items():
            if long := {line: e for line, e in rows if too_long(e)}:
                self.rows[split] = [row for row in rows if row[0] not in long]
                note = f"{len(long)} rows to {split} on are too long for the base: left out, {named(list(long))}"
                self.notes.append(note)
        self.check_rows("every row to {} on is too long for the base: use one with a longer block_size")
        if dropped := len(self.notes) > before:
            self.find_classes()
        return dropped

    def read(self, path, prompt, answer):
        """[(line number, Example)] of the rows that can be used; a note about the others."""
        found, broken, columns, breaks = [], {}, {}, {}
        for line, row in parse(path):
            names, cells = [name for name, _ in row], dict(row)
            columns |= cells
            breaks[line] = sum(cell.count("\n") for _, cell in row if cell)
            question, reply = (as_usual(cells.get(column) or "").strip() for column in (prompt, answer))
            if not row:
                broken[line] = "not a JSON object, or an empty one"
            elif None in cells:
                broken[line] = "more fields than the header"
            elif max(names.count(prompt), names.count(answer)) > 1:
                broken[line] = f"{prompt if names.count(prompt) > 1 else answer!r} stands there twice"
            elif not question or not reply:
                broken[line] = f"no {(answer if question else prompt)!r}"
            elif not self.final_answer(self.answer_line(reply)):
                broken[line] = f"no {self.answer_after!r} in {answer!r}, or nothing behind it"
            elif self.stop in reply:
                broken[line] = f"a line break in {answer!r}"
            elif len(question) + len(reply) > MOST_CHARACTERS:
                broken[line] = f"more than {MOST_CHARACTERS:,} characters"
            else:
                asked = self.question_format.replace("{}", question)
                found.append((line, Example(asked, self.answer_line(reply), len(question.split()))))
        first = "".join(f"line {line}: {fault}" for line, fault in [*broken.items()][:1])
        if not found:
            has = ", ".join(map(repr, filter(None, columns)))
            has = has and f"; its columns are {has}: name two with --columns"
            raise UserError(f"{path}: not one row can be used; {first or 'it is empty'}{has}")
        if broken:
            self.notes.append(f"{path}: {len(broken)} broken rows left out, {named(list(broken))}; {first}")
        longest = max(breaks, key=breaks.get)
        if breaks[longest] and Path(path).suffix.lower() == ".csv":  # a stray quotation mark may be why
            several = f"{sum(map(bool, breaks.values()))} rows have several lines"
            self.notes.append(f"{path}: {several}, the longest {breaks[longest] + 1} up to line {longest}")
        return found


def parse(path):
    """(line number, [(column, its cell as text)]) of each row, [] for what is no JSON object. What a row of a CSV file
    has too much is under None. In TSV a quotation mark is text, but for the cells that programs put between two, with
    those inside of it doubled."""
    text = schemas.read_text(path)
    if Path(path).suffix.lower() == ".jsonl":
        for line, one in enumerate(text.split("\n"), 1):
            if one.strip():
                try:
                    row = json.loads(one, object_pairs_hook=tuple, parse_int=str, parse_float=str)
                    json.dumps(row, ensure_ascii=False).encode()  # raises for half of a surrogate pair
                except (ValueError, RecursionError):
                    row = ()
                yield line, [(key, as_written(value)) for key, value in row] if isinstance(row, tuple) else []
        return
    csv.field_size_limit(schemas.DATA_LIMIT)  # a field that is too long is left out later, with its line
    is_tsv = Path(path).suffix.lower() == ".tsv"
    how = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if is_tsv else {"strict": True}
    rows, last = csv.reader(io.StringIO(text, newline=""), **how), 0
    try:
        header = next(rows, [])
        for row in rows:
            if is_tsv:
                row = [cell[1:-1].replace('""', '"') if re.fullmatch(DOUBLED, cell) else cell for cell in row]
            if row:
                yield rows.line_num, [*zip_longest(header, row)]
            last = rows.line_num
    except csv.Error as error:
        what = f"a quotation mark opens a cell that does not end with one ({error})"
        raise UserError(f"{path}, line {last + 1}: {what}: double those inside of a cell, or name it .tsv") from None


def as_written(value):
    """A value of JSON as text: true as it stands there, nothing for null and for what has parts."""
    return json.dumps(value) if isinstance(value, bool) else value if isinstance(value, str) else ""


def as_usual(text):
    """The one spelling of a text where Unicode has several, as of accented letters."""
    return unicodedata.normalize("NFC", text)


def named(lines):
    """Line numbers for a reader: the first ten of them."""
    return f"line{'s' * (len(lines) > 1)} {', '.join(map(str, lines[:10]))}{', ...' * (len(lines) > 10)}"


variants = {}  # it has no name of its own: train_task.py --task FILE
