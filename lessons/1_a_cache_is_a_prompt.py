# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Lesson 1. A cache is a prompt
#
# **Goal.** You can say, with shapes, what GPT-2 does with a text. You have seen that words in front of a question,
# their embeddings, and their keys and values are the same thing to the network. And you know why tuning a prompt
# touches P x C numbers and nothing else.
#
# About 55 minutes: 20 to read, 35 for four exercises. The cells run in seconds. You need some PyTorch, and attention:
# [lesson 0](0_attention_from_scratch.ipynb) builds it on a toy.
#
# The base is `nano-2`, a small GPT-2 that lies in this repository, so that nothing is downloaded. It was pretrained on
# novels and on worked examples of skills, such as addition and the reversal of words, in formats that were drawn at
# random. Nothing that it has read is in a format of our tasks. It is the better of two seeds
# ([its card](../data/nano-2/README.md)).

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

from data.tokenizer import Tokenizer
from eval.attention import attention_weights
from files.weights import fingerprint, load_model
from lessons import checks
from lessons.drawing import attention_map, letters

model = load_model("nano-2").freeze()
tokenizer = Tokenizer.load(model.folder, model.config.vocab_size)
c = model.config
print(c)
print(f"{sum(p.numel() for p in model.parameters()):,} parameters")

# %% [markdown]
# ## From text to logits
#
# A language model reads token numbers, not letters. nano-2 has {{c.vocab_size:,}} tokens. `encode` cuts a text into the
# longest tokens that fit, and `encode_bytes` makes a token of every byte. This project gives its tasks to the model as
# bytes: a word that has to be turned around should arrive letter by letter.

# %%
question = "reverse(stone)="
print([tokenizer.decode([t]) for t in tokenizer.encode(question)])
print([tokenizer.decode([t]) for t in tokenizer.encode_bytes(question)])
tokens = torch.tensor([tokenizer.encode_bytes(question)])  # (B, T)
print(tuple(tokens.shape), tokens.tolist())

# %% [markdown]
# Five letters name every size in this project. **B** is the batch, the number of texts. **T** is the number of tokens,
# and **P** the number of positions of a prompt in front of them. **C** is the width of the network, `n_embd`. A head of
# attention is **D** = C / n_head wide.
#
# The table `wte` has a row of C numbers for each token, its *embedding*, and `wpe` one for each position. Their sum
# enters the first block. Each block first lets positions read one another (attention), then works on each position
# alone (an MLP). In each head a position has a query (what it looks for), a key (what others find it by) and a value
# (what they read from it). At the end each position has a *hidden state*, C numbers, and `model.logits` makes of it a
# score for each token of the vocabulary, its *logit*. A softmax of the logits gives probabilities.

# %%
x = model.wte(tokens) + model.wpe(torch.arange(tokens.size(1)))
print(f"embeddings      {tuple(x.shape)} = (B, T, C)")
q, k, v = model.h[0].attn.qkv(model.h[0].ln_1(x))
print(f"q, k, v         {tuple(q.shape)} = (B, n_head, T, D) in each of {c.n_layer} layers")
hidden = model(tokens)
print(f"hidden states   {tuple(hidden.shape)} = (B, T, C) after the last block")
logits = model.logits(hidden)
print(f"logits          {tuple(logits.shape)} = (B, T, vocab_size)")

# %% [markdown]
# The logits at position t are scores of what comes *after* position t. So the next token of the text is read off the
# last position, and what the other positions say is about tokens that are there already.
#
# ### Exercise 1. The next token (easy, 5 minutes)
#
# Write the function that returns the logits of the next token, `(vocab_size)`.
#
# <details><summary>Hint</summary>
#
# `model(tokens)` gives hidden states (1, T, C). You need those of one position only.
# </details>


# %% tags=["exercise"]
def next_token_logits(model, tokens):
    """model: a GPT. tokens (1, T) -> logits of the token that follows, (vocab_size)."""
    raise NotImplementedError


