"""A text distilled into keys and values."""

import random

import torch
import torch.nn.functional as F

from data.batches import training_batches
from generate import generate
from prefix import DeepPrefix


class Cartridge(DeepPrefix):
    """Keys and values in every layer that replace a text, distilled from the base: Eyuboglu et al. (2025).

    "Cartridges: Lightweight and general-purpose long context representations via self-study". The text is the trigger,
    for instance worked examples. The rows begin as its first n_random tokens. No label is read: the base with the text
    in its context is the teacher, which continues each question, and the rows learn its next tokens.

    loss = KL(p(next | text, x) || p(next | rows, x)), the mean over the tokens that the teacher wrote
    """

    name, label, lr, needs_trigger = "cartridge", "cartridge", 3e-2, True
    is_validated = False  # which would read labels
    default_trigger = "example"
    reads_in_parts = True

    def __init__(self, model, n_random=0, trigger=(), seed=0):
        super().__init__(model, 0, trigger[: n_random or None])
        self.register_buffer("text", torch.tensor(trigger))  # (S)
        # The teacher begins and ends to read between worked examples: what ends the text ends each of them. In any
        # other text it begins and ends anywhere.
        cuts = [0, *(i + 1 for i, token in enumerate(trigger) if token == trigger[-1])]
        self.cuts = cuts if len(cuts) > 2 else range(len(trigger) + 1)
        self.rng = random.Random(seed)

    def loss(self, network, tokens, targets, answer):
        """Mean divergence from the teacher, in nats per token, on continuations of a batch's questions."""
        tokens, answer, log_p = self.teach(network, tokens, targets, answer)
        return divergence(network, self.past(network), tokens, answer, log_p)

    @torch.no_grad()
    def teach(self, network, tokens, targets, answer):
        """Samples the teacher's continuations of a batch's questions.

        Returns tokens (B, T); answer (B, T), True where the next token is one that the teacher wrote; and its
        log-probabilities there, (N, vocab_size). Of the batch's answers only the greatest length is read, and the last
        token, with which the teacher stops as well.
        """
        ends = [row.nonzero().flatten().tolist() for row in answer]
        questions = [row[: at[0] + 1].tolist() for row, at in zip(tokens, ends)]
        stop = targets[range(len(ends)), [at[-1] for at in ends]][:, None]  # (B, 1)
        n = max(map(len, ends))
        room = network.config.block_size - max(map(len, questions)) - n  # positions that are left for the text
        # of a longer text each step reads another part, of whole examples: behind half of one the base answers nothing
        begin = self.rng.choice([i for i in self.cuts if i <= max(0, len(self.text) - room)])
        end = max((i for i in self.cuts if begin < i <= begin + room), default=begin + room)
        past = network.prefill(self.text[None, begin:end])
        seed = self.rng.getrandbits(32)
        new = generate(network, questions, n, past, stop=stop, temperature=1.0, seed=seed)
        (batch,) = training_batches(list(zip(questions, new)), len(new), self.rng)
        tokens, _, answer = (t.to(tokens.device) for t in batch)
        return tokens, answer, network.logits(network(tokens, past)[answer]).float().log_softmax(-1)


def divergence(network, past, tokens, answer, log_p):
    """KL(p || q), the mean over the positions of `answer`, (), in nats.

    p is given as log-probabilities (N, vocab_size); q is what the network predicts behind a cache.
    """
    log_q = network.logits(network(tokens, past)[answer]).float().log_softmax(-1)  # (N, vocab_size)
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
