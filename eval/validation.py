"""The checkpoint that a method keeps, chosen on held-out training questions."""

import math

import torch

from eval.accuracy import count_exact
from files.safe import trained

CHECKS = 4  # evenly spaced over tuning, besides the one at the start


def hold_back(task, examples, n, shown):
    """Split examples into those to tune on and at most n held-out ones, never more than a fifth.

    The held-out ones are those most worth showing, each question once, without the examples `shown` in a prompt.
    """
    n, in_prompt = min(n, len(examples) // 5), {e.question for e in shown}
    held_out = {}  # by question, since those of short examples occur more than once
    for e in task.worth_showing(examples, len(examples)):
        if e.question not in in_prompt and len(held_out) < n:
            held_out.setdefault(e.question, e)
    return [e for e in examples if e.question not in held_out], list(held_out.values())


class Validation:
    """Checks a method now and then while it is tuned, and restores a checkpoint at the end: the last one whose exact
    answers are within a standard error of the most, and no fewer than the start's. Breiman et al. (1984),
    "Classification and Regression Trees", section 3.4.3.

    encoded: [(question tokens, answer tokens)], never tuned on. record: a dict for results.json that receives what is
    measured. best: a dict that receives the checkpoint, {name: tensor}. A resumed run passes both as they were.
    """

    def __init__(self, encoded, record, best):
        self.encoded, self.record, self.best = encoded, record, best
        for name in ("steps", "exact_match", "loss"):
            record.setdefault(name, [])
        record["questions"] = len(encoded)

    def due(self, step, steps):
        """True if the method should be checked after this many of all steps."""
        return step not in self.record["steps"] and (step % math.ceil(steps / CHECKS) == 0 or step == steps)

    def check(self, method, network, step, first=lambda measured: measured):
        """Measure the method, and keep its parameters unless an earlier checkpoint is clearly better.

        `first` is applied to (exact, loss): of several processes the first decides, or they could keep different ones.
        """
        r = self.record
        exact, loss = first(answers_right(method, network, self.encoded))
        n, most = r["questions"], max([exact, *r["exact_match"]])
        if exact >= max([most - math.sqrt(most * (n - most) / n), *r["exact_match"][:1]]):
            r["kept_step"] = step
            self.best.update({name: t.detach().cpu().clone() for name, t in trained(method).items()})
        r["steps"].append(step)
        r["exact_match"].append(exact)
        r["loss"].append(min(1e9, loss))  # finite, as JSON needs it

    def put_back(self, method):
        method.load_state_dict(self.best, strict=False)


@torch.no_grad()
def answers_right(method, network, encoded):
    """How many questions a method answers exactly, and its loss in nats per answer token."""
    encoded = [(method.insert_rows(question), answer) for question, answer in encoded]
    return count_exact(network, method.past(network), encoded)