# %%
next_token_logits = checks.check_next_token_logits(next_token_logits)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def next_token_logits(model, tokens):
#     hidden = model(tokens)  # (1, T, C)
#     return model.logits(hidden[0, -1])  # (vocab_size)
# ```
#
# `model.logits(model(tokens))[0, -1]` is also correct, but slower: it makes logits of all T positions to keep those of
# one.
# </details>

# %% [markdown]
# ## Something in front of the question
#
# Your function is all that it takes to write: append the likeliest token, and again. What does nano-2 answer, and what
# does it answer behind one worked example?


# %%
def continue_text(text, n=8):
    tokens = torch.tensor([tokenizer.encode_bytes(text)])  # (1, T)
    for _ in range(n):
        likeliest = next_token_logits(model, tokens).argmax()
        tokens = torch.cat([tokens, likeliest.view(1, 1)], dim=1)  # (1, T + 1)
    return tokenizer.decode(tokens[0, -n:].tolist())


example = "reverse(lamp)=pmal$\n"
print("alone:               ", repr(continue_text(question)))
print("behind the example:  ", repr(continue_text(example + question)))

# %% [markdown]
# Did the example teach nano-2 to reverse words? No: it learned that in pretraining, on words that were turned around in
# other formats. Alone, the question does not say that this is wanted. **The example tells which of the things that
# nano-2 can do is wanted, and in which format.** Keep this in mind through all lessons: a prompt that begins as a
# worked example owes most of its accuracy to that example.
#
# ## Three ways to say the same
#
# The example can stand in front of the question in three ways.
#
# 1. **As text**: its tokens, then those of the question.
# 2. **As embeddings**: P rows of C numbers. The network adds positions and goes on as before. `model.run` is what
#    `model(tokens)` calls; it takes embeddings as well, and returns hidden states and the cache: `hidden, _`.
# 3. **As keys and values**: `model.prefill` runs the example once and keeps what its positions leave in each layer, a
#    *KV cache*. The question then attends to the cache.

# %%
words = torch.tensor([tokenizer.encode_bytes(example)])  # (1, P)
P, T = words.size(1), tokens.size(1)

text = model(torch.cat([words, tokens], dim=1))[:, P:]  # (1, T, C), the hidden states of the question

rows = torch.cat([model.wte(words), model.wte(tokens)], dim=1)  # (1, P + T, C)
hidden, _ = model.run(rows)
embeddings = hidden[:, P:]  # (1, T, C)

cache = model.prefill(words)  # n_layer pairs of keys and values, (1, n_head, P, D) each
keys_and_values = model(tokens, cache)  # (1, T, C)

keys, values = cache[0]
print(f"the cache: {len(cache)} layers, in each keys {tuple(keys.shape)} and values {tuple(values.shape)}\n")
for name, hidden in ("as text", text), ("as embeddings", embeddings), ("as keys and values", keys_and_values):
    logits = model.logits(hidden[0, -1])  # (vocab_size)
    difference = (logits - model.logits(text[0, -1])).abs().max().item()
    print(f"{name:<20} next: {tokenizer.decode([logits.argmax().item()])!r}, largest difference {difference:.5f}")

# %% [markdown]
# The logits are the same, up to the last digits of float32. This is no accident. In GPT-2 a position sees only those
# before it, so the question cannot change what the example computed. And the only place where one position reads
# another is attention, which reads keys and values. **Whatever stands in front of a question reaches it as a KV
# cache, and in no other way.**
#
# That is the idea of this project. Few-shot examples, an instruction, trained rows, trained keys and values: each is
# a thing that makes a cache. The network that reads the question need not know which one it was.
#
# ### Exercise 2. Where the question stands (easy, 5 minutes)
#
# Positions are added to the embeddings before keys are made, so each key in the cache has its position in it. Which
# positions do the T tokens of a question have behind a cache of P?
#
# <details><summary>Hint</summary>
#
# The positions of the cache are 0, 1, ..., P - 1.
# </details>


# %% tags=["exercise"]
def positions_behind(P, T):
    """The positions of T tokens behind a cache of P positions: a tensor of T whole numbers."""
    raise NotImplementedError


# %%
positions_behind = checks.check_positions_behind(positions_behind)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def positions_behind(P, T):
#     return torch.arange(P, P + T)
# ```
#
# A decoder that counts from 0 again gives answers that look almost right. It is a classic mistake with caches.
# </details>

