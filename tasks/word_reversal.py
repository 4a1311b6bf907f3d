"""A word backwards: reverse(lamp)=pmal$"""

from tasks import IN_DISTRIBUTION, Task, words


class WordReversal(Task):
    trigger = "Write the letters of the word backwards, from the last letter to the first."
    unit = "letters"
    ranges = {IN_DISTRIBUTION: (3, 8), "9 letters": (9, 9), "10 letters": (10, 10), "new words": (3, 8)}
    new_words = ("new words",)
    pattern = r"reverse\(\w+\)=\w"

    def example(self, rng, length, new_words=False):
        word = rng.choice(words(new_words)[length])
        return f"reverse({word})=", f"{word[::-1]}$"


variants = {"": WordReversal()}
