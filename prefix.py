"""Soft prompts: what is learned to steer a frozen base.

Each prompt is a Method. Most of them make a KV cache of batch 1 (the network's `prefill`), which the model broadcasts
over the batch. The others return a network of their own that shares the frozen weights. The folder methods/ has what
prompts are compared with. A method of your own is one more class with a `name`, best in a file of that folder:
`--method` finds it, and its `options` become flags.
"""

import copy
import inspect
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

METHODS = {}  # {name: class}: the methods of this file; `import methods` adds those of that folder
RANK = {"rank": {"type": int, "help": "rank of the low-rank product (default 8)"}}


class Method(nn.Module):
    """Base class: a method provides a KV cache, a network of its own, or both. Most override `prompt_cache` alone.

    Constructors take the frozen model; n_random, the number of rows that begin as random numbers; trigger, the token
    numbers that the other rows begin as; seed; and the options that the class declares.
    """

    name = label = ""  # what --method calls it, and what tables call it
    options = {}  # its own constructor arguments, as argparse takes them; of type int: at least 1, float: above 0
    takes_n_random = False  # whether n_random changes anything
    needs_trigger = False  # whether it is nothing without a trigger
    needs_labels = False  # whether the constructor takes `labels`, a token list for each answer
    is_validated = True  # whether tuning keeps the best checkpoint on held-out questions
    default_trigger = None  # --trigger, where the instruction does not serve
    reads_examples = False  # whether its trigger has to be worked examples
    reads_in_parts = False  # whether its trigger may be longer than the base's context
    # the default recipe: peak learning rate, examples in a batch, examples to learn from, passes over them
    lr, batch_size, examples, epochs = 2e-2, 8, 1000, 1

    def __init_subclass__(cls):
        if "name" in vars(cls):
            other = METHODS.get(cls.name, cls).__module__  # a notebook may define its method again
            assert other == cls.__module__, f"{other} has a method {cls.name!r} as well: give one another name"
            METHODS[cls.name] = cls

    def __new__(cls, *args, **kwargs):
        """Records the constructor's arguments but the model: with these a file makes the same method again."""
        method = super().__new__(cls)
        given = inspect.signature(cls.__init__).bind_partial(method, *args, **kwargs)
        given.apply_defaults()
        method.init_kwargs = {k: v for k, v in given.arguments.items() if k not in ("self", "model")}
        return method

    def __init__(self):
        super().__init__()
        self.n_random = 0  # how many rows began as random numbers
        self.trigger = []  # the tokens that the others began as
        self.register_buffer("shots", None)  # text behind the prompt, for instance worked examples: tokens (1, S)

    def network(self, model):
        """The network that reads the question: the frozen model, or another one that shares its weights."""
        return model

    def prompt_cache(self, network):
        """The method's own KV cache, of batch 1, or None. Most methods override this."""

    def past(self, network):
        """What stands before the question: the method's own cache, then the text of `shots`."""
        cache = self.prompt_cache(network)
        return cache if self.shots is None else network.prefill(self.shots, cache)

    def loss(self, network, tokens, targets, answer):
        """Mean cross-entropy of a batch's answers, (), in nats per token.

        tokens and targets (B, T); answer (B, T) is True where the target belongs to an answer.
        """
        past = self.past(network)  # its keys and values, made once, with batch 1
        hidden = network(tokens, past)  # (B, T, C)
        loss = network.loss(hidden[answer], targets[answer])  # at answer positions only
        return loss

    def learns(self):
        return any(p.requires_grad for p in self.parameters())

    def optimizers(self, lr, dtype):
        """The optimizers of its parameters. dtype is that of the matrix products."""
        parameters = [p for p in self.parameters() if p.requires_grad]
        # betas below the usual 0.9 and 0.999: a run of fifty steps has no time for a long memory
        return [torch.optim.AdamW(parameters, lr, (0.8, 0.95), weight_decay=0)] if parameters else []

    def after_step(self, network, batch, loss):
        """Called after each step of the optimizers, with its batch (tokens, targets, answer) and its loss, ()."""

    def insert_rows(self, question):
        """The question's tokens, a list, with the method's rows among them as token numbers past the vocabulary."""
        return question

    def tokenizer(self, tokenizer):
        """The base's tokenizer, unless the method has a network with its own."""
        return tokenizer

    def input_rows(self):
        """Its rows at the input, (P, C), or None."""

    def n_rows(self):
        """The number of rows (virtual tokens)."""
        return 0

    def n_positions(self):
        """The number of positions that its rows and shots take."""
        return self.n_rows() + (0 if self.shots is None else self.shots.size(1))


