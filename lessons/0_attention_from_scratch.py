# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Lesson 0. Attention and a cache from scratch
#
# **Goal.** You have written a head of attention and its KV cache, and you have seen a row in that cache that no text
# wrote. That row is what all other lessons are about.
#
# | part | minutes |
# | --- | --- |
# | 1. A text becomes vectors | 5 |
# | 2. Queries and keys: who looks at whom (exercise 1) | 10 |
# | 3. No look into the future (exercise 2) | 10 |
# | 4. Values: what is read (exercise 3) | 8 |
# | 5. The cache (exercise 4) | 12 |
# | 6. A row that no text wrote | 5 |
#
# **You need** Python, and to know what the product of two matrices is: (T, D) times (D, S) is (T, S). You need not
# have seen a transformer. Everything runs in seconds. Terms in *italics* are explained in
# [docs/words.md](../docs/words.md).

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
import matplotlib.pyplot as plt
import torch

from lessons import checks
from lessons.drawing import GRAY, RED, grid

# %% [markdown]
# ## 1. A text becomes vectors
#
# A language model reads *tokens* and guesses, at each of them, the token that comes next. Our text has **8 tokens**:
# a start token `#` and seven letters. Our *vocabulary* has five tokens.

# %%
text, vocabulary = "#kitekit", "#kite"
tokens = torch.tensor([vocabulary.index(letter) for letter in text])  # (T)
T, V = len(text), len(vocabulary)
print(tokens.tolist())

# %% [markdown]
# You have guessed that an `e` comes next. You did it by looking back: this `t` has been here before, and behind it
# stood an `e`. We build a head of attention that does the same.
#
# Each token becomes a vector of C = 10 numbers. The first five say which token it is: a 1 in its place, else 0. The
# last five say which token stood before it. In a real network, vectors begin as *embeddings*, learned numbers, and
# lower layers write into them what stood before. We write it in by hand, so that every number can be read.

# %% tags=["figure-toy-vectors"]
this = torch.eye(V)[tokens]  # (T, V)
before = torch.cat([torch.zeros(1, V), this[:-1]])  # (T, V), the same one place later
x = torch.cat([this, before], dim=1)  # (T, C)
C = x.size(1)

fig, axis = plt.subplots(figsize=(6, 4.2))
grid(axis, x, list(text), list(vocabulary * 2), "{:.0f}")
axis.axvline(V - 0.5, color=RED)
axis.set(title="x (T, C): this token | the token before it", ylabel="position in the text")
plt.show()

# %% [markdown]
# ## 2. Queries and keys: who looks at whom
#
# Attention asks at each position: *which positions are worth reading?* Each position makes three vectors of D numbers
# out of its own x, by three matrices that a real network learns.
#
# - its **query** says what it looks for,
# - its **key** says what it can be found by,
# - its **value** says what is read where it is found.
#
# The head that we build finds the places *behind* an earlier copy of the token that it stands at, and reads which token
# is there. So a query is the first half of x, "my token"; a key is the second half, "the token before me"; and a value
# is the first half again. The query is multiplied by 10: the larger the numbers, the surer the choice.

# %%
D, zero, one = V, torch.zeros(V, V), torch.eye(V)  # (V, V): nothing, and each number where it stands
W_q = torch.cat([10 * one, zero])  # (C, D)
W_k = torch.cat([zero, one])  # (C, D)
W_v = torch.cat([one, zero])  # (C, D)
q, k, v = x @ W_q, x @ W_k, x @ W_v  # (T, D) each
print(f"x {tuple(x.shape)} -> q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}")

# %% [markdown]
# The **score** of a query and a key is their dot product: the sum of the products of their numbers. It is large where
# both have something in the same places. All scores are divided by the square root of D, which keeps
# their size the same however wide a head is.
#
# ### Exercise 1. Scores (easy, 5 minutes)
#
# Row i, column j of the result is the score of query i and key j. One line is enough.
#
# <details><summary>Hint</summary>
#
# A product of two matrices is a table of dot products: of each row of the first with each *column* of the second.
# `k.T` turns rows into columns.
# </details>


