"""Everything that can be learned to steer a frozen base, and what it is compared with: each is a Method.

Most are soft prompts, which make a KV cache of batch 1 (the network's `prefill`) that the model broadcasts over the
batch. The others return a network of their own, which shares the frozen weights, or put rows elsewhere than before
the question. A method of your own is one more class of this file with a `name`: `--method` finds it, and its
`options` become flags.
"""

import copy
import random
from pathlib import Path

import tiktoken
import torch
import torch.nn.functional as F
from torch import nn

from data.batches import training_batches
from data.tokenizer import Tokenizer
from files import schemas
from files.errors import UserError
from files.safe import read_tensors, write_tensors
from files.weights import BUNDLED, WithoutValues, fingerprint
from generate import generate
from methods import muon
from model import GPT, GPTConfig
from run.flags import rate, weight

TRANSLATOR = "translator.safetensors"  # beside the weights of the base that it belongs to
LAYERS = {"layers": {"type": int, "help": "in the top ones only"}}
RANK = {"rank": {"type": int, "help": "of its matrices' product (default 8)"}}


class Method(nn.Module):
    """A contender: whatever can stand before a question, or read it, and be compared with the others.

    Constructors take the frozen model; n_random, the number of rows that begin at random; trigger, the token
    numbers that the rows behind those begin as; seed; and the options that the class declares. `init_kwargs` are
    the arguments that make the same one again from its file.
    """

    name = label = ""  # what --method calls it, and what tables call it
    options = {}  # its own arguments, as argparse takes them: train_task.py makes a flag of each
    needs_labels = False  # whether the constructor takes `labels`, the token lists of the answers
    is_validated = True  # whether tuning ends as its best state on held-back questions
    lr, examples, epochs = 1e-2, 4000, 1  # by default: peak learning rate, examples to learn from, passes over them
    trigger_examples = 1  # worked examples that its trigger is made of, by default
    needs_examples = False  # whether the trigger has to be worked examples, the shortest last

    def __init__(self, **init_kwargs):
        super().__init__()
        self.init_kwargs, self.n_random = init_kwargs, init_kwargs.get("n_random", 0)
        self.register_buffer("shots", None)  # worked examples that stand behind the prompt, token numbers (1, S)
        if "trigger" in init_kwargs and self.n_random + len(init_kwargs["trigger"]) == 0:
            raise UserError("a prompt of no rows: raise --n-random or give a --trigger")

    def network(self, model):
        """The network that reads the question: the frozen model itself, or one that shares its weights."""
        return model

    def prompt_cache(self, network):
        """The method's own KV cache, of batch 1, or None: what most methods override."""

    def past(self, network):
        """What stands before the question: the method's own cache, then the worked examples of --shots."""
        cache = self.prompt_cache(network)
        return cache if self.shots is None else network.prefill(self.shots, cache)

    def loss(self, network, tokens, targets, answer):
        """Mean cross-entropy, in nats, of a batch's answers: the step that everything which learns is trained by.

        tokens and targets (B, T); answer (B, T), True where the target belongs to an answer.
        """
        past = self.past(network)  # its keys and values, made once, with batch 1
        hidden = network(tokens, past)  # (B, T, C)
        loss = network.loss(hidden[answer], targets[answer])  # at answer positions only
        return loss

    def learns(self):
        return any(p.requires_grad for p in self.parameters())

    def tunable(self, model):
        """What tuning goes on from: the method itself, or of one that does not learn one that does."""
        return self

    def optimizers(self, lr, dtype):
        """What changes the parameters; `dtype` is that of the matrix products."""
        parameters = [p for p in self.parameters() if p.requires_grad]
        return [torch.optim.AdamW(parameters, lr, weight_decay=0)] if parameters else []

    def after_backward(self, network, batch, loss):
        """A step of the method's own, after loss.backward() on a batch (tokens, targets, answer)."""

    def insert_rows(self, question):
        """The question's tokens, a list, with the method's own among them: numbers past the vocabulary."""
        return question

    def tokenizer(self, tokenizer):
        """The tokenizer it reads with: the base's, but for a network of its own."""
        return tokenizer

    def input_rows(self):
        """Its rows at the input, (P, C), where it has some."""

    def n_rows(self):
        """How many rows (virtual tokens) it has."""
        return 0

    def n_positions(self):
        """How many positions of the model its rows and shots take."""
        return self.n_rows() + (0 if self.shots is None else self.shots.size(1))

    def distance_to_init(self):
        """Mean squared distance of the rows to where they began, (): L2-SP, Li et al. (2018), "Explicit Inductive
        Bias for Transfer Learning with Convolutional Networks", section 3.2."""
        return (self.embeddings() - self.start).square().mean()


# ---------------------------------------------------------------- rows at the input


class HybridPrefix(Method):
    """Rows at the input: random ones, then one for each token of the trigger.

    rows (P, C) stand where token embeddings would: Lester et al. (2021), "The Power of Scale for Parameter-Efficient
    Prompt Tuning", section 2. The first n_random of them are drawn with the standard deviation of the embedding table.
    The others begin as the embeddings of the trigger; words to start from help in low-data settings: Li & Liang
    (2021), "Prefix-Tuning", section 7.4.

    With `mlp` the model sees rows + MLP(rows): the reparameterisation of Li & Liang (section 4.3) as a residual, which
    starts at zero, so that the trigger rows start as words. Razdaibiedina et al. (2023), "Residual Prompt Tuning".
    """

    name, label = "hybrid", "hybrid prefix"
    options = {"mlp": {"action": "store_true", "help": "the rows go through an MLP while they are tuned"}}

    def __init__(self, model, n_random, trigger=(), mlp=False, seed=0):
        super().__init__(n_random=n_random, trigger=list(trigger), mlp=mlp)
        rng = torch.Generator().manual_seed(seed)
        table = model.wte.weight.detach().float().cpu()  # (vocab_size, C)
        C = table.size(1)
        random_rows = torch.randn(n_random, C, generator=rng) * table.std()  # (n_random, C)
        rows = torch.cat([random_rows, table[torch.tensor(trigger, dtype=torch.long)]])  # (P, C)
        self.rows = nn.Parameter(rows)
        self.register_buffer("start", rows.clone())  # where each row began
        self.mlp = zero_mlp(C, C, rng) if mlp else None

    def embeddings(self):
        """(P, C): what the model sees in place of token embeddings."""
        return self.rows if self.mlp is None else self.rows + self.mlp(self.rows)

    def input_rows(self):
        return self.embeddings()

    def prompt_cache(self, network):
        return network.prefill(self.embeddings()[None].to(network.wte.weight.dtype))

    def n_rows(self):
        return len(self.rows)


class PromptTuning(HybridPrefix):
    """Rows at the input, of one kind: Lester et al. (2021).

    Section 2, with the ways to begin of section 3.2 as `init`:

    uniform     each number from [-0.5, 0.5]
    vocabulary  the embeddings of tokens drawn from the 5,000 most frequent, which byte-level BPE numbers first
    labels      the labels' embeddings, the mean where one has several tokens; from the vocabulary beyond them
    trigger     the trigger's words, repeated or cut off
    labels: a list of token lists.
    """

    name, label, needs_labels = "prompt", "prompt tuning", True
    options = {
        "init": {
            "choices": ["uniform", "vocabulary", "labels", "trigger"],
            "help": "what the --n-random rows begin as (default vocabulary)",
        }
    }

    def __init__(self, model, n_random, trigger=(), seed=0, init="vocabulary", labels=()):
        if init == "trigger" and not trigger or init == "labels" and not labels:
            raise UserError(f"--init {init}: there is no {init} to begin as")
        super().__init__(model, n_random or len(trigger), seed=seed)
        self.init_kwargs = {"n_random": len(self.rows), "trigger": list(trigger), "init": init, "labels": list(labels)}
        rng, P = torch.Generator().manual_seed(seed), len(self.rows)
        table = model.wte.weight.detach().float().cpu()  # (vocab_size, C)
        rows = table[torch.randint(min(5000, len(table)), (P,), generator=rng)]  # (P, C)
        if init == "uniform":
            rows = torch.rand(rows.shape, generator=rng) - 0.5
        elif init == "labels":
            begin = torch.stack([table[torch.tensor(label)].mean(0) for label in labels[:P]])
            rows[: len(begin)] = begin
        elif init == "trigger":
            rows = table[torch.tensor((list(trigger) * P)[:P])]
        self.rows.data.copy_(rows)
        self.start.copy_(rows)


class CPT(HybridPrefix):
    """Worked examples as rows at the input, tuned inside a ball around where they began: Blau et al. (2024).

    "Context-aware Prompt Tuning: Advancing In-Context Learning with Adversarial Methods". After each step every row is
    put back into the ball. All rows of the examples move, and the loss is that of the question's answer alone; they
    keep the labels' rows in place, and learn the labels of the examples as well.

    |row - start| <= epsilon sqrt(C / 2048)
    """

    name, label = "cpt", "CPT"
    options = {"epsilon": {"type": rate, "help": "the radius of its ball, for a base 2,048 wide (default 1)"}}

    def __init__(self, model, n_random=0, trigger=(), seed=0, epsilon=1.0):
        if not trigger:
            raise UserError("CPT of no example: give a --trigger")
        super().__init__(model, 0, trigger)
        self.init_kwargs = {"trigger": list(trigger), "epsilon": epsilon}
        self.radius = epsilon * (self.rows.size(1) / 2048) ** 0.5

    @torch.no_grad()
    def after_backward(self, network, batch, loss):
        shift = self.rows - self.start  # (P, C)
        self.rows.copy_(self.start + shift * self.radius / shift.norm(dim=1, keepdim=True).clamp_min(self.radius))


class LoPT(HybridPrefix):
    """Rows at the input as a product of two thin matrices: Guo et al. (2024).

    "LoPT: Low-Rank Prompt Tuning for Parameter Efficient Language Models". They begin as the product that comes closest
    to the rows of a hybrid prefix, which is their truncated singular value decomposition.

    rows (P, C) = U (P, rank) V (rank, C)
    """

    name, label, options = "lopt", "LoPT", RANK

    def __init__(self, model, n_random, trigger=(), seed=0, rank=8):
        super().__init__(model, n_random, trigger, seed=seed)
        self.init_kwargs = {"n_random": n_random, "trigger": list(trigger), "rank": rank}
        if not 1 <= rank <= model.config.n_embd:
            raise UserError(f"--rank {rank}: give at least 1 and at most {model.config.n_embd}")
        u, s, vh = torch.linalg.svd(self.start, full_matrices=False)
        del self.rows
        self.U = nn.Parameter(u[:, :rank] * s[:rank].sqrt())
        self.V = nn.Parameter(vh[:rank] * s[:rank, None].sqrt())
        self.start.copy_(self.embeddings().detach())

    def embeddings(self):
        return self.U @ self.V

    def n_rows(self):
        return len(self.U)


class DePT(HybridPrefix):
    """Rows at the input, and a low-rank shift of the words behind them: Shi & Lipani (2023).

    "DePT: Decomposed Prompt Tuning for Parameter-Efficient Fine-tuning", section 2.2. The word at position i of the
    question and its answer gets row i of A B, which is zero at first. The rows take a larger learning rate than A and
    B. Positions that no example reaches keep a shift of zero.

    x_i = word_i + (A B)_i
    """

    name, label, options = "dept", "DePT", RANK

    def __init__(self, model, n_random, trigger=(), seed=0, rank=8):
        super().__init__(model, n_random, trigger, seed=seed)
        self.init_kwargs = {"n_random": n_random, "trigger": list(trigger), "rank": rank}
        if not 1 <= rank <= model.config.n_embd:
            raise UserError(f"--rank {rank}: give at least 1 and at most {model.config.n_embd}")
        c, rng = model.config, torch.Generator().manual_seed(seed)
        self.A = nn.Parameter(torch.zeros(c.block_size, rank))
        self.B = nn.Parameter(torch.randn(rank, c.n_embd, generator=rng) * rank**-0.5)

    def network(self, model):
        return share_weights(model, ShiftedWords, self)

    def optimizers(self, lr, dtype):
        rows, shift = ([self.rows], lr), ([self.A, self.B], lr / 10)
        return [torch.optim.AdamW(parameters, rate, weight_decay=0) for parameters, rate in (rows, shift)]


class ShiftedWords:
    """What a network becomes that adds a prompt's shift of each position to the words of a text."""

    def run(self, x, past=None, kv_cache=None, cache_len=0, past_pad=None, left_pad=None):
        if not x.is_floating_point():  # words, not a prompt's rows
            position = torch.arange(cache_len, cache_len + x.size(1), device=x.device)  # (T)
            if left_pad is not None:
                position = (position - left_pad[:, None]).clamp_min(0)  # (B, T)
            shift = self.prompt[0].A[position] @ self.prompt[0].B  # (T, C) or (B, T, C)
            x = self.wte(x) + shift.to(self.wte.weight.dtype)
        return super().run(x, past, kv_cache, cache_len, past_pad, left_pad)


class PTuning(HybridPrefix):
    """Rows at the input that an LSTM and an MLP make of learned ones: Liu et al. (2021).

    "GPT Understands, Too", section 3.2: the bidirectional LSTM ties the rows to one another. PEFT's PromptEncoder has
    the same layers.

    `position` puts them before the question, inside it, at its middle, or after it (section 3.1, the template).
    """

    name, label = "ptuning", "P-tuning"
    options = {
        "position": {
            "choices": ["before", "inside", "after"],
            "help": "where the rows stand: before the question (the default), in its middle or after it",
        }
    }

    def __init__(self, model, n_random, trigger=(), seed=0, position="before"):
        super().__init__(model, n_random, trigger, seed=seed)
        self.init_kwargs = {"n_random": n_random, "trigger": list(trigger), "position": position}
        C = model.config.n_embd
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.lstm = nn.LSTM(C, C, num_layers=2, bidirectional=True, batch_first=True)
            self.head = nn.Sequential(nn.Linear(2 * C, 2 * C), nn.ReLU(), nn.Linear(2 * C, C))
        self.position, self.first = position, model.config.vocab_size
        self.start.copy_(self.embeddings().detach())

    def embeddings(self):
        return self.head(self.lstm(self.rows[None])[0])[0]  # (P, C)

    def prompt_cache(self, network):
        return super().prompt_cache(network) if self.position == "before" else None

    def network(self, model):
        if self.position == "before":
            return model
        return share_weights(model, SoftTokens, self)

    def insert_rows(self, question):
        middle = {"before": 0, "inside": len(question) // 2, "after": len(question)}[self.position]
        rows = list(range(self.first, self.first + len(self.rows))) if self.position != "before" else []
        return question[:middle] + rows + question[middle:]


class SoftTokens:
    """What a network becomes for which token numbers past its vocabulary are a prompt's rows."""

    def run(self, x, *args, **more):
        if not x.is_floating_point() and (own := x >= self.config.vocab_size).any():  # (B, T)
            rows = self.prompt[0].embeddings().to(self.wte.weight.dtype)  # (P, C)
            words = self.wte(x.masked_fill(own, 0))  # (B, T, C)
            # F.embedding, since two threads add up the gradients of rows[...] in an order of chance
            rows = F.embedding((x - self.config.vocab_size).clamp_min(0), rows)  # (B, T, C)
            x = torch.where(own[..., None], rows, words)
        return super().run(x, *args, **more)


class SoftWords(HybridPrefix):
    """Rows at the input, and a shift of each at the input of every layer: Qin & Eisner (2021).

    "Learning How to Ask", section 3.3, "Deeply perturbing". The shifts are zero at first.
    """

    name, label, options = "softwords", "soft words", {}

    def __init__(self, model, n_random, trigger=(), seed=0):
        super().__init__(model, n_random, trigger, seed=seed)
        self.init_kwargs = {"n_random": n_random, "trigger": list(trigger)}
        self.shifts = nn.Parameter(torch.zeros(model.config.n_layer, *self.rows.shape))  # (n_layer, P, C)
        shifted = share_weights(model)
        shifted.h = nn.ModuleList(ShiftedBlock(block, self, i) for i, block in enumerate(shifted.h))
        self.shifted = [shifted]  # in a list, so that it is no part of the method

    def prompt_cache(self, network):
        return super().prompt_cache(self.shifted[0])


class ShiftedBlock(nn.Module):
    """A block that adds soft words' shift of its layer to its input."""

    def __init__(self, block, prompt, layer):
        super().__init__()
        self.block, self.prompt, self.layer = block, [prompt], layer

    def forward(self, x, *args):
        return self.block(x + self.prompt[0].shifts[self.layer].to(x.dtype), *args)  # (1, P, C)


# ---------------------------------------------------------------- keys and values in every layer


class DeepPrefix(Method):
    """Keys and values in every layer, and nothing at the input: Liu et al. (2022).

    "P-Tuning v2", section 3. With `layers` only the top ones have them; those below run as without a prefix, and
    without gradients. rows (P, layers * 2 * n_kv_head * D) hold the keys of each layer, then its values, as PEFT does.

    They begin as what the base computes of n_random words, drawn as it expects texts to begin, and of the trigger
    (Li & Liang 2021, section 7.4). Numbers drawn with one spread for all layers learn nothing here, since activations
    differ too much from layer to layer. Words drawn evenly from the vocabulary learn nothing either where the base has
    never read most of it, as with plain bytes.

    With `head` a linear layer scores the K tokens of the labels (token lists) in place of the base's output rows
    (section 3.2, "Classification Head"). It starts at zero, and no other token can be written.
    """

    name, label, lr, needs_labels = "ptuning2", "P-tuning v2", 2e-2, True
    options = LAYERS | {"head": {"action": "store_true", "help": "a classification head for the answers"}}

    def __init__(self, model, n_random, trigger=(), seed=0, layers=None, head=False, labels=()):
        with_head = {"head": True, "labels": list(labels)} if head else {}
        super().__init__(n_random=n_random, trigger=list(trigger), layers=layers, **with_head)
        c = model.config
        if layers is not None and not 1 <= layers <= c.n_layer:
            raise UserError(f"--layers {layers}: {model.name} has 1 to {c.n_layer}")
        self.layers = layers or c.n_layer
        rng = torch.Generator().manual_seed(seed)
        device = model.wte.weight.device
        with torch.no_grad():
            words = torch.tensor(trigger, dtype=torch.long)
            if n_random:
                start = torch.tensor([[c.bos_token]], device=device)
                p = model.logits(model(start))[0, 0].float().softmax(-1).cpu()  # (vocab_size)
                words = torch.cat([torch.multinomial(p, n_random, replacement=True, generator=rng), words])
            cache = model.prefill(words[None].to(device))[-self.layers :]  # of P words
        rows = rows_of(cache)
        self.rows = nn.Parameter(rows)
        self.register_buffer("start", rows.clone())
        if head:
            self.register_buffer("label_tokens", distinct_tokens(labels))
            self.head = nn.Linear(c.n_embd, len(self.label_tokens))
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    def network(self, model):
        if "head" not in self.init_kwargs:
            return model
        return share_weights(model, LabelHead, self)

    def embeddings(self):
        """(P, layers * 2 * n_kv_head * D): all keys and values of each row."""
        return self.rows

    def prompt_cache(self, network):
        c = network.config
        rows = self.embeddings().to(network.wte.weight.dtype)
        top = rows.view(len(rows), self.layers, 2, 1, c.n_kv_head, -1).permute(1, 2, 3, 4, 0, 5)
        nothing = rows.new_zeros(2, 1, c.n_kv_head, 0, c.head_dim)
        # per layer keys and values, (1, n_kv_head, P, D) each, with P = 0 in the lower ones
        return [tuple(pair) for pair in (*[nothing] * (c.n_layer - self.layers), *top)]

    def n_rows(self):
        return len(self.rows)


def rows_of(cache):
    """A cache of batch 1 and P positions as rows, (P, layers * 2 * n_kv_head * D), on the CPU in float32."""
    rows = torch.stack([torch.stack(pair) for pair in cache])  # (layers, 2, 1, n_kv_head, P, D)
    return rows[:, :, 0].permute(3, 0, 1, 2, 4).flatten(1).float().cpu()


class PrefixTuning(DeepPrefix):
    """Keys and values in every layer, through an MLP: Li & Liang (2021).

    "Prefix-Tuning", sections 4.2 and 4.3, as a residual: to the rows of P-tuning v2 is added what an MLP makes of a
    code (P, C), at first nothing.
    """

    name, label, lr, needs_labels = "prefix", "prefix-tuning", 3e-3, False
    options = LAYERS

    def __init__(self, model, n_random, trigger=(), seed=0, layers=None):
        super().__init__(model, n_random, trigger, seed, layers)
        rng = torch.Generator().manual_seed(seed)
        self.code = nn.Parameter(torch.randn(len(self.rows), model.config.n_embd, generator=rng))  # (P, C)
        self.mlp = zero_mlp(model.config.n_embd, self.rows.size(1), rng)

    def embeddings(self):
        return self.rows + self.mlp(self.code)


class Cartridge(DeepPrefix):
    """Keys and values in every layer that stand in for a text, distilled from the base: Eyuboglu et al. (2025).

    "Cartridges: Lightweight and general-purpose long context representations via self-study". The text is the trigger,
    for instance worked examples. Its first n_random tokens are what the rows begin as. No label is read: the base with
    the text in its context is the teacher, which continues each question, and the rows learn its next tokens.

    loss = KL(p(next | text, x) || p(next | rows, x)), the mean over the tokens that the teacher wrote
    """

    name, label, lr, needs_labels = "cartridge", "cartridge", 3e-2, False
    is_validated = False  # which would read labels
    options = {"window": {"type": int, "help": "tokens of the text that its teacher reads at once (default: all)"}}

    def __init__(self, model, n_random, trigger=(), seed=0, window=None):
        if not trigger:
            raise UserError("a cartridge of no text: give a --trigger or a --text")
        if window is not None and window < 1:
            raise UserError(f"--window {window}: give at least 1")
        super().__init__(model, 0, trigger[: n_random or None])
        self.window = min(window or model.config.block_size, model.config.block_size)
        self.init_kwargs = {"n_random": len(self.rows), "trigger": list(trigger), "window": self.window}
        self.register_buffer("text", torch.tensor(trigger))  # (S)
        # where the teacher may begin and end to read: what ends the text ends each of its worked examples
        cuts = [0, *(i + 1 for i, token in enumerate(trigger) if token == trigger[-1])]
        self.cuts = cuts if len(cuts) > 2 else range(len(trigger) + 1)  # of any other text: anywhere
        self.rng = random.Random(seed)

    def loss(self, network, tokens, targets, answer):
        """Mean divergence from the teacher, in nats per token, on continuations of a batch's questions."""
        tokens, answer, want = self.teach(network, tokens, targets, answer)
        return divergence(network, self.past(network), tokens, answer, want)

    @torch.no_grad()
    def teach(self, network, tokens, targets, answer):
        """What the teacher makes of a batch's questions: tokens (B, T), answer (B, T), True where the next token is one
        that it wrote, and its log-probabilities there, (N, vocab_size).

        Of the answers only the greatest length is read, and the last token, with which the teacher stops as well.
        """
        ends = [row.nonzero().flatten().tolist() for row in answer]
        questions = [row[: at[0] + 1].tolist() for row, at in zip(tokens, ends)]
        stop = targets[range(len(ends)), [at[-1] for at in ends]]  # (B)
        n = max(map(len, ends))
        S = min(self.window, network.config.block_size - max(map(len, questions)) - n)
        # of a longer text another part in each step, of whole examples: behind half of one it answers nothing
        begin = self.rng.choice([i for i in self.cuts if i <= max(0, len(self.text) - S)])
        end = max((i for i in self.cuts if begin < i <= begin + S), default=begin + S)
        past, seed = network.prefill(self.text[None, begin:end]), self.rng.getrandbits(32)
        new = generate(network, questions, n, past, stop=stop, temperature=1.0, seed=seed)
        (batch,) = training_batches(list(zip(questions, new)), len(new), self.rng)
        tokens, _, answer = (t.to(tokens.device) for t in batch)
        return tokens, answer, network.logits(network(tokens, past)[answer]).float().log_softmax(-1)


def divergence(network, past, tokens, answer, want):
    """KL(p || q), (): p is given as log-probabilities `want`, (N, vocab_size), q is what the network says behind a
    cache at the positions of `answer`. The mean over these, in nats."""
    got = network.logits(network(tokens, past)[answer]).float().log_softmax(-1)  # (N, vocab_size)
    return F.kl_div(got, want, reduction="batchmean", log_target=True)


class Translator(DeepPrefix):
    """Keys and values in every layer, made of worked examples in one pass: nothing is tuned.

    translator.py has trained the network that makes them, once, on the formats of pretraining: after Phang et al.
    (2023), "HyperTuning: Toward Adapting Large Language Models without Back-propagation", and Mu et al. (2023),
    "Learning to Compress Prompts with Gist Tokens". Its weights lie beside the base's.

    trigger: the examples' tokens. Without them it has n_random rows of zeros, into which a file of it is loaded.
    """

    name, label, options, needs_labels = "translator", "translator", {}, False
    trigger_examples, needs_examples = 8, True

    def __init__(self, model, n_random=0, trigger=(), seed=0):
        if trigger:
            with torch.no_grad():
                rows = rows_of(load_translator(model)(model, [list(trigger)]))
        else:
            rows = torch.zeros(n_random, 2 * model.config.n_layer * model.config.n_kv_head * model.config.head_dim)
        Method.__init__(self, n_random=len(rows))
        self.n_random, self.layers = 0, model.config.n_layer
        self.register_buffer("rows", rows)

    def tunable(self, model):
        """The same prompt as one of P-tuning v2."""
        prompt = DeepPrefix(model, len(self.rows))
        prompt.rows.data.copy_(self.rows)
        return prompt.to(self.rows.device)


class TranslatorNetwork(nn.Module):
    """Worked examples in, keys and values of P positions in every layer out.

    The frozen base reads the examples. Their last P tokens are then read again, alone and at the first positions, where
    a prompt stands, by the base's blocks with low-rank updates (LoRA). In front of each block these positions look at
    the final hidden states of all examples, through an attention of `width`. All that is learned puts out nothing at
    first, so that the prompt begins as those last tokens would as text.

    x = x + softmax(x W_q (h W_k)') h W_v W_o, h the base's hidden states of the examples
    """

    heads = 4

    def __init__(self, model, n_rows=16, rank=16, width=64, seed=0):
        super().__init__()
        L, C, rng = model.config.n_layer, model.config.n_embd, torch.Generator().manual_seed(seed)
        self.sizes = {"n_rows": n_rows, "rank": rank, "width": width}
        self.rows = nn.Parameter(torch.zeros(n_rows, C))  # added to the tokens
        self.slots = nn.Parameter(torch.randn(n_rows, width, generator=rng))  # so that no two positions ask the same
        self.W_q, self.W_k, self.W_v = (
            nn.Parameter(torch.randn(L, C, width, generator=rng) * C**-0.5) for _ in range(3)
        )
        self.W_o = nn.Parameter(torch.zeros(L, width, C))
        self.lora = LoRA(model, rank=rank, alpha=rank, seed=seed)
        twin = self.lora.network(model)
        twin.h = nn.ModuleList(LookingBlock(block, self, i) for i, block in enumerate(twin.h))
        self.twin = [twin]  # in a list, so that it is no part of the network

    def forward(self, model, texts):
        """D lists of tokens -> a cache of batch D and P positions."""
        P, weight, longest = len(self.rows), model.wte.weight, max(map(len, texts))
        if min(map(len, texts)) < P:
            raise UserError(f"examples of {min(map(len, texts))} tokens: the translator reads at least {P}")
        tokens = torch.zeros(len(texts), longest, dtype=torch.long, device=weight.device)  # (D, S)
        mask = torch.zeros(len(texts), 1, 1, longest, dtype=weight.dtype, device=weight.device)
        for i, text in enumerate(texts):  # padding stands behind the text, where it changes nothing before it
            tokens[i, : len(text)] = torch.tensor(text)
            mask[i, ..., len(text) :] = -torch.inf
        with torch.no_grad():
            self.examples = model(tokens), mask  # (D, S, C)
            tail = model.wte(torch.tensor([text[-P:] for text in texts], device=weight.device))  # (D, P, C)
        return self.twin[0].prefill(tail + self.rows.to(tail.dtype))

    def look(self, x, layer):
        """What the rows x (D, P, C) read off the examples in front of a block, (D, P, C)."""
        h, mask = self.examples
        W_q, W_k, W_v, W_o = (W[layer].to(x.dtype) for W in (self.W_q, self.W_k, self.W_v, self.W_o))
        q = F.layer_norm(x, x.shape[-1:]) @ W_q + self.slots.to(x.dtype)  # (D, P, width)
        # (D, heads, P or S, width / heads) each
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in (q, h @ W_k, h @ W_v))
        y = (q @ k.mT * q.size(-1) ** -0.5 + mask).softmax(-1) @ v
        return y.transpose(1, 2).flatten(2) @ W_o


class LookingBlock(nn.Module):
    """A block whose input has read the examples."""

    def __init__(self, block, translator, layer):
        super().__init__()
        self.block, self.translator, self.layer = block, [translator], layer

    def forward(self, x, *args):
        return self.block(x + self.translator[0].look(x, self.layer), *args)


def save_translator(translator, path, model):
    """Write a TranslatorNetwork, in bfloat16."""
    header = {"format": "nanoprompt translator", "base": model.name, "base_fingerprint": fingerprint(model)}
    header |= {name: str(size) for name, size in translator.sizes.items()}
    write_tensors(path, {n: t.to(torch.bfloat16) for n, t in translator.state_dict().items()}, header)


def load_translator(model, path=None):
    """The TranslatorNetwork of a file, or the one that lies beside the base. Raises UserError where there is none, or
    it is broken."""
    path = Path(path or Path(getattr(model, "folder", "")) / TRANSLATOR)
    if not path.is_file():
        have = [name for name in BUNDLED if (Path(__file__).parent / "data" / name / TRANSLATOR).is_file()]
        bundled = f"{', '.join(have)} has" if have else "none of the bundled bases has"
        raise UserError(f"{model.name} has no {path.name}, which translator.py makes: {bundled} one")
    header, tensors = read_tensors(path)
    header = schemas.convert(header, schemas.TranslatorHeader, path, "train it again")
    if header["base_fingerprint"] != fingerprint(model):
        raise UserError(f"{path} was trained on another base ({header['base_fingerprint']}): train it again")
    shapes = {"n_rows": ("rows", 0), "rank": ("lora.A.0", 0), "width": ("W_o", 1)}
    sizes = {size: tensors[name].shape[i] if name in tensors else 0 for size, (name, i) in shapes.items()}
    if any(header[size] != str(n) for size, n in sizes.items()):
        raise UserError(f"{path} holds other sizes than its header says: train it again")
    translator = TranslatorNetwork(model, **sizes)
    try:
        translator.load_state_dict(tensors)
    except RuntimeError:
        raise UserError(f"{path} is no complete translator of {model.name}: train it again") from None
    return translator.to(model.wte.weight.device)


def zero_mlp(n_in, n_out, rng):
    """A hidden layer of n_in units; what it puts out starts at zero."""
    mlp = nn.Sequential(nn.Linear(n_in, n_in), nn.Tanh(), nn.Linear(n_in, n_out))
    nn.init.normal_(mlp[0].weight, std=n_in**-0.5, generator=rng)
    for zero in (mlp[0].bias, mlp[2].weight, mlp[2].bias):
        nn.init.zeros_(zero)
    return mlp


# ---------------------------------------------------------------- words


class ZeroShot(Method):
    """Nothing stands before the question."""

    name, label = "zero-shot", "zero-shot"

    def __init__(self, model, n_random=0, trigger=(), seed=0):
        super().__init__()


class TextPrompt(Method):
    """The trigger as text: an instruction, or worked examples in the context. Nothing is trained.

    trigger: a list of P token numbers.
    """

    name, label = "text", "trigger as text"

    def __init__(self, model, trigger=(), n_random=0, seed=0):
        super().__init__(trigger=list(trigger))
        self.register_buffer("tokens", torch.tensor(trigger))  # (P)

    def prompt_cache(self, network):
        return network.prefill(self.tokens[None])

    def n_rows(self):
        return len(self.tokens)


class FewShot(TextPrompt):
    """The best context: as many worked examples as serve best.

    eval/baselines.py chooses them.

    trigger: their tokens.
    """

    name, label = "few-shot", "best context"


class HardPrompt(TextPrompt):
    """Words of the base's own vocabulary, found by gradient: Shin et al. (2020).

    "AutoPrompt", section 2.2. Begins as n_random words drawn from the vocabulary and those of the trigger.
    """

    name, label = "hard", "hard prompt"
    candidates = 8  # words that each step tries

    def __init__(self, model, trigger=(), n_random=0, seed=0):
        rng = torch.Generator().manual_seed(seed)
        words = torch.randint(model.config.vocab_size, (n_random,), generator=rng).tolist()
        super().__init__(model, [*words, *trigger])
        self.rng = rng

    def prompt_cache(self, network):
        # the search reads the gradient of these embeddings
        self.rows = network.wte.weight[self.tokens].detach().requires_grad_(True)  # (P, C)
        return network.prefill(self.rows[None])

    def learns(self):
        return True

    def after_backward(self, network, batch, loss):
        self.autoprompt_step(network, batch, loss)

    @torch.no_grad()
    def autoprompt_step(self, network, batch, loss):
        """Change one word, drawn at random, to the candidate with the lowest loss on the batch, if that is lower."""
        i = torch.randint(len(self.tokens), (), generator=self.rng).item()
        # (vocab_size): how the loss would change with each word in that place, to first order
        change = network.wte.weight @ self.rows.grad[i]
        best = self.tokens
        for word in change.topk(self.candidates, largest=False).indices:
            self.tokens = best.clone()
            self.tokens[i] = word
            other = self.loss(network, *batch)
            if other < loss:
                loss, best = other, self.tokens
            self.tokens = best


# ---------------------------------------------------------------- networks of their own


def distinct_tokens(labels):
    """Each token of a list of token lists once, (K). There may be none, where a file says so."""
    return torch.tensor(sorted({token for label in labels for token in label}), dtype=torch.long)


def share_weights(model, change=None, prompt=None):
    """Another network of the same weights, not copied: its parts can be exchanged and the model stays as it is.

    change: a class whose methods take the place of the network's own, which they reach by super(). It finds the method
    in `prompt[0]`, in a list so that it is no part of the network.
    """
    kind = type(model)
    if change is not None:
        kind = type(change.__name__, (change, kind), {})  # class LabelRows(LabelRows, GPT)
    with torch.device("meta"), WithoutValues():
        twin = kind(model.config)
    twin.load_state_dict(model.state_dict(), assign=True)
    twin.name, twin.prompt, twin.checkpoint_activations = model.name, [prompt], model.checkpoint_activations
    return twin.freeze()


class Warp(HybridPrefix):
    """Rows at the input, and output rows for the tokens of answers: Hambardzumyan et al. (2021).

    "WARP: Word-level Adversarial ReProgramming", section 3. The output rows begin as the base's own.

    labels: a list of token lists, whose tokens get output rows.
    """

    name, label, options, needs_labels = "warp", "WARP", {}, True

    def __init__(self, model, n_random, trigger=(), seed=0, labels=()):
        super().__init__(model, n_random, trigger, seed=seed)
        self.init_kwargs = {"n_random": n_random, "trigger": list(trigger), "labels": list(labels)}
        self.register_buffer("label_tokens", distinct_tokens(labels))
        self.label_rows = nn.Parameter(model.head().detach()[self.label_tokens].float().cpu())  # (K, C)

    def network(self, model):
        return share_weights(model, LabelRows, self)


class LabelRows:
    """What a network becomes that has output rows of a prompt's own for some tokens."""

    def logits(self, hidden):
        prompt = self.prompt[0]
        own = hidden @ prompt.label_rows.to(hidden.dtype).T  # (..., K)
        return super().logits(hidden).index_copy(-1, prompt.label_tokens, own)

    def loss(self, hidden, targets):
        return F.cross_entropy(self.logits(hidden).float(), targets)


class LabelHead(LabelRows):
    """What a network becomes whose output is a prompt's head: of some tokens, with all others ruled out."""

    def logits(self, hidden):
        prompt = self.prompt[0]
        weight, bias = (p.to(hidden.dtype) for p in prompt.head.parameters())
        scores = F.linear(hidden, weight, bias)  # (..., K)
        logits = scores.new_full((*hidden.shape[:-1], self.config.vocab_size), -torch.inf)
        return logits.index_copy(-1, prompt.label_tokens, scores)


class AdapterPrefix(Method):
    """Rows in the upper layers, behind a gate that starts at zero: Zhang et al. (2023).

    "LLaMA-Adapter", section 3. Each of the top `layers` (half of them by default) has P rows, of which its own weights
    make keys and values. These have a softmax of their own, weighted by a gate for each head, so that nothing changes
    at first.

    y = softmax(q K') V + tanh(gate) softmax(q K(rows)') V(rows)
    """

    name, label, options = "adapter-prefix", "LLaMA-Adapter", LAYERS

    def __init__(self, model, n_random, trigger=(), seed=0, layers=None):
        super().__init__(n_random=n_random, trigger=list(trigger), layers=layers)
        c = model.config
        layers = layers or c.n_layer // 2 or 1
        if not 1 <= layers <= c.n_layer:
            raise UserError(f"--layers {layers}: {model.name} has 1 to {c.n_layer}")
        rows = HybridPrefix(model, n_random, trigger, seed=seed).start  # (P, C)
        self.rows = nn.Parameter(rows.repeat(layers, 1, 1))  # (layers, P, C)
        self.gate = nn.Parameter(torch.zeros(layers, c.n_head))

    def n_rows(self):
        return self.rows.size(1)

    def n_positions(self):
        return super().n_positions() - self.n_rows()  # a softmax of their own, so that they take no position

    def network(self, model):
        twin = share_weights(model)
        for i, block in enumerate(twin.h[-len(self.rows) :]):
            block.attn = GatedAttention(block.attn, self, i)
        return twin


class GatedAttention(nn.Module):
    def __init__(self, attention, prompt, layer):
        super().__init__()
        self.attention, self.prompt, self.layer = attention, [prompt], layer

    def forward(self, x, mask, past=None, kv_cache=None, cache_len=0, *turn):
        q, k, v = self.attention.qkv(x, *turn)  # (B, n_head, T, D), and (B, n_kv_head, T, D) each
        y = self.attention.attend(q, k, v, mask, past, kv_cache, cache_len)  # (B, n_head, T, D)
        rows = self.prompt[0].rows[self.layer].to(x.dtype)  # (P, C)
        gate = self.prompt[0].gate[self.layer].to(x.dtype).tanh()[:, None, None]  # (n_head, 1, 1)
        _, rows_k, rows_v = self.attention.qkv(rows[None])  # (1, n_kv_head, P, D) each
        G = q.size(1) // rows_k.size(1)  # heads that share keys and values
        rows_k, rows_v = (x.repeat_interleave(G, 1) for x in (rows_k, rows_v))  # (1, n_head, P, D) each
        y = y + gate * ((q @ rows_k.mT / q.size(-1) ** 0.5).softmax(-1) @ rows_v)
        return self.attention.out(y), (k, v)


class PrefixMemory(Method):
    """A prefix outside the softmax, a matrix for each head of each layer: Wang et al. (2025).

    "Prefix-Tuning+: Modernizing Prefix-Tuning by Decoupling the Prefix from Attention". However long the text, the
    prefix weighs the same. M (D, D) is zero at first, and phi is elu. It has no rows and takes no positions.

    y = softmax(q K') V + phi(q) M
    """

    name, label, lr = "prefix-memory", "Prefix-Tuning+", 1e-3

    def __init__(self, model, n_random=0, trigger=(), seed=0):
        super().__init__()
        c = model.config
        self.memory = nn.Parameter(torch.zeros(c.n_layer, c.n_head, c.head_dim, c.head_dim))

    def network(self, model):
        twin = share_weights(model)
        for i, block in enumerate(twin.h):
            block.attn = MemoryAttention(block.attn, self, i)
        return twin


class MemoryAttention(nn.Module):
    def __init__(self, attention, prompt, layer):
        super().__init__()
        self.attention, self.prompt, self.layer = attention, [prompt], layer

    def forward(self, x, mask, past=None, kv_cache=None, cache_len=0, *turn):
        q, k, v = self.attention.qkv(x, *turn)  # (B, n_head, T, D), and (B, n_kv_head, T, D) each
        y = self.attention.attend(q, k, v, mask, past, kv_cache, cache_len)  # (B, n_head, T, D)
        memory = self.prompt[0].memory[self.layer].to(x.dtype)  # (n_head, D, D)
        return self.attention.out(y + F.elu(q) @ memory), (k, v)


class Adapter(Method):
    """A bottleneck after each block: Houlsby et al. (2019).

    "Parameter-Efficient Transfer Learning for NLP", section 2.1: y + W_up gelu(W_down y), with W_up zero at first. They
    have two in each block; one does as well according to Pfeiffer et al. (2021), "AdapterFusion", section 3.2.
    """

    name, label, lr = "adapter", "adapter", 1e-3
    options = {"bottleneck": {"type": int, "help": "the width of its hidden layer (default 16)"}}

    def __init__(self, model, n_random=0, trigger=(), seed=0, bottleneck=16):
        super().__init__(bottleneck=bottleneck)
        if not 1 <= bottleneck <= 4 * model.config.n_embd:
            raise UserError(f"--bottleneck {bottleneck}: give at least 1 and at most {4 * model.config.n_embd}")
        c, rng = model.config, torch.Generator().manual_seed(seed)
        self.down = nn.Parameter(torch.randn(c.n_layer, bottleneck, c.n_embd, generator=rng) * c.n_embd**-0.5)
        self.up = nn.Parameter(torch.zeros(c.n_layer, c.n_embd, bottleneck))

    def network(self, model):
        twin = share_weights(model)
        twin.h = nn.ModuleList(AdaptedBlock(block, self, i) for i, block in enumerate(twin.h))
        return twin


class AdaptedBlock(nn.Module):
    def __init__(self, block, adapter, layer):
        super().__init__()
        self.block, self.adapter, self.layer = block, [adapter], layer

    def forward(self, x, *args):
        x, own = self.block(x, *args)
        down, up = (w[self.layer].to(x.dtype) for w in (self.adapter[0].down, self.adapter[0].up))
        return x + F.linear(F.gelu(F.linear(x, down)), up), own


class LoRA(Method):
    """Low-rank updates of every matrix of every block: Hu et al. (2021).

    "LoRA: Low-Rank Adaptation of Large Language Models", section 4.1. A begins at random and B at zero, so that nothing
    changes at first. With `rslora` the scale is alpha / sqrt(rank): Kalajdzievski (2023), "A Rank Stabilization Scaling
    Factor for Fine-Tuning with LoRA".

    y = W x + (alpha / rank) B A x
    """

    name, label, lr = "lora", "LoRA", 3e-3
    options = RANK | {
        "alpha": {"type": weight, "help": "its update is scaled by alpha / rank (default 16)"},
        "rslora": {"action": "store_true", "help": "its update is scaled by alpha / sqrt(rank)"},
    }

    def __init__(self, model, n_random=0, trigger=(), seed=0, rank=8, alpha=16.0, rslora=False):
        super().__init__(rank=rank, alpha=alpha, rslora=rslora)
        if not 1 <= rank <= model.config.n_embd:
            raise UserError(f"--rank {rank}: give at least 1 and at most {model.config.n_embd}")
        self.scale = alpha / (rank**0.5 if rslora else rank)
        rng = torch.Generator().manual_seed(seed)
        self.A, self.B = nn.ParameterList(), nn.ParameterList()  # of each matrix: (rank, n_in), (n_out, rank)
        for _, linear in block_linears(model):
            n_out, n_in = linear.weight.shape
            self.A.append(nn.Parameter(torch.randn(rank, n_in, generator=rng) * n_in**-0.5))
            self.B.append(nn.Parameter(torch.zeros(n_out, rank)))

    def network(self, model):
        twin = share_weights(model)
        for i, (name, linear) in enumerate(block_linears(twin)):
            twin.set_submodule(name, LoRALinear(linear, self, i))
        return twin

    @torch.no_grad()
    def merged(self, model):
        """A copy of the model with the updates in its weights, W + (alpha / rank) B A: an ordinary checkpoint."""
        merged = copy.deepcopy(model)
        for (_, linear), A, B in zip(block_linears(merged), self.A, self.B):
            linear.weight += self.scale * (B @ A)
        return merged


def block_linears(model):
    """[(name, layer)] of every nn.Linear in the model's blocks, from the lowest block up."""
    return [(name, m) for name, m in model.named_modules() if name.startswith("h.") and isinstance(m, nn.Linear)]


class LoRALinear(nn.Module):
    def __init__(self, linear, lora, i):
        super().__init__()
        self.linear, self.lora, self.i = linear, [lora], i

    def forward(self, x):
        lora = self.lora[0]
        A, B = lora.A[self.i].to(x.dtype), lora.B[self.i].to(x.dtype)
        # W learns nothing, so that its backward is one product, and none where x needs no gradient
        return self.linear(x) + F.linear(F.linear(x, A), lora.scale * B)  # (..., n_out)


class Finetune(Method):
    """All weights of a copy of the base, in float32."""

    name, label, lr = "finetune", "fine-tuned", 3e-4
    top = None

    def __init__(self, model, n_random=0, trigger=(), seed=0):
        super().__init__()
        self.copy = copy.deepcopy(model).float().requires_grad_(True)
        if self.top:
            self.copy.requires_grad_(False).h[-self.top :].requires_grad_(True)

    def network(self, model):
        return self.copy


class FinetuneTop2(Finetune):
    """The weights of the top two blocks: "FT-top2" of Li & Liang (2021), table 1."""

    name, label, top = "finetune-top2", "top 2 blocks", 2


class Scratch(Method):
    """The study's task transformer: a small GPT trained from nothing on the task alone.

    It reads bytes.

    block_size: the longest text, in bytes.
    """

    name, label, lr, examples, epochs = "scratch", "from scratch", 2e-2, 20_000, 5
    is_validated = False  # it begins as nothing that could be lost

    def __init__(self, model=None, n_random=0, trigger=(), seed=0, block_size=256):
        super().__init__(block_size=block_size)
        torch.manual_seed(seed)
        self.net = GPT(GPTConfig(vocab_size=257, block_size=block_size, n_layer=3, n_head=4, n_embd=128))
        self.net.name = "scratch"
        muon.sinusoidal_positions(self.net)

    def network(self, model):
        return self.net

    def tokenizer(self, tokenizer):
        ranks = {bytes([b]): b for b in range(256)}
        special = {"<|endoftext|>": 256}
        return Tokenizer(tiktoken.Encoding("bytes", pat_str="(?s:.)", mergeable_ranks=ranks, special_tokens=special))

    def optimizers(self, lr, dtype):
        return muon.optimizers(self.net, lr, lr / 10, dtype)


METHODS = {c.name: c for c in list(globals().values()) if isinstance(c, type) and issubclass(c, Method) and c.name}