# ---------------------------------------------------------------- rows at the input


class HybridPrefix(Method):
    """Rows at the input: random ones, then one for each token of the trigger.

    The rows (P, C) stand where token embeddings would: Lester et al. (2021), "The Power of Scale for
    Parameter-Efficient Prompt Tuning", section 2. The first n_random are drawn with the standard deviation of the
    embedding table. The others begin as the embeddings of the trigger, which helps when data are few: Li & Liang
    (2021), "Prefix-Tuning", section 7.4.

    With `mlp` the model sees rows + MLP(rows): Li & Liang's reparameterization (section 4.3) as a residual that starts
    at zero, so that trigger rows start as words. Razdaibiedina et al. (2023), "Residual Prompt Tuning".
    """

    name, label, takes_n_random = "hybrid", "hybrid prefix", True
    options = {"mlp": {"action": "store_true", "help": "the rows go through an MLP while they are tuned"}}

    def __init__(self, model, n_random=0, trigger=(), seed=0, mlp=False):
        super().__init__()
        assert n_random + len(trigger) > 0, "a prompt of no rows"
        self.n_random, self.trigger = n_random, list(trigger)
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

    Section 2, with the starts of section 3.2 as `init`:

    uniform     each number is drawn from [-0.5, 0.5]
    vocabulary  embeddings of tokens drawn from the 5,000 most frequent, which byte-level BPE numbers first
    labels      the labels' embeddings (the mean over a label's tokens), then vocabulary
    trigger     the trigger's embeddings, repeated or cut off
    """

    name, label, needs_labels = "prompt", "prompt tuning", True
    options = {
        "init": {
            "choices": ["uniform", "vocabulary", "labels", "trigger"],
            "help": "what the --n-random rows begin as (default vocabulary)",
        }
    }

    def __init__(self, model, n_random=0, trigger=(), seed=0, init="vocabulary", labels=()):
        super().__init__(model, n_random or len(trigger), seed=seed)
        self.trigger = list(trigger) if init == "trigger" else []  # the other starts read none
        self.init_kwargs |= {"n_random": len(self.rows), "trigger": self.trigger}
        rng, P = torch.Generator().manual_seed(seed), len(self.rows)
        table = model.wte.weight.detach().float().cpu()  # (vocab_size, C)
        rows = table[torch.randint(min(5000, len(table)), (P,), generator=rng)]  # (P, C)
        if init == "uniform":
            rows = torch.rand(rows.shape, generator=rng) - 0.5
        elif init == "labels":
            begin = torch.stack([table[torch.tensor(label)].mean(0) for label in labels[:P]])
            rows[: len(begin)] = begin
        elif init == "trigger":
            rows = table[torch.tensor((self.trigger * P)[:P])]
            self.n_random = 0
        self.rows.data.copy_(rows)
        self.start.copy_(rows)


class PTuning(HybridPrefix):
    """Rows at the input that an LSTM and an MLP make from learned ones: Liu et al. (2021).

    "GPT Understands, Too", section 3.2: the bidirectional LSTM ties the rows to one another. PEFT's PromptEncoder has
    the same layers. `position` puts the rows before the question, in its middle, or after it (section 3.1).
    """

    name, label = "ptuning", "P-tuning"
    options = {
        "position": {
            "choices": ["before", "inside", "after"],
            "help": "where the rows stand: before the question (default), in its middle or after it",
        }
    }

    def __init__(self, model, n_random=0, trigger=(), seed=0, position="before"):
        super().__init__(model, n_random, trigger, seed)
        C = model.config.n_embd
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.lstm = nn.LSTM(C, C, num_layers=2, bidirectional=True, batch_first=True)
            self.head = nn.Sequential(nn.Linear(2 * C, 2 * C), nn.ReLU(), nn.Linear(2 * C, C))
        self.position = position
        self.first_row = model.config.vocab_size  # the number of the first row, as a token
        self.start.copy_(self.embeddings().detach())

    def embeddings(self):
        return self.head(self.lstm(self.rows[None])[0])[0]  # (P, C)

    def prompt_cache(self, network):
        return super().prompt_cache(network) if self.position == "before" else None

    def network(self, model):
        if self.position == "before":
            return model
        twin = share_weights(model)
        twin.wte.forward = partial(self.embed, model.wte)
        return twin

    def embed(self, wte, x):
        """Tokens x (B, T) -> embeddings (B, T, C); numbers past the vocabulary are the prompt's rows."""
        is_row = x >= self.first_row  # (B, T)
        if not is_row.any():
            return wte(x)
        # F.embedding, since two threads add up the gradients of rows[...] in a random order
        rows = F.embedding((x - self.first_row).clamp_min(0), self.embeddings().to(wte.weight.dtype))  # (B, T, C)
        return torch.where(is_row[..., None], rows, wte(x.masked_fill(is_row, 0)))

    def insert_rows(self, question):
        middle = {"before": 0, "inside": len(question) // 2, "after": len(question)}[self.position]
        rows = list(range(self.first_row, self.first_row + len(self.rows))) if self.position != "before" else []
        return question[:middle] + rows + question[middle:]


class SoftWords(HybridPrefix):
    """Rows at the input, and a shift of each at the input of every layer: Qin & Eisner (2021).

    "Learning How to Ask", section 3.3, "Deeply perturbing". The shifts start at zero.
    """

    name, label, options = "softwords", "soft words", {}

    def __init__(self, model, n_random=0, trigger=(), seed=0):
        super().__init__(model, n_random, trigger, seed)
        self.shifts = nn.Parameter(torch.zeros(model.config.n_layer, *self.rows.shape))  # (n_layer, P, C)
        shifted = share_weights(model)
        for i, block in enumerate(shifted.h):
            block.register_forward_pre_hook(partial(self.shift, i))
        self.shifted = [shifted]  # in a list, so that its weights are no parameters of the method

    def shift(self, layer, block, args):
        x, *others = args  # x (1, P, C)
        return x + self.shifts[layer].to(x.dtype), *others

    def prompt_cache(self, network):
        return super().prompt_cache(self.shifted[0])


class Warp(HybridPrefix):
    """Rows at the input, and output rows for the tokens of answers: Hambardzumyan et al. (2021).

    "WARP: Word-level Adversarial ReProgramming", section 3. The output rows begin as the base's own.
    """

    name, label, options, needs_labels = "warp", "WARP", {}, True

    def __init__(self, model, n_random=0, trigger=(), seed=0, labels=()):
        super().__init__(model, n_random, trigger, seed)
        tokens = sorted({token for label in labels for token in label})
        self.register_buffer("label_tokens", torch.tensor(tokens, dtype=torch.long))  # (K)
        self.label_rows = nn.Parameter(model.head().detach()[self.label_tokens].float().cpu())  # (K, C)

    def network(self, model):
        twin = share_weights(model)

        def logits(hidden):
            of_labels = hidden @ self.label_rows.to(hidden.dtype).T  # (..., K)
            return model.logits(hidden).index_copy(-1, self.label_tokens, of_labels)

        twin.logits = logits
        twin.loss = lambda hidden, targets: F.cross_entropy(logits(hidden).float(), targets)
        return twin


# ---------------------------------------------------------------- keys and values in every layer


class DeepPrefix(Method):
    """Keys and values in every layer, and nothing at the input: Liu et al. (2022).

    "P-Tuning v2", section 3. rows (P, n_layer * 2 * n_kv_head * D) hold each layer's keys, then its values, as in PEFT.

    The rows begin as what the base computes from n_random words, drawn as it expects texts to begin, and from the
    trigger (Li & Liang 2021, section 7.4). Random numbers of one spread for all layers learn nothing here, because
    activations differ too much from layer to layer.
    """

    name, label, takes_n_random = "ptuning2", "P-tuning v2", True

    def __init__(self, model, n_random=0, trigger=(), seed=0):
        super().__init__()
        assert n_random + len(trigger) > 0, "a prompt of no rows"
        self.n_random, self.trigger = n_random, list(trigger)
        rng, device = torch.Generator().manual_seed(seed), model.wte.weight.device
        with torch.no_grad():
            words = torch.tensor(trigger, dtype=torch.long)
            if n_random:
                bos = torch.tensor([[model.config.bos_token]], device=device)  # (1, 1)
                p = model.logits(model(bos))[0, 0].float().softmax(-1).cpu()  # (vocab_size)
                words = torch.cat([torch.multinomial(p, n_random, replacement=True, generator=rng), words])
            rows = rows_of(model.prefill(words[None].to(device)))
        self.rows = nn.Parameter(rows)
        self.register_buffer("start", rows.clone())  # where each row began

    def embeddings(self):
        """(P, n_layer * 2 * n_kv_head * D): the keys and values of each row."""
        return self.rows

    def prompt_cache(self, network):
        c = network.config
        rows = self.embeddings().to(network.wte.weight.dtype)
        rows = rows.view(len(rows), c.n_layer, 2, 1, c.n_kv_head, -1).permute(1, 2, 3, 4, 0, 5)
        return [tuple(pair) for pair in rows]  # keys and values of each layer, (1, n_kv_head, P, D) each

    def n_rows(self):
        return len(self.rows)


class PrefixTuning(DeepPrefix):
    """Keys and values in every layer, through an MLP: Li & Liang (2021).

    "Prefix-Tuning", sections 4.2 and 4.3, as a residual: an MLP of a learned code (P, C) is added to the rows of
    P-tuning v2. It starts at zero.
    """

    name, label, lr = "prefix", "prefix-tuning", 3e-3

    def __init__(self, model, n_random=0, trigger=(), seed=0):
        super().__init__(model, n_random, trigger, seed)
        rng = torch.Generator().manual_seed(seed)
        self.code = nn.Parameter(torch.randn(len(self.rows), model.config.n_embd, generator=rng))  # (P, C)
        self.mlp = zero_mlp(model.config.n_embd, self.rows.size(1), rng)

    def embeddings(self):
        return self.rows + self.mlp(self.code)


class AdapterPrefix(Method):
    """Rows in the upper layers, behind a gate that starts at zero: Zhang et al. (2023).

    "LLaMA-Adapter", section 3. The attention of each of the top `layers` makes keys and values of P rows. These have a
    softmax of their own, weighted by a gate for each head, so that nothing changes at first.

    y = softmax(q K') V + tanh(gate) softmax(q K(rows)') V(rows)
    """

    name, label, takes_n_random = "adapter-prefix", "LLaMA-Adapter", True
    options = {"layers": {"type": int, "help": "only the top N layers have rows (default: half)"}}

    def __init__(self, model, n_random=0, trigger=(), seed=0, layers=None):
        super().__init__()
        c = model.config
        self.n_random, self.trigger = n_random, list(trigger)
        layers = min(layers or c.n_layer // 2 or 1, c.n_layer)
        rows = HybridPrefix(model, n_random, trigger, seed).start  # (P, C)
        self.rows = nn.Parameter(rows.repeat(layers, 1, 1))  # (layers, P, C)
        self.gate = nn.Parameter(torch.zeros(layers, c.n_head))

    def n_rows(self):
        return self.rows.size(1)

    def n_positions(self):
        return super().n_positions() - self.n_rows()  # a softmax of their own, so that they take no position

    def network(self, model):
        twin = share_weights(model)
        for i, block in enumerate(twin.h[-len(self.rows) :]):
            block.attn.attend = partial(self.attend, block.attn, block.attn.attend, i)
        return twin

    def attend(self, attention, plain, layer, q, *args):
        """plain(q, *args), the layer's own attention, with the gated attention to the rows: (B, n_head, T, D)."""
        _, k, v = attention.qkv(self.rows[layer].to(q.dtype)[None])  # (1, n_kv_head, P, D) each
        k, v = (x.repeat_interleave(q.size(1) // x.size(1), 1) for x in (k, v))  # (1, n_head, P, D) each
        gate = self.gate[layer].to(q.dtype).tanh()[:, None, None]  # (n_head, 1, 1)
        return plain(q, *args) + gate * ((q @ k.mT / q.size(-1) ** 0.5).softmax(-1) @ v)


# ---------------------------------------------------------------- words


class ZeroShot(Method):
    """Nothing stands before the question."""

    name, label = "zero-shot", "zero-shot"

    def __init__(self, model, n_random=0, trigger=(), seed=0):
        super().__init__()


class TextPrompt(Method):
    """The trigger as text: an instruction, or worked examples in the context. Nothing is trained."""

    name, label, needs_trigger = "text", "trigger as text", True

    def __init__(self, model, n_random=0, trigger=(), seed=0):
        super().__init__()
        self.trigger = list(trigger)
        self.register_buffer("tokens", torch.tensor(trigger, dtype=torch.long))  # (P)

    def prompt_cache(self, network):
        return network.prefill(self.tokens[None])

    def n_rows(self):
        return len(self.tokens)


class FewShot(TextPrompt):
    """The best context: as many worked examples as serve best, chosen by eval/contexts.py."""

    name, label, needs_trigger = "few-shot", "best context", False


class HardPrompt(TextPrompt):
    """Words of the base's own vocabulary, found by gradient: Shin et al. (2020).

    "AutoPrompt", section 2.2. It begins as n_random words drawn from the vocabulary, then those of the trigger.
    """

    name, label = "hard", "hard prompt"
    needs_trigger, takes_n_random = False, True
    candidates = 8  # words that each step tries

    def __init__(self, model, n_random=0, trigger=(), seed=0):
        rng = torch.Generator().manual_seed(seed)
        words = torch.randint(model.config.vocab_size, (n_random,), generator=rng).tolist()
        super().__init__(model, trigger=[*words, *trigger])
        self.n_random, self.trigger = n_random, list(trigger)
        self.rng = rng

    def prompt_cache(self, network):
        # the search reads the gradient of these embeddings
        self.rows = network.wte.weight[self.tokens].detach().requires_grad_(True)  # (P, C)
        return network.prefill(self.rows[None])

    def learns(self):
        return True

    @torch.no_grad()
    def after_step(self, network, batch, loss):
        """Exchange one word, drawn at random, for the candidate with the lowest loss on the batch, if it is lower."""
        i = torch.randint(len(self.tokens), (), generator=self.rng).item()
        change = network.wte.weight @ self.rows.grad[i]  # (vocab_size): the loss with each word there, to first order
        best = self.tokens
        for word in change.topk(self.candidates, largest=False).indices:
            self.tokens = best.clone()
            self.tokens[i] = word
            other = self.loss(network, *batch)
            if other < loss:
                loss, best = other, self.tokens
            self.tokens = best


# ---------------------------------------------------------------- helpers of methods


def zero_mlp(n_in, n_out, rng):
    """An MLP with a hidden layer of n_in units, whose output starts at zero."""
    mlp = nn.Sequential(nn.Linear(n_in, n_in), nn.Tanh(), nn.Linear(n_in, n_out))
    nn.init.normal_(mlp[0].weight, std=n_in**-0.5, generator=rng)
    for zero in (mlp[0].bias, mlp[2].weight, mlp[2].bias):
        nn.init.zeros_(zero)
    return mlp


def rows_of(cache):
    """A cache of batch 1 and P positions as rows, (P, layers * 2 * n_kv_head * D), on the CPU in float32."""
    rows = torch.stack([torch.stack(pair) for pair in cache])  # (layers, 2, 1, n_kv_head, P, D)
    return rows[:, :, 0].permute(3, 0, 1, 2, 4).flatten(1).float().cpu()


def share_weights(model):
    """Another network with the same parameters, not copied: hooks can change it, and the model stays as it is."""
    return copy.deepcopy(model, memo={id(p): p for p in model.parameters()})


def block_linears(model):
    """[(name, layer)] of every nn.Linear in the model's blocks, from the lowest block up."""
    return [(name, m) for name, m in model.named_modules() if name.startswith("h.") and isinstance(m, nn.Linear)]
