"""Methods that learn weights of the network, from low-rank updates to a network of their own."""

import copy
from functools import partial

import tiktoken
import torch
import torch.nn.functional as F
from torch import nn

from data.tokenizer import Tokenizer
from methods import muon
from model import GPT, GPTConfig
from prefix import RANK, Method, block_linears, share_weights


class Adapter(Method):
    """A bottleneck after each block: Houlsby et al. (2019).

    "Parameter-Efficient Transfer Learning for NLP", section 2.1: y + W_up gelu(W_down y), with W_up zero at first. The
    paper has two in each block; one does as well according to Pfeiffer et al. (2021), "AdapterFusion", section 3.2.
    """

    name, label, lr = "adapter", "adapter", 3e-3
    options = {"bottleneck": {"type": int, "help": "width of the hidden layer (default 16)"}}

    def __init__(self, model, n_random=0, trigger=(), seed=0, bottleneck=16):
        super().__init__()
        c, rng = model.config, torch.Generator().manual_seed(seed)
        self.down = nn.Parameter(torch.randn(c.n_layer, bottleneck, c.n_embd, generator=rng) * c.n_embd**-0.5)
        self.up = nn.Parameter(torch.zeros(c.n_layer, c.n_embd, bottleneck))

    def network(self, model):
        twin = share_weights(model)
        for i, block in enumerate(twin.h):
            block.register_forward_hook(partial(self.adapt, i))
        return twin

    def adapt(self, layer, block, args, out):
        x, new_kv = out  # x (B, T, C)
        down, up = self.down[layer].to(x.dtype), self.up[layer].to(x.dtype)
        return x + F.linear(F.gelu(F.linear(x, down)), up), new_kv


class LoRA(Method):
    """Low-rank updates of every matrix of every block: Hu et al. (2021).

    "LoRA: Low-Rank Adaptation of Large Language Models", section 4.1. A begins at random and B at zero, so that nothing
    changes at first.

    y = W x + (alpha / rank) B A x
    """

    name, label, lr = "lora", "LoRA", 2e-3
    options = RANK | {"alpha": {"type": float, "help": "the update is scaled by alpha / rank (default 16)"}}

    def __init__(self, model, n_random=0, trigger=(), seed=0, rank=8, alpha=16.0):
        super().__init__()
        self.scale = alpha / rank
        rng = torch.Generator().manual_seed(seed)
        self.A, self.B = nn.ParameterList(), nn.ParameterList()  # of each matrix: (rank, n_in), (n_out, rank)
        for _, linear in block_linears(model):
            n_out, n_in = linear.weight.shape
            self.A.append(nn.Parameter(torch.randn(rank, n_in, generator=rng) * n_in**-0.5))
            self.B.append(nn.Parameter(torch.zeros(n_out, rank)))

    def network(self, model):
        twin = share_weights(model)
        for i, (_, linear) in enumerate(block_linears(twin)):
            linear.register_forward_hook(partial(self.update, i))
        return twin

    def update(self, i, linear, args, y):
        (x,) = args
        A, B = self.A[i].to(x.dtype), self.B[i].to(x.dtype)
        return y + F.linear(F.linear(x, A), self.scale * B)  # (..., n_out)

    @torch.no_grad()
    def merged(self, model):
        """A copy of the model with the updates in its weights, W + (alpha / rank) B A: an ordinary checkpoint."""
        merged = copy.deepcopy(model)
        for (_, linear), A, B in zip(block_linears(merged), self.A, self.B):
            linear.weight += self.scale * (B @ A)
        return merged


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
    """The study's task transformer: a small GPT trained from nothing on the task alone. It reads bytes.

    block_size: the longest text, in bytes.
    """

    name, label = "scratch", "from scratch"
    lr, batch_size, examples, epochs = 1e-2, 16, 20_000, 3
    is_validated = False  # it begins as nothing that could be lost

    def __init__(self, model=None, n_random=0, trigger=(), seed=0, block_size=256):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.net = GPT(GPTConfig(vocab_size=257, block_size=block_size, n_layer=2, n_head=4, n_embd=64))
        self.net.name = "scratch"
        muon.sinusoidal_positions(self.net)

    def network(self, model):
        return self.net

    def tokenizer(self, tokenizer):
        ranks = {bytes([b]): b for b in range(256)}
        special = {"<|endoftext|>": 256}
        return Tokenizer(tiktoken.Encoding("bytes", pat_str="(?s:.)", mergeable_ranks=ranks, special_tokens=special))

    def optimizers(self, lr, dtype):
        return muon.optimizers(self.net, lr, 0.4 * lr, dtype)
