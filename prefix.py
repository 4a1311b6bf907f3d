"""Everything that can be learned to steer a frozen GPT-2.

Most methods are soft prompts: modules whose forward takes the frozen model and returns a KV cache of batch 1
(model.py's `prefill`), which the model broadcasts over the batch. The others, with which prompts are compared,
return a network of their own, which shares the frozen weights, or put rows elsewhere than before the question.
"""

import copy
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import nn

from model import GPT, write_tensors


class Method(nn.Module):
    """What the training loop asks of every method. `init_kwargs` are the arguments that make the same one again.

    Constructors take the frozen model; n_random, the number of rows that begin at random; trigger, the token
    numbers that the rows behind those begin as; seed; and options of their own.
    """

    options = ()  # its own arguments, train_task.py's flags of the same names
    lr = 1e-2  # peak learning rate by default

    def __init__(self, **init_kwargs):
        super().__init__()
        self.init_kwargs, self.n_random = init_kwargs, init_kwargs.get("n_random", 0)
        if "trigger" in init_kwargs and self.n_random + len(init_kwargs["trigger"]) == 0:
            raise ValueError("a prefix of no rows: raise --n-random or give a --trigger")

    def forward(self, model):
        """The KV cache that stands before the question, or None."""

    def network(self, model):
        """The network that reads the question: the frozen model itself, or one that shares its weights."""
        return model

    def insert_rows(self, question):
        """The question's tokens, a list, with the method's own among them: numbers past the vocabulary."""
        return question

    def n_positions(self):
        """How many positions of the model it takes up."""
        return 0

    def distance(self):
        """Mean square of how far its rows are from where they began, (): what --pull holds small."""
        return (self.embeddings() - self.start).square().mean()


# ---------------------------------------------------------------- caches made of words


class TextPrompt(Method):
    """Words instead of vectors: an instruction or worked examples in the context. Nothing to train.

    trigger: a list of P token numbers.
    """

    method, title = "instruct", "an instruction"

    def __init__(self, model, trigger=(), n_random=0, seed=0):
        super().__init__(trigger=list(trigger))
        self.register_buffer("tokens", torch.tensor(trigger))  # (P)

    def forward(self, model):
        return model.prefill(self.tokens[None])

    def n_positions(self):
        return len(self.tokens)


class HardPrompt(TextPrompt):
    """P words of the base's own vocabulary, found by gradient: Shin et al. (2020), "AutoPrompt", section 2.2.

    Begins as n_random words drawn from the vocabulary and those of the trigger.
    """

    method, title = "hard", "hard prompt"
    candidates = 8  # words that each step tries

    def __init__(self, model, trigger=(), n_random=0, seed=0):
        rng = torch.Generator().manual_seed(seed)
        words = torch.randint(model.config.vocab_size, (n_random,), generator=rng).tolist()
        super().__init__(model, [*words, *trigger])
        self.rng = rng

    def forward(self, model):
        self.rows = model.wte.weight[self.tokens].detach().requires_grad_(True)  # (P, C): improve reads its gradient
        return model.prefill(self.rows[None])

    @torch.no_grad()
    def improve(self, model, tokens, targets, answer, loss, shots=None):
        """After loss.backward() on a batch, (B, T) each: change one word, drawn at random, if that lowers the loss.

        `shots` (1, S) are worked examples that stand between the words and the question.
        """
        i = torch.randint(len(self.rows), (), generator=self.rng).item()
        rise = model.wte.weight @ self.rows.grad[i]  # (vocab_size): of the loss with that word there, were it linear
        for word in rise.topk(self.candidates, largest=False).indices:
            words = self.tokens.clone()
            words[i] = word
            past = model.prefill(words[None])
            past = past if shots is None else model.prefill(shots, past)
            other = model.loss(model(tokens, past)[answer], targets[answer])
            if other < loss:
                loss, self.tokens = other, words


# ---------------------------------------------------------------- caches made of vectors


