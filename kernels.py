"""Fast paths of both networks, each with the slow line it equals. Shapes are those of model.py."""

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint


def run_block(block, args, checkpoint_activations):
    """block(*args). With checkpoint_activations, the backward pass computes what is inside the block again and nothing
    of it is kept: Chen et al. (2016), "Training Deep Nets with Sublinear Memory Cost", section 3."""
    if checkpoint_activations:
        return checkpoint(block, *args, use_reentrant=False, preserve_rng_state=False)
    return block(*args)


def can_fuse(q, mask, past, kv_cache):
    """Whether fused_attention can take these arguments of Attention.attend, and is faster than the readable lines."""
    if kv_cache is not None or mask.dim() > 2:  # positions that are not written yet, or empty
        return False
    if past is None:
        return q.is_cuda or q.dtype == torch.float32  # on a CPU it is slower in bfloat16 (docs/speed.md)
    return q.is_cuda and past[0].size(2) > 0


def fused_attention(q, k, v, past):
    """(q @ keys.mT / D**0.5 + mask).softmax(-1) @ values, where keys and values are those of the past, then k and v."""
    G = q.size(1) // k.size(1)
    if past is None:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=G > 1)
    k, v = (x.repeat_interleave(G, 1) if G > 1 else x for x in (k, v))  # (B, n_head, T, D) each
    return SplitAttention.apply(q, *past, k, v)


def matmul_parts(q, keys):
    """q @ torch.cat(keys, 2).mT: the scores of q (B, n_head, T, D), for keys (1 or B, n_kv_head, any, D) each."""
    (B, n_head, T, D), n_kv_head = q.shape, keys[0].size(1)
    q = q.reshape(B, n_kv_head, n_head // n_kv_head * T, D)  # as by_key_head, so that `view` copies no scores
    return torch.cat([matmul_shared(q, k.mT) for k in keys], dim=-1).view(B, n_head, T, -1)


def sum_parts(weights, values):
    """weights @ torch.cat(values, 2), for weights (B, n_head, T, S) and values (1 or B, n_kv_head, any, D) each."""
    first, *more = map(matmul_shared, weights.split([v.size(2) for v in values], -1), values)
    return sum(more, first)  # (B, n_head, T, D)


def matmul_shared(a, b):
    """a @ b, for a (B, n_head, T, X) and b (1 or B, n_kv_head, X, Y): one product for all that read the same b."""
    return by_row(by_key_head(a, b) @ b, a)  # (B, n_head, T, Y)


class SplitAttention(torch.autograd.Function):
    """One fused kernel reads the past and another the new positions, so that no matrix of scores is stored. Their
    log-sum-exps say how much of the whole each part is: Juravsky et al. (2024), "Hydragen" (2402.05099), section 3.1.
    The backward pass of a kernel needs only the output and the log-sum-exp of the whole, so each part is given those.
    """

    @staticmethod
    def forward(ctx, q, past_k, past_v, k, v):
        past_y, past_lse = fused(by_key_head(q, past_k), past_k, past_v, is_causal=False)
        past_y, past_lse = by_row(past_y, q), by_row(past_lse, q)  # (B, n_head, T, D), (B, n_head, T, 1)
        new_y, new_lse = fused(q, k, v, is_causal=True)
        lse = torch.logaddexp(past_lse, new_lse)
        y = (past_y * (past_lse - lse).exp() + new_y * (new_lse - lse).exp()).to(q.dtype)
        ctx.save_for_backward(q, past_k, past_v, k, v, y, lse)
        return y

    @staticmethod
    def backward(ctx, grad):
        q, past_k, past_v, k, v, y, lse = ctx.saved_tensors
        new_dq, dk, dv = fused_backward(grad, q, k, v, y, lse, is_causal=True)
        grad, past_q, y, lse = (by_key_head(x, past_k) for x in (grad, q, y, lse))
        past_dq, past_dk, past_dv = fused_backward(grad, past_q, past_k, past_v, y, lse, is_causal=False)
        return by_row(past_dq, q) + new_dq, past_dk, past_dv, dk, dv


def by_key_head(x, keys):
    """x (B, n_head, T, X) -> (1 or B, n_kv_head, N, X): the N rows that read the same keys stand below each other."""
    (B, n_head, T, X), n_kv_head = x.shape, keys.size(1)
    N = n_head // n_kv_head * T  # sizes are named, since an empty past leaves nothing to infer them from
    x = x.reshape(B, n_kv_head, N, X)
    return x if len(keys) == B else x.transpose(0, 1).reshape(1, n_kv_head, B * N, X)


def by_row(y, q):
    """The inverse of by_key_head: y (1 or B, n_kv_head, N, X) -> (B, n_head, T, X), with B, n_head and T of q."""
    (B, n_head, T, _), (_, n_kv_head, N, X) = q.shape, y.shape
    if len(y) != B:
        y = y.view(n_kv_head, B, N // B, X).transpose(0, 1)
    return y.reshape(B, n_head, T, X)


def fused(q, k, v, is_causal):
    """PyTorch's fused attention, and the log-sum-exp of each row of scores, (B, n_head, T, 1) in float32."""
    if q.is_cuda:
        y, lse, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, None, True, 0.0, is_causal)
        return y, lse[:, :, : q.size(2), None]  # it comes padded to a multiple of 32
    y, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, is_causal)
    return y, lse[..., None]


def fused_backward(grad, q, k, v, y, lse, is_causal):
    """The gradients of q, k and v. y and lse may be of an attention that reads more positions than those of k and v."""
    if q.is_cuda:
        lse = F.pad(lse[..., 0], (0, -q.size(2) % 32), value=torch.inf)
        seed = torch.zeros((), dtype=torch.long)  # of dropout, which has rate 0
        args = grad, q, k, v, None, y, lse.contiguous(), seed, seed, 0.0, [True, True, True, False], is_causal
        return torch.ops.aten._scaled_dot_product_efficient_attention_backward(*args)[:3]
    args = grad, q, k, v, y, lse[..., 0], 0.0, is_causal
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(*args)


class CrossEntropy(torch.autograd.Function):
    """F.cross_entropy(hidden @ table.T, targets), for hidden (N, C), a frozen table (vocab_size, C) and targets (N).
    It makes the gradient along with the loss, some rows at a time: all logits of 50,257 tokens at once, and copies of
    them, would take as long as their products and most of the memory of a step."""

    @staticmethod
    def forward(ctx, hidden, table, targets):
        n = max(1, 2**22 // len(table))  # rows whose logits stay in a CPU's cache
        grad, loss = torch.empty_like(hidden), 0.0
        for h, t, g in zip(hidden.split(n), targets[:, None].split(n), grad.split(n)):
            p = (h @ table.T).softmax(-1, dtype=torch.float32)  # (n, vocab_size)
            right = p.gather(1, t)  # (n, 1)
            loss -= right.clamp_min(torch.finfo().tiny).log().sum() / len(hidden)  # the log of 0 would be infinite
            g.copy_(p.scatter_(1, t, right - 1).div_(len(hidden)).to(table.dtype) @ table)
        ctx.save_for_backward(grad)
        return loss

    @staticmethod
    def backward(ctx, upstream):
        (grad,) = ctx.saved_tensors
        return grad * upstream, None, None
