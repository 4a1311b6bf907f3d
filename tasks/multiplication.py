"""A number times a digit, digit by digit.

47*6=7602;4648;002=282$   a digit of the number, the multiplier, the carry, the digit of the
product; the number is used up at 00, behind which stands the last carry; then the product.
"""

from tasks import IN_DISTRIBUTION, Task
from tasks.addition import COLUMNS, error_in_columns


class Multiplication(Task):
    trigger = (
        "Multiply the number by the digit, one digit at a time from the right, with the carry, then write the product."
    )
    unit = "digits"
    ranges = {IN_DISTRIBUTION: (1, 4), "5 digits": (5, 5), "6 digits": (6, 6)}
    steps_pattern = COLUMNS
    pattern = rf"(?<!\d){COLUMNS}"

    def example(self, rng, length, new_words=False):
        a = rng.randrange(10 ** (length - 1) if length > 1 else 0, 10**length)
        b = rng.randrange(10)
        text, rest, carry = "", a, 0
        while rest:
            product = rest % 10 * b + carry
            text += f"{rest % 10}{b}{carry}{product % 10};"
            rest, carry = rest // 10, product // 10
        return f"{a}*{b}=", f"{text}00{carry}={a * b}$"

    def kind_of_error(self, answer, text):
        return error_in_columns(answer, text, "product", "multiplied")


variants = {"": Multiplication()}
