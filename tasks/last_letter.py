"""The last letters of a list of words, one by one and then joined: last(think,machine,learning)=k;e;g=keg$

Wei et al. (2022), "Chain-of-Thought Prompting", section 5, last letter concatenation.
"""

from tasks import IN_DISTRIBUTION, Task, words


class LastLetter(Task):
    trigger = "Take the last letter of each word and join the letters together."
    reading = "Behind the = stand the last letters one by one, and behind the next = the same letters joined."
    unit = "words"
    ranges = {IN_DISTRIBUTION: (2, 4), "5 words": (5, 5), "6 words": (6, 6), "new words": (2, 4)}
    new_words = ("new words",)
    list_errors = "word left out", "wrong letter", "letters miscopied"
    steps_pattern = r"\w;\w"
    pattern = r"last\((\w+,)+\w+\)=\w"

    def example(self, rng, length, new_words=False):
        by_letters = words(new_words)
        chosen = [rng.choice(by_letters[rng.randint(3, 8)]) for _ in range(length)]
        last = [word[-1] for word in chosen]
        return f"last({','.join(chosen)})=", f"{';'.join(last)}={''.join(last)}$"


variants = {"": LastLetter()}
