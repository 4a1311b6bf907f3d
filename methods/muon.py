"""The optimizers that train a GPT from random weights: Muon for the blocks' matrices and AdamW for the rest."""

import torch


class Muon(torch.optim.Optimizer):
    """Momentum whose matrix updates are made orthogonal by five Newton-Schulz steps, which are computed in `dtype`.

    A parameter in `fused` is three matrices below each other, (3 * rows, columns): queries, keys and values.
    Jordan et al. (2024), "Muon: An optimizer for hidden layers in neural networks". torch.optim.Muon computes in
    bfloat16, which is 100 times slower on CPUs without hardware for it.
    """

    def __init__(self, params, lr, momentum=0.95, dtype=torch.float32, fused=()):
        super().__init__(params, {"lr": lr, "momentum": momentum})
        self.dtype, self.fused = dtype, set(fused)

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            by_shape = {}  # matrices of one shape are computed in one batch
            for p in group["params"]:
                m = self.state[p].setdefault("momentum", torch.zeros_like(p))
                m.lerp_(p.grad, 1 - group["momentum"])
                update = p.grad.lerp(m, group["momentum"])  # Nesterov
                parts = 3 if p in self.fused else 1
                for weight, u in zip(p.chunk(parts), update.chunk(parts)):
                    by_shape.setdefault(u.shape, []).append((weight, u))
            for (rows, columns), pairs in by_shape.items():
                x = torch.stack([u for _, u in pairs]).to(self.dtype)  # (n, rows, columns)
                x = x.mT if rows > columns else x
                x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
                for _ in range(5):
                    a = x @ x.mT
                    x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
                x = x.mT if rows > columns else x
                for (weight, _), u in zip(pairs, x):
                    weight.sub_(u, alpha=group["lr"] * max(1, rows / columns) ** 0.5)


def optimizers(model, lr, adam_lr, dtype=torch.float32):
    """[Muon for the blocks' matrices, AdamW for embeddings, biases and norms] of a GPT."""
    matrices = {n: p for n, p in model.named_parameters() if n.startswith("h.") and p.dim() == 2}
    others = [p for n, p in model.named_parameters() if n not in matrices]
    muon = Muon(matrices.values(), lr, dtype=dtype, fused=[p for n, p in matrices.items() if "c_attn" in n])
    return [muon, torch.optim.AdamW(others, adam_lr, betas=(0.9, 0.95), weight_decay=0)]


@torch.no_grad()
def sinusoidal_positions(model):
    """Set a GPT's position table to sinusoids of the size of GPT-2's random rows, so that "one to the left" is the same
    rotation at every position. Vaswani et al. (2017), section 3.5."""
    block_size, C = model.wpe.weight.shape
    angle = torch.arange(block_size)[:, None] / 10000 ** (torch.arange(0, C, 2) / C)  # (block_size, C / 2)
    waves = torch.stack([angle.sin(), angle.cos()], -1).flatten(1)[:, :C]  # (block_size, C)
    model.wpe.weight.copy_(waves * 0.02 * 2**0.5)
