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
# **Goal.** You can tune a soft prompt with three lines and a loop of your own, and say what tuning added and what was
# there before. You have looked into a prompt in three ways, and know what each of them can tell.
#
# About 65 minutes: 25 to read, 40 for four exercises. The cells run for two minutes on two idle cores. You need lesson
# 1. The prompts are trained by what you write. (The numbers in the text are those of one run. Another machine rounds
# otherwise, and may end a few questions higher or lower.)

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
import inspect
import random

import matplotlib.pyplot as plt
import torch

import tasks
from data.batches import encode
from data.tokenizer import Tokenizer
from eval.accuracy import wilson
from eval.attention import attention_to_rows
from eval.contexts import as_text, best_context
from eval.neighbors import nearest_tokens
from files.weights import load_model
from lessons import checks
from lessons.drawing import GRAY, ORANGE, RED, letters, redraw
from prefix import FewShot, HybridPrefix, Method, TextPrompt, ZeroShot
from train_task import evaluate

model = load_model("nano-2").freeze()
tokenizer = Tokenizer.load(model.folder, model.config.vocab_size, "bytes")
task = tasks.load("addition")

# %% [markdown]
# ## The task
#
# Addition with its steps written out. `58+67=8705;5612;001=125$` reads: digits 8 and 7, nothing carried, sum 5; then
# digits 5 and 6, 1 carried, sum 2; both numbers are used up, 1 is carried; the sum. A prompt learns from sums of 1 to 4
# digits. It is asked sums of 1 to 4 digits that it has not seen (*in-distribution*, like what it learned from), and of
# 5 to 8 digits (*out-of-distribution*, here longer).
#
# nano-2 was trained on sums of up to 6 digits in other formats, drawn at random. It has never seen this format, and
# never a sum of 7 or 8 digits. An answer counts as right if the final sum is.

# %%
examples = task.examples(1000, split="train")
tests = {name: task.examples(50, name) for name in task.ranges}
for name, some in tests.items():
    print(f"{name:<16} {some[0].question}{some[0].answer}")

# %% [markdown]
# ## Before anything is tuned
#
# Three things stand for what words alone can do. **Zero-shot**: the question alone. **One example**: one training
# example of the longest length in front of it. **The best context**: several sets of 1, 2, 4 and 8 training examples,
# of which the best on other training questions is kept.

# %% tags=["measured"]
table = {}  # {name: [accuracy on each range in %]}


def measure(name, method):
    accuracy, _ = evaluate(method, model, tokenizer, task, tests, name)
    table[name] = [100 * a["correct"] / a["n"] for a in accuracy.values()]
    print(f"{name:<34}" + "".join(f"{percent:>16.0f}" for percent in table[name]))


one = tokenizer.encode_task(as_text(task.worth_showing(examples, 1)))
several, best = best_context(model, tokenizer, task, examples[:400], max_tokens=320, draws=1, n_questions=30)
print(f"{'final-answer accuracy, %':<34}" + "".join(f"{name:>16}" for name in tests))
measure("zero-shot", ZeroShot(model))
measure("one example", TextPrompt(model, trigger=one))
measure("best context", FewShot(model, trigger=several))
low, high = (100 * bound for bound in wilson(round(table["one example"][-1] / 2), 50))  # of 50 questions
print(f"\none example: {len(one)} tokens, {tokenizer.decode(one)!r}")
print(f"best context: {best['shots']} examples, {len(several)} tokens")

# %% [markdown]
# Nothing is tuned yet, and one example answers {{listed(table["one example"])}}% of the five ranges. Whoever shows a
# tuned prompt at {{table["one example"][0]:.0f}}% beside a zero-shot base at {{table["zero-shot"][0]:.0f}}% has not
# shown that tuning did it.
#
# With 50 questions a range these percentages are rough: that of {{table["one example"][-1]:.0f}}% has a 95% interval
# from {{low:.0f}} to {{high:.0f}}%.
#
# ## The three lines
#
# All prompts of this project are trained by the same three lines. Here they are, out of `prefix.py`.

