"""Synthetic documents: the part of pretraining that gives a base skills for a prompt to call up.

A document shows one skill in one format: several worked examples that differ in what they ask and agree in how they
are written. The parts of a format are drawn at random and independently (the order of the fields, separators, wording,
whether the steps are shown, how an example ends), so the base has to read the format off the document.

The formats of tasks/ never occur, nor do their steps in another format: a document that shows one is drawn again.
Some skills point at a part of the question and copy it, over longer texts than any sum has: Cai et al. (2025),
"Extrapolation by Association" (2506.09251), transfer length from one task to a related one.
"""

import re
import string
from itertools import accumulate

import tasks

HELD_OUT = [re.compile(tasks.load(name).pattern) for name in tasks.names()]
STEPS = [re.compile(tasks.load(name).steps_pattern) for name in tasks.names()]
BY_LETTERS = tasks.words(new=False)  # the tasks' new words stay new to the base as well
MAX_DIGITS, MAX_LETTERS, MAX_LIST = 6, 12, 6  # of what is computed: sums and products, words, totals and letters
SPACED = 0.1  # share of the formats of sums and products whose numbers have spaces between some of their digits
MAX_COPIED = 10  # digits of a number, or items of a list, that is only pointed at and copied
MARKS = list(string.punctuation)
SKILLS = {}  # {name: (how often it is drawn, maker, headings)}


def skill(often, *headings):
    """Decorator for a maker of examples: adds it to SKILLS, with headings that say in words what the skill is. A maker
    is a generator: it draws a format, yields once, and then yields (question, answer) in that format without end."""

    def add(maker):
        SKILLS[maker.__name__.replace("_", " ")] = often, maker, headings
        return maker

    return add


def usual_or_mark(rng, usual, forms):
    """One of the usual texts or, three times in ten, a punctuation mark in one of the forms."""
    return rng.choice(usual) if rng.random() < 0.7 else rng.choice(forms).format(rng.choice(MARKS))


def arrow(rng):
    """The text between a question and its answer."""
    usual = ["=", "=", " = ", ":", ": ", "->", " -> ", "=>", ">", " is ", " gives ", "? ", "?", " so ", "\n"]
    return usual_or_mark(rng, usual, ["{}", "{}", " {}", "{} ", " {} "])


def comma(rng, empty=False):
    """The text between the items of a list."""
    usual = [",", ", ", ";", "; ", " ", "-", "/", "|", ".", "_", ">", "+"] + ["", ""] * empty
    return usual_or_mark(rng, usual, ["{}", "{}", "{} "])


def ending(rng):
    return rng.choice(["", "$", "$", "#", "!", ".", ";", ",", "|", "END", rng.choice(MARKS), rng.choice(MARKS)])


def most(rng, least, limit):
    """The longest length in a document: the limit half of the time, since long examples need the most practice."""
    return limit if rng.random() < 0.5 else rng.randint(least, limit)


def number(rng, longest):
    return rng.randrange(10 ** rng.randint(1, longest))


def spaced(rng, n):
    """A number with spaces between some of its digits, so that a digit's place does not follow from its position alone:
    Shen et al. (2023), "Positional Description Matters for Transformers Arithmetic" (2311.14737), section 3."""
    return "".join(digit + " " * (rng.random() < 0.3) for digit in str(n)).strip()


def word(rng, longest):
    """A word of the list or, one time in five, random letters, which cannot be remembered."""
    letters = rng.randint(3, longest)
    if rng.random() < 0.2:
        return "".join(rng.choices(string.ascii_lowercase, k=letters))
    return rng.choice(BY_LETTERS[letters])


def wrapper(rng, names):
    """The text around a question, as a format string: reverse(WORD), Q: WORD, WORD backwards, ..."""
    name = rng.choice(names) if rng.random() < 0.6 else rng.choice(BY_LETTERS[rng.randint(3, 8)])
    if rng.random() < 0.2:
        name = name.upper() if rng.random() < 0.5 else name[0]
    plain = ["{}", "{}", "{}", "Q: {}"]
    named = [f"{name}({{}})", f"{name}({{}})", f"{name}[{{}}]", f"{name} {{}}", f"{name}:{{}}", f"{{}} {name}"]
    return rng.choice([*plain, *named, f"{{}}.{name}", "({})", '"{}"'])


