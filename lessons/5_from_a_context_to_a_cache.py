# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Lesson 5. From a context to a cache, and one model for many tasks
#
# **Goal.** You can make a short cache that stands in for a long context, without a single label. You can let one
# frozen model answer many tasks in one batch, keep prompts as files that other libraries read, and let several
# prompts vote.
#
# About 50 minutes: 20 to read, 30 for three exercises. The cells run for a minute on two idle cores. You need lesson 2.
# (The numbers in the text are those of one run. Another machine may end a few questions higher or lower.)

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
import random
import tempfile

import matplotlib.pyplot as plt
import torch

import tasks
from data.batches import encode, pad
from data.tokenizer import Tokenizer
from eval.accuracy import generate_answers, score
from eval.contexts import as_text
from files.errors import UserError
from files.weights import load_model, save_model
from generate import generate
from lessons import checks
from lessons.drawing import BLUE, GRAY, GREEN, RED
from prefix import DeepPrefix, TextPrompt
from research.peft import export_peft
from run.prompts import load_prefix, save_prefix
from train_task import evaluate, train

model = load_model("nano-2").freeze()
tokenizer = Tokenizer.load(model.folder, model.config.vocab_size, "bytes")

# %% [markdown]
# ## A long context is expensive
#
# Each question that is asked behind eight worked examples attends to all of their positions, in every layer, and their
# cache has to lie in memory. Can eight rows do the same?

# %%
task = tasks.load("word_reversal")
examples = task.examples(1000, split="train")
tests = {name: task.examples(50, name) for name in task.ranges}
eight = tokenizer.encode_task(as_text(examples[:8]))
print(as_text(examples[:8]))


def megabytes(positions):
    return positions * model.config.n_layer * 2 * model.config.n_embd * 4 / 1e6


print(f"eight examples: {len(eight)} positions, a cache of {megabytes(len(eight)):.2f} MB in float32")
print(f"eight rows: 8 positions, {megabytes(8):.2f} MB")

# %% [markdown]
# **Context distillation.** The frozen model with the eight examples in its context is the *teacher*. The *student* is
# the same model behind eight rows, keys and values in every layer. The teacher continues questions in its own words,
# and the student's rows learn to give each next token the probability that the teacher gives it:
#
# $$ \mathcal{L} = \mathrm{mean}\; \mathrm{KL}\big(p(\cdot \mid \text{examples}, x)\;\|\;
# p(\cdot \mid \text{rows}, x)\big) $$
#
# No label is read: where the teacher is wrong, the student learns to be wrong. The project calls the method
# `cartridge`, after Eyuboglu et al. (2025), who do it for long documents.
#
# ### Exercise 1. The divergence (medium, 10 minutes)
#
# KL(p || q) is the sum over the vocabulary of p (log p - log q). Return its mean over N positions, in nats. p is the
# teacher's distribution.
#
# <details><summary>Hint</summary>
#
# `x.log_softmax(-1)` are logarithms of probabilities, and `.exp()` of them are probabilities.
# </details>


# %% tags=["exercise"]
def divergence(teacher, student):
    """Logits of teacher and student, (N, vocab_size) each -> the mean of KL(teacher || student) over N, ()."""
    raise NotImplementedError


# %%
divergence = checks.check_divergence(divergence)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def divergence(teacher, student):
#     log_p, log_q = teacher.log_softmax(-1), student.log_softmax(-1)
#     return (log_p.exp() * (log_p - log_q)).sum(-1).mean()
# ```
#
# `log_softmax` and not `softmax().log()`: a probability may round to 0, and its logarithm is then minus infinity.
# </details>

# %% [markdown]
# The eight rows begin as the keys and values of the context's first eight tokens, which are `reverse(` and no more. In
# each step the teacher continues eight questions, drawing each token with the probability that it gives it, and your
# divergence compares the two on what it wrote. Beside the student stands a prefix of the same size and the same start
# that learns from labels.

# %% tags=["measured"]
table, answers = {}, {}


def measure(name, method):
    accuracy, answers[name] = evaluate(method, model, tokenizer, task, tests, name)
    table[name] = [100 * a["correct"] / a["n"] for a in accuracy.values()]
    print(f"{name:<34}" + "".join(f"{percent:>16.0f}" for percent in table[name]))


print(f"{'final-answer accuracy, %':<34}" + "".join(f"{name:>16}" for name in tests))
one = tokenizer.encode_task(as_text(task.worth_showing(examples, 1)))
measure("eight examples as text", TextPrompt(model, trigger=eight))
measure("one example as text", TextPrompt(model, trigger=one))
student = DeepPrefix(model, trigger=eight[:8])
learner = DeepPrefix(model, trigger=eight[:8])
measure("eight rows, before", student)

# %% tags=["measured"]
encoded = encode(tokenizer, examples[8:])  # [(question tokens, answer tokens)]
stop = [tokenizer.encode_task(task.stop)]
with torch.no_grad():
    text = model.prefill(torch.tensor([eight]))  # what the teacher has read
