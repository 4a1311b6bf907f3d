# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Lesson 2. Sixty-five rows learn addition
#
# **Goal.** You can tune a soft prompt in three lines, and say what tuning added and what was there before. You have
# looked into a prompt in three ways, and know what each of them can tell.
#
# 20 minutes of reading, four exercises, under two minutes of running on two idle cores.

# %% [markdown]
# In Colab, put the address of your copy of the project into the next cell: it fetches the project. Anywhere else the
# cell only finds the project's folder.

# %%
import subprocess
import sys
from pathlib import Path

ADDRESS = "https://github.com/YOUR-NAME/nanoprompt"
if "google.colab" in sys.modules and not Path("nanoprompt").exists():
    subprocess.run(["git", "clone", "--depth", "1", ADDRESS, "nanoprompt"], check=True)
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "./nanoprompt"])
folders = [Path.cwd(), *Path.cwd().parents, Path("nanoprompt").resolve()]
sys.path.insert(0, str(next(folder for folder in folders if (folder / "prefix.py").is_file())))

# %%
import inspect
import math
import os
import random

import matplotlib.pyplot as plt
import torch

import tasks
from data.batches import encode, training_batches
from data.tokenizer import Tokenizer
from eval.attention import attention_to_rows
from eval.contexts import as_text, best_context
from eval.neighbors import nearest_tokens
from files.weights import load_model
from lessons import checks
from lessons.drawing import GRAY, ORANGE, RED, letters, redraw
from prefix import FewShot, HybridPrefix, Method, TextPrompt, ZeroShot
from train_task import evaluate, train_step

SHARE = float(os.environ.get("LESSONS_SHARE", 1))  # the project's tests use fewer examples; the text speaks of all

model = load_model("nano-2").freeze()
tokenizer = Tokenizer.load(model.folder, model.config.vocab_size, "bytes")
task = tasks.load("addition")

# %% [markdown]
# ## The task
#
# Addition with its steps written out. `321+654=1405;2507;3609;000=975$` reads: digits 1 and 4, carry 0, sum 5; then 2
# and 5, and so on; at the end the last carry, and the sum. A prompt learns from sums of 1 to 4 digits. It is asked
# sums of 1 to 4 digits that it has not seen, and of 5 to 8 digits.
#
# nano-2 was trained on sums of up to 6 digits in other formats, drawn at random. It has never seen this format, and
# never a sum of 7 or 8 digits. An answer counts as right if the final sum is.

# %%
examples = task.examples(1000, split="train")
tests = {name: task.examples(max(2, int(50 * SHARE)), name) for name in task.ranges}
for name, some in tests.items():
    print(f"{name:<16} {some[0].question}{some[0].answer}")

# %% [markdown]
# ## Before anything is tuned
#
# Three things stand for what words alone can do. **Zero-shot**: the question alone. **One example**: one training
# example of the longest length in front of it. **The best context**: several sets of 1, 2, 4 and 8 training examples,
# of which the best on 30 other training questions is kept. (The lesson tries 9 sets, `train_task.py` tries 17.)

# %%
one = tokenizer.encode_task(as_text(task.worth_showing(examples, 1)))
several, best, _ = best_context(
    model, tokenizer, task, examples[: max(20, int(400 * SHARE))], 320, draws=1, n_questions=max(2, int(30 * SHARE))
)
print(f"one example: {len(one)} tokens, {tokenizer.decode(one)!r}")
print(f"best context: {best['shots']} examples, {best['lengths']}, {len(several)} tokens\n")

table = {}  # {name: [accuracy on each range in %]}


def measure(name, method):
    accuracy, *_ = evaluate(method, model, tokenizer, task, tests, name)
    table[name] = [100 * a["correct"] / a["n"] for a in accuracy.values()]
    print(f"{name:<34}" + "".join(f"{percent:>16.0f}" for percent in table[name]))


print(f"{'final-answer accuracy, %':<34}" + "".join(f"{name:>16}" for name in tests))
measure("zero-shot", ZeroShot(model))
measure("one example", TextPrompt(model, trigger=one))
measure("best context", FewShot(model, trigger=several))

# %% [markdown]
# Nothing is tuned yet, and one example answers nearly all sums but the longest. Whoever shows a tuned prompt at 100%
# beside a zero-shot base at 2% has not shown that tuning did it.
#
# With 50 questions a range these percentages are rough. At 98% the 95% interval reaches from 90 to 100, at 48% from 35
# to 61. [docs/results/methods.md](../docs/results/methods.md) has 200 questions and three seeds.
#
# ## The three lines
#
# All prompts of this project are trained by the same three lines. Here they are, out of `prefix.py`.

# %%
print(inspect.getsource(Method.loss))