# %% [markdown]
# ## How a question reads a cache
#
# One head of attention, for one text. The question has T queries, and there are P + T keys: P of the cache, T of its
# own.
#
# $$ y = \mathrm{softmax}\!\left(\frac{q\,[K_{past};\,K]^\top}{\sqrt{D}} + \mathrm{mask}\right) [V_{past};\,V] $$
#
# The semicolon puts one below the other. Query t may look at all P rows of the cache and at the question's own
# positions 0 to t. The mask is 0 there, and minus infinity elsewhere, so that the softmax gives those a weight of 0.
#
# ### Exercise 3. One head (medium, 15 minutes)
#
# Write the formula.
#
# <details><summary>Hint</summary>
#
# `torch.ones(T, T, dtype=torch.bool).triu(1)` is True where a position of the question would look at a later one of its
# own. `scores.masked_fill(where, -torch.inf)` fills in, and `torch.cat` puts things behind one another.
# </details>


# %% tags=["exercise"]
def head(q, k, v, past_k, past_v):
    """q, k and v (T, D) of a question; past_k and past_v (P, D) of a cache -> what the head puts out, (T, D)."""
    raise NotImplementedError


# %%
head = checks.check_head(head)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def head(q, k, v, past_k, past_v):
#     T, D = q.shape
#     own = (q @ k.T).masked_fill(torch.ones(T, T, dtype=torch.bool).triu(1), -torch.inf)  # (T, T)
#     scores = torch.cat([q @ past_k.T, own], dim=1) / D**0.5  # (T, P + T)
#     return scores.softmax(-1) @ torch.cat([past_v, v])  # (T, D)
# ```
#
# One softmax runs over both parts. So weight that goes to the prompt is taken from the question's own tokens: lesson
# 4 draws conclusions from that.
# </details>

# %% [markdown]
# With your positions and your head the whole of GPT-2 is a few lines. They put out what `model` does.


# %%
def read_behind(tokens, cache):
    """Tokens (1, T), a cache of P positions -> hidden states (1, T, C)."""
    P, T = cache[0][0].size(2), tokens.size(1)
    x = model.wte(tokens) + model.wpe(positions_behind(P, T))  # (1, T, C)
    for block, (past_k, past_v) in zip(model.h, cache):
        q, k, v = block.attn.qkv(block.ln_1(x))  # (1, n_head, T, D) each
        heads = [head(q[0, i], k[0, i], v[0, i], past_k[0, i], past_v[0, i]) for i in range(c.n_head)]
        x = x + block.attn.c_proj(torch.cat(heads, dim=-1).to(x.dtype))  # (T, C) is added to (1, T, C)
        x = x + block.mlp(block.ln_2(x))
    return model.ln_f(x)


difference = (read_behind(tokens, cache) - model(tokens, cache)).abs().max().item()
print(f"{c.n_layer * c.n_head} times your head: largest difference from the model's hidden states {difference:.6f}")

# %% [markdown]
# ## The picture to keep
#
# nano-2 writes `enots$` behind the example. These are the weights of two of its heads. A row of the picture is a
# position of the question and its answer, a column is what it looks at. Left of the red line is the cache.

# %% tags=["figure-two-heads"]
answer = "enots$"
text = torch.tensor([tokenizer.encode_bytes(question + answer)])
weights = torch.cat(list(attention_weights(model, text, cache)))  # (n_layer, n_head, T, P + T)

fig, axes = plt.subplots(2, 1, figsize=(6.4, 7.6))
heads = (2, 3, "follows the example, one ahead"), (4, 1, "walks the word backwards")
for axis, (layer, number, what) in zip(axes, heads):
    attention_map(axis, weights[layer, number], letters(question + answer), letters(example + question + answer), P)
    axis.set_title(f"layer {layer + 1}, head {number + 1}: {what}")
axes[1].set_xlabel("cache of the example  |  question and answer")
plt.show()