def digit_steps(rng, name, names):
    """Column addition, or a number times a digit, with the carry at each step."""
    adds = name == "plus"
    sign, longest = "+" if adds else "*", most(rng, 2, MAX_DIGITS)
    order = rng.sample(range(4), 4) if rng.random() < 0.6 else [0, 1, 2, 3]
    if rng.random() < 0.2:
        order.remove(2)  # the carry is not written
    inner, outer, equals = comma(rng, empty=True) if rng.random() < 0.5 else "", comma(rng), arrow(rng)
    last = rng.choice(["", "00{}", "00{}", "00{}", "{}"])  # the last step, when no digits are left
    op = sign if rng.random() < 0.6 else rng.choice([f" {sign} ", f" {name} ", "&", " and ", " ", rng.choice(MARKS)])
    spaces, wrap, first = rng.random() < SPACED, wrapper(rng, names), arrow(rng)
    yield
    while True:
        a = number(rng, longest)
        b = number(rng, longest) if adds else rng.randrange(10)
        steps, x, y, carry = [], a, b, 0
        while x or (y and adds):
            d, e = x % 10, y % 10 if adds else b
            total = d + e + carry if adds else d * e + carry
            steps.append(inner.join(str((d, e, carry, total % 10)[i]) for i in order))
            x, y, carry = x // 10, y // 10, total // 10
        if last:
            steps.append(inner.join(last.format(carry)))
        question = f"{spaced(rng, a)}{op}{spaced(rng, b)}" if spaces else f"{a}{op}{b}"
        yield wrap.format(question) + first, outer.join(steps) + f"{equals}{a + b if adds else a * b}"


@skill(
    27,
    "Add the numbers digit by digit.",
    "Add the two numbers.",
    "Here we add, from the right, and carry the one.",
    "What is the sum?",
)
def addition(rng):
    return digit_steps(rng, "plus", ["plus", "add", "sum"])


@skill(14, "Multiply the number by the digit.", "Multiply digit by digit and carry.", "What is the product?")
def multiplication(rng):
    return digit_steps(rng, "times", ["times", "times", "product"])


@skill(3, "Simple sums.", "Do the sum.", "What is the answer?")
def facts(rng):
    sign, f = rng.choice([("+", lambda a, b: a + b), ("-", lambda a, b: a - b), ("*", lambda a, b: a * b)])
    op = sign if rng.random() < 0.7 else f" {rng.choice([sign, rng.choice(MARKS)])} "
    highest = rng.choice([10, 10, 20, 100]) if sign != "*" else 10
    names = {"+": ["add", "sum", "plus"], "-": ["minus", "take"], "*": ["times", "product"]}
    first, wrap = arrow(rng), wrapper(rng, names[sign])
    yield
    while True:
        a, b = rng.randrange(highest), rng.randrange(highest)
        if sign == "-":
            a, b = max(a, b), min(a, b)
        yield wrap.format(f"{a}{op}{b}") + first, str(f(a, b))