# %% [markdown]
# `past` is the prompt's cache, as in lesson 1. `hidden` are the states of the question and its answer. The loss looks
# at answer positions only: nobody wants a prompt that is good at guessing questions.
#
# ### Exercise 1. Where the answer is
#
# The network reads all tokens but the last: `inputs = (question + answer)[:-1]`. The target of each position is the
# next token: `targets = (question + answer)[1:]`. Return a tensor that is True at the positions whose *target*
# belongs to the answer.

# %% tags=["exercise"]
def answer_positions(Q, A):
    """Q tokens of question and A of answer -> (Q + A - 1), True where the target is a token of the answer."""
    raise NotImplementedError


# %%
checks.check_answer_positions(answer_positions)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def answer_positions(Q, A):
#     return torch.arange(Q + A - 1) >= Q - 1
# ```
#
# The last token of the question predicts the first of the answer. There are A such positions, one for each token of
# the answer.
# </details>

# %% [markdown]
# ### Exercise 2. The loss of a prompt
#
# Now the three lines yourself, for rows at the input: rows of C numbers, which have to go through the network to
# become a cache.

# %% tags=["exercise"]
def prompt_loss(rows, model, tokens, targets, answer):
    """rows (P, C); tokens and targets (B, T); answer (B, T), True at answer positions -> the mean loss there, ()."""
    raise NotImplementedError


# %%
checks.check_prompt_loss(prompt_loss)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def prompt_loss(rows, model, tokens, targets, answer):
#     past = model.prefill(rows[None])
#     hidden = model(tokens, past)  # (B, T, C)
#     return model.loss(hidden[answer], targets[answer])
# ```
# </details>

# %% [markdown]
# ### Exercise 3. The training loop
#
# One step of AdamW for each batch. `loss_of(rows, batch)` is the loss, for instance your function of exercise 2.

# %% tags=["exercise"]
def tune(rows, loss_of, batches, lr):
    """rows (P, C), a plain tensor -> rows (P, C) after a step of AdamW, without weight decay, on each batch."""
    raise NotImplementedError


# %%
checks.check_tune(tune)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def tune(rows, loss_of, batches, lr):
#     rows = torch.nn.Parameter(rows)
#     optimizer = torch.optim.AdamW([rows], lr, weight_decay=0)
#     for batch in batches:
#         loss_of(rows, batch).backward()
#         optimizer.step()
#         optimizer.zero_grad()
#     return rows.detach()
# ```
# </details>

# %% [markdown]
# ## Two prompts learn
#
# Both have 24 rows that begin at random. Behind them, the first prompt has a row for each token of an **instruction**
# in words. The second one has a row for each token of the **worked example**: 24 + 41 = 65 rows, which is where the
# title comes from. This is the *hybrid prefix* of the study that the project re-examines.

# %%
instruction = tokenizer.encode(task.trigger + "\n")
prompts = {
    "from the instruction": HybridPrefix(model, n_random=24, trigger=instruction, seed=0),
    "from the example": HybridPrefix(model, n_random=24, trigger=one, seed=0),
}
for name, prompt in prompts.items():
    share = 100 * prompt.rows.numel() / sum(p.numel() for p in model.parameters())
    print(f"{name:<22} {prompt.n_rows()} rows, {prompt.rows.numel():,} numbers, {share:.2f}% of the base's")
print(f"{'':<34}" + "".join(f"{name:>16}" for name in tests))
for name, prompt in prompts.items():
    measure(f"{name}, before", prompt)

# %% tags=["figure-loss"]
encoded = encode(tokenizer, examples[: max(32, int(1000 * SHARE))])
steps = math.ceil(len(encoded) / 8)
fig, axis = plt.subplots(figsize=(7, 3.8))
axis.set(xlabel="examples seen", ylabel="loss (nats per answer token)", yscale="log", xlim=(0, len(encoded)))
handle = redraw(fig)
for (name, prompt), color in zip(prompts.items(), (ORANGE, RED)):
    optimizers, losses, seen = prompt.optimizers(prompt.lr, torch.float32), [], []
    (line,) = axis.plot([], [], color=color, label=name)
    axis.legend()
    for step, batch in enumerate(training_batches(encoded, 8, random.Random(0))):
        # the rate rises over the first 20 steps, then falls as a cosine
        factor = min(1, (step + 1) / 20, 0.5 + 0.5 * math.cos(math.pi * step / steps))
        optimizers[0].param_groups[0]["lr"] = prompt.lr * factor
        losses.append(train_step(prompt, model, batch, optimizers, torch.float32).item())
        seen.append(8 * (step + 1))
        if step % 5 == 0 or step == steps - 1:
            line.set_data(seen, losses)
            axis.relim()
            axis.autoscale_view(scalex=False)
            handle = redraw(fig, handle)
