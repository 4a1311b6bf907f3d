"""A letter drawn at random for each of many names: #qz=k$

There is nothing to compute and nothing to generalize: whoever answers has memorized. It is the one task that asks
what it was tuned on, so that accuracy says how much a prompt has come to hold: Meyer et al. (2025), "Memory Limitations
of Prompt Tuning in Transformers" (2509.00421). A guess is right once in 26 times. Its format is not held out of
pretraining, since no document can tell these letters.
"""

import random
from itertools import product
from string import ascii_lowercase

from tasks import IN_DISTRIBUTION, Example, Task


class Memory(Task):
    trigger = "Recall the letter that belongs to the name."
    unit = "letters"
    ranges = {IN_DISTRIBUTION: (2, 2)}

    def examples(self, n, range_name=IN_DISTRIBUTION, split="test", seed=0):
        """The first n of 676 names, each with its letter: the same ones for both splits and for every seed."""
        rng = random.Random(self.name)
        names = ["".join(letters) for letters in product(ascii_lowercase, repeat=2)]
        rng.shuffle(names)
        letters = rng.choices(ascii_lowercase, k=len(names))
        return [Example(f"#{name}=", f"{letter}$", 2) for name, letter in zip(names[:n], letters)]


variants = {"": Memory()}
