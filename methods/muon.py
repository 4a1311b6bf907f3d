"""What training from nothing needs: Muon for the matrices, AdamW for the rest, and a start for the positions."""

import torch


class Muon(torch.optim.Optimizer):
    """Momentum whose matrix updates are made orthogonal by five Newton-Schulz steps.

    Jordan et al. (2024), "Muon: An optimizer for hidden layers in neural networks". The steps
    are computed in `dtype`: torch.optim.Muon's bfloat16 is 100x slower on CPUs without it.

    width: the columns of each matrix, where a parameter is several side by side, as a prefix's keys and values are.
    """

    def __init__(self, params, lr, momentum=0.95, dtype=torch.float32, width=None):
        super().__init__(params, {"lr": lr, "momentum": momentum})
        self.dtype, self.width = dtype, width

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            by_shape = {}  # matrices of one shape go through in one batch
            for p in group["params"]:
                if "momentum" not in self.state[p]:
                    self.state[p]["momentum"] = torch.zeros_like(p)
                m = self.state[p]["momentum"]
                m.lerp_(p.grad, 1 - group["momentum"])
                update = p.grad.lerp(m, group["momentum"])  # Nesterov
                if self.width:
                    matrices = zip(p.split(self.width, 1), update.split(self.width, 1))
                else:
                    n = 3 if p.size(0) == 3 * p.size(1) else 1  # queries, keys and values are three matrices
                    matrices = zip(p.chunk(n), update.chunk(n))
                for weight, u in matrices:
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
    matrices = [p for n, p in model.named_parameters() if n.startswith("h.") and p.dim() == 2]
    others = [p for n, p in model.named_parameters() if not (n.startswith("h.") and p.dim() == 2)]
    return [Muon(matrices, lr, dtype=dtype), torch.optim.AdamW(others, adam_lr, betas=(0.9, 0.95), weight_decay=0)]


@torch.no_grad()
def sinusoidal_positions(model):
    """Let the position table of a GPT start as sinusoids, of the size of GPT-2's random rows.

    "One to the left" is then the same rotation at every position, and training need not find it anew at each.
    Vaswani et al. (2017), section 3.5; GPT-2 itself starts from random rows.
    """
    block_size, C = model.wpe.weight.shape
    angle = torch.arange(block_size)[:, None] / 10000 ** (torch.arange(0, C, 2) / C)  # (block_size, C / 2)
    waves = torch.stack([angle.sin(), angle.cos()], -1).flatten(1)[:, :C]  # (block_size, C)
    model.wpe.weight.copy_(waves * 0.02 * 2**0.5)