# %%
print(inspect.getsource(Method.loss))

# %% [markdown]
# `past` is the prompt's cache, as in lesson 1. `hidden` are the states of the question and its answer. The loss looks
# at answer positions only: nobody wants a prompt that is good at guessing questions. It is counted in *nats*, minus the
# natural logarithm of the probability that the right token got: 0 nats if the model was certain of it, ln 10 = 2.3 nats
# if ten digits seemed equally likely.
#
# ### Exercise 1. Where the answer is (easy, 5 minutes)
#
# The network reads all tokens but the last: `inputs = (question + answer)[:-1]`. The target of each
# position is the next token: `targets = (question + answer)[1:]`. Return a tensor that is True at the positions whose
# *target* belongs to the answer.
#
# <details><summary>Hint</summary>
#
# Write down `3+4=` and `7$`, inputs above targets: which positions have `7` and `$` as their target?
# </details>


# %% tags=["exercise"]
def answer_positions(Q, A):
    """Q tokens of question and A of answer -> (Q + A - 1), True where the target is a token of the answer."""
    raise NotImplementedError


# %%
answer_positions = checks.check_answer_positions(answer_positions)

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
# Your mask goes into the batches that the prompts will learn from: eight sums each, of nearly the same length.


# %% tags=["measured"]
def as_batch(encoded):
    """[(question tokens, answer tokens)] -> tokens, targets, answer, (B, T) each."""
    longest, rows = max(len(question) + len(answer) for question, answer in encoded), []
    for question, answer in encoded:
        n = longest - len(question) - len(answer)  # padding at the end, which no earlier position looks at
        text = torch.tensor(question + answer + [0] * n)
        where = torch.cat([answer_positions(len(question), len(answer)), torch.zeros(n, dtype=torch.bool)])
        rows.append((text[:-1], text[1:], where))
    return [torch.stack(column) for column in zip(*rows)]


encoded = sorted(encode(tokenizer, examples), key=lambda pair: len(pair[1]))  # pairs of lists of tokens
batches = [as_batch(encoded[i : i + 8]) for i in range(0, len(encoded), 8)]
random.Random(0).shuffle(batches)
tokens, targets, answer = batches[0]
print("read     ", repr(tokenizer.decode(tokens[0].tolist())))
print("predicted", repr(tokenizer.decode(targets[0][answer[0]].tolist())))

# %% [markdown]
# ### Exercise 2. The loss of a prompt (easy, 10 minutes)
#
# Now the three lines yourself, for rows at the input: rows of C numbers, which have to go through
# the network to become a cache.
#
# <details><summary>Hint</summary>
#
# `model.prefill` takes a batch of prompts, here of one: `rows[None]` is (1, P, C). A tensor of True and False takes out
# what is True: `hidden[answer]` is (N, C), if N positions are.
# </details>


# %% tags=["exercise"]
def prompt_loss(rows, model, tokens, targets, answer):
    """rows (P, C); tokens and targets (B, T); answer (B, T), True at answer positions -> the mean loss there, ()."""
    raise NotImplementedError


# %%
prompt_loss = checks.check_prompt_loss(prompt_loss)

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
# ### Exercise 3. The training loop (medium, 15 minutes)
#
# One step of AdamW for each batch. `loss_of(rows, batch)` returns the loss.
#
# <details><summary>Hint</summary>
#
# AdamW moves a `torch.nn.Parameter`, which asks for gradients; rows are a plain tensor. After `backward()` and `step()`
# the gradient is still there: the next one would be added to it.
# </details>


# %% tags=["exercise"]
def tune(rows, loss_of, batches, lr):
    """rows (P, C), a plain tensor -> rows (P, C) after a step of AdamW, without weight decay, on each batch."""
    raise NotImplementedError


