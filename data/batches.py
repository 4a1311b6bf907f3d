"""Examples to tensors: padded batches for training, batches of similar length for measuring."""

import torch


def encode(tokenizer, examples):
    """[Example] -> [(question tokens, answer tokens)]."""
    return [(tokenizer.encode_task(e.question), tokenizer.encode_task(e.answer)) for e in examples]


def training_batches(encoded, batch_size, rng, skip=0):
    """One epoch in random order, without the first `skip` batches. Yields tokens (B, T), targets (B, T) and answer
    (B, T), True where the target belongs to the answer: the loss looks there only.

    Rows of the same length go together, so that next to nothing is padding. `rng` is a random.Random, from which as
    much is drawn whatever is skipped.
    """
    order = rng.sample(range(len(encoded)), len(encoded))
    order.sort(key=lambda j: sum(map(len, encoded[j])))  # stable: random among those of one length
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    rng.shuffle(batches)
    for rows in batches[skip:]:
        yield pad([encoded[j] for j in rows])


def pad(encoded):
    """[(question tokens, answer tokens)] -> tokens, targets and answer, (B, T) each, as `training_batches` yields."""
    B = len(encoded)
    T = max(sum(map(len, pair)) for pair in encoded) - 1
    tokens, targets = torch.zeros(B, T, dtype=torch.long), torch.zeros(B, T, dtype=torch.long)
    answer = torch.zeros(B, T, dtype=torch.bool)
    for row, (question, reply) in enumerate(encoded):
        n = len(question) + len(reply) - 1
        # padding stands behind the text, so that causal attention never reads it
        tokens[row, :n] = torch.tensor((question + reply)[:-1])
        targets[row, :n] = torch.tensor((question + reply)[1:])
        answer[row, len(question) - 1 : n] = True
    return tokens, targets, answer


def by_length(lengths, most_tokens):
    """Yields batches of indices of texts with these lengths, the shortest first. A batch has at most `most_tokens`
    tokens after padding to its longest text; a longer text is a batch by itself."""
    batch = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        if (len(batch) + 1) * lengths[i] > most_tokens and batch:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch
