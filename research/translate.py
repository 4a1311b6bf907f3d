"""Train a translator: the network that makes a prompt out of worked examples in one pass, in any format.

    python -m research.translate                train one for the default base, and measure it: an hour on a core
    python -m research.translate --steps 0      measure the one beside the base, or that of --init-from

Each step draws synthetic documents (documents.py). The first examples of each become the keys and values of a prompt,
behind which the frozen base answers the next ones: cross-entropy trains the translator alone.
"""

import random
from itertools import islice
from pathlib import Path

import torch
from tqdm import tqdm

from data.batches import pad
from data.tokenizer import Tokenizer
from eval.accuracy import exact_answers
from files.errors import UserError, run_main
from files.safe import check_unused, write_json
from files.weights import load_model
from methods.translator import TRANSLATOR, TranslatorNetwork, load_translator, save_translator
from research import documents
from run.flags import Parser, at_least, seed_number

LR = 1e-3  # the peak
MOST_TOKENS = 300  # of a document's worked examples while training
QUESTION_WEIGHT = 0.1  # of the loss on questions
SHOTS = (1, 2, 4, 8, 16)  # at which it is measured


def parse_args(argv=None):
    p = Parser(__doc__)
    p.add_base()
    p.add_argument("--out", default=f"out/{TRANSLATOR}", help="its file; beside a base's weights it is found there")
    p.add_argument("--steps", type=at_least(0), default=2000, help="of training (default %(default)s)")
    p.add_argument("--documents", type=at_least(1, 1000), default=16, help="per step (default %(default)s)")
    p.add_argument("--test-documents", type=at_least(1, 1000), default=32, help="per skill (default %(default)s)")
    p.add_argument("--init-from", metavar="FILE", help="go on with that translator; give another --seed with it")
    p.add_argument("--seed", type=seed_number, default=0, help="of weights and documents (default %(default)s)")
    args = p.parse_args(argv)
    if args.steps:
        check_unused(args.out)
    return args


def encode(tokenizer, examples):
    """[(question, answer, ending)] -> [(question tokens, tokens of the answer and its ending)]."""
    return [(tokenizer.encode_task(q), tokenizer.encode_task(a + end)) for q, a, end in examples]


def as_tokens(encoded):
    """Worked examples as the translator reads them: the longest first, so that the last tokens show a whole one."""
    return [t for q, a in sorted(encoded, key=lambda e: -len(e[0] + e[1])) for t in q + a]


def draw(tokenizer, n_rows, rng):
    """(tokens of 2 to 10 worked examples, [(question tokens, answer tokens)] of 1 to 4 more) of a new document."""
    while True:
        _, _, examples = documents.document(rng, characters=(200, 800), most_examples=(5, 24))
        encoded = encode(tokenizer, examples)
        if len(encoded) < 4:
            continue
        k = rng.randint(2, min(10, len(encoded) - 1))
        while k > 1 and len(as_tokens(encoded[:k])) > MOST_TOKENS:
            k -= 1
        shown = as_tokens(encoded[:k])
        if n_rows <= len(shown) <= MOST_TOKENS:
            return shown, encoded[k : k + 4]


def draw_batches(tokenizer, n_rows, n, rng):
    """Batches of n documents without end. Those with questions of like length go together: less is padding."""
    while True:
        pool = [draw(tokenizer, n_rows, rng) for _ in range(4 * n)]
        pool.sort(key=lambda document: max(len(q) + len(a) for q, a in document[1]))
        batches = [pool[i : i + n] for i in range(0, len(pool), n)]
        rng.shuffle(batches)
        yield from batches


def loss_of(translator, model, batch):
    """(loss, its part on answers), (), of a batch of documents: cross-entropy of the questions that follow the
    examples, each behind its own document's prompt."""
    device = model.wte.weight.device
    past = translator(model, [shown for shown, _ in batch])  # of batch D
    each = torch.tensor([len(questions) for _, questions in batch], device=device)
    past = [tuple(x.repeat_interleave(each, 0) for x in pair) for pair in past]  # of batch B
    tokens, targets, answer = (t.to(device) for t in pad([q for _, questions in batch for q in questions]))  # (B, T)
    asked = answer.cumsum(1) == 0  # True before the first answer token: the target belongs to a question
    hidden = model(tokens, past)  # (B, T, C)
    on_answers = model.loss(hidden[answer], targets[answer])
    return on_answers + QUESTION_WEIGHT * model.loss(hidden[asked], targets[asked]), on_answers


def train(translator, model, tokenizer, args):
    """[loss on answers of each step], in nats. The rate warms up over 30 steps, stays, and falls to zero over the
    second half of the steps."""
    optimizer = torch.optim.AdamW(translator.parameters(), LR, betas=(0.9, 0.99), weight_decay=0)
    rng = random.Random(f"translator {args.seed}")
    batches = draw_batches(tokenizer, len(translator.rows), args.documents, rng)
    losses, bar = [], tqdm(islice(batches, args.steps), "translator", args.steps, unit=" steps")
    for step, batch in enumerate(bar):
        optimizer.param_groups[0]["lr"] = LR * min(1, (step + 1) / 30, 2 * (1 - step / args.steps))
        loss, on_answers = loss_of(translator, model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(translator.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(on_answers.item())
        bar.set_postfix(loss=f"{losses[-1]:.3f}", refresh=False)
    return losses


def new_documents(tokenizer, skill, k, n, n_rows, block_size):
    """n new documents of a skill, each (tokens of k worked examples, [(question tokens, answer tokens)] of the next 3,
    whose answers end with the first character of what ends them). Fewer where they are rare."""
    rng, found = random.Random(f"translator test {skill}"), []
    for _ in range(50 * n):
        _, _, examples = documents.document(rng, skill, characters=(500, 900), most_examples=(20, 24))
        shown = as_tokens(encode(tokenizer, examples[:k]))
        asked = encode(tokenizer, [(q, a, end[:1]) for q, a, end in examples[k : k + 3]])
        if len(asked) == 3 and n_rows <= len(shown) <= block_size - max(len(q) + len(a) for q, a in asked):
            found.append((shown, asked))
        if len(found) == n:
            break
    return found


@torch.no_grad()
def measure(translator, model, tokenizer, n):
    """{contender: {k: {skill: accuracy}}} of n documents each: the translator, and the same k examples as text. Skills
    of which not one document holds k examples are left out."""
    n_rows, device = len(translator.rows), model.wte.weight.device
    contenders = {
        "translator": lambda shown: translator(model, [shown]),
        "examples as text": lambda shown: model.prefill(torch.tensor([shown], device=device)),
    }
    accuracy = {name: {k: {} for k in SHOTS} for name in contenders}
    for k, skill in tqdm([(k, skill) for k in SHOTS for skill in documents.SKILLS], "measuring", leave=False):
        found = new_documents(tokenizer, skill, k, n, n_rows, model.config.block_size)
        for name, past_of in contenders.items() if found else ():
            right = [exact for shown, asked in found for exact, *_ in exact_answers(model, past_of(shown), asked)]
            accuracy[name][k][skill] = torch.cat(right).float().mean().item()
    return accuracy


def table(accuracy):
    """Markdown: accuracy in % over all skills, weighted by how often pretraining draws each."""
    lines = [f"| examples | {' | '.join(accuracy)} |", "| --- | --- | --- |"]
    for k in SHOTS:
        often = {skill: documents.SKILLS[skill][0] for skill in accuracy["translator"][k]}
        means = [sum(often[s] * by_k[k][s] for s in often) / sum(often.values()) for by_k in accuracy.values()]
        lines.append(f"| {k} | {' | '.join(f'{100 * mean:.0f}' for mean in means)} |")
    return "\n".join(lines)


def main(argv=None):
    args = parse_args(argv)
    model = load_model(args.model, args.device, args.dtype).freeze()
    if model.config.block_size < 512:
        raise UserError(f"{model.name} has {model.config.block_size} positions, and documents up to 512 tokens")
    tokenizer, out = Tokenizer.load(model.folder, model.config.vocab_size), Path(args.out)
    if args.init_from or not args.steps:
        translator = load_translator(model, args.init_from)
    else:
        translator = TranslatorNetwork(model, seed=args.seed).to(args.device)
    losses = train(translator, model, tokenizer, args)
    if losses:
        out.parent.mkdir(parents=True, exist_ok=True)
        save_translator(translator, out, model)
        print(f"wrote {out}: {sum(p.numel() for p in translator.parameters()):,} weights")
    accuracy = measure(translator, model, tokenizer, args.test_documents)
    print(table(accuracy))
    if losses:
        write_json(out.with_suffix(".json"), {"loss": losses, "accuracy": accuracy})


if __name__ == "__main__":
    run_main(main)
