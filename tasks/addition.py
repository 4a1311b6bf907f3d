"""Addition digit by digit, in the format of the study this project began with.

321+654=1405;2507;3609;000=975$   a digit of each number, the carry, the digit of the sum;
both numbers are used up at 00, behind which stands the last carry; then the sum.
"""

import re

from tasks import IN_DISTRIBUTION, Task, first_difference

COLUMNS = r"\d{4};\d"  # a regular expression of steps in columns


class Addition(Task):
    trigger = "Add the two numbers digit by digit from the right, carry the one, then write the sum."
    unit = "digits"

    def __init__(self, steps=True, sign="=", longest=4):
        self.steps = steps
        self.sign = sign
        beyond = range(longest + 1, max(9, longest + 3))  # two lengths at least; 7 and 8 digits are new to the base
        self.ranges = {IN_DISTRIBUTION: (1, longest)} | {f"{n} digits": (n, n) for n in beyond}
        self.steps_pattern = COLUMNS if steps else r"(?!)"
        self.pattern = rf"(?<!\d){COLUMNS}" if steps else rf"\d\+\d+{re.escape(sign)}\d+\$"

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

    def kind_of_error(self, answer, text):
        return error_in_columns(answer, text, self.stop) if self.steps else super().kind_of_error(answer, text)


def error_in_columns(answer, text, stop, result="sum", operation="added"):
    """What went wrong where a text first differs from an answer in columns such as 1405;2507;3609;000=975$."""
    if text == answer:
        return ""
    i = first_difference(answer, text)
    final = answer.rindex("=") + 1  # where the final answer begins
    if i >= final:
        return f"{result} miscopied"
    start = i - i % 5  # of the column
    column = text[start : start + 5]
    used_up = start + 4 == final  # in the true answer no digit is left: 00, the last carry and =
    if i == len(text) or stop in column[:4] or re.match(r"00\d=", column) and not used_up:
        return "stopped early"
    if re.match(r"\d{4};", column) and used_up:
        return "ran on"
    if not re.match(r"\d{4};|00\d=", column):
        return "another format"
    if i - start < 2:
        return "digit misread"
    if i - start == 2:
        return "carry missed" if column[2] == "0" else "carry wrong"
    return f"digits {operation} wrong"


variants = {
    "": Addition(),
    "plain": Addition(steps=False),
    "symbolic": Addition(sign=";"),
    "long": Addition(longest=6),  # as long as in the base's pretraining: what prompts could reach at 5 and 6
}
