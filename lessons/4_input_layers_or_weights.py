# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Lesson 4. At the input, in every layer, or in the weights
#
# **Goal.** You know the main ways to steer a frozen model, by what each trains and where it acts, and you have seen
# them on a skill that the model never met. You can say what a prefix can and cannot move in one head of attention, and
# why that is no proof that a prompt can teach nothing.
#
# About 55 minutes: 20 to read, 35 for four exercises. The cells run for two minutes on two idle cores. You need lesson
# 2. (The numbers in the text are those of one run. Another machine may end a few questions higher or lower.)

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

import tasks
from data.batches import encode
from data.tokenizer import Tokenizer
from eval.attention import attention_weights
from eval.contexts import as_text
from files.weights import load_model
from lessons import checks
from lessons.drawing import BLUE, GRAY, GREEN, RED
from methods import METHODS
from prefix import TextPrompt, block_linears, share_weights
from tasks import IN_DISTRIBUTION, Task
from train_task import evaluate, train

model = load_model("nano-2").freeze()
tokenizer = Tokenizer.load(model.folder, model.config.vocab_size, "bytes")
layers, C = model.config.n_layer, model.config.n_embd

# %% [markdown]
# ## Five ways to steer a frozen model
#
# | method | what is trained | where it acts |
# | --- | --- | --- |
# | prompt tuning (Lester et al. 2021) | rows of C numbers | at the input |
# | P-tuning v2 (Liu et al. 2022) | keys and values | in every layer |
# | prefix-tuning (Li & Liang 2021) | an MLP that makes keys and values | in every layer |
# | LLaMA-Adapter (Zhang et al. 2023) | rows, and a gate for each head | in upper layers, with their own softmax |
# | LoRA (Hu et al. 2021) | two thin matrices for each weight matrix | in the weights themselves |
#
# The first three make a KV cache and leave the network as it is. LLaMA-Adapter adds the output of a second attention,
# behind a gate that starts at 0. LoRA is no prompt: it changes what the network does with every token.
#
# ### Exercise 1. How many numbers (easy, 10 minutes)
#
# Count the trained numbers of prompt tuning and of P-tuning v2 with P rows, and those of LoRA of rank r on all four
# matrices of each block. These matrices map C to 3C (queries, keys, values), C to C, C to 4C and 4C to C. LoRA gives
# a matrix from n_in to n_out two matrices, (r, n_in) and (n_out, r).
#
# <details><summary>Hint</summary>
#
# A cache has keys *and* values in every layer. LoRA's two matrices have r n_in + n_out r numbers: add them up over the
# four, then over the layers.
# </details>


# %% tags=["exercise"]
def count_numbers(P, C, n_layer, r):
    """-> (prompt tuning, P-tuning v2, LoRA): three whole numbers."""
    raise NotImplementedError


# %%
count_numbers = checks.check_count_numbers(count_numbers)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def count_numbers(P, C, n_layer, r):
#     shapes = [(C, 3 * C), (C, C), (C, 4 * C), (4 * C, C)]
#     lora = n_layer * sum(r * (n_in + n_out) for n_in, n_out in shapes)
#     return P * C, P * n_layer * 2 * C, lora
# ```
# </details>

# %% [markdown]
# ## A skill that nano-2 knows, and one that it never saw
#
# `reverse(lamp)=pmal$` is a skill that nano-2 learned in other formats. The next task is in no document that it has
# read: each digit becomes the next one, and 9 becomes 0. A task is a class with one function. All methods learn both
# from 640 examples. The prompts have 20 rows, none of which begins as a worked example, so that all of them start from
# next to nothing.


# %%
class NextDigit(Task):
    name, unit, ranges = "next_digit", "digits", {IN_DISTRIBUTION: (3, 6)}

    def example(self, rng, length, new_words=False):
        number = "".join(rng.choice("0123456789") for _ in range(length))
        return f"next({number})=", "".join(str((int(digit) + 1) % 10) for digit in number) + "$"


seen, unseen = tasks.load("word_reversal"), NextDigit()
passes = {seen: 1, unseen: 4}  # over the 640 examples
tests = {task: task.examples(50) for task in passes}

# %%
names = "prompt", "ptuning2", "prefix", "adapter-prefix", "lora"
rates = {"prompt": 0.01, "ptuning2": 0.02, "prefix": 0.003, "adapter-prefix": 0.01, "lora": 0.003}
table, curves, tuned, as_text_alone = {}, {}, {}, {}