# %% tags=["exercise"]
def scores(q, k):
    """q (T, D), k (S, D) -> the dot product of each query and each key, divided by sqrt(D), (T, S)."""
    raise NotImplementedError


# %%
scores = checks.check_scores(scores)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def scores(q, k):
#     return q @ k.T / q.size(1) ** 0.5
# ```
# </details>

# %% tags=["figure-toy-scores"]
fig, axis = plt.subplots(figsize=(5.6, 5))
grid(axis, scores(q, k), list(text), list(text), "{:.1f}")
axis.set(title="scores (T, T)", ylabel="who looks (query)", xlabel="who is looked at (key)")
plt.show()

# %% [markdown]
# Read the last row: the `t` at the end looks at the `e`, which stands behind the other `t`. Now read the second row:
# the first `k` looks at the `i` behind it. That is the letter that it should *guess*.
#
# ## 3. No look into the future
#
# At each position the model has to guess the next token. If it may read that token, there is nothing to guess, and at
# the end of a text, where we need the guess, there is nothing to read. So a position may look at itself and at what
# stands before it. All other scores are set to minus infinity: this is the **mask**.
#
# ### Exercise 2. The mask (medium, 8 minutes)
#
# <details><summary>Hint</summary>
#
# `torch.ones(T, T, dtype=torch.bool).triu(1)` is True above the diagonal. `masked_fill(where, value)` returns a tensor
# with other numbers where the mask is True.
# </details>


# %% tags=["exercise"]
def causal(scores):
    """scores (T, T) -> the same, with -inf where a key stands later than the query."""
    raise NotImplementedError


# %%
causal = checks.check_causal(causal)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def causal(scores):
#     future = torch.ones(scores.shape, dtype=torch.bool).triu(1)
#     return scores.masked_fill(future, -torch.inf)
# ```
# </details>

# %% [markdown]
# The **softmax** turns a row of scores into *weights*: it takes e to the power of each, and divides by their sum. So
# weights are positive and a row adds up to 1. A score of minus infinity becomes a weight of exactly 0.

# %% tags=["figure-toy-weights"]
fig, axes = plt.subplots(1, 2, figsize=(6.6, 3.9), sharey=True)
for axis, s, title in zip(axes, (scores(q, k), causal(scores(q, k))), ("without a mask", "with the mask")):
    grid(axis, 100 * s.softmax(-1), list(text), list(text), "{:.0f}")
    axis.set(title=f"{title}, %", xlabel="who is looked at")
axes[0].set_ylabel("who looks")
plt.show()

# %% [markdown]
# Right of the diagonal nothing is left. The first time that a letter comes, nothing behind it is known, so the weights
# are spread evenly over what came before. The second time, the head knows where to look.
#
# ## 4. Values: what is read
#
# What a position reads is a mean of all values, each with its weight. Here a value is a 1 in the place of a token, so
# the mean is a row of probabilities, one for each token of the vocabulary.
#
# ### Exercise 3. A head of attention (easy, 5 minutes)
#
# Put it together: scores, mask, softmax, mean of the values. Use your `scores` and `causal`.
#
# <details><summary>Hint</summary>
#
# A mean with weights is a product of two matrices again: `weights @ v`. The softmax of each row is `.softmax(-1)`.
# </details>


# %% tags=["exercise"]
def attention(q, k, v):
    """q, k and v (T, D) -> what each position reads, (T, D)."""
    raise NotImplementedError


# %%
attention = checks.check_attention(attention)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def attention(q, k, v):
#     weights = causal(scores(q, k)).softmax(-1)  # (T, T)
#     return weights @ v  # (T, D)
# ```
# </details>

# %% tags=["figure-toy-output"]
y = attention(q, k, v)  # (T, D)
fig, axis = plt.subplots(figsize=(5, 4.8))
grid(axis, y, list(text), list(vocabulary), "{:.2f}")
axis.set(title="what each position reads (T, D)", ylabel="position", xlabel="the next token is ...")
plt.show()
print(f"behind {text!r} comes {vocabulary[y[-1].argmax()]!r}, with {y[-1].max():.2f}")

