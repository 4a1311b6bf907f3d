"""model.py against transformers' GPT-2; what both families share; kernels.py against the slow lines."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from conftest import assert_close, assert_same_logits, greedy, some_tokens, their_gpt2

import kernels
from files.weights import load_model
from generate import generate
from llama import Llama, LlamaConfig
from model import GPT, GPTConfig, build_mask

NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.mark.parametrize("n_layer, n_head, n_embd", [(1, 1, 8), (3, 2, 48)])
def test_logits_and_greedy_text_equal_transformers(tmp_path, n_layer, n_head, n_embd):
    theirs = their_gpt2(tmp_path, n_layer=n_layer, n_head=n_head, n_embd=n_embd)
    ours, tokens = load_model(tmp_path), some_tokens(3, 7, vocab_size=101)
    assert_same_logits(ours, theirs)
    assert ours.generate(tokens, 50).tolist() == greedy(theirs, tokens, 50)


@pytest.mark.parametrize("P", [1, 8])
def test_a_cache_changes_nothing(either, P):
    """One that rows share, one of their own, one that was filled in two parts, and embeddings instead of tokens."""
    tokens = some_tokens(3, 20)
    tokens[:, :P] = tokens[0, :P]
    want, before = either.logits(either(tokens))[:, P:], tokens[:, :P]
    in_two = either.prefill(before[:, P // 2 :], either.prefill(before[:, : P // 2])) if P > 1 else None
    for past in (either.prefill(before[:1]), either.prefill(before), in_two, either.prefill(either.wte(before))):
        if past:
            assert_close(either.logits(either(tokens[:, P:], past)), want, 1e-5)
            assert torch.equal(either.generate(tokens[:, P:], 9, past), either.generate(tokens, 9))


def test_bfloat16_is_float32_but_for_rounding(either):
    """The products of a CPU's bfloat16 are a path of their own: alone, after a shared prompt and after one a row."""
    tokens = some_tokens(3, 20)
    tokens[:, :8] = tokens[0, :8]
    want = either(tokens)[:, 8:]
    half = copy.deepcopy(either).to(torch.bfloat16)
    for past in (None, half.prefill(tokens[:1, :8]), half.prefill(tokens[:, :8])):
        got = half(tokens)[:, 8:] if past is None else half(tokens[:, 8:], past)
        assert (got.float() - want).norm() < 0.03 * want.norm()


def test_empty_positions_are_not_seen_and_take_no_number(either):
    """Texts of other lengths in one batch, behind pasts of other lengths, against each text alone."""
    tokens, before = some_tokens(3, 10), some_tokens(3, 6, seed=6)
    left, gone = torch.tensor([0, 4, 9]), torch.tensor([2, 0, 5])
    past = [tuple(x.clone() for x in pair) for pair in either.prefill(before)]
    for row, n in enumerate(gone):
        for pair, own in zip(past, either.prefill(before[row : row + 1, n:])):
            for x, y in zip(pair, own):
                x[row, :, :n], x[row, :, n:] = 7, y[0]  # what stands in an empty position does not matter
    both, _ = either.run(tokens, past, past_pad=gone, left_pad=left)
    no_past, _ = either.run(tokens, left_pad=left)
    half_past = [tuple(x.bfloat16() for x in pair) for pair in past]
    half, _ = copy.deepcopy(either).bfloat16().run(tokens, half_past, past_pad=gone, left_pad=left)
    assert half.isfinite().all()  # those of empty positions as well, which others multiply by 0
    for row, (n, skip) in enumerate(zip(gone, left)):
        text = tokens[row : row + 1, skip:]
        want = either(text, either.prefill(before[row : row + 1, n:]))[0]
        assert_close(both[row, skip:], want, 1e-5)
        assert (half[row, skip:] - want).norm() < 0.03 * want.norm()
        assert_close(no_past[row, skip:], either(text)[0], 1e-5)


def test_the_mask_is_the_drawn_one():
    """The rows that build_mask's docstring draws, and its numbers of positions."""
    drawing = [line.split() for line in build_mask.__doc__.splitlines() if line.count("_") > 1 and "x" in line]
    past_pad, left_pad = torch.tensor([1]), torch.tensor([1])
    mask, position = build_mask(torch.zeros(1, 4, 8), 3, 7, past_pad=past_pad, left_pad=left_pad)
    meaning = {"x": 0, ".": -torch.inf, "_": torch.finfo(torch.bfloat16).min}
    assert mask[0, 0].tolist() == [[meaning[mark] for mark in marks[1:8]] for marks in drawing]
    (numbers,) = [line.split()[1:8] for line in build_mask.__doc__.splitlines() if "position   " in line]
    assert [str(n) for n in position[0, 1:].tolist()] == numbers[4:]