def measure(task, method):
    accuracy, _ = evaluate(method, model, tokenizer, task, {"in": tests[task]}, method.label)
    return 100 * accuracy["in"]["correct"] / accuracy["in"]["n"]


for task in seen, unseen:
    examples = task.examples(640, split="train")
    one = tokenizer.encode_task(as_text(task.worth_showing(examples, 1)))
    as_text_alone[task] = measure(task, TextPrompt(model, trigger=one))
    for name in names:
        method = METHODS[name](model, n_random=20, seed=0)
        start = measure(task, method)
        encoded = encode(tokenizer, examples)
        curves[task, name] = train(method, model, encoded, passes[task], 8, rates[name], torch.float32, seed=0)
        table[task, name], tuned[task, name] = (start, measure(task, method)), method

# %% tags=["measured"]
print(f"{'':<24}{'your count':>12}{'trained':>10}{'reversal, before > after':>28}{'next digit, before > after':>30}")
counts = dict(zip(("prompt", "ptuning2", "lora"), count_numbers(20, C, layers, 8)))
for name in names:
    numbers = sum(p.numel() for p in tuned[seen, name].parameters() if p.requires_grad)
    (a, b), (c, d) = table[seen, name], table[unseen, name]
    count = f"{counts[name]:,}" if name in counts else ""
    print(f"{tuned[seen, name].label:<24}{count:>12}{numbers:>10,}{f'{a:.0f} > {b:.0f}':>28}{f'{c:.0f} > {d:.0f}':>30}")
print(f"{'one example as text':<46}{as_text_alone[seen]:>28.0f}{as_text_alone[unseen]:>30.0f}")

# %% tags=["figure-seen-unseen"]
fig, axes = plt.subplots(1, 2, figsize=(6.6, 4.8), sharey=True)
titles = "reversal: known\nin other formats", "next digit:\nnever seen"
for axis, task, title in zip(axes, (seen, unseen), titles):
    for name, color in zip(names, (RED, BLUE, "#6fa8dc", GREEN, "black")):
        losses = curves[task, name]["loss"]
        n = min(8, len(losses))
        smooth = [sum(losses[i : i + n]) / n for i in range(len(losses) - n + 1)]
        axis.plot(curves[task, name]["examples"][n - 1 :], smooth, color=color, label=tuned[seen, name].label)
    axis.set(yscale="log", xlabel="examples seen", title=title)
axes[0].set_ylabel("loss (nats per answer token)")
fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=12)
plt.show()

# %% [markdown]
# **On reversal** none of them ends below {{min(table[seen, name][1] for name in names):.0f}}% after one pass, however
# many numbers they train. One example as text is right in {{as_text_alone[seen]:.0f}}%, so there was nothing to win
# over it.
#
# **On the next digit** one example as text is right in {{as_text_alone[unseen]:.0f}}%: there is nothing to call up.
# After four passes LoRA is at {{table[unseen, "lora"][1]:.0f}}%, prefix-tuning at {{table[unseen, "prefix"][1]:.0f}}%,
# keys and values tuned directly at {{table[unseen, "ptuning2"][1]:.0f}}%, LLaMA-Adapter at
# {{table[unseen, "adapter-prefix"][1]:.0f}}%, and rows at the input at {{table[unseen, "prompt"][1]:.0f}}%. So methods
# that are alike on a known skill differ on a new one, in how soon they learn it.
#
# The same on the alphabet, `next(dog)=eph$`, with 4,000 examples and one seed
# ([docs/results/unseen_skill.md](../docs/results/unseen_skill.md)): after five passes LoRA is right in
# {{finding("unseen_skill", "next_letter", "lora, 5 passes", "in-distribution"):.0f}}%, keys and values in every layer
# in {{finding("unseen_skill", "next_letter", "ptuning2, 5 passes", "in-distribution"):.0f}}%, and rows at the input in
# {{finding("unseen_skill", "next_letter", "hybrid, 5 passes", "in-distribution"):.0f}}%.
#
# ## What a prefix can move in one head
#
# Take one head of attention and one position. Without a prefix it puts out y, a mean of the question's values with
# weights w. With a prefix, the softmax runs over P more scores. Let a be the weight that goes to the prefix, all of
# its rows together. Then the weights of the question's own tokens are all multiplied by 1 - a, and nothing else
# happens to them:
#
# $$ y' = (1-a)\, y + \sum_{i \le P} a_i\, v_i, \qquad a = \sum_{i \le P} a_i $$
#
# So a prefix can do two things in this head: turn down what the head read from the question, and add a mixture of its
# own values. **It cannot change which of the question's tokens weigh more than which.** That is the observation of
# Petrov et al. (2023).
#
# ### Exercise 2. The weight on the prefix (easy, 5 minutes)
#
# From a table of weights, such as the heat map of lesson 1, read off a for each head and position.
#
# <details><summary>Hint</summary>
#
# A row of weights adds up to 1. Its first P entries are the prefix's.
# </details>