# %%
tune = checks.check_tune(tune)

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
# in words. The second one has a row for each token of the **worked example**: {{24 + len(one)}} rows, which is where
# the title comes from. This is the *hybrid prefix* of the study that the project re-examines. The numbers are
# `prompt.rows`, and your function tunes them.

# %% tags=["measured"]
instruction = tokenizer.encode(task.trigger + "\n")
prompts = {
    "from the instruction": HybridPrefix(model, n_random=24, trigger=instruction, seed=0),
    "from the example": HybridPrefix(model, n_random=24, trigger=one, seed=0),
}
print(f"{'final-answer accuracy, %':<34}" + "".join(f"{name:>16}" for name in tests))
for name, prompt in prompts.items():
    measure(f"{name}, before", prompt)
for name, prompt in prompts.items():
    share = 100 * prompt.rows.numel() / sum(p.numel() for p in model.parameters())
    print(f"{name:<22} {prompt.n_rows()} rows, {prompt.rows.numel():,} numbers, {share:.2f}% of the base's")

# %% tags=["figure-loss"]
fig, axis = plt.subplots(figsize=(6, 4))
axis.set(xlabel="examples seen", ylabel="loss (nats per answer token)", yscale="log", xlim=(0, len(encoded)))
handle = redraw(fig)


def learn(name, prompt, color):
    losses, (line,) = [], axis.plot([], [], color=color, label=name)
    axis.legend()

    def loss_of(rows, batch):
        loss = prompt_loss(rows, model, *batch)
        losses.append(loss.item())
        if len(losses) % 5 == 0:
            line.set_data(range(8, 8 * len(losses) + 1, 8), losses)
            axis.relim()
            axis.autoscale_view(scalex=False)
            redraw(fig, handle)
        return loss

    prompt.rows.data = tune(prompt.rows.data, loss_of, batches, lr=0.003)


learn("from the instruction", prompts["from the instruction"], ORANGE)
learn("from the example", prompts["from the example"], RED)
plt.close(fig)

# %% tags=["measured"]
print(f"{'final-answer accuracy, %':<34}" + "".join(f"{name:>16}" for name in tests))
for name, prompt in prompts.items():
    measure(f"{name}, tuned", prompt)
    added = [end - start for end, start in zip(table[f"{name}, tuned"], table[f"{name}, before"])]
    print(f"{'  tuning adds to its start':<34}" + "".join(f"{points:>+16.0f}" for points in added))
    added = [end - context for end, context in zip(table[f"{name}, tuned"], table["best context"])]
    print(f"{'  and to the best context':<34}" + "".join(f"{points:>+16.0f}" for points in added))

# %% tags=["figure-before-after"]
fig, axis = plt.subplots(figsize=(6, 5.2))
for name, color in ("from the instruction", ORANGE), ("from the example", RED):
    axis.plot(list(tests), table[f"{name}, before"], "o--", color=color, mfc="white", label=f"{name}, before")
    axis.plot(list(tests), table[f"{name}, tuned"], "o-", color=color, label=f"{name}, tuned")
axis.plot(list(tests), table["best context"], "s:", color=GRAY, label="best context, untuned")
axis.set(ylim=(-4, 104), ylabel="final-answer accuracy (%)")
axis.set_xticks(range(len(tests)), [name.replace("-", "-\n").replace(" ", "\n") for name in tests])
fig.legend(loc="outside lower center", ncols=2, fontsize=12, columnspacing=1)
plt.show()