class HybridPrefix(Method):
    """P rows at the input: n_random random ones, then one for each token of the trigger.

    rows (P, C) stand where token embeddings would: Lester et al. (2021), "The Power of Scale for
    Parameter-Efficient Prompt Tuning", section 2; words to start from help in low-data settings:
    Li & Liang (2021), "Prefix-Tuning", section 7.4. With `mlp` the model sees rows + MLP(rows),
    the reparameterisation of Li & Liang (section 4.3) as a residual, which starts at zero so that
    trigger rows start as words: Razdaibiedina et al. (2023), "Residual Prompt Tuning".
    Random rows are drawn with the embedding table's own standard deviation.
    """

    method, title, options = "hybrid", "hybrid prefix", ("mlp",)

    def __init__(self, model, n_random, trigger=(), mlp=False, seed=0):
        super().__init__(n_random=n_random, trigger=list(trigger), mlp=mlp)
        rng = torch.Generator().manual_seed(seed)
        table = model.wte.weight.detach().float().cpu()  # (vocab_size, C)
        C = table.size(1)
        random_rows = torch.randn(n_random, C, generator=rng) * table.std()  # (n_random, C)
        rows = torch.cat([random_rows, table[torch.tensor(trigger, dtype=torch.long)]])  # (P, C)
        self.rows = nn.Parameter(rows)
        self.register_buffer("start", rows.clone())  # to see later how far each row went
        self.mlp = zero_mlp(C, C, rng) if mlp else None

    def embeddings(self):
        """(P, C): what the model sees in place of token embeddings."""
        return self.rows if self.mlp is None else self.rows + self.mlp(self.rows)

    def forward(self, model):
        return model.prefill(self.embeddings()[None].to(model.wte.weight.dtype))

    def n_positions(self):
        return len(self.rows)


class PromptTuning(HybridPrefix):
    """P rows at the input: Lester et al. (2021), section 2, whose ways to begin (section 3.2) are `init`:

    uniform     each number from [-0.5, 0.5]
    vocabulary  the embeddings of tokens drawn from the 5,000 most frequent, which byte-level BPE numbers first
    labels      the labels' embeddings, the mean where one has several tokens; from the vocabulary beyond them
    trigger     the trigger's words, repeated or cut off
    labels: a list of token lists.
    """

    method, title, options = "prompt", "prompt tuning", ("init", "labels")

    def __init__(self, model, n_random, trigger=(), seed=0, init="vocabulary", labels=()):
        if init == "trigger" and not trigger or init == "labels" and not labels:
            raise ValueError(f"--init {init}: there is no {init} to begin as")
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


