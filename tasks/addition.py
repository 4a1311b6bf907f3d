"""Addition digit by digit, in the format of the study this project began with.

321+654=1405;2507;3609;000=975$   a digit of each number, the carry, the digit of the sum;
both numbers are used up at 00, behind which stands the last carry; then the sum.
"""

import re

from tasks import IN_DISTRIBUTION, Task, first_difference


class InColumns(Task):
    """A task whose steps are columns such as 1405; and, where no digit is left, 00, the last carry and `=`."""

    unit = "digits"
    steps_pattern = r"\d{4};\d"
    pattern = rf"(?<!\d){steps_pattern}"
    result, operation = "sum", "added"  # for the names of errors

    def kind_of_error(self, answer, text):
        if "=" not in answer:
            return super().kind_of_error(answer, text)
        i, final = first_difference(answer, text), answer.rindex("=") + 1  # where the final answer begins
        if i >= final:
            return f"{self.result} miscopied"
        place = i % 5  # in its column
        column, last = text[i - place : i - place + 5], i - place + 4 == final  # whether it should be the last one
        ends = re.match(r"00\d=", column)
        if i == len(text) or self.stop in column[:4] or (ends and not last):
            return "stopped early"
        if not ends and not re.match(r"\d{4};", column):
            return "another format"
        if not ends and last:
            return "ran on"
        carry = "carry missed" if column[2] == "0" else "carry wrong"
        return ("digit misread", "digit misread", carry, f"digits {self.operation} wrong")[place]


class Addition(InColumns):
    trigger = "Add the two numbers digit by digit from the right, carry the one, then write the sum."
    reading = (
        "Behind the = each four digits are a column, from the right: a digit of each number, the carry, and the digit "
        "that is written. 00 and the last carry end the columns; then comes the sum."
    )

    ranges = {IN_DISTRIBUTION: (1, 4)} | {f"{n} digits": (n, n) for n in (5, 6, 7, 8)}  # nano-2 has not seen 7 and 8

    def __init__(self, steps=True, sign="="):
        self.steps, self.sign = steps, sign
        if not steps:
            self.steps_pattern, self.pattern = r"(?!)", rf"\d\+\d+{re.escape(sign)}\d+\$"
            self.reading = ""

    def example(self, rng, length, new_words=False):
        a = rng.randrange(10 ** (length - 1) if length > 1 else 0, 10**length)
        b = rng.randrange(10 ** rng.randint(1, length))
        if rng.random() < 0.5:
            a, b = b, a
        return f"{a}+{b}{self.sign}", (self.work(a, b) if self.steps else "") + f"{a + b}$"

    def work(self, a, b):
        text, carry = "", 0
        while a or b:
            digits = a % 10 + b % 10 + carry
            text += f"{a % 10}{b % 10}{carry}{digits % 10};"
            a, b, carry = a // 10, b // 10, digits // 10
        return text + f"00{carry}="


variants = {
    "": Addition(),
    "plain": Addition(steps=False),
    "symbolic": Addition(sign=";"),
}
