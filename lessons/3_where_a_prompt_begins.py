# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Lesson 3. Where a prompt begins
#
# **Goal.** You can say how much of a prompt's accuracy, in and out of distribution, comes from where it began and how
# much from tuning. You know when a difference between two prompts is one, and you can read off an answer what went
# wrong in it.
#
# About 55 minutes: 20 to read, 35 for three exercises. The cells run for two minutes on two idle cores. You need lesson
# 2. (The numbers in the text are those of one run. Another machine may end a few questions higher or lower.)
#
# *Does where a prompt begins decide whether it generalizes to longer sums?* An earlier version of this project said so,
# and withdrew it: the prompts that did so best had begun as a worked example, and that example did nearly as well
# before any tuning. This lesson shows each number beside its start.

# %%
import subprocess
import sys
from pathlib import Path

if "google.colab" in sys.modules and not Path("nanoprompt").exists():  # Colab has the notebook, not the project
    subprocess.run(["git", "clone", input("the address of your copy of the project: "), "nanoprompt"], check=True)
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "./nanoprompt"], check=True)
folders = [Path.cwd(), *Path.cwd().parents, Path("nanoprompt").resolve()]
sys.path.insert(0, str(next(folder for folder in folders if (folder / "prefix.py").is_file())))

# %%
import os
from collections import Counter

import matplotlib.pyplot as plt
import torch

import tasks
from data.batches import encode
from data.tokenizer import Tokenizer
from eval.accuracy import wilson
from eval.contexts import as_text, best_context
from files.weights import load_model
from lessons import checks
from lessons.drawing import BLUE, GRAY, GREEN, ORANGE, RED
from prefix import FewShot, HybridPrefix
from train_task import evaluate, train

model = load_model("nano-2").freeze()
tokenizer = Tokenizer.load(model.folder, model.config.vocab_size, "bytes")
task = tasks.load("addition")
examples = task.examples(1000, split="train")
tests = {name: task.examples(40, name) for name in task.ranges}
one = tokenizer.encode_task(as_text(task.worth_showing(examples, 1)))
instruction = tokenizer.encode(task.trigger + "\n")

# %% [markdown]
# ## Four ways to begin
#
# Rows at the input can begin as anything. Four ways, all tuned on the same 1,000 sums of 1 to 4 digits:
#
# - **65 random rows**, drawn with the spread of the embedding table;
# - **the same through an MLP**: the network sees rows + MLP(rows), and the MLP puts out zero at first;
# - **instruction**: 24 random rows and the task in words, the study's *hybrid prefix*;
# - **example**: 24 random rows and one worked example of 41 tokens, this project's default hybrid.
#
# ### Exercise 1. The rows of a hybrid prefix (easy, 10 minutes)
#
# Make the rows that a prompt begins as. Random rows come first. Their spread matters: embeddings of
# nano-2 have a standard deviation of {{model.wte.weight.std():.2f}}, and rows of another size are nothing that the
# network ever met.
#
# <details><summary>Hint</summary>
#
# Draw all random rows with one call of `torch.randn(..., generator=rng)`, which has a standard deviation of 1. A list
# of token numbers picks the rows of a table: `table[trigger]`.
# </details>


# %% tags=["exercise"]
def hybrid_rows(table, n_random, trigger, rng):
    """table (vocab_size, C), trigger: a list of token numbers, rng: a torch.Generator -> rows (n_random + len, C):
    random ones with the standard deviation of the table, then the embeddings of the trigger."""
    raise NotImplementedError


# %%
hybrid_rows = checks.check_hybrid_rows(hybrid_rows)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def hybrid_rows(table, n_random, trigger, rng):
#     random_rows = torch.randn(n_random, table.size(1), generator=rng) * table.std()
#     return torch.cat([random_rows, table[trigger]])
# ```
# </details>

# %% [markdown]
# ## Before and after
#
# Your rows are what the prompts begin as. The MLP belongs to one of them only while it is tuned. Beside the prompts
# stands the best context, as in lesson 2.

# %%
before, after, answers, curves = {}, {}, {}, {}


