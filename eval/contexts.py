"""Baselines without tuning: the best worked examples that a context holds, and a classifier of word frequencies."""

import math
import random

import torch
from tqdm import tqdm

from data.batches import encode
from eval.accuracy import count_exact


def as_text(examples):
    """Worked examples as they stand in a context, each on a line of its own."""
    return "".join(f"{e.question}{e.answer}".rstrip("\n") + "\n" for e in examples)


def best_context(model, tokenizer, task, examples, max_tokens, seed=0, draws=2, n_questions=100, quiet=False):
    """Search the best few-shot context of at most max_tokens. Returns its tokens and a dict that describes it; [] and
    None if no candidate fits.

    Candidates hold k = 1, 2, 4 or 8 training examples of the longest length or of mixed lengths, in several random
    draws; the example that a prompt starts from is one of them. Each is scored on up to n_questions other training
    examples, those most worth showing, since tests may be longer still: most exact matches first, then the lowest loss
    in nats per answer token.
    """
    rng, most = random.Random(f"context {seed}"), max(e.length for e in examples)
    longest = [e for e in examples if e.length == most]
    drawn = [(1, "longest", task.worth_showing(examples, 1))]
    for k in (1, 2, 4, 8):
        for lengths, pool in (("longest", longest), ("mixed", examples)):
            drawn += [(k, lengths, rng.sample(pool, k)) for _ in range(draws) if k <= len(pool)]
    best_tokens, best, best_score = [], None, ()
    asked = task.worth_showing(examples, len(examples))
    for k, lengths, shots in tqdm(drawn, "best context", unit=" candidates", disable=quiet):
        text = as_text(shots)
        tokens = tokenizer.bos + tokenizer.encode_task(text)
        questions = [e for e in asked[: n_questions + k] if e not in shots][:n_questions]
        if len(tokens) > max_tokens or not questions:
            continue
        past = model.prefill(torch.tensor([tokens], device=model.wte.weight.device))
        exact, loss = count_exact(model, past, encode(tokenizer, questions))
        if not math.isfinite(loss):  # here, before all else is measured with such a network
            raise FloatingPointError(f"the loss of {model.name} behind a worked example is infinite or NaN")
        n = len(questions)
        if (exact / n, -loss) > best_score:
            best_tokens, best_score = tokens, (exact / n, -loss)
            best = {"text": text, "shots": k, "lengths": lengths, "exact_match": exact, "n": n, "loss": loss}
    return best_tokens, best


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