def test_a_copy_shares_the_weights_and_its_hooks_are_its_own(either):
    tokens = some_tokens(2, 9)
    want = either(tokens)
    twin = copy.deepcopy(either, memo={id(p): p for p in either.parameters()})
    assert torch.equal(twin(tokens), want) and (twin.name, twin.config) == (either.name, either.config)
    assert all(a is b for a, b in zip(twin.parameters(), either.parameters()))
    twin.h[1].register_forward_pre_hook(lambda block, args: (args[0] + 1, *args[1:]))
    attend = twin.h[0].attn.attend
    twin.h[0].attn.attend = lambda q, *args: attend(q, *args) * 2
    assert not torch.allclose(twin(tokens), want, atol=0.1)
    assert torch.equal(either(tokens), want)


def test_what_cannot_be_is_refused(either):
    past = either.prefill(some_tokens(1, 90))
    either(some_tokens(1, 6), past)
    with pytest.raises(AssertionError, match="90 prompt rows and 7 tokens exceed block_size 96"):
        either(some_tokens(1, 7), past)
    with pytest.raises(AssertionError, match="90 prompt rows and 7 tokens exceed block_size 96"):  # read one by one
        generate(either, [[1]], 7, past)
    with pytest.raises(AssertionError, match="n_embd 10 is no multiple of n_head 3"):
        GPT(GPTConfig(10, 10, 1, 3, 10))
    with pytest.raises(AssertionError, match="n_head=3 is no multiple of config.n_kv_head=2"):
        Llama(LlamaConfig(n_head=3, n_kv_head=2))


def test_loss_and_gradient_equal_cross_entropy_of_all_logits(tiny):
    """5,000 targets, so that they are taken in several parts; the plain path and the fast one."""
    hidden, targets = torch.randn(5000, 16, generator=torch.Generator().manual_seed(13)), some_tokens(5000)
    a, b = (hidden.clone().requires_grad_(True) for _ in range(2))
    want = F.cross_entropy(a @ tiny.wte.weight.T, targets)
    (3 * want).backward()
    for loss_of in (tiny.loss, lambda hidden, targets: kernels.CrossEntropy.apply(hidden, tiny.wte.weight, targets)):
        b.grad = None
        loss = loss_of(b, targets)
        (3 * loss).backward()
        torch.testing.assert_close(loss, want)
        torch.testing.assert_close(b.grad, a.grad)
    half = hidden.bfloat16().requires_grad_(True)
    loss = tiny.to(torch.bfloat16).loss(half, targets)
    (3 * loss).backward()
    torch.testing.assert_close(loss.float(), want, atol=0.05, rtol=0.01)
    assert torch.cosine_similarity(a.grad.flatten(), half.grad.float().flatten(), 0) > 0.999
    far = 1e4 * hidden[:4]  # a target that is all but impossible has a finite loss
    assert 80 < kernels.CrossEntropy.apply(far, tiny.wte.weight.float(), tiny.float().logits(far).argmin(-1)) < 90


def scores_written_out(q, past_k, past_v, k, v):
    """Attention by its definition: every head and row gets keys of its own, and a softmax over all of them."""
    B, n_head, T, D = q.shape
    past_k, past_v = (x.repeat_interleave(n_head // x.size(1), 1).expand(B, -1, -1, -1) for x in (past_k, past_v))
    scores = q @ torch.cat([past_k, k], 2).mT / math.sqrt(D)  # (B, n_head, T, P + T)
    future = torch.ones(T, scores.size(-1), dtype=torch.bool).triu(past_k.size(2) + 1)
    return scores.masked_fill(future, -torch.inf).softmax(-1) @ torch.cat([past_v, v], 2)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=NEEDS_CUDA)])
@pytest.mark.parametrize("B, past_B, n_head, n_kv_head", [(3, 1, 4, 4), (3, 3, 4, 2), (3, 1, 4, 2)])
def test_attention_in_two_parts_equals_scores_written_out(B, past_B, n_head, n_kv_head, device):
    dtype, within = (torch.float64, 1e-12) if device == "cpu" else (torch.float32, 1e-4)
    rng, T, P, D = torch.Generator().manual_seed(0), 40, 7, 8  # T is no multiple of 32
    shapes = [(B, n_head, T, D), *[(past_B, n_kv_head, P, D)] * 2, *[(B, n_head, T, D)] * 2]
    args = [torch.randn(s, generator=rng, dtype=torch.float64).to(device, dtype).requires_grad_() for s in shapes]
    y, want = kernels.SplitAttention.apply(*args), scores_written_out(*args)
    assert_close(y, want, within)
    upstream = torch.randn(y.shape, generator=rng, dtype=torch.float64).to(y)
    for got, right in zip(torch.autograd.grad(y, args, upstream), torch.autograd.grad(want, args, upstream)):
        assert_close(got, right, within)