def measure(name, method, into):
    accuracy, answers[name] = evaluate(method, model, tokenizer, task, tests, name)
    into[name] = [100 * a["correct"] / a["n"] for a in accuracy.values()]


several, best = best_context(model, tokenizer, task, examples[:400], 320, draws=1, n_questions=20)
measure("best context", FewShot(model, trigger=several), after)
prompts = {
    "random": HybridPrefix(model, n_random=65),
    "random, MLP": HybridPrefix(model, n_random=65, mlp=True),
    "instruction": HybridPrefix(model, n_random=24, trigger=instruction),
    "example": HybridPrefix(model, n_random=24, trigger=one),
}
encoded = encode(tokenizer, examples)
for name, prompt in prompts.items():
    rng = torch.Generator().manual_seed(0)
    prompt.rows.data = hybrid_rows(model.wte.weight, prompt.n_random, prompt.trigger, rng)
    measure(name, prompt, before)
    lr = 0.003 if prompt.mlp is not None else 0.01
    curves[name] = train(prompt, model, encoded, epochs=1, batch_size=8, lr=lr, dtype=torch.float32, seed=0)
    measure(name, prompt, after)

# %% tags=["measured"]
print(f"{'final-answer accuracy, before > after':<40}" + "".join(f"{name:>16}" for name in tests))
for name in after:
    starts = before.get(name, [None] * len(tests))
    pairs = zip(starts, after[name])
    cells = [f"{end:.0f}" if start is None else f"{start:.0f} > {end:.0f}" for start, end in pairs]
    print(f"{name:<40}" + "".join(f"{cell:>16}" for cell in cells))

# %% tags=["figure-starts-and-ends"]
colors = dict(zip(after, (GRAY, BLUE, GREEN, ORANGE, RED)))
fig, (left, right) = plt.subplots(1, 2, figsize=(6.4, 4.4), sharey=True)
for name, color in colors.items():
    if name in before:
        left.plot(list(tests), before[name], "o--", mfc="white", color=color)
    right.plot(list(tests), after[name], "s:" if name == "best context" else "o-", color=color, label=name)
left.plot(list(tests), after["best context"], "s:", color=GRAY)
left.set(title="before tuning", ylabel="final-answer accuracy (%)", ylim=(-4, 104))
right.set(title="after tuning")
for axis in (left, right):
    axis.set_xticks(range(len(tests)), ["1-4", *[name.removesuffix(" digits") for name in list(tests)[1:]]])
    axis.set_xlabel("digits")
fig.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=12)
plt.show()

# %% [markdown]
# **Starts differ far more than ends.** In distribution the four begin at {{min(row[0] for row in before.values()):.0f}}
# to {{max(row[0] for row in before.values()):.0f}}%, and none ends below
# {{min(after[name][0] for name in before):.0f}}%. At eight digits they end at
# {{listed(after[name][-1] for name in before)}}%, and the best context, untuned, is right in
# {{after["best context"][-1]:.0f}}%.
#
# **What did tuning add to the example?** It begins at {{listed(before["example"])}}% and ends at
# {{listed(after["example"])}}%. Its loss was {{curves["example"]["loss"][0]:.4f}} at the first step, so there was
# little to learn. AdamW divides a gradient by its recent size and takes steps as long as ever, and so tuning may also
# take away. This is why `train_task.py` asks held-out questions while it tunes, and lets them choose the checkpoint
# that it keeps, the start included.
#
# With checkpoints and three seeds ([docs/results/init.md](../docs/results/init.md)) the prompt from the example ends
# at {{finding("init", "addition", "hybrid: random and example", "8 digits"):.0f}}% at eight digits, that from the
# instruction at {{finding("init", "addition", "hybrid: random and instruction", "8 digits"):.0f}}%, and 48 random rows
# at {{finding("init", "addition", "hybrid: random only", "8 digits"):.0f}}%. So "the prompt from the example
# generalizes best" is true there and misleading: it began at
# {{finding("init", "addition", "hybrid: random and example", "8 digits", before=True):.0f}}%. A small transformer
# **from scratch** ends at {{finding("headline", "addition", "scratch", "in-distribution"):.0f}}% in distribution and at
# {{finding("headline", "addition", "scratch", "8 digits"):.0f}}% at eight digits. It knows nothing but what it was
# shown: accuracy beyond four digits is what the base brings along.
#
# ## Is a difference one?
#
# Two prompts answer the same 50 questions. One is right in 41, the other in 37. What does that say? The interval of
# each alone is wide:

# %%
for correct in 37, 41:
    low, high = wilson(correct, 50)
    print(f"{correct} of 50 is {2 * correct}%, with a 95% interval from {100 * low:.0f} to {100 * high:.0f}%")

# %% [markdown]
# But both have answered the *same* questions, and most of them alike. Only questions on which they differ tell them
# apart. If neither is better, each of these is a coin that falls for one or the other with equal chance. That is the
# **sign test**: with n questions on which they differ, k of them for the prompt that got fewer, p is the probability
# of a result at least as uneven, in either direction.
#
# $$ p = \min\!\left(1,\; 2 \sum_{j=0}^{k} \binom{n}{j} 2^{-n}\right) $$
#
# ### Exercise 2. The sign test (medium, 10 minutes)
#
# <details><summary>Hint</summary>
#
# `math.comb(n, j)` is the number of ways to choose j of n, the round brackets above. `range(k + 1)` ends with k.
# </details>


# %% tags=["exercise"]
def sign_test(a, b):
    """a and b: for each question, whether one prompt and the other were right, lists of True and False -> (how many
    only the first had right, how many only the second, p)."""
    raise NotImplementedError


# %%
sign_test = checks.check_sign_test(sign_test)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# import math
#
# def sign_test(a, b):
#     only_a = sum(x and not y for x, y in zip(a, b))
#     only_b = sum(y and not x for x, y in zip(a, b))
#     n, k = only_a + only_b, min(only_a, only_b)
#     p = min(1, 2 * sum(math.comb(n, j) for j in range(k + 1)) / 2**n)
#     return only_a, only_b, p
# ```
# </details>


# %% tags=["measured"]
def right_answers(name):  # on all ranges, one after the other
    return [
        task.final_answer(text) == task.final_answer(e.answer)
        for range_name, some in tests.items()
        for e, text in zip(some, answers[name][range_name])
    ]


example = right_answers("example")
signs = {name: sign_test(right_answers(name), example) for name in ("random", "instruction", "best context")}
for name, (only_other, only_example, p) in signs.items():
    print(f"of {len(example)} only '{name}' has {only_other} right, only 'example' {only_example}: p = {p:.3f}")

# %% [markdown]
# If neither of two prompts were better, p would be below 0.05 once in twenty pairs of them. Of our three it is for
# {{listed([repr(name) for name, sign in signs.items() if sign[2] < 0.05] or ["none"])}}.
#
# One run is still one run. Another seed draws other rows and another order of examples, which the sign test knows
# nothing about: [three seeds of one prompt](../docs/results/headline.md) lie further apart than many prompts do.
#
# ## What went wrong
#
# The steps are written out, so a wrong answer shows where it went wrong. In `358+467=8705;5612;3418;000=825$` each
# column has the two digits, what is carried into it, and the digit of the sum. The *first* character that differs from
# the true answer names the error; what follows from it is not counted.
#
# ### Exercise 3. The first error (hard, 15 minutes)
#
# Return one of four words. `"digit"`: the first difference is where a digit of one of the numbers
# should be. `"carry"`: where a carry should be. `"sum"`: a digit of the sum in a column, or anything else before the
# last `=`. `"copy"`: all steps are right, and the final sum is not. For a right answer return `""`.
#
# <details><summary>Hint</summary>
#
# `os.path.commonprefix([written, true])` is what both begin with. A column is five characters long, `8705;`, so the
# place in it is a remainder, and `true.rindex("=")` is where the last `=` stands.
# </details>


