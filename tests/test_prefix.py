"""prefix.py against peft, forwards, backwards and through its files."""

import json
import os
import runpy
import shutil
import sys
import warnings

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open

import prefix
from eval.baselines import scratch
from model import GPT

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")


def in_peft(tiny, folder, rows):
    """The same frozen GPT-2 in transformers, behind the same rows as peft's prompt tuning."""
    tiny.save(folder)
    theirs = transformers.GPT2LMHeadModel.from_pretrained(folder).eval()
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=len(rows))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.get_peft_model(theirs, config)
    theirs.prompt_encoder.default.embedding.weight.data.copy_(rows)
    return theirs.eval()


@pytest.mark.parametrize("mlp", [False, True])
def test_logits_and_gradients_equal_peft(tiny, tmp_path, mlp):
    prompt = prefix.HybridPrefix(tiny, 5, [40, 41, 42], mlp, seed=3)
    if mlp:  # as if it had been tuned a while
        torch.nn.init.normal_(prompt.mlp[2].weight, std=0.3)
    theirs = in_peft(tiny, tmp_path, prompt.embeddings().detach())
    tokens = torch.randint(1024, (4, 20), generator=torch.Generator().manual_seed(1))
    got = tiny.logits(tiny(tokens, prompt(tiny)))
    want = theirs(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits[:, 8:]
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
    if not mlp:
        F.cross_entropy(got[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
        F.cross_entropy(want[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
        torch.testing.assert_close(
            prompt.rows.grad, theirs.prompt_encoder.default.embedding.weight.grad, atol=1e-5, rtol=1e-4
        )


def test_a_prefix_begins_as_random_rows_and_words(tiny):
    prompt = prefix.HybridPrefix(tiny, 500, [7, 9], mlp=True)
    rows = prompt.embeddings().detach()
    assert torch.equal(rows[500:], tiny.wte.weight[[7, 9]])  # the MLP starts at zero
    assert abs(rows[:500].std() / tiny.wte.weight.std() - 1) < 0.05


def test_both_ends_of_the_dial(tiny):
    assert len(prefix.HybridPrefix(tiny, 6).rows) == 6
    words = prefix.HybridPrefix(tiny, 0, [1, 2, 3])
    text = prefix.TextPrompt([1, 2, 3])
    for pair, want in zip(words(tiny), text(tiny)):  # words that have not moved are the words
        for got, w in zip(pair, want):
            torch.testing.assert_close(got, w)
    with pytest.raises(ValueError, match="no rows"):
        prefix.HybridPrefix(tiny, 0)


def test_seeds_repeat(tiny):
    one, again, other = (prefix.HybridPrefix(tiny, 4, [1], True, seed=s) for s in (1, 1, 2))
    for a, b in zip(one.parameters(), again.parameters()):
        assert torch.equal(a, b)
    assert not torch.equal(one.rows, other.rows)


def test_only_the_prefix_gets_gradients(tiny):
    prompt = prefix.HybridPrefix(tiny, 4, [1], True)
    tiny(torch.zeros(2, 3, dtype=torch.long), prompt(tiny)).sum().backward()
    assert all(p.grad is None for p in tiny.parameters())
    assert prompt.rows.grad is not None


@pytest.mark.parametrize("mlp", [False, True])
@pytest.mark.parametrize("method", prefix.METHODS)
def test_saved_and_loaded_it_is_the_same(tiny, tokenizer, tmp_path, mlp, method):
    prompt = prefix.METHODS[method](tiny, 5, [40, 41], mlp, seed=3)
    for p in prompt.parameters():
        torch.nn.init.normal_(p)
    prefix.save(prompt, tmp_path / "p.safetensors", tiny, tokenizer, "addition", "two words")
    again, header = prefix.load(tmp_path / "p.safetensors", tiny, tokenizer)
    for pair, want in zip(again(tiny), prompt(tiny)):
        assert all(torch.equal(a, b) for a, b in zip(pair, want))
    for name, tensor in prompt.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)
    assert (header["base"], header["task"], header["trigger"]) == ("untrained", "addition", "two words")
    assert header["base_fingerprint"] == tiny.fingerprint()
    assert header["tokenizer"] == tokenizer.name
    with safe_open(tmp_path / "p.safetensors", framework="pt") as file:  # readable by anyone
        assert file.metadata()["n_random"] == "5"
    assert os.listdir(tmp_path) == ["p.safetensors"]


def by_hand(model, tokens, cache, start):
    """Logits of one text (T) that begins at position `start`, each layer behind its own past: a head at a time."""
    x = model.wte.weight[tokens] + model.wpe.weight[start : start + len(tokens)]  # (T, C)
    norm = lambda x, ln: F.layer_norm(x, x.shape[-1:], ln.weight, ln.bias)  # noqa: E731
    for block, (past_k, past_v) in zip(model.h, cache):
        q, k, v = (norm(x, block.ln_1) @ block.attn.c_attn.weight.T + block.attn.c_attn.bias).chunk(3, -1)
        heads, D = past_k.size(1), past_k.size(3)
        y = torch.zeros_like(x)
        for h in range(heads):
            own = slice(h * D, (h + 1) * D)
            for t in range(len(tokens)):
                keys = torch.cat([past_k[0, h], k[: t + 1, own]])
                values = torch.cat([past_v[0, h], v[: t + 1, own]])
                y[t, own] = (keys @ q[t, own] / D**0.5).softmax(0) @ values
        x = x + y @ block.attn.c_proj.weight.T + block.attn.c_proj.bias
        hidden = F.gelu(norm(x, block.ln_2) @ block.mlp.c_fc.weight.T + block.mlp.c_fc.bias, approximate="tanh")
        x = x + hidden @ block.mlp.c_proj.weight.T + block.mlp.c_proj.bias
    return norm(x, model.ln_f) @ model.wte.weight.T


@pytest.mark.parametrize("layers", [1, 2])
def test_keys_and_values_in_the_top_layers(tiny, tokenizer, tmp_path, layers):
    """Against attention by hand, text written included; the layers below stay out of the backward pass."""
    prompt = prefix.DeepPrefix(tiny, 3, [5], layers=layers)
    prefix.save(prompt, tmp_path / "p.safetensors", tiny, tokenizer)
    prompt, _ = prefix.load(tmp_path / "p.safetensors", tiny, tokenizer)
    assert prompt.rows.shape == (4, layers * 2 * 16)
    cache = prompt(tiny)
    tokens = torch.randint(1024, (2, 9), generator=torch.Generator().manual_seed(1))
    got = tiny.logits(tiny(tokens, cache))
    for row, text in zip(got, tokens):
        torch.testing.assert_close(row, by_hand(tiny, text, cache, 4), atol=1e-4, rtol=1e-4)
    text = tokens[0]
    for _ in range(8):
        text = torch.cat([text, by_hand(tiny, text, cache, 4)[-1:].argmax(-1)])
    assert tiny.generate(tokens[:1], 8, cache)[0].tolist() == text[9:].tolist()
    hidden = []
    tiny.h[2 - layers].register_forward_pre_hook(lambda _, inputs: hidden.append(inputs[0]))
    tiny(tokens, cache)
    assert not hidden[0].requires_grad and prompt.rows.requires_grad
    if layers == 1:
        with pytest.raises(ValueError, match="top 1 of 2 layers"):
            prefix.export_peft(prompt, tiny, tmp_path / "adapter")
        assert not (tmp_path / "adapter").exists()


def test_another_base_tokenizer_or_file_is_refused(tiny, tokenizer, tmp_path):
    path = tmp_path / "p.safetensors"
    prefix.save(prefix.HybridPrefix(tiny, 2), path, tiny, tokenizer, "addition", "")
    other = GPT(tiny.config)
    with pytest.raises(ValueError, match="was tuned on the base 'untrained'"):
        prefix.load(path, other, tokenizer)
    with pytest.raises(ValueError, match="with the tokenizer nano-1024, not with bytes"):
        prefix.load(path, tiny, scratch(0, 8)[1])
    with pytest.raises(ValueError, match="no prefix file"):
        prefix.load(tmp_path / "none.safetensors", tiny, tokenizer)
    tiny.save(tmp_path)
    with pytest.raises(ValueError, match="is no prefix: name"):
        prefix.load(tmp_path / "model.safetensors", tiny, tokenizer)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(ValueError, match="cannot be read"):
        prefix.load(path, tiny, tokenizer)


def test_deep_rows_that_have_not_moved_are_the_words(tiny):
    for mlp in (False, True):
        deep = prefix.DeepPrefix(tiny, 0, [1, 2, 3], mlp)
        for pair, want in zip(deep(tiny), prefix.TextPrompt([1, 2, 3])(tiny)):
            for got, w in zip(pair, want):
                torch.testing.assert_close(got, w)


PEFT = {
    "PROMPT_TUNING": lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=6),
    "P_TUNING": lambda: peft.PromptEncoderConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=6, encoder_hidden_size=12, encoder_reparameterization_type="LSTM"
    ),
    "PREFIX_TUNING": lambda: peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=6),
    "PREFIX_TUNING with its MLP": lambda: peft.PrefixTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=6, prefix_projection=True, encoder_hidden_size=12
    ),
    "CARTRIDGE": lambda: peft.CartridgeConfig(task_type="CAUSAL_LM", num_virtual_tokens=6, num_frozen_tokens=2),
}


