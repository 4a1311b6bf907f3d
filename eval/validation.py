"""The state that a method keeps: tuning ends as what did best on held-back training questions, its start included."""

import random

import torch
import torch.nn.functional as F

from data.batches import training_batches
from files.safe import trained
from run import processes as distributed

CHECKS = 4  # in the course of tuning, evenly spaced, besides that of the start


def hold_back(task, examples, n, shown):
    """(examples to tune on, examples to validate on): n of those most worth showing, and at most a fifth of all, each
    question once and none that is `shown` in a prompt, where its answer stands."""
    n, in_prompt = min(n, len(examples) // 5), {e.question for e in shown}
    by_question = {}  # the questions of short examples occur more than once
    for e in task.worth_showing(examples, len(examples)):
        if e.question not in in_prompt:
            by_question.setdefault(e.question, e)
    held_back = list(by_question.values())[:n]
    questions = {e.question for e in held_back}
    return [e for e in examples if e.question not in questions], held_back


class Validation:
    """Looks at a method now and then while it is tuned, and puts back its best state in the end.

    The best state has the most questions answered right to the last token, of these the least loss, of these the
    earliest.

    encoded: [(question tokens, answer tokens)], never tuned on. record: {}, or what it held when the run was stopped:
    the numbers, for results.json. best: {}, or the best state's tensors, {name: tensor}, when the run was stopped.
    """

    def __init__(self, encoded, record, best):
        self.encoded, self.record, self.best = encoded, record, best
        for name in ("steps", "exact_match", "loss"):
            record.setdefault(name, [])
        record["questions"] = len(encoded)

    def check(self, method, network, step, dtype, batch_size):
        """Measure the method after so many steps, and keep what it is then if that is its best."""
        r = self.record
        # of several processes the first decides, or they could end with different prompts
        exact, loss = distributed.first(answers_right(method, network, self.encoded, dtype, batch_size))
        if not r["steps"] or (exact, -loss) > max(zip(r["exact_match"], [-x for x in r["loss"]])):
            r["kept_step"] = step
            self.best.update({name: t.detach().cpu().clone() for name, t in trained(method).items()})
        r["steps"].append(step)
        r["exact_match"].append(exact)
        r["loss"].append(loss)

    def put_back(self, method):
        """The method becomes its best state."""
        method.load_state_dict(self.best, strict=False)


@torch.no_grad()
def answers_right(method, network, encoded, dtype, batch_size=32):
    """(how many questions are answered right to the last token, loss in nats per answer token).

    Nothing is generated: greedy decoding writes an answer if each of its tokens is the likeliest behind those before.
    """
    weight, past = network.wte.weight, method.past(network)
    encoded = [(method.insert_rows(question), answer) for question, answer in encoded]
    exact, loss, n = 0, 0.0, 0
    for batch in training_batches(encoded, batch_size, random.Random(0)):
        tokens, targets, answer = (t.to(weight.device) for t in batch)  # (B, T) each
        with torch.autocast(weight.device.type, dtype, enabled=weight.dtype == torch.float32 != dtype):
            logits = network.logits(network(tokens, past)[answer]).float()  # (N, vocab_size)
        wrong = torch.zeros_like(answer)
        wrong[answer] = logits.argmax(-1) != targets[answer]
        exact += len(wrong) - wrong.any(1).sum().item()
        loss += F.cross_entropy(logits, targets[answer], reduction="sum").item()
        n += len(logits)
    return exact, min(1e9, loss / n)  # which JSON can hold where weights have become infinite
