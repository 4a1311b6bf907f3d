"""model.py against transformers' GPT-2, and its cache against itself without one."""

import copy
import math

import pytest
import torch

from files.weights import load_model
from model import GPT, CrossEntropy, GPTConfig, SplitAttention

transformers = pytest.importorskip("transformers")

NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
SHAPES = [(1, 1, 8), (2, 4, 32), (3, 2, 48)]  # layers, heads, width


def reference(folder, n_layer=2, n_head=4, n_embd=32, seed=0):
    """A GPT-2 that transformers made and saved."""
    torch.manual_seed(seed)
    config = transformers.GPT2Config(
        vocab_size=101, n_positions=64, n_layer=n_layer, n_head=n_head, n_embd=n_embd, bos_token_id=0, eos_token_id=0
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)  # larger than the default: no near ties in greedy decoding
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_equal_transformers(tmp_path, shape):
    theirs = reference(tmp_path, *shape)
    ours = load_model(tmp_path)
    tokens = torch.randint(101, (3, 40), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        want = theirs(tokens).logits
        got = ours.logits(ours(tokens))
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_greedy_text_equals_transformers(tmp_path, shape):
    theirs = reference(tmp_path, *shape)
    tokens = torch.randint(1, 101, (4, 7), generator=torch.Generator().manual_seed(3))
    want = theirs.generate(
        tokens,
        attention_mask=torch.ones_like(tokens),
        max_new_tokens=50,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )[:, 7:]
    assert load_model(tmp_path).generate(tokens, 50).tolist() == want.tolist()


@pytest.mark.parametrize("split", [1, 5, 19])
def test_logits_with_a_cache_equal_logits_without(tiny, split):
    tokens = torch.randint(1024, (3, 20), generator=torch.Generator().manual_seed(5))
    whole = tiny.logits(tiny(tokens))[:, split:]
    cached = tiny.logits(tiny(tokens[:, split:], tiny.prefill(tokens[:, :split])))
    torch.testing.assert_close(cached, whole, atol=1e-5, rtol=1e-5)


def test_prefill_in_two_parts_equals_one(tiny):
    tokens = torch.randint(1024, (1, 20), generator=torch.Generator().manual_seed(6))
    in_two = tiny.prefill(tokens[:, 8:], tiny.prefill(tokens[:, :8]))
    for pair, want in zip(in_two, tiny.prefill(tokens)):
        for got, w in zip(pair, want):
            torch.testing.assert_close(got, w, atol=1e-5, rtol=1e-5)


def test_a_cache_of_batch_1_is_seen_by_every_row(tiny):
    tokens = torch.randint(1024, (3, 20), generator=torch.Generator().manual_seed(7))
    tokens[:, :8] = tokens[0, :8]
    shared = tiny.logits(tiny(tokens[:, 8:], tiny.prefill(tokens[:1, :8])))
    torch.testing.assert_close(shared, tiny.logits(tiny(tokens))[:, 8:], atol=1e-5, rtol=1e-5)


def test_bfloat16_is_float32_but_for_rounding(tiny):
    """The products of a CPU's bfloat16 are a path of their own: alone, behind a shared prompt and behind one a row."""
    tokens = torch.randint(1024, (3, 20), generator=torch.Generator().manual_seed(12))
    tokens[:, :8] = tokens[0, :8]
    want = tiny(tokens)[:, 8:]
    half = copy.deepcopy(tiny).to(torch.bfloat16)
    for past in (None, half.prefill(tokens[:1, :8]), half.prefill(tokens[:, :8])):
        got = half(tokens)[:, 8:] if past is None else half(tokens[:, 8:], past)
        assert (got.float() - want).norm() < 0.03 * want.norm()


def test_loss_and_gradient_equal_cross_entropy_of_all_logits(tiny):
    """5,000 targets, so that they are taken in several parts; the plain path and the fast one."""
    rng = torch.Generator().manual_seed(13)
    hidden, targets = torch.randn(5000, 16, generator=rng), torch.randint(1024, (5000,), generator=rng)
    a, b = (hidden.clone().requires_grad_(True) for _ in range(2))
    want = torch.nn.functional.cross_entropy(a @ tiny.wte.weight.T, targets)
    (3 * want).backward()
    for loss_of in (tiny.loss, lambda hidden, targets: CrossEntropy.apply(hidden, tiny.wte.weight, targets)):
        b.grad = None
        loss = loss_of(b, targets)
        (3 * loss).backward()
        torch.testing.assert_close(loss, want)
        torch.testing.assert_close(b.grad, a.grad)


def test_the_loss_of_a_frozen_bfloat16_model_is_that_of_float32_but_for_rounding(tiny):
    rng = torch.Generator().manual_seed(13)
    hidden, targets = torch.randn(500, 16, generator=rng), torch.randint(1024, (500,), generator=rng)
    a, b = hidden.requires_grad_(True), hidden.detach().to(torch.bfloat16).requires_grad_(True)
    want = tiny.loss(a, targets)
    want.backward()
    got = tiny.to(torch.bfloat16).loss(b, targets)
    got.backward()
    torch.testing.assert_close(got.float(), want, atol=0.05, rtol=0.01)
    assert torch.cosine_similarity(a.grad.flatten(), b.grad.float().flatten(), 0) > 0.999


def test_a_target_that_is_all_but_impossible_has_a_finite_loss(tiny):
    hidden = (1e4 * torch.randn(4, 16, generator=torch.Generator().manual_seed(14))).requires_grad_(True)
    loss = CrossEntropy.apply(hidden, tiny.wte.weight, tiny.logits(hidden).argmin(-1))
    loss.backward()
    assert 80 < loss.item() < 90
    assert hidden.grad.isfinite().all()


def test_embeddings_are_tokens_looked_up(tiny):
    tokens = torch.arange(12)[None]
    for pair, want in zip(tiny.prefill(tiny.wte(tokens)), tiny.prefill(tokens)):
        assert all(torch.equal(a, b) for a, b in zip(pair, want))


def greedy_without_a_cache(model, tokens, n):
    for _ in range(n):
        tokens = torch.cat([tokens, model.logits(model(tokens))[:, -1:].argmax(-1)], dim=1)
    return tokens


def test_generate_behind_a_prompt_equals_the_whole_text(tiny):
    tokens = torch.randint(1024, (3, 20), generator=torch.Generator().manual_seed(8))
    tokens[:, :8] = tokens[0, :8]
    want = greedy_without_a_cache(tiny, tokens, 15)[:, 20:]
    assert tiny.generate(tokens[:, 8:], 15, tiny.prefill(tokens[:1, :8])).tolist() == want.tolist()
    assert tiny.generate(tokens[:, 8:], 15, tiny.prefill(tokens[:, :8])).tolist() == want.tolist()


def test_too_long_a_text_is_refused(tiny):
    past = tiny.prefill(torch.zeros(1, 90, dtype=torch.long))
    tiny(torch.zeros(1, 6, dtype=torch.long), past)
    with pytest.raises(ValueError, match="block_size 96"):
        tiny(torch.zeros(1, 7, dtype=torch.long), past)


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ValueError, match="n_embd 10 is not a multiple of n_head 3"):
        GPT(GPTConfig(10, 10, 1, 3, 10))


def scores_written_out(q, past_k, past_v, k, v):
    """Attention by its definition: every head and row gets keys of its own, and a softmax over all of them."""
    B, n_head, T, D = q.shape
    past_k, past_v = (x.repeat_interleave(n_head // x.size(1), 1).expand(B, -1, -1, -1) for x in (past_k, past_v))
    scores = q @ torch.cat([past_k, k], 2).mT / math.sqrt(D)  # (B, n_head, T, P + T)
    future = torch.ones(T, scores.size(-1), dtype=torch.bool).triu(past_k.size(2) + 1)
    return scores.masked_fill(future, -torch.inf).softmax(-1) @ torch.cat([past_v, v], 2)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=NEEDS_CUDA)])
@pytest.mark.parametrize("B, past_B, n_head, n_kv_head", [(3, 1, 4, 4), (3, 3, 4, 2), (3, 1, 4, 2), (1, 1, 2, 1)])
def test_attention_in_two_parts_equals_scores_written_out(B, past_B, n_head, n_kv_head, device):
    dtype, atol = (torch.float64, 1e-12) if device == "cpu" else (torch.float32, 1e-4)
    rng, T, P, D = torch.Generator().manual_seed(0), 40, 7, 8  # T is no multiple of 32
    shapes = [(B, n_head, T, D), *[(past_B, n_kv_head, P, D)] * 2, *[(B, n_head, T, D)] * 2]
    args = [torch.randn(s, generator=rng, dtype=torch.float64).to(device, dtype).requires_grad_() for s in shapes]
    y, want = SplitAttention.apply(*args), scores_written_out(*args)
    torch.testing.assert_close(y, want, atol=atol, rtol=atol)
    upstream = torch.randn(y.shape, generator=rng, dtype=torch.float64).to(y)
    for got, right in zip(torch.autograd.grad(y, args, upstream), torch.autograd.grad(want, args, upstream)):
        torch.testing.assert_close(got, right, atol=atol, rtol=atol)


def test_the_gradient_of_attention_in_two_parts_equals_finite_differences():
    rng = torch.Generator().manual_seed(1)
    shapes = [(2, 4, 3, 8), *[(1, 2, 5, 8)] * 2, *[(2, 4, 3, 8)] * 2]
    args = [torch.randn(s, generator=rng, dtype=torch.float64, requires_grad=True) for s in shapes]
    assert torch.autograd.gradcheck(SplitAttention.apply, args)
