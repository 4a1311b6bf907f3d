"""Newer prompts, from 2023 on."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from prefix import RANK, HybridPrefix, Method, share_weights


class CPT(HybridPrefix):
    """Worked examples as rows at the input, tuned inside a ball around where they began: Blau et al. (2024).

    "Context-aware Prompt Tuning: Advancing In-Context Learning with Adversarial Methods". After each step every row is
    put back into the ball. Here all rows of the examples move, and the loss is that of the question's answer alone; the
    paper keeps the labels' rows in place and learns the labels of the examples as well.

    |row - start| <= epsilon sqrt(C / 2048)
    """

    name, label, takes_n_random = "cpt", "CPT", False
    needs_trigger, default_trigger = True, "example"
    options = {"epsilon": {"type": float, "help": "radius of the ball, for a base 2,048 wide (default 1)"}}

    def __init__(self, model, n_random=0, trigger=(), seed=0, epsilon=1.0):
        super().__init__(model, 0, trigger)
        self.radius = epsilon * (self.rows.size(1) / 2048) ** 0.5

    @torch.no_grad()
    def after_step(self, network, batch, loss):
        shift = self.rows - self.start  # (P, C)
        self.rows.copy_(self.start + shift * self.radius / shift.norm(dim=1, keepdim=True).clamp_min(self.radius))


class LoPT(HybridPrefix):
    """Rows at the input as a product of two thin matrices: Guo et al. (2024).

    "LoPT: Low-Rank Prompt Tuning for Parameter Efficient Language Models". They begin as the product that is closest to
    the rows of a hybrid prefix: their truncated singular value decomposition.

    rows (P, C) = U (P, rank) V (rank, C)
    """

    name, label, options = "lopt", "LoPT", RANK

    def __init__(self, model, n_random=0, trigger=(), seed=0, rank=8):
        super().__init__(model, n_random, trigger, seed)
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
    question and its answer is shifted by row i of A B, which starts at zero. The rows take a larger learning rate than
    A and B. Positions that no example reaches keep a shift of zero.

    x_i = word_i + (A B)_i
    """

    name, label, options = "dept", "DePT", RANK

    def __init__(self, model, n_random=0, trigger=(), seed=0, rank=8):
        super().__init__(model, n_random, trigger, seed)
        c, rng = model.config, torch.Generator().manual_seed(seed)
        self.A = nn.Parameter(torch.zeros(c.block_size, rank))
        self.B = nn.Parameter(torch.randn(rank, c.n_embd, generator=rng) * rank**-0.5)

    def network(self, model):
        twin = share_weights(model)

        def run(x, past=None, kv_cache=None, cache_len=0, past_pad=None, left_pad=None):
            if not x.is_floating_point():  # words, not the prompt's rows
                position = torch.arange(cache_len, cache_len + x.size(1), device=x.device)  # (T)
                if left_pad is not None:
                    position = (position - left_pad[:, None]).clamp_min(0)  # (B, T)
                shift = self.A[position] @ self.B  # (T, C) or (B, T, C)
                x = twin.wte(x) + shift.to(twin.wte.weight.dtype)
            return type(model).run(twin, x, past, kv_cache, cache_len, past_pad, left_pad)

        twin.run = run
        return twin

    def optimizers(self, lr, dtype):
        groups = [{"params": [self.rows], "lr": lr}, {"params": [self.A, self.B], "lr": lr / 10}]
        return [torch.optim.AdamW(groups, weight_decay=0)]


class PrefixMemory(Method):
    """A prefix outside the softmax, a matrix for each head of each layer: Wang et al. (2025).

    "Prefix-Tuning+: Modernizing Prefix-Tuning by Decoupling the Prefix from Attention". However long the text is, the
    prefix has the same weight. M (D, D) starts at zero, and phi is elu. It has no rows and takes no positions.

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
            block.attn.attend = partial(self.attend, block.attn.attend, i)
        return twin

    def attend(self, plain, layer, q, *args):
        return plain(q, *args) + F.elu(q) @ self.memory[layer].to(q.dtype)  # (B, n_head, T, D)