# %% [markdown]
# The first head keeps its place in the example, one place ahead: from `)` it looks at the `=` of the example, from `=`
# at the first letter behind it, and from `$` at the end of the line. It does what your head of lesson 0 did: it is an
# induction head. The second one hardly looks at the example while
# `enots` is written, and walks backwards through `stone`. The left block is all that a prompt can change directly.
# Everything that prompt tuning achieves, it achieves by what stands in those P columns, layer by layer.
#
# We chose these two because they are easy to read. Most of the {{c.n_layer * c.n_head}} heads are not: `weights` holds
# them all.
#
# ## What can be trained
#
# Freeze the network. Put P rows of C numbers where embeddings would stand, and treat them as the parameters. The loss
# is the usual one, the cross-entropy of the next tokens. Its gradient flows through the frozen network back to the
# rows.

# %%
print(f"frozen                                   {sum(p.numel() for p in model.parameters()):>9,} numbers")
print(f"rows at the input, P x C                 {P * c.n_embd:>9,} for P = {P}")
print(f"keys and values, P x layers x 2 x C      {P * c.n_layer * 2 * c.n_embd:>9,}")

# %% [markdown]
# Rows may be any numbers, so there are far more prompts of rows than prompts of words: rows need not be the
# embeddings of anything. Keys and values of each layer may even be ones that no rows at the input could produce.
#
# ### Exercise 4. The gradient of a prompt (medium, 10 minutes)
#
# Return the gradient of the mean loss over all positions of a batch, by the rows.
#
# <details><summary>Hint</summary>
#
# Three things to think of: `model.prefill` takes a batch, `(1, P, C)`; `model.loss(hidden, targets)` takes `(N, C)` and
# `(N)`; and the rows are a plain tensor that does not ask for a gradient yet.
# </details>


# %% tags=["exercise"]
def gradient_of_rows(model, rows, tokens, targets):
    """A frozen model; rows (P, C); tokens and targets (B, T) -> the gradient of the mean loss by the rows, (P, C)."""
    raise NotImplementedError


# %%
gradient_of_rows = checks.check_gradient_of_rows(gradient_of_rows)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def gradient_of_rows(model, rows, tokens, targets):
#     rows.requires_grad_(True)
#     past = model.prefill(rows[None])  # from (1, P, C)
#     hidden = model(tokens, past)  # (B, T, C)
#     loss = model.loss(hidden.flatten(0, 1), targets.flatten())
#     loss.backward()
#     return rows.grad  # (P, C)
# ```
#
# The prompt goes through the network once, with batch 1, and all B questions read the same cache.
# </details>

# %% [markdown]
# Some steps against your gradient, on one text, to see it work. The rows begin as a worked example whose answer is
# wrong on purpose: it repeats the word. The network's fingerprint says whether any of its weights has changed.

# %%
before = fingerprint(model)
wrong = tokenizer.encode_bytes("reverse(lamp)=lamp$\n")
rows = model.wte.weight[wrong].clone()  # (P, C)
whole = torch.tensor([tokenizer.encode_bytes(question + answer)])  # (1, T + 1)
inputs, targets = whole[:, :-1], whole[:, 1:]  # (1, T) each


def written(rows):
    return tokenizer.decode(model.generate(tokens, 6, model.prefill(rows[None]))[0].tolist())


print("before:      ", repr(written(rows)))
for step in range(1, 6):
    rows = rows - 0.2 * gradient_of_rows(model, rows.clone(), inputs, targets)
    print(f"after step {step}:", repr(written(rows)))
print("weights of the network unchanged:", fingerprint(model) == before)

# %% [markdown]
# One answer is memorized in a few steps, and that says nothing about other questions: whether tuned rows answer
# what they have never seen is the subject of lesson 2.
#
# ## What to read next
#
# - `model.py` of this project, `Attention.attend` and `GPT.prefill`: the code that you have just rebuilt.
# - Lester et al. (2021), [The Power of Scale for Parameter-Efficient Prompt
#   Tuning](https://arxiv.org/abs/2104.08691), section 2; Li & Liang (2021),
#   [Prefix-Tuning](https://arxiv.org/abs/2101.00190), section 4.
# - Lesson 2: sixty-five rows learn addition, or do they?