optimizer = torch.optim.AdamW(student.parameters(), lr=0.02, weight_decay=0)
losses = []
for i in range(0, len(encoded), 8):
    questions = [question for question, _ in encoded[i : i + 8]]  # the labels are not read
    written = generate(model, questions, 12, text, stop=stop, temperature=1.0, seed=i)
    tokens, _, answer = pad(list(zip(questions, written)))  # (B, T) each
    with torch.no_grad():
        teacher = model.logits(model(tokens, text)[answer])  # (N, vocab_size)
    loss = divergence(teacher, model.logits(model(tokens, student.past(model))[answer]))
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    losses.append(loss.item())
measure("eight rows, distilled", student)
train(learner, model, encoded, epochs=1, batch_size=8, lr=0.02, dtype=torch.float32, seed=0)
measure("eight rows, tuned on labels", learner)

# %% tags=["figure-distillation"]
fig, (over, under) = plt.subplots(2, 1, figsize=(6.4, 6.6), height_ratios=(1, 1.4))
over.plot(range(8, 8 * len(losses) + 1, 8), losses, color=RED)
over.set(yscale="log", xlabel="questions seen", ylabel="nats per token", title="divergence from the teacher")
for name, color in zip(table, (GRAY, GREEN, "#e8b4b8", RED, BLUE)):
    label = name.replace(" as ", "\nas ").replace(", ", ",\n")
    positions = len(eight) if "eight examples" in name else len(one) if "one" in name else 8
    under.barh(label, positions, color=color)
    under.text(positions + 2, label, f"{min(table[name]):.0f}%", va="center")
under.invert_yaxis()
under.set(xlim=(0, 1.4 * len(eight)), xlabel="positions", title="size of the cache, and what is right behind it")
plt.show()

# %% [markdown]
# The eight rows begin at {{listed(table["eight rows, before"])}}% and end at
# {{listed(table["eight rows, distilled"])}}%, without a single label. Their teacher, with {{len(eight)}} positions
# instead of 8, is right in {{listed(table["eight examples as text"])}}%, and the same rows tuned on labels in
# {{listed(table["eight rows, tuned on labels"])}}%.
#
# Look at the green bar before you celebrate. One worked example as text is right in
# {{listed(table["one example as text"])}}%: on this task the long context was never needed. What distillation saves is
# the cache, 8 positions instead of {{len(one)}} or {{len(eight)}}.
#
# ## One model, many tasks, one batch
#
# A prompt is a cache, and a batch may have a cache for each row. The frozen model is in memory once, whatever the
# number of tasks. Caches of different length are brought to one length by empty positions at their beginning, which
# are hidden by the mask.
#
# ### Exercise 2. Stack caches (medium, 15 minutes)
#
# Write it for the keys of one layer; values are stacked in the same way.
#
# <details><summary>Hint</summary>
#
# `torch.nn.functional.pad(x, (0, 0, n, 0))` puts n rows of zeros before the rows of x, and `torch.cat` joins along the
# batch.
# </details>


# %% tags=["exercise"]
def stack(keys):
    """keys: a list of B tensors, (1, n_head, P_i, D) -> one tensor (B, n_head, P, D) with P the longest of them, zeros
    at the beginning of shorter ones; and how many positions are empty in each, a tensor (B)."""
    raise NotImplementedError


# %%
stack = checks.check_stack(stack)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def stack(keys):
#     longest = max(x.size(2) for x in keys)
#     empty = torch.tensor([longest - x.size(2) for x in keys])
#     pad = torch.nn.functional.pad
#     return torch.cat([pad(x, (0, 0, longest - x.size(2), 0)) for x in keys]), empty
# ```
#
# Zeros are not enough: a key of zeros has the score 0 and would get its share of the softmax. That is what the counts
# are for.
# </details>

# %% [markdown]
# Three tasks, three prompts: the distilled rows, and a worked example of each of two other tasks as text. Your stacked
# caches go to the project's `generate`. What is answered in one batch is what each answers alone.

# %% tags=["measured"]
prompts, questions = [student], ["reverse(banana)="]
for name in "addition", "last_letter":
    other = tasks.load(name)
    shown, asked = other.worth_showing(other.examples(50, split="train"), 1), other.examples(1)[0]
    prompts.append(TextPrompt(model, trigger=tokenizer.encode_task(as_text(shown))))
    questions.append(asked.question)
with torch.no_grad():
    pasts = [prompt.past(model) for prompt in prompts]
past = []
for pairs in zip(*pasts):  # the (keys, values) of one layer, a pair for each prompt
    (keys, past_pad), (values, _) = (stack(list(tensors)) for tensors in zip(*pairs))
    past.append((keys, values))
print(f"caches of {[p[0][0].size(2) for p in pasts]} positions -> keys {tuple(past[0][0].shape)}")
print(f"empty positions: {past_pad.tolist()}\n")
asked = [tokenizer.encode_task(question) for question in questions]
together = generate(model, asked, 60, past, past_pad, stop=stop)
for question, tokens, own, answer in zip(questions, asked, pasts, together):
    alone = generate(model, [tokens], 60, own, stop=stop)[0]
    print(f"{question}{tokenizer.decode(answer)}   the same alone: {alone == answer}")