# %% tags=["exercise"]
def weight_on_prefix(weights, P):
    """weights (n_head, T, P + T), of which the first P columns are the prefix -> a, (n_head, T)."""
    raise NotImplementedError


# %%
weight_on_prefix = checks.check_weight_on_prefix(weight_on_prefix)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def weight_on_prefix(weights, P):
#     return weights[:, :, :P].sum(-1)
# ```
# </details>

# %% [markdown]
# ### Exercise 3. From y to y' (medium, 10 minutes)
#
# Compute what the head puts out with the prefix, from what it puts out without it.
#
# <details><summary>Hint</summary>
#
# a is a number for each of the T positions, y has a row of D numbers for each: `keepdim=True` keeps a in the shape
# (T, 1), so that it multiplies whole rows. The sum over i is a product of matrices.
# </details>


# %% tags=["exercise"]
def with_prefix(y, weights, past_v):
    """y (T, D): the head without a prefix; weights (T, P + T): those with it; past_v (P, D): the prefix's values
    -> y' (T, D), without the question's values."""
    raise NotImplementedError


# %%
with_prefix = checks.check_with_prefix(with_prefix)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def with_prefix(y, weights, past_v):
#     P = len(past_v)
#     behind = weights[:, :P]  # (T, P)
#     a = behind.sum(-1, keepdim=True)  # (T, 1)
#     return (1 - a) * y + behind @ past_v
# ```
# </details>

# %% [markdown]
# ## The picture to keep
#
# Now look at nano-2 itself. We ask one question with and without the tuned prefix of P-tuning v2, at the same
# positions, and compare how each head divides its attention among the question's own tokens. First your two functions:
# in layer 1 they turn what each head puts out without the prefix into what it puts out with it.

# %%
prompt = tuned[seen, "ptuning2"]
with torch.no_grad():
    past = prompt.past(model)
P = prompt.n_rows()
tokens = torch.tensor([tokenizer.encode_task("reverse(stone)=enots$")])  # (1, T)
T = tokens.size(1)
# the same positions without a prefix: run() gives the question 0, ...: take these out and put P, ... in
x = model.wte(tokens) + model.wpe.weight[P : P + T] - model.wpe.weight[:T]  # (1, T, C)
without = torch.cat(list(attention_weights(model, x)))  # (n_layer, n_head, T, T)
whole = torch.cat(list(attention_weights(model, tokens, past)))  # (n_layer, n_head, T, P + T)
own = whole[..., P:] / whole[..., P:].sum(-1, keepdim=True)  # (n_layer, n_head, T, T), divided by 1 - a
adapted = tuned[seen, "lora"].network(model)
lora = torch.cat(list(attention_weights(adapted, x)))  # (n_layer, n_head, T, T)

*_, values = model.h[0].attn.qkv(model.h[0].ln_1(model.wte(tokens) + model.wpe.weight[P : P + T]))  # (1, n_head, T, D)
past_values = past[0][1]  # (1, n_head, P, D)
difference = 0
for i in range(model.config.n_head):
    y = without[0, i] @ values[0, i]  # (T, D), the head without the prefix
    expected = whole[0, i] @ torch.cat([past_values[0, i], values[0, i]])  # (T, D), with it
    difference = max(difference, (with_prefix(y, whole[0, i], past_values[0, i]) - expected).abs().max().item())
print(f"layer 1, all heads: largest difference of your y' from the model's {difference:.5f}")

# %% [markdown]
# Each dot is one weight on a token of the question: without the prefix, and with it, divided by 1 - a. If a prefix
# cannot change the proportions, all dots lie on the diagonal.

