"""What a tuned prompt has to beat: the best worked examples that the context holds, and simple text classifiers."""

import random

import torch

from data.batches import encode, training_batches


def as_text(examples):
    """Worked examples as they stand in a context, one on each line."""
    return "".join(f"{e.question}{e.answer}".rstrip("\n") + "\n" for e in examples)


def best_context(model, tokenizer, task, examples, max_tokens, seed=0, draws=4, n_questions=100):
    """The best few-shot context out of k = 1, 2, 4 and 8 training examples, of the longest length and of mixed
    lengths, several draws of each. The example that a prompt begins as is one of the candidates.

    Contexts are compared on up to n_questions other training examples: the one with the most exact matches wins, and
    among equals the one with the lower loss. Contexts of more than max_tokens are left out.

    Returns (tokens of the best, what it is, a list of all candidates); tokens are [] where none fits.
    """
    rng = random.Random(f"context {seed}")
    longest = [e for e in examples if e.length == max(e.length for e in examples)]
    drawn = [(1, "longest", task.worth_showing(examples, 1))]
    for k in (1, 2, 4, 8):
        for lengths, pool in (("longest", longest), ("mixed", examples)):
            drawn += [(k, lengths, rng.sample(pool, k)) for _ in range(draws) if k <= len(pool)]
    candidates, best, best_tokens = [], None, []
    for k, lengths, shots in drawn:
        tokens = tokenizer.bos + tokenizer.encode_task(as_text(shots))
        questions = [e for e in examples[: n_questions + k] if e not in shots][:n_questions]
        if len(tokens) > max_tokens or not questions:
            continue
        exact, loss = exact_match(model, tokens, encode(tokenizer, questions))
        candidates.append({"shots": k, "lengths": lengths, "exact_match": exact, "n": len(questions), "loss": loss})
        score = exact / len(questions), -loss
        if best is None or score > best:
            best, best_tokens, chosen = score, tokens, candidates[-1] | {"text": as_text(shots)}
    return best_tokens, chosen if best else None, candidates


@torch.no_grad()
def exact_match(model, context, encoded):
    """How many answers the model would write exactly, greedily, behind a context (tokens), and the mean loss.

    One pass does it: an answer is exact if each of its tokens is the likeliest after those before it.
    """
    device = model.wte.weight.device
    past = model.prefill(torch.tensor([context], device=device))
    exact, losses = 0, []
    for tokens, targets, answer in training_batches(encoded, 32, random.Random(0)):
        tokens, targets, answer = tokens.to(device), targets.to(device), answer.to(device)  # (B, T) each
        log_p = model.logits(model(tokens, past)[answer]).float().log_softmax(-1)  # (N, vocab_size)
        wrong = torch.zeros_like(answer)
        wrong[answer] = log_p.argmax(-1) != targets[answer]
        exact += len(tokens) - wrong.any(1).sum().item()
        losses.append(-log_p.gather(1, targets[answer][:, None]))  # (N, 1)
    return exact, torch.cat(losses).mean().item()


def majority(task, questions):
    """The answer that is most frequent in training, to every question: [text]."""
    return [task.answer_line(task.majority)] * len(questions)


def tfidf(task, examples, questions):
    """Word frequencies and logistic regression, the cheapest rival on classes: [text], or None without scikit-learn."""
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
