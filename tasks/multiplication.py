"""A number times a digit, digit by digit.

47*6=7602;4648;002=282$   a digit of the number, the multiplier, the carry, the digit of the
product; the number is used up at 00, behind which stands the last carry; then the product.
"""

from tasks import IN_DISTRIBUTION
from tasks.addition import InColumns


class Multiplication(InColumns):
    trigger = (
        "Multiply the number by the digit, one digit at a time from the right, with the carry, then write the product."
    )
    reading = (
        "Behind the = each four digits are a column, from the right: a digit of the number, the multiplier, the carry, "
        "and the digit that is written. 00 and the last carry end the columns; then comes the product."
    )
    ranges = {IN_DISTRIBUTION: (1, 4), "5 digits": (5, 5), "6 digits": (6, 6)}
    result, operation = "product", "multiplied"

    def example(self, rng, length, new_words=False):
        a = rng.randrange(10 ** (length - 1) if length > 1 else 0, 10**length)
        b = rng.randrange(10)
        text, rest, carry = "", a, 0
        while rest:
            product = rest % 10 * b + carry
            text += f"{rest % 10}{b}{carry}{product % 10};"
            rest, carry = rest // 10, product // 10
        return f"{a}*{b}=", f"{text}00{carry}={a * b}$"


variants = {"": Multiplication()}