# %% [markdown]
# Behind the second `k` the head says `i`, behind the second `i` it says `t`, and at the end it says `e` with
# {{y[-1].max():.2f}}. It has never been told a word: it copies from its own text. Heads that do this form in nearly
# every language model (Olsson et al. 2022 call them *induction heads*). Lesson 1 shows one of nano-2 at work.
#
# A real model has several heads side by side in each layer, and between two layers of attention an MLP that works on
# each position alone. nano-2 has 6 layers of 4 heads. Nothing in the rest of this lesson changes with that.
#
# ## 5. The cache
#
# Now write: take the likeliest token, put it behind the text, go on. Must all positions be computed again? Look at the
# mask: an earlier position does not see the new token. So its key and its value are what they were. We keep them, and
# for each new token compute one query, one key and one value. The kept keys and values are the **KV cache**.
#
# ### Exercise 4. One more token (medium, 10 minutes)
#
# The new token's query reads the cache *and the token itself*. Return the longer cache too.
#
# <details><summary>Hint</summary>
#
# Put the new key below the old ones with `torch.cat([keys, k])`, then the same with the values. No mask is needed:
# everything in the cache stands before the new token.
# </details>


# %% tags=["exercise"]
def step(q, k, v, cache):
    """q, k and v (1, D) of a new token; cache: keys (P, D) and values (P, D) -> what it reads, (1, D), and the cache
    of P + 1 positions."""
    raise NotImplementedError


# %%
step = checks.check_step(step)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def step(q, k, v, cache):
#     keys, values = cache
#     keys, values = torch.cat([keys, k]), torch.cat([values, v])  # (P + 1, D)
#     weights = scores(q, keys).softmax(-1)  # (1, P + 1)
#     return weights @ values, (keys, values)
# ```
# </details>

# %%
empty = torch.zeros(0, D), torch.zeros(0, D)  # nothing has been read yet


def read(x, cache):
    """A token's vector x (1, C) -> what the head reads there (1, D), and the longer cache."""
    return step(x @ W_q, x @ W_k, x @ W_v, cache)


cache, outputs = empty, []
for t in range(T):
    y_t, cache = read(x[t : t + 1], cache)
    outputs.append(y_t)
print("token by token the head reads the same:", (torch.cat(outputs) - y).abs().max().item() < 1e-6)


def vector(token, last):
    """x of a token behind the token `last`, (1, C)."""
    return torch.cat([torch.eye(V)[token], torch.eye(V)[last]])[None]


written, last = "", tokens[-1]
for _ in range(5):
    token = y_t[0].argmax()  # the likeliest
    written += vocabulary[token]
    y_t, cache = read(vector(token, last), cache)
    last = token
print(f"{text} -> {text + written}")

# %% tags=["figure-toy-cache"]
longer = text + written
fig, axes = plt.subplots(1, 2, figsize=(6.4, 6), sharey=True)
for axis, part, name in zip(axes, cache, ("keys", "values")):
    grid(axis, part, list(longer), list(vocabulary), "{:.0f}")
    axis.axhline(T - 0.5, color=RED)
    axis.set(title=f"{name} ({len(part)}, {D})")
axes[0].set_ylabel("the text  |  what was written")
plt.show()

# %% [markdown]
# Each written token added one row. Without a cache a head makes a whole table of scores for each token that it writes;
# with one it makes a row. For a text of 1,000 tokens these are {{sum(t**2 for t in range(1001)) / 1e6:.0f}} million
# scores and {{sum(range(1001)) / 1e6:.1f}} million.
#
# ## 6. A row that no text wrote
#
# Where does the new token look? Into the cache, and nowhere else. **So whatever is in the cache acts like a text that
# has been read, whoever put it there.** Ask the head what comes behind `i`, with an empty cache. Then put one row
# into the cache by hand: a key that is found by `i`, and the value `k`.