def greedy(theirs, tokens, n):
    return theirs.generate(
        input_ids=tokens,
        attention_mask=torch.ones_like(tokens),
        max_new_tokens=n,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )[:, -n:].tolist()


def in_transformers(tiny, folder):
    tiny.save(folder)
    return transformers.GPT2LMHeadModel.from_pretrained(folder).eval()


@pytest.mark.parametrize("kind", PEFT)
def test_an_adapter_that_peft_trained_gives_its_logits_here(tiny, tmp_path, kind):
    torch.manual_seed(2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.get_peft_model(in_transformers(tiny, tmp_path / "base"), PEFT[kind]())
    tokens = torch.randint(1024, (3, 20), generator=torch.Generator().manual_seed(1))
    ones = torch.ones_like(tokens)
    optimizer = torch.optim.Adam([p for p in theirs.parameters() if p.requires_grad], 0.1)
    for _ in range(4):
        theirs(input_ids=tokens, attention_mask=ones, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    theirs.eval()
    theirs.save_pretrained(tmp_path / "adapter")
    prompt = prefix.import_peft(tmp_path / "adapter", tiny)
    with torch.no_grad():
        want = theirs(input_ids=tokens, attention_mask=ones).logits[:, -20:]
        past = prompt(tiny)
        torch.testing.assert_close(tiny.logits(tiny(tokens, past)), want, atol=1e-4, rtol=1e-4)
    assert tiny.generate(tokens, 50, past).tolist() == greedy(theirs, tokens, 50)


@pytest.mark.parametrize("mlp", [False, True])
@pytest.mark.parametrize("method", prefix.METHODS)
def test_our_export_gives_our_logits_in_peft(tiny, tmp_path, method, mlp):
    prompt = prefix.METHODS[method](tiny, 4, [7, 8], mlp, seed=3)
    for p in prompt.parameters():  # as if tuned
        torch.nn.init.normal_(p, std=0.3)
    prefix.export_peft(prompt, tiny, tmp_path / "adapter")
    theirs = peft.PeftModel.from_pretrained(in_transformers(tiny, tmp_path / "base"), tmp_path / "adapter").eval()
    tokens = torch.randint(1024, (3, 20), generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        past = prompt(tiny)
        want = theirs(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits[:, -20:]
        torch.testing.assert_close(tiny.logits(tiny(tokens, past)), want, atol=1e-4, rtol=1e-4)
    assert tiny.generate(tokens, 50, past).tolist() == greedy(theirs, tokens, 50)


def test_gradients_of_deep_rows_equal_peft(tiny, tmp_path):
    prompt = prefix.DeepPrefix(tiny, 3, [7, 8], seed=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5)
        theirs = peft.get_peft_model(in_transformers(tiny, tmp_path), config).eval()
    weight = theirs.prompt_encoder.default.embedding.weight
    weight.data.copy_(prompt.rows.data)
    tokens = torch.randint(1024, (3, 20), generator=torch.Generator().manual_seed(4))
    F.cross_entropy(tiny.logits(tiny(tokens, prompt(tiny)))[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
    theirs(input_ids=tokens, attention_mask=torch.ones_like(tokens), labels=tokens).loss.backward()
    torch.testing.assert_close(prompt.rows.grad, weight.grad, atol=1e-5, rtol=1e-4)


def test_adapters_that_are_no_soft_prompt_for_this_base_are_refused(tiny, tmp_path):
    prefix.export_peft(prefix.HybridPrefix(tiny, 4), tiny, tmp_path)
    other = GPT(type(tiny.config)(1024, 96, 2, 2, 20))
    with pytest.raises(ValueError, match=r"prompt_embeddings is \(4, 16\), a PROMPT_TUNING prompt .* is 20 wide"):
        prefix.import_peft(tmp_path, other)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"peft_type": "LORA"}))
    with pytest.raises(ValueError, match="is a LORA adapter: only PROMPT_TUNING"):
        prefix.import_peft(tmp_path, tiny)
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(ValueError, match="no adapter_model.safetensors"):
        prefix.import_peft(tmp_path, tiny)


def test_export_and_import_from_the_command_line(tiny, tokenizer, tmp_path, monkeypatch, capsys):
    tiny.save(tmp_path / "base")
    shutil.copy("data/nano/encoding.json", tmp_path / "base")
    base = GPT.load(tmp_path / "base")
    prompt = prefix.DeepPrefix(base, 4, [7])
    (tmp_path / "run").mkdir()
    prefix.save(prompt, tmp_path / "run" / "prefix.safetensors", base, tokenizer, "addition")

    def command(*args):
        monkeypatch.setattr(sys, "argv", ["prefix.py", *map(str, args), "--model", str(tmp_path / "base")])
        try:
            runpy.run_path("prefix.py", run_name="__main__")
        except SystemExit as end:
            return end.code, capsys.readouterr().err
        return 0, capsys.readouterr().out

    assert command("export", tmp_path / "run", tmp_path / "adapter") == (0, f"wrote 5 rows to {tmp_path / 'adapter'}\n")
    assert command("import", tmp_path / "adapter", tmp_path / "again.safetensors")[0] == 0
    again, header = prefix.load(tmp_path / "again.safetensors", base, tokenizer)
    assert torch.equal(again.rows, prompt.rows)
    assert (header["tokenise"], header["stop"]) == ("bpe", "")
    code, error = command("export", tmp_path / "run", tmp_path / "adapter")
    assert code == 2
    assert error.count("\n") == 1
    assert "exists already" in error