class PTuning(HybridPrefix):
    """P rows that a bidirectional LSTM and an MLP make of P learned ones, which ties them to one another:
    Liu et al. (2021), "GPT Understands, Too", section 3.2; PEFT's PromptEncoder has the same layers.

    `place` puts them before the question, inside it, at its middle, or after it (section 3.1, the template).
    """

    method, title, options = "ptuning", "P-tuning", ("place",)

    def __init__(self, model, n_random, trigger=(), seed=0, place="before"):
        super().__init__(model, n_random, trigger, seed=seed)
        self.init_kwargs = {"n_random": n_random, "trigger": list(trigger), "place": place}
        C = model.config.n_embd
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.lstm = nn.LSTM(C, C, num_layers=2, bidirectional=True, batch_first=True)
            self.head = nn.Sequential(nn.Linear(2 * C, 2 * C), nn.ReLU(), nn.Linear(2 * C, C))
        self.place, self.first = place, model.config.vocab_size
        self.start.copy_(self.embeddings().detach())

    def embeddings(self):
        return self.head(self.lstm(self.rows[None])[0])[0]  # (P, C)

    def forward(self, model):
        return super().forward(model) if self.place == "before" else None

    def network(self, model):
        if self.place == "before":
            return model
        return share_weights(model, SoftTokenGPT, self)

    def insert_rows(self, question):
        middle = {"before": 0, "inside": len(question) // 2, "after": len(question)}[self.place]
        rows = list(range(self.first, self.first + len(self.rows))) if self.place != "before" else []
        return question[:middle] + rows + question[middle:]


class SoftTokenGPT(GPT):
    """A GPT for which token numbers past its vocabulary are a prompt's rows."""

    def run(self, x, *args, **more):
        if not x.is_floating_point() and (own := x >= self.config.vocab_size).any():  # (B, T)
            rows = self.prompt[0].embeddings().to(self.wte.weight.dtype)  # (P, C)
            words = self.wte(x.masked_fill(own, 0))  # (B, T, C)
            x = torch.where(own[..., None], rows[(x - self.config.vocab_size).clamp_min(0)], words)
        return super().run(x, *args, **more)


class SoftWords(HybridPrefix):
    """P rows at the input, and a learned shift of each at the input of every layer, all zero at first:
    Qin & Eisner (2021), "Learning How to Ask", section 3.3, "Deeply perturbing"."""

    method, title, options = "softwords", "soft words", ()

    def __init__(self, model, n_random, trigger=(), seed=0):
        super().__init__(model, n_random, trigger, seed=seed)
        self.init_kwargs = {"n_random": n_random, "trigger": list(trigger)}
        self.shifts = nn.Parameter(torch.zeros(model.config.n_layer, *self.rows.shape))  # (n_layer, P, C)

    def forward(self, model):
        x, P = self.rows + model.wpe.weight[: len(self.rows)], len(self.rows)  # (P, C)
        x, cache = x[None].to(model.wte.weight.dtype), []
        mask = x.new_full((P, P), -torch.inf).triu(1)
        for block, shift in zip(model.h, self.shifts):
            x, own = block(x + shift.to(x.dtype), mask)  # (1, P, C)
            cache.append(own)
        return cache


class DeepPrefix(Method):
    """P keys and values in every layer, and nothing at the input: Liu et al. (2022), "P-Tuning v2", section 3.

    With `layers` only the top ones have them, and those below run as without a prefix, and without gradients.
    rows (P, layers * 2 * C), per layer its keys, then its values: PEFT's layout. They begin as what the base
    computes of n_random words, drawn as it expects texts to begin, and the trigger (Li & Liang 2021, section 7.4).
    Numbers drawn with one spread for all layers learn nothing here: activations differ too much from layer to layer.
    So do words drawn evenly from the vocabulary, where the base has never read most of it, as with plain bytes.

    With `head` a linear layer scores the K tokens that the labels (token lists) are made of in place of the base's
    output rows (section 3.2, "Classification Head"); it starts at zero, and no other token can be written.
    """

    method, title, options, lr = "ptuning2", "P-tuning v2", ("layers", "head", "labels"), 2e-2

    def __init__(self, model, n_random, trigger=(), seed=0, layers=None, head=False, labels=()):
        with_head = {"head": True, "labels": list(labels)} if head else {}
        super().__init__(n_random=n_random, trigger=list(trigger), layers=layers, **with_head)
        c = model.config
        if layers is not None and not 1 <= layers <= c.n_layer:
            raise ValueError(f"--layers {layers}: {model.name} has 1 to {c.n_layer}")
        self.layers = layers or c.n_layer
        rng = torch.Generator().manual_seed(seed)
        device = model.wte.weight.device
        with torch.no_grad():
            words = torch.tensor(trigger, dtype=torch.long)
            if n_random:
                end_of_text = torch.tensor([[c.vocab_size - 1]], device=device)  # the last of GPT-2's tokens and nano's
                p = model.logits(model(end_of_text))[0, 0].float().softmax(-1).cpu()  # (vocab_size)
                words = torch.cat([torch.multinomial(p, n_random, replacement=True, generator=rng), words])
            cache = model.prefill(words[None].to(device))[-self.layers :]  # of P words
        rows = torch.stack([torch.stack(pair) for pair in cache])  # (layers, 2, 1, n_head, P, D)
        rows = rows[:, :, 0].permute(3, 0, 1, 2, 4).flatten(1).float().cpu()  # (P, layers * 2 * C)
        self.rows = nn.Parameter(rows)
        self.register_buffer("start", rows.clone())
        if head:
            self.register_buffer("label_tokens", torch.tensor(sorted({t for label in labels for t in label})))  # (K)
            self.head = nn.Linear(c.n_embd, len(self.label_tokens))
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    def network(self, model):
        if "head" not in self.init_kwargs:
            return model
        return share_weights(model, HeadGPT, self)

    def embeddings(self):
        """(P, layers * 2 * C): all keys and values of each row."""
        return self.rows

    def forward(self, model):
        c = model.config
        rows = self.embeddings().to(model.wte.weight.dtype)
        top = rows.view(len(rows), self.layers, 2, 1, c.n_head, -1).permute(1, 2, 3, 4, 0, 5)
        nothing = rows.new_zeros(2, 1, c.n_head, 0, top.size(-1))
        # per layer keys and values, (1, n_head, P, D) each, with P = 0 in the lower ones
        return [tuple(pair) for pair in (*[nothing] * (c.n_layer - self.layers), *top)]

    def n_positions(self):
        return len(self.rows)


class PrefixTuning(DeepPrefix):
    """The same behind a reparameterisation: to the rows is added what an MLP makes of a code (P, C), at first
    nothing. Li & Liang (2021), "Prefix-Tuning", sections 4.2 and 4.3, as a residual."""

    method, title, options, lr = "prefix", "prefix-tuning", ("layers",), 3e-3

    def __init__(self, model, n_random, trigger=(), seed=0, layers=None):
        super().__init__(model, n_random, trigger, seed, layers)
        rng = torch.Generator().manual_seed(seed)
        self.code = nn.Parameter(torch.randn(len(self.rows), model.config.n_embd, generator=rng))  # (P, C)
        self.mlp = zero_mlp(model.config.n_embd, self.rows.size(1), rng)

    def embeddings(self):
        return self.rows + self.mlp(self.code)


def zero_mlp(n_in, n_out, rng):
    """A hidden layer of n_in units; what it puts out starts at zero."""
    mlp = nn.Sequential(nn.Linear(n_in, n_in), nn.Tanh(), nn.Linear(n_in, n_out))
    nn.init.normal_(mlp[0].weight, std=n_in**-0.5, generator=rng)
    for zero in (mlp[0].bias, mlp[2].weight, mlp[2].bias):
        nn.init.zeros_(zero)
    return mlp


# ---------------------------------------------------------------- networks of their own


def share_weights(model, kind=GPT, prompt=None):
    """Another GPT of the same weights, not copied: its parts can be exchanged and the model stays as it is.

    A kind of its own finds the method in `prompt[0]`, in a list so that it is no part of the network.
    """
    with torch.device("meta"):
        twin = kind(model.config)
    twin.load_state_dict(model.state_dict(), assign=True)
    twin.name, twin.prompt = model.name, [prompt]
    return twin.freeze()


class Warp(HybridPrefix):
    """P rows at the input, and learned output rows for the tokens that answers are made of, which begin as the
    base's own: Hambardzumyan et al. (2021), "WARP: Word-level Adversarial ReProgramming", section 3.

    labels: a list of token lists, whose tokens get output rows.
    """

    method, title, options = "warp", "WARP", ("labels",)

    def __init__(self, model, n_random, trigger=(), seed=0, labels=()):
        super().__init__(model, n_random, trigger, seed=seed)
        self.init_kwargs = {"n_random": n_random, "trigger": list(trigger), "labels": list(labels)}
        self.register_buffer("label_tokens", torch.tensor(sorted({t for label in labels for t in label})))  # (K)
        self.label_rows = nn.Parameter(model.wte.weight.detach()[self.label_tokens].float().cpu())  # (K, C)

    def network(self, model):
        return share_weights(model, LabelRowsGPT, self)


class LabelRowsGPT(GPT):
    """A GPT with output rows of a prompt's own for some tokens."""

    def logits(self, hidden):
        prompt = self.prompt[0]
        own = hidden @ prompt.label_rows.to(hidden.dtype).T  # (..., K)
        return super().logits(hidden).index_copy(-1, prompt.label_tokens, own)

    def loss(self, hidden, targets):
        return F.cross_entropy(self.logits(hidden).float(), targets)


class HeadGPT(LabelRowsGPT):
    """A GPT whose output is a prompt's head: of some tokens, with all others ruled out."""

    def logits(self, hidden):
        prompt = self.prompt[0]
        weight, bias = (p.to(hidden.dtype) for p in prompt.head.parameters())
        scores = F.linear(hidden, weight, bias)  # (..., K)
        logits = scores.new_full((*hidden.shape[:-1], self.config.vocab_size), -torch.inf)
        return logits.index_copy(-1, prompt.label_tokens, scores)


class AdapterPrefix(Method):
    """P rows in each of the top `layers` (default: half of them), of which the layer's own weights make keys and
    values; they have a softmax of their own, weighted by a gate a head that starts at zero, so that nothing
    changes at first: Zhang et al. (2023), "LLaMA-Adapter", section 3.

    y = softmax(q K') V + tanh(gate) softmax(q K(rows)') V(rows)
    """

    method, title, options = "adapter-prefix", "LLaMA-Adapter", ("layers",)

    def __init__(self, model, n_random, trigger=(), seed=0, layers=None):
        super().__init__(n_random=n_random, trigger=list(trigger), layers=layers)
        c = model.config
        layers = layers or c.n_layer // 2 or 1
        if not 1 <= layers <= c.n_layer:
            raise ValueError(f"--layers {layers}: {model.name} has 1 to {c.n_layer}")
        rows = HybridPrefix(model, n_random, trigger, seed=seed).start  # (P, C)
        self.rows = nn.Parameter(rows.repeat(layers, 1, 1))  # (layers, P, C)
        self.gate = nn.Parameter(torch.zeros(layers, c.n_head))

    def network(self, model):
        twin = share_weights(model)
        for i, block in enumerate(twin.h[-len(self.rows) :]):
            block.attn = GatedAttention(block.attn, self, i)
        return twin


class GatedAttention(nn.Module):
    def __init__(self, attention, prompt, layer):
        super().__init__()
        self.attention, self.prompt, self.layer = attention, [prompt], layer

    def forward(self, x, *args):
        y, own = self.attention(x, *args)
        B, T, C = x.shape
        n_head, w, b = self.attention.n_head, self.attention.c_attn.weight, self.attention.c_attn.bias
        rows = self.prompt[0].rows[self.layer].to(x.dtype)  # (P, C)
        gate = self.prompt[0].gate[self.layer].to(x.dtype).tanh()[:, None, None]  # (n_head, 1, 1)
        q = F.linear(x, w[:C], b[:C]).view(B, T, n_head, -1).transpose(1, 2)  # (B, n_head, T, D)
        k, v = F.linear(rows, w[C:], b[C:]).view(len(rows), 2, n_head, -1).permute(1, 2, 0, 3)  # (n_head, P, D) each
        ours = gate * ((q @ k.mT / q.size(-1) ** 0.5).softmax(-1) @ v)  # (B, n_head, T, D)
        return y + F.linear(ours.transpose(1, 2).reshape(B, T, C), self.attention.c_proj.weight), own


class Adapter(Method):
    """A bottleneck after each block: y + W_up gelu(W_down y), with W_up zero at first. Houlsby et al. (2019),
    "Parameter-Efficient Transfer Learning for NLP", section 2.1, who have two in each; one does as well
    according to Pfeiffer et al. (2021), "AdapterFusion", section 3.2."""

    method, title, options, lr = "adapter", "adapter", ("bottleneck",), 1e-3

    def __init__(self, model, n_random=0, trigger=(), seed=0, bottleneck=16):
        super().__init__(bottleneck=bottleneck)
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


class Finetune(Method):
    """All weights of a copy, in float32, or those of its top blocks."""

    method, title, lr = "finetune", "fine-tuned", 3e-4
    top = None

    def __init__(self, model, n_random=0, trigger=(), seed=0):
        super().__init__()
        self.copy = copy.deepcopy(model).float().requires_grad_(True)
        if self.top:
            self.copy.requires_grad_(False).h[-self.top :].requires_grad_(True)

    def network(self, model):
        return self.copy


class FinetuneTop2(Finetune):
    """The top two blocks alone: Li & Liang (2021), table 1, "FT-top2"."""

    method, title, top = "finetune-top2", "top 2 blocks", 2


METHODS = {
    kind.method: kind
    for kind in (
        *(HybridPrefix, PromptTuning, PTuning, PrefixTuning, DeepPrefix, AdapterPrefix, Warp, SoftWords),
        *(HardPrompt, TextPrompt, Adapter, Finetune, FinetuneTop2),
    )
}


# ---------------------------------------------------------------- files


def save(prompt, path, model, tokenizer, task="", trigger="", form="{}", stop=""):
    """Write what was trained. The header says which base, tokenizer, task and trigger it belongs to, how
    a question is put (`form`, with {} for it) and what ends its answer ('': the end-of-text token)."""
    header = {
        "format": "nanoprompt prefix",
        "method": prompt.method,
        "init_kwargs": json.dumps(prompt.init_kwargs),
        "base": model.name,
        "base_fingerprint": model.fingerprint(),
        "tokenizer": tokenizer.name,
        "tokenize": tokenizer.tokenize,
        "task": task,
        "trigger": trigger,
        "form": form,
        "stop": stop,
    }
    frozen = {name for name, p in prompt.named_parameters() if not p.requires_grad}
    write_tensors(path, {n: t for n, t in prompt.state_dict().items() if n not in frozen}, header)


def load(path, model, tokenizer):
    """(prompt, header) from a file. Raises ValueError where it is broken or for another base or tokenizer.

    Whether the text of its task is bytes or BPE, header["tokenize"], is for the caller to follow.
    """
    if not Path(path).is_file():
        raise ValueError(f"no prefix file {path}: train_task.py writes prefix.safetensors into its run's folder")
    header, tensors = read(path)
    if header.get("format") != "nanoprompt prefix" or "init_kwargs" not in header:
        raise ValueError(f"{path} is no prefix: name the prefix.safetensors of a run")
    if header["base_fingerprint"] != model.fingerprint():
        tuned_on = f"{header['base']!r} ({header['base_fingerprint']})"
        raise ValueError(f"{path} was tuned on the base {tuned_on}, not on {model.name!r} ({model.fingerprint()})")
    if header["tokenizer"] != tokenizer.name:
        raise ValueError(f"{path} was tuned with the tokenizer {header['tokenizer']}, not with {tokenizer.name}")
    prompt = METHODS[header["method"]](model, **json.loads(header["init_kwargs"]))
    missing, unknown = prompt.load_state_dict(tensors, strict=False)
    trained = {name for name, p in prompt.named_parameters() if p.requires_grad}
    if unknown or trained & set(missing):
        raise ValueError(f"{path} is no complete {header['method']}: train it again")
    return prompt.to(model.wte.weight.device), header


def read(path):
    """(header, {name: tensor}) of a safetensors file. Raises ValueError where it is none."""
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}, {n: file.get_tensor(n) for n in file.keys()}  # noqa: SIM118, not a dict
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read ({error}): it is no safetensors file, or it was cut off") from None