@skill(14, "Add up the values one after the other.", "The running total of the values.", "What is the sum of all?")
def running_sum(rng):
    """Totals of named values, of a list or of a series, one after the other."""
    longest, highest = most(rng, 2, MAX_LIST), rng.choice([10, 10, 10, 20, 30])
    letter = rng.choice("xyzabnv") if rng.random() < 0.7 else ""
    gives, sep, first = rng.choice(["=", " = ", ":", " is ", rng.choice(MARKS)]), comma(rng), arrow(rng)
    outer, equals = comma(rng), arrow(rng) if rng.random() < 0.6 else None
    asked = rng.choice(["", "", " sum", " total", " add", " all"]) if rng.random() < 0.7 else " " + word(rng, 6)
    start, wrap = rng.choice([1, 1, 1, 0]), wrapper(rng, ["sum", "total", "add"]) if rng.random() < 0.3 else "{}"
    series = rng.random() < 0.2
    yield
    while True:
        n = rng.randint(2, longest)
        values = [rng.randrange(highest) for _ in range(n)]
        if series:
            step = rng.randint(1, 1 + highest // 5)
            values = [values[0] + i * step for i in range(n)]
        given = sep.join(f"{letter}{i}{gives}{v}" if letter else str(v) for i, v in enumerate(values, start))
        totals = outer.join(map(str, accumulate(values)))
        yield wrap.format(given) + asked + first, totals + (f"{equals}{sum(values)}" if equals else "")


def spelled(rng, names, change, spell=0.3):
    """A word to a changed word, at times spelled out first, at times letter by letter."""
    longest, first, wrap = most(rng, 5, MAX_LETTERS), arrow(rng), wrapper(rng, names)
    letters, steps, equals = comma(rng, empty=True) if rng.random() < spell else "", rng.random() < spell, arrow(rng)
    between = comma(rng, empty=True) if rng.random() < 0.3 else letters
    yield
    while True:
        w = word(rng, longest)
        yield wrap.format(w) + first, (letters.join(w) + equals if steps else "") + between.join(change(w))


@skill(9, "Reverse the word.", "Write the word backwards.", "Each word from the last letter to the first.")
def reverse(rng):
    return spelled(rng, ["backwards", "back", "mirror"], lambda w: w[::-1])


@skill(3, "Copy the word.", "Spell the word.", "Say the same word again.")
def copy(rng):
    return spelled(rng, ["copy", "spell", "same", "repeat"], lambda w: w)


@skill(1, "Write the word in capitals.", "Say it loud.")
def upper(rng):
    return spelled(rng, ["upper", "capitals", "loud"], str.upper)


@skill(3, "One letter of each word.", "Which letter of the word is it?")
def one_letter(rng):
    i, names = rng.choice([(0, ["first", "first letter", "begins"]), (-1, ["final", "ends", "end"])])
    return spelled(rng, names, lambda w: w[i])


@skill(11, "Take one letter of each word and join the letters.", "The letters of the words, together.")
def list_letters(rng):
    """The first or the last letter of each word of a list, one by one, joined, or both."""
    i, names = rng.choice([(0, ["first", "initials", "heads"]), (-1, ["final", "ends", "tails"])])
    longest, letters, sep, first = most(rng, 2, MAX_LIST), rng.randint(4, 10), comma(rng), arrow(rng)
    wrap, outer, equals = wrapper(rng, names), comma(rng, empty=True), arrow(rng)
    shown = rng.choice(["steps", "joined", "both", "both", "named"])
    yield
    while True:
        chosen = [word(rng, letters) for _ in range(rng.randint(2, longest))]
        ends = [w[i] for w in chosen]
        steps = outer.join(f"{w}{first}{e}" if shown == "named" else e for w, e in zip(chosen, ends))
        joined = "".join(ends)
        answer = {"joined": joined, "both": steps + equals + joined}.get(shown, steps)
        yield wrap.format(sep.join(chosen)) + first, answer


@skill(2, "Put these in order.", "Sort the list.")
def sort(rng):
    longest, highest, down = rng.randint(2, MAX_LIST), rng.choice([10, 10, 100]), rng.random() < 0.3
    sep, outer, first, wrap = comma(rng), comma(rng), arrow(rng), wrapper(rng, ["sort", "order"] + ["down"] * down)
    alphabet = rng.random() < 0.3
    yield
    while True:
        n = rng.randint(2, longest)
        items = rng.sample(string.ascii_lowercase, n) if alphabet else [rng.randrange(highest) for _ in range(n)]
        yield wrap.format(sep.join(map(str, items))) + first, outer.join(map(str, sorted(items, reverse=down)))


@skill(2, "Count from the first number, so many numbers.", "Count on.")
def count(rng):
    highest, step = rng.choice([20, 100, 1000]), rng.choice([1, 1, 1, 2, 5, 10]) * rng.choice([1, 1, -1])
    sep, first, wrap = comma(rng), arrow(rng), wrapper(rng, ["count", "on" if step > 0 else "down"])
    yield
    while True:
        n, start = rng.randint(3, 7), rng.randrange(highest) + (70 if step < 0 else 0)
        values = [str(start + i * step) for i in range(n)]
        yield wrap.format(f"{start} {n}") + first, sep.join(values)


@skill(3, "Compare the two numbers.", "Which number is it?")
def compare(rng):
    longest, sep, first = rng.randint(1, MAX_COPIED), comma(rng), arrow(rng)
    kind, wrap = rng.choice(["sign", "max", "min"]), wrapper(rng, ["compare", "bigger"])
    yield
    while True:
        a, b = number(rng, longest), number(rng, longest)
        answer = {"sign": "<" if a < b else ">" if a > b else "=", "max": str(max(a, b)), "min": str(min(a, b))}[kind]
        yield wrap.format(f"{a}{sep}{b}") + first, answer


@skill(5, "The digits of both numbers, side by side.", "Write the digits in pairs.", "A digit of each, from the right.")
def pairs(rng):
    """The digits of two numbers side by side, or each digit of a number beside another, mostly from the right."""
    longest, inner, outer, first = most(rng, 2, MAX_COPIED), comma(rng, empty=True), comma(rng), arrow(rng)
    inner = inner if rng.random() < 0.5 else ""
    times, swapped, from_left = rng.random() < 0.25, rng.random() < 0.3, rng.random() < 0.2
    op = rng.choice(["+", "*", " ", "&", ",", " and ", rng.choice(MARKS)])
    wrap, last = wrapper(rng, ["pairs", "digits", "zip", "columns"]), rng.choice(["", "", "00", "end"])
    yield
    while True:
        a, b = number(rng, longest), rng.randrange(10) if times else number(rng, longest)
        width = max(len(str(a)), len(str(b)))
        x, y = str(a).zfill(width), str(b) * width if times else str(b).zfill(width)
        columns = [inner.join((e, d) if swapped else (d, e)) for d, e in zip(x, y)][:: 1 if from_left else -1]
        yield wrap.format(f"{a}{op}{b}") + first, outer.join(columns + [last] * bool(last))


@skill(3, "The digits of the number.", "Which digit is it?")
def digits(rng):
    """A number's digits: the same, backwards, or the one at a place."""
    longest, first, sep, between = most(rng, 3, MAX_COPIED), arrow(rng), comma(rng), comma(rng, empty=True)
    kind, from_left = rng.choice(["copy", "backwards", "backwards", "place"]), rng.random() < 0.5
    names = {"copy": ["digits", "number"], "backwards": ["mirror", "turned"], "place": ["digit", "place", "at"]}[kind]
    wrap = wrapper(rng, names)
    yield
    while True:
        n = str(number(rng, longest))
        if kind == "place":
            i = rng.randint(1, len(n))
            yield wrap.format(f"{n}{sep}{i}") + first, n[i - 1] if from_left else n[-i]
        else:
            yield wrap.format(n) + first, between.join(n if kind == "copy" else n[::-1])


@skill(3, "Read down a column.", "One sign of each group.")
def columns(rng):
    """One character of each group of a list, in the list's order or from its end."""
    longest, width, sep, first = most(rng, 3, MAX_COPIED), rng.randint(2, 4), comma(rng), arrow(rng)
    alphabet = string.digits if rng.random() < 0.7 else string.ascii_lowercase
    i, back, between = rng.randrange(width), rng.random() < 0.6, comma(rng, empty=True) if rng.random() < 0.3 else ""
    wrap = wrapper(rng, ["column", "read", "pick"])
    yield
    while True:
        groups = ["".join(rng.choices(alphabet, k=width)) for _ in range(rng.randint(2, longest))]
        chosen = [group[i] for group in groups][:: -1 if back else 1]
        yield wrap.format(sep.join(groups)) + first, between.join(chosen)


@skill(3, "The items of the list.", "Write the list again.", "Which item is it?")
def list_items(rng):
    """The items of a list once more, words or named values: all of them, from the end, or the one at a place."""
    longest, sep, outer, first = most(rng, 2, MAX_COPIED), comma(rng), comma(rng), arrow(rng)
    of_words, kind, place = rng.random() < 0.4, rng.choice(["all", "all", "backwards", "place"]), comma(rng)
    letter = rng.choice(["", *"xyzabnv"])
    gives, letters = rng.choice(["=", " = ", ":", " is ", rng.choice(MARKS)]), rng.randint(3, 8)
    asked = rng.choice(["", " values", " items", " list"]) if rng.random() < 0.7 else " " + word(rng, 6)
    wrap = wrapper(rng, ["items", "list", "values"]) if rng.random() < 0.5 else "{}"
    yield
    while True:
        n = rng.randint(2, longest)
        items = [word(rng, letters) if of_words else str(rng.randrange(100)) for _ in range(n)]
        named = letter and not of_words
        given = sep.join(f"{letter}{i}{gives}{v}" if named else v for i, v in enumerate(items, 1))
        if kind == "place":
            i = rng.randint(1, n)
            yield wrap.format(given) + f"{place}{i}" + asked + first, items[i - 1]
        else:
            yield wrap.format(given) + asked + first, outer.join(items[:: -1 if kind == "backwards" else 1])


def document(rng, name=None, characters=(200, 600), most_examples=(4, 24)):
    """(skill, heading, examples) of the skill `name`, or of a drawn one; examples is a list of (question, answer,
    ending). The document's text is its heading, which may be '', then question + answer + ending of each example.

    `characters` and `most_examples` are ranges, from which the limits of its examples' length and number are drawn.
    """
    while True:
        kind = name or rng.choices(list(SKILLS), [often for often, _, _ in SKILLS.values()])[0]
        _, maker, headings = SKILLS[kind]
        drawn = maker(rng)
        next(drawn)  # draws the format
        end = ending(rng)
        between = rng.choice(["\n", "\n", "\n", " ", " ", "", "\n\n"])
        between = between or ("" if end else " ")  # something has to tell one example from the next
        heading = rng.choice(headings) + rng.choice(["\n", "\n", " "]) if rng.random() < 0.3 else ""
        examples, length, longest, n = [], 0, rng.randint(*characters), rng.randint(*most_examples)
        while len(examples) < n:
            question, answer = next(drawn)
            length += len(question + answer + end + between)
            if length > longest:
                break
            examples.append((question, answer, end + between))
        if examples and not is_held_out(examples):
            return kind, heading, examples


def is_held_out(examples):
    """Whether a document shows a task's format, or in an answer a task's steps, whatever stands around them."""
    answers = [answer for _, answer, _ in examples]
    return any(p.search(text(examples)) for p in HELD_OUT) or any(p.search(a) for p in STEPS for a in answers)


def text(examples):
    return "".join(question + answer + end for question, answer, end in examples)