plt.close(fig)

# %%
print(f"{'final-answer accuracy, %':<34}" + "".join(f"{name:>16}" for name in tests))
for name, prompt in prompts.items():
    measure(f"{name}, tuned", prompt)
    added = [after - before for after, before in zip(table[f"{name}, tuned"], table[f"{name}, before"])]
    print(f"{'  tuning adds to its start':<34}" + "".join(f"{points:>+16.0f}" for points in added))
    added = [after - context for after, context in zip(table[f"{name}, tuned"], table["best context"])]
    print(f"{'  and to the best context':<34}" + "".join(f"{points:>+16.0f}" for points in added))

# %% tags=["figure-before-after"]
fig, axis = plt.subplots(figsize=(7, 3.8))
for name, color in ("from the instruction", ORANGE), ("from the example", RED):
    axis.plot(list(tests), table[f"{name}, before"], "o--", color=color, mfc="white", label=f"{name}, before")
    axis.plot(list(tests), table[f"{name}, tuned"], "o-", color=color, label=f"{name}, tuned")
axis.plot(list(tests), table["best context"], "s:", color=GRAY, label="best context, nothing tuned")
axis.set(ylim=(-4, 104), ylabel="final-answer accuracy (%)")
axis.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=9)
plt.show()

# %% [markdown]
# Read the table line by line. (The numbers in this text are those of the stored outputs. Another machine rounds
# otherwise and may end a few questions higher or lower.)
#
# - **From the instruction**, tuning adds everything: the start is 0%, the end is 100, 98, 96, 82 and 48%.
# - **From the example**, the start is 100, 100, 98, 92 and 36%. Up to seven digits tuning adds nothing. At eight digits
#   it adds 8 points, which are four questions.
# - **The best context**, which nobody tuned, answers 100, 100, 100, 92 and 36%. No difference from it is larger than
#   six questions. With 4,000 examples and three seeds ([docs/results/methods.md](../docs/results/methods.md)) the best
#   context, the prompt from the example and that from the instruction have 47, 47 and 42% at eight digits.
#
# So the title of this lesson is half a lie. Nobody learned addition here: nano-2 could add, and has done so in other
# formats. What stands in front of the question tells it that this is wanted, and how it is to be written. One worked
# example says that. Tuning can learn to say it from nothing, and has little to add to an example.
#
# ## Looking into a prompt, 1: the nearest words
#
# A row is C numbers, and so is the embedding of every token. Which token is nearest to each row?

# %%
tuned = prompts["from the example"]
P, n_random = tuned.n_rows(), tuned.n_random
rows = nearest_tokens(model, tokenizer, tuned, k=3)
for i in [0, 1, 2, n_random, n_random + 1, n_random + 2, n_random + 3]:
    words = ", ".join(f"{word!r} {cosine:.2f}" for word, cosine in rows[i]["nearest"])
    print(f"row {i:>2} began {'at random' if i < n_random else repr(rows[i]['init_token']):<10} nearest: {words}")

unchanged = sum(row["nearest"][0][0] == row["init_token"] for row in rows[n_random:])
print(f"\nof {P - n_random} rows that began as a token, {unchanged} are still nearest to it")
nearest = sum(row["nearest"][0][1] for row in rows[:n_random]) / n_random
print(f"cosine of random rows to their nearest token, now: {nearest:.2f}")
untrained = HybridPrefix(model, n_random=1000, seed=1)  # a thousand rows that nobody trained
nearest = sum(row["nearest"][0][1] for row in nearest_tokens(model, tokenizer, untrained, k=1)) / 1000
print(f"cosine of random rows to their nearest token, untrained: {nearest:.2f}")

# %% [markdown]
# The nearest words say how a prompt *began*. Rows that began as a token still lie next to it, and rows that began at
# random are as far from all words as random vectors are. In neither case do the words tell what the prompt does. A
# list of nearest words looks like an explanation and is none: compare it with that of the untuned prompt before you
# read anything into it.
#
# ## Looking into a prompt, 2: rows switched off
#
# A better question: what happens without a row? We take its keys and values out of the cache, layer by layer, and
# look at the loss on questions that were not trained on. Nothing else may change. In particular the question must not
# move up by one position.
#
# ### Exercise 4. A cache without one row

# %% tags=["exercise"]
def without_row(cache, i):
    """A cache, [(keys, values)] with (1, n_head, P, D) each -> the same without position i: P - 1 positions."""
    raise NotImplementedError


# %%
checks.check_without_row(without_row)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def without_row(cache, i):
#     return [tuple(torch.cat([x[:, :, :i], x[:, :, i + 1 :]], dim=2) for x in pair) for pair in cache]
# ```
# </details>