# %% [markdown]
# ## Prompts as files
#
# A prompt's file holds its numbers, and says which base and tokenizer it belongs to. It is refused on a base that
# differs in a single weight: rows mean nothing to weights that they were not tuned on.

# %%
folder = Path(tempfile.mkdtemp())
save_prefix(student, folder / "reversal.safetensors", model, tokenizer, task=task.name, stop=task.stop)
print(f"{(folder / 'reversal.safetensors').stat().st_size / 1e3:.0f} KB")
again, header = load_prefix(folder / "reversal.safetensors", model, tokenizer)
print(f"{header['method']} for {header['base']} ({header['base_fingerprint']}), task {header['task']}")
print("the same numbers:", torch.equal(again.embeddings(), student.embeddings()))
try:
    other = load_model("nano-2")
    other.wte.weight.data[0, 0] += 1  # one of five million numbers
    load_prefix(folder / "reversal.safetensors", other, tokenizer)
except UserError as error:
    print("on another base:", str(error).partition(" was ")[2].partition(": ")[0])

# %% [markdown]
# PEFT, the library that most people use for prompts, reads the same numbers. `python -m research.peft export RUN DIR`
# does what the next cell does; it compares the logits, if transformers and PEFT are installed.

# %%
export_peft(student, model, folder / "adapter")
print(sorted(path.name for path in (folder / "adapter").iterdir()))
try:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM
except ImportError:
    print("PEFT or transformers is not installed: nothing to compare with")
else:
    save_model(model, folder / "base")  # in the layout of the hub
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder / "base"), folder / "adapter").eval()
    tokens = torch.tensor(asked[:1])
    with torch.no_grad():
        ours, other = model.logits(model(tokens, pasts[0])), theirs(input_ids=tokens).logits[:, -tokens.size(1) :]
    print(f"largest difference of logits from PEFT's: {(ours - other).abs().max():.1e}")

# %% [markdown]
# ## Voting
#
# Several prompts may answer one question, and the answer that most of them give is taken. It costs no second model,
# only rows in the batch.
#
# ### Exercise 3. The vote (easy, 5 minutes)
#
# Where two answers get equally many votes, the one that was given first in the list wins.
#
# <details><summary>Hint</summary>
#
# `finals.count(answer)` says how often an answer was given. `max` takes a `key`.
# </details>


# %% tags=["exercise"]
def vote(finals):
    """finals: the final answers of several prompts, a list of texts -> the one with the most votes."""
    raise NotImplementedError


# %%
vote = checks.check_vote(vote)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def vote(finals):
#     return max(finals, key=finals.count)
# ```
#
# `max` returns the first of several largest. `max(set(finals), ...)` would not do: a set has no order, and which
# answer wins a tie would change from run to run.
# </details>

# %% [markdown]
# Five worked examples of addition, each as a prompt of its own, on sums of 8 digits. Nothing is tuned.

# %% tags=["measured"]
addition = tasks.load("addition")
longest = [e for e in addition.examples(400, split="train") if e.length == 4]
voters = [TextPrompt(model, trigger=tokenizer.encode_task(as_text([e]))) for e in random.Random(0).sample(longest, 5)]
asked = addition.examples(60, "8 digits")
with torch.no_grad():
    pasts = [prompt.past(model) for prompt in voters]
encoded = encode(tokenizer, asked)
texts = [generate_answers(model, past, tokenizer, addition, encoded) for past in pasts]
alone = [100 * score(addition, asked, some)["correct"] / len(asked) for some in texts]
finals = zip(*[[addition.final_answer(text) for text in some] for some in texts])  # the five answers to each question
winners = [vote(list(five)) for five in finals]
together = 100 * sum(winner == addition.final_answer(e.answer) for winner, e in zip(winners, asked)) / len(asked)
print(f"each alone:   {', '.join(f'{percent:.0f}%' for percent in alone)}")
print(f"their mean:   {sum(alone) / len(alone):.0f}%")
print(f"the vote:     {together:.0f}%")

# %% [markdown]
# Alone they are right in {{listed(alone)}}% of 60 questions, {{sum(alone) / len(alone):.0f}}% on average, and together
# in {{together:.0f}}%. A vote helps where errors are independent. These voters share one frozen model, and lose their
# place in the same long numbers.
#
# ## What to read next
#
# - Eyuboglu et al. (2025), [Cartridges](https://arxiv.org/abs/2506.06266); Snell et al. (2022), [Learning by
#   Distilling Context](https://arxiv.org/abs/2209.15189).
# - Lester et al. (2021), [Prompt Tuning](https://arxiv.org/abs/2104.08691), section 6, on ensembles of prompts.
# - `sample.py`, `research/peft.py` and `generate.py` of this project: all of this as commands.
# - You have seen the whole project. A method or a task of your own is one file: see
#   [README](../README.md#your-task-method-data-and-base).