# %% [markdown]
# Read the table line by line.
#
# - **From the instruction**, tuning adds everything: {{listed(table["from the instruction, before"])}}% before, and
#   {{listed(table["from the instruction, tuned"])}}% after.
# - **From the example**, it begins at {{listed(table["from the example, before"])}}% and ends at
#   {{listed(table["from the example, tuned"])}}%: where nearly everything is right already, tuning has little to add.
# - **The best context**, which nobody tuned, answers {{listed(table["best context"])}}%.
#
# With held-out questions and three seeds ([docs/results/methods.md](../docs/results/methods.md)) the sums of 8
# digits get {{finding("methods", "addition", "hybrid, example", "8 digits"):.0f}}% from the example,
# {{finding("methods", "addition", "hybrid", "8 digits"):.0f}}% from the instruction, and
# {{finding("methods", "addition", "best context", "8 digits"):.0f}}% behind the best context. On
# such long sums seeds differ widely.
#
# So the title of this lesson is half a lie. Nobody learned addition here: nano-2 could add, and has done so in other
# formats. What stands in front of the question tells it that this is wanted, and how it is to be written. One worked
# example says that. Tuning can learn to say it from nothing, and has little to add to an example.
#
# ## Looking into a prompt, 1: the nearest words
#
# A row is C numbers, and so is the embedding of every token. Which token is nearest to each row? The cosine is 1 for
# the same direction and 0 for a right angle.

# %% tags=["measured"]
tuned = prompts["from the example"]
P, n_random = tuned.n_rows(), tuned.n_random
rows = nearest_tokens(model, tokenizer, tuned, k=3)
for i in [0, 1, 2, n_random, n_random + 1, n_random + 2, n_random + 3]:
    words = ", ".join(f"{word!r} {cosine:.2f}" for word, cosine in rows[i]["nearest"])
    print(f"row {i:>2} began {'at random' if i < n_random else repr(rows[i]['init_token']):<10} nearest: {words}")

unchanged = sum(row["nearest"][0][0] == row["init_token"] for row in rows[n_random:])
print(f"\nof {P - n_random} rows that began as a token, {unchanged} are still nearest to it")
nearest = sum(row["nearest"][0][1] for row in rows[:n_random]) / n_random
print(f"cosine of random rows to their nearest token, tuned: {nearest:.2f}")
untrained = HybridPrefix(model, n_random=1000, seed=1)  # a thousand rows that nobody trained
by_chance = sum(row["nearest"][0][1] for row in nearest_tokens(model, tokenizer, untrained, k=1)) / 1000
print(f"cosine of random rows to their nearest token, untrained: {by_chance:.2f}")

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
# ### Exercise 4. A cache without one row (medium, 10 minutes)
#
# <details><summary>Hint</summary>
#
# `x[:, :, :i]` are the rows in front of i. A cache has a pair (keys, values) for each layer.
# </details>


# %% tags=["exercise"]
def without_row(cache, i):
    """A cache, [(keys, values)] with (1, n_head, P, D) each -> the same without position i: P - 1 positions."""
    raise NotImplementedError


# %%
without_row = checks.check_without_row(without_row)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def without_row(cache, i):
#     return [tuple(torch.cat([x[:, :, :i], x[:, :, i + 1 :]], dim=2) for x in pair) for pair in cache]
# ```
# </details>


# %% tags=["measured"]
@torch.no_grad()
def loss_without(cache, i, batch):
    tokens, targets, answer = batch  # (B, T) each
    P, T = cache[0][0].size(2), tokens.size(1)
    # behind P - 1 positions run() counts from P - 1: take these positions out, and put P, P + 1, ... in
    x = model.wte(tokens) + model.wpe.weight[P : P + T] - model.wpe.weight[P - 1 : P - 1 + T]  # (B, T, C)
    hidden, _ = model.run(x, without_row(cache, i))
    return model.loss(hidden[answer], targets[answer]).item()


asked = task.examples(32, seed=1)
batch = as_batch(encode(tokenizer, asked))
start = HybridPrefix(model, n_random=24, trigger=one, seed=0)  # the same prompt before tuning
began = [*["at random"] * n_random, *[repr(tokenizer.decode([t])) for t in one]]
whole, cost, top = {}, {}, {}
for name, prompt in ("before", start), ("tuned", tuned):
    with torch.no_grad():
        whole[name] = prompt.loss(model, *batch).item()
        cache = prompt.past(model)
    cost[name] = [loss_without(cache, i, batch) - whole[name] for i in range(P)]
    top[name] = sorted(range(P), key=lambda i: -cost[name][i])[:5]
    print(f"{name}: loss {whole[name]:.4f} with all rows; the rows that cost most:")
    for i in top[name]:
        print(f"  row {i:>2}, which began {began[i]:<9} {cost[name][i]:+.4f}")