# %%
def all_but(cache, i):  # your function of exercise 4, so that the lesson goes on without it
    keep = [p for p in range(cache[0][0].size(2)) if p != i]
    return [(keys[:, :, keep], values[:, :, keep]) for keys, values in cache]


@torch.no_grad()
def loss_without(cache, i, batch):
    tokens, targets, answer = batch  # (B, T) each
    P, T = cache[0][0].size(2), tokens.size(1)
    # run() will give the question the positions P - 1, ...: take them out and put P, ... in
    x = model.wte(tokens) + model.wpe.weight[P : P + T] - model.wpe.weight[P - 1 : P - 1 + T]  # (B, T, C)
    hidden, _ = model.run(x, all_but(cache, i))
    return model.loss(hidden[answer], targets[answer]).item()


asked = task.examples(max(2, int(32 * SHARE)), seed=1)
(batch,) = training_batches(encode(tokenizer, asked), 32, random.Random(0))
start = HybridPrefix(model, n_random=24, trigger=one, seed=0)  # the same prompt before tuning
cost = {}
for name, prompt in ("before", start), ("tuned", tuned):
    with torch.no_grad():
        whole = prompt.loss(model, *batch).item()
        cache = prompt.past(model)
    cost[name] = [loss_without(cache, i, batch) - whole for i in range(P)]
    top = sorted(range(P), key=lambda i: -cost[name][i])[:5]
    print(f"{name}: loss {whole:.4f} with all rows; the rows that cost most:")
    for i in top:
        began = "at random" if i < n_random else repr(tokenizer.decode([one[i - n_random]]))
        print(f"  row {i:>2}, which began {began:<9} {cost[name][i]:+.4f}")

# %% [markdown]
# ## Looking into a prompt, 3: where the answer looks
#
# Attention weights say which rows the answer reads, head by head, on average over the answer's tokens.

# %% tags=["figure-rows"]
looks = torch.tensor(attention_to_rows(tuned, model, tokenizer, asked)["rows"]).flatten(0, 1)  # (n_layer * n_head, P)
labels = ["·"] * n_random + letters(tokenizer.decode(one))
fig, (top, bottom) = plt.subplots(2, 1, figsize=(10, 6), height_ratios=(1, 1.5), sharex=True)
top.bar(range(P), cost["before"], color=GRAY, width=0.9, label="before tuning")
top.bar(range(P), cost["tuned"], color=RED, width=0.5, label="tuned")
top.set(ylabel="loss without it, minus\nloss with all rows", title="rows switched off one by one")
top.legend(loc="upper left")
image = bottom.imshow(looks, aspect="auto", cmap="Blues", vmin=0, vmax=looks.max())
bottom.set_yticks(range(0, len(looks), model.config.n_head), [f"layer {i + 1}" for i in range(model.config.n_layer)])
bottom.set(title="share of the answer's attention, a line for each head", xlabel="· a row that began at random")
bottom.set_xticks(range(P), labels, fontsize=8)
fig.colorbar(image, ax=bottom, shrink=0.8)
plt.show()

# %%
random_rows, example_rows = looks[:, :n_random].sum(1).mean(), looks[:, n_random:].sum(1).mean()
print(f"of the answer's attention {random_rows:.0%} go to random rows and {example_rows:.0%} to the example's")
both = torch.stack([torch.tensor(cost["tuned"]), looks.mean(0)])  # (2, P)
print(f"correlation of a row's cost with the attention it gets: {torch.corrcoef(both)[0, 1]:.2f}")

# %% [markdown]
# Two rows do nearly all the work, before tuning and after it: the end of the line, and the `=` in front of the sum.
# After tuning the `$` is a third. These are the places where the format turns: here the sum begins, here the answer
# ends, here the question follows. Without the end of the line the loss rises from below 0.0001 to 0.79. Without any one
# of the 24 random rows nothing happens. This fits what the table said: the prompt tells the *format*.
#
# Two warnings. A row may be worth nothing because another one says the same, so switching off one at a time finds no
# such pairs. And attention is no measure of worth: the correlation of the two is only 0.3, and some rows that many
# heads look at can be taken out at no cost. Attention says how much is read from a row, not what that does.
#
# ## What to read next
#
# - `train_task.py`: the whole job in one file, with all contenders measured before and after. `python train_task.py
#   --task addition` takes six minutes.
# - Lester et al. (2021), [The Power of Scale for Parameter-Efficient Prompt
#   Tuning](https://arxiv.org/abs/2104.08691), section 7, on what the nearest words of a prompt say.
# - Jain & Wallace (2019), [Attention is not Explanation](https://arxiv.org/abs/1902.10186).
# - Lesson 3: where a prompt begins, and whether that decides how it does on longer sums.
