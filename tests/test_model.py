"""model.py against transformers' GPT-2, and its cache against itself without one."""

import copy
import json
import os
import re
import subprocess
import sys

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file

from model import GPT, HUB, GPTConfig

transformers = pytest.importorskip("transformers")

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
    ours = GPT.load(tmp_path)
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
    assert GPT.load(tmp_path).generate(tokens, 50).tolist() == want.tolist()


def test_transformers_reads_what_we_save(tmp_path, tiny):
    tiny.save(tmp_path)
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path).eval()
    tokens = torch.randint(1024, (2, 20), generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        torch.testing.assert_close(tiny.logits(tiny(tokens)), theirs(tokens).logits, atol=1e-4, rtol=1e-4)


def test_old_dialect_of_the_hub_loads(tmp_path):
    """Names without `transformer.`, causal masks stored, the head stored beside the table."""
    theirs = reference(tmp_path)
    tensors = {n.removeprefix("transformer."): t.clone() for n, t in load_file(tmp_path / "model.safetensors").items()}
    for i in range(2):
        tensors[f"h.{i}.attn.bias"] = torch.ones(1, 1, 64, 64).tril()
        tensors[f"h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
    tensors["lm_head.weight"] = tensors["wte.weight"].clone()
    save_file(tensors, tmp_path / "model.safetensors")
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        ours = GPT.load(tmp_path)
        torch.testing.assert_close(ours.logits(ours(tokens)), theirs(tokens).logits, atol=1e-4, rtol=1e-4)


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
    """5,000 targets, so that they are taken in several parts; the frozen table's path and the trained one's."""
    rng = torch.Generator().manual_seed(13)
    hidden, targets = torch.randn(5000, 16, generator=rng), torch.randint(1024, (5000,), generator=rng)
    a, b = (hidden.clone().requires_grad_(True) for _ in range(2))
    want = torch.nn.functional.cross_entropy(a @ tiny.wte.weight.T, targets)
    (3 * want).backward()
    for frozen in (True, False):
        tiny.wte.requires_grad_(not frozen)
        b.grad = None
        loss = tiny.loss(b, targets)
        (3 * loss).backward()
        torch.testing.assert_close(loss, want)
        torch.testing.assert_close(b.grad, a.grad)


def test_a_target_that_is_all_but_impossible_has_a_finite_loss(tiny):
    hidden = (1e4 * torch.randn(4, 16, generator=torch.Generator().manual_seed(14))).requires_grad_(True)
    loss = tiny.loss(hidden, tiny.logits(hidden).argmin(-1))
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


def test_save_and_load_keep_every_bit(tmp_path, tiny):
    tiny.save(tmp_path)
    again = GPT.load(tmp_path)
    assert again.config == tiny.config
    assert again.fingerprint() == tiny.fingerprint()
    assert all(torch.equal(a, b) for a, b in zip(tiny.parameters(), again.parameters()))


def test_fingerprint_is_the_same_in_bfloat16_and_changes_with_the_weights(tmp_path, tiny):
    tiny.save(tmp_path, torch.bfloat16)
    again = GPT.load(tmp_path)
    assert again.fingerprint() == tiny.fingerprint()
    with torch.no_grad():
        again.h[1].mlp.c_fc.weight[3, 2] *= 1.5
    assert again.fingerprint() != tiny.fingerprint()


def test_too_long_a_text_is_refused(tiny):
    past = tiny.prefill(torch.zeros(1, 90, dtype=torch.long))
    tiny(torch.zeros(1, 6, dtype=torch.long), past)
    with pytest.raises(ValueError, match="block_size 96"):
        tiny(torch.zeros(1, 7, dtype=torch.long), past)


def broken(tmp_path, change):
    """A good checkpoint with its tensors changed by `change`."""
    reference(tmp_path)
    tensors = {n: t.clone() for n, t in load_file(tmp_path / "model.safetensors").items()}
    change(tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path


def truncate(path, share=0.5):
    os.truncate(path, int(path.stat().st_size * share))


def test_broken_checkpoints_are_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="no model.safetensors in .*: a model is a folder"):
        GPT.load(tmp_path)
    with pytest.raises(ValueError, match="no model 'nanoo': give nano, nano-1m, nano-11m, gpt2"):
        GPT.load("nanoo")
    with pytest.raises(ValueError, match=r"lacks 1 tensors, first 'h.1.ln_2.bias'"):
        GPT.load(broken(tmp_path, lambda t: t.pop("transformer.h.1.ln_2.bias")))
    with pytest.raises(ValueError, match="'h.9.odd', which GPT-2 does not have"):
        GPT.load(broken(tmp_path, lambda t: t.update({"h.9.odd": torch.zeros(1)})))
    with pytest.raises(ValueError, match=r"wpe.weight' is \(63, 32\), config.json asks for \(64, 32\)"):
        GPT.load(broken(tmp_path, lambda t: t.update({"transformer.wpe.weight": torch.zeros(63, 32)})))
    reference(tmp_path)
    truncate(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="cannot be read"):
        GPT.load(tmp_path)
    reference(tmp_path)
    truncate(tmp_path / "config.json")
    with pytest.raises(ValueError, match="is not JSON"):
        GPT.load(tmp_path)


def test_a_sharded_checkpoint_loads_and_a_missing_shard_is_named(tmp_path):
    theirs = reference(tmp_path)
    whole = GPT.load(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    theirs.save_pretrained(tmp_path, max_shard_size="30KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 2
    assert GPT.load(tmp_path).fingerprint() == whole.fingerprint()
    shards[1].unlink()
    with pytest.raises(ValueError, match=f"no {shards[1].name} in"):
        GPT.load(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ValueError, match="is no index of shards"):
        GPT.load(tmp_path)


def test_a_file_alone_says_its_shape_as_far_as_it_can(tmp_path):
    """Heads of 64 columns, as in every GPT-2 that was published; else config.json has to say it."""
    theirs = reference(tmp_path, n_layer=3, n_head=2, n_embd=128)
    (tmp_path / "config.json").unlink()
    (tmp_path / "model.safetensors").rename(tmp_path / "weights.safetensors")
    ours = GPT.load(tmp_path / "weights.safetensors")
    assert (ours.config.n_layer, ours.config.n_head, ours.config.block_size) == (3, 2, 64)
    tokens = torch.randint(101, (2, 30), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        torch.testing.assert_close(ours.logits(ours(tokens)), theirs(tokens).logits, atol=1e-4, rtol=1e-4)
    reference(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match="no config.json in .* how many heads share 32 columns"):
        GPT.load(tmp_path)


def test_a_head_of_its_own_is_refused(tmp_path):
    broken(tmp_path, lambda t: t.update({"lm_head.weight": torch.zeros(101, 32)}))
    with pytest.raises(ValueError, match="only tied heads"):
        GPT.load(tmp_path)


def test_hub_names_are_fetched_at_a_pinned_revision(tmp_path, monkeypatch):
    reference(tmp_path)
    asked = []

    def fetch(repository, file, revision):
        asked.append((repository, file, revision))
        return str(tmp_path / file)

    monkeypatch.setattr("model.hf_hub_download", fetch)
    model = GPT.load("gpt2")
    assert model.name == "gpt2"
    assert {a[0] for a in asked} == {"openai-community/gpt2"}
    assert {a[1] for a in asked} == {"config.json", "model.safetensors"}
    assert all(re.fullmatch("[0-9a-f]{40}", revision) for _, revision in HUB.values())
    assert {a[2] for a in asked} == {HUB["gpt2"][1]}


def test_what_the_hub_s_cache_holds_loads_offline(tmp_path):
    """The cache as huggingface_hub lays it out, and no network: its own code finds the pinned revision."""
    repository, revision = HUB["distilgpt2"]
    snapshot = tmp_path / "hub" / f"models--{repository.replace('/', '--')}" / "snapshots" / revision
    theirs = reference(snapshot)
    code = "from model import GPT; m = GPT.load('distilgpt2'); print(m.name, m.wte.weight.double().sum().item())"
    offline = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=offline)
    name, total = done.stdout.split()
    assert name == "distilgpt2"
    assert abs(float(total) - theirs.transformer.wte.weight.double().sum().item()) < 1e-9
    (snapshot / "config.json").unlink()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=offline)
    assert "cannot fetch distilgpt2" in done.stderr


def test_offline_and_not_cached_one_line_says_what_to_fetch(monkeypatch):
    def fetch(*_, **__):
        raise LocalEntryNotFoundError("a paragraph of advice")

    monkeypatch.setattr("model.hf_hub_download", fetch)
    with pytest.raises(ValueError, match="cannot fetch gpt2-xl .*openai-community/gpt2-xl into a folder") as error:
        GPT.load("gpt2-xl")
    assert "\n" not in str(error.value)


PEAK = """
import resource, sys
from model import GPT
import torch
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
model = GPT.load(sys.argv[1], dtype=getattr(torch, sys.argv[2]))
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print((after - before) * 1024 / sum(p.numel() * p.element_size() for p in model.parameters()))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss counts other units elsewhere")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loading_holds_little_more_than_the_model(tmp_path, dtype):
    """GPT-2's own proportions, a third of the weights in the table: 186 MB in float32."""
    GPT(GPTConfig(vocab_size=50257, block_size=1024, n_layer=6, n_head=8, n_embd=512)).save(tmp_path)
    done = subprocess.run([sys.executable, "-c", PEAK, tmp_path, dtype], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 1.3


@pytest.mark.parametrize(
    "key, value", [("activation_function", "relu"), ("n_inner", 40), ("scale_attn_by_inverse_layer_idx", True)]
)
def test_a_checkpoint_that_means_another_network_is_refused(tmp_path, key, value):
    reference(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {key: value}))
    with pytest.raises(ValueError, match=key):
        GPT.load(tmp_path)


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ValueError, match="n_embd 10 is not a multiple of n_head 3"):
        GPT(GPTConfig(10, 10, 1, 3, 10))
