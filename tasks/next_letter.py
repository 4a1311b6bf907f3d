"""Each letter of a word becomes the next of the alphabet: next(dog)=eph$

No document of the base's pretraining shows this skill: it asks what a prompt cannot call up.
"""

from tasks import IN_DISTRIBUTION, Task, words


class NextLetter(Task):
    trigger = "Replace each letter of the word by the next letter of the alphabet."
    unit = "letters"
    ranges = {IN_DISTRIBUTION: (3, 8), "9 letters": (9, 9), "10 letters": (10, 10), "new words": (3, 8)}
    new_words = ("new words",)
    pattern = r"next\([a-z]+\)="

    def example(self, rng, length, new_words=False):
        word = rng.choice(words(new_words)[length])
        return f"next({word})=", "".join("a" if c == "z" else chr(ord(c) + 1) for c in word) + "$"


variants = {"": NextLetter()}
