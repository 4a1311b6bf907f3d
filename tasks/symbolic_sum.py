"""The sum of symbols that were given values, with running totals.

x1=3, x2=5, x3=4 sum?3;8;12=12$
The variant `sequence` leaves out the middle of an arithmetic sequence, which the model must fill in:
x1=3, x2=5, ..., x5=11 sum?3;8;15;24;35=35$
"""

from itertools import accumulate

from tasks import IN_DISTRIBUTION, Task


class SymbolicSum(Task):
    trigger = "Add up the values of all the symbols, one after the other, and write the total."
    reading = "Behind the question stand the running totals, one for each symbol, and behind the = the last of them."
    unit = "terms"
    list_errors = "term left out", "wrong total", "sum miscopied"
    steps_pattern = r"\d;\d"
    pattern = r"x1=\d+, x2=\d+[^?]* sum\?\d"

    def __init__(self, sequence=False):
        self.sequence, longest = sequence, 6 if sequence else 5
        self.ranges = {IN_DISTRIBUTION: (4 if sequence else 2, longest)}  # a sequence needs a middle to leave out
        self.ranges |= {f"{n} terms": (n, n) for n in (longest + 1, longest + 2)}

    def example(self, rng, length, new_words=False):
        if self.sequence or rng.random() < 0.2:  # an arithmetic sequence now and then in the other form as well
            first, step = rng.randrange(20 if self.sequence else 10), rng.randrange(1, 20 if self.sequence else 5)
            values = [first + step * i for i in range(length)]
        else:
            values = [rng.randrange(10) for _ in range(length)]
        given = [f"x{i}={x}" for i, x in enumerate(values, 1)]
        if self.sequence:
            given[2:-1] = ["..."]
        return f"{', '.join(given)} sum?", f"{';'.join(map(str, accumulate(values)))}={sum(values)}$"


variants = {"": SymbolicSum(), "sequence": SymbolicSum(sequence=True)}