# %% [markdown]
# ## Looking into a prompt, 3: where the answer looks
#
# Attention weights say which rows the answer reads, head by head, on average over the answer's tokens.

# %% tags=["figure-rows"]
looks = torch.tensor(attention_to_rows(tuned, model, tokenizer, asked)["rows"]).flatten(0, 1)  # (n_layer * n_head, P)
labels = ["·", *letters(tokenizer.decode(one))]  # the 24 random rows are one column: the largest number of them
fig, (over, under) = plt.subplots(2, 1, figsize=(6.6, 6.4), height_ratios=(1, 1.6), sharex=True)
for name, color, width in ("before", GRAY, 0.9), ("tuned", RED, 0.5):
    bars = [max(cost[name][:n_random]), *cost[name][n_random:]]
    over.bar(range(len(bars)), bars, color=color, width=width, label=name)
over.set(ylabel="added loss", title="rows switched off one by one")
over.legend(loc="upper left")
columns = torch.cat([looks[:, :n_random].amax(1, keepdim=True), looks[:, n_random:]], dim=1)
under.imshow(columns, aspect="auto", cmap="Blues", vmin=0)
under.set_yticks(range(0, len(looks), model.config.n_head), range(1, model.config.n_layer + 1))
under.set(title=f"attention of the answer, darkest: {columns.max():.0%}", ylabel="layer, a line for each head")
under.set_xticks(range(len(labels)), labels, fontsize=11)
under.set_xlabel("where the row began; · the largest of the random rows")
plt.show()

# %% tags=["measured"]
random_rows, example_rows = looks[:, :n_random].sum(1).mean(), looks[:, n_random:].sum(1).mean()
print(f"of the answer's attention {random_rows:.0%} go to random rows and {example_rows:.0%} to the example's")
both = torch.stack([torch.tensor(cost["tuned"]), looks.mean(0)])  # (2, P)
correlation = torch.corrcoef(both)[0, 1].item()
print(f"correlation of a row's cost with the attention it gets: {correlation:.2f}")

# %% [markdown]
# A few rows do nearly all the work, before tuning and after it. Those that cost most began as
# {{listed(began[i] for i in top["before"][:2])}} before, and as {{listed(began[i] for i in top["tuned"][:3])}} after:
# places where the format turns, where a line ends and the question follows, where the sum begins, where the answer
# ends. Without the first of them the tuned prompt's loss rises from {{whole["tuned"]:.4f}} to
# {{whole["tuned"] + cost["tuned"][top["tuned"][0]]:.2f}}. Without any one of the 24 random rows it rises by at most
# {{max(0, max(cost["tuned"][:n_random])):.4f}}. This fits what the table said: the prompt tells the *format*.
#
# Two warnings. A row may be worth nothing because another one says the same, so switching off one at a time misses
# such pairs. And attention is no measure of worth: the correlation of the two is {{correlation:.1f}}, and some rows
# that many heads look at can be taken out at no cost. Attention says how much is read from a row, not what that does.
#
# ## What to read next
#
# - `train_task.py`: the whole job in one file, with all contenders measured before and after: `python train_task.py
#   --task addition`. Its loop warms the learning rate up, lets it fall, and keeps what held-out questions choose.
# - Lester et al. (2021), [The Power of Scale for Parameter-Efficient Prompt
#   Tuning](https://arxiv.org/abs/2104.08691), section 7, on what the nearest words of a prompt say.
# - Jain & Wallace (2019), [Attention is not Explanation](https://arxiv.org/abs/1902.10186).
# - Lesson 3: where a prompt begins, and whether that decides how it does on longer sums.