# %% tags=["exercise"]
def first_error(written, true):
    """What was written and the true answer, 8705;5612;3418;000=825$ -> "digit", "carry", "sum", "copy" or ""."""
    raise NotImplementedError


# %%
first_error = checks.check_first_error(first_error)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# import os
#
# def first_error(written, true):
#     if written == true:
#         return ""
#     at = len(os.path.commonprefix([written, true]))
#     if at > true.rindex("="):
#         return "copy"
#     return ("digit", "digit", "carry", "sum", "sum")[at % 5]
# ```
# </details>

# %% [markdown]
# Here are the errors of the tuned prompts on sums of 7 and 8 digits, by your function, and the column in which the
# first one happens, counted from the right. (The project's own version, `task.kind_of_error`, knows some more kinds. To
# yours, an answer that leaves a column out begins to differ at a digit.)

# %% tags=["figure-errors"]
kinds, columns, longest = {}, {}, ("7 digits", "8 digits")
places = {"columns 1 to 4": 4, "5 and 6": 6, "7 and on": 9}  # and their last column
for name in ("best context", "random", "instruction", "example"):
    kinds[name], columns[name] = Counter(), Counter()
    for range_name in longest:
        for e, text in zip(tests[range_name], answers[name][range_name]):
            if kind := first_error(text, e.answer):
                same = len(os.path.commonprefix([e.answer, text]))
                kinds[name][kind] += 1
                place = next(p for p, last in places.items() if same // 5 < last) if kind != "copy" else "final sum"
                columns[name][place] += 1

fig, (over, under) = plt.subplots(2, 1, figsize=(6.4, 6.4), sharex=True)
all_kinds = ("digit", RED), ("carry", ORANGE), ("sum", GREEN), ("copy", GRAY)
all_places = *zip(places, ("#9ecae1", "#4292c6", "#084594")), ("final sum", GRAY)
for axis, counts, keys in (over, kinds, all_kinds), (under, columns, all_places):
    bottom = [0] * len(counts)
    for key, color in keys:
        n = [counts[name][key] for name in counts]
        axis.barh(list(counts), n, left=bottom, color=color, label=key)
        bottom = [b + x for b, x in zip(bottom, n)]
    axis.legend(loc="upper center", bbox_to_anchor=(0.4, -0.1), ncols=4, fontsize=12, columnspacing=1, handlelength=1)
total = sum(len(tests[name]) for name in longest)
over.set_title(f"what went wrong first, of {total} answers")
under.set_title("in which column, counted from the right")
plt.show()

# %% tags=["measured"]
wrong = [(e, text) for e, text in zip(tests["8 digits"], answers["example"]["8 digits"]) if text != e.answer]
for e, text in wrong[:2]:
    same = len(os.path.commonprefix([e.answer, text]))
    print(f"{e.question}\n  true    {e.answer}\n  written {text}")
    print(f"          {' ' * same}^ {first_error(text, e.answer)}")

# %% [markdown]
# What goes wrong first, most often:
# {{listed(f"{max(kinds[name], key=kinds[name].get, default='none')} behind '{name}'" for name in kinds)}}. The base
# loses its place in numbers longer than those of any sum that it has seen. Each bar counts
# {{min(sum(k.values()) for k in kinds.values())}} to {{max(sum(k.values()) for k in kinds.values())}} answers, so look
# at the large pieces only.
#
# ## What to read next
#
# - [docs/results/init.md](../docs/results/init.md): all starts and ends, three seeds, 100 questions a range.
# - Li & Liang (2021), [Prefix-Tuning](https://arxiv.org/abs/2101.00190), section 7.4, and Lester et al. (2021),
#   [Prompt Tuning](https://arxiv.org/abs/2104.08691), section 3.2, on how to begin; Razdaibiedina et al. (2023),
#   [Residual Prompt Tuning](https://arxiv.org/abs/2305.03937), on the MLP.
# - Dror et al. (2018), [The Hitchhiker's Guide to Testing Statistical Significance in
#   NLP](https://aclanthology.org/P18-1128/).
# - Lesson 4: at the input, in every layer, or in the weights.