# %% tags=["figure-diagonal"]
lower = torch.ones(T, T, dtype=torch.bool).tril()
fig, axes = plt.subplots(2, 2, figsize=(6, 6.2), sharex=True, sharey=True)
panels = [(f"prefix, layer {n + 1}", own[n], without[n]) for n in (0, 1, layers - 1)]
for axis, (title, y, x) in zip(axes.flat, [*panels, ("LoRA, layer 1", lora[0], without[0])]):
    axis.plot([0, 1], [0, 1], color=GRAY, lw=1)
    axis.plot(x[:, lower].flatten(), y[:, lower].flatten(), ".", color=RED if "prefix" in title else "black", ms=3)
    axis.set(title=title, aspect="equal")
fig.supxlabel("weight without it")
fig.supylabel("weight with it, among the question's tokens")
plt.show()

# %% tags=["measured"]
for n in range(layers):
    moved, by_lora = (own[n] - without[n]).abs().max().item(), (lora[n] - without[n]).abs().max().item()
    a = weight_on_prefix(whole[n], P).mean().item()
    print(f"layer {n + 1}: mean weight on the prefix {a:.2f}; largest change {moved:.6f}, by LoRA {by_lora:.4f}")

# %% [markdown]
# In layer 1 the dots lie on the diagonal, as the formula says: the queries and keys of the question are made of its
# embeddings, which no prefix touches. From layer 2 on they leave it. The prefix has changed what layer 1 puts out,
# and the queries and keys of layer 2 are made of that. **One head cannot be redirected by a prefix. A stack of layers
# can.** LoRA changes the weights that make queries and keys, so it leaves the diagonal in layer 1.
#
# So the observation on one head says what is hard for a prompt, not what is impossible. Petrov et al. (2023) conclude
# that a prompt calls up skills that the model has, and can hardly make it learn a new pattern of attention. Petrov et
# al. (2024) prove beside it that for a suitable transformer, prefixes are universal approximators: with enough rows
# they can make it compute any continuous function. Which of the two describes a given model is a question for
# measurement: the table above is one.
#
# ## LoRA
#
# ### Exercise 4. A layer with a low-rank update (medium, 10 minutes)
#
# $$ y = W x + \frac{\alpha}{r} B A x $$
#
# <details><summary>Hint</summary>
#
# Here a text's positions are the rows of x, so W x becomes `x @ W.T`. r is the number of rows of A.
# </details>


# %% tags=["exercise"]
def lora_linear(x, W, A, B, alpha):
    """x (T, n_in), W (n_out, n_in), A (r, n_in), B (n_out, r) -> y (T, n_out)."""
    raise NotImplementedError


# %%
lora_linear = checks.check_lora_linear(lora_linear)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def lora_linear(x, W, A, B, alpha):
#     return x @ W.T + alpha / len(A) * (x @ A.T) @ B.T
# ```
#
# `(x @ A.T) @ B.T` and not `x @ (B @ A).T`: the second makes a matrix as large as W in each step.
# </details>

# %% [markdown]
# Your layer in the place of all matrices of nano-2, with the A and B that were tuned on reversal:

# %%
twin, trained = share_weights(model), tuned[seen, "lora"]
for (_, linear), A, B in zip(block_linears(twin), trained.A, trained.B):
    linear.forward = lambda x, W=linear.weight, b=linear.bias, A=A, B=B: (
        lora_linear(x[0], W, A, B, 16.0).to(x.dtype)[None] + b
    )
with torch.no_grad():
    difference = (twin(tokens) - adapted(tokens)).abs().max().item()
print(f"{len(trained.A)} times your layer: largest difference from the project's hidden states {difference:.5f}")

# %% [markdown]
# ## What to read next
#
# - Petrov et al. (2023), [When Do Prompting and Prefix-Tuning Work?](https://arxiv.org/abs/2310.19698), sections 4
#   and 5; Petrov et al. (2024), [Prompting a Pretrained Transformer Can Be a Universal
#   Approximator](https://arxiv.org/abs/2402.14753).
# - He et al. (2022), [Towards a Unified View of Parameter-Efficient Transfer
#   Learning](https://arxiv.org/abs/2110.04366): prefix-tuning, adapters and LoRA as one family.
# - [docs/results/methods.md](../docs/results/methods.md): each method on five tasks, with starts, the best context, and
#   baselines that get the same example.
# - Lesson 5: from a context to a cache, and one model for many tasks.
