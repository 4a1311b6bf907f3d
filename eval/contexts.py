"""Baselines without tuning: the best worked examples that a context holds, and a classifier of word frequencies."""

import math
import random

import torch
from tqdm import tqdm

from data.batches import encode
from eval.accuracy import exact_answers


def as_text(examples):
    """Worked examples as they stand in a context, each on a line of its own."""
    return "".join(f"{e.question}{e.answer}".rstrip("\n") + "\n" for e in examples)


def best_context(
    model, tokenizer, task, examples, max_tokens, seed=0, draws=2, n_questions=100, max_read=1e9, quiet=False
):
    """Search the best few-shot context of at most max_tokens. Returns its tokens, a dict that describes it, and the
    list of all candidates; [] and None if no candidate fits.

    Candidates hold k = 1, 2, 4 or 8 training examples of the longest length or of mixed lengths, in several random
    draws; the example that a prompt starts from is one of them. Each is scored on the other training examples that are
    most worth showing, since tests may be longer still: most exact matches first, then the lowest loss in nats per
    answer token. All are asked a few, the better half more, and so on up to n_questions, in rounds that read about
    max_read tokens together. Successive halving: Jamieson & Talwalkar (2016), "Non-stochastic Best Arm Identification
    and Hyperparameter Optimization".
    """
    rng, most = random.Random(f"context {seed}"), max(e.length for e in examples)
    longest = [e for e in examples if e.length == most]
    drawn, left = [(1, "longest", task.worth_showing(examples, 1))], []
    for k in (1, 2, 4, 8):
        for lengths, pool in (("longest", longest), ("mixed", examples)):
            drawn += [(k, lengths, rng.sample(pool, k)) for _ in range(draws) if k <= len(pool)]
    asked = task.worth_showing(examples, n_questions + 8)
    for k, lengths, shots in drawn:
        text = as_text(shots)
        tokens = tokenizer.bos + tokenizer.encode_task(text)
        questions = [e for e in asked if e not in shots][:n_questions]
        if len(tokens) <= max_tokens and questions:
            left.append(({"shots": k, "lengths": lengths}, text, tokens, encode(tokenizer, questions)))
    if not left:
        return [], None, []
    found, rounds, n = [about for about, *_ in left], max(1, int(math.log2(len(left)))), 0
    while n < n_questions and (len(left) > 1 or n == 0):
        contexts = sum(len(tokens) for _, _, tokens, _ in left)
        each = sum(len(question + answer) for question, answer in left[0][3]) / len(left[0][3]) * len(left)
        n = min(n_questions, max(n + 1, int((max_read / rounds - contexts) / each)))
        for about, _, tokens, questions in tqdm(left, f"best context, {n} questions", disable=quiet, leave=False):
            exact, loss = exact_match(model, tokens, questions[:n])
            about |= {"exact_match": exact, "n": len(questions[:n]), "loss": loss}
        left.sort(key=lambda one: (-one[0]["exact_match"] / one[0]["n"], one[0]["loss"]))
        del left[max(1, len(left) // 2) :]
    about, text, tokens, _ = left[0]
    return tokens, about | {"text": text}, found


def exact_match(model, context, encoded):
    """How many answers the model writes exactly after a context (tokens), and the mean loss per answer token."""
    past = model.prefill(torch.tensor([context], device=model.wte.weight.device))
    exact, _, losses = zip(*exact_answers(model, past, encoded))
    return torch.cat(exact).sum().item(), torch.cat(losses).mean().item()


def tfidf(task, examples, questions):
    """The answers of logistic regression on TF-IDF word features, or None without scikit-learn."""
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
    except ImportError:
        return None
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    classifier = make_pipeline(words, LogisticRegression(C=10, max_iter=1000))
    classifier.fit([e.question for e in examples], [task.final_answer(e.answer) for e in examples])
    return [task.answer_line(label) for label in classifier.predict([e.question for e in questions])]