# %%
i = vocabulary.index("i")
alone, _ = read(vector(i, 0), empty)
by_hand = torch.eye(V)[[i]], torch.eye(V)[[vocabulary.index("k")]]  # a key (1, D) and a value (1, D)
behind, _ = read(vector(i, 0), by_hand)
print("behind an empty cache: ", {c: round(p, 2) for c, p in zip(vocabulary, alone[0].tolist())})
print("behind a row by hand:  ", {c: round(p, 2) for c, p in zip(vocabulary, behind[0].tolist())})

# %% [markdown]
# What if a text stands behind the row? Both are in one softmax, so the row takes weight from the text. Here a row says
# that `k` comes behind `t`, and the text says `e`.

# %% tags=["figure-toy-prefix"]
row = torch.eye(V)[[vocabulary.index("t")]]  # a key that is found by t
without = scores(q[-1:], k).softmax(-1)[0]  # (T), of the last t
with_row = scores(q[-1:], torch.cat([row, k])).softmax(-1)[0]  # (1 + T)
a = with_row[0].item()  # the weight that goes to the row
fig, axis = plt.subplots(figsize=(6, 3.4))
axis.bar(range(1, T + 1), without, color=GRAY, width=0.8, label="the text alone")
axis.bar(range(T + 1), with_row, color=RED, width=0.4, label="behind the row")
axis.set_xticks(range(T + 1), ["the\nrow", *text])
axis.set(title="where the last t looks", ylabel="weight", ylim=(0, 1))
axis.legend(loc="upper left", bbox_to_anchor=(0.1, 1))
plt.show()
shares = (with_row[1:] / without).tolist()
print(f"weight on the row: a = {a:.2f}; each weight on the text times {min(shares):.4f} to {max(shares):.4f}")

# %% [markdown]
# Each weight on the text is multiplied by the same number, 1 - a = {{1 - a:.2f}}. In one head, a row can turn down what
# is read from the text and add something of its own. It cannot turn the head to another place of the text. Lesson 4
# asks what that means for a whole network.
#
# One more step and we have the subject of the course. The row's numbers need not come from a hand either. We begin with
# random ones, ask for `k` behind `i`, and let the *gradient* change the row. The three matrices of the head stay as
# they are: they are *frozen*.

# %% tags=["figure-toy-learned"]
rng = torch.Generator().manual_seed(0)
key, value = torch.randn(1, D, generator=rng), torch.randn(1, D, generator=rng)
key, value = torch.nn.Parameter(key), torch.nn.Parameter(value)
begin = key.detach().clone(), value.detach().clone()
optimizer, losses = torch.optim.AdamW([key, value], lr=0.05, weight_decay=0), []
wanted = torch.tensor([vocabulary.index("k")])
for _ in range(100):
    y_i, _ = read(vector(i, 0), (key, value))
    loss = torch.nn.functional.cross_entropy(y_i, wanted)  # what is read serves as logits
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    losses.append(loss.item())

fig, axes = plt.subplot_mosaic([["loss", "loss"], ["the row at first", "the row, tuned"]], figsize=(6.4, 5))
axes["loss"].plot(losses, color=RED)
axes["loss"].set(title="loss (nats)", xlabel="step", ylim=0)
for title, (k_row, v_row) in ("the row at first", begin), ("the row, tuned", (key, value)):
    grid(axes[title], torch.cat([k_row, v_row]).detach(), ["key", "value"], list(vocabulary), "{:.1f}")
    axes[title].set(title=title)
plt.show()

# %% [markdown]
# The key grew at `i`, so that this row is found, and the value grew at `k`, so that `k` is read. The loss fell from
# {{losses[0]:.2f}} to {{losses[-1]:.2f}} *nats*. Nothing was written into the head: it is steered by one row of
# {{key.numel() + value.numel()}} numbers in its cache. That is a **soft prompt**.
#
# ## What to read next
#
# - Vaswani et al. (2017), [Attention Is All You Need](https://arxiv.org/abs/1706.03762), section 3.2.
# - Olsson et al. (2022), [In-context Learning and Induction Heads](https://arxiv.org/abs/2209.11895).
# - `Attention.attend` in `model.py`: the same lines for a batch of texts and several heads.
# - Lesson 1: a cache is a prompt.
